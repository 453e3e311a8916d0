"""Who is connected, which rooms they hold, and which were deleted: the links of a whole server, as pure bookkeeping.

A member is a kernel, page or script; a boot is one process or page load of it; a connection is one socket of a boot, named by
a generation number so that news about an older one is recognised as stale.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sharedwidgets.core.protocol import Member
from sharedwidgets.errors import TooManyRooms

# Deletions that are remembered, and for how long: as long as the marks of whoever may come back.
KEPT_TOMBSTONES = 10_000
TOMBSTONE_SECONDS = 7 * 86400.0


@dataclass
class Link:
    """One boot: whose it is, which connection speaks for it, and the rooms it holds."""

    member: Member
    generation: int
    rooms: set[str] = field(default_factory=set)


class Registry:
    """Every boot that is connected, and for how long an empty room is kept.

    Parameters
    ----------
    rooms_per_boot : int
        How many rooms one connection may hold.
    room_ttl : float
        Seconds a room outlives its last member.
    """

    def __init__(self, rooms_per_boot: int, room_ttl: float) -> None:
        self._rooms_per_boot = rooms_per_boot
        self._room_ttl = room_ttl
        self._links: dict[str, Link] = {}
        self._empty_since: dict[str, float] = {}
        self._generation = 0

    def admit(self, boot: str, member: Member) -> tuple[int, Link | None]:
        """A boot said hello: the generation of its connection, and the link this one replaces (H7)."""
        self._generation += 1
        replaced = self._links.get(boot)
        self._links[boot] = Link(member, self._generation)
        return self._generation, replaced

    def current(self, boot: str, generation: int) -> bool:
        """Whether this connection still speaks for the boot."""
        link = self._links.get(boot)
        return link is not None and link.generation == generation

    def connected(self, boot: str) -> bool:
        """Whether any connection speaks for the boot."""
        return boot in self._links

    def enter(self, boot: str, room: str) -> None:
        """A boot holds a room.

        Raises
        ------
        TooManyRooms
            It holds as many as it may.
        """
        link = self._links[boot]
        if room not in link.rooms and len(link.rooms) >= self._rooms_per_boot:
            raise TooManyRooms(
                f"one connection may hold {self._rooms_per_boot} rooms; unlink some, or use one room with several states",
                room=room,
                expected=f"≤ {self._rooms_per_boot} rooms",
            )
        link.rooms.add(room)
        self._empty_since.pop(room, None)

    def hold(self, boot: str, room: str) -> bool:
        """A room has let a boot in, whatever became of its other requests; whether the boot is still there."""
        link = self._links.get(boot)
        if link is None:
            return False
        link.rooms.add(room)
        self._empty_since.pop(room, None)
        return True

    def leave(self, boot: str, room: str) -> None:
        """A boot let a room go."""
        if boot in self._links:
            self._links[boot].rooms.discard(room)

    def drop(self, boot: str, generation: int) -> set[str]:
        """A connection closed: the rooms its boot held, or none when a newer one took its place."""
        if not self.current(boot, generation):
            return set()
        return self._links.pop(boot).rooms

    def emptied(self, room: str, now: float) -> None:
        """Nobody is in the room any more; its time runs from now."""
        self._empty_since.setdefault(room, now)

    def expired(self, now: float) -> list[str]:
        """Rooms that were empty for longer than `room_ttl`; they are forgotten here."""
        over = [room for room, since in self._empty_since.items() if now - since >= self._room_ttl]
        for room in over:
            del self._empty_since[room]
        return over


class Tombstones:
    """Rooms that were deleted, as (token, incarnation): who comes back to one is told, and does not make it again (H18)."""

    def __init__(self) -> None:
        # Oldest first.
        self._since: dict[tuple[str, str], float] = {}

    def __contains__(self, room: object) -> bool:
        return room in self._since

    def bury(self, room: tuple[str, str], now: float) -> None:
        """A room was deleted."""
        self._since[room] = now
        if len(self._since) > KEPT_TOMBSTONES:
            del self._since[next(iter(self._since))]

    def forget(self, now: float) -> None:
        """Let go of what was deleted long ago."""
        while self._since and now - next(iter(self._since.values())) > TOMBSTONE_SECONDS:
            del self._since[next(iter(self._since))]
