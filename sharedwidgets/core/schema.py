"""What a trait may hold: does a value fit, and do two classes of one name agree."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from sharedwidgets.core.protocol import TraitKind, TraitSchema
from sharedwidgets.core.values import Value, depth, same, size
from sharedwidgets.errors import InvalidValue, SchemaConflict

_NUMBERS = ("int", "float")
_TYPES: dict[TraitKind, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "text": (str,),
    "bytes": (bytes,),
    "list": (list,),
    "dict": (dict,),
}


def expected(schema: TraitSchema) -> str:
    """What a trait takes, in words: ``int between 0 and 10 or null``."""
    if schema.choices is not None:
        words = "one of " + ", ".join(repr(choice) for choice in schema.choices)
    else:
        words = "any value" if schema.kind == "any" else schema.kind
    if schema.min is not None and schema.max is not None:
        words += f" between {schema.min} and {schema.max}"
    elif schema.min is not None:
        words += f" of at least {schema.min}"
    elif schema.max is not None:
        words += f" of at most {schema.max}"
    return words + (" or null" if schema.nullable and schema.kind != "any" else "")


def fits(schema: TraitSchema, value: Value) -> bool:
    """Whether a trait of this schema may hold `value`."""
    if value is None and (schema.nullable or schema.kind == "any"):
        return True
    if schema.kind != "any":
        if not isinstance(value, _TYPES[schema.kind]):
            return False
        if isinstance(value, bool) and schema.kind != "bool":
            return False
    if schema.choices is not None and not any(same(value, choice) for choice in schema.choices):
        return False
    if schema.kind in _NUMBERS and isinstance(value, (int, float)):
        if schema.min is not None and not value >= schema.min:
            return False
        if schema.max is not None and not value <= schema.max:
            return False
    return True


def check(schema: TraitSchema, value: Value, *, state: str, trait: str) -> None:
    """Raise `InvalidValue` unless the trait may hold the value."""
    if not fits(schema, value):
        wanted = expected(schema)
        raise InvalidValue(f"{state}.{trait} takes {wanted}, not {_show(value)}", state=state, path=(trait,), expected=wanted)


def kind_of(value: Value) -> TraitSchema:
    """The schema of a trait of which only its default is known; after None it may become anything."""
    match value:
        case bool():
            return TraitSchema(kind="bool", default=value)
        case int():
            return TraitSchema(kind="int", default=value)
        case float():
            return TraitSchema(kind="float", default=value)
        case str():
            return TraitSchema(kind="text", default=value)
        case bytes():
            return TraitSchema(kind="bytes", default=value)
        case list():
            return TraitSchema(kind="list", default=value)
        case dict():
            return TraitSchema(kind="dict", default=value)
        case _:
            return TraitSchema()


def weight(schema: TraitSchema) -> int:
    """About how many bytes a schema brings beyond its few fixed fields."""
    return size(schema.default) + size(list(schema.choices or ()))


def levels(schema: TraitSchema) -> int:
    """How deep the values in a schema are nested."""
    return max((depth(value) for value in (schema.default, *(schema.choices or ()))), default=0)


def with_default(schema: TraitSchema, first: Value) -> TraitSchema:
    """The schema with a default that fits it; a client that gave none is taken to mean its first value."""
    return schema if fits(schema, schema.default) else msgspec.structs.replace(schema, default=first)


def missing(mine: Mapping[str, TraitSchema], theirs: Mapping[str, TraitSchema]) -> dict[str, TraitSchema]:
    """The traits of `theirs` that `mine` lacks."""
    return {trait: schema for trait, schema in theirs.items() if trait not in mine}


def conflicts(mine: Mapping[str, TraitSchema], theirs: Mapping[str, TraitSchema]) -> list[str]:
    """The traits both have and disagree about."""
    return [trait for trait, schema in theirs.items() if trait in mine and not _agree(mine[trait], schema)]


def replaceable(mine: TraitSchema, theirs: TraitSchema) -> bool:
    """Whether a newer class may change the trait: never who may see it, for what a page once saw it keeps (G9)."""
    return mine.kernel_only == theirs.kernel_only


def conflict(state: str, trait: str, mine: TraitSchema, theirs: TraitSchema) -> SchemaConflict:
    """The error for one trait two classes disagree about: both sides, the ways out, and a line to paste (H20)."""
    name = state if state.isidentifier() else "State"
    return SchemaConflict(
        f"{state}.{trait} is {_describe(mine)} in the room and {_describe(theirs)} in your class; use the room's, rename the "
        f"trait, or give the class a state_name of its own:\nclass {name}(SharedState, state_name={state + '2'!r}):",
        state=state,
        path=(trait,),
        expected=_describe(mine),
    )


def _agree(mine: TraitSchema, theirs: TraitSchema) -> bool:
    """Equal as values are: nan is nan, and True is not 1."""
    return same(_plain(mine), _plain(theirs))


def _plain(schema: TraitSchema) -> Value:
    choices = None if schema.choices is None else list(schema.choices)
    return [schema.kind, schema.nullable, schema.kernel_only, schema.min, schema.max, choices]


def _describe(schema: TraitSchema) -> str:
    return expected(schema) + (" (kernels only)" if schema.kernel_only else "")


def _show(value: Value) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
