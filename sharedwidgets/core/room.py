"""The authority over one token: orders writes, checks them, and says what must happen, in order.

The guarantees, as the tests number them:

G1  One total order per room: every entry has the next seq.
G2  The pushes of one boot are ordered as it made them: n is dense, a later n waits for an earlier one.
G3  An acked push is in the log exactly once: its mark moves in the same batch as its entry.
G4  A refused push has no effect anywhere, and its author is told why, with the authoritative value; told again when the
    answer was lost with the socket.
G5  Two replicas of one audience at the same (epoch, seq) hold equal state.
G6  A lock holder sees everything that was ordered before its grant: the grant is an entry, and its fence that entry's seq.
G7  A write under a lost lock never takes effect: it names a fence that is not held any more.
G8  No state entry is dropped silently: a frame covers (prev, last], and what is folded is superseded.
G9  A kernel-only trait never reaches a frontend in any form.
G10 A push of several ops is all or nothing, under one seq.

`Room` returns effects in the order in which they must become visible. The shell appends the batch of `Record` effects to the
store before it carries out any of them.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import msgspec

from sharedwidgets.core import delta
from sharedwidgets.core import locks as locking
from sharedwidgets.core import schema as schemas
from sharedwidgets.core.delta import State, States
from sharedwidgets.core.protocol import (
    REACTS,
    Acquire,
    Actor,
    Append,
    Applied,
    Audience,
    Bye,
    Cancel,
    Define,
    Entries,
    Entry,
    EntryOp,
    Failure,
    Freed,
    Granted,
    Inc,
    Join,
    Joined,
    Leave,
    Limits,
    LockImage,
    LockName,
    Member,
    Members,
    MemberState,
    Nack,
    Op,
    Origin,
    Problem,
    Push,
    Release,
    Renew,
    Resend,
    Resume,
    Set,
    Snapshot,
    Splice,
    StateImage,
    TraitSchema,
    Waiting,
    Wire,
    of_users,
)
from sharedwidgets.core.revisions import Revisions
from sharedwidgets.core.values import MAX_DEPTH, Value, depth, same, size
from sharedwidgets.errors import (
    Forbidden,
    InvalidValue,
    Locked,
    LockLost,
    LockTimeout,
    NoSuchLock,
    NoSuchRoom,
    NoSuchState,
    OutcomeUnknown,
    OutOfBounds,
    ReactionTooDeep,
    RevisionMismatch,
    RoomGone,
    SharedWidgetsError,
    TooLarge,
    ValueMismatch,
)

# Verdicts of refused pushes that are kept per boot, for an author whose socket died with the answer.
KEPT_REFUSALS = 100
# Who ends what nobody ended.
SERVER = Actor(id="server", kind="server")
# Of the sentence that goes with each.
KEPT_CHARACTERS = 500
# States one boot may link in one room: each news of a member names them all.
MOST_STATES = 128


# Marks that are kept per room; beyond, the longest silent boots are forgotten first.
KEPT_MARKS = 10_000
# Labels of its log that a room knows: each load makes one, and who comes with an older one gets a snapshot.
KEPT_EPOCHS = 32


class Now(NamedTuple):
    """The time of a decision: `mono` seconds for deadlines, `wall` seconds since 1970 for people."""

    mono: float
    wall: float


class Revision(NamedTuple):
    """Where a room stood: the label of its log, which no other room and no other log has, and the seq in it."""

    epoch: str
    seq: int


class Mark(Wire, frozen=True, kw_only=True):
    """How far the pushes of one boot are decided, when it was last heard (wall seconds), and the verdicts it waits for."""

    n: int = 0
    at: float = 0.0
    refused: tuple[Nack, ...] = ()
    applied: tuple[Applied, ...] = ()


class RoomImage(Wire, frozen=True, kw_only=True):
    """A room whole, as a store keeps it. `epochs` are (label, first seq), oldest first."""

    incarnation: str
    epochs: tuple[tuple[str, int], ...]
    seq: int
    states: dict[str, StateImage]
    marks: dict[str, Mark]
    locks: tuple[locking.HeldLock, ...] = ()


@dataclass(frozen=True)
class Author:
    """Who speaks, as the server established it: `boot` is the process, `member` the one it belongs to."""

    boot: str
    member: Member
    audience: Audience
    may_write: bool
    origin: Origin

    @property
    def actor(self) -> Actor:
        """The author as an entry names it."""
        return Actor(id=self.member.id, kind=self.origin, user=self.member.user, kernel_id=self.member.kernel_id)

    @property
    def frontend(self) -> bool:
        """Whether kernel-only traits must not exist for it."""
        return self.audience == "frontend"


@dataclass(frozen=True)
class Record:
    """Append to the store, then send `entry` to every attached kernel and `public` to every attached frontend."""

    entry: Entry | None = None
    public: Entry | None = None
    boot: str | None = None
    mark: Mark | None = None


@dataclass(frozen=True)
class Forget:
    """Drop the marks of these boots from the store: nobody came back to them."""

    boots: tuple[str, ...]


@dataclass(frozen=True)
class Attach:
    """From here on this boot gets the room's entries."""

    boot: str
    audience: Audience


@dataclass(frozen=True)
class Detach:
    """From here on it does not."""

    boot: str


@dataclass(frozen=True)
class Send:
    """To one boot."""

    boot: str
    message: Snapshot | Joined | Entries | Nack | Applied | Resend | Members | Waiting | Failure | Bye


@dataclass(frozen=True)
class Tell:
    """To every attached boot but one."""

    message: Members | Waiting
    but: str | None = None


@dataclass(frozen=True)
class Answer:
    """The outcome of a request from outside: the seq it took, or why not."""

    ticket: int
    outcome: int | SharedWidgetsError


FromClient: TypeAlias = Join | Leave | Resume | Push | Acquire | Cancel | Renew | Release
Effect: TypeAlias = Record | Forget | Attach | Detach | Send | Tell | Answer


@dataclass
class _Lost:
    """A boot whose connection is gone, and the time from which it is gone itself; None when that came and it lives on."""

    gone_at: float | None
    # Whether somebody who can know says that its process lives.
    vouched: bool = False


