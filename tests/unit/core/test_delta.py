"""Differences as ops, and ops on values."""

from __future__ import annotations

from typing import Any

import pytest

from sharedwidgets.core import delta
from sharedwidgets.core.delta import SPLICE_SAVES, State
from sharedwidgets.core.protocol import Append, Delete, Entry, EntryOp, Inc, Op, Set, Splice, StateImage, TraitSchema
from sharedwidgets.errors import InvalidValue, NoSuchPath, NoSuchState, NoSuchTrait, TooLarge
from support.build import SCHEMA, VALUES, define, entry, put

HIDDEN = TraitSchema(kernel_only=True)


def delete(path: str) -> Delete:
    return Delete(state="S", path=tuple(path.split(".")))


def inc(path: str, by: float = 1, value: float | None = None) -> Inc:
    return Inc(state="S", path=tuple(path.split(".")), by=by, value=value)


def append(path: str, *items: Any) -> Append:
    return Append(state="S", path=tuple(path.split(".")), items=items)


def splice(path: str, at: int, remove: int, insert: Any, rev: int = 1) -> Splice:
    return Splice(state="S", path=tuple(path.split(".")), rev=rev, at=at, remove=remove, insert=insert)


def states(**more: Any) -> dict[str, State]:
    return {"S": State(dict(SCHEMA), {**VALUES, **more})}


def ops_of(entries: tuple[Entry, ...]) -> list[tuple[int, tuple[EntryOp, ...]]]:
    return [(item.seq, item.ops) for item in entries]


def test_a_state_is_told_whole_and_to_a_page_without_what_only_kernels_know() -> None:
    state = states()["S"]
    assert State.from_image(state.image()) == state
    page = state.image(frontend=True)
    assert set(page.schema) == set(page.values) == set(SCHEMA) - {"_salt"}


def test_an_image_is_not_the_state_itself() -> None:
    image = StateImage(schema={"a": TraitSchema()}, values={"a": 1})
    state = State.from_image(image)
    state.values["a"] = 2
    state.schema.clear()
    assert image == StateImage(schema={"a": TraitSchema()}, values={"a": 1})


def test_find() -> None:
    assert delta.find(states(count=3), "S", "count") == (SCHEMA["count"], 3)
    assert delta.find(states(), "S", "_salt") == (SCHEMA["_salt"], "pepper")
    with pytest.raises(NoSuchState, match=r"no state 'T' here; there is S$"):
        delta.find(states(), "T", "count")
    # People are not told of what stands beside a state of theirs.
    with pytest.raises(NoSuchState, match=r"there is S$"):
        delta.find({"S": State(), "S@lead@reacts": State()}, "T", "count")
    with pytest.raises(NoSuchState, match=r"there is none$"):
        delta.find({}, "T", "count")
    with pytest.raises(NoSuchTrait, match=r"it has _salt, count, items, level, tags, title$") as caught:
        delta.find(states(), "S", "cuont")
    assert (caught.value.state, caught.value.trait) == ("S", "cuont")


def test_g9_to_a_page_a_hidden_trait_is_like_one_that_is_not_there() -> None:
    said = []
    for name in ("_salt", "_nope"):
        with pytest.raises(NoSuchTrait) as caught:
            delta.find(states(), "S", name, frontend=True)
        said.append(str(caught.value).replace(name, "?"))
    assert said == ["S has no trait '?'; it has count, items, level, tags, title"] * 2


@pytest.mark.parametrize(
    ("value", "op", "after"),
    [
        (1, put("t", "x"), "x"),
        ({"a": 1}, put("t.b", 2), {"a": 1, "b": 2}),
        ({"a": {"x": 1}}, put("t.a.x", 2), {"a": {"x": 2}}),
        ({"a": {}}, put("t.a.new", [1]), {"a": {"new": [1]}}),
        ({"a": 1}, delete("t.a"), {}),
        ({"a": 1}, delete("t.gone"), {"a": 1}),
        ({"a": {"x": 1, "y": 2}}, delete("t.a.x"), {"a": {"y": 2}}),
        (1, inc("t", 2), 3),
        (1, inc("t", 0.5), 1.5),
        ({"n": 1.5}, inc("t.n", 1), {"n": 2.5}),
        # In an entry the sum stands, whatever was there.
        (1, inc("t", 1, value=40), 40),
        ("?", inc("t", 1, value=0.5), 0.5),
        ([1], append("t", 2, [3]), [1, 2, [3]]),
        ({"l": []}, append("t.l", 1), {"l": [1]}),
        ("a😀c", splice("t", 1, 1, "bb"), "abbc"),
        ("abc", splice("t", 3, 0, "d"), "abcd"),
        (b"abc", splice("t", 0, 2, b""), b"c"),
        ([1, 2, 3], splice("t", 1, 1, ["x", "y"]), [1, "x", "y", 3]),
        ({"k": "abc"}, splice("t.k", 0, 3, ""), {"k": ""}),
    ],
)
def test_apply(value: Any, op: Op, after: Any) -> None:
    before = repr(value)
    assert delta.apply(value, op) == after
    assert repr(value) == before


