"""The user's handle of a room without a class: `connect` gives a `Room`, which reads like a dict of dicts."""

from __future__ import annotations

import inspect
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from sharedwidgets import answers, causes, cells, discovery, host
from sharedwidgets.answers import ANSWER_SECONDS
from sharedwidgets.causes import Cause
from sharedwidgets.connection import Connection, LinkState, shared
from sharedwidgets.core import delta
from sharedwidgets.core import schema as schemas
from sharedwidgets.core.delta import MAX_NAME
from sharedwidgets.core.protocol import REACTS, Append, Inc, LastChange, LockName, Member, Op, Set, of_users, shown
from sharedwidgets.core.replica import Change, News, Refused
from sharedwidgets.core.values import Value, normalise, text
from sharedwidgets.delivery import Delivery, Mode
from sharedwidgets.drafts import Draft
from sharedwidgets.errors import Closed, InvalidValue, NoSuchState, SharedWidgetsError, ValueMismatch, from_code
from sharedwidgets.links import Part, Session, Wanted
from sharedwidgets.transactions import nowhere, transaction, writer

if TYPE_CHECKING:
    from sharedwidgets.locks import Lock

log = logging.getLogger("sharedwidgets")

_Callbacks: TypeAlias = list[Callable[[Any], object]]


def connect(
    token: str,
    server: str | None = None,
    credential: str | None = None,
    *,
    timeout: float = 10.0,
    delivery: Mode = "main",
) -> Room:
    """Enter a room from any Python process.

    In JupyterLab, what an earlier run of the same cell entered is closed once the cell has run again, and its callbacks end.

    Parameters
    ----------
    token : str
        The room's name.
    server, credential : str, optional
        Base URL and secret; by default what the environment or a running server says.
    timeout : float
        Seconds to wait for the server.
    delivery : "main" or "thread"
        Where callbacks run: on the loop of the main thread (in a plain script there is none, and a thread is used), or on a
        thread of their own.

    Returns
    -------
    Room
        Also a context manager that closes itself.

    Raises
    ------
    InvalidToken, ServerNotFound, LinkTimeout, Forbidden, TooManyRooms
    """
    connection = shared(discovery.find(server, credential))
    session = connection.open(token)
    try:
        connection.join(session, None, timeout=timeout)
    except BaseException:
        connection.close_session(session)
        raise
    room = Room(connection, session, delivery)
    cells.note(room)
    return room


