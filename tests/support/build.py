"""Small makers for unit tests of the core: members, authors, joins and rooms of fixed names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from sharedwidgets.core.protocol import (
    Actor,
    Define,
    Entry,
    EntryOp,
    Join,
    Limits,
    Member,
    Op,
    Push,
    Resume,
    Set,
    TraitSchema,
)
from sharedwidgets.core.room import Author, Effect, Now, Record, Room, RoomImage, Send

T = TypeVar("T")

NOW = Now(mono=100.0, wall=1_000_000.0)
ACTOR = Actor(id="m-k1", kind="kernel")

SCHEMA = {
    "count": TraitSchema(kind="int"),
    "level": TraitSchema(kind="int", min=0, max=10),
    "title": TraitSchema(kind="text"),
    "tags": TraitSchema(kind="dict"),
    "items": TraitSchema(kind="list"),
    "_salt": TraitSchema(kind="text", kernel_only=True),
}
VALUES: dict[str, Any] = {"count": 0, "level": 0, "title": "", "tags": {}, "items": [], "_salt": "pepper"}


def later(seconds: float) -> Now:
    """So many seconds after `NOW`."""
    return Now(NOW.mono + seconds, NOW.wall + seconds)


def author(boot: str, *, member: str | None = None, kernel_id: str | None = None, may_write: bool = True) -> Author:
    """The author of a boot; one whose name begins with ``p`` is a page, with ``s`` a script, else a kernel."""
    kind = "frontend" if boot.startswith("p") else "script" if boot.startswith("s") else "kernel"
    who = Member(id=member or f"m-{boot}", kind=kind, user="ana", kernel_id=kernel_id)  # type: ignore[arg-type]
    audience = "frontend" if kind == "frontend" else "kernel"
    return Author(boot, who, audience, may_write, kind)  # type: ignore[arg-type]


def empty_room(*, limits: Limits | None = None, image: RoomImage | None = None, epoch: str = "e1") -> Room:
    """The room ``r``, incarnation ``i1``."""
    return Room("r", incarnation="i1", epoch=epoch, limits=limits or Limits(), image=image)


def join(
    *,
    id: int = 1,
    state: str | None = "S",
    schema: dict[str, TraitSchema] | None = None,
    values: dict[str, Any] | None = None,
    resume: Resume | None = None,
) -> Join:
    """A join of the room ``r``."""
    return Join(id=id, room="r", state=state, schema=schema, values=values, resume=resume)


def room_with(*authors: Author, limits: Limits | None = None) -> Room:
    """A room whose state ``S`` was made by the first author, and which all the others joined."""
    room = empty_room(limits=limits)
    for count, who in enumerate(authors):
        room.receive(who, join(schema=SCHEMA, values=VALUES) if count == 0 else join(), NOW)
    return room


def push(n: int, *ops: Op, depth: int = 0) -> Push:
    """A push into the room ``r``."""
    return Push(room="r", n=n, ops=ops, depth=depth)


def put(path: str, value: Any, *, if_rev: int | None = None, state: str = "S") -> Set:
    """A `Set`; the path is written with dots."""
    return Set(state=state, path=tuple(path.split(".")), value=value, if_rev=if_rev)


def resume(
    seq: int, *, epoch: str = "e1", incarnation: str = "i1", lowest: int = 1, highest: int = 0, states: Sequence[str] = ("S",)
) -> Resume:
    """Where a replica of the room ``r`` stands."""
    return Resume(room="r", incarnation=incarnation, epoch=epoch, seq=seq, lowest=lowest, highest=highest, states=tuple(states))


def entry(seq: int, *ops: EntryOp, depth: int = 0) -> Entry:
    """An entry made by the kernel ``k1``."""
    return Entry(seq=seq, at=NOW.wall, by=ACTOR, ops=ops, depth=depth)


def define(schema: dict[str, TraitSchema], values: dict[str, Any], *, state: str = "S") -> Define:
    """A state appears."""
    return Define(state=state, schema=schema, values=values)


def sent(effects: Sequence[Effect], kind: type[T], boot: str | None = None) -> list[T]:
    """The messages of one kind among the effects, to one boot or to all."""
    return [
        item.message
        for item in effects
        if isinstance(item, Send) and isinstance(item.message, kind) and boot in (None, item.boot)
    ]


def only(effects: Sequence[Effect], kind: type[T], boot: str | None = None) -> T:
    """The one message of a kind."""
    (message,) = sent(effects, kind, boot)
    return message


def records(effects: Sequence[Effect]) -> list[Record]:
    """What must be appended."""
    return [item for item in effects if isinstance(item, Record)]


def held(room: Room, state: str = "S") -> dict[str, Any]:
    """The values of a state."""
    return room.states[state].values
