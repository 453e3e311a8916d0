"""Clients that speak the wire as types over real sockets, and forget nothing they heard."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from sharedwidgets.core import codec
from sharedwidgets.core.codec import Frame
from sharedwidgets.core.protocol import (
    SUBPROTOCOL,
    Bye,
    Downstream,
    Entries,
    Failure,
    Hello,
    Inc,
    Join,
    Joined,
    Kind,
    Members,
    Nack,
    Op,
    Ping,
    Pong,
    Push,
    Resend,
    Set,
    Snapshot,
    TraitSchema,
    Upstream,
    Welcome,
)
from sharedwidgets.core.replica import Replica
from sharedwidgets.core.values import Value

Heard = TypeVar("Heard")

SCHEMA = {
    "count": TraitSchema(kind="int"),
    "level": TraitSchema(kind="int", min=0, max=10),
    "text": TraitSchema(kind="text"),
    "tags": TraitSchema(kind="dict"),
    "blob": TraitSchema(kind="bytes"),
    "_salt": TraitSchema(kind="text", kernel_only=True),
}
# In no byte that a frontend hears.
SECRET = "KERNELS-ONLY"
VALUES: dict[str, Value] = {"count": 0, "level": 5, "text": "", "tags": {}, "blob": b"", "_salt": SECRET}
SECONDS = 10.0


def assign(trait: str, value: Value, state: str = "S") -> Set:
    """Set a trait."""
    return Set(state=state, path=(trait,), value=value)


def add(by: int = 1, trait: str = "count", state: str = "S") -> Inc:
    """Add to a trait."""
    return Inc(state=state, path=(trait,), by=by)


class Peer:
    """One socket.

    Parameters
    ----------
    socket : WebSocketClientConnection
        Open.
    """

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self.socket = socket
        self.boot = secrets.token_hex(8)
        self.heard: list[Downstream] = []
        self.frames: list[Frame] = []
        self.replicas: dict[str, Replica] = {}
        self.welcome: Welcome | None = None
        self.ended = False
        self._assembler = codec.Assembler(1 << 30)
        self._n: dict[str, int] = {}
        self._ids = itertools.count(1)

    @classmethod
    async def open(cls, url: str, headers: Mapping[str, str] | None = None) -> Peer:
        """The upgrade and nothing else; `HTTPClientError` when it is refused."""
        request = HTTPRequest(url, headers=dict(headers or {}), request_timeout=SECONDS)
        return cls(await websocket_connect(request, subprotocols=[SUBPROTOCOL], max_message_size=1 << 30))

    @classmethod
    async def enter(
        cls, url: str, headers: Mapping[str, str], room: str | None = None, *, kind: Kind = "script", make: bool = True
    ) -> Peer:
        """Open, say hello, and join a room with the state ``S``."""
        peer = await cls.open(url, headers)
        await peer.hello(kind=kind)
        if room is not None:
            await peer.join(room, make=make)
        return peer

    # --- saying

    async def send(self, *frames: Frame) -> None:
        """Frames as they are."""
        for frame in frames:
            await self.socket.write_message(frame, binary=isinstance(frame, bytes))

    async def send_at_once(self, *frames: Frame) -> None:
        """Frames that all leave before anything the server says to the first of them is heard."""
        sent = [self.socket.write_message(frame, binary=isinstance(frame, bytes)) for frame in frames]
        for future in sent:
            with contextlib.suppress(WebSocketClosedError):
                await future

    async def say(self, *messages: Upstream) -> None:
        """Messages, in fragments where they are too long for one frame."""
        limit = self.welcome.limits.frame_bytes if self.welcome else 1 << 16
        for message in messages:
            await self.send(*codec.fragments(codec.encode(message).frame(), limit))

    async def hello(self, **fields: Any) -> Welcome:
        """Say hello; the welcome."""
        await self.say(Hello(**{"protocol": 1, "boot": self.boot, "kind": "script", **fields}))
        self.welcome = await self.next(Welcome)
        return self.welcome

    async def join(self, room: str, *, make: bool = True, state: str | None = "S", **fields: Any) -> Snapshot:
        """Join a room, and make the state where it is missing; the snapshot that brought it."""
        number = next(self._ids)
        made = {"schema": SCHEMA, "values": VALUES} if make else {}
        await self.say(Join(id=number, room=room, state=state, **{**made, **fields}))
        await self.next(Joined, lambda message: message.id == number)
        return [message for message in self.heard if isinstance(message, Snapshot) and message.room == room][-1]

    async def push(self, room: str, *ops: Op) -> int:
        """Send a push and do not wait; its number."""
        n = self._n[room] = self._n.get(room, 0) + 1
        await self.say(Push(room=room, n=n, ops=ops))
        return n

    async def write(self, room: str, *ops: Op) -> Entries | Nack:
        """Send a push; its verdict."""
        return await self.verdict(room, await self.push(room, *ops))

    # --- hearing

    async def next(
        self, kind: type[Heard], where: Callable[[Heard], object] = lambda message: True, seconds: float = SECONDS
    ) -> Heard:
        """Read on until a message of this kind comes."""
        return await asyncio.wait_for(self._next(kind, where), seconds)

    async def verdict(self, room: str, n: int) -> Entries | Nack:
        """Read on until push `n` is decided, or look where it was."""

        def decides(message: Downstream) -> bool:
            if isinstance(message, Nack):
                return message.room == room and message.n <= n <= (message.through or message.n)
            return isinstance(message, Entries) and message.room == room and message.decided >= n

        for message in self.heard:
            if decides(message):
                return cast("Entries | Nack", message)
        return cast("Entries | Nack", await self.next(object, decides))  # type: ignore[arg-type]

    async def until(self, room: str, state: str = "S", seconds: float = SECONDS, **values: Value) -> None:
        """Read on until the replica of a room shows these values."""

        async def see() -> None:
            while not (room in self.replicas and values.items() <= self.replicas[room].view(state).items()):
                await self._read()

        await asyncio.wait_for(see(), seconds)

    async def barrier(self, room: str) -> None:
        """Everything this peer said to the room before is decided, and what came of it is heard."""
        await self.join(room, make=False, state=None)

    async def closed(self, seconds: float = SECONDS) -> int | None:
        """Read on until the socket is closed; the code."""

        async def drain() -> None:
            while await self._read() is not None:
                pass

        await asyncio.wait_for(drain(), seconds)
        return self.socket.close_code

    def all(self, kind: type[Heard]) -> list[Heard]:
        """Everything heard of this kind."""
        return [message for message in self.heard if isinstance(message, kind)]

    def entries(self, room: str) -> int:
        """How many entries of a room were heard: where a storm would show."""
        return sum(len(message.entries) for message in self.all(Entries) if message.room == room)

    def refusals(self) -> list[str]:
        """The codes of everything that was refused, in order."""
        return [message.problem.code for message in self.heard if isinstance(message, (Bye, Failure, Nack))]

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    async def _next(self, kind: type[Heard], where: Callable[[Heard], object]) -> Heard:
        while True:
            message = await self._read()
            assert message is not None, f"the socket was closed ({self.socket.close_code}) before a {kind.__name__} came"
            if isinstance(message, kind) and where(message):
                return message

    async def _read(self) -> Downstream | None:
        while not self.ended:
            frame = await self.socket.read_message()
            if frame is None:
                # Said once: whoever reads on would wait for ever.
                self.ended = True
                return None
            self.frames.append(frame)
            whole = self._assembler.feed(frame)
            if whole is None:
                continue
            message = codec.decode_downstream(whole)
            self.heard.append(message)
            if isinstance(message, (Snapshot, Entries, Nack, Resend, Members)):
                self.replicas.setdefault(message.room, Replica(message.room)).receive(message)
            if isinstance(message, Ping):
                with contextlib.suppress(WebSocketClosedError):
                    await self.say(Pong(id=message.id))
                continue
            return message
        return None
