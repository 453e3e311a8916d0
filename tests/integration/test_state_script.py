"""`SharedState` in scripts and threads, against a real server: linking, and the two ways of a value.

"Here" and "there" are two members in this process, two sockets of two boots: one comes with the scoped secret, the other with
the server's token. Where two processes matter, there are two.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import re
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import traitlets as t
from ipywidgets.widgets.trait_types import Datetime, datetime_serialization

import sharedwidgets.connection
import sharedwidgets.state
from sharedwidgets import Room, SharedState, connect, reacts
from sharedwidgets.core.protocol import Set
from sharedwidgets.errors import (
    Forbidden,
    InvalidToken,
    InvalidValue,
    LinkTimeout,
    NoSuchTrait,
    Overloaded,
    RoomGone,
    SchemaConflict,
    ServerNotFound,
    ServerRefused,
    TooLarge,
    TooManyRooms,
)
from sharedwidgets_server.testing import LiveServer
from support.onlookers import Onlookers
from support.scripts import Heard, Script, eventually, seq
from support.stalling import Stalling

State = TypeVar("State", bound=SharedState)


class Counter(SharedState):
    count = t.Int(0)
    other = t.Int(0)
    text = t.Unicode("hello")
    made = t.Unicode()
    tags = t.Dict()
    items = t.List()
    pair = t.Tuple(t.Int(), t.Int(), default_value=(1, 2))
    _salt = t.Unicode("s")
    quiet = t.Int(0).tag(sync=False)
    draft = t.Unicode("").tag(shared=False)

    @t.default("made")
    def _make(self) -> str:
        return "by default"


class Clamped(SharedState, state_name="Level"):
    level = t.Int(0)

    @t.validate("level")
    def _clamp(self, proposal: Any) -> int:
        return min(10, int(proposal.value))


class Picky(SharedState, state_name="Level"):
    level = t.Int(0)

    @t.validate("level")
    def _even(self, proposal: Any) -> int:
        if proposal.value % 2:
            raise t.TraitError("odd")
        return int(proposal.value)


class Level(SharedState):
    level = t.Int(0)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with small limits, where a Jupyter token may only read."""
    arguments = [
        "--SharedWidgetsApp.limits={'rooms': 2, 'unsent_pushes': 20, 'in_flight_pushes': 4, 'op_bytes': 2000}",
        "--ServerApp.authorizer_class=tests.support.authorizers.TokensOnlyRead",
    ]
    with LiveServer(tmp_path_factory.mktemp("small"), *arguments) as running:
        yield running
        for connection in list(sharedwidgets.connection._shared.values()):
            connection.close()


@pytest.fixture
def here(server: LiveServer) -> Callable[[State, str], State]:
    return lambda state, token: state.link_to(token, server=server.url, credential=server.credential)


@pytest.fixture
def there(server: LiveServer) -> Callable[[State, str], State]:
    return lambda state, token: state.link_to(token, server=server.url, credential=server.token)


Link = Callable[[SharedState, str], Any]


def settled(*states: SharedState) -> None:
    """Everything these wrote is decided, and each of them shows it."""
    for state in states:
        state.flush()
    for state in states:
        assert state._bridge is not None
        session, last = state._bridge.session, seq_of(states)
        assert state.wait_until(lambda session=session, last=last: session.replica.seq >= last, 10)  # type: ignore[misc]
        state.pull()


def seq_of(states: tuple[SharedState, ...]) -> int:
    bridges = [state._bridge for state in states]
    return max(bridge.session.replica.seq for bridge in bridges if bridge is not None)


# --- linking


def test_private_objects_know_nothing_of_each_other(here: Link, token: str) -> None:
    one, two = Counter(), Counter()
    one.count, two.count = 1, 2
    assert (one.count, two.count) == (1, 2)


def test_a_fresh_room_begins_at_the_class_defaults_and_unlink_restores_the_very_objects(
    here: Link, server: LiveServer, token: str
) -> None:
    tags, items = {"mine": 1}, [1]
    state = Counter(count=5, made="mine", tags=tags, items=items, _salt="secret", draft="d")
    mine = state.tags, state.items
    assert here(state, token) is state
    assert (state.linked_to, state.count, state.made, state.tags, state.items) == (token, 0, "by default", {}, [])
    assert (state.pair, state._salt, state.draft) == ((1, 2), "s", "d")
    assert seq(server, token) == 1
    state.count = 7
    state.unlink()
    assert (state.linked_to, state.count, state.made, state._salt, state.draft) == (None, 5, "mine", "secret", "d")
    assert state.tags is mine[0]
    assert state.items is mine[1]
    assert mine == ({"mine": 1}, [1])


