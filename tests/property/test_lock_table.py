"""A room's locks in every order of events, held against what their effects say and who stood in line.

The chronicle is made from effects alone: who had which lock from which sequence number to which. The line is made from what
members did alone. No rule of the table is asked to find out what it should have done.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sharedwidgets.core.locks import Claim, Freed, Granted, Held, LockEffect, LockName, LockTable, Lost, Queued, Taken
from sharedwidgets.errors import TooLarge
from support.scale import scaled

LEASE = 16.0
PAUSES = (0.5, 1.0, 3.0)
NAMES = tuple(LockName(kind=kind, name=name) for kind, name in (("state", "S"), ("named", "S"), ("named", "fit")))  # type: ignore[arg-type]
BOOTS = ("b1", "b2", "b3")
# The first two are processes of one member: a kernel before and after its restart.
MEMBERS = {"b1": "m1", "b2": "m1", "b3": "m3"}
CLAIMS = tuple(Claim(boot, owner, MEMBERS[boot], f"kernel {boot}.ipynb") for boot in BOOTS for owner in ("main", "task"))

# Fewer than there are, so that both are met.
MOST_WAITERS = 3
MOST_NAMES = 2


@dataclass
class Tenure:
    """One grant, from its own number to that of its end."""

    name: LockName
    claim: Claim
    fence: int
    lease: float
    deadline: float
    until: int | None = None


@dataclass
class Line:
    """Who stands at one lock, in order of coming; those who are away keep their place."""

    places: list[Claim] = field(default_factory=list)
    away: set[Claim] = field(default_factory=set)
    leases: dict[Claim, float] = field(default_factory=dict)

    def first(self) -> Claim | None:
        return next((claim for claim in self.places if claim not in self.away), None)

    def come(self, claim: Claim, lease: float) -> bool:
        """Stand in line, or show oneself again; whether it is a new place."""
        self.away.discard(claim)
        self.leases[claim] = lease
        new = claim not in self.places
        self.places += [claim] if new else []
        return new

    def go(self, claim: Claim) -> bool:
        """Leave the line; whether one stood in it."""
        stood = claim in self.places
        self.places = [other for other in self.places if other != claim]
        self.away.discard(claim)
        return stood

    def leave(self, boot: str) -> bool:
        """A process is gone; whether it stood in the line."""
        before = len(self.places)
        self.places = [claim for claim in self.places if claim.boot != boot]
        self.away = {claim for claim in self.away if claim.boot != boot}
        return len(self.places) < before


class LockMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = LockTable(waiters=MOST_WAITERS, names=MOST_NAMES)
        self.now = 100.0
        self.seq = 10
        self.chronicle: list[Tenure] = []
        self.lines = {name: Line() for name in NAMES}

    # --- what the effects say

    def tenure(self, name: LockName) -> Tenure | None:
        """Who has the lock by what was told, its lease over or not."""
        open_ones = [tenure for tenure in self.chronicle if tenure.name == name and tenure.until is None]
        assert len(open_ones) <= 1, f"{name} has two holders: {open_ones}"
        return open_ones[0] if open_ones else None

    def hear(self, effect: LockEffect, reasons: set[str]) -> None:
        """Write one effect down, and see that it may be."""
        held = self.tenure(effect.name)
        if isinstance(effect, Granted):
            self.seq += 1
            assert held is None, f"granted while held: {effect}, {held}"
            assert effect.fence == self.seq
            assert all(effect.fence > other.fence for other in self.chronicle)
            line = self.lines[effect.name]
            assert effect.claim == line.first(), f"out of turn: {effect}, {line}"
            assert effect.lease == line.leases[effect.claim]
            line.go(effect.claim)
            self.chronicle.append(Tenure(effect.name, effect.claim, effect.fence, effect.lease, self.now + effect.lease))
        elif isinstance(effect, Freed):
            self.seq += 1
            assert held is not None, f"freed though nobody holds it: {effect}"
            assert (effect.claim, effect.fence) == (held.claim, held.fence)
            assert effect.reason in reasons
            assert (effect.reason == "expired") == (held.deadline <= self.now)
            held.until = self.seq
        else:
            assert isinstance(effect, Queued), f"nobody asked: {effect}"

    def settled(self, name: LockName, effects: list[LockEffect]) -> list[LockEffect]:
        """Take what ends an overdue tenure from the front of the effects; the rest is for the rule to judge."""
        held = self.tenure(name)
        if held is None or held.deadline > self.now:
            return effects
        size = 1 if self.lines[name].first() is None else 2
        assert [type(effect) for effect in effects[:size]] == [Freed, Granted][:size], f"overdue: {held}, {effects}"
        for effect in effects[:size]:
            self.hear(effect, {"expired"})
        return effects[size:]

    def all_settled(self, effects: list[LockEffect]) -> list[LockEffect]:
        """Take the end of every overdue tenure from the front, in the order in which the leases ran out."""
        overdue = [tenure for tenure in self.chronicle if tenure.until is None and tenure.deadline <= self.now]
        for tenure in sorted(overdue, key=lambda tenure: tenure.deadline):
            effects = self.settled(tenure.name, effects)
        return effects

    def freed(self, name: LockName, reason: str, effects: list[LockEffect]) -> None:
        """These effects end the tenure of a lock for that reason, and begin the next if anybody is there."""
        size = 1 if self.lines[name].first() is None else 2
        assert [type(effect) for effect in effects] == [Freed, Granted][:size]
        for effect in effects:
            self.hear(effect, {reason})

    # --- what members do

    @rule(claim=st.sampled_from(CLAIMS), name=st.sampled_from(NAMES), lease=st.sampled_from([LEASE, 2 * LEASE]))
    def acquire(self, claim: Claim, name: LockName, lease: float) -> None:
        self.ask(claim, name, lease)

    @rule(claim=st.sampled_from(CLAIMS), name=st.sampled_from(NAMES))
    def try_acquire(self, claim: Claim, name: LockName) -> None:
        """Somebody wants it now or not at all."""
        self.ask(claim, name, LEASE, wait=False)

    @rule(claims=st.permutations(CLAIMS), name=st.sampled_from(NAMES))
    def crowd(self, claims: list[Claim], name: LockName) -> None:
        """Everyone wants the same lock; not all find a place."""
        for claim in claims:
            self.ask(claim, name, LEASE)

    def ask(self, claim: Claim, name: LockName, lease: float, *, wait: bool = True) -> None:
        held, line = self.tenure(name), self.lines[name]
        in_use = [other for other in NAMES if self.tenure(other) or self.lines[other].places]
        no_name = name not in in_use and len(in_use) == MOST_NAMES
        lasts = held is not None and held.deadline > self.now
        full = len({*line.places, claim}) > MOST_WAITERS
        no_place = wait and lasts and held is not None and held.claim != claim and full
        if no_name or no_place:
            with pytest.raises(TooLarge):
                self.table.acquire(claim, name, lease, self.now, self.seq, wait=wait)
            return
        effects = self.settled(name, self.table.acquire(claim, name, lease, self.now, self.seq, wait=wait))
        held = self.tenure(name)
        if held is not None and held.claim == claim:
            assert effects == [Held(name, claim, held.fence, held.lease)]
            held.deadline = self.now + held.lease
        elif held is not None and not wait:
            assert effects == [*([Queued(name)] if line.go(claim) else []), Taken(name, claim, held.claim)]
        else:
            new = line.come(claim, lease)
            if held is None:
                (granted,) = effects
                assert isinstance(granted, Granted)
                self.hear(granted, set())
            else:
                assert effects == ([Queued(name)] if new else [])

    @rule(claim=st.sampled_from(CLAIMS), name=st.sampled_from(NAMES))
    def cancel(self, claim: Claim, name: LockName) -> None:
        effects = self.settled(name, self.table.cancel(claim, name, self.now, self.seq))
        held = self.tenure(name)
        if held is not None and held.claim == claim:
            self.freed(name, "released", effects)
        else:
            assert effects == ([Queued(name)] if self.lines[name].go(claim) else [])

    def pick(self, data: st.DataObject) -> tuple[Claim, LockName, int]:
        """A claim under a fence it was granted, now or once; sometimes a fence of somebody else's."""
        open_ones = [tenure for tenure in self.chronicle if tenure.until is None]
        tenure = data.draw(st.sampled_from([*open_ones, *self.chronicle[-4:]]), label="tenure")
        claim = data.draw(st.sampled_from([*[tenure.claim] * len(CLAIMS), *CLAIMS]), label="claim")
        return claim, tenure.name, tenure.fence

    @precondition(lambda self: self.chronicle)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        claim, name, fence = self.pick(data)
        effects = self.settled(name, self.table.release(claim, name, fence, self.now, self.seq))
        held = self.tenure(name)
        if held is not None and (held.claim, held.fence) == (claim, fence):
            self.freed(name, "released", effects)
        else:
            assert effects == [Lost(name, claim, fence)]

    @precondition(lambda self: self.chronicle)
    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        claim, name, fence = self.pick(data)
        effects = self.settled(name, self.table.renew(claim, name, fence, self.now, self.seq))
        held = self.tenure(name)
        if held is not None and (held.claim, held.fence) == (claim, fence):
            assert effects == []
            held.deadline = self.now + held.lease
        else:
            assert effects == [Lost(name, claim, fence)]

    @rule(name=st.sampled_from(NAMES))
    def break_lock(self, name: LockName) -> None:
        effects = self.table.break_lock(name, self.now, self.seq)
        held = self.tenure(name)
        if held is None:
            assert effects == []
        else:
            self.freed(name, "expired" if held.deadline <= self.now else "broken", effects)

    @rule(boot=st.sampled_from(BOOTS))
    def disconnected(self, boot: str) -> None:
        self.table.disconnected(boot)
        for line in self.lines.values():
            line.away |= {claim for claim in line.places if claim.boot == boot}

    @rule(boot=st.sampled_from(BOOTS))
    def gone(self, boot: str) -> None:
        effects = self.all_settled(self.table.gone(boot, self.now, self.seq))
        left = [name for name, line in self.lines.items() if line.leave(boot)]
        held = [tenure.fence for tenure in self.chronicle if tenure.until is None and tenure.claim.boot == boot]
        for effect in effects:
            self.hear(effect, {"gone"})
        assert sorted((effect.name for effect in effects if isinstance(effect, Queued)), key=str) == sorted(left, key=str)
        assert sorted(effect.fence for effect in effects if isinstance(effect, Freed)) == sorted(held)

    @rule()
    def tick(self) -> None:
        assert self.all_settled(self.table.tick(self.now, self.seq)) == []

    @rule(leases=st.sampled_from(PAUSES))
    def pause(self, leases: float) -> None:
        self.now += leases * LEASE

    @rule(clock=st.sampled_from([0.0, 1e6]))
    def restart(self, clock: float) -> None:
        """Another process loads what was kept; its clock stands anywhere, and nobody waits yet."""
        self.tick()
        self.table = LockTable.from_image(self.table.image(), clock, waiters=MOST_WAITERS, names=MOST_NAMES)
        self.now = clock
        self.lines = {name: Line() for name in NAMES}
        for tenure in self.chronicle:
            tenure.deadline = clock + tenure.lease

    # --- what must be so at any time

    @invariant()
    def writes_are_the_holders(self) -> None:
        """Every fence that was ever granted is tried, by every process, now and at each deadline."""
        open_ones = [tenure for tenure in self.chronicle if tenure.until is None]
        fences = {0, None, self.seq + 1, *(tenure.fence for tenure in self.chronicle[-8:]), *(one.fence for one in open_ones)}
        for now in {self.now, *(tenure.deadline for tenure in open_ones if tenure.deadline > self.now)}:
            for name in NAMES:
                holders = {(one.claim.boot, one.fence) for one in open_ones if one.name == name and now < one.deadline}
                allowed = {(boot, fence) for boot in BOOTS for fence in fences if self.table.allows(name, boot, fence, now)}
                assert allowed == (holders or {(boot, fence) for boot in BOOTS for fence in (0, None)})

    @invariant()
    def nobody_stands_before_a_free_lock(self) -> None:
        for name, line in self.lines.items():
            assert self.tenure(name) is not None or line.first() is None

    @invariant()
    def what_is_shown_is_what_was_told(self) -> None:
        open_ones = [tenure for tenure in self.chronicle if tenure.until is None]
        for name in NAMES:
            held, shown = self.tenure(name), self.table.holder(name)
            assert (held is None) == (shown is None)
            if held is not None and shown is not None:
                assert (shown.claim, shown.fence, shown.lease) == (held.claim, held.fence, held.lease)
                assert shown.expires == held.deadline
            assert list(self.table.waiters(name)) == self.lines[name].places
        assert self.table.next_deadline() == min((tenure.deadline for tenure in open_ones), default=None)
        in_use = {name for name, line in self.lines.items() if line.places} | {tenure.name for tenure in open_ones}
        assert sorted(self.table.names(), key=str) == sorted(in_use, key=str)
        assert {(kept.name, kept.fence, kept.lease) for kept in self.table.image()} == {
            (tenure.name, tenure.fence, tenure.lease) for tenure in open_ones
        }

    def teardown(self) -> None:
        """Mutual exclusion: the tenures of one lock do not share a sequence number."""
        for name in NAMES:
            tenures = [tenure for tenure in self.chronicle if tenure.name == name]
            for earlier, later in pairwise(tenures):
                assert earlier.until is not None
                assert earlier.fence < earlier.until < later.fence


