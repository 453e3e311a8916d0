"""A room and its clients in one process, joined by lists instead of sockets: every schedule can be written down."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from sharedwidgets.core import codec, delta
from sharedwidgets.core.protocol import (
    Audience,
    Downstream,
    Entries,
    Entry,
    Failure,
    Join,
    Kind,
    Limits,
    Member,
    Members,
    Nack,
    Op,
    Push,
    Resend,
    Resume,
    Snapshot,
    TraitSchema,
    Upstream,
)
from sharedwidgets.core.replica import News, Replica
from sharedwidgets.core.room import Attach, Author, Detach, Effect, Mark, Now, Record, Room, RoomImage, Send, Tell
from sharedwidgets.core.values import Value

SCHEMA = {
    "count": TraitSchema(kind="int"),
    "level": TraitSchema(kind="int", min=0, max=10),
    "tags": TraitSchema(kind="dict"),
    "items": TraitSchema(kind="list"),
    "text": TraitSchema(kind="text"),
    "_salt": TraitSchema(kind="text", kernel_only=True),
}
# Found in any byte that reaches a frontend, it is a leak.
SECRET = "KERNELS-ONLY"
VALUES: dict[str, Value] = {"count": 0, "level": 5, "tags": {}, "items": [], "text": "héllo 𝒳 " * 60, "_salt": SECRET}


class Leak(AssertionError):
    """A kernel-only name or value was sent to a frontend (G9)."""


@dataclass
class Client:
    """One boot: its replica, and what is under way in both directions."""

    boot: str
    kind: Kind
    member: str = ""
    replica: Replica = field(default_factory=lambda: Replica("r"))
    connected: bool = False
    up: list[Upstream] = field(default_factory=list)
    down: list[Downstream] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    lagging: tuple[str, str, int] | None = None
    frames: int = 0

    @property
    def audience(self) -> Audience:
        return "frontend" if self.kind == "frontend" else "kernel"

    @property
    def author(self) -> Author:
        member = Member(id=self.member or self.boot, kind=self.kind, kernel_id=self.boot if self.kind == "kernel" else None)
        return Author(self.boot, member, self.audience, may_write=True, origin=self.kind)

    def write(self, *ops: Op) -> News:
        return self.replica.write(ops, group=len(ops) > 1)

    def take(self) -> None:
        self.up += self.replica.take(8)

    def hear(self, count: int | None = None) -> list[News]:
        """Take in what came, all or the first `count` messages."""
        heard: list[News] = []
        for _ in range(len(self.down) if count is None else count):
            message = self.down.pop(0)
            if isinstance(message, (Snapshot, Entries, Nack, Resend, Members)):
                news = self.replica.receive(message)
                self.up += news.send
                self.refused += [item.n for item in news.refused]
                heard.append(news)
        return heard


class World:
    """A room behind a store, told like the real shell tells it: decide a window, append it, then tell, in order."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self.room = Room("r", incarnation="i0", epoch="e0", limits=self.limits)
        self.log: list[Entry] = []
        self.marks: dict[str, Mark] = {}
        self.clients: dict[str, Client] = {}
        self.time = 0.0
        # "before" or "after": the next append fails before or after it wrote.
        self.fail: str | None = None
        self.keep: Callable[[Client], bool] = lambda client: True
        self.fold = False
        self._readers: dict[str, Audience] = {}
        self._run: list[tuple[Entry, Entry | None]] = []
        self._decided: dict[str, int] = {}
        self._epochs = 0

    def now(self) -> Now:
        self.time += 0.01
        return Now(self.time, self.time)

    def client(self, boot: str, kind: Kind = "kernel", member: str = "") -> Client:
        client = self.clients[boot] = Client(boot, kind, member)
        return client

    def connect(self, client: Client, schema: dict[str, TraitSchema] | None = None) -> Client:
        """A new connection: a resume where the replica has something, else a join."""
        client.connected, client.up, client.down, client.lagging = True, [], [], None
        if client.replica.live:
            client.up.append(client.replica.position(["S"]))
        else:
            maker = client.kind != "frontend"
            chosen = schema or SCHEMA
            values = {trait: VALUES.get(trait) for trait in chosen}
            client.up.append(
                Join(id=1, room="r", state="S", schema=chosen if maker else None, values=values if maker else None)
            )
        return client

    def cut(self, client: Client, arrive: int = 0) -> None:
        """The socket dies; the first `arrive` messages of the client still reach the server, nothing reaches the client."""
        arrived, client.up, client.down, client.connected = client.up[:arrive], [], [], False
        client.lagging = None
        client.replica.disconnected()
        self.decide([(client, message) for message in arrived], [lambda: self.room.disconnect(client.boot, self.now())])

    def deliver(self, client: Client, count: int | None = None) -> None:
        """The server takes in what a client sent, as one window."""
        taken = client.up[:count] if count is not None else client.up
        client.up = client.up[len(taken) :]
        self.decide([(client, message) for message in taken])

    def settle(self) -> None:
        """Let everything under way arrive, until nothing moves."""
        for _ in range(200):
            moved = False
            for client in self.clients.values():
                if not client.connected:
                    self.connect(client)
                if client.lagging is not None:
                    self.catch_up(client)
                client.take()
                moved = moved or bool(client.up or client.down)
                self.deliver(client)
                client.hear()
            if not moved:
                return
        raise AssertionError("nothing settles")

    def catch_up(self, client: Client) -> None:
        """The outbox of a lagging client has drained."""
        assert client.lagging is not None
        place, client.lagging = client.lagging, None
        self.decide([], [lambda: [Send(client.boot, self.room.catch_up(client.boot, client.audience, *place))]])

    def decide(
        self,
        messages: Sequence[tuple[Client, Upstream]],
        others: Sequence[Callable[[], Sequence[Effect]]] = (),
    ) -> None:
        """One window."""
        effects: list[Effect] = []
        for client, message in messages:
            assert isinstance(message, (Join, Push, Resume))
            effects += self.room.receive(client.author, message, self.now())
        for other in others:
            effects += other()
        told = set(self._readers)
        if not self._append(effects):
            again = [
                (client, message) for client, message in messages if not isinstance(message, Push) or client.boot not in told
            ]
            self.decide(again, others)
            return
        for effect in effects:
            self._perform(effect)
        self._flush()

    def image(self) -> RoomImage:
        """What the store holds."""
        states: delta.States = {}
        for entry in self.log:
            delta.apply_entry(states, entry)
        return RoomImage(
            incarnation=self.room.incarnation,
            epochs=tuple(self.room.epochs),
            seq=len(self.log),
            states={name: state.image() for name, state in states.items()},
            marks=dict(self.marks),
        )

    def restart(self) -> None:
        """The server goes down and comes back from its store: no connection and no member is left."""
        image = self.image()
        for client in self.clients.values():
            if client.connected:
                client.connected, client.up, client.down, client.lagging = False, [], [], None
                client.replica.disconnected()
        self._readers, self._run, self._decided = {}, [], {}
        self.room = self._fresh(image)

    def _fresh(self, image: RoomImage) -> Room:
        self._epochs += 1
        held = image if image.seq else None
        return Room("r", incarnation=self.room.incarnation, epoch=f"e{self._epochs}", limits=self.limits, image=held)

    def _append(self, effects: Sequence[Effect]) -> bool:
        records = [effect for effect in effects if isinstance(effect, Record)]
        entries = [record.entry for record in records if record.entry is not None]
        if not records:
            return True
        fail, self.fail = self.fail, None
        if fail != "before":
            assert len(self.log) == self.room.seq - len(entries)
            self.log += entries
            self.marks.update({record.boot: record.mark for record in records if record.boot and record.mark})
        if fail is None:
            return True
        fresh = self._fresh(self.image())
        authors = fresh.adopt(self.room, self._readers, self.now())
        self.room, self._run, self._decided = fresh, [], {}
        self._readers = {author.boot: author.audience for author in authors}
        for effect in fresh.recovered(authors):
            self._perform(effect)
        return False

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Record(entry=Entry() as entry):
                self._run.append((entry, effect.public))
                if effect.boot is not None and effect.mark is not None:
                    self._decided[effect.boot] = effect.mark.n
            case Send():
                if not isinstance(effect.message, (Nack, Resend, Failure)):
                    self._flush()
                self._send(self.clients[effect.boot], effect.message)
            case Attach():
                self._flush()
                self._readers[effect.boot] = effect.audience
            case Detach():
                self._flush()
                self._readers.pop(effect.boot, None)
            case Tell():
                for boot in self._readers:
                    if boot != effect.but:
                        self._send(self.clients[boot], effect.message)
            case _:
                pass

    def _flush(self) -> None:
        run, decided = self._run, self._decided
        self._run, self._decided = [], {}
        for boot, audience in self._readers.items() if run else ():
            client = self.clients[boot]
            shown = [public if audience == "frontend" else entry for entry, public in run]
            entries = tuple(entry for entry in shown if entry is not None)
            message = Entries(
                room="r",
                epoch=self.room.epoch,
                prev=run[0][0].seq - 1,
                last=run[-1][0].seq,
                entries=delta.fold(entries) if self.fold else entries,
                decided=decided.get(boot, 0),
            )
            if client.lagging is None and not self.keep(client):
                client.lagging = (self.room.incarnation, message.epoch, message.prev)
            if client.lagging is None:
                self._send(client, message)

    def _send(self, client: Client, message: Downstream) -> None:
        if isinstance(message, (Snapshot, Entries)):
            client.lagging = None
        if not client.connected:
            return
        frame = codec.encode(message).frame()
        raw = frame.encode() if isinstance(frame, str) else frame
        if client.kind == "frontend" and (SECRET.encode() in raw or b"_salt" in raw):
            raise Leak(frame)
        client.frames += isinstance(message, Entries)
        client.down.append(codec.decode_downstream(frame))


def same_views(world: World) -> None:
    """G5: whoever is at the room's seq sees the room's values, as far as its audience may."""
    held: dict[str, Any] = world.room.states["S"].values
    for client in world.clients.values():
        if client.replica.seq == world.room.seq:
            visible = {trait: value for trait, value in held.items() if not (client.kind == "frontend" and trait == "_salt")}
            assert client.replica.view("S") == visible, client.boot
