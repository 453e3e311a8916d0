"""What one `SharedState` does in a transaction or hold: it keeps its writes back, and its observers, and can be as it was."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Protocol

from traitlets.utils.bunch import Bunch

from sharedwidgets import computing, host
from sharedwidgets.bridge import Bridge, Group
from sharedwidgets.drafts import Draft
from sharedwidgets.layers import Layers
from sharedwidgets.traits import differ
from sharedwidgets.transactions import UNSEEN


class Object(Protocol):
    """What a part asks of the object it belongs to."""

    _bridge: Bridge | None
    _parts: dict[tuple[int, int], StatePart]
    _layers: Layers[Any]
    _trait_values: dict[str, Any]

    def notify_change(self, change: Bunch) -> None:
        """Tell observers."""

    def _cross_checked(self, name: str, value: Any) -> Any:
        """The value as the class's validators take it, or what they raise."""

    def set_trait(self, name: str, value: Any) -> None:
        """Assign a trait, also one that its user may not."""


class _Nothing:
    """A trait that had no value yet."""


class SyncPart:
    """A `Part` of one object whose observers hear at once: only what is sent is kept together.

    Parameters
    ----------
    owner : Object
        Linked or not.
    draft : Draft
        Where the writes are kept.
    """

    _told = True

    def __init__(self, owner: Object, draft: Draft) -> None:
        self._owner = owner
        self._draft = draft
        self._bridge = owner._bridge
        self._me = host.owner()
        self._still = ExitStack()
        self._group: Group | None = None
        self._parked = False
        # What the room has made something else of.
        self._late: set[str] = set()

    @property
    def inside(self) -> bool:
        """Whether it is part of another one's entry."""
        return self._group is not None and self._group.outer is not None

    @property
    def waits(self) -> str:
        """The state of a class that waits for its turn."""
        return self._bridge.state if self._bridge is not None and self._bridge.waits else ""

    def begin(self) -> None:
        """Keep back what is written, and put nothing remote in."""
        if self._bridge is not None:
            self._still.enter_context(self._bridge.holding())
            self._group = self._bridge.open_group(self._draft)

    def check(self) -> bool:
        """Validators have been asked at each assignment."""
        return False

    def keep(self, version: int) -> None:
        """What was assigned stays."""
        if self._bridge is not None and self._group is not None:
            self._late |= self._bridge.keep_group(self._group, version, told=self._told)

    def undo(self) -> None:
        """Nothing was written; observers are told what the room holds instead, where they were told of it."""
        if self._bridge is None or self._group is None:
            return
        if self._parked:
            # An interrupt may have come when it was written already.
            self._bridge.keep_group(self._group, UNSEEN, told=self._told)
        else:
            self._bridge.undo_group(self._group, told=self._told)

    def park(self) -> None:
        """Show what the room holds, and afterwards what it makes of this."""
        self._parked = True
        if self._bridge is not None and self._group is not None:
            self._bridge.park_group(self._group, told=self._told)
        self._still.close()

    def end(self) -> None:
        """Remote values may come."""
        self._still.close()

    def tell(self) -> None:
        """What came meanwhile, or of the writes that had to wait, shows now."""
        if self._bridge is not None and (self._parked or self._late):
            self._bridge.show()


class StatePart(SyncPart):
    """A `Part` of one object whose observers hear at the end, of final values only, and its validators before that.

    Inside of another one of the same thread or task it can be undone by itself; if it is not, it is part of that one.
    """

    _told = False

    def __init__(self, owner: Object, draft: Draft) -> None:
        super().__init__(owner, draft)
        self._outer: StatePart | None = None
        # What had a value when it began.
        self._there: frozenset[str] = frozenset()
        self._held: dict[str, list[Bunch]] = {}
        self._checked: set[str] = set()
        # What another object of the same transaction wrote last, whose validators are asked.
        self._adopted: set[str] = set()
        self._undone = False

    def begin(self) -> None:
        """Keep writes and notifications back, of this thread or task."""
        self._outer = self._owner._parts.get(self._me)
        self._there = frozenset(self._owner._trait_values)
        super().begin()
        self._owner._parts[self._me] = self

    def hold(self, change: Bunch, *, checked: bool = False) -> None:
        """Keep a notification back, as traitlets does: changes of a trait as one; `checked` by another object's validators."""
        held = self._held.setdefault(change.name, [])
        if held and held[-1].type == "change" and change.type == "change":
            held[-1]["new"] = change.new
        else:
            held.append(change)
        self._checked.discard(change.name)
        if checked:
            self._adopted.add(change.name)
        else:
            self._adopted.discard(change.name)
        if change.type == "change" and not self._is_shared(change.name):
            below = change.old if change.name in self._there else _Nothing
            self._owner._layers.put(self, change.name, below, change.new)

    def _is_shared(self, name: str) -> bool:
        return self._bridge is not None and name in self._bridge.traits

    def check(self) -> bool:
        """Run the class's validators on what was assigned and not seen by them yet; whether there was any."""
        if self._outer is not None:
            return False
        names = [name for name in self._held if name not in self._checked | self._adopted and self._changed(name)]
        for name in names:
            value = getattr(self._owner, name)
            final = self._owner._cross_checked(name, value)
            # Another thread may have added to it meanwhile: what was not changed is not assigned.
            if differ(value, final):
                self._owner.set_trait(name, final)
            # Unless another validator changes it once more.
            self._checked.add(name)
        return bool(names)

    def keep(self, version: int) -> None:
        """What was assigned stays; inside of another one it is that one's now."""
        super().keep(version)
        for name in self._late:
            self._held.pop(name, None)
        if self._outer is not None:
            for changes in self._held.values():
                for change in changes:
                    self._outer.hold(change)
            self._held.clear()
            self._owner._layers.merge(self, self._outer)
        else:
            self._owner._layers.keep(self)

    def undo(self) -> None:
        """Put back what was there before; what other threads assigned meanwhile stays."""
        self._undone = True
        self._held.clear()
        values = self._owner._trait_values
        for name, below in self._owner._layers.undo(self).items():
            if below.value is _Nothing:
                values.pop(name, None)
            else:
                values[name] = below.value
        super().undo()

    def park(self) -> None:
        """Put back what was there before, of shared traits; the room tells what becomes of them."""
        super().park()
        for name in filter(self._is_shared, list(self._held)):
            del self._held[name]

    def end(self) -> None:
        """Observers are told as before."""
        parts = self._owner._parts
        if parts.get(self._me) is self:
            if self._outer is None:
                del parts[self._me]
            else:
                parts[self._me] = self._outer
        inner = parts.get(self._me)
        while inner is not None:
            if inner._outer is self:
                # Generators may end in the order in which they began.
                inner._outer = self._outer
            inner = inner._outer
        super().end()
        if self._undone:
            # Computed traits may have been evaluated meanwhile, of values that are undone.
            computing.settle(self._owner)

    def tell(self) -> None:
        """Observers hear of final values only."""
        with ExitStack() as telling:
            telling.callback(computing.settle, self._owner)
            for changes in reversed(self._held.values()):
                telling.callback(self._tell, changes)
            telling.callback(super().tell)

    def _tell(self, changes: list[Bunch]) -> None:
        for change in changes:
            # Unless an observer of another trait has assigned this one: the last event must be of the last value.
            if change.type != "change" or not differ(self._owner._trait_values.get(change.name), change.new):
                self._owner.notify_change(change)

    def _changed(self, name: str) -> list[Bunch]:
        return [change for change in self._held[name] if change.type == "change"]
