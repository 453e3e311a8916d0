"""`@computed` without a server: what is evaluated when, how often, and who is told."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import gc
import logging
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import ipywidgets
import pytest
import traitlets as t

from sharedwidgets import SharedState, computed, tasks
from sharedwidgets.computing import Computed, frames
from sharedwidgets.deferred import AsyncFormula
from sharedwidgets.errors import ComputedCycle
from sharedwidgets.formulas import PlainFormula


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    ipywidgets.Widget.close_all()
    assert not frames


class Sums(SharedState):
    """Counts its evaluations in `ran`, and has a diamond: `total` is of `double` and `triple`, both of `a`."""

    a = t.Int(1)
    b = t.Int(10)
    tags = t.Dict()
    draft = t.Unicode("").tag(shared=False)
    _salt = t.Int(100)

    @computed
    def double(self) -> int:
        """Twice as much."""
        self.note("double")
        return 2 * self.a

    @computed
    def triple(self) -> int:
        self.note("triple")
        return 3 * self.a

    @computed
    def total(self) -> int:
        self.note("total")
        return self.double + self.triple + self.b

    @computed
    def _hidden(self) -> int:
        self.note("_hidden")
        return self._salt + 1

    def note(self, name: str) -> None:
        vars(self).setdefault("ran", []).append(name)


def ran(state: Any) -> list[str]:
    """What was evaluated since this was asked last."""
    found, state.ran = vars(state).get("ran", []), []
    return list(found)


def heard(state: SharedState, *names: str) -> list[tuple[str, Any, Any]]:
    events: list[tuple[str, Any, Any]] = []
    state.observe(lambda change: events.append((change.name, change.old, change.new)), names=list(names) or t.All)
    return events


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What goes to the own views."""
    updates: list[dict[str, Any]] = []
    monkeypatch.setattr(
        SharedState, "_send", lambda self, msg, buffers=None: updates.append(msg["state"]) if "state" in msg else None
    )
    return updates


# --- values and how often


def test_a_value_is_kept_until_what_it_is_made_of_changes() -> None:
    state = Sums()
    ran(state)
    assert (state.double, state.total, state.total) == (2, 15, 15)
    assert ran(state) == []
    state.a = 2
    assert (state.double, state.triple, state.total) == (4, 6, 20)
    assert sorted(ran(state)) == ["double", "total", "triple"]
    state.draft = "x"
    state.b = 20
    assert state.total == 30
    assert ran(state) == ["total"]


def test_each_is_told_once_and_in_order() -> None:
    state = Sums()
    events = heard(state, "a", "b", "double", "triple", "total")
    ran(state)
    state.a = 2
    assert events == [("a", 1, 2), ("double", 2, 4), ("triple", 3, 6), ("total", 15, 20)]
    assert sorted(ran(state)) == ["double", "total", "triple"]


def test_an_observer_never_sees_half_of_a_change() -> None:
    state = Sums()
    seen: list[bool] = []
    state.observe(lambda change: seen.append(state.total == 5 * state.a + state.b), t.All)
    state.a = 2
    with state.hold_trait_notifications():
        state.a = 3
        assert state.total == 25
        state.b = 5
    assert seen
    assert all(seen)


def test_what_comes_to_an_equal_value_is_no_event_and_nothing_is_made_of_it_again() -> None:
    class Parity(Sums):
        @computed
        def odd(self) -> bool:
            self.note("odd")
            return self.a % 2 == 1

        @computed
        def words(self) -> list[str]:
            self.note("words")
            return ["odd" if self.odd else "even"]

    state = Parity()
    events = heard(state, "odd", "words")
    ran(state)
    first = state.words
    state.a = 3
    assert [name for name in ran(state) if name in ("odd", "words")] == ["odd"]
    assert (events, state.words) == ([], ["odd"])
    assert state.words is first
    state.a = 4
    assert events == [("odd", True, False), ("words", ["odd"], ["even"])]


@pytest.mark.parametrize(
    ("first", "then", "told"),
    [
        (1, True, True),
        (1, 1.0, True),
        (0.0, -0.0, True),
        (float("nan"), float("nan"), False),
        ([1], [True], True),
        ({"a": [1]}, {"a": [1]}, False),
    ],
)
def test_which_values_are_equal(first: Any, then: Any, told: bool) -> None:
    class Pick(SharedState):
        n = t.Int(0)

        @computed
        def value(self) -> Any:
            return (first, then)[self.n]

    state = Pick()
    events = heard(state, "value")
    state.n = 1
    assert len(events) == told
    assert type(state.value) is type(then)


