"""Rooms, their store and their members in one process, without sockets: the manager and outboxes are the real ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeVar

from sharedwidgets.core import codec
from sharedwidgets.core.codec import Encoded, Frame
from sharedwidgets.core.protocol import (
    Audience,
    Downstream,
    Entries,
    Hello,
    Join,
    Joined,
    Kind,
    Limits,
    Member,
    Members,
    Nack,
    Op,
    Push,
    Resend,
    Resume,
    Snapshot,
    Upstream,
)
from sharedwidgets.core.replica import Replica
from sharedwidgets.core.room import Author, Mark, RoomImage
from sharedwidgets.errors import StoreFailed
from sharedwidgets_server.manager import Connection, RoomManager
from sharedwidgets_server.outbox import Outbox
from sharedwidgets_server.stores import Batch, Store
from sharedwidgets_server.stores.memory import MemoryStore
from support.peers import SCHEMA, VALUES

Heard = TypeVar("Heard")
SECONDS = 5.0


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FailingStore(Store):
    """A store that keeps rooms in memory and fails when told to.

    ``before`` and ``after`` count the next appends that fail before or after they wrote, ``loads`` and ``deletes`` the next
    of those that fail; while ``gate`` is clear an append waits, and
    while ``deleting`` is, a deletion.
    """

    def __init__(self) -> None:
        self.inner = MemoryStore()
        self.before = self.after = self.loads = self.deletes = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.deleting = asyncio.Event()
        self.deleting.set()
        self.waiting = False
        self.batches: list[Batch] = []
        self.tried = 0

    async def load(self, token: str) -> RoomImage | None:
        if self.loads:
            self.loads -= 1
            raise OSError("cannot read")
        return await self.inner.load(token)

    async def append(self, batch: Batch, marks: Mapping[str, Mark | None], expected_seq: int) -> None:
        self.tried += 1
        await self.gate.wait()
        if self.before:
            self.before -= 1
            raise OSError("disk full")
        await self.inner.append(batch, marks, expected_seq)
        self.batches.append(batch)
        if self.after:
            self.after -= 1
            raise StoreFailed("written, but who knows")

    async def delete(self, token: str) -> None:
        if self.deletes:
            self.deletes -= 1
            raise OSError("cannot delete")
        self.waiting = not self.deleting.is_set()
        await self.deleting.wait()
        await self.inner.delete(token)

    async def tokens(self) -> list[str]:
        return await self.inner.tokens()

    async def close(self) -> None:
        await self.inner.close()


class NotingOutbox(Outbox):
    """An outbox that remembers which bodies it was given."""

    bodies: list[Encoded]

    def entries(self, message: Entries, body: Encoded, decided: int) -> None:
        self.bodies = [*getattr(self, "bodies", []), body]
        super().entries(message, body, decided)


class Local:
    """One member of a manager, with a wire of its own that can stall.

    Parameters
    ----------
    manager : RoomManager
        The server.
    boot : str
        Its process; also its member id without `member`.
    """

    def __init__(
        self,
        manager: RoomManager,
        boot: str,
        *,
        kind: Kind = "script",
        may_write: bool = True,
        member: str = "",
        replica: Replica | None = None,
    ) -> None:
        self.manager = manager
        self.boot = boot
        audience: Audience = "frontend" if kind == "frontend" else "kernel"
        self.author = Author(boot, Member(id=member or boot, kind=kind), audience, may_write, kind)
        self.heard: list[Downstream] = []
        self.frames: list[Frame] = []
        self.replica = replica or Replica("r")
        self.open = asyncio.Event()
        self.open.set()
        self.ended = False
        self.news = asyncio.Condition()
        self.outbox = NotingOutbox(manager.limits, self._write, self._drained, manager.clock)
        self.connection = Connection(self.author, 0, self.outbox, self._end)
        self._assembler = codec.Assembler(1 << 30)
        self._task: asyncio.Task[None] | None = None
        self._asking: list[asyncio.Task[None]] = []

    def connect(self, *rooms: Resume) -> Local:
        """Say hello."""
        hello = Hello(protocol=1, boot=self.boot, kind=self.author.member.kind, rooms=rooms)
        self.manager.admit(self.connection, hello)
        self.manager.greet(self.connection, hello)
        self._task = asyncio.get_running_loop().create_task(self._run())
        return self

    async def _run(self) -> None:
        await self.outbox.run()
        self.outbox.close()
        self.manager.closed(self.connection)

    async def say(self, message: Upstream) -> None:
        """A message arrives at the server."""
        await asyncio.wait_for(self.manager.receive(self.connection, message), SECONDS)
        # A real socket comes back to the loop between two messages; `wait_for` does so only before Python 3.12.
        for _ in range(3):
            await asyncio.sleep(0)

    async def join(self, room: str = "r", *, make: bool = True, state: str | None = "S", number: int = 1) -> Local:
        """Join, making the state where it is missing; heard when this returns."""
        await self.ask(room, make=make, state=state, number=number)
        await self.next(Joined, lambda message: message.id == number)
        return self

    async def ask(self, room: str = "r", *, make: bool = True, state: str | None = "S", number: int = 1) -> None:
        """Join and do not wait."""
        made = {"schema": SCHEMA, "values": VALUES} if make else {}
        await self.say(Join(id=number, room=room, state=state, **made))

    def write(self, *ops: Op) -> None:
        """Write to the replica."""
        self.replica.write(ops, group=len(ops) > 1)

    async def send(self) -> int:
        """Send what the replica has to send; how many pushes."""
        pushes = self.replica.take(64)
        for push in pushes:
            await self.say(push)
        return len(pushes)

    async def push(self, n: int, *ops: Op, room: str = "r") -> None:
        """A push with a number of one's own choice."""
        await self.say(Push(room=room, n=n, ops=ops))

    def drop(self) -> None:
        """The socket is gone."""
        self.manager.closed(self.connection)
        self.outbox.close()
        if self._task is not None:
            self._task.cancel()

    async def next(
        self, kind: type[Heard], where: Callable[[Heard], object] = lambda message: True, *, count: int = 1
    ) -> Heard:
        """Wait until so many messages of this kind were heard; the last of them."""

        def found() -> list[Heard]:
            return [message for message in self.heard if isinstance(message, kind) and where(message)]

        async with self.news:
            await asyncio.wait_for(self.news.wait_for(lambda: len(found()) >= count), SECONDS)
        return found()[count - 1]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something holds, asked again after each message."""
        async with self.news:
            await asyncio.wait_for(self.news.wait_for(lambda: bool(condition())), SECONDS)

    def all(self, kind: type[Heard]) -> list[Heard]:
        """Everything heard of this kind."""
        return [message for message in self.heard if isinstance(message, kind)]

    async def _write(self, frame: Frame) -> None:
        await self.open.wait()
        self.frames.append(frame)
        whole = self._assembler.feed(frame)
        if whole is None:
            return
        message = codec.decode_downstream(whole)
        self.heard.append(message)
        if isinstance(message, (Snapshot, Entries, Nack, Resend, Members)) and message.room == self.replica.room:
            for more in self.replica.receive(message).send:
                self._asking.append(asyncio.get_running_loop().create_task(self.say(more)))
        async with self.news:
            self.news.notify_all()

    def _drained(self, token: str) -> None:
        self.manager.catch_up(self.connection, token)

    def _end(self) -> None:
        self.ended = True
        self.outbox.finish()


def small(**numbers: float) -> Limits:
    """Limits whose timer turns every 10 ms, as the fake clock stands still between."""
    return Limits(**{"heartbeat_seconds": 0.04, **numbers})  # type: ignore[arg-type]
