"""One linked object: its traits on one side, the replica of its room on the other, and the way back between them.

Two leaf locks meet here, the connection's and this bridge's; they are never held together, and never while user code runs.
The bridge remembers, per trait, the wire value the trait *shows* and the replica version it came from: a write is compared
with what its author saw, and an older value never replaces a newer one, whichever threads carry them.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec

from sharedwidgets import answers, causes, host
from sharedwidgets.causes import Cause
from sharedwidgets.connection import Connection
from sharedwidgets.core import delta
from sharedwidgets.core.protocol import Actor, Append, Inc, Op, Problem, Set
from sharedwidgets.core.replica import ChangeOrigin, News, Refused
from sharedwidgets.core.values import Value, same
from sharedwidgets.delivery import Delivery, Mode
from sharedwidgets.drafts import Draft, Run
from sharedwidgets.errors import InvalidValue, Locked, SharedWidgetsError
from sharedwidgets.layers import Layers
from sharedwidgets.links import Part, Session, Written
from sharedwidgets.traits import SharedTrait, differ
from sharedwidgets.transactions import UNSEEN
from sharedwidgets.turns import turns, turns_async

log = logging.getLogger("sharedwidgets")

T = TypeVar("T")


class Shown(msgspec.Struct, frozen=True, eq=False):
    """What a trait shows: the wire value, and the replica version it is of."""

    value: Value
    version: int


class Look(NamedTuple):
    """What a trait shows, to the room and to the user."""

    shown: Shown
    raw: Any


class _Put(msgspec.Struct, frozen=True, eq=False):
    """A value that was put into a trait and that the class's own validators have not seen yet."""

    trait: str
    old: Any
    raw: Any
    before: Shown
    shown: Shown
    origin: ChangeOrigin
    actor: Actor | None
    depth: int
    # Nothing came of the trait; it is looked at once more because something else changed.
    again: bool


class _Mark(msgspec.Struct, frozen=True, eq=False):
    """There is something new of a trait; gone when that is put in, unless more has come meanwhile.

    `depth` is that of a write in reaction to it: the most of what has come.
    """

    origin: ChangeOrigin
    depth: int = 0


class Event(msgspec.Struct, frozen=True, eq=False):
    """Something to tell the observers of a trait."""

    trait: str
    old: Any
    new: Any
    origin: ChangeOrigin
    actor: Actor | None
    type: str = "change"
    problem: Problem | None = None
    # Of what is written in reaction to it.
    depth: int = 0


class Group(msgspec.Struct, eq=False):
    """What one thread or task keeps back of one object, perhaps inside of another group."""

    draft: Draft
    outer: Group | None
    # What was in the draft before.
    runs: list[Run]
    wrote: set[str] = msgspec.field(default_factory=set)


class Wrote(NamedTuple):
    """An assignment that was sent: what the trait showed before, and what other objects of this process do about it.

    They do it once the author has told its own observers.
    """

    old: Any
    then: list[Callable[[], None]]


class Owner(Protocol):
    """What a bridge asks of the object it links."""

    _trait_values: dict[str, Any]

    def _accepted(self, name: str, value: Any) -> Any:
        """The value as the trait's own type takes it, or `TraitError`."""

    def _cross_checked(self, name: str, value: Any) -> Any:
        """The value as the class's validators take it, or what they raise."""

    def _class_name(self) -> str:
        """What the user calls the class."""

    def _tell(self, event: Event) -> None:
        """Tell observers."""

    def _changed_here(self, name: str, old: Any, new: Any, *, checked: bool) -> None:
        """Tell observers of what this thread or task has changed, or keep it back for it."""

    def _part(self, draft: Draft) -> Part:
        """What it does in a transaction."""

    def _room_ended(self, problem: Problem) -> None:
        """The room is no more."""


class Behind(Protocol):
    """What is done behind the telling, when it was asked for."""

    def take(self) -> None:
        """Do it; runs user code."""

    def end(self) -> None:
        """The object is linked no more."""


