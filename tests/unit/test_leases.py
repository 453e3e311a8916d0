"""The locks of one process in one room: what is written under them, how long they last, and what is said where they end."""

from __future__ import annotations

import itertools

import pytest

from sharedwidgets.core.claims import Tenure
from sharedwidgets.core.protocol import Acquire, Entries, EntryOp, Freed, Granted, LockName, Reason, Renew, Snapshot, StateImage
from sharedwidgets.core.replica import Replica
from sharedwidgets.errors import Locked
from sharedwidgets.leases import Leases
from support.build import SCHEMA, VALUES, entry, put

S = LockName(kind="state", name="S")
HOLD = 600.0


class Process:
    """A replica and the leases beside it, fed by hand."""

    def __init__(self) -> None:
        self.replica = Replica("r")
        self.leases = Leases("r")
        self.numbers = itertools.count(1)
        image = StateImage(schema=SCHEMA, values=VALUES)
        self.replica.receive(Snapshot(room="r", incarnation="i", epoch="e1", seq=1, states={"S": image}))

    def happens(self, *ops: EntryOp, now: float = 0.0, decided: int = 0) -> None:
        seq = self.replica.seq + 1
        frame = Entries(room="r", epoch="e1", prev=seq - 1, last=seq, entries=(entry(seq, *ops),), decided=decided)
        self.leases.heard(self.replica, self.replica.receive(frame), now, anew=False)

    def due(self) -> list[object]:
        return [*self.leases.due(self.replica, lambda: next(self.numbers))]

    def held(self, lease: float = 15.0, *, given: float = 15.0, now: float = 0.0) -> Tenure:
        tenure = self.leases.want(S, lease, "me", self.replica)
        self.due()
        self.happens(granted(tenure.owner, given), now=now)
        assert tenure.phase == "held"
        return tenure

    def loses(self, tenure: Tenure, reason: Reason) -> str:
        self.happens(Freed(lock=S, fence=tenure.fence, reason=reason))
        return str(self.leases.lost(tenure))


def granted(owner: str, lease: float = 15.0, label: str = "kernel a") -> Granted:
    return Granted(lock=S, member="m", owner=owner, label=label, lease=lease)


@pytest.fixture
def process() -> Process:
    return Process()


def test_h24_what_was_written_before_is_decided_before_a_lock_is_asked_for(process: Process) -> None:
    process.replica.write([put("count", 1)])
    (push,) = process.replica.take(9)
    process.leases.want(S, 15.0, "me", process.replica)
    assert process.due() == []
    process.happens(put("count", 1), decided=push.n)
    assert [type(word) for word in process.due()] == [Acquire]


def test_what_is_left_of_a_lease_is_counted_from_its_grant_and_from_each_renewal(process: Process) -> None:
    tenure = process.held(now=100.0)
    left = process.leases.left
    assert [left(tenure, now) for now in (100.0, 104.0, 115.0, 120.0)] == [15.0, 11.0, 0.0, 0.0]
    assert process.leases.renewals(104.0, HOLD) == []
    assert process.leases.renewals(105.0, HOLD) == [Renew(room="r", lock=S, owner=tenure.owner, fence=tenure.fence)]
    assert left(tenure, 107.0) == 13.0
    process.loses(tenure, "broken")
    assert left(tenure, 107.0) == 0.0


def test_a_lease_is_counted_from_its_grant_though_its_owner_still_has_to_wait(process: Process) -> None:
    tenure = process.leases.want(S, 15.0, "me", process.replica)
    process.due()
    process.replica.write([put("count", 1)])
    (push,) = process.replica.take(9)
    process.happens(granted(tenure.owner), now=100.0)
    assert (tenure.phase, process.leases.left(tenure, 101.0), process.leases.next_look(104.5, HOLD)) == ("granted", 0.0, 0.5)
    # What it may not look at yet, it does not write either.
    with pytest.raises(Locked):
        process.leases.fences([put("count", 2)], process.replica)
    process.happens(decided=push.n, now=103.0)
    assert (tenure.phase, process.leases.left(tenure, 104.0)) == ("held", 11.0)
    assert process.leases.fences([put("count", 2)], process.replica) == {"S": tenure.fence}


def test_who_may_not_write_is_told_who_holds_the_lock_and_for_how_long_at_most(process: Process) -> None:
    process.happens(granted("another", 30.0, "kernel b"))
    with pytest.raises(Locked, match=r"S is locked by kernel b, for at most 30 s unless it is renewed; nothing was written"):
        process.leases.fences([put("count", 1)], process.replica)


def test_a_lease_that_was_too_short_is_to_be_longer(process: Process) -> None:
    assert "give lock(lease=) more seconds" in process.loses(process.held(), "expired")


def test_a_lease_the_server_has_cut_is_not_to_be_longer(process: Process) -> None:
    tenure = process.held(1000.0, given=HOLD)
    told = process.loses(tenure, "expired")
    assert "nobody hold one for longer than 600 s (hold_seconds); take the lock for each step" in told
    assert "lease=" not in told


def test_a_lock_that_was_held_for_too_long_is_not_renewed_and_a_longer_lease_is_no_help(process: Process) -> None:
    tenure = process.held()
    assert len(process.leases.renewals(HOLD - 1, HOLD)) == 1
    assert process.leases.renewals(HOLD + 5, HOLD) == []
    told = process.loses(tenure, "expired")
    assert "nobody hold one for longer than 600 s (hold_seconds); take the lock for each step" in told
    assert "lease=" not in told
