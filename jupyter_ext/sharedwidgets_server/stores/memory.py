"""Rooms in the server's memory: gone with the process."""

from __future__ import annotations

from collections.abc import Mapping

from sharedwidgets.core import delta
from sharedwidgets.core.delta import States
from sharedwidgets.core.locks import HeldLock
from sharedwidgets.core.room import Mark, RoomImage
from sharedwidgets_server.stores import Batch, Store, check_follows


class _Held:
    """One room: entries are applied to it, so that an append costs the states it names and not what the room holds."""

    def __init__(self, incarnation: str) -> None:
        self.incarnation = incarnation
        self.epochs: tuple[tuple[str, int], ...] = ()
        self.seq = 0
        self.states: States = {}
        self.marks: dict[str, Mark] = {}
        self.locks: tuple[HeldLock, ...] = ()


class MemoryStore(Store):
    """Keeps each room as its values; states are handed out as copies."""

    def __init__(self) -> None:
        self._rooms: dict[str, _Held] = {}

    async def load(self, token: str) -> RoomImage | None:
        held = self._rooms.get(token)
        if held is None:
            return None
        return RoomImage(
            incarnation=held.incarnation,
            epochs=held.epochs,
            seq=held.seq,
            states={name: state.image() for name, state in held.states.items()},
            marks=dict(held.marks),
            locks=held.locks,
        )

    async def append(self, batch: Batch, marks: Mapping[str, Mark | None], expected_seq: int) -> None:
        held = self._rooms.get(batch.token)
        check_follows(held.seq if held else 0, held.incarnation if held else None, batch, expected_seq)
        held = held or _Held(batch.incarnation)
        # Only what the entries touch is copied, and put in place when all of them are applied.
        named = {state for entry in batch.entries for op in entry.ops for state, _ in delta.touched(op)}
        trial = {name: item.copy() for name, item in held.states.items() if name in named}
        for entry in batch.entries:
            delta.apply_entry(trial, entry)
        held.states.update(trial)
        held.seq = batch.entries[-1].seq if batch.entries else held.seq
        held.epochs = batch.epochs
        held.locks = held.locks if batch.locks is None else batch.locks
        held.marks = {boot: mark for boot, mark in {**held.marks, **marks}.items() if mark is not None}
        self._rooms[batch.token] = held

    async def delete(self, token: str) -> None:
        self._rooms.pop(token, None)

    async def tokens(self) -> list[str]:
        return sorted(self._rooms)

    async def close(self) -> None:
        self._rooms.clear()
