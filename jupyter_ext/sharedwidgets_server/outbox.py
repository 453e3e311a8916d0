"""What waits to be written to one connection: bounded, in order, and never silently short of a state entry.

Below `outbox_fold_bytes` frames wait as they are. Above, waiting entries are folded into one atomic frame. Above
`outbox_drop_bytes`, or when nothing was written for `outbox_stall_seconds`, entries are let go and the room is marked
*lagging*: when the queue has drained, the room itself says what was missed. Nacks, snapshots and the like are never let go.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from sharedwidgets.core import codec, delta
from sharedwidgets.core.codec import Encoded, Frame
from sharedwidgets.core.protocol import Downstream, Entries, Limits, LockName, Members, Snapshot, Waiting


@dataclass(frozen=True)
class Cursor:
    """How far one room was queued for this connection."""

    incarnation: str
    epoch: str
    seq: int


@dataclass
class _Control:
    frame: Frame
    size: int
    # Presence that waits: later news of the same kind go into it.
    presence: Members | Waiting | None = None


@dataclass
class _Frame:
    message: Entries
    decided: int
    body: Encoded
    size: int


class Outbox:
    """One connection's queue and the one task that writes it.

    Parameters
    ----------
    limits : Limits
        The bounds.
    write : callable
        Sends one frame and returns when the peer's buffer took it.
    drained : callable
        Called with a token when a lagging room can be told what it missed.
    clock : callable
        Monotonic seconds.
    """

    def __init__(
        self,
        limits: Limits,
        write: Callable[[Frame], Awaitable[None]],
        drained: Callable[[str], None],
        clock: Callable[[], float],
    ) -> None:
        self._limits = limits
        self._write = write
        self._drained = drained
        self._clock = clock
        self._queue: deque[_Control | _Frame] = deque()
        self._queued = 0
        self._fold_above = limits.outbox_fold_bytes
        self._progress = clock()
        self._writing = False
        self._finishing = False
        self._closed = False
        self._wake = asyncio.Event()
        self._room_made = asyncio.Event()
        self._presence: dict[tuple[str, LockName | None], _Control] = {}
        self.lagging: set[str] = set()
        self.cursors: dict[str, Cursor] = {}
        self.folded = 0
        self.dropped = 0

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait, the item in flight apart."""
        return self._queued

    def control(self, message: Downstream) -> None:
        """Queue a message that must arrive: anything but a run of entries for a whole audience."""
        if isinstance(message, (Members, Waiting)):
            self._tell(message)
            return
        if isinstance(message, Snapshot):
            # It names everyone there is: what comes later is news to it.
            self._presence = {key: item for key, item in self._presence.items() if key[0] != message.room}
            self.cursors[message.room] = Cursor(message.incarnation, message.epoch, message.seq)
            self.lagging.discard(message.room)
        elif isinstance(message, Entries):
            if message.room in self.lagging and message.prev > self.cursors[message.room].seq:
                # The answer about one verdict, not what was missed: catching up tells both.
                return
            self._move(message)
            self.lagging.discard(message.room)
        frame = codec.encode(message).frame()
        self._put(_Control(frame, len(frame)))

    def entries(self, message: Entries, body: Encoded, decided: int) -> None:
        """Queue a run of entries that was encoded once for a whole audience.

        A verdict in it travels even to a lagging connection: as a frame of its own, when it catches up.
        """
        if message.room in self.lagging:
            return
        size = len(body.header) + sum(map(len, body.buffers))
        self._move(message)
        self._put(_Frame(message, decided, body, size))
        if self._queued > self._fold_above:
            self._fold()
        stalled = self._writing and self._clock() - self._progress > self._limits.outbox_stall_seconds
        if self._queued > self._limits.outbox_drop_bytes or stalled:
            self._drop()

    def forget(self, token: str) -> None:
        """The connection left a room."""
        self.cursors.pop(token, None)
        self.lagging.discard(token)

    async def room_made(self) -> None:
        """Wait until the queue is short enough to answer what the peer asks next."""
        while self._queued > self._limits.outbox_drop_bytes and not self._closed:
            self._room_made.clear()
            await self._room_made.wait()

    async def run(self) -> None:
        """Write what is queued; returns after `finish` when all is written."""
        while True:
            while self._queue:
                item = self._queue.popleft()
                self._queued -= item.size
                if isinstance(item, _Control) and item.presence is not None:
                    self._presence.pop(_about(item.presence), None)
                frame = item.frame if isinstance(item, _Control) else item.body.frame(decided=item.decided)
                self._writing = True
                self._progress = self._clock()
                for part in codec.fragments(frame, self._limits.frame_bytes):
                    await self._write(part)
                    self._progress = self._clock()
                self._writing = False
                self._room_made.set()
            self._fold_above = self._limits.outbox_fold_bytes
            if self._finishing:
                return
            for token in list(self.lagging):
                self._drained(token)
            self._wake.clear()
            await self._wake.wait()

    def finish(self) -> None:
        """Nothing more will be queued: write the rest and let `run` return."""
        self._finishing = True
        self._wake.set()

    def close(self) -> None:
        """Nothing more will be written: let go of whoever waits for room."""
        self._closed = True
        self._room_made.set()

    def _tell(self, message: Members | Waiting) -> None:
        """Queue presence; while earlier presence about the same waits, the two become one."""
        queued = self._presence.get(_about(message))
        if queued is None:
            frame = codec.encode(message).frame()
            queued = self._presence[_about(message)] = _Control(frame, len(frame), message)
            self._put(queued)
            return
        if isinstance(message, Members) and isinstance(queued.presence, Members):
            message = _both(queued.presence, message)
        frame = codec.encode(message).frame()
        self._queued += len(frame) - queued.size
        queued.frame, queued.size, queued.presence = frame, len(frame), message

    def _put(self, item: _Control | _Frame) -> None:
        self._queue.append(item)
        self._queued += item.size
        self._wake.set()

    def _move(self, message: Entries) -> None:
        held = self.cursors.get(message.room)
        if held is not None:
            self.cursors[message.room] = Cursor(held.incarnation, message.epoch, message.last)

    def _fold(self) -> None:
        """Join neighbouring runs of one room into one frame and leave out what they make moot."""
        before = self._queue
        self._queue = deque()
        self._queued = 0
        for item in before:
            last = self._queue[-1] if self._queue else None
            if isinstance(item, _Frame) and isinstance(last, _Frame) and _follows(last.message, item.message):
                self._queue.pop()
                self._queued -= last.size
                item = _joined(last, item)
                self.folded += 1
            self._queue.append(item)
            self._queued += item.size
        # What could not be folded once is not tried again with every frame.
        self._fold_above = max(self._limits.outbox_fold_bytes, 2 * self._queued)

    def _drop(self) -> None:
        """Let waiting entries go; their rooms lag from where the first of them began."""
        kept: deque[_Control | _Frame] = deque()
        for item in self._queue:
            if isinstance(item, _Control):
                kept.append(item)
                continue
            self.dropped += 1
            room = item.message.room
            held = self.cursors.get(room)
            # Without a cursor the room was left meanwhile: nobody misses what is let go.
            if held is not None and room not in self.lagging:
                self.lagging.add(room)
                self.cursors[room] = Cursor(held.incarnation, item.message.epoch, item.message.prev)
        self._queue = kept
        self._queued = sum(item.size for item in kept)


def _about(message: Members | Waiting) -> tuple[str, LockName | None]:
    return message.room, message.lock if isinstance(message, Waiting) else None


def _both(earlier: Members, later: Members) -> Members:
    """Two messages about presence as one."""
    if later.complete:
        return later
    present = {member.id: member for member in (*earlier.present, *later.present) if member.id not in later.gone}
    present.update({member.id: member for member in later.present})
    gone = dict.fromkeys(name for name in (*earlier.gone, *later.gone) if name not in present)
    return msgspec.structs.replace(later, present=tuple(present.values()), gone=tuple(gone), complete=earlier.complete)


def _follows(earlier: Entries, later: Entries) -> bool:
    return earlier.room == later.room and earlier.epoch == later.epoch and earlier.last == later.prev


def _joined(earlier: _Frame, later: _Frame) -> _Frame:
    message = Entries(
        room=later.message.room,
        epoch=later.message.epoch,
        prev=earlier.message.prev,
        last=later.message.last,
        entries=delta.fold([*earlier.message.entries, *later.message.entries]),
    )
    body = codec.encode(message)
    size = len(body.header) + sum(map(len, body.buffers))
    return _Frame(message, max(earlier.decided, later.decided), body, size)
