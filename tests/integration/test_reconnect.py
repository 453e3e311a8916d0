"""Sockets that die, stall or half-die, and servers that go and come back: what was acknowledged stands, once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import sharedwidgets.connection
from sharedwidgets import Room, discovery
from sharedwidgets import connect as connect_to
from sharedwidgets.core.protocol import Bye, Entries, Members, Problem, Set
from sharedwidgets.core.replica import Change, Refused
from sharedwidgets.errors import Closed, LinkTimeout, OutcomeUnknown, RoomGone, ServerNotFound
from sharedwidgets_server.testing import LiveServer
from support.faults import Faults
from support.peers import Peer, add
from support.rest import ask, room_url
from support.scripts import Script, eventually, seq
from support.servers import limits, peers

# Beyond a silence of this the quick server takes a connection for dead.
QUICK = {"heartbeat_seconds": 0.2, "dead_seconds": 0.8, "away_seconds": 20.0}

_rooms: list[Room] = []


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("quick"), limits(**QUICK)) as server:
        yield server


@pytest.fixture
def own(tmp_path: Path) -> Iterator[LiveServer]:
    """A server of the test's own, to be stopped and started."""
    with LiveServer(tmp_path, limits(away_seconds=20.0)) as server:
        yield server


@pytest.fixture
def faults(live: LiveServer) -> Iterator[Faults]:
    with Faults(live.port) as relay:
        yield relay


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    before = set(sharedwidgets.connection._shared)
    yield
    while _rooms:
        # With it ends the thread that its callbacks run on.
        _rooms.pop().close()
    for key in set(sharedwidgets.connection._shared) - before:
        sharedwidgets.connection._shared.pop(key).close(1.0)


def connect(token: str, **how: Any) -> Room:
    """`sharedwidgets.connect`, closed when the test ends."""
    _rooms.append(connect_to(token, **how))
    return _rooms[-1]


def through(relay: Faults, server: LiveServer) -> str:
    """The server's base URL by way of the relay."""
    return server.url.replace(f":{server.port}/", f":{relay.port}/")


def enter(relay: Faults, server: LiveServer, token: str, **how: Any) -> Room:
    return connect(token, server=through(relay, server), credential=server.credential, **how)


def read(server: LiveServer, token: str) -> dict[str, Any]:
    answer = ask(room_url(server, "rooms", token), headers=server.headers)
    assert answer.status == 200, answer
    return dict(answer.body)


# --- cuts


def test_each_acked_push_is_there_once_and_in_order_however_often_the_socket_dies(
    live: LiveServer, faults: Faults, room: str
) -> None:
    """G2 and G3: a list of what was appended shows a loss, a double and a swap alike."""
    mine = enter(faults, live, room)
    other = connect(room, server=live.url, credential=live.token)
    state = mine.define("S", items=[], count=0)
    connections = 0
    for number in range(300):
        state.append("items", number)
        if number % 5 == 0:
            state.increment("count")
        if number % 60 == 17:
            connections += 1
            eventually(lambda connections=connections: faults.accepted == connections)
            faults.cut()
        if number % 60 == 40:
            mine.flush()
    mine.flush()
    assert state["items"] == list(range(300))
    assert state["count"] == 60
    assert other.wait_until(lambda: other["S"]["items"] == list(range(300)) and other["S"]["count"] == 60, 10)
    # One entry for the state, one for each push.
    assert seq(live, room) == 361
    assert faults.accepted == 6
    # It stayed one member all the while.
    assert sorted(member.state for member in other.members) == ["live", "live"]


def test_an_ack_lost_with_the_socket_is_no_second_push(live: LiveServer, faults: Faults, room: str) -> None:
    mine = enter(faults, live, room)
    state = mine.define("S", count=0)
    for round_ in range(1, 6):
        faults.shut(up=False)
        state.increment("count")
        eventually(lambda round_=round_: read(live, room)["states"]["S"]["values"]["count"] == round_)
        faults.cut()
        mine.flush()
    assert (state["count"], seq(live, room)) == (5, 6)


def test_h05_a_refusal_lost_with_the_socket_is_told(live: LiveServer, faults: Faults, room: str) -> None:
    mine = enter(faults, live, room)
    state = mine.define("S", count=0, other=0)
    refused: list[Refused] = []
    mine.on_refused(refused.append)
    faults.shut(up=False)
    # Of a revision that is no more.
    mine._write([Set(state="S", path=("count",), value=501, if_rev=0)])
    state["other"] = 1
    # The second is decided, so the first is refused, and neither answer has arrived.
    eventually(lambda: read(live, room)["states"]["S"]["values"]["other"] == 1)
    assert refused == []
    assert state["count"] == 501
    faults.cut()
    mine.flush()
    eventually(lambda: refused)
    assert [(item.n, item.problem.code) for item in refused] == [(1, "revision-mismatch")]
    assert (state["count"], state["other"]) == (0, 1)
    assert (read(live, room)["states"]["S"]["values"]["count"], seq(live, room)) == (0, 2)


