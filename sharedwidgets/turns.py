"""A write that takes its turn at the lock of a state, where the class says so, instead of raising `Locked`."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack, ExitStack
from typing import TYPE_CHECKING, Any, TypeVar

from sharedwidgets.core.protocol import LockName
from sharedwidgets.errors import Locked, LockLost, LockTimeout

if TYPE_CHECKING:
    from sharedwidgets.connection import Session

log = logging.getLogger("sharedwidgets")

T = TypeVar("T")

# How long a write waits for its turn.
TURN_SECONDS = 5.0


def in_turn(session: Session, waits: Collection[str], write: Callable[[], T]) -> T:
    """Write; where somebody else holds a lock, take those of the states in `waits`, in their order, and write then.

    Raises
    ------
    Locked
        Nobody waits.
    LockTimeout, LockLost
        And whatever `write` raises.
    """
    try:
        return write()
    except Locked:
        if not waits:
            raise
    # Loaded by who locks: importing this library is to cost little.
    from sharedwidgets import leases

    connection = session.connection
    with ExitStack() as turns:
        for state in sorted(waits):
            tenure = leases.acquire(connection, session, LockName(kind="state", name=state), TURN_SECONDS, None)
            turns.callback(_given_back, leases.release, connection, session, tenure)
        return write()


def _given_back(release: Callable[..., None], *of: Any) -> None:
    """What was written is written: a lock lost under it the server answers with a refusal, and a late word ends by itself."""
    try:
        release(*of, TURN_SECONDS)
    except (LockLost, LockTimeout) as error:
        log.warning("%s", error)


async def _given_back_async(release: Callable[..., Awaitable[None]], *of: Any) -> None:
    try:
        await release(*of, TURN_SECONDS)
    except (LockLost, LockTimeout) as error:
        log.warning("%s", error)


async def in_turn_async(session: Session, waits: Collection[str], write: Callable[[], Awaitable[T]]) -> T:
    """`in_turn` that lets the caller's loop run meanwhile."""
    try:
        return await write()
    except Locked:
        if not waits:
            raise
    from sharedwidgets import leases

    connection = session.connection
    async with AsyncExitStack() as turns:
        for state in sorted(waits):
            name = LockName(kind="state", name=state)
            tenure = await leases.acquire_async(connection, session, name, TURN_SECONDS, None)
            turns.push_async_callback(_given_back_async, leases.release_async, connection, session, tenure)
        return await write()
