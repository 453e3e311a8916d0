"""`@computed` in linked states: what comes from the room is computed here, told once, and nothing of it goes to the room.

"Here" and "there" are two members in this process, with a socket and a boot each. There may only read.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import traitlets as t

import sharedwidgets.connection
from sharedwidgets import SharedState, computed
from sharedwidgets_server.testing import LiveServer
from support.scripts import Heard, seq


class Sums(SharedState):
    a = t.Int(1)
    b = t.Int(10)
    level = t.Int(0)
    _who = t.Unicode("nobody")
    factor = t.Int(2).tag(shared=False)

    @computed
    def scaled(self) -> int:
        self.__dict__.setdefault("threads", []).append(threading.current_thread().name)
        return self.factor * (self.a + self.b)

    @t.validate("level")
    def _small(self, proposal: Any) -> int:
        if proposal.value > 10:
            raise t.TraitError("too much")
        return int(proposal.value)

    @computed
    def twice(self) -> int:
        return 2 * self.level


class Free(SharedState, state_name="Sums"):
    """The same state, of a class that takes any level."""

    a = t.Int(1)
    b = t.Int(10)
    level = t.Int(0)
    _who = t.Unicode("nobody")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    may = "--ServerApp.authorizer_class=tests.support.authorizers.TokensOnlyRead"
    with LiveServer(tmp_path_factory.mktemp("server"), may) as running:
        yield running
        for connection in list(sharedwidgets.connection._shared.values()):
            connection.close()


@pytest.fixture
def here(server: LiveServer, token: str) -> Sums:
    return Sums().link_to(token, server=server.url, credential=server.credential)


@pytest.fixture
def there(server: LiveServer, token: str, here: Sums) -> Sums:
    return Sums().link_to(token, server=server.url, credential=server.token)


def test_a_remote_change_is_told_once_and_is_no_entry(here: Sums, there: Sums, server: LiveServer, token: str) -> None:
    there.factor = 3
    heard, first = Heard(there, "scaled"), seq(server, token)
    with here.transaction():
        here.a, here.b = 2, 20
    here.flush()
    change = heard.wait()
    here.level = 5
    here.flush()
    assert there.wait_until(lambda: there.twice == 10, 10)
    assert heard.steps == [("scaled", 33, 66)]
    assert (change.origin, change.actor.kind, change.owner is there) == ("remote", "script", True)
    assert (here.scaled, there.scaled) == (44, 66)  # each of its own values
    assert seq(server, token) == first + 2
    states = server.ask("GET", f"sharedwidgets/api/rooms/{token}")["states"]
    assert "scaled" not in str(states)


def test_what_has_come_and_was_not_told_is_seen_by_a_read(here: Sums, there: Sums) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def stop(change: Any) -> None:
        inside.set()
        assert go_on.wait(10)

    there.observe(stop, "a")
    heard = Heard(there, "scaled")
    with here.transaction():
        here.a, here.b = 2, 20
    here.flush()
    assert inside.wait(10)
    # Both values are put in, and neither is told.
    assert (there.scaled, heard.changes) == (44, [])
    go_on.set()
    heard.wait()
    there._bridge.delivery.pull()  # type: ignore[union-attr]
    assert heard.steps == [("scaled", 22, 44)]
    assert not [name for name in there.threads if name == "sharedwidgets-io"]  # type: ignore[attr-defined]


def test_a_kernel_only_trait_drives_what_another_private_widget_computes(here: Sums, there: Sums) -> None:
    class Beside(SharedState):
        @computed
        def line(self) -> str:
            return f"{there._who}: {there.a}"

    beside = Beside()
    heard = Heard(beside, "line")
    with here.transaction():
        here._who, here.a = "ana", 5
    heard.wait()
    assert here.flush() is None  # type: ignore[func-returns-value]
    assert there.wait_until(lambda: there.a == 5, 10)
    assert heard.steps == [("line", "nobody: 1", "ana: 5")]
    assert beside.linked_to is None


def test_linking_and_unlinking_are_changes(here: Sums, server: LiveServer, token: str) -> None:
    here.a = 7
    here.flush()
    state = Sums(a=2, factor=1)
    heard = Heard(state, "scaled")
    state.link_to(token, server=server.url, credential=server.credential)
    state.unlink()
    assert [(change.old, change.new, change.origin) for change in heard.changes] == [(12, 17, "resync"), (17, 12, "local")]


def test_a_write_that_is_refused_is_undone_in_what_is_computed(there: Sums) -> None:
    heard = Heard(there, "scaled")
    there.a = 5
    heard.wait(2)
    assert [(change.new, change.origin) for change in heard.changes] == [(30, "local"), (22, "rollback")]


def test_nothing_remote_is_told_in_a_hold(here: Sums, there: Sums) -> None:
    heard = Heard(there, "scaled")
    with there.hold_trait_notifications():
        here.a = 3
        here.flush()
        there.factor = 1
        assert (there.scaled, heard.changes) == (11, [])
    heard.wait(2)
    assert heard.steps == [("scaled", 22, 11), ("scaled", 11, 13)]


def test_a_value_that_this_class_does_not_take_is_not_computed(there: Sums, server: LiveServer, token: str) -> None:
    free = Free().link_to(token, server=server.url, credential=server.credential)
    heard, invalid = Heard(there, "twice"), Heard(there, "level", type="invalid")
    free.level = 50
    invalid.wait()
    assert (there.twice, heard.changes) == (0, [])
    free.level = 4
    assert heard.wait().new == 8


def test_a_room_in_the_constructor_is_there_at_its_end(server: LiveServer, token: str) -> None:
    state = Sums(room=token, server=server.url, credential=server.credential)
    assert (state.linked_to, state.scaled) == (token, 22)
