"""One room on one connection: its replica, what is linked in it, and who wants to hear."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeAlias

from sharedwidgets.core.protocol import Join, Op, Problem, TraitSchema
from sharedwidgets.core.replica import News, Replica
from sharedwidgets.core.values import Value
from sharedwidgets.drafts import Draft

# Notes the news of a session, on whichever thread brings them. What it returns, its author runs when the write is done.
Listener: TypeAlias = Callable[[News], Callable[[], None] | None]


class Written(NamedTuple):
    """An own write: the replica's version with it and nothing after it, and what others of this process do about it."""

    version: int
    then: list[Callable[[], None]]


@dataclass
class Wanted:
    """A state this process links: what to make it from where it is missing. Without a first value a trait has its default."""

    schema: dict[str, TraitSchema]
    values: dict[str, Value] = field(default_factory=dict)


class Part(Protocol):
    """What one object does in a transaction of one room."""

    @property
    def waits(self) -> str:
        """The state whose turn a write waits for, when somebody else holds its lock; empty when it does not wait."""

    def begin(self) -> None:
        """Keep back what this thread or task writes from here on, and tell nobody of it.

        Where it raises, it is undone and ended all the same.
        """

    def check(self) -> bool:
        """Check what was written and not checked yet; whether there was any."""

    def keep(self, version: int) -> None:
        """It is in the replica, which has this version."""

    def undo(self) -> None:
        """Nothing was written: everything is as it was."""

    def park(self) -> None:
        """Show what there is without these writes, while they wait for their turn."""

    def end(self) -> None:
        """Keep nothing back any more."""

    def tell(self) -> None:
        """Tell observers what changed."""


class Linked(Protocol):
    """An object of this process that is linked to a room."""

    def settle(self, state: str | None) -> bool:
        """Show what the replica holds of a state by now, or of all, silently; whether that may be done now."""

    def look(self, state: str, trait: str) -> None:
        """A write of this process has its verdict: show what the replica holds of the trait by now, and tell."""

    def grouping(self) -> bool:
        """Whether the thread or task that runs keeps writes of it back."""

    def part(self, draft: Draft) -> Part:
        """What it does in a transaction of the room."""


class Session:
    """One room on one connection: its replica, what is linked in it, and who wants to hear.

    All fields are guarded by the connection's lock.
    """

    def __init__(self, room: str) -> None:
        # Loaded by who links: importing this library is to cost little.
        from sharedwidgets.leases import Leases
        from sharedwidgets.verdicts import Verdicts

        self.room = room
        self.replica = Replica(room)
        self.leases = Leases(room)
        self.verdicts = Verdicts()
        self.states: dict[str, Wanted] = {}
        self.links: Counter[str] = Counter()
        self.users = 0
        self.leaving = False
        # States that are not linked any more; the room is told behind what was written before (H32).
        self.left: list[str] = []
        # Whether the answer to a `Resume` is awaited.
        self.resuming = False
        # How often somebody may show now what came earlier.
        self.stirred = 0
        # Why the room is no more; this object of it is dead then, and a link makes another.
        self.ended: Problem | None = None
        self.listeners: list[Listener] = []
        # What the objects of this process that link a state have in common, by a name of its maker's choice.
        self.common: dict[str, Any] = {}
        # What is written in open transactions of the room, by the thread or task that opened them.
        self.groups: dict[tuple[int, int], Draft] = {}
        # The objects of this process that are linked to the room.
        self.linked: list[Linked] = []
        # Joins that were answered, and hold once the replica reached their seq.
        self.answered: list[tuple[int, Request]] = []

    def settle(self, state: str | None) -> bool:
        """Have the objects of this process show what the replica holds of a state by now, or of all (G6); whether they do."""
        # Each of them, whatever the one before could do.
        shown = [item.settle(state) for item in [*self.linked]]
        return all(shown)

    def look(self, op: Op) -> None:
        """A write that waited for its verdict has it: every object of this process shows that before its author goes on."""
        for item in [*self.linked]:
            item.look(op.state, op.path[0])

    def grouping(self) -> bool:
        """Whether the thread or task that runs keeps writes of this room back."""
        return any(item.grouping() for item in [*self.linked])


@dataclass(eq=False)
class Request:
    """A join on its way; its future is set once the replica holds what was joined."""

    session: Session
    state: str | None
    wanted: Wanted | None
    # Whether the asker links the state; a session that comes back to a state only keeps the links it has.
    links: bool = True
    # Whether it was granted, and the link counted.
    held: bool = False
    # Whether the state was left, and the server is not told so because of this.
    left: bool = False
    future: Future[None] = field(default_factory=Future)

    def join(self, number: int) -> Join:
        """What is asked of the server, under this number."""
        replica = self.session.replica
        return Join(
            id=number,
            room=self.session.room,
            state=self.state,
            schema=self.wanted.schema if self.wanted else None,
            values=self.wanted.values if self.wanted else None,
            resume=replica.position() if replica.live else None,
        )