TestLockMachine = LockMachine.TestCase
TestLockMachine.settings = settings(max_examples=max(200, scaled(2000)), stateful_step_count=60)


@pytest.mark.parametrize("leases", PAUSES)
@pytest.mark.parametrize("renewed", [False, True])
def test_g07_a_holder_that_pauses_may_write_while_its_lease_lasts(leases: float, renewed: bool) -> None:
    (first, second, third, *_), (name, *_) = CLAIMS, NAMES
    table = LockTable(waiters=MOST_WAITERS, names=MOST_NAMES)
    table.acquire(first, name, LEASE, 0.0, 10)
    table.acquire(second, name, LEASE, 1.0, 11)
    table.acquire(third, name, LEASE, 2.0, 11)
    since = LEASE / 3 if renewed else 0.0
    assert not renewed or table.renew(first, name, 11, since, 11) == []
    now = since + leases * LEASE
    lasts = leases < 1
    assert table.allows(name, first.boot, 11, now) == lasts
    # Too late it revives nothing, and who waited longest has its turn, under a higher fence, for a lease of its own.
    turn = [] if lasts else [Freed(name, first, 11, "expired"), Granted(name, second, 13, LEASE), Lost(name, first, 11)]
    assert table.renew(first, name, 11, now, 11) == turn
    assert table.allows(name, second.boot, 13, now) == (not lasts)
    assert [claim.owner for claim in table.waiters(name)] == [claim.owner for claim in ((second, third) if lasts else (third,))]


