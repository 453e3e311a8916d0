"""Holds, transactions, turns and locks of several threads, tasks and objects that overlap."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import traitlets as t

from sharedwidgets import SharedState, answers, host
from sharedwidgets.errors import Closed, Locked, LockLost, LockTimeout, SharedWidgetsError
from sharedwidgets_server.testing import LiveServer
from support.kernels import Kernel
from support.rest import ask, room_url
from support.scripts import Heard, eventually, seq, settled
from support.shops import Link
from support.stalling import Stalling


class Shop(SharedState, delivery="thread"):
    stock = t.Int(0)
    sold = t.Int(0)
    price = t.Float(0.0)
    name = t.Unicode("")


class Patient(SharedState, state_name="Shop", delivery="thread", on_locked="wait"):
    stock = t.Int(0)
    sold = t.Int(0)
    price = t.Float(0.0)
    name = t.Unicode("")


class Capped(SharedState, state_name="Level", delivery="thread"):
    level = t.Int(0)

    @t.validate("level")
    def _cap(self, proposal: Any) -> int:
        return min(10, int(proposal.value))


class Notes(SharedState, delivery="thread"):
    text = t.Unicode("")


class Sealed(SharedState, delivery="thread"):
    x = t.Int(0, read_only=True)


class Strict(SharedState, delivery="thread"):
    x = t.Int(0)

    @t.validate("x")
    def _check(self, proposal: Any) -> int:
        if proposal.value < 0:
            raise t.TraitError("below 0")
        return int(proposal.value)


class Slow(SharedState, delivery="thread"):
    x = t.Int(0)
    meanwhile: Callable[[], object] = staticmethod(lambda: None)  # type: ignore[assignment]

    @t.validate("x")
    def _check(self, proposal: Any) -> int:
        type(self).meanwhile()
        return int(proposal.value)


class Follower(SharedState, delivery="thread"):
    """Its validator takes another object along."""

    y = t.Int(0)
    leader: Any = None

    @t.validate("y")
    def _check(self, proposal: Any) -> int:
        if self.leader is not None:
            self.leader.stock = proposal.value
        if proposal.value > 5:
            raise t.TraitError("too much")
        return int(proposal.value)


@pytest.fixture
def one(here: Link) -> Shop:
    shop: Shop = here(Shop())
    return shop


@pytest.fixture
def two(there: Link) -> Shop:
    shop: Shop = there(Shop())
    return shop


def beside(work: Callable[[], object]) -> None:
    """Do it on a thread of its own, to its end."""
    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20)
    assert not thread.is_alive()


class Holding:
    """Another thread that is in a hold of an object, until it is told to leave it."""

    def __init__(self, hold: Callable[[], Any]) -> None:
        self._in, self._go, self._out = threading.Event(), threading.Event(), threading.Event()
        self._hold = hold
        threading.Thread(target=self._run, daemon=True).start()
        assert self._in.wait(10)

    def _run(self) -> None:
        with self._hold():
            self._in.set()
            self._go.wait(10)
        self._out.set()

    def leave(self) -> None:
        """It has ended when this returns."""
        self._go.set()
        assert self._out.wait(10)


# --- a hold of another thread or task that overlaps a transaction


def test_a_hold_that_ends_inside_a_transaction_leaves_no_group_open(one: Shop, two: Shop) -> None:
    """After this every write of the object was kept back for ever: nothing sent, nothing said (G8)."""
    other = Holding(one.hold_sync)
    with suppress(KeyError, RuntimeError), one.transaction():
        one.stock = 1
        other.leave()
        raise KeyError
    other.leave()
    one.stock = 42
    settled(one, two)
    assert two.stock == 42


def test_g10_what_is_undone_is_not_in_the_room_for_another_threads_hold(one: Shop, server: LiveServer, token: str) -> None:
    before = seq(server, token)
    other = Holding(one.hold_sync)
    with suppress(KeyError, RuntimeError), one.transaction():
        one.stock = 1
        other.leave()
        one.sold = 1
        raise KeyError
    other.leave()
    one.flush()
    assert one.room is not None
    assert (one.room["Shop"]["stock"], one.room["Shop"]["sold"], seq(server, token)) == (0, 0, before)


def test_nor_for_that_of_another_task(one: Shop, two: Shop) -> None:
    async def main() -> None:
        inside, go = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            with one.hold_sync():
                inside.set()
                await go.wait()

        holding = asyncio.get_running_loop().create_task(hold())
        await inside.wait()
        with suppress(KeyError, RuntimeError), one.transaction():
            one.stock = 1
            go.set()
            await holding
            raise KeyError
        go.set()
        await holding

    asyncio.run(main())
    one.name = "later"
    settled(one, two)
    assert (two.stock, two.name) == (0, "later")


def test_a_hold_of_traitlets_that_ends_inside_a_transaction_leaves_the_object_alive(one: Shop, two: Shop) -> None:
    """After this no observer was told, no validator asked, and unlink() raised, for ever."""
    heard = Heard(one, "name")
    other = Holding(one.hold_trait_notifications)
    with suppress(RuntimeError), one.transaction():
        one.stock = 1
        other.leave()
    other.leave()
    one.name = "later"
    assert heard.steps == [("name", "", "later")]
    assert not one._cross_validation_lock
    one.unlink()


def test_a_hold_that_is_undone_after_an_outer_one_ended_leaves_no_group_open(here: Link, two: Shop) -> None:
    """The same with two holds and no transaction."""
    state = here(Strict())
    seen = state.room
    other = Holding(state.hold_sync)
    with pytest.raises(t.TraitError), state.hold_trait_notifications():
        state.x = -1
        other.leave()
    state.x = 7
    state.flush()
    last = seen.seq
    two.flush()
    assert two.room is not None
    assert two.room.wait_until(lambda: two.room is not None and two.room.seq >= last, 10)
    assert two.room["Strict"]["x"] == 7


# --- sums in a hold or transaction


@pytest.mark.parametrize("group", ["hold_sync", "hold_trait_notifications", "transaction"])
@pytest.mark.parametrize(("first", "by", "theirs", "sum_"), [(0.0, 0, 7.0, 7.0), (1e16, 1, 5.0, 6.0)])
def test_a_sum_that_shows_no_difference_is_no_set(
    one: Shop, two: Shop, group: str, first: float, by: float, theirs: float, sum_: float
) -> None:
    """by=0, or one that the float absorbs: it went out as a set of what was shown, over what another had written."""
    one.price = first
    settled(one, two)
    room = one.room
    assert room is not None
    with getattr(one, group)():
        two.price = theirs
        two.flush()
        assert room.wait_until(lambda: room["Shop"]["price"] == theirs, 10)
        one.increment("price", by)
    settled(one, two)
    assert two.price == sum_


# --- two ways to one trait in one transaction of the room


@pytest.mark.parametrize("through", ["handle", "instance"])
def test_what_another_wrote_later_shows_in_the_object(server: LiveServer, token: str, through: str) -> None:
    """It never did, unless other news came in the same moment: the object took its own value for what the push had left."""
    with Stalling(server.port) as way:
        state, other = (Shop().link_to(token, server=way.url, credential=server.credential) for _ in range(2))
        room = state.room
        assert room is not None
        settled(state, other)
        way.shut()
        with room.transaction():
            state.stock = 8
            if through == "handle":
                room["Shop"]["stock"] = 9
            else:
                other.stock = 9
        shown = state.stock
        way.open()
        settled(state)
        assert (shown, state.stock, room["Shop"]["stock"]) == (9, 9, 9)


# --- taking turns


@pytest.fixture
def patient(server: LiveServer, token: str, two: Shop, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Patient, Stalling]]:
    """A class that waits; its way to the server is shut in the moment it gives its turn back."""
    real = answers.release
    with Stalling(server.port) as way:
        made = Patient().link_to(token, server=way.url, credential=server.credential)
        assert made._bridge is not None
        connection = made._bridge.connection

        def release(asked: Any, session: Any, tenure: Any, timeout: float) -> None:
            if asked is connection:
                way.shut()
                timeout = 0.3
            real(asked, session, tenure, timeout)

        monkeypatch.setattr(answers, "release", release)
        yield made, way


def in_turn(two: Shop, patient: Patient, work: Callable[[], object]) -> list[BaseException]:
    """Work that has to wait for another member's lock; what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except SharedWidgetsError as error:
            raised.append(error)

    lock = two.lock().acquire()
    eventually(lambda: patient.locked_by is not None)
    thread = threading.Thread(target=run)
    thread.start()
    eventually(lambda: len(lock.waiters) == 1)  # type: ignore[union-attr]
    lock.release()
    thread.join(20)
    return raised


