"""One object and several threads or tasks: what one keeps back in a transaction or hold is nothing to the others."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import traitlets as t

from sharedwidgets import SharedState, atomic
from sharedwidgets.errors import LockTimeout
from sharedwidgets_server.testing import LiveServer
from support.scale import scaled
from support.scripts import Heard, eventually, seq, settled
from support.shops import GROUPS, Link, Patient, Shop, beside, nothing_open


class Slow(SharedState, delivery="thread"):
    x = t.Int(0)
    meanwhile: Callable[[], object] = staticmethod(lambda: None)  # type: ignore[assignment]

    @t.validate("x")
    def _check(self, proposal: Any) -> int:
        type(self).meanwhile()
        return int(proposal.value)


# --- beside a transaction or hold of another thread


@pytest.mark.parametrize("group", GROUPS)
def test_sums_and_items_of_threads_in_anothers_hold_are_all_there(one: Shop, two: Shop, group: str) -> None:
    def work() -> None:
        for _ in range(200):
            one.increment("stock")
            one.append("names", "x")

    with getattr(one, group)():
        one.price = 1.0
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work) for _ in range(4)]:
                done.result(60)
        assert (one.stock, len(one.names)) == (800, 800)
    settled(one, two)
    assert (two.stock, len(two.names), two.price) == (800, 800, 1.0)


@pytest.mark.parametrize("group", GROUPS)
def test_sums_inside_a_hold_and_beside_it_are_all_there(one: Shop, two: Shop, group: str) -> None:
    """One thread's sums are kept back, those of the others are not; all show at once and none is lost."""
    go = threading.Barrier(3)

    def work() -> None:
        go.wait(10)
        for _ in range(200):
            one.increment("stock")

    with ThreadPoolExecutor(2) as pool:
        others = [pool.submit(work) for _ in range(2)]
        with getattr(one, group)():
            go.wait(10)
            for _ in range(200):
                one.increment("stock")
            for done in others:
                done.result(60)
            assert one.stock == 600
            assert two.wait_until(lambda: two.stock == 400, 10)
    settled(one, two)
    assert (one.stock, two.stock) == (600, 600)


@pytest.mark.parametrize("group", GROUPS[:2])
def test_a_sum_that_comes_while_validators_are_asked_is_not_set_back(here: Link, two: Shop, group: str) -> None:
    state, others = here(Slow()), [lambda: beside(lambda: state.increment("x"))]

    def meanwhile() -> None:
        if others:
            others.pop()()

    Slow.meanwhile = staticmethod(meanwhile)  # type: ignore[assignment]
    with getattr(state, group)():
        state.increment("x")
    settled(state, two)
    assert two.room is not None
    assert (others, state.x, two.room["Slow"]["x"]) == ([], 2, 2)


