"""`@computed`: traits made of other traits, in each kernel of its own values; never an op.

A computed trait keeps its value with the raw values it was made of, and every read compares those by identity. The bridge puts
values in before anybody is told of them, so a notification comes too late to say that a value is old, and a comparison does
not. Notifications say only when to look: what a computed trait has read knows it weakly, and has it look again after a change.

An evaluation in progress is a frame in a context variable, which tasks and threads inherit as copies; a frame that is over
notes and forbids nothing any more.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
import threading
import types
import weakref
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, ClassVar, NoReturn, Protocol, TypeAlias, TypeVar, overload

import traitlets as t
from traitlets.utils.bunch import Bunch

from sharedwidgets import host, tasks
from sharedwidgets.core.values import normalise
from sharedwidgets.errors import ComputedCycle

log = logging.getLogger("sharedwidgets")

T = TypeVar("T")

# A raw value that was read: of what, under which name, and what it was.
Leaf: TypeAlias = "tuple[weakref.ref[Any], str, Any]"
Leaves: TypeAlias = "dict[tuple[int, str], Leaf]"
# Origin and actor of the change that something is told of.
Cause: TypeAlias = "tuple[str, Any]"

HERE: Cause = ("local", None)
# How often a value is made anew because another thread changed what it is made of meanwhile.
TRIES = 8
_NO_CELLS: dict[Any, Any] = {}
_MISSING = object()
_NOTHING = object()
# Of these an equal one is the same one, exactly.
_PLAIN = frozenset({int, str, bytes, bool})


class Owner(Protocol):
    """What is asked of an object with computed traits."""

    _computed_traits: ClassVar[Mapping[str, Computed[Any]]]
    _trait_values: dict[str, Any]
    _trait_notifiers: dict[Any, Any]

    @classmethod
    def _class_name(cls) -> str:
        """What the user calls the class."""

    def _told(self, change: Bunch) -> None:
        """Tell the own views and observers, also during a hold."""


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
        cell = obj.__dict__.get("_computed_cells", _NO_CELLS).get(self)
        held = None if cell is None or frames else cell.held
        value: T | None
        if held is not None and _unchanged(held.leaves):
            value = held.value
        elif hasattr(obj, "_computed_traits"):
            value = _cell(obj, self).read()
        else:
            # A mixin on its own: nothing notes what is read, so nothing can be kept.
            value = self.function(obj)
        return value

    def set(self, obj: Any, value: Any) -> NoReturn:
        """Raise `TraitError`."""
        raise t.TraitError(
            f"{_class_of(obj)}.{self.name} is computed and cannot be assigned; assign the traits it is made of instead"
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
        At the class: a name that is no trait of it.
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
                raise _cycle([f"{owner}.{item}" for item in [*path[path.index(name) :], name]])
            walk([*path, name])

    for name in named:
        walk([name])


def _cycle(path: list[str]) -> ComputedCycle:
    return ComputedCycle(
        f"{' → '.join(path)} is a cycle: a computed trait cannot be made of itself", trait=path[0].partition(".")[2]
    )


def _class_of(obj: Any) -> str:
    return str(obj._class_name()) if hasattr(obj, "_class_name") else type(obj).__name__


# --- what is read


# Evaluations in progress, wherever they run. While there are none, a read costs a look at this.
frames: set[_Frame] = set()
_current: contextvars.ContextVar[_Frame | None] = contextvars.ContextVar("sharedwidgets-computed", default=None)


def track(trait: t.TraitType[Any, Any]) -> None:
    """Have evaluations note the reads of a trait; its type stays what it is, and a copy of it is tracked for itself."""
    if isinstance(trait, Computed):
        return
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


def _frame() -> _Frame | None:
    """The evaluation this is a part of."""
    frame = _current.get()
    return frame if frame is not None and frame.active else None


def _note(source: Any, name: str, raw: Any) -> None:
    frame = _frame()
    if frame is not None and frame.noting:
        frame.note(source, name, raw)


def check_assignment(obj: Any, name: str) -> None:
    """Refuse the assignment of a trait within an evaluation.

    Raises
    ------
    RuntimeError
        Says who assigns what.
    """
    frame = _frame()
    if frame is not None and obj.has_trait(name):
        raise RuntimeError(
            f"{frame.cell.label} assigns {_class_of(obj)}.{name} while it is evaluated; a computed trait only reads, so assign "
            "in an observer"
        )


@contextmanager
def apart() -> Iterator[None]:
    """What is done meanwhile is no part of an evaluation: a new object gets its first values, and reads them."""
    token = _current.set(None)
    try:
        yield
    finally:
        _current.reset(token)


class _Frame:
    """An evaluation in progress, and what it has read so far."""

    __slots__ = ("active", "cell", "depth", "direct", "leaves", "noting", "outer", "own", "torn")

    def __init__(self, cell: _Cell, outer: _Frame | None) -> None:
        self.cell = cell
        self.outer = outer
        self.active = True
        self.noting = True
        # Whether it saw two values of one trait, though the first may be back by now.
        self.torn = False
        # How many computed traits are below it, one below the other.
        self.depth = 0
        # What was read itself; that, and what the computed traits that were read are made of; those, in order.
        self.own: Leaves = {}
        self.leaves: Leaves = {}
        self.direct: dict[int, tuple[_Cell, Any]] = {}

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
            _register(source, name, self.cell)

    def note_computed(self, cell: _Cell, held: _Held) -> None:
        """The value of another computed trait was read."""
        if id(cell) not in self.direct:
            self.direct[id(cell)] = (cell, held.value)
            self.depth = max(self.depth, cell.depth + 1)
            for key, leaf in held.leaves.items():
                if not _same(self.leaves.setdefault(key, leaf)[2], leaf[2]):
                    self.torn = True
                source = leaf[0]()
                if source is not None:
                    _register(source, leaf[1], self.cell)

    def note_failed(self, cell: _Cell) -> None:
        """The value of another computed trait could not be read; what that has read may have to change before it can."""
        self.depth = max(self.depth, cell.depth + 1)
        for source, name, raw in cell.tried.values():
            if (there := source()) is not None:
                self.note(there, name, raw)

    def note_names(self, owner: Any) -> None:
        """Note what was named, and nothing else from now on."""
        if not self.cell.trait.names:
            return
        for name in self.cell.trait.names:
            value = getattr(owner, name)
            if name not in owner._computed_traits:
                self.note(owner, name, owner._trait_values.get(name, value))
        self.noting = False

    def forget(self) -> None:
        """Begin anew."""
        self.noting, self.torn = True, False
        for notes in (self.own, self.leaves, self.direct):
            notes.clear()

    def inputs(self) -> _Inputs:
        """What was read by now."""
        return _Inputs(self.own.copy(), self.leaves.copy(), tuple(self.direct.copy().values()))

    def end(self) -> None:
        """What still runs in a copy of its context is no part of it any more."""
        self.active = False
        frames.discard(self)

    def __enter__(self) -> _Frame:
        frames.add(self)
        return self

    def __exit__(self, *error: object) -> None:
        self.end()


class _Inputs:
    """What a value was made of."""

    __slots__ = ("direct", "leaves", "own")

    def __init__(self, own: Leaves, leaves: Leaves, direct: tuple[tuple[_Cell, Any], ...]) -> None:
        self.own = own
        self.leaves = leaves
        self.direct = direct

    def cells(self) -> Iterator[_Cell]:
        """The computed traits that were read."""
        yield from (cell for cell, _ in self.direct)
        for source, _, _ in self.own.values():
            if isinstance(cell := source(), _AsyncCell):
                yield cell

    def renewed(self) -> Leaves | None:
        """All raw values it is made of, when nothing that was read itself has changed; None when something has."""
        if not _unchanged(self.own):
            return None
        leaves = dict(self.own)
        # In the order of reading: what a later one is may hang on an earlier one, and it must not be asked then.
        for cell, value in self.direct:
            try:
                held = cell.current()
            except Exception:
                # The function is to meet it itself.
                return None
            if held.value is not value:
                return None
            leaves.update(held.leaves)
        return leaves


class _Held(_Inputs):
    """A value, and what it was made of."""

    __slots__ = ("value",)

    def __init__(self, value: Any, inputs: _Inputs, leaves: Leaves) -> None:
        super().__init__(inputs.own, leaves, inputs.direct)
        self.value = value


def _unchanged(leaves: Leaves) -> bool:
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


def _alike(old: Any, new: Any) -> bool:
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


def _register(source: Any, name: str, cell: _Cell) -> None:
    """From now on the cell is told of changes of this trait. It stays so when it is not read any more: to look costs little."""
    table = source.__dict__.setdefault("_computed_dependents", {})
    found = table.get(name)
    if found is None:
        found = table.setdefault(name, weakref.WeakValueDictionary())
    if found.get(id(cell)) is not cell:
        found[id(cell)] = cell


def _dependents(source: Any, names: Iterable[str] | None = None) -> list[_Cell]:
    table: dict[str, Any] = source.__dict__.get("_computed_dependents") or {}
    found: dict[int, _Cell] = {}
    for name in table.copy() if names is None else names:
        for ref in table[name].valuerefs() if name in table else ():
            if (cell := ref()) is not None:
                found[id(cell)] = cell
    return list(found.values())


def changed(source: Any, name: str, origin: str, actor: Any) -> None:
    """A trait of this object was told; what depends on it is told now, on this thread."""
    if name in source.__dict__.get("_computed_dependents", ()):
        _tell(_dependents(source, (name,)), (origin, actor))


def _in_hold(obj: Any) -> bool:
    """Whether an object is being made, or some thread or task of this process is in a hold or transaction of it."""
    return "notify_change" in obj.__dict__ or bool(obj.__dict__.get("_parts"))


def settle(obj: Any) -> None:
    """A hold or transaction of this object is over: tell what was held back, and what was told of values that were undone."""
    if _in_hold(obj):
        # There is another one around it.
        return
    cells = obj.__dict__.get("_computed_cells")
    if cells or "_computed_dependents" in obj.__dict__:
        _tell([*(cells or {}).copy().values(), *_dependents(obj)], HERE)


def begin(obj: Any, *, anew: bool) -> None:
    """The object is made: from here on its computed traits are told.

    Parameters
    ----------
    anew : bool
        Whether its class has an ``__init__`` of its own, which may have set what no evaluation notes.
    """
    obj.__dict__["_computed_begun"] = True
    if obj._computed_traits:
        cells = [_cell(obj, trait) for trait in obj._computed_traits.values()]
        for cell in obj.__dict__["_computed_cells"].values() if anew else ():
            cell.held = None
        _tell(cells, HERE)


def attend(obj: Any, names: Any) -> None:
    """Somebody is about to observe these traits: they will be told of what differs from now."""
    if not obj._computed_traits or not _made(obj):
        return
    # As traitlets reads them.
    wanted = [names] if names is t.All or isinstance(names, str) else list(names or [t.All])
    for name, trait in obj._computed_traits.items():
        if t.All in wanted or name in wanted:
            _cell(obj, trait).attend(obj)


def end(obj: Any) -> None:
    """The object is closed: nothing is evaluated any more on its account."""
    for cell in (obj.__dict__.get("_computed_cells") or {}).copy().values():
        cell.end()


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


def _made(obj: Any) -> bool:
    return "_computed_begun" in obj.__dict__


def _cell(obj: Any, trait: Computed[Any]) -> _Cell:
    # By the trait and not by its name: an override may read what it overrides.
    cells: dict[Computed[Any], _Cell] = obj.__dict__.setdefault("_computed_cells", {})
    cell = cells.get(trait)
    return cell if cell is not None else cells.setdefault(trait, (_AsyncCell if trait.asynchronous else _Cell)(obj, trait))


def _tell(cells: Iterable[_Cell], cause: Cause) -> None:
    """Tell what is made of the traits of a change, what is made of others after them; then raise what an observer raised."""
    failed: Exception | None = None
    for cell in sorted({id(cell): cell for cell in cells}.values(), key=lambda cell: cell.depth):
        try:
            cell.tell(cause)
        except Exception as error:
            if failed is not None:
                log.exception("an observer of %s raised", cell.label)
            failed = failed or error
    if failed is not None:
        raise failed


# --- one computed trait of one object


class _Cell:
    """One computed trait of one object: its value, and what was told of it."""

    def __init__(self, owner: Owner, trait: Computed[Any]) -> None:
        self.owner: weakref.ref[Owner] = weakref.ref(owner)
        self.trait = trait
        self.name = str(trait.name)
        self.label = f"{owner._class_name()}.{self.name}"
        self.held: _Held | None = None
        # What an evaluation had read when it failed last.
        self.tried: Leaves = {}
        # Who is told after whom.
        self.depth = 0
        self.told: Any = _NOTHING
        # Nothing could be told yet, so the first value is news.
        self.missing = False
        # Of the last change that came during a hold of the object.
        self._held_back = HERE
        self._failure = ""
        # Whoever tells looks once more when others have come meanwhile. Nobody waits for the turn.
        self._again: Cause | None = None
        self._turn = threading.RLock()

    def read(self) -> Any:
        """The value, noted by the evaluation that asks."""
        frame = _frame()
        try:
            held = self.current()
        except Exception:
            if frame is not None and frame.noting:
                frame.note_failed(self)
            raise
        if frame is not None and frame.noting:
            if frame.cell.trait.asynchronous:
                _check_no_way_back(self, frame.cell)
            frame.note_computed(self, held)
        return held.value

    def current(self) -> _Held:
        """The value and what it is made of, made anew where that has changed."""
        held = self.held
        if held is not None and _unchanged(held.leaves):
            return held
        owner = self.owner()
        if owner is None:
            raise ReferenceError(f"the object of {self.label} is gone")
        outer = _frame()
        self._check_not_within(outer)
        with _Frame(self, outer) as frame:
            token = _current.set(frame)
            try:
                found = self._renewed(held) or self._evaluated(owner, frame)
            except Exception:
                self.tried, self.depth = frame.inputs().leaves, frame.depth
                self.missing = self.missing or self.told is _NOTHING
                raise
            finally:
                _current.reset(token)
        if self.told is _NOTHING and not self.missing:
            self.told = found.value
        self.held = found
        return found

    def _check_not_within(self, frame: _Frame | None) -> None:
        """Raise `ComputedCycle` when this is read by an evaluation of itself."""
        path = [self.label]
        while frame is not None:
            path.append(frame.cell.label)
            if frame.cell is self:
                raise _cycle(path[::-1])
            frame = frame.outer

    def _renewed(self, held: _Held | None) -> _Held | None:
        """The value held, when only what its inputs are made of has changed."""
        if held is None or not held.direct:
            return None
        leaves = held.renewed()
        if leaves is None:
            return None
        for source, name, _ in leaves.values():
            if (there := source()) is not None:
                _register(there, name, self)
        return _Held(held.value, held, leaves)

    def _evaluated(self, owner: Owner, frame: _Frame) -> _Held:
        for _ in range(TRIES):
            frame.forget()
            frame.note_names(owner)
            value = self.trait.function(owner)
            if not frame.torn and _unchanged(frame.leaves):
                break
        inputs, self.depth = frame.inputs(), frame.depth
        # An equal value stays the object it was: whoever is made of it then sees that nothing has changed.
        old = self.held
        if old is not None and _alike(old.value, value):
            value = old.value
        return _Held(value, inputs, inputs.leaves)

    def inputs(self) -> _Inputs | None:
        """What the value was made of last."""
        return self.held

    # --- telling

    def tell(self, cause: Cause) -> None:
        """Tell observers and views, where the value is not the one they were told; never during a hold of the object."""
        owner = self.owner()
        if owner is None or not _made(owner):
            return
        if _in_hold(owner):
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
        if not self._visible(owner) or _alike(old, value):
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

    def _latest(self, cause: Cause) -> Any:
        value = self.current().value
        self._failure = ""
        return value

    def failed(self, error: Exception) -> None:
        """Log a failure, once for as long as it stays the same."""
        failure = f"{type(error).__name__}: {error}"
        if failure != self._failure:
            self._failure = failure
            log.error("%s cannot be computed: %s", self.label, failure, exc_info=error)

    def attend(self, owner: Owner) -> None:
        """It will be observed; what nobody was told of meanwhile is no news."""
        if not self.wanted(owner):
            try:
                self.told = self.current().value
            except Exception:
                self.told, self.missing = _NOTHING, True

    def wanted(self, owner: Owner) -> bool:
        """Whether somebody wants to know: the own views, or an observer."""
        if not self._visible(owner):
            return False
        if self.trait.metadata.get("sync") and owner._trait_values.get("comm") is not None:
            return True
        heard = owner._trait_notifiers
        return any(heard.get(name, {}).get(kind) for name in (self.name, t.All) for kind in ("change", t.All))

    def _visible(self, owner: Owner) -> bool:
        """Whether it is the object's trait of its name, and not one that was overridden."""
        return owner._computed_traits.get(self.name) is self.trait

    def end(self) -> None:
        """Nothing more is wanted of it."""


