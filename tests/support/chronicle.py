"""The locks of a room by other code than the one under test: by its log alone, and by what it was told and when.

`Chronicle` is kept beside the log: who had which lock from which seq to which. `Keeper` is kept beside the room: whose turn it
is, and until when. Neither asks a table of locks what it should have done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sharedwidgets.core.locks import HeldLock
from sharedwidgets.core.protocol import Acquire, Cancel, Define, Entry, Freed, Granted, LockImage, LockName, Release, Renew


def boot_of(owner: str) -> str:
    """Owners are named after their boot here."""
    return owner.split(".")[0]


def lock_of(state: str) -> LockName:
    """The lock of a state."""
    return LockName(kind="state", name=state)


@dataclass
class Span:
    """One grant, from its own seq to that of its end."""

    granted: Granted
    fence: int
    until: int | None = None
    reason: str = ""


@dataclass
class Chronicle:
    """Every grant there was, by the log."""

    spans: dict[int, Span] = field(default_factory=dict)
    # What is held at each seq, from 0.
    held: list[dict[LockName, Span]] = field(default_factory=lambda: [{}])

    def images(self, seq: int) -> dict[LockName, LockImage]:
        """What is held at a seq, as a replica shows it."""
        return {
            lock: LockImage(
                lock=lock,
                member=span.granted.member,
                owner=span.granted.owner,
                fence=span.fence,
                label=span.granted.label,
                lease=span.granted.lease,
            )
            for lock, span in self.held[seq].items()
        }

    def kept(self, seq: int) -> tuple[HeldLock, ...]:
        """What is held at a seq, as a store keeps it."""
        return tuple(
            HeldLock(
                name=lock,
                boot=boot_of(image.owner),
                owner=image.owner,
                member=image.member,
                label=image.label,
                fence=image.fence,
                lease=image.lease,
            )
            for lock, image in self.images(seq).items()
        )

    def note(self, entry: Entry, boot: str | None, fences: Mapping[str, int]) -> None:
        """One more entry: mutual exclusion, and G7."""
        held = dict(self.held[-1])
        for op in entry.ops:
            match op:
                case Granted():
                    assert op.lock not in held, f"{op} at {entry.seq} while {held[op.lock]}"
                    self.spans[entry.seq] = held[op.lock] = Span(op, entry.seq)
                case Freed():
                    span = held.get(op.lock)
                    assert span is not None, f"{op} at {entry.seq}, and nobody holds it"
                    assert span.fence == op.fence, f"{op} at {entry.seq} ends {span}"
                    span.until, span.reason = entry.seq, op.reason
                    del held[op.lock]
                case Define():
                    pass
                case _:
                    assert self.may(held, op.state, boot, fences), (
                        f"G7: {op} of {boot} under {fences} is entry {entry.seq} while {held.get(lock_of(op.state))}"
                    )
        self.held.append(held)

    def refused(self, code: str, states: Iterable[str], boot: str, fences: Mapping[str, int], seq: int) -> None:
        """A push was refused for a lock: it was right to be."""
        wrong = [state for state in states if not self.may(self.held[seq], state, boot, fences)]
        assert wrong, f"{boot} under {fences} was refused with {code} at {seq}, and no lock was in its way"
        (lost,) = {bool(fences.get(state)) for state in wrong[:1]}
        assert code == ("lock-lost" if lost else "locked"), f"{boot} under {fences} is told {code} at {seq}"
        for span in (self.spans[fence] for fence in fences.values() if fence in self.spans):
            mine = boot_of(span.granted.owner) == boot
            assert not (mine and span.reason == "released"), f"{boot} gave {span} back before what it wrote under it"

    def may(self, held: Mapping[LockName, Span], state: str, boot: str | None, fences: Mapping[str, int]) -> bool:
        """Whether a push may change a state: under the fence of its lock, or where there is neither."""
        span, fence = held.get(lock_of(state)), fences.get(state, 0)
        if span is None:
            return not fence
        return fence == span.fence and boot == boot_of(span.granted.owner)


@dataclass
class Keeper:
    """What a room must know of its locks and nobody writes down: who waits in which order, and when each lease is over."""

    # By lock: the owner, the fence, how long the lease is and when it is over.
    held: dict[LockName, tuple[str, int, float, float]] = field(default_factory=dict)
    lines: dict[LockName, list[str]] = field(default_factory=dict)
    away: set[str] = field(default_factory=set)
    # Boots that lost their connection, and when they are gone though another boot of their member stays.
    lost: dict[str, float] = field(default_factory=dict)

    @classmethod
    def loaded(cls, locks: Iterable[HeldLock], now: float) -> Keeper:
        """A room was loaded: its leases start anew, and nobody waits."""
        return cls({item.name: (item.owner, item.fence, item.lease, now + item.lease) for item in locks})

    def asked(self, word: Acquire | Cancel | Renew | Release, now: float) -> None:
        """What somebody says of a lock, when what was over has ended."""
        held = self.held.get(word.lock)
        line = self.lines.setdefault(word.lock, [])
        mine = held is not None and held[0] == word.owner
        match word:
            case Acquire() if not mine:
                self.away.discard(word.owner)
                line += [word.owner] if word.owner not in line else []
            case Cancel() if word.owner in line:
                line.remove(word.owner)
            case _:
                pass
        if held is not None and mine and (isinstance(word, Acquire) or (isinstance(word, Renew) and held[1] == word.fence)):
            self.held[word.lock] = (*held[:3], now + held[2])

    def disconnected(self, boot: str, until: float) -> None:
        """Who cannot be told is passed over until it asks again, and no longer than until it is gone."""
        self.away |= {owner for line in self.lines.values() for owner in line if boot_of(owner) == boot}
        self.lost[boot] = until

    def came(self, boot: str, *, anew: bool) -> None:
        """Who comes back in time keeps its places; who left and comes `anew` has none, even if its goodbye was lost."""
        if anew:
            self.gone({boot})
        self.lost.pop(boot, None)

    def ticked(self, now: float) -> None:
        """The room looks at the clock."""
        over = {boot for boot, until in self.lost.items() if until <= now}
        self.gone(over)
        self.lost = {boot: until for boot, until in self.lost.items() if boot not in over}

    def gone(self, boots: Collection[str]) -> None:
        """Nobody of these waits any more."""
        for line in self.lines.values():
            line[:] = [owner for owner in line if boot_of(owner) not in boots]

    def decided(self, entries: Sequence[tuple[Entry, Mapping[str, int]]], now: float, then: Callable[[], None]) -> None:
        """What the room made of one input, each entry with the fences of its push; leases that were over came to an end first.

        `then` is what the input does to the lines: it counts once a grant needs it, and at the latest in the end.
        """
        pending = [then]
        for entry, fences in entries:
            for op in entry.ops:
                match op:
                    case Granted():
                        if op.owner != self.first(op.lock) and pending:
                            pending.pop()()
                        first = self.first(op.lock)
                        assert op.owner == first, f"first come, first served: {op}, and {self.lines} wait, away are {self.away}"
                        self.lines[op.lock].remove(op.owner)
                        self.held[op.lock] = (op.owner, entry.seq, op.lease, now + op.lease)
                    case Freed():
                        over = self.held.pop(op.lock)[3] <= now
                        assert over == (op.reason == "expired"), f"{op} at {entry.seq}, and its lease is over: {over}"
                    case _:
                        pass
            for state in fences:
                held = self.held.get(lock_of(state))
                assert held is None or held[3] > now, f"G7: {entry} is written after the lease of {held} was over"
        for act in pending:
            act()
        for lock in self.lines:
            assert lock in self.held or self.first(lock) is None, f"nobody holds {lock}, and {self.lines} wait"

    def ended(self, now: float) -> None:
        """The room has looked at the clock: no lease is over and goes on."""
        over = {lock: held for lock, held in self.held.items() if held[3] <= now}
        assert not over, f"every claim ends: {over} at {now}"

    def first(self, lock: LockName) -> str | None:
        """Whose turn it is."""
        return next((owner for owner in self.lines.get(lock, []) if owner not in self.away), None)
