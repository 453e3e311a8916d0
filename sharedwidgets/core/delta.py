"""The difference between two values as ops, and ops applied to values; nothing here knows who made them.

Values are treated as immutable: applying an op gives a new value that shares what did not change.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from sharedwidgets.core import schema as schemas
from sharedwidgets.core.protocol import (
    Append,
    Define,
    Delete,
    Entry,
    EntryOp,
    Freed,
    Granted,
    Inc,
    LastChange,
    Op,
    Path,
    Set,
    Splice,
    StateImage,
    TraitSchema,
    of_users,
)
from sharedwidgets.core.values import Value, plus, same, size
from sharedwidgets.errors import InvalidValue, NoSuchPath, NoSuchState, NoSuchTrait, TooLarge

# A splice must save at least this many bytes over the whole value, or it is not worth its base revision.
SPLICE_SAVES = 256
# Keys of a dict that may change one by one in one assignment; with more of them the dict is set whole.
MOST_KEYS = 200
# Characters of the name of a state or trait.
MAX_NAME = 256


@dataclass
class State:
    """One state of a room: what its traits may hold, what they hold, and who changed them last."""

    schema: dict[str, TraitSchema] = field(default_factory=dict)
    values: dict[str, Value] = field(default_factory=dict)
    last: dict[str, LastChange] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """About how many bytes its names, schemas and values take."""
        return sum(size(trait) + schemas.weight(self.schema[trait]) + size(value) for trait, value in self.values.items())

    @classmethod
    def from_image(cls, image: StateImage) -> State:
        """A state as a snapshot tells it."""
        return cls(dict(image.schema), dict(image.values), dict(image.last))

    def copy(self) -> State:
        """One that may be changed while this one stays."""
        return State(dict(self.schema), dict(self.values), dict(self.last))

    def image(self, *, frontend: bool = False) -> StateImage:
        """This state as a snapshot tells it; for a frontend without its kernel-only traits."""
        schema = {trait: item for trait, item in self.schema.items() if not (frontend and item.kernel_only)}
        last = {trait: item for trait, item in self.last.items() if trait in schema}
        return StateImage(schema=schema, values={trait: self.values[trait] for trait in schema}, last=last)


States = dict[str, State]


def find(states: Mapping[str, State], state: str, trait: str, *, frontend: bool = False) -> tuple[TraitSchema, Value]:
    """Schema and value of a trait; to a frontend kernel-only traits do not exist (G9).

    Raises
    ------
    NoSuchState, NoSuchTrait
        With the names there are.
    """
    found = states.get(state)
    if found is None:
        raise NoSuchState(f"there is no state {state!r} here; there is {_list(of_users(states))}", state=state)
    schema = found.image(frontend=True).schema if frontend else found.schema
    if trait not in schema:
        raise NoSuchTrait(f"{state} has no trait {trait!r}; it has {_list(schema)}", state=state, path=(trait,))
    return found.schema[trait], found.values[trait]


class Owned:
    """Lists and dicts made while one batch of ops is applied: the next op of the batch changes them in place.

    Without it each of 500 appends to a long list would copy the list.
    """

    def __init__(self) -> None:
        # By identity; held, so that no other container gets the identity of one that is gone.
        self._made: dict[int, Value] = {}

    def dict(self, value: Mapping[str, Value]) -> dict[str, Value]:
        """This very dict where the batch made it, else a copy."""
        if isinstance(value, dict) and id(value) in self._made:
            return value
        copy = dict(value)
        self._made[id(copy)] = copy
        return copy

    def list(self, value: Sequence[Value]) -> list[Value]:
        """This very list where the batch made it, else a copy."""
        if isinstance(value, list) and id(value) in self._made:
            return value
        copy = list(value)
        self._made[id(copy)] = copy
        return copy


def apply(value: Value, op: Op, owned: Owned | None = None) -> Value:
    """The value of a trait after an op on it; what `owned` made may be changed in place, nothing else ever is.

    Raises
    ------
    NoSuchPath
        A key on the way is missing or is not a dict, or the value at the end is of another shape than the op needs.
    InvalidValue
        A sum that is no longer a number of the domain.
    """
    return _at(value, op, op.path, 1, owned or Owned())


def apply_entry(states: States, entry: Entry) -> list[tuple[str, str]]:
    """Apply a decided entry in place; what it touched, as (state, trait)."""
    owned = Owned()
    change = LastChange(actor=entry.by, seq=entry.seq, at=entry.at)
    for op in entry.ops:
        if isinstance(op, Define):
            state = states.setdefault(op.state, State())
            state.schema.update(op.schema)
            state.values.update(op.values)
            state.last.update(dict.fromkeys(op.schema, change))
        elif not isinstance(op, (Granted, Freed)):
            state, trait = states[op.state], op.path[0]
            state.values[trait] = apply(state.values[trait], op, owned)
            state.last[trait] = change
    return list(dict.fromkeys(key for op in entry.ops for key in touched(op)))


def touched(op: EntryOp) -> list[tuple[str, str]]:
    """The traits an op concerns, as (state, trait), in its order."""
    if isinstance(op, (Granted, Freed)):
        return []
    if isinstance(op, Define):
        return [(op.state, trait) for trait in op.schema]
    return [(op.state, op.path[0])]


def diff(state: str, trait: str, kind: str, shown: Value, new: Value, most: int = MOST_KEYS) -> list[Op]:
    """The ops that lead from the value an author saw to the one it assigned.

    Only a trait declared as a dict is compared key by key; any other value is atomic, and so is a dict that differs in more
    than `most` keys: one push could not hold them.
    """
    if same(shown, new):
        return []
    if kind == "dict" and isinstance(shown, dict) and isinstance(new, dict):
        ops: list[Op] = [Delete(state=state, path=(trait, key)) for key in shown if key not in new]
        ops += [
            Set(state=state, path=(trait, key), value=item)
            for key, item in new.items()
            if key not in shown or not same(shown[key], item)
        ]
        if len(ops) <= most:
            return ops
    return [Set(state=state, path=(trait,), value=new)]


def compress(op: Set, base: Value, rev: int) -> Set | Splice:
    """A `Set` as a `Splice` against `base` at revision `rev`, where that saves enough bytes."""
    new: Value = op.value
    if (
        not (isinstance(new, str) and isinstance(base, str))
        and not (isinstance(new, bytes) and isinstance(base, bytes))
        and not (isinstance(new, list) and isinstance(base, list))
    ) or size(new) < SPLICE_SAVES:
        return op
    head = _common(base, new)
    tail = _common(base[head:][::-1], new[head:][::-1])
    insert: Value = new[head : len(new) - tail]
    if size(new) - size(insert) < SPLICE_SAVES:
        return op
    return Splice(state=op.state, path=op.path, rev=rev, at=head, remove=len(base) - head - tail, insert=insert)


def decided(op: Op, result: Value) -> Op:
    """The op as an entry tells it, given the trait's value after it: without its conditions; a sum carries its result."""
    match op:
        case Inc():
            return msgspec.structs.replace(op, value=below(result, op.path), min=None, max=None)
        case Set(if_rev=None, if_in=None):
            return op
        case Set():
            return msgspec.structs.replace(op, if_rev=None, if_in=None)
        case _:
            return op