def test_a_sum_that_comes_between_the_reading_of_another_and_its_showing_is_in_it(
    one: Shop, two: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    plus, others = atomic.plus, [lambda: beside(lambda: one.increment("stock", 5))]
    calls: list[float] = []

    def slow(left: float, right: float) -> float:
        calls.append(left)
        # The first asks whether there is a sum; the second is of what is shown.
        if len(calls) == 2 and others:
            others.pop()()
        return plus(left, right)

    monkeypatch.setattr(atomic, "plus", slow)
    with one.transaction():
        one.increment("stock")
        assert one.stock == 6
    settled(one, two)
    assert (others, one.stock, two.stock) == ([], 6, 6)


def test_a_sum_beside_a_transaction_shows_at_once_and_is_told(one: Shop, two: Shop) -> None:
    heard = Heard(one, "stock")
    with one.transaction():
        one.price = 1.0
        assert beside(lambda: one.increment("stock")) == 1
        assert (one.stock, heard.steps) == (1, [("stock", 0, 1)])
    settled(one, two)
    assert heard.steps == [("stock", 0, 1)]


def test_an_assignment_beside_a_transaction_is_validated(one: Shop, server: LiveServer, token: str) -> None:
    before = seq(server, token)
    with one.transaction():
        one.price = 1.0
        with pytest.raises(t.TraitError, match="in pairs"):
            beside(lambda: setattr(one, "sold", 3))
        assert one.sold == 0
        # Its own are when it ends.
        one.sold = 3
        one.sold = 4
    one.flush()
    assert (one.sold, seq(server, token)) == (4, before + 1)


def test_a_hold_beside_a_transaction_is_one_entry(one: Shop, two: Shop, server: LiveServer, token: str) -> None:
    before = seq(server, token)

    def work() -> None:
        with one.hold_trait_notifications():
            one.stock, one.sold = 1, 2

    with suppress(KeyError), one.transaction():
        one.price = 1.0
        beside(work)
        assert two.wait_until(lambda: (two.stock, two.sold) == (1, 2), 10)
        assert seq(server, token) == before + 1
        raise KeyError
    one.flush()
    assert (one.stock, one.sold, one.price, seq(server, token)) == (1, 2, 0.0, before + 1)


def test_g10_transactions_of_two_threads_are_two_entries_of_which_one_may_be_undone(
    one: Shop, two: Shop, server: LiveServer, token: str
) -> None:
    before = seq(server, token)
    heard = Heard(one, "stock", "sold", "price")
    inside, go = threading.Event(), threading.Event()

    def work() -> None:
        with one.transaction():
            one.stock = 7
            inside.set()
            assert go.wait(10)
            one.sold = 8

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(work)
        assert inside.wait(10)
        with suppress(KeyError), one.transaction():
            one.price = 1.0
            one.stock = 9
            raise KeyError
        assert (one.price, heard.steps, seq(server, token)) == (0.0, [], before)
        go.set()
        other.result(20)
    settled(one, two)
    assert (two.stock, two.sold, two.price, seq(server, token)) == (7, 8, 0.0, before + 1)
    assert (one.stock, one.sold) == (7, 8)
    assert heard.steps == [("stock", 0, 7), ("sold", 0, 8)]


@pytest.mark.parametrize("linked", [True, False])
def test_what_is_undone_does_not_come_back_with_what_began_meanwhile(one: Shop, linked: bool) -> None:
    """The second began when the first one's value was there, and both are undone."""
    state = one if linked else Shop()
    begun, undone = threading.Event(), threading.Event()

    def work() -> None:
        with suppress(KeyError), state.transaction():
            state.stock = state.till = 2
            begun.set()
            assert undone.wait(10)
            raise KeyError

    with ThreadPoolExecutor(1) as pool:
        with suppress(KeyError), state.transaction():
            state.stock = state.till = 1
            other = pool.submit(work)
            assert begun.wait(10)
            raise KeyError
        undone.set()
        other.result(20)
    assert (state.pull().stock, state.till) == (0, 0)


@pytest.mark.parametrize("linked", [True, False])
def test_what_another_thread_writes_stays_when_a_transaction_is_undone(one: Shop, linked: bool) -> None:
    state = one if linked else Shop()
    heard = Heard(state, "stock", "till")
    with suppress(KeyError), state.transaction():
        state.stock = state.till = 1
        beside(lambda: (setattr(state, "stock", 2), setattr(state, "till", 2)))
        raise KeyError
    assert (state.stock, state.till) == (2, 2)
    state.pull()
    assert (state.stock, state.till) == (2, 2)
    assert heard.steps == [("stock", 1, 2), ("till", 1, 2)]


def test_tasks_have_transactions_of_their_own(one: Shop, two: Shop, server: LiveServer, token: str) -> None:
    before = seq(server, token)

    async def work(name: str, number: int) -> None:
        with one.transaction():
            setattr(one, name, number)
            await asyncio.sleep(0)
            one.increment("till" if name == "till" else "stock", number)

    async def main() -> None:
        await asyncio.gather(work("sold", 2), work("price", 3), work("stock", 10))

    asyncio.run(main())
    settled(one, two)
    assert (two.sold, two.price, two.stock, seq(server, token)) == (2, 3.0, 20, before + 3)


# --- one inside another


def test_a_transaction_inside_another_is_undone_by_itself(one: Shop, two: Shop, server: LiveServer, token: str) -> None:
    before, heard = seq(server, token), Heard(one, "stock", "sold", "price")
    with one.transaction():
        one.stock = 1
        with suppress(KeyError), one.transaction():
            one.stock, one.price = 5, 5.0
            one.increment("stock")
            raise KeyError
        assert (one.stock, one.price) == (1, 0.0)
        with one.transaction():
            one.sold = 2
            one.increment("stock")
    settled(one, two)
    assert (two.stock, two.sold, two.price, seq(server, token)) == (2, 2, 0.0, before + 1)
    assert heard.steps == [("stock", 0, 2), ("sold", 0, 2)]


def test_what_is_undone_inside_is_so_without_a_room(one: Shop) -> None:
    private = Shop()
    heard = Heard(private, "stock", "till")
    with private.transaction():
        private.stock = private.till = 1
        with suppress(KeyError), private.transaction():
            private.stock = private.till = 5
            raise KeyError
    assert heard.steps == [("stock", 0, 1), ("till", 0, 1)]


def test_transactions_of_a_room_inside_each_other(one: Shop, here: Link, server: LiveServer, token: str) -> None:
    other, room = here(Shop()), one.room
    assert room is not None
    before = seq(server, token)
    with room.transaction():
        one.stock = 1
        with suppress(KeyError), room.transaction():
            one.stock, other.price = 5, 5.0
            room["Shop"]["sold"] = 6
            raise KeyError
        assert (one.stock, other.price, room["Shop"]["sold"]) == (1, 0.0, 0)
        with suppress(KeyError), other.transaction():
            other.sold = 8
            raise KeyError
        with other.transaction():
            other.sold = 4
    one.flush()
    assert (one.stock, other.stock, other.price, one.sold, seq(server, token)) == (1, 1, 0.0, 4, before + 1)


@pytest.mark.parametrize("group", GROUPS)
def test_no_transaction_of_the_room_inside_of_one_of_an_object(one: Shop, group: str) -> None:
    """Half of its writes would go out with the outer one."""
    room = one.room
    assert room is not None
    with getattr(one, group)(), pytest.raises(RuntimeError, match="around"), room.transaction():
        pass
    one.stock = 1
    one.flush()
    assert room["Shop"]["stock"] == 1


# --- several ways to one trait in a transaction of the room


def test_writes_through_several_objects_count_in_the_order_of_writing(
    one: Shop, two: Shop, here: Link, server: LiveServer, token: str
) -> None:
    other, room = here(Shop()), one.room
    assert room is not None
    before, heard = seq(server, token), Heard(other, "stock")
    with room.transaction():
        room["Shop"]["stock"] = 9
        assert (one.stock, other.stock) == (9, 9)
        one.stock = 1
        assert (other.stock, room["Shop"]["stock"]) == (1, 1)
        other.increment("stock", 5)
        one.increment("stock", 5)
        other.stock = other.stock * 2
        one.increment("stock")
        one.sold = 4
        other.sold = 0
        one.prices = {"a": 1}
        other.prices = {**other.prices, "b": 2}
        one.prices = {**one.prices, "c": 3}
        assert (one.stock, other.stock, one.sold, room["Shop"]["stock"]) == (23, 23, 0, 23)
        assert (heard.steps, seq(server, token)) == ([], before)
    settled(one, two)
    assert (one.stock, other.stock, two.stock, two.sold) == (23, 23, 23, 0)
    assert one.prices == other.prices == two.prices == {"a": 1, "b": 2, "c": 3}
    assert (heard.steps, seq(server, token)) == ([("stock", 0, 23)], before + 1)


def test_g10_what_another_object_showed_is_undone_with_it(one: Shop, here: Link, server: LiveServer, token: str) -> None:
    other, room = here(Shop()), one.room
    assert room is not None
    before, heard = seq(server, token), Heard(other, "stock")
    with suppress(KeyError), room.transaction():
        one.stock = 1
        assert other.stock == 1
        raise KeyError
    assert (one.stock, other.stock, heard.steps, seq(server, token)) == (0, 0, [], before)
    other.stock = 2
    assert one.pull().stock == 2


def test_a_transaction_of_the_room_takes_in_however_many_objects(one: Shop, here: Link, server: LiveServer, token: str) -> None:
    """Each has validators to ask, and each of them once."""
    others = [here(Shop()) for _ in range(120)]
    before, room = seq(server, token), one.room
    assert room is not None
    with room.transaction():
        for number, other in enumerate(others):
            other.sold, other.till = 2 * number, number
    one.flush()
    assert ({other.sold for other in others}, seq(server, token)) == ({238}, before + 1)
    assert [other.till for other in others] == [*range(120)]


# --- sums that are no number together


@pytest.mark.parametrize("group", GROUPS)
def test_sums_that_are_too_large_together_are_right_one_by_one(one: Shop, two: Shop, group: str) -> None:
    one.price = -1e308
    with getattr(one, group)():
        for step in (1e308, 1e308, -1e308):
            one.increment("price", step)
    settled(one, two)
    assert one.price == two.price == 0


# --- a write that waits for its turn


@pytest.mark.parametrize("group", [*GROUPS, None])
def test_what_waits_for_its_turn_holds_up_nobody_and_is_seen_by_nobody(
    here: Link, two: Shop, server: LiveServer, token: str, group: str | None
) -> None:
    """The thread that is before it in the queue uses the same object: it must not wait for this one, nor read what it wrote."""
    state, seen = here(Patient()), list[Any]()
    heard = Heard(state, "stock", "till")

    def lock() -> None:
        with state.lock():
            seen.append((state.stock, state.prices))
            state.prices = {**state.prices, "lock": state.stock}

    def write() -> None:
        with getattr(state, group)() if group else nullcontext():
            if group:
                state.prices = {**state.prices, "write": 1}
            state.stock = 5
            if group == "transaction":
                state.till = 5

    held: Any = two.lock().acquire()
    eventually(lambda: state.locked_by is not None)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lock)
        eventually(lambda: len(held.waiters) == 1)
        second = pool.submit(write)
        eventually(lambda: len(held.waiters) == 2)
        began = time.monotonic()
        held.release()
        first.result(30)
        second.result(30)
        assert time.monotonic() - began < 3
    settled(state, two)
    assert seen == [(0, {})]
    assert two.prices == ({"lock": 0, "write": 1} if group else {"lock": 0})
    assert (state.stock, two.stock, state.till) == (5, 5, 5 if group == "transaction" else 0)
    if group != "hold_sync":
        assert [step for step in heard.steps if step[0] == "stock"] == [("stock", 0, 5)]


