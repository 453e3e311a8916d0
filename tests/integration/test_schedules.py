"""Schedules of threads and tasks that once left a trait wrong."""

from __future__ import annotations

import asyncio
import gc
import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import traitlets as t

from sharedwidgets import SharedState, answers
from sharedwidgets.errors import InvalidValue, Locked, LockLost, LockTimeout, NoSuchTrait
from sharedwidgets_server.testing import LiveServer
from support.scale import scaled
from support.scripts import Heard, eventually, settled
from support.shops import GROUPS, Gate, Link, Patient, Shop, beside, nothing_open


def views(*states: SharedState) -> list[dict[str, Any]]:
    """What each room holds of a state, and what each object shows of it."""
    found: list[dict[str, Any]] = []
    for state in states:
        assert state.room is not None
        held = dict(state.room[state._state_name()])
        found += [held, {name: getattr(state, name) for name in held}]
    return found


def agreed(*states: SharedState) -> dict[str, Any]:
    """Everything is decided and told: all show what the room holds, which is this."""
    settled(*states)
    with suppress(AssertionError):
        eventually(lambda: all(view == views(states[0])[0] for view in views(*states)), 3)
    held, *others = views(*states)
    assert [{name: value for name, value in view.items() if value != held[name]} for view in others] == [{}] * len(others)
    nothing_open(*states)
    return held


# --- on top of what another thread or task wrote


@pytest.mark.parametrize("inner", [False, True])
def test_what_another_thread_wrote_between_two_writes_of_a_transaction_stays_when_it_is_undone(
    one: Shop, two: Shop, inner: bool
) -> None:
    with suppress(KeyError), one.transaction():
        one.stock = 1
        beside(lambda: setattr(one, "stock", 2))
        with one.transaction() if inner else nullcontext():
            one.stock = 3
        raise KeyError
    assert agreed(one, two)["stock"] == 2


def test_what_another_task_wrote_between_two_writes_of_a_transaction_stays_when_it_is_undone(one: Shop, two: Shop) -> None:
    async def main() -> None:
        begun, written = asyncio.Event(), asyncio.Event()

        async def undone() -> None:
            with suppress(KeyError), one.transaction():
                one.stock = 1
                begun.set()
                await written.wait()
                one.stock = 3
                raise KeyError

        async def kept() -> None:
            await begun.wait()
            one.stock = 2
            written.set()

        await asyncio.gather(undone(), kept())

    asyncio.run(main())
    assert agreed(one, two)["stock"] == 2


def test_what_another_thread_wrote_stays_when_somebody_elses_lock_undoes_the_transaction(one: Shop, two: Shop) -> None:
    held: list[Any] = []
    with pytest.raises(Locked), one.transaction():
        one.stock = 1
        beside(lambda: setattr(one, "stock", 2))
        one.stock = 3
        one.flush()
        held.append(two.lock().acquire())
        eventually(lambda: one.locked_by is not None)
    held[0].release()
    assert agreed(one, two)["stock"] == 2


@pytest.mark.parametrize("linked", [True, False])
def test_a_private_value_of_another_thread_stays_when_a_transaction_on_top_of_it_is_undone(one: Shop, linked: bool) -> None:
    state = one if linked else Shop()
    with suppress(KeyError), state.transaction():
        state.till = 1
        beside(lambda: setattr(state, "till", 2))
        state.till = 3
        raise KeyError
    assert state.till == 2


@pytest.mark.parametrize("linked", [True, False])
def test_a_private_value_of_another_thread_stays_though_it_is_what_the_transaction_wrote(one: Shop, linked: bool) -> None:
    state = one if linked else Shop()
    with suppress(KeyError), state.transaction():
        state.till = 5
        beside(lambda: (setattr(state, "till", 7), setattr(state, "till", 5)))
        raise KeyError
    assert state.till == 5


def test_what_a_page_sends_of_a_private_trait_stays_when_a_transaction_on_top_of_it_is_undone(one: Shop) -> None:
    with suppress(KeyError), one.transaction():
        one.till = 1
        beside(lambda: one.set_state({"till": 8}))
        one.till = 3
        raise KeyError
    assert one.till == 8


