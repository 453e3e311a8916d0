"""One room, its store, its members and their locks under every fault at once, and the schedules of the hard cases one by one.

What is held against what is written in ``support/world.py``. A failing seed runs again with ``world.run(seed)``.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sharedwidgets.core import codec
from sharedwidgets.core.claims import Tenure
from sharedwidgets.core.protocol import (
    Downstream,
    Entries,
    Hello,
    Inc,
    Nack,
    Op,
    Resend,
    Set,
    Snapshot,
    Splice,
    Upstream,
)
from sharedwidgets.core.replica import Replica
from support import traffic
from support.build import NOW, author, empty_room, only, push, records, resume, room_with
from support.chronicle import lock_of
from support.client import Client, invalid
from support.scale import scaled
from support.traffic import Connection
from support.world import World, run_all

SCHEDULES = max(300, scaled(3000))
# How often each fault must meet each kind of message that is said after the hello, whatever the size of the run: it goes on,
# so many schedules at a time, until the rarest has, or there were too many.
LEAST = 50
MORE, MOST = 50, SCHEDULES + 1200
FAULTS = ("lost", "delayed", "repeated", "overtaken", "store failed")
SAID = (
    *(traffic.of_client(kind) for kind in get_args(Upstream) if kind is not Hello),
    *(traffic.of_server(kind) for kind in get_args(Downstream)),
)
INPUTS = ("push", "join", "leave", "resume", "acquire", "cancel", "renew", "release", "closed", "catchup", "tick")
# What else a run is made for.
ALSO = {
    "lost": ("hello",),
    "delayed": ("hello",),
    "discarded": ("hello",),
    "dropped": ("entries",),
    "folded": ("entries",),
    "append failed before": INPUTS,
    "append failed after": INPUTS,
    "restarted": ("server",),
    "paused": ("0.5 leases", "1 leases", "3 leases"),
    "held up": ("0.5 leases", "1 leases", "3 leases"),
    "refused": ("by the author",),
    "refused by the author": ("locked", "lock-lost"),
    "answered": ("applied", "withdrawn", "out-of-bounds", "value-mismatch", "locked", "lock-lost", "forbidden"),
    "freed": ("released", "expired", "broken", "gone"),
    "locks": ("held", "disturbed", "released", "expired", "broken", "unknown", "taken"),
    "received": tuple(traffic.of_server(kind) for kind in get_args(Downstream)),
    "sent": (*(traffic.of_client(kind) for kind in get_args(Upstream)), "splice"),
}


class Outcome(NamedTuple):
    """How many schedules there were, which failed, and how often each fault met each kind of message."""

    schedules: int
    failures: list[str]
    table: Counter[tuple[str, str]]

    @property
    def rare(self) -> list[str]:
        """What was not met often enough."""
        cells = [(kind, fault, self.table[fault, kind]) for fault in FAULTS for kind in SAID]
        return [f"{kind} {fault}: {times}" for kind, fault, times in cells if times < LEAST]


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    found = Outcome(SCHEDULES, *run_all(range(SCHEDULES)))
    while found.rare and not found.failures and found.schedules < MOST:
        failures, table = run_all(range(found.schedules, found.schedules + MORE))
        found = Outcome(found.schedules + MORE, failures, found.table + table)
    return found


def test_g1_to_g10_hold_in_every_schedule(outcome: Outcome) -> None:
    failures = outcome.failures
    assert not failures, f"{len(failures)} of {outcome.schedules} schedules failed:\n" + "\n".join(failures[:10])


def test_each_fault_met_each_kind_of_message(
    outcome: Outcome, record_testsuite_property: Callable[[str, object], None]
) -> None:
    table = outcome.table
    record_testsuite_property("schedules", outcome.schedules)
    record_testsuite_property("faults of", " | ".join(FAULTS))
    for kind in SAID:
        record_testsuite_property(f"faults of {kind}", " | ".join(str(table[fault, kind]) for fault in FAULTS))
    assert not outcome.rare, f"fewer than {LEAST} times in {outcome.schedules} schedules: {', '.join(outcome.rare)}"


def test_each_run_met_what_it_is_made_for(outcome: Outcome) -> None:
    missed = [f"{kind} {fault}" for fault, kinds in ALSO.items() for kind in kinds if not outcome.table[fault, kind]]
    assert missed == []


def act(name: str) -> Callable[[RoomMachine, int], None]:
    def acted(self: RoomMachine, seed: int) -> None:
        self.world.rng = random.Random(seed)
        self.world.begin()
        getattr(self.world, name)()

    acted.__name__ = name
    return rule(seed=st.integers(0, 1 << 16))(acted)


class RoomMachine(RuleBasedStateMachine):
    """The acts of a schedule in an order of Hypothesis's choice, which also makes a failing one short."""

    @initialize(seed=st.integers(0, 1 << 16), faults=st.sampled_from([0.0, 0.2, 0.5]))
    def begin(self, seed: int, faults: float) -> None:
        self.world = World(random.Random(seed), faults=faults)
        self.faults = faults
        for client in self.world.clients[:3]:
            client.connect()

    write, write_more = act("write"), act("write")
    pump, carry_up, carry_down = act("pump"), act("carry_up"), act("carry_down")
    decide, decide_more = act("decide"), act("decide")
    break_connection, notice, hang_up, connect = act("break_connection"), act("notice"), act("hang_up"), act("connect")
    restart, catch_up, fold, leave, widen, tick = (
        act(name) for name in ("restart", "catch_up", "fold", "leave", "widen", "tick")
    )
    want, want_more, part, keep, exchange = act("want"), act("want"), act("part"), act("keep"), act("exchange")
    pause, lull, overtake, give_up, ask_after = (act(name) for name in ("pause", "lull", "overtake", "give_up", "ask_after"))
    break_lock = act("break_lock")

    @rule()
    def peace(self) -> None:
        """Everything settles, at any point; then the faults go on."""
        self.world.settle()
        self.world.faults = self.faults

    @invariant()
    def replicas_hold_the_room(self) -> None:
        for client in self.world.clients if hasattr(self, "world") else ():
            client.check()


