"""Reactions: chains across processes that come to an end, and those that exactly one process runs.

"One" and "two" are two members in this process, two sockets of two boots.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import traitlets as t

import sharedwidgets.connection
from sharedwidgets import SharedState, connect, reacts
from sharedwidgets.core.protocol import Limits
from sharedwidgets.errors import ReactionTooDeep
from sharedwidgets_server.testing import LiveServer
from support.faults import Faults
from support.kernels import Kernel
from support.peers import Peer
from support.scripts import Heard, eventually, seq

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


def test_who_answers_a_refusal_with_another_write_comes_to_an_end(one: Pair, two: Pair, server: LiveServer, token: str) -> None:
    """The server's word against each of them is a link of the chain as well."""
    refused = Heard(one, type="rejected")
    one.observe(lambda change: setattr(one, "c", change.new - 1) if change.origin == "rollback" else None, "c")
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
    assert len(refused.changes) == MOST + 1


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
        said = replica.states["Fit@reacts"].values["lead"]
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
    # Two states made, two writes, and twice a word about how far it got.
    assert seq(server, token) == 2 + 2 + 2


def seq_of(state: SharedState, trait: str) -> int:
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
    """It also takes what stands in the room of how far that got."""
    first, second = fits(server, token)
    second.a = 3
    eventually(lambda: first.heard == [("a", 0, 3, "remote")])
    server.ask("POST", f"sharedwidgets/api/rooms/{token}/reset")
    eventually(lambda: first.heard[1:] == [("a", 3, 0, "remote")])
    second.a = 4
    eventually(lambda: first.heard[2:] == [("a", 0, 4, "remote")])
    assert second.heard == []


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
    assert [member.states for member in first.linked_from] == [("Fit", "Fit@reacts")] * 2
    told = server.ask("GET", f"sharedwidgets/api/rooms/{token}")
    assert set(told["states"]["Fit@reacts"]["schema"]) == {"lead"}
    assert told["states"]["Fit@reacts"]["schema"]["lead"]["kernel_only"] is True


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
    image = page.replicas[token].states["Fit@reacts"]
    assert (image.schema, image.values, image.last) == ({}, {}, {})
    assert "lead" not in str(page.frames)
    page.close()
    await page.closed()


# --- the leader goes, and comes back


def test_who_is_cut_off_does_not_react_and_finds_what_others_did(server: LiveServer, token: str) -> None:
    """The change came before the cut, and nobody had reacted to it; the one who comes back is the oldest again."""
    with Faults(server.port) as relay:
        first = Fit().link_to(token, server=relay.url, credential=server.credential)
        second = Fit().link_to(token, server=server.url, credential=server.token)
        bridge = first._bridge
        assert bridge is not None
        with first.hold_trait_notifications():
            second.a = 1
            eventually(lambda: bridge.session.replica.value("Fit", "a") == 1)
            relay.refusing = True
            relay.cut()
            eventually(lambda: bridge.connection.state == "offline")
            eventually(lambda: second.heard == [("a", 0, 1, "local")])
        # Out of the hold, and still not connected.
        eventually(lambda: first.own == [("a", 0, 1, "remote")])
        relay.refusing = False
        eventually(lambda: bridge.connection.state == "live")
        second.b = 5
        eventually(lambda: first.heard == [("b", 0, 5, "remote")])
        eventually(lambda: noted(second) >= seq_of(second, "b"))
        assert second.heard == [("a", 0, 1, "local")]


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
    connection._spoke -= 1000.0
    second.a = 1
    eventually(lambda: noted(second) >= seq_of(second, "a"))
    # By the one or by the other, that is as may be.
    assert [item[:3] for item in reacted(first, second)] == [("a", 0, 1)]
    eventually(lambda: connection.welcome is not None and connection.welcome is not welcome)
    first.flush()
    second.b = 2
    eventually(lambda: sorted(item[:3] for item in reacted(first, second)) == [("a", 0, 1), ("b", 0, 2)])
    assert all(one is not welcome for one in conversations)


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
                replica.incarnation != before and len(replica.members) == 2 and "Fit@reacts" in replica.states
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
            found: Any = self.far["Fit@reacts"]["lead"]
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
    # Its own line, made by the next, is confirmed to all: nobody has anything left to say.
    names = {name: kernel.value("[c.ran, c._bridge.session.replica.seq]") for name, kernel in three.kernels.items()}
    assert {json.dumps(shown) for shown, _ in names.values()} == {json.dumps(three.ran)}
    # Two states made, four writes; of each a reaction, and a word of how far it got.
    assert seq(server, token) == 2 + 4 * 3


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
    assert seq(server, token) == 2 + 5 + 2


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
    # Who has not heard that it is back still takes its own turn.
    here = "[member.state for member in c.linked_from]"
    eventually(lambda: all(one.value(here) == ["live"] * 3 for one in three.kernels.values()), 30)
    three.write(3)
    three.settled()
    assert three.ran == [["A", 0, 1], ["B", 1, 2], ["A", 2, 3]]
