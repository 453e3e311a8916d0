"""Which server, which credential."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sharedwidgets import discovery
from sharedwidgets.discovery import Address, again, find
from sharedwidgets.errors import ServerNotFound

URL = "http://127.0.0.1:8888/base/"


@pytest.fixture
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def leave(runtime: Path, name: str, **facts: Any) -> Path:
    path = runtime / f"sharedwidgets-{name}.json"
    path.write_text(json.dumps({"url": URL, "credential": "c", "server": "s", "pid": os.getpid(), "root": "/", **facts}))
    return path


def environ(**values: str) -> dict[str, str]:
    return {f"SHAREDWIDGETS_{name}": value for name, value in values.items()}


def test_nothing_says_where(runtime: Path) -> None:
    with pytest.raises(ServerNotFound) as caught:
        find(environ={})
    assert "pip" in str(caught.value) or "Install" in str(caught.value)
    assert "SHAREDWIDGETS_URL" in str(caught.value)


def test_arguments_win_over_the_environment_and_that_over_runtime_files(runtime: Path) -> None:
    leave(runtime, "1", url="http://127.0.0.1:1/", credential="of the file")
    told = environ(URL="http://127.0.0.1:2/", CREDENTIAL="of the environment", SERVER="id")
    assert find(environ={}) == Address("http://127.0.0.1:1/", "of the file", "s")
    assert find(environ=told) == Address("http://127.0.0.1:2/", "of the environment", "id")
    assert find("http://127.0.0.1:3/", "argument", told) == Address("http://127.0.0.1:3/", "argument", None)
    assert find(credential="argument", environ=told) == Address("http://127.0.0.1:2/", "argument", "id")


def test_a_credential_of_the_environment_is_shown_to_no_other_server(runtime: Path) -> None:
    told = environ(URL=URL, CREDENTIAL="secret", SERVER="id")
    for other in (
        "http://127.0.0.1:8889/base/",
        "http://127.0.0.1:8888/",
        "https://127.0.0.1:8888/base/",
        "http://127.0.0.1:8888/base/x",
    ):
        assert find(other, environ=told).credential == ""
        assert "Authorization" not in find(other, environ=told).headers()


@pytest.mark.parametrize("same", [URL, URL.rstrip("/"), URL + "?token=x"])
def test_naming_the_server_of_the_environment_keeps_its_credential(runtime: Path, same: str) -> None:
    told = environ(URL=URL, CREDENTIAL="secret", SERVER="id")
    assert find(same, environ=told) == Address(URL, "secret", "id")


def test_a_broken_environment_is_no_matter_where_the_server_is_named(runtime: Path) -> None:
    assert find("http://127.0.0.1:3/", "c", environ(URL="nonsense")) == Address("http://127.0.0.1:3/", "c", None)
    with pytest.raises(ServerNotFound, match="nonsense"):
        find(environ=environ(URL="nonsense"))


@pytest.mark.parametrize("credential", ["ünïcode", "日本", "two\nlines", "nul\0", "\udcff"])
def test_a_credential_that_no_header_can_carry_is_refused_before_it_is_tried(runtime: Path, credential: str) -> None:
    leave(runtime, "1")
    for server, told in ((URL, {}), (None, environ(URL=URL)), (None, {})):
        with pytest.raises(ServerNotFound) as caught:
            find(server, credential, told)
        assert credential not in str(caught.value)
    with pytest.raises(ServerNotFound):
        find(environ=environ(URL=URL, CREDENTIAL=credential))


def test_a_credential_alone_is_for_the_one_server_that_runs(runtime: Path) -> None:
    leave(runtime, "1")
    assert find(credential="mine", environ={}) == Address(URL, "mine", "s")


def test_several_servers_are_named(runtime: Path) -> None:
    leave(runtime, "1", url="http://127.0.0.1:1/")
    leave(runtime, "2", url="http://127.0.0.1:2/", server="t")
    with pytest.raises(ServerNotFound, match=r"http://127\.0\.0\.1:1/, http://127\.0\.0\.1:2/") as caught:
        find(environ={})
    assert "server=" in str(caught.value)


def test_leftovers_are_no_servers(runtime: Path, dead_pid: int) -> None:
    leave(runtime, "dead", url="http://127.0.0.1:1/", pid=dead_pid)
    leave(runtime, "odd-url", url="file:///etc/passwd")
    leave(runtime, "odd-pid", pid="many")
    (runtime / "sharedwidgets-empty.json").write_text("")
    (runtime / "sharedwidgets-list.json").write_text("[]")
    (runtime / "sharedwidgets-half.json").write_text('{"url": "http://127')
    (runtime / "sharedwidgets-bytes.json").write_bytes(b"\xff\xfe")
    (runtime / "sharedwidgets-other.json").write_text('{"url": "http://127.0.0.1:1/"}')
    with pytest.raises(ServerNotFound):
        find(environ={})
    leave(runtime, "live")
    assert find(environ={}) == Address(URL, "c", "s")


@pytest.mark.parametrize("url", ["", "localhost:8888", "ftp://host/", "http://", "//host/", "http+unix://%2Ftmp%2Fs"])
def test_what_is_no_base_url(runtime: Path, url: str) -> None:
    with pytest.raises(ServerNotFound):
        find(url, environ={})


def test_the_same_server_is_found_again_on_another_port(runtime: Path, dead_pid: int) -> None:
    held = Address(URL, "c", "s")
    assert again(held) == held
    leave(runtime, "other", url="http://127.0.0.1:1/", server="t")
    assert again(held) == held
    leave(runtime, "moved", url="http://127.0.0.1:2/", credential="new")
    assert again(held) == Address("http://127.0.0.1:2/", "new", "s")
    leave(runtime, "moved", url="http://127.0.0.1:2/", pid=dead_pid)
    assert again(held) == held


def test_an_address_of_the_users_own_stays(runtime: Path) -> None:
    leave(runtime, "1", url="http://127.0.0.1:2/", server="")
    given = find("http://127.0.0.1:3/", "mine", {})
    assert again(given) is given


def test_addresses(runtime: Path) -> None:
    address = find("https://hub.example/user/a%40b", "sw1-x", {})
    assert address.socket_url == "wss://hub.example/user/a%40b/sharedwidgets/ws"
    assert address.rest_url("rooms", "a/b?#é") == "https://hub.example/user/a%40b/sharedwidgets/api/rooms/a%2Fb%3F%23%C3%A9"
    assert find("http://h:1/?token=secret#frag", "", {}).url == "http://h:1/"


def test_how_a_credential_is_shown_to_its_server_and_to_nobody_else(runtime: Path) -> None:
    assert Address(URL, "sw1-abc").headers() == {"Authorization": "SharedWidgets sw1-abc"}
    assert Address(URL, "abc").headers() == {"Authorization": "token abc"}
    assert Address(URL, "").headers() == {}
    assert "abc" not in repr(Address(URL, "sw1-abc"))


def test_the_environment_of_this_process_is_the_default(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(discovery.URL, URL)
    monkeypatch.setenv(discovery.CREDENTIAL, "c")
    monkeypatch.delenv(discovery.SERVER, raising=False)
    assert find() == Address(URL, "c", None)