@pytest.mark.parametrize("group", [*GROUPS, None])
def test_what_waits_in_vain_is_undone(here: Link, two: Shop, monkeypatch: pytest.MonkeyPatch, group: str | None) -> None:
    monkeypatch.setattr("sharedwidgets.turns.TURN_SECONDS", 0.2)
    state, told = here(Patient()), Heard(two, "stock")
    with two.lock():
        eventually(lambda: state.locked_by is not None)
        with pytest.raises(LockTimeout), getattr(state, group)() if group else nullcontext():
            state.stock = 5
            state.till = 6
    settled(state, two)
    assert (state.stock, state.till, two.stock, told.steps) == (0, 6 if group == "hold_sync" else 0, 0, [])
    state.stock = 1
    settled(state, two)
    assert two.stock == 1


# --- a lock and the holds of other objects


def test_a_lock_waits_for_no_hold_of_an_object_it_does_not_cover(one: Shop, here: Link) -> None:
    class Other(SharedState, delivery="thread"):
        x = t.Int(0)

    other = here(Other())
    with other.hold_sync():
        other.x = 1

        def take() -> bool:
            with one.lock(timeout=2):
                return True

        assert beside(take)


def test_who_asks_within_bounds_gets_the_answer_whatever_an_observer_makes_of_it(one: Shop) -> None:
    def raises(change: Any) -> None:
        raise ValueError

    one.observe(raises, "stock")
    assert one.increment("stock", max=5) == 1
    assert one.compare_and_set("stock", 1, 3)
    assert one.stock == 3


