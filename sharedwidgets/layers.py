"""What traits show while transactions are open: what was there, and on top of it what each of them wrote, the last on top."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Layer(Generic[T]):
    """What one transaction wrote last; what was there before any is nobody's."""

    who: object | None
    value: T


class Layers(Generic[T]):
    """Of each trait that an open transaction wrote. Guarded by whoever has it."""

    def __init__(self) -> None:
        self._of: dict[str, list[Layer[T]]] = {}

    def shows(self, who: object, name: str) -> bool:
        """Whether a trait shows what this transaction wrote."""
        return name in self._of and self._of[name][-1].who is who

    def put(self, who: object, name: str, below: T, value: T) -> None:
        """A transaction wrote a trait that showed `below`."""
        found = self._of.get(name) or [Layer(None, below)]
        self._of[name] = [*(layer for layer in found if layer.who is not who), Layer(who, value)]

    def below(self, name: str) -> T:
        """What there is under all of them."""
        return self._of[name][0].value

    def forget(self, name: str) -> None:
        """Somebody wrote who is in no transaction: that stays, whatever is undone."""
        self._of.pop(name, None)

    def change(self, name: str, done: Callable[[T], T]) -> None:
        """Somebody added to a trait who is in no transaction: it is added to what is there, and so to what is on top of it."""
        if name in self._of:
            self._of[name] = [Layer(layer.who, done(layer.value)) for layer in self._of[name]]

    def undo(self, who: object) -> dict[str, Layer[T]]:
        """Take off what a transaction wrote; where it showed, what shows now."""
        shown: dict[str, Layer[T]] = {}
        for name, found in list(self._of.items()):
            left = [layer for layer in found if layer.who is not who]
            if found[-1].who is who:
                shown[name] = left[-1]
            self._put(name, left)
        return shown

    def keep(self, who: object) -> None:
        """What a transaction wrote is there from now on."""
        for name, found in list(self._of.items()):
            place = next((place for place, layer in enumerate(found) if layer.who is who), None)
            if place is not None:
                self._put(name, [Layer(None, found[place].value), *found[place + 1 :]])

    def merge(self, who: object, into: object) -> None:
        """What a transaction wrote is of the one around it."""
        for name, found in list(self._of.items()):
            if any(layer.who is who for layer in found):
                others = [layer for layer in found if layer.who is not into]
                self._of[name] = [Layer(into if layer.who is who else layer.who, layer.value) for layer in others]

    def _put(self, name: str, layers: list[Layer[T]]) -> None:
        if len(layers) > 1:
            self._of[name] = layers
        else:
            # What is there needs no word when there is nothing on top of it.
            self._of.pop(name, None)
