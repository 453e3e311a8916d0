"""The wire as types: everything a client may say is `Upstream`, everything a server may say is `Downstream`.

Bytes become one of these once, in `codec`; after that nobody looks at a dict. `PROTOCOL.md` is the written form, and a test
pins the hash of this schema: a change here needs a line in that file's changelog.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from sharedwidgets.core.values import MAX_DEPTH, SAFE_INT

PROTOCOL_VERSION = 1
SUBPROTOCOL = "sharedwidgets.v1"

Kind: TypeAlias = Literal["kernel", "frontend", "script"]
Audience: TypeAlias = Literal["kernel", "frontend"]
Origin: TypeAlias = Literal["kernel", "frontend", "script", "rest", "server"]
MemberState: TypeAlias = Literal["live", "away", "unresponsive"]
LockKind: TypeAlias = Literal["state", "named"]
Reason: TypeAlias = Literal["released", "expired", "broken", "gone"]
TraitKind: TypeAlias = Literal["any", "bool", "int", "float", "text", "bytes", "list", "dict"]

# A path is a trait, then dict keys. n counts the pushes of a boot from 1, seq the entries of a room from 1; 0 is "none yet".
Path: TypeAlias = Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_DEPTH)]
Number: TypeAlias = Annotated[int, Meta(ge=1, le=SAFE_INT)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=SAFE_INT)]
Id: TypeAlias = Annotated[str, Meta(min_length=1, max_length=64)]
Name: TypeAlias = Annotated[str, Meta(max_length=256)]
StateName: TypeAlias = Annotated[str, Meta(min_length=1, max_length=256)]

# A state whose name ends so is none of a user's: it says who runs a reaction to another state, and how far that one got.
REACTS = "@reacts"

# msgspec builds its validators from annotations at run time and has no recursive alias: `WireValue` is `Value` to it.
WireValue: TypeAlias = Any


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Base of all that travels: frozen, and silent about fields that have their default."""


class Limits(Wire, frozen=True, kw_only=True):
    """The numbers a server holds its clients to; sent whole in `Welcome`. Bytes, seconds and counts."""

    op_bytes: int = 1 << 20
    frame_bytes: int = 1 << 20
    push_bytes: int = 8 << 20
    push_ops: int = 500
    room_bytes: int = 64 << 20
    rooms: int = 128
    hello_bytes: int = 64 << 10
    hello_seconds: float = 10.0
    heartbeat_seconds: float = 10.0
    dead_seconds: float = 25.0
    away_seconds: float = 10.0
    page_away_seconds: float = 60.0
    unsent_pushes: int = 10_000
    in_flight_pushes: int = 64
    tail_entries: int = 10_000
    tail_bytes: int = 16 << 20
    tail_seconds: float = 3600.0
    mark_seconds: float = 7 * 86400.0
    outbox_fold_bytes: int = 256 << 10
    outbox_drop_bytes: int = 4 << 20
    outbox_stall_seconds: float = 5.0
    lease_seconds: float = 15.0
    hold_seconds: float = 600.0
    locks: int = 1000
    lock_waiters: int = 1000
    reactions: int = 16


class TraitSchema(Wire, frozen=True, kw_only=True):
    """What one trait may hold, and what it is reset to."""

    kind: TraitKind = "any"
    nullable: bool = False
    kernel_only: bool = False
    min: int | float | None = None
    max: int | float | None = None
    choices: tuple[WireValue, ...] | None = None
    default: WireValue = None


class Actor(Wire, frozen=True, kw_only=True):
    """Who made an entry, as the server knows it; no client can set it."""

    id: str
    kind: Origin
    user: str = ""
    kernel_id: str | None = None


class Member(Wire, frozen=True, kw_only=True):
    """One kernel, page or script in a room."""

    id: str
    kind: Kind
    user: str = ""
    kernel_id: str | None = None
    name: str = ""
    since: float = 0.0
    state: MemberState = "live"
    states: tuple[str, ...] = ()


def of_users(states: Iterable[str]) -> list[str]:
    """The states that people are shown, in order."""
    return sorted(state for state in states if not state.endswith(REACTS))


def shown(member: Member) -> Member:
    """A member as people are shown it."""
    return msgspec.structs.replace(member, states=tuple(of_users(member.states)))


class Problem(Wire, frozen=True, kw_only=True):
    """An error on the wire: machine facts and a sentence."""

    code: str
    message: str
    state: str | None = None
    path: tuple[str, ...] = ()
    expected: str | None = None


# Ops: context-free, so that a resend after any absence needs no history.


class Set(Wire, frozen=True, kw_only=True, tag_field="op", tag="set"):
    """Put a value at a path; with `if_rev` only if it has not changed after that seq, with `if_in` if it is one of these."""

    state: StateName
    path: Path
    value: WireValue
    if_rev: Count | None = None
    if_in: Annotated[tuple[WireValue, ...], Meta(min_length=1)] | None = None


class Delete(Wire, frozen=True, kw_only=True, tag_field="op", tag="delete"):
    """Remove a dict key; removing a missing one changes nothing."""

    state: StateName
    path: Path


