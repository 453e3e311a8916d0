"""Who has a lock: threads and tasks that share one object of it, end without giving it back, or block each other.

"One" and "two" are two members in this process, two sockets of two boots.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import traitlets as t

import sharedwidgets.connection
from sharedwidgets import Lock, Room, SharedState, background, connect, lock, order
from sharedwidgets.errors import Locked, LockLost, LockOrder, LockTimeout, WrongThread
from sharedwidgets.turns import TURN_SECONDS
from sharedwidgets_server.testing import LiveServer
from support.kernels import PYTHONS, Kernel, specs
from support.scripts import eventually, seq


class Counter(SharedState, delivery="thread"):
    count = t.Int(0)

    @background
    async def hold(self, taken: threading.Event, until: threading.Event) -> None:
        async with self.lock():
            taken.set()
            await asyncio.to_thread(until.wait, 20)

    @background
    async def block(self) -> None:
        with self.lock():
            self.count += 1


class Patient(SharedState, state_name="Counter", delivery="thread", on_locked="wait"):
    count = t.Int(0)


class Other(SharedState, delivery="thread"):
    n = t.Int(0)


Link = Callable[[SharedState], Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One that also runs kernels."""
    with LiveServer(tmp_path_factory.mktemp("server")) as running:
        specs(running)
        yield running
        for connection in list(sharedwidgets.connection._shared.values()):
            connection.close()


@pytest.fixture
def one(here: Link) -> Counter:
    counter: Counter = here(Counter())
    return counter


@pytest.fixture
def two(there: Link) -> Counter:
    counter: Counter = there(Counter())
    return counter


@pytest.fixture
def room(server: LiveServer, token: str) -> Iterator[Room]:
    """A handle of the room without a class, on a connection of its own."""
    with connect(token, server.url, server.token, delivery="thread") as handle:
        yield handle


@contextmanager
def held_elsewhere(state: SharedState) -> Iterator[Lock]:
    """Another thread holds the lock of a state."""
    taken: Future[Lock] = Future()
    until = threading.Event()

    def hold() -> None:
        with state.lock() as held:
            assert isinstance(held, Lock)
            taken.set_result(held)
            until.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield taken.result(10)
    finally:
        until.set()
        thread.join(20)


def in_thread(task: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(task).result(20)


# --- each gives back its own


def test_another_thread_neither_has_a_lock_nor_gives_it_back(one: Counter, two: Counter) -> None:
    held = one.lock()
    with held:
        assert in_thread(lambda: (held.held, held.fence, held.lease_left)) == (False, 0, 0.0)
        for use in (held.check, held.release, lambda: held.on_lost(print)):  # type: ignore[arg-type]
            with pytest.raises(LockLost, match=r"this thread or task does not hold the lock.*acquire\(\) it here"):
                in_thread(use)
        held.check()
        one.count = 1
    assert not held.held
    with pytest.raises(LockLost, match="does not hold"):
        held.release()
    with two.lock(timeout=5):
        assert two.count == 1


def test_one_object_serves_three_threads_at_once(server: LiveServer, one: Counter, token: str) -> None:
    held = one.lock()

    def work() -> None:
        for _ in range(10):
            with held:
                before = one.count
                held.check()
                one.count = before + 1

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work) for _ in range(3)]:
            done.result(60)
    assert (one.count, one.locked_by) == (30, None)
    assert seq(server, token) == 1 + 3 * 30


@pytest.mark.asyncio
async def test_one_object_serves_several_tasks(one: Counter) -> None:
    held = one.lock()

    async def work() -> None:
        for _ in range(10):
            async with held:
                before = one.count
                await asyncio.sleep(0)
                held.check()
                one.count = before + 1

    await asyncio.wait_for(asyncio.gather(*(work() for _ in range(3))), 60)
    assert (one.count, held.held) == (30, False)


