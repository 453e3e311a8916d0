"""A way to a server that can be stopped and opened again, in one direction or both."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import TracebackType


class Stalling:
    """A TCP relay in front of a port of this machine; nothing is lost while it is shut, it waits.

    Parameters
    ----------
    port : int
        The server's.
    at : int
        Its own; a free one by default.
    """

    def __init__(self, port: int, at: int = 0) -> None:
        self._target = port
        self._up, self._down = threading.Event(), threading.Event()
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", at))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.open()
        self._start(self._accept)

    def shut(self, *, up: bool = True, down: bool = True) -> None:
        """Let nothing through to the server (`up`) or from it (`down`)."""
        if up:
            self._up.clear()
        if down:
            self._down.clear()

    def open(self, *, up: bool = True, down: bool = True) -> None:
        """Let everything through that waits for the server (`up`) or comes from it (`down`)."""
        if up:
            self._up.set()
        if down:
            self._down.set()

    def cut(self) -> None:
        """End every connection that goes through here."""
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self.open()

    def __enter__(self) -> Stalling:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        # A listener that is only closed keeps its thread in accept().
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _start(self, work: object, *args: object) -> None:
        threading.Thread(target=work, args=args, daemon=True, name="stalling").start()  # type: ignore[arg-type]

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [near, far]
            self._start(self._relay, near, far, self._up)
            self._start(self._relay, far, near, self._down)

    def _relay(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                gate.wait()
                sink.sendall(data)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
