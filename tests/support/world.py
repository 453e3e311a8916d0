"""A room, its store, its members and the wires between them, in one thread and without time: every fault is an act.

The shell below batches as the real manager does: it decides several inputs, appends what they record, and carries the effects
out in their order, with one `Entries` frame per audience for each run of records. Each message crosses a wire as bytes. Two
books are kept beside it, by other code than the one under test: `Store.history`, the room as a plain dict at each seq, and
`Store.verdicts`, what became of each (boot, n). Whatever a replica holds, shows or was told is held against them at once.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import msgspec
import pytest

from sharedwidgets.core import codec, delta
from sharedwidgets.core.codec import Frame
from sharedwidgets.core.protocol import (
    PROTOCOL_VERSION,
    Append,
    Define,
    Delete,
    Downstream,
    Entries,
    Entry,
    Hello,
    Inc,
    Join,
    Joined,
    Leave,
    Limits,
    Member,
    Members,
    Nack,
    Op,
    Push,
    Resend,
    Resume,
    Set,
    Snapshot,
    Splice,
    StateImage,
    TraitSchema,
    Upstream,
)
from sharedwidgets.core.replica import News, Replica
from sharedwidgets.core.room import Attach, Author, Detach, Effect, Mark, Now, Record, Room, RoomImage, Send, Tell
from sharedwidgets.errors import InvalidValue, NoSuchPath, NoSuchTrait
from support.plain import Plain, related

TOKEN = "r"
# In every name and every value that only kernels may know, and nowhere else (G9).
MARKER = "zq7"
IN_FLIGHT = 4
# Rounds of "deliver all, decide all" after the last fault; more means that something waits for ever.
SETTLE_ROUNDS = 60

Ends: TypeAlias = Literal["ok", "before", "after"]

SCHEMA: dict[str, TraitSchema] = {
    "count": TraitSchema(kind="int"),
    "level": TraitSchema(kind="int", min=0, max=20),
    "title": TraitSchema(kind="text"),
    "doc": TraitSchema(kind="text"),
    "blob": TraitSchema(kind="bytes"),
    "items": TraitSchema(kind="list"),
    "tags": TraitSchema(kind="dict"),
    "left": TraitSchema(kind="int"),
    "right": TraitSchema(kind="int"),
    "extra": TraitSchema(),
    f"_{MARKER}_salt": TraitSchema(kind="text", kernel_only=True),
    f"_{MARKER}_keys": TraitSchema(kind="dict", kernel_only=True),
}
VALUES: dict[str, Any] = {
    "count": 0,
    "level": 5,
    "title": "",
    "doc": "",
    "blob": b"",
    "items": [],
    "tags": {},
    "left": 0,
    "right": 0,
    "extra": None,
    f"_{MARKER}_salt": f"{MARKER} at first",
    f"_{MARKER}_keys": {},
}
# A newer class of the same state, and a state that to a page has a name and nothing else.
NEWER: dict[str, TraitSchema] = {
    **SCHEMA,
    "late": TraitSchema(kind="float"),
    f"_{MARKER}_late": TraitSchema(kernel_only=True),
}
NEWER_VALUES: dict[str, Any] = {**VALUES, "late": 0.5, f"_{MARKER}_late": [f"{MARKER}"]}
HIDDEN: dict[str, TraitSchema] = {f"_{MARKER}_t": TraitSchema(kind="dict", kernel_only=True)}
HIDDEN_VALUES: dict[str, Any] = {f"_{MARKER}_t": {}}

INVALID: tuple[tuple[str, Any], ...] = (
    ("count", 1.5),
    ("count", True),
    ("level", 21),
    ("title", "\ud800"),
    ("title", None),
    ("extra", {1: 2}),
    ("extra", object()),
    ("tags", []),
)


def kind_of(message: Upstream | Downstream) -> str:
    """The name of a message on the wire."""
    return str(type(message).__struct_config__.tag)


@dataclass
class Parcel:
    """One message under way."""

    frame: Frame
    kind: str
    since: int
    # Part of a run for a whole audience: what an outbox may fold or let go.
    shared: bool = False


@dataclass(eq=False)
class Connection:
    """One socket of a client."""

    client: Client
    up: deque[Parcel] = field(default_factory=deque)
    down: deque[Parcel] = field(default_factory=deque)
    open_at_client: bool = True
    open_at_server: bool = True
    # Where the first entry this connection was not told began.
    lagging: tuple[str, str, int] | None = None
    cursor: tuple[str, str, int] = ("", "", 0)


class Store:
    """The log, the marks, and the two books. `verdicts` says ``applied`` or the code of the refusal."""

    def __init__(self) -> None:
        self.incarnation = ""
        self.epochs: tuple[tuple[str, int], ...] = ()
        self.log: list[Entry] = []
        self.marks: dict[str, Mark] = {}
        self.history: list[Plain] = [Plain()]
        self.verdicts: dict[tuple[str, int], str] = {}
        # What each author meant by (boot, n), as plain ops.
        self.intents: dict[tuple[str, int], tuple[Op, ...]] = {}

    @property
    def seq(self) -> int:
        return len(self.log)

    def append(self, room: Room, batch: Sequence[Record], expected_seq: int) -> None:
        assert expected_seq == self.seq, f"G1: the store holds {self.seq}, the room says {expected_seq}"
        for record in batch:
            if record.entry is not None:
                self._append(record.entry, record.boot, record.mark)
            if record.boot is not None:
                assert record.mark is not None
                self._move(record.boot, record.mark, applied=record.entry is not None)
        self.incarnation, self.epochs = room.incarnation, tuple(room.epochs)

    def _append(self, entry: Entry, boot: str | None, mark: Mark | None) -> None:
        assert entry.seq == self.seq + 1, f"G1: seq {entry.seq} after {self.seq}"
        before = self.history[-1]
        after = before.after(entry.ops)
        if boot is not None:
            assert mark is not None
            meant = self.intents[boot, mark.n]
            assert before.after(meant).values == after.values, f"{boot} {mark.n} meant {meant}, the room took {entry.ops}"
            self._check_bases(entry, meant)
        self.log.append(entry)
        self.history.append(after)

    def _check_bases(self, entry: Entry, meant: Sequence[Op]) -> None:
        """A splice or a conditional set counts only when nothing touched its path since the revision it names."""
        for op in entry.ops:
            base = op.rev if isinstance(op, Splice) else op.if_rev if isinstance(op, Set) else None
            if base is None:
                continue
            assert not isinstance(op, (Define, Delete, Inc, Append))
            for other in self.log[base:]:
                for change in other.ops:
                    hit = not isinstance(change, Define) and change.state == op.state and related(change.path, op.path)
                    assert not hit, f"{op} in {entry.seq} was decided although {other} changed its base"

    def _move(self, boot: str, mark: Mark, *, applied: bool) -> None:
        before = self.marks.get(boot, Mark())
        assert mark.n == before.n + 1, f"G2, G3: the mark of {boot} goes from {before.n} to {mark.n}"
        if applied:
            self.verdicts[boot, mark.n] = "applied"
        else:
            assert mark.refused[-1].n == mark.n
            self.verdicts[boot, mark.n] = mark.refused[-1].problem.code
        self.marks[boot] = mark

    def image(self) -> RoomImage | None:
        if not self.log and not self.marks:
            return None
        held = self.history[-1]
        states = {name: StateImage(schema=held.schema[name], values=held.values[name]) for name in held.schema}
        return RoomImage(incarnation=self.incarnation, epochs=self.epochs, seq=self.seq, states=states, marks=dict(self.marks))


@dataclass
class Window:
    """Inputs decided together, and what follows from them, each with the connection it came by."""

    inputs: list[Input]
    effects: list[tuple[Effect, Connection]]


@dataclass(frozen=True)
class Closed:
    """A socket is gone."""


@dataclass(frozen=True)
class CatchUp:
    """A connection that lagged has room again."""


@dataclass(frozen=True)
class Tick:
    """Time went on."""


Input: TypeAlias = tuple[Connection, "Join | Leave | Resume | Push | Closed | CatchUp | Tick"]


class Shell:
    """What the manager is to a room: decides a window, appends, and only then tells."""

    def __init__(self, world: World, limits: Limits) -> None:
        self.world = world
        self.limits = limits
        self.current: dict[str, Connection] = {}
        self.inputs: deque[Input] = deque()
        self.readers: dict[str, Connection] = {}
        self.window: Window | None = None
        self._epochs = 0
        self._run: list[Record] = []
        self._decided: dict[str, int] = {}
        self.room = self._load()

    def _load(self) -> Room:
        self._epochs += 1
        return Room(TOKEN, incarnation="i1", epoch=f"e{self._epochs}", limits=self.limits, image=self.world.store.image())

    # --- connections

    def read(self, connection: Connection) -> None:
        """Take the next message off a connection; one that was replaced is not listened to (H7)."""
        parcel = connection.up.popleft()
        if not connection.open_at_server:
            self.world.count("discarded", parcel.kind)
            return
        self.world.count_delay(parcel)
        message = codec.decode_upstream(parcel.frame)
        match message:
            case Hello():
                self._admit(connection, message)
            case Join() | Leave() | Resume() | Push():
                self.inputs.append((connection, message))
            case _:
                raise AssertionError(f"{message} is answered at the door")

    def _admit(self, connection: Connection, hello: Hello) -> None:
        older = self.current.get(hello.boot)
        self.current[hello.boot] = connection
        if older is not None:
            older.open_at_server = False
            self.inputs.append((older, Closed()))
        for resume in hello.rooms:
            self.inputs.append((connection, resume))

    def closed(self, connection: Connection) -> None:
        """The server notices that a socket is gone."""
        if connection.open_at_server and self.current.get(connection.client.boot) is connection:
            del self.current[connection.client.boot]
            self.inputs.append((connection, Closed()))
        connection.open_at_server = False

    # --- the window

    def decide(self, count: int) -> None:
        """Decide so many inputs; nobody hears of it yet."""
        assert self.window is None
        batch = [self.inputs.popleft() for _ in range(min(count, len(self.inputs)))]
        self.window = Window(batch, [(effect, conn) for conn, item in batch for effect in self._decide(conn, item)])

    def _decide(self, connection: Connection, item: object) -> Sequence[Effect]:
        boot, now = connection.client.boot, self.world.now
        match item:
            case Closed():
                return self.room.disconnect(boot, now)
            case Tick():
                return self.room.tick(now)
            case CatchUp():
                cursor = connection.lagging
                if cursor is None or self.readers.get(boot) is not connection:
                    return []
                return [Send(boot, self.room.catch_up(boot, connection.client.audience, *cursor))]
            case Join() | Leave() | Resume() | Push():
                return self.room.receive(connection.client.author, item, now)
        raise AssertionError(item)

    def complete(self, ends: Ends) -> None:
        """The append is over. ``before`` and ``after``: it failed, before or after it in fact wrote (H9)."""
        assert self.window is not None
        window, self.window = self.window, None
        batch = [effect for effect, _ in window.effects if isinstance(effect, Record)]
        store = self.world.store
        expected = self.room.seq - sum(record.entry is not None for record in batch)
        if not batch:
            ends = "ok"
        if ends != "before" and batch:
            store.append(self.room, batch, expected)
        if ends == "ok":
            for effect, connection in window.effects:
                self._perform(effect, connection)
            self._flush()
            held = sum(state.bytes for state in self.room.states.values())
            assert self.room.bytes == held, f"the room counts {self.room.bytes} bytes and holds {held}"
            return
        for _, item in window.inputs:
            self.world.count(f"append failed {ends}", _name(item))
        self._recover(window)

    def _recover(self, window: Window) -> None:
        told = set(self.readers)
        for connection, item in window.inputs:
            boot = connection.client.boot
            elsewhere = isinstance(item, (Join, Resume, Push)) and self.readers.get(boot) is not connection
            if isinstance(item, Closed) or elsewhere:
                told.discard(boot)
        fresh = self._load()
        authors = fresh.adopt(self.room, told, self.world.now)
        self.room = fresh
        self._run, self._decided = [], {}
        self.readers = {who.boot: self.readers[who.boot] for who in authors}
        for effect in fresh.recovered(authors):
            assert isinstance(effect, Send)
            self._perform(effect, self.readers[effect.boot])
        again: list[Input] = []
        came: set[str] = set()
        for connection, item in window.inputs:
            boot = connection.client.boot
            if isinstance(item, (Join, Resume)):
                came.add(boot)
            if not isinstance(item, Push) or (boot in came and boot not in told):
                again.append((connection, item))
        self.inputs.extendleft(reversed(again))

    def restart(self) -> None:
        """The process dies and comes again: all sockets are gone, and what was not appended never was."""
        self.window = None
        self.inputs.clear()
        for connection in self.world.connections:
            connection.open_at_server = False
        self.current.clear()
        self.readers.clear()
        self._run, self._decided = [], {}
        self.room = self._load()

    # --- effects

    def _perform(self, effect: Effect, connection: Connection) -> None:
        match effect:
            case Record():
                self._run.append(effect)
                if effect.entry is not None and effect.boot is not None and effect.mark is not None:
                    self._decided[effect.boot] = effect.mark.n
            case Send():
                if not isinstance(effect.message, (Nack, Resend)):
                    self._flush()
                self._send(connection, effect.message)
            case Attach():
                self._flush()
                self.readers[effect.boot] = connection
            case Detach():
                self._flush()
                self.readers.pop(effect.boot, None)
            case Tell():
                for boot, reader in self.readers.items():
                    if boot != effect.but:
                        self._send(reader, effect.message)
            case _:
                raise AssertionError(effect)

    def _flush(self) -> None:
        records = [record for record in self._run if record.entry is not None]
        decided, self._run, self._decided = self._decided, [], {}
        if not records:
            return
        first, last = records[0].entry, records[-1].entry
        assert first is not None
        assert last is not None
        bodies: dict[str, tuple[Entries, codec.Encoded]] = {}
        for boot, reader in self.readers.items():
            audience = reader.client.audience
            if audience not in bodies:
                shown = [record.public if audience == "frontend" else record.entry for record in records]
                message = Entries(
                    room=TOKEN,
                    epoch=self.room.epoch,
                    prev=first.seq - 1,
                    last=last.seq,
                    entries=tuple(entry for entry in shown if entry is not None),
                )
                bodies[audience] = (message, codec.encode_shared(message))
            message, body = bodies[audience]
            self._broadcast(reader, message, body.frame(decided=decided.get(boot, 0)))

    def _broadcast(self, reader: Connection, message: Entries, frame: Frame) -> None:
        withheld = reader.lagging is not None and self.world.withhold
        if withheld or self.world.loses_entries():
            self.world.count("dropped", "entries")
            reader.lagging = reader.lagging or reader.cursor
        else:
            self._queue(reader, frame, "entries", shared=True)
        reader.cursor = (self.room.incarnation, message.epoch, message.last)

    def _send(self, connection: Connection, message: Downstream) -> None:
        if isinstance(message, (Snapshot, Entries)):
            seq = message.seq if isinstance(message, Snapshot) else message.last
            connection.cursor = (self.room.incarnation, message.epoch, seq)
            connection.lagging = None
        self._queue(connection, codec.encode(message).frame(), kind_of(message), shared=False)

    def _queue(self, connection: Connection, frame: Frame, kind: str, *, shared: bool) -> None:
        if not connection.open_at_server:
            return
        if not connection.open_at_client:
            self.world.count("lost", kind)
            return
        if connection.client.audience == "frontend":
            plain = frame.encode() if isinstance(frame, str) else frame
            assert MARKER.encode() not in plain, f"G9: a page is sent {frame!r}"
        connection.down.append(Parcel(frame, kind, self.world.step, shared))


class Client:
    """One boot: its replica, its connection, and what it was told."""

    def __init__(self, world: World, boot: str, member: str, *, page: bool = False, may_write: bool = True) -> None:
        self.world = world
        self.boot = boot
        self.page = page
        kind: Literal["kernel", "frontend"] = "frontend" if page else "kernel"
        self.audience: Literal["kernel", "frontend"] = kind
        self.author = Author(boot, Member(id=member, kind=kind), self.audience, may_write, kind)
        self.replica = Replica(TOKEN)
        self.connection: Connection | None = None
        self.states: dict[str, tuple[dict[str, TraitSchema], dict[str, Any]]] = {"S": (SCHEMA, VALUES)}
        self.joins: dict[int, str] = {}
        self.member_of_room = True
        # n to "applied" or the code of the refusal, as this boot was told.
        self.told: dict[int, str] = {}
        self._open: set[int] = set()
        self._shown: dict[tuple[str, str], Any] = {}
        self._serial = 0

    @property
    def settled(self) -> bool:
        return self.member_of_room and self.replica.undecided == 0 and not self.joins and not self._open

    # --- the wire

    def connect(self) -> None:
        """A new socket; an older one may not have been noticed to be dead."""
        assert self.connection is None
        self.connection = Connection(self)
        self.world.connections.append(self.connection)
        positions = (self.replica.position(self.states),) if self.replica.live else ()
        kind = self.author.member.kind
        self._say(Hello(protocol=PROTOCOL_VERSION, boot=self.boot, kind=kind, member=self.author.member.id, rooms=positions))
        asked = list(self.joins.values())
        self.joins.clear()
        if self.member_of_room and not self.replica.live and not asked:
            asked = list(self.states)
        for state in asked:
            self.join(state)

    def join(self, state: str) -> None:
        """Ask to enter; the verdict is a `Joined`."""
        self._serial += 1
        self.joins[self._serial] = state
        if self.connection is None:
            return
        schema, values = self.states[state]
        self._say(
            Join(
                id=self._serial,
                room=TOKEN,
                state=state,
                schema=None if self.page else schema,
                values=None if self.page else values,
                resume=self.replica.position() if self.replica.live else None,
            )
        )

    def leave(self) -> None:
        """Go, with nothing open behind; a later join begins with an empty replica."""
        assert self.settled
        self.member_of_room = False
        if self.connection is not None:
            self._say(Leave(room=TOKEN))
        self.replica = Replica(TOKEN)
        self._shown.clear()

    def come_back(self) -> None:
        """Join the room that was left."""
        self.member_of_room = True
        for state in self.states:
            self.join(state)

    def disconnected(self) -> None:
        """This side notices that the socket is gone."""
        assert self.connection is not None
        self.connection.open_at_client = False
        self.connection = None
        self.replica.disconnected()

    def pump(self, *, twice: bool = False) -> None:
        """Send what is due; `twice` says each push again, as after an answer that came late."""
        if self.connection is None:
            return
        for push in self.replica.take(IN_FLIGHT):
            self._note(push)
            for _ in range(1 + twice):
                self._say(push)
            if twice:
                self.world.count("repeated", "push")

    def _say(self, message: Upstream) -> None:
        assert self.connection is not None
        frame = codec.encode(message).frame()
        self.connection.up.append(Parcel(frame, kind_of(message), self.world.step))
        if isinstance(message, Hello) and message.rooms:
            self.world.count("sent", "resume")
        self.world.count("sent", kind_of(message))

    def _note(self, push: Push) -> None:
        """What this number means, for ever."""
        history = self.world.store.history
        meant: list[Op] = []
        for op in push.ops:
            if isinstance(op, Splice):
                self.world.count("sent", "splice")
                base = history[op.rev].at(op.state, op.path)
                meant.append(Set(state=op.state, path=op.path, value=base[: op.at] + op.insert + base[op.at + op.remove :]))
            else:
                meant.append(msgspec.structs.replace(op, if_rev=None) if isinstance(op, Set) else op)
        first = self.world.store.intents.setdefault((self.boot, push.n), tuple(meant))
        assert first == tuple(meant), f"{self.boot} gives {push.n} to {meant} after {first}"
        if push.n not in self.told:
            self._open.add(push.n)

    def receive(self) -> None:
        """Take the next message off the wire."""
        assert self.connection is not None
        parcel = self.connection.down.popleft()
        self.world.count_delay(parcel)
        self.world.count("received", parcel.kind)
        message = codec.decode_downstream(parcel.frame)
        match message:
            case Joined():
                self.joins.pop(message.id, None)
            case Snapshot() | Entries() | Nack() | Resend() | Members():
                if not self.member_of_room:
                    return
                news = self.replica.receive(message)
                self._book(news)
                for resume in news.send:
                    self._say(resume)
            case _:
                raise AssertionError(f"{self.boot} is told {message}")

    # --- what is checked at each step

    def _book(self, news: News) -> None:
        for item in news.refused:
            assert item.n in self._open, f"{self.boot} is told twice about {item.n}"
            self._open.discard(item.n)
            self.told[item.n] = item.problem.code
        for n in [n for n in self._open if n < self.replica.position().lowest]:
            self._open.discard(n)
            self.told[n] = "applied"
        for n, verdict in self.told.items():
            assert self.world.store.verdicts.get((self.boot, n)) == verdict, f"G3, G4: {self.boot} was told {verdict} of {n}"
        self._follow(news)
        self.check()

    def _follow(self, news: News) -> None:
        """Whoever listens to the changes alone sees what the replica shows."""
        for change in news.changes:
            key = (change.state, change.trait)
            assert self._shown.get(key) == change.old, f"{self.boot} hears of {change} and had {self._shown.get(key)!r}"
            self._shown[key] = change.new

    def check(self) -> None:
        """G5, G8, G9, G10: a replica holds the room as it was at its seq, and shows whole transactions."""
        replica = self.replica
        if not replica.live:
            return
        schema, values = self.world.store.history[replica.seq].seen(self.page)
        assert {name: state.schema for name, state in replica.states.items()} == schema, f"G5: {self.boot} at {replica.seq}"
        assert {name: state.values for name, state in replica.states.items()} == values, f"G5: {self.boot} at {replica.seq}"
        for name, state in replica.states.items():
            for trait in state.schema:
                value = replica.value(name, trait)
                assert replica.undecided or value == values[name][trait], f"{self.boot} shows {trait}={value!r} for nothing"
                assert self._shown.get((name, trait)) == value, f"{self.boot} shows {trait}={value!r} and told nobody"
        if "S" in replica.states:
            assert replica.value("S", "left") == replica.value("S", "right"), f"G10: {self.boot} shows half a transaction"

    # --- writes

    def write(self, rng: random.Random) -> None:
        """One write of any sort; the view shows it at once."""
        if "S" not in self.replica.states:
            return
        pick = rng.choice(_PAGE_WRITES if self.page else _WRITES)
        pick(self, rng)
        self.check()

    def fresh(self, rng: random.Random) -> str:
        """Text that nobody wrote before."""
        self._serial += 1
        return f"{self.boot}.{self._serial}" + rng.choice(("", " é", " 😀", " \x00"))

    def push(self, *ops: Op, group: bool = False) -> None:
        """Write these ops, which are legal as far as this replica knows."""
        self._follow(self.replica.write(ops, group=group))

    def attempt(self, *ops: Op) -> None:
        """Write ops that may be refused here and now; then nothing is written."""
        undecided = self.replica.undecided
        try:
            self.push(*ops)
        except (InvalidValue, NoSuchPath):
            assert self.replica.undecided == undecided
            self.world.count("refused", "by the author")

    def assign(self, trait: str, new: Any, *, shown: Any = ...) -> None:
        """An assignment, by an author who saw what the replica shows or something older."""
        seen = self.replica.value("S", trait) if shown is ... else shown
        ops = self.replica.assign("S", trait, seen, new)
        if ops:
            self.push(*ops)
        if shown is ...:
            assert self.replica.value("S", trait) == new


def _name(item: object) -> str:
    return kind_of(item) if isinstance(item, (Join, Leave, Resume, Push)) else type(item).__name__.lower()


def _op(kind: type[Any], path: str, **fields: Any) -> Op:
    op: Op = kind(state="S", path=tuple(path.split(".")), **fields)
    return op


def _count(client: Client, rng: random.Random) -> None:
    client.push(_op(Inc, "count", by=rng.randint(-3, 9)))


def _level(client: Client, rng: random.Random) -> None:
    client.attempt(_op(Inc, "level", by=rng.randint(-8, 8)))


def _title(client: Client, rng: random.Random) -> None:
    client.assign("title", client.fresh(rng))


def _doc(client: Client, rng: random.Random) -> None:
    held = client.replica.value("S", "doc")
    assert isinstance(held, str)
    at = rng.randint(0, len(held))
    cut = rng.choice((0, 0, 5, 300, 3000 if len(held) > 2000 else 0))
    client.assign("doc", held[:at] + client.fresh(rng) * rng.choice((1, 60)) + held[at + cut :])


def _blob(client: Client, rng: random.Random) -> None:
    held = client.replica.value("S", "blob")
    assert isinstance(held, bytes)
    at = rng.randint(0, len(held))
    client.assign("blob", held[:at][:1500] + client.fresh(rng).encode() * rng.choice((1, 50)) + held[at:][:1500])


def _items(client: Client, rng: random.Random) -> None:
    if rng.random() < 0.7:
        client.push(_op(Append, "items", items=(client.fresh(rng), rng.randint(0, 9))))
    else:
        held = client.replica.value("S", "items")
        assert isinstance(held, list)
        client.assign("items", [*held[-40:], {"k": [rng.random(), None, b"\x00\xff"]}])


def _tags(client: Client, rng: random.Random) -> None:
    key = rng.choice("abc")
    client.attempt(
        rng.choice(
            (
                _op(Set, f"tags.{key}", value=rng.randint(0, 99)),
                _op(Set, f"tags.{key}", value={"x": 1, "y": client.fresh(rng)}),
                _op(Set, f"tags.{key}.x", value=rng.randint(0, 99)),
                _op(Inc, f"tags.{key}", by=rng.choice((1, 0.5))),
                _op(Inc, f"tags.{key}.x", by=1),
                _op(Delete, f"tags.{key}"),
                _op(Delete, f"tags.{key}.x"),
                _op(Append, f"tags.{key}", items=(1,)),
            )
        )
    )


def _all_tags(client: Client, rng: random.Random) -> None:
    held = client.replica.value("S", "tags")
    assert isinstance(held, dict)
    new = {**held, rng.choice("abc"): client.fresh(rng)}
    new.pop(rng.choice("abc"), None)
    older = rng.choice(client.world.store.history[1:]).values.get("S", VALUES)["tags"]
    client.assign("tags", new, shown=rng.choice((..., older)))


def _group(client: Client, rng: random.Random) -> None:
    number = rng.randint(1, 1 << 40)
    ops = [_op(Set, "left", value=number), _op(Set, "right", value=number)]
    if rng.random() < 0.3:
        ops.insert(rng.randint(0, 2), _op(Inc, "level", by=rng.randint(-9, 9)))
    if rng.random() < 0.3:
        ops.append(_op(Set, "tags.a.x", value=number))
    client.attempt(*ops)


def _condition(client: Client, rng: random.Random) -> None:
    trait = rng.choice(("title", "tags", "tags.a"))
    value: Any = {"a": {"x": 0}, "b": 1} if trait == "tags" else client.fresh(rng)
    last = client.replica.last_change("S", trait.split(".")[0])
    rev = rng.choice((client.replica.seq, client.replica.seq, last.seq if last else 0))
    client.push(_op(Set, trait, value=value, if_rev=rev))


def _extra(client: Client, rng: random.Random) -> None:
    client.assign(
        "extra",
        rng.choice((None, True, 2**70, float("inf"), -0.5, "", b"", [[]], {"$int": "1"}, {"$dict": {"$bytes": 0}}, {"": {}})),
    )


def _too_large(client: Client, rng: random.Random) -> None:
    client.push(_op(Set, "extra", value=[client.fresh(rng) * 30 for _ in range(rng.choice((20, 60)))]))


def _invalid(client: Client, rng: random.Random) -> None:
    trait, value = rng.choice(INVALID)
    undecided, shown = client.replica.undecided, client.replica.view("S")
    with pytest.raises(InvalidValue) as caught:
        client.replica.write([_op(Set, trait, value=value)])
    assert caught.value.trait == trait
    assert (client.replica.undecided, client.replica.view("S")) == (undecided, shown)
    client.world.count("refused", "by the author")


def _secret(client: Client, rng: random.Random) -> None:
    if rng.random() < 0.5:
        client.assign(f"_{MARKER}_salt", MARKER + client.fresh(rng))
    else:
        client.attempt(_op(Set, f"_{MARKER}_keys.{MARKER}", value=MARKER + client.fresh(rng)), _op(Inc, "count", by=1))


def _secret_of_a_page(client: Client, rng: random.Random) -> None:
    with pytest.raises(NoSuchTrait):
        client.replica.write([_op(Set, f"_{MARKER}_salt", value=client.fresh(rng))])
    client.world.count("refused", "by the author")


_BOTH = (
    *(_count, _count, _level, _level, _title, _doc, _doc, _doc, _doc, _blob, _items, _tags, _tags, _all_tags, _group, _group),
    *(_condition, _extra, _too_large, _invalid),
)
_WRITES = (*_BOTH, _secret, _secret)
_PAGE_WRITES = (*_BOTH, _secret_of_a_page)


class World:
    """Everything, and the acts a schedule is made of.

    Parameters
    ----------
    rng : Random
        Decides what an act leaves open.
    faults : float
        How often an outbox loses a frame and an append fails, 0 to 1.
    boots : sequence of str, optional
        Who there is, of k1 to k3 and p1 to p3; all of them by default.
    """

    def __init__(self, rng: random.Random, *, faults: float = 0.1, boots: Sequence[str] = ()) -> None:
        self.rng = rng
        self.faults = faults
        self.step = 0
        self.table: Counter[tuple[str, str]] = Counter()
        self.withhold = rng.random() < 0.5
        self.connections: list[Connection] = []
        self.store = Store()
        limits = Limits(
            op_bytes=4096,
            in_flight_pushes=IN_FLIGHT,
            tail_bytes=rng.choice((1500, 6000, 1 << 20)),
            tail_entries=4,
            tail_seconds=rng.choice((5.0, 1e9)),
        )
        self.shell = Shell(self, limits)
        self.clients = [
            Client(self, "k1", "ma"),
            Client(self, "k2", "mb"),
            # The same member as k1, another process of it (H7).
            Client(self, "k3", "ma"),
            Client(self, "p1", "mp", page=True),
            Client(self, "p2", "mp", page=True),
            Client(self, "p3", "mr", page=True, may_write=False),
        ]
        if boots:
            self.clients = [client for client in self.clients if client.boot in boots]

    @property
    def now(self) -> Now:
        return Now(self.step * 0.5, 1e6 + self.step * 0.5)

    def count(self, fault: str, kind: str) -> None:
        self.table[fault, kind] += 1

    def count_delay(self, parcel: Parcel) -> None:
        if self.step - parcel.since > 20:
            self.count("delayed", parcel.kind)

    def loses_entries(self) -> bool:
        return self.rng.random() < self.faults

    # --- acts

    def act(self) -> None:
        """One act of any sort."""
        self.step += 1
        acts = _ACTS
        self.rng.choices([act for act, _ in acts], [weight for _, weight in acts])[0](self)

    def write(self) -> None:
        """Somebody writes."""
        self.rng.choice(self.clients).write(self.rng)

    def pump(self) -> None:
        """Somebody sends what is due, and sometimes says it twice."""
        self.rng.choice(self.clients).pump(twice=self.rng.random() < self.faults)

    def carry_up(self) -> None:
        """Some messages of one connection arrive at the server, those of a dead socket among them."""
        waiting = [connection for connection in self.connections if connection.up]
        if waiting:
            connection = self.rng.choice(waiting)
            for _ in range(self.rng.randint(1, len(connection.up))):
                self.shell.read(connection)

    def carry_down(self) -> None:
        """Some messages arrive at one client."""
        waiting = [client for client in self.clients if client.connection is not None and client.connection.down]
        if waiting:
            client = self.rng.choice(waiting)
            assert client.connection is not None
            for _ in range(self.rng.randint(1, len(client.connection.down))):
                client.receive()

    def decide(self) -> None:
        """The room begins a window, or ends the one it is in."""
        if self.shell.window is None:
            self.shell.decide(self.rng.choice((1, 2, 5, 100)))
        else:
            ends: Ends = self.rng.choice(("before", "after")) if self.rng.random() < self.faults else "ok"
            self.shell.complete(ends)

    def break_connection(self) -> None:
        """A socket dies: of what is under way either side still gets the beginning, and the client notices first."""
        open_ones = [client for client in self.clients if client.connection is not None]
        if not open_ones:
            return
        client = self.rng.choice(open_ones)
        connection = client.connection
        assert connection is not None
        for _ in range(self.rng.randint(0, len(connection.down))):
            client.receive()
        self._lose(connection.down, 0)
        self._lose(connection.up, self.rng.randint(0, len(connection.up)))
        client.disconnected()

    def _lose(self, queue: deque[Parcel], keep: int) -> None:
        while len(queue) > keep:
            self.count("lost", queue.pop().kind)

    def notice(self) -> None:
        """The server notices a dead socket, after reading what still came."""
        dead = [item for item in self.connections if item.open_at_server and not item.open_at_client and not item.up]
        if dead:
            self.shell.closed(self.rng.choice(dead))

    def hang_up(self) -> None:
        """A client notices that the server closed its socket: it stopped, or took a late hello of an older one for a newer."""
        for client in self.clients:
            connection = client.connection
            if connection is not None and not connection.open_at_server:
                self._lose(connection.down, 0)
                self._lose(connection.up, 0)
                client.disconnected()

    def connect(self) -> None:
        """Somebody comes back, perhaps before the server noticed that it went."""
        away = [client for client in self.clients if client.connection is None]
        if away:
            self.rng.choice(away).connect()

    def restart(self) -> None:
        """The server's process dies."""
        self.count("restarted", "server")
        self.shell.restart()
        self.hang_up()

    def catch_up(self) -> None:
        """An outbox that lagged has drained."""
        for connection in self.connections:
            if connection.lagging is not None and connection.open_at_server:
                self.shell.inputs.append((connection, CatchUp()))

    def fold(self) -> None:
        """An outbox folds neighbouring frames into one."""
        for connection in self.connections:
            pairs = [
                index
                for index, (one, other) in enumerate(zip(connection.down, list(connection.down)[1:], strict=False))
                if one.shared and other.shared
            ]
            if pairs and self._fold(connection.down, self.rng.choice(pairs)):
                self.count("folded", "entries")

    def _fold(self, queue: deque[Parcel], index: int) -> bool:
        one, other = (codec.decode_downstream(queue[place].frame) for place in (index, index + 1))
        assert isinstance(one, Entries)
        assert isinstance(other, Entries)
        if one.last != other.prev or one.epoch != other.epoch:
            return False
        folded = Entries(
            room=TOKEN,
            epoch=one.epoch,
            prev=one.prev,
            last=other.last,
            entries=delta.fold([*one.entries, *other.entries]),
            decided=max(one.decided, other.decided),
        )
        queue[index] = Parcel(codec.encode(folded).frame(), "entries", queue[index].since, shared=True)
        del queue[index + 1]
        return True

    def leave(self) -> None:
        """Somebody with nothing open leaves, or comes back."""
        able = [item for item in self.clients if not item.member_of_room or (item.settled and item.replica.live)]
        if able:
            client = self.rng.choice(able)
            if client.member_of_room:
                client.leave()
            else:
                client.come_back()

    def widen(self) -> None:
        """A kernel re-runs a newer class, or links a second state."""
        client = self.rng.choice(self.clients)
        if client.page or not client.member_of_room or not client.replica.live:
            return
        if self.rng.random() < 0.5:
            client.states["S"] = (NEWER, NEWER_VALUES)
            client.join("S")
        else:
            client.states["T"] = (HIDDEN, HIDDEN_VALUES)
            client.join("T")

    def tick(self) -> None:
        """The room looks at the clock."""
        self.shell.inputs.append((Connection(self.clients[0]), Tick()))

    # --- the end

    def settle(self) -> None:
        """No more faults: within `SETTLE_ROUNDS` everything is decided, told and the same everywhere."""
        self.faults = 0.0
        for client in self.clients:
            if not client.member_of_room:
                client.come_back()
        for _ in range(SETTLE_ROUNDS):
            self.step += 1
            self._round()
            if self._quiet():
                break
        else:
            raise AssertionError(f"not quiet after {SETTLE_ROUNDS} rounds: {self._restless()}")
        self._check_end()

    def _round(self) -> None:
        for connection in self.connections:
            while connection.up:
                self.shell.read(connection)
            if not connection.open_at_client:
                self.shell.closed(connection)
        self.catch_up()
        if self.shell.window is None:
            self.shell.decide(len(self.shell.inputs))
        self.shell.complete("ok")
        self.hang_up()
        for client in self.clients:
            if client.connection is None:
                client.connect()
            assert client.connection is not None
            while client.connection.down:
                client.receive()
            client.pump()

    def _quiet(self) -> bool:
        return not self._restless()

    def _restless(self) -> list[str]:
        seq = self.shell.room.seq
        found = [
            f"{client.boot}: {client.replica.undecided} open, joins {client.joins}, at {client.replica.seq} of {seq}"
            for client in self.clients
            if not client.settled or client.replica.seq != seq
        ]
        found += [f"{item.client.boot}: messages under way" for item in self.connections if item.up or item.down]
        return found + ([f"{len(self.shell.inputs)} inputs"] if self.shell.inputs else [])

    def _check_end(self) -> None:
        room, last = self.shell.room, self.store.history[-1]
        assert {name: state.values for name, state in room.states.items()} == last.values
        assert room.acked_lost == 0
        for client in self.clients:
            assert client.replica.epoch == room.epoch
            client.check()
            verdicts = {n: verdict for (boot, n), verdict in self.store.verdicts.items() if boot == client.boot}
            assert client.told == verdicts, f"G3, G4: {client.boot} was told {client.told}, decided was {verdicts}"
            assert {member.id for member in room.members} == set(client.replica.members), f"{client.boot} sees ghosts"
        for boot in {boot for boot, _ in self.store.verdicts}:
            numbers = sorted(n for of, n in self.store.verdicts if of == boot)
            assert numbers == list(range(1, len(numbers) + 1)), f"G2: {boot} has verdicts on {numbers}"
        if "S" in last.values:
            assert last.values["S"]["count"] == self._sum("count"), "G3: a sum was lost or counted twice"

    def _sum(self, trait: str) -> int:
        return sum(
            int(op.by)
            for key, verdict in self.store.verdicts.items()
            if verdict == "applied"
            for op in self.store.intents[key]
            if isinstance(op, Inc) and op.path == (trait,)
        )


