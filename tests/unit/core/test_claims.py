"""What a process asks of locks: a claim from its first word to its end."""

from __future__ import annotations

import itertools

import pytest

from sharedwidgets.core.claims import Claims, Tenure
from sharedwidgets.core.protocol import (
    Acquire,
    Cancel,
    Entries,
    EntryOp,
    Freed,
    Granted,
    LockImage,
    LockName,
    Nack,
    Problem,
    Reason,
    Release,
    Renew,
    Set,
    Snapshot,
    StateImage,
)
from sharedwidgets.core.replica import News, Replica
from support.build import SCHEMA, VALUES, entry, put

S = LockName(kind="state", name="S")
NAMED = LockName(kind="named", name="fit")


class Process:
    """A replica and the claims beside it, fed by hand."""

    def __init__(self) -> None:
        self.replica = Replica("r")
        self.claims = Claims("r")
        self.numbers = itertools.count(1)
        self.epoch = "e1"
        self.snapshot()

    def snapshot(self, *locks: LockImage, decided: int = 0) -> list[Tenure]:
        image = StateImage(schema=SCHEMA, values=VALUES)
        seq, states = self.replica.seq + 1, {"S": image, "T": image}
        message = Snapshot(room="r", incarnation="i", epoch="e1", seq=seq, states=states, locks=locks, decided=decided)
        return self.heard(self.replica.receive(message), anew=True)

    def happens(self, *ops: EntryOp, decided: int = 0) -> list[Tenure]:
        seq = self.replica.seq + 1
        frame = Entries(room="r", epoch="e1", prev=seq - 1, last=seq, entries=(entry(seq, *ops),), decided=decided)
        return self.heard(self.replica.receive(frame), anew=False)

    def heard(self, news: News, *, anew: bool) -> list[Tenure]:
        return self.claims.heard(self.replica, news, anew=anew)

    def due(self) -> list[object]:
        return [*self.claims.due(self.replica, lambda: next(self.numbers))]

    def want(self, owner: str = "o") -> Tenure:
        return self.claims.want(S, owner, 15.0, "kernel a", self.replica.newest())

    def held(self, owner: str = "o") -> Tenure:
        tenure = self.want(owner)
        self.due()
        self.happens(granted(owner))
        assert tenure.phase == "held"
        return tenure


def granted(owner: str, member: str = "m") -> Granted:
    return Granted(lock=S, member=member, owner=owner, label="kernel a", lease=15.0)


def freed(fence: int, reason: Reason = "released") -> Freed:
    return Freed(lock=S, fence=fence, reason=reason)


@pytest.fixture
def process() -> Process:
    return Process()


def test_a_claim_is_asked_once_and_held_when_its_grant_is_seen(process: Process) -> None:
    tenure = process.want()
    (ask,) = process.due()
    assert ask == Acquire(id=1, room="r", lock=S, owner="o", lease=15.0, label="kernel a")
    assert process.due() == []
    assert process.happens(granted("another")) == []
    assert process.happens(freed(process.replica.seq), granted("o")) == [tenure]
    assert (tenure.phase, tenure.fence, process.claims.held) == ("held", process.replica.seq, (tenure,))


def test_h24_a_claim_waits_for_what_was_written_before_it_and_for_nothing_else(process: Process) -> None:
    process.replica.write([put("count", 1)])
    process.want()
    (push,) = process.replica.take(9)
    process.replica.write([put("title", "later")], group=True)
    assert process.due() == []
    process.happens(Set(state="S", path=("count",), value=1), decided=push.n)
    assert [type(word) for word in process.due()] == [Acquire]


