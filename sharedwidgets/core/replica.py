"""One boot's copy of a room: what the server confirmed, plus own writes not decided yet.

The *view* is the confirmed values with the pending writes applied in order, so an own write shows at once and a remote one
never covers it. Writes are numbered when they are taken for sending, not before: until then a newer set of the same path
replaces an older one, and an unbounded sum is added up. Every number that was given keeps its ops until its verdict came.

Not thread-safe: the owner guards it with one lock.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import msgspec

from sharedwidgets.core import delta
from sharedwidgets.core import schema as schemas
from sharedwidgets.core.delta import State, States
from sharedwidgets.core.protocol import (
    Actor,
    Append,
    Applied,
    Define,
    Entries,
    Freed,
    Granted,
    Inc,
    LastChange,
    LockImage,
    LockName,
    Member,
    Members,
    Nack,
    Op,
    Problem,
    Push,
    Resend,
    Resume,
    Set,
    Snapshot,
    Splice,
    Waiting,
    shown,
)
from sharedwidgets.core.values import MAX_DEPTH, Value, added_up, normalise, same, text
from sharedwidgets.errors import InvalidValue, NotFound

TraitKey: TypeAlias = tuple[str, str]
ChangeOrigin: TypeAlias = Literal["local", "remote", "rollback", "resync"]


class Change(msgspec.Struct, frozen=True):
    """One trait looks different now. `old` and `new` are values of the view; `seq` is 0 for an own write not decided yet.

    `depth` says how many reactions led to it: the most, of several writes; 0 in a snapshot.
    """

    state: str
    trait: str
    old: Value
    new: Value
    origin: ChangeOrigin
    actor: Actor | None = None
    seq: int = 0
    depth: int = 0


class Reaction(msgspec.Struct, frozen=True):
    """What the newest entry of some depth changed, and who made it."""

    state: str
    trait: str
    actor: Actor


class Refused(msgspec.Struct, frozen=True):
    """An own push had no effect; `problem` says why and `values` what the room holds."""

    n: int
    ops: tuple[Op, ...]
    problem: Problem
    values: Mapping[str, Mapping[str, Value]]
    depth: int = 0


class News(msgspec.Struct):
    """What one message did to the replica.

    `defined`: a state or trait appeared; `locked`: who holds a lock changed; `ended`: the room is no more, and why; `heard`: it
    came from the server.
    """

    changes: list[Change] = msgspec.field(default_factory=list)
    refused: list[Refused] = msgspec.field(default_factory=list)
    joined: list[Member] = msgspec.field(default_factory=list)
    gone: list[Member] = msgspec.field(default_factory=list)
    send: list[Resume] = msgspec.field(default_factory=list)
    granted: list[Granted] = msgspec.field(default_factory=list)
    freed: list[Freed] = msgspec.field(default_factory=list)
    locked: bool = False
    defined: bool = False
    ended: Problem | None = None
    heard: bool = False


class Pending(msgspec.Struct, eq=False):
    """Ops of one push that have no verdict. `n` is 0 until taken; a `group` is never merged with others.

    What is `asked` is not in the view before its verdict, and its author waits for that: `problem` when it was refused, else
    `value` is the number it left. `epoch` is the log of the revisions its author named, if it did.
    """

    ops: tuple[Op, ...]
    group: bool
    depth: int = 0
    fences: Mapping[str, int] = msgspec.field(default_factory=dict)
    n: int = 0
    sent: bool = False
    whole: bool = False
    asked: bool = False
    epoch: str = ""
    problem: Problem | None = None
    value: int | float | None = None


class Replica:
    """The state machine of one boot in one room.

    Parameters
    ----------
    room : str
        The token.
    """

    def __init__(self, room: str) -> None:
        self.room = room
        # The member this boot is of; the server says so.
        self.member = ""
        self.incarnation = ""
        self.epoch = ""
        self.seq = 0
        self.version = 0
        self.states: States = {}
        self.members: dict[str, Member] = {}
        self.locks: dict[LockName, LockImage] = {}
        # Member ids, in order of coming; presence, and forgotten where a lock is granted or a snapshot comes.
        self.waiting: dict[LockName, tuple[str, ...]] = {}
        # Numbered pushes come first, and of those the sent ones: the list is in the order of making.
        self._pending: list[Pending] = []
        # The view of traits with pending writes; forgotten whenever what it was made from changes.
        self._shown: dict[TraitKey, Value] = {}
        # How many reactions led to the newest entry of a trait; what a snapshot brings begins a chain anew.
        self._depths: dict[TraitKey, int] = {}
        # By depth; all of one chain, unless several run at once.
        self._reactions: dict[int, Reaction] = {}
        self._next_n = 1
        self._catching_up = False

    @property
    def live(self) -> bool:
        """Whether a snapshot came at least once."""
        return self.epoch != ""

    @property
    def undecided(self) -> int:
        """How many pushes have no verdict yet, sent or not."""
        return len(self._pending)

    @property
    def unsent(self) -> int:
        """How many pushes wait to be sent."""
        return len(self._pending) - self._in_flight()

    def undecided_under(self, fence: int) -> int:
        """How many pushes under a fence have no verdict yet."""
        return sum(fence in push.fences.values() for push in self._pending)

    def holder(self, lock: LockName) -> Member | None:
        """Who holds a lock, as users are shown it."""
        found = self.locks.get(lock)
        member = None if found is None else self.members.get(found.member)
        return None if member is None else shown(member)

    def shows_beside(self, state: str, fence: int) -> bool:
        """Whether a state shows own writes that have no verdict and were not made under this fence."""
        return any(
            not push.asked and push.fences.get(state, 0) != fence and any(op.state == state for op in push.ops)
            for push in self._pending
        )

    def value(self, state: str, trait: str) -> Value:
        """A trait as this boot sees it: confirmed, with own pending writes.

        Raises
        ------
        NoSuchState, NoSuchTrait
        """
        key = (state, trait)
        _, value = delta.find(self.states, state, trait)
        if self._pending and key not in self._shown:
            for push in self._pending:
                if not push.asked:
                    value = _replayed(value, push.ops, state, trait)
            self._shown[key] = value
        return self._shown.get(key, value)

    def newest(self) -> Pending | None:
        """The push made last, while it has no verdict."""
        return self._pending[-1] if self._pending else None

    def is_open(self, push: Pending) -> bool:
        """Whether a push has no verdict yet."""
        return any(push is other for other in self._pending)

    def is_undecided(self, state: str, trait: str) -> bool:
        """Whether own writes to a trait have no verdict yet, and are in what it shows."""
        return any(not push.asked and (state, trait) in ((op.state, op.path[0]) for op in push.ops) for push in self._pending)

    def view(self, state: str) -> dict[str, Value]:
        """All traits of a state as this boot sees them; empty while the state does not exist."""
        found = self.states.get(state)
        return {} if found is None else {trait: self.value(state, trait) for trait in found.schema}

    def last_change(self, state: str, trait: str) -> LastChange | None:
        """Who made or changed a trait last; None when there is no such trait."""
        found = self.states.get(state)
        return None if found is None else found.last.get(trait)

    def depth(self, state: str, trait: str) -> int:
        """How many reactions led to the newest entry of a trait."""
        return self._depths.get((state, trait), 0)

    def chain(self, depth: int) -> list[Reaction]:
        """The entries that led to a reaction of this depth, the first of them first, as far as this replica heard of them."""
        found: list[Reaction] = []
        for step in range(depth - 1, -1, -1):
            if step not in self._reactions:
                break
            found.insert(0, self._reactions[step])
        return found

    def assign(self, state: str, trait: str, shown: Value, new: Value) -> list[Op]:
        """The ops of an assignment by an author who saw `shown`.

        It is a write when the value differs from what the author saw, or from what this replica holds: news not shown yet
        must neither be taken for the author's own, nor win over what the author says now.
        """
        kind, _ = delta.find(self.states, state, trait)
        ops = delta.diff(state, trait, kind.kind, shown, new)
        if not ops and not same(self.value(state, trait), new):
            ops = [Set(state=state, path=(trait,), value=new)]
        return ops

    def write(self, ops: Sequence[Op], *, group: bool = False, depth: int = 0, fences: Mapping[str, int] | None = None) -> News:
        """Make an own push of these ops; it shows in the view at once.

        Parameters
        ----------
        ops : sequence of Op
            One or more; several are one push, all or nothing.
        group : bool
            Whether the push must keep its border: it is never merged with another.
        depth : int
            How many reactions led here.
        fences : mapping of str to int, optional
            By state, the fence under which the author holds its lock.

        Raises
        ------
        InvalidValue, NoSuchState, NoSuchTrait, NoSuchPath
            Nothing is written then.
        """
        if not ops:
            return News()
        before = self._values((op.state, op.path[0]) for op in ops)
        trial: dict[TraitKey, Value] = {}
        checked: list[Op] = []
        for op in ops:
            key = (op.state, op.path[0])
            kind, _ = delta.find(self.states, *key)
            try:
                checked.append(_normalised(op))
                trial[key] = delta.apply(trial[key] if key in trial else self.value(*key), checked[-1])
                schemas.check(kind, trial[key], state=op.state, trait=op.path[0])
            except (InvalidValue, NotFound) as error:
                raise error.located(room=self.room, state=op.state) from None
        under = fences or {}
        if group or len(checked) != 1 or not self._merged(checked[0], depth, under):
            self._pending.append(
                Pending(tuple(checked), group or len(checked) > 1, depth, under, epoch=self._epoch_of(checked))
            )
        self._shown.update(trial)
        return News(self._changes(before, "local", dict.fromkeys(before, depth)))

    def ask(self, ops: Sequence[Op], *, depth: int = 0, fences: Mapping[str, int] | None = None) -> Pending:
        """Make an own push that shows nowhere before its verdict; the author looks at what is returned when it is decided.

        Raises
        ------
        InvalidValue, NoSuchState, NoSuchTrait
            Nothing is asked then.
        """
        checked: list[Op] = []
        for op in ops:
            kind, _ = delta.find(self.states, op.state, op.path[0])
            try:
                checked.append(_normalised(op))
                if isinstance(op, Set) and len(op.path) == 1:
                    schemas.check(kind, op.value, state=op.state, trait=op.path[0])
            except InvalidValue as error:
                raise error.located(room=self.room, state=op.state) from None
        push = Pending(tuple(checked), True, depth, fences or {}, asked=True, epoch=self._epoch_of(checked))
        self._pending.append(push)
        return push

    def withdraw(self, push: Pending) -> bool:
        """Take back what was asked and never sent; whether that was possible."""
        if push.n or not self.is_open(push):
            return False
        self._pending = [other for other in self._pending if other is not push]
        return True

    def take(self, in_flight: int) -> list[Push]:
        """Pushes to send now, numbered; no more than keep `in_flight` of them undecided at the server."""
        pushes: list[Push] = []
        if not self.live:
            return pushes
        for index in range(self._in_flight(), min(len(self._pending), in_flight)):
            push = self._pending[index]
            if not push.n:
                push.n = self._next_n
                self._next_n += 1
            push.sent = True
            ops = self._compressed(index)
            pushes.append(
                Push(
                    room=self.room,
                    n=push.n,
                    ops=ops,
                    depth=push.depth,
                    fences=dict(push.fences),
                    answer=push.asked,
                    epoch=self.epoch if any(isinstance(op, Splice) for op in ops) else push.epoch,
                )
            )
        return pushes

    def disconnected(self) -> None:
        """The connection is gone: what has no verdict counts as not sent."""
        # A new connection begins with a `Resume`: its answer is awaited like that of any other.
        self._catching_up = self.live
        for push in self._pending:
            push.sent = False

    def position(self, states: Iterable[str] = ()) -> Resume:
        """Where this replica stands: what it has, and which of its numbers are open."""
        numbered = [push.n for push in self._pending if push.n]
        return Resume(
            room=self.room,
            incarnation=self.incarnation,
            epoch=self.epoch,
            seq=self.seq,
            lowest=numbered[0] if numbered else self._next_n,
            highest=self._next_n - 1,
            states=tuple(states),
        )

    def receive(self, message: Snapshot | Entries | Nack | Applied | Resend | Members | Waiting) -> News:
        """Take in what the server said of this room."""
        match message:
            case Waiting():
                self.waiting[message.lock] = message.waiters
                self.version += 1
                return News(locked=True)
            case Snapshot():
                return self._snapshot(message)
            case Entries():
                return self._entries(message)
            case Nack():
                last = message.through or message.n
                return self._drop(lambda push: message.n <= push.n <= last, message.problem, message.values)
            case Applied():
                for push in self._pending:
                    if push.n == message.n:
                        push.value = message.value
                return News()
            case Resend():
                if message.n < self.position().lowest:
                    # The server forgot a verdict it gave: it must move on to where this boot is (H8).
                    return News(send=[self.position()])
                for push in self._pending:
                    if push.n >= message.n:
                        push.sent, push.whole = False, True
                return News()
            case Members():
                named = {member.id for member in message.present}
                missing = [name for name in self.members if name not in named] if message.complete else []
                return self._membership(message.present, [*message.gone, *missing])

    def abandon(self, problem: Problem) -> News:
        """Give up every pending push: each is refused with `problem` and leaves the view."""
        return self._drop(lambda push: True, problem, {})

    def _snapshot(self, snapshot: Snapshot) -> News:
        before = self._values((state, trait) for state, found in self.states.items() for trait in found.schema)
        self.states = {name: State.from_image(image) for name, image in snapshot.states.items()}
        self.incarnation, self.epoch, self.seq = snapshot.incarnation, snapshot.epoch, snapshot.seq
        self._catching_up = False
        self.locks = {image.lock: image for image in snapshot.locks}
        self.waiting.clear()
        self._shown.clear()
        self._depths.clear()
        self._reactions.clear()
        self._book(snapshot.decided)
        if not any(push.n for push in self._pending):
            # The numbers of this boot go on where the server stands: an earlier membership of the room counted too.
            self._next_n = max(self._next_n, snapshot.decided + 1)
        for name, found in self.states.items():
            for trait in found.schema:
                before.setdefault((name, trait), None)
        present = {member.id for member in snapshot.members}
        news = self._membership(snapshot.members, [name for name in self.members if name not in present])
        news.changes = self._changes(before, "resync")
        news.defined = news.locked = True
        return news

    def _entries(self, frame: Entries) -> News:
        if not self.live:
            return News()
        # The answer to a `Resume` may come from a later log that goes on exactly where this replica stands.
        follows = frame.epoch == self.epoch or (self._catching_up and frame.prev == self.seq)
        if not follows or frame.prev > self.seq:
            return self._gap()
        self.epoch = frame.epoch
        self._catching_up = False
        fresh = [entry for entry in frame.entries if entry.seq > self.seq]
        touched = [key for entry in fresh for op in entry.ops for key in delta.touched(op)]
        decided = [(push, (op.state, op.path[0])) for push in self._pending if 0 < push.n <= frame.decided for op in push.ops]
        touched += [key for _, key in decided]
        others = {key for entry in fresh if entry.by.id != self.member for op in entry.ops for key in delta.touched(op)}
        # What was asked shows only now, and is an own write all the same.
        own = {key for push, key in decided if push.asked} - others
        before = self._values(touched)
        for key in touched:
            self._shown.pop(key, None)
        granted: list[Granted] = []
        freed: list[Freed] = []
        locked = False
        depths: dict[TraitKey, int] = {}
        for entry in fresh:
            for key in delta.apply_entry(self.states, entry):
                depths[key] = max(depths.get(key, 0), entry.depth)
                self._depths[key] = entry.depth
                self._reactions[entry.depth] = Reaction(*key, entry.by)
            for op in entry.ops:
                match op:
                    case Granted():
                        waiting = list(self.waiting.get(op.lock, ()))
                        if op.member in waiting:
                            waiting.remove(op.member)
                        self.waiting[op.lock] = tuple(waiting)
                        self.locks[op.lock] = LockImage(
                            lock=op.lock, member=op.member, owner=op.owner, fence=entry.seq, label=op.label, lease=op.lease
                        )
                        granted.append(op)
                        locked = True
                    case Freed():
                        self.locks.pop(op.lock, None)
                        freed.append(op)
                        locked = True
                    case _:
                        pass
        self.seq = max(self.seq, frame.last)
        self._book(frame.decided)
        return News(
            self._changes(before, "remote", depths, own),
            granted=granted,
            freed=freed,
            locked=locked,
            heard=True,
            defined=any(isinstance(op, Define) for entry in fresh for op in entry.ops),
        )

    def _gap(self) -> News:
        if self._catching_up:
            return News()
        self._catching_up = True
        return News(send=[self.position()])

    def _membership(self, present: Iterable[Member], gone: Iterable[str]) -> News:
        news = News()
        for member in present:
            if member.id not in self.members:
                news.joined.append(member)
            self.members[member.id] = member
        for name in gone:
            left = self.members.pop(name, None)
            if left is not None:
                news.gone.append(left)
        self.version += 1
        return news

    def _drop(self, doomed: Callable[[Pending], bool], problem: Problem, values: Mapping[str, Mapping[str, Value]]) -> News:
        refused = [push for push in self._pending if doomed(push)]
        before = self._values((op.state, op.path[0]) for push in refused for op in push.ops)
        # Who answers a refusal with the same write would go on for ever: it counts as a reaction to what was refused.
        depths = {(op.state, op.path[0]): push.depth for push in refused for op in push.ops}
        self._pending = [push for push in self._pending if not doomed(push)]
        for push in refused:
            push.problem = problem
        for key in before:
            self._shown.pop(key, None)
        # Who asked hears it as an answer.
        told = [Refused(push.n, push.ops, problem, values, push.depth) for push in refused if not push.asked]
        return News(self._changes(before, "rollback", depths), refused=told)

    def _book(self, decided: int) -> None:
        """Every own push up to `decided` has its verdict; a refused one was told before."""
        while self._pending and 0 < self._pending[0].n <= decided:
            for op in self._pending.pop(0).ops:
                self._shown.pop((op.state, op.path[0]), None)

    def _in_flight(self) -> int:
        return next((index for index, push in enumerate(self._pending) if not push.sent), len(self._pending))

    def _merged(self, op: Op, depth: int, fences: Mapping[str, int]) -> bool:
        """Whether the newest push, not taken yet, could swallow the op."""
        last = self._pending[-1] if self._pending else None
        if last is None or last.n or last.group or (last.depth, dict(last.fences)) != (depth, dict(fences)):
            return False
        (earlier,) = last.ops
        if earlier.state != op.state or earlier.path != op.path:
            return False
        match earlier, op:
            case Set(if_rev=None, if_in=None), Set(if_rev=None, if_in=None):
                last.ops = (op,)
                return True
            case Inc(min=None, max=None), Inc(min=None, max=None) if self._unbounded(op):
                total = added_up(earlier.by, op.by)
                if total is not None:
                    last.ops = (msgspec.structs.replace(op, by=total),)
                return total is not None
            case _:
                return False

    def _epoch_of(self, ops: Iterable[Op]) -> str:
        """The log in which ops that are made now name revisions; empty when none does."""
        return self.epoch if any(isinstance(op, Set) and op.if_rev is not None for op in ops) else ""

    def _unbounded(self, op: Op) -> bool:
        """Whether sums of the trait cannot be refused: one refused sum must not take others with it."""
        kind, _ = delta.find(self.states, op.state, op.path[0])
        return kind.min is None and kind.max is None and kind.choices is None

    def _compressed(self, index: int) -> tuple[Op, ...]:
        """The ops of a push as they travel: large values as a splice, where this replica knows what the server holds."""
        push = self._pending[index]
        # Until the answer to a `Resume` came, the server's log may be another one, with other revisions (H18).
        # Under a lock nothing may come too late because its base was stale.
        # A push names one log: what its author read of an older one keeps it from being cut from this one.
        whole = push.whole or self._catching_up or bool(push.fences) or push.epoch not in ("", self.epoch)
        earlier = {(op.state, op.path[0]) for other in self._pending[:index] for op in other.ops}
        ops: list[Op] = []
        for op in push.ops:
            key = (op.state, op.path[0])
            if isinstance(op, Set) and op.if_rev is None and op.if_in is None and not whole and key not in earlier:
                held = self.states.get(op.state, State()).values
                base = _below(held.get(op.path[0]), op.path[1:])
                ops.append(delta.compress(op, base, self.seq))
            else:
                ops.append(op)
            earlier.add(key)
        return tuple(ops)

    def _values(self, keys: Iterable[TraitKey]) -> dict[TraitKey, Value]:
        found: dict[TraitKey, Value] = {}
        for state, trait in keys:
            known = self.states.get(state)
            found[state, trait] = self.value(state, trait) if known is not None and trait in known.schema else None
        return found

    def _changes(
        self,
        before: dict[TraitKey, Value],
        origin: ChangeOrigin,
        depths: Mapping[TraitKey, int] | None = None,
        own: Collection[TraitKey] = (),
    ) -> list[Change]:
        self.version += 1
        changes: list[Change] = []
        for key, old in before.items():
            new = self._values([key])[key]
            if not same(old, new):
                whose: ChangeOrigin = "local" if key in own else origin
                last = self.last_change(*key) if whose in ("remote", "resync") else None
                depth = (depths or {}).get(key, 0)
                changes.append(Change(*key, old, new, whose, last.actor if last else None, last.seq if last else 0, depth))
        return changes


def _replayed(value: Value, ops: Iterable[Op], state: str, trait: str) -> Value:
    for op in ops:
        if op.state == state and op.path[0] == trait:
            try:
                value = delta.apply(value, op)
            except (InvalidValue, NotFound):
                # The room moved on under this write; its verdict will be a nack, until then it shows nothing.
                continue
    return value


def _below(value: Value, keys: Sequence[str]) -> Value:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _normalised(op: Op) -> Op:
    """The op inside the value domain; what a server would call malformed or too deep is refused at the author already."""
    for key in op.path:
        text(key)
    levels = MAX_DEPTH - len(op.path) + 1
    try:
        match op:
            case Set(if_in=None):
                return msgspec.structs.replace(op, value=normalise(op.value, levels=levels))
            case Set():
                wanted = tuple(normalise(one, levels=levels) for one in op.if_in or ())
                return msgspec.structs.replace(op, value=normalise(op.value, levels=levels), if_in=wanted)
            case Append():
                return msgspec.structs.replace(op, items=tuple(normalise(item, levels=levels - 1) for item in op.items))
            case Inc():
                for number in (op.by, *(bound for bound in (op.min, op.max) if bound is not None)):
                    if isinstance(number, bool) or not isinstance(number, (int, float)):
                        raise InvalidValue(f"{number!r} is no number to add, or to stay within", expected="int or float")
                return op
            case _:
                return op
    except InvalidValue as error:
        raise error.located(path=op.path) from None
