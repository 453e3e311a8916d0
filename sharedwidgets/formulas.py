"""One computed trait of one object: its value, made anew when it is read, and told where it differs."""

from __future__ import annotations

import logging
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, TypeAlias

import traitlets as t
from traitlets.utils.bunch import Bunch

from sharedwidgets.errors import ComputedCycle
from sharedwidgets.reads import (
    Frame,
    Held,
    Inputs,
    Leaves,
    Reader,
    alike,
    dependents,
    evaluating,
    evaluation,
    register,
    unchanged,
)

log = logging.getLogger("sharedwidgets")

# Origin and actor of the change that something is told of.
Cause: TypeAlias = "tuple[str, Any]"

HERE: Cause = ("local", None)
# How often a value is made anew because another thread changed what it is made of meanwhile.
TRIES = 8
_NOTHING = object()


class Recipe(Protocol):
    """A computed trait, as the class has it."""

    name: str | None
    names: tuple[str, ...]
    function: Callable[[Any], Any]
    asynchronous: bool
    metadata: dict[str, Any]


class Owner(Protocol):
    """What is asked of an object with computed traits."""

    _computed_traits: ClassVar[Mapping[str, Recipe]]
    _trait_values: dict[str, Any]
    _trait_notifiers: dict[Any, Any]

    @classmethod
    def _class_name(cls) -> str:
        """What the user calls the class."""

    def _told(self, change: Bunch) -> None:
        """Tell the own views and observers, also during a hold."""


class Formula(ABC):
    """One computed trait of one object, and what was told of it."""

    # The value and what it was made of; None where others cannot be made of that.
    held: Held | None = None

    def __init__(self, owner: Owner, trait: Recipe) -> None:
        self.owner: weakref.ref[Owner] = weakref.ref(owner)
        self.trait = trait
        self.name = str(trait.name)
        self.names = trait.names
        self.asynchronous = trait.asynchronous
        self.label = f"{owner._class_name()}.{self.name}"
        # Who is told after whom.
        self.depth = 0
        self.told: Any = _NOTHING
        # Nothing could be told yet, so the first value is news.
        self.missing = False
        self._failure = ""
        # Of the last change that came during a hold of the object.
        self._held_back = HERE
        # Whoever tells looks once more when others have come meanwhile. Nobody waits for the turn.
        self._again: Cause | None = None
        self._turn = threading.RLock()

    @abstractmethod
    def read(self) -> Any:
        """The value, noted by the evaluation that asks."""

    @abstractmethod
    def inputs(self) -> Inputs | None:
        """What it was made of last."""

    @abstractmethod
    def attend(self, owner: Owner) -> None:
        """It will be observed; what nobody was told of meanwhile is no news."""

    @abstractmethod
    def end(self) -> None:
        """Nothing more is wanted of it."""

    @abstractmethod
    def _latest(self, cause: Cause) -> Any:
        """The value to tell after a change."""

    def wanted(self, owner: Owner) -> bool:
        """Whether somebody wants to know."""
        return self.heard(owner)

    def tell(self, cause: Cause) -> None:
        """Tell observers and views, where the value is not the one they were told; never during a hold of the object."""
        owner = self.owner()
        if owner is None or not made(owner):
            return
        if in_hold(owner):
            self._held_back = cause
            return
        held_back, self._held_back = self._held_back, HERE
        if not self.wanted(owner):
            return
        self._again = held_back if cause == HERE else cause
        failed: Exception | None = None
        while self._again is not None and self._turn.acquire(blocking=False):
            try:
                while (now := self._again) is not None:
                    self._again = None
                    try:
                        self._tell_once(owner, now)
                    except Exception as error:
                        if failed is not None:
                            log.error("an observer of %s raised", self.label, exc_info=failed)
                        failed = error
            finally:
                self._turn.release()
        if failed is not None:
            raise failed

    def _tell_once(self, owner: Owner, cause: Cause) -> None:
        try:
            value = self._latest(cause)
        except Exception as error:
            self.failed(error)
            return
        old = self.told
        if not self._visible(owner) or alike(old, value):
            return
        self.told, self.missing = value, False
        origin, actor = cause
        owner._told(
            Bunch(
                name=self.name,
                old=t.Undefined if old is _NOTHING else old,
                new=value,
                owner=owner,
                type="change",
                origin=origin,
                actor=actor,
            )
        )

    def failed(self, error: Exception) -> None:
        """Log a failure, once for as long as it stays the same."""
        failure = f"{type(error).__name__}: {error}"
        if failure != self._failure:
            self._failure = failure
            log.error("%s cannot be computed: %s", self.label, failure, exc_info=error)

    def heard(self, owner: Owner) -> bool:
        """Whether the own views, or an observer, get it."""
        if not self._visible(owner):
            return False
        if self.trait.metadata.get("sync") and owner._trait_values.get("comm") is not None:
            return True
        heard = owner._trait_notifiers
        return any(heard.get(name, {}).get(kind) for name in (self.name, t.All) for kind in ("change", t.All))

    def check_not_within(self, frame: Frame | None) -> None:
        """Raise `ComputedCycle` when this is read by an evaluation of itself."""
        path = [self.label]
        while frame is not None:
            path.append(frame.reader.label)
            if frame.reader is self:
                raise cycle(path[::-1])
            frame = frame.outer

    def _visible(self, owner: Owner) -> bool:
        """Whether it is the object's trait of its name, and not one that was overridden."""
        return owner._computed_traits.get(self.name) is self.trait