def test_what_others_did_meanwhile_comes_as_changes_and_once(live: LiveServer, faults: Faults, room: str) -> None:
    mine = enter(faults, live, room)
    state = mine.define("S", count=0, text="")
    changes: list[Change] = []
    mine.subscribe(changes.append)
    other = connect(room, server=live.url, credential=live.token)
    faults.shut()
    for number in range(1, 51):
        other["S"]["count"] = number
    other.flush()
    state["text"] = "mine"
    faults.cut()
    assert mine.wait_until(lambda: state["count"] == 50, 10)
    mine.flush()
    assert other.wait_until(lambda: other["S"]["text"] == "mine", 10)
    eventually(lambda: [change.new for change in changes if change.trait == "count"][-1:] == [50])
    assert all(change.origin in ("remote", "resync") for change in changes)
    assert len([change for change in changes if change.trait == "count"]) <= 50
    assert seq(live, room) == read(live, room)["seq"] == mine.seq


def test_link_state_says_how_it_stands(live: LiveServer, room: str) -> None:
    with Faults(live.port) as relay:
        mine = enter(relay, live, room)
        assert mine.link_state == "live"
        state = mine.define("S", count=0)
        mine.flush()
        relay.__exit__()
        eventually(lambda: mine.link_state == "offline")
        # Writes are taken while it is offline and shown; what needs an answer says why there is none.
        state["count"] = 1
        assert state["count"] == 1
        with pytest.raises(LinkTimeout, match="offline"):
            mine.flush(0.1)
        with pytest.raises(ServerNotFound, match="cannot be reached"):
            mine.define("T", 0.2, count=0)
        mine.close()
        assert mine.link_state == "closed"
        with pytest.raises(Closed):
            state["count"] = 2


# --- stalls and half-open connections


def test_a_dead_connection_is_noticed_on_both_sides_and_its_member_only_away(quick: LiveServer, room: str) -> None:
    with Faults(quick.port) as relay:
        mine = enter(relay, quick, room)
        state = mine.define("S", count=0)
        other = connect(room, server=quick.url, credential=quick.token)
        gone: list[Any] = []
        other.on_leave(gone.append)
        assert other.wait_until(lambda: len(other.members) == 2, 10)
        (me,) = [member.id for member in other.members if member.id == mine._connection.welcome.member]  # type: ignore[union-attr]
        relay.shut()
        state.increment("count")
        assert other.wait_until(lambda: {member.id: member.state for member in other.members}[me] == "away", 10)
        eventually(lambda: mine.link_state == "offline", 4.0)
        relay.cut()
        mine.flush()
        assert mine.link_state == "live"
        assert other.wait_until(lambda: {member.id: member.state for member in other.members}[me] == "live", 10)
        assert (state["count"], read(quick, room)["states"]["S"]["values"]["count"]) == (1, 1)
        assert gone == []
        assert len(other.members) == 2


def test_a_quiet_connection_lives(quick: LiveServer, room: str) -> None:
    """Nobody says anything for many times the silence that would be death: pings keep it."""
    mine = connect(room, server=quick.url, credential=quick.credential)
    mine.define("S", count=0)
    heard = mine._connection._heard
    boot_first = mine._connection.welcome
    eventually(lambda: mine._connection._heard > heard + 3 * QUICK["dead_seconds"], 20)
    assert mine.link_state == "live"
    assert mine._connection.welcome is boot_first


def test_a_welcome_lost_with_the_socket_does_not_lock_the_process_out(live: LiveServer, faults: Faults, room: str) -> None:
    """The server knows the boot by a connection it does not know to be dead; the process never heard who it is."""
    faults.shut(up=False)
    with pytest.raises(ServerNotFound):
        enter(faults, live, room, timeout=0.5)
    eventually(lambda: faults.accepted)
    faults.lose()
    faults.open()
    mine = enter(faults, live, room, timeout=5)
    assert mine.link_state == "live"
    mine.define("S", count=0)["count"] = 1
    mine.flush()


