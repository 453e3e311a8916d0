"""The room as a plain dict that is told one entry after the other: what everything else is compared with.

Written from the words of the design, on purpose without `sharedwidgets.core.delta`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sharedwidgets.core.protocol import Append, Define, Delete, EntryOp, Freed, Granted, Inc, Set, Splice, TraitSchema

Values = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Plain:
    """Schema and values of a room at one seq; never changed in place."""

    schema: dict[str, dict[str, TraitSchema]] = field(default_factory=dict)
    values: Values = field(default_factory=dict)

    def after(self, ops: Sequence[EntryOp]) -> Plain:
        """The room after these ops."""
        schema, values = dict(self.schema), dict(self.values)
        for op in ops:
            if isinstance(op, Define):
                schema[op.state] = {**schema.get(op.state, {}), **op.schema}
                values[op.state] = {**values.get(op.state, {}), **op.values}
            elif not isinstance(op, (Granted, Freed)):
                values[op.state] = put(values[op.state], op.path, op)
        return Plain(schema, values)

    def seen(self, frontend: bool) -> tuple[dict[str, dict[str, TraitSchema]], Values]:
        """What an audience may know."""
        schema = {
            state: {trait: item for trait, item in traits.items() if not (frontend and item.kernel_only)}
            for state, traits in self.schema.items()
        }
        return schema, {state: {trait: self.values[state][trait] for trait in traits} for state, traits in schema.items()}

    def at(self, state: str, path: Sequence[str]) -> Any:
        """The value at a path that exists."""
        value: Any = self.values[state]
        for key in path:
            value = value[key]
        return value


def put(holder: dict[str, Any], path: Sequence[str], op: EntryOp) -> dict[str, Any]:
    """The dict after an op below it."""
    key, *rest = path
    if rest:
        return {**holder, key: put(holder[key], rest, op)}
    match op:
        case Delete():
            return {name: item for name, item in holder.items() if name != key}
        case Set():
            return {**holder, key: op.value}
        case Inc():
            total = holder[key] + op.by
            assert op.value in (None, total), f"{op} tells another sum than {total}"
            return {**holder, key: total}
        case Append():
            return {**holder, key: holder[key] + list(op.items)}
        case Splice():
            whole = holder[key]
            assert op.at + op.remove <= len(whole), f"{op} reaches beyond a value of {len(whole)}"
            return {**holder, key: whole[: op.at] + op.insert + whole[op.at + op.remove :]}
    raise AssertionError(f"{op} is no op on a value")


def related(left: Sequence[str], right: Sequence[str]) -> bool:
    """Whether one path is the other, above it or below it."""
    shorter = min(len(left), len(right))
    return tuple(left[:shorter]) == tuple(right[:shorter])
