"""What this process asked a room and waits for: writes that show nowhere before their verdict.

All state is guarded by the connection's lock. Waiting is done by threads and tasks of the user, never by the I/O thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import TYPE_CHECKING

from sharedwidgets.core.protocol import Op
from sharedwidgets.core.replica import Pending, Replica
from sharedwidgets.errors import Closed, LinkTimeout, from_code

if TYPE_CHECKING:
    from sharedwidgets.connection import Connection
    from sharedwidgets.links import Session

# How long an answer is waited for.
ANSWER_SECONDS = 10.0


class Verdicts:
    """Who waits for the verdicts on what was asked in one room."""

    def __init__(self) -> None:
        self._waits: list[tuple[Pending, Future[None]]] = []

    def when(self, push: Pending) -> Future[None]:
        """Done when the push is decided, or never will be."""
        future: Future[None] = Future()
        self._waits.append((push, future))
        return future

    def heard(self, replica: Replica) -> None:
        """The replica took something in."""
        self._done([item for item in self._waits if not replica.is_open(item[0])])

    def closed(self) -> None:
        """The connection is closed: nothing will come."""
        self._done(self._waits)

    def _done(self, over: Sequence[tuple[Pending, Future[None]]]) -> None:
        self._waits = [item for item in self._waits if item not in over]
        for _, future in over:
            if future.set_running_or_notify_cancel():
                future.set_result(None)


def ask(connection: Connection, session: Session, ops: Sequence[Op], timeout: float) -> int | float | None:
    """Write something that shows nowhere before the server has decided it, and wait for that.

    Returns
    -------
    int, float or None
        The number the last op left, if it is one.

    Raises
    ------
    LinkTimeout
        No verdict in time. Its sentence says whether the write may still take effect.
    SharedWidgetsError
        The server refused it: nothing was written.
    """
    connection.check_may_wait()
    push, future = connection.ask(session, ops)
    try:
        future.result(timeout)
    except (TimeoutError, FutureTimeout):
        pass
    except BaseException:
        _given_up(connection, session, push)
        raise
    return _answer(connection, session, push, timeout)


async def ask_async(connection: Connection, session: Session, ops: Sequence[Op], timeout: float) -> int | float | None:
    """`ask` that lets the caller's loop run meanwhile."""
    push, future = connection.ask(session, ops)
    try:
        await asyncio.wait([asyncio.wrap_future(future)], timeout=timeout)
    except BaseException:
        _given_up(connection, session, push)
        raise
    return _answer(connection, session, push, timeout)


def _given_up(connection: Connection, session: Session, push: Pending) -> bool:
    """Nobody waits any more; whether the write was taken back before it was sent."""
    with connection.lock:
        withdrawn = session.replica.withdraw(push)
    # A room that was left waits for what is undecided.
    connection.wake()
    return withdrawn


def _answer(connection: Connection, session: Session, push: Pending, timeout: float) -> int | float | None:
    with connection.lock:
        open_ = session.replica.is_open(push)
    if not open_:
        if push.problem is not None:
            told = push.problem
            raise from_code(
                told.code, told.message, room=session.room, state=told.state, path=told.path, expected=told.expected
            )
        return push.value
    taken_back = _given_up(connection, session, push)
    outcome = (
        "nothing was written" if taken_back else "the write was sent, and may still take effect; look before you repeat it"
    )
    if connection.state == "closed":
        raise Closed(f"the connection was closed before {session.room!r} answered: {outcome}", room=session.room)
    raise LinkTimeout(
        f"{session.room!r} did not answer within {timeout:g} s ({connection.state}): {outcome}", room=session.room
    )
