"""The shell around the rooms, with the real outboxes and a store that can fail: what is told, when, and how often."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio

from sharedwidgets.core.protocol import (
    Acquire,
    Bye,
    Entries,
    Failure,
    Freed,
    Inc,
    Join,
    Joined,
    Leave,
    Limits,
    LockName,
    Member,
    Members,
    Nack,
    Ping,
    Pong,
    Push,
    Release,
    Resend,
    Resume,
    Set,
    Slow,
    Snapshot,
    TraitSchema,
    Waiting,
)
from sharedwidgets.core.registry import TOMBSTONE_SECONDS
from sharedwidgets.core.room import Author
from sharedwidgets.errors import Forbidden, NoSuchRoom, SharedWidgetsError, StoreFailed
from sharedwidgets_server import manager as managers
from sharedwidgets_server.manager import RoomManager
from sharedwidgets_server.processes import Process
from support.local import Clock, FailingStore, Local, small
from support.peers import SCHEMA, SECRET, VALUES, add, assign

pytestmark = pytest.mark.asyncio

Make = Callable[..., RoomManager]


class Bench:
    """A manager, its store and its clock."""

    def __init__(self, limits: Limits, room_ttl: float = 100.0) -> None:
        self.store = FailingStore()
        self.clock = Clock()
        self.manager = RoomManager(self.store, limits=limits, room_ttl=room_ttl, clock=self.clock, wall=self.clock)
        self.members: list[Local] = []

    def local(self, boot: str, **how: object) -> Local:
        member = Local(self.manager, boot, **how)  # type: ignore[arg-type]
        self.members.append(member)
        return member

    async def joined(self, boot: str, **how: object) -> Local:
        make = how.get("kind") != "frontend"
        return await self.local(boot, **how).connect().join(make=make)

    async def stop(self) -> None:
        self.store.gate.set()
        for member in self.members:
            member.open.set()
            member.drop()
        await self.manager.stop()


@pytest_asyncio.fixture
async def bench() -> AsyncIterator[Bench]:
    made = Bench(small())
    yield made
    await made.stop()


@pytest_asyncio.fixture
async def benches() -> AsyncIterator[Callable[..., Bench]]:
    made: list[Bench] = []

    def make(room_ttl: float = 100.0, **numbers: float) -> Bench:
        made.append(Bench(small(**numbers), room_ttl))
        return made[-1]

    yield make
    for one in made:
        await one.stop()


async def turns(count: int = 20) -> None:
    """Let everything run that can run now."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait for what nobody announces."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while True:
        if condition():
            return
        assert loop.time() < deadline, "it did not come to that in time"
        await asyncio.sleep(0.001)


def runs(member: Local) -> list[tuple[int, int, int]]:
    return [(message.prev, message.last, len(message.entries)) for message in member.all(Entries)]


async def stored(bench: Bench, trait: str = "count", token: str = "r") -> object:
    image = await bench.store.inner.load(token)
    assert image is not None
    return image.states["S"].values[trait]


# --- windows


async def test_the_first_change_goes_at_once_and_the_rest_as_one_frame(bench: Bench) -> None:
    ana = await bench.joined("ana")
    bob = await bench.joined("bob")
    page = await bench.joined("page", kind="frontend")
    bench.store.gate.clear()
    await ana.push(1, add())
    await until(lambda: bench.store.tried == 2)
    for n in range(2, 5):
        await ana.push(n, add())
    await bob.push(1, assign("_salt", "new"))
    await bob.push(2, add(10))
    await turns()
    assert bench.store.tried == 2
    bench.store.gate.set()
    for member in (ana, bob, page):
        await member.next(Entries, lambda message: message.last == 7)
    assert [len(batch.entries) for batch in bench.store.batches] == [1, 1, 5]
    assert runs(ana) == runs(bob) == [(1, 2, 1), (2, 7, 5)]
    assert runs(page) == [(1, 2, 1), (2, 7, 4)]
    # Encoded once per audience: both kernels were given the very same body.
    assert [id(body) for body in ana.outbox.bodies] == [id(body) for body in bob.outbox.bodies]
    assert ana.outbox.bodies[1] is not page.outbox.bodies[1]
    assert [message.decided for message in ana.all(Entries)] == [1, 4]
    assert [message.decided for message in bob.all(Entries)] == [0, 2]


async def test_a_page_hears_that_a_seq_passed_and_nothing_else(bench: Bench) -> None:
    """H15: an entry of kernel-only traits moves a page's cursor, so that it asks for no gap for ever."""
    ana = await bench.joined("ana")
    page = await bench.joined("page", kind="frontend")
    await ana.push(1, assign("_salt", "s"))
    await ana.push(2, add())
    await page.next(Entries, lambda message: message.last == 3)
    assert page.replica.seq == 3
    assert page.replica.view("S")["count"] == 1
    assert SECRET not in str(page.frames)
    assert "_salt" not in str(page.frames)


async def test_h09_nothing_is_told_before_it_is_written(bench: Bench) -> None:
    ana = await bench.joined("ana")
    bob = await bench.joined("bob")
    heard = len(ana.heard), len(bob.heard)
    bench.store.gate.clear()
    await ana.push(1, add())
    await until(lambda: bench.store.tried == 2)
    # Each of these is decided on top of what is not written yet.
    await ana.push(2, assign("level", 11))
    await ana.push(3, assign("level", 7))
    cy = bench.local("cy").connect()
    await cy.ask()
    author = Author("rest", Member(id="rest", kind="script"), "kernel", True, "rest")
    patch = asyncio.get_running_loop().create_task(bench.manager.patch("r", author, [add()]))
    look = asyncio.get_running_loop().create_task(bench.manager.view("r", "kernel"))
    await turns()
    assert (len(ana.heard), len(bob.heard), len(cy.heard)) == (*heard, 0)
    assert not patch.done()
    assert not look.done()
    bench.store.gate.set()
    assert await asyncio.wait_for(patch, 5) == 4
    assert (await asyncio.wait_for(look, 5)).states["S"].values["count"] == 2
    assert (await ana.next(Nack)).n == 2
    await cy.next(Joined)
    assert cy.replica.view("S")["level"] == 7