class _AsyncCell(_Cell):
    """One asynchronous computed trait of one object. Its last value is to others a raw one, under its name."""

    def __init__(self, owner: Owner, trait: Computed[Any]) -> None:
        super().__init__(owner, trait)
        self._trait_values: dict[str, Any] = {self.name: None}
        self.told = None
        self.run: _Run | None = None
        # Where it was begun first, as a change may come on any thread.
        self._loop: asyncio.AbstractEventLoop | None = None

    def read(self) -> Any:
        """The last value that was finished; begins a new one where what it is made of has changed."""
        frame = _frame()
        if frame is not None:
            self._check_not_within(frame)
            _check_no_way_back(self, frame.cell)
        self.renew(HERE)
        value = self._trait_values[self.name]
        if frame is not None and frame.noting:
            frame.note(self, self.name, value)
            frame.depth = max(frame.depth, self.depth + 1)
        return value

    def current(self) -> _Held:
        """The last value, as if it was made of nothing."""
        raise NotImplementedError("others are made of its raw value")

    def renew(self, cause: Cause) -> None:
        """Begin anew where what the last run has read is different now; the last one is cancelled."""
        owner, run = self.owner(), self.run
        if owner is None or not _made(owner) or (run is not None and run.counts()):
            return
        if self._loop is None or not tasks.runs(self._loop):
            self._loop = host.main_loop() or tasks.background_loop()
        self.run = new = _Run(self, cause, self._loop)
        if run is not None:
            run.cancel()
        new.start(owner)

    def _latest(self, cause: Cause) -> Any:
        self.renew(cause)
        return self._trait_values[self.name]

    def finish(self, run: _Run, value: Any) -> None:
        """A run is at its end: its value is shown and told, unless a newer one was begun."""
        if self.run is not run:
            return
        if not run.counts():
            # It may have seen what there was before a change, and what there was after it.
            self.renew(run.cause)
            return
        self._failure = ""
        if not _alike(self._trait_values[self.name], value):
            self._trait_values[self.name] = value
        self.tell(run.cause)
        changed(self, self.name, *run.cause)

    def inputs(self) -> _Inputs | None:
        """What the last run has read."""
        return None if self.run is None else self.run.frame.inputs()

    def attend(self, owner: Owner) -> None:
        """It will be observed."""
        if not self.wanted(owner):
            self.renew(HERE)
            self.told = self._trait_values[self.name]

    def wanted(self, owner: Owner) -> bool:
        """Whether somebody wants to know; who is made of it, for one, cannot begin it."""
        seen: set[int] = set()
        cells: list[_Cell] = [self]
        while cells:
            cell = cells.pop()
            there = cell.owner()
            if id(cell) in seen or there is None:
                continue
            seen.add(id(cell))
            if _Cell.wanted(cell, there):
                return True
            cells += _dependents(cell)
        return False

    def end(self) -> None:
        """Cancel what runs."""
        if self.run is not None:
            self.run.cancel()