TestRoomMachine = RoomMachine.TestCase
TestRoomMachine.settings = settings(max_examples=scaled(400), stateful_step_count=60)


# --- the hard cases, one schedule each


@pytest.fixture
def world() -> World:
    """Two kernels, another process of the first one, and a page, all at rest."""
    made = World(random.Random(7), faults=0.0, boots=("k1", "k2", "k3", "p1"))
    made.withhold = False
    made.settle()
    return made


def of(world: World, boot: str) -> Client:
    return next(client for client in world.clients if client.boot == boot)


def socket(client: Client) -> Connection:
    assert client.connection is not None
    return client.connection


def put(path: str, value: Any, if_rev: int | None = None) -> Set:
    return Set(state="S", path=tuple(path.split(".")), value=value, if_rev=if_rev)


def inc(by: int, trait: str = "count") -> Inc:
    return Inc(state="S", path=(trait,), by=by)


def say(client: Client, *ops: Op) -> None:
    """Write the ops as one push, and put it on the wire."""
    client.push(*ops)
    client.pump()


def arrive(world: World, *clients: Client, ends: traffic.Ends = "ok") -> None:
    """What these clients said reaches the room, and is decided in one window."""
    for client in clients:
        while socket(client).up:
            world.shell.read(socket(client))
    world.shell.decide(100)
    world.shell.complete(ends)


def under_way(client: Client) -> list[Downstream]:
    return [codec.decode_downstream(parcel.frame) for parcel in socket(client).down]


def hear(client: Client) -> None:
    while socket(client).down:
        client.receive()


def lose(world: World, client: Client) -> None:
    """The socket dies with all that is under way; the server does not know yet."""
    world.lose(socket(client).down, 0)
    world.lose(socket(client).up, 0)
    client.disconnected()


