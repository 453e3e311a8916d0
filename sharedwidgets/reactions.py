"""`@reacts`: what a class does about changes of its shared traits, in each process or in exactly one.

A reaction with ``leader=True`` is run by the one live kernel or script that came to the room first. How far it got stands in
the room, in a state beside the one that is watched: when its process dies, the next one knows what nobody has reacted to. Who
links that state can react, whoever else is in the room.

Only what the server has confirmed is reacted to in this way. It has a seq then, and a change that is refused leads to nothing.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import traitlets as t
from traitlets.utils.bunch import Bunch

from sharedwidgets import causes
from sharedwidgets.bridge import Bridge
from sharedwidgets.causes import Cause
from sharedwidgets.connection import Connection, Session, Wanted
from sharedwidgets.core.protocol import REACTS, Actor, LockName, Set, TraitSchema
from sharedwidgets.core.replica import News
from sharedwidgets.core.values import same
from sharedwidgets.errors import Locked, SharedWidgetsError

log = logging.getLogger("sharedwidgets")

# Values of one trait that are remembered while nobody has reacted to them.
_STEPS = 100
# When a reaction is tried once more that met a lock of another state.
_AGAIN_SECONDS = 1.0


def reacts(*traits: str, leader: bool = False) -> Callable[[Callable[[Any, Bunch], object]], Reaction]:
    """Call a method of a `SharedState` when one of these shared traits has changed, wherever the change came from.

    ::

        class Fit(SharedState):
            rate = t.Float(0.1)
            curve = t.List()

            @reacts("rate", leader=True)
            def draw(self, change):
                self.curve = fitted(self.rate)

    What it writes is an ordinary write. A chain of reactions of several processes ends behind the sixteenth.

    Parameters
    ----------
    *traits : str
        Names of shared traits.
    leader : bool
        Run it in one process only: in the live kernel or script that joined the room first, and when that one goes, in the
        next, which is also told what no other has reacted to. It runs once the server has confirmed the change, with several
        changes of a trait as one, and not while somebody holds the lock of the state. While the object is not linked, it runs
        here.

    Returns
    -------
    callable
        To be written above the method. That is called with the change: ``name``, ``old``, ``new``, ``origin``, ``actor``. With
        `leader`, ``old`` is `traitlets.Undefined` where this process was not there yet when the trait had that value.

    Raises
    ------
    TypeError
        What is decorated is no plain method, or, when the class is made, a name is no shared trait of it.
    """
    if not traits or not all(isinstance(name, str) for name in traits):
        raise TypeError('name the traits a method reacts to, as in @reacts("count")')

    def decorated(method: Callable[[Any, Bunch], object]) -> Reaction:
        if not inspect.isfunction(method) or inspect.iscoroutinefunction(method):
            raise TypeError(
                f"@reacts is for plain methods, and {getattr(method, '__name__', method)!r} is none; an async def goes with "
                "@background between the two, and is begun then"
            )
        return Reaction(traits, leader, method)

    return decorated


class Reaction(t.ObserveHandler):
    """A method that is called when one of its traits has changed."""

    def __init__(self, traits: tuple[str, ...], leader: bool, method: Callable[[Any, Bunch], object]) -> None:
        super().__init__(traits, type="change")
        self.leader = leader
        self.func = method  # type: ignore[assignment]
        self.__doc__ = method.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        """Called by Python, in classes that are no widgets too: a mixin may react."""
        self.name = name

    def instance_init(self, inst: t.HasTraits) -> None:
        """Called by traitlets for each new object."""
        if self.leader:
            inst.observe(self._alone, list(self.trait_names), type="change")
        else:
            super().instance_init(inst)

    def _alone(self, change: Bunch) -> None:
        """An object that is not linked is in one process only; what comes back when it is unlinked is no change of anyone."""
        if change.owner.linked_to is None and not change.get("restored"):
            assert self.name is not None
            getattr(change.owner, self.name)(change)


def checked(owner: str, members: Mapping[str, object], shared: Mapping[str, object]) -> dict[str, Reaction]:
    """The leader reactions of a class, by the names of the methods.

    Raises
    ------
    TypeError
        A reaction names what is no shared trait of the class.
    """
    found = {name: item for name, item in members.items() if isinstance(item, Reaction)}
    for name, item in found.items():
        for trait in item.trait_names:
            if trait not in shared:
                there = ", ".join(sorted(shared)) or "none"
                raise TypeError(f"{owner}.{name} reacts to {trait!r}, which is no shared trait of {owner}; it has {there}")
    return {name: item for name, item in found.items() if item.leader}


def beside(state: str) -> str:
    """The state that says how far the reactions to another got."""
    return state + REACTS


def wanted(reactions: Mapping[str, Reaction]) -> Wanted:
    """What makes that state: a kernel-only trait for each reaction (G9)."""
    return Wanted({name: TraitSchema(kind="list", kernel_only=True, default=[]) for name in reactions})


def attach(bridge: Bridge, reactions: Mapping[str, Reaction]) -> None:
    """The object of this bridge can react from here on; the state beside its own is linked."""
    connection, session = bridge.connection, bridge.session
    with connection.lock:
        watch = session.common.get(beside(bridge.state))
        if watch is None:
            watch = session.common[beside(bridge.state)] = Watch(connection, session, bridge.state)
            session.listeners.append(watch.hear)
        turn = Turn(watch, bridge, reactions)
        watch.turns.append(turn)
    bridge.behind = turn
    watch.look()


class _Step(NamedTuple):
    """What a trait held from a seq on; `depth` is that of a reaction to it."""

    seq: int
    value: Any
    depth: int = 0


class _Due(NamedTuple):
    """What a reaction is to be told: of each trait the first and last value nobody has reacted to, and who made the last."""

    reaction: str
    incarnation: str
    seq: int
    watched: tuple[str, ...]
    changes: dict[str, tuple[_Step, _Step, Actor]]


class Turn:
    """One object of this process, and what it does when its turn comes."""

    def __init__(self, watch: Watch, bridge: Bridge, reactions: Mapping[str, Reaction]) -> None:
        self.watch = watch
        self.bridge = bridge
        self.reactions = reactions

    def take(self) -> None:
        """React to what there is; called where the object's observers are."""
        self.watch.run(self)

    def end(self) -> None:
        """The object is linked no more."""
        self.watch.leave(self)

    def tell(self, due: _Due) -> None:
        """Call the method; `Locked` when it could not write what it wanted to."""
        owner: Any = self.bridge.owner
        method = getattr(owner, due.reaction)
        member = self.watch.member
        for trait, (first, last, actor) in due.changes.items():
            shared = self.bridge.traits[trait]
            try:
                old = first.value if first.value is t.Undefined else shared.from_wire(first.value, owner)
                new = shared.from_wire(last.value, owner)
            except Exception:
                log.exception("%s.%s cannot be told of a value", owner._class_name(), due.reaction)
                continue
            origin = "local" if actor.id == member else "remote"
            change = Bunch(name=trait, old=old, new=new, owner=owner, type="change", origin=origin, actor=actor)
            with causes.reacting(Cause(last.depth, self.bridge.state, trait, actor)):
                try:
                    method(change)
                except Locked:
                    raise
                except Exception:
                    log.exception("the reaction %s.%s raised", owner._class_name(), due.reaction)
            self.watch.told(due, trait)