def below(value: Value, path: Sequence[str]) -> Value:
    """What a trait's value holds at a path; None where there is nothing."""
    found, _ = _look(value, path)
    return found


def weight(op: Op) -> int:
    """About how many bytes an op brings, the keys on its way included."""
    keys = sum(map(size, op.path[1:]))
    match op:
        case Set(if_in=None):
            return keys + size(op.value)
        case Set():
            return keys + size(op.value) + size(list(op.if_in or ()))
        case Append():
            return keys + size(list(op.items))
        case Splice():
            return keys + size(op.insert)
        case _:
            return keys


def for_frontends(entry: Entry, states: Mapping[str, State]) -> Entry | None:
    """The entry without what only kernels may know; None when nothing is left of it (G9)."""
    ops: list[EntryOp] = []
    for op in entry.ops:
        if isinstance(op, Define):
            schema = {trait: item for trait, item in op.schema.items() if not item.kernel_only}
            # A state is there for everyone, even one that has nothing to show: as a snapshot tells it (G5).
            if schema or len(op.schema) == len(states[op.state].schema):
                ops.append(Define(state=op.state, schema=schema, values={trait: op.values[trait] for trait in schema}))
        elif isinstance(op, (Granted, Freed)) or not states[op.state].schema[op.path[0]].kernel_only:
            ops.append(op)
    if not ops:
        return None
    return (
        entry
        if len(ops) == len(entry.ops) and not any(isinstance(op, Define) for op in ops)
        else msgspec.structs.replace(entry, ops=tuple(ops))
    )


