"""The locks this process wants and holds in one room: who has them, what is written under them, how they are kept alive.

All state is guarded by the connection's lock.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from math import inf

from sharedwidgets import host
from sharedwidgets.core.claims import HOLDING, Claims, Phase, Tenure, Words
from sharedwidgets.core.protocol import LockName, Op, Problem
from sharedwidgets.core.replica import News, Replica
from sharedwidgets.errors import Locked, LockLost, LockTimeout, from_code

log = logging.getLogger("sharedwidgets")

# A lease is renewed when so much of it is gone.
RENEW_AFTER = 1 / 3
# How often it is looked whether the owner of a lock lives.
LOOK_SECONDS = 1.0


@dataclass(eq=False)
class _Kept:
    """A tenure as its owner knows it."""

    tenure: Tenure
    alive: Callable[[], bool]
    # From which grant on it is counted.
    fence: int = 0
    since: float = 0.0
    renewed: float = 0.0
    depth: int = 1


class Leases:
    """The locks of one room for one process.

    Parameters
    ----------
    room : str
        The token.
    """

    def __init__(self, room: str) -> None:
        self.room = room
        self.claims = Claims(room)
        self._kept: dict[tuple[LockName, host.Owner], _Kept] = {}
        self._waits: list[tuple[Tenure, tuple[Phase, ...], Future[None]]] = []

    # --- of the owner that runs

    def mine(self, lock: LockName) -> Tenure | None:
        """The tenure of the thread or task that runs, held or lost and not given back yet."""
        kept = self._of_me(lock)
        return None if kept is None else kept.tenure

    def _of_me(self, lock: LockName) -> _Kept | None:
        """What the thread or task that runs has of a lock. One that has ended may have left its number to this one."""
        key = (lock, host.owner())
        kept = self._kept.get(key)
        if kept is not None and not kept.alive():
            del self._kept[key]
            self.claims.leave(kept.tenure)
            return None
        return kept

    def in_the_way(self, lock: LockName) -> bool:
        """Whether this thread would wait for itself: another task of its loop has the lock or is before it in the queue."""
        if self._of_me(lock) is not None:
            return False
        me = host.owner()
        others = [kept for (name, owner), kept in self._kept.items() if name == lock and owner[0] == me[0] and owner != me]
        return any(kept.tenure.phase not in ("leaving", "over") and kept.alive() for kept in others)

    def depth(self, lock: LockName) -> int:
        """How often the thread or task that runs has taken a lock, or asked for it."""
        kept = self._of_me(lock)
        return 0 if kept is None else kept.depth

    def back(self, lock: LockName, depth: int) -> Tenure | None:
        """Give back, or stop waiting for, what the thread or task that runs has taken more often than so; what that ended."""
        ended: Tenure | None = None
        while (kept := self._of_me(lock)) is not None and kept.depth > depth:
            ended = kept.tenure if self.leave(kept.tenure) else None
        return ended

    def again(self, lock: LockName) -> Tenure | None:
        """Take a lock once more that the thread or task that runs holds already."""
        kept = self._of_me(lock)
        if kept is None:
            return None
        if kept.tenure.phase != "held":
            raise self.lost(kept.tenure)
        kept.depth += 1
        return kept.tenure

    def want(self, lock: LockName, lease: float, label: str, replica: Replica, *, wait: bool = True) -> Tenure:
        """A claim of the thread or task that runs."""
        tenure = self.claims.want(lock, uuid.uuid4().hex, lease, label, replica.newest(), wait=wait)
        self._kept[lock, host.owner()] = _Kept(tenure, host.lives())
        return tenure

    def leave(self, tenure: Tenure) -> bool:
        """Give a lock back, or stop waiting; whether this was the outermost hold of it."""
        key = next((key for key, kept in self._kept.items() if kept.tenure is tenure), None)
        if key is None:
            return True
        kept = self._kept[key]
        kept.depth -= 1
        if kept.depth > 0:
            return False
        del self._kept[key]
        self.claims.leave(tenure)
        self._moved()
        return True

    def fences(self, ops: Iterable[Op], replica: Replica) -> dict[str, int]:
        """Under which fences the thread or task that runs writes these.

        Raises
        ------
        Locked
            Somebody else holds the lock of a state.
        LockLost
            It held the lock, and does not any more (G7).
        """
        fences: dict[str, int] = {}
        for state in dict.fromkeys(op.state for op in ops):
            name = LockName(kind="state", name=state)
            tenure = self.mine(name)
            if tenure is not None and tenure.phase not in ("wanted", "asked", "granted"):
                if tenure.phase != "held":
                    raise self.lost(tenure)
                fences[state] = tenure.fence
                continue
            holder = replica.locks.get(name)
            if holder is not None:
                # When it was renewed last is not told to everyone.
                left = f", for at most {holder.lease:g} s unless it is renewed" if holder.lease else ""
                raise Locked(
                    f"{state} is locked by {holder.label or holder.member}{left}; nothing was written. Write under lock(), "
                    'which waits for its turn, or give the class on_locked="wait"',
                    room=self.room,
                    state=state,
                )
        return fences

    def left(self, tenure: Tenure, now: float) -> float:
        """Seconds until the lease runs out if it is not renewed; 0 when it is not held."""
        kept = next((item for item in self._kept.values() if item.tenure is tenure), None)
        return 0.0 if kept is None or tenure.phase != "held" else max(0.0, kept.renewed + tenure.lease - now)

    # --- waiting

    def when(self, tenure: Tenure, phases: tuple[Phase, ...]) -> Future[None]:
        """Done when the tenure is in one of these phases."""
        future: Future[None] = Future()
        if tenure.phase in phases:
            future.set_result(None)
        else:
            self._waits.append((tenure, phases, future))
        return future

    def outcome(self, tenure: Tenure, replica: Replica, timeout: float) -> Exception | None:
        """Why a claim is not held, or None when it is."""
        if tenure.phase == "held":
            return None
        if tenure.problem is not None:
            return from_code(tenure.problem.code, tenure.problem.message, room=self.room, state=tenure.problem.state)
        holder = replica.locks.get(tenure.lock)
        if tenure.phase == "granted":
            who = "it was granted, and what other threads of this process wrote before has no answer"
        elif holder is not None:
            who = f"{holder.label or holder.member} holds it"
        else:
            who = "the server did not grant it"
        return LockTimeout(
            f"no lock {tenure.lock.name!r} of {self.room!r} within {timeout:g} s: {who}; give more timeout=, or try again",
            room=self.room,
            state=tenure.lock.name if tenure.lock.kind == "state" else None,
        )

    def lost(self, tenure: Tenure) -> LockLost:
        """The error for a lock that is not held any more."""
        ran_out = "its lease ran out; give lock(lease=) more seconds for a body that lets no other code run"
        if tenure.cap:
            ran_out = (
                f"its lease ran out, for the server lets nobody hold one for longer than {tenure.cap:g} s (hold_seconds); take "
                "the lock for each step of the work, or have its operator raise SharedWidgetsApp.limits"
            )
        why = {
            "expired": ran_out,
            "broken": "somebody broke it",
            "gone": "this process was taken for dead, or the room ended",
        }.get(tenure.end or "", "it is not held any more")
        return LockLost(
            f"the lock {tenure.lock.name!r} of {self.room!r} was lost: {why}. What was written under it since had no effect",
            room=self.room,
            state=tenure.lock.name if tenure.lock.kind == "state" else None,
        )

    # --- of the I/O thread

    def due(self, replica: Replica, numbers: Callable[[], int]) -> list[Words]:
        """What to say of locks now, behind the pushes."""
        return self.claims.due(replica, numbers)

    def heard(self, replica: Replica, news: News, now: float, *, anew: bool) -> None:
        """The replica took something in."""
        for tenure in self.claims.heard(replica, news, anew=anew):
            for kept in self._kept.values():
                if kept.tenure is tenure and kept.fence != tenure.fence:
                    kept.fence = tenure.fence
                    kept.since = kept.renewed = now
        self._moved()

    def refused(self, request: int, problem: Problem) -> bool:
        """The server does not take a claim; whether it was one."""
        found = self.claims.refused(request, problem) is not None
        self._moved()
        return found

    def disconnected(self) -> None:
        """The connection is gone."""
        self.claims.disconnected()

    def ended(self, problem: Problem) -> None:
        """The room is no more."""
        self.claims.ended(problem)
        self._moved()

    def next_look(self, now: float, hold_seconds: float) -> float:
        """Seconds until `renewals` may have something to do: when a lease is due, and once a second to look after its owner."""
        held = [kept for kept in self._kept.values() if kept.tenure.phase in HOLDING]
        due = [kept.renewed + kept.tenure.lease * RENEW_AFTER - now for kept in held if now - kept.since < hold_seconds]
        return max(0.0, min([LOOK_SECONDS, *due])) if held else inf

    def renewals(self, now: float, hold_seconds: float) -> Sequence[Words]:
        """Keep what is held; what its owner cannot give back any more is given back here."""
        going: list[Tenure] = []
        for key, kept in list(self._kept.items()):
            if kept.tenure.phase not in HOLDING:
                continue
            if not kept.alive():
                log.warning("whoever held the lock %r of %r has ended and did not give it back", key[0].name, self.room)
                del self._kept[key]
                self.claims.leave(kept.tenure)
            elif now - kept.since >= hold_seconds:
                kept.tenure.cap = hold_seconds
            elif now - kept.renewed >= kept.tenure.lease * RENEW_AFTER:
                kept.renewed = now
                going.append(kept.tenure)
        return self.claims.renewals(going)

    def _moved(self) -> None:
        done = [item for item in self._waits if item[0].phase in item[1] or item[0].phase == "over"]
        self._waits = [item for item in self._waits if item not in done]
        for _, _, future in done:
            if future.set_running_or_notify_cancel():
                future.set_result(None)
