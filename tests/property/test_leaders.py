"""Who runs a reaction, in every order in which words and presence can come: one at a time, and nothing is left undone.

A room and the replicas of its members, with wires between them that are cut, and members that come, go, and react slowly. What
happened is held against a book of who began and ended what while its connection was whole.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest

from sharedwidgets import reactions
from sharedwidgets.core.protocol import (
    Downstream,
    Entries,
    Join,
    Leave,
    Limits,
    Member,
    Members,
    Nack,
    Op,
    Resend,
    Set,
    Snapshot,
    TraitSchema,
    Upstream,
)
from sharedwidgets.core.replica import Pending, Replica
from sharedwidgets.core.room import Attach, Author, Detach, Effect, Now, Record, Room, Send, Tell
from support.scale import scaled

TOKEN = "r"
WATCHED = "Fit"
BESIDE = reactions.beside(WATCHED, "lead")
STATES = {WATCHED: {"a": TraitSchema(kind="int", default=0)}, BESIDE: reactions.wanted().schema}


@dataclass
class Run:
    """A reaction to everything in (after, last]; `cut`: its author was away before the room had its word."""

    member: str
    after: int
    last: int
    cut: bool = False
    over: bool = False
    word: Pending | None = None


@dataclass(eq=False)
class Process:
    """One member: its replica, and what is on the way to and from it."""

    name: str
    author: Author
    replica: Replica = field(default_factory=lambda: Replica(TOKEN))
    up: deque[Upstream] = field(default_factory=deque)
    down: deque[Downstream] = field(default_factory=deque)
    connected: bool = True
    resuming: bool = False
    linked: bool = False
    # As in a `Watch`: since when it is there without a gap, None before it is, and how far it reacted.
    since: int | None = None
    done: int = 0
    claim: Pending | None = None
    run: Run | None = None

    def counts(self) -> bool:
        return self.connected and not self.resuming and self.replica.live and BESIDE in self.replica.states

    def begin(self) -> None:
        if self.counts() and self.linked and self.since is None:
            self.since = self.replica.seq

    def leads(self) -> bool:
        return self.counts() and self.since is not None and reactions.leads(self.replica, BESIDE, self.name, self.since)

    def handled(self) -> int:
        said: Any = self.replica.states[BESIDE].values["done"]
        return max(self.done, said[1] if said else 0)

    def newest(self) -> int:
        return self.replica.states[WATCHED].last["a"].seq

    def ask(self, ops: list[Op]) -> Pending:
        return self.replica.ask(ops)


class Scene:
    """The room, its members, and the book."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.clock = 0.0
        self.room = Room(TOKEN, incarnation="i", epoch="e", limits=Limits(away_seconds=1.0))
        self.processes = [self.made(f"m{number}") for number in range(3)]
        self.writer = self.processes[0]
        self.attached: set[str] = set()
        self.runs: list[Run] = []
        self.first = 0
        for process in self.processes:
            for state, schema in STATES.items():
                process.up.append(Join(id=1, room=TOKEN, state=state, schema=schema))
            process.linked = True

    def made(self, name: str) -> Process:
        member = Member(id=name, kind="script")
        return Process(name, Author(boot=name, member=member, audience="kernel", may_write=True, origin="script"))

    # --- the server

    def tell(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Attach(boot=boot):
                    self.attached.add(boot)
                case Detach(boot=boot):
                    self.attached.discard(boot)
                case Send(boot=boot, message=message):
                    self.put(boot, message)
                case Tell(message=message, but=but):
                    for boot in self.attached - {but}:
                        self.put(boot, message)
                case Record(entry=entry) if entry is not None:
                    for boot in self.attached:
                        mark = self.room.marks.get(boot)
                        decided = mark.n if mark else 0
                        frame = Entries(
                            room=TOKEN, epoch="e", prev=entry.seq - 1, last=entry.seq, entries=(entry,), decided=decided
                        )
                        self.put(boot, frame)
                case _:
                    pass

    def put(self, boot: str, message: Any) -> None:
        """On the way; news of presence may overtake entries, as they are put where the last such news still wait."""
        process = next(item for item in self.processes if item.name == boot)
        if not process.connected:
            return
        if isinstance(message, Members) and self.rng.random() < 0.5:
            earlier = [place for place, item in enumerate(process.down) if isinstance(item, (Members, Snapshot))]
            if earlier:
                process.down.insert(earlier[-1] + 1, message)
                return
        process.down.append(message)

    def hear(self, process: Process) -> None:
        message: Any = process.up.popleft()
        self.clock += 0.1
        self.tell(self.room.receive(process.author, message, Now(self.clock, self.clock)))

    # --- what can happen

    def step(self, process: Process) -> None:
        acts = [
            (self.write, 2),
            (self.carry_up, 12),
            (self.carry_down, 12),
            (self.react, 8),
            (self.finish, 5),
            (self.cut, 0.4),
            (self.come_back, 2),
            (self.unlink, 0.4),
            (self.link, 2),
            (self.time, 0.3),
        ]
        self.rng.choices([act for act, _ in acts], [weight for _, weight in acts])[0](process)
        process.begin()

    def write(self, process: Process) -> None:
        if process.counts() and WATCHED in process.replica.states and len(self.runs) < 40:
            process.replica.write([Set(state=WATCHED, path=("a",), value=self.rng.randrange(1 << 30))])

    def carry_up(self, process: Process) -> None:
        if process.connected:
            if process.replica.live and not process.resuming:
                process.up.extend(process.replica.take(4))
            if process.up:
                self.hear(process)

    def carry_down(self, process: Process) -> None:
        if not process.down:
            return
        message = process.down.popleft()
        if isinstance(message, (Snapshot, Entries)):
            process.resuming = False
        if isinstance(message, (Snapshot, Entries, Nack, Resend, Members)):
            process.up.extend(process.replica.receive(message).send)

    def react(self, process: Process) -> None:
        """Look whether there is something to do, and whose it is."""
        process.begin()
        if not (process.counts() and process.linked and WATCHED in process.replica.states) or process.run is not None:
            return
        if process.newest() <= process.handled():
            return
        if process.leads():
            process.run = Run(process.name, process.handled(), process.replica.seq)
            self.check(process.run)
            self.runs.append(process.run)
            return
        waits = process.claim is not None and process.replica.is_open(process.claim)
        if not waits and reactions.may_claim(process.replica, BESIDE, process.name):
            process.claim = process.ask(reactions.claim(process.replica, BESIDE, process.name))

    def check(self, new: Run) -> None:
        """Nobody else has reacted to any of it, or does: those apart that were away before the room had their word."""
        newest = max((entry.seq for entry in self.log() if new.after < entry.seq <= new.last), default=0)
        for other in self.runs:
            if other.member != new.member and not other.cut and other.after < newest <= other.last:
                raise AssertionError(f"{new} reacts to what {other} does")

    def log(self) -> list[Any]:
        return [entry for entry, *_ in self.room._tail if any(op.state == WATCHED for op in entry.ops)]

    def finish(self, process: Process) -> None:
        run = process.run
        if run is not None:
            process.run, run.over = None, True
            process.done = max(process.done, run.last)
            run.word = process.ask(reactions.done(BESIDE, process.name, ["i", run.last, "a"]))

    def cut(self, process: Process) -> None:
        if not process.connected:
            return
        process.connected = False
        process.up.clear()
        process.down.clear()
        process.replica.disconnected()
        process.since = None
        for run in self.runs:
            if run.member == process.name and (run.word is None or process.replica.is_open(run.word)):
                run.cut = True
        self.tell(self.room.disconnect(process.name, Now(self.clock, self.clock)))

    def come_back(self, process: Process) -> None:
        if process.connected:
            return
        process.connected = True
        if process.replica.live:
            process.resuming = True
            process.up.append(process.replica.position(self.linked(process)))
        else:
            self.join(process)

    def linked(self, process: Process) -> tuple[str, ...]:
        return (WATCHED, BESIDE) if process.linked else (WATCHED,)

    def join(self, process: Process) -> None:
        process.up.extend(Join(id=2, room=TOKEN, state=state, schema=STATES[state]) for state in self.linked(process))

    def unlink(self, process: Process) -> None:
        """Behind what it said, and not while it reacts."""
        if process.counts() and process.linked and process.run is None and not process.replica.unsent:
            process.linked = False
            process.since = None
            process.up.append(Leave(room=TOKEN, state=BESIDE))

    def link(self, process: Process) -> None:
        if not process.linked and process.counts() and not process.up:
            process.linked = True
            process.up.append(Join(id=3, room=TOKEN, state=BESIDE, schema=STATES[BESIDE]))
            # It is linked once that is answered; until then it claims nothing, as it is not among those who can.
            self.settle_link(process)

    def settle_link(self, process: Process) -> None:
        process.since = None
        while process.up:
            self.hear(process)
        while process.down:
            self.carry_down(process)

    def time(self, process: Process) -> None:
        """Who stays away is gone."""
        self.clock += 2.0
        self.tell(self.room.tick(Now(self.clock, self.clock)))

    def settle(self) -> None:
        """Everyone comes back and everything arrives, until nobody has anything left to do."""
        for _ in range(400):
            for process in self.processes:
                self.come_back(process)
                self.link(process)
                self.carry_up(process)
                self.carry_down(process)
                self.react(process)
                self.finish(process)


@pytest.mark.parametrize("seed", range(scaled(2000)))
def test_one_reacts_at_a_time_and_nothing_is_left_undone(seed: int) -> None:
    scene = Scene(random.Random(seed))
    for _ in range(600):
        scene.step(scene.rng.choice(scene.processes))
    scene.settle()
    log = scene.log()
    said: Any = scene.room.states[BESIDE].values["done"]
    if len(log) > 1:
        assert said
        assert said[1] >= log[-1].seq
        # And not only said: somebody was told.
        assert any(run.over and run.after < log[-1].seq <= run.last for run in scene.runs)


def test_the_schedules_reach_what_they_are_for() -> None:
    """Without these a rule that is missing would not be missed."""
    runs, cut, leaders, refused = 0, 0, set(), 0
    for seed in range(60):
        scene = Scene(random.Random(seed))
        for _ in range(600):
            process = scene.rng.choice(scene.processes)
            scene.step(process)
            refused += process.claim is not None and process.claim.problem is not None
        runs += len(scene.runs)
        cut += sum(run.cut for run in scene.runs)
        leaders |= {run.member for run in scene.runs}
    assert runs > 200
    assert cut > 10
    assert refused > 10
    assert leaders == {"m0", "m1", "m2"}
