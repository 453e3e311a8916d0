"""Several writes as one entry: who takes part keeps them back, they go out as one push, and all of them keep it or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from sharedwidgets.connection import Connection
from sharedwidgets.drafts import Draft
from sharedwidgets.errors import Locked
from sharedwidgets.links import Listener, Part, Session, Written
from sharedwidgets.turns import turns

# The version of a value that is in no replica: whatever the replica holds is newer.
UNSEEN = -1
# Validators that write to each other's traits come to an end, or never.
_ROUNDS = 100


@contextmanager
def transaction(
    parts: Sequence[Part],
    write: Callable[[], Written],
    undone_by: type[BaseException] | tuple[type[BaseException], ...] = BaseException,
) -> Iterator[None]:
    """Make what these objects write one push, or nothing at all: then they are as they were, and nobody is told.

    Parameters
    ----------
    parts : sequence of Part
        Who takes part.
    write : callable
        Sends what they keep back.
    undone_by : exception class or tuple of them
        By which exceptions of the body and of validators. After others what was written until then is sent all the same.
    """
    begun: list[Part] = []
    failed: BaseException | None = None
    try:
        for part in parts:
            # Before it has begun: an interrupt may come in the middle.
            begun.append(part)
            part.begin()
        try:
            yield
            _check(parts)
        except undone_by:
            raise
        except BaseException as error:
            failed = error
        written = write()
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
    if failed is not None:
        raise failed


def _check(parts: Sequence[Part]) -> None:
    """Ask the validators of all, also about what one of them writes to another trait or object."""
    for _ in range(_ROUNDS):
        # All of them in each round, however many there are.
        if not sum(part.check() for part in parts):
            return
    raise RuntimeError(f"validators went on changing what others had checked, {_ROUNDS} times; let one of them decide")


def nowhere() -> Written:
    """What is in another one, or in no room, is not sent here."""
    return Written(UNSEEN, [])


def writer(
    connection: Connection, session: Session, draft: Draft, parts: Sequence[Part], author: Listener
) -> Callable[[], Written]:
    """Writes a draft to a room for these parts, and takes turns for those that wait. The author hears nothing of it.

    Of several parts each hears of all, since one may show what another wrote.
    """

    def write() -> Written:
        with connection.lock:
            ops = draft.ops(session.replica.assign)
        if not ops:
            return nowhere()
        try:
            return connection.write(session, ops, group=True, authors=[author])
        except Locked:
            waits = {part.waits for part in parts if part.waits} & {op.state for op in ops}
            if not waits:
                raise
        # Whoever has the lock, or is before these in the queue, may be another thread that uses the same objects.
        for part in parts:
            part.park()
        with turns(connection, session, waits):
            return connection.write(session, ops, group=True, authors=[author])

    return write
