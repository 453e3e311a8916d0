"""Who is in a room, as everyone in it sees: a kernel that is killed, stopped, restarted; a script that dies; many who join."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest
import traitlets as t

import sharedwidgets.connection
from sharedwidgets import Member, Room, SharedState, connect
from sharedwidgets.core.protocol import Entries, Members, Snapshot
from sharedwidgets_server.testing import LiveServer
from support.kernels import Kernel
from support.peers import Peer, assign
from support.scripts import Script, eventually

LINK = """
import os
import traitlets as t
from sharedwidgets import SharedState

class Counter(SharedState):
    count = t.Int(0)

c = Counter().link_to({token!r})
"""


class Counter(SharedState):
    count = t.Int(0)


class Other(SharedState):
    count = t.Unicode("other")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """One that takes a silent connection for dead soon, and keeps who was lost for longer than a test takes."""
    limits = "{'heartbeat_seconds': 0.5, 'dead_seconds': 2.0, 'away_seconds': 20.0}"
    with LiveServer(tmp_path_factory.mktemp("server"), f"--SharedWidgetsApp.limits={limits}") as running:
        yield running
        _close_connections()


def _close_connections() -> None:
    for connection in list(sharedwidgets.connection._shared.values()):
        connection.close()


class Watched:
    """A room as a member in this process sees it, and what it is told of coming and going."""

    def __init__(self, server: LiveServer, token: str) -> None:
        self.room: Room = connect(token, server.url, server.token, delivery="thread")
        self.joined: list[Member] = []
        self.left: list[Member] = []
        self.room.on_join(self.joined.append)
        self.room.on_leave(self.left.append)

    def of(self, kind: str) -> list[Member]:
        return [member for member in self.room.members if member.kind == kind]

    def states(self, kind: str) -> list[str]:
        return [member.state for member in self.of(kind)]


@pytest.fixture
def watched(server: LiveServer, token: str) -> Iterator[Watched]:
    made = Watched(server, token)
    yield made
    made.room.close()


def test_a_killed_kernel_is_gone_at_once(server: LiveServer, watched: Watched, token: str) -> None:
    """Long before `away_seconds`; the kernel Jupyter starts in its place is another member."""
    with Kernel(server) as kernel:
        kernel.run(LINK.format(token=token))
        eventually(lambda: watched.states("kernel") == ["live"])
        (member,) = watched.of("kernel")
        assert (member.kernel_id, member.states) == (kernel.id, ("Counter",))
        pid = kernel.value("os.getpid()")
        os.kill(pid, signal.SIGKILL)
        killed = time.monotonic()
        eventually(lambda: watched.of("kernel") == [])
        assert time.monotonic() - killed < 2.0
        eventually(lambda: [item.id for item in watched.left] == [member.id])


def test_a_restarted_kernel_is_another_member_and_the_old_one_is_gone(server: LiveServer, watched: Watched, token: str) -> None:
    with Kernel(server) as kernel:
        kernel.run(LINK.format(token=token))
        eventually(lambda: watched.states("kernel") == ["live"])
        (before,) = watched.of("kernel")
        server.ask("POST", f"api/kernels/{kernel.id}/restart")
        kernel.client.wait_for_ready(timeout=30)
        kernel.run(LINK.format(token=token))
        eventually(lambda: [member.state for member in watched.of("kernel") if member.id != before.id] == ["live"])
        eventually(lambda: len(watched.of("kernel")) == 1)
        (after,) = watched.of("kernel")
        assert after.kernel_id == before.kernel_id
        eventually(lambda: [item.id for item in watched.left] == [before.id])


def test_h27_a_stopped_kernel_is_unresponsive_and_comes_back_as_the_same_member(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    limits = "{'heartbeat_seconds': 0.25, 'dead_seconds': 1.0, 'away_seconds': 0.5}"
    with LiveServer(tmp_path_factory.mktemp("server"), f"--SharedWidgetsApp.limits={limits}") as server:
        watched = Watched(server, "room")
        with Kernel(server) as kernel:
            kernel.run(LINK.format(token="room"))
            eventually(lambda: watched.states("kernel") == ["live"])
            (member,) = watched.of("kernel")
            pid = kernel.value("os.getpid()")
            os.kill(pid, signal.SIGSTOP)
            try:
                eventually(lambda: watched.states("kernel") == ["unresponsive"])
            finally:
                os.kill(pid, signal.SIGCONT)
            eventually(lambda: watched.states("kernel") == ["live"])
            assert [item.id for item in watched.of("kernel")] == [member.id]
            kernel.run("c.count = 3; c.flush()")
            eventually(lambda: watched.room["Counter"]["count"] == 3)
            # Stopped once more, and killed while nobody hears of it.
            os.kill(pid, signal.SIGSTOP)
            eventually(lambda: watched.states("kernel") == ["unresponsive"])
            assert watched.left == []
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: [item.id for item in watched.left] == [member.id])
        watched.room.close()
        _close_connections()


def test_a_forked_child_of_a_kernel_does_not_live_as_long_as_the_kernel(tmp_path_factory: pytest.TempPathFactory) -> None:
    """It links with the kernel's id and ends without a word: its parent's life says nothing of its own."""
    with LiveServer(tmp_path_factory.mktemp("server"), "--SharedWidgetsApp.limits={'away_seconds': 0.5}") as server:
        watched = Watched(server, "room")
        with Kernel(server) as kernel:
            kernel.run(LINK.format(token="room"))
            eventually(lambda: watched.states("kernel") == ["live"])
            (parent,) = watched.of("kernel")
            kernel.run(
                "pid = os.fork()\nif pid == 0:\n    try:\n        c.unlink(); c.link_to('room'); c.count = 5; c.flush()\n"
                "    finally:\n        os._exit(0)\nos.waitpid(pid, 0)"
            )
            eventually(lambda: watched.room["Counter"]["count"] == 5)
            eventually(lambda: [item.id for item in watched.of("kernel")] == [parent.id])
            assert watched.states("kernel") == ["live"]
        watched.room.close()
        _close_connections()


def test_a_killed_script_is_away_and_then_gone(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nobody can know more of it than that its socket is closed."""
    with LiveServer(tmp_path_factory.mktemp("server"), "--SharedWidgetsApp.limits={'away_seconds': 1.5}") as server:
        watched = Watched(server, "room")
        with Script(server, LINK.format(token="room")) as script:
            eventually(lambda: "Counter" in watched.room)
            script.process.kill()
            script.process.wait()
        eventually(lambda: sorted(watched.states("script")) == ["away", "live"])
        assert watched.left == []
        eventually(lambda: watched.states("script") == ["live"])
        eventually(lambda: len(watched.left) == 1)
        watched.room.close()
        _close_connections()