class Room(Mapping[str, "RoomState"]):
    """One room: its states by name, its members, and who wants to hear of changes.

    Once the room was deleted, writes raise `RoomGone`, and what is read is what this process had last.

    Parameters
    ----------
    session : Session
        Joined.
    delivery : "main" or "thread"
        Where callbacks run.
    """

    def __init__(self, connection: Connection, session: Session, delivery: Mode = "main") -> None:
        self._session = session
        self._connection = connection
        self._lock = threading.Lock()
        self._changes: dict[tuple[str, str], Change] = {}
        self._events: list[tuple[_Callbacks, object]] = []
        # What happened before the last subscription: for those who had subscribed by then.
        self._earlier: list[tuple[_Callbacks, _Callbacks, object]] = []
        self._on_change: _Callbacks = []
        self._on_join: _Callbacks = []
        self._on_leave: _Callbacks = []
        self._on_refused: _Callbacks = []
        self._ended: SharedWidgetsError | None = None
        self._closed = False
        self._mode: Mode = delivery
        self._delivery = Delivery(self._deliver, delivery)
        with self._connection.lock:
            session.listeners.append(self._hear)
            session.linked.append(self)
            ended = session.ended
        if ended is not None:
            # It was deleted since it was joined, and nobody says so once more.
            self._ended = from_code(ended.code, ended.message, room=session.room)

    @property
    def token(self) -> str:
        """The room's name."""
        return self._session.room

    @property
    def link_state(self) -> LinkState:
        """Whether the server is in reach: ``"connecting"``, ``"live"``, ``"offline"`` or ``"closed"``."""
        return "closed" if self._closed or self._ended else self._connection.state

    @property
    def members(self) -> tuple[Member, ...]:
        """Who is in the room, as the server says, in the order of coming; nobody once it was deleted or this handle closed."""
        if self.link_state == "closed":
            return ()
        with self._connection.lock:
            present = sorted(self._session.replica.members.values(), key=lambda member: (member.since, member.id))
        return tuple(map(shown, present))

    @property
    def seq(self) -> int:
        """The number of the last entry this process has."""
        return self._session.replica.seq

    def __getitem__(self, state: str) -> RoomState:
        with self._connection.lock:
            if state not in self._session.replica.states:
                there = ", ".join(self._states()) or "none yet"
                raise NoSuchState(
                    f"{self.token!r} has no state {state!r} (there is {there}); link a SharedState, or define() it",
                    room=self.token,
                    state=state,
                )
        return RoomState(self, state)

    def __iter__(self) -> Iterator[str]:
        with self._connection.lock:
            return iter(self._states())

    def __len__(self) -> int:
        with self._connection.lock:
            return len(self._states())

    def _states(self) -> list[str]:
        """The states a user has made; the connection's lock is held."""
        return of_users(self._session.replica.states)

    def __repr__(self) -> str:
        return f"<Room {self.token!r} {self.link_state}, {len(self)} states, {len(self.members)} members>"

    def define(self, state: str, timeout: float = 10.0, /, **defaults: object) -> RoomState:
        """Make a state without a class, where it is missing; a trait's kind is that of its default.

        Raises
        ------
        SchemaConflict
            The room has the state with a trait of another kind.
        InvalidValue, Forbidden, LinkTimeout
        """
        self._check_open()
        if not 0 < len(text(state)) <= MAX_NAME:
            raise InvalidValue(f"the name of a state has 1 to {MAX_NAME} characters, not {len(state)}", room=self.token)
        if state.endswith(REACTS):
            raise InvalidValue(f"the name of a state does not end with {REACTS}", room=self.token)
        wanted = Wanted({trait: schemas.kind_of(normalise(value)) for trait, value in defaults.items()})
        self._connection.join(self._session, state, wanted, timeout)
        return self[state]

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the writes of this thread or task to this room one entry: all or nothing, and nothing at all on an exception.

        Every `SharedState` of this process that is linked to the room takes part. Inside of another one it can be undone by
        itself, and is part of that one otherwise.

        Raises
        ------
        RuntimeError
            One of them is in a transaction or hold of its own: open this one around it.
        Locked
            Somebody else holds the lock of one of the states; nothing is written.
        """
        self._check_open()
        session = self._session
        outer = session.groups.get(host.owner())
        draft = Draft() if outer is None else outer
        others = [item.part(draft) for item in [*session.linked] if not isinstance(item, Room)]
        parts = [_RoomPart(self, draft), *others]
        with transaction(parts, nowhere if outer is not None else writer(self._connection, session, draft, parts, self._hear)):
            yield

    # --- what a transaction and a lock of this process ask of it

    def settle(self, state: str | None) -> bool:
        """What is read is always the newest."""
        return True

    def look(self, state: str, trait: str) -> None:
        """What is read is always the newest, and who brings news has them told."""

    def grouping(self) -> bool:
        """Whether the thread or task that runs has a transaction open."""
        return host.owner() in self._session.groups

    def part(self, draft: Draft) -> Part:
        """What this handle does in a transaction of the room."""
        return _RoomPart(self, draft)

    def lock(self, name: str, timeout: float = 30.0, lease: float | None = None) -> Lock:
        """A lock of this name, known to everyone in the room; it covers nothing by itself.

        Parameters
        ----------
        name : str
            1 to 256 characters.
        timeout, lease : float
            As for `SharedState.lock`.
        """
        if not isinstance(name, str):
            raise TypeError(f"the name of a lock is text, not {type(name).__name__}")
        if not 0 < len(text(name)) <= MAX_NAME:
            raise InvalidValue(f"the name of a lock has 1 to {MAX_NAME} characters, not {len(name)}", room=self.token)
        return self._lock_of(LockName(kind="named", name=name), timeout, lease)

    def _lock_of(self, name: LockName, timeout: float, lease: float | None) -> Lock:
        self._check_open()
        # Loaded by who locks: importing this library is to cost little.
        from sharedwidgets.locks import Lock

        return Lock(self._connection, self._session, name, timeout=timeout, lease=lease, mode=self._mode)

    def subscribe(self, callback: Callable[[Change], object]) -> Callable[[], None]:
        """Call back for each trait that changed, own writes apart; the newest value counts, some in between may be skipped.

        Returns
        -------
        callable
            Ends the subscription.

        Raises
        ------
        TypeError
            For an ``async def``, here and in the three below: nobody would await it.
        """
        return self._added(self._on_change, callback, "subscribe")

    def on_join(self, callback: Callable[[Member], object]) -> Callable[[], None]:
        """Call back for each member that comes; returns what ends it."""
        return self._added(self._on_join, callback, "on_join")

    def on_leave(self, callback: Callable[[Member], object]) -> Callable[[], None]:
        """Call back for each member that goes; returns what ends it."""
        return self._added(self._on_leave, callback, "on_leave")

    def on_refused(self, callback: Callable[[Refused], object]) -> Callable[[], None]:
        """Call back for each own write the server refused; returns what ends it."""
        return self._added(self._on_refused, callback, "on_refused")

    def last_change(self, state: str, trait: str) -> LastChange | None:
        """Who made or changed a trait last (``actor``), its ``seq`` and when (``at``); None where the server did not say.

        Raises
        ------
        NoSuchState, NoSuchTrait
        """
        with self._connection.lock:
            delta.find(self._session.replica.states, state, trait)
            return self._session.replica.last_change(state, trait)

    def pull(self) -> None:
        """Call what is due now, on this thread."""
        self._delivery.pull()

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until the server has answered every write made so far.

        Raises
        ------
        LinkTimeout
            They are kept, and sent again when the server answers.
        """
        self._connection.flush(self._session, timeout)

    def wait_until(self, condition: Callable[[], object], timeout: float | None = None) -> bool:
        """Wait until `condition()` is true, asked again after each news; whether it became so in time."""
        self._connection.check_may_wait()
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            since = self._connection.moment(self._session)
            if condition():
                return True
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            if not self._connection.wait_for_news(self._session, since, left) or self.link_state == "closed":
                return bool(condition())

    def close(self) -> None:
        """Leave the room, behind what was written; never blocks."""
        if self._closed:
            return
        self._closed = True
        with self._connection.lock:
            if self._hear in self._session.listeners:
                self._session.listeners.remove(self._hear)
            self._session.linked = [item for item in self._session.linked if item is not self]
        self._delivery.close()
        self._connection.close_session(self._session)

    def __enter__(self) -> Room:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    # --- parts

    def _write(self, ops: list[Op]) -> None:
        """Send ops, or keep them for the transaction of this thread."""
        draft = self._session.groups.get(host.owner())
        if draft is None:
            self._send(ops, group=len(ops) > 1)
            return
        self._check_open()
        for op in ops:
            # All or nothing: a trait that is not there raises before anything is kept.
            self._read(op.state, op.path[0])
        for op in ops:
            before = self._read(op.state, op.path[0])
            draft.do(self._session, op, before, delta.apply(before, op))

    def _send(self, ops: list[Op], *, group: bool) -> None:
        self._check_open()
        self._connection.write(self._session, ops, group=group, authors=[self._hear])

    def _ask(self, op: Op, timeout: float) -> int | float | None:
        self._check_may_ask()
        try:
            return answers.ask(self._connection, self._session, [op], timeout)
        finally:
            self._session.look(op)

    async def _ask_async(self, op: Op, timeout: float) -> int | float | None:
        self._check_may_ask()
        try:
            return await answers.ask_async(self._connection, self._session, [op], timeout)
        finally:
            self._session.look(op)

    def _check_may_ask(self) -> None:
        self._check_open()
        if self.grouping():
            raise RuntimeError("what waits for an answer of the server is no part of a transaction: ask outside of it")

    def _read(self, state: str, trait: str) -> Value:
        with self._connection.lock:
            value = self._session.replica.value(state, trait)
        draft = self._session.groups.get(host.owner())
        return value if draft is None else draft.read(state, trait, value)

    def _traits(self, state: str) -> list[str]:
        with self._connection.lock:
            found = self._session.replica.states.get(state)
            return list(found.schema) if found else []

    def _hear(self, news: News) -> None:
        """Note what there is; called by whoever brought it, so it only notes."""
        with self._lock:
            # Who subscribes later hears of what comes later.
            for change in news.changes if self._on_change else ():
                if change.state.endswith(REACTS):
                    continue
                key = (change.state, change.trait)
                earlier = self._changes.get(key)
                if earlier is not None:
                    change = msgspec.structs.replace(change, old=earlier.old, depth=max(change.depth, earlier.depth))
                self._changes[key] = change
            for callbacks, facts in (
                (self._on_join, map(shown, news.joined)),
                (self._on_leave, map(shown, news.gone)),
                (self._on_refused, news.refused),
            ):
                self._events += [(callbacks, fact) for fact in facts if callbacks]
            if news.ended is not None:
                self._ended = from_code(news.ended.code, news.ended.message, room=self.token)
        self._delivery.ring()

    def _deliver(self) -> None:
        with self._lock:
            due = [*self._earlier, *self._noted()]
            self._earlier.clear()
        for callbacks, audience, fact in due:
            for callback in audience:
                if callback not in callbacks:
                    continue
                try:
                    with _reacting(fact):
                        callback(fact)
                except Exception:
                    log.exception("a callback of room %r raised", self.token)

    def _noted(self) -> list[tuple[_Callbacks, _Callbacks, object]]:
        """Take what was noted, with those who are to hear of it; the lock is held."""
        due = [*self._events, *((self._on_change, change) for change in self._changes.values())]
        self._events.clear()
        self._changes.clear()
        return [(callbacks, [*callbacks], fact) for callbacks, fact in due]

    def _added(self, callbacks: _Callbacks, callback: Callable[[Any], object], verb: str) -> Callable[[], None]:
        _check_callback(callback, verb)
        with self._lock:
            self._earlier += self._noted()
            callbacks.append(callback)

        def end() -> None:
            if callback in callbacks:
                callbacks.remove(callback)

        return end

    def _check_open(self) -> None:
        if self._ended is not None:
            raise self._ended
        if self._closed:
            raise Closed(f"this handle of {self.token!r} is closed; connect() again", room=self.token)