def test_nobody_starves() -> None:
    """Who keeps waiting is granted after everyone else at most once, the holder excepted, however their turns end.

    Holders pause for half a lease, for one and for three, and everyone with them.
    """
    rng = random.Random(21)
    contenders = [Claim(f"b{number}", "main", f"m{number}", f"kernel {number}.ipynb") for number in range(7)]
    most = len(contenders) - 2
    (name, *_) = NAMES
    table = LockTable(waiters=len(contenders), names=1)
    now, seq, longest = 0.0, 0, 0
    # How many grants went to others since it stands in line without a break.
    patience: dict[Claim, int] = {}
    turns: Counter[Claim] = Counter()
    endings: Counter[str] = Counter()
    fences: list[int] = []

    def hear(effects: list[LockEffect]) -> None:
        nonlocal seq, longest
        for effect in effects:
            if isinstance(effect, Freed):
                seq += 1
                endings[effect.reason] += 1
            elif isinstance(effect, Granted):
                seq += 1
                fences.append(effect.fence)
                turns[effect.claim] += 1
                patience.pop(effect.claim, None)
                for claim in patience:
                    patience[claim] += 1
                    longest = max(longest, patience[claim])
                    assert patience[claim] <= most, f"{claim.label} starves at seq {seq}"

    for _ in range(10_000):
        now += rng.uniform(0, LEASE / 4)
        hear(table.tick(now, seq))
        for claim in rng.sample(contenders, 3):
            held = table.holder(name)
            if held is None or held.claim != claim:
                patience.setdefault(claim, 0)
                hear(table.acquire(claim, name, LEASE, now, seq))
        held = table.holder(name)
        assert held is not None
        somebody = rng.choice(contenders)
        match rng.choice(["release", "release", "renew", "pause", "vanish", "disconnect", "give up"]):
            case "release":
                hear(table.release(held.claim, name, held.fence, now, seq))
            case "renew":
                hear(table.renew(held.claim, name, held.fence, now, seq))
            case "pause":
                now += rng.choice(PAUSES) * LEASE
                assert table.allows(name, held.claim.boot, held.fence, now) == (now < held.expires)
            case "vanish":
                patience.pop(somebody, None)
                hear(table.gone(somebody.boot, now, seq))
            case "disconnect":
                patience.pop(somebody, None)
                table.disconnected(somebody.boot)
            case _:
                patience.pop(somebody, None)
                hear(table.cancel(somebody, name, now, seq))
    # The run had what it was made for.
    assert set(turns) == set(contenders)
    assert set(endings) == {"released", "expired", "gone"}
    assert longest == most
    assert fences == sorted(set(fences))