def test_who_asks_within_bounds_may_do_so_beside_anothers_transaction(one: Shop) -> None:
    with one.transaction():
        one.price = 1.0
        assert beside(lambda: one.increment("stock", max=5)) == 1
        with pytest.raises(RuntimeError, match="outside of a transaction"):
            one.increment("stock", max=5)
    assert one.pull().stock == 1


# --- all of it at once, at random


class Mixed(SharedState, delivery="thread"):
    total = t.Int(0)
    left = t.Int(0)
    right = t.Int(0)
    notes = t.List()
    own0 = t.Int(0)
    own1 = t.Int(0)
    own2 = t.Int(0)
    own3 = t.Int(0)
    own4 = t.Int(0)


class Undone(Exception):
    """Thrown into a transaction."""


class Walk:
    """What one thread does to an object, and what should come of it."""

    def __init__(self, state: Mixed, name: str, seed: str) -> None:
        self.state, self.name = state, name
        self.chance = random.Random(f"{seed} {name}")
        self.sum, self.items, self.own = 0, list[str](), 0

    def steps(self, count: int) -> None:
        """Sums, items, assignments and pairs, alone or together, some of them undone."""
        for number in range(count):
            how = self.chance.choice([None, None, "transaction", "hold_trait_notifications", "hold_sync", "undone", "inner"])
            kept = (self.sum, [*self.items], self.own)
            if how is None:
                self.alone(number)
            elif how == "undone":
                with suppress(Undone), self.state.transaction():
                    self.together(number)
                    raise Undone
                self.sum, self.items, self.own = kept
            elif how == "inner":
                with self.state.transaction():
                    with suppress(Undone), self.state.transaction():
                        self.together(number)
                        raise Undone
                    self.sum, self.items, self.own = kept
                    self.together(number)
            else:
                with getattr(self.state, how)():
                    self.together(number)

    def alone(self, number: int) -> None:
        """One write."""
        match self.chance.randrange(3):
            case 0:
                by = self.chance.randrange(-9, 10)
                self.state.increment("total", by)
                self.sum += by
            case 1:
                self.state.append("notes", f"{self.name} {number}")
                self.items.append(f"{self.name} {number}")
            case 2:
                self.own = self.chance.randrange(5)
                setattr(self.state, f"own{self.name}", self.own)

    def together(self, number: int) -> None:
        """Several, of which two belong together."""
        for _ in range(self.chance.randrange(4)):
            self.alone(number)
        self.state.left = self.state.right = self.chance.randrange(1000)