class PlainFormula(Formula):
    """Of a function that returns the value: it is kept while what was read is the same."""

    def __init__(self, owner: Owner, trait: Recipe) -> None:
        super().__init__(owner, trait)
        # What an evaluation had read when it failed last.
        self.tried: Leaves = {}

    def read(self) -> Any:
        """The value, noted by the evaluation that asks."""
        frame = evaluating()
        try:
            held = self.current()
        except Exception:
            if frame is not None and frame.noting:
                frame.note_failed(self)
            raise
        if frame is not None and frame.noting:
            if frame.reader.asynchronous:
                check_no_way_back(self, frame.reader)
            frame.note_computed(self, held)
        return held.value

    def current(self) -> Held:
        """The value and what it is made of, made anew where that has changed."""
        held = self.held
        if held is not None and unchanged(held.leaves):
            return held
        owner = self.owner()
        if owner is None:
            raise ReferenceError(f"the object of {self.label} is gone")
        outer = evaluating()
        self.check_not_within(outer)
        with Frame(self, outer) as frame:
            token = evaluation.set(frame)
            try:
                found = self._renewed(held) or self._evaluated(owner, frame)
            except Exception:
                self.tried, self.depth = frame.inputs().leaves, frame.depth
                self.missing = self.missing or self.told is _NOTHING
                raise
            finally:
                evaluation.reset(token)
        if self.told is _NOTHING and not self.missing:
            self.told = found.value
        self.held = found
        return found

    def _renewed(self, held: Held | None) -> Held | None:
        """The value held, when only what its inputs are made of has changed."""
        if held is None or not held.direct:
            return None
        leaves = held.renewed()
        if leaves is None:
            return None
        for source, name, _ in leaves.values():
            if (there := source()) is not None:
                register(there, name, self)
        return Held(held.value, held, leaves)

    def _evaluated(self, owner: Owner, frame: Frame) -> Held:
        for _ in range(TRIES):
            frame.forget()
            frame.note_names(owner)
            value = self.trait.function(owner)
            if not frame.torn and unchanged(frame.leaves):
                break
        inputs, self.depth = frame.inputs(), frame.depth
        # An equal value stays the object it was: whoever is made of it then sees that nothing has changed.
        old = self.held
        if old is not None and alike(old.value, value):
            value = old.value
        return Held(value, inputs, inputs.leaves)

    def inputs(self) -> Inputs | None:
        """What the value was made of last."""
        return self.held

    def _latest(self, cause: Cause) -> Any:
        value = self.current().value
        self._failure = ""
        return value

    def attend(self, owner: Owner) -> None:
        """It will be observed; what nobody was told of meanwhile is no news."""
        if not self.wanted(owner):
            try:
                self.told = self.current().value
            except Exception:
                self.told, self.missing = _NOTHING, True

    def end(self) -> None:
        """Nothing of it goes on by itself."""


def made(obj: Any) -> bool:
    """Whether the object is constructed: nobody is told anything before."""
    return "_computed_begun" in obj.__dict__


def in_hold(obj: Any) -> bool:
    """Whether an object is being made, or some thread or task of this process is in a hold or transaction of it."""
    return "notify_change" in obj.__dict__ or bool(obj.__dict__.get("_parts"))


def tell(formulas: Iterable[Formula], cause: Cause) -> None:
    """Tell what is made of the traits of a change, what is made of others after them; then raise what an observer raised."""
    failed: Exception | None = None
    for formula in sorted({id(formula): formula for formula in formulas}.values(), key=lambda formula: formula.depth):
        try:
            formula.tell(cause)
        except Exception as error:
            if failed is not None:
                log.exception("an observer of %s raised", formula.label)
            failed = failed or error
    if failed is not None:
        raise failed


def changed(source: Any, name: str, origin: str, actor: Any) -> None:
    """A trait of this object was told; what depends on it is told now, on this thread."""
    if name in source.__dict__.get("_computed_dependents", ()):
        tell(dependents(source, (name,)), (origin, actor))


def cycle(path: list[str]) -> ComputedCycle:
    """The error that names the way from a computed trait to itself."""
    return ComputedCycle(
        f"{' → '.join(path)} is a cycle: a computed trait cannot be made of itself", trait=path[0].partition(".")[2]
    )


def check_no_way_back(formula: Formula, target: Reader) -> None:
    """Raise `ComputedCycle` when a computed trait that is read is made of the one that reads it, by way of a last value."""
    seen: set[int] = set()

    def walk(path: list[Formula]) -> None:
        here = path[-1]
        if here is target:
            raise cycle([target.label, *(item.label for item in path)])
        if id(here) in seen:
            return
        seen.add(id(here))
        for below in _below(here):
            walk([*path, below])

    walk([formula])


def _below(formula: Formula) -> Iterator[Formula]:
    """The computed traits that it has read; the last value of an asynchronous one is a raw value of that formula."""
    inputs = formula.inputs()
    if inputs is None:
        return
    for source in [*(source for source, _ in inputs.direct), *(source() for source, _, _ in inputs.own.values())]:
        if isinstance(source, Formula):
            yield source
