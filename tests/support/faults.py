"""A relay that can also lose one side of a connection without the other hearing of it."""

from __future__ import annotations

import contextlib
import socket
import threading

from support.stalling import Stalling


class Faults(Stalling):
    """`Stalling`, and connections whose far end stays open when the near one is gone."""

    def __init__(self, port: int) -> None:
        self._lost: set[socket.socket] = set()
        self.accepted = 0
        self.refusing = False
        super().__init__(port)

    def lose(self) -> None:
        """The client's sockets are gone; the server is not told, and what it says is thrown away."""
        near = self._sockets[::2]
        self._lost.update(self._sockets)
        self._sockets = []
        for one in near:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.refusing:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                # The server is down: as if nobody listened here either.
                near.close()
                continue
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._sockets += [near, far]
            self._start(self._relay, near, far, self._up)
            self._start(self._relay, far, near, self._down)

    def _relay(self, source: socket.socket, sink: socket.socket, gate: threading.Event) -> None:
        self.accepted += gate is self._up
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                # The upgrade itself always passes: what is held back is what was said after it.
                if not data.startswith(b"HTTP/1.1 101"):
                    gate.wait()
                if source not in self._lost:
                    sink.sendall(data)
        if source in self._lost:
            return
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()

    def __exit__(self, *error: object) -> None:
        super().__exit__(None, None, None)
        for one in self._lost:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