def test_a_turn_that_cannot_be_given_back_in_time_is_no_failed_write(patient: tuple[Patient, Stalling], two: Shop) -> None:
    """The trait was put back, the write was in: trait and room differed for ever."""
    state, way = patient
    in_turn(two, state, lambda: setattr(state, "stock", 5))
    way.open()
    state.flush()
    assert state.room is not None
    assert state.pull().stock == state.room["Shop"]["stock"]


def test_a_transaction_that_raises_has_no_effect(patient: tuple[Patient, Stalling], two: Shop) -> None:
    state, way = patient

    def work() -> None:
        with state.transaction():
            state.stock, state.sold = 5, 1

    raised = in_turn(two, state, work)
    way.open()
    state.flush()
    assert state.room is not None
    assert (raised == []) == (state.room["Shop"]["stock"] == 5)


def test_who_asked_within_bounds_gets_the_sum(patient: tuple[Patient, Stalling], two: Shop) -> None:
    state, way = patient
    got: list[Any] = []
    raised = in_turn(two, state, lambda: got.append(state.increment("stock", max=5)))
    way.open()
    assert (got, raised) == ([1], [])


def test_a_write_that_waits_for_its_turn_does_not_hold_up_who_is_before_it(here: Link, two: Shop) -> None:
    """Two threads of one process, first come first served: the first waits for the second's write, and that for the first."""
    state, raised = here(Patient()), list[BaseException]()

    def lock() -> None:
        with state.lock():
            pass

    def write() -> None:
        try:
            state.stock = 1
        except LockTimeout as error:
            raised.append(error)

    held: Any = two.lock().acquire()
    eventually(lambda: state.locked_by is not None)
    threads = [threading.Thread(target=lock), threading.Thread(target=write)]
    for number, thread in enumerate(threads, 1):
        thread.start()
        eventually(lambda number=number: len(held.waiters) == number)  # type: ignore[misc]
    began = time.monotonic()
    held.release()
    for thread in threads:
        thread.join(30)
    assert raised == []
    assert time.monotonic() - began < 3