def test_a_half_open_connection_is_replaced_by_the_next(live: LiveServer, faults: Faults, room: str) -> None:
    """H7: the server still holds the old socket of the boot when the new one says hello."""
    mine = enter(faults, live, room)
    state = mine.define("S", count=0)
    other = connect(room, server=live.url, credential=live.token)
    gone: list[Any] = []
    other.on_leave(gone.append)
    for number in range(1, 4):
        faults.shut(up=False)
        state.increment("count")
        eventually(lambda number=number: read(live, room)["states"]["S"]["values"]["count"] == number)
        faults.lose()
        faults.open()
        mine.flush()
    assert (state["count"], seq(live, room)) == (3, 4)
    assert gone == []
    assert [member.state for member in other.members] == ["live", "live"]


def test_h31_a_late_answer_makes_no_ghost(live: LiveServer, faults: Faults, room: str) -> None:
    mine = enter(faults, live, room)
    faults.shut(up=False)
    with pytest.raises(LinkTimeout):
        enter(faults, live, f"{room}-other", timeout=0.3)
    with pytest.raises(LinkTimeout):
        mine.define("S", 0.3, count=0)
    faults.open()
    mine.define("T", count=0)["count"] = 1
    mine.flush()
    assert ask(room_url(live, "rooms", f"{room}-other"), headers=live.headers).status == 404
    (member,) = read(live, room)["members"]
    assert member["states"] == ["T"]
    # And it can be had afterwards.
    again = enter(faults, live, f"{room}-other")
    assert [item.state for item in again.members] == ["live"]


def test_h31_a_connection_that_came_too_late_makes_no_ghost(live: LiveServer, faults: Faults, room: str) -> None:
    other = connect(room, server=live.url, credential=live.token)
    other.define("S", count=0)
    came: list[Any] = []
    other.on_join(came.append)
    faults.shut(up=False)
    with pytest.raises(ServerNotFound):
        enter(faults, live, room, timeout=0.5)
    faults.open()
    other["S"]["count"] = 1
    other.flush()
    # Whatever was under way has arrived when a second try has its answer.
    enter(faults, live, f"{room}-second").close()
    eventually(lambda: len(read(live, room)["members"]) == 1)
    assert [member.id for member in other.members] == [other._connection.welcome.member]  # type: ignore[union-attr]


# --- servers that go and come back


@pytest.mark.asyncio
async def test_a_server_that_stops_says_goodbye(own: LiveServer, room: str) -> None:
    async with peers() as made:
        peer = await made(own.socket_url, own.headers, room)
        await asyncio.to_thread(own.stop)
        bye = await peer.next(Bye)
        assert (bye.problem.code, bye.retry_after) == ("going-away", 1.0)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_a_room_on_memory_comes_back_from_a_live_scripts_values(own: LiveServer, room: str, end: str) -> None:
    """Pending writes are resolved, whether they were made before or after the server went; nothing is written twice."""
    with Faults(own.port) as relay:
        mine = enter(relay, own, room)
        state = mine.define("S", count=0, items=[])
        state["count"] = 5
        mine.flush()
        getattr(own, end)()
        relay.cut()
        # More than may be under way at once, each a push of its own.
        for number in range(150):
            state.append("items", number)
            with mine.transaction():
                state.increment("count")
                state.increment("count")
        asked = asks(mine)
        own.start()
        # Who asks for a room has only so much time: the pause between tries ends at once.
        enter(relay, own, f"{room}-other").close()
        mine.flush()
        assert (state["count"], state["items"]) == (305, list(range(150)))
        told = read(own, room)
        assert told["states"]["S"]["values"] == {"count": 305, "items": list(range(150))}
        # One entry that makes the state, one for each push; one join, not one for each push that met no room.
        assert told["seq"] == 301
        assert asks(mine) - asked <= 3
        assert [member["states"] for member in told["members"]] == [["S"]]


@pytest.mark.parametrize("again", [False, True])
def test_h18_a_room_deleted_while_one_was_away_is_not_made_again_by_it(live: LiveServer, room: str, again: bool) -> None:
    with Faults(live.port) as relay:
        mine = enter(relay, live, room)
        state = mine.define("S", count=0)
        state["count"] = 5
        mine.flush()
        refused: list[Refused] = []
        mine.on_refused(refused.append)
        relay.refusing = True
        relay.cut()
        eventually(lambda: mine.link_state == "offline")
        state["count"] = 6
        assert ask(room_url(live, "rooms", room), "DELETE", headers=live.headers).status == 204
        if again:
            other = connect(room, server=live.url, credential=live.token)
            other.define("S", count=1)
            other.flush()
        relay.refusing = False
        enter(relay, live, f"{room}-other").close()
        # What had no answer is refused, and the handle is dead.
        eventually(lambda: refused)
        assert [item.problem.code for item in refused] == ["room-gone"]
        with pytest.raises(RoomGone):
            state["count"] = 7
        if again:
            assert read(live, room)["states"]["S"]["values"] == {"count": 1}
            assert len(read(live, room)["members"]) == 1
        else:
            assert ask(room_url(live, "rooms", room), headers=live.headers).status == 404
        # A new link makes one, or joins the other.
        assert enter(relay, live, room).define("S", count=2)["count"] == (1 if again else 2)