@pytest.mark.parametrize("fences", [{}, {"S": 1}])
@pytest.mark.parametrize("refused", [False, True])
def test_g06_h22_a_lock_is_held_when_its_state_shows_only_what_its_owner_may_see(
    process: Process, fences: dict[str, int], refused: bool
) -> None:
    """Another thread of the process wrote while the grant was on its way; the lock it may have had is over."""
    tenure = process.want()
    process.due()
    process.replica.write([put("count", 100)], fences=fences)
    (push,) = process.replica.take(9)
    assert process.happens(granted("o")) == [tenure]
    fence = process.replica.seq
    assert (tenure.phase, tenure.fence, process.claims.held) == ("granted", fence, ())
    # It is kept alive all the same, and what its owner writes under it is no reason to wait.
    assert process.claims.renewals([tenure]) == [Renew(room="r", lock=S, owner="o", fence=fence)]
    process.replica.write([put("title", "mine")], fences={"S": fence})
    if refused:
        nack = Nack(room="r", n=push.n, problem=Problem(code="locked", message="no"))
        assert process.heard(process.replica.receive(nack), anew=False) == [tenure]
    else:
        assert process.happens(decided=push.n) == [tenure]
    assert (tenure.phase, tenure.fence, process.claims.held, process.due()) == ("held", fence, (tenure,), [])
    assert process.replica.value("S", "count") == 0


def test_g06_what_a_lock_does_not_cover_and_what_shows_nowhere_does_not_keep_its_owner_waiting(process: Process) -> None:
    state, named = process.want("a"), process.claims.want(NAMED, "b", 15.0, "kernel a")
    process.due()
    process.replica.ask([put("count", 1)])
    process.happens(granted("a"))
    assert state.phase == "held"
    process.replica.write([put("count", 2)])
    process.happens(Granted(lock=NAMED, member="m", owner="b", label="kernel a", lease=15.0))
    assert named.phase == "held"


def test_a_grant_that_is_over_before_its_owner_could_look_is_asked_for_again(process: Process) -> None:
    tenure = process.want()
    process.due()
    process.replica.write([put("count", 100)])
    (push,) = process.replica.take(9)
    process.happens(granted("o"))
    first = tenure.fence
    assert process.happens(freed(first, "expired")) == [tenure]
    assert (tenure.phase, tenure.fence, tenure.lost) == ("wanted", 0, False)
    assert [type(word) for word in process.due()] == [Acquire]
    assert process.happens(granted("o")) == [tenure]
    # Over and granted again in one frame is another grant, too.
    fence = process.replica.seq
    assert process.happens(freed(fence, "expired"), granted("o"), decided=push.n) == [tenure]
    assert (tenure.phase, tenure.fence) == ("held", fence + 1)


def test_h23_a_grant_that_nobody_waits_for_any_more_is_given_back(process: Process) -> None:
    tenure = process.want()
    process.due()
    process.replica.write([put("count", 100)])
    process.happens(granted("o"))
    process.claims.leave(tenure)
    assert process.due() == [Release(room="r", lock=S, owner="o", fence=tenure.fence)]
    assert process.happens(freed(tenure.fence)) == [tenure]
    assert (tenure.end, tenure.lost) == ("released", False)


def test_its_end_is_said_behind_what_was_written_under_it(process: Process) -> None:
    tenure = process.held()
    process.replica.write([put("count", 1)], fences={"S": tenure.fence})
    (push,) = process.replica.take(9)
    assert push.fences == {"S": tenure.fence}
    process.claims.leave(tenure)
    assert (tenure.phase, process.due()) == ("leaving", [])
    process.happens(Set(state="S", path=("count",), value=1), decided=push.n)
    assert process.due() == [Release(room="r", lock=S, owner="o", fence=tenure.fence)]
    assert process.due() == []
    assert process.happens(freed(tenure.fence)) == [tenure]
    assert (tenure.phase, tenure.end, tenure.lost, process.claims.idle) == ("over", "released", False, True)


@pytest.mark.parametrize("fences", [{}, {"T": 7}])
def test_h28_its_end_waits_for_nothing_that_was_written_under_no_fence_or_another(
    process: Process, fences: dict[str, int]
) -> None:
    """A write of another state is on its way, by another thread."""
    tenure = process.held()
    process.replica.write([put("count", 1)], fences={"S": tenure.fence})
    process.replica.write([put("title", "of another thread", state="T")], fences=fences)
    mine, _ = process.replica.take(9)
    process.claims.leave(tenure)
    assert process.due() == []
    process.happens(Set(state="S", path=("count",), value=1), decided=mine.n)
    assert process.replica.undecided == 1
    assert process.due() == [Release(room="r", lock=S, owner="o", fence=tenure.fence)]