def test_a_value_that_was_put_in_without_a_word_is_seen() -> None:
    state = Sums()
    events = heard(state, "total")
    state._trait_values["a"] = 2  # as a bridge does, before it tells
    state._trait_values["b"] = 20
    assert state.total == 30
    state.notify_change(t.Bunch(name="a", old=1, new=2, owner=state, type="change"))
    state.notify_change(t.Bunch(name="b", old=10, new=20, owner=state, type="change"))
    assert events == [("total", 15, 30)]


def test_dependencies_follow_what_is_read() -> None:
    class Choice(Sums):
        first = t.Bool(True)

        @computed
        def chosen(self) -> int:
            self.note("chosen")
            return self.a if self.first else self.b

    state = Choice()
    events = heard(state, "chosen")
    ran(state)
    state.b = 11
    assert "chosen" not in ran(state)
    state.first = False
    state.b = 12
    ran(state)
    state.a = 5
    assert "chosen" not in ran(state)
    assert events == [("chosen", 1, 11), ("chosen", 11, 12)]


def test_private_and_kernel_only_traits_count() -> None:
    class Words(Sums):
        @computed
        def line(self) -> str:
            return f"{self.draft}{self._salt}"

    state = Words()
    events = heard(state, "line")
    state.draft = "x"
    state._salt = 5
    assert events == [("line", "100", "x100"), ("line", "x100", "x5")]


def test_it_can_be_waited_for() -> None:
    async def main() -> None:
        state = Sums()
        waiting = state.changed("total")
        state.b = 11
        assert (await asyncio.wait_for(waiting, 5)).new == 16
        assert state.wait_until(lambda: state.total == 16, 0)

    asyncio.run(main())


def test_an_observer_may_assign_what_it_is_made_of() -> None:
    state = Sums()
    state.observe(lambda change: setattr(state, "a", min(4, state.a + 1)), "double")
    told = {"double": 2, "total": 15}
    state.observe(lambda change: told.update({change.name: change.new}), ["double", "total"])
    state.a = 2
    assert (state.a, told["total"]) == (4, 30)


def test_a_trait_of_another_object() -> None:
    other = Sums()

    class Watcher(SharedState):
        factor = t.Int(2).tag(shared=False)

        @computed
        def scaled(self) -> int:
            return self.factor * other.total

    state = Watcher()
    events = heard(state, "scaled")
    other.a = 2
    state.factor = 3
    other._salt = 1
    assert events == [("scaled", 30, 40), ("scaled", 40, 60)]


def test_an_object_that_is_reached_by_a_trait_can_be_exchanged() -> None:
    class Holder(SharedState):
        of = t.Any().tag(shared=False, sync=False)

        @computed
        def count(self) -> int:
            return -1 if self.of is None else int(self.of.a)

    first, second = Sums(a=3), Sums(a=4)
    state = Holder()
    events = heard(state, "count")
    state.of = first
    first.a = 5
    state.of = second
    first.a = 6
    second.a = 7
    assert [new for _, _, new in events] == [3, 5, 4, 7]


def test_a_dependent_is_not_kept_and_forgotten_when_it_is_gone() -> None:
    other = Sums()

    class Watcher(SharedState):
        @computed
        def copy(self) -> int:
            return other.a

    def make() -> weakref.ref[Any]:
        state = Watcher()
        assert state.copy == 1
        state.close()
        return weakref.ref(state)

    gone = [make() for _ in range(20)]
    gc.collect()
    assert [ref() for ref in gone] == [None] * 20
    assert {name: len(cells) for name, cells in vars(other)["_computed_dependents"].items()} == {"a": 3, "b": 1}
    other.a = 2


def test_a_source_is_not_kept_either() -> None:
    class Holder(SharedState):
        of = t.Any().tag(shared=False, sync=False)

        @computed
        def count(self) -> int:
            return -1 if self.of is None else int(self.of.a)

    state = Holder(of=Sums(a=3))
    assert state.count == 3
    gone = weakref.ref(state.of)
    state.of.close()
    state.of = None
    gc.collect()
    assert (state.count, gone()) == (-1, None)


def test_one_nobody_wants_is_made_when_it_is_read() -> None:
    state = Sums()
    ran(state)
    state._salt = 1
    state._salt = 2
    assert ran(state) == []
    assert state._hidden == 3
    assert ran(state) == ["_hidden"]
    state._salt = 3
    events = heard(state, "_hidden")
    assert ran(state) == ["_hidden"]
    state._salt = 4
    assert events == [("_hidden", 4, 5)]
    assert ran(state) == ["_hidden"]


def test_named_dependencies() -> None:
    class Named(Sums):
        @computed("a", "double")
        def both(self) -> int:
            self.note("both")
            return self.a + self.double + self.b

    state = Named()
    events = heard(state, "both")
    ran(state)
    state.b = 0
    assert (state.both, "both" in ran(state)) == (13, False)
    state.a = 2
    assert (state.both, events) == (6, [("both", 13, 6)])
    assert ran(state).count("both") == 1