def value(world: World, trait: str) -> Any:
    return world.shell.room.states["S"].values[trait]


def test_h01_h02_an_assignment_is_compared_with_what_its_author_saw(world: World) -> None:
    k1, k2 = of(world, "k1"), of(world, "k2")
    k1.assign("tags", {"a": 1})
    world.settle()
    shown = {trait: k1.replica.value("S", trait) for trait in ("left", "tags")}
    say(k2, put("tags.b", 2))
    say(k2, put("left", 1), put("right", 1))
    world.settle()
    # k1's traits still show the old values: 0 is said again, and a key is added to what is seen.
    assert k1.replica.assign("S", "left", shown["left"], 0) == [put("left", 0)]
    k1.assign("tags", {"a": 1, "c": 3}, shown=shown["tags"])
    world.settle()
    assert value(world, "tags") == {"a": 1, "b": 2, "c": 3}


def test_h04_an_ack_whose_entry_was_folded_away(world: World) -> None:
    k1, k2 = of(world, "k1"), of(world, "k2")
    say(k1, put("title", "mine"))
    arrive(world, k1)
    say(k2, put("title", "theirs"))
    arrive(world, k2)
    world.fold()
    (frame,) = under_way(k1)
    assert isinstance(frame, Entries)
    assert [entry.by.id for entry in frame.entries] == ["mb"]
    hear(k1)
    assert k1.told == {1: "applied"}
    assert k1.replica.value("S", "title") == "theirs"


@pytest.mark.parametrize("noticed", [False, True])
def test_h05_a_refusal_lost_with_the_socket(world: World, noticed: bool) -> None:
    k1, k2 = of(world, "k1"), of(world, "k2")
    say(k2, inc(15, "level"))
    say(k1, inc(15, "level"))
    say(k1, inc(1))
    arrive(world, k2, k1)
    assert [message.n for message in under_way(k1) if isinstance(message, Nack)] == [1]
    old = socket(k1)
    lose(world, k1)
    if noticed:
        world.shell.closed(old)
    k1.connect()
    world.settle()
    assert k1.told == {1: "invalid-value", 2: "applied"}


def test_h06_a_stale_splice_among_pushes_under_way(world: World) -> None:
    k1, k2 = of(world, "k1"), of(world, "k2")
    text = "0123456789" * 60
    k1.assign("doc", text)
    world.settle()
    k2.assign("doc", "!" + text)
    k1.assign("doc", text + "?")
    k1.push(inc(1))
    k1.assign("doc", text + "??")
    for client in (k2, k1):
        client.pump()
    arrive(world, k2, k1)
    assert [message.n for message in under_way(k1) if isinstance(message, Resend)] == [2]
    assert "k1" not in {boot for boot, n in world.store.verdicts if n > 1}
    hear(k1)
    k1.pump()
    again = [codec.decode_upstream(parcel.frame) for parcel in socket(k1).up]
    assert [push.n for push in again] == [2, 3, 4]  # type: ignore[union-attr]
    assert not any(isinstance(op, Splice) for push in again for op in push.ops)  # type: ignore[union-attr]
    world.settle()
    assert value(world, "doc") == text + "??"
    assert k1.told == dict.fromkeys(range(1, 5), "applied")


def test_h07_two_processes_of_one_member_count_for_themselves(world: World) -> None:
    k1, k3 = of(world, "k1"), of(world, "k3")
    assert k1.author.member == k3.author.member
    for client in (k1, k3):
        say(client, inc(1))
    arrive(world, k1, k3)
    world.settle()
    assert value(world, "count") == 2
    assert k1.told == k3.told == {1: "applied"}


def test_h07_what_is_unread_on_an_older_socket_is_discarded(world: World) -> None:
    k1 = of(world, "k1")
    world.settle()
    old = socket(k1)
    # A push and a late leave of the page's former life wait in the server's buffers.
    say(k1, inc(1))
    k1.disconnected()
    old.up.append(traffic.Parcel('{"type":"leave","room":"r"}', "leave", world.step))
    k1.connect()
    world.shell.read(socket(k1))
    while old.up:
        world.shell.read(old)
    assert world.table["discarded", "leave"] == world.table["discarded", "push"] == 1
    world.settle()
    assert value(world, "count") == 1
    assert "ma" in {member.id for member in world.shell.room.members}