# --- a thread's number is given to the next one, and so is a task's


@pytest.fixture
def one_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thread gets the number of the one before."""
    monkeypatch.setattr(host, "owner", lambda: (1, 0))


def test_g7_a_new_thread_does_not_write_under_the_lock_of_one_that_has_ended(one: Shop, one_number: None) -> None:
    raised: list[bool] = []

    def write() -> None:
        try:
            one.stock = 1
        except Locked:
            raised.append(True)

    beside(lambda: one.lock().acquire())
    beside(write)
    assert raised == [True]


def test_a_lock_that_was_lost_with_its_thread_is_forgotten(one: Shop, server: LiveServer, token: str, one_number: None) -> None:
    raised: list[BaseException] = []

    def take() -> None:
        held: Any = one.lock().acquire()
        where = room_url(server, "rooms", token, "states", "Shop") + "/lock"
        assert ask(where, "DELETE", headers=server.headers).status == 204
        eventually(lambda: not held.held)

    def write() -> None:
        try:
            one.stock = 1
        except LockLost as error:
            raised.append(error)

    beside(take)
    beside(write)
    assert raised == []


# --- who comes in while a transaction of the room is open


def test_g10_a_handle_made_inside_a_transaction_is_part_of_it(one: Shop, here: Link) -> None:
    other, notes = here(Shop()), here(Notes())
    room = one.room
    assert room is not None
    with pytest.raises(KeyError), room.transaction():
        one.stock = 1
        # The first look at `other.room` makes its handle.
        other.room["Notes"]["text"] = "written all the same"
        raise KeyError
    settled(one, notes)
    assert room["Notes"]["text"] == ""


def test_transactions_of_the_room_nest_whichever_object_names_it(one: Shop, here: Link) -> None:
    notes = here(Notes())
    assert one.room is not None
    with one.room.transaction(), notes.room.transaction():
        notes.text = "x"
    assert notes.text == "x"


def test_linking_inside_a_transaction_of_the_room_raises(one: Shop, here: Link) -> None:
    """design §7. It links, and what is written through it is no part of the transaction."""
    assert one.room is not None
    with pytest.raises(RuntimeError), one.room.transaction():
        here(Notes())


# --- an observer that raises


@pytest.mark.parametrize("how", ["increment", "transaction"])
def test_an_observer_that_raises_does_not_keep_another_instance_stale(server: LiveServer, token: str, how: str) -> None:
    """design §7: one instance's write shows on all before it returns. Where the ack was early it stayed so for ever."""

    def raises(change: Any) -> None:
        raise ValueError

    with Stalling(server.port) as way:
        state, other = (Shop().link_to(token, server=way.url, credential=server.credential) for _ in range(2))
        state.observe(raises, "stock")
        settled(state, other)
        way.shut()
        with pytest.raises(ValueError):  # noqa: PT011
            if how == "increment":
                state.increment("stock")
            else:
                with state.transaction():
                    state.stock = 1
        assert other.stock == 1