@pytest.mark.asyncio
async def test_what_a_task_has_taken_is_not_of_the_one_that_awaited_it(one: Counter, caplog: pytest.LogCaptureFixture) -> None:
    """Before Python 3.12 `asyncio.wait_for` makes such a task."""
    held = one.lock()
    await asyncio.get_running_loop().create_task(held.acquire_async())
    assert (held.held, held.fence) == (False, 0)
    for use in (held.check, lambda: held.on_lost(print)):  # type: ignore[arg-type]
        with pytest.raises(LockLost, match="what a task has taken ends with it"):
            use()
    await asyncio.to_thread(eventually, lambda: one.locked_by is None)
    with pytest.raises(LockLost, match="what a task has taken ends with it"):
        await held.release_async()
    assert [record.getMessage() for record in caplog.records] == [
        f"whoever held the lock 'Counter' of {one.room.token!r} has ended and did not give it back"  # type: ignore[union-attr]
    ]
    async with held:
        held.check()


@pytest.mark.asyncio
async def test_h23_a_task_that_is_cancelled_gives_it_back_itself(
    one: Counter, two: Counter, caplog: pytest.LogCaptureFixture
) -> None:
    taken = asyncio.Event()
    left: list[bool] = []

    async def work() -> None:
        held = one.lock()
        try:
            async with held:
                one.count = 1
                taken.set()
                await asyncio.sleep(60)
        finally:
            left.append(held.held)

    task = asyncio.get_running_loop().create_task(work())
    await asyncio.wait_for(taken.wait(), 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with two.lock(timeout=5):
        assert two.count == 1
    # And not the thread that looks for owners who have ended.
    assert (left, [record.getMessage() for record in caplog.records]) == ([False], [])


@pytest.mark.parametrize("where", ["asked", "granted", "again"])
def test_h23_an_interrupt_between_asking_and_waiting_leaves_no_claim(
    one: Counter, two: Counter, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The I/O thread may have asked for it, and got it, before the thread that wants it goes on."""
    mine = one.lock()
    connection = mine._connection

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        # What gives it back goes through.
        patch.undo()
        connection.wake()
        if where == "asked":
            eventually(lambda: len(two.lock().waiters) == 1)
        else:
            eventually(lambda: two.locked_by is not None)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if where == "asked":
            with held_elsewhere(two):
                patch.setattr(type(connection), "wake", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    mine.acquire()
                eventually(lambda: two.lock().waiters == ())
        elif where == "granted":
            patch.setattr(order, "note", interrupted)
            with pytest.raises(KeyboardInterrupt):
                mine.acquire()
        else:
            with mine:
                patch.setattr(type(connection), "wake", interrupted)
                patch.setattr(order, "note", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    mine.acquire()
                mine.check()
    assert not mine.held
    with two.lock(timeout=5):
        two.count = 1
    eventually(lambda: (one.count, one.locked_by) == (1, None))


# --- several at once


@pytest.fixture
def pair(one: Counter, here: Link) -> tuple[Counter, Other]:
    return one, here(Other())


def test_several_at_once_are_taken_again_and_end_with_the_outermost(pair: tuple[Counter, Other]) -> None:
    both = lock(*pair)
    with both:
        with both:
            assert [state.lock().held for state in pair] == [True, True]
        assert [state.lock().held for state in pair] == [True, True]
    assert [state.locked_by for state in pair] == [None, None]
    with pytest.raises(KeyboardInterrupt), both, both:
        raise KeyboardInterrupt
    eventually(lambda: [state.locked_by for state in pair] == [None, None])


@pytest.mark.asyncio
async def test_several_at_once_by_a_task(pair: tuple[Counter, Other]) -> None:
    both = lock(*pair)
    async with both:
        assert [state.lock().held for state in pair] == [True, True]
        async with both:
            pass
        assert [state.lock().held for state in pair] == [True, True]
    assert [state.locked_by for state in pair] == [None, None]


def test_one_object_of_several_locks_serves_several_threads(pair: tuple[Counter, Other]) -> None:
    both = lock(*pair)

    def work() -> None:
        for _ in range(10):
            with both:
                pair[0].count += 1
                pair[1].n += 1

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work) for _ in range(3)]:
            done.result(60)
    assert (pair[0].count, pair[1].n) == (30, 30)
    assert [state.locked_by for state in pair] == [None, None]


@pytest.mark.parametrize("how", ["thread", "task"])
def test_the_first_is_given_back_when_the_second_cannot_be_had(pair: tuple[Counter, Other], there: Link, how: str) -> None:
    both = lock(*pair, timeout=0.3)

    async def enter() -> None:
        async with both:
            raise AssertionError

    with held_elsewhere(there(Other())):
        with pytest.raises(LockTimeout, match="'Other'"):
            if how == "task":
                asyncio.run(enter())
            with both:
                raise AssertionError
        # By its own hand, and not for that its owner has ended.
        assert [pair[0].lock().held, pair[0].locked_by] == [False, None]


# --- the order


def test_h28_a_class_that_waits_keeps_to_the_order(pair: tuple[Counter, Other], there: Link) -> None:
    """T1 holds Other and writes Counter, T2 holds Counter and writes Other: one of the two is told at once."""
    patient, behind = there(Patient()), there(Other())
    with held_elsewhere(pair[0]) as held, behind.lock():
        eventually(lambda: patient.locked_by is not None)
        began = time.monotonic()
        with pytest.raises(LockOrder, match=r"'Counter'.*comes before 'Other'.*lock\(a, b\)"):
            patient.count = 1
        with pytest.raises(LockOrder):
            patient.increment("count")
        with pytest.raises(LockOrder):
            patient.increment("count", max=9)
        with pytest.raises(LockOrder), patient.transaction():
            patient.count = 1
        assert time.monotonic() - began < TURN_SECONDS
        assert (patient.count, held.waiters) == (0, ())


@pytest.mark.asyncio
async def test_h28_a_task_that_waits_keeps_to_the_order(pair: tuple[Counter, Other], there: Link) -> None:
    patient, behind = there(Patient()), there(Other())
    with held_elsewhere(pair[0]) as held:
        await asyncio.to_thread(eventually, lambda: patient.locked_by is not None)
        async with behind.lock():
            with pytest.raises(LockOrder, match=r"'Counter'.*comes before 'Other'"):
                await patient.increment_async("count")
        assert (patient.count, held.waiters) == (0, ())


def test_a_class_that_waits_takes_its_turn_within_the_order(pair: tuple[Counter, Other], there: Link) -> None:
    class Waits(SharedState, state_name="Other", delivery="thread", on_locked="wait"):
        n = t.Int(0)

    far, waits = there(Counter()), there(Waits())
    with ThreadPoolExecutor(1) as pool:
        with pair[1].lock() as held:
            eventually(lambda: waits.locked_by is not None)

            def write() -> None:
                with far.lock():
                    waits.n = 5

            done = pool.submit(write)
            eventually(lambda: len(held.waiters) == 1)
        done.result(10)
    assert waits.n == 5


def test_a_turn_is_waited_for_five_seconds(one: Counter, there: Link) -> None:
    patient = there(Patient())
    with one.lock():
        eventually(lambda: patient.locked_by is not None)
        began = time.monotonic()
        with pytest.raises(LockTimeout, match="within 5 s"):
            patient.count = 1
        assert 5.0 <= time.monotonic() - began < 15.0


# --- owners that end


@pytest.mark.parametrize("how", ["thread", "task"])
def test_a_lock_of_a_private_state_whose_owner_has_ended_is_free(how: str, caplog: pytest.LogCaptureFixture) -> None:
    state = Counter()

    async def take() -> None:
        await asyncio.get_running_loop().create_task(state.lock().acquire_async())

    if how == "thread":
        thread = threading.Thread(target=lambda: state.lock().acquire())
        thread.start()
        thread.join(10)
    else:
        asyncio.run(take())
    with state.lock(timeout=3) as held:
        assert in_thread(lambda: state.lock().try_acquire()) is False
        held.check()
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [
        (logging.WARNING, "whoever held the lock of a state has ended and did not give it back")
    ]


def test_who_waits_for_a_private_lock_notices_that_its_owner_ends() -> None:
    state = Counter()
    taken, end = threading.Event(), threading.Event()

    def take() -> None:
        state.lock().acquire()
        taken.set()
        end.wait(10)

    thread = threading.Thread(target=take)
    thread.start()
    assert taken.wait(10)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: state.lock(timeout=10).acquire().held)
        end.set()
        assert waiting.result(20) is True
    thread.join(10)


# --- owners of one thread


@pytest.mark.asyncio
@pytest.mark.parametrize("linked", [True, False])
async def test_who_blocks_the_thread_of_the_holder_is_told_at_once(one: Counter, linked: bool) -> None:
    state = one if linked else Counter()
    async with state.lock():

        async def block() -> None:
            # It takes no turn, and does not block.
            assert state.lock().try_acquire() is False
            with pytest.raises(LockTimeout):
                state.lock(timeout=0).acquire()
            with pytest.raises(WrongThread, match=r"another task of this thread's loop has the lock.*async with"):
                state.lock(timeout=30).acquire()

        began = time.monotonic()
        await asyncio.get_running_loop().create_task(block())
        assert time.monotonic() - began < 10
        # Its own it may take again.
        with state.lock():
            state.count = 1
        # Another thread may wait as long as it likes.
        waiting = asyncio.to_thread(lambda: state.lock(timeout=0.2).acquire())
        with pytest.raises(LockTimeout):
            await waiting
    assert state.count == 1


@pytest.mark.asyncio
async def test_who_would_wait_behind_a_task_of_its_thread_is_told_too(one: Counter, two: Counter) -> None:
    with_it = asyncio.Event()
    holder = two.lock()
    await holder.acquire_async()

    async def wait() -> None:
        async with one.lock():
            with_it.set()

    waiting = asyncio.get_running_loop().create_task(wait())
    await asyncio.to_thread(eventually, lambda: len(one.lock().waiters) == 1)
    with pytest.raises(WrongThread, match="or waits for it"):
        one.lock(timeout=30).acquire()
    await holder.release_async()
    await asyncio.wait_for(waiting, 10)
    assert with_it.is_set()
    # What was given back stands in nobody's way.
    with one.lock(timeout=5):
        one.count = 1


@pytest.mark.asyncio
async def test_a_class_that_waits_does_not_block_the_thread_of_the_holder(here: Link) -> None:
    patient = here(Patient())
    async with patient.lock():

        async def write() -> None:
            with pytest.raises(WrongThread, match="async with"):
                patient.count = 5

        await asyncio.get_running_loop().create_task(write())
    assert patient.count == 0


def test_background_methods_that_block_each_other_are_told(one: Counter) -> None:
    taken, until = threading.Event(), threading.Event()
    holds = one.hold(taken, until)
    assert taken.wait(10)
    with pytest.raises(WrongThread, match="another task of this thread's loop has the lock"):
        one.block().result(20)
    until.set()
    holds.result(10)
    one.block().result(20)
    assert one.count == 1


@pytest.mark.parametrize("kind", PYTHONS)
def test_a_cell_is_told_that_a_task_of_its_kernel_holds_it(server: LiveServer, token: str, kind: str) -> None:
    with Kernel(server, kind) as kernel:
        kernel.run(
            "import asyncio\nimport traitlets as t\nfrom sharedwidgets import SharedState\nfrom sharedwidgets.errors import *\n"
            f"class Counter(SharedState):\n    count = t.Int(0)\nc = Counter().link_to({token!r})\n"
            "async def hold():\n    async with c.lock():\n        taken.set()\n        await free.wait()\n"
            "taken, free = asyncio.Event(), asyncio.Event()\ntask = asyncio.get_running_loop().create_task(hold())\n"
            "await taken.wait()"
        )
        kernel.run(
            "told = None\ntry:\n    with c.lock(timeout=30): pass\nexcept WrongThread as error:\n    told = str(error)", 15
        )
        assert "async with" in kernel.value("told")
        kernel.run("free.set()\nawait task\nwith c.lock(timeout=5): c.count += 1")
        # The cells themselves are one owner.
        kernel.run("held = c.lock()\nawait held.acquire_async()")
        kernel.run("with c.lock(timeout=5): c.count += 1\nheld.release()")
        assert kernel.value("[c.count, c.locked_by]") == [2, None]


# --- who holds it


def test_a_member_without_a_class_sees_who_holds_and_takes_a_lock(one: Counter, room: Room) -> None:
    state = room["Counter"]
    assert (state.locked_by, state.lock().holder, one.lock().holder) == (None, None, None)
    with one.lock() as held:
        eventually(lambda: state.locked_by is not None)
        assert state.locked_by == state.lock().holder == held.holder == one.locked_by
        before = held.holder
        with pytest.raises(Locked):
            state["count"] = 5
        with pytest.raises(LockTimeout):
            state.lock(timeout=0.2).acquire()
    with state.lock(timeout=5, lease=20) as mine:
        eventually(lambda: one.locked_by is not None)
        assert mine.holder == state.locked_by == one.locked_by != before
        assert 15 < mine.lease_left <= 20
        with pytest.raises(Locked):
            one.count = 7
        state["count"] = 1
        with lock(state):
            state.increment("count")
    eventually(lambda: (one.count, one.locked_by) == (2, None))
    room.close()
    with pytest.raises(RuntimeError, match=r"connect\(\) again"):
        state.lock()


def test_the_holder_of_a_named_lock_is_told(one: Counter, room: Room) -> None:
    near = one.room.lock("fit")  # type: ignore[union-attr]
    with room.lock("fit") as held:
        eventually(lambda: near.holder is not None)
        assert near.holder == held.holder
        assert near.holder.id in {member.id for member in room.members}  # type: ignore[union-attr]
    eventually(lambda: near.holder is None)
    assert Counter().lock().holder is None


# --- what is no lock


def test_a_wait_for_ever_and_what_is_no_number(one: Counter) -> None:
    for state in (one, Counter()):
        for seconds in (float("inf"), 1e300):
            with state.lock(timeout=seconds) as held:
                assert held.held
            state.lock().acquire(seconds).release()
            asyncio.run(_take(state, seconds))
        for use in (state.lock, state.lock().acquire, lambda seconds: asyncio.run(_take(state, seconds))):  # noqa: B023
            with pytest.raises(ValueError, match="a timeout is a number of seconds, 0 or more, not nan"):
                use(float("nan"))  # type: ignore[operator]
            with pytest.raises(TypeError, match="a timeout is a number of seconds, not '5'"):
                use("5")  # type: ignore[operator]
        assert not state.lock().held


async def _take(state: Counter, seconds: float) -> None:
    held = state.lock()
    await held.acquire_async(seconds)
    await held.release_async()


def test_what_is_no_lock_is_named(one: Counter, room: Room) -> None:
    for thing in (Counter(), Counter().lock(), 1, room):
        with pytest.raises(TypeError, match=f"states that are linked, and locks of rooms .*not {type(thing).__name__};"):
            lock(one, thing)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the name of a lock is text, not int"):
        room.lock(3)  # type: ignore[arg-type]
    near = one.room
    assert near is not None
    with lock(one, near["Counter"], one.lock(), near.lock("fit")):
        assert (one.lock().held, near.lock("fit").held) == (True, True)
    assert (one.locked_by, near.lock("fit").holder) == (None, None)
