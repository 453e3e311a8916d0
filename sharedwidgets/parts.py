"""What one `SharedState` does in a transaction: it keeps its writes and its observers back, and can be put back as it was."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from traitlets.utils.bunch import Bunch

from sharedwidgets import computing, host
from sharedwidgets.bridge import Bridge, Level
from sharedwidgets.core.protocol import Op


class Object(Protocol):
    """What a part asks of the object it belongs to."""

    _bridge: Bridge | None
    _cross_validation_lock: bool
    _in_transaction: tuple[int, int] | None
    _trait_values: dict[str, Any]

    def notify_change(self, change: Bunch) -> None:
        """Tell observers."""

    def _cross_checked(self, name: str, value: Any) -> Any:
        """The value as the class's validators take it, or what they raise."""

    def set_trait(self, name: str, value: Any) -> None:
        """Assign a trait that its user may not."""

    def _class_name(self) -> str:
        """What the user calls the class."""


class StatePart:
    """A `Part` of one object, for one transaction.

    Parameters
    ----------
    owner : Object
        Linked or not.
    """

    def __init__(self, owner: Object) -> None:
        self._owner = owner
        self._bridge = owner._bridge
        self._me = host.owner()
        self._still = ExitStack()
        self._level: Level | None = None
        self._before: dict[str, Any] = {}
        self._held: dict[str, Bunch] = {}
        self._checked: set[str] = set()
        # A hold around the transaction keeps its own way of notifying, and validates at its own end.
        self._holder: Callable[[Bunch], None] | None = None
        self._validated_later = False
        self._undone = False

    @property
    def waits(self) -> str:
        """The state of a class that waits for its turn."""
        return self._bridge.state if self._bridge is not None and self._bridge.waits else ""

    def begin(self) -> None:
        """Keep writes and notifications back, of this thread or task.

        Raises
        ------
        RuntimeError
            Another one has a transaction of the object open.
        """
        owner = self._owner
        if owner._in_transaction is not None:
            raise RuntimeError(
                f"another thread or task has a transaction of this {owner._class_name()} open; wait for it, or use an "
                "object of the same class per thread"
            )
        if any(holder != self._me for holder in vars(owner).get("_holders", ())):
            raise RuntimeError(
                f"another thread or task is in a hold of this {owner._class_name()}; wait for it, or use an object of the same "
                "class per thread"
            )
        self._before = dict(owner._trait_values)
        self._holder = vars(owner).get("notify_change")
        self._validated_later = owner._cross_validation_lock
        if self._bridge is not None:
            self._still.enter_context(self._bridge.holding())
            self._level = self._bridge.open_group(owned=True)
        owner._in_transaction = self._me
        owner.notify_change = self._hold  # type: ignore[method-assign]
        owner._cross_validation_lock = True

    def check(self) -> bool:
        """Run the class's validators on what was assigned and not seen by them yet; whether there was any."""
        names = [] if self._validated_later else [name for name in self._held if name not in self._checked]
        for name in names:
            self._checked.add(name)
            value = self._owner._cross_checked(name, getattr(self._owner, name))
            if getattr(type(self._owner), name).read_only:
                self._owner.set_trait(name, value)
            else:
                setattr(self._owner, name, value)
        return bool(names)

    def gather(self) -> list[Op]:
        """The ops of what was assigned."""
        return [] if self._bridge is None or self._level is None else self._bridge.close_group(self._level, send=True)

    def keep(self, version: int) -> None:
        """What was assigned stays."""
        if self._bridge is not None and self._level is not None:
            self._bridge.keep_group(self._level, version)

    def undo(self) -> None:
        """Put back what was there before; what other threads assigned meanwhile stays."""
        self._undone = True
        values = self._owner._trait_values
        for name in self._held:
            if name in self._before:
                values[name] = self._before[name]
            else:
                values.pop(name, None)
        self._held.clear()
        if self._bridge is not None and self._level is not None:
            self._bridge.undo_group(self._level, "remote")

    def end(self) -> None:
        """Observers are told as before."""
        owner = self._owner
        owner._cross_validation_lock = self._validated_later
        owner._in_transaction = None
        if self._holder is None:
            del owner.notify_change
        else:
            owner.notify_change = self._holder  # type: ignore[assignment, method-assign]
        self._still.close()
        if self._undone:
            # Computed traits may have been evaluated meanwhile, of values that are undone.
            computing.settle(owner)

    def tell(self) -> None:
        """Observers hear of final values only."""
        values = self._owner._trait_values
        with ExitStack() as telling:
            telling.callback(computing.settle, self._owner)
            for change in reversed(self._held.values()):
                telling.callback(self._tell, change, values)

    def _tell(self, change: Bunch, values: dict[str, Any]) -> None:
        # Unless an observer of another trait has assigned this one: the last event must be of the last value.
        if values.get(change.name) is change.new:
            self._owner.notify_change(change)

    def _hold(self, change: Bunch) -> None:
        if host.owner() != self._me:
            # Another thread's write is none of this transaction's, and stays when it is undone.
            type(self._owner).notify_change(self._owner, change)
        elif change.type == "change":
            self._held.setdefault(change.name, change)["new"] = change.new
