"""The asyncio shell around the rooms: one queue and one task per room, which decides, appends, and only then tells.

`Room` says what must happen; this file carries it out, in order. It never decides anything about values.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from sharedwidgets.core import codec
from sharedwidgets.core.protocol import (
    Acquire,
    Audience,
    Bye,
    Cancel,
    Downstream,
    Entries,
    Entry,
    Failure,
    Freed,
    Granted,
    Hello,
    Join,
    Leave,
    Limits,
    LockImage,
    LockName,
    Member,
    Nack,
    Op,
    Ping,
    Pong,
    Push,
    Release,
    Renew,
    Resend,
    Resume,
    Slow,
    StateImage,
    Upstream,
)
from sharedwidgets.core.registry import Registry, Tombstones
from sharedwidgets.core.room import (
    Answer,
    Attach,
    Author,
    Detach,
    Effect,
    Forget,
    FromClient,
    Mark,
    Now,
    Record,
    Revision,
    Room,
    Send,
    Tell,
    problem,
)
from sharedwidgets.core.values import check_token
from sharedwidgets.errors import (
    GoingAway,
    InvalidToken,
    NoSuchRoom,
    Replaced,
    SharedWidgetsError,
    Silent,
    StoreFailed,
    TooManyRooms,
)
from sharedwidgets_server.outbox import Outbox
from sharedwidgets_server.processes import Process
from sharedwidgets_server.stores import Batch, Store

log = logging.getLogger("sharedwidgets")

# Inputs decided, appended and told together; more wait for the next turn.
BATCH = 500
# Inputs that may wait for one room before its writers are read more slowly.
BACKLOG = 1000
SLOW_SECONDS = 0.05
STORE_RETRY_SECONDS = 5.0
STORE_TRIES = 3
# Joins and resumes of one connection that may be under way; it is read no further until one of them is answered.
MOST_ASKED = 16
# The loop was held up when a pause took so many seconds more than it should.
STALL_SECONDS = 0.5
# A process that ends closes its sockets a moment before it can be seen to be dead; then one look a second is enough.
FIRST_LOOK_SECONDS, LAST_LOOK_SECONDS = 0.02, 1.0
# Seconds a server that stops waits for its words of farewell to be read.
GOODBYE_SECONDS = 1.0


@dataclass(eq=False)
class Connection:
    """One socket that said hello: who it is and what waits for it."""

    author: Author
    generation: int
    outbox: Outbox
    close: Callable[[], None]
    process: Process | None = None
    # Joins and resumes under way; each may be answered with a whole room.
    asking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MOST_ASKED))
    heard: float = 0.0
    pinged: float = 0.0


@dataclass(frozen=True)
class _FromClient:
    author: Author
    message: FromClient
    generation: int
    # Told when it has been decided, or never will be.
    over: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class _Disconnected:
    boot: str
    # When it went, by the manager's clock, if that was noticed later.
    since: float | None = None


@dataclass(frozen=True)
class _Process:
    boot: str
    alive: bool


@dataclass(frozen=True)
class _Elsewhere:
    boot: str


@dataclass(frozen=True)
class _CatchUp:
    boot: str


@dataclass(frozen=True)
class _Request:
    ticket: int
    author: Author
    ops: Sequence[Op]
    base: Revision | None


@dataclass(frozen=True)
class _Reset:
    ticket: int
    author: Author
    states: Sequence[str]


@dataclass(frozen=True)
class _Break:
    ticket: int
    author: Author
    lock: LockName


@dataclass(frozen=True)
class _Look:
    audience: Audience
    answer: asyncio.Future[RoomView]


@dataclass(frozen=True)
class _Delete:
    answer: asyncio.Future[None]
    # Only when nobody has come in meanwhile.
    if_idle: bool = False


_Asked: TypeAlias = _Request | _Reset | _Break | _Look
_Input: TypeAlias = _FromClient | _Disconnected | _Process | _Elsewhere | _CatchUp | _Asked | _Delete


@dataclass(frozen=True)
class _Speaks:
    """The effects that follow answer this connection of a boot, and not one that took its place meanwhile."""

    boot: str
    generation: int


@dataclass(frozen=True)
class _Show:
    """A `_Look` answered; it leaves in its turn, never before the append of what it shows (H9)."""

    answer: asyncio.Future[RoomView]
    view: RoomView


@dataclass(frozen=True)
class RoomView:
    """A room as the REST interface shows it to one audience."""

    token: str
    incarnation: str
    epoch: str
    seq: int
    states: dict[str, StateImage]
    members: tuple[Member, ...]
    locks: tuple[LockImage, ...] = ()


class RoomManager:
    """All rooms of one server.

    Parameters
    ----------
    store : Store
        Where rooms persist.
    limits : Limits
        The numbers clients are held to.
    room_ttl : float
        Seconds an empty room is kept.
    clock, wall : callable
        Monotonic seconds, and seconds since 1970.
    """

    def __init__(
        self,
        store: Store,
        *,
        limits: Limits,
        room_ttl: float,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.limits = limits
        self._clock = clock
        # Seconds the loop was held up: nobody could be heard meanwhile, and no deadline runs (H26). It is held up once more
        # when a look at the clock is long due, and what is decided until then must not count that.
        self._stalled = 0.0
        self._look_due = math.inf
        self.wall = wall
        self.registry = Registry(limits.rooms, room_ttl)
        self.tombstones = Tombstones()
        self.connections: dict[str, Connection] = {}
        self._queues: dict[str, RoomQueue] = {}
        self._tickets = itertools.count(1)
        self._answers: dict[int, asyncio.Future[int]] = {}
        self._timer: asyncio.Task[None] | None = None
        self._watches: set[asyncio.Task[None]] = set()
        self._left = asyncio.Event()

    def clock(self) -> float:
        """Monotonic seconds, less those in which this server heard nobody."""
        return self._clock() - self._stalled - self._late()

    def _late(self) -> float:
        """Seconds for which the loop is held up by now."""
        late = time.monotonic() - self._look_due
        return late if late > STALL_SECONDS else 0.0

    def start(self) -> None:
        """Begin to keep time; needs a running loop."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().create_task(self._keep_time())

    async def stop(self) -> None:
        """Say goodbye to everyone and let go of tasks and store."""
        if self._timer is not None:
            self._timer.cancel()
        for watch in self._watches:
            watch.cancel()
        going = GoingAway("the server is shutting down; try again when it is back")
        queues = [self._queues.pop(token) for token in list(self._queues)]
        for queue in queues:
            queue.stop(going)
        for connection in list(self.connections.values()):
            connection.outbox.control(Bye(problem=problem(going), retry_after=1.0))
            connection.close()
        await asyncio.gather(*(queue.ended() for queue in queues))
        with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
            await asyncio.wait_for(self._everyone_left(), GOODBYE_SECONDS)
        await self.store.close()

    async def _everyone_left(self) -> None:
        while self.connections:
            self._left.clear()
            await self._left.wait()

    # --- connections

    def admit(self, connection: Connection, hello: Hello) -> None:
        """A connection said hello: from here on it speaks for its boot; an older one does not (H7)."""
        self.start()
        author = connection.author
        connection.generation, replaced = self.registry.admit(author.boot, author.member)
        connection.heard = connection.pinged = self.clock()
        older = self.connections.get(author.boot)
        self.connections[author.boot] = connection
        if replaced is not None:
            self._tell(replaced.rooms, _Disconnected(author.boot))
        if older is not None:
            older.outbox.control(Bye(problem=problem(Replaced("another connection of the same process took over"))))
            older.close()

    def greet(self, connection: Connection, hello: Hello) -> None:
        """After the welcome: the rooms the boot held before."""
        for resume in {resume.room: resume for resume in hello.rooms}.values():
            self._enter(connection, resume.room, resume)

    async def receive(self, connection: Connection, message: Upstream) -> None:
        """Take in what a connection said; returns when it may say more."""
        author = connection.author
        if not self.registry.current(author.boot, connection.generation):
            return
        match message:
            case Join() | Resume():
                await connection.asking.acquire()
                self._enter(connection, message.room, message, connection.asking.release)
            case Leave():
                if message.room in self._queues:
                    self._queues[message.room].put(_FromClient(author, message, connection.generation))
                if message.state is None:
                    self.registry.leave(author.boot, message.room)
                    connection.outbox.forget(message.room)
            case Push() | Acquire() | Cancel() | Renew() | Release():
                queue = self._queues.get(message.room)
                if queue is None:
                    gone = NoSuchRoom("join the room before you write to it", room=message.room)
                    request = message.id if isinstance(message, Acquire) else None
                    connection.outbox.control(Failure(id=request, room=message.room, problem=problem(gone)))
                    return
                queue.put(_FromClient(author, message, connection.generation))
                if queue.backlog > BACKLOG:
                    connection.outbox.control(Slow(delay=SLOW_SECONDS))
                    await queue.caught_up()
            case Ping():
                connection.outbox.control(Pong(id=message.id))
            case _:
                raise AssertionError(f"{type(message).__name__} is answered at the door")
        await connection.outbox.room_made()

    def closed(self, connection: Connection, since: float | None = None) -> None:
        """The socket is gone, or counts as gone since a time by `clock`."""
        boot = connection.author.boot
        rooms = self.registry.drop(boot, connection.generation)
        self._tell(rooms, _Disconnected(boot, since))
        if rooms and connection.process is not None:
            watch = asyncio.get_running_loop().create_task(self._watch(connection.author, connection.process, rooms))
            self._watches.add(watch)
            watch.add_done_callback(self._watches.discard)
        if self.connections.get(boot) is connection:
            del self.connections[boot]
            self._left.set()

    def _tell(self, rooms: Iterable[str], what: _Disconnected | _Process | _Elsewhere) -> None:
        for token in rooms:
            if token in self._queues:
                self._queues[token].put(what)

    async def _watch(self, author: Author, process: Process, rooms: Iterable[str]) -> None:
        """Follow the process of a kernel whose socket is gone: until it is dead, or speaks again."""
        delay, told = FIRST_LOOK_SECONDS, False
        while not self.registry.connected(author.boot):
            alive = await process.alive()
            if not (alive and told):
                self._tell(rooms, _Process(author.boot, alive))
            if not alive:
                return
            told = True
            await asyncio.sleep(delay)
            delay = min(2 * delay, LAST_LOOK_SECONDS)
        self._tell(rooms, _Elsewhere(author.boot))

    def catch_up(self, connection: Connection, token: str) -> None:
        """A lagging connection has room again: the room tells it what it missed."""
        boot = connection.author.boot
        if self.registry.current(boot, connection.generation):
            self._queue(token).put(_CatchUp(boot))

    def _enter(
        self, connection: Connection, token: str, message: Join | Resume, over: Callable[[], None] = lambda: None
    ) -> None:
        request = message.id if isinstance(message, Join) else None
        try:
            check_token(token)
            self.registry.enter(connection.author.boot, token)
        except (InvalidToken, TooManyRooms) as error:
            connection.outbox.control(Failure(id=request, room=token, problem=problem(error)))
            over()
            return
        self._queue(token).put(_FromClient(connection.author, message, connection.generation, over))

    # --- requests from outside

    async def tokens(self) -> list[str]:
        """The rooms there are, sorted."""
        return await self.store.tokens()

    async def view(self, token: str, audience: Audience) -> RoomView:
        """One room as an audience may see it.

        Raises
        ------
        InvalidToken, NoSuchRoom
        """
        await self._exists(token)
        answer: asyncio.Future[RoomView] = asyncio.get_running_loop().create_future()
        self._queue(token).put(_Look(audience, answer))
        return await answer

    async def patch(self, token: str, author: Author, ops: Sequence[Op], base: Revision | None = None) -> int:
        """Write from outside, unless a state changed since `base`; the seq it took.

        Raises
        ------
        InvalidToken, NoSuchRoom, NoSuchState, NoSuchTrait, NoSuchPath, InvalidValue, TooLarge, RevisionMismatch, Forbidden
        """
        return await self._asked(token, lambda ticket: _Request(ticket, author, ops, base))

    async def reset(self, token: str, author: Author, states: Sequence[str] = ()) -> int:
        """Put states of a room, or all of them, back to their defaults; the seq it took, or that of now when nothing differs.

        Raises
        ------
        InvalidToken, NoSuchRoom, NoSuchState, Forbidden
        """
        return await self._asked(token, lambda ticket: _Reset(ticket, author, states))

    async def break_lock(self, token: str, author: Author, lock: LockName) -> int:
        """Take a lock from whoever holds it; the seq of the room then.

        Raises
        ------
        InvalidToken, NoSuchRoom, Forbidden
        """
        return await self._asked(token, lambda ticket: _Break(ticket, author, lock))

    async def _asked(self, token: str, request: Callable[[int], _Request | _Reset | _Break]) -> int:
        await self._exists(token)
        ticket = next(self._tickets)
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answers[ticket] = answer
        self._queue(token).put(request(ticket))
        try:
            return await answer
        finally:
            del self._answers[ticket]

    async def delete(self, token: str) -> None:
        """End a room: its members are told and become private again; only a new link makes another.

        Raises
        ------
        InvalidToken, NoSuchRoom, StoreFailed
        """
        await self._exists(token)
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue(token).put(_Delete(answer))
        await answer

    def left(self, token: str, boots: Sequence[str]) -> None:
        """These boots do not hold the room any more."""
        for boot in boots:
            self.registry.leave(boot, token)
            if boot in self.connections:
                self.connections[boot].outbox.forget(token)

    async def _exists(self, token: str) -> None:
        check_token(token)
        if await self.store.load(token) is None:
            raise NoSuchRoom(f"there is no room {token!r}; a kernel or script makes it by linking to it", room=token)

    def answer(self, ticket: int, outcome: int | SharedWidgetsError) -> None:
        """Carry out an `Answer`."""
        future = self._answers.get(ticket)
        if future is None or future.done():
            return
        if isinstance(outcome, SharedWidgetsError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    # --- rooms

    def now(self) -> Now:
        """The time of a decision."""
        return Now(self.clock(), self.wall())

    def emptied(self, token: str, *, worthless: bool) -> None:
        """Nobody is in a room: its time runs; one that never held anything is let go at once."""
        if worthless:
            self._let_go(token)
        else:
            self.registry.emptied(token, self.clock())

    def _queue(self, token: str) -> RoomQueue:
        queue = self._queues.get(token)
        if queue is None:
            queue = self._queues[token] = RoomQueue(token, self)
        return queue

    async def _keep_time(self) -> None:
        while True:
            now = self.clock()
            due = [queue.deadline - now for queue in self._queues.values() if queue.deadline is not None]
            rest = [1.0, self.limits.away_seconds / 4, self.limits.heartbeat_seconds / 4]
            pause = min([*rest, *(seconds for seconds in due if seconds > 0)])
            self._look_due = time.monotonic() + pause
            await asyncio.sleep(pause)
            self._stalled += self._late()
            self._look_due = math.inf
            now = self.clock()
            for queue in list(self._queues.values()):
                queue.look_at_clock(now)
            for token in self.registry.expired(now):
                self._expire(token)
            self.tombstones.forget(now)
            for connection in list(self.connections.values()):
                self._heartbeat(connection, now)

    def _let_go(self, token: str) -> None:
        queue = self._queues.pop(token, None)
        if queue is not None:
            queue.stop(NoSuchRoom(f"there is no room {token!r} any more", room=token))

    def _expire(self, token: str) -> None:
        """End a room nobody is in, by its own queue: whoever joins before the store is done comes after it, or in time."""
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue(token).put(_Delete(answer, if_idle=True))

        def look(done: asyncio.Future[None]) -> None:
            if not done.cancelled() and isinstance(done.exception(), StoreFailed):
                self.registry.emptied(token, self.clock())

        answer.add_done_callback(look)

    def _heartbeat(self, connection: Connection, now: float) -> None:
        silent = now - connection.heard
        if silent > self.limits.dead_seconds:
            connection.outbox.control(Bye(problem=problem(Silent(f"nothing was heard for {silent:.0f} s"))))
            connection.close()
            # Its socket may take long to notice. How late this look came is not added to the time its member may be away.
            self.closed(connection, connection.heard + self.limits.dead_seconds)
        elif silent > self.limits.heartbeat_seconds and now - connection.pinged > self.limits.heartbeat_seconds:
            connection.pinged = now
            connection.outbox.control(Ping(id=0))


class RoomQueue:
    """One room and the only task that touches it."""

    def __init__(self, token: str, manager: RoomManager) -> None:
        self.token = token
        self._manager = manager
        self._inputs: deque[_Input] = deque()
        self._wake = asyncio.Event()
        self._short = asyncio.Event()
        # When something is due by itself.
        self.deadline: float | None = None
        self._failures = 0
        self._run = _Run()
        self._readers: dict[str, Audience] = {}
        # Which connection of a boot this room heard from last.
        self._speaks: dict[str, int] = {}
        # What is decided and not told yet.
        self._window: list[_Input] = []
        self._task = asyncio.get_running_loop().create_task(self._work())

    @property
    def backlog(self) -> int:
        """Inputs that wait."""
        return len(self._inputs)

    def put(self, item: _Input) -> None:
        """Queue an input; it is decided in the order of putting."""
        self._inputs.append(item)
        self._wake.set()

    async def caught_up(self) -> None:
        """Wait until the backlog is short again."""
        self._short.clear()
        await self._short.wait()

    def look_at_clock(self, now: float) -> None:
        """Wake the task when something is due."""
        if self.deadline is not None and self.deadline <= now:
            self._wake.set()

    def stop(self, why: SharedWidgetsError) -> None:
        """End the task; what waits is not decided, and who waits for an answer is told `why`."""
        self._task.cancel()
        for item in (*self._window, *self._inputs):
            match item:
                case _FromClient():
                    item.over()
                case _Request(ticket=ticket) | _Reset(ticket=ticket) | _Break(ticket=ticket):
                    self._manager.answer(ticket, why)
                case _Look(answer=answer) if not answer.done():
                    answer.set_exception(why)
                case _Delete(answer=answer) if not answer.done():
                    answer.set_exception(why)
                case _:
                    pass
        self._short.set()

    async def ended(self) -> None:
        """Wait until the task is no more."""
        await asyncio.wait([self._task])

    async def _work(self) -> None:
        room = await self._load()
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._inputs or self._due():
                effects: list[Effect | _Show | _Speaks] = []
                batch = [self._inputs.popleft() for _ in range(min(BATCH, len(self._inputs)))]
                self._window = [*batch]
                # What cannot be decided with the rest ends the window: a deletion, or an input that breaks the room.
                last: _Input | None = None
                for count, item in enumerate(batch, 1):
                    try:
                        if isinstance(item, _FromClient):
                            effects.append(_Speaks(item.author.boot, item.generation))
                        if not isinstance(item, _Delete):
                            effects += self._decide(room, item)
                            continue
                    except Exception:
                        log.exception("%r: deciding %s failed; the room is loaded again", self.token, type(item).__name__)
                    last = item
                    self._inputs.extendleft(reversed(batch[count:]))
                    del batch[count - 1 :]
                    break
                if last is None and self._due():
                    effects += room.tick(self._manager.now())
                if await self._append(room, effects):
                    for effect in effects:
                        self._perform(room, effect)
                    self._flush(room)
                    for item in batch:
                        if isinstance(item, _FromClient):
                            item.over()
                else:
                    room = await self._recover(room, batch, effects)
                if isinstance(last, _Delete):
                    room = await self._deleted(room, last)
                elif last is not None:
                    room = await self._without(room, last)
                self._window = []
                self.deadline = room.next_deadline()
                # Whoever woke in this turn of the loop goes into the next window.
                await asyncio.sleep(0)
            self._short.set()
            if room.idle:
                self._manager.emptied(self.token, worthless=room.seq == 0)

    def _due(self) -> bool:
        return self.deadline is not None and self.deadline <= self._manager.clock()

    def _decide(
        self, room: Room, item: _FromClient | _Disconnected | _Process | _Elsewhere | _CatchUp | _Asked
    ) -> Sequence[Effect | _Show | _Speaks]:
        now = self._manager.now()
        match item:
            case _FromClient():
                return room.receive(item.author, item.message, now)
            case _Disconnected():
                effects = room.disconnect(item.boot, now, item.since)
                if not effects:
                    self._speaks.pop(item.boot, None)
                return effects
            case _Process():
                return room.process(item.boot, item.alive, now)
            case _Elsewhere():
                return room.elsewhere(item.boot, now)
            case _CatchUp():
                connection = self._manager.connections.get(item.boot)
                cursor = connection.outbox.cursors.get(self.token) if connection else None
                if connection is None or cursor is None:
                    return []
                author = connection.author
                answer = room.catch_up(item.boot, author.audience, cursor.incarnation, cursor.epoch, cursor.seq)
                return [Send(item.boot, answer)]
            case _Request():
                return room.request(item.ticket, item.author, item.ops, item.base, now)
            case _Reset():
                return room.reset(item.ticket, item.author, item.states, now)
            case _Break():
                return room.break_lock(item.ticket, item.author, item.lock, now)
            case _Look():
                states = {name: state.image(frontend=item.audience == "frontend") for name, state in room.states.items()}
                view = RoomView(self.token, room.incarnation, room.epoch, room.seq, states, room.members, room.held_locks)
                return [_Show(item.answer, view)]

    async def _append(self, room: Room, effects: Sequence[Effect | _Show | _Speaks]) -> bool:
        """Write down what was decided; whether the store did."""
        entries = [item.entry for item in effects if isinstance(item, Record) and item.entry is not None]
        marks: dict[str, Mark | None] = {}
        for item in effects:
            if isinstance(item, Record) and item.boot and item.mark:
                marks[item.boot] = item.mark
            elif isinstance(item, Forget):
                marks.update(dict.fromkeys(item.boots))
        if entries or marks:
            about_locks = any(isinstance(op, (Granted, Freed)) for entry in entries for op in entry.ops)
            locks = room.locks.image() if about_locks else None
            batch = Batch(self.token, room.incarnation, tuple(room.epochs), entries, locks)
            try:
                await self._manager.store.append(batch, marks, room.seq - len(entries))
            except Exception:
                self._failures += 1
                log.exception("the store refused to append to %r; loading the room again", self.token)
                return False
            self._failures = 0
        return True

    def _perform(self, room: Room, effect: Effect | _Show | _Speaks) -> None:
        match effect:
            case Record():
                self._run.add(effect)
            case Send(boot=boot, message=message):
                if not _is_verdict(message):
                    self._flush(room)
                self._send(boot, message)
                if isinstance(message, (Failure, Bye)) and boot not in self._readers:
                    # Who was not let in holds no room.
                    self._manager.registry.leave(boot, self.token)
            case Forget():
                pass
            case Attach():
                self._flush(room)
                self._readers[effect.boot] = effect.audience
                if not self._manager.registry.hold(effect.boot, self.token):
                    # It went before it was let in, and nobody told the room.
                    self.put(_Disconnected(effect.boot))
            case Detach():
                self._flush(room)
                self._readers.pop(effect.boot, None)
                self._speaks.pop(effect.boot, None)
            case Tell():
                for boot in self._readers:
                    if boot != effect.but:
                        self._send(boot, effect.message)
            case Answer():
                self._manager.answer(effect.ticket, effect.outcome)
            case _Speaks():
                if self._speaks.get(effect.boot) != effect.generation:
                    # What was decided so far is for the connection before.
                    self._flush(room)
                    self._speaks[effect.boot] = effect.generation
            case _Show():
                if not effect.answer.done():
                    effect.answer.set_result(effect.view)

    def _send(self, boot: str, message: Downstream) -> None:
        connection = self._connection(boot)
        if connection is not None:
            connection.outbox.control(message)

    def _connection(self, boot: str) -> Connection | None:
        """The boot's connection, when this room has heard from it: a newer one first gets the answer to its resume."""
        connection = self._manager.connections.get(boot)
        if connection is None or connection.generation != self._speaks.get(boot):
            return None
        return connection

    def _flush(self, room: Room) -> None:
        """Send the entries decided so far: one frame, encoded once per audience."""
        run, self._run = self._run, _Run()
        if not run.entries:
            return
        frames: dict[Audience, tuple[Entries, codec.Encoded]] = {}
        for boot, audience in self._readers.items():
            connection = self._connection(boot)
            if connection is None:
                continue
            if audience not in frames:
                message = run.message(self.token, room.epoch, audience)
                frames[audience] = (message, codec.encode_shared(message))
            connection.outbox.entries(*frames[audience], run.decided.get(boot, 0))

    async def _load(self) -> Room:
        """The room from the store; tried until the store answers."""
        while True:
            try:
                image = await self._manager.store.load(self.token)
            except Exception:
                self._failures += 1
                log.exception("the store could not load %r", self.token)
                await self._back_off()
                continue
            return Room(
                self.token,
                incarnation=uuid.uuid4().hex,
                epoch=uuid.uuid4().hex,
                limits=self._manager.limits,
                image=image,
                now=self._manager.clock(),
                buried=self._manager.tombstones,
            )

    async def _recover(self, room: Room, batch: Sequence[_Input], effects: Sequence[Effect | _Show | _Speaks]) -> Room:
        """The store is the truth: start again from it under a new epoch, and nobody hears of what was decided (H9).

        Pushes come again from their authors, who are asked to; whatever else was decided is decided once more, and so are the
        pushes of those who came in this window, behind their coming.
        """
        told = self._told(batch)
        fresh = await self._reloaded(room, told)
        written = (fresh.incarnation, fresh.seq) == (room.incarnation, room.seq)
        failed = StoreFailed("the room could not be written down; nothing was changed, try again", room=self.token)
        for effect in effects:
            if isinstance(effect, Answer):
                self._manager.answer(effect.ticket, effect.outcome if written else failed)
        await self._back_off()
        again: list[_Input] = []
        came: set[str] = set()
        for item in batch:
            if isinstance(item, _FromClient):
                boot, is_push = item.author.boot, isinstance(item.message, Push)
                if isinstance(item.message, (Join, Resume)):
                    came.add(boot)
                if is_push and (boot in told or boot not in came):
                    continue
            if not isinstance(item, (_Request, _Reset, _Break)):
                again.append(item)
        self._inputs.extendleft(reversed(again))
        return fresh

    def _told(self, batch: Sequence[_Input]) -> set[str]:
        """The boots that are in and stay so: they can be told what was lost.

        One that went in it, to come back on another connection perhaps, is brought in by its own words, decided once more.
        """
        return self._readers.keys() - {item.boot for item in batch if isinstance(item, _Disconnected)}

    async def _without(self, room: Room, broken: _Input) -> Room:
        """An input broke the room's rules for itself, which is a bug: go on from the store, and refuse the input for good."""
        fresh = await self._reloaded(room, self._readers)
        error = SharedWidgetsError("the server failed on this; tell its operator to look into the log", room=self.token)
        effects: Sequence[Effect] = []
        match broken:
            case _FromClient(author=author, message=Push() as push):
                effects = fresh.refuse(author, push, error, self._manager.now())
            case _FromClient(author=author, message=message):
                request = message.id if isinstance(message, (Join, Acquire)) else None
                effects = [Send(author.boot, Failure(id=request, room=self.token, problem=problem(error)))]
                broken.over()
            case _Request(ticket=ticket) | _Reset(ticket=ticket) | _Break(ticket=ticket):
                effects = [Answer(ticket, error)]
            case _Look(answer=answer) if not answer.done():
                answer.set_exception(error)
            case _:
                pass
        if await self._append(fresh, effects):
            for effect in effects:
                self._perform(fresh, effect)
        return fresh

    async def _deleted(self, room: Room, item: _Delete) -> Room:
        """Delete in the store first, then let everyone go; a new room of the token begins empty."""
        if item.if_idle and not room.idle:
            if not item.answer.done():
                item.answer.set_result(None)
            return room
        try:
            await self._manager.store.delete(self.token)
        except Exception:
            log.exception("the store could not delete %r", self.token)
            if not item.answer.done():
                item.answer.set_exception(StoreFailed("the room could not be deleted; nothing was changed", room=self.token))
            return room
        if not item.if_idle:
            # A room whose time was over may be made again by who was away for longer; one that was deleted may not.
            for name in room.names:
                self._manager.tombstones.bury(name, self._manager.clock())
        here = list(self._readers)
        for effect in room.delete():
            self._perform(room, effect)
        self._manager.left(self.token, here)
        if not item.answer.done():
            item.answer.set_result(None)
        return await self._load()

    async def _reloaded(self, room: Room, told: Iterable[str]) -> Room:
        """The room as the store has it, under a new epoch, with everyone who is here brought to it."""
        fresh = await self._load()
        authors = fresh.adopt(room, told, self._manager.now())
        self._run = _Run()
        self._readers = {author.boot: author.audience for author in authors}
        for effect in fresh.recovered(authors):
            self._perform(fresh, effect)
        return fresh

    async def _back_off(self) -> None:
        if self._failures >= STORE_TRIES:
            log.error("%r waits for its store; it is tried every %s s", self.token, STORE_RETRY_SECONDS)
            await asyncio.sleep(STORE_RETRY_SECONDS)


@dataclass
class _Run:
    """Entries decided since the last frame went out."""

    entries: list[tuple[Entry, Entry | None]] = field(default_factory=list)
    decided: dict[str, int] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        if record.entry is not None:
            self.entries.append((record.entry, record.public))
            if record.boot is not None and record.mark is not None:
                self.decided[record.boot] = record.mark.n

    def message(self, token: str, epoch: str, audience: Audience) -> Entries:
        shown = [public if audience == "frontend" else entry for entry, public in self.entries]
        return Entries(
            room=token,
            epoch=epoch,
            prev=self.entries[0][0].seq - 1,
            last=self.entries[-1][0].seq,
            entries=tuple(entry for entry in shown if entry is not None),
        )


def _is_verdict(message: Downstream) -> bool:
    """What says nothing about a seq need not wait for the frames before it."""
    return isinstance(message, (Nack, Resend, Failure))
