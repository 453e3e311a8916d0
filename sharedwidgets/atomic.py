"""Writes that read, change and write in one step at the server: sums, items at the end of a list, compare and set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

import traitlets as t
from traitlets import TraitError

from sharedwidgets.answers import ANSWER_SECONDS
from sharedwidgets.bridge import Bridge
from sharedwidgets.core.protocol import Append, Inc, Set
from sharedwidgets.core.values import normalise, plus, same
from sharedwidgets.errors import InvalidValue, NoSuchTrait, OutcomeUnknown, OutOfBounds, ValueMismatch

if TYPE_CHECKING:
    from sharedwidgets.locks import LocalLock


class AtomicOps:
    """What `SharedState` offers beside assignment: no other write comes between reading and writing.

    Those that return something wait for the server, and show nothing before its answer. While the object is not linked, and
    for private traits, they are exact among the threads of this process, as far as no transaction around one of them is undone.
    """

    if TYPE_CHECKING:
        _bridge: Bridge | None
        _cross_validation_lock: bool
        _trait_validators: dict[str, Any]
        _computed_traits: ClassVar[Mapping[str, Any]]

        def _accepted(self, name: str, value: Any) -> Any:
            """The value as the trait's own type takes it."""

        def _cross_checked(self, name: str, value: Any) -> Any:
            """The value as the class's validators take it."""

        def _check_not_mine(self, verb: str) -> None:
            """Raise inside a transaction or hold of this thread or task."""

        @classmethod
        def _class_name(cls) -> str:
            """What the user calls the class."""

        def _local_lock(self, timeout: float) -> LocalLock:
            """The lock of the object while it is not linked."""

        def has_trait(self, name: str) -> bool:
            """Whether there is such a trait."""

        def _own_traits(self) -> list[str]:
            """The traits of the user's."""

    def increment(
        self,
        trait: str,
        by: float = 1,
        *,
        min: float | None = None,
        max: float | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> Any:
        """Add to a number; sums of all writers add up, none is lost.

        Without bounds it shows at once and never waits. With `min` or `max` it waits for the server, and adds only when the sum
        stays within them. Where the class's validators make something else of the sum, that is assigned, as by an assignment.

        Parameters
        ----------
        trait : str
            Holds an int or float.
        by : int or float
            Below 0 to subtract.
        min, max : int or float, optional
            What the sum must not leave, both ends included.
        timeout : float
            Seconds to wait, with bounds.

        Returns
        -------
        int or float
            The sum; without bounds as this process sees it by now.

        Raises
        ------
        OutOfBounds
            Nothing was added.
        LinkTimeout
            No answer in time; its sentence says whether the sum may still take effect.
        NoSuchTrait, InvalidValue, Locked, WrongThread
        RuntimeError
            With bounds, inside a transaction or hold.
        """
        self._check_by(by)
        bridge = self._linked_by(trait)
        if bridge is None:
            with self._local_lock(timeout):
                return self._added_here(trait, by, min, max)
        if min is None and max is None:
            self._say(bridge, Inc(state=bridge.state, path=(trait,), by=by), lambda held: plus(held, by))
            return getattr(self, trait)
        self._check_not_mine("increment within bounds")
        return _sum(trait, bridge.ask(Inc(state=bridge.state, path=(trait,), by=by, min=min, max=max), timeout))

    async def increment_async(
        self,
        trait: str,
        by: float = 1,
        *,
        min: float | None = None,
        max: float | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> Any:
        """`increment` that waits for the server, with bounds or without, and lets the loop run meanwhile; returns the sum."""
        self._check_by(by)
        bridge = self._linked_by(trait)
        if bridge is None:
            async with self._local_lock(timeout):
                return self._added_here(trait, by, min, max)
        self._check_not_mine("await increment")
        return _sum(trait, await bridge.ask_async(Inc(state=bridge.state, path=(trait,), by=by, min=min, max=max), timeout))

    def compare_and_set(self, trait: str, expected: Any, new: Any, timeout: float = ANSWER_SECONDS) -> bool:
        """Set a trait if it holds what is expected. `new` shows nowhere before the server has said so.

        Parameters
        ----------
        trait : str
            Its name.
        expected, new : Any
            Values of the trait; equal on the wire is equal.
        timeout : float
            Seconds to wait.

        Returns
        -------
        bool
            Whether it was set.

        Raises
        ------
        LinkTimeout
            No answer in time; its sentence says whether the write may still take effect.
        NoSuchTrait, InvalidValue, TraitError, Locked, WrongThread
        RuntimeError
            Inside a transaction or hold.
        """
        bridge = self._linked_by(trait)
        if bridge is None:
            with self._local_lock(timeout):
                return self._set_here(trait, expected, new)
        self._check_not_mine("compare_and_set")
        with suppress(ValueMismatch):
            bridge.ask(self._exchange(bridge, trait, expected, new), timeout)
            return True
        return False

    async def compare_and_set_async(self, trait: str, expected: Any, new: Any, timeout: float = ANSWER_SECONDS) -> bool:
        """`compare_and_set` that lets the loop run meanwhile."""
        bridge = self._linked_by(trait)
        if bridge is None:
            async with self._local_lock(timeout):
                return self._set_here(trait, expected, new)
        self._check_not_mine("compare_and_set")
        with suppress(ValueMismatch):
            await bridge.ask_async(self._exchange(bridge, trait, expected, new), timeout)
            return True
        return False

    def append(self, trait: str, *items: Any) -> None:
        """Put items at the end of a list; those of all writers stay. It shows at once and never waits.

        A ``minlen`` or ``maxlen`` of the trait is held against the list as this process sees it, with the items.

        Raises
        ------
        NoSuchTrait, InvalidValue, TraitError, Locked
        """
        bridge = self._linked_by(trait)
        if bridge is None:
            with self._local_lock(ANSWER_SECONDS):
                setattr(self, trait, [*self._list(trait), *items])
        elif items:
            taken = self._taken(trait, items)
            op = self._items(bridge, trait, taken)
            if self._by_items(trait):
                bridge.say(op, lambda held: [*held, *taken])
            else:
                self._say(bridge, op, lambda held: [*held, *taken])

    async def append_async(self, trait: str, *items: Any, timeout: float = ANSWER_SECONDS) -> None:
        """`append` that waits until the server has the items, and lets the loop run meanwhile."""
        bridge = self._linked_by(trait)
        if bridge is None:
            self.append(trait, *items)
        elif items:
            self._check_not_mine("await append")
            await bridge.ask_async(self._items(bridge, trait, self._taken(trait, items)), timeout)

    # --- parts

    def _linked_by(self, trait: str) -> Bridge | None:
        """The bridge of a shared trait; None for a private one, and while unlinked."""
        if not self.has_trait(trait):
            there = ", ".join(self._own_traits())
            raise NoSuchTrait(f"{self._class_name()} has no trait {trait!r}; it has {there}", path=(trait,))
        bridge = self._bridge
        return bridge if bridge is not None and trait in bridge.traits else None

    def _say(self, bridge: Bridge, op: Inc | Append, done: Callable[[Any], Any]) -> None:
        """Write a sum or items; in a transaction or hold they are part of its entry."""
        trait = op.path[0]
        candidate = done(self._number(trait) if isinstance(op, Inc) else self._list(trait))
        taken = self._accepted(trait, candidate)
        if not self._cross_validation_lock:
            taken = self._cross_checked(trait, taken)
        if same(bridge.check(trait, taken), bridge.check(trait, candidate)):
            bridge.say(op, done)
        else:
            # The class makes something else of it: that is what it asks for.
            setattr(self, trait, taken)

    def _exchange(self, bridge: Bridge, trait: str, expected: Any, new: Any) -> Set:
        value = bridge.check(trait, self._cross_checked(trait, self._accepted(trait, new)))
        # The class may not take what is expected; the room may hold it all the same.
        with suppress(TraitError):
            expected = self._accepted(trait, expected)
        return Set(state=bridge.state, path=(trait,), value=value, if_in=(bridge.check(trait, expected),))

    def _taken(self, name: str, items: Sequence[Any]) -> list[Any]:
        """The items as the trait takes them: each by itself, and their number together with those that are there."""
        trait, held = getattr(type(self), name), self._list(name)
        if not isinstance(trait, t.List):
            return list(self._accepted(name, [*held, *items]))[len(held) :]
        if not trait._minlen <= len(held) + len(items) <= trait._maxlen:
            trait.length_error(self, [*held, *items])
        return list(super(t.List, trait).validate_elements(self, list(items)) or ())

    def _by_items(self, name: str) -> bool:
        """Whether a list takes its items one by one, so that those which are there need not be asked again."""
        trait = getattr(type(self), name)
        return type(trait) is t.List and name not in self._trait_validators and not hasattr(self, f"_{name}_validate")

    def _items(self, bridge: Bridge, trait: str, items: list[Any]) -> Append:
        wired = bridge.check(trait, items)
        assert isinstance(wired, list)
        return Append(state=bridge.state, path=(trait,), items=tuple(wired))

    @staticmethod
    def _check_by(by: Any) -> None:
        if isinstance(by, bool) or not isinstance(by, (int, float)):
            raise InvalidValue(f"{by!r} is no number to add", expected="int or float")

    def _number(self, trait: str) -> Any:
        value = getattr(self, trait)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidValue(f"{self._class_name()}.{trait} is {value!r}, no number to add to", path=(trait,))
        return value

    def _list(self, trait: str) -> list[Any]:
        value = getattr(self, trait)
        if not isinstance(value, list):
            kind = type(value).__name__
            raise InvalidValue(f"{self._class_name()}.{trait} is a {kind}, no list to append to", path=(trait,))
        return value

    def _added_here(self, trait: str, by: float, least: float | None, most: float | None) -> Any:
        total = plus(self._number(trait), by)
        if (least is not None and not total >= least) or (most is not None and not total <= most):
            raise OutOfBounds(
                f"{self._class_name()}.{trait} would be {total}, outside of {least} to {most}; nothing was added", path=(trait,)
            )
        setattr(self, trait, total)
        return getattr(self, trait)

    def _set_here(self, trait: str, expected: Any, new: Any) -> bool:
        if trait in self._computed_traits or getattr(type(self), trait).read_only:
            # The assignment says why not, whatever is there.
            setattr(self, trait, new)
        if not _equal(getattr(self, trait), expected):
            return False
        setattr(self, trait, new)
        return True


def _equal(held: Any, expected: Any) -> bool:
    """Equal on the wire, where both have a form for it."""
    try:
        return same(normalise(held), normalise(expected))
    except InvalidValue:
        return bool(held == expected)


def _sum(trait: str, value: int | float | None) -> int | float:
    if value is None:
        raise OutcomeUnknown(f"the sum was added to {trait}, but the server has forgotten what it was; look", path=(trait,))
    return value