def test_a_trait_of_the_widget_can_be_named() -> None:
    class Named(SharedState):
        @computed("tooltip")
        def tip(self) -> str:
            return str(self.tooltip)

    state = Named()
    events = heard(state, "tip")
    state.tooltip = "x"
    assert events == [("tip", "None", "x")]


def test_a_name_that_is_no_trait_is_an_error_of_the_class() -> None:
    with pytest.raises(TypeError, match=r"^Bad\.total is to be computed of 'cuont', .* of Bad; it has count, total$"):

        class Bad(SharedState):
            count = t.Int(0)

            @computed("cuont")
            def total(self) -> int:
                return self.count

    with pytest.raises(TypeError, match="takes a function, or the names of traits, not 3"):
        computed(3)  # type: ignore[call-overload]


# --- what it is


def test_what_cannot_be_written_is_refused_whatever_is_expected_of_it() -> None:
    class Fixed(Sums):
        size = t.Int(7, read_only=True).tag(shared=False)

    state = Fixed()
    for expected in (2, 99):
        with pytest.raises(t.TraitError, match=r"Fixed\.double is computed and cannot be assigned"):
            state.compare_and_set("double", expected, 3)
        with pytest.raises(t.TraitError, match=r"Fixed\.double is computed and cannot be assigned"):
            asyncio.run(state.compare_and_set_async("double", expected, 3))
    for expected in (7, 99):
        with pytest.raises(t.TraitError, match=r"read-only"):
            state.compare_and_set("size", expected, 3)
    assert (state.double, state.size) == (2, 7)


def test_it_is_a_read_only_private_trait_with_the_docstring_of_its_function() -> None:
    state = Sums()
    trait = state.traits()["double"]
    assert isinstance(trait, Computed)
    assert (trait.help, trait.metadata["shared"], trait.metadata["sync"]) == ("Twice as much.", False, True)
    assert "sync" not in state.traits()["_hidden"].metadata
    assert {"double", "total"} & set(state._shared()) == set()
    for assign in (lambda: setattr(state, "double", 3), lambda: state.set_trait("double", 3)):
        with pytest.raises(t.TraitError, match=r"Sums\.double is computed and cannot be assigned; assign the traits"):
            assign()
    with pytest.raises(TypeError, match=r"Sums\.double is computed and takes no first value"):
        Sums(double=3)
    assert state.double == 2


def test_a_page_cannot_set_it(sent: list[dict[str, Any]]) -> None:
    state = Sums()
    state.set_state({"double": 77, "a": 4})
    assert (state.double, state.a) == (8, 4)
    assert [update["double"] for update in sent if "double" in update] == [8, 8]


def test_what_the_own_views_get(sent: list[dict[str, Any]]) -> None:
    class Views(Sums):
        @computed(sync=False)
        def quiet(self) -> int:
            return self.a

        @computed
        def frame(self) -> object:
            return object() if self.a == 2 else self.a

    state = Views()
    state.observe(lambda change: None, "frame")
    first = state.get_state()
    assert {name: first[name] for name in ("double", "total", "frame")} == {"double": 2, "total": 15, "frame": 1}
    assert {"quiet", "_hidden"} & set(first) == set()
    assert state._link["computed"] == ["double", "frame", "total", "triple"]
    sent.clear()
    state.a = 2
    state.draft = "x"
    assert sent == [{"a": 2}, {"double": 4}, {"triple": 6}, {"total": 20}, {"draft": "x"}]
    sent.clear()
    with state.hold_sync():
        state.a = 3
        assert sent == []
    assert sent == [{"a": 3, "double": 6, "triple": 9, "total": 25, "frame": 3}]
    state.close()
    sent.clear()
    state.a = 4
    assert (sent, state.total) == ([], 30)


def test_a_mixin_of_any_kind_and_an_override_that_reads_what_it_overrides() -> None:
    class Plain:
        @computed
        def area(self: Any) -> int:
            return int(self.width * self.height)

    class Traits(t.HasTraits):
        height = t.Int(2)

        @computed("width")
        def half(self: Any) -> float:
            return float(self.width / 2)

    class Box(Plain, Traits, SharedState):
        width = t.Int(3)

    class Bigger(Box):
        @computed
        def area(self) -> int:
            return super().area + 1

        @computed
        async def half(self) -> float:  # type: ignore[override]
            return 0.0

    box, bigger = Box(), Bigger()
    events = heard(bigger, "area")
    assert (box.area, box.half, bigger.area) == (6, 1.5, 7)
    # Its run is on another thread, and may be through.
    assert bigger.half in (None, 0.0)
    bigger.height = 4
    box.width = 5
    assert (box.area, box.half, bigger.area, events) == (10, 2.5, 13, [("area", 7, 13)])
    assert not hasattr(Traits(), "_computed_formulas")


