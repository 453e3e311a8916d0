"""The tree of exceptions: what its docstring draws is what there is, and a code brings back its class."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from sharedwidgets import errors
from sharedwidgets.errors import SharedWidgetsError

# "│   ├── Malformed (ValueError)   malformed   what it means"
ROW = re.compile(
    r"^(?P<bars>(?:│   |    )*)(?P<branch>[├└]── )?(?P<name>[A-Z]\w+)(?: \((?P<builtin>\w+)\))?"
    r"(?:\s{2,}(?P<code>[a-z]+(?:-[a-z]+)+(?=\s|$)|[a-z]+(?=\s\s|$)))?"
)


def every(kind: type[SharedWidgetsError] = SharedWidgetsError) -> Iterator[type[SharedWidgetsError]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from every(child)


def drawn() -> list[tuple[str, str | None, str | None, str | None]]:
    """Name, parent, builtin and code of each line of the docstring's tree."""
    assert errors.__doc__ is not None
    lines = errors.__doc__.split("::\n\n")[1].split("\n\n")[0].splitlines()
    path: list[str] = []
    rows: list[tuple[str, str | None, str | None, str | None]] = []
    for line in lines:
        row = ROW.match(line.removeprefix("    "))
        assert row, line
        depth = 1 + len(row["bars"]) // 4 if row["branch"] else 0
        path[depth:] = [row["name"]]
        rows.append((row["name"], path[depth - 1] if depth else None, row["builtin"], row["code"]))
    return rows


def test_the_docstring_draws_the_tree() -> None:
    there = {
        (
            kind.__name__,
            next((base.__name__ for base in kind.__bases__ if issubclass(base, SharedWidgetsError)), None),
            vars(kind).get("code"),
        )
        for kind in every()
    }
    assert {(name, parent, code) for name, parent, _, code in drawn()} == there
    assert len(drawn()) == len(there)


def test_the_builtins_it_names_are_bases() -> None:
    named = [(name, builtin) for name, _, builtin, _ in drawn() if builtin is not None]
    assert len(named) > 5
    for name, builtin in named:
        assert builtin in [base.__name__ for base in getattr(errors, name).__mro__]


def test_each_code_is_unique() -> None:
    codes = [vars(kind)["code"] for kind in every() if "code" in vars(kind)]
    assert len(codes) == len(set(codes))
    assert set(codes) == set(errors.BY_CODE)


def test_each_leaf_has_a_code_of_its_own_or_its_parents() -> None:
    leaves = [kind for kind in every() if not kind.__subclasses__()]
    assert [kind.__name__ for kind in leaves if "code" not in vars(kind)] == ["ServerRefused"]
    assert all(kind.code != "internal" for kind in leaves)
    # Only the root and what can be raised have one: a group is never sent.
    assert errors.PeerError.code == errors.NotFound.code == errors.Disconnected.code == "internal"


@pytest.mark.parametrize("code", sorted(errors.BY_CODE))
def test_a_code_brings_back_its_class_and_its_facts(code: str) -> None:
    error = errors.from_code(code, "what happened", room="r", state="S", path=("tags", "a"), expected="text")
    assert type(error).code == code
    assert type(error) is errors.BY_CODE[code]
    assert str(error) == error.message == "what happened"
    assert (error.room, error.state, error.trait, error.path, error.expected) == ("r", "S", "tags", ("tags", "a"), "text")


def test_an_unknown_code_is_the_root() -> None:
    assert type(errors.from_code("from-the-future", "?")) is SharedWidgetsError


def test_the_trait_may_be_told_without_a_path() -> None:
    assert SharedWidgetsError(trait="count").trait == "count"
    assert SharedWidgetsError(trait="count", path=("tags",)).trait == "count"
    assert SharedWidgetsError().trait is None


def test_located_fills_in_what_is_not_known() -> None:
    error = errors.InvalidValue("no", path=("0", "b"))
    assert error.located(room="r", state="S", path=("tags", "a")) is error
    assert (error.room, error.state, error.trait, error.path) == ("r", "S", "tags", ("tags", "a", "0", "b"))
    error.located(room="elsewhere", state="T")
    assert (error.room, error.state, error.path) == ("r", "S", ("tags", "a", "0", "b"))


@pytest.mark.parametrize("kind", [kind for kind in every() if kind.__bases__[-1].__module__ == "builtins"])
def test_python_code_catches_it_as_what_it_is(kind: type[SharedWidgetsError]) -> None:
    with pytest.raises(kind.__bases__[-1]):
        raise kind("a sentence")
