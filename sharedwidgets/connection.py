"""The process's one background thread and its one socket to a server; moves bytes and feeds replicas, knows no merge rules.

`Connection.lock` guards every replica of it. It is a leaf: nothing waits, and no user code runs, while it is held.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import logging
import os
import random
import sys
import threading
import uuid
from collections import deque
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from math import inf
from typing import TYPE_CHECKING, Literal, TypeAlias

from sharedwidgets import causes, discovery, host
from sharedwidgets.core import codec, delta
from sharedwidgets.core.delta import States
from sharedwidgets.core.protocol import (
    PROTOCOL_VERSION,
    SUBPROTOCOL,
    Applied,
    Bye,
    Downstream,
    Entries,
    Failure,
    Hello,
    Join,
    Joined,
    Leave,
    Limits,
    Members,
    Nack,
    Op,
    Ping,
    Pong,
    Push,
    Resend,
    Resume,
    Slow,
    Snapshot,
    Upstream,
    Waiting,
    Welcome,
)
from sharedwidgets.core.replica import Pending
from sharedwidgets.core.values import check_token
from sharedwidgets.discovery import Address
from sharedwidgets.errors import (
    Closed,
    Forbidden,
    Forked,
    LinkTimeout,
    NoSuchRoom,
    Overloaded,
    RoomGone,
    ServerNotFound,
    ServerRefused,
    SharedWidgetsError,
    TooLarge,
    UnsupportedProtocol,
    WrongThread,
    from_code,
)
from sharedwidgets.links import Listener, Request, Session, Wanted, Written

if TYPE_CHECKING:
    from tornado.websocket import WebSocketClientConnection


log = logging.getLogger("sharedwidgets")

LinkState: TypeAlias = Literal["connecting", "live", "offline", "closed"]

FIRST_DELAY, BASE_DELAY, MAX_DELAY = 0.1, 0.25, 10.0
OVERLOAD_SECONDS = 30.0
EXIT_SECONDS = 2.0
CONNECT_SECONDS = 5.0
# What a message may be before the welcome says how much a room holds.
WELCOME_BYTES = 1 << 20
# A room is measured by about what its values take; JSON may write six bytes for one of text.
WIRE_RATIO = 6
# A connection that held so long is taken for good: the next failure starts with the short delays.
HEALTHY_SECONDS = 5.0


class Connection:
    """A socket to one server, kept up by a daemon thread.

    Parameters
    ----------
    address : Address
        The server.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.boot = uuid.uuid4().hex
        self.pid = os.getpid()
        host.watch_cells()
        self.lock = host.leaf_lock()
        self.changed = threading.Condition(self.lock)
        self.limits = Limits()
        self.state: LinkState = "connecting"
        self.reason: SharedWidgetsError | None = None
        self.welcome: Welcome | None = None
        self._sessions: dict[str, Session] = {}
        self._requests: dict[int, Request] = {}
        self._ids = itertools.count(1)
        self._control: deque[Upstream] = deque()
        self._delay = 0.0
        self._heard = 0.0
        # When something was said last.
        self._spoke = 0.0
        self._said: SharedWidgetsError | None = None
        self._retry_now = False
        self._not_before = 0.0
        self._awake = False
        self._member: tuple[str, str] | None = None
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        # Who holds a lock has changed.
        self._granted = asyncio.Event()
        self._thread = threading.Thread(target=self._run_thread, name="sharedwidgets-io", daemon=True)
        self._thread.start()

    # --- for user threads

    def open(self, room: str) -> Session:
        """The session of a room; each `open` is answered by one `close_session`.

        Raises
        ------
        InvalidToken, Closed, Forked
        """
        check_token(room)
        self.check_usable()
        with self.lock:
            session = self._sessions.get(room)
            if session is None:
                session = self._sessions[room] = Session(room)
                session.replica.member = self.welcome.member if self.welcome is not None else ""
            session.users += 1
            session.leaving = False
            return session

    @property
    def idle(self) -> bool:
        """Whether nobody in this process has any use for the connection; it is not made anew then."""
        return not self._sessions and not self._requests

    def join(self, session: Session, state: str | None, wanted: Wanted | None = None, timeout: float = 10.0) -> None:
        """Enter the room, and link a state of it; returns when the replica holds it. Each link is answered by one `unlink`.

        Raises
        ------
        ServerNotFound, LinkTimeout, SchemaConflict, Forbidden, TooManyRooms, InvalidValue, WrongThread
            Nothing is joined then, also when the answer comes late.
        """
        self.check_may_wait()
        number, request = self._asked(session, state, wanted)
        try:
            request.future.result(timeout)
        except FutureTimeout:
            self._forget(number, request)
            raise self._too_late(session.room, timeout) from None
        except BaseException:
            self._forget(number, request)
            raise

    async def join_async(
        self, session: Session, state: str | None, wanted: Wanted | None = None, timeout: float = 10.0
    ) -> None:
        """`join` that lets the caller's loop run meanwhile."""
        number, request = self._asked(session, state, wanted)
        try:
            await asyncio.wait_for(asyncio.wrap_future(request.future), timeout)
        except (asyncio.TimeoutError, TimeoutError):
            self._forget(number, request)
            raise self._too_late(session.room, timeout) from None
        except BaseException:
            self._forget(number, request)
            raise

    def listen(self, session: Session, listener: Listener) -> None:
        """`listener` hears of the session's news from here on, and must only note them.

        Raises
        ------
        RoomGone
            The room has ended since it was joined.
        """
        with self.lock:
            if session.ended is not None:
                raise from_code(session.ended.code, session.ended.message, room=session.room)
            session.listeners.append(listener)

    def unlink(self, session: Session, state: str, listener: Listener | None = None) -> None:
        """One link less; the last one of a state unlinks it, the last user of the room leaves it. Never blocks."""
        with self.lock:
            if listener in session.listeners:
                session.listeners.remove(listener)
            self._unlinked(session, state)
            # Whoever waits for news of an object that is unlinked now has waited enough.
            self.changed.notify_all()
        self.close_session(session)

    @property
    def counted(self) -> bool:
        """Whether the server must still count this process among the living: it was heard less than `dead_seconds` ago.

        A process that was stopped, or its machine asleep, finds its socket open when it goes on, and in it what came before it
        was given up. Nothing in there says so.
        """
        return self.state == "live" and self._loop.time() - self._spoke < self.limits.dead_seconds

    def later(self, task: Callable[[], None], seconds: float = 0.0) -> None:
        """Run a task on the I/O thread; takes no lock, so that a finaliser may call it (H34)."""
        with contextlib.suppress(RuntimeError):
            if seconds:
                self._loop.call_soon_threadsafe(self._loop.call_later, seconds, task)
            else:
                self._loop.call_soon_threadsafe(task)

    def moment(self, session: Session) -> tuple[int, int]:
        """What `wait_for_news` compares with; asked before looking."""
        with self.lock:
            return session.replica.version, session.stirred

    def stir(self, session: Session) -> None:
        """Whoever waits looks again: what a hold kept back may be shown now."""
        with self.lock:
            session.stirred += 1
            self.changed.notify_all()

    def wait_for_news(
        self, session: Session, since: tuple[int, int], timeout: float | None, over: Callable[[], bool] = lambda: False
    ) -> bool:
        """Wait until there is something to look at that was not there at a `moment`.

        Returns
        -------
        bool
            False when it is not in time, the connection is closed, or `over` says that nobody wants to know any more.

        Raises
        ------
        Forked
        """
        self.check_not_forked()
        with self.lock:

            def ended() -> bool:
                return self.state == "closed" or over()

            def came() -> bool:
                return (session.replica.version, session.stirred) != since or ended()

            return self.changed.wait_for(came, timeout) and not ended()

    def close_session(self, session: Session) -> None:
        """One user of the room less; the last one leaves it, behind what it wrote. Never blocks."""
        with self.lock:
            session.users -= 1
            # At exit every room is left, whoever still uses it.
            session.leaving = session.leaving or session.users <= 0
        self._wake_up()

    def write(
        self,
        session: Session,
        ops: Sequence[Op],
        *,
        group: bool = False,
        depth: int | None = None,
        authors: Collection[Listener] = (),
    ) -> Written:
        """Write to the replica and send; shows here at once, is acknowledged later. Listeners but the authors hear of it.

        Without a `depth` it is a reaction to what the code that runs was told of.

        Raises
        ------
        InvalidValue, NoSuchState, NoSuchTrait, NoSuchPath, RoomGone
            Nothing is written.
        TooLarge
            Beyond what the server takes in one op or one push.
        ReactionTooDeep
            A chain of reactions that sets itself off again.
        Overloaded
            Too many writes waited for too long.
        Closed, Forked
        """
        self._admit(session, ops)
        with self.lock:
            reactions = self._reactions(session, ops, depth)
            news = session.replica.write(ops, group=group, depth=reactions, fences=self._fences(session, ops))
            version = session.replica.version
            listeners = [listener for listener in session.listeners if listener not in authors]
            self.changed.notify_all()
        self._wake_up()
        then = [listener(news) for listener in listeners]
        return Written(version, [task for task in then if task is not None])

    def ask(self, session: Session, ops: Sequence[Op], *, depth: int | None = None) -> tuple[Pending, Future[None]]:
        """Write something that shows nowhere before its verdict; the future is done when there is one.

        Raises
        ------
        InvalidValue, NoSuchState, NoSuchTrait, RoomGone, TooLarge, Overloaded, Closed, Forked
            Nothing is asked.
        """
        self._admit(session, ops)
        with self.lock:
            reactions = self._reactions(session, ops, depth)
            push = session.replica.ask(ops, depth=reactions, fences=self._fences(session, ops))
            future = session.verdicts.when(push)
        self._wake_up()
        return push, future

    def _admit(self, session: Session, ops: Sequence[Op]) -> None:
        """Wait until ops may be written, or raise what is wrong with them."""
        self.check_usable()
        self._check_size(session.room, ops)
        self.wait_for_room(session)

    def _reactions(self, session: Session, ops: Sequence[Op], depth: int | None) -> int:
        """How many reactions led to a write; by default what the code that runs reacts to says so."""
        reactions = causes.depth() if depth is None else depth
        if ops and reactions > self.limits.reactions:
            raise causes.too_deep(ops[0], reactions, self.limits.reactions, session.replica)
        return reactions

    def _fences(self, session: Session, ops: Sequence[Op]) -> dict[str, int]:
        if session.ended is not None:
            raise from_code(session.ended.code, session.ended.message, room=session.room)
        if self._sessions.get(session.room) is not session:
            raise Closed(f"{session.room!r} was left meanwhile; nothing was written", room=session.room)
        return session.leases.fences(ops, session.replica)

    def _check_size(self, room: str, ops: Sequence[Op]) -> None:
        """A push the server could only refuse by hanging up would be sent again for ever: it is refused here."""
        if len(ops) > self.limits.push_ops:
            raise TooLarge(
                f"{len(ops)} writes in one transaction or hold; one may have {self.limits.push_ops}: make several",
                room=room,
                state=ops[0].state,
                path=ops[0].path,
                expected=f"≤ {self.limits.push_ops} ops",
            )
        try:
            delta.check_ops(ops, self.limits.op_bytes)
        except TooLarge as error:
            raise error.located(room=room) from None
        # Only what could come near the limit is written out to be measured; JSON may take six bytes for one of text.
        if sum(delta.weight(op) for op in ops) * 6 >= self.limits.push_bytes:
            self._check_fits(room, Push(room=room, n=1, ops=tuple(ops)), ops[0].state, ops[0].path)

    def _check_fits(self, room: str, message: Push | Join, state: str | None, path: Sequence[str] = ()) -> None:
        """Raise `TooLarge` for a message the server would hang up on, each time it came again."""
        encoded = codec.encode(message)
        size = len(encoded.header) + sum(map(len, encoded.buffers)) + 4 * len(encoded.buffers) + 32
        if size > self.limits.push_bytes:
            raise TooLarge(
                f"these values for {room!r} take {size} bytes, one message may have {self.limits.push_bytes}; send several",
                room=room,
                state=state,
                path=path,
                expected=f"≤ {self.limits.push_bytes} bytes",
            )

    def flush(self, session: Session, timeout: float = 10.0) -> None:
        """Wait until every write made before this call has its verdict.

        Raises
        ------
        LinkTimeout, WrongThread, Forked
        """
        self.check_not_forked()
        self.check_may_wait()
        with self.lock:
            last = session.replica.newest()
            if not self.changed.wait_for(lambda: last is None or not session.replica.is_open(last), timeout):
                raise LinkTimeout(
                    f"{session.replica.undecided} writes to {session.room!r} have no answer after {timeout:g} s "
                    f"({self.state}); they are kept and sent again when the server answers",
                    room=session.room,
                )

    def check_may_wait(self) -> None:
        """Raise `WrongThread` where waiting would wait for itself."""
        if threading.current_thread() is self._thread:
            raise WrongThread("this runs on the thread that moves the bytes and may not wait for them; use another thread")

    def close(self, seconds: float = EXIT_SECONDS) -> dict[str, int]:
        """Leave every room behind what was written, and end the thread.

        Parameters
        ----------
        seconds : float
            How long to wait for the answers to what was written.

        Returns
        -------
        dict of str to int
            The rooms with writes that have no answer, and how many.
        """
        with self.lock:
            if self.state == "closed":
                return {}
            for session in self._sessions.values():
                session.leaving = True
        self._wake_up()
        with self.lock:
            self.changed.wait_for(lambda: self.state != "live" or not self._sessions, seconds)
            unanswered = {room: item.replica.undecided for room, item in self._sessions.items() if item.replica.undecided}
            self.state = "closed"
            for session in self._sessions.values():
                session.verdicts.closed()
            self.changed.notify_all()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake.set)
        self._thread.join(seconds)
        return unanswered

    # --- joining

    def _asked(self, session: Session, state: str | None, wanted: Wanted | None) -> tuple[int, Request]:
        self.check_usable()
        with self.lock:
            request = Request(session, state, wanted)
            number = next(self._ids)
            self._check_fits(session.room, request.join(number), state)
            if state in session.left:
                # It would end the link that is asked for now. To the server there was no gap, and there is none.
                session.left.remove(state)
                request.left = True
            self._requests[number] = request
            self._control.append(request.join(number))
            if self.state == "offline":
                # Who asks has only so much time, and the server may be back: the next try is made at once, and decides.
                self._retry_now = True
        self._wake_up()
        return number, request

    def _forget(self, number: int, request: Request) -> None:
        """Whoever asked is gone: a late answer finds nobody, and what it may have joined is left (H31)."""
        with self.lock:
            session = request.session
            asked = self._requests.pop(number, None) is not None or any(item is request for _, item in session.answered)
            session.answered = [(seq, item) for seq, item in session.answered if item is not request]
            if request.state is not None and request.held:
                # The answer came in the moment its asker gave up.
                self._unlinked(session, request.state)
            elif asked and request.state not in (None, *session.states):
                self._control.append(Leave(room=session.room, state=request.state))
        self._wake_up()

    def _unlinked(self, session: Session, state: str) -> None:
        session.links[state] -= 1
        if session.links[state] <= 0:
            session.states.pop(state, None)
            if self._sessions.get(session.room) is session:
                session.left.append(state)

    def _too_late(self, room: str, timeout: float) -> SharedWidgetsError:
        with self.lock:
            if self.state == "live":
                return LinkTimeout(f"{self.address.url} did not answer the join of {room!r} within {timeout:g} s", room=room)
            reason = self.reason
        if reason is None:
            reason = ServerNotFound(f"{self.address.url} does not answer. {discovery.HOW}")
        return ServerNotFound(f"No link to {room!r} within {timeout:g} s: {reason}", room=room)

    # --- back-pressure

    def wait_for_room(self, session: Session) -> None:
        """Wait while too many writes are unsent, holding nothing.

        Raises
        ------
        Overloaded, WrongThread
        """
        if session.replica.unsent < self.limits.unsent_pushes:
            return
        self.check_may_wait()
        with self.lock:
            if not self.changed.wait_for(lambda: session.replica.unsent < self.limits.unsent_pushes, OVERLOAD_SECONDS):
                raise Overloaded(
                    f"{session.replica.unsent} writes to {session.room!r} wait to be sent ({self.state}); write less often, "
                    "or put several writes into one transaction",
                    room=session.room,
                )

    def check_usable(self) -> None:
        """Raise `Forked` or `Closed` where a write could go nowhere."""
        self.check_not_forked()
        if self.state == "closed":
            raise Closed("the connection is closed; connect again")

    def check_not_forked(self) -> None:
        """Raise `Forked` in a child of the process that made the connection: its thread is not there (H7)."""
        if os.getpid() != self.pid:
            raise Forked("this object was linked before the process forked; link it again here")

    def wake(self) -> None:
        """There is something to say."""
        self._wake_up()

    def _wake_up(self) -> None:
        with self.lock:
            if self._awake:
                return
            self._awake = True
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._wake.set)

    # --- on the I/O thread

    def _run_thread(self) -> None:
        try:
            self._loop.run_until_complete(self._live())
        finally:
            self._loop.close()

    async def _live(self) -> None:
        # Loaded here, on the thread that needs it: a third of what importing this library would cost otherwise.
        from tornado.httpclient import HTTPClientError
        from tornado.websocket import WebSocketError

        failures = 0
        while self.state != "closed":
            await self._needed()
            began = self._loop.time()
            try:
                socket = await self._open_socket()
            except (OSError, ValueError, HTTPClientError, WebSocketError, RuntimeError) as error:
                # RuntimeError: the interpreter is on its way out and lends no thread to look up a name.
                self._offline(self._explained(error))
            else:
                self._offline(await self._talked(socket))
                if self._loop.time() - began > HEALTHY_SECONDS:
                    failures = 0
            await self._pause(failures)
            failures += 1
            self.address = discovery.again(self.address)

    async def _talked(self, socket: WebSocketClientConnection) -> SharedWidgetsError | None:
        """Talk until the socket closes; a bug of ours ends this conversation, and never the thread."""
        try:
            return await self._converse(socket)
        except Exception as error:
            log.exception("the conversation with %s failed", self.address.url)
            return SharedWidgetsError(f"the conversation with {self.address.url} failed: {error}")

    async def _needed(self) -> None:
        """Nobody is asked for ever on behalf of nobody: wait for somebody to want a room."""
        while self.state != "closed":
            with self.lock:
                self._awake = False
                self._forget_left()
                if not self.idle:
                    return
            await self._wake.wait()
            self._wake.clear()

    def _forget_left(self) -> None:
        """Rooms that were left while the server was away need no word to it."""
        for token, session in list(self._sessions.items()):
            if session.leaving and not session.replica.undecided:
                del self._sessions[token]

    async def _open_socket(self) -> WebSocketClientConnection:
        from tornado.httpclient import HTTPRequest
        from tornado.netutil import BlockingResolver
        from tornado.websocket import websocket_connect

        request = HTTPRequest(self.address.socket_url, headers=self.address.headers(), connect_timeout=CONNECT_SECONDS)
        socket = await websocket_connect(
            request,
            subprotocols=[SUBPROTOCOL],
            # Checked by us, as soon as the welcome has said how much there may be.
            max_message_size=1 << 31,
            # The default one asks a pool of threads, which refuses once the main thread has ended; other threads may go on.
            resolver=BlockingResolver(),
        )
        assert socket.protocol is not None
        socket.protocol.set_nodelay(True)
        return socket

    async def _converse(self, socket: WebSocketClientConnection) -> SharedWidgetsError | None:
        """Talk until the socket closes; why it did, when the server said so."""
        self._heard = self._spoke = self._loop.time()
        self._said = None
        writer = self._loop.create_task(self._write(socket))
        watcher = self._loop.create_task(self._watch(socket))
        keeper = self._loop.create_task(self._keep_leases())
        assembler = codec.Assembler(WELCOME_BYTES)
        writer.add_done_callback(lambda done: self._hang_up(socket, done))
        try:
            while True:
                frame = await socket.read_message()
                if frame is None:
                    break
                self._heard = self._loop.time()
                if self.welcome is not None:
                    assembler.limit = WIRE_RATIO * self.limits.room_bytes + WELCOME_BYTES
                whole = assembler.feed(frame)
                # After `close` the writer ends the conversation, behind its last word: what comes until then is not heard.
                if whole is not None and self.state != "closed":
                    self._receive(codec.decode_downstream(whole))
        except SharedWidgetsError as error:
            log.exception("the server at %s sent what this release does not understand", self.address.url)
            return error
        finally:
            beside = (writer, watcher, keeper)
            for task in beside:
                task.cancel()
            socket.close()
            # Whoever is cancelled is not at its end yet, and the loop may be closed soon.
            await asyncio.gather(*beside, return_exceptions=True)
            with self.lock:
                for session in self._sessions.values():
                    session.replica.disconnected()
                    session.leases.disconnected()
        return self._said

    def _hang_up(self, socket: WebSocketClientConnection, writer: asyncio.Task[None]) -> None:
        """Nothing will be said any more: a conversation of which only one half goes on would look alive for ever."""
        if not writer.cancelled() and writer.exception() is not None:
            log.error("nothing can be said to %s any more", self.address.url, exc_info=writer.exception())
            socket.close()

    async def _write(self, socket: WebSocketClientConnection) -> None:
        """Everything that goes out, in order: hello, requests, pushes, and a leave behind the pushes."""
        from tornado.websocket import WebSocketClosedError

        with contextlib.suppress(WebSocketClosedError):
            await self._send(socket, self._hello())
            while True:
                with self.lock:
                    self._awake = False
                    messages = self._due() if self.welcome is not None else []
                for message in messages:
                    await self._send(socket, message)
                if self.state == "closed":
                    socket.close()
                    return
                if self._delay:
                    await asyncio.sleep(self._delay)
                    self._delay = 0.0
                if not messages:
                    await self._wake.wait()
                    self._wake.clear()

    async def _send(self, socket: WebSocketClientConnection, message: Upstream) -> None:
        if self._loop.time() - self._spoke >= self.limits.dead_seconds:
            # The server has given this connection up, and asks in vain: a word now would only look like life.
            self._hang_up_now(socket)
            return
        for part in codec.fragments(codec.encode(message).frame(), self.limits.frame_bytes):
            await socket.write_message(part, binary=isinstance(part, bytes))
            self._spoke = self._loop.time()

    def _hello(self) -> Hello:
        """Who this is and where its replicas stand; whatever was asked and not answered is asked again."""
        with self.lock:
            self.welcome = None
            self._control.clear()
            self._forget_left()
            resumes: list[Resume] = []
            for session in self._sessions.values():
                session.resuming = session.replica.live
                # It comes back to what it links.
                session.left.clear()
                if session.resuming:
                    resumes.append(session.replica.position(session.states))
            for number, request in self._requests.items():
                self._control.append(request.join(number))
        fitting: list[Resume] = []
        size = 0
        for resume in resumes:
            size += len(codec.encode(resume).header)
            if size < self.limits.hello_bytes - 4096:
                fitting.append(resume)
            else:
                self._control.appendleft(resume)
        member, secret = self._member or (None, None)
        return Hello(
            protocol=PROTOCOL_VERSION,
            boot=self.boot,
            kind=host.kind(),
            member=member,
            secret=secret,
            name=host.title(),
            kernel_id=host.kernel_id(),
            pid=os.getpid(),
            rooms=tuple(fitting),
        )

    def _due(self) -> list[Upstream]:
        messages: list[Upstream] = [*self._control]
        self._control.clear()
        for token, session in list(self._sessions.items()):
            if not self._held_back(session):
                pushes = session.replica.take(self.limits.in_flight_pushes)
                messages += pushes
                if pushes:
                    # Who waits for room to write has it now, whenever the answers come.
                    self.changed.notify_all()
                messages += session.leases.due(session.replica, lambda: next(self._ids))
                if not session.replica.unsent:
                    messages += [Leave(room=token, state=state) for state in session.left]
                    session.left.clear()
            if session.leaving and not session.replica.undecided:
                messages.append(Leave(room=token))
                del self._sessions[token]
                self.changed.notify_all()
        return messages

    def _held_back(self, session: Session) -> bool:
        """Whether the room or a state of it may have to be made again first: a write would meet nothing there, for good."""
        brings_back = any(item.session is session and not item.links for item in self._requests.values())
        return session.resuming or brings_back

    def _receive(self, message: Downstream) -> None:
        match message:
            case Welcome():
                with self.lock:
                    self.welcome = message
                    self.limits = message.limits
                    self._member = (message.member, message.secret)
                    for session in self._sessions.values():
                        session.replica.member = message.member
                    self._turned("live", None)
                self._wake.set()
            case Snapshot() | Entries() | Nack() | Applied() | Resend() | Members() | Waiting():
                self._feed(message)
            case Joined():
                with self.lock:
                    request = self._requests.pop(message.id, None)
                    if request is not None:
                        request.session.answered.append((message.seq, request))
                        self._settle(request.session)
                self._wake.set()
            case Failure():
                self._failure(message)
            case Bye(room=None):
                self._said = from_code(message.problem.code, message.problem.message)
                self._not_before = self._loop.time() + (message.retry_after or 0.0)
                if self._member is None and isinstance(self._said, Forbidden):
                    # The welcome was lost with its socket: the server holds this boot for a member it made then.
                    self.boot = uuid.uuid4().hex
            case Bye():
                self._ended(message)
            case Slow():
                self._delay = message.delay
            case Ping():
                with self.lock:
                    self._control.append(Pong(id=message.id))
                self._wake.set()
            case Pong():
                pass

    def _feed(self, message: Snapshot | Entries | Nack | Applied | Resend | Members | Waiting) -> None:
        with self.lock:
            session = self._sessions.get(message.room)
            if session is None:
                return
            held = session.replica.states
            news = session.replica.receive(message)
            self._control.extend(news.send)
            if isinstance(message, (Snapshot, Entries)):
                session.resuming = False
            if isinstance(message, Snapshot):
                self._bring_back(session, [name for name in session.states if name not in session.replica.states], held)
            self._settle(session)
            session.leases.heard(session.replica, news, self._loop.time(), anew=isinstance(message, Snapshot))
            granted = news.locked and not session.leases.claims.idle
            more = bool(self._control or session.left) or session.replica.unsent > 0 or session.leaving
            more = more or not session.leases.claims.idle
            listeners = [*session.listeners]
            self.changed.notify_all()
        if more:
            self._wake.set()
        if granted:
            self._granted.set()
        for listener in listeners:
            listener(news)
        with self.lock:
            # Whoever waits for a verdict finds its news noted.
            session.verdicts.heard(session.replica)

    def _settle(self, session: Session) -> None:
        """Tell whoever waits for a join that the replica holds it now."""
        waiting: list[tuple[int, Request]] = []
        for seq, request in session.answered:
            early = not session.replica.live or session.replica.seq < seq
            # Whoever cancelled it is about to forget it.
            if early or request.future.cancelled() or not request.future.set_running_or_notify_cancel():
                waiting.append((seq, request))
                continue
            if request.state is not None and request.wanted is not None:
                session.states[request.state] = request.wanted
                session.links[request.state] += request.links
                request.held = request.links
            request.future.set_result(None)
        session.answered = waiting

    def _failure(self, message: Failure) -> None:
        problem = message.problem
        error = from_code(
            problem.code,
            problem.message,
            room=message.room,
            state=problem.state,
            path=problem.path,
            expected=problem.expected,
        )
        with self.lock:
            request = self._requests.pop(message.id, None) if message.id is not None else None
            if request is not None and request.left and request.state not in request.session.states:
                self._control.append(Leave(room=request.session.room, state=request.state))
            session = self._sessions.get(message.room or "")
            if session is not None and message.id is not None and session.leases.refused(message.id, problem):
                return
            if request is None and session is not None:
                session.resuming = False
                if isinstance(error, NoSuchRoom):
                    self._bring_back(session, list(session.states) or [None], session.replica.states)
        if request is not None:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(error)
        elif not isinstance(error, (NoSuchRoom, RoomGone)):
            log.warning("the server refused a request: %s", error)
        self._wake.set()

    def _bring_back(self, session: Session, states: Sequence[str | None], held: States) -> None:
        """The server lost the room, or this state of it: make it again from the last confirmed values held here.

        Each push that met no room says so: the first of these answers is acted on, not every one.
        """
        asked = {request.state for request in self._requests.values() if request.session is session and not request.links}
        for state in states:
            if state in asked:
                continue
            wanted = session.states.get(state) if state is not None else None
            if wanted is not None and state is not None and state in held:
                wanted = Wanted(wanted.schema, dict(held[state].values))
            number = next(self._ids)
            request = Request(session, state, wanted, links=False)
            request.future.add_done_callback(lambda done: self._came_back(session, done))
            self._requests[number] = request
            self._control.append(request.join(number))

    def _came_back(self, session: Session, done: Future[None]) -> None:
        error = done.exception()
        if error is not None:
            log.error("%r could not be joined again: %s", session.room, error)

    def _ended(self, message: Bye) -> None:
        """The room was deleted: what was not decided is refused, and nothing makes it again but a new link (H18)."""
        with self.lock:
            session = self._sessions.get(message.room or "")
            if session is None or message.incarnation not in ("", session.replica.incarnation):
                # Another room under this token, which was linked meanwhile, goes on.
                return
            del self._sessions[session.room]
            news = session.replica.abandon(message.problem)
            news.ended = session.ended = message.problem
            session.leases.ended(message.problem)
            session.verdicts.heard(session.replica)
            listeners = [*session.listeners]
            doomed = {number: item for number, item in self._requests.items() if item.session is session}
            for number in doomed:
                del self._requests[number]
            if doomed:
                # A late answer may make and join another room, on behalf of nobody (H31).
                self._control.append(Leave(room=session.room))
            waiting = [*doomed.values(), *(item for _, item in session.answered)]
            session.answered = []
            self.changed.notify_all()
        for request in waiting:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(from_code(message.problem.code, message.problem.message, room=session.room))
        self._wake.set()
        for listener in listeners:
            listener(news)

    def _offline(self, reason: SharedWidgetsError | None) -> None:
        with self.lock:
            self._turned("closed" if self.state == "closed" else "offline", reason)
            self.welcome = None
            doomed: list[Request] = []
            if reason is not None and _is_final(reason):
                doomed = [*self._requests.values()]
                self._requests.clear()
        for request in doomed:
            if request.future.set_running_or_notify_cancel():
                assert reason is not None
                request.future.set_exception(reason)

    def _turned(self, state: LinkState, reason: SharedWidgetsError | None) -> None:
        """Whoever waits for news of a room also waits for this."""
        self.state, self.reason = state, reason
        for session in self._sessions.values():
            session.stirred += 1
        self.changed.notify_all()

    async def _pause(self, failures: int) -> None:
        """0–100 ms first, then 250 ms doubled up to 10 s, with full jitter; asking for a join cuts it short."""
        ceiling = MAX_DELAY if self.reason is not None and _is_final(self.reason) else longest_pause(failures)
        until = max(self._loop.time(), self._not_before) + random.uniform(ceiling / 2 if failures else 0, ceiling)
        while self.state != "closed" and not self._retry_now and self._loop.time() < until:
            self._wake.clear()
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._wake.wait(), until - self._loop.time())
            with self.lock:
                self._awake = False
                self._forget_left()
                if self.idle:
                    break
        self._retry_now = False

    async def _keep_leases(self) -> None:
        """Renew what is held, for as long as whoever holds it lives."""
        while True:
            self._granted.clear()
            with self.lock:
                now = self._loop.time()
                pause = min(
                    (session.leases.next_look(now, self.limits.hold_seconds) for session in self._sessions.values()),
                    default=inf,
                )
            with contextlib.suppress(asyncio.TimeoutError, TimeoutError):
                await asyncio.wait_for(self._granted.wait(), None if pause == inf else pause)
                # How long a lock just granted lasts is counted first.
                continue
            with self.lock:
                for session in self._sessions.values():
                    self._control.extend(session.leases.renewals(self._loop.time(), self.limits.hold_seconds))
            # What somebody cannot give back any more is given back in the writer's turn.
            self._wake.set()

    async def _watch(self, socket: WebSocketClientConnection) -> None:
        """The server pings in silence; when even that stops, the connection is dead."""
        while True:
            # Before the welcome the numbers of the server are not known.
            await asyncio.sleep(self.limits.heartbeat_seconds / 2 if self.welcome else FIRST_DELAY)
            if self._loop.time() - self._heard > self.limits.dead_seconds:
                self._hang_up_now(socket)
                return

    def _hang_up_now(self, socket: WebSocketClientConnection) -> None:
        assert socket.protocol is not None
        # Tornado would wait five seconds more for the other side to say goodbye.
        stream = socket.protocol.stream
        socket.close()
        if stream is not None:
            stream.close()

    def _explained(self, error: Exception) -> SharedWidgetsError:
        from tornado.websocket import WebSocketError

        where, code = self.address.url, getattr(error, "code", None)
        if code in (401, 403):
            said = "refused this credential" if self.address.credential else "asks for a credential"
            return ServerRefused(f"{where} {said} (HTTP {code}). {discovery.CREDENTIALS}")
        if code in (302, 404, 405) or isinstance(error, WebSocketError):
            http = f" (HTTP {code})" if code else ""
            return ServerRefused(
                f"{where} answers, but not as a sharedwidgets server{http}: it is no base URL of a Jupyter server, or has no "
                f"extension, or something in between is in the way. {discovery.HOW}"
            )
        return ServerNotFound(f"{where} cannot be reached: {error}. {discovery.HOW}")