@pytest.mark.asyncio
async def test_those_who_are_there_hear_of_a_join_and_not_of_the_room(server: LiveServer, token: str) -> None:
    """15 join a room of 50 kB: the ones in it are told who came, in a few hundred bytes each."""
    url = server.url.replace("http", "ws", 1) + "sharedwidgets/ws"
    first = await Peer.enter(url, server.headers, token)
    await first.write(token, *(assign("tags", {f"key {number}": "x" * 100 for number in range(500)}),))
    page = await Peer.enter(url, {**server.headers, "Origin": server.url.rstrip("/")}, token, kind="frontend", make=False)
    await page.barrier(token)
    await first.barrier(token)
    heard = [len(peer.frames) for peer in (first, page)]
    others = [await Peer.enter(url, server.headers, token) for _ in range(15)]
    assert all(len(repr(peer.all(Snapshot)[0])) > 50_000 for peer in others)
    for peer, before in ((first, heard[0]), (page, heard[1])):
        while len(peer.replicas[token].members) < 17:
            await peer.next(Members)
        told = peer.frames[before:]
        assert sum(len(frame) for frame in told) < 15 * 500, told
        assert not [message for message in peer.heard[-len(told) :] if isinstance(message, (Snapshot, Entries))]
    for peer in (first, page, *others):
        peer.close()
        await peer.closed()


def test_two_classes_on_one_token_do_not_collide(server: LiveServer, token: str) -> None:
    """Also where their traits have the same name and another kind."""
    one, two = (kind().link_to(token, server=server.url, credential=server.token) for kind in (Counter, Other))
    far = connect(token, server.url, server.token, delivery="thread")
    one.count = 3
    two.count = "three"
    one.flush()
    two.flush()
    assert {name: dict(far[name]) for name in far} == {"Counter": {"count": 3}, "Other": {"count": "three"}}
    (member,) = one.linked_from
    assert (member.states, two.linked_from) == (("Counter", "Other"), (member,))
    two.unlink()
    assert (two.count, one.count) == ("other", 3)
    eventually(lambda: one.linked_from[0].states == ("Counter",))
    far.close()


def test_many_rooms_over_one_socket(server: LiveServer, token: str) -> None:
    rooms = [f"{token}-{number}" for number in range(20)]
    states = [Counter().link_to(room, server=server.url, credential=server.token) for room in rooms]
    for number, state in enumerate(states):
        state.count = number
    for state in states:
        state.flush()
    assert len({state._bridge.connection for state in states}) == 1
    names = [member["id"] for room in rooms for member in server.ask("GET", f"sharedwidgets/api/rooms/{room}")["members"]]
    assert (len(names), len(set(names))) == (20, 1)
    counts = [server.ask("GET", f"sharedwidgets/api/rooms/{room}")["states"]["Counter"]["values"]["count"] for room in rooms]
    assert counts == list(range(20))
