"""`@reacts` where nothing is linked: what a class may say, and who is called."""

from __future__ import annotations

from typing import Any

import pytest
import traitlets as t

from sharedwidgets import SharedState, reactions, reacts
from sharedwidgets.core.protocol import REACTS, Actor, LastChange, Member, Snapshot, StateImage, shown
from sharedwidgets.core.replica import Replica


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

    with pytest.raises(TypeError, match=r"Long\.lead: the names of a state and .* reaction are 3 characters too long"):

        class TooLong(SharedState, state_name="x" * 247):
            n = t.Int(0)

            @reacts("n", leader=True)
            def lead(self, change: Any) -> None: ...

    class Fits(SharedState, state_name="x" * 244):
        n = t.Int(0)

        @reacts("n")
        def a_reaction_of_each_process_needs_no_name_beside(self, change: Any) -> None: ...

        @reacts("n", leader=True)
        def lead(self, change: Any) -> None: ...

    with pytest.raises(TypeError, match="1 to 249 characters"):

        class Long(SharedState, state_name="x" * 250):
            n = t.Int(0)


# --- who runs it

BESIDE = reactions.beside("Fit", "lead")


def replica(leader: str, *members: Member, at: int = 5, seq: int = 9) -> Replica:
    """That of a process which has the room at `seq`, where somebody said at `at` who reacts."""
    by = Actor(id="x", kind="script")
    values = {"leader": leader, "done": []}
    last = {trait: LastChange(actor=by, seq=at, at=0.0) for trait in values}
    image = StateImage(schema=reactions.wanted().schema, values=values, last=last)
    found = Replica("r")
    found.receive(Snapshot(room="r", incarnation="i", epoch="e", seq=seq, states={BESIDE: image}, members=members))
    return found


def member(name: str, since: float, **how: Any) -> Member:
    return Member(**{"id": name, "kind": "script", "since": since, "states": (BESIDE, "Fit"), **how})


def test_the_first_of_those_who_can_says_that_it_reacts_and_then_it_stays() -> None:
    old, young = member("old", 1.0), member("young", 2.0)
    page = member("page", 0.0, kind="frontend")
    plain = member("plain", 0.0, states=("Fit", reactions.beside("Fit", "other")))
    gone = member("away", 0.0, state="away")
    silent = member("silent", 0.0, state="unresponsive")
    others = (page, plain, gone, silent)

    def who(leader: str, *present: Member) -> set[str]:
        room = replica(leader, *present, *others)
        return {item.id for item in (*present, *others) if reactions.may_claim(room, BESIDE, item.id)}

    assert who("", old, young) == {"old"}
    assert who("", young) == {"young"}
    assert who("young", old, young) == {"young"}
    for leader in ("away", "silent", "page", "plain", "never-seen"):
        assert who(leader, old, young) == {"old"}
    assert who("") == set()
    twins = member("b", 1.0), member("a", 1.0)
    assert who("", *twins) == {"a"}
    assert not reactions.may_claim(Replica("r"), BESIDE, "old")


def test_a_word_of_before_it_was_away_does_not_make_it_react() -> None:
    room = replica("me", member("me", 1.0))
    assert reactions.leads(room, BESIDE, "me", 4)
    assert not reactions.leads(room, BESIDE, "me", 5)
    assert not reactions.leads(room, BESIDE, "you", 4)
    assert not reactions.leads(Replica("r"), BESIDE, "me", 0)


def test_a_claim_names_what_its_author_has_seen() -> None:
    (claim,) = reactions.claim(replica("you", member("me", 1.0)), BESIDE, "me")
    assert (claim.path, claim.value, claim.if_rev) == (("leader",), "me", 9)  # type: ignore[union-attr]


def test_a_member_is_shown_without_what_stands_beside_a_state() -> None:
    assert shown(member("me", 1.0)) == member("me", 1.0, states=("Fit",))