def test_an_observer_that_raises_does_not_keep_other_objects_from_being_told(one: Shop, here: Link) -> None:
    notes = here(Notes())
    heard = Heard(notes, "text")

    def raises(change: Any) -> None:
        raise ValueError

    one.observe(raises, "stock")
    assert one.room is not None
    with pytest.raises(ValueError), one.room.transaction():  # noqa: PT011
        one.stock = 1
        notes.text = "x"
    eventually(lambda: heard.steps == [("text", "", "x")], 2)


def test_the_last_event_is_of_the_last_value(one: Shop, here: Link) -> None:
    notes = here(Notes())
    heard = Heard(notes, "text")
    one.observe(lambda change: setattr(notes, "text", "answer"), "stock")
    assert one.room is not None
    with one.room.transaction():
        one.stock = 1
        notes.text = "first"
    assert notes.text == "answer"
    assert heard.changes[-1].new == "answer"


# --- all or nothing


def test_g10_what_a_validator_writes_is_of_the_same_entry(one: Shop, here: Link, server: LiveServer, token: str) -> None:
    """The validators of the second object ran when the first was closed already."""
    follower = here(Follower())
    follower.leader = one
    before = seq(server, token)
    assert one.room is not None
    with one.room.transaction():
        follower.y = 3
    follower.flush()
    assert (one.stock, seq(server, token)) == (3, before + 1)
    with pytest.raises(t.TraitError), one.room.transaction():
        follower.y = 9
    follower.flush()
    assert one.room["Shop"]["stock"] == 3


# --- a write to a room that was left meanwhile


def test_a_sum_of_an_object_unlinked_meanwhile_is_not_lost_in_silence(here: Link, two: Shop, there: Link) -> None:
    state, other = here(Slow()), there(Slow())
    bridge = state._bridge

    def leave() -> None:
        Slow.meanwhile = staticmethod(lambda: None)  # type: ignore[assignment]
        state.unlink()
        eventually(lambda: bridge.session not in bridge.connection._sessions.values())

    Slow.meanwhile = staticmethod(leave)  # type: ignore[assignment]
    with pytest.raises(Closed, match="was left meanwhile; nothing was written"):
        state.increment("x")
    assert (state.x, other.pull().x) == (0, 0)


# --- what classes and cells bring along


def test_a_read_only_trait_may_be_set_in_a_transaction(here: Link) -> None:
    state = here(Sealed())
    with state.transaction():
        state.set_trait("x", 1)
    assert state.x == 1


def test_closed_inside_its_transaction_is_not_silent(one: Shop, two: Shop) -> None:
    """What was assigned went into a session that nobody sends."""
    assert one._bridge is not None
    connection, session = one._bridge.connection, one._bridge.session
    with pytest.raises(Closed, match="nothing was written"), one.transaction():
        one.stock = 1
        one.close()
        eventually(lambda: session not in connection._sessions.values())
    assert two.pull().stock == 0


def test_the_first_connection_changes_nobody_in_ipykernel_7(server: LiveServer, token: str) -> None:
    """From then on the cell's task counts as the thread: what was open before is somebody else's."""
    with Kernel(server) as kernel:
        kernel.run(
            "import traitlets as t\nfrom sharedwidgets import SharedState\n"
            "class C(SharedState):\n    x = t.Int(0)\n    y = t.Int(0)\n"
            "c, d, told, raised = C(), C(), [], ''\nc.observe(lambda change: told.append(change.name), ['x', 'y'])"
        )
        kernel.run(
            "try:\n    with c.lock(), c.transaction():\n        c.x = 1\n"
            f"        d.link_to({token!r})\n        c.y = 2\n        raise KeyError\n"
            "except KeyError: pass\nexcept Exception as error: raised = repr(error)"
        )
        assert kernel.value("[c.x, c.y, told, raised]") == [0, 0, [], ""]
