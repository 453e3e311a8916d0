"""Locks as a user has them: `state.lock()`, `room.lock("name")`, and `lock(a, b)` for several at once."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, TypeVar

from sharedwidgets import answers, host, order
from sharedwidgets.core.claims import Tenure
from sharedwidgets.core.protocol import LockName, Member, shown
from sharedwidgets.delivery import Delivery, Mode
from sharedwidgets.errors import LockLost, LockOrder, LockTimeout, WrongThread
from sharedwidgets.order import Place

if TYPE_CHECKING:
    from sharedwidgets.connection import Connection
    from sharedwidgets.links import Session

log = logging.getLogger("sharedwidgets")

Stack = TypeVar("Stack")

# How long a lock waits for its turn, for the server's word whether it is free, and for its word that it is free again.
WAIT_SECONDS = 30.0
ANSWER_SECONDS = 5.0
RELEASE_SECONDS = 10.0
_LOOK_SECONDS = 0.01
# How often it is looked whether whoever has the lock of an unlinked state still lives.
_DEAD_SECONDS = 0.5


class Lockable(Protocol):
    """What `lock` takes: a `SharedState`, a `RoomState`, or a `Lock`."""

    def lock(self, timeout: float = ..., lease: float | None = ...) -> Lock:
        """Its lock."""


class Lock:
    """Exclusive across every kernel, page and script: leased, fenced, first come first served.

    Made by `SharedState.lock` and `Room.lock`. Each thread and each task is an owner of its own, and the object says of each
    what it has; one that holds a lock may take it again, and only it gives it back. Use it as ``with`` or ``async with``.

    Parameters
    ----------
    session : Session
        The room.
    name : LockName
        Which lock of it.
    timeout : float
        Seconds to wait for its turn.
    lease : float, optional
        Seconds it lasts without being renewed; the server's number by default. It is renewed by itself while its owner lives,
        for the server's `hold_seconds` at most, but not while C code lets no other Python code run.
    mode : "main" or "thread"
        Where `on_lost` calls back.
    """

    def __init__(
        self,
        connection: Connection,
        session: Session,
        name: LockName,
        *,
        timeout: float = WAIT_SECONDS,
        lease: float | None = None,
        mode: Mode = "main",
    ) -> None:
        if lease is not None and not 0 < lease <= 86400:
            raise ValueError(f"a lease has more than 0 and at most 86400 seconds, not {lease}")
        _check_seconds(timeout)
        self._session = session
        self._connection = connection
        self._name = name
        self._timeout = timeout
        self._lease = lease
        self._mode: Mode = mode

    def __repr__(self) -> str:
        return f"<Lock {self._name.name!r} of {self._session.room!r}, {'held' if self.held else 'not held'}>"

    def lock(self, timeout: float = WAIT_SECONDS, lease: float | None = None) -> Lock:
        """Itself, for `lock(a, b)`."""
        return self

    @property
    def fence(self) -> int:
        """The number of the grant, higher than that of any before; 0 while it is not held."""
        tenure = self._tenure
        return tenure.fence if tenure is not None and self.held else 0

    @property
    def held(self) -> bool:
        """Whether the thread or task that runs holds it, as far as this process knows."""
        return self.lease_left > 0

    @property
    def lease_left(self) -> float:
        """Seconds until the lease of the thread or task that runs ends if it is not renewed; 0 when it has none."""
        with self._connection.lock:
            tenure = self._session.leases.mine(self._name)
            return 0.0 if tenure is None else self._session.leases.left(tenure, time.monotonic())

    @property
    def _tenure(self) -> Tenure | None:
        """What the thread or task that runs has of it: held, or lost and not given back."""
        with self._connection.lock:
            return self._session.leases.mine(self._name)

    @property
    def holder(self) -> Member | None:
        """Who holds it, this process too; None when nobody does."""
        with self._connection.lock:
            return self._session.replica.holder(self._name)

    @property
    def waiters(self) -> tuple[Member, ...]:
        """Who waits for it, in order of coming."""
        with self._connection.lock:
            replica = self._session.replica
            names = replica.waiting.get(self._name, ())
            return tuple(shown(replica.members[name]) for name in names if name in replica.members)

    def check(self) -> None:
        """Raise `LockLost` unless the thread or task that runs still holds it."""
        tenure = self._tenure
        if not self.held:
            raise LockLost(_NOT_HERE) if tenure is None else self._session.leases.lost(tenure)

    def on_lost(self, callback: Callable[[Lock], object]) -> None:
        """Call back once if the lock is lost before it is given back."""
        tenure = self._tenure
        if tenure is None:
            raise LockLost(_NOT_HERE)

        def tell() -> None:
            delivery.close()
            callback(self)

        delivery = Delivery(tell, self._mode)
        with self._connection.lock:
            future = self._session.leases.when(tenure, ("over",))
        future.add_done_callback(lambda done: delivery.ring() if tenure.lost else delivery.close())

    # --- for threads

    def acquire(self, timeout: float | None = None) -> Lock:
        """Wait for its turn; when this returns, every trait shows everything that came before. Returns the lock itself.

        Raises
        ------
        LockTimeout, LockOrder, Forbidden, NoSuchState, TooLarge, RoomGone, WrongThread
        """
        self._acquire(self._timeout if timeout is None else _check_seconds(timeout), wait=True)
        return self

    def _acquire(self, seconds: float, *, wait: bool) -> None:
        self._check_outside()
        seconds = min(seconds, threading.TIMEOUT_MAX)
        before = answers.depth(self._connection, self._session, self._name)
        try:
            answers.acquire(self._connection, self._session, self._name, seconds, self._lease, wait=wait)
            deadline = time.monotonic() + seconds
            while not self._session.settle(self._covers):
                if time.monotonic() > deadline:
                    raise LockTimeout(_HOLD, room=self._session.room)
                time.sleep(_LOOK_SECONDS)
        except BaseException:
            answers.back(self._connection, self._session, self._name, before)
            raise

    def try_acquire(self) -> bool:
        """Take it if nobody holds it, by the word of the server; whether it is held now.

        It never waits behind a holder. While the server cannot be asked, the answer is no.

        Raises
        ------
        LockOrder, Forbidden, NoSuchState, TooLarge, RoomGone, WrongThread
        """
        try:
            self._acquire(self._try_seconds, wait=False)
        except LockTimeout:
            return False
        return True

    @property
    def _try_seconds(self) -> float:
        return ANSWER_SECONDS if self._connection.state == "live" else 0.0

    def release(self) -> None:
        """Give it back, behind everything written under it.

        Raises
        ------
        LockLost
            It was lost before; what was written since then had no effect.
        LockTimeout
            The server did not confirm it.
        """
        answers.release(self._connection, self._session, self._given(), RELEASE_SECONDS)

    def __enter__(self) -> Lock:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if kind is None or issubclass(kind, Exception):
            self.release()
        else:
            self._drop()

    # --- for tasks

    async def acquire_async(self, timeout: float | None = None) -> Lock:
        """`acquire` that lets the loop run meanwhile."""
        await self._acquire_async(self._timeout if timeout is None else _check_seconds(timeout), wait=True)
        return self

    async def try_acquire_async(self) -> bool:
        """`try_acquire` that lets the loop run meanwhile."""
        try:
            await self._acquire_async(self._try_seconds, wait=False)
        except LockTimeout:
            return False
        return True

    async def _acquire_async(self, seconds: float, *, wait: bool) -> None:
        self._check_outside()
        seconds = min(seconds, threading.TIMEOUT_MAX)
        before = answers.depth(self._connection, self._session, self._name)
        try:
            await answers.acquire_async(self._connection, self._session, self._name, seconds, self._lease, wait=wait)
            deadline = time.monotonic() + seconds
            while not self._session.settle(self._covers):
                if time.monotonic() > deadline:
                    raise LockTimeout(_HOLD, room=self._session.room)
                await asyncio.sleep(_LOOK_SECONDS)
        except BaseException:
            answers.back(self._connection, self._session, self._name, before)
            raise

    async def release_async(self) -> None:
        """`release` that lets the loop run meanwhile."""
        await answers.release_async(self._connection, self._session, self._given(), RELEASE_SECONDS)

    async def __aenter__(self) -> Lock:
        return await self.acquire_async()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None or issubclass(kind, Exception):
            await self.release_async()
        else:
            self._drop()

    def _drop(self) -> None:
        """Give it back without waiting for the server: whoever is interrupted or cancelled is not held up (H23)."""
        answers.abandon(self._connection, self._session, self._given())

    @property
    def _covers(self) -> str | None:
        """The state whose traits it covers; the lock of a name may stand for anything in the room."""
        return self._name.name if self._name.kind == "state" else None

    @property
    def order(self) -> Place:
        """Its place among all locks."""
        return order.place(self._session.room, self._name)

    def _check_outside(self) -> None:
        if self._session.grouping() and not self.held:
            raise LockOrder(
                "a lock is taken outside of a transaction or hold, and the transaction inside of it", room=self._session.room
            )

    def _given(self) -> Tenure:
        tenure = self._tenure
        if tenure is None:
            raise LockLost(_NOT_HERE)
        return tenure


_NOT_HERE = (
    "this thread or task does not hold the lock: only what took it gives it back, and what a task has taken ends with it; "
    "acquire() it here"
)
_HOLD = "another thread's hold or transaction keeps the traits from showing what came before the lock; end it first"


class Mutex:
    """Exclusive among the threads and tasks of this process; one that has it may take it again."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._owner: host.Owner | None = None
        self._lives: Callable[[], bool] = lambda: False
        self._depth = 0

    def acquire(self, timeout: float) -> bool:
        """Whether it is this thread's or task's now.

        Raises
        ------
        WrongThread
            Another task of this thread's loop has it, and cannot give it back while this one waits.
        """
        me = host.owner()
        deadline = time.monotonic() + timeout
        with self._free:
            while self._owner is not None and not self.mine and self._lives():
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                if self._owner[0] == me[0]:
                    raise WrongThread(
                        "another task of this thread's loop has the lock, and cannot give it back while this one blocks the "
                        "loop: use `async with`, or await acquire_async()"
                    )
                # Nobody says that a thread has ended.
                self._free.wait(min(left, _DEAD_SECONDS))
            if not self.mine:
                if self._owner is not None:
                    log.warning("whoever held the lock of a state has ended and did not give it back")
                self._owner, self._lives, self._depth = me, host.lives(), 0
            self._depth += 1
            return True

    @property
    def mine(self) -> bool:
        """Whether the thread or task that runs has it."""
        return self._owner == host.owner() and self._lives()

    def release(self) -> None:
        """Give it back."""
        with self._free:
            if not self.mine:
                raise LockLost(_NOT_HERE)
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._free.notify()


