"""Who holds a lock, who is next, and what a write under a lost one is worth."""

from __future__ import annotations

import msgspec
import pytest

from sharedwidgets.core.locks import (
    Claim,
    Freed,
    Granted,
    Held,
    HeldLock,
    Holder,
    LockEffect,
    LockName,
    LockTable,
    Lost,
    Queued,
)
from sharedwidgets.errors import TooLarge

STATE = LockName(kind="state", name="Counter")
FIT = LockName(kind="named", name="fit")
LEASE = 16.0

ANA = Claim("b1", "main", "m1", "kernel a.ipynb")
ANA_TASK = Claim("b1", "task-7", "m1", "kernel a.ipynb")
BEN = Claim("b2", "main", "m2", "kernel b.ipynb")
CAT = Claim("b3", "main", "m3", "script c.py")


@pytest.fixture
def table() -> LockTable:
    return LockTable(waiters=3, names=2)


def line(table: LockTable, *claims: Claim) -> None:
    """The claims ask for the state's lock at 100, one after the other; the first holds it under fence 11."""
    for number, claim in enumerate(claims):
        table.acquire(claim, STATE, LEASE, 100.0, 10 if number == 0 else 11)


# --- names


def test_a_state_and_a_named_lock_of_one_name_are_two(table: LockTable) -> None:
    named = LockName(kind="named", name=STATE.name)
    assert len({named, STATE, LockName(kind="state", name="Counter")}) == 2
    assert table.acquire(ANA, STATE, LEASE, 100.0, 10) == [Granted(STATE, ANA, 11, LEASE)]
    assert table.acquire(BEN, named, LEASE, 100.0, 11) == [Granted(named, BEN, 12, LEASE)]
    assert table.names() == (STATE, named)


# --- acquire


def test_a_free_lock_is_granted_and_its_fence_is_the_number_it_takes(table: LockTable) -> None:
    assert table.acquire(ANA, STATE, LEASE, 100.0, 41) == [Granted(STATE, ANA, 42, LEASE)]
    assert table.holder(STATE) == Holder(ANA, 42, LEASE, 116.0)
    assert table.waiters(STATE) == ()
    assert table.holder(FIT) is None
    assert table.next_deadline() == 116.0


def test_a_held_lock_is_waited_for_in_order_of_coming(table: LockTable) -> None:
    line(table, ANA)
    for claim in (CAT, BEN, ANA_TASK):
        assert table.acquire(claim, STATE, LEASE, 100.0, 11) == [Queued(STATE)]
    assert table.waiters(STATE) == (CAT, BEN, ANA_TASK)
    assert table.holder(STATE) == Holder(ANA, 11, LEASE, 116.0)


def test_who_holds_it_and_asks_again_keeps_its_fence_and_starts_its_lease_anew(table: LockTable) -> None:
    line(table, ANA)
    assert table.acquire(ANA, STATE, 99.0, 110.0, 20) == [Held(STATE, ANA, 11, LEASE)]
    assert table.holder(STATE) == Holder(ANA, 11, LEASE, 126.0)
    assert table.waiters(STATE) == ()


def test_h22_another_thread_of_the_holders_process_waits(table: LockTable) -> None:
    line(table, ANA)
    assert table.acquire(ANA_TASK, STATE, LEASE, 100.0, 11) == [Queued(STATE)]
    assert table.release(ANA_TASK, STATE, 11, 100.0, 11) == [Lost(STATE, ANA_TASK, 11)]
    assert table.renew(ANA_TASK, STATE, 11, 100.0, 11) == [Lost(STATE, ANA_TASK, 11)]
    assert table.holder(STATE) == Holder(ANA, 11, LEASE, 116.0)


def test_who_waits_and_asks_again_keeps_its_place(table: LockTable) -> None:
    line(table, ANA, BEN, CAT)
    assert table.acquire(BEN, STATE, 5.0, 101.0, 11) == []
    assert table.waiters(STATE) == (BEN, CAT)
    # It is held for as long as it asked for last.
    assert table.release(ANA, STATE, 11, 102.0, 11)[1] == Granted(STATE, BEN, 13, 5.0)
    assert table.next_deadline() == 107.0


