"""What a `SharedState` class must be: its traits and options are checked and tagged when it is made, those of mixins too."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from inspect import getattr_static
from typing import Any

import traitlets as t
from anywidget import AnyWidget

from sharedwidgets import computing, reactions
from sharedwidgets.core.protocol import REACTS
from sharedwidgets.traits import ANYWIDGET_TRAITS, copied, is_private, prepared

# Names of the surface that are kept free for traits never to hide, beside everything AnyWidget has.
RESERVED = frozenset(
    {
        "link_to", "link_to_async", "unlink", "linked_to", "linked_from", "room", "lock", "locked_by", "transaction",
        "increment", "increment_async", "compare_and_set", "compare_and_set_async", "append", "append_async", "last_change",
        "invalid_traits", "live", "pull", "flush", "changed", "wait_until",
        # What an object keeps under names that are not the class's.
        "_bridge", "_private", "_handle", "_waiting", "_parts", "_layers", "_unasked", "_sync_holders", "_sync_lock", "_mutex",
        "_own_layout", "_shared_of", "_shared_traits",
        "_computed_begun", "_computed_dependents", "_computed_formulas", "_sharedwidgets_begun",
        "_model_id", "_trait_values", "_trait_notifiers", "_trait_validators",
    }
)  # fmt: skip
# Of a state; that of its reactions has a few characters more.
LONGEST_NAME = 256 - len(REACTS)
CLASS_OPTIONS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "state_name": (
        lambda name: isinstance(name, str) and 0 < len(name) <= LONGEST_NAME and not name.endswith(REACTS),
        f"a text of 1 to {LONGEST_NAME} characters that does not end with {REACTS}",
    ),
    "delivery": (lambda mode: mode in ("main", "thread"), "'main' or 'thread'"),
    "on_locked": (lambda how: how in ("raise", "wait"), "'raise' or 'wait'"),
}


class SharedStateMeta(type(AnyWidget)):  # type: ignore[misc]
    """Checks and tags the traits of a class when it is made, its mixins' too."""

    def __new__(mcs, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> Any:
        """Make the class, or raise `TypeError` with what to change."""
        unknown = sorted(set(options) - set(CLASS_OPTIONS))
        if unknown:
            raise TypeError(f"class {name} has an unknown option {unknown[0]!r}; there are {', '.join(CLASS_OPTIONS)}")
        for option, value in options.items():
            takes, words = CLASS_OPTIONS[option]
            if not takes(value):
                raise TypeError(f"class {name}: the option {option} is {words}, not {value!r}")
        base = next((item for item in bases if isinstance(item, SharedStateMeta)), None)
        # anywidget makes a class per object to add its own traits: nothing in it is the user's.
        if base is not None and "_anywidget_id" not in namespace:
            for place, mixin in enumerate(bases):
                if isinstance(mixin, SharedStateMeta):
                    continue
                own_of_widgets = AnyWidget.class_trait_names() if issubclass(mixin, AnyWidget) else ()
                for trait_name, trait in _traits_of(mixin).items():
                    if trait_name in own_of_widgets:
                        continue
                    if place < bases.index(base) or not hasattr(base, trait_name):
                        namespace.setdefault(trait_name, copied(trait))
            own = {key: item for key, item in namespace.items() if isinstance(item, t.TraitType)}
            prepared(name, {key: own[key] for key in own.keys() - ANYWIDGET_TRAITS}, RESERVED | set(dir(root(base))))
            for trait in own.values():
                computing.track(trait)
            _keep_page_link(root(base), bases, namespace)
            namespace["_options"] = {**getattr(base, "_options", {}), "state_name": name, **options}
        return super().__new__(mcs, name, bases, namespace)

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any) -> None:
        super().__init__(name, bases, namespace)
        if "_anywidget_id" not in namespace and any(isinstance(base, SharedStateMeta) for base in bases):
            traits = cls.class_traits()
            cls._computed_traits = {key: trait for key, trait in traits.items() if isinstance(trait, computing.Computed)}
            computing.check(name, traits, traits.keys() - set(root(cls).class_trait_names()))
            members = {key: getattr_static(cls, key) for key in dir(cls)}
            cls._leading = reactions.checked(name, cls._options["state_name"], members, cls._shared_of_class())

    def __call__(cls, *args: Any, **options: Any) -> Any:
        """Make an object; its computed traits are told from the end of its construction on."""
        with computing.apart() if computing.frames else nullcontext():
            made = super().__call__(*args, **options)
            computing.begin(made, anew=has_own_init(cls))
        return made

    def _shared_of_class(cls) -> dict[str, t.TraitType[Any, Any]]:
        own = {*AnyWidget.class_trait_names(), "_view_esm", "_link"}
        found: dict[str, t.TraitType[Any, Any]] = cls.class_traits()
        return {key: item for key, item in found.items() if key not in own and not is_private(item)}


def root(kind: type) -> Any:
    """`SharedState` itself, of which everything is."""
    return next(item for item in reversed(kind.__mro__) if isinstance(item, SharedStateMeta))


def has_own_init(kind: type) -> bool:
    """Whether a constructor of the user's calls that of `SharedState`."""
    return root(kind).__init__ is not kind.__init__  # type: ignore[misc]


def _traits_of(mixin: type) -> dict[str, t.TraitType[Any, Any]]:
    """The traits of a class that is mixed in; of one that has none for traitlets, those that are computed."""
    if issubclass(mixin, t.HasTraits):
        found: dict[str, t.TraitType[Any, Any]] = mixin.class_traits()
        return found
    inherited = {name: item for kind in reversed(mixin.__mro__) for name, item in vars(kind).items()}
    return {name: item for name, item in inherited.items() if isinstance(item, computing.Computed)}


def _keep_page_link(linked: Any, bases: tuple[type, ...], namespace: dict[str, Any]) -> None:
    """Put the ``_esm`` of a class, or of a widget mixed in, beside the stub that links the page, not in its place."""
    mixed_in = [
        vars(item)["_esm"]
        for base in bases
        for item in base.__mro__
        if "_esm" in vars(item) and not isinstance(item, SharedStateMeta)
    ]
    for view in [namespace.pop("_esm", None), *mixed_in]:
        if view is not None:
            namespace.update(_view_source=view, _esm=linked._esm)
            return
