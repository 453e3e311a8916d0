"""`@computed`: traits made of other traits, in each kernel of its own values; never an op.

What an evaluation reads is in `reads`, the value of one trait of one object in `formulas`, and in `deferred` where its function
is a coroutine function. Here are the trait, and what an object calls in its life.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, NoReturn, TypeVar, overload

import traitlets as t

from sharedwidgets import reads
from sharedwidgets.core.values import normalise
from sharedwidgets.deferred import AsyncFormula
from sharedwidgets.formulas import HERE, Formula, PlainFormula, cycle, in_hold, made, tell
from sharedwidgets.formulas import changed as changed
from sharedwidgets.reads import apart as apart
from sharedwidgets.reads import check_assignment as check_assignment
from sharedwidgets.reads import class_of, dependents, unchanged
from sharedwidgets.reads import frames as frames

T = TypeVar("T")

_NO_FORMULAS: dict[Any, Any] = {}


# --- the trait


class Computed(t.TraitType[T, NoReturn]):
    """A trait that is made of others: read-only, private to this kernel, sent to its own views; see `computed`.

    Parameters
    ----------
    function : callable
        Makes the value of the object; a coroutine function makes an asynchronous one.
    names : tuple of str
        The traits of the object it is made of; found by running it, when there are none.
    sync : bool
        Whether the own views get it.
    """

    info_text = "a computed value"
    default_value = None
    allow_none = True

    def __init__(self, function: Callable[[Any], Any], names: tuple[str, ...] = (), sync: bool = True) -> None:
        if inspect.isasyncgenfunction(function):
            name = function.__qualname__.rpartition("<locals>.")[2]
            raise TypeError(f"{name} cannot be computed by an async generator: give one value, with return instead of yield")
        super().__init__(help=inspect.getdoc(function))
        self.function = function
        self.names = names
        self.asynchronous = inspect.iscoroutinefunction(function)
        # Whether it goes to the own views is left to the name, unless it was said.
        self.tag(shared=False, **({} if sync else {"sync": False}))

    def __set_name__(self, owner: type, name: str) -> None:
        # traitlets names the traits of its own classes only, and a mixin may be any class.
        self.name = name

    def get(self, obj: Any, cls: type[Any] | None = None) -> T | None:
        """The value, made of what the traits hold now."""
        formula = obj.__dict__.get("_computed_formulas", _NO_FORMULAS).get(self)
        held = None if formula is None or frames else formula.held
        value: T | None
        if held is not None and unchanged(held.leaves):
            value = held.value
        elif hasattr(obj, "_computed_traits"):
            value = _formula(obj, self).read()
        else:
            # A mixin on its own: nothing notes what is read, so nothing can be kept.
            value = self.function(obj)
        return value

    def set(self, obj: Any, value: Any) -> NoReturn:
        """Raise `TraitError`."""
        raise t.TraitError(
            f"{class_of(obj)}.{self.name} is computed and cannot be assigned; assign the traits it is made of instead"
        )


@overload
def computed(function: Callable[[Any], Coroutine[Any, Any, T]], /) -> Computed[T | None]: ...
@overload
def computed(function: Callable[[Any], T], /) -> Computed[T]: ...
@overload
def computed(*names: str, sync: bool = True) -> Callable[[Callable[[Any], Any]], Computed[Any]]: ...
def computed(*given: Any, sync: bool = True) -> Any:
    """Make a trait of other traits; in each kernel of its own values.

    ::

        class Counter(SharedState):
            count = t.Int(0)

            @computed
            def double(self) -> int:
                return 2 * self.count

    The value is kept until one of the traits that were read has another one: the object's own, shared or private, or those of
    another `SharedState`. A read is never of old values. Observers and the own views are told after the change, once, where the
    value differs. It is never sent to the room, and may differ per kernel.

    While the function fails, a read raises what it raised, as that of a property does, and the log says it once; all others are
    in `trait_values()` and in the own views. One of an ``async`` function never raises; it goes on showing its last value.

    Parameters
    ----------
    *names : str
        ``@computed("a", "b")`` names the traits of the object it is made of. Without, they are found by running it: what it
        reads that is no trait of a `SharedState` is not noticed.
    sync : bool
        ``@computed(sync=False)``, like a name with a leading underscore, keeps it from the own views. So does a value that has
        no wire form.

    Returns
    -------
    Computed
        A trait that is read-only. Of an ``async`` function it shows the last value that was finished, None before the first; a
        change begins it anew, and ends an older run.

    Raises
    ------
    TypeError
        At the class: a name that is no trait of it, or an asynchronous generator.
    ComputedCycle
        At the read, or at the class where the names say so: it is made of itself.
    """
    if len(given) == 1 and callable(given[0]):
        return Computed(given[0], (), sync)
    if not all(isinstance(name, str) for name in given):
        raise TypeError(f"@computed takes a function, or the names of traits, not {given[0]!r}")
    return lambda function: Computed(function, given, sync)


def check(owner: str, traits: Mapping[str, t.TraitType[Any, Any]], own: Iterable[str]) -> None:
    """Check the names that the computed traits of a class are made of.

    Raises
    ------
    TypeError
        A name that is no trait; says which there are.
    ComputedCycle
        The names lead in a circle.
    """
    named = {name: trait.names for name, trait in traits.items() if isinstance(trait, Computed) and trait.names}
    for name, names in named.items():
        for unknown in [item for item in names if item not in traits]:
            there = ", ".join(sorted(own))
            raise TypeError(f"{owner}.{name} is to be computed of {unknown!r}, which is no trait of {owner}; it has {there}")

    def walk(path: list[str]) -> None:
        for name in named.get(path[-1], ()):
            if name in path:
                raise cycle([f"{owner}.{item}" for item in [*path[path.index(name) :], name]])
            walk([*path, name])

    for name in named:
        walk([name])


# --- in the life of an object


def track(trait: t.TraitType[Any, Any]) -> None:
    """Have evaluations note the reads of a trait of an object; what it is made of notes those of a computed one."""
    if not isinstance(trait, Computed):
        reads.track(trait)


def begin(obj: Any, *, anew: bool) -> None:
    """The object is made: from here on its computed traits are told.

    Parameters
    ----------
    anew : bool
        Whether its class has an ``__init__`` of its own, which may have set what no evaluation notes.
    """
    obj.__dict__["_computed_begun"] = True
    if obj._computed_traits:
        formulas = [_formula(obj, trait) for trait in obj._computed_traits.values()]
        for formula in obj.__dict__["_computed_formulas"].values() if anew else ():
            formula.held = None
        tell(formulas, HERE)


def attend(obj: Any, names: Any) -> None:
    """Somebody is about to observe these traits: they will be told of what differs from now."""
    if not obj._computed_traits or not made(obj):
        return
    # As traitlets reads them.
    wanted = [names] if names is t.All or isinstance(names, str) else list(names or [t.All])
    for name, trait in obj._computed_traits.items():
        if t.All in wanted or name in wanted:
            _formula(obj, trait).attend(obj)


def settle(obj: Any) -> None:
    """A hold or transaction of this object is over: tell what was held back, and what was told of values that were undone."""
    if in_hold(obj):
        # There is another one around it.
        return
    formulas = obj.__dict__.get("_computed_formulas")
    if formulas or "_computed_dependents" in obj.__dict__:
        tell([*(formulas or {}).copy().values(), *dependents(obj)], HERE)


def to_send(obj: Any, name: str) -> dict[str, Any]:
    """The value for the own views; empty when there is none, or it has no wire form."""
    trait = obj._computed_traits[name]
    try:
        value = getattr(obj, name)
        to_json = trait.metadata.get("to_json")
        value = value if to_json is None else to_json(value, obj)
        normalise(value)
    except Exception:
        return {}
    return {name: value}


def readable(obj: Any, names: Iterable[str]) -> dict[str, Any]:
    """The values of these traits, by name; a computed one that cannot be computed now is left out."""
    found: dict[str, Any] = {}
    for name in names:
        try:
            found[name] = getattr(obj, name)
        except Exception:
            if name not in obj._computed_traits:
                raise
    return found


def end(obj: Any) -> None:
    """The object is closed: nothing is evaluated any more on its account."""
    for formula in (obj.__dict__.get("_computed_formulas") or {}).copy().values():
        formula.end()


def _formula(obj: Any, trait: Computed[Any]) -> Formula:
    # By the trait and not by its name: an override may read what it overrides.
    formulas: dict[Computed[Any], Formula] = obj.__dict__.setdefault("_computed_formulas", {})
    found = formulas.get(trait)
    if found is None:
        found = formulas.setdefault(trait, (AsyncFormula if trait.asynchronous else PlainFormula)(obj, trait))
    return found