@pytest.mark.parametrize(
    ("value", "op", "says"),
    [
        (1, put("t.a", 1), "t is no dict, so it has no key 'a'"),
        ({"a": [1]}, put("t.a.0", 1), "t.a is no dict, so it has no key '0'"),
        ({}, put("t.a.x", 1), "t has no key 'a'"),
        ({}, delete("t.a.x"), "t has no key 'a'"),
        ([], delete("t.a"), "t is no dict"),
        ({}, inc("t.a"), "t has no key 'a'"),
        ({}, append("t.a", 1), "t has no key 'a'"),
        ({}, splice("t.a", 0, 0, ""), "t has no key 'a'"),
        ("1", inc("t"), "t is no number to add to"),
        (True, inc("t"), "t is no number to add to"),
        ({"a": None}, inc("t.a"), "t.a is no number to add to"),
        ((), append("t", 1), "t is no list to append to"),
        ("abc", append("t", "d"), "t is no list to append to"),
        ("abc", splice("t", 2, 2, ""), "not what the splice was cut from"),
        ("abc", splice("t", 0, 1, b"x"), "not what the splice was cut from"),
        (b"abc", splice("t", 0, 1, "x"), "not what the splice was cut from"),
        ([1], splice("t", 0, 1, "x"), "not what the splice was cut from"),
        ({}, splice("t", 0, 0, ""), "not what the splice was cut from"),
    ],
)
def test_apply_refuses_what_has_no_place(value: Any, op: Op, says: str) -> None:
    with pytest.raises(NoSuchPath, match=says) as caught:
        delta.apply(value, op)
    assert (caught.value.state, caught.value.path) == ("S", op.path)


def test_a_trait_cannot_be_deleted_and_a_sum_stays_a_number() -> None:
    with pytest.raises(InvalidValue, match=r"S.t is a trait"):
        delta.apply({}, delete("t"))
    with pytest.raises(InvalidValue, match="no number"):
        delta.apply(2**4000, inc("t", 0.5))


def test_apply_shares_what_did_not_change() -> None:
    value: Any = {"a": {"x": 1}, "b": {"y": 2}}
    assert delta.apply(value, put("t.a.x", 2))["b"] is value["b"]  # type: ignore[index, call-overload]


def test_apply_entry_in_place_and_what_it_touched() -> None:
    room = states(count=1)
    new = define({"late": TraitSchema(kind="int"), "count": TraitSchema(kind="float")}, {"late": 7, "count": 0.5})
    touched = delta.apply_entry(room, entry(1, put("tags.a", 1), new, put("tags.b", 2), inc("late", 1, value=8)))
    assert touched == [("S", "tags"), ("S", "late"), ("S", "count")]
    assert room["S"].values == {**VALUES, "tags": {"a": 1, "b": 2}, "late": 8, "count": 0.5}
    assert room["S"].schema["count"].kind == "float"
    assert delta.apply_entry(room, entry(2, define({}, {}, state="T"))) == []
    assert room["T"] == State()


@pytest.mark.parametrize(
    ("kind", "shown", "new", "ops"),
    [
        ("int", 1, 1.0, []),
        ("int", 1, 2, [put("t", 2)]),
        ("any", {"a": 1}, {"a": 2}, [put("t", {"a": 2})]),
        ("dict", {"a": 1, "b": 2}, {"b": 3, "c": 4}, [delete("t.a"), put("t.b", 3), put("t.c", 4)]),
        ("dict", {"a": {"x": 1}}, {"a": {"x": 2}}, [put("t.a", {"x": 2})]),
        ("dict", {"a": 1}, {"a": True}, [put("t.a", True)]),
        ("dict", {"a": 1}, {"a": 1.0}, []),
        ("dict", None, {"a": 1}, [put("t", {"a": 1})]),
        ("dict", {"a": 1}, None, [put("t", None)]),
        ("list", [1, 2], [1], [put("t", [1])]),
    ],
)
def test_diff(kind: str, shown: Any, new: Any, ops: list[Op]) -> None:
    assert delta.diff("S", "t", kind, shown, new) == ops


LONG = "0123456789" * 40


