"""Who is connected, and which rooms they hold."""

from __future__ import annotations

import pytest

from sharedwidgets.core.protocol import Member
from sharedwidgets.core.registry import KEPT_TOMBSTONES, TOMBSTONE_SECONDS, Registry, Tombstones
from sharedwidgets.errors import TooManyRooms

ANA = Member(id="m1", kind="kernel")


@pytest.fixture
def registry() -> Registry:
    return Registry(rooms_per_boot=2, room_ttl=60.0)


def test_a_boot_holds_what_it_entered(registry: Registry) -> None:
    generation, replaced = registry.admit("b1", ANA)
    assert replaced is None
    registry.enter("b1", "r")
    registry.enter("b1", "r")
    registry.enter("b1", "q")
    assert registry.drop("b1", generation) == {"r", "q"}
    assert not registry.current("b1", generation)


def test_h07_a_newer_connection_of_a_boot_replaces_the_older(registry: Registry) -> None:
    first, _ = registry.admit("b1", ANA)
    registry.enter("b1", "r")
    second, replaced = registry.admit("b1", ANA)
    assert replaced is not None
    assert (replaced.rooms, replaced.generation) == ({"r"}, first)
    assert registry.current("b1", second)
    assert not registry.current("b1", first)
    # News of the older one, however late, changes nothing.
    registry.enter("b1", "q")
    assert registry.drop("b1", first) == set()
    assert registry.drop("b1", second) == {"q"}


def test_h07_two_boots_of_one_member_are_two_links(registry: Registry) -> None:
    first, _ = registry.admit("b1", ANA)
    second, replaced = registry.admit("b2", ANA)
    assert replaced is None
    assert first != second
    assert registry.current("b1", first)
    assert registry.current("b2", second)
    assert not registry.current("b1", second)


def test_a_boot_nobody_knows_is_not_current(registry: Registry) -> None:
    assert not registry.current("b9", 1)
    assert registry.drop("b9", 1) == set()
    registry.leave("b9", "r")
    registry.admit("b9", ANA)
    registry.leave("b9", "never entered")


def test_one_room_too_many(registry: Registry) -> None:
    registry.admit("b1", ANA)
    registry.enter("b1", "r")
    registry.enter("b1", "q")
    registry.enter("b1", "q")
    with pytest.raises(TooManyRooms, match="may hold 2 rooms") as caught:
        registry.enter("b1", "s")
    assert (caught.value.room, caught.value.expected) == ("s", "≤ 2 rooms")
    registry.leave("b1", "r")
    registry.enter("b1", "s")
    # Another boot has rooms of its own.
    registry.admit("b2", ANA)
    registry.enter("b2", "r")


def test_an_empty_room_expires_after_its_time(registry: Registry) -> None:
    registry.emptied("r", 100.0)
    registry.emptied("q", 130.0)
    assert registry.expired(159.9) == []
    assert registry.expired(160.0) == ["r"]
    assert registry.expired(160.0) == []
    assert registry.expired(190.0) == ["q"]


def test_the_time_of_an_empty_room_runs_from_the_first_word(registry: Registry) -> None:
    registry.emptied("r", 100.0)
    registry.emptied("r", 150.0)
    assert registry.expired(160.0) == ["r"]


def test_a_room_somebody_enters_does_not_expire(registry: Registry) -> None:
    registry.admit("b1", ANA)
    registry.emptied("r", 100.0)
    registry.enter("b1", "r")
    assert registry.expired(1000.0) == []
    registry.leave("b1", "r")
    registry.emptied("r", 1000.0)
    assert registry.expired(1060.0) == ["r"]


def test_h18_deletions_are_remembered_for_their_time_and_up_to_a_number() -> None:
    tombstones = Tombstones()
    for number in range(KEPT_TOMBSTONES + 1):
        tombstones.bury(("r", f"i{number}"), float(number))
    assert ("r", "i0") not in tombstones
    assert ("r", "i1") in tombstones
    assert ("q", "i1") not in tombstones
    tombstones.forget(1 + TOMBSTONE_SECONDS)
    assert ("r", "i1") in tombstones
    tombstones.forget(2.5 + TOMBSTONE_SECONDS)
    assert [("r", f"i{number}") in tombstones for number in (1, 2, 3, KEPT_TOMBSTONES)] == [False, False, True, True]
    tombstones.forget(1e9)
    assert ("r", f"i{KEPT_TOMBSTONES}") not in tombstones
    tombstones.forget(1e9)