def test_h18_a_late_word_of_a_deletion_does_not_end_the_room_that_was_linked_since(live: LiveServer, room: str) -> None:
    mine = connect(room, server=live.url, credential=live.credential)
    state = mine.define("S", count=0)
    problem = Problem(code="room-gone", message="the room was deleted")
    mine._connection._receive(Bye(room=room, problem=problem, incarnation="another"))
    state["count"] = 1
    mine.flush()
    assert read(live, room)["states"]["S"]["values"] == {"count": 1}
    mine._connection._receive(Bye(room=room, problem=problem, incarnation=mine._session.replica.incarnation))
    with pytest.raises(RoomGone):
        state["count"] = 2


@pytest.mark.parametrize("first", ["me", "another"])
@pytest.mark.parametrize("decided", [True, False])
def test_h08_who_asked_a_server_that_lost_its_rooms_is_told_what_is_so(
    own: LiveServer, room: str, first: str, decided: bool
) -> None:
    """Back from the asker's own copy its questions are put again; what another one's copy holds of them nobody can say."""
    with Faults(own.port) as relay, Faults(own.port) as beside, ThreadPoolExecutor(2) as pool:
        mine, other = enter(relay, own, room), enter(beside, own, room)
        state, theirs = mine.define("S", stock=3, turn=""), other.define("S", stock=3, turn="")
        relay.shut(up=not decided, down=decided)
        added = pool.submit(state.increment, "stock", 2, max=9, timeout=30.0)
        turn = pool.submit(state.compare_and_set, "turn", "", "mine", 30.0)
        replica = mine._session.replica
        eventually(lambda: (replica.undecided, replica.unsent) == (2, 0))
        if decided:
            assert other.wait_until(lambda: (theirs["stock"], theirs["turn"]) == (5, "mine"), 10)
        relay.refusing = beside.refusing = True
        own.kill()
        for way, member in ((relay, mine), (beside, other)):
            way.cut()
            eventually(lambda member=member: member.link_state == "offline")
        assert not added.done()
        assert not turn.done()
        own.start()
        for way in (relay, beside) if first == "me" else (beside, relay):
            way.refusing = False
            enter(way, own, f"{room}-other").close()
            eventually(lambda: ask(room_url(own, "rooms", room), headers=own.headers).status == 200)
        if first == "me":
            assert (added.result(10), turn.result(10)) == (5, True)
        else:
            for asked in (added, turn):
                with pytest.raises(OutcomeUnknown):
                    asked.result(10)
        values = {"stock": 5, "turn": "mine"} if first == "me" or decided else {"stock": 3, "turn": ""}
        assert read(own, room)["states"]["S"]["values"] == values
        # And all goes on from there.
        assert state.increment("stock", max=9) == values["stock"] + 1
        assert state.compare_and_set("turn", "", "later") is (values["turn"] == "")


def test_h08_what_was_asked_while_the_server_was_away_is_asked_of_the_room_that_comes_back(own: LiveServer, room: str) -> None:
    with Faults(own.port) as relay, ThreadPoolExecutor(1) as pool:
        mine, other = enter(relay, own, room), connect(room, server=own.url, credential=own.token)
        state, _ = mine.define("S", stock=3), other.define("S", stock=3)
        relay.refusing = True
        relay.cut()
        eventually(lambda: mine.link_state == "offline")
        asked = pool.submit(state.increment, "stock", 2, max=9, timeout=30.0)
        eventually(lambda: mine._session.replica.unsent == 1)
        own.kill()
        eventually(lambda: other.link_state == "offline")
        own.start()
        eventually(lambda: ask(room_url(own, "rooms", room), headers=own.headers).status == 200)
        relay.refusing = False
        enter(relay, own, f"{room}-other").close()
        assert asked.result(10) == 5
        assert read(own, room)["states"]["S"]["values"] == {"stock": 5}


def asks(room: Room) -> int:
    """How many joins this process has sent so far."""
    return int(repr(room._connection._ids)[6:-1])