_ACTS = (
    (World.write, 40),
    (World.pump, 24),
    (World.carry_up, 24),
    (World.carry_down, 24),
    (World.decide, 30),
    (World.break_connection, 1.5),
    (World.notice, 2),
    (World.hang_up, 2),
    (World.connect, 5),
    (World.restart, 0.15),
    (World.catch_up, 2),
    (World.fold, 2),
    (World.leave, 1),
    (World.widen, 1),
    (World.tick, 1),
)


def run(seed: int, steps: int = 600) -> World:
    """One schedule from its seed, faults and then peace."""
    rng = random.Random(seed)
    world = World(rng, faults=rng.choice((0.0, 0.1, 0.3)))
    for client in world.clients[: rng.randint(1, len(world.clients))]:
        client.connect()
    for _ in range(steps):
        world.act()
    world.settle()
    return world


def run_all(seeds: Iterable[int]) -> tuple[list[str], Counter[tuple[str, str]]]:
    """Each seed's schedule: what failed, with the seed, and how often each fault met each kind of message."""
    failures: list[str] = []
    table: Counter[tuple[str, str]] = Counter()
    for seed in seeds:
        try:
            table += run(seed).table
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            failures.append(f"seed {seed}: {type(error).__name__} at {place.name}:{place.lineno}: {error}")
    return failures, table
