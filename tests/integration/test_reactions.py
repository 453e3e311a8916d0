"""Reactions: chains across processes that come to an end, and those that exactly one process runs.

"One" and "two" are two members in this process, two sockets of two boots.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import traitlets as t

import sharedwidgets.connection
from sharedwidgets import SharedState, connect, reacts
from sharedwidgets.core.protocol import (
    Acquire,
    Append,
    Delete,
    Failure,
    Inc,
    Join,
    Limits,
    LockName,
    Nack,
    Problem,
    Set,
    Splice,
    TraitSchema,
)
from sharedwidgets.core.replica import News
from sharedwidgets.errors import NoSuchState, ReactionTooDeep
from sharedwidgets.locks import Lock
from sharedwidgets_server.testing import LiveServer
from support.faults import Faults
from support.kernels import Kernel
from support.peers import Peer
from support.rest import ask, room_url
from support.scripts import Heard, Script, eventually, seq

MOST = Limits().reactions


class Pair(SharedState, delivery="thread"):
    a = t.Int(0)
    b = t.Int(0)
    c = t.Int(0)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One that notices soon who is gone."""
    limits = "{'heartbeat_seconds': 0.5, 'dead_seconds': 3.0, 'away_seconds': 30.0}"
    with LiveServer(tmp_path_factory.mktemp("server"), f"--SharedWidgetsApp.limits={limits}") as running:
        yield running
        for connection in list(sharedwidgets.connection._shared.values()):
            connection.close()


@pytest.fixture
def one(server: LiveServer, token: str) -> Pair:
    return Pair().link_to(token, server=server.url, credential=server.credential)


@pytest.fixture
def two(server: LiveServer, token: str) -> Pair:
    return Pair().link_to(token, server=server.url, credential=server.token)


# --- chains


def raised(caplog: pytest.LogCaptureFixture) -> list[ReactionTooDeep]:
    """The errors that observers ended with, as far as they were logged."""
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    return [error for error in errors if isinstance(error, ReactionTooDeep)]


