"""A `SharedState` that is not linked is an ordinary widget."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import ipywidgets
import pytest
import traitlets as t

from sharedwidgets import SharedState
from sharedwidgets.errors import InvalidToken, ServerNotFound


@pytest.fixture(autouse=True)
def alone(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No server is to be found."""
    for name in ("SHAREDWIDGETS_URL", "SHAREDWIDGETS_CREDENTIAL", "SHAREDWIDGETS_SERVER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    yield
    ipywidgets.Widget.close_all()


class Counter(SharedState):
    count = t.Int(0)
    other = t.Int(0)
    tags = t.Dict()
    _log = t.List()
    draft = t.Unicode("").tag(shared=False)

    @t.validate("count")
    def _small(self, proposal: Any) -> int:
        if proposal.value > 100:
            raise t.TraitError("too much")
        return int(proposal.value)


def heard(state: SharedState, *names: str, type: str = "change") -> list[tuple[str, Any, Any]]:
    events: list[tuple[str, Any, Any]] = []
    state.observe(lambda change: events.append((change.name, change.old, change.new)), names=list(names) or t.All, type=type)
    return events


def test_it_is_private_and_says_so() -> None:
    state = Counter(count=3)
    assert (state.count, state.linked_to, state.linked_from, state.room, state.last_change("count")) == (
        3,
        None,
        (),
        None,
        None,
    )
    assert state._link == {"room": "", "state": "Counter", "traits": ["count", "other", "tags"], "computed": [], "offline": ""}


def test_changes_carry_origin_and_actor() -> None:
    state = Counter()
    changes: list[Any] = []
    state.observe(changes.append, "count")
    state.count = 1
    assert [(change.name, change.old, change.new, change.origin, change.actor) for change in changes] == [
        ("count", 0, 1, "local", None)
    ]


def test_the_verbs_do_nothing_and_return_what_they_should() -> None:
    state = Counter()
    assert state.pull() is state
    assert list(state.live([1, 2])) == [1, 2]
    assert state.flush() is None  # type: ignore[func-returns-value]
    assert state.unlink() is None  # type: ignore[func-returns-value]
    assert state.wait_until(lambda: True)


def test_changed_hears_of_a_private_change() -> None:
    async def main() -> Any:
        state = Counter()
        waiting, any_trait, late = state.changed("count"), state.changed(), state.changed("tags")
        state.other = 1
        state.count = 4
        state.count = 5
        assert (await asyncio.wait_for(any_trait, 5)).name == "other"
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(late, 0.01)
        change = await asyncio.wait_for(waiting, 5)
        await asyncio.sleep(0)
        assert not any(state._trait_notifiers.get(name, {}).get("change") for name in ("count", "other", "tags"))
        return change

    change = asyncio.run(main())
    assert (change.name, change.old, change.new) == ("count", 0, 4)


@pytest.mark.parametrize("token", ["", ".", "..", " a", "a\n", "x" * 129])
def test_a_bad_token_is_refused_before_anything_else(token: str) -> None:
    with pytest.raises(InvalidToken):
        Counter().link_to(token)
    with pytest.raises(InvalidToken):
        Counter(room=token)


def test_link_to_without_a_server_raises_and_says_what_to_do() -> None:
    state = Counter(count=3)
    with pytest.raises(ServerNotFound, match=r"Install sharedwidgets .* or give server= and credential="):
        state.link_to("room")
    assert (state.count, state.linked_to) == (3, None)


def test_a_room_in_the_constructor_never_raises_for_a_missing_server(caplog: pytest.LogCaptureFixture) -> None:
    before = threading.active_count()
    state = Counter(room="r", count=3)
    assert (state.count, state.linked_to) == (3, None)
    assert "No Jupyter server" in state._link["offline"]
    assert "Counter is private for now" in caplog.text
    waiting = state._waiting
    assert waiting is not None
    state.unlink()
    assert waiting.is_set()
    assert state._link["offline"] == ""
    for thread in threading.enumerate():
        if thread.name == "sharedwidgets-waiting":
            thread.join(5)
    assert threading.active_count() <= before


def test_closing_ends_the_wait_for_a_server() -> None:
    state = Counter(room="r")
    waiting = state._waiting
    assert waiting is not None
    state.close()
    assert waiting.is_set()


def test_an_object_that_waits_for_a_server_can_be_collected(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", "sharedwidgets")  # pytest keeps what was logged, the traceback of its reason too
    state = Counter(room="r")
    state.close()
    gone = weakref.ref(state)
    del state
    gc.collect()
    assert gone() is None


# --- transaction, without a room


def test_a_transaction_tells_observers_once_and_at_the_end() -> None:
    state = Counter()
    events = heard(state, "count", "other")
    with state.transaction():
        state.count = 1
        state.count = 2
        state.other = 5
        assert events == []
        assert (state.count, state.other) == (2, 5)
    assert events == [("count", 0, 2), ("other", 0, 5)]


@pytest.mark.parametrize("error", [ValueError("x"), t.TraitError("x"), KeyboardInterrupt()])
def test_a_transaction_is_undone_on_any_exception_and_nobody_is_told(error: BaseException) -> None:
    state = Counter(tags={"a": 1})
    before = state.tags
    events = heard(state)
    with pytest.raises(type(error)), state.transaction():
        state.count = 1
        state.tags = {"b": 2}
        state.draft = "x"
        state._log = [1]
        raise error
    assert (state.count, state.draft, state._log) == (0, "", [])
    assert state.tags is before
    assert [event for event in events if event[0] != "_log"] == []
    state.count = 7
    assert events[-1] == ("count", 0, 7)


def test_a_validator_at_the_end_of_a_transaction_undoes_it_all() -> None:
    state = Counter()
    events = heard(state, "count", "other")
    with pytest.raises(t.TraitError, match="too much"), state.transaction():
        state.other = 1
        state.count = 101
    assert (state.count, state.other, events) == (0, 0, [])


def test_a_validator_runs_once_at_the_end_of_a_transaction() -> None:
    ran: list[int] = []

    class Made(SharedState):
        x = t.Int(0)

        @t.validate("x")
        def _count(self, proposal: Any) -> int:
            ran.append(proposal.value)
            return int(proposal.value)

    state = Made()
    with state.transaction():
        state.x = 1
        state.x = 2
    assert ran == [2]


def test_an_inner_transaction_belongs_to_the_outer() -> None:
    state = Counter()
    events = heard(state, "count", "other")
    with state.transaction():
        state.count = 1
        with state.transaction():
            state.other = 2
        assert events == []
    assert events == [("count", 0, 1), ("other", 0, 2)]


def test_a_transaction_inside_a_hold() -> None:
    state = Counter()
    events = heard(state, "count", "other")
    with state.hold_trait_notifications():
        state.count = 1
        with state.transaction():
            state.other = 2
        with pytest.raises(ValueError, match="undo"), state.transaction():
            state.count = 50
            raise ValueError("undo")
        assert events == []
    assert (state.count, state.other) == (1, 2)
    assert events == [("count", 0, 1), ("other", 0, 2)]


def test_a_hold_inside_a_transaction() -> None:
    state = Counter()
    events = heard(state, "count", "other")
    with state.transaction():
        with state.hold_trait_notifications():
            state.count = 1
        with state.hold_sync():
            state.other = 2
        assert events == []
    assert events == [("count", 0, 1), ("other", 0, 2)]


@pytest.mark.parametrize("verb", ["link_to", "unlink"])
def test_linking_inside_a_transaction_or_hold_says_so(verb: str) -> None:
    state = Counter()
    call = (lambda: state.link_to("r")) if verb == "link_to" else state.unlink
    if verb == "link_to":
        for group in (state.transaction, state.hold_trait_notifications):
            with pytest.raises(RuntimeError, match=f"{verb}|link"), group():
                call()
    else:
        with state.transaction():
            call()  # nothing to leave, nothing to refuse


def test_hold_keeps_the_rules_of_traitlets() -> None:
    state = Counter()
    events = heard(state, "count", "other")
    with pytest.raises(t.TraitError, match="too much"), state.hold_trait_notifications():
        state.other = 1
        state.count = 101
    assert (state.count, state.other, events) == (0, 0, [])
    with pytest.raises(ValueError, match="mine"), state.hold_trait_notifications():
        state.other = 1
        raise ValueError("mine")
    assert (state.other, events) == (1, [("other", 0, 1)])


def test_a_comm_update_is_an_ordinary_edit_while_private() -> None:
    state = Counter()
    state.set_state({"count": 4, "draft": "d"})
    assert (state.count, state.draft) == (4, "d")


def test_a_closed_state_leaves_no_model_behind() -> None:
    """Its layout is a model of its own; one that the user gave is the user's, who may use it elsewhere."""
    given = ipywidgets.Layout(width="50%")
    before = dict(ipywidgets.widgets.widget._instances)
    states = [Counter(), Counter(layout={"width": "10%"}), Counter(layout=given), Counter()]
    states[-1].layout = given
    for state in states:
        state.close()
        state.close()
    assert ipywidgets.widgets.widget._instances == before
    assert given.comm is not None
    given.close()


def test_a_layout_that_another_widget_has_stays() -> None:
    state = Counter()
    layout = state.layout
    slider = ipywidgets.IntSlider(layout=layout)
    state.close()
    assert layout.comm is not None
    slider.layout.width = "50%"
