"""The one list of routes, relative to the server's base URL."""

from __future__ import annotations

from typing import Any

from sharedwidgets_server.auth import Keys
from sharedwidgets_server.handlers import (
    LockHandler,
    MeHandler,
    ResetHandler,
    RoomHandler,
    RoomListHandler,
    StateHandler,
    StateLockHandler,
)
from sharedwidgets_server.manager import RoomManager
from sharedwidgets_server.websocket import RoomsSocket

# A token or state name is one path segment, percent-encoded.
_SEGMENT = r"([^/]+)"


def make_routes(manager: RoomManager, keys: Keys, owner: str, version: str) -> list[tuple[str, type, dict[str, Any]]]:
    """(pattern, handler, arguments) of everything this extension serves."""
    bring = {"manager": manager, "keys": keys, "owner": owner, "version": version}
    return [
        (r"sharedwidgets/ws", RoomsSocket, bring),
        (r"sharedwidgets/api/me", MeHandler, bring),
        (r"sharedwidgets/api/rooms", RoomListHandler, bring),
        (rf"sharedwidgets/api/rooms/{_SEGMENT}", RoomHandler, bring),
        (rf"sharedwidgets/api/rooms/{_SEGMENT}/reset", ResetHandler, bring),
        (rf"sharedwidgets/api/rooms/{_SEGMENT}/locks/{_SEGMENT}", LockHandler, bring),
        (rf"sharedwidgets/api/rooms/{_SEGMENT}/states/{_SEGMENT}/lock", StateLockHandler, bring),
        (rf"sharedwidgets/api/rooms/{_SEGMENT}/states/{_SEGMENT}", StateHandler, bring),
    ]