def test_it_can_be_added_to_one_object(sent: list[dict[str, Any]]) -> None:
    state = Sums()
    state.add_traits(more=computed(lambda self: self.a + 1), extra=t.Int(3))
    events = heard(state, "more")
    state.a = 5
    assert (state.more, events) == (6, [("more", 2, 6)])  # type: ignore[attr-defined]
    assert "more" in state._link["computed"]
    assert {"more": 6} in sent
    assert not hasattr(Sums, "more")


def test_tracking_changes_neither_the_type_of_a_trait_nor_its_copies() -> None:
    class Own(t.Int):
        def get(self, obj: Any, cls: Any = None) -> Any:
            return 10 * super().get(obj, cls)

    class Made(SharedState):
        n = t.Int(1)
        own = Own(2)

        @t.default("n")
        def _n(self) -> int:
            return 7

        @computed
        def both(self) -> tuple[int, int]:
            return (self.n, self.own)

    assert type(Made.n) is t.Int
    clone = copy.deepcopy(Made.n)
    clone.name = "clone"
    assert (clone.get.__self__ is clone, Made.n.get.__self__ is Made.n) == (True, True)
    state = Made()
    events = heard(state, "both")
    assert state.both == (7, 20)
    state.own = 3
    state.n = 8
    assert events == [("both", (7, 20), (7, 30)), ("both", (7, 30), (8, 30))]


# --- holds and transactions


@pytest.mark.parametrize("group", ["transaction", "hold_trait_notifications"])
def test_a_group_is_one_event(group: str) -> None:
    state = Sums()
    events = heard(state, "total")
    ran(state)
    with getattr(state, group)():
        state.a = 2
        state.b = 20
        state.a = 3
        assert events == []
        assert ran(state) == []
    assert events == [("total", 15, 35)]
    assert ran(state).count("total") == 1


@pytest.mark.parametrize("group", ["transaction", "hold_trait_notifications"])
def test_a_group_that_is_undone_is_no_event(group: str) -> None:
    state = Sums()
    other = Sums()

    class Watcher(SharedState):
        @computed
        def sum(self) -> int:
            return state.a + other.a

    watcher = Watcher()
    events, watched = heard(state, "total"), heard(watcher, "sum")
    with pytest.raises(t.TraitError, match="undo"), getattr(state, group)():
        state.a = 2
        assert state.total == 20
        raise t.TraitError("undo")
    assert (state.total, events, watched) == (15, [], [])
    with pytest.raises(t.TraitError, match="undo"), getattr(state, group)():
        state.a = 2
        other.a = 5  # whoever is told of this sees the other one as well, and is told when it is undone
        raise t.TraitError("undo")
    assert watched == [("sum", 2, 7), ("sum", 7, 6)]


def test_what_changes_elsewhere_during_a_hold_is_told_at_its_end() -> None:
    other = Sums()

    class Watcher(SharedState):
        n = t.Int(0)

        @computed
        def sum(self) -> int:
            return self.n + other.a

    state = Watcher()
    events = heard(state)
    with state.hold_trait_notifications():
        state.n = 1
        other.a = 2
        assert events == []
    assert events == [("n", 0, 1), ("sum", 1, 3)]


# --- what fails