def test_h07_a_late_hello_of_an_older_socket_costs_one_more_connection(world: World) -> None:
    """The two hellos of one boot arrive in the other order: the living socket is closed, and comes again."""
    k1 = of(world, "k1")
    lose(world, k1)
    k1.connect()
    late = socket(k1)
    k1.disconnected()
    k1.connect()
    world.shell.read(socket(k1))
    world.shell.read(late)
    assert not socket(k1).open_at_server
    say(k1, inc(1))
    world.settle()
    assert value(world, "count") == 1


def test_g04_an_answer_lost_with_the_socket_is_told_again_and_once(world: World) -> None:
    k1, k2 = of(world, "k1"), of(world, "k2")
    taken = k1.ask(Inc(state="S", path=("stock",), by=4, max=10))
    refused = k1.ask(Inc(state="S", path=("stock",), by=1, max=10))
    other = k2.ask(Inc(state="S", path=("stock",), by=-1, min=0))
    for client in (k1, k2):
        client.pump()
    arrive(world, k1, k2)
    assert k1.replica.value("S", "stock") == traffic.VALUES["stock"]
    lose(world, k1)
    k1.connect()
    world.settle()
    assert (taken.answer, refused.answer, other.answer) == (10, "out-of-bounds", 9)
    assert value(world, "stock") == 9


def test_g04_of_two_who_saw_the_same_one_has_its_turn(world: World) -> None:
    k1, k2 = of(world, "k1"), of(world, "k2")
    asks = [client.ask(Set(state="S", path=("turn",), value=client.boot, if_in=(None,))) for client in (k1, k2)]
    for client in (k1, k2):
        client.pump()
    arrive(world, k2, k1)
    world.settle()
    assert [ask.answer for ask in asks] == ["value-mismatch", None]
    assert value(world, "turn") == "k2"


def want(client: Client, name: str = "S", thread: str = "main", lease: float = traffic.LEASE) -> Tenure:
    """A claim of one thread, on the wire."""
    tenure = client.claim(thread, lock_of(name), lease)
    client.pump()
    return tenure


def test_g06_a_holder_sees_what_was_decided_before_its_grant_in_the_same_window(world: World) -> None:
    k1, k2 = of(world, "k1"), of(world, "k2")
    say(k2, inc(1))
    tenure = want(k1)
    say(k2, inc(1))
    arrive(world, k2, k1)
    hear(k1)
    assert (tenure.phase, k1.replica.value("S", "count")) == ("held", 2)


def test_g06_what_was_written_before_is_decided_before_the_lock_is_asked_for(world: World) -> None:
    k1 = of(world, "k1")
    k1.push(inc(1))
    tenure = want(k1)
    assert [parcel.kind for parcel in socket(k1).up] == ["push"]
    arrive(world, k1)
    hear(k1)
    k1.pump()
    assert [parcel.kind for parcel in socket(k1).up] == ["acquire"]
    arrive(world, k1)
    hear(k1)
    assert tenure.phase == "held"


@pytest.mark.parametrize("leases", traffic.PAUSES)
def test_g07_a_holder_that_pauses_writes_within_its_lease_or_not_at_all(world: World, leases: float) -> None:
    k1, k2 = of(world, "k1"), of(world, "k2")
    first, second = want(k1), want(k2)
    arrive(world, k1, k2)
    for client in (k1, k2):
        hear(client)
    # It writes, and stands still before a byte of it leaves; nobody renews meanwhile.
    k1.push(inc(1))
    world.held_up += leases * traffic.LEASE
    k1.pump()
    arrive(world, k1)
    kept = leases < 1
    assert world.store.verdicts["k1", 1] == ("applied" if kept else "lock-lost")
    for client in (k1, k2):
        hear(client)
    assert (first.phase, first.end) == (("held", None) if kept else ("over", "expired"))
    assert second.phase == ("asked" if kept else "held")
    world.settle()
    assert k1.told == {1: "applied" if kept else "lock-lost"}


