"""What one thread or task writes to a room and keeps back, through whatever objects, in the order of writing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from sharedwidgets.core import delta
from sharedwidgets.core.protocol import Append, Inc, Op, Set
from sharedwidgets.core.values import Value, added_up, same

# The ops of an assignment to a trait of a state, of which its author saw one value and wants another.
Assign = Callable[[str, str, Value, Value], list[Op]]


class Writer(Protocol):
    """An object or handle through which is written."""

    state: str

    def adopt(self, trait: str, value: Value) -> None:
        """Show what another one has written."""


class Run(msgspec.Struct, frozen=True, eq=False):
    """What one writer did to a trait before another one did something to it.

    Attributes
    ----------
    before, value : Value
        What the trait showed to the writer before and behind it.
    ops : tuple of Op, optional
        What was done; None when it was set to `value`.
    """

    writer: object
    state: str
    trait: str
    before: Value
    value: Value
    ops: tuple[Op, ...] | None


class Draft:
    """The writes of one transaction, hold or handle."""

    def __init__(self) -> None:
        self.runs: list[Run] = []
        # Of each trait the last of them, by its place.
        self._last: dict[tuple[str, str], int] = {}
        self._writers: list[Writer] = []

    def join(self, writer: Writer) -> None:
        """An object shows what is written here from now on."""
        self._writers.append(writer)

    def set(self, writer: object, state: str, trait: str, before: Value, value: Value) -> None:
        """A trait that showed `before` was assigned."""
        mine = self._mine(writer, state, trait)
        if mine is not None and same(self.runs[mine].value, before):
            self.runs[mine] = msgspec.structs.replace(self.runs[mine], value=value, ops=None)
        else:
            # Another one has changed it, here or on a thread that keeps nothing back: the author has seen that.
            self._add(Run(writer, state, trait, before, value, None))
        self._show(writer, state, trait, value)

    def do(self, writer: object, op: Op, before: Value, value: Value) -> None:
        """Something was done to a trait that showed `before` and shows `value` now: a sum or items, which lose to nobody."""
        state, trait = op.state, op.path[0]
        mine = self._mine(writer, state, trait)
        if mine is None:
            self._add(Run(writer, state, trait, before, value, (op,)))
        else:
            run = self.runs[mine]
            if run.ops is None:
                # Not of what is shown: another thread may have changed that, and it has sent what it did.
                self.runs[mine] = msgspec.structs.replace(run, value=delta.apply(run.value, op))
            else:
                self.runs[mine] = msgspec.structs.replace(run, value=value, ops=_joined(run.ops, op))
        self._show(writer, state, trait, value)

    def read(self, state: str, trait: str, value: Value) -> Value:
        """What a trait is with these writes, where the room holds `value`."""
        for run in self.runs:
            if (run.state, run.trait) == (state, trait):
                if run.ops is None:
                    value = run.value
                else:
                    for op in run.ops:
                        value = delta.apply(value, op)
        return value

    def ops(self, assign: Assign) -> list[Op]:
        """What is to be sent."""
        made: list[Op] = []
        begun: set[tuple[str, str]] = set()
        for run in self.runs:
            key = (run.state, run.trait)
            if run.ops is not None:
                made += run.ops
            elif not same(run.before, run.value):
                made += assign(*key, run.before, run.value)
            elif isinstance(run.value, dict):
                # Keys it does not name may be others', which the author has not seen.
                continue
            elif key in begun:
                made.append(Set(state=run.state, path=(run.trait,), value=run.value))
            else:
                # It is a write where the room holds something else (H1).
                made += assign(*key, run.before, run.value)
            begun.add(key)
        return made

    def clear(self) -> None:
        """All of it was sent."""
        self.runs.clear()
        self._last.clear()

    def undo(self, to: list[Run], writer: object | None = None) -> None:
        """Everything is as it was when there were these runs, or what one writer did is."""
        if writer is None:
            self.runs = list(to)
        else:
            # A run stays where it is, so that the earlier ones are in the same places.
            mine = [was if run.writer is writer else run for was, run in zip(to, self.runs, strict=False)]
            self.runs = mine + [run for run in self.runs[len(to) :] if run.writer is not writer]
        self._last = {(run.state, run.trait): place for place, run in enumerate(self.runs)}

    def _mine(self, writer: object, state: str, trait: str) -> int | None:
        place = self._last.get((state, trait))
        return place if place is not None and self.runs[place].writer is writer else None

    def _add(self, run: Run) -> None:
        self._last[run.state, run.trait] = len(self.runs)
        self.runs.append(run)

    def _show(self, writer: object, state: str, trait: str, value: Value) -> None:
        for other in self._writers:
            if other is not writer and other.state == state:
                other.adopt(trait, value)


def _joined(earlier: tuple[Op, ...], later: Op) -> tuple[Op, ...]:
    """Things that are done to one trait, as fewer where that is the same."""
    *before, last = earlier
    match last, later:
        case Inc(), Inc() if last.path == later.path:
            by = added_up(last.by, later.by)
            if by is not None:
                return (*before, msgspec.structs.replace(last, by=by))
        case Append(), Append() if last.path == later.path:
            return (*before, msgspec.structs.replace(last, items=(*last.items, *later.items)))
        case _, Set() if last.path == later.path:
            return (*before, later)
    return (*earlier, later)