def test_a_waiter_under_a_new_label_is_shown_with_it(table: LockTable) -> None:
    line(table, ANA, BEN)
    renamed = Claim(BEN.boot, BEN.owner, BEN.member, "kernel renamed.ipynb")
    assert table.acquire(renamed, STATE, LEASE, 101.0, 11) == [Queued(STATE)]
    assert table.waiters(STATE) == (renamed,)


def test_who_asks_for_a_lock_whose_lease_is_over_gets_it(table: LockTable) -> None:
    line(table, ANA)
    assert table.acquire(BEN, STATE, LEASE, 116.0, 20) == [
        Freed(STATE, ANA, 11, "expired"),
        Granted(STATE, BEN, 22, LEASE),
    ]


def test_who_asks_again_after_its_lease_goes_behind_those_who_waited(table: LockTable) -> None:
    line(table, ANA, BEN)
    assert table.acquire(ANA, STATE, LEASE, 116.0, 20) == [
        Freed(STATE, ANA, 11, "expired"),
        Granted(STATE, BEN, 22, LEASE),
        Queued(STATE),
    ]
    assert table.waiters(STATE) == (ANA,)


# --- release and cancel


def test_a_released_lock_goes_to_the_first_who_waits(table: LockTable) -> None:
    line(table, ANA, BEN, CAT)
    assert table.release(ANA, STATE, 11, 103.0, 20) == [
        Freed(STATE, ANA, 11, "released"),
        Granted(STATE, BEN, 22, LEASE),
    ]
    assert table.holder(STATE) == Holder(BEN, 22, LEASE, 119.0)
    assert table.waiters(STATE) == (CAT,)


def test_a_lock_that_nobody_holds_or_waits_for_takes_no_memory(table: LockTable) -> None:
    line(table, ANA, BEN)
    table.release(ANA, STATE, 11, 100.0, 11)
    assert table.release(BEN, STATE, 13, 100.0, 13) == [Freed(STATE, BEN, 13, "released")]
    assert table.names() == ()
    assert table.next_deadline() is None


@pytest.mark.parametrize("fence", [0, 10, 12])
def test_a_release_under_another_fence_is_lost_and_frees_nothing(table: LockTable, fence: int) -> None:
    line(table, ANA, BEN)
    assert table.release(ANA, STATE, fence, 100.0, 11) == [Lost(STATE, ANA, fence)]
    assert table.holder(STATE) == Holder(ANA, 11, LEASE, 116.0)


def test_a_release_after_the_lease_is_lost_and_the_next_has_it(table: LockTable) -> None:
    line(table, ANA, BEN)
    assert table.release(ANA, STATE, 11, 116.0, 20) == [
        Freed(STATE, ANA, 11, "expired"),
        Granted(STATE, BEN, 22, LEASE),
        Lost(STATE, ANA, 11),
    ]


def test_a_release_of_what_was_never_held_leaves_nothing_behind(table: LockTable) -> None:
    assert table.release(ANA, STATE, 11, 100.0, 20) == [Lost(STATE, ANA, 11)]
    assert table.names() == ()


def test_h23_a_waiter_that_gives_up_is_not_granted(table: LockTable) -> None:
    line(table, ANA, BEN, CAT)
    assert table.cancel(BEN, STATE, 101.0, 11) == [Queued(STATE)]
    assert table.waiters(STATE) == (CAT,)
    assert table.release(ANA, STATE, 11, 101.0, 11)[1] == Granted(STATE, CAT, 13, LEASE)


def test_h23_a_grant_that_crosses_the_cancel_is_released_at_once(table: LockTable) -> None:
    line(table, ANA, BEN, CAT)
    assert Granted(STATE, BEN, 13, LEASE) in table.release(ANA, STATE, 11, 101.0, 11)
    # The cancel was on its way already, and names no fence.
    assert table.cancel(BEN, STATE, 101.5, 13) == [
        Freed(STATE, BEN, 13, "released"),
        Granted(STATE, CAT, 15, LEASE),
    ]