class Inc(Wire, frozen=True, kw_only=True, tag_field="op", tag="inc"):
    """Add a number, unless the sum would leave `min` to `max`; in an entry `value` is the sum."""

    state: StateName
    path: Path
    by: int | float
    value: int | float | None = None
    min: int | float | None = None
    max: int | float | None = None


class Append(Wire, frozen=True, kw_only=True, tag_field="op", tag="append"):
    """Put items at the end of a list."""

    state: StateName
    path: Path
    items: tuple[WireValue, ...]


class Splice(Wire, frozen=True, kw_only=True, tag_field="op", tag="splice"):
    """Replace part of a text, bytes or list; compression of a `Set`, cut against revision `rev` of the path.

    `at` and `remove` count code points in text, bytes in bytes, items in a list.
    """

    state: StateName
    path: Path
    rev: Count
    at: Count
    remove: Count
    insert: WireValue


class Define(Wire, frozen=True, kw_only=True, tag_field="op", tag="define"):
    """A state appears, or gains or replaces traits; made by the server from a `Join` with a schema."""

    state: StateName
    schema: dict[str, TraitSchema]
    values: dict[str, WireValue]


class LockName(Wire, frozen=True, kw_only=True):
    """A state's own lock, which is enforced for that state's traits, or a named one, which is advisory."""

    kind: LockKind
    name: StateName


class Granted(Wire, frozen=True, kw_only=True, tag_field="op", tag="granted"):
    """A lock is held from here on; the fence is the seq of the entry. `owner` is a thread or task of the member."""

    lock: LockName
    member: str
    owner: str
    label: str = ""
    lease: float = 0.0


class Freed(Wire, frozen=True, kw_only=True, tag_field="op", tag="freed"):
    """A lock is no longer held under that fence, and why."""

    lock: LockName
    fence: Count
    reason: Reason


Op: TypeAlias = Set | Delete | Inc | Append | Splice
LockOp: TypeAlias = Granted | Freed
EntryOp: TypeAlias = Set | Delete | Inc | Append | Splice | Define | Granted | Freed


class Entry(Wire, frozen=True, kw_only=True):
    """Whatever took a sequence number. `at` is the server's wall clock in seconds."""

    seq: Count
    at: float
    by: Actor
    ops: tuple[EntryOp, ...]
    depth: Count = 0


class LastChange(Wire, frozen=True, kw_only=True):
    """Who made the entry that changed a trait last, its seq, and the server's wall clock in seconds."""

    actor: Actor
    seq: Count
    at: float


class StateImage(Wire, frozen=True, kw_only=True):
    """One state of a room, whole; `last` says who made or changed each trait last."""

    schema: dict[str, TraitSchema]
    values: dict[str, WireValue]
    last: dict[str, LastChange] = {}


class LockImage(Wire, frozen=True, kw_only=True):
    """A lock that is held, as a snapshot tells it."""

    lock: LockName
    member: str
    owner: str
    fence: Count
    label: str = ""
    lease: float = 0.0


# Upstream


class Resume(Wire, frozen=True, kw_only=True, tag_field="type", tag="resume"):
    """Where a replica stands; in `Hello` after a reconnect, on its own when a gap was seen."""

    room: str
    incarnation: str
    epoch: str
    seq: Count
    lowest: Number = 1
    highest: Count = 0
    states: tuple[StateName, ...] = ()


class Hello(Wire, frozen=True, kw_only=True, tag_field="type", tag="hello"):
    """First message of a connection. `member` and `secret` come from a former `Welcome`; `pid` is a kernel's own process id."""

    protocol: int
    boot: Id
    kind: Kind
    member: Id | None = None
    secret: Annotated[str, Meta(max_length=2048)] | None = None
    name: Name = ""
    kernel_id: Name | None = None
    pid: Count = 0
    rooms: tuple[Resume, ...] = ()


class Join(Wire, frozen=True, kw_only=True, tag_field="type", tag="join"):
    """Enter a room. With a schema it creates the (room, state) that is missing, from `values`."""

    id: Count
    room: str
    state: StateName | None = None
    schema: dict[str, TraitSchema] | None = None
    values: dict[str, WireValue] | None = None
    resume: Resume | None = None


class Leave(Wire, frozen=True, kw_only=True, tag_field="type", tag="leave"):
    """Leave one state, or with `state` null the whole room."""

    room: str
    state: str | None = None


class Push(Wire, frozen=True, kw_only=True, tag_field="type", tag="push"):
    """One or more ops, all or nothing; its identity is (boot, n), n dense from 1 per boot and room.

    `fences` says, by state, under which fence the author holds that state's lock. With `answer` the author wants to hear
    which number the last op left at its path. `epoch` says in which log the revisions are that its ops name.
    """

    room: str
    n: Number
    ops: Annotated[tuple[Op, ...], Meta(min_length=1)]
    depth: Count = 0
    fences: dict[str, Count] = {}
    answer: bool = False
    epoch: str = ""