@dataclass
class _Presence:
    member: Member
    boots: dict[str, set[str]] = field(default_factory=dict)
    # Each has its own time: what it holds and waits for ends with it, though another boot of the member lives on (H7).
    lost: dict[str, _Lost] = field(default_factory=dict)

    def seen(self) -> Member:
        states = sorted(set().union(*self.boots.values())) if self.boots else self.member.states
        away = any(lost.gone_at is not None for lost in self.lost.values())
        state: MemberState = "live" if self.boots else "away" if away else "unresponsive"
        return msgspec.structs.replace(self.member, state=state, states=tuple(states))


class _Stale(Exception):
    """A splice was cut from a value the room no longer holds."""


class Room:
    """One token's state, log tail, marks and members.

    Parameters
    ----------
    token : str
        The room's name.
    incarnation, epoch : str
        Fresh random labels; an image brings its own and starts a new epoch.
    limits : Limits
        The server's numbers.
    image : RoomImage, optional
        What the store kept.
    now : float
        Monotonic seconds: the leases in the image start anew (H26).
    buried : container of (str, str)
        The rooms that were deleted, as (token, incarnation).
    """

    def __init__(
        self,
        token: str,
        *,
        incarnation: str,
        epoch: str,
        limits: Limits,
        image: RoomImage | None = None,
        now: float = 0.0,
        buried: Container[tuple[str, str]] = (),
    ) -> None:
        self.token = token
        self._buried = buried
        self.limits = limits
        self.incarnation = image.incarnation if image else incarnation
        self.seq = image.seq if image else 0
        self.epochs: list[tuple[str, int]] = [*(image.epochs if image else ()), (epoch, self.seq + 1)][-KEPT_EPOCHS:]
        self.states: States = {name: State.from_image(item) for name, item in image.states.items()} if image else {}
        self.marks: dict[str, Mark] = dict(image.marks) if image else {}
        self.acked_lost = 0
        self.locks = locking.LockTable.from_image(
            image.locks if image else (), now, waiters=limits.lock_waiters, names=limits.locks
        )
        self._revisions = Revisions(self.seq)
        self._presences: dict[str, _Presence] = {}
        self._attached: dict[str, Author] = {}
        # By (state, trait): the boot whose first value it got. And the boot from whose copy the room was made again, with the
        # number up to which its pushes were made before that (H8).
        self._makers: dict[tuple[str, str], str] = {}
        self._copied: tuple[str, int] = ("", 0)
        # What this room was called before it was lost and made again: who still has that one is of this one.
        self._former: tuple[str, ...] = ()
        # Boots that went in a window the store did not take: what they held is not free yet (H9).
        self._orphans: set[str] = set()
        # Boots that were asked to send again from a number; what they sent beyond it is ignored until it comes.
        self._awaited: dict[str, int] = {}
        self._tail: deque[tuple[Entry, Entry | None, int, float]] = deque()
        self._tail_bytes = 0
        self._bytes = sum(state.bytes for state in self.states.values())

    @property
    def epoch(self) -> str:
        """The label of the log being written now."""
        return self.epochs[-1][0]

    @property
    def names(self) -> tuple[tuple[str, str], ...]:
        """This room as (token, incarnation), and the one it was made again from: what is buried with it."""
        return tuple((self.token, incarnation) for incarnation in (self.incarnation, *self._former))

    @property
    def members(self) -> tuple[Member, ...]:
        """Everyone in the room, in the order of coming."""
        return tuple(presence.seen() for presence in self._presences.values())

    @property
    def held_locks(self) -> tuple[LockImage, ...]:
        """The locks that are held, as members see them."""
        return tuple(_lock_image(lock) for lock in self.locks.image())

    @property
    def bytes(self) -> int:
        """About how many bytes the values take."""
        return self._bytes

    @property
    def idle(self) -> bool:
        """Whether nobody is in the room."""
        return not self._presences

    def image(self) -> RoomImage:
        """The room as a store keeps it."""
        states = {name: state.image() for name, state in self.states.items()}
        return RoomImage(
            incarnation=self.incarnation,
            epochs=tuple(self.epochs),
            seq=self.seq,
            states=states,
            marks=dict(self.marks),
            locks=self.locks.image(),
        )

    def revision(self, state: str) -> int:
        """The seq of the last change in a state."""
        return self._revisions.of_state(state)

    def receive(self, author: Author, message: FromClient, now: Now) -> list[Effect]:
        """What follows from a client's message."""
        # What is over by now is over for this decision too.
        return [*self._expired(now), *self._received(author, message, now)]

    def _received(self, author: Author, message: FromClient, now: Now) -> list[Effect]:
        match message:
            case Push():
                return self._push(author, message, now)
            case Acquire() | Cancel() | Renew() | Release():
                return self._locked(author, message, now)
            case Join():
                return self._join(author, message, now)
            case Resume():
                return self._resume(author, message, now)
            case Leave():
                return self._leave(author, message.state, now)

    def request(self, ticket: int, author: Author, ops: Sequence[Op], base: Revision | None, now: Now) -> list[Effect]:
        """What follows from a request from outside: one push without a replica.

        With a `base` it is refused when a state it names changed after that, or when that is of another log.
        """
        expired = self._expired(now)
        try:
            if base is not None:
                self._check_states(author, ops, base)
            decided, growth = self._decide(author, ops, now)
            record = self._commit(author.actor, decided, growth, now)
        except _Stale:
            return [*expired, Answer(ticket, InvalidValue("a splice needs a replica; set the whole value"))]
        except SharedWidgetsError as error:
            return [*expired, Answer(ticket, error.located(room=self.token))]
        return [*expired, record, Answer(ticket, self.seq)]

    def _check_states(self, author: Author, ops: Sequence[Op], base: Revision) -> None:
        if base.epoch != self.epoch:
            raise RevisionMismatch("the room was made anew since it was read; read it again")
        for op in ops:
            changed = self._changed(op.state, author)
            if changed > base.seq:
                raise RevisionMismatch(
                    f"{op.state} changed at seq {changed}, after {base.seq}; read it again",
                    state=op.state,
                    path=op.path,
                    expected=f"seq {self.seq}",
                )

    def break_lock(self, ticket: int, author: Author, lock: LockName, now: Now) -> list[Effect]:
        """What follows from a request to take a lock from whoever holds it; its writes under it are refused from here on."""
        effects = self._expired(now)
        try:
            self._check_may_break(author, lock)
        except SharedWidgetsError as error:
            return [*effects, Answer(ticket, error.located(room=self.token))]
        effects += self._lock_effects(self.locks.break_lock(lock, now.mono, self.seq), now, author.actor)
        return [*effects, Answer(ticket, self.seq)]

    def _check_may_break(self, author: Author, lock: LockName) -> None:
        """Raise for who may not, and for a lock that cannot be meant: a mistyped name would leave the one that is held."""
        if not author.may_write:
            raise Forbidden("you may read this room, not break its locks; ask for the right 'write'")
        name = lock.name
        if lock.kind == "state":
            self._check_lockable(name)
        elif lock not in self.locks.names() and name in self.states:
            raise NoSuchLock(
                f"nobody has the named lock {name!r}, and there is a state {name!r}; break the lock of the state instead, with "
                f"DELETE …/states/{name}/lock"
            )

    def _check_lockable(self, state: str) -> None:
        """Raise `NoSuchState`, also for a state that is none of a user's: who locked it would keep all from reacting."""
        if state not in self.states or state.endswith(REACTS):
            there = ", ".join(of_users(self.states)) or "none"
            raise NoSuchState(f"there is no state {state!r} to lock; there is {there}", state=state)

    def reset(self, ticket: int, author: Author, states: Sequence[str], now: Now) -> list[Effect]:
        """What follows from a request to put states back to their defaults: one entry for all of them, like any other change.

        Without names it is every state of a user's. Traits the author may not see stay as they are (G9).
        """
        expired = self._expired(now)
        try:
            ops = [op for state in states or of_users(self.states) for op in self._undoing(author, state)]
            if not ops:
                return [*expired, Answer(ticket, self.seq)]
            decided, growth = self._decide(author, ops, now, most_ops=len(ops))
            record = self._commit(author.actor, decided, growth, now)
        except SharedWidgetsError as error:
            return [*expired, Answer(ticket, error.located(room=self.token))]
        return [*expired, record, Answer(ticket, self.seq)]

    def _undoing(self, author: Author, state: str) -> list[Op]:
        """What sets the traits of a state to their defaults where they hold something else."""
        found = self.states.get(state)
        if found is None:
            raise NoSuchState(
                f"there is no state {state!r} here; there is {', '.join(of_users(self.states)) or 'none'}", state=state
            )
        return [
            Set(state=state, path=(trait,), value=kind.default)
            for trait, kind in found.schema.items()
            if not (author.frontend and kind.kernel_only) and not same(found.values[trait], kind.default)
        ]

    def _changed(self, state: str, author: Author) -> int:
        """The seq of the last change in a state that the author may know of (H15)."""
        if not author.frontend:
            return self._revisions.of_state(state)
        schema = self.states.get(state, State()).schema
        return max((self._revisions.of(state, (trait,)) for trait, kind in schema.items() if not kind.kernel_only), default=0)

    def refuse(self, author: Author, push: Push, error: SharedWidgetsError, now: Now) -> list[Effect]:
        """Decide a push by refusing it, whatever it holds; nothing happens when it is not its turn."""
        mark = self.marks.get(author.boot, Mark())
        return self._refuse(author, push, mark, error, now) if push.n == mark.n + 1 else []

    def disconnect(self, boot: str, now: Now, since: float | None = None) -> list[Effect]:
        """The connection of a boot is gone; its member may come back within `away_seconds`, a page within `page_away_seconds`.

        Parameters
        ----------
        boot : str
            Whose connection.
        now : Now
        since : float, optional
            The monotonic time at which it went, where that is noticed later; seconds.
        """
        effects: list[Effect] = []
        author = self._attached.pop(boot, None)
        self._awaited.pop(boot, None)
        if author is None:
            return effects
        effects.append(Detach(boot))
        if boot in self.marks:
            # Its time runs from now: it was heard until it went.
            self.marks[boot] = msgspec.structs.replace(self.marks[boot], at=now.wall)
        self.locks.disconnected(boot)
        presence = self._presences[author.member.id]
        before = presence.seen()
        states = presence.boots.pop(boot)
        presence.lost[boot] = self._lost(presence, now.mono if since is None else since)
        if not presence.boots:
            presence.member = msgspec.structs.replace(presence.member, states=tuple(sorted(states)))
        if presence.seen() != before:
            effects.append(Tell(Members(room=self.token, present=(presence.seen(),))))
        return effects

    def process(self, boot: str, alive: bool, now: Now) -> list[Effect]:
        """What is known of the process of a boot that lost its connection.

        One that lives is *unresponsive* from the time at which it would be gone; one that is dead is gone now. A boot that
        came back meanwhile is what its connection says it is.
        """
        member, presence = next(((name, item) for name, item in self._presences.items() if boot in item.lost), ("", None))
        if presence is None:
            return self._expired(now)
        if alive:
            presence.lost[boot].vouched = True
            return []
        effects = self._bury(member, [boot], now)
        gone = member not in self._presences
        return [*effects, Tell(Members(room=self.token, gone=(member,)))] if gone else effects

    def elsewhere(self, boot: str, now: Now) -> list[Effect]:
        """A boot that lost its connection has another one: here it is gone, too, unless it comes back as quickly as any other.

        It may have left the room while nobody heard it, and that its process lives keeps it here no longer.
        """
        presence = next((item for item in self._presences.values() if boot in item.lost), None)
        if presence is None:
            return []
        before = presence.seen()
        presence.lost[boot] = self._lost(presence, now.mono)
        after = presence.seen()
        return [Tell(Members(room=self.token, present=(after,)))] if after != before else []

    def delete(self) -> list[Effect]:
        """The room ends, and with it this incarnation: whoever is here is told and let go (H18)."""
        effects: list[Effect] = []
        for boot in list(self._attached):
            effects += [Send(boot, self._farewell(self.incarnation)), Detach(boot)]
        self._attached.clear()
        self._presences.clear()
        return effects

    def tick(self, now: Now) -> list[Effect]:
        """Members that stayed away are gone, or unresponsive; marks nobody came back to are forgotten."""
        effects: list[Effect] = self._expired(now)
        present: list[Member] = []
        gone: list[str] = []
        for name, item in [*self._presences.items()]:
            before = item.seen()
            due = [boot for boot, lost in item.lost.items() if lost.gone_at is not None and lost.gone_at <= now.mono]
            for boot in due:
                item.lost[boot].gone_at = None
            effects += self._bury(name, [boot for boot in due if not item.lost[boot].vouched], now)
            if name not in self._presences:
                gone.append(name)
            elif item.seen() != before:
                present.append(item.seen())
        surplus = len(self.marks) - KEPT_MARKS
        forgotten: list[str] = []
        for boot, mark in sorted(self.marks.items(), key=lambda item: item[1].at):
            if boot not in self._attached and (surplus > 0 or mark.at < now.wall - self.limits.mark_seconds):
                del self.marks[boot]
                forgotten.append(boot)
                surplus -= 1
        if forgotten:
            effects.append(Forget(tuple(forgotten)))
        if present or gone:
            effects.append(Tell(Members(room=self.token, present=tuple(present), gone=tuple(gone))))
        return effects

    def next_deadline(self) -> float | None:
        """The monotonic time at which `tick` has something to do; None for not before something happens."""
        lost = [lost.gone_at for item in self._presences.values() for lost in item.lost.values()]
        times = [time for time in lost if time is not None]
        lease = self.locks.next_deadline()
        return min(times if lease is None else [*times, lease], default=None)

    def since(self, audience: Audience, epoch: str, seq: int) -> Entries | None:
        """The tail after `seq` for an audience, when the log still reaches back to it."""
        if not self._reaches(epoch, seq):
            return None
        entries = [public if audience == "frontend" else entry for entry, public, _, _ in self._tail if entry.seq > seq]
        return Entries(
            room=self.token,
            epoch=self.epoch,
            prev=seq,
            last=self.seq,
            entries=tuple(entry for entry in entries if entry is not None),
        )

    def snapshot(self, boot: str, audience: Audience) -> Snapshot:
        """The room whole, as an audience may see it."""
        frontend = audience == "frontend"
        mark = self.marks.get(boot)
        return Snapshot(
            room=self.token,
            incarnation=self.incarnation,
            epoch=self.epoch,
            seq=self.seq,
            states={name: state.image(frontend=frontend) for name, state in self.states.items()},
            decided=mark.n if mark else 0,
            members=self.members,
            locks=self.held_locks,
        )

    def catch_up(self, boot: str, audience: Audience, incarnation: str, epoch: str, seq: int) -> Snapshot | Entries:
        """What brings a replica from where it stands to now: whichever of tail and snapshot is fewer bytes."""
        tail = self.since(audience, epoch, seq) if incarnation == self.incarnation else None
        if tail is None or sum(item[2] for item in self._tail if item[0].seq > seq) > self._bytes + 256:
            return self.snapshot(boot, audience)
        mark = self.marks.get(boot)
        return msgspec.structs.replace(tail, decided=mark.n if mark else 0)

    def recovered(self, attached: Iterable[Author]) -> list[Effect]:
        """After a reload in mid-flight: bring everyone who was attached to what the store holds, and ask for the rest."""
        effects: list[Effect] = []
        for author in attached:
            mark = self.marks.get(author.boot, Mark())
            # The store may have taken a verdict whose message was thrown away: it comes before the snapshot that counts it.
            effects += [Send(author.boot, nack) for nack in mark.refused]
            effects += [Send(author.boot, answer) for answer in mark.applied]
            effects.append(Send(author.boot, self.snapshot(author.boot, author.audience)))
            effects.append(Send(author.boot, Resend(room=self.token, n=mark.n + 1)))
            self._awaited[author.boot] = mark.n + 1
        return effects

    def adopt(self, other: Room, told: Iterable[str], now: Now) -> list[Author]:
        """Take over who is here from the room object this one replaces; the authors attached.

        Only boots that were `told` they are let in are: the joins of others are decided once more, and let them in then.
        """
        known = set(told)
        self._presences = other._presences
        self._attached = {boot: author for boot, author in other._attached.items() if boot in known}
        freed = {lock.boot for lock in self.locks.image()} - {lock.boot for lock in other.locks.image()}
        self._makers, self._copied, self._former = other._makers, other._copied, other._former
        lost = {boot for presence in self._presences.values() for boot in presence.lost}
        self._orphans = (freed | other._orphans) - self._attached.keys() - lost
        for presence in self._presences.values():
            for boot in [boot for boot in presence.boots if boot not in self._attached]:
                del presence.boots[boot]
                presence.lost[boot] = self._lost(presence, now.mono)
        return list(self._attached.values())

    # --- pushes

    def _push(self, author: Author, push: Push, now: Now) -> list[Effect]:
        if author.boot not in self._attached:
            return [Send(author.boot, self._failure(None, NoSuchRoom("join the room before you write to it", room=self.token)))]
        mark = self.marks.get(author.boot, Mark())
        if push.n <= mark.n:
            return self._told_again(author, push.n, mark)
        if push.n > mark.n + 1:
            if self._awaited.get(author.boot) == mark.n + 1:
                return []
            return [self._resend(author.boot, mark.n + 1)]
        self._awaited.pop(author.boot, None)
        try:
            self._check_depth(push)
            self._check_copies(author, push)
            decided, growth = self._decide(author, push.ops, now, push.fences, epoch=push.epoch)
        except _Stale:
            return [self._resend(author.boot, push.n)]
        except SharedWidgetsError as error:
            return self._refuse(author, push, mark, error, now)
        record = self._commit(author.actor, decided, growth, now, push.depth)
        answers = (self._answer(push.n, decided[-1]),) if push.answer else ()
        # As many are kept as may be under way.
        applied = (*mark.applied, *answers)[-self.limits.in_flight_pushes :]
        moved = Mark(n=push.n, at=now.wall, refused=mark.refused, applied=applied)
        self.marks[author.boot] = moved
        return [
            *(Send(author.boot, answer) for answer in answers),
            dataclasses.replace(record, boot=author.boot, mark=moved),
        ]

    def _answer(self, n: int, op: Op) -> Applied:
        """What the author of a push waits to hear: the number its last op left. Other values it sees in its replica."""
        left = delta.below(self.states[op.state].values[op.path[0]], op.path)
        number = left if isinstance(left, (int, float)) and not isinstance(left, bool) else None
        return Applied(room=self.token, n=n, seq=self.seq, value=number)

    def _decide(
        self,
        author: Author,
        ops: Sequence[Op],
        now: Now,
        fences: Mapping[str, int] | None = None,
        most_ops: int | None = None,
        epoch: str = "",
    ) -> tuple[list[Op], int]:
        """The ops as they will stand in the entry and the bytes they add.

        Raises, and changes nothing, when one of them may not be (G10).
        """
        most_ops = most_ops or self.limits.push_ops
        if not author.may_write:
            raise Forbidden("you may read this room, not write to it; ask for the right 'write' on 'sharedwidgets'")
        if len(ops) > most_ops:
            raise TooLarge(
                f"a push may have {most_ops} ops, this one has {len(ops)}; split it",
                expected=f"≤ {most_ops} ops",
            )
        delta.check_ops(ops, self.limits.op_bytes)
        for state in dict.fromkeys(op.state for op in ops):
            self._check_lock(author, state, (fences or {}).get(state, 0), now)
        end = self._end(epoch) if epoch else self.seq
        trial: dict[tuple[str, str], Value] = {}
        owned = delta.Owned()
        decided: list[Op] = []
        growth = 0
        for op in ops:
            key = (op.state, op.path[0])
            kind, held = delta.find(self.states, *key, frontend=author.frontend)
            before = trial.get(key, held)
            self._check_base(op, before, key in trial, end)
            op = self._plain(op)
            gained = delta.growth(before, op)
            after = delta.apply(before, op, owned)
            schemas.check(kind, after, state=op.state, trait=op.path[0])
            _check_bounds(op, after)
            decided.append(delta.decided(op, after))
            growth += gained
            trial[key] = after
        if growth > 0 and self._bytes + growth > self.limits.room_bytes:
            raise TooLarge(
                f"the room would hold {self._bytes + growth} bytes; it may hold {self.limits.room_bytes}",
                state=ops[0].state,
                path=ops[0].path,
                expected=f"≤ {self.limits.room_bytes} bytes",
            )
        return decided, growth

    def _check_depth(self, push: Push) -> None:
        """Raise where a chain of reactions has no end: clients cut it themselves, this one did not."""
        most = self.limits.reactions
        if push.depth > most:
            first = push.ops[0]
            raise ReactionTooDeep(
                f"{first.state}.{first.path[0]} was to be changed by reaction {push.depth} of a chain of at most {most}: two "
                "reactions set each other off; let one of them write only while something is left to do",
                state=first.state,
                path=first.path,
                expected=f"depth ≤ {most}",
            )

    def _check_copies(self, author: Author, push: Push) -> None:
        """Raise where a push from before the room was made again meets a trait that came from the copy of another boot.

        That copy may hold the push already; what came from the author's own does not.
        """
        boot, highest = self._copied
        if author.boot != boot or push.n > highest:
            return
        for op in push.ops:
            if self._makers.get((op.state, op.path[0])) != boot:
                raise OutcomeUnknown(
                    f"the server lost the room, and {op.state}.{op.path[0]} came back from another member, which may have seen "
                    "this write; look at the value and write again if needed",
                    state=op.state,
                    path=op.path,
                )

    def _plain(self, op: Op) -> Op:
        """The op without what only a server may say, checked for depth."""
        match op:
            case Inc():
                return msgspec.structs.replace(op, value=None)
            case Set():
                levels = depth([op.value, *(op.if_in or ())]) - 1
            case Append():
                levels = depth(list(op.items))
            case Splice():
                levels = depth(op.insert)
            case _:
                levels = 0
        if levels + len(op.path) - 1 > MAX_DEPTH:
            raise InvalidValue(
                f"{op.state}.{op.path[0]}: nested deeper than {MAX_DEPTH} levels",
                state=op.state,
                path=op.path,
                expected=f"at most {MAX_DEPTH} levels",
            )
        return op

    def _check_base(self, op: Op, before: Value, touched: bool, end: int) -> None:
        if isinstance(op, Splice) and (touched or not self._unchanged(op, op.rev, end)):
            raise _Stale
        if isinstance(op, Set) and op.if_rev is not None and not self._unchanged(op, op.if_rev, end):
            raise RevisionMismatch(
                f"{op.state}.{'.'.join(op.path)} changed after seq {op.if_rev}; read it again", state=op.state, path=op.path
            )
        if (
            isinstance(op, Set)
            and op.if_in is not None
            and not any(same(delta.below(before, op.path), one) for one in op.if_in)
        ):
            raise ValueMismatch(
                f"{op.state}.{'.'.join(op.path)} is not what was expected; read it again", state=op.state, path=op.path
            )

    def _unchanged(self, op: Op, rev: int, end: int) -> bool:
        """Whether the path is as it was at `rev` of a log with that end; beyond it is what was lost."""
        return self._revisions.of(op.state, op.path) <= rev <= end

    def _end(self, epoch: str) -> int:
        """The last seq of a log; -1 of one that is not known, which was another room's or is too old."""
        ends = [first - 1 for _, first in self.epochs[1:]] + [self.seq]
        return next((last for (label, _), last in zip(self.epochs, ends, strict=True) if label == epoch), -1)

    def _commit(
        self,
        actor: Actor,
        ops: Sequence[EntryOp],
        growth: int,
        now: Now,
        reactions: int = 0,
    ) -> Record:
        """Give the next seq to decided ops and make them so (G1)."""
        entry = Entry(seq=self.seq + 1, at=now.wall, by=actor, ops=tuple(ops), depth=reactions)
        delta.apply_entry(self.states, entry)
        public = delta.for_frontends(entry, self.states)
        self.seq = entry.seq
        self._revisions.note(entry)
        self._bytes += growth
        weight = 96 + sum(_weight(op) for op in ops)
        self._tail.append((entry, public, weight, now.mono))
        self._tail_bytes += weight
        self._trim(now.mono)
        return Record(entry, public)

    def _refuse(self, author: Author, push: Push, mark: Mark, error: SharedWidgetsError, now: Now) -> list[Effect]:
        """The push is decided, and has no effect (G4); the mark moves, so that it is never tried again."""
        nack = Nack(room=self.token, n=push.n, problem=problem(error), seq=self.seq, values=self._values(author, push.ops))
        told = nack.problem
        wanted = told.expected[:KEPT_CHARACTERS] if told.expected else None
        brief = msgspec.structs.replace(told, message=told.message[:KEPT_CHARACTERS], path=told.path[:1], expected=wanted)
        kept = msgspec.structs.replace(nack, values={}, problem=brief)
        # As many as may be under way: of each the author must hear, also after its socket died.
        most = max(KEPT_REFUSALS, self.limits.in_flight_pushes)
        moved = Mark(n=push.n, at=now.wall, refused=(*mark.refused, kept)[-most:], applied=mark.applied)
        self.marks[author.boot] = moved
        # A mark alone does not make a room: one that never held anything is not written down.
        record = [Record(boot=author.boot, mark=moved)] if self.seq else []
        return [*record, Send(author.boot, nack)]

    def _told_again(self, author: Author, n: int, mark: Mark) -> list[Effect]:
        for nack in mark.refused:
            if nack.n <= n <= (nack.through or nack.n):
                return [Send(author.boot, nack)]
        ack = Entries(room=self.token, epoch=self.epoch, prev=self.seq, last=self.seq, decided=n)
        return [*(Send(author.boot, answer) for answer in mark.applied if answer.n == n), Send(author.boot, ack)]

    def _resend(self, boot: str, n: int) -> Send:
        self._awaited[boot] = n
        return Send(boot, Resend(room=self.token, n=n))

    # --- coming and going

    def _join(self, author: Author, join: Join, now: Now) -> list[Effect]:
        if join.resume is not None and self._was_deleted(join.resume):
            # Who was about to make it again is told that it ended, too.
            farewell = self._farewell(join.resume.incarnation)
            return [Send(author.boot, farewell), Send(author.boot, self._failure(join.id, _gone()))]
        effects: list[Effect] = []
        created = self.seq == 0
        linked = self._linked(author)
        if join.state not in (None, *linked) and len(linked) >= MOST_STATES:
            most = TooLarge(
                f"one process may link {MOST_STATES} states of a room; unlink some", expected=f"≤ {MOST_STATES} states"
            )
            return [Send(author.boot, self._failure(join.id, most))]
        if join.schema is not None and join.state is not None:
            try:
                definition = self._definition(author, join.state, join.schema, join.values or {})
            except SharedWidgetsError as error:
                return [Send(author.boot, self._failure(join.id, error))]
            if definition is not None:
                held = self.states.get(join.state, State()).schema
                self._makers |= {(join.state, trait): author.boot for trait in definition.schema if trait not in held}
                effects.append(self._commit(author.actor, [definition], self._growth(definition), now))
        if join.resume is not None:
            effects += self._verdicts(author, join.resume, now, mine=created and self.seq > 0)
        fresh = author.boot not in self._attached
        if fresh and join.resume is None:
            # It begins anew: what an earlier stay held or waited for ended with a goodbye that was lost with its socket.
            effects += self._lock_effects(self.locks.gone(author.boot, now.mono, self.seq), now, SERVER)
        member = self._enter(author, [join.state] if join.state is not None else [], now)
        if fresh:
            effects += [Attach(author.boot, author.audience), Send(author.boot, self.snapshot(author.boot, author.audience))]
            decided = self.marks.get(author.boot, Mark()).n
            if join.resume is not None and join.resume.highest > decided:
                # It may have sent them before it was let in, when nobody took them.
                effects.append(self._resend(author.boot, decided + 1))
        effects.append(Send(author.boot, Joined(id=join.id, room=self.token, seq=self.seq)))
        if member is not None:
            effects.append(Tell(Members(room=self.token, present=(member,)), but=author.boot if fresh else None))
        return effects

    def _resume(self, author: Author, resume: Resume, now: Now) -> list[Effect]:
        """Verdicts lost with a socket, and what happened since, cut at one seq."""
        if self._was_deleted(resume):
            return [Send(author.boot, self._farewell(resume.incarnation))]
        if self.seq == 0 and resume.seq > 0:
            return [Send(author.boot, self._failure(None, NoSuchRoom("the room is not here any more", room=self.token)))]
        self._awaited.pop(author.boot, None)
        effects = self._verdicts(author, resume, now, mine=False)
        fresh = author.boot not in self._attached
        member = self._enter(author, resume.states, now) if fresh else None
        if fresh:
            effects.append(Attach(author.boot, author.audience))
        answer = self.catch_up(author.boot, author.audience, resume.incarnation, resume.epoch, resume.seq)
        if fresh and isinstance(answer, Entries):
            # Who went meanwhile is in no tail: the one who comes back is told of everyone there is. It comes first, so that who
            # is here is never older news than the entries are.
            effects.append(Send(author.boot, Members(room=self.token, present=self.members, complete=True)))
        effects.append(Send(author.boot, answer))
        if member is not None:
            effects.append(Tell(Members(room=self.token, present=(member,)), but=author.boot))
        return effects

    def _verdicts(self, author: Author, resume: Resume, now: Now, *, mine: bool) -> list[Effect]:
        """Settle the open numbers of a boot that comes back, and say again what was refused.

        A boot nobody remembers cannot be told whether its open pushes took effect, except by the one whose copy the room was
        just made from (`mine`): that copy is from before them. In a room made anew even its first push may be in already.
        """
        if mine:
            self._copied, self._former = (author.boot, resume.highest), (resume.incarnation,)
        mark = self.marks.get(author.boot)
        effects: list[Effect] = []
        forgotten = resume.lowest > 1 or resume.incarnation != self.incarnation
        if mark is None and forgotten and not mine and resume.highest >= resume.lowest:
            unknown = OutcomeUnknown(
                "the server has no record of this process; look at the value and write again if needed", room=self.token
            )
            nack = Nack(room=self.token, n=resume.lowest, through=resume.highest, problem=problem(unknown), seq=self.seq)
            moved = Mark(n=resume.highest, at=now.wall, refused=(nack,))
            self.marks[author.boot] = moved
            return [Record(boot=author.boot, mark=moved), Send(author.boot, nack)]
        mark = mark or Mark()
        if resume.lowest > mark.n + 1:
            self.acked_lost += 0 if mine else resume.lowest - 1 - mark.n
            mark = msgspec.structs.replace(mark, n=resume.lowest - 1, at=now.wall)
            self.marks[author.boot] = mark
            effects.append(Record(boot=author.boot, mark=mark))
        effects += [Send(author.boot, nack) for nack in mark.refused if (nack.through or nack.n) >= resume.lowest]
        return [*effects, *(Send(author.boot, answer) for answer in mark.applied if answer.n >= resume.lowest)]

    def _definition(
        self, author: Author, state: str, schema: Mapping[str, TraitSchema], values: Mapping[str, Value]
    ) -> Define | None:
        """The entry a join with a schema needs: none, a new state, or traits the room's state lacks."""
        if author.frontend:
            raise Forbidden("a page joins without a schema and waits for a kernel or script to make the state", state=state)
        held = self.states.get(state, State())
        wanted = schemas.missing(held.schema, schema)
        clashes = schemas.conflicts(held.schema, schema)
        for trait in clashes:
            if not self._alone(author, state) or not schemas.replaceable(held.schema[trait], schema[trait]):
                raise schemas.conflict(state, trait, held.schema[trait], schema[trait])
        if not wanted and not clashes and state in self.states:
            return None
        if not author.may_write:
            raise Forbidden(f"you may read this room, not make {state} in it; ask for the right 'write'", state=state)
        chosen: dict[str, Value] = {}
        for trait, kind in schema.items():
            if trait in wanted or trait in clashes:
                chosen[trait] = self._first_value(state, trait, kind, held, values)
        for trait in chosen:
            if len(trait) > delta.MAX_NAME:
                raise InvalidValue(
                    f"{state}.{trait[:20]}…: the name of a trait has at most {delta.MAX_NAME} characters", state=state
                )
        definition = Define(
            state=state,
            schema={trait: schemas.with_default(schema[trait], value) for trait, value in chosen.items()},
            values=dict(chosen),
        )
        if self._bytes + self._growth(definition) > self.limits.room_bytes:
            raise TooLarge(f"the room may hold {self.limits.room_bytes} bytes", state=state)
        return definition

    def _growth(self, definition: Define) -> int:
        held = self.states.get(definition.state, State())
        before = {trait: value for trait, value in held.values.items() if trait in definition.schema}
        return State(definition.schema, definition.values).bytes - State(held.schema, before).bytes

    def _first_value(self, state: str, trait: str, kind: TraitSchema, held: State, values: Mapping[str, Value]) -> Value:
        if trait in held.values and schemas.fits(kind, held.values[trait]):
            return held.values[trait]
        first = values.get(trait, kind.default)
        schemas.check(kind, first, state=state, trait=trait)
        if size(first) + schemas.weight(kind) > self.limits.op_bytes or max(depth(first), schemas.levels(kind)) > MAX_DEPTH:
            raise TooLarge(
                f"{state}.{trait}: what it may hold and its first value are too large or nested too deep",
                state=state,
                path=(trait,),
                expected=f"≤ {self.limits.op_bytes} bytes and {MAX_DEPTH} levels",
            )
        return first

    def _alone(self, author: Author, state: str) -> bool:
        """Whether all live kernels and scripts of the state are the author's own: people edit a class and run it again."""
        mine = author.member.kernel_id or author.member.id
        return all(
            (item.member.kernel_id or item.member.id) == mine
            for item in self._presences.values()
            if item.boots and item.member.kind != "frontend" and state in item.seen().states
        )

    def _linked(self, author: Author) -> set[str]:
        """The states a boot links."""
        presence = self._presences.get(author.member.id)
        return set() if presence is None else presence.boots.get(author.boot, set())

    def _enter(self, author: Author, states: Iterable[str], now: Now) -> Member | None:
        """Book a boot as present; the member when it looks different now."""
        self._attached[author.boot] = author
        presence = self._presences.get(author.member.id)
        before = presence.seen() if presence else None
        if presence is None:
            # It came to this room now, whatever rooms it was in before: who was here first is asked of this number.
            presence = self._presences[author.member.id] = _Presence(msgspec.structs.replace(author.member, since=now.wall))
        presence.lost.pop(author.boot, None)
        presence.boots.setdefault(author.boot, set()).update([*states][:MOST_STATES])
        after = presence.seen()
        return after if after != before else None

    def _leave(self, author: Author, state: str | None, now: Now) -> list[Effect]:
        presence = self._presences.get(author.member.id)
        if presence is None or author.boot not in presence.boots:
            return []
        if state is not None:
            before = presence.seen()
            presence.boots[author.boot].discard(state)
            after = presence.seen()
            return [Tell(Members(room=self.token, present=(after,)))] if after != before else []
        del presence.boots[author.boot]
        self._attached.pop(author.boot, None)
        self._awaited.pop(author.boot, None)
        effects = [Detach(author.boot), *self._lock_effects(self.locks.gone(author.boot, now.mono, self.seq), now, SERVER)]
        if presence.boots:
            return [*effects, Tell(Members(room=self.token, present=(presence.seen(),)))]
        effects += self._bury(author.member.id, presence.lost, now)
        return [*effects, Tell(Members(room=self.token, gone=(author.member.id,)))]

    # --- locks

    def _locked(self, author: Author, message: Acquire | Cancel | Renew | Release, now: Now) -> list[Effect]:
        """What follows from a word about a lock; who has none of it any more sees so in the entries."""
        if author.boot not in self._attached:
            return [Send(author.boot, self._failure(None, NoSuchRoom("join the room before you lock in it", room=self.token)))]
        claim = locking.Claim(author.boot, message.owner, author.member.id, "")
        mono, seq = now.mono, self.seq
        match message:
            case Acquire():
                claim = locking.Claim(author.boot, message.owner, author.member.id, message.label)
                try:
                    if not author.may_write:
                        raise Forbidden("you may read this room, not lock in it; ask for the right 'write' on 'sharedwidgets'")
                    if message.lock.kind == "state":
                        self._check_lockable(message.lock.name)
                    lease = min(message.lease, self.limits.hold_seconds)
                    decided = self.locks.acquire(claim, message.lock, lease, mono, seq, wait=message.wait)
                except SharedWidgetsError as error:
                    return [Send(author.boot, self._failure(message.id, error))]
                refused = [self._failure(message.id, _taken(item)) for item in decided if isinstance(item, locking.Taken)]
                return [
                    *self._lock_effects(decided, now, author.actor),
                    *(Send(author.boot, failure) for failure in refused),
                ]
            case Cancel():
                return self._lock_effects(self.locks.cancel(claim, message.lock, mono, seq), now, author.actor)
            case Renew():
                return self._lock_effects(self.locks.renew(claim, message.lock, message.fence, mono, seq), now, author.actor)
            case Release():
                return self._lock_effects(self.locks.release(claim, message.lock, message.fence, mono, seq), now, author.actor)

    def _expired(self, now: Now) -> list[Effect]:
        """Leases that are over by now are ended before anything else is decided, and so is what nobody is left to hold."""
        effects = self._lock_effects(self.locks.tick(now.mono, self.seq), now, SERVER)
        orphans, self._orphans = sorted(self._orphans), set()
        for boot in orphans:
            effects += self._lock_effects(self.locks.gone(boot, now.mono, self.seq), now, SERVER)
        return effects

    def _lost(self, presence: _Presence, since: float) -> _Lost:
        """A boot that lost its connection then may come back; a page is not back before the kernel behind it has answered."""
        page = presence.member.kind == "frontend"
        return _Lost(since + (self.limits.page_away_seconds if page else self.limits.away_seconds))

    def _bury(self, member: str, boots: Iterable[str], now: Now) -> list[Effect]:
        """Lost boots are gone: what they held is free, they wait for nothing, and their member goes with the last one."""
        presence = self._presences[member]
        effects: list[Effect] = []
        for boot in sorted(boots):
            del presence.lost[boot]
            effects += self._lock_effects(self.locks.gone(boot, now.mono, self.seq), now, SERVER)
        if not presence.boots and not presence.lost:
            del self._presences[member]
        return effects

    def _lock_effects(self, effects: Iterable[locking.LockEffect], now: Now, by: Actor) -> list[Effect]:
        """What the table decided, as entries and presence."""
        told: list[Effect] = []
        for effect in effects:
            match effect:
                case locking.Granted(name=name, claim=claim):
                    granted = Granted(lock=name, member=claim.member, owner=claim.owner, label=claim.label, lease=effect.lease)
                    told.append(self._commit(self._actor(claim.member, by), [granted], 0, now))
                    assert self.seq == effect.fence
                case locking.Freed(name=name, fence=fence, reason=reason):
                    told.append(self._commit(by, [Freed(lock=name, fence=fence, reason=reason)], 0, now))
                case locking.Queued(name=name):
                    waiters = tuple(claim.member for claim in self.locks.waiters(name))
                    told.append(Tell(Waiting(room=self.token, lock=name, waiters=waiters)))
                case _:
                    # To one who asked: whether it holds the lock its replica shows, and that it is taken its own answer says.
                    pass
        return told

    def _actor(self, member: str, otherwise: Actor) -> Actor:
        presence = self._presences.get(member)
        if presence is None:
            return otherwise
        found = presence.member
        return Actor(id=found.id, kind=found.kind, user=found.user, kernel_id=found.kernel_id)

    def _check_lock(self, author: Author, state: str, fence: int, now: Now) -> None:
        """Raise unless the author may write the state's traits, by its lock (G7)."""
        name = LockName(kind="state", name=state)
        if self.locks.allows(name, author.boot, fence, now.mono):
            return
        holder = self.locks.holder(name)
        if fence:
            raise LockLost(f"the lock of {state!r} is not held any more; nothing was written", state=state)
        assert holder is not None
        left = max(0.0, holder.expires - now.mono)
        raise Locked(
            f"{state} is locked by {holder.claim.label or holder.claim.member}, for at most {left:.0f} s unless it is renewed; "
            "write under lock(), which waits for its turn",
            state=state,
        )

    # --- small parts

    def _was_deleted(self, resume: Resume) -> bool:
        return (self.token, resume.incarnation) in self._buried

    def _farewell(self, incarnation: str) -> Bye:
        return Bye(room=self.token, problem=problem(_gone().located(room=self.token)), incarnation=incarnation)

    def _failure(self, request: int | None, error: SharedWidgetsError) -> Failure:
        return Failure(id=request, room=self.token, problem=problem(error))

    def _values(self, author: Author, ops: Iterable[Op]) -> dict[str, dict[str, Value]]:
        """The authoritative values of the traits that ops name, as far as the author may see them."""
        values: dict[str, dict[str, Value]] = {}
        for op in ops:
            state = self.states.get(op.state)
            kind = state.schema.get(op.path[0]) if state else None
            if state is not None and kind is not None and not (kind.kernel_only and author.frontend):
                values.setdefault(op.state, {})[op.path[0]] = state.values[op.path[0]]
        return values

    def _reaches(self, epoch: str, seq: int) -> bool:
        """Whether the tail still has everything after `seq` of that epoch."""
        oldest = self._tail[0][0].seq if self._tail else self.seq + 1
        return oldest - 1 <= seq <= self._end(epoch)

    def _trim(self, now: float) -> None:
        limits = self.limits
        while self._tail_bytes > limits.tail_bytes or (
            len(self._tail) > limits.tail_entries and now - self._tail[0][3] > limits.tail_seconds
        ):
            self._tail_bytes -= self._tail.popleft()[2]


