"""What earlier runs of a notebook cell made is closed once the cell has run again: a cell that is run often grows nothing."""

from __future__ import annotations

import logging
import weakref
from typing import NamedTuple, Protocol

from sharedwidgets import host

log = logging.getLogger("sharedwidgets")


class Closable(Protocol):
    """What a cell may make."""

    def close(self) -> None:
        """Let go of everything."""


class _Run(NamedTuple):
    request: str
    made: list[weakref.ref[Closable]]


_last: dict[str, _Run] = {}
_outdated: list[weakref.ref[Closable]] = []
_hooked = False


def note(made: Closable) -> None:
    """`made` belongs to the cell that runs, if one does: what an earlier run of that cell made is closed at this one's end.

    Not before: the room would be left and joined again, and everyone in it be told so.
    """
    global _hooked
    place = host.cell()
    if place is None:
        return
    cell, request = place
    run = _last.get(cell)
    if run is None or run.request != request:
        _outdated.extend(run.made if run else ())
        run = _last[cell] = _Run(request, [])
    run.made.append(weakref.ref(made))
    if not _hooked:
        _hooked = host.after_each_cell(_close_outdated)


def _close_outdated(*result: object) -> None:
    while _outdated:
        made = _outdated.pop()()
        if made is not None:
            try:
                made.close()
            except Exception:
                log.exception("what an earlier run of a cell made could not be closed")