class Acquire(Wire, frozen=True, kw_only=True, tag_field="type", tag="acquire"):
    """Take a lock, or a place in its queue; said again, the place is the same. Without `wait` it is that lock now, or none."""

    id: Count
    room: str
    lock: LockName
    owner: Id
    lease: Annotated[float, Meta(gt=0, le=86400)]
    label: Name = ""
    wait: bool = True


class Cancel(Wire, frozen=True, kw_only=True, tag_field="type", tag="cancel"):
    """Do not wait any more; a grant that is on its way is given back."""

    room: str
    lock: LockName
    owner: Id


class Renew(Wire, frozen=True, kw_only=True, tag_field="type", tag="renew"):
    """Start a lease anew."""

    room: str
    lock: LockName
    owner: Id
    fence: Count


class Release(Wire, frozen=True, kw_only=True, tag_field="type", tag="release"):
    """Give a lock back."""

    room: str
    lock: LockName
    owner: Id
    fence: Count


class Ping(Wire, frozen=True, kw_only=True, tag_field="type", tag="ping"):
    """Answered by `Pong` with the same id; either side may ask."""

    id: Count


# Downstream


class Welcome(Wire, frozen=True, kw_only=True, tag_field="type", tag="welcome"):
    """The answer to `Hello`: who the server says you are, and its numbers."""

    protocol: int
    server: str
    version: str
    member: str
    secret: str
    audience: Audience
    user: str
    may_write: bool
    limits: Limits


class Snapshot(Wire, frozen=True, kw_only=True, tag_field="type", tag="snapshot"):
    """The room whole, at `seq`. `decided` is the highest n of this boot that has a verdict."""

    room: str
    incarnation: str
    epoch: str
    seq: Count
    states: dict[str, StateImage]
    decided: Count = 0
    members: tuple[Member, ...] = ()
    locks: tuple[LockImage, ...] = ()


class Joined(Wire, frozen=True, kw_only=True, tag_field="type", tag="joined"):
    """The verdict on `Join` `id`: in force once this replica reached `seq`."""

    id: Count
    room: str
    seq: Count


class Entries(Wire, frozen=True, kw_only=True, tag_field="type", tag="entries"):
    """Covers (prev, last]: applied in one go. `decided` is the highest n of this boot decided at `last`."""

    room: str
    epoch: str
    prev: Count
    last: Count
    entries: tuple[Entry, ...] = ()
    decided: Count = 0


class Nack(Wire, frozen=True, kw_only=True, tag_field="type", tag="nack"):
    """Push `n` (up to and with `through`, when given) has no effect anywhere. Final.

    `values` are the authoritative values of the traits it wanted to change, at `seq`.
    """

    room: str
    n: Number
    problem: Problem
    through: Number | None = None
    seq: Count = 0
    values: dict[str, dict[str, WireValue]] = {}


class Applied(Wire, frozen=True, kw_only=True, tag_field="type", tag="applied"):
    """Push `n`, which asked for an `answer`, took effect as entry `seq`; `value` is the number it left, if it is one.

    It comes before the frame whose `decided` covers it.
    """

    room: str
    n: Number
    seq: Count
    value: int | float | None = None


class Resend(Wire, frozen=True, kw_only=True, tag_field="type", tag="resend"):
    """Not a verdict: send everything from `n` again under the same numbers, values whole."""

    room: str
    n: Number


class Members(Wire, frozen=True, kw_only=True, tag_field="type", tag="members"):
    """Who came or changed, and who went; with `complete`, everyone there is."""

    room: str
    present: tuple[Member, ...] = ()
    gone: tuple[str, ...] = ()
    complete: bool = False


class Waiting(Wire, frozen=True, kw_only=True, tag_field="type", tag="waiting"):
    """Who waits for a lock now, in order; presence, not an entry."""

    room: str
    lock: LockName
    waiters: tuple[str, ...] = ()


class Failure(Wire, frozen=True, kw_only=True, tag_field="type", tag="error"):
    """A request was refused; `id` and `room` say which."""

    problem: Problem
    id: Count | None = None
    room: str | None = None


class Bye(Wire, frozen=True, kw_only=True, tag_field="type", tag="bye"):
    """The server ends the connection (or with `room`, this membership); come back after so many seconds, or never.

    `incarnation` is that of the room that ended: another one under the same token goes on.
    """

    problem: Problem
    room: str | None = None
    retry_after: float | None = None
    incarnation: str = ""


class Slow(Wire, frozen=True, kw_only=True, tag_field="type", tag="slow"):
    """Ask for fewer pushes: wait so many seconds between them. Nothing is refused."""

    delay: float


class Pong(Wire, frozen=True, kw_only=True, tag_field="type", tag="pong"):
    """The answer to `Ping`."""

    id: Count


Upstream: TypeAlias = Hello | Join | Leave | Resume | Push | Acquire | Cancel | Renew | Release | Ping | Pong
Downstream: TypeAlias = (
    Welcome | Snapshot | Joined | Entries | Nack | Applied | Resend | Members | Waiting | Failure | Bye | Slow | Ping | Pong
)