@pytest.mark.parametrize(
    ("base", "new", "at", "remove", "insert"),
    [
        (LONG, LONG + "x", 400, 0, "x"),
        (LONG, "x" + LONG, 0, 0, "x"),
        (LONG, LONG[:200] + "😀" + LONG[205:], 200, 5, "😀"),
        (LONG, LONG[:300], 300, 100, ""),
        (LONG.encode(), LONG.encode()[:9] + b"\x00" + LONG.encode()[9:], 9, 0, b"\x00"),
        (list(LONG), ["x", *LONG[1:]], 0, 1, ["x"]),
        (list(LONG), [*LONG, 1, 2], 400, 0, [1, 2]),
        # What repeats at both ends is not counted twice.
        ("a" * 400, "a" * 401, 400, 0, "a"),
        ("a" * 401, "a" * 400, 400, 1, ""),
        (LONG, LONG, 400, 0, ""),
    ],
)
def test_compress_cuts_what_is_shared_at_both_ends(base: Any, new: Any, at: int, remove: int, insert: Any) -> None:
    cut = delta.compress(put("t.k", new), base, 9)
    assert cut == Splice(state="S", path=("t", "k"), rev=9, at=at, remove=remove, insert=insert)
    assert delta.apply({"k": base}, cut) == {"k": new}


@pytest.mark.parametrize(
    ("base", "new"),
    [
        (LONG, 5),
        (LONG, LONG.encode()),
        (LONG.encode(), LONG),
        (LONG.encode(), list(LONG)),
        (list(LONG), LONG.encode()),
        (None, LONG),
        ({}, {"a": LONG}),
        ("", "x" * (SPLICE_SAVES - 3)),
        ("", LONG),
        ("x" + LONG[:200], LONG[::-1]),
        # Equal to ==, not to us.
        ([True] * 300, [1] * 300),
    ],
)
def test_compress_leaves_alone_what_would_not_save_enough(base: Any, new: Any) -> None:
    op = put("t", new)
    assert delta.compress(op, base, 9) is op


def test_compress_saves_at_least_what_it_promises() -> None:
    exact = "a" * SPLICE_SAVES
    assert isinstance(delta.compress(put("t", exact), exact, 1), Splice)
    assert isinstance(delta.compress(put("t", "b" + exact), exact, 1), Splice)
    assert isinstance(delta.compress(put("t", exact[1:] + "b"), exact, 1), Set)


def test_an_entry_tells_the_sum() -> None:
    assert delta.decided(inc("t", 2), 7) == inc("t", 2, value=7)
    assert delta.decided(inc("t.a.b", 2), {"a": {"b": 7}}) == inc("t.a.b", 2, value=7)
    op = put("t", 1)
    assert delta.decided(op, 1) is op


@pytest.mark.parametrize(
    ("op", "least"),
    [
        (put("t", "x" * 500), 500),
        (append("t", "x" * 300, "x" * 200), 500),
        (splice("t", 0, 9, "x" * 500), 500),
        (inc("t"), 0),
        (delete("t.a"), 1),
        # A key is as heavy as any text.
        (put("t." + "k" * 500, 1), 500),
        (delete("t." + "k" * 500), 500),
        (inc("t." + "k" * 500), 500),
        (append("t." + "k" * 500, 1), 500),
        (splice("t." + "k" * 500, 0, 0, ""), 500),
    ],
)
def test_weight(op: Op, least: int) -> None:
    assert least <= delta.weight(op) <= least + 20


def test_one_op_may_bring_so_many_bytes() -> None:
    op = put("t.k", "x" * 500)
    delta.check_ops([put("t", 1), op], delta.weight(op))
    with pytest.raises(TooLarge, match=r"^S\.t: a value of about \d+ bytes; one write may bring \d+$") as caught:
        delta.check_ops([put("t", 1), op], delta.weight(op) - 1)
    assert (caught.value.path, caught.value.expected) == (("t", "k"), f"≤ {delta.weight(op) - 1} bytes")


def test_g9_a_page_gets_the_entry_without_what_is_hidden() -> None:
    public, hidden = put("count", 1), put("_salt", "secret")
    held = states()
    whole = entry(1, public)
    assert delta.for_frontends(whole, held) is whole
    assert delta.for_frontends(entry(2, hidden), held) is None
    both = delta.for_frontends(entry(3, hidden, public, hidden), held)
    assert both is not None
    assert (both.seq, both.ops) == (3, (public,))


def test_g9_a_definition_is_told_without_its_hidden_traits() -> None:
    schema = {"late": TraitSchema(kind="int"), "_late": HIDDEN}
    told = entry(1, define(schema, {"late": 1, "_late": "secret"}))
    held = {"S": State({**SCHEMA, **schema}, {**VALUES, "late": 1, "_late": "secret"})}
    seen = delta.for_frontends(told, held)
    assert seen is not None
    assert seen.ops == (define({"late": TraitSchema(kind="int")}, {"late": 1}),)
    # Nothing of it is left: a page learns only that time went on.
    assert delta.for_frontends(entry(1, define({"_late": HIDDEN}, {"_late": 1})), held) is None


