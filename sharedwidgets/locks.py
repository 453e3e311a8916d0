"""Locks as a user has them: `state.lock()`, `room.lock("name")`, and `lock(a, b)` for several at once."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from sharedwidgets import answers, host, leases
from sharedwidgets.core.claims import Tenure
from sharedwidgets.core.protocol import LockName, Member, shown
from sharedwidgets.delivery import Delivery, Mode
from sharedwidgets.errors import LockLost, LockOrder, LockTimeout

if TYPE_CHECKING:
    from sharedwidgets.connection import Connection
    from sharedwidgets.links import Session

# How long a lock waits for its turn, for the server's word whether it is free, and for its word that it is free again.
WAIT_SECONDS = 30.0
ANSWER_SECONDS = 5.0
RELEASE_SECONDS = 10.0
_LOOK_SECONDS = 0.01

# What each thread or task has taken of rooms' locks, in the order of taking; what was lost meanwhile counts no more.
_taken: dict[leases.Owner, list[Lock]] = {}


class Lockable(Protocol):
    """What `lock` takes: a `SharedState`, or a `Lock`."""

    def lock(self, timeout: float = ..., lease: float | None = ...) -> Lock:
        """Its lock."""


class Lock:
    """Exclusive across every kernel, page and script: leased, fenced, first come first served.

    Made by `SharedState.lock` and `Room.lock`. Each thread and each task is an owner of its own; one that holds a lock may take
    it again. Use it as ``with`` or ``async with``.

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
        but not while C code lets no other Python code run.
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
        self._session = session
        self._connection = connection
        self._name = name
        self._timeout = timeout
        self._lease = lease
        self._mode: Mode = mode
        self._tenure: Tenure | None = None
        # How often its owner took this very object.
        self._depth = 0

    def __repr__(self) -> str:
        return f"<Lock {self._name.name!r} of {self._session.room!r}, {'held' if self.held else 'not held'}>"

    def lock(self, timeout: float = WAIT_SECONDS, lease: float | None = None) -> Lock:
        """Itself, for `lock(a, b)`."""
        return self

    @property
    def fence(self) -> int:
        """The number of this grant, higher than that of any before; 0 while it is not held."""
        return self._tenure.fence if self._tenure is not None and self.held else 0

    @property
    def held(self) -> bool:
        """Whether it is held, as far as this process knows."""
        return self._tenure is not None and self._tenure.phase == "held" and self.lease_left > 0

    @property
    def lease_left(self) -> float:
        """Seconds until the lease runs out if it is not renewed."""
        if self._tenure is None:
            return 0.0
        with self._connection.lock:
            return self._session.leases.left(self._tenure, time.monotonic())

    @property
    def waiters(self) -> tuple[Member, ...]:
        """Who waits for it, in order of coming."""
        with self._connection.lock:
            replica = self._session.replica
            names = replica.waiting.get(self._name, ())
            return tuple(shown(replica.members[name]) for name in names if name in replica.members)

    def check(self) -> None:
        """Raise `LockLost` unless it is still held."""
        if self._tenure is None or not self.held:
            raise self._session.leases.lost(self._tenure) if self._tenure else LockLost("this lock was not taken")

    def on_lost(self, callback: Callable[[Lock], object]) -> None:
        """Call back once if the lock is lost before it is given back."""
        tenure = self._tenure
        if tenure is None:
            raise LockLost("take the lock first: only what is held can be lost")

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
        self._acquire(self._timeout if timeout is None else timeout, wait=True)
        return self

    def _acquire(self, seconds: float, *, wait: bool) -> None:
        self._check_order()
        self._tenure = answers.acquire(self._connection, self._session, self._name, seconds, self._lease, wait=wait)
        try:
            deadline = time.monotonic() + seconds
            while not self._session.settle(self._covers):
                if time.monotonic() > deadline:
                    raise LockTimeout(_HOLD, room=self._session.room)
                time.sleep(_LOOK_SECONDS)
            self._note()
        except BaseException:
            answers.abandon(self._connection, self._session, self._tenure)
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
        await self._acquire_async(self._timeout if timeout is None else timeout, wait=True)
        return self

    async def try_acquire_async(self) -> bool:
        """`try_acquire` that lets the loop run meanwhile."""
        try:
            await self._acquire_async(self._try_seconds, wait=False)
        except LockTimeout:
            return False
        return True

    async def _acquire_async(self, seconds: float, *, wait: bool) -> None:
        self._check_order()
        self._tenure = await answers.acquire_async(self._connection, self._session, self._name, seconds, self._lease, wait=wait)
        try:
            deadline = time.monotonic() + seconds
            while not self._session.settle(self._covers):
                if time.monotonic() > deadline:
                    raise LockTimeout(_HOLD, room=self._session.room)
                await asyncio.sleep(_LOOK_SECONDS)
            self._note()
        except BaseException:
            answers.abandon(self._connection, self._session, self._tenure)
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

    # --- order

    @property
    def _covers(self) -> str | None:
        """The state whose traits it covers; the lock of a name may stand for anything in the room."""
        return self._name.name if self._name.kind == "state" else None

    @property
    def order(self) -> tuple[str, str]:
        """Its place among all locks."""
        return self._session.room, f"{self._name.kind} {self._name.name}"

    def _check_order(self) -> None:
        """Locks are taken in one order everywhere, so that no two owners wait for each other."""
        taken = [item.order for item in _taken.get(host.owner(), []) if item.held]
        if self.order in taken:
            return
        if taken and max(taken) > self.order:
            room, name = max(taken)
            raise LockOrder(
                f"{self._name.name!r} of {self._session.room!r} comes before {name.partition(' ')[2]!r} of {room!r}, held: "
                "take both at once with lock(a, b), which knows the order",
                room=self._session.room,
            )
        if self._session.grouping():
            raise LockOrder(
                "a lock is taken outside of a transaction or hold, and the transaction inside of it", room=self._session.room
            )

    def _note(self) -> None:
        held = [item for item in _taken.get(host.owner(), []) if item.held]
        _taken[host.owner()] = [*held, self]
        self._depth += 1

    def _given(self) -> Tenure:
        owner = host.owner()
        taken = _taken.get(owner, [])
        if self in taken:
            taken.remove(self)
            if not taken:
                _taken.pop(owner, None)
        tenure = self._tenure
        if tenure is None:
            raise LockLost("this lock is not held here; acquire() it first")
        self._depth -= 1
        if self._depth <= 0:
            self._tenure, self._depth = None, 0
        return tenure