def test_two_observers_that_set_each_other_off_come_to_an_end(
    server: LiveServer, one: Pair, two: Pair, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    """One write, sixteen reactions, and the seventeenth is raised where it would have been made."""
    one.observe(lambda change: setattr(one, "a", change.new + 1) if change.origin == "remote" else None, "b")
    two.observe(lambda change: setattr(two, "b", change.new + 1) if change.origin == "remote" else None, "a")
    with caplog.at_level(logging.ERROR, "sharedwidgets"):
        one.a = 1
        eventually(lambda: raised(caplog))
    (error,) = raised(caplog)
    # Made by `two` as it reacts to the seventeenth entry, which is the ninth of `a`.
    assert (error.code, error.state, error.trait, error.room) == ("reaction-too-deep", "Pair", "b", token)
    assert "Pair.b was not changed: it would be reaction 17 in a row" in str(error)
    assert re.search(r"… → Pair\.b by script .* → Pair\.a by script .* → Pair\.b here", str(error)), str(error)
    for state in (one, two):
        state.flush()
        assert state.wait_until(lambda state=state: (state.a, state.b) == (MOST + 1, MOST), 10)
    # Made, the first write, and its reactions.
    assert seq(server, token) == 1 + 1 + MOST
    # Both go on, and a person's write begins anew.
    one.c = 5
    assert two.wait_until(lambda: two.c == 5, 10)
    two.c = 6
    assert one.wait_until(lambda: one.c == 6, 10)
    assert seq(server, token) == 1 + 1 + MOST + 2


def test_a_reaction_that_needs_no_answer_counts_from_the_write_it_answers(server: LiveServer, one: Pair, two: Pair) -> None:
    """Each write of a person begins anew, and what an own observer writes adds nothing."""
    two.observe(lambda change: setattr(two, "b", change.new), "a")
    two.observe(lambda change: setattr(two, "c", change.new), "b")
    far = connect(one.linked_to or "", server.url, server.token, delivery="thread")
    depths: dict[str, list[int]] = {}
    far.subscribe(lambda change: depths.setdefault(change.trait, []).append(change.depth))
    for number in range(1, 41):
        one.a = number
        assert one.wait_until(lambda number=number: one.c == number, 10)
    eventually(lambda: "c" in depths)
    far.close()
    assert {trait: set(found) for trait, found in depths.items()} == {"a": {0}, "b": {1}, "c": {1}}


def test_subscribers_of_a_room_are_counted_too(
    server: LiveServer, one: Pair, two: Pair, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    with connect(token, server.url, server.token, delivery="thread") as room:
        room.subscribe(lambda change: room["Pair"].increment("b") if change.trait == "a" else None)
        one.observe(lambda change: setattr(one, "a", change.new + 1) if change.origin == "remote" else None, "b")
        with caplog.at_level(logging.ERROR, "sharedwidgets"):
            one.a = 1
            eventually(lambda: raised(caplog))
        room.flush()
        one.flush()
        (error,) = raised(caplog)
    assert seq(server, token) == 1 + 1 + MOST
    assert error.trait in ("a", "b")


def test_a_hold_in_a_reaction_is_cut_whole(one: Pair, two: Pair, caplog: pytest.LogCaptureFixture) -> None:
    def answer(state: Pair, trait: str) -> Callable[[Any], None]:
        def write(change: Any) -> None:
            if change.origin == "remote":
                with state.transaction():
                    state.c += 1
                    setattr(state, trait, change.new + 1)

        return write

    one.observe(answer(one, "a"), "b")
    two.observe(answer(two, "b"), "a")
    with caplog.at_level(logging.ERROR, "sharedwidgets"):
        one.a = 1
        eventually(lambda: raised(caplog))
    for state in (one, two):
        state.flush()
        assert state.wait_until(lambda state=state: (state.a, state.b, state.c) == (MOST + 1, MOST, MOST), 10)
    assert len(raised(caplog)) == 1


@pytest.mark.parametrize("told", ["change", "rejected"])
def test_who_answers_a_refusal_with_another_write_comes_to_an_end(
    one: Pair, two: Pair, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's word against each of them is a link of the chain as well, whichever news of it the answer is to."""
    refused = Heard(one, "c", type="rejected")
    one.observe(lambda change: setattr(one, "c", change.new - 1) if change.origin == "rollback" else None, "c", told)
    bridge = one._bridge
    assert bridge is not None
    with two.lock():
        assert one.wait_until(lambda: one.locked_by is not None, 10)
        unaware = bridge.connection.lock
        leases = bridge.session.leases
        known, leases.fences = leases.fences, lambda ops, replica: {}  # type: ignore[method-assign]
        try:
            with unaware:
                bridge.session.replica.locks.clear()
            one.c = 5
            refused.wait(MOST + 1)
            one.flush()
        finally:
            leases.fences = known  # type: ignore[method-assign]
    eventually(lambda: one.c == 0)
    eventually(lambda: raised(caplog))
    assert (len(refused.changes), len(raised(caplog))) == (MOST + 1, 1)


# --- one process for all


class Fit(SharedState, delivery="thread"):
    """The same reaction once for each, and once for all."""

    a = t.Int(0)
    b = t.Int(0)
    each = t.Int(0)
    ran = t.List()
    quiet = t.Int(0).tag(shared=False)

    def __init__(self, **how: Any) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.own: list[tuple[Any, ...]] = []
        super().__init__(**how)

    @reacts("a")
    def follow(self, change: Any) -> None:
        self.own.append((change.name, change.old, change.new, change.origin))

    @reacts("a", "b", leader=True)
    def lead(self, change: Any) -> None:
        self.heard.append((change.name, change.old, change.new, change.origin))


def fits(server: LiveServer, token: str) -> tuple[Fit, Fit]:
    """Two members of one room, in the order of coming."""
    first = Fit().link_to(token, server=server.url, credential=server.credential)
    second = Fit().link_to(token, server=server.url, credential=server.token)
    return first, second


def reacted(*states: Fit) -> list[tuple[Any, ...]]:
    return [item for state in states for item in state.heard]


def noted(state: SharedState) -> int:
    """Up to where the room says that `lead` has reacted."""
    assert state._bridge is not None
    with state._bridge.connection.lock:
        replica = state._bridge.session.replica
        said = replica.states["Fit@lead@reacts"].values["done"]
    return said[1] if said else 0  # type: ignore[index,return-value]


def test_each_process_runs_a_plain_reaction_and_one_process_the_other(server: LiveServer, token: str) -> None:
    first, second = fits(server, token)
    second.a = 1
    eventually(lambda: first.heard == [("a", 0, 1, "remote")])
    first.b = 2
    eventually(lambda: first.heard[1:] == [("b", 0, 2, "local")])
    eventually(lambda: noted(second) >= seq_of(second, "b"))
    assert (first.own, second.own) == ([("a", 0, 1, "remote")], [("a", 0, 1, "local")])
    assert second.heard == []
    # Two states made, two writes, a word about who reacts, and twice one about how far it got.
    assert seq(server, token) == 2 + 2 + 1 + 2


def seq_of(state: SharedState, trait: str) -> int:
    """Of the last change that everyone has by what this one wrote."""
    state.flush()
    last = state.last_change(trait)
    assert last is not None
    return last.seq


def test_the_next_one_takes_over_and_a_newcomer_does_not(server: LiveServer, token: str) -> None:
    first, second = fits(server, token)
    first.a = 1
    eventually(lambda: first.heard == [("a", 0, 1, "local")])
    first.unlink()
    second.a = 2
    eventually(lambda: second.heard == [("a", 1, 2, "local")])
    # It comes back, and is the younger one now.
    first.link_to(token, server=server.url, credential=server.credential)
    first.a = 3
    eventually(lambda: second.heard[1:] == [("a", 2, 3, "remote")])
    eventually(lambda: noted(first) >= seq_of(first, "a"))
    assert reacted(first) == [("a", 0, 1, "local")]


def test_linking_runs_nothing_neither_in_a_new_room_nor_in_one_that_is_there(server: LiveServer, token: str) -> None:
    plain = connect(token, server.url, server.token, delivery="thread")
    plain.define("Fit", a=0, b=0, each=0, ran=[])["a"] = 5
    plain.flush()
    first, second = fits(server, token)
    assert (first.a, second.a) == (5, 5)
    plain["Fit"]["a"] = 6
    eventually(lambda: [item[:3] for item in reacted(first, second)] == [("a", 5, 6)])
    eventually(lambda: noted(first) >= seq_of(first, "a"))
    for state in (first, second):
        state.unlink()
        assert state.a == 0
    assert len(reacted(first, second)) == 1
    plain.close()


def test_what_nobody_reacted_to_waits_for_who_comes_next(server: LiveServer, token: str) -> None:
    """It cannot know what was there before."""
    first, second = fits(server, token)
    first.a = 1
    eventually(lambda: noted(second) >= seq_of(second, "a"))
    for state in (first, second):
        state.unlink()
    plain = connect(token, server.url, server.token, delivery="thread")
    plain["Fit"].update({"a": 7})
    plain["Fit"].update({"a": 8})
    plain.flush()
    third = Fit().link_to(token, server=server.url, credential=server.credential)
    eventually(lambda: third.heard == [("a", t.Undefined, 8, "remote")])
    eventually(lambda: noted(third) >= seq_of(third, "a"))
    assert reacted(first, second) == [("a", 0, 1, "local")]
    plain.close()


def test_several_objects_of_one_process_run_it_once_the_newest_first(server: LiveServer, token: str) -> None:
    older, newer = (Fit().link_to(token, server=server.url, credential=server.credential) for _ in range(2))
    newer.a = 1
    eventually(lambda: reacted(older, newer))
    older.a = 2
    eventually(lambda: newer.heard == [("a", 0, 1, "local"), ("a", 1, 2, "local")])
    newer.unlink()
    older.a = 3
    eventually(lambda: older.heard == [("a", 2, 3, "local")])
    assert len(newer.heard) == 2


def test_who_cannot_react_does_not_keep_others_from_it(server: LiveServer, token: str) -> None:
    """The oldest member has the state by another class, without the reaction; so has a plain handle."""

    class Old(SharedState, state_name="Fit", delivery="thread"):
        a = t.Int(0)
        b = t.Int(0)
        each = t.Int(0)
        ran = t.List()

    oldest = Old().link_to(token, server=server.url, credential=server.credential)
    fit = Fit().link_to(token, server=server.url, credential=server.token)
    oldest.a = 4
    eventually(lambda: fit.heard == [("a", 0, 4, "remote")])


class Older(SharedState, state_name="Fit", delivery="thread"):
    """Before its cell was edited."""

    a = t.Int(0)
    b = t.Int(0)

    def __init__(self, **how: Any) -> None:
        self.ran: list[tuple[Any, ...]] = []
        super().__init__(**how)

    @reacts("a", leader=True)
    def lead(self, change: Any) -> None:
        self.ran.append(("lead", change.old, change.new))


class Newer(Older, state_name="Fit", delivery="thread"):
    """The same after it, with a reaction more."""

    @reacts("a", "b", leader=True)
    def more(self, change: Any) -> None:
        self.ran.append(("more", change.old, change.new))


class Other(SharedState, state_name="Fit", delivery="thread"):
    """With another one in the place of the first."""

    a = t.Int(0)
    b = t.Int(0)
    ran: Any = ()

    @reacts("a", leader=True)
    def more(self, change: Any) -> None:
        self.ran = [*self.ran, ("more", change.old, change.new)]


def led(state: SharedState, reaction: str) -> tuple[str, int]:
    """Who runs a reaction, as the room says, and up to where somebody did."""
    assert state._bridge is not None
    with state._bridge.connection.lock:
        values = state._bridge.session.replica.states[f"Fit@{reaction}@reacts"].values
    said: Any = values["done"]
    return str(values["leader"]), said[1] if said else 0


def me(state: SharedState) -> str:
    assert state._bridge is not None
    welcome = state._bridge.connection.welcome
    assert welcome is not None
    return welcome.member


def test_a_reaction_runs_in_the_first_whose_class_has_it(server: LiveServer, token: str) -> None:
    """The oldest member leads the one reaction that it has, and keeps nobody from the other."""
    older = Older().link_to(token, server=server.url, credential=server.credential)
    newer = Newer().link_to(token, server=server.url, credential=server.token)
    newer.a = 1
    eventually(lambda: all(led(older, name)[1] >= seq_of(newer, "a") for name in ("lead", "more")))
    older.b = 2
    eventually(lambda: led(newer, "more")[1] >= seq_of(older, "b"))
    assert (led(newer, "lead")[0], led(newer, "more")[0]) == (me(older), me(newer))
    assert older.ran == [("lead", 0, 1)]
    assert newer.ran == [("more", 0, 1), ("more", 0, 2)]
    # The first one goes: the second has both.
    older.unlink()
    newer.a = 3
    eventually(lambda: all(led(newer, name)[1] >= seq_of(newer, "a") for name in ("lead", "more")))
    assert sorted(newer.ran[2:]) == [("lead", 1, 3), ("more", 1, 3)]
    # Three states made, three writes; thrice a word of who reacts, and five of how far it got.
    assert seq(server, token) == 3 + 3 + 3 + 5


def test_a_cell_that_is_run_again_with_another_reaction(server: LiveServer, token: str) -> None:
    """Its older object is closed; another process still runs the older class."""
    first = Older().link_to(token, server=server.url, credential=server.credential)
    second = Older().link_to(token, server=server.url, credential=server.token)
    first.a = 1
    eventually(lambda: led(second, "lead")[1] >= seq_of(first, "a"))
    again = Other().link_to(token, server=server.url, credential=server.credential)
    first.close()
    again.a = 2
    eventually(lambda: all(led(second, name)[1] >= seq_of(again, "a") for name in ("lead", "more")))
    assert (led(second, "lead")[0], led(second, "more")[0]) == (me(second), me(again))
    assert (first.ran, second.ran, again.ran) == ([("lead", 0, 1)], [("lead", 1, 2)], [("more", 1, 2)])
    # And back.
    once_more = Older().link_to(token, server=server.url, credential=server.credential)
    again.close()
    once_more.a = 3
    eventually(lambda: led(second, "lead")[1] >= seq_of(once_more, "a"))
    assert (second.ran[1:], once_more.ran, len(again.ran)) == ([("lead", 2, 3)], [], 1)


class Slow(SharedState, state_name="Fit", delivery="thread"):
    """Its reaction takes until it is let go."""

    a = t.Int(0)

    def __init__(self, **how: Any) -> None:
        self.ran: list[int] = []
        self.begun = threading.Event()
        self.go = threading.Event()
        super().__init__(**how)

    @reacts("a", leader=True)
    def lead(self, change: Any) -> None:
        self.ran.append(change.new)
        self.begun.set()
        assert self.go.wait(20)


def test_an_older_member_that_links_the_state_does_not_take_over(server: LiveServer, token: str) -> None:
    """Not what is under way, and not what comes after it."""
    handle = connect(token, server.url, server.credential, delivery="thread")
    younger = Slow().link_to(token, server=server.url, credential=server.token)
    younger.a = 1
    assert younger.begun.wait(10)
    older = Slow().link_to(token, server=server.url, credential=server.credential)
    older.go.set()
    (first, second) = older.linked_from
    assert (first.id, second.id) == (me(older), me(younger))
    assert first.since < second.since
    # It has had its turn: it wrote, and heard of a later entry.
    older.a = 2
    older.flush()
    younger.go.set()
    eventually(lambda: noted(older) >= seq_of(older, "a"))
    assert (older.ran, younger.ran) == ([], [1, 2])
    # It is the next one all the same.
    younger.unlink()
    older.a = 3
    eventually(lambda: noted(older) >= seq_of(older, "a"))
    assert (older.ran, younger.ran) == ([3], [1, 2])
    handle.close()
    assert seq(server, token) == 2 + 3 + 2 + 3


class Told(SharedState, state_name="Fit", delivery="thread"):
    """Says that it ran in the state itself."""

    a = t.Int(0)
    ran = t.List()

    @reacts("a", leader=True)
    def lead(self, change: Any) -> None:
        self.append("ran", "B")


def test_a_leader_that_dies_before_its_word_leaves_it_to_the_next_once_more(server: LiveServer, token: str) -> None:
    """What it wrote is there, and nobody can know whether it was all: once more is better than never."""
    code = f"""
import time
import traitlets as t
from sharedwidgets import SharedState, reacts

class Fit(SharedState):
    a = t.Int(0)
    ran = t.List()

    @reacts("a", leader=True)
    def lead(self, change):
        self.append("ran", "A")
        time.sleep(60)

fit = Fit().link_to({token!r})
"""
    with Script(server, code) as first:
        second = Told().link_to(token, server=server.url, credential=server.credential)
        second.a = 1
        assert second.wait_until(lambda: second.ran == ["A"], 10)
        first.process.kill()
        first.process.wait(10)
        eventually(lambda: noted(second) >= seq_of(second, "a"))
        assert second.wait_until(lambda: second.ran == ["A", "B"], 10)
    assert led(second, "lead")[0] == me(second)
    # Two states made, a write, twice a word of who reacts, twice what a reaction writes, and once how far it got.
    assert seq(server, token) == 2 + 1 + 2 + 2 + 1


def test_an_object_that_is_unlinked_while_it_reacts_leaves_nothing_to_do_twice(server: LiveServer, token: str) -> None:
    first = Slow().link_to(token, server=server.url, credential=server.credential)
    second = Slow().link_to(token, server=server.url, credential=server.token)
    second.go.set()
    first.a = 1
    assert first.begun.wait(10)
    first.unlink()
    assert first.linked_to is None
    # The second has heard that, and more.
    eventually(lambda: ["Fit" in item.states for item in second.linked_from].count(True) == 1)
    second.a = 2
    second.flush()
    # Linked anew it waits for its own end.
    first.link_to(token, server=server.url, credential=server.credential)
    assert second.ran == []
    first.go.set()
    eventually(lambda: noted(second) >= seq_of(second, "a"))
    assert sorted(first.ran + second.ran) == [1, 2]


def test_h32_a_leader_that_leaves_is_heard_of_behind_what_it_said(server: LiveServer, token: str) -> None:
    """Otherwise the next one might react once more to what has been reacted to."""
    first = Slow().link_to(token, server=server.url, credential=server.credential)
    second = Slow().link_to(token, server=server.url, credential=server.token)
    second.go.set()
    second.a = 1
    assert first.begun.wait(10)
    bridge = first._bridge
    assert bridge is not None
    stopped, on = threading.Event(), threading.Event()

    def stop() -> None:
        stopped.set()
        assert on.wait(10)

    other = second._bridge
    assert other is not None
    seen: list[tuple[bool, bool]] = []

    def look(news: News) -> None:
        with other.connection.lock:
            there = other.session.replica.members.get(leader)
            said = bool(other.session.replica.states["Fit@lead@reacts"].values["done"])
        seen.append((there is not None and "Fit@lead@reacts" in there.states, said))

    leader = me(first)
    other.session.listeners.append(look)
    # Nothing is sent until both are asked for, what it says and that it leaves.
    bridge.connection.later(stop)
    assert stopped.wait(10)
    first.go.set()
    eventually(lambda: bridge.session.replica.unsent == 1)
    first.unlink()
    on.set()
    eventually(lambda: len(second.linked_from) == 1)
    second.a = 2
    eventually(lambda: noted(second) >= seq_of(second, "a"))
    assert (first.ran, second.ran) == ([1], [2])
    assert {(True, True), (False, True)} <= {*seen}
    assert (False, False) not in seen


def test_one_whose_place_was_taken_says_nothing_of_how_far_it_got(
    server: LiveServer, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The room would go back to an older number, and the next one would react once more to what it has reacted to."""
    first = Slow().link_to(token, server=server.url, credential=server.credential)
    second = Slow().link_to(token, server=server.url, credential=server.token)
    first.a = 1
    assert first.begun.wait(10)
    with connect(token, server.url, server.token, delivery="thread") as plain:
        # As if the first one had been away for a moment.
        plain["Fit@lead@reacts"]["leader"] = me(second)
    assert second.begun.wait(10)
    bridge = first._bridge
    assert bridge is not None
    with caplog.at_level(logging.WARNING, "sharedwidgets"):
        first.go.set()
        eventually(lambda: not bridge.session.common["Fit@reacts"]._running)
        first.flush()
        assert noted(first) == 0
        second.go.set()
        first.a = 2
        eventually(lambda: noted(second) >= seq_of(first, "a"))
    assert led(first, "lead")[0] == me(second)
    assert (first.ran, second.ran) == ([1], [1, 2])
    assert caplog.records == []
    # Two states made, two writes; twice a word of who reacts, and twice one of how far it got: the refused one is none.
    assert seq(server, token) == 2 + 2 + 2 + 2


def test_a_reaction_that_waits_too_long_for_a_lock_is_run_again(
    server: LiveServer, token: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sharedwidgets.reactions._AGAIN_SECONDS", 0.05)

    class Waiting(SharedState, state_name="Fit", delivery="thread"):
        a = t.Int(0)
        each = t.Int(0)
        tries = 0

        @reacts("a", leader=True)
        def lead(self, change: Any) -> None:
            self.tries += 1
            assert self.room is not None
            with self.room.lock("scarce", timeout=0.1):
                self.each += change.new

    first = Waiting().link_to(token, server=server.url, credential=server.credential)
    far = connect(token, server.url, server.token, delivery="thread")
    with caplog.at_level(logging.WARNING, "sharedwidgets"):
        with far.lock("scarce"):
            first.a = 5
            eventually(lambda: first.tries >= 3)
            assert noted(first) == 0
        eventually(lambda: noted(first) >= seq_of(first, "a"))
    first.flush()
    assert (first.each, far["Fit"]["each"]) == (5, 5)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert said[0].startswith("the reaction lead to Fit is run again until it has the lock: ")
    far.close()


def test_it_waits_while_the_state_is_locked(server: LiveServer, token: str) -> None:
    """What it writes would be refused, and the change counted as reacted to."""

    class Deriving(SharedState, state_name="Fit", delivery="thread"):
        a = t.Int(0)
        each = t.Int(0)

        @reacts("a", leader=True)
        def lead(self, change: Any) -> None:
            self.each = change.new * 2

    first = Deriving().link_to(token, server=server.url, credential=server.credential)
    second = Deriving().link_to(token, server=server.url, credential=server.token)
    with second.lock():
        second.a = 1
        second.a = 2
        second.flush()
        assert first.wait_until(lambda: first.a == 2, 10)
        assert (first.each, second.each) == (0, 0)
    assert second.wait_until(lambda: second.each == 4, 10)
    assert first.each == 4


def test_not_while_its_object_is_in_a_hold(server: LiveServer, token: str) -> None:
    first, second = fits(server, token)
    with first.hold_trait_notifications():
        second.a = 1
        second.flush()
        bridge = first._bridge
        assert bridge is not None
        eventually(lambda: bridge.session.replica.value("Fit", "a") == 1)
        first.pull()
        assert first.heard == []
    eventually(lambda: first.heard == [("a", 0, 1, "remote")])


def test_a_reaction_that_raises_is_logged_and_counts(server: LiveServer, token: str, caplog: pytest.LogCaptureFixture) -> None:
    class Failing(SharedState, state_name="Fit", delivery="thread"):
        a = t.Int(0)

        @reacts("a", leader=True)
        def lead(self, change: Any) -> None:
            raise RuntimeError(f"no {change.new}")

    Failing().link_to(token, server=server.url, credential=server.credential)
    second = Failing().link_to(token, server=server.url, credential=server.token)
    with caplog.at_level(logging.ERROR, "sharedwidgets"):
        second.a = 1
        eventually(lambda: noted(second) >= seq_of(second, "a"))
    assert [record.getMessage() for record in caplog.records] == ["the reaction Failing.lead raised"]


def test_reactions_of_one_process_that_set_each_other_off_come_to_an_end(
    server: LiveServer, token: str, caplog: pytest.LogCaptureFixture
) -> None:
    """They go by way of the server, where Python's recursion does not end them."""

    class Endless(SharedState, delivery="thread"):
        a = t.Int(0)
        b = t.Int(0)

        @reacts("a", leader=True)
        def up(self, change: Any) -> None:
            self.b = change.new + 1

        @reacts("b", leader=True)
        def down(self, change: Any) -> None:
            self.a = change.new + 1

    state = Endless().link_to(token, server=server.url, credential=server.credential)
    with caplog.at_level(logging.ERROR, "sharedwidgets"):
        state.a = 1
        eventually(lambda: raised(caplog))
    state.flush()
    assert (state.a, state.b) == (MOST + 1, MOST)
    with connect(token, server.url, server.token, delivery="thread") as room:
        assert list(room) == ["Endless"]
        assert len(room) == 1


def test_a_reset_is_reacted_to_like_any_change(server: LiveServer, token: str) -> None:
    """What stands in the room of who reacts, and how far that one got, is none of a user's and stays."""
    first, second = fits(server, token)
    second.a = 3
    eventually(lambda: first.heard == [("a", 0, 3, "remote")])
    eventually(lambda: noted(second) >= seq_of(second, "a"))
    before = noted(second)
    server.ask("POST", f"sharedwidgets/api/rooms/{token}/reset")
    eventually(lambda: first.heard[1:] == [("a", 3, 0, "remote")])
    eventually(lambda: noted(second) > before)
    second.a = 4
    eventually(lambda: first.heard[2:] == [("a", 0, 4, "remote")])
    eventually(lambda: noted(second) >= seq_of(second, "a"))
    assert second.heard == []
    # Two states made, two writes and the reset, a word about who reacts, and three about how far it got.
    assert seq(server, token) == 2 + 3 + 1 + 3


def test_subscribers_and_pages_hear_nothing_of_how_far_it_got(server: LiveServer, token: str) -> None:
    """G9: how far it got is nobody's business but that of the processes that react."""
    first, second = fits(server, token)
    with connect(token, server.url, server.token, delivery="thread") as room:
        heard: list[str] = []
        room.subscribe(lambda change: heard.append(f"{change.state}.{change.trait}"))
        second.a = 1
        eventually(lambda: noted(first) >= seq_of(first, "a"))
        second.each = 1
        eventually(lambda: "Fit.each" in heard)
    assert set(heard) <= {"Fit.a", "Fit.each"}


def test_people_are_not_shown_what_stands_beside_a_state(server: LiveServer, token: str) -> None:
    """Neither in the rooms there are, nor in one of them, nor in who is in it and who comes and goes."""
    first, second = fits(server, token)
    with connect(token, server.url, server.token, delivery="thread") as room:
        moved: list[tuple[str, ...]] = []
        room.on_join(lambda member: moved.append(member.states))
        room.on_leave(lambda member: moved.append(member.states))
        for headers in ({}, {"Origin": server.url.rstrip("/")}):
            rooms = server.ask("GET", "sharedwidgets/api/rooms", headers=headers)["rooms"]
            assert [item["states"] for item in rooms if item["token"] == token] == [["Fit"]]
            told = server.ask("GET", f"sharedwidgets/api/rooms/{token}", headers=headers)
            assert set(told["states"]) == {"Fit"}
            assert [item["states"] for item in told["members"]] == [["Fit"]] * 2
        for found in (room.members, first.linked_from):
            assert [member.states for member in found] == [("Fit",)] * 2
        with second.lock():
            assert first.wait_until(lambda: first.locked_by is not None, 10)
            assert first.locked_by is not None
            assert first.locked_by.states == ("Fit",)
        third = Script(server, f"{KERNEL}\nNAME = 'C'\nc = Fit().link_to({token!r})")
        eventually(lambda: len(room.members) == 3)
        third.run("c.unlink()")
        third.finish()
        third.__exit__(None, None, None)
        eventually(lambda: len(moved) == 2)
    assert all(not name.endswith("@reacts") for names in moved for name in names)


@pytest.mark.asyncio
async def test_g9_a_page_sees_a_name_and_nothing_else(server: LiveServer, token: str) -> None:
    first, second = fits(server, token)
    page = await Peer.enter(
        server.socket_url, {**server.headers, "Origin": server.url.rstrip("/")}, token, kind="frontend", make=False
    )
    second.a = 1
    await asyncio.to_thread(eventually, lambda: noted(first) >= seq_of(first, "a"))
    second.each = 1
    await page.until(token, each=1, state="Fit")
    image = page.replicas[token].states["Fit@lead@reacts"]
    assert (image.schema, image.values, image.last) == ({}, {}, {})
    for secret in ("leader", "done"):
        assert secret not in str(page.frames)
    page.close()
    await page.closed()


@pytest.mark.asyncio
async def test_g9_to_a_page_the_traits_beside_a_state_do_not_exist(server: LiveServer, token: str) -> None:
    """A page that speaks the wire itself learns and changes nothing, and keeps nobody from reacting."""
    first, second = fits(server, token)
    second.a = 1
    await asyncio.to_thread(eventually, lambda: noted(first) >= seq_of(second, "a"))
    before = seq(server, token)
    name, page_says = "Fit@lead@reacts", {"Origin": server.url.rstrip("/")}
    page = await Peer.enter(server.socket_url, {**server.headers, **page_says}, token, kind="kernel", make=False)
    image = (await page.join(token, state=name, make=False)).states[name]
    assert (image.schema, image.values, image.last) == ({}, {}, {})
    kinds = {trait: TraitSchema(kind="any") for trait in ("leader", "done", "nope")}
    await page.say(Join(id=90, room=token, state=name, schema=kinds, values={}))
    assert (await page.next(Failure, lambda message: message.id == 90)).problem.code == "forbidden"
    said: dict[str, list[Problem]] = {}
    for trait in kinds:
        path = (trait,)
        for op in (
            Set(state=name, path=path, value="x"),
            Set(state=name, path=path, value="x", if_in=("", me(first))),
            Set(state=name, path=path, value="x", if_rev=before),
            Append(state=name, path=path, items=("x",)),
            Delete(state=name, path=(trait, "x")),
            Inc(state=name, path=path, by=1),
            Splice(state=name, path=path, rev=before, at=0, remove=0, insert="x"),
        ):
            nack = await page.write(token, op)
            assert isinstance(nack, Nack)
            assert nack.values == {}
            said.setdefault(trait, []).append(nack.problem)
    assert {problem.code for problems in said.values() for problem in problems} == {"no-such-trait"}
    texts = [[problem.message.replace(trait, "TRAIT") for problem in problems] for trait, problems in said.items()]
    assert texts[0] == texts[1] == texts[2]
    await page.say(Acquire(id=91, room=token, lock=LockName(kind="state", name=name), owner="x", lease=60.0))
    assert (await page.next(Failure, lambda message: message.id == 91)).problem.code == "no-such-state"
    where = room_url(server, "rooms", token)
    headers = {**server.headers, **page_says}
    for trait in kinds:
        answer = ask(room_url(server, "rooms", token, "states", name), "PATCH", {trait: "x"}, headers)
        assert (answer.status, answer.body["code"]) == (404, "no-such-trait")
        assert answer.body["message"] == f"{name} has no trait {trait!r}; it has none"
    assert ask(where + "/reset", "POST", {"states": [name]}, headers).body == {"seq": before}
    told = ask(where, headers=headers).body
    assert set(told["states"]) == {"Fit"}
    assert seq(server, token) == before
    # It links the state, and is none of those who can react.
    second.a = 2
    await page.until(token, state="Fit", a=2)
    await asyncio.to_thread(eventually, lambda: noted(first) >= seq_of(second, "a"))
    assert (len(first.heard), second.heard, led(second, "lead")[0]) == (2, [], me(first))
    for secret in ("leader", "done"):
        # But for the refusals, which name what the page itself has named.
        assert all(secret not in str(frame) for frame in page.frames if "has no trait" not in str(frame))
    page.close()
    await page.closed()


def test_nobody_locks_who_reacts(server: LiveServer, token: str) -> None:
    """Whoever held that lock would keep everyone from saying that it reacts."""
    first, second = fits(server, token)
    bridge = second._bridge
    assert bridge is not None
    name = LockName(kind="state", name="Fit@lead@reacts")
    lock = Lock(bridge.connection, bridge.session, name, timeout=5, lease=None, mode="thread")
    with pytest.raises(NoSuchState):
        lock.acquire()
    second.a = 1
    eventually(lambda: first.heard == [("a", 0, 1, "remote")])


# --- the leader goes, and comes back


def test_who_is_cut_off_does_not_react_and_finds_what_others_did(server: LiveServer, token: str) -> None:
    """The change came before the cut, and nobody had reacted to it; the one who comes back does not take over."""
    with Faults(server.port) as relay:
        first = Fit().link_to(token, server=relay.url, credential=server.credential)
        second = Fit().link_to(token, server=server.url, credential=server.token)
        bridge = first._bridge
        assert bridge is not None
        with first.hold_trait_notifications():
            second.a = 1
            eventually(lambda: led(second, "lead")[0] == me(first))
            relay.refusing = True
            relay.cut()
            eventually(lambda: bridge.connection.state == "offline")
            eventually(lambda: second.heard == [("a", 0, 1, "local")])
        # Out of the hold, and still not connected.
        eventually(lambda: first.own == [("a", 0, 1, "remote")])
        relay.refusing = False
        eventually(lambda: bridge.connection.state == "live")
        second.b = 5
        eventually(lambda: second.heard[1:] == [("b", 0, 5, "local")])
        eventually(lambda: noted(first) >= seq_of(second, "b"))
        assert first.heard == []
        # Two states made, two writes; and two words about who reacts, and two about how far it got.
        assert seq(server, token) == 2 + 2 + 2 + 2


def test_h27_who_was_silent_for_too_long_comes_back_before_it_reacts(server: LiveServer, token: str) -> None:
    """A process that was stopped goes on with what is left in its socket, where nothing says that it was given up."""
    conversations: list[object] = []

    class Noting(Fit, state_name="Fit", delivery="thread"):
        @reacts("a", "b", leader=True)
        def lead(self, change: Any) -> None:
            conversations.append(connection.welcome)
            self.heard.append((change.name, change.old, change.new, change.origin))

    first = Noting().link_to(token, server=server.url, credential=server.credential)
    second = Fit().link_to(token, server=server.url, credential=server.token)
    bridge = first._bridge
    assert bridge is not None
    connection = bridge.connection
    welcome = connection.welcome
    # The room says that it is the one.
    second.a = 1
    eventually(lambda: noted(second) >= seq_of(second, "a"))
    assert conversations == [welcome]
    connection._spoke -= 1000.0
    second.a = 2
    eventually(lambda: noted(second) >= seq_of(second, "a"))
    # By the one or by the other, that is as may be.
    assert [item[:3] for item in reacted(first, second)] == [("a", 0, 1), ("a", 1, 2)]
    eventually(lambda: connection.welcome is not None and connection.welcome is not welcome)
    first.flush()
    second.b = 3
    eventually(lambda: noted(second) >= seq_of(second, "b"))
    assert sorted(item[:3] for item in reacted(first, second)) == [("a", 0, 1), ("a", 1, 2), ("b", 0, 3)]
    assert all(one is not welcome for one in conversations[1:])


@pytest.fixture
def own(tmp_path: Path) -> Iterator[LiveServer]:
    """A server of the test's own, to be stopped and started."""
    with LiveServer(tmp_path) as running:
        yield running
        for connection in list(sharedwidgets.connection._shared.values()):
            if connection.address.url == running.url:
                connection.close()


@pytest.mark.parametrize("leaves", [False, True], ids=["both stay", "one leaves"])
def test_what_nobody_reacted_to_outlives_the_server(own: LiveServer, token: str, leaves: bool) -> None:
    """The room is made again from what its members hold, with numbers that begin anew: below those that were reacted to."""
    first, second = fits(own, token)
    for number in range(1, 21):
        first.a = number
        first.flush()
    # Of the one who has written it: the other may not have heard of the last of them.
    eventually(lambda: noted(second) >= seq_of(first, "a") > 20)
    del first.heard[:]
    with ExitStack() as held:
        for state in (first, second):
            held.enter_context(state.hold_trait_notifications())
        plain = held.enter_context(connect(token, own.url, own.token, delivery="thread"))
        plain["Fit"]["b"] = 7
        plain.flush()
        replicas = [state._bridge.session.replica for state in (first, second)]  # type: ignore[union-attr]
        eventually(lambda: all(replica.value("Fit", "b") == 7 for replica in replicas))
        before = replicas[0].incarnation
        own.restart()
        eventually(
            lambda: all(
                replica.incarnation != before and len(replica.members) == 2 and "Fit@lead@reacts" in replica.states
                for replica in replicas
            ),
            30,
        )
        assert max(replica.seq for replica in replicas) < 20
        if leaves:
            first._bridge.connection.close()  # type: ignore[union-attr]
    eventually(lambda: [item[:3] for item in reacted(first, second)] == [("b", 0, 7)])
    # And on, though the numbers are small. Whoever came back first is the oldest now.
    second.a = 30
    eventually(lambda: [item[:3] for item in reacted(first, second)][1:] == [("a", 20, 30)])
    eventually(lambda: noted(second) >= seq_of(second, "a"))
    assert len(second.heard) == 2 if leaves else len(second.heard) in (0, 2)


# --- in kernels

KERNEL = """
import os, threading, time
import traitlets as t
from sharedwidgets import SharedState, reacts

class Fit(SharedState):
    a = t.Int(0)
    ran = t.List()

    @reacts("a", leader=True)
    def lead(self, change):
        self.ran = [*self.ran, [NAME, -1 if change.old is t.Undefined else change.old, change.new]]

def behind(value):
    '''Keep the main thread until the room has this value, which the traits do not show.'''
    deadline = time.monotonic() + 20
    while c._bridge.session.replica.value("Fit", "a") != value:
        assert time.monotonic() < deadline
        time.sleep(0.01)
"""


class Room3:
    """Three kernels in the order of coming, and a member that only looks and writes."""

    def __init__(self, server: LiveServer, token: str, stack: ExitStack) -> None:
        self.server = server
        self.token = token
        self.kernels = {name: stack.enter_context(Kernel(server)) for name in "ABC"}
        for name in self.kernels:
            self.link(name)
        self.far = stack.enter_context(connect(token, server.url, server.token, delivery="thread"))
        self.pids = {name: kernel.value("os.getpid()") for name, kernel in self.kernels.items()}

    def link(self, name: str) -> None:
        self.kernels[name].run(f"NAME = {name!r}\n{KERNEL}\nc = Fit().link_to({self.token!r})")

    def busy(self, name: str, code: str, begun: Path) -> str:
        """Begin a cell, and wait until it runs: what comes from now on finds the main thread busy."""
        cell = self.kernels[name].start(f"open({str(begun)!r}, 'w').close()\n{code}")
        eventually(begun.exists)
        return cell

    def write(self, value: int) -> None:
        self.far["Fit"]["a"] = value
        self.far.flush()

    @property
    def ran(self) -> Any:
        return self.far["Fit"]["ran"]

    def settled(self) -> None:
        """Nobody has anything to react to any more, as the room says; kernels that are busy apart."""
        last = self.far.last_change("Fit", "a")
        assert last is not None

        def said() -> bool:
            found: Any = self.far["Fit@lead@reacts"]["done"]
            return bool(found) and found[1] >= last.seq

        assert self.far.wait_until(said, 20)


@pytest.fixture
def three(server: LiveServer, token: str) -> Iterator[Room3]:
    with ExitStack() as stack:
        yield Room3(server, token, stack)


def test_a_leader_that_dies_before_it_reacts_leaves_it_to_the_next(
    three: Room3, server: LiveServer, token: str, tmp_path: Path
) -> None:
    """Its main thread is busy, the change has arrived in it, and it is killed: the next one reacts, and no other."""
    three.write(1)
    three.settled()
    assert three.ran == [["A", 0, 1]]
    arrived = tmp_path / "arrived"
    three.busy("A", f"behind(2); open({str(arrived)!r}, 'w').close(); behind(-1)", tmp_path / "begun")
    three.write(2)
    eventually(arrived.exists)
    os.kill(three.pids["A"], signal.SIGKILL)
    three.settled()
    assert three.ran == [["A", 0, 1], ["B", 1, 2]]
    # It is started again, and is the youngest.
    three.kernels["A"].client.wait_for_ready(timeout=30)
    three.link("A")
    three.write(3)
    three.settled()
    three.write(4)
    three.settled()
    assert three.ran == [["A", 0, 1], ["B", 1, 2], ["B", 2, 3], ["B", 3, 4]]
    # All are told of the last one too, which the room had heard before they had.
    for kernel in three.kernels.values():
        eventually(lambda kernel=kernel: kernel.value("c.ran") == three.ran)
    # Two states made, four writes; of each a reaction, and a word of how far it got; and twice one of who reacts.
    assert seq(server, token) == 2 + 4 * 3 + 2


def test_a_leader_that_is_busy_reacts_when_it_is_free_and_no_other_does(
    three: Room3, server: LiveServer, token: str, tmp_path: Path
) -> None:
    busy = three.busy("A", "behind(3); c.a = 10; behind(11); time.sleep(1.5)", tmp_path / "begun")
    for value in (1, 2, 3):
        three.write(value)
    assert three.far.wait_until(lambda: three.far["Fit"]["a"] == 10, 20)
    three.write(11)
    for name in "BC":
        # They have all of it, and have had their turn: a cell of theirs has come to its end since.
        three.kernels[name].run("behind(11)")
        three.kernels[name].run("pass")
    assert three.ran == []
    three.kernels["A"].finish(busy)
    three.settled()
    # Five changes are one.
    assert three.ran == [["A", 0, 11]]
    assert seq(server, token) == 2 + 5 + 1 + 2


def test_h27_a_leader_that_is_stopped_is_passed_over_and_does_not_react_once_more(three: Room3) -> None:
    three.write(1)
    three.settled()
    os.kill(three.pids["A"], signal.SIGSTOP)
    try:
        three.write(2)
        three.settled()
        assert three.ran == [["A", 0, 1], ["B", 1, 2]]
    finally:
        os.kill(three.pids["A"], signal.SIGCONT)
    here = "[member.state for member in c.linked_from]"
    eventually(lambda: all(one.value(here) == ["live"] * 3 for one in three.kernels.values()), 30)
    three.write(3)
    three.settled()
    # It does not take over from the one that is there.
    assert three.ran == [["A", 0, 1], ["B", 1, 2], ["B", 2, 3]]
    assert seq(three.server, three.token) == 2 + 3 * 3 + 2
