"""What one process asks of the locks of a room: its threads and tasks want, hold and give back.

The server decides; whether a lock is held, the replica shows. A *tenure* is one claim from its first word to its end::

    wanted ──(own writes decided)──▶ asked ──(grant seen)──▶ granted ──▶ held ──▶ leaving ──(end seen)──▶ over
       ▲                               │                        │         │          │
       └─(connection, log or turn lost)┼────────(end seen)──────┘         └──(end seen: lost)──▶ over
                                       └──(refused: taken and not to be waited for, or not allowed)──▶ over

It is *held* once its owner may look at the state: other threads of this process may have written it while the grant was on its
way, and what the server is about to refuse still shows. Nobody adds to that once the replica has the grant.

It never goes back from *held*: a lease that was lost is not taken up again. A turn that was over before it was held is asked
for again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sharedwidgets.core.protocol import Acquire, Cancel, LockImage, LockName, Problem, Release, Renew
from sharedwidgets.core.replica import News, Pending, Replica

Phase: TypeAlias = Literal["wanted", "asked", "granted", "held", "leaving", "over"]
End: TypeAlias = Literal["released", "expired", "broken", "gone", "cancelled", "refused", "unknown"]
Words: TypeAlias = Acquire | Cancel | Renew | Release
# What the server has granted, and nobody has given back.
HOLDING: tuple[Phase, ...] = ("granted", "held")
# Cancels are not answered: so many are said again after a reconnect, or the claim would stand in the queue for good.
KEPT_CANCELS = 64


@dataclass(eq=False)
class Tenure:
    """One claim on one lock. `owner` names a thread or task of this process, and is never used for another."""

    lock: LockName
    owner: str
    lease: float
    label: str
    # Whether it takes its turn behind others; else the lock is its own now, or never.
    wait: bool = True
    # The push made last when it was wanted: what was written before a lock was taken is not under it (H24).
    behind: Pending | None = None
    phase: Phase = "wanted"
    fence: int = 0
    end: End | None = None
    problem: Problem | None = None
    # The seconds that it has at most, once it met that: asked for more, or was held for longer.
    cap: float = 0.0
    # The number of the last time it was asked, 0 when it never was; and whether it was asked more than once.
    request: int = 0
    again: bool = False
    # Whether a release is under way, and whether one ever was: then all that was written under the fence had its verdict.
    said: bool = False
    parted: bool = False

    @property
    def lost(self) -> bool:
        """Whether it ended without its owner having given it back."""
        return self.phase == "over" and self.end not in ("released", "cancelled")


class Claims:
    """The tenures of one process in one room.

    Parameters
    ----------
    room : str
        The token.
    """

    def __init__(self, room: str) -> None:
        self.room = room
        self._tenures: list[Tenure] = []
        self._words: list[Words] = []
        self._cancels: deque[Words] = deque(maxlen=KEPT_CANCELS)

    @property
    def held(self) -> tuple[Tenure, ...]:
        """Those that may write under their fence."""
        return tuple(item for item in self._tenures if item.phase == "held")

    @property
    def idle(self) -> bool:
        """Whether nothing is wanted, held, or still to be said."""
        return not self._tenures and not self._words

    def want(
        self, lock: LockName, owner: str, lease: float, label: str, behind: Pending | None = None, *, wait: bool = True
    ) -> Tenure:
        """A new claim, behind a push; what to say of it, `due` says."""
        tenure = Tenure(lock, owner, lease, label, wait, behind)
        self._tenures.append(tenure)
        return tenure

    def leave(self, tenure: Tenure) -> None:
        """Give it back, or stop waiting for it; a grant that is on its way is given back too (H23)."""
        match tenure.phase:
            case "wanted" if not tenure.request:
                self._over(tenure, "cancelled")
            case "wanted" | "asked":
                self._words.append(Cancel(room=self.room, lock=tenure.lock, owner=tenure.owner))
                self._over(tenure, "cancelled")
            case "granted" | "held":
                tenure.phase = "leaving"
            case _:
                pass

    def due(self, replica: Replica, numbers: Callable[[], int]) -> list[Words]:
        """What to say now. A claim waits for the verdicts on what was written before it, its end for those under its fence."""
        words, self._words = self._words, []
        self._cancels.extend(words)
        for tenure in self._tenures:
            decided = tenure.behind is None or not replica.is_open(tenure.behind)
            if tenure.phase == "wanted" and replica.live and decided:
                tenure.again = tenure.request > 0
                tenure.phase, tenure.request = "asked", numbers()
                words.append(
                    Acquire(
                        id=tenure.request,
                        room=self.room,
                        lock=tenure.lock,
                        owner=tenure.owner,
                        lease=tenure.lease,
                        label=tenure.label,
                        wait=tenure.wait,
                    )
                )
            elif tenure.phase == "leaving" and not tenure.said and not replica.undecided_under(tenure.fence):
                tenure.said = tenure.parted = True
                words.append(Release(room=self.room, lock=tenure.lock, owner=tenure.owner, fence=tenure.fence))
        return words

    def renewals(self, alive: Iterable[Tenure]) -> list[Words]:
        """Words that keep these going."""
        going = [item for item in alive if item.phase in HOLDING]
        return [Renew(room=self.room, lock=item.lock, owner=item.owner, fence=item.fence) for item in going]

    def heard(self, replica: Replica, news: News, *, anew: bool) -> list[Tenure]:
        """The replica took something in; `anew` after a snapshot, which tells nothing of queues. The tenures that moved on."""
        moved: list[Tenure] = []
        for tenure in list(self._tenures):
            before = tenure.phase, tenure.fence
            image = replica.locks.get(tenure.lock)
            if tenure.phase == "granted" and (image is None or image.fence != tenure.fence):
                tenure.phase, tenure.fence = "wanted", 0
            if tenure.phase in ("wanted", "asked"):
                # A grant may come while the claim is about to be asked again: nobody says it twice.
                if image is not None and image.owner == tenure.owner:
                    # The server gives no more than its `hold_seconds`.
                    given = image.lease or tenure.lease
                    tenure.cap = given if given < tenure.lease else 0.0
                    tenure.phase, tenure.fence, tenure.lease = "granted", image.fence, given
                elif anew or any(tenure.owner == granted.owner for granted in news.granted):
                    tenure.phase = "wanted"
            elif tenure.phase in ("held", "leaving") and (image is None or image.fence != tenure.fence):
                self._over(tenure, self._why(tenure, news))
                if tenure.again:
                    # What was asked for the second time may arrive behind the end of what came of the first.
                    self._words.append(Cancel(room=self.room, lock=tenure.lock, owner=tenure.owner))
            if tenure.phase == "granted" and not self._disturbed(tenure, replica):
                tenure.phase = "held"
            if (tenure.phase, tenure.fence) != before:
                moved.append(tenure)
        return moved

    def refused(self, request: int, problem: Problem) -> Tenure | None:
        """The server does not take a claim."""
        # Also one that is about to be asked again, for a snapshot came before its answer.
        open_ones = [item for item in self._tenures if item.phase in ("wanted", "asked")]
        tenure = next((item for item in open_ones if item.request == request), None)
        if tenure is not None:
            tenure.problem = problem
            self._over(tenure, "refused")
        return tenure

    def disconnected(self) -> None:
        """The connection is gone: what waits asks again, a release is said again, and who does not wait any more says so."""
        self._words = [*self._cancels, *self._words]
        self._cancels.clear()
        for tenure in self._tenures:
            if tenure.phase == "asked":
                tenure.phase = "wanted"
            tenure.said = False

    def ended(self, problem: Problem) -> list[Tenure]:
        """The room is no more, and with it every claim; why, whoever waits is told."""
        tenures = [*self._tenures]
        for tenure in tenures:
            tenure.problem = problem
            self._over(tenure, "gone")
        self._words.clear()
        self._cancels.clear()
        return tenures

    def _disturbed(self, tenure: Tenure, replica: Replica) -> bool:
        """Whether what the lock covers shows writes that are none of its owner's, and have no verdict (G6)."""
        return tenure.lock.kind == "state" and replica.shows_beside(tenure.lock.name, tenure.fence)

    def _why(self, tenure: Tenure, news: News) -> End:
        for freed in news.freed:
            if freed.fence == tenure.fence and freed.lock == tenure.lock:
                return freed.reason
        # A snapshot came instead of the entry that says it; who had said goodbye was heard.
        return "released" if tenure.parted else "unknown"

    def _over(self, tenure: Tenure, end: End) -> None:
        tenure.phase, tenure.end = "over", end
        self._tenures.remove(tenure)


def holder_of(replica: Replica, state: str) -> LockImage | None:
    """Who holds the lock of a state, as far as this replica knows."""
    return replica.locks.get(LockName(kind="state", name=state))