def test_h23_a_cancel_at_the_very_end_of_anothers_lease(table: LockTable) -> None:
    line(table, ANA, BEN, CAT)
    assert table.cancel(BEN, STATE, 116.0, 11) == [
        Freed(STATE, ANA, 11, "expired"),
        Granted(STATE, BEN, 13, LEASE),
        Freed(STATE, BEN, 13, "released"),
        Granted(STATE, CAT, 15, LEASE),
    ]


def test_a_cancel_by_one_who_neither_holds_nor_waits_changes_nothing(table: LockTable) -> None:
    assert table.cancel(ANA, STATE, 100.0, 10) == []
    assert table.names() == ()
    line(table, ANA, BEN)
    assert table.cancel(ANA_TASK, STATE, 100.0, 11) == []
    assert table.holder(STATE) == Holder(ANA, 11, LEASE, 116.0)
    assert table.waiters(STATE) == (BEN,)


# --- leases


def test_a_renewal_in_time_starts_the_lease_anew_and_tells_nobody(table: LockTable) -> None:
    line(table, ANA)
    assert table.renew(ANA, STATE, 11, 115.5, 20) == []
    assert table.holder(STATE) == Holder(ANA, 11, LEASE, 131.5)
    assert table.tick(116.0, 20) == []


def test_a_lease_that_is_over_is_never_revived(table: LockTable) -> None:
    line(table, ANA)
    assert table.renew(ANA, STATE, 11, 116.0, 20) == [Freed(STATE, ANA, 11, "expired"), Lost(STATE, ANA, 11)]
    assert table.renew(ANA, STATE, 11, 117.0, 21) == [Lost(STATE, ANA, 11)]
    assert table.names() == ()


def test_a_late_renewal_finds_the_next_holder(table: LockTable) -> None:
    line(table, ANA, BEN)
    assert table.renew(ANA, STATE, 11, 116.0, 20) == [
        Freed(STATE, ANA, 11, "expired"),
        Granted(STATE, BEN, 22, LEASE),
        Lost(STATE, ANA, 11),
    ]
    assert table.renew(ANA, STATE, 11, 117.0, 22) == [Lost(STATE, ANA, 11)]
    assert table.holder(STATE) == Holder(BEN, 22, LEASE, 132.0)


def test_a_renewal_under_an_older_fence_of_ones_own_is_lost(table: LockTable) -> None:
    line(table, ANA)
    table.release(ANA, STATE, 11, 101.0, 11)
    table.acquire(ANA, STATE, LEASE, 102.0, 12)
    assert table.renew(ANA, STATE, 11, 110.0, 13) == [Lost(STATE, ANA, 11)]
    assert table.next_deadline() == 118.0


def test_h27_a_lease_runs_out_though_its_holder_lives(table: LockTable) -> None:
    line(table, ANA, BEN)
    # Nothing is heard of the holder for a minute, and nobody says that it is gone.
    assert table.tick(115.9, 20) == []
    assert table.tick(116.0, 20) == [Freed(STATE, ANA, 11, "expired"), Granted(STATE, BEN, 22, LEASE)]
    assert not table.allows(STATE, ANA.boot, 11, 116.0)
    assert table.release(ANA, STATE, 11, 117.0, 22) == [Lost(STATE, ANA, 11)]


def test_leases_end_in_the_order_in_which_they_ran_out(table: LockTable) -> None:
    table.acquire(ANA, STATE, 20.0, 100.0, 10)
    table.acquire(BEN, FIT, 10.0, 100.0, 11)
    table.acquire(CAT, FIT, 10.0, 100.0, 12)
    assert table.next_deadline() == 110.0
    assert table.tick(120.0, 12) == [
        Freed(FIT, BEN, 12, "expired"),
        Granted(FIT, CAT, 14, 10.0),
        Freed(STATE, ANA, 11, "expired"),
    ]
    assert table.next_deadline() == 130.0


# --- broken, disconnected, gone