def problem(error: SharedWidgetsError) -> Problem:
    """An error as it travels."""
    return Problem(
        code=error.code,
        message=str(error),
        state=error.state,
        path=error.path or ((error.trait,) if error.trait else ()),
        expected=error.expected,
    )


def _check_bounds(op: Op, after: Value) -> None:
    """Raise unless the sum is within the bounds its author named."""
    if not isinstance(op, Inc) or (op.min is None and op.max is None):
        return
    total = delta.below(after, op.path)
    assert isinstance(total, (int, float))
    # Written so that nan is within no bounds.
    if (op.min is None or total >= op.min) and (op.max is None or total <= op.max):
        return
    within = " and ".join(
        words
        for words in (f"at least {op.min}" if op.min is not None else "", f"at most {op.max}" if op.max is not None else "")
        if words
    )
    raise OutOfBounds(
        f"{op.state}.{'.'.join(op.path)} would be {total}, and it was to stay {within}; nothing was added",
        state=op.state,
        path=op.path,
        expected=within,
    )


def _weight(op: EntryOp) -> int:
    match op:
        case Define():
            return State(op.schema, op.values).bytes
        case Granted() | Freed():
            return 0
        case _:
            return delta.weight(op)


def _gone() -> SharedWidgetsError:
    """The error for who is in a room that was deleted, or comes back to it."""
    return RoomGone("the room was deleted; link to it again to make a new one")


def _taken(effect: locking.Taken) -> LockTimeout:
    """The error for who does not wait for a lock that another one holds."""
    name, holder = effect.name, effect.holder
    return LockTimeout(
        f"the lock {name.name!r} was not waited for: {holder.label or holder.member} holds it",
        state=name.name if name.kind == "state" else None,
    )


def _lock_image(lock: locking.HeldLock) -> LockImage:
    return LockImage(lock=lock.name, member=lock.member, owner=lock.owner, fence=lock.fence, label=lock.label, lease=lock.lease)
