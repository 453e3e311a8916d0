"""Where rooms persist: the interface every backend implements, and how a URL names one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sharedwidgets.core.locks import HeldLock
from sharedwidgets.core.protocol import Entry
from sharedwidgets.core.room import Mark, RoomImage
from sharedwidgets.errors import StoreFailed

# A URL of each store there is, where `{folder}` stands for one of its own. The tests run over all of them.
STORES = ("memory://",)


@dataclass(frozen=True)
class Batch:
    """Entries of one room that are appended together, and the labels of the log they belong to.

    `locks` are those held after the last of them; None when none of them is about a lock.
    """

    token: str
    incarnation: str
    epochs: tuple[tuple[str, int], ...]
    entries: Sequence[Entry]
    locks: tuple[HeldLock, ...] | None = None


class Store(ABC):
    """Rooms by token. Each call is atomic; any exception means that the caller must load the room again."""

    @abstractmethod
    async def load(self, token: str) -> RoomImage | None:
        """The room as last appended, or None."""

    @abstractmethod
    async def append(self, batch: Batch, marks: Mapping[str, Mark | None], expected_seq: int) -> None:
        """Write entries and marks together.

        Parameters
        ----------
        batch : Batch
            Entries with dense seqs from ``expected_seq + 1``; may be empty when only marks moved.
        marks : mapping of boot to Mark or None
            The marks that moved, and with None those that are forgotten.
        expected_seq : int
            The seq of the last entry the store must hold.

        Raises
        ------
        StoreFailed
            It holds another one, or cannot write.
        """

    @abstractmethod
    async def delete(self, token: str) -> None:
        """Forget a room; no error when there is none."""

    @abstractmethod
    async def tokens(self) -> list[str]:
        """The rooms there are, sorted."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of files and connections."""


def check_follows(held_seq: int, held_incarnation: str | None, batch: Batch, expected_seq: int) -> None:
    """Raise `StoreFailed` unless a batch follows on what a backend holds: another server may have written to it (H19)."""
    if held_seq != expected_seq or held_incarnation not in (None, batch.incarnation):
        raise StoreFailed(
            f"the store holds seq {held_seq} of {batch.token!r}, the server expected {expected_seq}; the room is loaded again",
            room=batch.token,
        )


def open_store(url: str) -> Store:
    """The store a URL names; `STORES` has an example of each.

    Raises
    ------
    ValueError
        No backend has this scheme.
    """
    from sharedwidgets_server.stores.memory import MemoryStore

    if url == "memory://":
        return MemoryStore()
    raise ValueError(f"{url!r} names no store; use {' or '.join(map(repr, STORES))}")
