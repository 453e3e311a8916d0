"""One linked object: its traits on one side, the replica of its room on the other, and the way back between them.

Two leaf locks meet here, the connection's and this bridge's; they are never held together, and never while user code runs.
The bridge remembers, per trait, the wire value the trait *shows* and the replica version it came from: a write is compared
with what its author saw, and an older value never replaces a newer one, whichever threads carry them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from traitlets import TraitError

from sharedwidgets.connection import Connection, Session
from sharedwidgets.core.protocol import Actor, Op, Problem
from sharedwidgets.core.replica import ChangeOrigin, News, Refused
from sharedwidgets.core.values import Value, same
from sharedwidgets.delivery import Delivery, Mode
from sharedwidgets.errors import SharedWidgetsError
from sharedwidgets.traits import SharedTrait

log = logging.getLogger("sharedwidgets")


# The version of a value that is in no replica: whatever the replica holds is newer.
UNSEEN = -1


@dataclass(frozen=True)
class Shown:
    """What a trait shows: the wire value, and the replica version it is of."""

    value: Value
    version: int


@dataclass(frozen=True)
class Event:
    """Something to tell the observers of a trait."""

    trait: str
    old: Any
    new: Any
    origin: ChangeOrigin
    actor: Actor | None
    type: str = "change"
    problem: Problem | None = None


class Owner(Protocol):
    """What a bridge asks of the object it links."""

    _trait_values: dict[str, Any]

    def _accepted(self, name: str, value: Any) -> Any:
        """The value as the trait's own type takes it, or `TraitError`."""

    def _cross_checked(self, name: str, value: Any) -> Any:
        """The value as the class's validators take it, or `TraitError`."""

    def _tell(self, event: Event) -> None:
        """Tell observers."""

    def _room_ended(self, problem: Problem) -> None:
        """The room is no more."""


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
    """

    def __init__(self, owner: Owner, session: Session, state: str, traits: Mapping[str, SharedTrait], mode: Mode) -> None:
        self.owner = owner
        self.session = session
        self.connection: Connection = session.connection
        self.state = state
        self.traits = traits
        self.delivery = Delivery(self.show, mode)
        self.invalid: dict[str, str] = {}
        self._lock = threading.Lock()
        self._shown: dict[str, Shown] = {}
        self._dirty: dict[str, ChangeOrigin] = {}
        self._refused: list[Refused] = []
        self._ended: Problem | None = None
        # While above 0 nothing remote is put into the owner: it is in a hold or a transaction (H3).
        self._holds = 0
        # While grouping: what each trait showed before its first write in the group, and those said again unchanged.
        self._group: dict[str, Value] | None = None
        self._said_again: set[str] = set()
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
        return self.traits[trait].to_wire(new, self.owner)

    def write(self, trait: str, raw: Any, value: Value) -> None:
        """An assignment was made: show it, and send what differs from what its author saw."""
        self._local.wrote = True
        with self._lock:
            before = self._shown[trait]
            if self._group is not None:
                self._group.setdefault(trait, before.value)
                self._shown[trait] = Shown(value, UNSEEN)
                return
        with self.connection.lock:
            ops = self.session.replica.assign(self.state, trait, before.value, value)
        if ops:
            self.connection.write(self.session, ops, group=len(ops) > 1, author=self.hear)
        self._put_own(trait, raw, value)

    def write_again(self, trait: str, raw: Any) -> None:
        """The shown value was assigned once more: a write only when the room has moved on under it (H1)."""
        value = self.check(trait, raw)
        with self.connection.lock:
            ops = self.session.replica.assign(self.state, trait, value, value)
        with self._lock:
            if self._group is not None:
                self._said_again.add(trait)
                return
        if ops:
            self.connection.write(self.session, ops, author=self.hear)
            self._put_own(trait, raw, value)

    @contextmanager
    def assigning(self) -> Iterator[Callable[[], bool]]:
        """Around an assignment: says whether it led to a write by this thread."""
        outer = getattr(self._local, "wrote", False)
        self._local.wrote = False
        try:
            yield lambda: bool(self._local.wrote)
        finally:
            self._local.wrote = self._local.wrote or outer

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
                missed = self._holds == 0 and bool(self._dirty)
            if missed:
                self.delivery.ring()

    @contextmanager
    def grouping(self, *, all_or_nothing: bool) -> Iterator[None]:
        """The writes made meanwhile are one entry.

        Parameters
        ----------
        all_or_nothing : bool
            Whether an exception sends nothing (a transaction); traitlets' holds send what was assigned all the same.
        """
        with self._lock:
            outer = self._group is not None
            if not outer:
                self._group = {}
        try:
            yield
        except BaseException:
            if not outer:
                self._end_group(send=not all_or_nothing)
            raise
        if not outer:
            self._end_group(send=True)

    def _end_group(self, *, send: bool) -> None:
        """Send the difference between what the traits showed before and what they show now, as one push."""
        with self._lock:
            before, self._group = self._group or {}, None
            again, self._said_again = self._said_again, set()
            now = {trait: self._shown[trait].value for trait in {**before, **dict.fromkeys(again)}}
            if not send:
                # As if nothing had been assigned: observers hear only of what else came meanwhile.
                for trait, value in before.items():
                    self._shown[trait] = Shown(value, UNSEEN)
                    self._dirty.setdefault(trait, "remote")
                return
        ops: list[Op] = []
        with self.connection.lock:
            replica = self.session.replica
            for trait, value in now.items():
                if trait in again or not same(before[trait], value):
                    ops += replica.assign(self.state, trait, before.get(trait, value), value)
        try:
            if ops:
                self.connection.write(self.session, ops, group=True, author=self.hear)
        except SharedWidgetsError:
            # What could not be sent must not stay on show: the room's values come back.
            with self._lock:
                self._dirty.update(dict.fromkeys(before, "rollback"))
            raise
        with self.connection.lock:
            version = replica.version
        with self._lock:
            for trait, value in now.items():
                if self._shown[trait].version == UNSEEN:
                    self._shown[trait] = Shown(value, version)

    def _put_own(self, trait: str, raw: Any, value: Value) -> None:
        with self.connection.lock:
            version = self.session.replica.version
        with self._lock:
            self.invalid.pop(trait, None)
            self._shown[trait] = Shown(value, version)
            # Another thread may have put a remote value in between the assignment and this line; the author's stands.
            self.owner._trait_values[trait] = raw

    # --- from the room to the owner

    def hear(self, news: News) -> None:
        """Note that there is something to show; called by the thread that brought it, so it only notes."""
        local = False
        with self._lock:
            for change in news.changes:
                if change.state == self.state and change.trait in self.traits:
                    self._dirty[change.trait] = change.origin
                    local = local or change.origin == "local"
            self._refused += [item for item in news.refused if any(op.state == self.state for op in item.ops)]
            self._ended = news.ended or self._ended
            due = bool(self._dirty or self._refused or self._ended)
        if local:
            # Another object of this process wrote: this one shows it before that assignment returns.
            self.delivery.pull()
        elif due:
            self.delivery.ring()

    def show(self) -> None:
        """Put what the replica holds into the traits, and tell observers. Runs user code; holds nothing meanwhile."""
        with self._lock:
            if self._holds:
                return
            dirty, self._dirty = self._dirty, {}
            refused, self._refused = self._refused, []
            ended = self._ended
        for event in self._put(dirty):
            self.owner._tell(event)
        for item in refused:
            self._tell_refused(item)
        if ended is not None:
            self.owner._room_ended(ended)

    def show_all(self, origin: ChangeOrigin) -> None:
        """Show every trait of the state, as after a join."""
        with self._lock:
            self._dirty.update(dict.fromkeys(self.traits, origin))
        self.show()

    def begin(self) -> None:
        """From here on hear of the room; the traits show the owner's private values until `show_all`."""
        for trait, shared in self.traits.items():
            try:
                value = shared.to_wire(getattr(self.owner, trait), self.owner)
            except SharedWidgetsError:
                # A private value need not have a wire form; the room's value takes its place in a moment.
                value = None
            self._shown[trait] = Shown(value, UNSEEN)
        self.connection.link(self.session, self.state, self.hear)

    def end(self) -> None:
        """Hear no more. Never blocks on the server."""
        self.connection.unlink(self.session, self.state, self.hear)
        self.delivery.close()

    def end_soon(self) -> None:
        """`end` for a finaliser: takes no lock here."""
        self.connection.later(self.end)

    def changed_in_place(self) -> list[str]:
        """Lists and dicts that were changed in place, which nobody hears of; each is named once."""
        found: list[str] = []
        with self._lock:
            shown = dict(self._shown)
        for trait, held in shown.items():
            if trait in self._warned or not isinstance(held.value, (list, dict)):
                continue
            try:
                now = self.traits[trait].to_wire(getattr(self.owner, trait), self.owner)
            except SharedWidgetsError:
                now = None
            with self._lock:
                current = self._shown[trait] is held
            if current and not same(now, held.value):
                self._warned.add(trait)
                found.append(trait)
        return found

    def _put(self, dirty: Mapping[str, ChangeOrigin]) -> list[Event]:
        """Put the replica's values of these traits in, unless something newer is shown; the events that follow."""
        fresh: dict[str, tuple[Value, Actor | None]] = {}
        with self.connection.lock:
            replica = self.session.replica
            version = replica.version
            state = replica.states.get(self.state)
            for trait in dirty:
                if state is not None and trait in state.schema:
                    last = replica.last_change(self.state, trait)
                    fresh[trait] = (replica.value(self.state, trait), last.actor if last else None)
        ready: list[tuple[str, Value, Any, Actor | None]] = []
        events: list[Event] = []
        for trait, (value, actor) in fresh.items():
            try:
                raw = self.owner._accepted(trait, self.traits[trait].from_wire(value, self.owner))
            except Exception as error:
                # This kernel's class refuses what the room holds. It is not written back: two kernels would fight for ever.
                events.append(self._invalid(trait, str(error), dirty[trait], actor))
                continue
            ready.append((trait, value, raw, actor))
        with self._lock:
            if self._holds:
                self._dirty = {**dirty, **self._dirty}
                return []
            for trait, value, raw, actor in ready:
                shown = self._shown[trait]
                if shown.version >= version:
                    continue
                self._shown[trait] = Shown(value, version)
                self.invalid.pop(trait, None)
                if same(shown.value, value) and shown.version != UNSEEN:
                    continue
                old = self.owner._trait_values.get(trait)
                self.owner._trait_values[trait] = raw
                if not same(shown.value, value):
                    events.append(Event(trait, old, raw, dirty[trait], actor if dirty[trait] == "remote" else None))
        return self._cross_validated(events)

    def _cross_validated(self, events: list[Event]) -> list[Event]:
        """Ask the class's own validators, which may look at other traits and so run with all values in place."""
        kept: list[Event] = []
        for event in events:
            if event.type != "change":
                kept.append(event)
                continue
            try:
                final = self.owner._cross_checked(event.trait, event.new)
            except TraitError as error:
                with self._lock:
                    if self.owner._trait_values.get(event.trait) is event.new:
                        self.owner._trait_values[event.trait] = event.old
                kept.append(self._invalid(event.trait, str(error), event.origin, event.actor))
                continue
            if final is not event.new:
                with self._lock:
                    if self.owner._trait_values.get(event.trait) is event.new:
                        self.owner._trait_values[event.trait] = final
                self.invalid[event.trait] = f"this kernel's class makes {final!r} of the room's {event.new!r}"
            kept.append(Event(event.trait, event.old, final, event.origin, event.actor))
        return kept

    def _invalid(self, trait: str, why: str, origin: ChangeOrigin, actor: Actor | None) -> Event:
        self.invalid[trait] = why
        problem = Problem(code="invalid-value", message=why, state=self.state, path=(trait,))
        shown = getattr(self.owner, trait, None)
        return Event(trait, shown, shown, origin, actor, "invalid", problem)

    def _tell_refused(self, refused: Refused) -> None:
        log.warning("a write to %r was refused and is undone: %s", self.session.room, refused.problem.message)
        for trait in dict.fromkeys(op.path[0] for op in refused.ops if op.state == self.state):
            held = refused.values.get(self.state, {}).get(trait)
            self.owner._tell(Event(trait, held, held, "rollback", None, "rejected", refused.problem))