class _RoomPart:
    """What is written through handles in a transaction of a room, and where everybody's writes are kept."""

    waits = ""

    def __init__(self, room: Room, draft: Draft) -> None:
        self._groups = room._session.groups
        self._draft = draft
        self._me = host.owner()
        self._outer = self._groups.get(self._me)
        self._runs = [*draft.runs]

    def begin(self) -> None:
        self._groups[self._me] = self._draft

    def check(self) -> bool:
        return False

    def keep(self, version: int) -> None:
        """The replica is what is read."""

    def undo(self) -> None:
        self._draft.undo(self._runs)

    def park(self) -> None:
        """Nothing is shown."""

    def end(self) -> None:
        if self._outer is None:
            self._groups.pop(self._me, None)

    def tell(self) -> None:
        """Own writes are no news to a handle."""


def _check_callback(callback: Callable[[Any], object], verb: str) -> None:
    """Raise `TypeError` for what cannot be called, and for what would only make a coroutine or an asynchronous generator."""
    asynchronous = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    if not callable(callback):
        raise TypeError(f"{verb} takes a plain function, not {callback!r}")
    # type() finds the __call__ of an object, and not what makes one of a class.
    if any(check(item) for check in asynchronous for item in (callback, type(callback).__call__)):
        raise TypeError(
            f"{verb} takes a plain function, not the async {callback!r}, which nobody would await; give a function that starts "
            "it, with asyncio.run_coroutine_threadsafe(…, loop)"
        )


