"""What a trait may hold, and whether two classes agree."""

from __future__ import annotations

import math
from typing import Any

import pytest

from sharedwidgets import SharedState
from sharedwidgets.core import schema as schemas
from sharedwidgets.core.protocol import TraitSchema
from sharedwidgets.core.schema import fits
from sharedwidgets.errors import InvalidValue

VALUES: dict[str, Any] = {
    "null": None,
    "bool": True,
    "int": 1,
    "float": 0.5,
    "text": "a",
    "bytes": b"a",
    "list": [1],
    "dict": {"a": 1},
}


@pytest.mark.parametrize(
    ("kind", "takes"),
    [
        ("any", set(VALUES)),
        ("bool", {"bool"}),
        ("int", {"int"}),
        ("float", {"int", "float"}),
        ("text", {"text"}),
        ("bytes", {"bytes"}),
        ("list", {"list"}),
        ("dict", {"dict"}),
    ],
)
@pytest.mark.parametrize("nullable", [False, True])
def test_fits_by_kind(kind: Any, takes: set[str], nullable: bool) -> None:
    schema = TraitSchema(kind=kind, nullable=nullable)
    found = {name for name, value in VALUES.items() if fits(schema, value)}
    assert found == takes | ({"null"} if nullable else set())


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        (TraitSchema(kind="int", min=0, max=10), [0, 10], [-1, 11]),
        (TraitSchema(kind="float", min=0.5), [0.5, 7, math.inf], [0.4, 0, math.nan]),
        (TraitSchema(kind="float", max=0.5), [0.5, -math.inf], [1, math.nan]),
        (TraitSchema(kind="int", min=2**60), [2**60], [2**60 - 1]),
        # Bounds are those of numbers; another kind has none.
        (TraitSchema(kind="text", min=5), ["a"], [6]),
        (TraitSchema(kind="any", min=5), [1, "a"], []),
        (TraitSchema(kind="int", nullable=True, min=5), [None, 5], [4]),
    ],
)
def test_fits_by_bounds(schema: TraitSchema, inside: list[Any], outside: list[Any]) -> None:
    assert [value for value in inside if not fits(schema, value)] == []
    assert [value for value in outside if fits(schema, value)] == []


@pytest.mark.parametrize(
    ("schema", "inside", "outside"),
    [
        (TraitSchema(kind="text", choices=("a", "b")), ["a"], ["c", None]),
        (TraitSchema(kind="text", nullable=True, choices=("a",)), [None, "a"], ["b"]),
        (TraitSchema(choices=(1, "x", [2])), [1, 1.0, "x", [2], None], [True, [3]]),
        (TraitSchema(kind="float", choices=(math.nan,)), [float("nan")], [0.0]),
        (TraitSchema(kind="text", choices=()), [], ["a"]),
    ],
)
def test_fits_by_choice(schema: TraitSchema, inside: list[Any], outside: list[Any]) -> None:
    assert [value for value in inside if not fits(schema, value)] == []
    assert [value for value in outside if fits(schema, value)] == []


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        (TraitSchema(), "any value"),
        (TraitSchema(nullable=True), "any value"),
        (TraitSchema(kind="int"), "int"),
        (TraitSchema(kind="int", nullable=True, min=0, max=10), "int between 0 and 10 or null"),
        (TraitSchema(kind="float", min=0), "float of at least 0"),
        (TraitSchema(kind="float", max=1.5), "float of at most 1.5"),
        (TraitSchema(kind="text", choices=("a", "b"), nullable=True), "one of 'a', 'b' or null"),
    ],
)
def test_expected_in_words(schema: TraitSchema, words: str) -> None:
    assert schemas.expected(schema) == words


def test_check_says_what_was_given_and_what_is_taken() -> None:
    schema = TraitSchema(kind="int", max=3)
    schemas.check(schema, 3, state="S", trait="level")
    with pytest.raises(InvalidValue) as caught:
        schemas.check(schema, "x" * 1000, state="S", trait="level")
    error = caught.value
    assert str(error) == "S.level takes int of at most 3, not str '" + "x" * 56 + "..."
    assert (error.state, error.path, error.expected) == ("S", ("level",), "int of at most 3")
    with pytest.raises(InvalidValue, match=r"not int 4$"):
        schemas.check(schema, 4, state="S", trait="level")


@pytest.mark.parametrize("name", list(VALUES))
def test_a_trait_known_by_its_first_value_takes_it(name: str) -> None:
    schema = schemas.kind_of(VALUES[name])
    assert schema.kind == ("any" if name == "null" else name)
    assert fits(schema, VALUES[name])


def test_missing() -> None:
    one, other = TraitSchema(kind="int"), TraitSchema(kind="text")
    assert schemas.missing({"a": one}, {"a": other, "b": other}) == {"b": other}
    assert schemas.missing({"a": one}, {}) == {}


@pytest.mark.parametrize(
    "other",
    [
        TraitSchema(kind="float", min=0, choices=(1, 2)),
        TraitSchema(kind="int", nullable=True, min=0, choices=(1, 2)),
        TraitSchema(kind="int", kernel_only=True, min=0, choices=(1, 2)),
        TraitSchema(kind="int", min=1, choices=(1, 2)),
        TraitSchema(kind="int", max=5, min=0, choices=(1, 2)),
        TraitSchema(kind="int", min=0, choices=(1,)),
        TraitSchema(kind="int", min=0, choices=(True, 2)),
        TraitSchema(kind="int", min=0),
    ],
)
def test_conflicts_name_each_trait_that_differs(other: TraitSchema) -> None:
    mine = TraitSchema(kind="int", min=0, choices=(1, 2))
    held = {"a": mine, "b": mine, "only-mine": mine}
    assert schemas.conflicts(held, {"a": other, "b": mine, "only-theirs": other}) == ["a"]
    assert schemas.conflicts(held, dict(held)) == []


def test_a_class_agrees_with_itself_whatever_its_choices() -> None:
    """Two NaN that came by the wire are two objects, and one value."""
    one, other = (TraitSchema(kind="float", choices=(float("nan"), 1.0), max=float("nan")) for _ in range(2))
    assert schemas.conflicts({"a": one}, {"a": other}) == []


def test_who_may_see_a_trait_is_never_replaced() -> None:
    public, hidden = TraitSchema(kind="int"), TraitSchema(kind="int", kernel_only=True)
    assert schemas.replaceable(public, TraitSchema(kind="text"))
    assert not schemas.replaceable(public, hidden)
    assert not schemas.replaceable(hidden, public)


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ("Level", "class Level(SharedState, state_name='Level2'):"),
        ("tank's level", 'class State(SharedState, state_name="tank\'s level2"):'),
    ],
)
def test_h20_a_conflict_ends_with_the_one_line_that_resolves_it(state: str, line: str) -> None:
    error = schemas.conflict(state, "n", TraitSchema(kind="int"), TraitSchema(kind="float"))
    assert str(error).splitlines()[1:] == [line]
    scope: dict[str, Any] = {"SharedState": SharedState}
    exec(f"{line}\n    pass", scope)
    (made,) = [item for name, item in scope.items() if name in ("Level", "State")]
    assert made._state_name() == f"{state}2"


def test_h20_a_conflict_names_both_sides_and_the_way_out() -> None:
    error = schemas.conflict("S", "level", TraitSchema(kind="int", max=3), TraitSchema(kind="float", kernel_only=True))
    assert (error.code, error.state, error.path) == ("schema-conflict", "S", ("level",))
    assert "int of at most 3 in the room and float (kernels only) in your class" in str(error)
    assert "use the room's, rename the trait, or give the class a state_name of its own" in str(error)