@pytest.mark.parametrize("schema", [{}, {"_t": HIDDEN}], ids=["empty", "hidden"])
def test_g5_a_state_appears_for_pages_even_when_it_shows_them_nothing(schema: dict[str, TraitSchema]) -> None:
    """Found by the simulation: a snapshot told pages of a state of hidden traits, the log did not."""
    room: dict[str, State] = {}
    told = entry(1, define(schema, dict.fromkeys(schema, 1), state="T"))
    delta.apply_entry(room, told)
    page: dict[str, State] = {}
    seen = delta.for_frontends(told, room)
    assert seen is not None
    delta.apply_entry(page, seen)
    assert page == {"T": State.from_image(room["T"].image(frontend=True))}


@pytest.mark.parametrize(
    ("ops", "kept"),
    [
        pytest.param([put("a", 1), put("a", 2)], [2], id="a later set"),
        pytest.param([put("a", 1), put("b", 1), put("a", 2)], [2, 3], id="another trait"),
        pytest.param([put("d.k", 1), put("d", {})], [2], id="a set of what holds it"),
        pytest.param([put("d", {}), put("d.k", 1)], [1, 2], id="a set below builds on it"),
        pytest.param([put("d", {}), put("d.k", 1), put("d", {})], [3], id="and goes with it"),
        pytest.param([put("d.k", 1), delete("d.k")], [2], id="a deletion"),
        pytest.param([delete("d.k"), put("d.k", 1)], [2], id="a deletion undone"),
        pytest.param([put("a", 1), inc("a", 1, 2)], [1, 2], id="a sum builds on it"),
        pytest.param([put("a", 1), inc("a", 1, 2), put("a", 5)], [1, 2, 3], id="sums are kept"),
        pytest.param([put("a", []), append("a", 1)], [1, 2], id="an append builds on it"),
        pytest.param([put("a", ""), splice("a", 0, 0, "x")], [1, 2], id="a splice builds on it"),
        pytest.param([put("d.k", []), append("d.k", 1), put("d.j", 1)], [1, 2, 3], id="below a key"),
        pytest.param([put("d.k", {}), put("d.k.x", 1), put("d.j", 1), put("d.k", {})], [3, 4], id="only one key"),
        pytest.param([put("d.k.x", 1), inc("d.k.x", 1, 2), put("d", {})], [1, 2, 3], id="what a kept sum stands on"),
        pytest.param([put("d", {"k": 1}), put("d.k", 2), inc("d.k", 1, 3), put("d.k", 9)], [1, 2, 3, 4], id="all of it"),
        pytest.param([put("a", 1), put("a", 2), inc("a", 1, 3), put("a", 9)], [2, 3, 4], id="but not what was under it"),
        pytest.param([put("d", {}), put("d.k", 1), inc("d.k", 1, 2), put("d", {})], [1, 2, 3, 4], id="and its dict"),
        pytest.param([put("a", 1), define({"z": TraitSchema()}, {"z": 1}), put("a", 2)], [1, 2, 3], id="a definition"),
        pytest.param([put("a", 1), define({}, {}, state="T"), put("a", 2)], [2, 3], id="of another state"),
        pytest.param([put("a", 1, state="T"), put("a", 2)], [1, 2], id="the same name elsewhere"),
        pytest.param([inc("d.k", 1, 2), define({"z": TraitSchema()}, {"z": 1}), put("d", {})], [1, 2, 3], id="across it"),
    ],
)
def test_h13_fold_leaves_out_only_what_nothing_builds_on(ops: list[EntryOp], kept: list[int]) -> None:
    folded = delta.fold([entry(seq, op) for seq, op in enumerate(ops, 1)])
    assert [item.seq for item in folded] == kept


def test_h13_fold_cuts_a_transaction_only_within_one_frame() -> None:
    first = entry(10, put("a", 1), put("b", 1))
    assert ops_of(delta.fold([first, entry(20, put("a", 2))])) == [(10, (put("b", 1),)), (20, (put("a", 2),))]
    assert ops_of(delta.fold([entry(1, put("a", 1), put("a", 2), put("b", 3))])) == [(1, (put("a", 2), put("b", 3)))]
    assert delta.fold([first]) == (first,)
    assert delta.fold([]) == ()


@pytest.mark.parametrize(("keys", "ops"), [(delta.MOST_KEYS, delta.MOST_KEYS), (delta.MOST_KEYS + 1, 1)])
def test_a_dict_that_changes_in_many_keys_is_set_whole(keys: int, ops: int) -> None:
    """One push could not hold them all, and would be refused for good."""
    new = {str(number): number for number in range(keys)}
    made = delta.diff("S", "tags", "dict", {}, new)
    assert len(made) == ops
    value: Any = {}
    for op in made:
        value = delta.apply(value, op)
    assert value == new
