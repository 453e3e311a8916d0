"""`@reacts` where nothing is linked: what a class may say, and who is called."""

from __future__ import annotations

from typing import Any

import pytest
import traitlets as t

from sharedwidgets import SharedState, reacts
from sharedwidgets.core.protocol import REACTS


class Fit(SharedState):
    rate = t.Int(0)
    curve = t.List()
    _salt = t.Unicode("")
    draft = t.Int(0).tag(shared=False)

    def __init__(self, **how: Any) -> None:
        self.heard: list[Any] = []
        super().__init__(**how)

    @reacts("rate", "_salt")
    def follow(self, change: Any) -> None:
        """Do as it does."""
        self.heard.append(("follow", change.name, change.old, change.new, change.origin, change.actor))

    @reacts("rate", leader=True)
    def lead(self, change: Any) -> None:
        self.heard.append(("lead", change.name, change.old, change.new, change.origin, change.actor))


def test_an_object_of_its_own_runs_both_at_once() -> None:
    fit = Fit()
    assert fit.heard == []
    fit.rate = 2
    fit._salt = "x"
    fit.curve = [1]
    assert sorted(fit.heard) == [
        ("follow", "_salt", "", "x", "local", None),
        ("follow", "rate", 0, 2, "local", None),
        ("lead", "rate", 0, 2, "local", None),
    ]


def test_it_is_still_a_method() -> None:
    fit = Fit()
    fit.lead(t.Bunch(name="rate", old=1, new=2, origin="local", actor=None))
    assert fit.heard == [("lead", "rate", 1, 2, "local", None)]
    assert fit.follow.__doc__ == "Do as it does."


def test_a_transaction_is_reacted_to_at_its_end() -> None:
    fit = Fit()
    with fit.transaction():
        fit.rate = 1
        fit.rate = 2
        assert fit.heard == []
    assert sorted(fit.heard) == [("follow", "rate", 0, 2, "local", None), ("lead", "rate", 0, 2, "local", None)]


def test_a_subclass_may_react_otherwise_or_not_at_all() -> None:
    class Other(Fit):
        @reacts("curve", leader=True)
        def lead(self, change: Any) -> None:
            self.heard.append("other")

        follow = None  # type: ignore[assignment]

    other = Other()
    other.rate = 1
    assert other.heard == []
    other.curve = [1]
    assert other.heard == ["other"]
    assert set(Other._leading) == set(Fit._leading) == {"lead"}


def test_a_mixin_may_react() -> None:
    class Counting:
        @reacts("n")
        def note(self, change: Any) -> None:
            self.heard.append(change.new)  # type: ignore[attr-defined]

        @reacts("n", leader=True)
        def lead(self, change: Any) -> None:
            self.heard.append(-change.new)  # type: ignore[attr-defined]

    class Mixed(Counting, SharedState):
        n = t.Int(0)
        heard: Any = ()

    mixed = Mixed()
    mixed.heard = []
    mixed.n = 3
    assert sorted(mixed.heard) == [-3, 3]


@pytest.mark.parametrize("leader", [False, True])
@pytest.mark.parametrize("name", ["rat", "draft", "layout", "_link", "_view_esm"])
def test_a_name_that_is_no_shared_trait_is_an_error_when_the_class_is_made(name: str, leader: bool) -> None:
    with pytest.raises(TypeError, match=rf"Wrong\.lead reacts to '{name}', which is no shared trait of Wrong; it has rate"):

        class Wrong(SharedState):
            rate = t.Int(0)
            draft = t.Int(0).tag(shared=False)

            @reacts("rate", name, leader=leader)
            def lead(self, change: Any) -> None: ...


def test_it_names_traits_and_stands_above_a_plain_method() -> None:
    with pytest.raises(TypeError, match=r'name the traits .* @reacts\("count"\)'):
        reacts()
    with pytest.raises(TypeError, match="name the traits"):
        reacts(lambda self, change: None)  # type: ignore[arg-type]

    async def later(self: Any, change: Any) -> None: ...

    for wrong in (later, property(lambda self: None)):
        with pytest.raises(TypeError, match="@reacts is for plain methods"):
            reacts("count")(wrong)  # type: ignore[arg-type]


def test_no_state_may_have_the_name_of_what_stands_beside_another() -> None:
    with pytest.raises(TypeError, match="does not end with @reacts"):

        class Wrong(SharedState, state_name="Fit" + REACTS):
            n = t.Int(0)

    with pytest.raises(TypeError, match="1 to 249 characters"):

        class Long(SharedState, state_name="x" * 250):
            n = t.Int(0)
