"""One process in a room: its replica and claims, what its threads write, ask and lock, and what it is told of it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import pytest

from sharedwidgets.core import codec
from sharedwidgets.core.claims import Claims, Tenure
from sharedwidgets.core.protocol import (
    PROTOCOL_VERSION,
    Append,
    Applied,
    Bye,
    Delete,
    Entries,
    Failure,
    Hello,
    Inc,
    Join,
    Joined,
    Leave,
    LockName,
    Member,
    Members,
    Nack,
    Op,
    Ping,
    Pong,
    Problem,
    Push,
    Release,
    Resend,
    Set,
    Slow,
    Snapshot,
    Splice,
    TraitSchema,
    Upstream,
    Waiting,
    Welcome,
)
from sharedwidgets.core.replica import News, Replica
from sharedwidgets.core.room import Author
from sharedwidgets.errors import InvalidValue, Locked, LockLost, NoSuchPath, NoSuchTrait
from support import answers
from support.answers import Ask
from support.chronicle import boot_of, lock_of
from support.traffic import (
    IN_FLIGHT,
    INVALID,
    LEASE,
    LOCKS,
    MARKER,
    SCHEMA,
    THREADS,
    TOKEN,
    VALUES,
    Connection,
    Parcel,
    of_client,
)

if TYPE_CHECKING:
    from support.world import World


class Client:
    """One boot: its replica, its connection, its threads' locks, and what it was told."""

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
        self.claims = Claims(TOKEN)
        # What each thread wants, holds or has lost, until it gives it back; and all there ever was.
        self.kept: dict[tuple[str, LockName], Tenure] = {}
        self.tenures: list[Tenure] = []
        self.abandoned: set[str] = set()
        self.asks: list[Ask] = []
        # Who writes, and whether it goes by what it knows of the locks.
        self.thread = THREADS[0]
        self.stubborn = False
        # Until when it neither says nor hears anything, and how long it is to be patient.
        self.paused = 0.0
        self.patient = 0.0
        # Owners that have said that they give a lock back.
        self._goodbyes: set[str] = set()
        self._open: set[int] = set()
        self._shown: dict[tuple[str, str], Any] = {}
        self._serial = 0

    @property
    def settled(self) -> bool:
        return self.member_of_room and self.replica.undecided == 0 and not self.joins and not self._open

    @property
    def awake(self) -> bool:
        return self.paused <= self.world.now.mono

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
        # Locks go with the room, unless the goodbye is lost: then they stay as long as leases and the member do.
        self.claims.ended(Problem(code="closed", message="it left"))
        self.abandoned |= {tenure.owner for tenure in self.tenures}
        self.claims = Claims(TOKEN)
        self.kept.clear()
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
        self.world.lose(self.connection.down, 0)
        self.connection = None
        self.replica.disconnected()
        self.claims.disconnected()

    def pump(self, *, twice: bool = False) -> None:
        """Send what is due; `twice` says each push again, as after an answer that came late."""
        if self.connection is None or self.patient > self.world.now.mono:
            return
        for push in self.replica.take(IN_FLIGHT):
            self._note(push)
            for _ in range(1 + twice):
                self._say(push)
            if twice:
                self.world.count("repeated", "push")
        for word in self.claims.due(self.replica, self._number):
            if isinstance(word, Release):
                self._goodbyes.add(word.owner)
            self._say(word)

    def ping(self) -> None:
        """Ask whether somebody is there."""
        if self.connection is not None:
            self._say(Ping(id=self._number()))

    def resume(self) -> None:
        """Ask what was missed, though nothing may have been."""
        if self.connection is not None and self.replica.live and self.member_of_room:
            self._say(self.replica.position(self.states))

    def wake(self) -> None:
        """After a pause everything that waited is heard at once, and then said."""
        self.paused = 0.0
        if self.connection is not None and self.world.rng.random() < 0.5:
            self.world.fold_all(self.connection)
        while self.connection is not None and self.connection.down:
            self.receive()
        self.pump()

    def _number(self) -> int:
        self._serial += 1
        return self._serial

    def _say(self, message: Upstream) -> None:
        assert self.connection is not None
        frame, kind = codec.encode(message).frame(), of_client(type(message))
        for _ in range(1 + (kind != "hello" and self.world.repeats(kind))):
            self.connection.up.append(Parcel(frame, kind, self.world.step))
        if isinstance(message, Hello) and message.rooms:
            self.world.count("sent", "resume")
        self.world.count("sent", kind)

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
        self.world.store.fences[self.boot, push.n] = push.fences
        self.world.store.numbered.setdefault((self.boot, push.n), self.world.store.seq)
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
            case Snapshot() | Entries() | Nack() | Applied() | Resend() | Members() | Waiting():
                if not self.member_of_room:
                    return
                news = self.replica.receive(message)
                moved = self.claims.heard(self.replica, news, anew=isinstance(message, Snapshot))
                self._book(news)
                for tenure in moved:
                    self._moved(tenure, anew=isinstance(message, Snapshot))
                for resume in news.send:
                    self._say(resume)
            case Failure(id=int() as number):
                refused = self.claims.refused(number, message.problem)
                if refused is not None and message.problem.code == "lock-timeout":
                    assert not refused.wait, f"{self.boot} waits for {refused}, and is sent away"
                    self.world.count("locks", "taken")
            case Failure():
                # Words from before a goodbye that are decided once more, behind it.
                assert message.problem.code == "no-such-room"
                assert self.abandoned
            case Bye():
                self.disconnected()
            case Slow():
                self.patient = self.world.now.mono + 5
            case Ping():
                self._say(Pong(id=message.id))
            case Welcome() | Pong():
                pass
            case _:
                raise AssertionError(f"{self.boot} is told {message}")

    # --- what is checked at each step

    def _book(self, news: News) -> None:
        for ask in self.asks:
            if ask.open and not self.replica.is_open(ask.push):
                self._answered(ask)
        for item in news.refused:
            assert item.n in self._open, f"{self.boot} is told twice about {item.n}"
            self._open.discard(item.n)
            self.told[item.n] = item.problem.code
        for n in [n for n in self._open if n < self.replica.position().lowest]:
            self._open.discard(n)
            self.told[n] = "applied"
            seq = self.world.store.decided[self.boot, n]
            assert seq <= self.replica.seq, f"{self.boot} hears of {n} at {self.replica.seq}, and it is entry {seq}"
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

    def _answered(self, ask: Ask) -> None:
        """The author of an ask looks at what has become of it."""
        store, n = self.world.store, ask.push.n
        assert n in self._open, f"{self.boot} is told twice about {n}"
        self._open.discard(n)
        self.told[n] = ask.push.problem.code if ask.push.problem is not None else "applied"
        ask.hear(store.seq)
        answers.check(ask, store.decided[self.boot, n], store.log, store.history)
        self.world.count("answered", self.told[n])

    def _moved(self, tenure: Tenure, *, anew: bool) -> None:
        """G6 where a lock is held, G7 where it is lost: whoever holds one knows what came before, and when it ends."""
        store = self.world.store
        if tenure.phase == "held":
            self.world.count("locks", "held")
            assert tenure.fence <= self.replica.seq, f"G6: {self.boot} holds {tenure} at {self.replica.seq}"
            if tenure.behind is not None and tenure.behind.n:
                decided = store.decided.get((self.boot, tenure.behind.n))
                assert decided is not None, f"G6: {self.boot} holds {tenure} with writes from before on the way"
                assert decided < tenure.fence, f"G6: {self.boot} holds {tenure}, and wrote before what is {decided}"
            state = tenure.lock.name
            if tenure.lock.kind == "state":
                then = store.history[tenure.fence].seen(self.page)[1][state]
                here = self.replica.states[state].values
                assert {trait: here[trait] for trait in then} == then, f"G6: {self.boot} holds {tenure} and sees other values"
                looks = {trait: self.replica.value(state, trait) for trait in then}
                assert looks == then, f"G6: {self.boot} holds {tenure} and shows {looks}"
        elif tenure.phase == "granted":
            self.world.count("locks", "disturbed")
        elif tenure.phase == "over" and tenure.fence:
            span = store.locks.spans[tenure.fence]
            assert span.until is not None, f"G7: {self.boot} gives up {tenure}, and holds it"
            assert span.until <= self.replica.seq
            self.world.count("locks", str(tenure.end))
            if tenure.end == "released":
                # Whoever has said goodbye has heard of everything it wrote.
                told = span.reason == "released" or tenure.owner in self._goodbyes
                assert told, f"G7: {tenure} ended as {span.reason}, and its owner takes it for given back"
            else:
                assert tenure.end == span.reason or (anew and tenure.end == "unknown"), f"G7: {tenure} ended as {span}"

    def check(self) -> None:
        """G5, G8, G9, G10: a replica holds the room as it was at its seq, and shows whole transactions."""
        replica = self.replica
        if not replica.live:
            return
        schema, values = self.world.store.history[replica.seq].seen(self.page)
        assert {name: state.schema for name, state in replica.states.items()} == schema, f"G5: {self.boot} at {replica.seq}"
        assert {name: state.values for name, state in replica.states.items()} == values, f"G5: {self.boot} at {replica.seq}"
        assert replica.locks == self.world.store.locks.images(replica.seq), f"G5: {self.boot} sees other locks at {replica.seq}"
        hidden = sum(ask.open for ask in self.asks)
        for name, state in replica.states.items():
            for trait in state.schema:
                value = replica.value(name, trait)
                confirmed = replica.undecided > hidden or value == values[name][trait]
                assert confirmed, f"{self.boot} shows {trait}={value!r} for nothing"
                assert self._shown.get((name, trait)) == value, f"{self.boot} shows {trait}={value!r} and told nobody"
        if "S" in replica.states:
            assert replica.value("S", "left") == replica.value("S", "right"), f"G10: {self.boot} shows half a transaction"

    # --- writes

    def write(self, rng: random.Random) -> None:
        """One write of any sort; the view shows it at once."""
        if "S" not in self.replica.states:
            return
        pick = rng.choice(_PAGE_WRITES if self.page else _WRITES)
        self.thread, self.stubborn = rng.choice(THREADS), rng.random() < 0.1
        try:
            pick(self, rng)
        except (Locked, LockLost) as error:
            self.world.count("refused by the author", error.code)
        finally:
            self.thread, self.stubborn = THREADS[0], False
        self.check()

    def fresh(self, rng: random.Random) -> str:
        """Text that nobody wrote before."""
        self._serial += 1
        return f"{self.boot}.{self._serial}" + rng.choice(("", " é", " 😀", " \x00"))

    def push(self, *ops: Op, group: bool = False) -> None:
        """Write these ops, which are legal as far as this replica knows."""
        self._follow(self.replica.write(ops, group=group, fences=self.fences(*ops)))

    def ask(self, op: Op) -> Ask:
        """Write something that shows nowhere before its verdict."""
        fences = self.fences(op)
        ask = Ask(self.boot, op, self.replica.ask([op], fences=fences), self.world.store.seq)
        self.asks.append(ask)
        return ask

    def withdraw(self) -> None:
        """Nobody waits for an answer any more: what was not sent never is."""
        for ask in self.asks:
            if ask.open and self.replica.withdraw(ask.push):
                ask.withdrawn = True
                self.world.count("answered", "withdrawn")

    # --- locks

    def fences(self, *ops: Op) -> dict[str, int]:
        """Under which fences the thread that runs writes, as the kernel decides it.

        A stubborn one writes where it knows that it may not, under a fence that it lost or that another process has.
        """
        fences: dict[str, int] = {}
        for state in dict.fromkeys(op.state for op in ops):
            tenure = self.kept.get((self.thread, lock_of(state)))
            holder = self.replica.locks.get(lock_of(state))
            if tenure is not None and tenure.fence and tenure.phase != "granted":
                if tenure.phase != "held" and not self.stubborn:
                    raise LockLost(f"the lock of {state} was lost")
                fences[state] = tenure.fence
            elif holder is not None:
                if not self.stubborn:
                    raise Locked(f"{state} is locked by {holder.owner}")
                if boot_of(holder.owner) != self.boot and self.world.rng.random() < 0.5:
                    fences[state] = holder.fence
        return fences

    def want(self, rng: random.Random) -> None:
        """A thread wants a lock, behind what is written so far."""
        thread, lock = rng.choice(THREADS), rng.choice(LOCKS)
        if (thread, lock) not in self.kept and self.member_of_room:
            self.claim(thread, lock, LEASE * rng.choice((1, 1, 2)), wait=rng.random() < 0.7)

    def claim(self, thread: str, lock: LockName, lease: float, *, wait: bool = True) -> Tenure:
        """What a thread wants; to be said when it is due."""
        owner = f"{self.boot}.{self._number()}"
        tenure = self.claims.want(lock, owner, lease, f"{self.boot} {thread}", self.replica.newest(), wait=wait)
        self.kept[thread, lock] = tenure
        self.tenures.append(tenure)
        return tenure

    def part(self, rng: random.Random) -> None:
        """A thread gives a lock back, or does not wait for it any more, or sees that it lost it."""
        if self.kept:
            self.claims.leave(self.kept.pop(rng.choice([*self.kept])))

    def keep(self) -> None:
        """Renew what is held."""
        if self.connection is not None:
            for word in self.claims.renewals(self.kept.values()):
                self._say(word)

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


