"""A store that keeps books, and what the manager is to a room: it decides a window, appends it, and only then tells."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from sharedwidgets.core import codec
from sharedwidgets.core.codec import Frame
from sharedwidgets.core.protocol import (
    PROTOCOL_VERSION,
    Acquire,
    Append,
    Bye,
    Cancel,
    Define,
    Delete,
    Downstream,
    Entries,
    Entry,
    Failure,
    Freed,
    Granted,
    Hello,
    Inc,
    Join,
    Leave,
    Limits,
    LockName,
    Members,
    Nack,
    Op,
    Ping,
    Pong,
    Problem,
    Push,
    Release,
    Renew,
    Resend,
    Resume,
    Set,
    Slow,
    Snapshot,
    Splice,
    StateImage,
    Welcome,
)
from sharedwidgets.core.room import Answer, Attach, Detach, Effect, Mark, Record, Room, RoomImage, Send, Tell
from support.chronicle import Chronicle, Keeper, boot_of
from support.plain import Plain, related
from support.traffic import AT_THE_DOOR, BACKLOG, MARKER, TOKEN, Connection, Ends, Parcel, kind_of, of_server

if TYPE_CHECKING:
    from support.world import World


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
        self.fences: dict[tuple[str, int], Mapping[str, int]] = {}
        # The seq at which each was decided, and that of the room when it was numbered.
        self.decided: dict[tuple[str, int], int] = {}
        self.numbered: dict[tuple[str, int], int] = {}
        self.locks = Chronicle()

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
        self.locks.note(entry, boot, self.fences[boot, mark.n] if boot is not None and mark is not None else {})
        self.log.append(entry)
        self.history.append(after)

    def _check_bases(self, entry: Entry, meant: Sequence[Op]) -> None:
        """A splice or a conditional set counts only when nothing touched its path since the revision it names."""
        for op in entry.ops:
            base = op.rev if isinstance(op, Splice) else op.if_rev if isinstance(op, Set) else None
            if base is None:
                continue
            assert not isinstance(op, (Define, Granted, Freed, Delete, Inc, Append))
            for other in self.log[base:]:
                for change in other.ops:
                    if isinstance(change, (Define, Granted, Freed)):
                        continue
                    hit = change.state == op.state and related(change.path, op.path)
                    assert not hit, f"{op} in {entry.seq} was decided although {other} changed its base"

    def _move(self, boot: str, mark: Mark, *, applied: bool) -> None:
        before = self.marks.get(boot, Mark())
        assert mark.n == before.n + 1, f"G2, G3: the mark of {boot} goes from {before.n} to {mark.n}"
        key = (boot, mark.n)
        if applied:
            self.verdicts[key], self.decided[key] = "applied", self.seq
        else:
            nack = mark.refused[-1]
            assert nack.n == mark.n
            self.verdicts[key], self.decided[key] = nack.problem.code, nack.seq
            if nack.problem.code in ("locked", "lock-lost"):
                states = dict.fromkeys(op.state for op in self.intents[key])
                self.locks.refused(nack.problem.code, states, boot, self.fences[key], nack.seq)
        assert self.numbered[key] <= self.decided[key] <= self.seq, f"{key} was decided before it was said"
        self.marks[boot] = mark

    def image(self) -> RoomImage | None:
        if not self.log and not self.marks:
            return None
        held = self.history[-1]
        states = {name: StateImage(schema=held.schema[name], values=held.values[name]) for name in held.schema}
        return RoomImage(
            incarnation=self.incarnation,
            epochs=self.epochs,
            seq=self.seq,
            states=states,
            marks=dict(self.marks),
            locks=self.locks.kept(self.seq),
        )


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


@dataclass(frozen=True)
class Break:
    """A request from outside to take a lock from whoever holds it."""

    lock: LockName


Word: TypeAlias = Acquire | Cancel | Renew | Release
Said: TypeAlias = Join | Leave | Resume | Push | Acquire | Cancel | Renew | Release
Input: TypeAlias = tuple[Connection, "Said | Closed | CatchUp | Tick | Break"]


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
        self.keeper = Keeper()
        self.room = self._load()

    def _load(self) -> Room:
        self._epochs += 1
        image, now = self.world.store.image(), self.world.now.mono
        self.keeper = Keeper.loaded(image.locks if image else (), now)
        return Room(TOKEN, incarnation="i1", epoch=f"e{self._epochs}", limits=self.limits, image=image, now=now)

    # --- connections

    def read(self, connection: Connection) -> None:
        """Take the next message off a connection; one that was replaced is not listened to (H7)."""
        parcel = connection.up.popleft()
        if not connection.open_at_server:
            self.world.count("discarded", parcel.kind)
            newer = self.current.get(connection.client.boot)
            if newer is not None and newer is not connection:
                self.world.count("overtaken", parcel.kind)
            return
        self.world.count_delay(parcel)
        message = codec.decode_upstream(parcel.frame)
        match message:
            case Hello():
                self._admit(connection, message)
            case Join() | Leave() | Resume() | Push() | Acquire() | Cancel() | Renew() | Release():
                self.inputs.append((connection, message))
                if len(self.inputs) > BACKLOG:
                    self.say(connection, Slow(delay=0.05))
            case Ping():
                self.say(connection, Pong(id=message.id))
            case Pong():
                pass

    def say(self, connection: Connection, message: Welcome | Slow | Ping | Pong | Bye) -> None:
        """What a server says at the door, without asking a room."""
        self._queue(connection, codec.encode(message).frame(), of_server(type(message)), shared=False)

    def end(self, connection: Connection, code: str) -> None:
        """The server has enough of a connection."""
        self.say(connection, Bye(problem=Problem(code=code, message=f"{code}; come again")))
        self.closed(connection)

    def _admit(self, connection: Connection, hello: Hello) -> None:
        older = self.current.get(hello.boot)
        self.current[hello.boot] = connection
        if older is not None:
            self.say(older, Bye(problem=Problem(code="replaced", message="a newer connection of this process took over")))
            older.open_at_server = False
            self.inputs.append((older, Closed()))
        who = connection.client.author
        self.say(
            connection,
            Welcome(
                protocol=PROTOCOL_VERSION,
                server="s",
                version="0",
                member=who.member.id,
                secret="",
                audience=who.audience,
                user="",
                may_write=who.may_write,
                limits=self.limits,
            ),
        )
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
        boot, now = connection.client.boot, self.world.now.mono
        inside = boot in self.room._attached
        effects = self._answer(connection, item)
        fences = item.fences if isinstance(item, Push) else {}
        entries = [
            (effect.entry, fences if effect.boot == boot else {})
            for effect in effects
            if isinstance(effect, Record) and effect.entry is not None
        ]
        self.keeper.decided(entries, now, lambda: self._lines(boot, item, effects))
        if not isinstance(item, (Closed, CatchUp)):
            self.keeper.ended(now)
        if isinstance(item, Acquire):
            self._check_taken(item, effects, inside)
        if isinstance(item, Leave):
            holds = [owner for owner, *_ in self.keeper.held.values() if boot_of(owner) == boot]
            assert not holds, f"every claim ends: {boot} left, and {holds} hold locks"
        return effects

    def _check_taken(self, word: Acquire, effects: Sequence[Effect], inside: bool) -> None:
        """Whoever does not wait has the lock now, or is told at once that it is taken; then somebody has it.

        Who is not in the room is told that and nothing else, also of a claim that comes again before its boot has come back.
        """
        said = [effect.message for effect in effects if isinstance(effect, Send)]
        codes = [message.problem.code for message in said if isinstance(message, Failure)]
        held = self.keeper.held.get(word.lock)
        mine = held is not None and held[0] == word.owner
        assert inside != (codes == ["no-such-room"]), f"{word} is answered with {effects}"
        assert word.wait or not inside or mine != bool(codes), f"{word} is answered with {effects}"
        assert "lock-timeout" not in codes or (held is not None and not word.wait), f"{word} is refused while {held}"

    def _lines(self, boot: str, item: object, effects: Sequence[Effect]) -> None:
        """What an input does to who waits for a lock."""
        gone = {
            name
            for effect in effects
            if isinstance(effect, Tell) and isinstance(effect.message, Members)
            for name in effect.message.gone
        }
        boots = {client.boot for client in self.world.clients if client.author.member.id in gone}
        self.keeper.gone(boots | {boot} if isinstance(item, Leave) else boots)
        refused = any(isinstance(effect, Send) and isinstance(effect.message, Failure) for effect in effects)
        if isinstance(item, Word) and not refused:
            self.keeper.asked(item, self.world.now.mono)
        elif isinstance(item, (Join, Resume)) and any(isinstance(effect, Attach) for effect in effects):
            self.keeper.came(boot, anew=isinstance(item, Join) and item.resume is None)
        elif isinstance(item, Closed) and any(isinstance(effect, Detach) for effect in effects):
            self.keeper.disconnected(boot, self.world.now.mono + self.limits.away_seconds)
        elif isinstance(item, Tick):
            self.keeper.ticked(self.world.now.mono)

    def _answer(self, connection: Connection, item: object) -> Sequence[Effect]:
        boot, now = connection.client.boot, self.world.now
        match item:
            case Closed():
                return self.room.disconnect(boot, now)
            case Tick():
                return self.room.tick(now)
            case Break():
                return self.room.break_lock(1, connection.client.author, item.lock, now)
            case CatchUp():
                cursor = connection.lagging
                if cursor is None or self.readers.get(boot) is not connection:
                    return []
                return [Send(boot, self.room.catch_up(boot, connection.client.audience, *cursor))]
            case Join() | Leave() | Resume() | Push() | Acquire() | Cancel() | Renew() | Release():
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
        self._count_failed(window)
        self._recover(window)

    def _count_failed(self, window: Window) -> None:
        """What the failing store had an effect on: what was decided in it, what follows, and what was under way at the door."""
        for _, item in window.inputs:
            self.world.count("store failed", _name(item))
        for effect, _ in window.effects:
            match effect:
                case Record() if effect.entry is not None:
                    self.world.count("store failed", "entries")
                case Send() | Tell():
                    self.world.count("store failed", of_server(type(effect.message)))
                case _:
                    pass
        for connection in self.world.connections:
            for parcel in (*connection.up, *connection.down):
                if parcel.kind in AT_THE_DOOR:
                    self.world.count("store failed", parcel.kind)

    def _recover(self, window: Window) -> None:
        told = set(self.readers)
        for connection, item in window.inputs:
            boot = connection.client.boot
            elsewhere = isinstance(item, Said) and not isinstance(item, Leave) and self.readers.get(boot) is not connection
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
            lost = isinstance(item, Break) or (isinstance(item, Push) and (boot in told or boot not in came))
            if not lost:
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
                if not isinstance(effect.message, (Nack, Resend, Failure)):
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
            case Answer():
                pass
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
        self._queue(connection, codec.encode(message).frame(), of_server(type(message)), shared=False)

    def _queue(self, connection: Connection, frame: Frame, kind: str, *, shared: bool) -> None:
        if not connection.open_at_server:
            return
        if not connection.open_at_client:
            self.world.count("lost", kind)
            if connection.client.connection is not None:
                self.world.count("overtaken", kind)
            return
        if connection.client.audience == "frontend":
            plain = frame.encode() if isinstance(frame, str) else frame
            assert MARKER.encode() not in plain, f"G9: a page is sent {frame!r}"
        for _ in range(1 + self.world.repeats(kind)):
            connection.down.append(Parcel(frame, kind, self.world.step, shared))


def _name(item: object) -> str:
    return kind_of(type(item)) if isinstance(item, Said) else type(item).__name__.lower()
