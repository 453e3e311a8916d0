"""Whose a lock is: of each thread and each task its own, in whatever object it is taken, and ended with them."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import traitlets as t

from sharedwidgets import SharedState, connect, lock, order
from sharedwidgets.errors import InvalidValue, Locked, LockLost, LockOrder, LockTimeout, SharedWidgetsError, WrongThread
from sharedwidgets.links import Session
from sharedwidgets_server.testing import LiveServer
from support.scripts import eventually, settled
from support.shops import GROUPS, Gate, Link, Patient, Shop, beside


class Account(SharedState, delivery="thread"):
    n = t.Int(0)


@pytest.fixture
def account(here: Link) -> Account:
    """Of the same process as ``one``; its name comes before that of a shop."""
    made: Account = here(Account())
    return made


def of(work: Callable[[], object]) -> object:
    """What it gives, or what it raises."""
    try:
        return work()
    except Exception as error:
        return type(error)


def test_what_another_thread_holds_is_not_held_here_and_not_given_back(one: Shop, two: Shop) -> None:
    held = one.lock().acquire()
    fence = held.fence
    assert beside(lambda: [of(item) for item in (lambda: held.held, lambda: held.fence, lambda: held.lease_left)]) == [
        False,
        0,
        0,
    ]
    assert beside(lambda: [of(held.check), of(held.release)]) == [LockLost, LockLost]
    assert (held.held, held.fence) == (True, fence)
    one.stock = 1
    settled(one, two)
    assert two.locked_by is not None
    held.release()
    assert (of(held.check), of(held.release)) == (LockLost, LockLost)
    eventually(lambda: two.locked_by is None)


@pytest.mark.asyncio
async def test_one_object_is_the_lock_of_each_task_that_takes_it(one: Shop, two: Shop) -> None:
    shared = one.lock(timeout=20)

    async def add() -> None:
        for _ in range(5):
            async with shared:
                assert shared.held
                before = one.stock
                await asyncio.sleep(0)
                one.stock = before + 1

    await asyncio.gather(*(add() for _ in range(4)))
    assert not shared.held
    await asyncio.to_thread(settled, one, two)
    assert (one.stock, two.stock) == (20, 20)


@pytest.mark.asyncio
async def test_what_a_task_took_ends_with_it_and_whoever_gives_it_back_is_told(one: Shop, two: Shop) -> None:
    taken = one.lock()
    await asyncio.create_task(taken.acquire_async())
    assert not taken.held
    await asyncio.to_thread(eventually, lambda: two.locked_by is None)
    two.stock = 7
    await asyncio.to_thread(two.flush)
    with pytest.raises(LockLost, match="what a task has taken ends with it"):
        await taken.release_async()


@pytest.mark.parametrize("how", ["assignment", *GROUPS, "a sum in a transaction"])
def test_g6_what_another_thread_may_not_write_is_not_read_under_the_lock(
    one: Shop, two: Shop, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Not even in the moment before it is refused."""
    assert one._bridge is not None
    connection, gate, refused = one._bridge.connection, Gate(), list[type[BaseException]]()
    wait = connection.wait_for_room

    def stop(session: Any) -> None:
        if threading.current_thread() is stranger:
            gate.stop()
        wait(session)

    def write() -> None:
        try:
            if how == "a sum in a transaction":
                with one.transaction():
                    one.increment("stock", 100)
                    gate.stop()
            with getattr(one, how)() if how in GROUPS else nullcontext():
                one.stock = 100
                gate.stop()
        except SharedWidgetsError as error:
            refused.append(type(error))
            gate.stop()

    stranger = threading.Thread(target=write)
    monkeypatch.setattr(connection, "wait_for_room", stop)
    with one.lock():
        stranger.start()
        assert gate.reached()
        one.stock += 1
        gate.open()
        stranger.join(10)
    settled(one, two)
    assert (refused, one.stock, two.stock) == ([Locked], 1, 1)


