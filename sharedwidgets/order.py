"""In which order locks are taken: one for everybody, so that no two owners wait for each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from sharedwidgets import host
from sharedwidgets.core.claims import Tenure
from sharedwidgets.core.protocol import LockName
from sharedwidgets.errors import LockOrder


class Place(NamedTuple):
    """The place of a lock among all there are."""

    room: str
    lock: str


class _Taken(NamedTuple):
    place: Place
    tenure: Tenure
    lives: Callable[[], bool]


# What each thread or task has taken, in the order of taking. What was lost or given back meanwhile counts no more, nor what was
# taken by one that has ended and left its number to another.
_taken: dict[host.Owner, list[_Taken]] = {}


def place(room: str, name: LockName) -> Place:
    """Where a lock of a room stands."""
    return Place(room, f"{name.kind} {name.name}")


def check(room: str, name: LockName) -> None:
    """Whether the thread or task that runs may wait for a lock, with what it has.

    Raises
    ------
    LockOrder
        It has one that comes behind it.
    """
    wanted, held = place(room, name), [item.place for item in _held()]
    if wanted in held or not held or max(held) < wanted:
        return
    last = max(held)
    raise LockOrder(
        f"{name.name!r} of {room!r} comes before {last.lock.partition(' ')[2]!r} of {last.room!r}, held: take both at once "
        "with lock(a, b), which knows the order",
        room=room,
    )


def note(room: str, name: LockName, tenure: Tenure) -> None:
    """The thread or task that runs has taken a lock."""
    for owner, items in [*_taken.items()]:
        # Whoever has ended gives nothing back.
        if not any(item.lives() for item in items) and _taken.get(owner) is items:
            del _taken[owner]
    _taken[host.owner()] = [*_held(), _Taken(place(room, name), tenure, host.lives())]


def given(tenure: Tenure) -> None:
    """It gives one back, or has never got it."""
    me = host.owner()
    rest = [item for item in _taken.pop(me, []) if item.tenure is not tenure]
    if rest:
        _taken[me] = rest


def _held() -> list[_Taken]:
    return [item for item in _taken.get(host.owner(), []) if item.tenure.phase == "held" and item.lives()]
