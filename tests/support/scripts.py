"""A second process, and waiting for what it does."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import traitlets as t

from sharedwidgets import SharedState
from sharedwidgets_server.testing import LiveServer

_LOOP = """
import json, sys, traceback
space = {}
for line in sys.stdin:
    code, expression = json.loads(line)
    try:
        exec(code, space)
        answer = ["ok", eval(expression, space)]
    except BaseException:
        answer = ["error", traceback.format_exc()]
    print(json.dumps(answer), file=sys.__stdout__, flush=True)
"""


class Script:
    """A plain Python process that finds a server by its environment and does what it is told.

    Parameters
    ----------
    server : LiveServer
        Whose environment it gets.
    code : str
        Run first.
    """

    def __init__(self, server: LiveServer, code: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _LOOP],
            env=server.kernel_environ(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.errors = ""
        if code:
            self.run(code)

    def run(self, code: str, expression: str = "None") -> Any:
        """Run code, then the value of an expression through JSON; `AssertionError` with the traceback when it failed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps([code, expression]) + "\n")
        self.process.stdin.flush()
        verdict, value = json.loads(self.process.stdout.readline())
        assert verdict == "ok", value
        return value

    def value(self, expression: str) -> Any:
        """The value of an expression."""
        return self.run("", expression)

    def finish(self) -> str:
        """Let it come to its end; what it wrote to stderr."""
        self.errors += self.process.communicate(timeout=20)[1]
        return self.errors

    def __enter__(self) -> Script:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.finish()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


class Heard:
    """What observers of an object were told, in order, and on which thread.

    Parameters
    ----------
    state : HasTraits
        The object.
    *names : str
        Its traits; all of them without.
    type : str
        Kind of change.
    """

    def __init__(self, state: t.HasTraits, *names: str, type: str = "change") -> None:
        self.changes: list[Any] = []
        self.threads: list[str] = []
        self._came = threading.Condition()
        state.observe(self._hear, names=list(names) or t.All, type=type)

    def _hear(self, change: Any) -> None:
        with self._came:
            self.changes.append(change)
            self.threads.append(threading.current_thread().name)
            self._came.notify_all()

    @property
    def steps(self) -> list[tuple[str, Any, Any]]:
        """Name, old and new of each change."""
        return [(change.name, change.old, change.new) for change in self.changes]

    def wait(self, count: int = 1, timeout: float = 10.0) -> Any:
        """Wait until so many changes came; the last of them."""
        with self._came:
            assert self._came.wait_for(lambda: len(self.changes) >= count, timeout), self.changes
            return self.changes[count - 1]


def eventually(condition: Callable[[], object], timeout: float = 10.0) -> None:
    """Wait until a condition holds that nobody announces."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that in time"
        time.sleep(0.005)


def seq(server: LiveServer, token: str) -> int:
    """The number of entries of a room, as its server counts them."""
    return int(server.ask("GET", f"sharedwidgets/api/rooms/{token}")["seq"])


def settled(*states: SharedState) -> None:
    """Everything these wrote is decided, and each of them shows it."""
    for state in states:
        state.flush()
    last = max(state.room.seq for state in states if state.room is not None)
    for state in states:
        room = state.room
        assert room is not None
        assert room.wait_until(lambda room=room: room.seq >= last, 10)  # type: ignore[misc]
        state.pull()
