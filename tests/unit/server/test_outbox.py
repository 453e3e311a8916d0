"""What waits for one connection: in order, bounded, and never silently short of an entry."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Literal

import pytest
import pytest_asyncio

from sharedwidgets.core import codec
from sharedwidgets.core.codec import Frame
from sharedwidgets.core.protocol import (
    Actor,
    Append,
    Downstream,
    Entries,
    Entry,
    EntryOp,
    Failure,
    Limits,
    Member,
    Members,
    Nack,
    Pong,
    Problem,
    Resend,
    Set,
    Snapshot,
)
from sharedwidgets_server.outbox import Cursor, Outbox
from support.local import Clock

pytestmark = pytest.mark.asyncio

BY = Actor(id="a", kind="kernel")
PROBLEM = Problem(code="forbidden", message="no")


class Wire:
    """The peer's end: takes frames only while it is open."""

    def __init__(self, limits: Limits) -> None:
        self.clock = Clock()
        self.open = asyncio.Event()
        self.open.set()
        self.began = 0
        self.frames: list[Frame] = []
        self.heard: list[Downstream] = []
        self.drained: list[str] = []
        self.moved = asyncio.Condition()
        self._assembler = codec.Assembler(1 << 30)
        self.outbox = Outbox(limits, self._write, self._drained, self.clock)
        self.task = asyncio.get_running_loop().create_task(self.outbox.run())

    async def _write(self, frame: Frame) -> None:
        self.began += 1
        async with self.moved:
            self.moved.notify_all()
        await self.open.wait()
        self.frames.append(frame)
        whole = self._assembler.feed(frame)
        if whole is not None:
            self.heard.append(codec.decode_downstream(whole))
        async with self.moved:
            self.moved.notify_all()

    def _drained(self, token: str) -> None:
        self.drained.append(token)

    def entry(self, seq: int, *ops: EntryOp, room: str = "r", decided: int = 0, epoch: str = "e") -> codec.Encoded:
        """Queue one entry as a frame of its own."""
        message = Entries(room=room, epoch=epoch, prev=seq - 1, last=seq, entries=(Entry(seq=seq, at=0.0, by=BY, ops=ops),))
        body = codec.encode_shared(message)
        self.outbox.entries(message, body, decided)
        return body

    def snapshot(self, seq: int = 0, room: str = "r") -> None:
        self.outbox.control(Snapshot(room=room, incarnation="i", epoch="e", seq=seq, states={}))

    async def heard_so_far(self, count: int) -> None:
        async with self.moved:
            await asyncio.wait_for(self.moved.wait_for(lambda: len(self.heard) >= count), 5)

    async def stall(self) -> None:
        """Shut the wire with one item in flight; what is queued from here on waits."""
        self.open.clear()
        before = self.began
        self.outbox.control(Pong(id=0))
        async with self.moved:
            await asyncio.wait_for(self.moved.wait_for(lambda: self.began > before), 5)


@pytest_asyncio.fixture
async def wire() -> AsyncIterator[Wire]:
    made = Wire(Limits(outbox_fold_bytes=2000, outbox_drop_bytes=20_000, frame_bytes=4096, outbox_stall_seconds=5.0))
    yield made
    made.outbox.finish()
    made.open.set()
    await asyncio.wait_for(made.task, 5)


def put(trait: str, value: object, state: str = "S") -> Set:
    return Set(state=state, path=(trait,), value=value)


async def test_everything_leaves_in_the_order_of_queueing(wire: Wire) -> None:
    wire.snapshot()
    wire.entry(1, put("a", 1), decided=4)
    wire.outbox.control(Nack(room="r", n=5, problem=PROBLEM))
    wire.entry(2, put("a", 2))
    await wire.heard_so_far(4)
    assert [type(message) for message in wire.heard] == [Snapshot, Entries, Nack, Entries]
    first = wire.heard[1]
    assert isinstance(first, Entries)
    assert (first.prev, first.last, first.decided) == (0, 1, 4)


async def test_a_body_is_not_encoded_again_for_a_reader(wire: Wire) -> None:
    wire.snapshot()
    body = wire.entry(1, put("a", 1))
    await wire.heard_so_far(2)
    assert wire.frames[1] == body.frame()


async def test_below_the_bound_frames_wait_as_they_are(wire: Wire) -> None:
    wire.snapshot()
    await wire.stall()
    for seq in range(1, 6):
        wire.entry(seq, put("a", seq))
    assert wire.outbox.folded == 0
    wire.open.set()
    await wire.heard_so_far(7)
    assert [message.last for message in wire.heard if isinstance(message, Entries)] == [1, 2, 3, 4, 5]