class _Run:
    """One run of an asynchronous computed trait."""

    def __init__(self, cell: _AsyncCell, cause: Cause, loop: asyncio.AbstractEventLoop) -> None:
        self.cell = cell
        self.cause = cause
        self.loop = loop
        self.frame = _Frame(cell, None)
        self._future: Future[None] | None = None
        # It came to a value or an error; it is wanted no more.
        self._ended = False
        self._over = False

    def start(self, owner: Owner) -> None:
        """Begin."""
        self._future = tasks.start(self._go(owner), self.loop)
        if self._over:
            self._future.cancel()

    def cancel(self) -> None:
        """Its value is wanted no more."""
        self._over = True
        if self._future is not None:
            self._future.cancel()

    def counts(self) -> bool:
        """Whether its value is, or will be, of what its inputs are now."""
        if self._over or self.frame.torn or (self._future is not None and self._future.cancelled()):
            return False
        if not self._ended and not tasks.runs(self.loop):
            return False
        inputs = self.frame.inputs()
        return _unchanged(inputs.leaves) or inputs.renewed() is not None

    async def _go(self, owner: Owner) -> None:
        cell = self.cell
        _current.set(self.frame)
        try:
            with self.frame as frame:
                frame.note_names(owner)
                value = await cell.trait.function(owner)
        except Exception as error:
            self._ended = True
            if cell.run is self:
                cell.failed(error)
            return
        self._ended = True
        try:
            cell.finish(self, value)
        except Exception:
            log.exception("an observer of a shared state raised")


def _check_no_way_back(cell: _Cell, target: _Cell) -> None:
    """Raise `ComputedCycle` when a computed trait that is read is made of the one that reads it, by way of a last value."""
    seen: set[int] = set()

    def walk(path: list[_Cell]) -> None:
        here = path[-1]
        if here is target:
            raise _cycle([item.label for item in [target, *path]])
        if id(here) in seen:
            return
        seen.add(id(here))
        inputs = here.inputs()
        for below in inputs.cells() if inputs is not None else ():
            walk([*path, below])

    walk([cell])
