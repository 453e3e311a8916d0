"""What is said between a room and its members, and the sockets it goes over: two queues of bytes for each."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from sharedwidgets.core.codec import Frame
from sharedwidgets.core.protocol import (
    Downstream,
    LockName,
    TraitSchema,
    Upstream,
)
from support.chronicle import lock_of

if TYPE_CHECKING:
    from support.client import Client

TOKEN = "r"
# In every name and every value that only kernels may know, and nowhere else (G9).
MARKER = "zq7"
IN_FLIGHT = 4
# Rounds of "deliver all, decide all" after the last fault; more means that something waits for ever.
SETTLE_ROUNDS = 120
# Seconds; a process pauses for so many leases, and everyone is held up for so many.
LEASE = 30.0
PAUSES = (0.5, 1.0, 3.0)
# Of one process: each waits and holds for itself.
THREADS = ("main", "task")
LOCKS = (lock_of("S"), lock_of("S"), lock_of("T"), LockName(kind="named", name="fit"), LockName(kind="named", name="fit"))
# A server asks for patience when so many inputs wait.
BACKLOG = 6

Ends: TypeAlias = Literal["ok", "before", "after"]

SCHEMA: dict[str, TraitSchema] = {
    "count": TraitSchema(kind="int"),
    "level": TraitSchema(kind="int", min=0, max=20),
    "title": TraitSchema(kind="text"),
    "doc": TraitSchema(kind="text"),
    "blob": TraitSchema(kind="bytes"),
    "items": TraitSchema(kind="list"),
    "tags": TraitSchema(kind="dict"),
    "left": TraitSchema(kind="int"),
    "right": TraitSchema(kind="int"),
    "stock": TraitSchema(kind="int"),
    "turn": TraitSchema(),
    "extra": TraitSchema(),
    f"_{MARKER}_salt": TraitSchema(kind="text", kernel_only=True),
    f"_{MARKER}_keys": TraitSchema(kind="dict", kernel_only=True),
}
VALUES: dict[str, Any] = {
    "count": 0,
    "level": 5,
    "title": "",
    "doc": "",
    "blob": b"",
    "items": [],
    "tags": {},
    "left": 0,
    "right": 0,
    "stock": 6,
    "turn": None,
    "extra": None,
    f"_{MARKER}_salt": f"{MARKER} at first",
    f"_{MARKER}_keys": {},
}
# A newer class of the same state, and a state that to a page has a name and nothing else.
NEWER: dict[str, TraitSchema] = {
    **SCHEMA,
    "late": TraitSchema(kind="float"),
    f"_{MARKER}_late": TraitSchema(kernel_only=True),
}
NEWER_VALUES: dict[str, Any] = {**VALUES, "late": 0.5, f"_{MARKER}_late": [f"{MARKER}"]}
HIDDEN: dict[str, TraitSchema] = {f"_{MARKER}_t": TraitSchema(kind="dict", kernel_only=True)}
HIDDEN_VALUES: dict[str, Any] = {f"_{MARKER}_t": {}}

INVALID: tuple[tuple[str, Any], ...] = (
    ("count", 1.5),
    ("count", True),
    ("level", 21),
    ("title", "\ud800"),
    ("title", None),
    ("extra", {1: 2}),
    ("extra", object()),
    ("tags", []),
)


# What either side may say is counted for each.
EITHER = ("ping", "pong")
# Repeated more often than the rest, for there are few of them.
SELDOM = ("leave", "renew", "release", "cancel", "resume", "error", "bye", "slow")
# What rooms know nothing of.
AT_THE_DOOR = ("welcome", "bye", "slow", "client ping", "client pong", "server ping", "server pong")


def kind_of(kind: type[Upstream | Downstream]) -> str:
    """The name of a message on the wire."""
    return str(kind.__struct_config__.tag)


def of_server(kind: type[Downstream]) -> str:
    """The name of a message that comes from a server."""
    name = kind_of(kind)
    return f"server {name}" if name in EITHER else name


def of_client(kind: type[Upstream]) -> str:
    """The name of a message that comes from a client."""
    name = kind_of(kind)
    return f"client {name}" if name in EITHER else name


@dataclass
class Parcel:
    """One message under way."""

    frame: Frame
    kind: str
    since: int
    # Part of a run for a whole audience: what an outbox may fold or let go.
    shared: bool = False


@dataclass(eq=False)
class Connection:
    """One socket of a client."""

    client: Client
    up: deque[Parcel] = field(default_factory=deque)
    down: deque[Parcel] = field(default_factory=deque)
    open_at_client: bool = True
    open_at_server: bool = True
    # Where the first entry this connection was not told began.
    lagging: tuple[str, str, int] | None = None
    cursor: tuple[str, str, int] = ("", "", 0)
