"""What a thread or task of the user asks a room, and waits for: a lock, the end of one, a verdict.

Nothing here waits on the I/O thread, or while the connection's lock is held.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout

from sharedwidgets import host, order
from sharedwidgets.connection import Connection
from sharedwidgets.core.claims import Tenure
from sharedwidgets.core.protocol import LockName, Op
from sharedwidgets.core.replica import Pending
from sharedwidgets.errors import Closed, LinkTimeout, LockTimeout, WrongThread, from_code
from sharedwidgets.links import Session

# How long an answer is waited for.
ANSWER_SECONDS = 10.0


def acquire(
    connection: Connection, session: Session, lock: LockName, timeout: float, lease: float | None, *, wait: bool = True
) -> Tenure:
    """Take a lock, waiting for its turn. What goes wrong, Ctrl-C included, leaves nothing held (H23).

    Without `wait` the server refuses at once what another one holds, and only its answer is waited for.

    Raises
    ------
    LockTimeout, LockOrder, Forbidden, NoSuchState, TooLarge, RoomGone, WrongThread, Closed, Forked
    """
    connection.check_may_wait()
    if wait and timeout > 0:
        _check_not_in_the_way(connection, session, lock)
    before = depth(connection, session, lock)
    try:
        tenure, future = claimed(connection, session, lock, lease, wait=wait)
        if future is not None:
            _wait(future, timeout)
        held = settled(connection, session, tenure, timeout)
        order.note(session.room, lock, held)
        return held
    except BaseException:
        back(connection, session, lock, before)
        raise


async def acquire_async(
    connection: Connection, session: Session, lock: LockName, timeout: float, lease: float | None, *, wait: bool = True
) -> Tenure:
    """`acquire` that lets the caller's loop run meanwhile."""
    before = depth(connection, session, lock)
    try:
        tenure, future = claimed(connection, session, lock, lease, wait=wait)
        if future is not None:
            await asyncio.wait([asyncio.wrap_future(future)], timeout=timeout)
        held = settled(connection, session, tenure, timeout)
        order.note(session.room, lock, held)
        return held
    except BaseException:
        back(connection, session, lock, before)
        raise


def _check_not_in_the_way(connection: Connection, session: Session, lock: LockName) -> None:
    with connection.lock:
        blocked = session.leases.in_the_way(lock)
    if blocked:
        raise WrongThread(
            f"another task of this thread's loop has the lock {lock.name!r} of {session.room!r}, or waits for it, and cannot "
            "go on while this one blocks the loop: use `async with`, or await acquire_async()",
            room=session.room,
        )


def claimed(
    connection: Connection, session: Session, lock: LockName, lease: float | None, *, wait: bool = True
) -> tuple[Tenure, Future[None] | None]:
    """The claim of the thread or task that runs; without a future it holds the lock already."""
    connection.check_usable()
    order.check(session.room, lock)
    with connection.lock:
        if session.ended is not None:
            raise from_code(session.ended.code, session.ended.message, room=session.room)
        tenure = session.leases.again(lock)
        if tenure is not None:
            return tenure, None
        seconds = connection.limits.lease_seconds if lease is None else lease
        tenure = session.leases.want(lock, seconds, f"{host.kind()} {host.title()}", session.replica, wait=wait)
        future = session.leases.when(tenure, ("held",))
    connection.wake()
    return tenure, future


def settled(connection: Connection, session: Session, tenure: Tenure, timeout: float) -> Tenure:
    """The tenure when it is held, or what it failed with."""
    with connection.lock:
        error = session.leases.outcome(tenure, session.replica, timeout)
    if error is not None:
        raise error
    return tenure


def depth(connection: Connection, session: Session, lock: LockName) -> int:
    """How often the thread or task that runs has taken a lock, or asked for it."""
    with connection.lock:
        return session.leases.depth(lock)


def back(connection: Connection, session: Session, lock: LockName, before: int) -> None:
    """Whoever wanted a lock is interrupted, wherever that was: he has it as often as before, and waits for nothing (H23)."""
    with connection.lock:
        ended = session.leases.back(lock, before)
    connection.wake()
    if ended is not None:
        order.given(ended)


def abandon(connection: Connection, session: Session, tenure: Tenure) -> bool:
    """Give back, or stop waiting, and do not wait for the server; whether it was the outermost hold."""
    with connection.lock:
        outermost = session.leases.leave(tenure)
    connection.wake()
    if outermost:
        order.given(tenure)
    return outermost


def release(connection: Connection, session: Session, tenure: Tenure, timeout: float) -> None:
    """Give a lock back behind what was written under it; returns when it is free.

    Raises
    ------
    LockLost
        It was lost before.
    LockTimeout
        The server did not say so in time; the lock ends with its lease.
    RoomGone
    """
    if not abandon(connection, session, tenure):
        return
    with connection.lock:
        future = session.leases.when(tenure, ("over",))
    _wait(future, timeout)
    given_back(session, tenure, timeout)


async def release_async(connection: Connection, session: Session, tenure: Tenure, timeout: float) -> None:
    """`release` that lets the caller's loop run meanwhile."""
    if not abandon(connection, session, tenure):
        return
    with connection.lock:
        future = session.leases.when(tenure, ("over",))
    await asyncio.wait([asyncio.wrap_future(future)], timeout=timeout)
    given_back(session, tenure, timeout)


def given_back(session: Session, tenure: Tenure, timeout: float) -> None:
    """Raise unless the lock was given back."""
    if tenure.problem is not None:
        raise from_code(tenure.problem.code, tenure.problem.message, room=session.room)
    if tenure.phase != "over":
        raise LockTimeout(
            f"the server did not confirm within {timeout:g} s that {tenure.lock.name!r} is free; its lease ends it",
            room=session.room,
        )
    if tenure.lost:
        raise session.leases.lost(tenure)


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


def _wait(future: Future[None], timeout: float) -> None:
    """Wait so long; whoever asked looks what has become of it."""
    try:
        future.result(timeout)
    except (TimeoutError, FutureTimeout):
        return