class Watch:
    """What this process knows of one state for its leader reactions; the connection's lock guards it.

    Parameters
    ----------
    connection, session : Connection, Session
        The room.
    state : str
        The state that is watched.
    """

    def __init__(self, connection: Connection, session: Session, state: str) -> None:
        self.connection = connection
        self.session = session
        self.state = state
        self.beside = beside(state)
        # Of several objects the newest reacts: it is of the newest class.
        self.turns: list[Turn] = []
        # By reaction and trait: what was last reacted to, and what came since.
        self._steps: dict[tuple[str, str], list[_Step]] = {}
        # Up to where this process reacted.
        self._done: dict[str, int] = {}
        self._incarnation = session.replica.incarnation
        self._running = False

    @property
    def member(self) -> str | None:
        """Who this process is to the server; None while it is not connected."""
        welcome = self.connection.welcome
        return None if welcome is None else welcome.member

    def hear(self, news: News) -> None:
        """Something happened in the room; only looks who is to react to what."""
        for item in news.refused:
            if any(op.state == self.beside for op in item.ops):
                log.warning("how far %s was reacted to cannot be noted: %s", self.state, item.problem.message)
        self.look()

    def look(self) -> None:
        """Note what changed, and wake whoever is to react."""
        with self.connection.lock:
            self._note()
            due = [turn for turn in self.turns if self._due(turn) is not None]
        for turn in due:
            turn.bridge.look_behind()

    def run(self, turn: Turn) -> None:
        """React to what there is, one reaction after the other; one thread of this process at a time."""
        reacted = False
        while True:
            with self.connection.lock:
                self._note()
                due = None if self._running else self._due(turn)
                self._running = self._running or due is not None
            if due is None:
                if reacted:
                    # Other objects of this process had to wait for this one.
                    self.look()
                return
            reacted = done = True
            try:
                turn.tell(due)
            except Locked:
                done = False
            finally:
                # An interrupted one is not run again: whoever interrupts it wants it to end.
                with self.connection.lock:
                    self._running = False
                    if done and self._incarnation == due.incarnation:
                        self._done[due.reaction] = due.seq
                if done:
                    self._say(due)
                else:
                    self.connection.later(self.look, _AGAIN_SECONDS)
            if not done:
                return

    def told(self, due: _Due, trait: str) -> None:
        """Of this trait all was told: it is not told again when the next one meets a lock."""
        with self.connection.lock:
            if self._incarnation == due.incarnation:
                steps = self._steps[due.reaction, trait]
                while len(steps) > 1 and steps[1].seq <= due.seq:
                    del steps[0]

    def leave(self, turn: Turn) -> None:
        """An object less."""
        with self.connection.lock:
            if turn in self.turns:
                self.turns.remove(turn)
            last = not self.turns
            if last and self.session.common.get(self.beside) is self:
                del self.session.common[self.beside]
        self.connection.unlink(self.session, self.beside, self.hear if last else None)

    def _say(self, due: _Due) -> None:
        """Note in the room how far the reaction got. Not a reaction itself: nobody is told of it."""
        op = Set(state=self.beside, path=(due.reaction,), value=[due.incarnation, due.seq, *due.watched])
        try:
            self.connection.write(self.session, [op], depth=0)
        except SharedWidgetsError as error:
            # The next process may react once more. That is better than never.
            log.debug("how far %s was reacted to is not noted: %s", self.state, error)

    # --- with the lock held

    def _leads(self) -> bool:
        """Whether this process is the one that reacts, as far as it can know: never while it is not connected."""
        session = self.session
        if not self.connection.counted or session.resuming or session.ended is not None:
            return False
        able = [
            (member.since, member.id)
            for member in session.replica.members.values()
            if member.kind != "frontend" and member.state == "live" and self.beside in member.states
        ]
        return bool(able) and min(able)[1] == self.member

    def _due(self, turn: Turn) -> _Due | None:
        """What a turn has to do now."""
        replica = self.session.replica
        state = replica.states.get(self.state)
        # What it would write now would be refused: it reacts when the lock is free.
        locked = LockName(kind="state", name=self.state) in replica.locks
        if state is None or locked or not self._leads():
            return None
        for reaction, item in turn.reactions.items():
            if next((other for other in reversed(self.turns) if reaction in other.reactions), None) is not turn:
                continue
            steps = {str(trait): self._steps.get((reaction, str(trait)), []) for trait in item.trait_names}
            new = {trait: found for trait, found in steps.items() if len(found) > 1}
            if new:
                changes = {
                    trait: (found[0], _latest(found), state.last[trait].actor)
                    for trait, found in new.items()
                    if found[0].value is t.Undefined or not same(found[0].value, found[-1].value)
                }
                return _Due(reaction, replica.incarnation, replica.seq, tuple(map(str, item.trait_names)), changes)
        return None

    def _note(self) -> None:
        """Compare the room with what was seen of it before."""
        replica = self.session.replica
        state = replica.states.get(self.state)
        if state is None or self.session.ended is not None:
            return
        anew = self._incarnation != replica.incarnation
        if anew:
            # The room was made again from somebody's copy. Its numbers begin anew, and only the values can be compared.
            self._incarnation = replica.incarnation
            self._done.clear()
        for turn in self.turns:
            for reaction, item in turn.reactions.items():
                said, first, watched = self._said(reaction)
                handled = max(said, self._done.get(reaction, 0))
                for trait in map(str, item.trait_names):
                    if trait not in state.last:
                        continue
                    depth = causes.after("remote", replica.depth(self.state, trait))
                    here = _Step(state.last[trait].seq, state.values[trait], depth)
                    steps = self._steps.get((reaction, trait))
                    if steps is None:
                        # Where this process was not there yet, it does not know what there was before.
                        known = here.seq <= first or (watched is not None and trait not in watched)
                        steps = [here] if known else [_Step(0, t.Undefined), here]
                    elif anew or here.seq < steps[-1].seq:
                        unlike = steps[0].value is t.Undefined or not same(steps[0].value, here.value)
                        steps = [_Step(0, steps[0].value), here] if len(steps) > 1 or unlike else [here]
                    elif here.seq > steps[-1].seq:
                        steps.append(here)
                    while len(steps) > 1 and steps[1].seq <= handled:
                        del steps[0]
                    if len(steps) > _STEPS:
                        del steps[1]
                    self._steps[reaction, trait] = steps

    def _said(self, reaction: str) -> tuple[int, int, Sequence[object] | None]:
        """Up to where the room says that was reacted, to those who were there and to one who comes; to which traits."""
        replica = self.session.replica
        state = replica.states.get(self.beside)
        if state is None or reaction not in state.last:
            return 0, replica.seq, None
        match state.values[reaction]:
            case [replica.incarnation, int(seq), *watched]:
                return seq, seq, watched
            case _:
                # Nobody has reacted yet, or to another log: what was there when this began leads to nothing.
                return 0, state.last[reaction].seq, None


def _latest(steps: Sequence[_Step]) -> _Step:
    """The last of them, with the depth of the deepest that nobody has reacted to."""
    return steps[-1]._replace(depth=max(step.depth for step in steps[1:]))