def _reacting(fact: object) -> AbstractContextManager[None]:
    """Around a callback: what it writes is a reaction to what it is told."""
    match fact:
        case Change():
            return causes.reacting(Cause(causes.after(fact.origin, fact.depth), fact.state, fact.trait, fact.actor))
        case Refused():
            op = fact.ops[0]
            return causes.reacting(Cause(causes.after("rollback", fact.depth), op.state, op.path[0], None))
        case _:
            return nullcontext()


class RoomState(Mapping[str, Value]):
    """One state of a room as a dict of its traits; what is read is always the newest.

    Traits are items, not attributes: ``state["count"] = 3``.

    Parameters
    ----------
    room : Room
        The handle it belongs to.
    name : str
        The state's name.
    """

    # An attribute of a mistyped name would be a write that nobody hears of.
    __slots__ = ("_name", "_room")

    def __init__(self, room: Room, name: str) -> None:
        self._room = room
        self._name = name

    def __getitem__(self, trait: str) -> Value:
        return self._room._read(self._name, trait)

    def __setitem__(self, trait: str, value: object) -> None:
        self.update({trait: value})

    def __iter__(self) -> Iterator[str]:
        return iter(self._room._traits(self._name))

    def __len__(self) -> int:
        return len(self._room._traits(self._name))

    def __repr__(self) -> str:
        return f"<{self._name} in {self._room.token!r}: {dict(self)!r}>"

    def lock(self, timeout: float = 30.0, lease: float | None = None) -> Lock:
        """The lock of this state, as `SharedState.lock` gives it: while it is held nobody else writes the state."""
        return self._room._lock_of(LockName(kind="state", name=self._name), timeout, lease)

    @property
    def locked_by(self) -> Member | None:
        """Who holds the lock of this state, this process too; None when nobody does."""
        return self.lock().holder

    def update(self, values: Mapping[str, object]) -> None:
        """Set several traits as one entry, all or nothing.

        Raises
        ------
        InvalidValue, NoSuchState, NoSuchTrait
            Nothing is written.
        """
        ops: list[Op] = [Set(state=self._name, path=(trait,), value=normalise(value)) for trait, value in values.items()]
        self._room._write(ops)

    def increment(
        self,
        trait: str,
        by: float = 1,
        *,
        min: float | None = None,
        max: float | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> Value:
        """Add to a number; sums of several writers add up, none is lost. With bounds it waits for the server.

        Returns
        -------
        int or float
            The sum; without bounds as this process sees it by now.

        Raises
        ------
        OutOfBounds, LinkTimeout, InvalidValue, NoSuchState, NoSuchTrait, NoSuchPath, Locked, WrongThread
        RuntimeError
            With bounds, inside a transaction.
        """
        op = Inc(state=self._name, path=(trait,), by=by, min=min, max=max)
        if min is None and max is None:
            self._room._write([op])
            return self[trait]
        return self._room._ask(op, timeout)

    async def increment_async(
        self,
        trait: str,
        by: float = 1,
        *,
        min: float | None = None,
        max: float | None = None,
        timeout: float = ANSWER_SECONDS,
    ) -> Value:
        """`increment` that waits for the server, with bounds or without, and lets the loop run meanwhile; returns the sum."""
        return await self._room._ask_async(Inc(state=self._name, path=(trait,), by=by, min=min, max=max), timeout)

    def compare_and_set(self, trait: str, expected: object, new: object, timeout: float = ANSWER_SECONDS) -> bool:
        """Set a trait if it holds what is expected; whether it did. `new` shows nowhere before the server has said so.

        Raises
        ------
        LinkTimeout, InvalidValue, NoSuchState, NoSuchTrait, Locked, WrongThread
        RuntimeError
            Inside a transaction.
        """
        with suppress(ValueMismatch):
            self._room._ask(self._exchange(trait, expected, new), timeout)
            return True
        return False

    async def compare_and_set_async(self, trait: str, expected: object, new: object, timeout: float = ANSWER_SECONDS) -> bool:
        """`compare_and_set` that lets the loop run meanwhile."""
        with suppress(ValueMismatch):
            await self._room._ask_async(self._exchange(trait, expected, new), timeout)
            return True
        return False

    def append(self, trait: str, *items: object) -> None:
        """Put items at the end of a list; appends of several writers all stay."""
        self._room._write([self._items(trait, items)])

    async def append_async(self, trait: str, *items: object, timeout: float = ANSWER_SECONDS) -> None:
        """`append` that waits until the server has the items, and lets the loop run meanwhile."""
        await self._room._ask_async(self._items(trait, items), timeout)

    def _exchange(self, trait: str, expected: object, new: object) -> Set:
        return Set(state=self._name, path=(trait,), value=normalise(new), if_in=(normalise(expected),))

    def _items(self, trait: str, items: Sequence[object]) -> Append:
        return Append(state=self._name, path=(trait,), items=tuple(normalise(item) for item in items))