def test_a_read_raises_what_the_function_raises_and_a_push_logs_it_once(
    sent: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    class Ratio(SharedState):
        a = t.Int(6)
        b = t.Int(2)

        @computed
        def ratio(self) -> float:
            return self.a / self.b

    state = Ratio()
    events = heard(state, "ratio")
    state.b = 0
    state.a = 5
    with pytest.raises(ZeroDivisionError):
        state.ratio  # noqa: B018
    assert (events, "ratio" in state.get_state()) == ([], False)
    assert [record.getMessage() for record in caplog.records] == [
        "Ratio.ratio cannot be computed: ZeroDivisionError: division by zero"
    ]
    assert not any("ratio" in update for update in sent)
    state.b = 5
    assert events == [("ratio", 3.0, 1.0)]
    state.b = 0
    assert len(caplog.records) == 2


def test_one_that_fails_does_not_hide_the_others(sent: list[dict[str, Any]]) -> None:
    class Ratio(SharedState):
        a = t.Int(6)
        b = t.Int(2).tag(unit="kg")

        @computed
        def ratio(self) -> float:
            return self.a / self.b

        @computed
        def percent(self) -> float:
            return 100 * self.ratio

        @computed
        def sum(self) -> int:
            return self.a + self.b

        @computed
        def others(self) -> list[str]:
            return sorted(self.trait_values().keys() & {"a", "ratio", "sum", "others"})

    def shown(values: dict[str, Any]) -> dict[str, Any]:
        return {name: values[name] for name in ("a", "b", "ratio", "percent", "sum") if name in values}

    state = Ratio(b=0)
    events = heard(state)
    readable = {"a": 6, "b": 0, "sum": 6}
    assert shown(state.trait_values()) == readable
    assert shown(state.trait_values(sync=True)) == readable
    assert state.trait_values(unit="kg") == {"b": 0}
    assert shown(state.get_state()) == readable
    assert state.trait_values().keys() == set(state.trait_names()) - {"ratio", "percent"}
    # What asks for all of them within an evaluation leaves out itself.
    assert state.others == ["a", "sum"]
    assert "Ratio" in repr(state)
    # As with a property, whoever asks for it is told why it is not there.
    for read in (lambda: state.percent, lambda: hasattr(state, "ratio"), lambda: getattr(state, "ratio", None)):
        with pytest.raises(ZeroDivisionError):
            read()
    state.a = 9
    assert [event for event in events if event[0] in readable] == [("a", 6, 9), ("sum", 6, 9)]
    state.b = 3
    assert shown(state.trait_values()) == {"a": 9, "b": 3, "ratio": 3.0, "percent": 300.0, "sum": 12}
    assert state.others == ["a", "ratio", "sum"]


def test_only_what_is_computed_is_left_out() -> None:
    class Broken(SharedState):
        a = t.Int().tag(shared=False, sync=False)

        @t.default("a")
        def _no_a(self) -> int:
            raise LookupError("no a")

    with pytest.raises(LookupError, match="no a"):
        Broken().trait_values()


def test_what_is_made_of_one_that_fails_is_told_when_that_is_over() -> None:
    class Ratio(SharedState):
        a = t.Int(6)
        b = t.Int(2)

        @computed
        def ratio(self) -> float:
            return self.a / self.b

        @computed
        def words(self) -> str:
            return f"ratio {self.ratio}"

        @computed
        def safe(self) -> float:
            try:
                return self.ratio
            except ZeroDivisionError:
                return -1.0

    state = Ratio(b=0)
    events = heard(state, "ratio", "words", "safe")
    with pytest.raises(ZeroDivisionError):
        state.words  # noqa: B018
    assert state.safe == -1.0
    state.b = 3
    assert events == [("ratio", t.Undefined, 2.0), ("safe", -1.0, 2.0), ("words", t.Undefined, "ratio 2.0")]


def test_what_cannot_be_computed_yet_does_not_keep_an_object_from_being_made(
    sent: list[dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    class Late(SharedState):
        count = t.Int(2)
        factor = 1

        def __init__(self, **traits: Any) -> None:
            super().__init__(**traits)
            self.offset = 10
            self.factor = 3

        @computed
        def shifted(self) -> int:
            return self.count + self.offset

        @computed
        def scaled(self) -> int:
            return self.count * self.factor

    state = Late()
    assert (state.shifted, state.scaled) == (12, 6)
    assert [update for update in sent if {"shifted", "scaled"} & set(update)] == [{"scaled": 6}, {"shifted": 12}]
    events = heard(state, "shifted")
    state.count = 3
    assert (events, caplog.records) == ([("shifted", 12, 13)], [])


def test_an_observer_that_raises_does_not_keep_the_others_from_being_told() -> None:
    state = Sums()
    told: list[str] = []

    def fail(change: Any) -> None:
        raise ValueError(change.name)

    state.observe(fail, ["a", "double"])
    state.observe(lambda change: told.append(change.name), ["triple", "total"])
    with pytest.raises(ValueError, match="double"):
        state.a = 2
    assert told == ["triple", "total"]


def test_a_cycle_names_its_way() -> None:
    class Round(SharedState):
        n = t.Int(0)

        @computed
        def a(self) -> int:
            return self.b + 1

        @computed
        def b(self) -> int:
            return self.a if self.n else 0

    state = Round()
    assert state.a == 1
    state.n = 1
    with pytest.raises(ComputedCycle, match=r"^Round\.a → Round\.b → Round\.a is a cycle: ") as raised:
        state.a  # noqa: B018
    assert (raised.value.trait, raised.value.code) == ("a", "computed-cycle")
    with pytest.raises(ComputedCycle, match=r"^Round\.b → Round\.a → Round\.b"):
        state.b  # noqa: B018
    state.n = 0
    assert state.a == 1


def test_a_cycle_of_names_is_an_error_of_the_class() -> None:
    with pytest.raises(ComputedCycle, match=r"^Round\.a → Round\.b → Round\.a is a cycle"):

        class Round(SharedState):
            @computed("b")
            def a(self) -> int:
                return 0

            @computed("a")
            def b(self) -> int:
                return 0


def test_an_evaluation_assigns_nothing() -> None:
    other = Sums()

    class Bad(SharedState):
        n = t.Int(0)
        how: Callable[[Any], None] = staticmethod(lambda self: None)

        @computed
        def value(self) -> int:
            self.how(self)
            return self.n

    state = Bad()
    hows: list[Callable[[Any], None]] = [
        lambda self: setattr(self, "n", 1),
        lambda self: setattr(other, "draft", "x"),
        lambda self: self.set_trait("n", 1),
    ]
    for how in hows:
        state.how = how
        state.n += 1
        with pytest.raises(RuntimeError, match=r"^Bad\.value assigns (Bad\.n|Sums\.draft) .*; a computed trait only reads"):
            state.value  # noqa: B018
    assert (state.n, other.draft) == (3, "")

    # Another thread is no part of the evaluation, and an attribute that is no trait may be set.
    def allowed(self: Any) -> None:
        self.note = 1
        thread = threading.Thread(target=lambda: setattr(other, "a", 9))
        thread.start()
        thread.join()

    state.how = allowed
    state.n += 1
    assert (state.value, other.a) == (4, 9)


def test_an_evaluation_may_make_an_object_and_does_not_depend_on_what_that_reads() -> None:
    class Maker(SharedState):
        n = t.Int(5)

        @computed
        def made(self) -> Sums:
            return Sums(a=self.n)

    state = Maker()
    first = state.made
    assert (first.a, first.total) == (5, 35)
    first.a = 6
    assert state.made is first
    state.n = 7
    assert (state.made.a, first.a) == (7, 6)


def test_a_task_that_an_evaluation_leaves_behind_may_assign() -> None:
    async def main() -> None:
        later: list[asyncio.Task[None]] = []

        class Leaves(SharedState):
            n = t.Int(0)
            other = t.Int(0)

            @computed
            def value(self) -> int:
                later.append(asyncio.ensure_future(self.set_other()))
                return self.n

            async def set_other(self) -> None:
                self.other += 1

        state = Leaves()
        await asyncio.gather(*later)
        assert state.other == len(later) == 1

    asyncio.run(main())


# --- threads


def test_a_change_by_another_thread_during_an_evaluation_is_seen() -> None:
    both = threading.Barrier(2, timeout=10)

    class Slow(SharedState):
        a = t.Int(1).tag(sync=False)
        b = t.Int(1).tag(sync=False)
        meet = False

        @computed(sync=False)
        def pair(self) -> tuple[int, int]:
            first = self.a
            if self.meet:
                self.meet = False
                both.wait()  # now the other thread changes both
                both.wait()
            return first, self.b

    state = Slow()

    def change() -> None:
        both.wait()
        state.a = 2
        state.b = 2
        both.wait()

    thread = threading.Thread(target=change)
    thread.start()
    state.meet = True
    assert state.pair == (2, 2)
    thread.join()


def test_two_threads_tell_the_last_value_last() -> None:
    inside, go_on = threading.Event(), threading.Event()
    state = Sums()
    events: list[tuple[int, int]] = []

    def hear(change: Any) -> None:
        events.append((change.old, change.new))
        if len(events) == 1:
            inside.set()
            assert go_on.wait(10)

    state.observe(hear, "double")
    thread = threading.Thread(target=lambda: setattr(state, "a", 2))
    thread.start()
    assert inside.wait(10)
    state.a = 3  # does not wait for the other one, who looks once more
    assert events == [(2, 4)]
    go_on.set()
    thread.join()
    assert events == [(2, 4), (4, 6)]


# --- asynchronous


class Asked(SharedState):
    """Its `answer` is of `n` and `m`, and waits in between for a future of its own."""

    n = t.Int(1)
    m = t.Int(1)

    def __init__(self, **traits: Any) -> None:
        self.waits: list[asyncio.Future[None]] = []
        super().__init__(**traits)

    @computed
    async def answer(self) -> int:
        first = self.n
        wait = asyncio.get_running_loop().create_future()
        self.waits.append(wait)
        # A function that does not end when it is cancelled.
        with contextlib.suppress(asyncio.CancelledError):
            await wait
        return first + 10 * self.m

    @computed
    def after(self) -> str:
        return f"<{self.answer}>"


async def turns(count: int = 6) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_an_asynchronous_generator_is_an_error_of_the_class() -> None:
    with pytest.raises(TypeError, match=r"^Steps\.step cannot be computed by an async generator: give one value, with return"):

        class Steps(SharedState):
            n = t.Int(1)

            @computed
            async def step(self) -> AsyncIterator[int]:
                yield self.n

    with pytest.raises(TypeError, match="cannot be computed by an async generator"):

        @computed("n")
        async def named(self: Any) -> AsyncIterator[int]:
            yield self.n


def test_an_async_one_that_fails_shows_what_it_had() -> None:
    async def main() -> None:
        state = Asked()
        seen: list[Any] = []
        state.observe(lambda change: seen.append(change.new), "answer")
        await turns()
        state.waits[0].set_result(None)
        await turns()
        assert (state.answer, seen) == (11, [11])
        state.n = 2
        await turns()
        state.waits[1].set_exception(ValueError("no answer"))
        await turns()
        assert (state.answer, seen, len(state.waits)) == (11, [11], 2)

    asyncio.run(main())


def test_an_async_one_shows_its_last_finished_value() -> None:
    async def main() -> None:
        state = Asked()
        events = heard(state, "answer", "after")
        assert (state.answer, state.after) == (None, "<None>")
        await turns()
        assert (len(state.waits), events) == (1, [])
        state.waits[0].set_result(None)
        await turns()
        assert (state.answer, state.after) == (11, "<11>")
        assert events == [("answer", None, 11), ("after", "<None>", "<11>")]
        # What was read after the wait counts as well.
        state.m = 2
        assert state.answer == 11
        await turns()
        assert len(state.waits) == 2
        state.waits[1].set_result(None)
        await turns()
        assert state.answer == 21
        state.answer  # noqa: B018
        await turns()
        assert len(state.waits) == 2

    asyncio.run(main())


def test_others_are_made_of_the_value_of_an_async_one_and_not_of_what_that_was_made_of() -> None:
    """So there is nothing to ask it that it has no answer to."""
    assert hasattr(PlainFormula, "current")
    assert not hasattr(AsyncFormula, "current")
    assert AsyncFormula.held is None


def test_an_older_run_is_cancelled_and_never_overwrites_a_newer() -> None:
    async def main() -> None:
        state = Asked()
        events = heard(state, "answer")
        await turns()
        state.n = 2
        await turns()
        assert [wait.cancelled() for wait in state.waits] == [True, False]
        assert (state.answer, events) == (None, [])  # the older one ended all the same, and its value is nobody's
        state.waits[1].set_result(None)
        await turns()
        assert events == [("answer", None, 12)]

    asyncio.run(main())


def test_an_async_one_in_a_transaction_begins_at_its_end() -> None:
    async def main() -> None:
        state = Asked()
        await turns()
        state.waits[0].set_result(None)
        await turns()
        with pytest.raises(ValueError, match="undo"), state.transaction():
            state.n = 5
            raise ValueError("undo")
        await turns()
        assert len(state.waits) == 1
        with state.transaction():
            state.n = 5
            state.m = 5
        await turns()
        assert len(state.waits) == 2

    asyncio.run(main())


def test_four_that_read_the_same_state_update_at_the_same_time() -> None:
    class Readers(SharedState):
        arrived = 0

        def __init__(self) -> None:
            self.all_here = asyncio.Event()
            super().__init__()

        async def read(self, factor: int) -> int:
            value = source.a
            self.arrived += 1
            if self.arrived % 4 == 0:
                self.all_here.set()
            await self.all_here.wait()  # none of them would get on if one had to wait for another's end
            return factor * value

        @computed
        async def one(self) -> int:
            return await self.read(1)

        @computed
        async def two(self) -> int:
            return await self.read(2)

        @computed
        async def three(self) -> int:
            return await self.read(3)

        @computed
        async def four(self) -> int:
            return await self.read(4)

    source = Sums()

    async def main() -> None:
        state = Readers()
        await turns(12)
        state.all_here.clear()
        events = heard(state, "one", "two", "three", "four")
        source.a = 10
        await turns(12)
        assert sorted(new for _, _, new in events) == [10, 20, 30, 40]
        assert state.arrived == 8

    asyncio.run(main())


def test_one_that_fails_is_logged_once_and_keeps_its_value(caplog: pytest.LogCaptureFixture) -> None:
    class Fails(SharedState):
        n = t.Int(1)
        m = t.Int(1)

        @computed
        async def inverse(self) -> float:
            await asyncio.sleep(0)
            return self.m / self.n

    async def main() -> None:
        state = Fails()
        await turns()
        for n, m in ((0, 1), (0, 2), (2, 2)):
            state.n, state.m = n, m
            await turns()
            assert state.inverse == 1.0
        assert len([record for record in caplog.records if record.levelno >= logging.ERROR]) == 1

    asyncio.run(main())


def test_an_async_one_that_met_a_failure_begins_again_when_that_is_over() -> None:
    class Ratio(SharedState):
        b = t.Int(0)

        @computed
        def ratio(self) -> float:
            return 6 / self.b

        @computed
        async def words(self) -> str:
            return f"ratio {self.ratio}"

    async def main() -> None:
        state = Ratio()
        await turns()
        assert state.words is None
        state.b = 3
        await turns()
        assert state.words == "ratio 2.0"

    asyncio.run(main())


def test_a_cycle_by_way_of_a_last_value_is_one(caplog: pytest.LogCaptureFixture) -> None:
    class Round(SharedState):
        n = t.Int(1)

        @computed
        async def a(self) -> int:
            await asyncio.sleep(0)
            return self.n + self.b

        @computed
        def b(self) -> int:
            return 1 if self.a is None else 1 + self.a

    async def main() -> None:
        state = Round()
        await turns()
        assert (state.a, state.b) == (None, 1)
        assert "Round.a → Round.b → Round.a is a cycle" in caplog.text

    asyncio.run(main())


def test_one_that_only_others_want_is_begun_for_them() -> None:
    class Inner(SharedState):
        n = t.Int(1)

        @computed
        async def _inner(self) -> int:
            return 2 * self.n

        @computed
        def outer(self) -> int:
            return self._inner or 0

    async def main() -> None:
        state = Inner()
        events = heard(state, "outer")
        await turns()
        state.n = 2
        await turns()
        assert [new for _, _, new in events] == [2, 4]

    asyncio.run(main())


def test_without_a_loop_it_runs_on_a_thread_of_ours() -> None:
    class Quick(SharedState):
        n = t.Int(1)

        @computed
        async def where(self) -> str:
            return f"{self.n} {threading.current_thread().name}"

    came = threading.Semaphore(0)
    state = Quick()
    state.observe(lambda change: came.release(), None)  # as traitlets takes it: every trait
    for n in (2, 3):
        state.n = n
        wanted = f"{n} sharedwidgets-background"
        while state.where != wanted:
            assert came.acquire(timeout=10)
    assert [thread.daemon for thread in threading.enumerate() if thread.name == "sharedwidgets-background"] == [True]


def test_a_loop_that_was_closed_is_replaced() -> None:
    class Quick(SharedState):
        n = t.Int(1)

        @computed
        async def twice(self) -> int:
            return 2 * self.n

    async def made() -> Quick:
        return Quick()

    state = asyncio.run(made())
    came = threading.Event()
    state.observe(lambda change: came.set(), "twice")
    state.twice  # noqa: B018 - this begins it
    assert came.wait(10)
    assert state.twice == 2


def test_start_runs_a_coroutine_and_can_cancel_it() -> None:
    async def answer() -> int:
        return 42

    async def never() -> None:
        await asyncio.Event().wait()

    assert tasks.start(answer()).result(10) == 42
    future = tasks.start(never())
    assert future.cancel()
    assert tasks.start(answer()).result(10) == 42


def test_a_forked_child_has_a_loop_of_its_own_and_the_parent_keeps_its() -> None:
    code = """
import os, warnings
import traitlets as t
from sharedwidgets import SharedState, computed, tasks

class Quick(SharedState):
    n = t.Int(1)

    @computed
    async def twice(self):
        return 2 * self.n

async def answer():
    return os.getpid()

warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside a thread
assert tasks.start(answer()).result(10) == os.getpid()
state = Quick()
tasks.start(answer()).result(10)
child = os.fork()
if child == 0:
    right = tasks.start(answer()).result(10) == os.getpid()
    state.n = 5
    tasks.start(answer()).result(10)
    os._exit(0 if right and state.twice == 10 else 1)
assert os.waitpid(child, 0)[1] == 0
assert tasks.start(answer()).result(10) == os.getpid()
print(state.twice)
"""
    assert told(code) == "2\n"


def test_what_still_runs_at_the_end_of_the_process_ends_without_a_word() -> None:
    code = """
import asyncio
from sharedwidgets import tasks



async def wait(future):
    future.set_result(None)
    await asyncio.Event().wait()

from concurrent.futures import Future
begun = Future()
tasks.start(wait(begun))
begun.result(10)
"""
    assert told(code) == ""


def told(code: str) -> str:
    """What a fresh interpreter prints, which is to be silent on stderr."""
    answer = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (answer.returncode, answer.stderr) == (0, "")
    return answer.stdout


def test_of_two_errors_of_observers_one_is_raised_and_the_other_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Another thread changes the input meanwhile, and leaves the telling to the one that tells."""

    class Doubled(SharedState):
        a = t.Int(0)

        @computed
        def d(self) -> int:
            return 2 * self.a

    state = Doubled()

    def raises(change: Any) -> None:
        if change.new == 2:
            other = threading.Thread(target=setattr, args=(state, "a", 2))
            other.start()
            other.join(10)
        raise ValueError(change.new)

    state.observe(raises, "d")
    with pytest.raises(ValueError, match="4"):
        state.a = 1
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["2"]