def test_a_broken_lock_goes_to_the_next_and_its_holder_is_fenced(table: LockTable) -> None:
    line(table, ANA, BEN)
    assert table.break_lock(STATE, 101.0, 20) == [Freed(STATE, ANA, 11, "broken"), Granted(STATE, BEN, 22, LEASE)]
    assert table.release(ANA, STATE, 11, 101.0, 22) == [Lost(STATE, ANA, 11)]
    assert not table.allows(STATE, ANA.boot, 11, 101.0)


def test_there_is_nothing_to_break_at_a_free_lock(table: LockTable) -> None:
    assert table.break_lock(STATE, 100.0, 10) == []
    assert table.names() == ()


def test_who_broke_a_lock_that_was_over_did_not_mean_the_next_holder(table: LockTable) -> None:
    line(table, ANA, BEN)
    assert table.break_lock(STATE, 116.0, 20) == [Freed(STATE, ANA, 11, "expired"), Granted(STATE, BEN, 22, LEASE)]


def test_a_dropped_connection_keeps_the_lock(table: LockTable) -> None:
    line(table, ANA)
    table.disconnected(ANA.boot)
    assert table.holder(STATE) == Holder(ANA, 11, LEASE, 116.0)
    assert table.renew(ANA, STATE, 11, 110.0, 11) == []


def test_a_waiter_without_connection_is_passed_over_and_keeps_its_place(table: LockTable) -> None:
    line(table, ANA, BEN, CAT)
    table.disconnected(BEN.boot)
    assert table.waiters(STATE) == (BEN, CAT)
    assert table.release(ANA, STATE, 11, 101.0, 11)[1] == Granted(STATE, CAT, 13, LEASE)
    table.acquire(ANA, STATE, LEASE, 102.0, 13)
    assert table.acquire(BEN, STATE, LEASE, 103.0, 13) == []
    assert table.waiters(STATE) == (BEN, ANA)
    assert table.release(CAT, STATE, 13, 104.0, 13)[1] == Granted(STATE, BEN, 15, LEASE)


def test_only_the_waiters_of_that_process_are_passed_over(table: LockTable) -> None:
    line(table, CAT, ANA, ANA_TASK, BEN)
    table.disconnected(ANA.boot)
    table.acquire(ANA_TASK, STATE, LEASE, 101.0, 11)
    assert table.release(CAT, STATE, 11, 101.0, 11)[1] == Granted(STATE, ANA_TASK, 13, LEASE)
    assert table.waiters(STATE) == (ANA, BEN)


def test_a_lock_whose_waiters_are_all_away_is_free_for_the_first_who_asks(table: LockTable) -> None:
    line(table, ANA, BEN, CAT)
    for away in (BEN, CAT):
        table.disconnected(away.boot)
    assert table.release(ANA, STATE, 11, 101.0, 11) == [Freed(STATE, ANA, 11, "released")]
    assert table.holder(STATE) is None
    assert table.names() == (STATE,)
    assert table.allows(STATE, ANA.boot, None, 101.0)
    assert table.acquire(CAT, STATE, LEASE, 102.0, 12) == [Granted(STATE, CAT, 13, LEASE)]
    assert table.waiters(STATE) == (BEN,)


def test_what_a_process_that_is_gone_held_and_waited_for_is_free(table: LockTable) -> None:
    line(table, ANA, ANA_TASK, BEN)
    table.acquire(CAT, FIT, LEASE, 100.0, 11)
    table.acquire(ANA, FIT, LEASE, 100.0, 12)
    assert table.gone(ANA.boot, 101.0, 12) == [
        Queued(STATE),
        Freed(STATE, ANA, 11, "gone"),
        Granted(STATE, BEN, 14, LEASE),
        Queued(FIT),
    ]
    assert table.waiters(STATE) == table.waiters(FIT) == ()
    assert table.holder(FIT) == Holder(CAT, 12, LEASE, 116.0)


def test_h25_the_end_of_an_older_process_leaves_the_newer_ones_lock_alone(table: LockTable) -> None:
    # The kernel was restarted under the same member, and is back before the end of its old process is noticed.
    newer = Claim("b1-restarted", ANA.owner, ANA.member, ANA.label)
    line(table, ANA, BEN, newer)
    table.break_lock(STATE, 101.0, 11)
    table.release(BEN, STATE, 13, 101.0, 13)
    assert table.holder(STATE) == Holder(newer, 15, LEASE, 117.0)
    assert table.gone(ANA.boot, 102.0, 15) == []
    assert table.holder(STATE) == Holder(newer, 15, LEASE, 117.0)


