"""Shared state for Jupyter: one live state for every kernel and every browser view in a room.

The names below are loaded when they are first used; importing this package opens nothing and connects to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sharedwidgets.binding import bind as bind
    from sharedwidgets.computing import computed as computed
    from sharedwidgets.core.protocol import Member as Member
    from sharedwidgets.locks import Lock as Lock
    from sharedwidgets.locks import lock as lock
    from sharedwidgets.reactions import reacts as reacts
    from sharedwidgets.room import Room as Room
    from sharedwidgets.room import connect as connect
    from sharedwidgets.state import SharedState as SharedState
    from sharedwidgets.work import background as background

_HOME = {
    "Lock": "sharedwidgets.locks",
    "Member": "sharedwidgets.core.protocol",
    "Room": "sharedwidgets.room",
    "SharedState": "sharedwidgets.state",
    "background": "sharedwidgets.work",
    "bind": "sharedwidgets.binding",
    "computed": "sharedwidgets.computing",
    "connect": "sharedwidgets.room",
    "lock": "sharedwidgets.locks",
    "reacts": "sharedwidgets.reactions",
}

__all__ = [
    "Lock",
    "Member",
    "Room",
    "SharedState",
    "background",
    "bind",
    "computed",
    "connect",
    "errors",
    "lock",
    "reacts",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("sharedwidgets.errors")
    if name not in _HOME:
        raise AttributeError(f"module 'sharedwidgets' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
