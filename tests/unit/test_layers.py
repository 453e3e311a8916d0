"""Values on top of values, whose writers may take them back in any order."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from sharedwidgets.layers import Layer, Layers

A, B, C = "ABC"


def shown(layers: Layers[int], who: object) -> dict[str, tuple[Any, int]]:
    return {name: (layer.who, layer.value) for name, layer in layers.undo(who).items()}


def test_undone_the_trait_shows_what_was_there() -> None:
    layers = Layers[int]()
    layers.put(A, "x", 0, 1)
    layers.put(A, "x", 1, 2)
    assert layers.shows(A, "x")
    assert shown(layers, A) == {"x": (None, 0)}
    assert not layers.shows(A, "x")


def test_of_two_either_may_be_undone_first() -> None:
    for first, second, between in ((A, B, {}), (B, A, {"x": (A, 1)})):
        layers = Layers[int]()
        layers.put(A, "x", 0, 1)
        layers.put(B, "x", 1, 2)
        assert shown(layers, first) == between
        assert shown(layers, second) == {"x": (None, 0)}


def test_the_last_writer_shows_though_it_wrote_before() -> None:
    layers = Layers[int]()
    layers.put(A, "x", 0, 1)
    layers.put(B, "x", 1, 2)
    layers.put(A, "x", 2, 3)
    assert shown(layers, A) == {"x": (B, 2)}


def test_what_is_kept_is_there_when_another_is_undone() -> None:
    layers = Layers[int]()
    layers.put(A, "x", 0, 1)
    layers.put(B, "x", 1, 2)
    layers.keep(A)
    assert shown(layers, B) == {"x": (None, 1)}
    layers.put(A, "x", 0, 1)
    layers.put(B, "x", 1, 2)
    layers.keep(B)
    assert shown(layers, A) == {}


def test_what_is_written_in_no_transaction_stays() -> None:
    layers = Layers[int]()
    layers.put(A, "x", 0, 1)
    layers.forget("x")
    assert shown(layers, A) == {}
    layers.put(A, "x", 5, 6)
    assert shown(layers, A) == {"x": (None, 5)}


def test_what_is_added_is_added_to_all() -> None:
    layers = Layers[int]()
    layers.change("x", lambda value: value + 1)
    layers.put(A, "x", 0, 10)
    layers.change("x", lambda value: value + 1)
    layers.put(B, "x", 11, 20)
    layers.change("x", lambda value: value + 1)
    assert shown(layers, B) == {"x": (A, 12)}
    assert shown(layers, A) == {"x": (None, 2)}


def test_one_inside_another_is_of_that() -> None:
    layers = Layers[int]()
    layers.put(A, "x", 0, 1)
    layers.put(B, "x", 1, 2)
    layers.put(B, "y", 0, 5)
    layers.merge(B, A)
    assert layers.shows(A, "x")
    assert shown(layers, A) == {"x": (None, 0), "y": (None, 0)}


class Slow:
    """The same by keeping every write there ever was."""

    def __init__(self) -> None:
        self.writes: list[tuple[str | None, int]] = [(None, 0)]

    @property
    def value(self) -> int:
        return self.writes[-1][1]

    def put(self, who: str, value: int) -> None:
        self.writes.append((who, value))

    def undo(self, who: str) -> None:
        self.writes = [write for write in self.writes if write[0] != who]

    def keep(self, who: str) -> None:
        last = max((place for place, write in enumerate(self.writes) if write[0] == who), default=None)
        if last is not None:
            # What is kept comes behind what was there, and before what others have open on top of it.
            self.writes = [(None, self.writes[last][1]), *self.writes[last + 1 :]]


steps = st.lists(st.tuples(st.sampled_from(["put", "undo", "keep", "plain"]), st.sampled_from([A, B, C]), st.integers(1, 99)))


@given(steps)
def test_it_shows_what_the_whole_history_would(steps: list[tuple[str, str, int]]) -> None:
    layers, slow, here = Layers[int](), Slow(), 0
    for verb, who, value in steps:
        if verb == "put":
            layers.put(who, "x", here, value)
            slow.put(who, value)
            here = value
        elif verb == "undo":
            here = layers.undo(who).get("x", Layer(None, here)).value
            slow.undo(who)
        elif verb == "keep":
            layers.keep(who)
            slow.keep(who)
        else:
            layers.forget("x")
            slow.writes = [(None, value)]
            here = value
        assert here == slow.value
    assert layers.shows(A, "x") == (slow.writes[-1][0] == A)