_HOLD = "another thread's hold or transaction keeps the traits from showing what came before the lock; end it first"


class Mutex:
    """Exclusive among the threads and tasks of this process; one that has it may take it again."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._owner: leases.Owner | None = None
        self._depth = 0

    def acquire(self, timeout: float) -> bool:
        """Whether it is this thread's or task's now."""
        me = host.owner()
        with self._free:
            if self._owner != me and not self._free.wait_for(lambda: self._owner is None, timeout):
                return False
            self._owner = me
            self._depth += 1
            return True

    @property
    def mine(self) -> bool:
        """Whether the thread or task that runs has it."""
        return self._owner == host.owner()

    def release(self) -> None:
        """Give it back."""
        with self._free:
            if not self.mine:
                raise LockLost("this lock is not held here; acquire() it first")
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._free.notify()


class LocalLock:
    """The lock of a state that is not linked: exclusive among the threads and tasks of this process, with the same methods."""

    fence = 0
    lease_left = float("inf")

    def __init__(self, mutex: Mutex, timeout: float) -> None:
        self._mutex = mutex
        self._timeout = timeout

    @property
    def held(self) -> bool:
        """Whether the thread or task that runs has it."""
        return self._mutex.mine

    def acquire(self, timeout: float | None = None) -> LocalLock:
        """Wait for its turn; `LockTimeout` when it does not come."""
        self._check(self._mutex.acquire(self._timeout if timeout is None else timeout))
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
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
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
            raise LockLost("this lock is not held here; acquire() it first")

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
        self._stack = ExitStack()
        self._async_stack = AsyncExitStack()

    def __enter__(self) -> Locks:
        with ExitStack() as stack:
            for item in self._locks:
                stack.enter_context(item)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, traceback)

    async def __aenter__(self) -> Locks:
        async with AsyncExitStack() as stack:
            for item in self._locks:
                await stack.enter_async_context(item)
            self._async_stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._async_stack.__aexit__(kind, error, traceback)


def lock(*things: Lockable, timeout: float = WAIT_SECONDS, lease: float | None = None) -> Locks:
    """The locks of several states (or locks of rooms) as one ``with``: in whatever order they are named, nobody waits for ever.

    Raises
    ------
    TypeError
        One of them is a state that is not linked.
    """
    locks = [thing.lock(timeout, lease) for thing in things]
    for item in locks:
        if not isinstance(item, Lock):
            raise TypeError("lock() takes states that are linked, and locks of rooms; link them first")
    return Locks(locks)