# --- a store that fails


@pytest.mark.parametrize("when", ["before", "after"])
async def test_h09_a_failed_append_is_never_heard_of_and_comes_once(bench: Bench, when: str) -> None:
    ana = await bench.joined("ana")
    bob = await bench.joined("bob")
    epoch = bob.replica.epoch
    setattr(bench.store, when, 1)
    for _ in range(3):
        ana.replica.write([add()], group=True)
    assert await ana.send() == 3
    await ana.next(Resend)
    await until(lambda: ana.replica.unsent or not ana.replica.undecided)
    await ana.send()
    await ana.until(lambda: not ana.replica.undecided)
    await bob.until(lambda: bob.replica.view("S")["count"] == 3)
    assert await stored(bench) == 3
    assert bob.replica.epoch == ana.replica.epoch != epoch
    assert bench.store.tried - len(bench.store.batches) == (1 if when == "before" else 0)
    assert not [message for message in (*ana.heard, *bob.heard) if isinstance(message, (Nack, Failure))]
    # The mark moved with the effect: the same numbers once more change nothing.
    await ana.push(3, add())
    await ana.next(Entries, lambda message: message.prev == message.last and message.decided == 3)
    assert await stored(bench) == 3


async def test_h09_a_refusal_whose_window_failed_is_told_all_the_same(bench: Bench) -> None:
    """Written or not, the author of a refused push gets its verdict, and nothing else is decided for it."""
    for index, when in enumerate(("before", "after")):
        ana = bench.local(f"ana{index}").connect()
        await ana.join()
        setattr(bench.store, when, 1)
        ana.write(add())
        await ana.send()
        await ana.push(2, assign("level", 11))
        await ana.next(Resend)
        if when == "before":
            await ana.push(1, add())
            await ana.push(2, assign("level", 11))
        nack = await ana.next(Nack)
        assert (nack.n, nack.problem.code) == (2, "invalid-value")
    assert await stored(bench) == 2


async def test_h09_a_request_is_told_what_became_of_it(bench: Bench) -> None:
    await bench.joined("ana")
    author = Author("rest", Member(id="rest", kind="script"), "kernel", True, "rest")
    bench.store.before = 1
    with pytest.raises(StoreFailed):
        await asyncio.wait_for(bench.manager.patch("r", author, [add()]), 5)
    assert await stored(bench) == 0
    # The store wrote it and then complained: the store is the truth, whatever the error said.
    bench.store.after = 1
    assert await asyncio.wait_for(bench.manager.patch("r", author, [add()]), 5) == 2
    assert await stored(bench) == 1


