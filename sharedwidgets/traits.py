"""Which traits of a class are shared, of what kind, and how a value becomes a wire value and back.

==============================  =======================================================================================
a public trait                  shared with every kernel and every frontend of the room
``_x``, or ``sync=False``       kernel-only: shared between kernels, never sent to a frontend
``.tag(shared=False)``          private: this kernel and its own frontends
==============================  =======================================================================================
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import traitlets as t
from ipywidgets.widgets import trait_types
from ipywidgets.widgets.trait_types import ByteMemoryView, CByteMemoryView

from sharedwidgets.core.protocol import TraitKind, TraitSchema
from sharedwidgets.core.values import Value, normalise, same
from sharedwidgets.errors import InvalidValue

Convert: TypeAlias = Callable[[Any, Any], Any]

# What anywidget itself puts on a class or an object; never shared, never checked.
ANYWIDGET_TRAITS = frozenset({"_esm", "_css", "_anywidget_id"})

_CURE = (
    "tag it with to_json= and from_json= (a pair of functions of (value, widget)), make it private with .tag(shared=False), "
    "or use a trait of null, bool, int, float, text, bytes, list or dict"
)


@dataclass(frozen=True)
class SharedTrait:
    """One shared trait of a class: its schema, and its values to the wire and back."""

    name: str
    schema: TraitSchema
    to_json: Convert | None
    from_json: Convert | None

    def to_wire(self, value: Any, owner: Any) -> Value:
        """The wire value of a trait value.

        Raises
        ------
        InvalidValue
            It has none.
        """
        try:
            return normalise(value if self.to_json is None else self.to_json(value, owner))
        except InvalidValue as error:
            raise error.located(path=(self.name,)) from None
        except Exception as error:
            raise InvalidValue(
                f"to_json of {self.name} failed with {type(error).__name__}: {error}", path=(self.name,)
            ) from error

    def from_wire(self, value: Value, owner: Any) -> Any:
        """The trait value of a wire value; a fresh object, so that nobody changes the replica in place."""
        plain = normalise(value)
        return plain if self.from_json is None else self.from_json(plain, owner)


def is_private(trait: t.TraitType[Any, Any]) -> bool:
    """Whether the trait stays in this kernel and its own frontends."""
    return trait.metadata.get("shared") is False


def is_kernel_only(name: str, trait: t.TraitType[Any, Any]) -> bool:
    """Whether no frontend may see it."""
    return name.startswith("_") or trait.metadata.get("sync") is False


def shared_trait(owner: str, name: str, trait: t.TraitType[Any, Any]) -> SharedTrait:
    """What the room must know of a trait.

    Raises
    ------
    TypeError
        Its kind has no wire form; says what to do.
    """
    to_json, from_json = trait.metadata.get("to_json"), trait.metadata.get("from_json")
    kernel_only = is_kernel_only(name, trait)
    if to_json is not None or from_json is not None:
        if to_json is None or from_json is None:
            raise TypeError(f"{owner}.{name} has only one of to_json and from_json; it needs both")
        if getattr(to_json, "__name__", "") == "_widget_to_json":
            raise TypeError(
                f"{owner}.{name} holds a widget, which lives in one kernel; make it private with .tag(shared=False)"
            )
        if getattr(from_json, "__module__", "") == trait_types.__name__:
            from_json = _exact(from_json)
        return SharedTrait(name, TraitSchema(nullable=True, kernel_only=kernel_only), to_json, from_json)
    kind = _kind(trait)
    if kind is None:
        raise TypeError(f"{owner}.{name} is a {type(trait).__name__}, which has no wire form; {_CURE}")
    choices = None
    if isinstance(trait, t.Enum):
        try:
            choices = tuple(normalise(choice) for choice in trait.values or ())
        except InvalidValue as error:
            raise TypeError(f"{owner}.{name} has a choice with no wire form ({error}); {_CURE}") from None
    schema = TraitSchema(
        kind=kind,
        nullable=bool(trait.allow_none),
        kernel_only=kernel_only,
        min=_bound(trait, "min"),
        max=_bound(trait, "max"),
        choices=(*choices, None) if choices and trait.allow_none else choices,
    )
    return SharedTrait(name, schema, None, _reader(trait))


def prepared(owner: str, traits: Mapping[str, t.TraitType[Any, Any]], taken: Iterable[str]) -> None:
    """Check the new traits of a class and tag the public ones for the frontend.

    Raises
    ------
    TypeError
        A name that hides one of ours, a ``_x`` that asks to be synced, or a kind with no wire form.
    """
    hidden = sorted(set(traits) & set(taken))
    if hidden:
        raise TypeError(f"{owner}.{hidden[0]} hides a name of SharedState; rename the trait, for example to {hidden[0]}_value")
    for name, trait in traits.items():
        if name.startswith("_") and trait.metadata.get("sync"):
            raise TypeError(
                f"{owner}.{name} begins with an underscore and so never goes to a frontend; drop sync=True or rename it"
            )
        if not is_private(trait):
            shared_trait(owner, name, trait)
        if not is_kernel_only(name, trait):
            trait.tag(sync=True)


def copied(trait: t.TraitType[Any, Any]) -> t.TraitType[Any, Any]:
    """A mixin's trait for one class alone: tagging it must not change it for the mixin's other users."""
    return copy.deepcopy(trait)


def _kind(trait: t.TraitType[Any, Any]) -> TraitKind | None:
    """The wire kind of a traitlets class; None when it has none."""
    if isinstance(trait, t.Union):
        return "any" if all(_kind(item) for item in trait.trait_types) else None
    if isinstance(trait, t.Dict):
        key = getattr(trait, "_key_trait", None)
        keys_are_text = key is None or isinstance(key, (t.Unicode, t.Any)) or type(key) is t.TraitType
        items = [getattr(trait, "_value_trait", None), *(getattr(trait, "_per_key_traits", None) or {}).values()]
        return "dict" if keys_are_text and all(map(_element, items)) else None
    if isinstance(trait, t.Container):
        elements = [getattr(trait, "_trait", None), *(getattr(trait, "_traits", None) or ())]
        return "list" if trait.klass in (list, tuple) and all(map(_element, elements)) else None
    if isinstance(trait, t.Enum):
        return "any"
    simple: tuple[tuple[type[Any] | tuple[type[Any], ...], TraitKind], ...] = (
        (t.Bool, "bool"),
        (t.Int, "int"),
        (t.Float, "float"),
        ((t.Unicode, t.ObjectName), "text"),
        ((t.Bytes, ByteMemoryView), "bytes"),
    )
    for classes, kind in simple:
        if isinstance(trait, classes):
            return kind
    return "any" if type(trait) is t.Any or type(trait) is t.TraitType else None


def _element(trait: t.TraitType[Any, Any] | None) -> bool:
    # Inside a value nothing turns the wire's bytes into the memory view that this one insists on.
    insists = isinstance(trait, ByteMemoryView) and not isinstance(trait, CByteMemoryView)
    return trait is None or (_kind(trait) is not None and not insists)


def _bound(trait: t.TraitType[Any, Any], name: str) -> int | float | None:
    bound = getattr(trait, name, None)
    return bound if isinstance(bound, (int, float)) and math.isfinite(bound) else None


def _reader(trait: t.TraitType[Any, Any]) -> Convert | None:
    """What makes of a wire value what the trait takes, where the two differ."""
    if isinstance(trait, ByteMemoryView):
        return lambda value, owner: None if value is None else memoryview(value)
    if isinstance(trait, t.Enum):
        choices = tuple(trait.values or ())
        return lambda value, owner: next((choice for choice in choices if same(normalise(choice), value)), value)
    if getattr(trait, "klass", None) is tuple:
        return lambda value, owner: None if value is None else tuple(value)
    return None


def _exact(from_json: Convert) -> Convert:
    """A reader of ipywidgets' dates and times that also takes what another kernel wrote, to the microsecond.

    Their ``milliseconds`` is a fraction when Python writes it and whole when a page does; the reader takes whole ones only.
    """

    def read(value: Any, owner: Any) -> Any:
        if not isinstance(value, dict) or "milliseconds" not in value:
            return from_json(value, owner)
        return from_json({**value, "milliseconds": 0}, owner).replace(microsecond=round(value["milliseconds"] * 1000))

    return read


def differ(old: Any, new: Any) -> bool:
    """Whether a change from one to the other is one, as traitlets sees it."""
    try:
        return old is not new and bool(old != new)
    except Exception:
        return True