def longest_pause(failures: int) -> float:
    """Seconds to wait at most before the next try, after so many that failed since it last worked."""
    if failures == 0:
        return FIRST_DELAY
    # A server may be away for days: no float holds two to the power of that many tries.
    return min(MAX_DELAY, BASE_DELAY * 2.0 ** min(failures - 1, 30))


def _is_final(reason: SharedWidgetsError) -> bool:
    """Whether waiting for the server cannot mend it."""
    return isinstance(reason, (UnsupportedProtocol, ServerRefused))


_shared: dict[tuple[str, str], Connection] = {}
_shared_lock = threading.Lock()


def shared(address: Address) -> Connection:
    """The process's connection to a server; made on first use, and again in a forked child."""
    key = (address.url, address.credential)
    with _shared_lock:
        connection = _shared.get(key)
        if connection is None or connection.state == "closed":
            connection = _shared[key] = Connection(address)
        return connection


def _after_fork() -> None:
    """A forked child has no thread and owns no connection: whatever it links anew gets its own, under a new boot (H7)."""
    global _shared_lock
    _shared_lock = threading.Lock()
    _shared.clear()


def _at_exit() -> None:
    """Send what was written last and wait for the answers; name what has none (H10)."""
    for connection in list(_shared.values()):
        for room, count in connection.close().items():
            sys.stderr.write(f"sharedwidgets: {count} write(s) to {room!r} were not acknowledged by {connection.address.url}\n")


atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
