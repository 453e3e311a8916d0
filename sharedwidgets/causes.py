"""To which change of a room the code that runs reacts, and how long a chain of reactions it is part of.

Whoever tells user code of a change does so inside `reacting`. What that code writes, and what the tasks it starts write,
carries the depth; an own change adds none, for it is one process, and Python's own recursion is its end.
"""

from __future__ import annotations

import contextvars
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from sharedwidgets.core.protocol import Actor, Member, Op
from sharedwidgets.core.replica import ChangeOrigin, Replica
from sharedwidgets.errors import ReactionTooDeep

# Links of a chain that an error names.
_NAMED = 4


class Cause(NamedTuple):
    """A change that user code was told of; what it writes has this depth."""

    depth: int
    state: str
    trait: str
    actor: Actor | None


_cause: contextvars.ContextVar[Cause | None] = contextvars.ContextVar("sharedwidgets_cause", default=None)


def depth() -> int:
    """How many reactions led to what is written here."""
    cause = _cause.get()
    return 0 if cause is None else cause.depth


def after(origin: ChangeOrigin, depth: int) -> int:
    """The depth of a write in reaction to a change of this depth."""
    return depth if origin == "local" else depth + 1


def forget() -> None:
    """What runs in this context from here on reacts to nothing yet."""
    _cause.set(None)


@contextmanager
def reacting(cause: Cause) -> Iterator[None]:
    """What is written meanwhile is a reaction to this change, or to the outer one, where that chain is longer."""
    outer = _cause.get()
    if outer is not None and outer.depth >= cause.depth and cause.actor is None:
        yield
        return
    token = _cause.set(cause)
    try:
        yield
    finally:
        _cause.reset(token)


def too_deep(op: Op, depth: int, most: int, replica: Replica) -> ReactionTooDeep:
    """The error for a write that would be one reaction too many; it names the chain, as far as this process has heard of it."""
    links = [_link(found.state, found.trait, found.actor, replica.members) for found in replica.chain(depth)]
    cause = _cause.get()
    if cause is not None:
        links[-1:] = [_link(cause.state, cause.trait, cause.actor, replica.members)]
    named = " → ".join(["…", *links[-_NAMED:], f"{op.state}.{op.path[0]} here"])
    return ReactionTooDeep(
        f"{op.state}.{op.path[0]} was not changed: it would be reaction {depth} in a row, and a chain has at most {most}. "
        f"This one is {named}. Two reactions set each other off: let one of them write only while something is left to do",
        room=replica.room,
        state=op.state,
        path=op.path,
        expected=f"at most {most} reactions in a row",
    )


def _link(state: str, trait: str, actor: Actor | None, members: Mapping[str, Member]) -> str:
    if actor is None:
        return f"{state}.{trait}"
    member = members.get(actor.id)
    return f"{state}.{trait} by {actor.kind} {member.name if member is not None and member.name else actor.id}"
