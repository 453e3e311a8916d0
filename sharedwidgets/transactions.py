"""Several writes as one entry: who takes part keeps them back, they go out as one push, and all of them keep it or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from sharedwidgets.connection import Listener, Session, Written
from sharedwidgets.core.protocol import Op
from sharedwidgets.turns import in_turn

# The version of a value that is in no replica: whatever the replica holds is newer.
UNSEEN = -1


class Part(Protocol):
    """What one object does in a transaction of one room."""

    @property
    def waits(self) -> str:
        """The state whose turn a write waits for, when somebody else holds its lock; empty when it does not wait."""

    def begin(self) -> None:
        """Keep back what is written from here on, and tell nobody of it."""

    def check(self) -> bool:
        """Check what was written and not checked yet; whether there was any."""

    def gather(self) -> list[Op]:
        """Say which ops it is that was written."""

    def keep(self, version: int) -> None:
        """It is in the replica, which has this version."""

    def undo(self) -> None:
        """Nothing was written: everything is as it was."""

    def end(self) -> None:
        """Keep nothing back any more."""

    def tell(self) -> None:
        """Tell observers what changed."""


@contextmanager
def transaction(parts: Sequence[Part], write: Callable[[list[Op]], Written]) -> Iterator[None]:
    """Make what these objects write one push; after any exception they are as they were, and nobody is told."""
    begun: list[Part] = []
    written = Written(UNSEEN, [])
    try:
        for part in parts:
            part.begin()
            begun.append(part)
        yield
        # A validator may write to another of them.
        while any(part.check() for part in parts):
            pass
        ops = [op for part in parts for op in part.gather()]
        if ops:
            written = write(ops)
        for part in parts:
            part.keep(written.version)
    except BaseException:
        for part in begun:
            part.undo()
        raise
    finally:
        for part in begun:
            part.end()
    with ExitStack() as telling:
        for task in reversed(written.then):
            telling.callback(task)
        for part in reversed(parts):
            telling.callback(part.tell)


def writer(session: Session, parts: Sequence[Part], author: Listener) -> Callable[[list[Op]], Written]:
    """Writes to a room for these parts, and takes turns for those that wait. The author hears nothing of it.

    Of several parts each hears of all, since one may show what another wrote.
    """
    waits = {part.waits for part in parts if part.waits}

    def write(ops: list[Op]) -> Written:
        mine = waits & {op.state for op in ops}
        return in_turn(session, mine, lambda: session.connection.write(session, ops, group=True, authors=[author]))

    return write