def test_two_scripts_come_back_to_one_room(own: LiveServer, room: str) -> None:
    one = connect(room, server=own.url, credential=own.credential)
    two = connect(room, server=own.url, credential=own.token)
    first, second = one.define("S", count=0), two.define("S", count=0)
    first["count"] = 5
    one.flush()
    assert two.wait_until(lambda: second["count"] == 5, 10)
    own.kill()
    for member in (one, two):
        eventually(lambda member=member: member.link_state == "offline")
    own.start()
    for member in (one, two):
        eventually(lambda member=member: member.link_state == "live")
    first.increment("count")
    second.increment("count")
    one.flush()
    two.flush()
    for member, state in ((one, first), (two, second)):
        assert member.wait_until(lambda state=state: state["count"] == 7, 10)
    told = read(own, room)
    assert (told["states"]["S"]["values"]["count"], told["seq"], len(told["members"])) == (7, 3, 2)


def test_writes_wait_for_their_state_when_another_brings_the_room_back(own: LiveServer, room: str) -> None:
    """The room is there again and the state is not yet: what was written meanwhile must not be refused for that."""
    with Faults(own.port) as relay:
        mine = enter(relay, own, room)
        state = mine.define("Mine", count=0)
        state["count"] = 3
        mine.flush()
        other = connect(room, server=own.url, credential=own.token)
        other.define("Other", count=0)["count"] = 1
        other.flush()
        refused: list[Refused] = []
        mine.on_refused(refused.append)
        relay.refusing = True
        own.kill()
        relay.cut()
        eventually(lambda: mine.link_state == "offline")
        state.increment("count")
        own.start()
        other.define("More", 20, count=0)
        assert read(own, room)["states"].keys() == {"Other", "More"}
        relay.refusing = False
        enter(relay, own, f"{room}-other").close()
        mine.flush()
        assert refused == []
        values = {name: item["values"]["count"] for name, item in read(own, room)["states"].items()}
        assert values == {"Mine": 4, "More": 0, "Other": 1}


def test_a_server_that_moved_is_found_by_its_id(own: LiveServer, room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (discovery.URL, discovery.CREDENTIAL, discovery.SERVER):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(own.runtime))
    mine = connect(room)
    state = mine.define("S", count=0)
    state["count"] = 3
    mine.flush()
    before = own.port
    own.kill()
    own.port = 0
    own.start()
    state.increment("count")
    mine.define("T", 20, count=0)
    mine.flush()
    assert own.port != before
    assert read(own, room)["states"]["S"]["values"]["count"] == 4


@pytest.mark.asyncio
async def test_a_member_that_reconnects_does_not_flicker(live: LiveServer, room: str) -> None:
    async with peers() as made:
        witness = await made(live.socket_url, live.headers, room)
        peer = await made(live.socket_url, live.headers, room)
        held = peer.welcome
        assert held is not None
        position = peer.replicas[room].position(["S"])
        peer.close()
        await peer.closed()
        await witness.next(Members, lambda message: message.present and message.present[0].state == "away")
        again = await Peer.open(live.socket_url, live.headers)
        made.made.append(again)
        again.boot, again.replicas = peer.boot, peer.replicas
        await again.hello(member=held.member, secret=held.secret, rooms=(position,))
        back = await witness.next(Members)
        assert [(member.id, member.state, member.states) for member in back.present] == [(held.member, "live", ("S",))]
        assert not [message for message in witness.all(Members) if message.gone]
        verdict = await again.write(room, add())
        assert isinstance(verdict, Entries)


RESTARTED = """
import os
import traitlets as t
from sharedwidgets import SharedState

class Counter(SharedState, delivery="thread"):
    count = t.Int(0)

# Found by the file it left, as those do that outlive a server.
for name in ("SHAREDWIDGETS_URL", "SHAREDWIDGETS_CREDENTIAL"):
    del os.environ[name]
c = Counter().link_to({token!r})
c.count = 7
c.flush()
"""


def test_h19_a_server_that_starts_while_the_old_one_closes(tmp_path: Path, room: str) -> None:
    """Two on the same folders: the old one is the authority; the new one makes no empty room, and gets it from its members."""
    old, new = LiveServer(tmp_path), LiveServer(tmp_path)
    new.token = old.token
    with old, Script(old, RESTARTED.format(token=room)) as script, new:
        assert ask(room_url(new, "rooms", room), headers=new.headers).status == 404
        script.run("c.count += 1; c.flush()")
        assert (seq(old, room), ask(room_url(new, "rooms", room), headers=new.headers).status) == (3, 404)
        old.stop()
        script.run("c.count += 1; c.flush(20)")
        held = ask(room_url(new, "rooms", room), headers=new.headers)
        assert held.body["states"]["Counter"]["values"] == {"count": 9}
        assert script.value("c.count") == 9
        # From one of the two it is a reconnect like any other: the same member.
        assert len(held.body["members"]) == 1