class LocalLock:
    """The lock of a state that is not linked: exclusive among the threads and tasks of this process, with the same methods."""

    fence = 0
    lease_left = float("inf")
    # Nobody whom others could see.
    holder: Member | None = None

    def __init__(self, mutex: Mutex, timeout: float) -> None:
        self._mutex = mutex
        self._timeout = _check_seconds(timeout)

    @property
    def held(self) -> bool:
        """Whether the thread or task that runs has it."""
        return self._mutex.mine

    def acquire(self, timeout: float | None = None) -> LocalLock:
        """Wait for its turn; `LockTimeout` when it does not come."""
        self._check(self._mutex.acquire(self._timeout if timeout is None else _check_seconds(timeout)))
        return self

    def try_acquire(self) -> bool:
        """Take it if nobody holds it."""
        return self._mutex.acquire(0)

    async def try_acquire_async(self) -> bool:
        """`try_acquire`, which never waits here."""
        return self.try_acquire()

    def release(self) -> None:
        """Give it back."""
        self._mutex.release()

    @property
    def waiters(self) -> tuple[Member, ...]:
        """Nobody whom others could see."""
        return ()

    async def acquire_async(self, timeout: float | None = None) -> LocalLock:
        """`acquire` that lets the loop run meanwhile."""
        deadline = time.monotonic() + (self._timeout if timeout is None else _check_seconds(timeout))
        while not self.try_acquire():
            self._check(time.monotonic() < deadline)
            await asyncio.sleep(_LOOK_SECONDS)
        return self

    async def release_async(self) -> None:
        """Give it back."""
        self.release()

    def check(self) -> None:
        """Raise `LockLost` unless it is held."""
        if not self.held:
            raise LockLost(_NOT_HERE)

    def on_lost(self, callback: Callable[[LocalLock], object]) -> None:
        """A local lock is never lost."""

    def _check(self, taken: bool) -> None:
        if not taken:
            raise LockTimeout(f"another thread or task of this process held the lock for longer than {self._timeout:g} s")

    def __enter__(self) -> LocalLock:
        return self.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.release()

    async def __aenter__(self) -> LocalLock:
        return await self.acquire_async()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()