def fold(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """The same effect in fewer bytes, for one atomic frame: a set that a later one makes moot is left out.

    Only a whole `Set` or `Delete` of the same path or an ancestor supersedes, and only where nothing in between builds on the
    earlier one (a sum, an append, a splice, a deeper path).
    """
    kept: list[Entry] = []
    walk = _Fold()
    for entry in reversed(entries):
        ops = [op for op in reversed(entry.ops) if walk.keeps(op)]
        if ops:
            kept.append(msgspec.structs.replace(entry, ops=tuple(reversed(ops))))
    return tuple(reversed(kept))


def check_ops(ops: Iterable[Op], limit: int) -> None:
    """Raise `TooLarge` for an op that brings more bytes than one op may, and `InvalidValue` for one whose trait is no name."""
    for op in ops:
        if len(op.path[0]) > MAX_NAME:
            raise InvalidValue(
                f"{op.state}.{op.path[0][:20]}…: the name of a trait has at most {MAX_NAME} characters", state=op.state
            )
        if weight(op) > limit:
            raise TooLarge(
                f"{op.state}.{op.path[0]}: a value of about {weight(op)} bytes; one write may bring {limit}",
                state=op.state,
                path=op.path,
                expected=f"≤ {limit} bytes",
            )


class _Fold:
    """Walks ops from the last to the first and says which are still needed."""

    def __init__(self) -> None:
        self._covered: set[tuple[str, Path]] = set()
        # Places that a kept op builds on; whole=False where it only needs the dicts on the way to exist.
        self._needs: set[tuple[str, Path, bool]] = set()

    def keeps(self, op: EntryOp) -> bool:
        if isinstance(op, (Granted, Freed)):
            return True
        if isinstance(op, Define):
            self._covered = {item for item in self._covered if item[0] != op.state}
            self._needs = {item for item in self._needs if item[0] != op.state}
            return True
        if isinstance(op, (Set, Delete)):
            if not self._needed(op) and any(_begins(op.path, path) for state, path in self._covered if state == op.state):
                return False
            self._needs = {need for need in self._needs if not (need[0] == op.state and _begins(need[1], op.path))}
            self._covered.add((op.state, op.path))
            if len(op.path) > 1:
                self._needs.add((op.state, op.path[:-1], False))
        else:
            self._needs.add((op.state, op.path, True))
        return True

    def _needed(self, op: Set | Delete) -> bool:
        return any(
            state == op.state and (_begins(path, op.path) or (whole and _begins(op.path, path)))
            for state, path, whole in self._needs
        )


def _begins(path: Path, prefix: Path) -> bool:
    return path[: len(prefix)] == prefix


def _at(value: Value, op: Op, path: Path, depth: int, owned: Owned) -> Value:
    if depth == len(path):
        return _here(value, op, owned)
    key = path[depth]
    if not isinstance(value, dict):
        raise NoSuchPath(f"{op.state}.{'.'.join(path[:depth])} is no dict, so it has no key {key!r}", state=op.state, path=path)
    last = depth + 1 == len(path)
    if last and isinstance(op, Delete):
        if key not in value:
            return value
        shorter = owned.dict(value)
        del shorter[key]
        return shorter
    if key not in value and not (last and isinstance(op, Set)):
        raise NoSuchPath(f"{op.state}.{'.'.join(path[:depth])} has no key {key!r}", state=op.state, path=path)
    below = _at(value.get(key), op, path, depth + 1, owned)
    changed = owned.dict(value)
    changed[key] = below
    return changed


def _here(value: Value, op: Op, owned: Owned) -> Value:
    match op:
        case Set():
            new: Value = op.value
            return new
        case Inc(value=int() | float() as result):
            return result
        case Inc():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                return plus(value, op.by)
            raise NoSuchPath(f"{op.state}.{'.'.join(op.path)} is no number to add to", state=op.state, path=op.path)
        case Append():
            if isinstance(value, list):
                longer = owned.list(value)
                longer.extend(op.items)
                return longer
            raise NoSuchPath(f"{op.state}.{'.'.join(op.path)} is no list to append to", state=op.state, path=op.path)
        case Splice():
            return _spliced(value, op)
        case Delete():
            raise InvalidValue(
                f"{op.state}.{op.path[0]} is a trait: set it, it cannot be deleted", state=op.state, path=op.path
            )


def growth(value: Value, op: Op) -> int:
    """About how many bytes a trait of this value gains by an op; costs no more than what the op brings or takes away."""
    here, there = _look(value, op.path)
    match op:
        case Set():
            return size(op.value) - size(here) if there else size(op.value) + size(op.path[-1]) + 2
        case Delete():
            return -size(here) - size(op.path[-1]) - 2 if there else 0
        case Append():
            return size(list(op.items)) - size([])
        case Splice() if isinstance(here, (str, bytes, list)):
            insert: Value = op.insert
            return size(insert) - size(here[op.at : op.at + op.remove])
        case Inc() if isinstance(here, (int, float)):
            return size(plus(here, op.by)) - size(here)
        case _:
            return 0


def _look(value: Value, path: Sequence[str]) -> tuple[Value, bool]:
    """What is at a path below a trait's value, and whether anything is."""
    for key in path[1:]:
        if not isinstance(value, dict) or key not in value:
            return None, False
        value = value[key]
    return value, True


def _spliced(value: Value, op: Splice) -> Value:
    insert: Value = op.insert
    if isinstance(value, (str, bytes, list)) and op.at + op.remove <= len(value):
        end = op.at + op.remove
        if isinstance(value, str) and isinstance(insert, str):
            return value[: op.at] + insert + value[end:]
        if isinstance(value, bytes) and isinstance(insert, bytes):
            return value[: op.at] + insert + value[end:]
        if isinstance(value, list) and isinstance(insert, list):
            return [*value[: op.at], *insert, *value[end:]]
    raise NoSuchPath(f"{op.state}.{'.'.join(op.path)} is not what the splice was cut from", state=op.state, path=op.path)


def _common(left: Sequence[Value], right: Sequence[Value]) -> int:
    """How many items two sequences share at their beginning; halving, as slices compare fast."""
    low, high = 0, min(len(left), len(right))
    if isinstance(left, list):
        pairs = zip(left, right, strict=False)
        return next((index for index, (one, other) in enumerate(pairs) if not same(one, other)), high)
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
