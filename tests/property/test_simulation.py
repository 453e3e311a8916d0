"""Many random schedules over one room: cuts, repeats, lag, failing appends, restarts. Afterwards everything must add up.

The model is the log itself, read by plain dict code that knows nothing of replicas or rooms. A failure prints the seed.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from typing import Any

import pytest

from sharedwidgets.core.protocol import Append, Define, Delete, Inc, Op, Push, Set
from sharedwidgets.errors import SharedWidgetsError
from support.wire import Client, World, same_views

SCALE = float(os.environ.get("SHAREDWIDGETS_TEST_SCALE", "0.1"))
SCHEDULES = max(20, int(4000 * SCALE))
STEPS = 300
FAULTS = ("cut", "repeat", "lag", "append fails", "restart")


class Schedule:
    """One seeded run: two kernels, a script-like kernel that shares a member, and two pages of one tab."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.world = World()
        self.seen: Counter[str] = Counter()
        self.made: Counter[str] = Counter()
        for boot, kind, member in (
            ("k1", "kernel", ""),
            ("k2", "kernel", ""),
            ("p1", "frontend", "tab"),
            ("p2", "frontend", "tab"),
        ):
            self.world.client(boot, kind, member)  # type: ignore[arg-type]
        self.world.keep = self.keeps

    def keeps(self, client: Client) -> bool:
        if self.random.random() < 0.95:
            return True
        self.seen["lag"] += 1
        return False

    def run(self) -> None:
        for _ in range(STEPS):
            self.step()
        self.world.keep = lambda client: True
        self.world.fail = None
        self.world.settle()

    def step(self) -> None:
        world, choose = self.world, self.random.random()
        client = self.random.choice(list(world.clients.values()))
        world.fold = self.random.random() < 0.3
        if not client.connected:
            world.connect(client)
        elif choose < 0.02:
            self.seen["cut"] += 1
            world.cut(client, arrive=self.random.randrange(len(client.up) + 1))
        elif choose < 0.024:
            self.seen["restart"] += 1
            world.restart()
        elif choose < 0.04:
            self.seen["append fails"] += 1
            world.fail = self.random.choice(["before", "after"])
        elif choose < 0.35:
            self.write(client)
        elif choose < 0.6:
            client.take()
        elif choose < 0.8:
            if client.up and isinstance(client.up[-1], Push) and self.random.random() < 0.1:
                self.seen["repeat"] += 1
                client.up.append(client.up[-1])
            world.deliver(client, self.random.randrange(len(client.up) + 1))
        elif client.lagging is not None and choose < 0.85:
            world.catch_up(client)
        elif client.down:
            client.hear(1)

    def write(self, client: Client) -> None:
        if not client.replica.live or "S" not in client.replica.states:
            return
        try:
            client.write(*self.ops(client))
        except SharedWidgetsError:
            return
        self.made[client.boot] += 1

    def ops(self, client: Client) -> list[Op]:
        pick = self.random.randrange
        match pick(9):
            case 0:
                return [Set(state="S", path=("count",), value=pick(100))]
            case 1:
                return [Inc(state="S", path=("count",), by=1)]
            case 2:
                return [Inc(state="S", path=("level",), by=self.random.choice([1, -1, 3]))]
            case 3:
                return [Set(state="S", path=("tags", self.random.choice("abc")), value=pick(9))]
            case 4:
                return [Delete(state="S", path=("tags", self.random.choice("abc")))]
            case 5:
                return [Append(state="S", path=("items",), items=(pick(1000),))]
            case 6:
                text = str(client.replica.value("S", "text"))
                place = pick(len(text) + 1)
                return [Set(state="S", path=("text",), value=text[:place] + self.random.choice("xé𝒳") + text[place:])]
            case 7:
                return [
                    Inc(state="S", path=("level",), by=2),
                    Set(state="S", path=("count",), value=pick(100)),
                    Set(state="S", path=("tags",), value={"z": pick(9)}),
                ]
            case _:
                return [Set(state="S", path=("_salt",), value=f"KERNELS-ONLY {pick(9)}")]


def model(world: World) -> dict[str, Any]:
    """The values the log leads to, computed without any code of the core."""
    held: dict[str, Any] = {}
    for entry in world.log:
        for op in entry.ops:
            if isinstance(op, Define):
                held.update(op.values)
                continue
            trait, *keys = op.path
            if isinstance(op, Set):
                held[trait] = {**held[trait], keys[0]: op.value} if keys else op.value
            elif isinstance(op, Delete):
                held[trait] = {name: item for name, item in held[trait].items() if name != keys[0]}
            elif isinstance(op, Inc):
                held[trait] += op.by
                assert held[trait] == op.value
            elif isinstance(op, Append):
                held[trait] = held[trait] + list(op.items)
            else:
                text = held[trait]
                held[trait] = text[: op.at] + op.insert + text[op.at + op.remove :]
    return held


def check(schedule: Schedule) -> None:
    world = schedule.world
    assert [entry.seq for entry in world.log] == list(range(1, len(world.log) + 1)), "G1"
    assert world.room.states["S"].values == model(world), "the room is what its log says"
    assert all(client.replica.seq == world.room.seq for client in world.clients.values()), "G8"
    same_views(world)
    for client in world.clients.values():
        assert client.replica.undecided == 0, f"G3: {client.boot} waits for a verdict"
        assert len(client.refused) == len(set(client.refused)), "G4: a verdict told twice"
        numbers = client.replica.position().highest
        entries = [entry for entry in world.log if entry.by.id == (client.member or client.boot)]
        if not client.member:
            applied = sum(not isinstance(entry.ops[0], Define) for entry in entries)
            assert applied + len(client.refused) == numbers, "G3, G4: every number has one verdict"
    for entry in world.log:
        if len(entry.ops) > 1:
            assert [type(op).__name__ for op in entry.ops] == ["Inc", "Set", "Set"], "G10"


@pytest.mark.parametrize("block", range(10))
def test_every_schedule_adds_up(block: int) -> None:
    seen: Counter[str] = Counter()
    made = 0
    each = SCHEDULES // 10
    for seed in range(block * 100_000, block * 100_000 + each):
        schedule = Schedule(seed)
        try:
            schedule.run()
            check(schedule)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        seen.update(schedule.seen)
        made += sum(schedule.made.values())
    assert made > each * 20
    assert [fault for fault in FAULTS if seen[fault] < each // 4] == []
