"""What evaluations have read: noted while they run, and compared with what is there now.

A value is kept with the raw values it was made of, and every read compares those by identity. The bridge puts values in before
anybody is told of them, so a notification comes too late to say that a value is old, and a comparison does not. Notifications
say only when to look: what has read a trait is known to it weakly, and looks again after a change.

An evaluation in progress is a frame in a context variable, which tasks and threads inherit as copies; a frame that is over
notes and forbids nothing any more.
"""

from __future__ import annotations

import contextvars
import types
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import traitlets as t

# A raw value that was read: of what, under which name, and what it was.
Leaf: TypeAlias = "tuple[weakref.ref[Any], str, Any]"
Leaves: TypeAlias = "dict[tuple[int, str], Leaf]"

_MISSING = object()
# Of these an equal one is the same one, exactly.
_PLAIN = frozenset({int, str, bytes, bool})


class Reader(Protocol):
    """What is evaluated."""

    label: str
    asynchronous: bool
    # The traits of its object it is made of, where they are named.
    names: tuple[str, ...]
    # How many computed traits are below it, one below the other: who is told after whom.
    depth: int


class Source(Reader, Protocol):
    """What others read, and are made of what that is made of."""

    tried: Leaves

    def current(self) -> Held:
        """The value and what it is made of, made anew where that has changed."""


# --- evaluations in progress


# Wherever they run. While there are none, a read costs a look at this.
frames: set[Frame] = set()
evaluation: contextvars.ContextVar[Frame | None] = contextvars.ContextVar("sharedwidgets-computed", default=None)


def track(trait: t.TraitType[Any, Any]) -> None:
    """Have evaluations note the reads of a trait; its type stays what it is, and a copy of it is tracked for itself."""
    known = type(trait).get is t.TraitType.get
    trait.get = types.MethodType(_get if known else _get_otherwise, trait)  # type: ignore[method-assign]


def _get(trait: Any, obj: Any, cls: type[Any] | None = None) -> Any:
    # What traitlets does itself, in one call less.
    try:
        value = obj._trait_values[trait.name]
    except KeyError:
        value = t.TraitType.get(trait, obj, cls)
    if frames:
        _note(obj, trait.name, value)
    return value


def _get_otherwise(trait: Any, obj: Any, cls: type[Any] | None = None) -> Any:
    """For a type of trait with a `get` of its own, which may show something else than it holds."""
    if not frames:
        return type(trait).get(trait, obj, cls)
    raw = obj._trait_values.get(trait.name, _MISSING)
    value = type(trait).get(trait, obj, cls)
    _note(obj, trait.name, obj._trait_values.get(trait.name, _MISSING) if raw is _MISSING else raw)
    return value


def evaluating() -> Frame | None:
    """The evaluation this is a part of."""
    frame = evaluation.get()
    return frame if frame is not None and frame.active else None


def _note(source: Any, name: str, raw: Any) -> None:
    frame = evaluating()
    if frame is not None and frame.noting:
        frame.note(source, name, raw)


def class_of(obj: Any) -> str:
    """What the user calls the class of an object."""
    return str(obj._class_name()) if hasattr(obj, "_class_name") else type(obj).__name__


def check_assignment(obj: Any, name: str) -> None:
    """Refuse the assignment of a trait within an evaluation.

    Raises
    ------
    RuntimeError
        Says who assigns what.
    """
    frame = evaluating()
    if frame is not None and obj.has_trait(name):
        raise RuntimeError(
            f"{frame.reader.label} assigns {class_of(obj)}.{name} while it is evaluated; a computed trait only reads, so "
            "assign in an observer"
        )


@contextmanager
def apart() -> Iterator[None]:
    """What is done meanwhile is no part of an evaluation: a new object gets its first values, and reads them."""
    token = evaluation.set(None)
    try:
        yield
    finally:
        evaluation.reset(token)