class Bridge:
    """The link of one object to one state of one room.

    Parameters
    ----------
    owner : Owner
        The object.
    session : Session
        Joined, its replica holds the state.
    state : str
        The state's name in the room.
    traits : mapping
        The shared traits of the owner's class.
    mode : "main" or "thread"
        Where news reach the owner's observers.
    context : contextvars.Context, optional
        In which they run; a copy of the caller's by default.
    waits : bool
        Whether an assignment takes a turn when somebody else holds the state's lock, or raises `Locked`.
    """

    def __init__(
        self,
        owner: Owner,
        connection: Connection,
        session: Session,
        state: str,
        traits: Mapping[str, SharedTrait],
        mode: Mode,
        context: contextvars.Context | None = None,
        waits: bool = False,
    ) -> None:
        self.owner = owner
        self.waits = waits
        self.session = session
        self.connection = connection
        self.state = state
        self.traits = traits
        self.delivery = Delivery(
            self.show,
            mode,
            context,
            name=owner._class_name(),
            later=lambda seconds, task: self.connection.later(task, seconds),
        )
        # Traits that show another value than the room holds, as this class does not take that one; and why.
        self.invalid: dict[str, str] = {}
        self.behind: Behind | None = None
        self._asked = False
        self._lock = host.leaf_lock()
        self._shown: dict[str, Shown] = {}
        self._dirty: dict[str, _Mark] = {}
        # Put in and not validated, and what is still to be told: both outlive an observer that raises (H34).
        self._fresh: deque[_Put] = deque()
        self._events: deque[Event] = deque()
        # Refused by a validator; asked again when other traits have changed.
        self._unfit: set[str] = set()
        self._over = False
        self._refused: list[Refused] = []
        self._ended: Problem | None = None
        # While above 0 nothing remote is put into the owner: it is in a hold or a transaction (H3).
        self._holds = 0
        # Nor while an own write is between its op and what it shows.
        self._writing = 0
        # While above 0 a trait may hold what is not booked yet.
        self._assigning = 0
        # Whose assignments may show already, and are not written yet.
        self._unwritten: dict[object, host.Owner] = {}
        # By thread or task: what it keeps back, and what that makes the traits show.
        self._groups: dict[tuple[int, int], Group] = {}
        self._layers = Layers[Look]()
        self._warned: set[str] = set()
        self._local = threading.local()

    # --- from the owner to the room

    def check(self, trait: str, new: Any) -> Value:
        """The wire value of an assignment, checked before anything is done with it.

        Raises
        ------
        InvalidValue, Forked, Closed, RoomGone
        """
        self.connection.check_usable()
        try:
            return self.traits[trait].to_wire(new, self.owner)
        except InvalidValue as error:
            error.located(room=self.session.room, state=self.state)
            error.message = f"{self.owner._class_name()}.{'.'.join(error.path)}: {error.message}"
            raise

    def check_unlocked(self, trait: str) -> None:
        """Raise before a trait shows what the room would not take: whoever has the lock may be a thread that reads it (G6).

        Raises
        ------
        Locked, LockLost
        """
        if self.waits or not self.session.replica.locks:
            return
        with self.connection.lock:
            self.session.leases.fences([Set(state=self.state, path=(trait,), value=None)], self.session.replica)

    def write(self, trait: str, old: Any, raw: Any) -> Wrote:
        """An assignment was made: show it, and send what differs from what its author saw.

        Raises
        ------
        InvalidValue, Locked, LockTimeout, and what `Connection.write` raises
        """
        with self._lock:
            shown = self._shown[trait]
        try:
            value = self.check(trait, raw)
            wrote: set[str] = getattr(self._local, "wrote", set())
            wrote.add(trait)
            group = self._group()
            if group is not None:
                self._keep_back(group, trait, old, raw, value)
                return Wrote(old, [])
            return self._send(trait, old, raw, shown.value, value)
        except BaseException:
            self._not_written(trait, shown, old, raw)
            raise
        finally:
            self._nothing_shows()

    def write_again(self, trait: str, raw: Any) -> list[Callable[[], None]]:
        """The shown object was assigned once more: a write when the room has moved on under it (H1), or it was changed."""
        value = self.check(trait, raw)
        group = self._group()
        with self._lock:
            shown = self._shown[trait]
        if group is not None:
            self._keep_back(group, trait, raw, raw, value)
            return []
        try:
            return self._send(trait, raw, raw, shown.value, value).then
        except BaseException:
            self._not_written(trait, shown, raw, raw)
            raise

    def _not_written(self, trait: str, shown: Shown, old: Any, raw: Any) -> None:
        """An assignment raised. It shows what was there, and then what the room holds: an interrupt may come too late."""
        with self._lock:
            if self._shown[trait] is not shown or self._over:
                return
            if self.owner._trait_values.get(trait) is raw:
                self.owner._trait_values[trait] = old
            self._shown[trait] = Shown(shown.value, UNSEEN)
            self._look_again(trait, "rollback")
        self.delivery.ring()

    def _keep_back(self, group: Group, trait: str, old: Any, raw: Any, value: Value) -> None:
        with self._lock:
            before = self._shown[trait]
            if not same(before.value, value):
                self._put_of(group, trait, old, raw, value)
        group.draft.set(self, self.state, trait, before.value, value)

    def _put_of(self, group: Group, trait: str, old: Any, raw: Any, value: Value) -> None:
        """A group makes a trait show this. The lock is held."""
        shown = Shown(value, UNSEEN)
        self._layers.put(group, trait, Look(self._shown[trait], old), Look(shown, raw))
        group.wrote.add(trait)
        self._look(trait, Look(shown, raw))

    def _look_again(self, trait: str, origin: ChangeOrigin) -> None:
        """What the room holds is to be shown, also by one who has read it already and is about to. The lock is held."""
        earlier = self._dirty.get(trait)
        depth = 0 if origin == "remote" else causes.depth()
        self._dirty[trait] = _Mark(origin, depth) if earlier is None else _Mark(earlier.origin, max(earlier.depth, depth))

    def _look(self, trait: str, look: Look) -> None:
        """A trait shows this. The lock is held."""
        self._shown[trait], self.owner._trait_values[trait] = look

    def _send(self, trait: str, old: Any, raw: Any, before: Value, value: Value) -> Wrote:
        try:
            return self._sent(trait, old, raw, before, value)
        except Locked:
            if not self.waits:
                raise
        # Whoever has the lock, or is before this one in the queue, may be another thread that reads the same object.
        with self._lock:
            if self.owner._trait_values.get(trait) is raw:
                self.owner._trait_values[trait] = old
            # That may be what was there before another thread wrote.
            self._shown[trait] = Shown(self._shown[trait].value, UNSEEN)
            self._look_again(trait, "remote")
        self.delivery.ring()
        self._nothing_shows()
        with turns(self.connection, self.session, [self.state]):
            return self._sent(trait, old, raw, before, value)

    def _nothing_shows(self) -> None:
        """Of the assignment that this thread or task is in the middle of nothing shows that is not written."""
        with self._lock:
            self._unwritten.pop(getattr(self._local, "assignment", None), None)

    def _sent(self, trait: str, old: Any, raw: Any, before: Value, value: Value) -> Wrote:
        self.connection.wait_for_room(self.session)
        with self._lock:
            self._writing += 1
        try:
            with self.connection.lock:
                ops = self.session.replica.assign(self.state, trait, before, value)
                written = Written(self.session.replica.version, [])
            if ops:
                written = self.connection.write(self.session, ops, group=len(ops) > 1, authors=[self.hear])
            with self._lock:
                # Otherwise another thread was on the heels of this write, and what is shown is newer.
                if not self._over and self._shown[trait].version <= written.version:
                    self._book(trait, value, ops, written.version)
                    self._layers.forget(trait)
                    showed = self.owner._trait_values.get(trait)
                    if showed is not raw:
                        # It had to wait, and others have changed it meanwhile.
                        old = showed
                    self.owner._trait_values[trait] = raw
        finally:
            with self._lock:
                self._writing -= 1
                missed = self._due()
            if missed:
                self._show_late()
        return Wrote(old, written.then)

    def say(self, op: Inc | Append, done: Callable[[Any], Any]) -> None:
        """Write a sum or items, and show what the replica makes of it, of this trait alone.

        Parameters
        ----------
        op : Inc or Append
            Of a trait.
        done : callable
            Does it to a value that the trait shows.
        """
        trait, group = op.path[0], self._group()
        if group is not None:
            self.check_unlocked(trait)
            moved = self._moved(op, done, group)
            assert moved is not None
            self.owner._changed_here(trait, *moved, checked=False)
            return
        try:
            written = self._in_turn(lambda: self.connection.write(self.session, [op], authors=[self.hear]))
        finally:
            # Also when it was interrupted: it may be written.
            with self._lock:
                self._dirty[trait] = _Mark("local", causes.depth())
        try:
            self.show(trait)
            # In another one's hold nothing of the room may be put in, and what this thread writes shows all the same.
            moved = self._moved(op, done, None, written.version)
            # Unless another thread was faster: the last event must be of the last value.
            if moved is not None and not differ(self.owner._trait_values.get(trait), moved[1]):
                self.owner._changed_here(trait, *moved, checked=False)
        finally:
            for task in written.then:
                task()

    def _moved(
        self, op: Inc | Append, done: Callable[[Any], Any], group: Group | None, version: int = UNSEEN
    ) -> tuple[Any, Any] | None:
        """Do it to what a trait shows, whoever else writes to it; the old value and the new, or None where it is in there."""
        trait = op.path[0]
        while True:
            with self._lock:
                shown, old = self._shown[trait], self.owner._trait_values.get(trait)
                if group is None and (shown.version >= version or self._over or not (self._holds or self._writing)):
                    return None
            try:
                raw, value = done(old), delta.apply(shown.value, op)
            except (TypeError, SharedWidgetsError):
                if group is not None:
                    raise
                # Another thread has put something else in; the room knows what comes of it.
                return None
            with self._lock:
                if self._shown[trait] is not shown or self.owner._trait_values.get(trait) is not old:
                    continue
                if group is not None:
                    self._put_of(group, trait, old, raw, value)
                else:
                    # What is undone under it leaves it there.
                    self._layers.change(trait, lambda look: _added(look, op, done))
                    self._look(trait, Look(Shown(value, shown.version), raw))
            if group is not None:
                group.draft.do(self, op, shown.value, value)
            return old, raw

    def _in_turn(self, write: Callable[[], T]) -> T:
        """Write, and where somebody else holds the lock, raise or take a turn, as the class says."""
        try:
            return write()
        except Locked:
            if not self.waits:
                raise
        with turns(self.connection, self.session, [self.state]):
            return write()

    def ask(self, op: Op, timeout: float) -> int | float | None:
        """Write what shows nowhere before its verdict; with it, show what the room holds of this trait by then.

        Raises
        ------
        LinkTimeout, or what the server refused it with
        """
        try:
            return self._in_turn(lambda: answers.ask(self.connection, self.session, [op], timeout))
        finally:
            self.session.look(op)

    async def ask_async(self, op: Op, timeout: float) -> int | float | None:
        """`ask` that lets the caller's loop run meanwhile."""
        try:
            try:
                return await answers.ask_async(self.connection, self.session, [op], timeout)
            except Locked:
                if not self.waits:
                    raise
            async with turns_async(self.connection, self.session, [self.state]):
                return await answers.ask_async(self.connection, self.session, [op], timeout)
        finally:
            self.session.look(op)

    def look(self, state: str, trait: str) -> None:
        """A write of this process has its verdict: show what the replica holds of the trait by now, and tell."""
        if state == self.state:
            self._show_now(trait)

    def _show_now(self, trait: str) -> None:
        """`show` for who is not to hear of an observer that raises: what it has done is done."""
        try:
            self.show(trait)
        except Exception:
            log.exception("an observer of a shared state raised")

    def _show_late(self) -> None:
        """What came while nothing might be put in is due; a thread that waits for it may have looked too early.

        What other objects of this process wrote meanwhile shows here now, as it would have then.
        """
        with self._lock:
            own = [trait for trait, mark in self._dirty.items() if mark.origin == "local"]
        for trait in own:
            self._show_now(trait)
        self.delivery.ring()
        self.connection.stir(self.session)

    def _book(self, trait: str, value: Value, ops: Iterable[Op], version: int) -> None:
        """Note what a trait shows after an own write."""
        self._fits(trait)
        if any(len(op.path) > 1 for op in ops):
            # Keys are written one by one: of those the author did not touch, the room may hold something else than was seen.
            self._shown[trait] = Shown(value, version - 1)
            self._look_again(trait, "remote")
        else:
            self._shown[trait] = Shown(value, version)

    @contextmanager
    def assigning(self, trait: str) -> Iterator[Callable[[], bool]]:
        """Around an assignment: says whether it led to a write to this trait by this thread."""
        outer: set[str] = getattr(self._local, "wrote", set())
        wrote = self._local.wrote = set[str]()
        around: object = getattr(self._local, "assignment", None)
        assignment = self._local.assignment = object()
        with self._lock:
            self._assigning += 1
            self._unwritten[assignment] = host.owner()
        try:
            yield lambda: trait in wrote
        finally:
            self._local.wrote, self._local.assignment = outer, around
            with self._lock:
                self._assigning -= 1
                self._unwritten.pop(assignment, None)

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Nothing remote is put in meanwhile; what came is shown afterwards."""
        with self._lock:
            self._holds += 1
        try:
            yield
        finally:
            with self._lock:
                self._holds -= 1
                missed = self._holds == 0 and self._due()
            if missed:
                self._show_late()

    # --- writes that are kept back

    @property
    def grouped(self) -> bool:
        """Whether somebody keeps writes back."""
        return bool(self._groups)

    def _group(self) -> Group | None:
        return self._groups.get(host.owner()) if self._groups else None

    def draft(self) -> Draft | None:
        """Where the thread or task that runs keeps its writes."""
        group = self._group()
        return None if group is None else group.draft

    def open_group(self, draft: Draft) -> Group:
        """Keep back what this thread or task writes, in a draft, which is that of the group it is in already."""
        me = host.owner()
        outer = self._groups.get(me)
        if outer is None:
            draft.join(self)
        group = self._groups[me] = Group(draft, outer, [*draft.runs])
        return group

    def keep_group(self, group: Group, version: int, *, told: bool) -> set[str]:
        """What was written in a group is in the replica, which has this version; in an outer group, it is that one's now.

        Returns
        -------
        set of str
            The traits that show what they did before, and of which the next `show` tells what the room makes of them.
        """
        late = set[str]()
        with self.connection.lock:
            now = {trait: self.session.replica.value(self.state, trait) for trait in group.wrote if self._known(trait)}
        with self._lock:
            if group.outer is not None:
                self._layers.merge(group, group.outer)
                group.outer.wrote |= group.wrote
            elif not self._over:
                late = {trait for trait, value in now.items() if not told and self._mixed(group, trait, value)}
                for trait in late:
                    self._leave_to_room(trait)
                for trait in group.wrote - late:
                    self._keep(group, trait, version)
                self._layers.keep(group)
        self._leave(group)
        return late

    def _known(self, trait: str) -> bool:
        state = self.session.replica.states.get(self.state)
        return state is not None and trait in state.values

    def _mixed(self, group: Group, trait: str, value: Value) -> bool:
        """Whether what a group made a trait show is not what came of it, since others wrote too; keys of a dict are theirs."""
        if isinstance(value, dict) or not self._layers.shows(group, trait):
            return False
        return not same(self._shown[trait].value, value)

    def _leave_to_room(self, trait: str) -> None:
        """A trait shows what was there before, and next what the room holds: observers hear of no value that never was."""
        below = self._layers.below(trait)
        self._look(trait, Look(Shown(below.shown.value, UNSEEN), below.raw))
        self._dirty[trait] = _Mark("local", causes.depth())

    def _keep(self, group: Group, trait: str, version: int) -> None:
        if not self._layers.shows(group, trait):
            # It had to wait, or another thread wrote meanwhile.
            self._look_again(trait, "local")
            return
        self._fits(trait)
        # Of what the author did not touch, the room may hold something else than was seen.
        self._shown[trait] = Shown(self._shown[trait].value, version - 1 if version != UNSEEN else UNSEEN)
        self._look_again(trait, "remote")

    def undo_group(self, group: Group, *, told: bool) -> None:
        """Nothing of a group was written: its traits show what they did before, unless another thread has written to them.

        Parameters
        ----------
        told : bool
            Whether observers know what they show now; then they hear what the room holds instead.
        """
        group.draft.undo(group.runs, self)
        self._take_back(group, told)

    def park_group(self, group: Group, *, told: bool) -> None:
        """A group waits for its turn: its traits show what they did before, and afterwards what the room makes of it."""
        self._take_back(group, told)

    def _take_back(self, group: Group, told: bool) -> None:
        with self._lock:
            for trait, below in self._layers.undo(group).items():
                if self._over:
                    continue
                if told:
                    self._shown[trait] = Shown(self._shown[trait].value, UNSEEN)
                    self._dirty[trait] = _Mark("rollback", causes.depth())
                    continue
                self._look(trait, below.value)
                if below.who is None:
                    # What was there may have been another thread's that was on its way in, or out.
                    self._shown[trait] = Shown(below.value.shown.value, UNSEEN)
                    self._look_again(trait, "remote")
        self._leave(group)

    def _all_groups(self) -> Iterator[Group]:
        for group in list(self._groups.values()):
            at: Group | None = group
            while at is not None:
                yield at
                at = at.outer

    def _leave(self, group: Group) -> None:
        if group.outer is None:
            group.draft.clear()
        for inner in self._all_groups():
            # Generators may end in the order in which they began.
            if inner.outer is group:
                inner.outer = group.outer
                inner.runs = [] if group.outer is None else inner.runs
        for owner, innermost in list(self._groups.items()):
            if innermost is group:
                if group.outer is None:
                    del self._groups[owner]
                else:
                    self._groups[owner] = group.outer

    def adopt(self, trait: str, value: Value) -> None:
        """Another object has written this in the same transaction: it shows here too."""
        group, shared = self._group(), self.traits.get(trait)
        if group is None or shared is None:
            return
        try:
            raw = self.owner._accepted(trait, shared.from_wire(value, self.owner))
        except Exception:
            # This class does not take it, which is said when it comes from the room.
            return
        with self._lock:
            old = self.owner._trait_values.get(trait)
            self._put_of(group, trait, old, raw, value)
        self.owner._changed_here(trait, old, raw, checked=True)

    # --- from the room to the owner

    def hear(self, news: News) -> Callable[[], None] | None:
        """Note that there is something to show; called by the thread that brought it, so it only notes."""
        local = False
        with self._lock:
            for change in news.changes:
                if change.state == self.state and change.trait in self.traits:
                    earlier = self._dirty.get(change.trait)
                    depth = max(causes.after(change.origin, change.depth), earlier.depth if earlier is not None else 0)
                    self._dirty[change.trait] = _Mark(change.origin, depth)
                    local = local or (change.origin == "local" and not news.heard)
            self._refused += [item for item in news.refused if any(op.state == self.state for op in item.ops)]
            self._ended = news.ended or self._ended
            due = self._due()
        if local:
            # Another object of this process wrote: this one shows it before that assignment returns.
            return self.delivery.deliver
        if due:
            self.delivery.ring()
        return None

    def _due(self) -> bool:
        return bool(self._dirty or self._fresh or self._events or self._refused or self._ended or self._asked)

    def look_behind(self) -> None:
        """What is behind the telling has something to do; only notes it."""
        with self._lock:
            self._asked = True
        self.delivery.ring()

    def show(self, only: str | None = None) -> None:
        """Put what the replica holds into the traits, or into one of them, and tell observers.

        Runs user code; holds nothing meanwhile. What an exception keeps from being told is told on the next turn (H34).
        """
        with self._lock:
            if self._holds or self._writing or self._over:
                return
            # Kept until it is put in: whoever else pulls meanwhile must not find nothing to show and believe it.
            dirty = {trait: mark for trait, mark in self._dirty.items() if only in (None, trait)}
            refused, self._refused = self._refused, []
        try:
            if self._put(dirty):
                self._validate()
                while refused:
                    self._tell_refused(refused.pop(0))
            self._tell()
            self._go_on()
        except BaseException:
            self.delivery.ring()
            raise
        finally:
            with self._lock:
                self._refused = refused + self._refused
        ended = self._ended
        if ended is not None and not self._over:
            self.owner._room_ended(ended)

    def _go_on(self) -> None:
        """Do what was asked for, unless the owner is in a hold by now: that would take what is written for its own."""
        with self._lock:
            behind = self.behind if self._asked and not (self._holds or self._writing or self._over) else None
            self._asked = self._asked and behind is None
        if behind is not None:
            behind.take()

    def settle(self, state: str | None) -> bool:
        """Show what the replica holds by now, telling nobody yet, for a lock just taken (G6); whether it may be shown."""
        with self._lock:
            if self._over or state not in (None, self.state):
                return True
            # What others are about to write may show already, and be refused.
            if self._holds or self._writing or any(owner != host.owner() for owner in self._unwritten.values()):
                return False
            # Every trait is looked at: whoever brings news notes them after the replica has them, and this one may be earlier.
            dirty = {trait: self._dirty.get(trait) or _Mark("remote") for trait in self.traits}
        put = self._put(dirty)
        self.delivery.ring()
        return put

    def show_all(self, origin: ChangeOrigin, *, now: bool) -> None:
        """Show every trait of the state, as after a join: on this thread before it goes on, or where news are delivered."""
        with self._lock:
            self._dirty.update({trait: _Mark(origin) for trait in self.traits})
        if now:
            self.delivery.deliver()
        else:
            self.delivery.ring()

    def begin(self) -> None:
        """From here on hear of the room; the traits show the owner's private values until `show_all`.

        Raises
        ------
        RoomGone
            It has ended since it was joined.
        """
        for trait, shared in self.traits.items():
            try:
                value = shared.to_wire(getattr(self.owner, trait), self.owner)
            except SharedWidgetsError:
                # A private value need not have a wire form; the room's value takes its place in a moment.
                value = None
            self._shown[trait] = Shown(value, UNSEEN)
        self.connection.listen(self.session, self.hear)
        with self.connection.lock:
            self.session.linked.append(self)

    def grouping(self) -> bool:
        """Whether the thread or task that runs keeps writes back."""
        return self._group() is not None

    def part(self, draft: Draft) -> Part:
        """What its object does in a transaction."""
        return self.owner._part(draft)

    def end(self) -> None:
        """Hear no more, and put nothing in any more. Never blocks on the server."""
        with self._lock:
            self._over = True
            for waiting in (self._dirty, self._fresh, self._events, self._refused):
                waiting.clear()
        self.connection.unlink(self.session, self.state, self.hear)
        with self.connection.lock:
            self.session.linked = [item for item in self.session.linked if item is not self]
        self.delivery.close()
        if self.behind is not None:
            self.behind.end()

    def end_soon(self) -> None:
        """`end` for a finaliser: takes no lock here."""
        self._over = True
        self.connection.later(self.end)

    def changed_in_place(self) -> list[str]:
        """Lists and dicts that were changed in place, which nobody hears of; each is named once."""
        found: list[str] = []
        with self._lock:
            shown = {} if self._assigning else dict(self._shown)
        for trait, held in shown.items():
            if trait in self._warned or not isinstance(held.value, (list, dict)):
                continue
            try:
                now = self.traits[trait].to_wire(getattr(self.owner, trait), self.owner)
            except SharedWidgetsError:
                now = None
            with self._lock:
                current = self._shown[trait] is held and not self._assigning and trait not in self._dirty
            if current and not same(now, held.value):
                self._warned.add(trait)
                found.append(trait)
        return found

    def _put(self, dirty: Mapping[str, _Mark]) -> bool:
        """Put the replica's values of these traits in, unless something newer is shown; false when they may not be now."""
        # What a validator refused is asked again when anything has changed: it may look at other traits.
        marks = {**{trait: _Mark("remote") for trait in self._unfit}, **dirty} if dirty else {}
        found: dict[str, tuple[Value, Actor | None, int]] = {}
        with self.connection.lock:
            replica = self.session.replica
            version = replica.version
            undecided = {trait for trait in marks if replica.is_undecided(self.state, trait)}
            state = replica.states.get(self.state)
            for trait, mark in marks.items():
                if state is not None and trait in state.schema:
                    last = replica.last_change(self.state, trait)
                    actor = last.actor if last and mark.origin in ("remote", "resync") else None
                    # Whoever looks before it was told of an entry has no other word of its depth.
                    depth = causes.after("remote", replica.depth(self.state, trait)) if mark.origin == "remote" else 0
                    found[trait] = (replica.value(self.state, trait), actor, max(mark.depth, depth))
        ready: list[tuple[str, Value, Any, Actor | None, int]] = []
        unfit: list[tuple[str, Exception, Actor | None, int]] = []
        for trait, (value, actor, depth) in found.items():
            try:
                ready.append(
                    (trait, value, self.owner._accepted(trait, self.traits[trait].from_wire(value, self.owner)), actor, depth)
                )
            except Exception as error:
                # This kernel's class refuses what the room holds. It is not written back: two kernels would fight for ever.
                unfit.append((trait, error, actor, depth))
        with self._lock:
            if self._holds or self._writing or self._over:
                return False
            for trait, why, actor, depth in unfit:
                # What own writes without a verdict make of it nobody has written; it is looked at once more then.
                if trait not in undecided and self._dirty.get(trait) is dirty.get(trait):
                    self._refuse(trait, why, marks[trait].origin, actor, depth)
            for trait, value, raw, actor, depth in ready:
                before = self._shown[trait]
                if before.version >= version:
                    continue
                shown = Shown(value, version)
                if same(before.value, value) and before.version != UNSEEN:
                    self._shown[trait] = shown
                    self._fits(trait)
                    continue
                old = self.owner._trait_values.get(trait)
                self._fresh.append(_Put(trait, old, raw, before, shown, marks[trait].origin, actor, depth, trait not in dirty))
                self._shown[trait] = shown
                self.owner._trait_values[trait] = raw
            waiting = undecided & {trait for trait, *_ in unfit}
            for trait, mark in dirty.items():
                if trait not in waiting and self._dirty.get(trait) is mark:
                    del self._dirty[trait]
        return True

    def _validate(self) -> None:
        """Ask the class's own validators, which may look at other traits and so run with all values in place."""
        while True:
            with self._lock:
                put = self._fresh.popleft() if self._fresh else None
            if put is None:
                return
            try:
                final = self.owner._cross_checked(put.trait, put.raw)
                value = self.traits[put.trait].to_wire(final, self.owner) if final is not put.raw else put.shown.value
            except Exception as error:
                with self._lock:
                    self._settle(put, put.old, put.before.value)
                    self._unfit.add(put.trait)
                    if not put.again:
                        self._refuse(put.trait, error, put.origin, put.actor, put.depth)
                continue
            except BaseException:
                with self._lock:
                    self._fresh.appendleft(put)
                raise
            with self._lock:
                self._settle(put, final, value)
                self._fits(put.trait)
                if not same(put.before.value, value):
                    self._note(Event(put.trait, put.old, final, put.origin, put.actor, depth=put.depth))
                if not same(put.shown.value, value):
                    why = f"this kernel's class makes {final!r} of the room's {put.raw!r}"
                    self._refuse(put.trait, why, put.origin, put.actor, put.depth)

    def _settle(self, put: _Put, raw: Any, value: Value) -> None:
        """After the validators a trait shows this, unless something newer has taken the place of what they saw."""
        if not self._over and self._shown[put.trait] is put.shown:
            self._shown[put.trait] = Shown(value, put.shown.version)
            self.owner._trait_values[put.trait] = raw

    def _fits(self, trait: str) -> None:
        self.invalid.pop(trait, None)
        self._unfit.discard(trait)

    def _refuse(self, trait: str, why: object, origin: ChangeOrigin, actor: Actor | None, depth: int) -> None:
        self.invalid[trait] = str(why)
        problem = Problem(code="invalid-value", message=str(why), state=self.state, path=(trait,))
        shown = self.owner._trait_values.get(trait)
        self._note(Event(trait, shown, shown, origin, actor, "invalid", problem, depth))

    def _tell_refused(self, item: Refused) -> None:
        """An own write the server refused: by now the traits show what the room holds."""
        log.warning("a write to %r was refused and is undone: %s", self.session.room, item.problem.message)
        with self._lock:
            for trait in dict.fromkeys(op.path[0] for op in item.ops if op.state == self.state and op.path[0] in self.traits):
                held = self.owner._trait_values.get(trait)
                depth = causes.after("rollback", item.depth)
                self._note(Event(trait, held, held, "rollback", None, "rejected", item.problem, depth))

    def _note(self, event: Event) -> None:
        if not self._over:
            self._events.append(event)

    def _tell(self) -> None:
        while True:
            with self._lock:
                event = self._events.popleft() if self._events else None
            if event is None:
                return
            with causes.reacting(Cause(event.depth, self.state, event.trait, event.actor)):
                self.owner._tell(event)


def _added(look: Look, op: Op, done: Callable[[Any], Any]) -> Look:
    """What a trait would show after a sum or items; as it is, where it is nothing to add to."""
    try:
        return Look(Shown(delta.apply(look.shown.value, op), look.shown.version), done(look.raw))
    except (TypeError, SharedWidgetsError):
        return look