def test_what_is_written_between_a_write_of_another_thread_and_its_telling_is_undone_and_that_one_is_not(
    one: Shop, two: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, bridge = Gate(), one._bridge
    assert bridge is not None
    write = bridge.write

    def slow(trait: str, old: Any, raw: Any) -> Any:
        wrote = write(trait, old, raw)
        if raw == 7:
            sent.stop()
        return wrote

    monkeypatch.setattr(bridge, "write", slow)
    with ThreadPoolExecutor(1) as pool, suppress(KeyError), one.transaction():
        other = pool.submit(lambda: setattr(one, "stock", 7))
        assert sent.reached()
        one.stock = 6
        sent.open()
        other.result(10)
        raise KeyError
    assert agreed(one, two)["stock"] == 7


def test_what_is_written_between_a_sum_of_another_thread_and_its_telling_is_undone_and_that_one_is_not(
    one: Shop, two: Shop
) -> None:
    moved, changed_here, me = Gate(), one._changed_here, threading.get_ident()

    def slow(name: str, old: Any, new: Any, *, checked: bool) -> None:
        if threading.get_ident() != me:
            moved.stop()
        changed_here(name, old, new, checked=checked)

    one.__dict__["_changed_here"] = slow
    with ThreadPoolExecutor(1) as pool, suppress(KeyError), one.transaction():
        one.price = 1.0
        other = pool.submit(lambda: one.increment("stock", 7))
        assert moved.reached()
        one.stock = 100
        moved.open()
        other.result(10)
        raise KeyError
    assert agreed(one, two)["stock"] == 7


# --- begun while something was shown that did not stay


def test_a_transaction_that_began_during_an_assignment_that_was_refused_is_not_undone_to_that(here: Link) -> None:
    checked = Gate()

    def to_json(value: Any, obj: Any) -> Any:
        if value == ["bad"]:
            checked.stop()
            return [object()]
        return value

    class Slow(SharedState, delivery="thread"):
        names = t.List().tag(to_json=to_json, from_json=lambda value, obj: value)

    state = here(Slow())
    with ThreadPoolExecutor(1) as pool:
        bad = pool.submit(lambda: setattr(state, "names", ["bad"]))
        assert checked.reached()
        with suppress(KeyError), state.transaction():
            checked.open()
            with pytest.raises(InvalidValue):
                bad.result(10)
            state.names = ["mine"]
            raise KeyError
    assert agreed(state) == {"names": []}


def test_a_transaction_that_began_on_top_of_one_that_waited_in_vain_is_not_undone_to_that(
    here: Link, two: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharedwidgets.turns.TURN_SECONDS", 0.3)
    state, written = here(Patient()), Gate()

    def wait_in_vain() -> None:
        with state.transaction():
            state.stock = 5
            written.stop()

    with two.lock(), ThreadPoolExecutor(1) as pool:
        eventually(lambda: state.locked_by is not None)
        other = pool.submit(wait_in_vain)
        assert written.reached()
        with suppress(KeyError), state.transaction():
            written.open()
            with pytest.raises(LockTimeout):
                other.result(10)
            assert state.stock == 0
            state.stock = 6
            raise KeyError
    assert agreed(state, two)["stock"] == 0


def test_two_transactions_on_top_of_each_other_leave_a_dict_that_nobody_has_changed_in_place(one: Shop) -> None:
    begun = Gate()

    def work() -> None:
        with suppress(KeyError), one.transaction():
            one.prices = {**one.prices, "b": 2}
            begun.stop()
            raise KeyError

    with ThreadPoolExecutor(1) as pool:
        with suppress(KeyError), one.transaction():
            one.prices = {"a": 1}
            other = pool.submit(work)
            assert begun.reached()
            raise KeyError
        begun.open()
        other.result(20)
    assert one.prices == {}
    # It would warn of one.
    assert one.pull().prices == {}


def test_generators_whose_transactions_end_in_the_order_of_beginning_leave_nothing_open(one: Shop, two: Shop) -> None:
    """The second is part of the entry of the first, and has been sent when it is dropped."""

    def steps(name: str) -> Iterator[None]:
        with one.transaction():
            setattr(one, name, 2)
            yield

    for _ in zip(steps("stock"), steps("sold"), strict=False):
        pass
    gc.collect()
    one.price = 1.0
    held = agreed(one, two)
    assert (held["stock"], held["sold"], held["price"]) == (2, 2, 1.0)


# --- turns that were interrupted, or did not come


@pytest.mark.parametrize("how", [*GROUPS, "assignment", "increment"])
def test_an_interrupt_while_a_turn_is_given_back_takes_back_nothing_that_is_written(
    here: Link, two: Shop, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    state, release, locked = here(Patient()), answers.release, Gate()

    def interrupted(connection: Any, *args: Any) -> None:
        release(connection, *args)
        if connection is state._bridge.connection:
            raise KeyboardInterrupt

    def hold() -> None:
        with two.lock() as lock:
            locked.stop()
            eventually(lambda: len(lock.waiters) == 1)

    with ThreadPoolExecutor(1) as pool, monkeypatch.context() as patch:
        holder = pool.submit(hold)
        assert locked.reached()
        eventually(lambda: state.locked_by is not None)
        patch.setattr(answers, "release", interrupted)
        locked.open()
        with pytest.raises(KeyboardInterrupt):
            if how == "increment":
                state.increment("stock", 5)
            else:
                with getattr(state, how)() if how in GROUPS else nullcontext():
                    state.stock = 5
        holder.result(10)
    assert agreed(state, two)["stock"] == 5


def test_a_turn_that_did_not_come_leaves_what_the_holder_of_the_lock_wrote_though_it_is_the_same(
    here: Link, two: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharedwidgets.turns.TURN_SECONDS", 0.6)
    state = here(Patient())
    with two.lock() as held, ThreadPoolExecutor(1) as pool:
        eventually(lambda: state.locked_by is not None)
        other = pool.submit(lambda: setattr(state, "stock", 5))
        eventually(lambda: len(held.waiters) == 1)
        two.stock = 5
        eventually(lambda: state.stock == 5)
        with pytest.raises(LockTimeout):
            other.result(10)
    assert agreed(state, two)["stock"] == 5


# --- linked meanwhile


def test_a_link_whose_answer_comes_in_a_transaction_of_another_task_raises(
    here: Link, server: LiveServer, token: str, two: Shop
) -> None:
    state = Shop()

    async def main() -> None:
        link = asyncio.ensure_future(state.link_to_async(token, server=server.url, credential=server.credential))
        await asyncio.sleep(0)
        with suppress(KeyError), state.transaction():
            state.stock = 1
            with pytest.raises(RuntimeError, match="link outside"):
                await link
            state.stock = 3
            state.sold = 4
            raise KeyError

    asyncio.run(main())
    assert (state.linked_to, state.stock, state.sold) == (None, 0, 0)
    here(state)
    held = agreed(state, two)
    assert (held["stock"], held["sold"]) == (0, 0)


def test_a_link_to_another_room_whose_answer_comes_in_a_transaction_of_another_thread_raises(
    server: LiveServer, token: str, one: Shop, two: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert one._bridge is not None
    connection, answered = one._bridge.connection, Gate()
    join = connection.join

    def slow(*args: Any) -> None:
        join(*args)
        answered.stop()

    elsewhere = Shop().link_to(f"{token}-2", server=server.url, credential=server.token)
    monkeypatch.setattr(connection, "join", slow)
    with ThreadPoolExecutor(1) as pool:
        link = pool.submit(lambda: one.link_to(f"{token}-2", server=server.url, credential=server.credential))
        assert answered.reached()
        with suppress(KeyError), one.transaction():
            one.stock = 1
            answered.open()
            with pytest.raises(RuntimeError, match="link outside"):
                link.result(10)
            one.sold = 2
            raise KeyError
    assert one.linked_to == token
    held = agreed(one, two)
    assert (held["stock"], held["sold"]) == (0, 0)
    assert (elsewhere.pull().stock, elsewhere.sold) == (0, 0)


# --- writes that were merged away


def test_a_trait_that_is_set_back_in_a_transaction_is_written_over_what_another_thread_wrote(one: Shop, two: Shop) -> None:
    with one.transaction():
        one.stock = 5
        beside(lambda: setattr(one, "stock", 7))
        assert one.stock == 7
        one.stock = 0
    assert agreed(one, two)["stock"] == 0


def test_a_trait_that_is_set_back_in_a_transaction_is_written_over_what_another_process_wrote(one: Shop, two: Shop) -> None:
    """H1: it shows what it was given all the time."""
    room = one.room
    assert room is not None
    with one.transaction():
        one.stock = 5
        two.stock = 7
        two.flush()
        eventually(lambda: room["Shop"]["stock"] == 7)
        one.stock = 0
    assert agreed(one, two)["stock"] == 0


def test_a_trait_that_is_assigned_what_it_shows_is_written_though_its_validator_wrote_another(here: Link, two: Shop) -> None:
    """H1: what the validator wrote is not what was assigned."""

    class Noting(SharedState, state_name="Shop", delivery="thread"):
        stock = t.Int(0)
        sold = t.Int(0)

        @t.validate("stock")
        def _note(self, proposal: Any) -> int:
            self.sold = self.sold + 2
            return int(proposal.value)

    state = here(Noting())
    with state._bridge.holding():
        two.stock = 7
        two.flush()
        eventually(lambda: state.room["Shop"]["stock"] == 7)
        state.stock = 0
    settled(state, two)
    assert two.stock == 0


def test_a_key_of_another_thread_that_is_taken_out_in_a_transaction_is_gone(one: Shop, two: Shop) -> None:
    with one.transaction():
        one.prices = {"a": 1}
        beside(lambda: setattr(one, "prices", {**one.prices, "b": 2}))
        one.prices = {"a": 1}
    assert agreed(one, two)["prices"] == {"a": 1}


def test_a_key_of_another_thread_that_a_transaction_leaves_alone_is_not_written_again(one: Shop, two: Shop) -> None:
    with one.transaction():
        one.prices = {"a": 1}
        beside(lambda: setattr(one, "prices", {**one.prices, "b": 2}))
        one.prices = {**one.prices, "c": 3}
        assert two.wait_until(lambda: two.prices == {"b": 2}, 10)
        two.prices = {"b": 9}
        two.flush()
    assert agreed(one, two)["prices"] == {"a": 1, "b": 9, "c": 3}


def test_an_assignment_behind_a_sum_and_a_write_of_another_thread_is_what_is_assigned(one: Shop, two: Shop) -> None:
    with one.transaction():
        one.increment("stock")
        beside(lambda: setattr(one, "stock", 7))
        one.stock = 7
    assert agreed(one, two)["stock"] == 7


def test_what_a_sum_shows_is_no_sum_once_it_is_assigned(one: Shop, two: Shop) -> None:
    with one.transaction():
        one.increment("stock")
        one.stock = 1
        two.increment("stock", 5)
        two.flush()
    assert agreed(one, two)["stock"] == 1


def test_an_update_that_names_an_unknown_trait_is_not_half_of_an_entry(one: Shop, two: Shop) -> None:
    room = one.room
    assert room is not None
    with room.transaction():
        room["Shop"]["price"] = 1.0
        with pytest.raises(NoSuchTrait):
            room["Shop"].update({"stock": 1, "nope": 2})
    held = agreed(one, two)
    assert (held["price"], held["stock"]) == (1.0, 0)


@pytest.mark.parametrize("group", ["transaction", None])
def test_an_own_key_stays_while_an_older_value_is_on_its_way_in(one: Shop, two: Shop, group: str | None) -> None:
    """The delivery has read the replica and is about to put it in when this thread writes."""
    accepted, me, read = one._accepted, threading.get_ident(), Gate()

    def slow(name: str, value: Any) -> Any:
        if threading.get_ident() != me and name == "prices":
            read.stop()
        return accepted(name, value)

    one.__dict__["_accepted"] = slow
    two.prices = {"r": 1}
    assert read.reached()
    with getattr(one, group)() if group else nullcontext():
        one.prices = {**one.prices, "a": 1}
    read.open()
    assert agreed(one, two)["prices"] == {"a": 1, "r": 1}


# --- what observers, validators and views are told


def test_no_observer_hears_of_a_value_that_never_was(one: Shop, two: Shop) -> None:
    """The sum is on top of what the transaction assigned, and another thread's value shows when it is made."""
    heard = Heard(one, "stock")
    with one.transaction():
        one.stock = 5
        beside(lambda: setattr(one, "stock", 7))
        one.increment("stock")
    assert agreed(one, two)["stock"] == 6
    assert [new for _, _, new in heard.steps] == [7, 6]


@pytest.mark.parametrize("group", GROUPS[:2])
def test_typed_lists_and_dicts_are_told_at_the_end(here: Link, group: str) -> None:
    class Typed(SharedState, delivery="thread"):
        numbers = t.List(t.Int())
        ages = t.Dict(value_trait=t.Int())

    state = here(Typed())
    heard = Heard(state, "numbers", "ages")
    with getattr(state, group)():
        state.numbers = [1]
        state.ages = {"a": 1}
    assert heard.steps == [("numbers", [], [1]), ("ages", {}, {"a": 1})]


def test_a_hold_keeps_its_values_where_a_validator_raises_no_trait_error_as_in_traitlets() -> None:
    class Picky(t.HasTraits):
        x = t.Int(0)

        @t.validate("x")
        def _check(self, proposal: Any) -> int:
            if proposal.value == 3:
                raise ZeroDivisionError
            return int(proposal.value)

    class Shared(SharedState, Picky):
        pass

    plain, state = Picky(), Shared()
    for item in (plain, state):
        with pytest.raises(ZeroDivisionError), item.hold_trait_notifications():
            item.x = 3
    assert plain.x == state.x == 3


def test_what_a_validator_writes_to_a_trait_that_was_checked_is_checked_too(here: Link) -> None:
    class Odd(SharedState, delivery="thread"):
        a = t.Int(0)
        b = t.Int(0)

        @t.validate("a")
        def _even(self, proposal: Any) -> int:
            if proposal.value % 2:
                raise t.TraitError("odd")
            return int(proposal.value)

        @t.validate("b")
        def _sets(self, proposal: Any) -> int:
            self.a = 3
            return int(proposal.value)

    state = here(Odd())
    with pytest.raises(t.TraitError, match="odd"), state.transaction():
        state.a = 2
        state.b = 2
    assert agreed(state) == {"a": 0, "b": 0}


def test_a_constructor_may_hold_before_it_calls_that_of_its_base() -> None:
    class Early(SharedState):
        x = t.Int(0)

        def __init__(self, **traits: Any) -> None:
            with self.hold_trait_notifications():
                self.x = 4
            super().__init__(**traits)

    assert Early().x == 4


def test_a_view_gets_what_two_threads_have_held_back_of_private_traits(here: Link) -> None:
    """ipywidgets keeps what is to be sent per object, and one thread sends it while another one adds to it."""
    sending, sent, armed = Gate(), set[int](), threading.Event()

    def to_json(value: Any, obj: Any) -> Any:
        sent.add(value)
        if value == 1 and armed.is_set():
            sending.stop()
        return value

    class Drawers(SharedState, delivery="thread"):
        x = t.Int(0)
        upper = t.Int(0).tag(shared=False, sync=True, to_json=to_json)
        lower = t.Int(0).tag(shared=False, sync=True, to_json=to_json)

    state = here(Drawers())
    armed.set()

    def work() -> None:
        with state.hold_sync():
            state.upper = 1

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(work)
        assert sending.reached()
        with state.hold_sync():
            state.lower = 2
            sending.open()
            other.result(10)
    assert sent >= {1, 2}


def test_an_assignment_of_another_thread_is_no_change_in_place(here: Link) -> None:
    """`pull` looks for those while the assignment has put its value in and not noted that yet."""
    assigned, looking, me = Gate(), threading.Event(), threading.get_ident()

    def first(value: Any, obj: Any) -> Any:
        if looking.is_set() and threading.get_ident() == me:
            # It is on its way from one trait to the next.
            others.append(pool.submit(lambda: setattr(obj, "second", {"b": 2})))
            assert assigned.reached()
        return value

    def second(value: Any, obj: Any) -> Any:
        if looking.is_set() and threading.get_ident() != me:
            assigned.stop()
        return value

    class Slow(SharedState, delivery="thread"):
        first = t.Dict().tag(to_json=lambda value, obj: in_first(value, obj), from_json=lambda value, obj: value)
        second = t.Dict().tag(to_json=lambda value, obj: in_second(value, obj), from_json=lambda value, obj: value)

    in_first, in_second, others = first, second, list[Any]()
    state = here(Slow())
    state.second = {"a": 1}
    state.flush()
    with ThreadPoolExecutor(1) as pool:
        looking.set()
        # It would warn of one.
        state.pull()
        looking.clear()
        assigned.open()
        assert len(others) == 1
        others[0].result(10)
    assert agreed(state)["second"] == {"b": 2}


# --- all of it at once, at random


class Everything(SharedState, delivery="thread"):
    total = t.Int(0)
    items = t.List()
    value = t.Int(0)
    both = t.Int(0)
    by_key = t.Dict()
    even = t.Int(0)
    mine = t.Int(0).tag(shared=False)

    @t.validate("even")
    def _even(self, proposal: Any) -> int:
        if proposal.value % 2:
            raise t.TraitError("odd")
        return int(proposal.value)


class Walk:
    """What one thread does to an object, and what it has added."""

    def __init__(self, state: Everything, seed: str, locks: bool) -> None:
        self.state, self.locks = state, locks
        self.chance = random.Random(seed)
        self.total = self.items = 0

    def go(self, count: int) -> None:
        """So many steps; where there are locks some of them are in vain."""
        for _ in range(count):
            with suppress(*([Locked, LockTimeout, LockLost] if self.locks else [])):
                self.step(0)

    def steps(self, depth: int) -> None:
        """Some, inside of something."""
        for _ in range(self.chance.randint(1, 5)):
            self.step(depth)

    def step(self, depth: int) -> None:
        """One of any kind, `depth` groups deep."""
        state, chance = self.state, self.chance
        ways = ["total", "items", "value", "both", "by_key", "even", "pull", "mine", "lock", "group"]
        match chance.choices(ways, [15, 10, 13, 12, 8, 6, 4, 4, 4, 24])[0]:
            case "total":
                by = chance.randint(1, 5)
                state.increment("total", by)
                self.total += by
            case "items":
                state.append("items", "x")
                self.items += 1
            case "value":
                state.value = chance.randint(0, 6)
            case "both" if chance.random() < 0.5:
                state.both = chance.randint(0, 6)
            case "both":
                state.increment("both")
            case "by_key":
                held = dict(state.by_key)
                if held and chance.random() < 0.3:
                    held.pop(chance.choice(list(held)))
                state.by_key = {**held, chance.choice("abcdef"): chance.randint(0, 3)}
            case "even":
                with suppress(t.TraitError):
                    # Inside of a group it would undo the outermost.
                    state.even = chance.randint(0, 6) if depth == 0 else 2 * chance.randint(0, 3)
            case "pull":
                state.pull()
            case "mine":
                state.mine = chance.randint(0, 100)
            case "lock" if self.locks and depth == 0:
                with state.lock():
                    self.steps(depth + 1)
            case "group" if depth < 3:
                self.group(depth)

    def group(self, depth: int) -> None:
        """Steps that are kept together, or undone."""
        kind, undone, kept = self.chance.choice(GROUPS), self.chance.random() < 0.3, (self.total, self.items)
        with suppress(KeyError), getattr(self.state, kind)():
            self.steps(depth + 1)
            if kind == "transaction" and undone:
                self.total, self.items = kept
                raise KeyError


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns after a few steps each."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


# Whoever looks while others are between two steps may take what it sees for a change in place.
@pytest.mark.filterwarnings("ignore:.*changed in place")
@pytest.mark.parametrize("seed", range(scaled(100)))
def test_g10_threads_that_nest_and_lock_and_undo_leave_every_object_with_what_the_room_holds(
    here: Link, server: LiveServer, token: str, restless: None, seed: int
) -> None:
    """Without locks nothing is in vain: every sum and item is there. Afterwards all observers hear of what is written."""
    locks = bool(seed % 2)
    one, other = here(Everything()), here(Everything())
    two = Everything().link_to(token, server=server.url, credential=server.token)
    states = (one, other, two)
    walks = [Walk(state, f"{seed} {place}", locks) for place, state in enumerate([one, one, one, other, two, two])]
    with ThreadPoolExecutor(len(walks)) as pool:
        for done in [pool.submit(walk.go, 60 if locks else 200) for walk in walks]:
            done.result(60)
    held = agreed(*states)
    if not locks:
        assert (held["total"], len(held["items"])) == (sum(walk.total for walk in walks), sum(walk.items for walk in walks))
    heard = [Heard(state, *held) for state in states]
    two.total, two.value, two.both, two.even = -1, -2, -3, -4
    two.items, two.by_key = ["y"], {"z": 1}
    held = agreed(*states)
    eventually(
        lambda: all((name, new) in [(at, to) for at, _, to in each.steps] for each in heard for name, new in held.items())
    )
