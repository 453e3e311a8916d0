"""Who holds and who waits for each lock of a room: leased, fenced, first come first served.

A fence is the sequence number of a grant, so no two grants of a room have the same and a later grant has a higher one. A lease
that ran out is over whether or not anybody noticed yet: every method that is given the time first frees what is over by then,
and an expired lease is never revived.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from typing import TypeAlias

from sharedwidgets.core.protocol import LockName, Number, Reason, Wire
from sharedwidgets.errors import TooLarge


class HeldLock(Wire, frozen=True, kw_only=True):
    """A held lock, as a store keeps it: `lease` is a duration, for the clock of another process says nothing here (H26)."""

    name: LockName
    boot: str
    owner: str
    member: str
    label: str
    fence: Number
    lease: float


@dataclass(frozen=True)
class Claim:
    """Who wants a lock: `owner` is a thread or task of the process `boot`; `member` and `label` are for showing."""

    boot: str
    owner: str
    member: str
    label: str

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others: each thread or task queues by itself."""
        return self.boot, self.owner


@dataclass(frozen=True)
class Holder:
    """Who holds a lock, under which fence, for `lease` seconds at a time, and until when if it is not renewed."""

    claim: Claim
    fence: int
    lease: float
    expires: float

    def over(self, now: float) -> bool:
        """Whether the lease has run out."""
        return self.expires <= now


@dataclass(frozen=True)
class Granted:
    """The lock is this claim's from here on; takes a sequence number, which is its fence."""

    name: LockName
    claim: Claim
    fence: int
    lease: float


@dataclass(frozen=True)
class Freed:
    """The lock is no longer held under that fence; takes a sequence number."""

    name: LockName
    claim: Claim
    fence: int
    reason: Reason


@dataclass(frozen=True)
class Lost:
    """To the one who asked: it does not hold the lock under that fence, or no longer."""

    name: LockName
    claim: Claim
    fence: int


@dataclass(frozen=True)
class Held:
    """To the one who asked: it holds the lock already; its lease starts anew."""

    name: LockName
    claim: Claim
    fence: int
    lease: float


@dataclass(frozen=True)
class Taken:
    """To the one who asked and does not wait: another one holds the lock."""

    name: LockName
    claim: Claim
    holder: Claim


@dataclass(frozen=True)
class Queued:
    """Who waits for the lock has changed; presence only. A `Granted` tells by itself that its claim waits no more."""

    name: LockName


LockEffect: TypeAlias = Granted | Freed | Lost | Held | Taken | Queued


@dataclass
class _Waiter:
    claim: Claim
    lease: float
    live: bool = True


