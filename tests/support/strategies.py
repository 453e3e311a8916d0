"""Hypothesis strategies: values of the domain, and logs of entries that a room could have decided."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from sharedwidgets.core import delta
from sharedwidgets.core.protocol import Append, Delete, Entry, Inc, Op, Set, Splice, TraitSchema
from sharedwidgets.errors import SharedWidgetsError
from support.build import define, entry
from support.plain import Plain

# Few names, so that ops meet; the hidden ones carry a word nothing else holds.
SECRET = "zq7"
KEYS = st.sampled_from("ab")
TRAITS = {
    "d": TraitSchema(kind="dict"),
    "x": TraitSchema(),
    f"_{SECRET}": TraitSchema(kernel_only=True),
}
FIRST: dict[str, Any] = {"d": {}, "x": None, f"_{SECRET}": SECRET}

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**80), 2**80),
    st.sampled_from([2**53 - 1, 2**53, -(2**53), 10**300, -1]),
    st.floats(),
    st.sampled_from([float("nan"), float("inf"), -float("inf"), -0.0, 1e300]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.binary(max_size=8),
)
names = st.one_of(
    st.sampled_from(["", "a", "$", "$int", "$float", "$bytes", "$dict"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(names, inner, max_size=4)),
    max_leaves=20,
)
sequences = st.one_of(
    st.text(st.sampled_from("ab😀"), max_size=6),
    st.binary(max_size=6),
    st.lists(st.one_of(st.integers(0, 2), st.booleans(), st.just(1.0)), max_size=6),
)
small = st.recursive(
    st.one_of(st.none(), st.integers(0, 9), st.booleans(), st.text(st.sampled_from("ab😀"), max_size=4), st.binary(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=2)),
    max_leaves=6,
)


# Mostly few places and plain values, so that ops build on one another; now and then anything.
paths = st.one_of(
    st.sampled_from(["x", "x", "x.a", "x.a", "x.b", "x.a.a", "d", "d.a", "d.a.a"]).map(lambda path: tuple(path.split("."))),
    st.builds(lambda trait, keys: (trait, *keys), st.sampled_from(sorted(TRAITS)), st.lists(KEYS, max_size=3)),
)
plain = st.one_of(st.sampled_from([0, 1, {}, {}, {"a": {}}, {"a": 1, "b": {}}, [], "ab😀"]), small)


@st.composite
def ops(draw: st.DrawFn) -> Op:
    """An op on one of few paths; whether it can be applied is left open."""
    path = draw(paths)
    kind = draw(st.sampled_from([Set, Set, Set, Delete, Inc, Inc, Append, Splice]))
    value = draw(plain)
    if path[0] == f"_{SECRET}":
        value = {SECRET: value}
    if kind is Set:
        return Set(state="S", path=path, value=value)
    if kind is Delete:
        return Delete(state="S", path=path)
    if kind is Inc:
        return Inc(state="S", path=path, by=draw(st.integers(-3, 3)))
    if kind is Append:
        return Append(state="S", path=path, items=(value,))
    return Splice(
        state="S", path=path, rev=0, at=draw(st.integers(0, 3)), remove=draw(st.integers(0, 2)), insert=draw(sequences)
    )


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    """Entries 1, 2, 3 ... of a room: a definition first, then groups of ops each of which could be applied."""
    schema = dict(TRAITS)
    log = [entry(1, define(schema, FIRST))]
    held = dict(FIRST)
    for group in draw(st.lists(st.lists(ops(), min_size=1, max_size=3), max_size=14)):
        trial, decided = dict(held), []
        for op in group:
            trait = op.path[0]
            try:
                trial[trait] = delta.apply(trial[trait], op)
            except SharedWidgetsError:
                continue
            decided.append(delta.decided(op, trial[trait]))
        if decided:
            held = trial
            log.append(entry(len(log) + 1, *decided))
        elif draw(st.booleans()):
            late = f"late{len(log)}" if draw(st.booleans()) else f"_{SECRET}{len(log)}"
            kind = TraitSchema(kernel_only=late.startswith("_"))
            log.append(entry(len(log) + 1, define({late: kind}, {late: SECRET if kind.kernel_only else 0})))
    return log


def history(log: list[Entry]) -> list[Plain]:
    """The room at each seq, by plain code."""
    held = [Plain()]
    for item in log:
        held.append(held[-1].after(item.ops))
    return held