async def test_h13_above_the_bound_waiting_sets_become_one_atomic_frame(wire: Wire) -> None:
    wire.snapshot()
    await wire.stall()
    for seq in range(1, 101):
        wire.entry(seq, put("a", seq), put("b", -seq), decided=seq)
    assert wire.outbox.queued_bytes < 4000
    wire.open.set()
    await wire.heard_so_far(3)
    runs = [message for message in wire.heard if isinstance(message, Entries)]
    while runs[-1].last < 100:
        await wire.heard_so_far(len(wire.heard) + 1)
        runs = [message for message in wire.heard if isinstance(message, Entries)]
    # The frames join without a hole, the last says what is decided, and each shows both traits as one entry left them.
    assert [run.prev for run in runs] == [0, *[run.last for run in runs[:-1]]]
    assert len(runs) <= 20
    assert runs[-1].decided == 100
    shown: dict[str, object] = {}
    for run in runs:
        for entry in run.entries:
            shown.update({op.path[0]: op.value for op in entry.ops if isinstance(op, Set)})
        assert shown == {"a": run.last, "b": -run.last}


async def test_h14_only_entries_are_let_go(wire: Wire) -> None:
    wire.snapshot()
    await wire.stall()
    for seq in range(1, 61):
        wire.entry(seq, Append(state="S", path=("items",), items=("x" * 1000,)))
        if seq == 10:
            wire.outbox.control(Nack(room="r", n=1, problem=PROBLEM))
            wire.outbox.control(Resend(room="r", n=2))
            wire.outbox.control(Members(room="r", gone=("m",)))
    assert wire.outbox.lagging == {"r"}
    assert wire.outbox.queued_bytes <= 20_000
    # It lags from the first entry that was let go, not from the last.
    assert wire.outbox.cursors["r"] == Cursor("i", "e", 0)
    wire.open.set()
    await wire.heard_so_far(5)
    assert [type(message) for message in wire.heard] == [Snapshot, Pong, Nack, Resend, Members]
    async with wire.moved:
        pass
    assert wire.drained == ["r"]


async def test_h14_a_lagging_room_is_fed_again_after_its_answer(wire: Wire) -> None:
    wire.snapshot()
    await wire.stall()
    for seq in range(1, 61):
        wire.entry(seq, Append(state="S", path=("items",), items=("x" * 1000,)))
    wire.open.set()
    await wire.heard_so_far(2)
    wire.entry(61, put("a", 1))
    wire.outbox.control(Entries(room="r", epoch="e", prev=0, last=61))
    wire.entry(62, put("a", 2))
    await wire.heard_so_far(4)
    assert [(item.prev, item.last) for item in wire.heard if isinstance(item, Entries)] == [(0, 61), (61, 62)]
    assert wire.outbox.lagging == set()


async def test_h14_an_answer_about_a_verdict_is_no_catching_up(wire: Wire) -> None:
    """A lagging author asks for a verdict again: the entries it missed are still missing."""
    wire.snapshot()
    await wire.stall()
    for seq in range(1, 61):
        wire.entry(seq, Append(state="S", path=("items",), items=("x" * 1000,)))
    wire.outbox.control(Entries(room="r", epoch="e", prev=60, last=60, decided=3))
    assert wire.outbox.lagging == {"r"}
    assert wire.outbox.cursors["r"] == Cursor("i", "e", 0)


async def test_h14_what_is_in_flight_is_not_called_slow(wire: Wire) -> None:
    """A snapshot far beyond the bound is one item: entries behind it wait, they are not let go."""
    wire.snapshot()
    await wire.heard_so_far(1)
    wire.open.clear()
    began = wire.began
    wire.outbox.control(Snapshot(room="r", incarnation="i", epoch="e", seq=0, states={}, members=()))
    wire.outbox.control(Members(room="r", gone=("x" * 100_000,)))
    async with wire.moved:
        await asyncio.wait_for(wire.moved.wait_for(lambda: wire.began > began), 5)
    wire.open.set()
    # The large one is taken out of the queue when its first fragment is written.
    async with wire.moved:
        await asyncio.wait_for(wire.moved.wait_for(lambda: wire.outbox.queued_bytes == 0), 5)
    wire.entry(1, put("a", 1))
    assert wire.outbox.lagging == set()
    await wire.heard_so_far(4)


async def test_no_progress_for_too_long_makes_a_room_lag(wire: Wire) -> None:
    wire.snapshot()
    await wire.stall()
    wire.entry(1, put("a", 1))
    wire.clock.now += 4.9
    wire.entry(2, put("a", 2))
    assert wire.outbox.lagging == set()
    wire.clock.now += 0.2
    wire.entry(3, put("a", 3))
    assert wire.outbox.lagging == {"r"}


class Turnstile(asyncio.Event):
    """Lets one frame through each time it is set."""

    async def wait(self) -> Literal[True]:
        await super().wait()
        self.clear()
        return True


