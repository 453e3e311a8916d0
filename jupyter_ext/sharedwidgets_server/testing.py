"""Shipped for tests: a real server in a process of its own, and the suite every store must pass."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from sharedwidgets.core.protocol import Actor, Define, Entry, Set, TraitSchema
from sharedwidgets.core.room import Mark
from sharedwidgets.errors import StoreFailed
from sharedwidgets_server.stores import Batch, Store

START_SECONDS = 60.0


class LiveServer:
    """A real ``jupyter server`` with this extension, with folders, port and token of its own.

    Parameters
    ----------
    folder : Path
        Everything is kept below it: data, config, runtime files, root, log.
    *arguments : str
        Further command line, such as ``--SharedWidgetsApp.room_ttl=5``.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.arguments = arguments
        self.token = secrets.token_hex(16)
        self.root, self.data, self.runtime = folder / "root", folder / "data", folder / "runtime"
        for path in (self.root, self.data, self.runtime, folder / "config"):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.url = ""
        self.port = 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The server's process."""
        assert self._process is not None
        return self._process.pid

    @property
    def socket_url(self) -> str:
        """Where the websocket of the rooms is."""
        return self.url.replace("http", "ws", 1) + "sharedwidgets/ws"

    @property
    def headers(self) -> dict[str, str]:
        """An ordinary token's."""
        return {"Authorization": f"token {self.token}"}

    @property
    def credential(self) -> str:
        """The scoped secret, as the runtime file tells it."""
        return str(json.loads((self.runtime / f"sharedwidgets-{self.pid}.json").read_text())["credential"])

    def environ(self) -> dict[str, str]:
        """The environment of this process, with Jupyter's folders set to the server's and nothing inherited from another."""
        inherited = ("JUPYTER", "JPY_", "SHAREDWIDGETS_URL", "SHAREDWIDGETS_CREDENTIAL", "SHAREDWIDGETS_SERVER")
        return {
            **{name: value for name, value in os.environ.items() if not name.startswith(inherited)},
            "JUPYTER_DATA_DIR": str(self.data),
            "JUPYTER_CONFIG_DIR": str(self.folder / "config"),
            "JUPYTER_RUNTIME_DIR": str(self.runtime),
        }

    def kernel_environ(self) -> dict[str, str]:
        """The environment of a kernel or script that is to find this server."""
        return {**self.environ(), "SHAREDWIDGETS_URL": self.url, "SHAREDWIDGETS_CREDENTIAL": self.credential}

    def start(self) -> None:
        """Start it, on the same port as before if there was one, and wait until it answers."""
        command = [sys.executable, "-m", "jupyter_server", "--no-browser", f"--ServerApp.port={self.port}"]
        command += ["--ServerApp.port_retries=0" if self.port else "--ServerApp.port_retries=50"]
        command += [f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}"]
        command += ["--ServerApp.jpserver_extensions={'sharedwidgets_server': True}"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            command.append("--allow-root")
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen([*command, *self.arguments], env=self.environ(), stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        facts = self.runtime / f"jpserver-{self._process.pid}.json"
        ours = self.runtime / f"sharedwidgets-{self._process.pid}.json"
        while not (ours.exists() and facts.exists() and self._answers(facts)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "server.log").read_text()[-4000:])
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop it as an operator would, and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a word."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start on the same port with the same folders."""
        self.stop()
        self.start()

    def ask(self, method: str, where: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Any:
        """A REST call with the token; the decoded answer, or `urllib.error.HTTPError`."""
        request = urllib.request.Request(
            self.url + where,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={**self.headers, "Content-Type": "application/json", **(headers or {})},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def __enter__(self) -> LiveServer:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    def _answers(self, facts: Path) -> bool:
        try:
            told = json.loads(facts.read_text())
            self.url, self.port = told["url"], told["port"]
            self.ask("GET", "api/status")
        except (OSError, ValueError):
            return False
        return True

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class StoreContract:
    """What every `Store` must do; subclass it and give the ``store`` fixture.

    ::

        class TestMine(StoreContract):
            @pytest.fixture
            async def store(self): ...
    """

    async def test_an_unknown_room_is_none(self, store: Store) -> None:
        assert await store.load("nowhere") is None
        assert await store.tokens() == []

    async def test_what_was_appended_is_loaded(self, store: Store) -> None:
        await store.append(_batch(_made(1), _set(2, "count", 5)), {"boot": Mark(n=1, at=1.0)}, 0)
        image = await store.load("room")
        assert image is not None
        assert (image.incarnation, image.epochs, image.seq) == ("i", (("e", 1),), 2)
        assert image.states["S"].values == {"count": 5, "_salt": "s"}
        assert image.states["S"].schema["_salt"].kernel_only
        assert image.marks == {"boot": Mark(n=1, at=1.0)}
        assert await store.tokens() == ["room"]

    async def test_a_batch_that_does_not_follow_changes_nothing(self, store: Store) -> None:
        await store.append(_batch(_made(1)), {"boot": Mark(n=1)}, 0)
        for expected, entry in ((0, _set(1, "count", 9)), (5, _set(6, "count", 9))):
            with pytest.raises(StoreFailed):
                await store.append(_batch(entry), {"boot": Mark(n=2), "other": Mark(n=7)}, expected)
        image = await store.load("room")
        assert image is not None
        assert (image.seq, image.states["S"].values["count"], image.marks) == (1, 0, {"boot": Mark(n=1)})

    async def test_it_may_be_closed_twice(self, store: Store) -> None:
        await store.append(_batch(_made(1)), {}, 0)
        await store.close()
        await store.close()

    async def test_another_incarnation_is_refused(self, store: Store) -> None:
        await store.append(_batch(_made(1)), {}, 0)
        with pytest.raises(StoreFailed):
            await store.append(Batch("room", "another", (("e", 1),), [_set(2, "count", 9)]), {}, 1)

    async def test_marks_alone_may_move(self, store: Store) -> None:
        await store.append(_batch(_made(1)), {}, 0)
        await store.append(_batch(), {"boot": Mark(n=3)}, 1)
        image = await store.load("room")
        assert image is not None
        assert (image.seq, image.marks["boot"].n) == (1, 3)

    async def test_rooms_are_apart(self, store: Store) -> None:
        for token in ("a_b", "a-b", "a/b", "é", "e\u0301"):
            await store.append(Batch(token, "i", (("e", 1),), [_made(1)]), {}, 0)
        await store.delete("a-b")
        await store.delete("never there")
        assert await store.tokens() == sorted(["a_b", "a/b", "é", "e\u0301"])

    async def test_a_deleted_room_begins_anew(self, store: Store) -> None:
        await store.append(_batch(_made(1), _set(2, "count", 5)), {"boot": Mark(n=9)}, 0)
        await store.delete("room")
        assert await store.load("room") is None
        await store.append(Batch("room", "j", (("f", 1),), [_made(1)]), {}, 0)
        image = await store.load("room")
        assert image is not None
        assert (image.incarnation, image.seq, image.marks) == ("j", 1, {})

    async def test_what_is_handed_out_is_a_copy(self, store: Store) -> None:
        await store.append(_batch(_made(1)), {}, 0)
        first = await store.load("room")
        assert first is not None
        first.states["S"].values["count"] = 99
        second = await store.load("room")
        assert second is not None
        assert second.states["S"].values["count"] == 0


def _batch(*entries: Entry) -> Batch:
    return Batch("room", "i", (("e", 1),), list(entries))


def _made(seq: int) -> Entry:
    schema = {"count": TraitSchema(kind="int"), "_salt": TraitSchema(kind="text", kernel_only=True)}
    return _entry(seq, Define(state="S", schema=schema, values={"count": 0, "_salt": "s"}))


def _set(seq: int, trait: str, value: Any) -> Entry:
    return _entry(seq, Set(state="S", path=(trait,), value=value))


def _entry(seq: int, op: Any) -> Entry:
    return Entry(seq=seq, at=1.0, by=Actor(id="m", kind="kernel"), ops=(op,))