class Locks:
    """Several locks at once, taken in the one order and given back in the other."""

    def __init__(self, locks: Sequence[Lock]) -> None:
        self._locks = sorted(locks, key=lambda lock: lock.order)
        # By thread or task, innermost last.
        self._stacks: dict[host.Owner, list[ExitStack]] = {}
        self._async_stacks: dict[host.Owner, list[AsyncExitStack]] = {}

    def __enter__(self) -> Locks:
        with ExitStack() as stack:
            for item in self._locks:
                stack.enter_context(item)
            self._stacks.setdefault(host.owner(), []).append(stack.pop_all())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        _innermost(self._stacks).__exit__(kind, error, traceback)

    async def __aenter__(self) -> Locks:
        async with AsyncExitStack() as stack:
            for item in self._locks:
                await stack.enter_async_context(item)
            self._async_stacks.setdefault(host.owner(), []).append(stack.pop_all())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await _innermost(self._async_stacks).__aexit__(kind, error, traceback)


def _innermost(stacks: dict[host.Owner, list[Stack]]) -> Stack:
    """Take the innermost of the thread or task that runs."""
    me = host.owner()
    mine = stacks.get(me)
    if not mine:
        raise LockLost(_NOT_HERE)
    innermost = mine.pop()
    if not mine:
        del stacks[me]
    return innermost


def lock(*things: Lockable, timeout: float = WAIT_SECONDS, lease: float | None = None) -> Locks:
    """The locks of several states (or locks of rooms) as one ``with``: in whatever order they are named, nobody waits for ever.

    Raises
    ------
    TypeError
        One of them is a state that is not linked.
    """
    return Locks([_linked(thing, timeout, lease) for thing in things])


def _linked(thing: Lockable, timeout: float, lease: float | None) -> Lock:
    found = thing.lock(timeout, lease) if isinstance(thing, Lock) or hasattr(thing, "locked_by") else None
    if not isinstance(found, Lock):
        raise TypeError(
            f"lock() takes states that are linked, and locks of rooms such as room.lock('fit'), not {type(thing).__name__}; "
            "link a state first"
        )
    return found


def _check_seconds(timeout: float) -> float:
    if not isinstance(timeout, (int, float)):
        raise TypeError(f"a timeout is a number of seconds, not {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"a timeout is a number of seconds, 0 or more, not {timeout}")
    return timeout