@pytest.mark.parametrize("seed", range(scaled(100)))
def test_g10_threads_of_two_clients_that_write_in_every_way_lose_nothing(
    here: Link, server: LiveServer, token: str, seed: int
) -> None:
    """Every write that was not undone is there, pairs stay pairs, and all show what the room holds."""
    one, other = here(Mixed()), here(Mixed())
    two = Mixed().link_to(token, server=server.url, credential=server.token)
    torn: list[Any] = []
    far = two.room
    assert far is not None

    def look(change: Any) -> None:
        if far["Mixed"]["left"] != far["Mixed"]["right"]:
            torn.append(dict(far["Mixed"]))

    two.observe(look, ["left", "right"])
    walks = [
        Walk(state, f"{place}", f"{seed}")  # several threads share an object, two objects share a process
        for place, state in enumerate([one, one, one, other, two])
    ]
    with ThreadPoolExecutor(len(walks)) as pool:
        for done in [pool.submit(walk.steps, 25) for walk in walks]:
            done.result(60)
    for state in (one, other, two):
        state.flush()
    settled(one, other, two)
    assert torn == []
    held = dict(far["Mixed"])
    assert held["total"] == sum(walk.sum for walk in walks)
    assert sorted(held["notes"]) == sorted(item for walk in walks for item in walk.items)
    for walk in walks:
        mine = [item for item in held["notes"] if item.startswith(f"{walk.name} ")]
        assert mine == walk.items, "the writes of one thread stay in their order"
        assert held[f"own{walk.name}"] == walk.own
    assert held["left"] == held["right"]
    for state in (one, other, two):
        assert {name: getattr(state, name) for name in held} == held
    nothing_open(one, other, two)
