"""Locks of real members: threads, tasks, processes and kernels that contend for one state.

"One" and "two" are two members in this process, two sockets of two boots.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import traitlets as t

import sharedwidgets.connection
from sharedwidgets import SharedState, connect, lock
from sharedwidgets.core.protocol import LockImage, LockName, Snapshot
from sharedwidgets.core.replica import News, Replica
from sharedwidgets.delivery import Delivery
from sharedwidgets.errors import Locked, LockLost, LockOrder, LockTimeout, RoomGone
from sharedwidgets.leases import Leases
from sharedwidgets_server.testing import LiveServer
from support.faults import Faults
from support.kernels import PYTHONS, Kernel, specs
from support.rest import ask, room_url
from support.scripts import Heard, eventually, seq
from support.stalling import Stalling


class Counter(SharedState, delivery="thread"):
    count = t.Int(0)
    other = t.Int(0)
    tags = t.Dict()


class Patient(SharedState, state_name="Counter", delivery="thread", on_locked="wait"):
    count = t.Int(0)
    other = t.Int(0)
    tags = t.Dict()


class Other(SharedState, delivery="thread"):
    n = t.Int(0)


Link = Callable[..., Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One whose leases are short."""
    limits = "{'lease_seconds': 1.5, 'heartbeat_seconds': 0.5, 'dead_seconds': 30.0}"
    with LiveServer(tmp_path_factory.mktemp("server"), f"--SharedWidgetsApp.limits={limits}") as running:
        specs(running)
        yield running
        for connection in list(sharedwidgets.connection._shared.values()):
            connection.close()


@pytest.fixture
def one(server: LiveServer, token: str) -> Counter:
    return Counter().link_to(token, server=server.url, credential=server.credential)


@pytest.fixture
def two(server: LiveServer, token: str) -> Counter:
    return Counter().link_to(token, server=server.url, credential=server.token)