def test_writes_under_different_fences_are_never_merged(process: Process) -> None:
    process.replica.write([put("count", 1)])
    process.replica.write([put("count", 2)], fences={"S": 7})
    process.replica.write([put("count", 3)], fences={"S": 7})
    process.replica.write([put("count", 4)])
    assert [(push.ops[0].value, push.fences) for push in process.replica.take(9)] == [(1, {}), (3, {"S": 7}), (4, {})]  # type: ignore[union-attr]


@pytest.mark.parametrize("reason", ["expired", "broken", "gone"])
@pytest.mark.parametrize("leaving", [False, True])
def test_an_end_that_was_not_asked_for_is_a_loss(process: Process, reason: Reason, leaving: bool) -> None:
    tenure = process.held()
    if leaving:
        process.claims.leave(tenure)
    assert process.happens(freed(tenure.fence, reason)) == [tenure]
    assert (tenure.phase, tenure.end, tenure.lost) == ("over", reason, True)
    assert process.due() == []


def test_h23_a_claim_that_is_given_up(process: Process) -> None:
    unasked = process.want("a")
    process.claims.leave(unasked)
    assert (unasked.end, process.due()) == ("cancelled", [])
    asked = process.want("b")
    process.due()
    process.claims.leave(asked)
    assert process.due() == [Cancel(room="r", lock=S, owner="b")]
    # A grant that was on its way is no longer anybody's.
    assert process.happens(granted("b")) == []
    assert (asked.phase, asked.lost, process.claims.held) == ("over", False, ())


def test_after_a_reconnect_who_waits_asks_again_and_who_gives_back_says_so_again(process: Process) -> None:
    waiting = process.want("a")
    process.due()
    process.claims.disconnected()
    (again,) = process.due()
    assert isinstance(again, Acquire)
    process.happens(granted("a"))
    process.claims.leave(waiting)
    assert len(process.due()) == 1
    process.claims.disconnected()
    assert [type(word) for word in process.due()] == [Release]


def test_after_a_snapshot_a_claim_it_does_not_show_is_asked_again(process: Process) -> None:
    process.want("a")
    process.due()
    process.snapshot()
    assert [type(word) for word in process.due()] == [Acquire]
    process.snapshot(LockImage(lock=S, member="m", owner="a", fence=9))
    assert [tenure.fence for tenure in process.claims.held] == [9]


def test_a_lock_that_a_snapshot_does_not_show_is_lost_unless_it_was_given_back(process: Process) -> None:
    tenure = process.held()
    assert process.snapshot() == [tenure]
    assert (tenure.end, tenure.lost) == ("unknown", True)
    other = process.held()
    process.claims.leave(other)
    process.due()
    assert process.snapshot() == [other]
    assert (other.end, other.lost) == ("released", False)


def test_g07_a_lock_that_is_lost_before_its_release_was_said_is_no_release(process: Process) -> None:
    tenure = process.held()
    process.replica.write([put("count", 1)], fences={"S": tenure.fence})
    process.claims.leave(tenure)
    assert process.due() == []
    # Its write has no verdict yet, and a snapshot shows that the lease ran out.
    assert process.snapshot() == [tenure]
    assert (tenure.end, tenure.lost) == ("unknown", True)


def test_a_release_that_was_said_before_a_reconnect_counts(process: Process) -> None:
    tenure = process.held()
    process.claims.leave(tenure)
    process.due()
    process.claims.disconnected()
    assert process.snapshot() == [tenure]
    assert (tenure.end, tenure.lost) == ("released", False)


def test_a_turn_that_was_over_before_it_was_heard_of_is_asked_for_again(process: Process) -> None:
    tenure = process.want()
    process.due()
    fence = process.replica.seq + 1
    both = (entry(fence, granted("o")), entry(fence + 1, freed(fence, "expired")))
    process.heard(
        process.replica.receive(Entries(room="r", epoch="e1", prev=fence - 1, last=fence + 1, entries=both)), anew=False
    )
    assert [type(word) for word in process.due()] == [Acquire]
    process.happens(granted("o"))
    assert process.claims.held == (tenure,)