def test_a_late_joiner_has_everything(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one = here(Counter(), token)
    one.count, one.tags, one.pair, one._salt = 3, {"a": [1, {"b": None}]}, (8, 9), "new"
    one.flush()
    two = there(Counter(count=99), token)
    assert (two.count, two.tags, two.pair, two._salt, two.linked_to) == (3, {"a": [1, {"b": None}]}, (8, 9), "new", token)
    assert seq(server, token) == 5


def test_unlink_tells_of_what_changed_and_of_nothing_else(here: Link, token: str) -> None:
    """An equal dict is another object, and no change."""
    state = here(Counter(tags={}, count=1), token)
    heard = Heard(state, *state._shared())
    state.unlink()
    assert heard.steps == [("count", 0, 1)]


def test_unlink_and_relink_return_to_the_live_room(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(count=1), token), there(Counter(), token)
    one.unlink()
    heard = Heard(one)
    two.count = 4
    two.flush()
    assert (one.count, heard.changes) == (1, [])
    here(one, token)
    assert one.count == 4
    one.count = 5
    one.unlink()
    assert one.count == 1
    assert two.wait_until(lambda: two.count == 5, 10)
    assert seq(server, token) == 3


def test_switching_rooms_while_linked(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(count=1), token), there(Counter(), token)
    one.count = 2
    here(one, token + "-b")
    assert (one.linked_to, one.count) == (token + "-b", 0)
    one.count = 3
    one.flush()
    assert two.wait_until(lambda: two.count == 2, 10)
    assert (seq(server, token), seq(server, token + "-b")) == (2, 2)
    two.count = 9
    two.flush()
    assert one.pull().count == 3
    eventually(lambda: len(two.linked_from) == 1)
    one.unlink()
    assert one.count == 1


def test_linking_again_to_the_same_room_changes_nothing(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(count=1), token), there(Counter(), token)
    one.count = 2
    here(one, token)
    assert (one.count, one.linked_to) == (2, token)
    two.count = 3
    assert one.wait_until(lambda: one.count == 3, 10)
    settled(one, two)
    assert len(two.linked_from) == 2
    assert [member["states"] for member in server.ask("GET", f"sharedwidgets/api/rooms/{token}")["members"]] == [
        ["Counter"]
    ] * 2
    one.unlink()
    assert one.count == 1
    eventually(lambda: len(two.linked_from) == 1)
    assert seq(server, token) == 3


def test_the_same_object_is_used_throughout_and_writes_hit_the_right_target(here: Link, server: LiveServer, token: str) -> None:
    state = Counter()
    heard = Heard(state, "count")
    state.count = 1
    here(state, token).count = 2
    here(state, token + "-b").count = 3
    state.unlink()
    state.count = 4
    assert heard.steps == [
        ("count", 0, 1), ("count", 1, 0), ("count", 0, 2), ("count", 2, 0), ("count", 0, 3), ("count", 3, 1), ("count", 1, 4)
    ]  # fmt: skip
    eventually(lambda: [seq(server, name) for name in (token, token + "-b")] == [2, 2])


def test_a_subclass_shares_inherited_and_mixin_traits_under_its_own_name(here: Link, there: Link, token: str) -> None:
    class Mixin(t.HasTraits):
        extra = t.Int(7)

    class Child(Mixin, Counter):
        own = t.Int(8)

    one, two, base = here(Child(), token), there(Child(), token), there(Counter(), token)
    one.extra, one.own, one.count = 1, 2, 3
    assert two.wait_until(lambda: (two.extra, two.own, two.count) == (1, 2, 3), 10)
    settled(one, base)
    assert base.count == 0
    assert sorted(one.room or ()) == ["Child", "Counter"]


def test_traits_are_not_added_while_linked(here: Link, there: Link, token: str) -> None:
    one = here(Counter(), token)
    with pytest.raises(TypeError, match="unlink before you add 'extra': the room must know every trait"):
        one.add_traits(extra=t.Int(3))
    assert not one.has_trait("extra")
    one.unlink()
    one.add_traits(extra=t.Int(3))
    two = there(Counter(), token)
    here(one, token)
    one.extra = 4
    settled(one, two)
    assert two.room is not None
    assert two.room["Counter"]["extra"] == 4


# --- links that fail


class Clash(SharedState, state_name="Counter"):
    count = t.Unicode("")


FAILURES = {
    "bad token": (InvalidToken, "begins or ends with a space; take it off"),
    "no server": (ServerNotFound, "cannot be reached.*Install sharedwidgets"),
    "refused": (ServerRefused, "refused this credential.*credential="),
    "clash": (SchemaConflict, r"Counter\.count is int in the room and text in your class.*state_name"),
    "in a transaction": (RuntimeError, "outside of a transaction or hold"),
    "in a hold": (RuntimeError, "outside of a transaction or hold"),
    "in hold_sync": (RuntimeError, "outside of a transaction or hold"),
    "too late": (LinkTimeout, "did not answer the join .* within 0.2 s"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_link_that_fails_changes_nothing(case: str, here: Link, there: Link, server: LiveServer, token: str) -> None:
    clash = there(Counter(), token + "-clash")
    one = here(Clash(count="mine") if case == "clash" else Counter(count=1), token)
    two = there(Clash() if case == "clash" else Counter(), token)
    two.count = value = "x" if case == "clash" else 2
    assert one.wait_until(lambda: one.count == value, 10)
    error, words = FAILURES[case]
    with Stalling(server.port) as way, pytest.raises(error, match=f"(?s){words}"):
        match case:
            case "bad token":
                here(one, " x")
            case "no server":
                one.link_to("x", 0.5, server="http://127.0.0.1:9/", credential="c")
            case "refused":
                one.link_to("x", server=server.url, credential="sw1-wrong")
            case "clash":
                here(one, token + "-clash")
            case "in a transaction":
                with one.transaction():
                    here(one, "x")
            case "in a hold":
                with one.hold_trait_notifications():
                    here(one, "x")
            case "in hold_sync":
                with one.hold_sync():
                    here(one, "x")
            case _:
                Counter().link_to("other", server=way.url, credential=server.credential)
                way.shut()
                one.link_to("x", 0.2, server=way.url, credential=server.credential)
    assert (one.linked_to, one.count) == (token, value)
    two.count = value = "y" if case == "clash" else 3
    assert one.wait_until(lambda: one.count == value, 10)
    one.count = value = "z" if case == "clash" else 4
    assert two.wait_until(lambda: two.count == value, 10)
    assert seq(server, token) == 4
    one.unlink()
    assert one.count == ("mine" if case == "clash" else 1)
    assert clash.count == 0


def test_too_many_rooms(small: LiveServer, token: str) -> None:
    def link(state: SharedState, name: str) -> Any:
        return state.link_to(name, server=small.url, credential=small.credential)

    states = [link(Counter(), f"{token}-{number}") for number in range(2)]
    late = Counter(count=5)
    with pytest.raises(TooManyRooms, match="may hold 2 rooms; unlink some"):
        link(late, token)
    assert (late.linked_to, late.count) == (None, 5)
    states[0].unlink(flush=True)
    eventually(lambda: _links(link, late, token))
    assert late.linked_to == token


def _links(link: Link, state: SharedState, token: str) -> bool:
    try:
        link(state, token)
    except TooManyRooms:
        return False
    return True


def test_who_may_only_read_leaves_it_to_others_to_react(small: LiveServer, token: str) -> None:
    """It could not say how far it got, and would keep those who can from it, as the older member."""

    class Reacting(SharedState, delivery="thread"):
        n = t.Int(0)
        twice = t.Int(0)

        @reacts("n", leader=True)
        def double(self, change: Any) -> None:
            self.twice = 2 * change.new

    maker = Reacting()
    # Rooms of an earlier test may not be left yet.
    eventually(
        lambda: _links(lambda state, name: state.link_to(name, server=small.url, credential=small.credential), maker, token)
    )
    reader = Reacting().link_to(token, server=small.url, credential=small.token)
    # The state of its reactions is there, and the reader is the only one.
    maker.unlink()
    eventually(lambda: [item.states for item in reader.linked_from] == [("Reacting",)])
    writer = Reacting().link_to(token, server=small.url, credential=small.credential)
    # As the server says it; people are not shown the second one.
    members = writer._bridge.session.replica.members.values()  # type: ignore[union-attr]
    eventually(lambda: sorted(item.states for item in members) == [("Reacting",), ("Reacting", "Reacting@double@reacts")])
    assert [item.states for item in writer.linked_from] == [("Reacting",)] * 2
    writer.n = 3
    assert reader.wait_until(lambda: reader.twice == 6, 10)
    for state in (reader, writer):
        state.unlink()


def test_forbidden(small: LiveServer, token: str) -> None:
    reader = Counter(count=5)
    with pytest.raises(Forbidden, match="ask for the right 'write'"):
        reader.link_to(token, server=small.url, credential=small.token)
    assert (reader.linked_to, reader.count) == (None, 5)
    writer = Counter().link_to(token, server=small.url, credential=small.credential)
    reader.link_to(token, server=small.url, credential=small.token)
    rejected = Heard(reader, "count", type="rejected")
    reader.count = 9
    event = rejected.wait()
    assert (event.problem.code, event.origin, event.new, reader.count) == ("forbidden", "rollback", 0, 0)
    writer.count = 1
    assert reader.wait_until(lambda: reader.count == 1, 10)
    assert seq(small, token) == 2


def test_what_answers_and_is_no_server_says_so_and_stops_nothing(server: LiveServer, token: str) -> None:
    """The address of a page, as one copies it from a browser: with a secret in it that must be seen nowhere."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>log in")

        def log_message(self, *words: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as page:
        threading.Thread(target=page.serve_forever, daemon=True).start()
        url = f"http://ana:SECRET2@127.0.0.1:{page.server_port}/lab?token=SECRET1"
        state = Counter()
        for _ in range(2):
            with pytest.raises(ServerRefused, match="not as a sharedwidgets server") as raised:
                state.link_to(token, server=url)
            assert "SECRET" not in str(raised.value)
        waiting = Counter(room=token, server=url)
        assert "SECRET" not in str(waiting._link)
        page.shutdown()
    alive = [connection for connection in sharedwidgets.connection._shared.values() if connection.address.url.endswith("/lab/")]
    assert [connection._thread.is_alive() for connection in alive] == [True]
    waiting.close()
    for connection in alive:
        connection.close()


def test_a_bug_in_a_conversation_ends_it_and_not_the_thread(
    server: LiveServer, token: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    state = Counter().link_to(token, server=server.url, credential=server.token)
    assert state._bridge is not None
    connection = state._bridge.connection
    broken = threading.Event()
    receive = connection._receive

    def once(message: object) -> None:
        monkeypatch.undo()
        broken.set()
        raise ZeroDivisionError

    monkeypatch.setattr(connection, "_receive", once)
    state.count = 5
    assert broken.wait(10)
    state.flush()
    assert connection._thread.is_alive()
    assert connection._receive == receive
    assert "ZeroDivisionError" in caplog.text


# --- the constructor


def test_a_room_in_the_constructor_names_the_values_the_room_replaced(server: LiveServer, token: str) -> None:
    class Made(SharedState):
        count = t.Int(0)
        same = t.Int(0)
        array = t.Instance(np.ndarray, args=((0,),)).tag(
            to_json=lambda array, widget: array.tobytes(), from_json=lambda told, widget: np.frombuffer(told)
        )

    with pytest.warns(UserWarning, match=r"Made\(room=.*\): the room's values replaced array, count; assign after") as caught:
        state = Made(room=token, server=server.url, credential=server.credential, count=5, same=0, array=np.ones(3))
    assert caught[0].filename == __file__
    assert (state.linked_to, state.count, len(state.array)) == (token, 0, 0)
    state.unlink()
    assert (state.count, len(state.array)) == (5, 3)


def test_an_object_made_without_its_server_joins_when_it_comes(
    tmp_path: Path, token: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sharedwidgets.state, "CONSTRUCTOR_SECONDS", 0.2)
    monkeypatch.setattr(sharedwidgets.state, "RETRY_SECONDS", 0.1)
    server = LiveServer(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as free:
        server.port = free.getsockname()[1]
    url = f"http://127.0.0.1:{server.port}/"
    state = Counter(room=token, server=url, credential=server.token, count=5, other=0)
    heard = Heard(state, "count")
    links = Heard(state, "_link")
    assert (state.linked_to, state.count) == (None, 5)
    assert re.search(r"cannot be reached.*Install sharedwidgets", state._link["offline"])
    with server:
        # One link that comes is announced by `_link`; a refusal on the way would come first.
        eventually(lambda: state.linked_to == token, 30)
        heard.wait()
        assert heard.steps == [("count", 5, 0)]
        assert heard.threads == ["sharedwidgets-delivery"]
        assert links.changes[-1].new["offline"] == ""
        assert "the room's values replaced count" in caplog.text
        state.count = 1
        state.flush()
        assert seq(server, token) == 2
        state.unlink()
        assert state.count == 5
        for connection in list(sharedwidgets.connection._shared.values()):
            if connection.address.url == url:
                connection.close()


# --- who may see what


def test_kernel_only_never_reaches_a_frontend_and_private_never_the_server(
    here: Link, there: Link, server: LiveServer, token: str
) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    one._salt, one.quiet, one.draft = "pepper", 4, "only mine"
    assert two.wait_until(lambda: (two._salt, two.quiet) == ("pepper", 4), 10)
    assert two.draft == ""
    as_page = server.ask("GET", f"sharedwidgets/api/rooms/{token}", headers={"Origin": server.url.rstrip("/")})
    as_kernel = server.ask("GET", f"sharedwidgets/api/rooms/{token}")
    assert not {"_salt", "quiet", "draft"} & set(as_page["states"]["Counter"]["values"])
    assert "pepper" not in json.dumps(as_page)
    assert as_kernel["states"]["Counter"]["values"]["_salt"] == "pepper"
    assert "draft" not in as_kernel["states"]["Counter"]["values"]
    assert not {"_salt", "quiet"} & set(one.get_state())
    assert one._link["traits"] == ["count", "items", "made", "other", "pair", "tags", "text"]
    assert seq(server, token) == 3
    for number in range(100):
        one.draft = str(number)
    one.flush()
    assert seq(server, token) == 3


# --- values


class Typed(SharedState):
    when = Datetime(None, allow_none=True).tag(**datetime_serialization)
    array = t.Instance(np.ndarray, args=((0,),)).tag(
        to_json=lambda array, widget: {"dtype": str(array.dtype), "shape": list(array.shape), "data": array.tobytes()},
        from_json=lambda told, widget: np.frombuffer(told["data"], told["dtype"]).reshape(told["shape"]),
    )
    whatever = t.Any()


def test_serializers_carry_values_both_ways(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Typed(), token), there(Typed(), token)
    invalid = Heard(two, type="invalid")
    when = datetime.datetime(2026, 11, 24, 12, 30, 1, 123456, datetime.timezone.utc)
    one.when, one.array = when, np.arange(6.0).reshape(2, 3)
    assert two.wait_until(lambda: two.when == when and two.array.shape == (2, 3), 10), invalid.changes
    assert np.array_equal(two.array, np.arange(6.0).reshape(2, 3))
    settled(one, two)
    assert seq(server, token) == 3
    one.array = np.arange(6.0).reshape(2, 3)
    one.when = when.replace()
    one.flush()
    assert seq(server, token) == 3  # equal on the wire: nobody is told
    assert two.invalid_traits == {}


def test_a_value_without_wire_form_is_refused_at_the_assignment(here: Link, server: LiveServer, token: str) -> None:
    state = here(Typed(), token)
    heard = Heard(state)
    state.whatever = [1]
    held = state.whatever
    with pytest.raises(InvalidValue, match=r"a object has no wire form") as caught:
        state.whatever = {"a": [1, object()]}
    assert (caught.value.trait, caught.value.path) == ("whatever", ("whatever", "a", "1"))
    assert state.whatever is held
    with state.hold_trait_notifications():
        state.whatever = 2
        with pytest.raises(InvalidValue):
            state.whatever = object()
        assert state.whatever == 2
    with pytest.raises(InvalidValue), state.transaction():
        state.whatever = 3
        state.whatever = {1: 2}
    assert state.whatever == 2
    state.flush()
    assert seq(server, token) == 3
    assert heard.steps == [("whatever", None, [1]), ("whatever", [1], 2)]


def test_a_value_changed_in_place_is_named_once(here: Link, there: Link, server: LiveServer, token: str) -> None:
    state = here(Counter(), token)
    two = there(Counter(), token)
    state.items, state.tags = [1], {"a": 1}
    settled(state, two)
    state.items.append(2)
    with pytest.warns(
        UserWarning, match=r"Counter\.items is a list that was changed in place.*x\.items = \[\*x\.items, \.\.\.\]"
    ) as caught:
        state.pull()
    assert [item.filename for item in caught] == [__file__]
    state.tags["b"] = 2
    with pytest.warns(
        UserWarning, match=r"Counter\.tags is a dict that was changed in place.*x\.tags = \{\*\*x\.tags, \.\.\.\}"
    ):
        state.flush()
    state.pull()
    state.flush()
    assert seq(server, token) == 3
    # What was changed in place is said by assigning it; per key, so that nobody else's key is lost.
    with state.hold_sync():
        two.tags = {**two.tags, "theirs": 3}
        two.flush()
        state.tags = state.tags
        state.items = state.items
    settled(state, two)
    assert two.tags == state.tags == {"a": 1, "b": 2, "theirs": 3}
    assert two.items == [1, 2]


def test_two_instances_of_one_class_are_one_state(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two, far = here(Counter(count=5), token), here(Counter(count=6), token), there(Counter(), token)
    heard = Heard(two, "count")
    one.count = 1
    assert two.count == 1
    one.flush()
    two.count = 2
    assert one.count == 2
    with one.transaction():
        one.count, one.tags = 3, {"a": 1}
    assert (two.count, two.tags) == (3, {"a": 1})
    assert [step[1:] for step in heard.steps] == [(0, 1), (1, 2), (2, 3)]
    assert [change.origin for change in heard.changes] == ["local"] * 3
    settled(one, far)
    assert seq(server, token) == 4
    assert [member.kind for member in far.linked_from] == ["script", "script"]
    one.unlink()
    far.count = 9
    assert two.wait_until(lambda: two.count == 9, 10)
    assert one.count == 5
    assert len(far.linked_from) == 2


def test_an_observer_of_another_instance_that_raises_does_not_stop_the_author(
    here: Link, server: LiveServer, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    one, two = here(Counter(), token), here(Counter(), token)

    def fail(change: Any) -> None:
        raise ValueError("mine")

    two.observe(fail, "count")
    one.count = 1
    assert (one.count, two.count) == (1, 1)
    one.flush()
    one.count = 2
    assert (one.count, two.count) == (2, 2)
    one.flush()
    assert seq(server, token) == 3
    assert "an observer of a shared state raised" in caplog.text


def test_two_instances_whose_observers_write_agree(here: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(), token), here(Counter(), token)

    def more(change: Any) -> None:
        if change.new == 1:
            two.count = 2

    two.observe(more, "count")
    heard = Heard(one, "count")
    one.count = 1
    assert (one.count, two.count) == (2, 2)
    assert heard.steps == [("count", 0, 1), ("count", 1, 2)]
    one.flush()
    assert one.pull().count == 2
    assert seq(server, token) in (2, 3)  # the first may have been folded into the second


# --- groups


def test_a_transaction_is_one_entry_and_observers_hear_once(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    heard = Heard(one, "count", "other", "tags", "draft")
    told: list[dict[str, Any]] = []
    with connect(token, server.url, server.token) as room:
        room.subscribe(lambda change: told.append({change.trait: change.new}))
        with one.transaction():
            one.count = 1
            one.count = 2
            one.other = 3
            one.tags = {"a": 1}
            one.draft = "d"
            assert heard.changes == []
        assert [step[0::2] for step in heard.steps] == [("count", 2), ("other", 3), ("tags", {"a": 1}), ("draft", "d")]
        assert two.wait_until(lambda: two.count == 2, 10)
        assert (two.other, two.tags) == (3, {"a": 1})
        one.flush()
        assert seq(server, token) == 2


@pytest.mark.parametrize("error", [ValueError("x"), t.TraitError("x"), KeyboardInterrupt()])
def test_a_transaction_that_fails_never_was(
    error: BaseException, here: Link, there: Link, server: LiveServer, token: str
) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    one.tags = {"a": 1}
    mine = one.tags
    heard = Heard(one)
    with pytest.raises(type(error)), one.transaction():
        one.count, one.tags, one._salt, one.draft = 1, {}, "x", "x"
        raise error
    assert (one.count, one.tags, one._salt, one.draft) == (0, mine, "s", "")
    one.flush()
    assert seq(server, token) == 2
    two.count = 5
    assert one.wait_until(lambda: one.count == 5, 10)
    settled(one, two)
    assert heard.steps == [("count", 0, 5)]
    # The dict was not assigned anew by the rollback: a key of somebody else is safe.
    two.tags = {**two.tags, "b": 2}
    two.flush()
    one.tags = {**one.tags, "c": 3}
    settled(one, two)
    assert one.tags == two.tags == {"a": 1, "b": 2, "c": 3}


def test_another_threads_write_is_none_of_a_transactions(here: Link, there: Link, server: LiveServer, token: str) -> None:
    """It leaves at once, and stays when the transaction is undone."""
    one, two = here(Counter(), token), there(Counter(), token)
    heard = Heard(one, "other")
    with pytest.raises(ZeroDivisionError), one.transaction():
        one.count = 1
        with ThreadPoolExecutor(1) as pool:
            pool.submit(setattr, one, "other", 5).result(10)
            pool.submit(_transaction, one).result(10)
        assert two.wait_until(lambda: two.text == "theirs", 10)
        assert (two.count, two.other, seq(server, token)) == (0, 6, 3)
        raise ZeroDivisionError
    one.flush()
    assert (one.count, one.other, one.text, seq(server, token)) == (0, 6, "theirs", 3)
    assert heard.steps == [("other", 0, 5), ("other", 5, 6)]


def _transaction(state: Counter) -> None:
    with state.transaction():
        state.other, state.text = 6, "theirs"


@pytest.mark.asyncio
async def test_another_tasks_write_is_none_of_a_transactions(here: Link, server: LiveServer, token: str) -> None:
    one = here(Counter(), token)
    room = one.room
    assert room is not None
    begun, go = asyncio.Event(), asyncio.Event()

    async def fails() -> None:
        with room.transaction(), one.transaction():
            room["Counter"]["count"] = 1
            one.text = "mine"
            begun.set()
            await go.wait()
            raise ZeroDivisionError

    task = asyncio.get_running_loop().create_task(fails())
    await begun.wait()
    room["Counter"]["other"] = 9
    one.tags = {"a": 1}
    go.set()
    with pytest.raises(ZeroDivisionError):
        await task
    await asyncio.get_running_loop().run_in_executor(None, one.flush)
    assert (one.count, one.other, one.text, one.tags, seq(server, token)) == (0, 9, "hello", {"a": 1}, 3)


def test_a_write_that_cannot_be_made_does_not_cover_what_came_meanwhile(
    here: Link, there: Link, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trait would show another value than the room for good, as nothing more comes of it."""
    one, two = here(Counter(), token), there(Counter(), token)
    bridge = one._bridge
    assert bridge is not None

    def overloaded(session: object) -> None:
        two.count = 43
        assert one.wait_until(lambda: bridge.session.replica.value("Counter", "count") == 43, 10)
        with ThreadPoolExecutor(1) as pool:
            pool.submit(one.pull).result(10)
        raise Overloaded("too many")

    monkeypatch.setattr(bridge.connection, "wait_for_room", overloaded)
    with pytest.raises(Overloaded):
        one.count = 42
    monkeypatch.undo()
    one.pull()
    assert one.count == 43


def test_a_dict_with_more_keys_than_a_push_has_ops(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    refused = Heard(one, type="rejected")
    one.tags = {str(number): number for number in range(600)}
    one.flush()
    assert len(one.tags) == 600
    assert two.wait_until(lambda: len(two.tags) == 600, 10)
    one.tags = {**one.tags, "one": 1}
    one.flush()
    assert (seq(server, token), refused.changes) == (3, [])


def test_a_transaction_with_more_ops_than_a_push_takes_raises_where_it_is_made(here: Link, token: str) -> None:
    one = here(Counter(), token)
    room = one.room
    assert room is not None
    many = room.define("Many", **{f"t{number}": 0 for number in range(501)})
    with pytest.raises(TooLarge, match=r"502 writes.*500"), room.transaction():
        for number in range(501):
            one.count = number
            many[f"t{number}"] = 1
    assert (one.count, many["t0"]) == (0, 0)
    with room.transaction():
        for number in range(501):
            room["Counter"]["count"] = number
    assert one.count == 500


def test_changed_outlives_the_loop_that_asked(here: Link, token: str) -> None:
    one = here(Counter(), token)

    async def first() -> None:
        wanted = [one.changed("count"), one.changed("other")]
        one.count = 1
        await asyncio.wait(wanted, return_when=asyncio.FIRST_COMPLETED)

    asyncio.run(first())
    one.other = 5
    one.other = 6
    assert one.other == 6


@pytest.mark.parametrize("hold", ["hold_trait_notifications", "hold_sync"])
def test_a_hold_is_one_entry(hold: str, here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    heard = Heard(one, "count", "other")
    with getattr(one, hold)():
        one.count = 1
        one.count = 2
        one.other = 3
    expected = (
        [("count", 0, 2), ("other", 0, 3)] if hold != "hold_sync" else [("count", 0, 1), ("count", 1, 2), ("other", 0, 3)]
    )
    assert heard.steps == expected
    settled(one, two)
    assert ((two.count, two.other), seq(server, token)) == ((2, 3), 2)
    with pytest.raises(ValueError, match="mine"), getattr(one, hold)():
        one.count, one.other = 5, 6
        raise ValueError("mine")
    settled(one, two)
    assert ((one.count, one.other), (two.count, two.other), seq(server, token)) == ((5, 6), (5, 6), 3)
    with pytest.raises(t.TraitError), getattr(one, hold)():
        one.count = 7
        one.other = "no number"
    settled(one, two)
    undone = hold == "hold_trait_notifications"  # traitlets undoes it, ipywidgets' hold_sync does not
    assert (one.count, two.count, seq(server, token)) == ((5, 5, 3) if undone else (7, 7, 4))


def test_a_validator_at_the_end_of_a_hold_pushes_nothing(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Picky(), token), there(Level(), token)
    with pytest.raises(t.TraitError, match="odd"), one.hold_trait_notifications():
        one.level = 3
    assert one.level == 0
    settled(one, two)
    assert (two.level, seq(server, token)) == (0, 1)
    two.level = 4
    assert one.wait_until(lambda: one.level == 4, 10)


def test_an_observer_at_the_end_of_a_hold_finds_it_sent(here: Link, server: LiveServer, token: str) -> None:
    state = here(Counter(), token)
    found: list[int] = []

    def look(change: Any) -> None:
        state.flush()
        found.append(seq(server, token))

    state.observe(look, "count")
    with state.hold_trait_notifications():
        state.count = 1
        state.other = 2
    assert found == [2]


def test_a_transaction_undone_inside_a_hold(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    with one.hold_trait_notifications():
        one.count = 1
        with pytest.raises(ValueError, match="undo"), one.transaction():
            one.count, one.other = 50, 60
            raise ValueError("undo")
        assert (one.count, one.other) == (1, 0)
    settled(one, two)
    assert ((two.count, two.other), seq(server, token)) == ((1, 0), 2)


def test_h03_nothing_remote_is_put_in_during_a_hold(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    heard = Heard(one, "count", "other")
    assert one._bridge is not None
    session = one._bridge.session
    for group in (one.transaction, one.hold_trait_notifications, one.hold_sync):
        last = seq(server, token)
        value = two.count + 1
        with group():
            one.other = one.other
            two.count = value
            two.flush()
            eventually(lambda last=last: session.replica.seq > last)  # type: ignore[misc]
            one.pull()
            assert one.count == value - 1
        assert one.wait_until(lambda value=value: one.count == value, 10)  # type: ignore[misc]
        settled(one, two)
        assert seq(server, token) == last + 1  # the remote value did not leave again as an own write
    assert [change.origin for change in heard.changes] == ["remote"] * 3


def test_h03_who_waits_sees_what_a_hold_of_another_thread_kept_back(here: Link, there: Link, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    assert one._bridge is not None
    session = one._bridge.session
    asked = threading.Semaphore(0)

    def came() -> bool:
        asked.release()
        return one.count == 5

    with ThreadPoolExecutor(1) as pool:
        with one.transaction():
            two.count = 5
            two.flush()
            eventually(lambda: session.replica.seq == 2)
            waiting = pool.submit(one.wait_until, came, 10)
            assert asked.acquire(timeout=10)
        assert waiting.result(5)


def test_h01_a_hold_that_ends_where_it_began_is_a_write(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    assert one._bridge is not None
    session = one._bridge.session
    with one.hold_trait_notifications():
        one.count = 5
        one.count = 0
        two.count = 9
        two.flush()
        eventually(lambda: session.replica.seq == 2)
    settled(one, two)
    assert (one.count, two.count, seq(server, token)) == (0, 0, 3)
    with one.hold_trait_notifications():
        one.count = 5
        one.count = 0
    one.flush()
    assert seq(server, token) == 3


def test_h03_a_failed_hold_does_not_set_an_old_value_back(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Picky(), token), there(Level(), token)
    assert one._bridge is not None
    session = one._bridge.session
    with pytest.raises(t.TraitError), one.hold_trait_notifications():
        one.level = 0  # said again: a write, were the hold not undone
        one.level = 3
        two.level = 8
        two.flush()
        eventually(lambda: session.replica.seq == 2)
    assert one.wait_until(lambda: one.level == 8, 10)
    settled(one, two)
    assert (two.level, seq(server, token)) == (8, 2)


# --- validators


@pytest.mark.parametrize(("kind", "shown"), [(Clamped, 10), (Picky, 0)])
def test_a_value_this_class_would_not_take_is_not_written_back(
    kind: type[Any], shown: int, here: Link, there: Link, server: LiveServer, token: str
) -> None:
    one, two = here(kind(), token), there(Level(), token)
    invalid, changes = Heard(one, "level", type="invalid"), Heard(one, "level")
    two.level = 15
    event = invalid.wait()
    assert (event.name, event.origin, event.problem.code, event.new, one.level) == (
        "level",
        "remote",
        "invalid-value",
        shown,
        shown,
    )
    assert event.actor.kind == "script"
    settled(one, two)
    assert (one.level, two.level, seq(server, token)) == (shown, 15, 2)
    assert list(one.invalid_traits) == ["level"]
    two.level = 4
    assert one.wait_until(lambda: one.level == 4, 10)
    assert one.invalid_traits == {}
    two.level = 17
    invalid.wait(2)
    # To assign what it shows is a write: the room holds another value.
    one.level = one.level
    settled(one, two)
    assert (two.level, seq(server, token)) == (one.level, 5)
    assert changes.steps == ([("level", 0, 10), ("level", 10, 4), ("level", 4, 10)] if kind is Clamped else [("level", 0, 4)])


def test_a_validator_that_returns_an_equal_value_makes_nothing_invalid(here: Link, there: Link, token: str) -> None:
    class Copying(SharedState):
        items = t.List()

        @t.validate("items")
        def _copy(self, proposal: Any) -> list[Any]:
            return list(proposal.value)

    one, two = here(Copying(), token), there(Copying(), token)
    invalid = Heard(two, type="invalid")
    one.items = [1, 2]
    assert two.wait_until(lambda: two.items == [1, 2], 10)
    assert invalid.changes == []
    assert two.invalid_traits == {}


def test_a_value_that_becomes_valid_by_another_trait_is_shown(here: Link, there: Link, token: str) -> None:
    class Ranged(SharedState):
        value = t.Int(0)
        top = t.Int(10)

        @t.validate("value")
        def _below(self, proposal: Any) -> int:
            if proposal.value > self.top:
                raise t.TraitError("too high")
            return int(proposal.value)

    class Free(SharedState, state_name="Ranged"):
        value = t.Int(0)
        top = t.Int(10)

    one, two = here(Ranged(), token), there(Free(), token)
    invalid = Heard(one, type="invalid")
    two.value = 15
    invalid.wait()
    assert one.value == 0
    two.top = 20
    assert one.wait_until(lambda: one.value == 15, 10)
    assert len(invalid.changes) == 1


def test_a_validator_that_breaks_is_told_like_one_that_refuses(here: Link, there: Link, token: str) -> None:
    class Broken(SharedState, state_name="Level"):
        level = t.Int(0)
        other = t.Int(0)

        @t.validate("level")
        def _break(self, proposal: Any) -> int:
            raise ZeroDivisionError("broken")

    one = here(Broken(), token)
    two = there(Level2(), token)
    invalid, changes = Heard(one, "level", type="invalid"), Heard(one, "other")
    with two.transaction():
        two.level, two.other = 1, 2
    assert "broken" in invalid.wait().problem.message
    assert (changes.wait().new, one.level) == (2, 0)


class Level2(SharedState, state_name="Level"):
    level = t.Int(0)
    other = t.Int(0)


def test_two_processes_whose_validators_disagree_do_not_fight(server: LiveServer, here: Link, token: str) -> None:
    code = f"""
import traitlets as t
from sharedwidgets import SharedState
class Level(SharedState):
    level = t.Int(50)
    @t.validate("level")
    def _least(self, proposal):
        return max(20, proposal.value)
c = Level().link_to({token!r})
events = []
c.observe(lambda change: events.append(change.type), "level", type=t.All)
"""
    with Script(server, code) as script:
        one = here(Clamped(), token)
        assert (one.level, seq(server, token)) == (10, 1)
        one.level = 5
        one.flush()
        assert script.run("c.wait_until(lambda: 'invalid' in events, 10)", "[c.level, events]") == [20, ["change", "invalid"]]
        script.run("c.level = 60; c.flush()")
        assert one.wait_until(lambda: one.level == 10, 10)
        assert seq(server, token) == 3
        script.run("c.flush()")
        assert (script.value("c.pull().level"), seq(server, token)) == (60, 3)


# --- refusals and where a change comes from


def test_a_refused_write_is_undone_and_told(small: LiveServer, token: str) -> None:
    Counter().link_to(token, server=small.url, credential=small.credential)
    one = Counter().link_to(token, server=small.url, credential=small.token)  # may only read
    changes, rejected = Heard(one, "text", "pair"), Heard(one, type="rejected")
    one.text = "mine"
    assert one.text == "mine"  # at once
    event = rejected.wait()
    assert (event.name, event.new, event.problem.code, event.origin) == ("text", "hello", "forbidden", "rollback")
    assert [(change.origin, change.new) for change in changes.changes] == [("local", "mine"), ("rollback", "hello")]
    assert (one.text, seq(small, token)) == ("hello", 1)
    with one.transaction():
        one.pair, one.text = (5, 6), "mine"
    rejected.wait(3)
    assert [(event.name, event.new) for event in rejected.changes[1:]] == [("pair", (1, 2)), ("text", "hello")]
    assert (one.pair, one.text, seq(small, token)) == ((1, 2), "hello", 1)


def test_a_refusal_during_a_hold_is_told_after_it(small: LiveServer, token: str) -> None:
    Counter().link_to(token, server=small.url, credential=small.credential)
    one = Counter().link_to(token, server=small.url, credential=small.token)
    rejected = Heard(one, type="rejected")
    one.text = "mine"
    assert one._bridge is not None
    bridge = one._bridge
    with one.hold_sync():
        eventually(lambda: bridge.session.replica.undecided == 0)
    assert rejected.wait().name == "text"
    assert one.text == "hello"


def test_a_value_that_is_too_large_is_refused_at_the_assignment(small: LiveServer, token: str) -> None:
    one = Counter().link_to(token, server=small.url, credential=small.credential)
    heard = Heard(one)
    with pytest.raises(TooLarge, match=r"Counter\.text: a value of about 5002 bytes; one write may bring 2000"):
        one.text = "x" * 5000
    assert (one.text, heard.changes, seq(small, token)) == ("hello", [], 1)


def test_changes_say_where_they_come_from(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(count=5), token + "-old"), there(Counter(), token)
    heard = Heard(one, "count")
    one.unlink()
    here(one, token)
    one.count = 1
    settled(one, two)
    two.count = 2
    heard.wait(4)
    server.ask("PATCH", f"sharedwidgets/api/rooms/{token}/states/Counter", {"count": 3})
    heard.wait(5)
    one.unlink()
    facts = [(change.new, change.origin, change.actor.kind if change.actor else None) for change in heard.changes]
    assert facts == [
        (5, "local", None), (0, "resync", "script"), (1, "local", None), (2, "remote", "script"), (3, "remote", "rest"),
        (5, "local", None),
    ]  # fmt: skip
    assert two._bridge is not None
    assert two._bridge.connection.welcome is not None
    assert heard.changes[3].actor.id == two._bridge.connection.welcome.member


def test_last_change_and_linked_from(here: Link, there: Link, token: str) -> None:
    before = time.time()
    one = here(Counter(), token)
    with pytest.raises(NoSuchTrait, match=r"Counter has no trait 'cuont'; it has _salt, count"):
        one.last_change("cuont")
    assert one.last_change("draft") is None
    made = one.last_change("count")
    assert made is not None
    assert (made.seq, made.actor.id) == (1, one.linked_from[0].id)
    two = there(Counter(), token)
    two.count = 3
    assert one.wait_until(lambda: one.count == 3, 10)
    last = one.last_change("count")
    assert last is not None
    assert (last.seq, last.actor.kind) == (2, "script")
    assert before - 5 < last.at < time.time() + 5
    assert one.wait_until(lambda: len(one.linked_from) == 2, 10)
    assert last.actor.id in {member.id for member in one.linked_from}
    # Who comes later is told the same.
    assert there(Counter(), token).last_change("count") == last
    assert {(member.kind, member.state, member.states) for member in one.linked_from} == {("script", "live", ("Counter",))}


def test_linked_from_says_who_links_this_state(here: Link, server: LiveServer, token: str) -> None:
    """And not who is in the room for another one, be it a page."""

    class Other(SharedState):
        text = t.Unicode()

    one, other = here(Counter(), token), here(Other(), token)
    with Onlookers(server) as onlookers:
        onlookers.page(token, "Other")
        eventually(lambda: [member.kind for member in other.linked_from] == ["script", "frontend"])
        assert [member.kind for member in one.linked_from] == ["script"]
        onlookers.page(token)
        eventually(lambda: [member.kind for member in one.linked_from] == ["script", "frontend"])
        assert len(other.linked_from) == 2


def test_observers_run_on_a_thread_of_the_objects_own(here: Link, there: Link, token: str) -> None:
    class Threaded(Counter, state_name="Counter", delivery="thread"):
        pass

    before = set(threading.enumerate())
    one, two = here(Threaded(), token), there(Counter(), token)
    heard = Heard(one, "count")
    two.count = 1
    heard.wait()
    assert heard.threads == ["sharedwidgets-delivery"]
    threads = [thread for thread in set(threading.enumerate()) - before if thread.name == "sharedwidgets-delivery"]
    assert threads
    one.unlink()
    two.unlink()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()


def test_an_asyncio_program_hears_on_its_loop(server: LiveServer, there: Link, token: str) -> None:
    two = there(Counter(), token)

    async def main() -> tuple[list[str], Any]:
        one = await Counter().link_to_async(token, server=server.url, credential=server.credential)
        heard = Heard(one, "count")
        waiting = one.changed("count")
        two.count = 1
        change = await asyncio.wait_for(waiting, 10)
        return heard.threads, (one, heard, change)

    threads, (one, heard, change) = asyncio.run(main())
    assert threads == ["MainThread"]
    assert (change.new, change.origin) == (1, "remote")
    # Its loop is closed: what comes now comes on a thread.
    two.count = 2
    heard.wait(2)
    assert (one.count, heard.threads) == (2, ["MainThread", "sharedwidgets-delivery"])


def test_link_to_async_that_times_out_changes_nothing(server: LiveServer, token: str) -> None:
    async def main(way: Stalling) -> SharedState:
        state = Counter(count=5)
        Counter().link_to(token, server=way.url, credential=server.credential)
        way.shut()
        with pytest.raises(LinkTimeout):
            await state.link_to_async(token + "-b", 0.2, server=way.url, credential=server.credential)
        return state

    with Stalling(server.port) as way:
        state = asyncio.run(main(way))
    assert (state.linked_to, state.count) == (None, 5)


def test_a_deleted_room_makes_its_objects_private_again(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(count=5), token), there(Counter(), token)
    one.count = 1
    settled(one, two)
    heard = Heard(one, "count")
    server.ask("DELETE", f"sharedwidgets/api/rooms/{token}")
    heard.wait()
    assert (one.count, one.linked_to) == (5, None)
    one.count = 6
    eventually(lambda: two.linked_to is None and two.count == 0)
    with pytest.raises(urllib.error.HTTPError):
        seq(server, token)
    here(one, token)
    assert (one.count, seq(server, token)) == (0, 1)


def test_a_write_to_a_room_that_just_ended_raises(here: Link, server: LiveServer, token: str) -> None:
    state = here(Counter(count=5), token)
    assert state._bridge is not None
    bridge = state._bridge
    with state.hold_sync():  # nobody is told yet
        server.ask("DELETE", f"sharedwidgets/api/rooms/{token}")
        eventually(lambda: bridge.session.room not in bridge.connection._sessions)
        with pytest.raises(RoomGone):
            bridge.connection.write(bridge.session, [Set(state="Counter", path=("count",), value=1)])
    eventually(lambda: state.linked_to is None and state.count == 5)


# --- load


def test_h04_a_thousand_sets_in_a_loop_are_folded(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    heard = Heard(two, "count")
    for number in range(1, 1001):
        one.count = number
    one.flush()
    assert two.wait_until(lambda: two.count == 1000, 10)
    entries = seq(server, token) - 1
    assert 1 <= entries < 500
    values = [change.new for change in heard.changes]
    assert values == sorted(values)
    assert values[-1] == 1000


def test_h04_flush_ends_though_every_set_of_ours_was_superseded(here: Link, there: Link, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    stop = threading.Event()

    def hammer() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            two.count = -number

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(hammer)
        for number in range(50):
            one.count = number
            one.flush(10)
        stop.set()
        work.result(10)
    settled(two, one)
    assert one.count == two.count


def test_too_many_unsent_writes_make_the_author_wait_and_then_raise(
    small: LiveServer, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharedwidgets.connection, "OVERLOAD_SECONDS", 0.3)
    with Stalling(small.port) as way:
        state = Counter().link_to(token, server=way.url, credential=small.credential)
        way.shut()
        heard = Heard(state, "count")

        def write() -> int:
            for number in range(1, 1000):
                with state.transaction():  # not folded
                    state.count = number
            raise AssertionError("nothing held it back")

        with pytest.raises(Overloaded, match=r"writes to .* wait to be sent .*; write less often, or put several"):
            write()
        written = state.count
        assert 20 <= written <= 30
        assert [change.new for change in heard.changes] == list(range(1, written + 1))
        with pytest.raises(Overloaded):
            state.other = 9
        assert state.other == 0
        with ThreadPoolExecutor(1) as pool:
            # Who waits goes on when the server does, and holds nothing meanwhile.
            monkeypatch.setattr(sharedwidgets.connection, "OVERLOAD_SECONDS", 30)
            waiting = pool.submit(setattr, state, "other", 7)
            assert state.pull().count == written
            way.open()
            waiting.result(20)
        state.flush()
        assert (state.count, state.other, seq(small, token)) == (written, 7, written + 2)


# --- hard cases


def test_h01_the_shown_value_assigned_again_is_a_write_when_the_room_moved_on(
    here: Link, there: Link, server: LiveServer, token: str
) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    assert one._bridge is not None
    session = one._bridge.session
    with one.hold_sync():  # as in a busy cell: the replica has it, the trait does not show it
        two.count = 1
        two.flush()
        eventually(lambda: session.replica.seq == 2)
        assert one.count == 0
        one.count = 0
    settled(one, two)
    assert (one.count, two.count, seq(server, token)) == (0, 0, 3)
    one.count = 0
    one.flush()
    assert seq(server, token) == 3


def test_h02_a_dict_is_compared_with_what_its_author_saw(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    one.tags = {"a": 1}
    settled(one, two)
    assert one._bridge is not None
    session = one._bridge.session
    with one.hold_sync():
        two.tags = {"a": 1, "b": 2}
        two.flush()
        eventually(lambda: session.replica.seq == 3)
        one.tags = {**one.tags, "c": 3}
    settled(one, two)
    assert one.tags == two.tags == {"a": 1, "b": 2, "c": 3}
    assert seq(server, token) == 4


def test_h29_an_observer_of_a_remote_value_may_wait(here: Link, there: Link, server: LiveServer, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    done = threading.Event()
    found: list[Any] = []

    def wait(change: Any) -> None:
        if change.new != 1:
            return
        one.other = 5
        one.flush()
        found.append(seq(server, token))
        two.text = "now"
        found.append(one.wait_until(lambda: one.text == "now", 10))
        found.append(here(Counter(), token + "-b").linked_to)
        here(one, token + "-c")
        found.append(one.linked_to)
        done.set()

    one.observe(wait, "count")
    with two.transaction():
        two.count, two.quiet = 1, 2
    assert done.wait(20)
    assert found == [3, True, token + "-b", token + "-c"]
    # What was left to tell of the first room is not told of the second.
    assert (one.count, one.quiet) == (0, 0)


def test_h30_the_newest_value_stays_whichever_thread_brings_it(here: Link, there: Link, server: LiveServer, token: str) -> None:
    class Threaded(Counter, state_name="Counter", delivery="thread"):
        pass

    one, twin, two = here(Threaded(), token), here(Threaded(), token), there(Counter(), token)
    rounds, stop = 300, threading.Event()

    def pull() -> None:
        while not stop.is_set():
            one.pull()
            twin.pull()

    def own() -> None:
        for number in range(rounds):
            one.count = -number

    def twins() -> None:
        for number in range(rounds):
            twin.count = 10_000 + number

    def far() -> None:
        for number in range(1, rounds):
            two.count = number

    with ThreadPoolExecutor(5) as pool:
        pullers = [pool.submit(pull), pool.submit(pull)]
        for work in [pool.submit(own), pool.submit(twins), pool.submit(far)]:
            work.result(60)
        for state in (one, two):
            state.flush()
        settled(one, two)
        stop.set()
        for work in pullers:
            work.result(10)
    for state in (one, twin, two):
        state.pull()
    with connect(token, server.url, server.token) as room:
        truth = room["Counter"]["count"]
    assert [state.count for state in (one, twin, two)] == [truth] * 3


def test_h30_an_older_value_that_took_long_to_make_does_not_cover_a_newer(here: Link, there: Link, token: str) -> None:
    """Another thread puts 2 in while this one is still making 1 of what it read before."""
    begun, overtaken = threading.Event(), threading.Event()

    def made(value: int, owner: SharedState) -> int:
        if value == 1 and owner is one and not begun.is_set():
            begun.set()
            two.n = 2
            replica = one._bridge.session.replica  # type: ignore[union-attr]
            eventually(lambda: replica.value("Slow", "n") == 2)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(one.pull).result(10)
            assert owner.n == 2  # type: ignore[attr-defined]
            overtaken.set()
        return value

    class Slow(SharedState, delivery="thread"):
        n = t.Int(0).tag(to_json=lambda value, owner: value, from_json=made)

    one, two = here(Slow(), token), there(Slow(), token)
    two.n = 1
    assert overtaken.wait(10)
    settled(one, two)
    assert (one.n, two.n) == (2, 2)


def test_h30_an_own_write_does_not_hide_what_came_on_its_heels(here: Link, there: Link, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    for number in range(200):
        one.count = number
        two.count = -number
        settled(one, two)
        assert one.count == two.count


def test_h31_a_link_that_timed_out_leaves_no_member_behind(server: LiveServer, here: Link, there: Link, token: str) -> None:
    watcher = there(Counter(), token)
    late, other = Counter(count=5), here(Level(), token)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(LinkTimeout):
            late.link_to(token, 0.3, server=server.url, credential=server.credential)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert (late.linked_to, late.count) == (None, 5)
    other.level = 1
    other.flush()
    settled(watcher)
    members = server.ask("GET", f"sharedwidgets/api/rooms/{token}")["members"]
    assert sorted(member["states"] for member in members) == [["Counter"], ["Level"]]
    other.unlink()
    eventually(lambda: len(server.ask("GET", f"sharedwidgets/api/rooms/{token}")["members"]) == 1)
    watcher.count = 9
    watcher.flush()
    assert late.count == 5


def test_h31_a_time_out_beside_an_instance_that_stays(server: LiveServer, here: Link, there: Link, token: str) -> None:
    one, watcher = here(Counter(), token), there(Counter(), token)
    late = Counter()
    os.kill(server.pid, signal.SIGSTOP)
    try:
        with pytest.raises(LinkTimeout):
            late.link_to(token, 0.3, server=server.url, credential=server.credential)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    one.count = 1
    settled(one, watcher)
    assert [member["states"] for member in server.ask("GET", f"sharedwidgets/api/rooms/{token}")["members"]] == [
        ["Counter"]
    ] * 2


def test_h32_unlink_with_writes_under_way(server: LiveServer, there: Link, token: str) -> None:
    two = there(Counter(), token)
    with Stalling(server.port) as way:
        one = Counter(count=5).link_to(token, server=way.url, credential=server.credential)
        way.shut()
        one.count, one.text = 1, "on its way"
        one.unlink()
        assert (one.count, one.linked_to) == (5, None)
        way.open()
        assert two.wait_until(lambda: (two.count, two.text) == (1, "on its way"), 10)
        eventually(lambda: len(two.linked_from) == 1)
        assert (one.count, seq(server, token)) == (5, 3)


def test_h32_unlink_offline_and_relink(server: LiveServer, there: Link, token: str) -> None:
    two = there(Counter(), token)
    with Stalling(server.port) as way:
        one = Counter(count=5).link_to(token, server=way.url, credential=server.credential)
        way.shut()
        one.count = 1
        way.cut()
        one.unlink()
        assert one.count == 5
        assert two.wait_until(lambda: two.count == 1, 20)
        one.link_to(token, server=way.url, credential=server.credential)
        assert (one.count, seq(server, token)) == (1, 2)


def held_up(connection: sharedwidgets.connection.Connection) -> Callable[[], None]:
    """Let nothing be sent or heard until what is returned is called."""
    begun, on = threading.Event(), threading.Event()

    def stop() -> None:
        begun.set()
        assert on.wait(20)

    connection.later(stop)
    assert begun.wait(10)
    return on.set


@pytest.mark.parametrize("clashes", [False, True], ids=["linked again", "refused"])
def test_h32_a_link_takes_the_place_of_a_leave_that_waits(here: Link, there: Link, token: str, clashes: bool) -> None:
    """To the others there is no gap; when the link is refused, the leave is said after all."""

    class Clash(SharedState, state_name="Counter"):
        count = t.Unicode("")

    one, two = here(Counter(), token), there(Counter(), token)
    assert one._bridge is not None
    assert two._bridge is not None
    keeps = here(Level(), token)
    session, member = two._bridge.session, one._bridge.connection.welcome.member  # type: ignore[union-attr]
    gaps: list[bool] = []
    session.listeners.append(lambda news: gaps.append("Counter" not in session.replica.members[member].states))
    go_on = held_up(one._bridge.connection)
    one.count = 1
    one.unlink()
    with ThreadPoolExecutor(1) as pool:
        link = pool.submit(lambda: here(Clash() if clashes else one, token))
        eventually(lambda: keeps._bridge.connection._requests)  # type: ignore[union-attr]
        go_on()
        if clashes:
            with pytest.raises(SchemaConflict):
                link.result(10)
            eventually(lambda: len(two.linked_from) == 1)
        else:
            link.result(10)
            one.count = 2
            one.flush()
            assert two.wait_until(lambda: two.count == 2, 10)
            assert len(two.linked_from) == 2
    assert any(gaps) is clashes
    keeps.unlink()


def test_h32_unlink_of_one_of_two_instances_with_writes_under_way(server: LiveServer, there: Link, token: str) -> None:
    far = there(Counter(), token)
    with Stalling(server.port) as way:
        one, two = (Counter(count=5).link_to(token, server=way.url, credential=server.credential) for _ in range(2))
        way.shut()
        one.count = 1
        one.unlink()
        assert (one.count, two.count) == (5, 1)
        two.other = 2
        way.open()
        two.flush()
        assert far.wait_until(lambda: (far.count, far.other) == (1, 2), 10)
        assert (len(far.linked_from), seq(server, token)) == (2, 3)


def test_h32_unlink_with_flush_waits(server: LiveServer, here: Link, token: str) -> None:
    one = here(Counter(), token)
    one.count = 1
    one.unlink(flush=True)
    assert (one.count, seq(server, token)) == (0, 2)
    with Stalling(server.port) as way:
        one.link_to(token, server=way.url, credential=server.credential)
        way.shut()
        one.count = 2
        with pytest.raises(LinkTimeout, match=r"no answer after 0\.2 s"):
            one.unlink(flush=True, timeout=0.2)
        assert (one.linked_to, one.count) == (None, 0)


def test_h32_news_that_come_while_unlinking_do_not_stick(here: Link, there: Link, token: str) -> None:
    class Threaded(Counter, state_name="Counter", delivery="thread"):
        pass

    one, two = Threaded(count=-5), there(Counter(), token)
    stop = threading.Event()

    def hammer() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            two.count = number

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(hammer)
        for _ in range(60):
            here(one, token)
            one.pull()
            one.unlink()
            assert one.count == -5
        stop.set()
        work.result(10)
    assert one.count == -5


def test_unlinking_ends_a_wait(here: Link, token: str) -> None:
    one = here(Counter(), token)
    began = threading.Event()

    def never() -> bool:
        began.set()
        return False

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(one.wait_until, never)
        assert began.wait(10)
        one.unlink()
        assert waiting.result(10) is False


def test_a_link_is_tried_at_once_though_the_connection_is_waiting(
    server: LiveServer, token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharedwidgets.connection, "BASE_DELAY", 60.0)
    monkeypatch.setattr(sharedwidgets.connection, "MAX_DELAY", 60.0)
    with Stalling(server.port) as way:
        one = Counter().link_to(token, server=way.url, credential=server.credential)
    assert one._bridge is not None
    connection = one._bridge.connection
    eventually(lambda: connection.reason is not None)  # it failed once or twice, and waits long from then on
    with Stalling(server.port, way.port):
        two = Counter().link_to(token + "-b", 5, server=way.url, credential=server.credential)
        two.count = 1
        two.flush(5)
        one.count = 1
        one.flush(5)
        assert seq(server, token) == seq(server, token + "-b") == 2
        connection.close()


def test_h34_what_an_exception_kept_from_being_told_is_told_next(here: Link, there: Link, token: str) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    assert one._bridge is not None
    session = one._bridge.session
    failing = [ValueError, SystemExit]

    def fail(change: Any) -> None:
        if failing:
            raise failing.pop()

    one.observe(fail, ["count", "other"])
    heard = Heard(one, "count", "other", "text")
    with one.hold_sync():
        with two.transaction():
            two.count, two.other, two.text = 1, 2, "three"
        two.flush()
        eventually(lambda: session.replica.seq == 2)
    heard.wait(1)
    assert failing == []
    assert heard.steps == [("text", "hello", "three")]
    assert (one.count, one.other, one.text) == (1, 2, "three")


def test_h34_close_leaves_the_room_from_any_thread_and_a_finaliser_only_enqueues(
    here: Link, there: Link, server: LiveServer, token: str
) -> None:
    one, two = here(Counter(), token), there(Counter(), token)
    assert one.room is not None
    assert one.wait_until(lambda: len(one.linked_from) == 2, 10)
    assert one._bridge is not None
    connection = one._bridge.connection
    with connection.lock:  # as when the collector runs in the middle of anything
        one.close()
    assert one.linked_to is None
    eventually(lambda: len(server.ask("GET", f"sharedwidgets/api/rooms/{token}")["members"]) == 1)
    assert two.count == 0


def test_a_room_handle_is_made_once_and_closed_with_the_link(here: Link, server: LiveServer, token: str) -> None:
    one = here(Counter(), token)
    room = one.room
    assert isinstance(room, Room)
    assert one.room is room
    assert room["Counter"]["count"] == 0
    one.unlink()
    assert (one.room, room.link_state) == (None, "closed")
    eventually(lambda: server.ask("GET", f"sharedwidgets/api/rooms/{token}")["members"] == [])


def test_h07_a_forked_child_is_inert_until_it_links_again(server: LiveServer, there: Link, token: str) -> None:
    code = f"""
import json, os, sys, threading, time, warnings
import traitlets as t
import sharedwidgets.connection
from sharedwidgets import SharedState
from sharedwidgets.errors import Forked
class Counter(SharedState):
    count = t.Int(0)
    text = t.Unicode("")
c = Counter(count=5).link_to({token!r})
c.count = 1
c.flush()
stop = threading.Event()
def busy():
    while not stop.is_set():
        c.text = str(time.monotonic())
        c.pull()
threads = [threading.Thread(target=busy) for _ in range(2)]
for thread in threads: thread.start()
def forked(work):
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try: answer = work()
        except BaseException as error: answer = repr(error)
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe: answer = json.loads(pipe.read())
    os.waitpid(pid, 0)
    return answer
def refused(call):
    try: call()
    except Forked: return "Forked"
    return "done"
def inert():
    found = [c.count, c.linked_to, refused(lambda: setattr(c, "count", 2)), c.count, c.pull().count]
    found += [refused(c.flush), refused(lambda: c.wait_until(lambda: False))]
    with c.hold_trait_notifications(): pass
    try:
        with c.transaction(): c.count = 9
    except Forked: found.append("Forked")
    found += [c.count, len(c.linked_from) > 0, c.last_change("count") is not None]
    c.unlink()
    return [*found, c.count, c.linked_to]
def again():
    c.link_to({token!r})
    c.count += 10
    c.flush()
    c.unlink(flush=True)
    sharedwidgets.connection._at_exit()  # os._exit does not
    return c.count
inerts = [forked(inert) for _ in range(15)]
agains = [forked(again) for _ in range(2)]
stop.set()
for thread in threads: thread.join()
c.flush()
c.wait_until(lambda: c.count == 21, 10)
"""
    two = there(Counter(), token)
    with Script(server) as script:
        script.run(code)
        inerts, agains, count = script.value("[inerts, agains, c.count]")
        assert inerts == [[1, token, "Forked", 1, 1, "Forked", "Forked", "Forked", 1, True, True, 5, None]] * 15
        assert (agains, count) == ([5, 5], 21)
        assert two.wait_until(lambda: two.count == 21, 10)
        script.run("c.count = 0; c.flush()")
        assert two.wait_until(lambda: two.count == 0, 10)
        eventually(lambda: len(two.linked_from) == 2)
        assert script.finish() == ""


def test_h10_what_a_script_wrote_last_arrives(server: LiveServer, there: Link, token: str) -> None:
    two = there(Counter(), token)
    with Script(server) as script:
        script.run(
            f"""
import traitlets as t
from sharedwidgets import SharedState
class Counter(SharedState):
    count = t.Int(0)
c = Counter().link_to({token!r})
c.count = 3
"""
        )
        assert script.finish() == ""
    assert two.wait_until(lambda: two.count == 3, 10)
    eventually(lambda: len(two.linked_from) == 1, 5)  # it left, and did not merely fall silent
    assert seq(server, token) == 2


def test_h34_a_process_that_ends_under_traffic_says_nothing(server: LiveServer, there: Link, token: str) -> None:
    two = there(Counter(), token)
    stop = threading.Event()

    def traffic() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            two.count = number

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(traffic)
        try:
            for _ in range(3):
                with Script(server) as script:
                    script.run(
                        f"""
import traitlets as t
from sharedwidgets import SharedState
class Counter(SharedState):
    count = t.Int(0)
    other = t.Int(0)
heard = []
kept = [Counter().link_to({token!r}) for _ in range(3)]
for c in kept: c.observe(lambda change: heard.append(change.new), "count")
kept[0].wait_until(lambda: len(heard) > 10, 10)
kept[0].other += 1
kept[1].close()
cycle = kept.pop()
cycle.me = cycle
del cycle
"""
                    )
                    assert script.finish() == ""
        finally:
            stop.set()
            work.result(10)
    assert two.wait_until(lambda: two.other == 3, 10)
    eventually(lambda: len(two.linked_from) == 1, 5)


def test_h34_a_process_that_ends_while_its_server_is_away_says_nothing(server: LiveServer, token: str) -> None:
    with Script(server) as script:
        with Stalling(server.port) as way:
            script.run(
                f"""
import threading, time
import traitlets as t
import sharedwidgets.connection
from sharedwidgets import SharedState
sharedwidgets.connection.MAX_DELAY = 0.01
class Counter(SharedState):
    count = t.Int(0)
c = Counter().link_to({token!r}, server={way.url!r}, credential={server.credential!r})
c.flush()
connection = c._bridge.connection
def outlive():
    "Keep the interpreter in its shutdown until the connection was tried twice more."
    threading.main_thread().join()
    deadline = time.monotonic() + 10
    for _ in range(2):
        former = connection.reason
        while connection.reason is former and time.monotonic() < deadline:
            time.sleep(0.005)
threading.Thread(target=outlive).start()
"""
            )
        script.run("c.wait_until(lambda: connection.state == 'offline', 10)")
        assert script.finish() == ""


def test_a_server_may_be_away_for_days() -> None:
    pauses = [sharedwidgets.connection.longest_pause(failures) for failures in (0, 1, 2, 3, 100, 1024, 100_000)]
    assert pauses == [0.1, 0.25, 0.5, 1.0, 10.0, 10.0, 10.0]


def test_a_server_that_refused_once_is_not_asked_for_ever(server: LiveServer, token: str) -> None:
    with pytest.raises(ServerRefused):
        Counter().link_to(token, server=server.url, credential="sw1-nobody")
    connection = sharedwidgets.connection._shared[server.url, "sw1-nobody"]
    eventually(lambda: connection.idle, 10)
