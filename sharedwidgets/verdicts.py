"""The verdicts this process waits for in one room.

All state is guarded by the connection's lock.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

from sharedwidgets.core.replica import Pending, Replica


class Verdicts:
    """Who waits for the verdicts on what was asked in one room."""

    def __init__(self) -> None:
        self._waits: list[tuple[Pending, Future[None]]] = []

    def when(self, push: Pending) -> Future[None]:
        """Done when the push is decided, or never will be."""
        future: Future[None] = Future()
        self._waits.append((push, future))
        return future

    def heard(self, replica: Replica) -> None:
        """The replica took something in."""
        self._done([item for item in self._waits if not replica.is_open(item[0])])

    def closed(self) -> None:
        """The connection is closed: nothing will come."""
        self._done(self._waits)

    def _done(self, over: Sequence[tuple[Pending, Future[None]]]) -> None:
        self._waits = [item for item in self._waits if item not in over]
        for _, future in over:
            if future.set_running_or_notify_cancel():
                future.set_result(None)
