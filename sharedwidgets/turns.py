"""A write that takes its turn at the lock of a state, where the class says so, instead of raising `Locked`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

from sharedwidgets import answers
from sharedwidgets.core.protocol import LockName
from sharedwidgets.errors import LockLost, LockTimeout, RoomGone

if TYPE_CHECKING:
    from sharedwidgets.connection import Connection
    from sharedwidgets.core.claims import Tenure
    from sharedwidgets.links import Session

log = logging.getLogger("sharedwidgets")

# How long a write waits for its turn.
TURN_SECONDS = 5.0


@contextmanager
def turns(connection: Connection, session: Session, states: Collection[str]) -> Iterator[None]:
    """Hold the locks of these states, taken in their order.

    Raises
    ------
    LockTimeout
    """

    def give_back(tenure: Tenure) -> None:
        with _written():
            answers.release(connection, session, tenure, TURN_SECONDS)

    with ExitStack() as held:
        for state in sorted(states):
            name = LockName(kind="state", name=state)
            held.callback(give_back, answers.acquire(connection, session, name, TURN_SECONDS, None))
        yield


@asynccontextmanager
async def turns_async(connection: Connection, session: Session, states: Collection[str]) -> AsyncIterator[None]:
    """`turns` that lets the caller's loop run meanwhile."""

    async def give_back(tenure: Tenure) -> None:
        with _written():
            await answers.release_async(connection, session, tenure, TURN_SECONDS)

    async with AsyncExitStack() as held:
        for state in sorted(states):
            name = LockName(kind="state", name=state)
            held.push_async_callback(give_back, await answers.acquire_async(connection, session, name, TURN_SECONDS, None))
        yield


@contextmanager
def _written() -> Iterator[None]:
    """What was written is written: a lock or room lost under it is answered with a refusal, and a late word ends by itself."""
    try:
        yield
    except (LockLost, LockTimeout, RoomGone) as error:
        log.warning("%s", error)
