"""One socket = one connection: decode at the door, hand to the manager, write what the outbox holds. Decides nothing."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from jupyter_server.base.handlers import JupyterHandler
from jupyter_server.base.websocket import WebSocketMixin
from tornado import web
from tornado.iostream import StreamClosedError
from tornado.websocket import WebSocketClosedError, WebSocketHandler

from sharedwidgets.core import codec
from sharedwidgets.core.codec import Frame
from sharedwidgets.core.protocol import (
    PROTOCOL_VERSION,
    SUBPROTOCOL,
    Audience,
    Bye,
    Hello,
    Kind,
    Limits,
    Member,
    Pong,
    Welcome,
)
from sharedwidgets.core.room import Author, problem
from sharedwidgets.errors import (
    Forbidden,
    SharedWidgetsError,
    Silent,
    TooLarge,
    Unexpected,
    UnsupportedProtocol,
)
from sharedwidgets_server.auth import CredentialMixin, Keys
from sharedwidgets_server.manager import Connection, RoomManager
from sharedwidgets_server.outbox import Outbox
from sharedwidgets_server.processes import process_of

# Close code for a peer that broke the protocol; the Bye before it says how.
BROKE_PROTOCOL = 4400
ENDED = 4000
# Beyond so many times the limit Tornado ends the connection before the frame is read whole, without our words.
HARD_STOP = 4
GOODBYE_SECONDS = 1.0


class RoomsSocket(CredentialMixin, WebSocketMixin, WebSocketHandler, JupyterHandler):
    """``sharedwidgets/ws``."""

    # The mixin's pings are counted in milliseconds and shadow tornado's, counted in seconds; the protocol has its own.
    ping_interval = 0

    def initialize(self, manager: RoomManager, keys: Keys, owner: str, version: str) -> None:
        """Take what the route brings."""
        self.manager = manager
        self.keys = keys
        self.owner = owner
        self.version = version
        self._connection: Connection | None = None
        self._writer: asyncio.Task[None] | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._assembler = codec.Assembler(self.limits.hello_bytes)
        self._may_write = False
        # Whether a message has begun to come and is not whole yet; its time runs from its first fragment.
        self._fragmented = False
        self._refused = False

    @property
    def limits(self) -> Limits:
        """The numbers clients are held to."""
        return self.manager.limits

    @property
    def max_message_size(self) -> int:
        """Tornado closes the socket on a larger frame; up to here a too large one is answered."""
        return HARD_STOP * self.limits.frame_bytes

    def set_default_headers(self) -> None:
        """A socket has no use for the headers of a page."""

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Ours, when it is offered."""
        return SUBPROTOCOL if SUBPROTOCOL in subprotocols else None

    async def get(self, *args: Any, **kwargs: Any) -> None:
        """Ask who it is and what it may do, before the upgrade."""
        if self.current_user is None:
            raise web.HTTPError(403)
        if not await self.may("read"):
            raise web.HTTPError(403, "not authorized to read 'sharedwidgets'")
        self._may_write = await self.may("write")
        await super().get(*args, **kwargs)

    def open(self, *args: Any, **kwargs: Any) -> None:
        """Give the peer its time to say hello."""
        super().open(*args, **kwargs)
        self.set_nodelay(True)
        self._wait(self.limits.hello_seconds, "no hello came in time")

    async def on_message(self, frame: Frame) -> None:
        """Take in one frame; the next is read when this is done, which is the back-pressure."""
        if self._refused:
            # Tornado hands over what was sent before our close was heard; it must not act.
            return
        try:
            self._measure(frame)
            whole = self._assembler.feed(frame)
            if whole is None:
                if not self._fragmented:
                    self._fragmented = True
                    self._wait(self.limits.hello_seconds, "the rest of a fragmented message did not come in time")
                if self._connection is not None:
                    self._connection.heard = self.manager.clock()
                return
            self._fragmented = False
            message = codec.decode_upstream(whole)
            if self._connection is None:
                if not isinstance(message, Hello):
                    raise Unexpected(f"{_tag(message)} came before hello", expected="hello")
                self._settled()
                self._hello(message)
                return
            self._settled()
            self._connection.heard = self.manager.clock()
            match message:
                case Hello():
                    raise Unexpected("hello came twice on one connection", expected="no second hello")
                case Pong():
                    pass
                case _:
                    await self.manager.receive(self._connection, message)
        except SharedWidgetsError as error:
            await self._refuse(error)

    def on_close(self) -> None:
        """The socket is gone; the member may come back."""
        self._settled()
        if self._writer is not None:
            self._writer.cancel()
        if self._connection is not None:
            self._connection.outbox.close()
            self.manager.closed(self._connection)

    def _measure(self, frame: Frame) -> None:
        limit = self.limits.frame_bytes if self._connection is not None else self.limits.hello_bytes
        size = len(frame.encode("utf-8", "surrogatepass")) if isinstance(frame, str) else len(frame)
        if size > limit:
            raise TooLarge(f"a frame may have {limit} bytes here, this one has {size}", expected=f"≤ {limit} bytes")

    def _hello(self, hello: Hello) -> None:
        if hello.protocol != PROTOCOL_VERSION:
            raise UnsupportedProtocol(
                f"this server speaks protocol {PROTOCOL_VERSION}, the client {hello.protocol}; "
                "install the same release of sharedwidgets in both environments",
                expected=str(PROTOCOL_VERSION),
            )
        audience: Audience = "frontend" if self.is_frontend else "kernel"
        kind = self._kind(hello)
        member, secret, user = self._member(hello, kind)
        author = Author(
            boot=hello.boot,
            member=Member(
                id=member,
                kind=kind,
                user=user,
                kernel_id=self._kernel_id(hello) if kind == "kernel" else None,
                name=hello.name,
                since=self.manager.wall(),
            ),
            audience=audience,
            may_write=self._may_write,
            origin=kind,
        )
        owner = self.manager.connections.get(hello.boot)
        if owner is not None and owner.author.member.id != member:
            raise Forbidden("this boot id belongs to another member; make a new one", expected="a fresh boot id")
        process = process_of(self.kernel_manager, author.member.kernel_id, hello.pid)
        connection = Connection(author, 0, self._outbox(), self._end, process)
        self.manager.admit(connection, hello)
        self._connection = connection
        self._assembler = codec.Assembler(self.limits.push_bytes)
        connection.outbox.control(
            Welcome(
                protocol=PROTOCOL_VERSION,
                server=self.keys.server_id,
                version=self.version,
                member=member,
                secret=secret,
                audience=audience,
                user=user,
                may_write=self._may_write,
                limits=self.limits,
            )
        )
        self.manager.greet(connection, hello)
        self._writer = asyncio.get_running_loop().create_task(self._write(connection))

    def _kind(self, hello: Hello) -> Kind:
        """A page is a page whatever it says of itself; a script may not call itself one either."""
        if self.is_frontend:
            return "frontend"
        return "script" if hello.kind == "frontend" else hello.kind

    def _kernel_id(self, hello: Hello) -> str | None:
        """A kernel id is a claim; it counts when this server runs that kernel."""
        return hello.kernel_id if hello.kernel_id in self.kernel_manager.list_kernel_ids() else None

    def _member(self, hello: Hello, kind: Kind) -> tuple[str, str, str]:
        """Member id, secret and user: those it had before when its secret proves it, or new ones.

        A page is whoever is logged in now. A kernel or script keeps the user of its first welcome, since every request with a
        token is a new anonymous user.
        """
        user: str = self.current_user.username
        if hello.member and hello.secret:
            before = self.keys.member_user(hello.secret, hello.member, kind)
            if before is not None and (kind != "frontend" or before == user):
                return hello.member, hello.secret, before
        member = uuid.uuid4().hex
        return member, self.keys.member_secret(member, kind, user), user

    def _outbox(self) -> Outbox:
        return Outbox(self.limits, self._send_frame, self._caught_short, self.manager.clock)

    def _caught_short(self, token: str) -> None:
        if self._connection is not None:
            self.manager.catch_up(self._connection, token)

    async def _send_frame(self, frame: Frame) -> None:
        await self.write_message(frame, binary=isinstance(frame, bytes))

    async def _write(self, connection: Connection) -> None:
        try:
            await connection.outbox.run()
        except (WebSocketClosedError, StreamClosedError):
            return
        self.close(ENDED)

    def _end(self) -> None:
        """Write what waits, the Bye last, and close; a peer that does not read is not waited for."""
        if self._connection is not None:
            self._connection.outbox.finish()
        asyncio.get_running_loop().call_later(GOODBYE_SECONDS, self.close, ENDED)

    async def _refuse(self, error: SharedWidgetsError) -> None:
        """The peer broke a rule of the wire: say which, and end the connection."""
        self._refused = True
        self.log.warning("sharedwidgets: a client was refused: %s", error)
        bye = Bye(problem=problem(error))
        if self._connection is not None:
            self._connection.outbox.control(bye)
            self._end()
            return
        try:
            await self._send_frame(codec.encode(bye).frame())
        except (WebSocketClosedError, StreamClosedError):
            return
        self.close(BROKE_PROTOCOL)

    def _wait(self, seconds: float, what: str) -> None:
        self._settled()
        loop = asyncio.get_running_loop()
        self._patience = loop.call_later(seconds, lambda: loop.create_task(self._refuse(Silent(f"{what} ({seconds:g} s)"))))

    def _settled(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def _tag(message: object) -> str:
    return str(type(message).__struct_config__.tag)  # type: ignore[attr-defined]