def in_thread(task: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(task).result(20)


# --- what it is for


def test_no_increment_of_any_owner_is_lost(server: LiveServer, one: Counter, two: Counter, token: str) -> None:
    """G6: under the lock the trait shows everything that came before."""

    def work(state: Counter) -> None:
        for _ in range(25):
            with state.lock() as held:
                before = state.count
                state.count = before + 1
                assert held.fence > 0

    threads = [threading.Thread(target=work, args=(state,)) for state in (one, two, one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for state in (one, two):
        # The end of the last lock comes behind its last write, and to the other member later.
        assert state.wait_until(lambda state=state: state.locked_by is None and state.count == 100, 10)  # type: ignore[misc]
    # Made, and of each round a grant, a write and an end.
    assert seq(server, token) == 1 + 3 * 100


@pytest.mark.asyncio
async def test_tasks_of_one_loop_are_owners_of_their_own(one: Counter, two: Counter) -> None:
    async def work(state: Counter) -> None:
        for _ in range(10):
            async with state.lock():
                before = state.count
                await asyncio.sleep(0)
                state.count = before + 1

    await asyncio.wait_for(asyncio.gather(work(one), work(one), work(two), work(two)), 60)
    eventually(lambda: one.count == two.count == 40)


def test_others_are_refused_meanwhile_and_told_who_holds_it(server: LiveServer, one: Counter, two: Counter, token: str) -> None:
    refused = Heard(two, type="rejected")
    with one.lock() as held:
        assert two.wait_until(lambda: two.locked_by is not None, 10)
        assert two.locked_by == one.locked_by == next(item for item in two.linked_from if item.id == one.locked_by.id)  # type: ignore[union-attr]
        with pytest.raises(Locked, match=r"Counter is locked by script .*lock\(\)") as raised:
            two.count = 5
        assert (raised.value.room, raised.value.state, two.count) == (token, "Counter", 0)
        # Another thread of the very process that holds it is somebody else as well (H22).
        with pytest.raises(Locked):
            in_thread(lambda: setattr(one, "count", 7))
        one.count = 1
        assert held.held
        answer = ask(room_url(server, "rooms", token, "states", "Counter"), "PATCH", {"count": 9}, headers=server.headers)
        assert (answer.status, answer.body["code"]) == (409, "locked")
        assert "script" in answer.body["message"]
    assert two.wait_until(lambda: two.locked_by is None, 10)
    two.count += 1
    two.flush()
    assert two.wait_until(lambda: two.count == 2, 10)
    assert refused.changes == []


def test_a_write_that_did_not_know_of_the_lock_is_undone(one: Counter, two: Counter) -> None:
    """G4: whoever had not heard of it is refused by the server, and told."""
    refused = Heard(two, type="rejected")
    bridge = two._bridge
    assert bridge is not None
    with one.lock():
        assert two.wait_until(lambda: two.locked_by is not None, 10)
        with bridge.connection.lock:
            bridge.session.replica.locks.clear()
        two.count = 5
        event = refused.wait()
    assert (event.problem.code, event.name, two.count) == ("locked", "count", 0)


def test_a_patient_class_takes_its_turn(server: LiveServer, one: Counter, token: str) -> None:
    patient = Patient().link_to(token, server=server.url, credential=server.token)
    with one.lock():
        assert patient.wait_until(lambda: patient.locked_by is not None, 10)
        thread = threading.Thread(target=lambda: setattr(patient, "count", 5))
        thread.start()
        eventually(lambda: one.lock().waiters)
        assert one.count == 0
    thread.join(10)
    assert one.wait_until(lambda: one.count == 5, 10)


def test_an_unlinked_state_has_a_lock_of_its_own() -> None:
    state = Counter()

    def work() -> None:
        for _ in range(200):
            with state.lock(), state.lock():
                before = state.count
                time.sleep(0)
                state.count = before + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (state.count, state.locked_by) == (800, None)
    with state.lock():
        assert in_thread(lambda: state.lock().try_acquire()) is False
        assert in_thread(lambda: asyncio.run(state.lock().try_acquire_async())) is False
        with pytest.raises(LockTimeout):
            in_thread(lambda: state.lock(timeout=0.05).acquire())
        with pytest.raises(LockLost):
            in_thread(lambda: state.lock().release())


@pytest.mark.asyncio
async def test_an_unlinked_lock_has_the_same_methods() -> None:
    held = Counter().lock()
    assert await held.acquire_async(1) is held
    assert (held.held, held.waiters, held.fence) == (True, (), 0)
    await held.release_async()
    assert not held.held


@pytest.mark.asyncio
async def test_an_unlinked_lock_tells_tasks_apart() -> None:
    state = Counter()

    async def work() -> None:
        for _ in range(20):
            async with state.lock():
                before = state.count
                await asyncio.sleep(0)
                state.count = before + 1

    await asyncio.gather(*(work() for _ in range(4)))
    assert state.count == 80


# --- taking it


def test_it_is_taken_again_by_its_owner_and_ends_with_the_outermost(server: LiveServer, one: Counter, token: str) -> None:
    with one.lock() as outer:
        with one.lock() as inner:
            assert inner.fence == outer.fence
            one.count += 1
        assert outer.held
        one.count += 1
    assert (one.count, one.locked_by) == (2, None)
    assert not outer.held
    assert (outer.fence, outer.lease_left) == (0, 0.0)


def test_the_very_same_lock_is_taken_again(one: Counter, two: Counter) -> None:
    held = one.lock()
    with held:
        with held:
            one.count = 1
        assert held.held
        one.count = 2
    assert not held.held
    with two.lock(timeout=5):
        assert two.count == 2


def test_g6_what_came_with_the_grant_itself_is_shown(one: Counter, two: Counter) -> None:
    """The replica has it, and nobody has told the object yet that there is something new."""
    assert one._bridge is not None
    session = one._bridge.session
    with one._bridge.connection.lock:
        session.listeners.clear()
    two.count = 7
    two.flush()
    eventually(lambda: session.replica.value("Counter", "count") == 7)
    assert one.count == 0
    with one.lock():
        assert one.count == 7
        one.count += 1
    assert two.wait_until(lambda: two.count == 8, 10)


def test_asking_to_be_told_of_a_loss_leaves_no_thread_behind(one: Counter) -> None:
    def deliveries() -> int:
        return sum(thread.name == "sharedwidgets-delivery" for thread in threading.enumerate())

    with one.lock():
        one.count = 1
    eventually(lambda: deliveries() >= 1)  # the object's own, which a lock rings
    before = deliveries()
    for _ in range(5):
        with one.lock() as held:
            held.on_lost(lambda lock: None)
    eventually(lambda: deliveries() <= before)


def test_a_wait_is_finite_and_names_the_holder(one: Counter, two: Counter) -> None:
    with one.lock():
        with pytest.raises(LockTimeout, match=r"within 0\.2 s: script .* holds it"):
            two.lock(timeout=0.2).acquire()
        assert two.lock().try_acquire() is False
    # What was given up is not granted later.
    assert two.wait_until(lambda: two.locked_by is None, 10)
    with two.lock():
        pass
    assert one.wait_until(lambda: one.locked_by is None, 10)


@pytest.mark.asyncio
async def test_h18_whoever_waits_for_a_lock_of_a_room_that_is_deleted_is_told_so(
    server: LiveServer, one: Counter, two: Counter, token: str
) -> None:
    """So is who holds it, at the end: not that its time is up, nor that it lost a lock."""
    patient = Patient().link_to(token, server=server.url, credential=server.token)
    held, wait = await one.lock().acquire_async(), asyncio.get_running_loop().create_task
    await asyncio.to_thread(eventually, lambda: patient.locked_by)
    waiting = [
        wait(asyncio.to_thread(two.lock().acquire, 30)),
        wait(two.lock().acquire_async(30)),
        wait(asyncio.to_thread(setattr, patient, "count", 5)),
        wait(patient.increment_async("count", 1, max=9)),
    ]
    await asyncio.to_thread(eventually, lambda: len(one.lock().waiters) == 4)
    where = room_url(server, "rooms", token)
    assert (await asyncio.to_thread(lambda: ask(where, "DELETE", headers=server.headers))).status == 204
    for task in waiting:
        with pytest.raises(RoomGone, match="deleted"):
            await task
    with pytest.raises(RoomGone, match="deleted"):
        await held.release_async()


@pytest.mark.asyncio
@pytest.mark.parametrize("wrong", ["held", "free"])
async def test_the_server_decides_whether_a_lock_can_be_had_now_not_what_was_heard_last(
    server: LiveServer, one: Counter, token: str, wrong: str
) -> None:
    with Stalling(server.port) as way:
        far = await Counter().link_to_async(token, server=way.url, credential=server.credential)
        held = one.lock()
        if wrong == "held":
            await held.acquire_async()
            await asyncio.to_thread(eventually, lambda: far.locked_by is not None)
        # From here on it hears nothing, and knows what was.
        way.shut(up=False)
        if wrong == "held":
            await held.release_async()
        else:
            await held.acquire_async()
        before = seq(server, token)
        lock = far.lock()

        async def attempt() -> tuple[bool, bool]:
            return await lock.try_acquire_async(), lock.held

        tried = asyncio.get_running_loop().create_task(attempt())
        if wrong == "held":
            await asyncio.to_thread(eventually, lambda: seq(server, token) == before + 1)
        else:
            await asyncio.sleep(0)
        assert not tried.done()
        # This loop goes on meanwhile: else nobody would open the way.
        way.open()
        assert await tried == (wrong == "held", wrong == "held")
        assert one.lock().waiters == ()
        # It is that task's, and this one has nothing of it.
        assert not lock.held
        if wrong == "free":
            assert seq(server, token) == before
            await held.release_async()
        far.unlink()


def test_a_lock_is_had_now_where_it_is_free_and_a_server_answers(server: LiveServer, one: Counter, token: str) -> None:
    with Faults(server.port) as way:
        far = Counter().link_to(token, server=way.url, credential=server.credential)
        lock = far.lock()
        assert lock.try_acquire()
        assert lock.try_acquire()
        assert not in_thread(far.lock().try_acquire)
        assert not one.lock().try_acquire()
        lock.release()
        lock.release()
        near = one.lock()
        assert near.waiters == ()
        assert near.try_acquire()
        way.refusing = True
        way.cut()
        eventually(lambda: far._bridge.connection.state == "offline")  # type: ignore[union-attr]
        near.release()
        # Nobody holds it, and nobody says so.
        assert not far.lock().try_acquire()
        far.unlink()


def test_first_come_first_served(one: Counter, two: Counter) -> None:
    order: list[int] = []
    with one.lock():
        threads = []
        for number in range(5):
            state = two if number % 2 else one

            def work(number: int = number, state: Counter = state) -> None:
                with state.lock():
                    order.append(number)

            threads.append(threading.Thread(target=work))
            threads[-1].start()
            eventually(lambda number=number: len(two._bridge.session.replica.waiting.get(_name(), ())) == number + 1)  # type: ignore[union-attr]
    for thread in threads:
        thread.join(20)
    assert order == [0, 1, 2, 3, 4]


def _name() -> LockName:
    return LockName(kind="state", name="Counter")


def test_h28_several_at_once_in_any_order(server: LiveServer, one: Counter, two: Counter, token: str) -> None:
    """Two that lock two states the other way round: nobody waits for ever."""
    others = [Other().link_to(token, server=server.url, credential=secret) for secret in (server.credential, server.token)]

    def work(first: SharedState, second: SharedState) -> None:
        for _ in range(20):
            with lock(first, second, timeout=20):  # type: ignore[arg-type]
                one_of, other = (first, second) if isinstance(first, Counter) else (second, first)
                one_of.count += 1  # type: ignore[attr-defined]
                other.n += 1  # type: ignore[attr-defined]

    threads = [threading.Thread(target=work, args=pair) for pair in ((one, others[0]), (others[1], two))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert one.wait_until(lambda: (one.count, others[0].n) == (40, 40), 10)


def test_h28_out_of_order_says_so_at_once(server: LiveServer, one: Counter, token: str) -> None:
    other = Other().link_to(token, server=server.url, credential=server.credential)
    with other.lock(), pytest.raises(LockOrder, match=r"'Counter'.*comes before 'Other'.*lock\(a, b\)"):
        one.lock().acquire()
    with one.lock(), other.lock():
        pass
    with one.transaction(), pytest.raises(LockOrder, match="outside of a transaction"):
        one.lock().acquire()
    with one.hold_sync(), pytest.raises(LockOrder):
        one.lock().acquire()
    assert one.locked_by is None


def test_named_locks_cover_nothing(server: LiveServer, one: Counter, two: Counter, token: str) -> None:
    rooms = [connect(token, server.url, secret, delivery="thread") for secret in (server.credential, server.token)]
    with rooms[0].lock("fit") as held:
        assert rooms[1].lock("fit").try_acquire() is False
        with rooms[1].lock("other"):
            two.count = 3
        assert held.held
    free = rooms[1].lock("fit")
    assert free.try_acquire()
    free.release()
    for room in rooms:
        room.close()


def test_h24_what_was_written_before_a_lock_is_not_under_it(server: LiveServer, one: Counter, token: str) -> None:
    """Sets that wait in a window when the lock is taken go before it, and those made in it before its end."""
    refused = Heard(one, type="rejected")
    for number in range(50):
        one.count = number
        with one.lock():
            one.other = number
        one.count = number + 1
    one.flush()
    assert (refused.changes, one.count, one.other) == ([], 50, 49)


def test_h21_the_trait_is_fresh_though_the_main_thread_did_not_look(
    one: Counter, two: Counter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The grant arrives while `acquire` blocks: the next read must be of what came before it."""
    # Nothing is shown by itself, as while a cell is busy.
    monkeypatch.setattr(Delivery, "ring", lambda self: None)
    for number in range(20):
        assert two.wait_until(lambda: two.locked_by is None, 10)
        two.count = number * 10
        two.flush()
        with one.lock():
            assert one.count == number * 10
            one.count += 1
        assert two.wait_until(lambda number=number: two.count == number * 10 + 1, 10)


@pytest.mark.asyncio
@pytest.mark.parametrize("awaited", [False, True])
@pytest.mark.parametrize("how", ["sum", "assignment"])
async def test_h22_a_lock_does_not_show_what_another_thread_wrote_and_the_server_refuses(
    server: LiveServer, two: Counter, token: str, how: str, awaited: bool
) -> None:
    """G6: the grant is on its way down while another thread's write is on its way up."""
    with Stalling(server.port) as way:
        one = Counter().link_to(token, server=way.url, credential=server.credential)
        refused = Heard(one, type="rejected")
        seen: list[int] = []

        def work() -> None:
            with one.lock(lease=30):
                seen.append(one.count)
                one.count += 1

        async def work_async() -> None:
            async with one.lock(lease=30):
                seen.append(one.count)
                one.count += 1

        way.shut(up=False)
        working = asyncio.get_running_loop().create_task(work_async() if awaited else asyncio.to_thread(work))
        await asyncio.to_thread(eventually, lambda: two.locked_by)
        way.shut()

        def write() -> None:
            # As far as this process has heard, nobody has the lock.
            if how == "sum":
                one.increment("count", 100)
            else:
                one.count = 100

        await asyncio.to_thread(write)
        assert one.count == 100
        way.open(up=False)
        await asyncio.to_thread(eventually, lambda: one.locked_by)
        # The lock is this process's own, and what its owner would read is about to be taken back.
        assert (seen, one.count, working.done()) == ([], 100, False)
        way.open()
        await working
        assert await asyncio.to_thread(two.wait_until, lambda: two.count != 0, 10)
        await asyncio.to_thread(refused.wait)
        assert [(event.name, event.problem.code) for event in refused.changes] == [("count", "locked")]
        assert (seen, two.count) == ([0], 1)
        one.unlink()


def test_a_lock_that_is_granted_beside_writes_without_an_answer_is_given_back_in_time(
    server: LiveServer, two: Counter, token: str
) -> None:
    with Stalling(server.port) as way:
        one = Counter().link_to(token, server=way.url, credential=server.credential)
        way.shut(up=False)
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(one.lock(timeout=3, lease=30).acquire)
            eventually(lambda: two.locked_by)
            way.shut()
            one.count = 100
            way.open(up=False)
            with pytest.raises(LockTimeout, match="what other threads of this process wrote before has no answer"):
                waiting.result(10)
        way.open()
        with two.lock(timeout=5):
            assert two.count == 0
        one.unlink()


def test_events_of_what_a_lock_showed_are_told_afterwards(one: Counter, two: Counter) -> None:
    """No user code runs inside `acquire`."""
    inside: list[str] = []
    acquiring = threading.Event()
    one.observe(lambda change: inside.append(threading.current_thread().name) if acquiring.is_set() else None, "count")
    two.count = 5
    two.flush()
    acquiring.set()
    with one.lock():
        acquiring.clear()
        assert one.count == 5
    assert threading.current_thread().name not in inside


# --- losing it


def test_a_lease_is_renewed_while_its_owner_lives(one: Counter, two: Counter) -> None:
    with one.lock() as held:
        deadline = time.monotonic() + 4.0
        while time.monotonic() < deadline:
            assert held.lease_left > 0
            threading.Event().wait(0.1)
        held.check()
        one.count = 1
    assert two.wait_until(lambda: two.count == 1, 10)


def test_a_lease_is_as_long_as_it_was_asked_for(one: Counter, two: Counter) -> None:
    assert two._bridge is not None
    locks = two._bridge.session.replica.locks
    for lease, given in ((40.0, 40.0), (None, 1.5)):
        with one.lock(lease=lease) as held:
            assert given - 1 < held.lease_left <= given
            eventually(lambda: _name() in locks)
            assert locks[_name()].lease == given
        eventually(lambda: _name() not in locks)


def test_a_short_lease_is_renewed_too(one: Counter) -> None:
    with one.lock(lease=0.4) as held:
        time.sleep(1.5)
        assert held.held
        one.count = 1


def test_a_lease_the_server_cuts_is_known_to_be_shorter(tmp_path: Path, token: str) -> None:
    """The server gives no more than `hold_seconds`; the holder would go on counting what it asked for."""
    with LiveServer(tmp_path, "--SharedWidgetsApp.limits={'hold_seconds': 5.0}") as server:
        state = Counter().link_to(token, server=server.url, credential=server.credential)
        with state.lock(lease=60.0) as held:
            assert 0 < held.lease_left <= 5.0
        state.close()


def test_who_keeps_leases_rests_between_them(one: Counter) -> None:
    """Also when a lock was held so long that it is not renewed any more."""
    replica = Replica("r")
    leases = Leases("r")
    name = _name()
    assert leases.next_look(0.0, 600.0) == float("inf")
    tenure = leases.want(name, 15.0, "me", replica)
    held = LockImage(lock=name, member="m", owner=tenure.owner, fence=7, lease=15.0)
    replica.receive(Snapshot(room="r", incarnation="i", epoch="e", seq=7, states={}, locks=(held,)))
    tenure.phase = "asked"
    leases.heard(replica, News(), 100.0, anew=True)
    assert [leases.next_look(now, 600.0) for now in (100.0, 104.5, 106.0, 800.0)] == [1.0, 0.5, 0.0, 1.0]


def test_a_broken_lock_is_lost_and_what_was_written_under_it_too(
    server: LiveServer, one: Counter, two: Counter, token: str
) -> None:
    """G7."""
    told: list[Any] = []
    with pytest.raises(LockLost, match="somebody broke it"), one.lock() as held:
        held.on_lost(told.append)
        one.count = 1
        one.flush()
        where = room_url(server, "rooms", token, "states", "Counter") + "/lock"
        assert ask(where, "DELETE", headers=server.headers).status == 204
        eventually(lambda: not held.held)
        with pytest.raises(LockLost):
            one.count = 2
        with pytest.raises(LockLost):
            held.check()
        assert (held.fence, held.lease_left) == (0, 0.0)
        assert two.wait_until(lambda: two.locked_by is None, 10)
        two.count = 7
        two.flush()
    eventually(lambda: len(told) == 1)
    assert one.wait_until(lambda: one.count == 7, 10)
    assert ask(where, "DELETE", headers=server.headers).status == 204


def test_a_lock_of_a_thread_that_has_ended_is_free_long_before_its_lease(tmp_path: Path, token: str) -> None:
    """With the numbers of a server as it comes: nothing else is said meanwhile that could take the word along."""
    with LiveServer(tmp_path) as server:
        one, two = (Counter().link_to(token, server=server.url, credential=item) for item in (server.credential, server.token))
        thread = threading.Thread(target=lambda: one.lock().acquire())
        thread.start()
        thread.join(10)
        with two.lock(timeout=5):
            two.count = 1
        for state in (one, two):
            state.close()


def test_a_thread_that_ends_without_giving_it_back(one: Counter, two: Counter) -> None:
    thread = threading.Thread(target=lambda: one.lock().acquire())
    thread.start()
    thread.join(10)
    with two.lock(timeout=10):
        two.count = 1


@pytest.mark.asyncio
@pytest.mark.parametrize("where", ["acquire", "body", "release"])
async def test_h23_a_task_that_catches_its_cancellation_keeps_no_lock(
    server: LiveServer, two: Counter, token: str, where: str
) -> None:
    """It goes on, so that nobody would give back for it what it has left behind."""
    with Stalling(server.port) as way:
        one = Counter().link_to(token, server=way.url, credential=server.credential)
        inside, caught, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def work() -> None:
            try:
                async with one.lock(lease=30):
                    inside.set()
                    if where == "body":
                        await go.wait()
                    if where == "release":
                        way.shut()
            except asyncio.CancelledError:
                caught.set()
            await go.wait()

        if where == "acquire":
            await two.lock(lease=30).acquire_async()
        task = asyncio.get_running_loop().create_task(work())
        if where == "acquire":
            await asyncio.to_thread(eventually, lambda: two.lock().waiters)
        else:
            await inside.wait()
            await asyncio.to_thread(eventually, lambda: two.locked_by)
        task.cancel()
        await asyncio.wait_for(caught.wait(), 5)
        way.open()
        if where == "acquire":
            await asyncio.to_thread(eventually, lambda: two.lock().waiters == ())
        else:
            await asyncio.to_thread(eventually, lambda: two.locked_by is None)
        assert not task.done()
        go.set()
        await task
        one.unlink()


@pytest.mark.asyncio
async def test_h23_a_cancelled_task_waits_no_more(one: Counter, two: Counter) -> None:
    with one.lock():
        task = asyncio.get_running_loop().create_task(two.lock().acquire_async())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await asyncio.get_running_loop().run_in_executor(None, lambda: one.wait_until(lambda: one.locked_by is None, 10))
    assert one.locked_by is None


def test_a_lost_connection_is_not_a_lost_lock(server: LiveServer, token: str, two: Counter) -> None:
    """The process lives, and comes back in time; what it wrote meanwhile counts."""
    with Faults(server.port) as faults:
        url = f"http://127.0.0.1:{faults.port}/"
        one = Counter().link_to(token, server=url, credential=server.credential)
        with one.lock(lease=20.0) as held:
            one.count = 1
            faults.cut()
            one.count = 2
            faults.cut()
            one.other = 1
            assert held.held
        assert two.wait_until(lambda: (two.count, two.other, two.locked_by) == (2, 1, None), 10)
        one.close()


# --- processes

KERNEL = """
import os, time
import traitlets as t
from sharedwidgets import SharedState
from sharedwidgets.errors import *

class Counter(SharedState):
    count = t.Int(0)
    other = t.Int(0)
    tags = t.Dict()

c = Counter().link_to({token!r})
"""


def test_a_kernel_restarted_while_it_holds_frees_it_at_once(server: LiveServer, two: Counter, token: str) -> None:
    with Kernel(server) as kernel:
        kernel.run(KERNEL.format(token=token))
        kernel.run("held = c.lock(lease=600); held.acquire(); None")
        assert two.wait_until(lambda: two.locked_by is not None, 10)
        assert two.locked_by.kernel_id == kernel.id  # type: ignore[union-attr]
        os.kill(kernel.value("os.getpid()"), signal.SIGKILL)
        killed = time.monotonic()
        with two.lock(timeout=10):
            assert time.monotonic() - killed < 2.0


THREADS = """
import threading
tried, raised, refused = ({"count": 0, "other": 0} for _ in range(3))
codes, errors, stop = set(), [], threading.Event()

def note(change):
    refused[change.name] += 1
    codes.add(change.problem.code)

c.observe(note, type="rejected")

def contend():
    try:
        for _ in range(25):
            with c.lock(lease=30):
                before = c.count
                time.sleep(0.001)
                c.count = before + 1
            # The third one gets to write between.
            last = sum(tried.values()) + 2
            while sum(tried.values()) < last:
                time.sleep(0)
    except BaseException as error:
        errors.append(repr(error))

def write():
    while not stop.is_set():
        trait = ("count", "other")[sum(tried.values()) % 2]
        tried[trait] += 1
        try:
            if trait == "count":
                c.increment("count")
            else:
                c.other = tried["other"]
        except Locked:
            raised[trait] += 1
        # One push for each: sums that wait are added up.
        c.flush()

contending, writing = [threading.Thread(target=contend) for _ in range(2)], threading.Thread(target=write)
for thread in (*contending, writing):
    thread.start()
for thread in contending:
    thread.join()
stop.set()
writing.join()
"""


def test_h22_two_threads_of_a_kernel_contend_while_a_third_writes_without_the_lock(
    server: LiveServer, two: Counter, token: str
) -> None:
    """G6: every write was taken, or its author was told that it was not."""
    with Kernel(server) as kernel:
        kernel.run(KERNEL.format(token=token))
        kernel.run(THREADS, timeout=120)
        assert kernel.value("errors") == []
        # Made, of each round under the lock a grant, a write and an end, and what was taken of the third's.
        taken = seq(server, token) - 1 - 3 * 50
        eventually(lambda: kernel.value("sum(tried.values()) - sum(raised.values()) - sum(refused.values())") == taken)
        tried, raised, refused, codes = kernel.value("[tried, raised, refused, [*codes]]")
        sums = tried["count"] - raised["count"] - refused["count"]
        assert two.wait_until(lambda: two.count == 50 + sums, 10)
        eventually(lambda: kernel.value("[c.pull().count, c.other]") == [50 + sums, two.other])
        assert 0 < sums < tried["count"]
        assert 0 < taken - sums < tried["other"]
        assert set(codes) <= {"locked"}


@pytest.mark.parametrize("kind", PYTHONS)
def test_a_lock_is_held_past_the_end_of_its_cell(server: LiveServer, token: str, kind: str) -> None:
    """In ipykernel 7 each cell is a task of its own; to its user they are one thread that goes on."""
    with Kernel(server, kind) as kernel:
        kernel.run(KERNEL.format(token=token))
        kernel.run("held = c.lock(); held.acquire(); None")
        kernel.run("c.count += 1; c.flush()")
        # Nor is it given up for that its cell has ended.
        kernel.run("time.sleep(1.5)")
        assert kernel.value("[c.count, held.held]") == [1, True]
        # A task of the user's own is somebody else.
        kernel.run(
            "import asyncio\nasync def other():\n    try: c.count = 5\n    except Locked: return 'locked'\n"
            "told = await asyncio.get_running_loop().create_task(other())"
        )
        assert kernel.value("told") == "locked"
        kernel.run("held.release()")
        assert kernel.value("c.locked_by is None")


STOPPED = """
import pathlib
refused = []
c.observe(lambda change: refused.append([change.name, change.problem.code]), type="rejected")
try:
    with c.lock():
        c.count += 1
        c.flush()
        pathlib.Path({begun!r}).touch()
        while not os.path.exists({go!r}) or ({heard} and c.locked_by is not None):
            time.sleep(0.01)
        c.other = 5
        pathlib.Path({written!r}).touch()
except LockLost as error:
    why = str(error)
"""


@pytest.mark.parametrize("heard", [False, True])
def test_h27_a_stopped_holder_is_fenced_and_told(
    server: LiveServer, two: Counter, token: str, tmp_path: Path, heard: bool
) -> None:
    """Three times its lease: what it writes then is refused, by the server where it has not heard yet that it lost the lock."""
    begun, go, written = (tmp_path / name for name in ("begun", "go", "written"))
    with Stalling(server.port) as way, Kernel(server) as kernel:
        where = f"server={way.url!r}, credential={server.credential!r}"
        kernel.run(KERNEL.format(token=token).replace(f"link_to({token!r})", f"link_to({token!r}, {where})"))
        pid = kernel.value("os.getpid()")
        cell = kernel.start(STOPPED.format(begun=str(begun), go=str(go), written=str(written), heard=heard))
        # It has its answer, which would wait for the way else.
        eventually(begun.exists)
        assert two.wait_until(lambda: two.count == 1, 10)
        way.shut(up=False)
        os.kill(pid, signal.SIGSTOP)
        try:
            with two.lock(timeout=10):
                two.count += 1
            time.sleep(1.5 * 3)
            # Made, and of each round a grant, a write and an end.
            assert seq(server, token) == 1 + 3 * 2
        finally:
            os.kill(pid, signal.SIGCONT)
        if heard:
            way.open()
        go.touch()
        if not heard:
            eventually(written.exists)
            way.open()
        kernel.finish(cell)
        assert "its lease ran out" in kernel.value("why")
        assert written.exists() is not heard
        told = [] if heard else [["other", "lock-lost"]]
        eventually(lambda: kernel.value("refused") == told)
        eventually(lambda: kernel.value("[c.pull().count, c.other]") == [2, 0])
        two.flush()
        assert (two.count, two.other, seq(server, token)) == (2, 0, 1 + 3 * 2)


@pytest.mark.parametrize("where", ["acquire", "body"])
def test_h23_an_interrupt_leaves_nothing_held(server: LiveServer, two: Counter, token: str, where: str) -> None:
    with Kernel(server) as kernel:
        kernel.run(KERNEL.format(token=token))
        if where == "acquire":
            with two.lock():
                cell = kernel.start("with c.lock(): pass")
                eventually(lambda: two.lock().waiters)
                server.ask("POST", f"api/kernels/{kernel.id}/interrupt")
                with pytest.raises(AssertionError, match="KeyboardInterrupt"):
                    kernel.finish(cell)
        else:
            cell = kernel.start("with c.lock():\n    c.count = 1\n    time.sleep(20)")
            assert two.wait_until(lambda: two.count == 1, 10)
            server.ask("POST", f"api/kernels/{kernel.id}/interrupt")
            with pytest.raises(AssertionError, match="KeyboardInterrupt"):
                kernel.finish(cell)
        assert two.wait_until(lambda: two.locked_by is None, 10)
        with two.lock(timeout=5):
            two.count += 1
        kernel.run("with c.lock(): c.count += 1")
        assert two.wait_until(lambda: two.count == (3 if where == "body" else 2), 10)


def test_h23_an_interrupt_while_it_is_given_back(server: LiveServer, two: Counter, token: str, tmp_path: Path) -> None:
    """The word of it is on its way: what was written under the lock stands, and the lock is free when it arrives."""
    go, leaving = tmp_path / "go", tmp_path / "leaving"
    with Stalling(server.port) as way, Kernel(server) as kernel:
        where = f"server={way.url!r}, credential={server.credential!r}"
        kernel.run(KERNEL.format(token=token).replace(f"link_to({token!r})", f"link_to({token!r}, {where})"))
        cell = kernel.start(
            "import pathlib\nwith c.lock():\n    c.count = 1\n"
            f"    while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
            f"    c.count = 2\n    pathlib.Path({str(leaving)!r}).touch()"
        )
        assert two.wait_until(lambda: two.count == 1, 10)
        way.shut()
        go.touch()
        eventually(leaving.exists)
        server.ask("POST", f"api/kernels/{kernel.id}/interrupt")
        with pytest.raises(AssertionError, match="KeyboardInterrupt"):
            kernel.finish(cell, timeout=5)
        assert two.locked_by is not None
        way.open()
        assert two.wait_until(lambda: two.locked_by is None and two.count == 2, 10)
