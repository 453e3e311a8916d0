"""A room, its store, its members and the wires between them, in one thread and without time: every fault is an act.

The shell batches as the real manager does: it decides several inputs, appends what they record, and carries the effects
out in their order, with one `Entries` frame per audience for each run of records. Each message crosses a wire as bytes. Books
are kept beside it, by other code than the one under test: `Store.history`, the room as a plain dict at each seq,
`Store.verdicts`, what became of each (boot, n), `Store.locks` and `Shell.keeper`, who may hold what and until when. Whatever a
replica holds, shows or was told is held against them at once.

Time is the step: half a second each, and more where everyone is held up. A process that pauses says nothing and hears nothing,
and then all at once.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Sequence

from sharedwidgets.core import codec, delta
from sharedwidgets.core.protocol import (
    Bye,
    Entries,
    Inc,
    Limits,
    Ping,
    Problem,
)
from sharedwidgets.core.room import Now
from support.client import Client
from support.shell import Break, CatchUp, Shell, Store, Tick
from support.traffic import (
    HIDDEN,
    HIDDEN_VALUES,
    IN_FLIGHT,
    LEASE,
    LOCKS,
    NEWER,
    NEWER_VALUES,
    PAUSES,
    SELDOM,
    SETTLE_ROUNDS,
    TOKEN,
    VALUES,
    Connection,
    Ends,
    Parcel,
)


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
        # Seconds in which everyone was held up.
        self.held_up = 0.0
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
        mono = self.step * 0.5 + self.held_up
        return Now(mono, 1e6 + mono)

    @property
    def awake(self) -> list[Client]:
        """Everyone who does not pause."""
        return [client for client in self.clients if client.awake]

    def count(self, fault: str, kind: str) -> None:
        self.table[fault, kind] += 1

    def count_delay(self, parcel: Parcel) -> None:
        if self.step - parcel.since > 20:
            self.count("delayed", parcel.kind)

    def loses_entries(self) -> bool:
        return self.rng.random() < self.faults

    def repeats(self, kind: str) -> bool:
        """Whether a frame goes out twice."""
        again = self.rng.random() < self.faults * (1 if kind in SELDOM else 0.25)
        if again:
            self.count("repeated", kind)
        return again

    # --- acts

    def act(self) -> None:
        """One act of any sort."""
        self.begin()
        acts = _ACTS
        self.rng.choices([act for act, _ in acts], [weight for _, weight in acts])[0](self)

    def begin(self) -> None:
        """Time goes on, and whoever paused for long enough is back."""
        self.step += 1
        for client in self.clients:
            if client.paused and client.awake:
                client.wake()

    def write(self) -> None:
        """Somebody writes."""
        if self.awake:
            self.rng.choice(self.awake).write(self.rng)

    def pump(self) -> None:
        """Somebody sends what is due, and sometimes says it twice."""
        if self.awake:
            self.rng.choice(self.awake).pump(twice=self.rng.random() < self.faults)

    def carry_up(self) -> None:
        """Some messages of one connection arrive at the server, those of a dead socket among them."""
        waiting = [connection for connection in self.connections if connection.up]
        if waiting:
            connection = self.rng.choice(waiting)
            for _ in range(self.rng.randint(1, len(connection.up))):
                self.shell.read(connection)

    def carry_down(self) -> None:
        """Some messages arrive at one client."""
        waiting = [client for client in self.awake if client.connection is not None and client.connection.down]
        if waiting:
            client = self.rng.choice(waiting)
            assert client.connection is not None
            self._hear(client, self.rng.randint(1, len(client.connection.down)))

    def _hear(self, client: Client, most: int) -> None:
        for _ in range(most):
            if client.connection is None or not client.connection.down:
                return
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
        open_ones = [client for client in self.awake if client.connection is not None]
        if not open_ones:
            return
        client = self.rng.choice(open_ones)
        connection = client.connection
        assert connection is not None
        if self.rng.random() < 0.5:
            self._last_words(client)
        self._hear(client, self.rng.randint(0, len(connection.down)))
        if client.connection is None:
            return
        self.lose(connection.down, 0)
        self.lose(connection.up, self.rng.randint(0, len(connection.up)))
        client.disconnected()

    def _last_words(self, client: Client) -> None:
        """All that a client may say, while its socket dies."""
        client.pump()
        client.keep()
        client.ping()
        client.resume()
        while client.kept and self.rng.random() < 0.7:
            client.part(self.rng)
        client.pump()
        if client.settled and client.replica.live and self.rng.random() < 0.3:
            client.leave()

    def lose(self, queue: deque[Parcel], keep: int) -> None:
        while len(queue) > keep:
            self.count("lost", queue.pop().kind)

    def notice(self) -> None:
        """The server notices a dead socket, after reading what still came."""
        dead = [item for item in self.connections if item.open_at_server and not item.open_at_client and not item.up]
        if dead:
            self.shell.closed(self.rng.choice(dead))

    def hang_up(self) -> None:
        """A client notices that the server closed its socket: it stopped, or took a late hello of an older one for a newer."""
        for client in self.awake:
            connection = client.connection
            if connection is not None and not connection.open_at_server:
                self.lose(connection.down, 0)
                self.lose(connection.up, 0)
                client.disconnected()

    def connect(self) -> None:
        """Somebody comes back, perhaps before the server noticed that it went."""
        away = [client for client in self.awake if client.connection is None]
        if away:
            self.rng.choice(away).connect()

    def restart(self) -> None:
        """The server's process ends, with a word or without, and comes again."""
        self.count("restarted", "server")
        says = self.rng.random() < 0.5
        for connection in self.shell.current.values() if says else ():
            self.shell.say(connection, Bye(problem=Problem(code="going-away", message="the server stops"), retry_after=0.1))
        self.shell.restart()
        if not says:
            self.hang_up()

    def overtake(self) -> None:
        """Somebody hangs up and comes back, and its new socket is heard before the end of the old one."""
        open_ones = [client for client in self.awake if client.connection is not None]
        if open_ones:
            client = self.rng.choice(open_ones)
            if self.rng.random() < 0.5:
                self._last_words(client)
            older = client.connection
            assert older is not None
            client.disconnected()
            client.connect()
            if self.rng.random() < 0.5:
                # Or the other way round: the room answers into the old socket.
                while older.up:
                    self.shell.read(older)
                self.decide()
                self.decide()
            assert client.connection is not None
            self.shell.read(client.connection)

    def give_up(self) -> None:
        """The server has heard nothing of somebody for too long."""
        silent = [connection for connection in self.shell.current.values() if not connection.client.awake]
        if silent:
            self.shell.end(self.rng.choice(silent), "silent")

    def exchange(self) -> None:
        """One client's words reach the room, and it hears what follows."""
        able = [client for client in self.awake if client.connection is not None]
        if not able:
            return
        client = self.rng.choice(able)
        client.pump()
        connection = client.connection
        assert connection is not None
        while connection.up:
            self.shell.read(connection)
        for _ in range(2):
            self.decide()
        self._hear(client, len(connection.down))

    def ask_after(self) -> None:
        """Either side asks whether the other is there."""
        for connection in [*self.shell.current.values()]:
            if self.rng.random() < 0.5:
                self.shell.say(connection, Ping(id=0))
        if self.awake:
            self.rng.choice(self.awake).ping()

    # --- locks and time

    def want(self) -> None:
        """Somebody wants a lock."""
        if self.awake:
            self.rng.choice(self.awake).want(self.rng)

    def part(self) -> None:
        """Somebody gives one back, or stops waiting."""
        able = [client for client in self.awake if client.kept]
        if able:
            self.rng.choice(able).part(self.rng)

    def keep(self) -> None:
        """Everybody renews."""
        for client in self.awake:
            client.keep()

    def break_lock(self) -> None:
        """Somebody takes a lock from whoever holds it, by a request from outside."""
        self.shell.inputs.append((Connection(self.rng.choice(self.clients)), Break(self.rng.choice(LOCKS))))

    def pause(self) -> None:
        """Somebody is held up, most likely one that holds a lock; nobody else is."""
        able = [client for client in self.awake if client.kept and self.rng.random() < 0.7] or self.awake
        if able:
            leases = self.rng.choice(PAUSES)
            self.rng.choice(able).paused = self.now.mono + leases * LEASE
            self.count("paused", f"{leases:g} leases")

    def lull(self) -> None:
        """Everybody is held up: what is under way stays under way, and leases run."""
        leases = self.rng.choice(PAUSES)
        self.held_up += leases * LEASE
        self.count("held up", f"{leases:g} leases")

    def catch_up(self) -> None:
        """An outbox that lagged has drained."""
        for connection in self.connections:
            if connection.lagging is not None and connection.open_at_server:
                self.shell.inputs.append((connection, CatchUp()))

    def fold(self) -> None:
        """An outbox folds neighbouring frames into one."""
        for connection in self.connections:
            pairs = self._pairs(connection)
            if pairs and self._fold(connection.down, self.rng.choice(pairs)):
                self.count("folded", "entries")

    def fold_all(self, connection: Connection) -> None:
        """An outbox that nobody reads folds what it can."""
        for index in reversed(self._pairs(connection)):
            if self._fold(connection.down, index):
                self.count("folded", "entries")

    def _pairs(self, connection: Connection) -> list[int]:
        """Where two frames for a whole audience stand one behind the other."""
        return [
            index
            for index, (one, other) in enumerate(zip(connection.down, list(connection.down)[1:], strict=False))
            if one.shared and other.shared
        ]

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
        able = [item for item in self.awake if not item.member_of_room or (item.settled and item.replica.live)]
        if able:
            client = self.rng.choice(able)
            if client.member_of_room:
                client.leave()
            else:
                client.come_back()

    def widen(self) -> None:
        """A kernel re-runs a newer class, or links a second state."""
        able = [item for item in self.awake if not item.page and item.member_of_room and item.replica.live]
        if not able:
            return
        client = self.rng.choice(able)
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
            client.paused = client.patient = 0.0
            if not client.member_of_room:
                client.come_back()
        patience: Counter[str] = Counter()
        for _ in range(SETTLE_ROUNDS):
            self.step += 8
            self._round()
            self._check_releases(patience)
            if self._quiet():
                break
        else:
            raise AssertionError(f"not quiet after {SETTLE_ROUNDS} rounds: {self._restless()}")
        self._check_end()

    def _check_releases(self, patience: Counter[str]) -> None:
        """Whoever gives a lock back does not wait for the end of its lease."""
        for client in self.clients:
            for tenure in client.tenures:
                if tenure.phase == "leaving" and not client.replica.undecided_under(tenure.fence):
                    patience[tenure.owner] += 1
                    assert patience[tenure.owner] < 5, f"every claim ends: {tenure} is given back, and stays"

    def _round(self) -> None:
        for connection in self.connections:
            while connection.up:
                self.shell.read(connection)
            if not connection.open_at_client:
                self.shell.closed(connection)
        self.catch_up()
        self.tick()
        if self.shell.window is None:
            self.shell.decide(len(self.shell.inputs))
        self.shell.complete("ok")
        for client in self.clients:
            client.patient = 0.0
            while client.connection is not None and client.connection.down:
                client.receive()
        self.hang_up()
        for client in self.clients:
            if client.connection is None:
                client.connect()
            # Whoever holds a lock gives it back; whoever waits for one waits until it comes.
            for key, tenure in [*client.kept.items()]:
                if tenure.phase in ("held", "over"):
                    client.claims.leave(client.kept.pop(key))
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
        found += [f"{client.boot} has the claims {client.kept}" for client in self.clients if not client.claims.idle]
        locks = self.shell.room.locks
        found += [f"{lock} is held by {locks.holder(lock)}" for lock in locks.names() if locks.holder(lock)]
        waiting = {claim.owner for lock in locks.names() for claim in locks.waiters(lock)}
        found += [f"{waiting} wait for locks"] if waiting else []
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
            for ask in client.asks:
                assert not ask.open, f"{client.boot} is not answered on {ask}"
                assert ask.answer == (None if ask.withdrawn else ask.now), f"{client.boot} is answered twice on {ask}"
                assert not (ask.withdrawn and ask.push.n), f"{client.boot} has taken back {ask}, and sent it"
            for tenure in client.tenures:
                assert tenure.phase == "over", f"every claim ends: {client.boot} has {tenure}"
        for span in self.store.locks.spans.values():
            self.count("freed", span.reason)
        for boot in {boot for boot, _ in self.store.verdicts}:
            numbers = sorted(n for of, n in self.store.verdicts if of == boot)
            assert numbers == list(range(1, len(numbers) + 1)), f"G2: {boot} has verdicts on {numbers}"
        if "S" in last.values:
            assert last.values["S"]["count"] == self._sum("count"), "G3: a sum was lost or counted twice"
            assert last.values["S"]["stock"] == VALUES["stock"] + self._sum("stock"), "G3: a sum was lost or counted twice"

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
    (World.break_connection, 3),
    (World.notice, 2),
    (World.hang_up, 2),
    (World.connect, 5),
    (World.restart, 0.15),
    (World.catch_up, 2),
    (World.fold, 2),
    (World.leave, 1),
    (World.widen, 1),
    (World.tick, 2),
    (World.exchange, 24),
    (World.overtake, 7),
    (World.give_up, 1),
    (World.ask_after, 3),
    (World.want, 8),
    (World.part, 8),
    (World.keep, 6),
    (World.break_lock, 0.3),
    (World.pause, 1),
    (World.lull, 0.3),
)


def run(seed: int, steps: int = 600) -> World:
    """One schedule from its seed, faults and then peace."""
    rng = random.Random(seed)
    world = World(rng, faults=rng.choice((0.0, 0.1, 0.3, 0.5, 0.5)))
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