class LockTable:
    """The locks of one room.

    Methods return effects in the order in which they must become visible. `now` is the time of the decision and `seq` the
    room's sequence number so far: each `Granted` and `Freed` takes the next one.

    Parameters
    ----------
    waiters : int
        How many may wait for one lock.
    names : int
        How many locks of the room may be held or waited for.
    """

    def __init__(self, *, waiters: int, names: int) -> None:
        self._most_waiters = waiters
        self._most_names = names
        self._held: dict[LockName, Holder] = {}
        # By `Claim.key`, in order of coming. None is empty. Where nobody holds the lock, nobody in its queue is live.
        self._queues: dict[LockName, dict[tuple[str, str], _Waiter]] = {}

    @classmethod
    def from_image(cls, image: Iterable[HeldLock], now: float, *, waiters: int, names: int) -> LockTable:
        """The locks a store kept: every lease starts anew, and nobody waits until it asks again (H26).

        Parameters
        ----------
        image : iterable of HeldLock
            What `image` gave.
        now : float
            When the leases start.
        waiters, names : int
            As for the class.
        """
        table = cls(waiters=waiters, names=names)
        for lock in image:
            claim = Claim(lock.boot, lock.owner, lock.member, lock.label)
            table._held[lock.name] = Holder(claim, lock.fence, lock.lease, now + lock.lease)
        return table

    def image(self) -> tuple[HeldLock, ...]:
        """The locks that are held, for a store."""
        return tuple(
            HeldLock(
                name=name,
                boot=held.claim.boot,
                owner=held.claim.owner,
                member=held.claim.member,
                label=held.claim.label,
                fence=held.fence,
                lease=held.lease,
            )
            for name, held in self._held.items()
        )

    # --- what members ask

    def acquire(
        self, claim: Claim, name: LockName, lease: float, now: float, seq: int, *, wait: bool = True
    ) -> list[LockEffect]:
        """Take the lock, or a place in its queue; asked again, the place is the same and the waiter counts as live.

        Who does not `wait` takes it now or is told that it is `Taken`, and has no place in the queue either way.

        Raises
        ------
        TooLarge
            As many wait for it as may, or the room has as many locks as it may.
        """
        if name not in self._held and name not in self._queues and len(self.names()) >= self._most_names:
            raise TooLarge(
                f"{claim.label} cannot have the lock {name.name!r}: {self._most_names} locks of this room are in use, as many"
                " as may be; release some, or use one lock for several things",
                state=name.name if name.kind == "state" else None,
                expected=f"≤ {self._most_names} locks in use",
            )
        numbers = count(seq + 1)
        effects = self._expire(name, now, numbers)
        held = self._held.get(name)
        if held is None:
            return [*effects, self._grant(name, claim, lease, now, numbers)]
        if held.claim.key == claim.key:
            self._held[name] = replace(held, expires=now + held.lease)
            return [*effects, Held(name, held.claim, held.fence, held.lease)]
        if not wait:
            effects += [Queued(name)] if self._unqueue(name, claim) else []
            return [*effects, Taken(name, claim, held.claim)]
        queue = self._queues.get(name, {})
        # No effects are lost with the refusal: where a lease was over, the lock is free now or the queue is shorter.
        if claim.key not in queue and len(queue) >= self._most_waiters:
            raise TooLarge(
                f"{claim.label} cannot wait for the lock {name.name!r}: {len(queue)} wait for it, as many as may, and"
                f" {held.claim.label} holds it; try again when some had their turn",
                state=name.name if name.kind == "state" else None,
                expected=f"≤ {self._most_waiters} waiting",
            )
        before = self.waiters(name)
        self._queues.setdefault(name, queue)[claim.key] = _Waiter(claim, lease)
        if self.waiters(name) != before:
            effects.append(Queued(name))
        return effects

    def cancel(self, claim: Claim, name: LockName, now: float, seq: int) -> list[LockEffect]:
        """Do not wait any more; a grant that crossed this on its way is released at once (H23)."""
        numbers = count(seq + 1)
        effects = self._expire(name, now, numbers)
        held = self._held.get(name)
        if held is not None and held.claim.key == claim.key:
            effects += self._free(name, "released", now, numbers)
        elif self._unqueue(name, claim):
            effects.append(Queued(name))
        return effects

    def release(self, claim: Claim, name: LockName, fence: int, now: float, seq: int) -> list[LockEffect]:
        """Give the lock back; `Lost` when it is not held under that fence any more."""
        if self._holder_under(claim, name, fence, now) is not None:
            return self._free(name, "released", now, count(seq + 1))
        return [*self._expire(name, now, count(seq + 1)), Lost(name, claim, fence)]

    def renew(self, claim: Claim, name: LockName, fence: int, now: float, seq: int) -> list[LockEffect]:
        """Start the lease anew; `Lost` when it is over or another's."""
        held = self._holder_under(claim, name, fence, now)
        if held is not None:
            self._held[name] = replace(held, expires=now + held.lease)
            return []
        return [*self._expire(name, now, count(seq + 1)), Lost(name, claim, fence)]

    def break_lock(self, name: LockName, now: float, seq: int) -> list[LockEffect]:
        """Take the lock from whoever holds it; where the lease was over already, the next holder keeps it."""
        numbers = count(seq + 1)
        expired = self._expire(name, now, numbers)
        return self._free(name, "broken", now, numbers) if name in self._held and not expired else expired

    # --- what happens to members

    def tick(self, now: float, seq: int) -> list[LockEffect]:
        """Free every lease that is over, in the order in which they ran out."""
        return self._expire_all(now, count(seq + 1))

    def disconnected(self, boot: str) -> None:
        """Pass over the waiters of a process that cannot be told, until they ask again; its locks stay."""
        for queue in self._queues.values():
            for waiter in queue.values():
                if waiter.claim.boot == boot:
                    waiter.live = False

    def gone(self, boot: str, now: float, seq: int) -> list[LockEffect]:
        """Forget a process that is dead or stayed away too long; another one of the same kernel is not meant (H25)."""
        numbers = count(seq + 1)
        effects = self._expire_all(now, numbers)
        for name in self.names():
            waiting = [claim for claim in self.waiters(name) if claim.boot == boot]
            for claim in waiting:
                self._unqueue(name, claim)
            if waiting:
                effects.append(Queued(name))
            if name in self._held and self._held[name].claim.boot == boot:
                effects += self._free(name, "gone", now, numbers)
        return effects

    # --- questions

    def allows(self, name: LockName, boot: str, fence: int | None, now: float) -> bool:
        """Whether a write may happen under this lock.

        Parameters
        ----------
        name : LockName
            The lock that covers what is written.
        boot : str
            The process that writes.
        fence : int or None
            The fence it claims to hold the lock under; none or 0 when it claims nothing. A claimed fence that is not held is
            refused even where the lock is free, for the author read what it writes under a lock that it lost (G7).
        now : float
            When the write is ordered.
        """
        held = self._held.get(name)
        if held is None or held.over(now):
            return not fence
        return fence == held.fence and boot == held.claim.boot

    def holder(self, name: LockName) -> Holder | None:
        """Who holds the lock, even if its lease ran out and was not freed yet."""
        return self._held.get(name)

    def waiters(self, name: LockName) -> tuple[Claim, ...]:
        """Who waits for the lock, in order, those who are passed over included."""
        return tuple(waiter.claim for waiter in self._queues.get(name, {}).values())

    def names(self) -> tuple[LockName, ...]:
        """Every lock that is held or waited for."""
        return tuple(dict.fromkeys((*self._held, *self._queues)))

    def next_deadline(self) -> float | None:
        """When the next lease runs out, if any is held."""
        return min((held.expires for held in self._held.values()), default=None)

    # --- small parts

    def _holder_under(self, claim: Claim, name: LockName, fence: int, now: float) -> Holder | None:
        """The holder, if it is this claim under this fence and its lease is not over."""
        held = self._held.get(name)
        if held is None or held.over(now) or held.fence != fence or held.claim.key != claim.key:
            return None
        return held

    def _expire_all(self, now: float, numbers: Iterator[int]) -> list[LockEffect]:
        ending = sorted(self._held, key=lambda name: self._held[name].expires)
        return [effect for name in ending for effect in self._expire(name, now, numbers)]

    def _expire(self, name: LockName, now: float, numbers: Iterator[int]) -> list[LockEffect]:
        held = self._held.get(name)
        return self._free(name, "expired", now, numbers) if held is not None and held.over(now) else []

    def _free(self, name: LockName, reason: Reason, now: float, numbers: Iterator[int]) -> list[LockEffect]:
        """End a tenure, and begin that of the first live waiter."""
        held = self._held.pop(name)
        next(numbers)
        effects: list[LockEffect] = [Freed(name, held.claim, held.fence, reason)]
        first = next((waiter for waiter in self._queues.get(name, {}).values() if waiter.live), None)
        if first is not None:
            effects.append(self._grant(name, first.claim, first.lease, now, numbers))
        return effects

    def _grant(self, name: LockName, claim: Claim, lease: float, now: float, numbers: Iterator[int]) -> Granted:
        self._unqueue(name, claim)
        fence = next(numbers)
        self._held[name] = Holder(claim, fence, lease, now + lease)
        return Granted(name, claim, fence, lease)

    def _unqueue(self, name: LockName, claim: Claim) -> bool:
        """Take a claim out of the queue; whether it was in it."""
        queue = self._queues.get(name, {})
        waited = queue.pop(claim.key, None) is not None
        if waited and not queue:
            del self._queues[name]
        return waited