def _both_states(client: Client, rng: random.Random) -> None:
    if "T" not in client.replica.states:
        return
    number = rng.randint(1, 1 << 40)
    ops: list[Op] = [Set(state="T", path=(f"_{MARKER}_t", "a"), value=number)]
    ops[rng.randint(0, 1) : 0] = [_op(Set, "left", value=number), _op(Set, "right", value=number)]
    client.push(*ops, group=True)


def _stock(client: Client, rng: random.Random) -> None:
    low, high = rng.choice(((0, 12), (0, 12), (None, 12), (0, None), (None, None)))
    client.ask(_op(Inc, "stock", by=rng.choice((-5, -2, -1, 1, 2, 5)), min=low, max=high))


def _turn(client: Client, rng: random.Random) -> None:
    seen = client.replica.value("S", "turn")
    older = rng.choice(client.world.store.history[1:]).values.get("S", VALUES)["turn"]
    wanted = rng.choice(((seen,), (seen,), (older,), (seen, older)))
    client.ask(_op(Set, "turn", value=rng.choice((client.fresh(rng), rng.randint(0, 9))), if_in=wanted))


def _ask_items(client: Client, rng: random.Random) -> None:
    client.ask(_op(Append, "items", items=(client.fresh(rng),)))


def _withdraw(client: Client, rng: random.Random) -> None:
    client.withdraw()


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


def invalid(client: Client, rng: random.Random) -> None:
    """Write what no schema takes: the author hears it at once."""
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
    *(_condition, _extra, _too_large, invalid),
    *(_stock, _stock, _stock, _turn, _turn, _turn, _ask_items, _withdraw),
)
_WRITES = (*_BOTH, _secret, _secret, _both_states)
_PAGE_WRITES = (*_BOTH, _secret_of_a_page)