async def test_fragments_count_as_progress() -> None:
    wire = Wire(Limits(frame_bytes=100, outbox_stall_seconds=5.0))
    wire.snapshot()
    await wire.heard_so_far(1)
    wire.open = Turnstile()
    wire.outbox.control(Members(room="r", gone=("x" * 1000,)))
    for _ in range(3):
        async with wire.moved:
            seen = len(wire.frames)
            wire.clock.now += 4.0
            wire.open.set()
            await asyncio.wait_for(wire.moved.wait_for(lambda seen=seen: len(wire.frames) > seen), 5)
    wire.entry(1, put("a", 1))
    assert wire.outbox.lagging == set()
    wire.clock.now += 5.1
    wire.entry(2, put("a", 2))
    assert wire.outbox.lagging == {"r"}
    wire.outbox.finish()
    while not wire.task.done():
        wire.open.set()
        await asyncio.sleep(0)
    assert max(map(len, wire.frames)) <= 100
    assert isinstance(wire.heard[-1], Members)


async def test_a_room_that_was_left_is_no_obstacle_to_letting_go(wire: Wire) -> None:
    """Its entries wait yet when it is forgotten; letting them go must not need to know where they began."""
    wire.snapshot(room="left")
    wire.snapshot()
    await wire.stall()
    wire.entry(1, put("a", 1), room="left")
    wire.outbox.forget("left")
    wire.entry(2, put("a", 2), room="left")
    for seq in range(1, 61):
        wire.entry(seq, Append(state="S", path=("items",), items=("x" * 1000,)))
    assert wire.outbox.lagging == {"r"}


async def test_back_pressure_ends_with_the_queue_or_with_the_connection(wire: Wire) -> None:
    wire.snapshot()
    await asyncio.wait_for(wire.outbox.room_made(), 5)
    await wire.stall()
    for _ in range(30):
        wire.outbox.control(Failure(problem=Problem(code="x", message="x" * 1000)))
    waiting = asyncio.get_running_loop().create_task(wire.outbox.room_made())
    await asyncio.sleep(0)
    assert not waiting.done()
    wire.open.set()
    await asyncio.wait_for(waiting, 5)
    await wire.stall()
    for _ in range(30):
        wire.outbox.control(Failure(problem=Problem(code="x", message="x" * 1000)))
    waiting = asyncio.get_running_loop().create_task(wire.outbox.room_made())
    await asyncio.sleep(0)
    wire.outbox.close()
    await asyncio.wait_for(waiting, 5)


async def test_finish_writes_what_waits_and_returns(wire: Wire) -> None:
    wire.snapshot()
    await wire.stall()
    wire.entry(1, put("a", 1))
    wire.outbox.finish()
    wire.open.set()
    await asyncio.wait_for(wire.task, 5)
    assert [type(message) for message in wire.heard] == [Snapshot, Pong, Entries]


async def test_presence_that_waits_becomes_one_message(wire: Wire) -> None:
    """Others may come and go by the thousand while a peer does not read."""
    wire.snapshot()
    await wire.stall()
    before = wire.outbox.queued_bytes
    for number in range(1000):
        wire.outbox.control(Members(room="r", present=(Member(id=f"m{number % 3}", kind="script", since=float(number)),)))
        wire.outbox.control(Members(room="q", gone=("x",)))
    wire.outbox.control(Members(room="r", gone=("m1",)))
    wire.outbox.control(Members(room="r", present=(Member(id="m9", kind="kernel"),)))
    assert wire.outbox.queued_bytes - before < 1000
    wire.open.set()
    await wire.heard_so_far(4)
    r, q = [message for message in wire.heard if isinstance(message, Members)]
    assert {member.id: member.since for member in r.present} == {"m0": 999.0, "m2": 998.0, "m9": 0.0}
    assert (r.gone, q.gone, r.complete) == (("m1",), ("x",), False)


async def test_presence_behind_a_snapshot_is_told_behind_it(wire: Wire) -> None:
    wire.snapshot()
    await wire.stall()
    wire.outbox.control(Members(room="r", present=(Member(id="a", kind="script"),)))
    wire.snapshot()
    wire.outbox.control(Members(room="r", gone=("a",)))
    wire.outbox.control(Members(room="r", present=(Member(id="b", kind="script"),), complete=True))
    wire.open.set()
    await wire.heard_so_far(5)
    kinds = [type(message).__name__ for message in wire.heard if not isinstance(message, Pong)]
    assert kinds[-3:] == ["Members", "Snapshot", "Members"]
    last = wire.heard[-1]
    assert isinstance(last, Members)
    assert ([member.id for member in last.present], last.gone, last.complete) == (["b"], (), True)
