"""What one `SharedState` does in a transaction or hold: it keeps its writes back, and its observers, and can be as it was."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Protocol

from traitlets.utils.bunch import Bunch

from sharedwidgets import computing, host
from sharedwidgets.bridge import Bridge, Group
from sharedwidgets.drafts import Draft
from sharedwidgets.traits import differ


class Object(Protocol):
    """What a part asks of the object it belongs to."""

    _bridge: Bridge | None
    _parts: dict[tuple[int, int], StatePart]
    _trait_values: dict[str, Any]

    def notify_change(self, change: Bunch) -> None:
        """Tell observers."""

    def _cross_checked(self, name: str, value: Any) -> Any:
        """The value as the class's validators take it, or what they raise."""

    def set_trait(self, name: str, value: Any) -> None:
        """Assign a trait, also one that its user may not."""


class SyncPart:
    """A `Part` of one object whose observers hear at once: only what is sent is kept together.

    Parameters
    ----------
    owner : Object
        Linked or not.
    draft : Draft
        Where the writes are kept.
    """

    def __init__(self, owner: Object, draft: Draft) -> None:
        self._owner = owner
        self._draft = draft
        self._bridge = owner._bridge
        self._me = host.owner()
        self._still = ExitStack()
        self._group: Group | None = None

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
            self._bridge.keep_group(self._group, version)

    def undo(self) -> None:
        """Observers were told, and are told what the room holds instead."""
        self._take_back({})

    def park(self) -> None:
        """Show what the room holds meanwhile."""
        if self._bridge is not None and self._group is not None:
            self._bridge.park_group(self._group, {})
        self._still.close()

    def end(self) -> None:
        """Remote values may come."""
        self._still.close()

    def tell(self) -> None:
        """What came meanwhile, or of the writes that had to wait, shows now."""
        if self._bridge is not None and self._group is not None and self._group.parked:
            self._bridge.show()

    def _take_back(self, raw: dict[str, Any]) -> None:
        if self._bridge is not None and self._group is not None and not self._group.parked:
            self._bridge.undo_group(self._group, raw)


class StatePart(SyncPart):
    """A `Part` of one object whose observers hear at the end, of final values only, and its validators before that.

    Inside of another one of the same thread or task it can be undone by itself; if it is not, it is part of that one.
    """

    def __init__(self, owner: Object, draft: Draft) -> None:
        super().__init__(owner, draft)
        self._outer: StatePart | None = None
        self._before: dict[str, Any] = {}
        self._held: dict[str, list[Bunch]] = {}
        self._checked: set[str] = set()
        # What another object of the same transaction wrote last, whose validators are asked.
        self._adopted: set[str] = set()
        self._undone = False

    def begin(self) -> None:
        """Keep writes and notifications back, of this thread or task."""
        self._outer = self._owner._parts.get(self._me)
        self._before = dict(self._owner._trait_values)
        super().begin()
        self._owner._parts[self._me] = self

    def hold(self, change: Bunch, *, checked: bool = False) -> None:
        """Keep a notification back, as traitlets does: changes of a trait as one; `checked` by another object's validators."""
        held = self._held.setdefault(change.name, [])
        if held and held[-1].type == "change" and change.type == "change":
            held[-1]["new"] = change.new
        else:
            held.append(change)
        if checked:
            self._adopted.add(change.name)
        else:
            self._adopted.discard(change.name)

    def meanwhile(self, change: Bunch) -> None:
        """Another thread or task has changed a trait. What was not written here yet is, if this is undone, as that left it."""
        if change.type == "change" and change.name not in self._held:
            self._before[change.name] = change.new
        if self._outer is not None:
            self._outer.meanwhile(change)

    def check(self) -> bool:
        """Run the class's validators on what was assigned and not seen by them yet; whether there was any."""
        if self._outer is not None:
            return False
        names = [name for name in self._held if name not in self._checked | self._adopted and self._changed(name)]
        for name in names:
            self._checked.add(name)
            value = getattr(self._owner, name)
            final = self._owner._cross_checked(name, value)
            # Another thread may have added to it meanwhile: what was not changed is not assigned.
            if differ(value, final):
                self._owner.set_trait(name, final)
        return bool(names)

    def keep(self, version: int) -> None:
        """What was assigned stays; inside of another one it is that one's now."""
        super().keep(version)
        if self._outer is not None:
            for changes in self._held.values():
                for change in changes:
                    self._outer.hold(change)
            self._held.clear()

    def undo(self) -> None:
        """Put back what was there before; what other threads assigned meanwhile stays."""
        self._undone = True
        self._take_back(self._put_back())

    def park(self) -> None:
        """Put back what was there before, of shared traits; the room tells what becomes of them."""
        assert self._bridge is not None
        assert self._group is not None
        shared = self._group.put.keys()
        self._bridge.park_group(self._group, {name: self._before[name] for name in shared if name in self._before})
        self._still.close()
        for name in shared:
            self._held.pop(name, None)

    def end(self) -> None:
        """Observers are told as before."""
        if self._outer is None:
            del self._owner._parts[self._me]
        else:
            self._owner._parts[self._me] = self._outer
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
            if change.type != "change" or self._owner._trait_values.get(change.name) is change.new:
                self._owner.notify_change(change)

    def _changed(self, name: str) -> list[Bunch]:
        return [change for change in self._held[name] if change.type == "change"]

    def _put_back(self) -> dict[str, Any]:
        """Undo what is not shared; of what is, say what was there before."""
        values, shared = self._owner._trait_values, self._group.put if self._group is not None else {}
        before: dict[str, Any] = {}
        for name in filter(self._changed, self._held):
            mine = self._changed(name)[-1].new
            for other in list(self._owner._parts.values()):
                if other is not self and other._before.get(name) is mine and name in self._before:
                    # It began when this was there.
                    other._before[name] = self._before[name]
            if name in shared:
                if name in self._before:
                    before[name] = self._before[name]
            elif values.get(name) is mine:
                if name in self._before:
                    values[name] = self._before[name]
                else:
                    values.pop(name, None)
        self._held.clear()
        return before
