"""Computed traits under any order of changes: what is read is never old, and what is told leads from value to value."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Iterator
from typing import Any

import ipywidgets
import pytest
import traitlets as t
from hypothesis import given
from hypothesis import strategies as st

from sharedwidgets import SharedState, computed
from support.scale import scaled

NAMES = ("a", "b", "c")
COMPUTED = ("sum", "chosen", "pair", "coarse", "named", "across", "_quiet")


class Below(SharedState):
    c = t.Int(0)

    @computed
    def double(self) -> int:
        return 2 * self.c


class Graph(SharedState):
    a = t.Int(0)
    b = t.Int(0).tag(shared=False)
    flag = t.Bool(False)
    below = t.Any().tag(shared=False, sync=False)

    def __init__(self, below: Below) -> None:
        self.counts: dict[str, int] = dict.fromkeys(COMPUTED, 0)
        super().__init__(below=below)

    @computed
    def sum(self) -> int:
        self.counts["sum"] += 1
        return self.a + self.b

    @computed
    def chosen(self) -> int:
        self.counts["chosen"] += 1
        return self.sum if self.flag else self.below.double

    @computed
    def pair(self) -> tuple[int, int]:
        self.counts["pair"] += 1
        return self.sum, self.chosen

    @computed
    def coarse(self) -> int:
        self.counts["coarse"] += 1
        return self.pair[0] % 3

    @computed("coarse", "b")
    def named(self) -> int:
        self.counts["named"] += 1
        return 10 * self.coarse + self.b

    @computed
    def across(self) -> int:
        self.counts["across"] += 1
        return self.below.double + self.coarse

    @computed
    def _quiet(self) -> int:
        self.counts["_quiet"] += 1
        return self.named - self.across


def expected(state: Graph) -> dict[str, Any]:
    a, b, c = state.a, state.b, state.below.c
    chosen = a + b if state.flag else 2 * c
    coarse = (a + b) % 3
    named, across = 10 * coarse + b, 2 * c + coarse
    return {
        "sum": a + b,
        "chosen": chosen,
        "pair": (a + b, chosen),
        "coarse": coarse,
        "named": named,
        "across": across,
        "_quiet": named - across,
    }


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    ipywidgets.Widget.close_all()


def owner(state: Graph, name: str) -> SharedState:
    return state.below if name == "c" else state  # type: ignore[no-any-return]


def put(state: Graph, values: dict[str, int]) -> None:
    """As a bridge does: all values are there before the first of them is told."""
    olds = {name: getattr(owner(state, name), name) for name in values}
    for name, value in values.items():
        owner(state, name)._trait_values[name] = value
    for name, value in values.items():
        if olds[name] != value:
            change = t.Bunch(name=name, old=olds[name], new=value, owner=owner(state, name), type="change", origin="remote")
            owner(state, name).notify_change(change)


small = st.integers(0, 3)
change = st.one_of(
    st.tuples(st.just("set"), st.sampled_from(NAMES), small),
    st.tuples(st.just("flag"), st.booleans()),
    st.tuples(st.just("put"), st.dictionaries(st.sampled_from(NAMES), small, min_size=1)),
    st.tuples(st.just("read"), st.sampled_from(COMPUTED)),
)
group = st.tuples(st.sampled_from(["transaction", "hold_trait_notifications"]), st.booleans(), st.booleans(), st.lists(change))
steps = st.lists(st.one_of(change, group), max_size=12)


def do(state: Graph, step: Any) -> None:
    match step:
        case "set", name, value:
            setattr(owner(state, name), name, value)
        case "flag", value:
            state.flag = value
        case "put", values:
            put(state, values)
        case "read", name:
            assert getattr(state, name) == expected(state)[name]
        case verb, on_below, undone, inner:
            try:
                with getattr(state.below if on_below else state, verb)():
                    for item in inner:
                        if item[0] != "put":  # nothing is put into an object in a hold
                            do(state, item)
                    if undone:
                        raise t.TraitError("undone")
            except t.TraitError:
                assert undone


@given(steps, st.booleans())
def test_reads_are_never_old_and_events_lead_from_value_to_value(steps: list[Any], observed: bool) -> None:
    state = Graph(Below())
    told = {name: getattr(state, name) for name in COMPUTED}
    names = [name for name in COMPUTED if observed or name != "_quiet"]

    def hear(event: Any) -> None:
        assert event.old == told[event.name]
        assert event.new != event.old
        assert event.new == getattr(state, event.name) == expected(state)[event.name]
        assert not state._parts, "told in a hold"
        told[event.name] = event.new

    state.observe(hear, names)
    for step in steps:
        before = dict(state.counts)
        do(state, step)
        now = expected(state)
        assert {name: told[name] for name in names} == {name: now[name] for name in names}
        if step[0] in ("set", "flag", "put"):
            assert all(state.counts[name] - before[name] <= 1 for name in COMPUTED), "evaluated more than once per change"
    counts = dict(state.counts)
    assert {name: getattr(state, name) for name in COMPUTED} == expected(state)
    assert {name: state.counts[name] - counts[name] for name in names} == dict.fromkeys(names, 0)
    state.close()
    state.below.close()


@pytest.fixture
def restless() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("restless")
def test_threads_that_change_everything_end_with_what_is_there_told_last() -> None:
    state = Graph(Below())
    told = {name: getattr(state, name) for name in COMPUTED}
    broken: list[Any] = []

    def hear(event: Any) -> None:
        if event.old != told[event.name]:
            broken.append((event.name, event.old, told[event.name]))
        told[event.name] = event.new

    state.observe(hear, COMPUTED)

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(scaled(400)):
            name = rng.choice([*NAMES, "flag"])
            if name == "flag":
                state.flag = rng.random() < 0.5
            elif rng.random() < 0.2:
                getattr(state, rng.choice(COMPUTED))
            else:
                setattr(owner(state, name), name, rng.randrange(5))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert broken == []
    assert told == {name: getattr(state, name) for name in COMPUTED} == expected(state)
