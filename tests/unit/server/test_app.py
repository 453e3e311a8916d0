"""The extension in a server: its settings, what it tells kernels, and what it leaves for other clients."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.serverapp import ServerApp
from traitlets import TraitError
from traitlets.config import Config

from sharedwidgets.core.protocol import Limits
from sharedwidgets_server.app import SharedWidgetsApp

URL, CREDENTIAL, SERVER = "SHAREDWIDGETS_URL", "SHAREDWIDGETS_CREDENTIAL", "SHAREDWIDGETS_SERVER"
Start = Callable[..., SharedWidgetsApp]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """A server that loaded the extension and does not run yet; folders and environment are the test's own."""
    for name in ("DATA", "CONFIG", "RUNTIME"):
        monkeypatch.setenv(f"JUPYTER_{name}_DIR", str(tmp_path / name.lower()))
    for name in (URL, CREDENTIAL, SERVER):
        # Set and taken back, so that monkeypatch restores what a server leaves.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    (tmp_path / "root").mkdir()
    before = os.environ.copy()

    def load(*arguments: str, **settings: Any) -> SharedWidgetsApp:
        ServerApp.clear_instance()
        config = Config({"SharedWidgetsApp": settings, "ServerApp": {"reraise_server_extension_failures": True}})
        server = ServerApp.instance(
            config=config,
            root_dir=str(tmp_path / "root"),
            open_browser=False,
            allow_root=True,
            jpserver_extensions={"sharedwidgets_server": True},
        )
        server.initialize(list(arguments), new_httpserver=False, find_extensions=False)
        (app,) = server.extension_manager.extension_apps["sharedwidgets_server"]
        return app

    yield load
    ServerApp.clear_instance()
    os.environ.clear()
    os.environ.update(before)


# --- what kernels are told


@pytest.mark.asyncio
async def test_kernels_are_told_at_load_and_again_when_the_port_is_final(start: Start) -> None:
    app = start("--ServerApp.port=18888", "--ServerApp.base_url=/a%40b/")
    assert os.environ[URL] == "http://localhost:18888/a%40b/"
    assert os.environ[CREDENTIAL] == app.keys.credential
    assert os.environ[SERVER] == app.keys.server_id
    app.serverapp.port = 18889
    await app._start_jupyter_server_extension(app.serverapp)
    assert os.environ[URL] == "http://localhost:18889/a%40b/"
    await app.stop_extension()
    assert not {URL, CREDENTIAL, SERVER} & os.environ.keys()


@pytest.mark.parametrize("ip", ["0.0.0.0", "::", "*", ""])
def test_a_wildcard_address_is_reached_by_the_loopback(start: Start, ip: str) -> None:
    start(f"--ServerApp.ip={ip}", "--ServerApp.port=18888")
    assert os.environ[URL] == "http://127.0.0.1:18888/"


def test_an_address_of_the_operators_own(start: Start) -> None:
    start(kernel_url="https://hub.example/user/ana/")
    assert os.environ[URL] == "https://hub.example/user/ana/"


def test_h33_what_stands_beside_another_servers_id_is_replaced(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL, "http://outer:1/")
    monkeypatch.setenv(CREDENTIAL, "outer")
    monkeypatch.setenv(SERVER, "outer-id")
    app = start()
    assert os.environ[URL] != "http://outer:1/"
    assert (os.environ[CREDENTIAL], os.environ[SERVER]) == (app.keys.credential, app.keys.server_id)


@pytest.mark.asyncio
async def test_h33_what_the_user_set_wins_and_stays(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL, "http://mine:1/")
    monkeypatch.setenv(CREDENTIAL, "mine")
    app = start()
    await app._start_jupyter_server_extension(app.serverapp)
    assert (os.environ[URL], os.environ[CREDENTIAL], SERVER in os.environ) == ("http://mine:1/", "mine", False)
    await app.stop_extension()
    assert (os.environ[URL], os.environ[CREDENTIAL]) == ("http://mine:1/", "mine")


def test_kernels_are_told_nothing_where_the_operator_says_so(start: Start) -> None:
    start(tell_kernels=False)
    assert not {URL, CREDENTIAL, SERVER} & os.environ.keys()


# --- what other clients find


@pytest.mark.asyncio
async def test_the_runtime_file_is_the_owners_alone_and_goes_with_the_server(start: Start, tmp_path: Path) -> None:
    app = start("--ServerApp.port=18888")
    path = tmp_path / "runtime" / f"sharedwidgets-{os.getpid()}.json"
    assert not path.exists()
    # A leftover of a process that had the same pid, which others could read.
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    path.chmod(0o644)
    await app._start_jupyter_server_extension(app.serverapp)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == {
        "url": "http://localhost:18888/",
        "credential": app.keys.credential,
        "server": app.keys.server_id,
        "pid": os.getpid(),
        "root": str(tmp_path / "root"),
    }
    await app.stop_extension()
    assert not path.exists()


def test_the_key_is_beside_the_data_one_for_each_root_and_survives(start: Start, tmp_path: Path) -> None:
    first = start().keys.credential
    (key,) = (tmp_path / "data" / "sharedwidgets").iterdir()
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert start().keys.credential == first
    (tmp_path / "other").mkdir()
    assert start(f"--ServerApp.root_dir={tmp_path / 'other'}").keys.credential != first
    assert start(state_dir=str(tmp_path / "elsewhere")).keys.credential != first
    assert (tmp_path / "elsewhere" / key.name).exists()


# --- settings


def test_each_setting_explains_itself(start: Start) -> None:
    own = SharedWidgetsApp.class_own_traits(config=True)
    assert {"store_url", "room_ttl", "state_dir", "kernel_url", "tell_kernels", "limits"} <= own.keys()
    assert [name for name, trait in own.items() if len(trait.help.split()) < 5] == []


def test_settings_arrive(start: Start) -> None:
    app = start(room_ttl=5.0, limits={"rooms": 3, "op_bytes": 2000})
    assert app.manager.registry._room_ttl == 5.0
    assert app.manager.limits == Limits(rooms=3, op_bytes=2000)
    assert app.settings["sharedwidgets_manager"] is app.manager


@pytest.mark.parametrize("name", Limits.__struct_fields__)
def test_each_limit_is_configurable_and_explained(name: str) -> None:
    default = getattr(Limits(), name)
    app = SharedWidgetsApp(limits={name: 2 * default})
    limits = app.effective_limits()
    assert (getattr(limits, name), type(getattr(limits, name))) == (2 * default, type(default))
    assert limits != Limits()
    assert f"{name} " in SharedWidgetsApp.class_own_traits()["limits"].help


@pytest.mark.parametrize(
    "wrong",
    [
        {"room": 3},
        {"rooms": 0},
        {"rooms": -1},
        {"rooms": "many"},
        {"rooms": 0.5},
        {"rooms": float("inf")},
        {"rooms": float("nan")},
    ],
)
def test_a_limit_that_is_none_is_refused_at_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(TraitError, match=r"limits|rooms"):
        SharedWidgetsApp(limits=wrong)


def test_a_store_that_does_not_exist_is_refused_at_start(start: Start) -> None:
    with pytest.raises(ValueError, match="memory://"):
        start(store_url="mysql://here")
