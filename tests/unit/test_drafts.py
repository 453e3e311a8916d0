"""What is kept back for one entry: in which order, and what is left of it."""

from __future__ import annotations

import pytest

from sharedwidgets.core import delta
from sharedwidgets.core.protocol import Append, Delete, Inc, Op, Set
from sharedwidgets.core.values import Value, same
from sharedwidgets.drafts import Draft


class Shows:
    """An object that takes part."""

    def __init__(self, draft: Draft, state: str = "S") -> None:
        self.state = state
        self.adopted: list[tuple[str, Value]] = []
        draft.join(self)

    def adopt(self, trait: str, value: Value) -> None:
        self.adopted.append((trait, value))


@pytest.fixture
def draft() -> Draft:
    return Draft()


@pytest.fixture
def one(draft: Draft) -> Shows:
    return Shows(draft)


@pytest.fixture
def two(draft: Draft) -> Shows:
    return Shows(draft)


def assign(state: str, trait: str, before: Value, value: Value) -> list[Op]:
    """As by a replica that holds something else."""
    if same(before, value):
        return [put(value, trait)]
    return delta.diff(state, trait, "dict" if isinstance(value, dict) else "int", before, value)


def inc(by: float, trait: str = "x") -> Inc:
    return Inc(state="S", path=(trait,), by=by)


def put(value: Value, trait: str = "x") -> Set:
    return Set(state="S", path=(trait,), value=value)


def test_of_several_assignments_the_last_counts_against_what_was_seen_first(draft: Draft, one: Shows) -> None:
    draft.set(one, "S", "x", 0, 5)
    draft.set(one, "S", "x", 5, 7)
    draft.set(one, "S", "y", 1, 2)
    assert draft.ops(assign) == [put(7), put(2, "y")]
    draft.set(one, "S", "x", 7, 0)
    assert draft.ops(assign) == [put(0), put(2, "y")], "which is a write where the room holds something else"


def test_sums_are_one_and_items_are_one(draft: Draft, one: Shows) -> None:
    for number in range(3):
        draft.do(one, inc(2), 2 * number, 2 * number + 2)
        draft.do(one, Append(state="S", path=("log",), items=(number,)), [], [])
    assert draft.ops(assign) == [inc(6), Append(state="S", path=("log",), items=(0, 1, 2))]


def test_a_sum_on_what_was_assigned_is_in_it(draft: Draft, one: Shows) -> None:
    draft.set(one, "S", "x", 0, 5)
    # Another thread's sum shows too, and has been sent.
    draft.do(one, inc(2), 6, 8)
    assert draft.ops(assign) == [put(7)]


def test_what_is_assigned_behind_a_sum_takes_its_place(draft: Draft, one: Shows) -> None:
    draft.do(one, inc(2), 0, 2)
    draft.set(one, "S", "x", 2, 9)
    assert draft.ops(assign) == [put(9)]


def test_what_a_sum_shows_is_assigned(draft: Draft, one: Shows) -> None:
    draft.do(one, inc(2), 0, 2)
    draft.set(one, "S", "x", 2, 2)
    assert draft.ops(assign) == [put(2)]


def test_what_another_thread_wrote_is_assigned_against_what_that_showed(draft: Draft, one: Shows) -> None:
    draft.set(one, "S", "x", 0, 5)
    draft.set(one, "S", "x", 7, 0)
    draft.set(one, "S", "d", {}, {"a": 1})
    draft.set(one, "S", "d", {"a": 1, "b": 2}, {"a": 1})
    draft.do(one, inc(1, "y"), 0, 1)
    draft.set(one, "S", "y", 7, 7)
    ops = draft.ops(assign)
    assert ops[:2] == [put(5), put(0)]
    assert [(type(op), op.path) for op in ops[2:4]] == [(Set, ("d", "a")), (Delete, ("d", "b"))]
    assert ops[4:] == [inc(1, "y"), put(7, "y")]


def test_a_dict_that_is_as_it_was_says_nothing_of_keys_nobody_saw(draft: Draft, one: Shows) -> None:
    draft.set(one, "S", "d", {"a": 1}, {"a": 1, "b": 2})
    draft.set(one, "S", "d", {"a": 1, "b": 2}, {"a": 1})
    assert draft.ops(assign) == []


def test_sums_that_are_no_number_together_stay_two(draft: Draft, one: Shows) -> None:
    for by in (1e308, 1e308, -1e308):
        draft.do(one, inc(by), 0, 0)
    assert draft.ops(assign) == [inc(1e308), inc(0)]


def test_writers_count_in_the_order_of_writing(draft: Draft, one: Shows, two: Shows) -> None:
    draft.do(one, inc(1), 0, 1)
    draft.set(two, "S", "x", 1, 5)
    draft.do(one, inc(1), 5, 6)
    draft.do(one, inc(1), 6, 7)
    draft.set(two, "S", "x", 7, 0)
    assert draft.ops(assign) == [inc(1), put(5), inc(2), put(0)]
    assert draft.read("S", "x", 100) == 0
    assert (one.adopted, two.adopted) == ([("x", 5), ("x", 0)], [("x", 1), ("x", 6), ("x", 7)])


def test_a_dict_that_two_write_keeps_the_keys_of_both(draft: Draft, one: Shows, two: Shows) -> None:
    draft.set(one, "S", "d", {}, {"a": 1})
    draft.set(two, "S", "d", {"a": 1}, {"a": 1, "b": 2})
    draft.set(one, "S", "d", {"a": 1, "b": 2}, {"b": 2, "c": 3})
    keys = [(type(op), op.path[1]) for op in draft.ops(assign)]
    assert keys == [(Set, "a"), (Set, "b"), (Delete, "a"), (Set, "c")]
    assert draft.read("S", "d", {}) == {"b": 2, "c": 3}


def test_who_links_another_state_adopts_nothing(draft: Draft, one: Shows) -> None:
    other = Shows(draft, "T")
    draft.set(one, "S", "x", 0, 5)
    assert other.adopted == []


def test_what_one_writer_did_is_undone_and_what_another_did_is_not(draft: Draft, one: Shows, two: Shows) -> None:
    draft.do(one, inc(1), 0, 1)
    draft.do(two, inc(1, "y"), 0, 1)
    before = [*draft.runs]
    draft.do(one, inc(5), 1, 6)
    draft.do(two, inc(5, "y"), 1, 6)
    draft.set(one, "S", "z", 0, 3)
    draft.set(two, "S", "z", 3, 4)
    draft.undo(before, one)
    assert draft.ops(assign) == [inc(1), inc(6, "y"), put(4, "z")]
    draft.do(one, inc(2), 1, 3)
    draft.set(two, "S", "z", 4, 5)
    assert draft.ops(assign) == [inc(3), inc(6, "y"), put(5, "z")]


def test_everything_is_undone(draft: Draft, one: Shows) -> None:
    draft.do(one, inc(1), 0, 1)
    before = [*draft.runs]
    draft.do(one, inc(5), 1, 6)
    draft.set(one, "S", "z", 0, 3)
    draft.undo(before)
    assert draft.ops(assign) == [inc(1)]


def test_what_a_handle_sets_last_counts(draft: Draft) -> None:
    handle = object()
    draft.do(handle, put(1), 0, 1)
    draft.do(handle, inc(1), 1, 2)
    draft.do(handle, put(5), 2, 5)
    assert draft.read("S", "x", 0) == 5
    assert [*draft.ops(assign)][-1] == put(5)