def test_g07_a_renewal_that_came_too_late_revives_nothing(world: World) -> None:
    k1 = of(world, "k1")
    tenure = want(k1)
    arrive(world, k1)
    hear(k1)
    k1.keep()
    world.held_up += traffic.LEASE
    arrive(world, k1)
    hear(k1)
    assert (tenure.phase, tenure.end) == ("over", "expired")


def test_g10_a_transaction_over_two_states_is_refused_whole_where_one_is_locked(world: World) -> None:
    k1, k2 = of(world, "k1"), of(world, "k2")
    for client in (k1, k2):
        client.states["T"] = (traffic.HIDDEN, traffic.HIDDEN_VALUES)
        client.join("T")
    world.settle()
    tenure = want(k2, "T")
    arrive(world, k2)
    both = (put("left", 1), put("right", 1), Set(state="T", path=(f"_{traffic.MARKER}_t", "a"), value=1))
    k1.push(*both, group=True)
    k1.pump()
    arrive(world, k1)
    assert world.store.verdicts["k1", 1] == "locked"
    hear(k2)
    k2.push(*both, group=True)
    k2.pump()
    arrive(world, k2)
    assert world.store.verdicts["k2", 1] == "applied"
    assert tenure.fence == world.store.seq - 1


@pytest.mark.parametrize("ends", ["before", "after"])
def test_h09_nobody_hears_of_what_the_store_did_not_take(world: World, ends: traffic.Ends) -> None:
    k1, k2, p1 = of(world, "k1"), of(world, "k2"), of(world, "p1")
    seq = world.store.seq
    say(k1, inc(15, "level"))
    say(k2, inc(15, "level"))
    say(k2, inc(1))
    arrive(world, k1, k2, ends=ends)
    assert world.store.seq == seq + (2 if ends == "after" else 0)
    for client in (k1, k2, p1):
        nacks = [message for message in under_way(client) if isinstance(message, Nack)]
        (snapshot,) = [message for message in under_way(client) if isinstance(message, Snapshot)]
        assert snapshot.seq == world.store.seq
        assert len(nacks) == (1 if ends == "after" and client is k2 else 0)
    world.settle()
    assert (value(world, "level"), value(world, "count")) == (20, 1)
    assert (k1.told, k2.told) == ({1: "applied"}, {1: "invalid-value", 2: "applied"})


def test_h09_who_came_in_the_lost_window_hears_its_old_verdicts_first(world: World) -> None:
    k1, k2 = of(world, "k1"), of(world, "k2")
    say(k2, inc(15, "level"))
    say(k1, inc(15, "level"))
    arrive(world, k2, k1)
    old = socket(k1)
    lose(world, k1)
    world.shell.closed(old)
    k1.connect()
    say(k2, inc(1))
    arrive(world, k1, k2, ends="before")
    # Its coming is decided once more, and only then is it told.
    hear(k1)
    assert k1.told == {}
    arrive(world)
    hear(k1)
    assert k1.told == {1: "invalid-value"}
    world.settle()


def test_h13_a_transaction_folded_into_one_frame_shows_whole(world: World) -> None:
    k1, p1 = of(world, "k1"), of(world, "p1")
    for number in (1, 2, 3):
        say(k1, put("left", number), put("right", number))
        arrive(world, k1)
    world.fold()
    world.fold()
    (frame,) = under_way(p1)
    assert isinstance(frame, Entries)
    assert [len(entry.ops) for entry in frame.entries] == [2]
    hear(p1)
    assert p1.replica.value("S", "left") == p1.replica.value("S", "right") == 3