class Frame:
    """An evaluation in progress, and what it has read so far."""

    __slots__ = ("active", "depth", "direct", "leaves", "noting", "outer", "own", "reader", "torn")

    def __init__(self, reader: Reader, outer: Frame | None) -> None:
        self.reader = reader
        self.outer = outer
        self.active = True
        self.noting = True
        # Whether it saw two values of one trait, though the first may be back by now.
        self.torn = False
        # How many computed traits it has read, one below the other.
        self.depth = 0
        # What was read itself; that, and what the computed traits that were read are made of; those, in order.
        self.own: Leaves = {}
        self.leaves: Leaves = {}
        self.direct: dict[int, tuple[Source, Any]] = {}

    def note(self, source: Any, name: str, raw: Any) -> None:
        """A raw value was read."""
        key = (id(source), name)
        seen = self.leaves.get(key)
        if seen is not None and not _same(seen[2], raw):
            self.torn = True
        if key not in self.own:
            self.own[key] = leaf = (weakref.ref(source), name, raw)
            # The first value counts: when it is another one later, the evaluation saw both.
            self.leaves.setdefault(key, leaf)
            register(source, name, self.reader)

    def note_computed(self, source: Source, held: Held) -> None:
        """The value of another computed trait was read."""
        if id(source) not in self.direct:
            self.direct[id(source)] = (source, held.value)
            self.depth = max(self.depth, source.depth + 1)
            for key, leaf in held.leaves.items():
                if not _same(self.leaves.setdefault(key, leaf)[2], leaf[2]):
                    self.torn = True
                if (there := leaf[0]()) is not None:
                    register(there, leaf[1], self.reader)

    def note_failed(self, failed: Source) -> None:
        """The value of another computed trait could not be read; what that has read may have to change before it can."""
        self.depth = max(self.depth, failed.depth + 1)
        for source, name, raw in failed.tried.values():
            if (there := source()) is not None:
                self.note(there, name, raw)

    def note_names(self, owner: Any) -> None:
        """Note what was named, and nothing else from now on."""
        if not self.reader.names:
            return
        for name in self.reader.names:
            value = getattr(owner, name)
            if name not in owner._computed_traits:
                self.note(owner, name, owner._trait_values.get(name, value))
        self.noting = False

    def forget(self) -> None:
        """Begin anew."""
        self.noting, self.torn = True, False
        for notes in (self.own, self.leaves, self.direct):
            notes.clear()

    def inputs(self) -> Inputs:
        """What was read by now."""
        return Inputs(self.own.copy(), self.leaves.copy(), tuple(self.direct.copy().values()))

    def end(self) -> None:
        """What still runs in a copy of its context is no part of it any more."""
        self.active = False
        frames.discard(self)

    def __enter__(self) -> Frame:
        frames.add(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.end()


# --- what a value was made of


class Inputs:
    """What a value was made of."""

    __slots__ = ("direct", "leaves", "own")

    def __init__(self, own: Leaves, leaves: Leaves, direct: tuple[tuple[Source, Any], ...]) -> None:
        self.own = own
        self.leaves = leaves
        self.direct = direct

    def renewed(self) -> Leaves | None:
        """All raw values it is made of, when nothing that was read itself has changed; None when something has."""
        if not unchanged(self.own):
            return None
        leaves = dict(self.own)
        # In the order of reading: what a later one is may hang on an earlier one, and it must not be asked then.
        for source, value in self.direct:
            try:
                held = source.current()
            except Exception:
                # The function is to meet it itself.
                return None
            if held.value is not value:
                return None
            leaves.update(held.leaves)
        return leaves


class Held(Inputs):
    """A value, and what it was made of."""

    __slots__ = ("value",)

    def __init__(self, value: Any, inputs: Inputs, leaves: Leaves) -> None:
        super().__init__(inputs.own, leaves, inputs.direct)
        self.value = value


def unchanged(leaves: Leaves) -> bool:
    """Whether every raw value is the one that was read."""
    for source, name, raw in leaves.values():
        there = source()
        if there is None:
            return False
        now = there._trait_values.get(name, _MISSING)
        if not _same(now, raw):
            return False
    return True


def _same(now: Any, raw: Any) -> bool:
    return now is raw or (type(now) is type(raw) and type(now) in _PLAIN and now == raw)


def alike(old: Any, new: Any) -> bool:
    """Whether nobody can tell the values apart; False where that cannot be said."""
    try:
        return _equal(old, new)
    except Exception:
        return False


def _equal(old: Any, new: Any) -> bool:
    if old is new:
        return True
    if type(old) is not type(new):
        return False
    if isinstance(old, float):
        return repr(old) == repr(new)
    if isinstance(old, (list, tuple)):
        return len(old) == len(new) and all(map(_equal, old, new))
    if isinstance(old, dict):
        return len(old) == len(new) and all(map(_equal, old.items(), new.items()))
    return bool(old == new)


# --- who depends on what


def register(source: Any, name: str, reader: Reader) -> None:
    """From now on the reader is told of changes of this trait, also when it reads it no more: to look costs little."""
    table = source.__dict__.setdefault("_computed_dependents", {})
    found = table.get(name)
    if found is None:
        found = table.setdefault(name, weakref.WeakValueDictionary())
    if found.get(id(reader)) is not reader:
        found[id(reader)] = reader


def dependents(source: Any, names: Iterable[str] | None = None) -> list[Any]:
    """Who has read these traits of the object, or any."""
    table: dict[str, Any] = source.__dict__.get("_computed_dependents") or {}
    found: dict[int, Any] = {}
    for name in table.copy() if names is None else names:
        for ref in table[name].valuerefs() if name in table else ():
            if (reader := ref()) is not None:
                found[id(reader)] = reader
    return list(found.values())