def test_a_lease_that_was_over_before_its_process_was_gone_expired(table: LockTable) -> None:
    line(table, ANA, BEN)
    assert table.gone(ANA.boot, 116.0, 11) == [Freed(STATE, ANA, 11, "expired"), Granted(STATE, BEN, 13, LEASE)]


# --- writes


def test_g7_only_the_holder_under_its_fence_writes(table: LockTable) -> None:
    line(table, ANA, BEN)
    assert table.allows(STATE, ANA.boot, 11, 100.0)
    for boot, fence in [(ANA.boot, None), (ANA.boot, 0), (ANA.boot, 10), (BEN.boot, 11), (BEN.boot, None), (BEN.boot, 0)]:
        assert not table.allows(STATE, boot, fence, 100.0), (boot, fence)


def test_g7_a_write_that_claims_nothing_is_free_where_the_lock_is(table: LockTable) -> None:
    line(table, ANA)
    assert table.allows(FIT, BEN.boot, None, 100.0)
    assert table.allows(FIT, BEN.boot, 0, 100.0)
    # From the end of the lease on, noticed or not.
    assert not table.allows(STATE, BEN.boot, None, 115.9)
    assert table.allows(STATE, BEN.boot, None, 116.0)


def test_g7_a_write_under_a_lost_lock_never_takes_effect(table: LockTable) -> None:
    assert not table.allows(STATE, ANA.boot, 11, 100.0)
    line(table, ANA)
    assert table.allows(STATE, ANA.boot, 11, 115.9)
    assert not table.allows(STATE, ANA.boot, 11, 116.0)
    table.tick(116.0, 11)
    assert not table.allows(STATE, ANA.boot, 11, 116.0)
    table.acquire(ANA, STATE, LEASE, 117.0, 12)
    assert not table.allows(STATE, ANA.boot, 11, 117.0)
    assert table.allows(STATE, ANA.boot, 13, 117.0)


# --- what is kept


def test_h26_leases_are_kept_as_durations_and_start_anew(table: LockTable) -> None:
    line(table, ANA, BEN)
    table.acquire(CAT, FIT, 120.0, 107.0, 11)
    image = table.image()
    assert image == (
        HeldLock(name=STATE, boot="b1", owner="main", member="m1", label="kernel a.ipynb", fence=11, lease=LEASE),
        HeldLock(name=FIT, boot="b3", owner="main", member="m3", label="script c.py", fence=12, lease=120.0),
    )
    stored = msgspec.json.decode(msgspec.json.encode(image), type=tuple[HeldLock, ...])
    # The clock of the next process may stand anywhere.
    again = LockTable.from_image(stored, 3.0, waiters=3, names=2)
    assert again.holder(STATE) == Holder(ANA, 11, LEASE, 19.0)
    assert again.holder(FIT) == Holder(CAT, 12, 120.0, 123.0)
    assert again.next_deadline() == 19.0
    assert again.renew(ANA, STATE, 11, 18.0, 12) == []
    assert again.image() == image


def test_h26_waiters_are_not_kept_and_ask_again(table: LockTable) -> None:
    line(table, ANA, BEN, CAT)
    again = LockTable.from_image(table.image(), 0.0, waiters=3, names=2)
    assert again.waiters(STATE) == ()
    assert again.acquire(CAT, STATE, LEASE, 1.0, 11) == [Queued(STATE)]
    assert again.acquire(ANA, STATE, LEASE, 1.0, 11) == [Held(STATE, ANA, 11, LEASE)]


def test_a_free_lock_is_not_in_the_image(table: LockTable) -> None:
    line(table, ANA, BEN)
    table.disconnected(BEN.boot)
    table.release(ANA, STATE, 11, 101.0, 11)
    assert table.image() == ()


# --- bounds