def test_h15_a_page_does_not_ask_for_what_it_may_not_see(world: World) -> None:
    k1, p1 = of(world, "k1"), of(world, "p1")
    secret = f"_{traffic.MARKER}_salt"
    for number in range(3):
        say(k1, put(secret, f"{traffic.MARKER} {number}"))
        arrive(world, k1)
    say(k1, put("title", "seen"))
    arrive(world, k1)
    hear(p1)
    assert not socket(p1).up
    assert p1.replica.seq == world.store.seq
    assert p1.replica.value("S", "title") == "seen"


def test_h16_a_page_that_comes_first_waits() -> None:
    world = World(random.Random(1), faults=0.0, boots=("p1", "k1"))
    p1, k1 = of(world, "p1"), of(world, "k1")
    p1.connect()
    arrive(world, p1)
    hear(p1)
    assert p1.replica.live
    assert p1.replica.view("S") == {}
    assert world.store.image() is None
    k1.connect()
    arrive(world, k1)
    hear(p1)
    assert p1.replica.value("S", "level") == 5
    world.settle()


def test_h17_a_second_state_joined_while_lagging(world: World) -> None:
    k1, k2 = of(world, "k1"), of(world, "k2")
    world.faults = 1.0
    say(k1, put("title", "missed"))
    arrive(world, k1)
    assert not under_way(k2)
    world.faults = 0.0
    k2.states["T"] = (traffic.HIDDEN, traffic.HIDDEN_VALUES)
    k2.join("T")
    arrive(world, k2)
    hear(k2)
    # It is told that T came, sees the gap and asks; what it missed of S is not taken for seen.
    assert "T" not in k2.replica.states
    world.settle()
    assert k2.replica.value("S", "title") == "missed"
    assert "T" in k2.replica.states


def test_h18_h08_a_log_that_lost_its_end_and_went_on() -> None:
    """Power cut: the last entries are gone, and others took their numbers; a splice on a lost one fits nothing."""
    text = "0123456789" * 60
    k1, k2, room = author("k1"), author("k2"), room_with(author("k1"), author("k2"))
    image = room.image()
    replica = Replica("r")
    replica.receive(room.snapshot("k1", "kernel"))
    room.receive(k2, push(1, put("title", text)), NOW)
    replica.receive(room.catch_up("k1", "kernel", "i1", "e1", 1))
    replica.disconnected()
    replica.write([put("title", text[:300] + "?" + text[300:])])
    fresh = empty_room(image=image, epoch="e2")
    fresh.receive(k2, resume(1), NOW)
    for n in (1, 2):
        fresh.receive(k2, push(n, put("title", "z" * 700)), NOW)
    fresh.receive(k1, replica.position(["S"]), NOW)
    (mine,) = replica.take(4)
    assert mine.ops == (put("title", text[:300] + "?" + text[300:]),)
    assert records(fresh.receive(k1, mine, NOW))[0].entry
    # Had it been cut all the same, from a revision that is still to come, it would have been asked for whole.
    lost = Splice(state="S", path=("title",), rev=fresh.seq + 1, at=0, remove=0, insert="?")
    assert only(fresh.receive(k1, push(2, lost), NOW), Resend).n == 2


def test_h11_what_is_refused_at_the_author_never_travels(world: World) -> None:
    k1 = of(world, "k1")
    sent = world.table["sent", "push"]
    for seed in range(40):
        invalid(k1, random.Random(seed))
        k1.pump()
    assert world.table["sent", "push"] == sent
    assert world.table["refused", "by the author"] == 40


@pytest.mark.parametrize("extra", [float("inf"), -(2**70), "😀\x00", {"$float": "nan"}, {"$dict": {}}, [b"", {"": b"x"}]])
def test_h11_every_value_of_the_domain_reaches_everyone(world: World, extra: Any) -> None:
    k1, p1 = of(world, "k1"), of(world, "p1")
    k1.assign("extra", extra)
    world.settle()
    assert p1.replica.value("S", "extra") == extra
    image = world.store.image()
    assert image is not None
    assert msgspec.structs.asdict(image)["seq"] == world.store.seq