def test_a_grant_that_comes_before_the_claim_is_asked_again_counts(process: Process) -> None:
    tenure = process.want()
    process.due()
    # A snapshot from before the grant was on its way, or the connection was lost.
    process.snapshot()
    assert process.happens(granted("o")) == [tenure]
    assert (tenure.phase, process.due()) == ("held", [])


def test_h23_a_claim_that_is_given_up_after_it_was_asked_is_cancelled(process: Process) -> None:
    tenure = process.want()
    process.due()
    process.snapshot()
    process.claims.leave(tenure)
    assert process.due() == [Cancel(room="r", lock=S, owner="o")]


def test_h23_a_claim_that_was_asked_twice_and_lost_is_cancelled(process: Process) -> None:
    tenure = process.want()
    process.due()
    process.snapshot()
    assert [type(word) for word in process.due()] == [Acquire]
    # What was asked first is granted and over, before the server reads the second.
    process.happens(granted("o"))
    assert process.happens(freed(tenure.fence, "expired")) == [tenure]
    assert process.due() == [Cancel(room="r", lock=S, owner="o")]
    assert tenure.lost


def test_h23_a_cancel_is_said_again_after_a_reconnect(process: Process) -> None:
    tenure = process.want()
    process.due()
    process.claims.leave(tenure)
    assert [type(word) for word in process.due()] == [Cancel]
    assert process.due() == []
    for _ in range(2):
        process.claims.disconnected()
        assert process.due() == [Cancel(room="r", lock=S, owner="o")]


def test_only_what_is_held_is_renewed(process: Process) -> None:
    tenure = process.held()
    assert process.claims.renewals([tenure]) == [Renew(room="r", lock=S, owner="o", fence=tenure.fence)]
    process.claims.leave(tenure)
    assert process.claims.renewals([tenure]) == []


def test_a_claim_that_is_refused_says_why(process: Process) -> None:
    tenure = process.want()
    process.due()
    problem = Problem(code="forbidden", message="no")
    assert process.claims.refused(99, problem) is None
    assert process.claims.refused(1, problem) is tenure
    assert (tenure.phase, tenure.end, tenure.problem, tenure.lost) == ("over", "refused", problem, True)


@pytest.mark.parametrize("seen", ["nothing", "a snapshot"])
def test_a_claim_that_does_not_wait_is_over_when_it_is_taken(process: Process, seen: str) -> None:
    tenure = process.claims.want(S, "o", 15.0, "kernel a", wait=False)
    (ask,) = process.due()
    assert isinstance(ask, Acquire)
    assert not ask.wait
    if seen == "a snapshot":
        process.snapshot()
    problem = Problem(code="lock-timeout", message="taken")
    assert process.claims.refused(ask.id, problem) is tenure
    assert (tenure.phase, tenure.end, process.due(), process.claims.idle) == ("over", "refused", [], True)


def test_a_claim_that_does_not_wait_is_asked_again_after_a_reconnect_and_held_when_granted(process: Process) -> None:
    tenure = process.claims.want(S, "o", 15.0, "kernel a", wait=False)
    process.due()
    process.claims.disconnected()
    (again,) = process.due()
    assert isinstance(again, Acquire)
    assert not again.wait
    assert process.happens(granted("o")) == [tenure]
    assert process.claims.held == (tenure,)


def test_a_room_that_ends_takes_its_claims_with_it(process: Process) -> None:
    held, waiting = process.held("a"), process.want("b")
    problem = Problem(code="room-gone", message="deleted")
    assert process.claims.ended(problem) == [held, waiting]
    assert [(item.end, item.problem) for item in (held, waiting)] == [("gone", problem)] * 2
    assert process.claims.idle


def test_a_refused_write_under_a_lock_does_not_keep_it(process: Process) -> None:
    tenure = process.held()
    process.replica.write([put("count", 1)], fences={"S": tenure.fence})
    (push,) = process.replica.take(9)
    process.claims.leave(tenure)
    process.replica.receive(Nack(room="r", n=push.n, problem=Problem(code="invalid-value", message="no")))
    assert [type(word) for word in process.due()] == [Release]