def test_g6_a_lock_is_held_once_nobody_of_the_process_is_about_to_assign(
    one: Shop, two: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert one._bridge is not None
    connection, gate, refused, seen = one._bridge.connection, Gate(), list[type[BaseException]](), list[int]()
    wait = connection.wait_for_room

    def stop(session: Any) -> None:
        if threading.current_thread() is stranger:
            gate.stop()
        wait(session)

    def write() -> None:
        try:
            one.stock = 100
        except Locked as error:
            refused.append(type(error))

    def hold() -> None:
        with one.lock():
            seen.append(one.stock)
            one.stock += 1

    stranger, holder = threading.Thread(target=write), threading.Thread(target=hold)
    monkeypatch.setattr(connection, "wait_for_room", stop)
    stranger.start()
    assert gate.reached()
    holder.start()
    eventually(lambda: two.locked_by is not None)
    assert seen == []
    gate.open()
    for thread in (stranger, holder):
        thread.join(10)
    settled(one, two)
    assert (seen, refused, one.stock, two.stock) == ([0], [Locked], 1, 1)


def test_an_observer_that_locks_in_an_assignment_of_its_own_keeps_nobody_from_the_lock(one: Shop, two: Shop) -> None:
    """What it reacts to is written, though the assignment has not returned."""
    gate, ended = Gate(), list[str]()

    def react(change: Any) -> None:
        gate.stop()
        with one.lock(timeout=10):
            one.sold += 2
        ended.append("reaction")

    def hold() -> None:
        with one.lock(timeout=10):
            gate.open()
            eventually(lambda: len(one.lock().waiters) == 1)
            one.price = 1.0
        ended.append("holder")

    one.observe(react, "stock")
    writer, holder = threading.Thread(target=lambda: setattr(one, "stock", 1)), threading.Thread(target=hold)
    writer.start()
    assert gate.reached()
    holder.start()
    for thread in (holder, writer):
        thread.join(10)
    settled(one, two)
    assert (ended, two.stock, two.sold, two.price) == (["holder", "reaction"], 1, 2, 1.0)


# --- several at once


def test_several_locks_are_taken_again_as_one_is(one: Shop, two: Shop, account: Account) -> None:
    both = lock(one, account)
    with both:
        with both:
            one.stock = 1
        assert (one.lock().held, account.lock().held) == (True, True)
        # A thread of its own waits for its own.
        assert beside(lambda: [one.lock().try_acquire(), account.lock().try_acquire()]) == [False, False]
    eventually(lambda: two.locked_by is None and account.locked_by is None)
    assert not any(item.held for item in (one.lock(), account.lock()))


@pytest.mark.asyncio
async def test_several_locks_are_taken_by_a_task(one: Shop, two: Shop, account: Account) -> None:
    both = lock(one, account)
    async with both:
        async with both:
            pass
        assert (one.lock().held, account.lock().held) == (True, True)
        await asyncio.to_thread(eventually, lambda: two.locked_by is not None)
        with pytest.raises(Locked):
            two.stock = 1
    await asyncio.to_thread(eventually, lambda: two.locked_by is None and account.locked_by is None)


@pytest.mark.parametrize("how", ["with", "async with"])
def test_where_one_of_several_does_not_come_none_is_kept(one: Shop, two: Shop, account: Account, how: str) -> None:
    async def take() -> None:
        async with lock(one, account, timeout=0.3):
            raise AssertionError

    holder, gate = two.lock(), Gate()
    thread = threading.Thread(target=lambda: [holder.acquire(), gate.stop(), holder.release()])
    thread.start()
    assert gate.reached()
    with pytest.raises(LockTimeout):
        if how == "with":
            lock(one, account, timeout=0.3).__enter__()
        asyncio.run(take())
    gate.open()
    thread.join(10)
    eventually(lambda: account.locked_by is None)
    with lock(one, account):
        assert account.lock().held


# --- what waits for its turn


def test_who_waits_for_a_turn_keeps_to_the_order_of_locks(here: Link, account: Account, two: Shop) -> None:
    """Or two who wait for each other do so until their time is over."""

    class Waiting(SharedState, state_name="Account", delivery="thread", on_locked="wait"):
        n = t.Int(0)

    waiting, patient = here(Waiting()), here(Patient())
    other = account.lock()
    gate = Gate()
    holder = threading.Thread(target=lambda: [other.acquire(), gate.stop(), other.release()])
    holder.start()
    assert gate.reached()
    with patient.lock():
        eventually(lambda: waiting.locked_by is not None)
        with pytest.raises(LockOrder, match=r"'Account'.*comes before 'Shop'"):
            waiting.n = 1
        with pytest.raises(LockOrder), waiting.transaction():
            waiting.n = 1
        with pytest.raises(LockOrder):
            waiting.increment("n")
    assert waiting.n == 0
    gate.open()
    holder.join(10)
    with waiting.lock():
        patient.stock = 5
    settled(patient, two)
    assert two.stock == 5


# --- who has ended


def of_a_thread(state: Shop) -> None:
    thread = threading.Thread(target=lambda: state.lock().acquire())
    thread.start()
    thread.join(10)


def of_a_task(state: Shop) -> None:
    asyncio.run(state.lock().acquire_async())


@pytest.mark.parametrize("take", [of_a_thread, of_a_task])
@pytest.mark.parametrize("linked", [False, True])
def test_the_lock_of_who_has_ended_is_free(
    take: Callable[[Shop], None], linked: bool, here: Link, caplog: pytest.LogCaptureFixture
) -> None:
    state = here(Shop()) if linked else Shop()
    with caplog.at_level(logging.WARNING, "sharedwidgets"):
        take(state)
        with state.lock(timeout=10) as held:
            assert held.held
            assert not beside(state.lock().try_acquire)
    assert beside(state.lock().try_acquire)
    assert "has ended and did not give it back" in caplog.text


def test_nothing_is_kept_of_those_who_have_ended(one: Shop) -> None:
    """They may be as many as a process makes tasks."""
    for _ in range(3):
        of_a_task(one)
        eventually(lambda: one.locked_by is None)
    # Had, and given back as it could not be shown.
    with pytest.MonkeyPatch.context() as patch, pytest.raises(LockTimeout):
        patch.setattr(Session, "settle", lambda *_: False)
        one.lock(timeout=1).acquire()
    with one.lock():
        assert [len(items) for items in order._taken.values()] == [1]
    assert order._taken == {}


# --- one loop


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.asyncio
async def test_who_would_wait_for_another_task_of_its_own_loop_is_told_so_at_once(linked: bool, here: Link) -> None:
    """That task could never give it back while this one blocks the loop."""
    state = await here_async(here, Shop()) if linked else Shop()
    taken, done = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with state.lock():
            taken.set()
            await done.wait()

    holder = asyncio.create_task(hold())
    await taken.wait()
    with pytest.raises(WrongThread, match="async with"):
        state.lock(timeout=30).acquire()
    # To look and to await it is no matter, and another thread may wait for it.
    assert not state.lock().try_acquire()
    waiting = asyncio.create_task(asyncio.to_thread(lambda: state.lock(timeout=20).acquire().release()))
    after = asyncio.create_task(state.lock(timeout=20).acquire_async())
    await asyncio.sleep(0)
    done.set()
    await asyncio.gather(holder, waiting, after)


async def here_async(here: Link, state: SharedState) -> Any:
    return await asyncio.to_thread(here, state)


# --- to be seen


def test_holder_and_waiters_are_seen_by_a_member_without_a_class(one: Shop, two: Shop, server: LiveServer, token: str) -> None:
    with connect(token, server.url, server.token) as room:
        shop = room["Shop"]
        assert (shop.locked_by, room.lock("fit").holder) == (None, None)
        with lock(one, one.room.lock("fit")):  # type: ignore[union-attr]
            me = one.linked_from[0].id
            eventually(lambda: shop.locked_by is not None and shop.locked_by.id == me)
            eventually(lambda: room.lock("fit").holder is not None)
            assert room.lock("fit").holder == shop.locked_by
            with pytest.raises(Locked):
                shop["stock"] = 1
            with pytest.raises(LockTimeout):
                shop.lock(timeout=0.2).acquire()
            waiter = threading.Thread(target=lambda: shop.lock().acquire().release())
            waiter.start()
            eventually(lambda: len(one.lock().waiters) == 1)
        waiter.join(10)
        with shop.lock() as held:
            assert held.holder == shop.locked_by
            shop["stock"] = 3
            eventually(lambda: one.locked_by is not None)
            with pytest.raises(Locked):
                one.stock = 4
        with lock(shop, room.lock("fit")):
            shop["stock"] += 1
    settled(one, two)
    assert two.stock == 4


# --- what cannot be


@pytest.mark.parametrize("seconds", [float("nan"), -1.0])
def test_a_timeout_is_a_number_of_seconds(one: Shop, seconds: float) -> None:
    for wrong in (lambda: one.lock(timeout=seconds), lambda: one.lock().acquire(timeout=seconds)):
        with pytest.raises(ValueError, match="a timeout is a number of seconds"):
            wrong()


def test_one_may_wait_for_ever(one: Shop, two: Shop) -> None:
    held = two.lock().acquire()
    waiter = threading.Thread(target=lambda: one.lock(timeout=float("inf")).acquire().release())
    waiter.start()
    eventually(lambda: len(held.waiters) == 1)
    held.release()
    waiter.join(10)
    assert not waiter.is_alive()


def test_what_has_no_lock_is_refused_by_name(one: Shop) -> None:
    room = one.room
    assert room is not None
    for thing, named in ((Shop(), "Shop"), (Shop().lock(), "LocalLock"), (1, "int"), (room, "Room")):
        with pytest.raises(TypeError, match=f"lock.. takes states that are linked.*not {named}"):
            lock(one, thing)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the name of a lock is text, not int"):
        room.lock(3)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue), suppress(TypeError):
        room.lock("")