def test_one_waiter_too_many() -> None:
    table = LockTable(waiters=1, names=2)
    line(table, ANA, BEN)
    with pytest.raises(TooLarge, match=r"script c\.py cannot wait for the lock 'Counter': 1 wait .* kernel a\.ipynb") as caught:
        table.acquire(CAT, STATE, LEASE, 101.0, 11)
    assert (caught.value.state, caught.value.expected) == ("Counter", "≤ 1 waiting")
    assert table.waiters(STATE) == (BEN,)
    # Those who are in already may ask again.
    assert table.acquire(BEN, STATE, LEASE, 101.0, 11) == []
    assert table.acquire(ANA, STATE, LEASE, 101.0, 11) == [Held(STATE, ANA, 11, LEASE)]
    # The one who waited moves up, and makes room.
    assert table.acquire(CAT, STATE, LEASE, 117.0, 11)[2:] == [Queued(STATE)]


def test_where_nobody_may_wait_a_refusal_leaves_nothing_behind() -> None:
    table = LockTable(waiters=0, names=1)
    line(table, ANA)
    with pytest.raises(TooLarge):
        table.acquire(BEN, STATE, LEASE, 101.0, 11)
    table.release(ANA, STATE, 11, 102.0, 11)
    assert table.names() == ()


def test_one_lock_too_many(table: LockTable) -> None:
    line(table, ANA)
    table.acquire(BEN, FIT, LEASE, 100.0, 11)
    third = LockName(kind="named", name="plot")
    with pytest.raises(TooLarge, match=r"script c\.py cannot have the lock 'plot': 2 locks") as caught:
        table.acquire(CAT, third, LEASE, 101.0, 12)
    assert (caught.value.state, caught.value.expected) == (None, "≤ 2 locks in use")
    assert table.names() == (STATE, FIT)
    # Those in use are open to everyone, and one that is let go makes room.
    assert table.acquire(CAT, FIT, LEASE, 101.0, 12) == [Queued(FIT)]
    table.release(ANA, STATE, 11, 101.0, 12)
    assert table.acquire(CAT, third, LEASE, 101.0, 13) == [Granted(third, CAT, 14, LEASE)]


def test_a_lock_that_is_only_waited_for_is_in_use_and_open_to_everyone(table: LockTable) -> None:
    line(table, ANA, BEN)
    table.disconnected(BEN.boot)
    table.release(ANA, STATE, 11, 101.0, 11)
    table.acquire(ANA, FIT, LEASE, 101.0, 12)
    with pytest.raises(TooLarge):
        table.acquire(CAT, LockName(kind="named", name="plot"), LEASE, 101.0, 13)
    assert table.acquire(CAT, STATE, LEASE, 101.0, 13) == [Granted(STATE, CAT, 14, LEASE)]


def test_more_locks_than_may_be_are_kept_from_an_image_and_stay_usable() -> None:
    """A server was started again with a lower bound."""
    table = LockTable(waiters=3, names=2)
    line(table, ANA)
    table.acquire(BEN, FIT, LEASE, 100.0, 11)
    again = LockTable.from_image(table.image(), 0.0, waiters=3, names=1)
    assert again.acquire(CAT, STATE, LEASE, LEASE, 12) == [
        Freed(STATE, ANA, 11, "expired"),
        Granted(STATE, CAT, 14, LEASE),
    ]


# --- numbers


def numbered(effects: list[LockEffect]) -> int:
    return sum(isinstance(effect, (Granted, Freed)) for effect in effects)


def test_fences_rise_over_all_locks_of_the_room(table: LockTable) -> None:
    seq, fences = 0, []
    for round_number in range(6):
        name, claim = (STATE, FIT)[round_number % 2], (ANA, BEN, CAT)[round_number % 3]
        effects = table.acquire(claim, name, LEASE, 100.0 + 9 * round_number, seq)
        fences += [seq + 1 + at for at, effect in enumerate(effects) if isinstance(effect, Granted)]
        assert [effect.fence for effect in effects if isinstance(effect, Granted)] == fences[-1:]
        seq += numbered(effects)
    assert fences == sorted(set(fences))
    assert len(fences) == 6