async def test_h09_disk_full_thrice(bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(managers, "STORE_RETRY_SECONDS", 0.05)
    ana = await bench.joined("ana")
    page = await bench.joined("page", kind="frontend")
    epoch = ana.replica.epoch
    bench.store.before = 3
    ana.write(add())
    await ana.send()
    author = Author("rest", Member(id="rest", kind="script"), "kernel", True, "rest")
    for count in range(1, 3):
        # From before the third failure, and so before the wait that comes of it.
        began = asyncio.get_running_loop().time()
        await ana.next(Resend, count=count)
        await ana.send()
    patch = asyncio.get_running_loop().create_task(bench.manager.patch("r", author, [add(10)]))
    cy = bench.local("cy").connect()
    await cy.ask()
    await ana.next(Resend, count=3)
    await ana.send()
    with contextlib.suppress(StoreFailed):
        await asyncio.wait_for(patch, 5)
    await cy.next(Joined)
    await ana.until(lambda: not ana.replica.undecided)
    assert asyncio.get_running_loop().time() - began >= 0.05
    waits = [record.message for record in caplog.records if "waits for its store" in record.message]
    assert waits == ["'r' waits for its store; it is tried every 0.05 s"]
    refused = patch.exception() is not None
    assert await stored(bench) == (1 if refused else 11)
    for member in (page, cy):
        await member.until(lambda member=member: member.replica.view("S")["count"] == (1 if refused else 11))
    image = await bench.store.inner.load("r")
    assert image is not None
    assert image.epochs[-1][0] == ana.replica.epoch != epoch
    # Three tries, each with one snapshot: no storm.
    assert len(page.all(Snapshot)) == 4
    assert bench.store.before == 0


async def test_a_room_that_cannot_be_loaded_answers_when_it_can(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(managers, "STORE_RETRY_SECONDS", 0.01)
    bench.store.loads = 5
    ana = bench.local("ana").connect()
    await ana.ask()
    await ana.next(Joined)
    assert bench.store.loads == 0
    assert ana.replica.view("S")["count"] == 0


async def test_one_rooms_store_trouble_is_not_anothers(bench: Bench) -> None:
    ana = await bench.joined("ana")
    bob = bench.local("bob", replica=None).connect()
    bob.replica.room = "other"
    await bob.join("other")
    bench.store.gate.clear()
    await ana.push(1, add())
    await until(lambda: bench.store.tried == 3)
    view = await asyncio.wait_for(bench.manager.view("other", "kernel"), 5)
    assert view.states["S"].values["count"] == 0


async def test_an_input_that_breaks_the_room_costs_one_refusal(bench: Bench) -> None:
    """What a bug in deciding costs: the push is refused for good, and everybody goes on from what is written."""
    ana = await bench.joined("ana")
    bob = await bench.joined("bob")
    await ana.push(1, add())
    endless: list[object] = []
    endless.append(endless)
    broken = Set(state="S", path=("count",), value=endless)
    await ana.push(2, broken)
    await ana.push(3, add())
    nack = await ana.next(Nack)
    assert nack.n == 2
    await ana.next(Resend)
    await ana.push(3, add())
    await bob.until(lambda: bob.replica.view("S")["count"] == 2)
    assert await stored(bench) == 2


# --- H7: one boot, one connection


async def test_h07_a_hello_of_the_same_boot_retires_the_older_connection(bench: Bench) -> None:
    first = await bench.joined("ana")
    bob = await bench.joined("bob")
    second = bench.local("ana", replica=first.replica)
    second.connect(first.replica.position(["S"]))
    bye = await first.next(Bye)
    assert (bye.problem.code, first.ended) == ("replaced", True)
    # What was still unread on the old one must not act: a late leave, a late push.
    await first.say(Leave(room="r"))
    await first.push(1, add(100))
    await second.push(1, add())
    await bob.until(lambda: bob.replica.view("S")["count"] == 1)
    assert [member.id for member in bob.replica.members.values()] == ["ana", "bob"]
    assert bob.all(Members)[-1].gone == ()
    # The old socket closes late; the new one does not notice.
    first.drop()
    await second.push(2, add())
    await bob.until(lambda: bob.replica.view("S")["count"] == 2)
    assert bob.replica.members["ana"].state == "live"
    assert not [message for message in bob.all(Members) if message.gone]


async def test_h07_the_same_number_of_two_boots_is_two_pushes(bench: Bench) -> None:
    parent = await bench.joined("parent", member="m")
    child = await bench.joined("child", member="m")
    await parent.push(1, add())
    await child.push(1, add())
    await parent.until(lambda: parent.replica.seq == 3)
    assert await stored(bench) == 2


async def test_h05_a_refusal_lost_with_the_socket_is_told_again(bench: Bench) -> None:
    ana = await bench.joined("ana")
    ana.write(add())
    ana.replica.write([Inc(state="S", path=("level",), by=3)], group=True)
    bob = await bench.joined("bob")
    await bob.push(1, assign("level", 9))
    await bob.next(Entries)
    ana.open.clear()
    await ana.send()
    await until(lambda: bench.store.inner._rooms["r"].marks.get("ana"))
    await until(lambda: bench.store.inner._rooms["r"].marks["ana"].n == 2)
    ana.drop()
    ana.replica.disconnected()
    again = bench.local("ana", replica=ana.replica)
    again.connect(ana.replica.position(["S"]))
    nack = await again.next(Nack)
    assert (nack.n, nack.problem.code) == (2, "invalid-value")
    await again.until(lambda: not again.replica.undecided)
    assert again.replica.view("S") == {**bob.replica.view("S"), "count": 1, "level": 9}


async def test_h05_a_new_connection_hears_nothing_before_its_resume_is_answered(bench: Bench) -> None:
    """The verdict of n=1 is lost with a stalled socket; n=2 is being written while the boot comes back on another one."""
    ana = await bench.joined("ana")
    bob = await bench.joined("bob")
    ana.replica.write([Inc(state="S", path=("level",), by=3)], group=True)
    await bob.push(1, assign("level", 9))
    await bob.next(Entries)
    ana.open.clear()
    await ana.send()
    await until(lambda: bench.store.inner._rooms["r"].marks.get("ana"))
    tried = bench.store.tried
    bench.store.gate.clear()
    ana.write(add())
    await ana.send()
    await until(lambda: bench.store.tried == tried + 1)
    ana.drop()
    ana.replica.disconnected()
    again = bench.local("ana", replica=ana.replica)
    again.connect(ana.replica.position(["S"]))
    await turns()
    bench.store.gate.set()
    nack = await again.next(Nack)
    assert nack.n == 1
    told = [type(message) for message in again.heard if isinstance(message, (Nack, Entries, Snapshot))]
    assert told[0] is Nack
    await again.until(lambda: not again.replica.undecided)
    assert again.replica.view("S")["level"] == 9


# --- slow readers


async def test_h14_a_stalled_reader_costs_its_outbox_and_loses_nothing(bench: Bench) -> None:
    ana = await bench.joined("ana")
    bob = await bench.joined("bob")
    slow = await bench.joined("slow")
    slow.open.clear()
    text = "x" * 100_000
    for n in range(1, 101):
        await ana.push(n, assign("text", f"{n} {text}"), add())
    # One refusal for the stalled reader meanwhile, and one verdict of its own.
    await slow.push(1, assign("level", 99))
    await slow.push(2, add(1000))
    await ana.push(101, assign("tags", {"done": True}))
    await bob.until(lambda: bob.replica.view("S")["tags"] == {"done": True})
    assert bob.outbox.dropped == 0
    assert slow.outbox.queued_bytes <= bench.manager.limits.outbox_drop_bytes
    slow.open.set()
    await slow.until(lambda: slow.replica.view("S").get("tags") == {"done": True})
    assert slow.replica.view("S") == bob.replica.view("S")
    assert slow.replica.view("S")["count"] == 1100
    assert [nack.n for nack in slow.all(Nack)] == [1]
    await slow.until(lambda: [message for message in slow.heard if getattr(message, "decided", 0) == 2])
    # And it is a reader like any other again.
    await ana.push(102, add())
    await slow.until(lambda: slow.replica.view("S")["count"] == 1101)


async def test_h14_a_reader_that_cannot_fold_lags_and_catches_up(benches: Callable[..., Bench]) -> None:
    bench = benches(outbox_fold_bytes=1000, outbox_drop_bytes=5000)
    ana = await bench.joined("ana")
    slow = await bench.joined("slow")
    slow.open.clear()
    # A transaction of two traits each: no order of folding or letting go may show one without the other.
    for n in range(1, 301):
        await ana.push(n, add(), Inc(state="S", path=("level",), by=1 if n % 2 else -1))
    await ana.until(lambda: ana.replica.seq == 301)
    assert slow.outbox.lagging == {"r"}
    assert slow.outbox.dropped > 0
    slow.open.set()
    await slow.until(lambda: slow.replica.seq == 301)
    assert slow.replica.view("S") == ana.replica.view("S")
    assert (await stored(bench), slow.replica.view("S")["count"]) == (300, 300)


async def test_a_reader_that_left_a_room_while_it_stalled_does_not_break_another_room(benches: Callable[..., Bench]) -> None:
    bench = benches(outbox_fold_bytes=1000, outbox_drop_bytes=5000)
    ana = await bench.joined("ana")
    slow = await bench.joined("slow")
    await slow.join("left", number=2)
    await ana.join("left", number=2)
    slow.open.clear()
    await ana.push(1, add(), room="left")
    await ana.next(Entries)
    await ana.push(2, add(), room="left")
    await until(lambda: slow.outbox.queued_bytes)
    await slow.say(Leave(room="left"))
    for n in range(1, 301):
        await ana.push(n, add(), Inc(state="S", path=("level",), by=1 if n % 2 else -1))
    await ana.until(lambda: ana.replica.seq == 301)
    slow.open.set()
    await slow.until(lambda: slow.replica.seq == 301)
    await ana.push(301, add())
    await ana.until(lambda: ana.replica.seq == 302)


async def test_a_backlog_slows_its_writer_and_refuses_nothing(bench: Bench) -> None:
    ana = await bench.joined("ana")
    bench.store.gate.clear()

    async def write() -> None:
        for n in range(1, 2001):
            await ana.manager.receive(ana.connection, managers.Push(room="r", n=n, ops=(add(),)))

    writing = asyncio.get_running_loop().create_task(write())
    await ana.next(Slow)
    assert not writing.done()
    bench.store.gate.set()
    await asyncio.wait_for(writing, 20)
    await ana.until(lambda: ana.replica.view("S")["count"] == 2000)
    assert ana.all(Nack) == []
    assert len(bench.store.batches) < 30


async def test_a_peer_that_asks_and_never_reads_is_not_listened_to_for_ever(benches: Callable[..., Bench]) -> None:
    """Each answer is kept until it is read: back-pressure holds for pings as for everything else."""
    bench = benches(outbox_drop_bytes=1000)
    deaf = await bench.joined("deaf")
    deaf.open.clear()

    async def ask() -> None:
        for number in range(1, 1000):
            await deaf.manager.receive(deaf.connection, Ping(id=number))

    asking = asyncio.get_running_loop().create_task(ask())
    await turns()
    assert not asking.done()
    assert deaf.outbox.queued_bytes < 1100
    deaf.open.set()
    await asyncio.wait_for(asking, 5)
    await deaf.next(Pong, lambda message: message.id == 999)


# --- coming and going


async def test_a_socket_that_drops_is_away_and_back_without_leaving(benches: Callable[..., Bench]) -> None:
    bench = benches(away_seconds=10.0)
    ana = await bench.joined("ana")
    bob = await bench.joined("bob")
    ana.drop()
    ana.replica.disconnected()
    away = await bob.next(Members, lambda message: message.present and message.present[0].state == "away")
    assert (away.present[0].id, away.present[0].states, away.gone) == ("ana", ("S",), ())
    bench.clock.now += 9.9
    again = bench.local("ana", replica=ana.replica)
    again.connect(ana.replica.position(["S"]))
    await bob.until(lambda: bob.replica.members["ana"].state == "live")
    assert bob.replica.members["ana"].states == ("S",)
    bench.clock.now += 100
    await turns(50)
    await again.push(1, add())
    await bob.until(lambda: bob.replica.view("S")["count"] == 1)
    assert [message.gone for message in bob.all(Members)] == [()] * len(bob.all(Members))


async def test_a_member_that_stays_away_is_gone(benches: Callable[..., Bench]) -> None:
    bench = benches(away_seconds=10.0)
    ana = await bench.joined("ana")
    bob = await bench.joined("bob")
    ana.drop()
    await bob.next(Members, lambda message: message.present and message.present[0].state == "away")
    bench.clock.now += 10.1
    gone = await bob.next(Members, lambda message: message.gone)
    assert gone.gone == ("ana",)
    assert len([message for message in bob.all(Members) if message.gone]) == 1


async def test_a_process_of_elsewhere_is_gone_35_seconds_after_it_was_heard_last() -> None:
    """However late it is noticed that it says nothing: 25 s of silence, and 10 s away (the defaults)."""
    bench = Bench(Limits())
    bob = await bench.joined("bob")
    await bench.joined("ana")
    bench.clock.now += 25.9
    bob.connection.heard = bench.clock.now
    await bob.next(Members, lambda message: message.present and message.present[0].state == "away")
    bench.clock.now += 9.0
    await until_timer(bench)
    assert {member.id for member in (await bench.manager.view("r", "kernel")).members} == {"ana", "bob"}
    bench.clock.now += 0.1
    assert (await bob.next(Members, lambda message: message.gone)).gone == ("ana",)
    await bench.stop()


async def test_a_room_looks_at_the_clock_when_something_is_due(benches: Callable[..., Bench]) -> None:
    """And not up to a second later."""
    looked: list[float] = []
    bench = benches(heartbeat_seconds=10.0)
    bob, ana = await bench.joined("bob"), await bench.joined("ana")
    ana.drop()
    await bob.next(Members, lambda message: message.present and message.present[0].state == "away")
    queue = bench.manager._queues["r"]
    assert queue.deadline is not None
    slept = asyncio.sleep

    async def sleep(seconds: float, result: object = None) -> object:
        looked.append(seconds)
        return await slept(seconds, result)

    bench.clock.now = queue.deadline - 0.125
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(managers.asyncio, "sleep", sleep)
        await until(lambda: 0.125 in looked)


async def test_a_member_of_two_boots_is_away_when_both_are(benches: Callable[..., Bench]) -> None:
    bench = benches(away_seconds=10.0)
    bob = await bench.joined("bob")
    one = await bench.joined("one", member="ana")
    two = await bench.joined("two", member="ana")
    one.drop()
    await two.push(1, add())
    await bob.until(lambda: bob.replica.view("S")["count"] == 1)
    assert bob.replica.members["ana"].state == "live"
    two.drop()
    await bob.until(lambda: bob.replica.members["ana"].state == "away")


@pytest.mark.parametrize("back", [False, True])
async def test_h07_a_living_boot_that_does_not_come_back_to_a_room_is_gone_from_it(
    benches: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch, back: bool
) -> None:
    monkeypatch.setattr(managers, "LAST_LOOK_SECONDS", 0.01)
    bench = benches(away_seconds=10.0, dead_seconds=1e9)

    class Living(Process):
        def __init__(self) -> None:
            self.looks = 0

        async def alive(self) -> bool:
            self.looks += 1
            return True

    bob, ana, process = await bench.joined("bob"), await bench.joined("ana", kind="kernel"), Living()
    position = ana.replica.position(["S"])
    ana.connection.process = process
    ana.drop()
    await until(lambda: process.looks > 1)
    bench.clock.now += 11.0
    await bob.next(Members, lambda message: [item.state for item in message.present] == ["unresponsive"])
    # It is heard again, and only it knows whether it left the room meanwhile.
    bench.local("ana", kind="kernel").connect(*([position] if back else []))
    await until(lambda: not bench.manager._watches)
    await turns()
    bench.clock.now += 11.0
    if back:
        await bob.next(Members, lambda message: [item.state for item in message.present] == ["live"], count=2)
        await until_timer(bench)
        assert {member.id for member in (await bench.manager.view("r", "kernel")).members} == {"ana", "bob"}
    else:
        await bob.next(Members, lambda message: message.gone == ("ana",))


async def test_leaving_is_told_at_once(bench: Bench) -> None:
    ana = await bench.joined("ana")
    bob = await bench.joined("bob")
    await ana.push(1, add())
    await ana.say(Leave(room="r"))
    assert (await bob.next(Members, lambda message: message.gone)).gone == ("ana",)
    # What it wrote before stands, and what it says afterwards does not.
    assert bob.replica.view("S")["count"] == 1
    await ana.push(2, add())
    assert (await ana.next(Failure)).problem.code == "no-such-room"
    assert await stored(bench) == 1


async def test_an_empty_room_goes_when_its_time_is_over_and_not_before(benches: Callable[..., Bench]) -> None:
    bench = benches(room_ttl=100.0)
    ana = await bench.joined("ana")
    await ana.say(Leave(room="r"))
    await until(lambda: bench.manager.registry._empty_since)
    bench.clock.now += 99.0
    await until_timer(bench)
    assert await bench.manager.tokens() == ["r"]
    bench.clock.now += 1.1
    await until(lambda: not bench.store.inner._rooms)
    with pytest.raises(NoSuchRoom):
        await bench.manager.view("r", "kernel")
    # A new one of the token begins anew.
    again = await bench.joined("again")
    assert (again.replica.seq, again.replica.view("S")["count"]) == (1, 0)


@pytest.mark.parametrize("again", [False, True])
async def test_h18_who_was_away_while_its_room_was_deleted_is_told_when_it_comes_back(bench: Bench, again: bool) -> None:
    ana, bob = await bench.joined("ana"), await bench.joined("bob")
    position = ana.replica.position(["S"])
    ana.drop()
    await bench.manager.delete("r")
    gone = (await bob.next(Bye)).incarnation
    assert gone == position.incarnation
    if again:
        await bob.join(number=2)
    back = bench.local("ana").connect(position)
    bye = await back.next(Bye)
    assert (bye.room, bye.incarnation, bye.problem.code) == ("r", gone, "room-gone")
    assert await bench.manager.tokens() == (["r"] if again else [])
    assert bench.manager.registry._links["ana"].rooms == set()
    await back.say(Join(id=2, room="r", state="S", schema=SCHEMA, values=VALUES, resume=position))
    assert (await back.next(Failure)).problem.code == "room-gone"
    assert back.all(Bye) == [bye, bye]
    assert await bench.manager.tokens() == (["r"] if again else [])
    # Only a link makes it, or joins what somebody else made.
    await back.join(number=3)
    assert back.replica.incarnation != gone
    assert {member.id for member in (await bench.manager.view("r", "kernel")).members} == ({"ana", "bob"} if again else {"ana"})


async def test_h18_a_room_whose_time_was_over_may_come_back_from_who_was_away(benches: Callable[..., Bench]) -> None:
    bench = benches(room_ttl=100.0, away_seconds=10.0)
    ana = await bench.joined("ana")
    position = ana.replica.position(["S"])
    ana.drop()
    await turns()
    bench.clock.now += 11.0
    await until(lambda: bench.manager.registry._empty_since)
    bench.clock.now += 101.0
    await until(lambda: not bench.store.inner._rooms)
    back = bench.local("ana").connect(position)
    assert (await back.next(Failure)).problem.code == "no-such-room"
    await back.say(Join(id=2, room="r", state="S", schema=SCHEMA, values=VALUES, resume=position))
    await back.next(Joined)
    assert await bench.manager.tokens() == ["r"]


async def test_h18_deletions_are_forgotten_in_time(benches: Callable[..., Bench]) -> None:
    bench = benches()
    await bench.joined("ana")
    await bench.manager.delete("r")
    (room,) = bench.manager.tombstones._since
    bench.clock.now += TOMBSTONE_SECONDS
    await until_timer(bench)
    assert room in bench.manager.tombstones
    bench.clock.now += 1
    await until(lambda: room not in bench.manager.tombstones)


async def test_a_room_with_members_never_expires(benches: Callable[..., Bench]) -> None:
    bench = benches(room_ttl=100.0, heartbeat_seconds=0.04, dead_seconds=1e9)
    ana = await bench.joined("ana")
    bob = await bench.joined("bob")
    await bob.say(Leave(room="r"))
    bench.clock.now += 1000.0
    await until_timer(bench)
    await ana.push(1, add())
    await ana.until(lambda: ana.replica.view("S")["count"] == 1)
    # Its time begins when the last one left, not before.
    await ana.say(Leave(room="r"))
    await until(lambda: bench.manager.registry._empty_since)
    bench.clock.now += 50.0
    back = await bench.joined("back")
    bench.clock.now += 60.0
    await until_timer(bench)
    assert back.replica.view("S")["count"] == 1
    assert await bench.manager.tokens() == ["r"]


async def test_a_room_that_cannot_be_deleted_is_tried_again(benches: Callable[..., Bench]) -> None:
    bench = benches(room_ttl=10.0)
    ana = await bench.joined("ana")
    await ana.say(Leave(room="r"))
    await until(lambda: bench.manager.registry._empty_since)
    bench.store.deletes = 1
    bench.clock.now += 11.0
    await until(lambda: not bench.store.deletes)
    assert await bench.manager.tokens() == ["r"]
    bench.clock.now += 11.0
    await until(lambda: not bench.store.inner._rooms)


async def test_a_room_that_never_held_anything_is_let_go(bench: Bench) -> None:
    page = bench.local("page", kind="frontend").connect()
    await page.join("waiting", make=False)
    assert list(bench.manager._queues) == ["waiting"]
    await page.say(Leave(room="waiting"))
    await until(lambda: not bench.manager._queues)
    # And for nobody's leaving of nothing, no room stays.
    await page.say(Leave(room="never there"))
    await until(lambda: not bench.manager._queues)
    assert await bench.manager.tokens() == []
    await page.join("waiting", make=False, number=2)


async def test_h16_a_page_waits_for_the_state_and_gets_it(bench: Bench) -> None:
    page = bench.local("page", kind="frontend").connect()
    await page.join(make=False)
    assert page.replica.states == {}
    await bench.joined("ana")
    await page.until(lambda: page.replica.view("S"))
    assert "_salt" not in page.replica.view("S")


async def test_joins_that_were_refused_hold_no_room(benches: Callable[..., Bench]) -> None:
    bench = benches(rooms=2)
    await bench.joined("ana")
    page = bench.local("page", kind="frontend").connect()
    for number in range(1, 6):
        await page.ask(f"other-{number}", number=number)
        failure = await page.next(Failure, lambda message, number=number: message.id == number)
        assert failure.problem.code == "forbidden"
    await page.join("r", make=False, number=6)
    await page.join("s", make=False, number=7)
    await page.ask("t", make=False, number=8)
    assert (await page.next(Failure, lambda message: message.id == 8)).problem.code == "too-many-rooms"


# --- heartbeats


async def until_timer(bench: Bench) -> None:
    """Wait until the timer turned at least once more."""
    probe = bench.local(f"probe-{len(bench.members)}").connect()
    probe.connection.heard = bench.clock.now - 1.5 * bench.manager.limits.heartbeat_seconds
    probe.connection.pinged = probe.connection.heard
    await probe.next(Ping)
    probe.drop()


async def test_a_silent_connection_is_asked_and_one_that_answers_lives(benches: Callable[..., Bench]) -> None:
    bench = benches(heartbeat_seconds=0.04, dead_seconds=1.0)
    ana = await bench.joined("ana")
    for count in range(1, 6):
        bench.clock.now += 0.5
        await ana.next(Ping, count=count)
        ana.connection.heard = bench.clock.now
    assert not ana.ended
    assert len(ana.all(Ping)) == 5


async def test_a_connection_that_stays_silent_is_ended_once_and_its_member_is_away(benches: Callable[..., Bench]) -> None:
    bench = benches(heartbeat_seconds=0.04, dead_seconds=1.0)
    ana = await bench.joined("ana")
    bob = await bench.joined("bob")
    ana.open.clear()
    bench.clock.now += 1.1
    bob.connection.heard = bench.clock.now
    await bob.until(lambda: bob.replica.members["ana"].state == "away")
    for _ in range(3):
        bench.clock.now += 0.5
        bob.connection.heard = bench.clock.now
        await until_timer(bench)
    ana.open.set()
    await ana.next(Bye)
    await turns()
    assert [bye.problem.code for bye in ana.all(Bye)] == ["silent"]
    assert ana.ended
    assert not bob.ended


# --- requests and the end


async def test_a_request_to_a_room_that_goes_is_answered(benches: Callable[..., Bench]) -> None:
    """A room expires under a GET: the caller is told, not left waiting."""
    bench = benches(room_ttl=10.0)
    ana = await bench.joined("ana")
    await ana.say(Leave(room="r"))
    await until(lambda: bench.manager.registry._empty_since)
    looks = [asyncio.get_running_loop().create_task(bench.manager.view("r", "kernel")) for _ in range(2)]
    author = Author("rest", Member(id="rest", kind="script"), "kernel", True, "rest")
    patch = asyncio.get_running_loop().create_task(bench.manager.patch("r", author, [add()]))
    await asyncio.sleep(0)
    bench.manager._let_go("r")
    done, waiting = await asyncio.wait([*looks, patch], timeout=5)
    assert not waiting
    for task in done:
        assert task.exception() is None or isinstance(task.exception(), NoSuchRoom)


async def test_who_may_only_read_may_not_write(bench: Bench) -> None:
    await bench.joined("ana")
    reader = bench.local("reader", may_write=False).connect()
    await reader.join(make=False)
    await reader.push(1, add())
    nack = await reader.next(Nack)
    assert (nack.problem.code, nack.values["S"]["count"]) == ("forbidden", 0)
    await reader.ask("new", number=2)
    assert (await reader.next(Failure)).problem.code == "forbidden"
    author = Author("rest", Member(id="rest", kind="script"), "kernel", False, "rest")
    with pytest.raises(Forbidden):
        await bench.manager.patch("r", author, [add()])


async def test_everyone_is_told_when_the_server_stops(bench: Bench) -> None:
    ana = await bench.joined("ana")
    bob = await bench.joined("bob")
    await bench.manager.stop()
    for member in (ana, bob):
        bye = await member.next(Bye)
        assert (bye.problem.code, bye.retry_after) == ("going-away", 1.0)
        assert member.ended
        member.drop()
    # Sockets that close after the end wake nothing.
    assert bench.manager._queues == {}


async def test_a_stopped_server_leaves_nobody_waiting(bench: Bench) -> None:
    await bench.joined("ana")
    bench.store.gate.clear()
    author = Author("rest", Member(id="rest", kind="script"), "kernel", True, "rest")
    patch = asyncio.get_running_loop().create_task(bench.manager.patch("r", author, [add()]))
    await until(lambda: bench.store.tried == 2)
    look = asyncio.get_running_loop().create_task(bench.manager.view("r", "kernel"))
    await turns()
    await bench.manager.stop()
    done, waiting = await asyncio.wait([patch, look], timeout=5)
    assert not waiting
    assert all(isinstance(task.exception(), SharedWidgetsError) for task in done)


# --- found by reading the code against its guarantees


@pytest.mark.parametrize("when", ["before", "after"])
async def test_h09_who_joins_in_a_window_that_fails_is_let_in_all_the_same(bench: Bench, when: str) -> None:
    """Also when it is somebody else's push that the store does not take."""
    ana = await bench.joined("ana")
    bob = bench.local("bob").connect()
    setattr(bench.store, when, 1)
    ana.write(add())
    await asyncio.gather(ana.send(), bob.ask())
    await bob.next(Joined)
    await bob.until(lambda: bob.replica.live)
    await until(lambda: ana.replica.unsent or not ana.replica.undecided)
    await ana.send()
    bob.write(add())
    await bob.send()
    await bob.until(lambda: bob.replica.view("S")["count"] == 2)
    assert not bob.replica.undecided


async def test_h09_who_comes_back_in_a_window_that_fails_loses_no_push(bench: Bench) -> None:
    """Found by a simulation: its pushes went with the window, and nobody asked the new connection for them again."""
    ana, bob = await bench.joined("ana"), await bench.joined("bob")
    append, calls = bench.store.append, 0

    async def second_fails(*batch: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("disk full")
        await append(*batch)

    bench.store.append = second_fails  # type: ignore[method-assign]
    bench.store.gate.clear()
    bob.write(add())
    await bob.send()
    ana.drop()
    ana.replica.disconnected()
    back = bench.local("ana", replica=ana.replica).connect(ana.replica.position(["S"]))
    for _ in range(3):
        ana.replica.write([add()], group=True)
    await back.send()
    bench.store.gate.set()
    await until(lambda: calls > 2)
    await until(lambda: ana.replica.unsent or not ana.replica.undecided)
    await back.send()
    await back.until(lambda: not ana.replica.undecided)
    await bob.until(lambda: bob.replica.view("S")["count"] == 4)
    assert await stored(bench) == 4


async def test_a_hello_names_a_room_often_and_is_answered_once(bench: Bench) -> None:
    ana = await bench.joined("ana")
    again = [Resume(room="r", incarnation="?", epoch="?", seq=0, states=("S",))] * 1000
    page = bench.local("page", kind="frontend").connect(*again)
    await page.until(lambda: page.replica.live)
    ana.write(add())
    await ana.send()
    await page.until(lambda: page.replica.view("S")["count"] == 1)
    assert len(page.all(Snapshot)) == 1


async def test_a_peer_that_asks_for_the_room_over_and_over_is_read_no_further(bench: Bench) -> None:
    """Each answer may be the whole room; they are not queued by the thousand."""
    await bench.joined("ana")
    page = bench.local("page", kind="frontend").connect()
    await page.join(make=False)
    bench.store.gate.clear()
    ana = bench.members[0]
    ana.write(add())
    await ana.send()
    await turns()
    asking = asyncio.get_running_loop().create_task(_ask_often(page, 100))
    await turns(200)
    assert not asking.done()
    assert bench.manager._queues["r"].backlog <= managers.MOST_ASKED
    bench.store.gate.set()
    await asyncio.wait_for(asking, 5)


async def _ask_often(page: Local, times: int) -> None:
    for _ in range(times):
        await page.say(Resume(room="r", incarnation="?", epoch="?", seq=0))


async def test_a_refused_join_beside_a_granted_one_leaves_no_ghost(bench: Bench) -> None:
    """The registry and the room must agree on who is in."""
    bob = await bench.joined("bob")
    ana = bench.local("ana").connect()
    bad = {"count": TraitSchema(kind="text")}
    bench.store.gate.clear()
    bob.write(add())
    await bob.send()
    await ana.say(Join(id=1, room="r", state="S", schema=bad, values={"count": ""}))
    await ana.say(Join(id=2, room="r", state="S"))
    bench.store.gate.set()
    await ana.next(Joined, lambda message: message.id == 2)
    assert [message.id for message in ana.all(Failure)] == [1]
    await bob.until(lambda: "ana" in bob.replica.members)
    ana.drop()
    await bob.until(lambda: bob.replica.members["ana"].state == "away")


async def test_a_room_that_expires_does_not_take_a_newcomers_write_with_it(benches: Callable[..., Bench]) -> None:
    """G3: who joins while the store deletes comes before the deletion, and stops it, or after it, into a new room."""
    bench = benches(room_ttl=10.0)
    ana = await bench.joined("ana")
    ana.write(add())
    await ana.send()
    await ana.until(lambda: not ana.replica.undecided)
    await ana.say(Leave(room="r"))
    await until(lambda: bench.manager.registry._empty_since)
    bench.store.deleting.clear()
    bench.clock.now += 11.0
    await until(lambda: bench.store.waiting)
    bob = bench.local("bob").connect()
    await bob.ask()
    bob_write = asyncio.get_running_loop().create_task(bob.push(1, add(5)))
    await turns()
    bench.store.deleting.set()
    await bob_write
    await bob.until(lambda: bob.replica.live and bob.replica.seq == 2)
    assert bob.replica.view("S")["count"] == 5
    image = await bench.store.load("r")
    assert image is not None
    assert (image.incarnation, image.states["S"].values["count"]) == (bob.replica.incarnation, 5)


async def test_a_room_that_is_joined_in_time_is_kept(benches: Callable[..., Bench]) -> None:
    bench = benches(room_ttl=10.0)
    ana = await bench.joined("ana")
    await ana.say(Leave(room="r"))
    await until(lambda: bench.manager.registry._empty_since)
    queue = bench.manager._queues["r"]
    bob = bench.local("bob").connect()
    # The deletion is decided behind the join that came first.
    await bob.ask()
    bench.manager._expire("r")
    await bob.next(Joined)
    await turns()
    assert bench.manager._queues["r"] is queue
    assert await bench.manager.tokens() == ["r"]


async def test_h26_a_server_that_was_held_up_takes_nobody_for_silent(benches: Callable[..., Bench]) -> None:
    """A notebook that takes long to save stops the loop; what came meanwhile lies there unread."""
    bench = benches(heartbeat_seconds=0.04, dead_seconds=1.0)
    bench.manager._clock = time.monotonic
    ana = await bench.joined("ana")
    ana.connection.heard = bench.manager.clock()
    await asyncio.sleep(0)
    time.sleep(1.5)  # noqa: ASYNC251 - the very thing
    await turns(5)
    await asyncio.sleep(0.05)
    assert not ana.ended
    assert not ana.all(Bye)


@pytest.mark.parametrize("amid", [False, True], ids=["idle", "amid work"])
async def test_h26_leases_stand_still_while_the_server_is_held_up(bench: Bench, amid: bool) -> None:
    """Whether what it was told last lay there when that began, or all of it came meanwhile."""
    bench.manager._clock = time.monotonic
    ana, bob, name = await bench.joined("ana"), await bench.joined("bob"), LockName(kind="state", name="S")
    await ana.say(Acquire(id=2, room="r", lock=name, owner="main", lease=1.0))
    await ana.until(lambda: name in ana.replica.locks)
    await bob.say(Acquire(id=2, room="r", lock=name, owner="main", lease=1.0))
    await bob.next(Waiting, lambda message: message.waiters == ("bob",))
    fence = ana.replica.locks[name].fence
    under = Push(room="r", n=1, ops=(add(),), fences={"S": fence})
    if amid:
        # Decided in the same turn of the loop, before any timer is looked at.
        asyncio.get_running_loop().call_soon(time.sleep, 1.5)
        await ana.say(under)
    else:
        time.sleep(1.5)  # noqa: ASYNC251 - the very thing
        await asyncio.sleep(0.05)
        await ana.say(under)
    await bob.until(lambda: bob.replica.view("S")["count"] == 1)
    assert (bob.replica.locks[name].fence, ana.all(Nack)) == (fence, [])
    await ana.say(Release(room="r", lock=name, owner="main", fence=fence))
    await bob.until(lambda: bob.replica.locks[name].member == "bob")
    entries = [op for message in bob.all(Entries) for entry in message.entries for op in entry.ops]
    assert [op.reason for op in entries if isinstance(op, Freed)] == ["released"]


async def test_forgotten_marks_leave_the_store_too(benches: Callable[..., Bench]) -> None:
    bench = benches(mark_seconds=50.0, away_seconds=1.0)
    ana, bob = await bench.joined("ana"), await bench.joined("bob")
    ana.write(add())
    await ana.send()
    await ana.until(lambda: not ana.replica.undecided)
    ana.drop()
    await until(lambda: "ana" not in bench.manager._queues["r"]._readers)
    assert list(bench.store.inner._rooms["r"].marks) == ["ana"]
    bench.clock.now += 60.0
    bob.connection.heard = bench.clock.now
    await until(lambda: not bench.store.inner._rooms["r"].marks)
