"""The REST interface: translate HTTP to a question to the manager and its answer back. Decides nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, TypeAlias, TypeVar

import msgspec
from jupyter_server.base.handlers import APIHandler
from tornado import web

from sharedwidgets.core import values
from sharedwidgets.core.delta import MAX_NAME
from sharedwidgets.core.protocol import Audience, LockName, Member, Op, Set, StateImage, of_users, shown
from sharedwidgets.core.room import Author, Revision
from sharedwidgets.errors import (
    Forbidden,
    GoingAway,
    InvalidToken,
    InvalidValue,
    Locked,
    Malformed,
    NoSuchPath,
    NoSuchRoom,
    NotFound,
    RevisionMismatch,
    SchemaConflict,
    SharedWidgetsError,
    StoreFailed,
    TooLarge,
)
from sharedwidgets_server.auth import CredentialMixin, Keys
from sharedwidgets_server.manager import RoomManager, RoomView

Params = ParamSpec("Params")
Handler = TypeVar("Handler", bound="RoomsHandler")

STATUS: list[tuple[type[SharedWidgetsError], int]] = [
    (Malformed, 400),
    (InvalidToken, 400),
    (Forbidden, 403),
    (NoSuchPath, 422),
    (NotFound, 404),
    (RevisionMismatch, 409),
    (Locked, 409),
    (SchemaConflict, 409),
    (TooLarge, 413),
    (InvalidValue, 422),
    (StoreFailed, 503),
    (GoingAway, 503),
]


def status_of(error: SharedWidgetsError) -> int:
    """The HTTP status an error travels under."""
    return next((status for kind, status in STATUS if isinstance(error, kind)), 500)


Method: TypeAlias = Callable[Concatenate[Handler, Params], Coroutine[Any, Any, None]]


def asks(action: str) -> Callable[[Method[Handler, Params]], Method[Handler, Params]]:
    """Mark a method with what the authorizer is asked; errors of ours become their status and a JSON body."""

    def decorate(method: Method[Handler, Params]) -> Method[Handler, Params]:
        @wraps(method)
        async def wrapped(self: Handler, /, *args: Params.args, **kwargs: Params.kwargs) -> None:
            try:
                if not await self.may(action):
                    raise Forbidden(f"you may not {action} 'sharedwidgets' on this server; ask its operator")
                await method(self, *args, **kwargs)
            except SharedWidgetsError as error:
                self.refuse(error)

        return wrapped

    return decorate


class RoomsHandler(CredentialMixin, APIHandler):
    """What the handlers of this extension share."""

    auth_resource = "sharedwidgets"

    def initialize(self, manager: RoomManager, keys: Keys, owner: str, version: str) -> None:
        """Take what the route brings."""
        self.manager = manager
        self.keys = keys
        self.owner = owner
        self.version = version

    @property
    def audience(self) -> Audience:
        """Whether kernel-only traits exist for the caller."""
        return "frontend" if self.is_frontend else "kernel"

    @property
    def author(self) -> Author:
        """The caller as a room sees it."""
        user = self.current_user.username
        member = Member(id=f"rest:{user}"[:64], kind="frontend" if self.is_frontend else "script", user=user)
        return Author(boot=member.id, member=member, audience=self.audience, may_write=True, origin="rest")

    def body(self) -> values.Value:
        """The JSON body; `Malformed` when it is none."""
        try:
            body = msgspec.json.decode(self.request.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Malformed(f"the body is not JSON: {error}") from None
        return values.unpack(body, None)

    def refuse(self, error: SharedWidgetsError) -> None:
        """Answer with an error as ``{code, message, state, trait, path, expected}``."""
        self.set_status(status_of(error))
        facts = {
            "code": error.code,
            "message": str(error),
            "state": error.state,
            "trait": error.trait,
            "path": list(error.path),
            "expected": error.expected,
        }
        self.answer(facts)

    def answer(self, body: object) -> None:
        """A JSON body."""
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(body))


class RoomListHandler(RoomsHandler):
    """``GET sharedwidgets/api/rooms``."""

    @web.authenticated
    @asks("read")
    async def get(self) -> None:
        """The rooms there are: token, seq, state names, number of members."""
        rooms = []
        for token in await self.manager.tokens():
            try:
                view = await self.manager.view(token, self.audience)
            except NoSuchRoom:
                # Deleted since it was listed.
                continue
            rooms.append({"token": token, "seq": view.seq, "states": of_users(view.states), "members": len(view.members)})
        self.answer({"rooms": rooms})


class RoomHandler(RoomsHandler):
    """``GET`` and ``DELETE sharedwidgets/api/rooms/{token}``."""

    _etag: str | None = None

    @web.authenticated
    @asks("read")
    async def get(self, token: str) -> None:
        """Values, members and seq of a room; the ETag is what ``If-Match`` takes."""
        view = await self.manager.view(token, self.audience)
        self._etag = etag(view)
        self.answer(
            {
                "token": view.token,
                "incarnation": view.incarnation,
                "epoch": view.epoch,
                "seq": view.seq,
                "states": {name: _state(view.states[name]) for name in of_users(view.states)},
                "locks": [msgspec.to_builtins(image) for image in view.locks],
                "members": [_member(shown(member)) for member in view.members],
            }
        )

    @web.authenticated
    @asks("write")
    async def delete(self, token: str) -> None:
        """End a room; its members become private again."""
        await self.manager.delete(token)
        self.set_status(204)
        self.finish()

    def check_etag_header(self) -> bool:
        """Never 304: the members are part of the answer and not of the revision."""
        return False

    def compute_etag(self) -> str | None:
        """The revision that was answered; Tornado would hash the body instead."""
        return self._etag


class ResetHandler(RoomsHandler):
    """``POST sharedwidgets/api/rooms/{token}/reset``."""

    @web.authenticated
    @asks("write")
    async def post(self, token: str) -> None:
        """Put the room, or the states the body names, back to the defaults: one entry like any other, nobody is dropped."""
        body = self.body() if self.request.body else {}
        names = body.get("states", []) if isinstance(body, dict) else None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise Malformed('the body is empty, or names states, such as {"states": ["Counter"]}', expected="object")
        seq = await self.manager.reset(token, self.author, [str(name) for name in names])
        self.answer({"seq": seq})


class LockHandler(RoomsHandler):
    """``DELETE sharedwidgets/api/rooms/{token}/locks/{name}``."""

    kind: Literal["state", "named"] = "named"

    @web.authenticated
    @asks("write")
    async def delete(self, token: str, name: str) -> None:
        """Break a lock: whoever holds it is fenced; nothing happens when nobody does."""
        if not 0 < len(name) <= MAX_NAME:
            raise InvalidValue(f"the name of a lock has 1 to {MAX_NAME} characters, not {len(name)}", room=token)
        await self.manager.break_lock(token, self.author, LockName(kind=self.kind, name=name))
        self.set_status(204)
        self.finish()


class StateLockHandler(LockHandler):
    """``DELETE sharedwidgets/api/rooms/{token}/states/{state}/lock``."""

    kind = "state"


class StateHandler(RoomsHandler):
    """``PATCH sharedwidgets/api/rooms/{token}/states/{state}``."""

    @web.authenticated
    @asks("write")
    async def patch(self, token: str, state: str) -> None:
        """Set traits from outside, all or nothing; every member sees it as one entry."""
        ops = self._ops(state)
        seq = await self.manager.patch(token, self.author, ops, self._base())
        self.answer({"seq": seq})

    def _ops(self, state: str) -> list[Op]:
        plain = self.body()
        if not isinstance(plain, dict) or not plain:
            raise Malformed('the body must be an object of traits and values, such as {"count": 3}', expected="object")
        return [Set(state=state, path=(trait,), value=value) for trait, value in plain.items()]

    def _base(self) -> Revision | None:
        header = self.request.headers.get("If-Match")
        if header is None or header.strip() == "*":
            return None
        parts = re.fullmatch(r'"([^".]+)\.([^".]+)\.(\d{1,15})"', header.strip())
        if parts is None:
            raise Malformed('If-Match takes the ETag of GET rooms/{token}, "incarnation.epoch.seq"', expected="an ETag")
        _, epoch, seq = parts.groups()
        return Revision(epoch, int(seq))


class MeHandler(RoomsHandler):
    """``GET sharedwidgets/api/me``."""

    @web.authenticated
    async def get(self) -> None:
        """Who the server says the caller is and what it may do; a page whose socket was refused asks here why."""
        self.answer(
            {
                "user": self.current_user.username,
                "audience": self.audience,
                "may_read": await self.may("read"),
                "may_write": await self.may("write"),
                "version": self.version,
                "server": self.keys.server_id,
            }
        )


def etag(view: RoomView) -> str:
    """The revision of a room as HTTP writes it."""
    return f'"{view.incarnation}.{view.epoch}.{view.seq}"'


def _state(image: StateImage) -> dict[str, Any]:
    parts = {"values": image.values, "schema": msgspec.to_builtins(image.schema), "last": msgspec.to_builtins(image.last)}
    return {name: values.pack(part, None) for name, part in parts.items()}


def _member(member: Member) -> dict[str, Any]:
    return {name: getattr(member, name) for name in member.__struct_fields__}
