"""`@reacts`: what a class does about changes of its shared traits, in each process or in exactly one.

A reaction with ``leader=True`` is run by one live kernel or script: the one that came to the room first, of those whose class
has that reaction. In the room a state for each reaction stands beside the one that is watched. Who links it can react. It says
who does, and how far that one got: when its process dies, the next one knows what nobody has reacted to.

Who reacts is said by an entry like any other, made under the condition that nobody has made one since its author looked. So
there is one at most, whatever each process knows of the presence of others, and it stays while it is there.

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
from sharedwidgets.connection import Connection
from sharedwidgets.core.delta import MAX_NAME
from sharedwidgets.core.protocol import REACTS, Actor, LockName, Op, Set, TraitSchema
from sharedwidgets.core.replica import News, Pending, Replica
from sharedwidgets.core.values import same
from sharedwidgets.errors import Locked, LockTimeout, SharedWidgetsError, ValueMismatch
from sharedwidgets.links import Session, Wanted

log = logging.getLogger("sharedwidgets")

# Values of one trait that are remembered while nobody has reacted to them.
_STEPS = 100
# When a reaction is tried once more that met a lock, and a word to the room that was refused.
_AGAIN_SECONDS = 1.0
# The traits of the state beside: the member that reacts, and up to where somebody did.
_LEADER, _DONE = "leader", "done"


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
        Run it in one process only: in the live kernel or script that joined the room first, of those whose class has the
        reaction, and when that one goes, in the next, which is also told what no other has reacted to. Whoever reacts goes on
        while it is there, also when an older one comes back. It runs once the server has confirmed the change, with several
        changes of a trait as one, and not while somebody holds the lock of the state; one that raises `Locked` or `LockTimeout`
        is run again a second later. While the object is not linked, it runs here.

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


def checked(owner: str, state: str, members: Mapping[str, object], shared: Mapping[str, object]) -> dict[str, Reaction]:
    """The leader reactions of a class, by the names of the methods.

    Raises
    ------
    TypeError
        A reaction names what is no shared trait of the class, or the state beside would have a name that is too long.
    """
    found = {name: item for name, item in members.items() if isinstance(item, Reaction)}
    for name, item in found.items():
        for trait in item.trait_names:
            if trait not in shared:
                there = ", ".join(sorted(shared)) or "none"
                raise TypeError(f"{owner}.{name} reacts to {trait!r}, which is no shared trait of {owner}; it has {there}")
    leading = {name: item for name, item in found.items() if item.leader}
    for name in leading:
        over = len(beside(state, name)) - MAX_NAME
        if over > 0:
            raise TypeError(f"{owner}.{name}: the names of a state and of its leader reaction are {over} characters too long")
    return leading


def beside(state: str, reaction: str) -> str:
    """The state that says who runs a reaction to another, and how far it got."""
    # No name of a method has the character: of two states and their reactions none are taken for each other.
    return f"{state}@{reaction}{REACTS}"


def wanted() -> Wanted:
    """What makes that state: kernel-only traits (G9)."""
    return Wanted(
        {
            _LEADER: TraitSchema(kind="text", kernel_only=True, default=""),
            _DONE: TraitSchema(kind="list", kernel_only=True, default=[]),
        }
    )


def attach(bridge: Bridge, reactions: Mapping[str, Reaction]) -> None:
    """The object of this bridge can react in these ways from here on; the states beside its own are linked."""
    connection, session = bridge.connection, bridge.session
    with connection.lock:
        watch = session.common.get(bridge.state + REACTS)
        if watch is None:
            watch = session.common[bridge.state + REACTS] = Watch(connection, session, bridge.state)
            session.listeners.append(watch.hear)
        turn = Turn(watch, bridge, reactions)
        watch.turns.append(turn)
    bridge.behind = turn
    watch.look()


def leads(replica: Replica, state: str, member: str, since: int) -> bool:
    """Whether the room says in a state beside that this member reacts, and said so after `since`.

    An older word is from before its process was away, or left: somebody may be about to take its place, who has seen that.
    """
    found = replica.states.get(state)
    return found is not None and _LEADER in found.last and found.values[_LEADER] == member and found.last[_LEADER].seq > since


def may_claim(replica: Replica, state: str, member: str) -> bool:
    """Whether it is for this member to say that it reacts: it did before, or nobody who is here does and it came first."""
    found = replica.states.get(state)
    if found is None or _LEADER not in found.last:
        return False
    able = {
        other.id: (other.since, other.id)
        for other in replica.members.values()
        if other.kind != "frontend" and other.state == "live" and state in other.states
    }
    leader = found.values[_LEADER]
    return member in able and (leader == member or (leader not in able and min(able.values())[1] == member))


def claim(replica: Replica, state: str, member: str) -> list[Op]:
    """Say that this member reacts, unless somebody has said such a thing since what this replica holds."""
    return [Set(state=state, path=(_LEADER,), value=member, if_rev=replica.seq)]


def done(state: str, member: str, how_far: list[Any]) -> list[Op]:
    """Say how far this member got, unless it is not the one that reacts any more: the next one says how far it got itself."""
    return [
        Set(state=state, path=(_LEADER,), value=member, if_in=(member,)),
        Set(state=state, path=(_DONE,), value=how_far),
    ]


class _Step(NamedTuple):
    """What a trait held from a seq on; `depth` is that of a reaction to it."""

    seq: int
    value: Any
    depth: int = 0


class _Due(NamedTuple):
    """What a reaction is to be told: of each trait the first and last value nobody has reacted to, and who made the last."""

    reaction: str
    # Who the room says is to react.
    member: str
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
        """Call the method; `Locked` or `LockTimeout` when it could not write what it wanted to."""
        owner: Any = self.bridge.owner
        method = getattr(owner, due.reaction)
        for trait, (first, last, actor) in due.changes.items():
            shared = self.bridge.traits[trait]
            try:
                old = first.value if first.value is t.Undefined else shared.from_wire(first.value, owner)
                new = shared.from_wire(last.value, owner)
            except Exception:
                log.exception("%s.%s cannot be told of a value", owner._class_name(), due.reaction)
                continue
            origin = "local" if actor.id == due.member else "remote"
            change = Bunch(name=trait, old=old, new=new, owner=owner, type="change", origin=origin, actor=actor)
            with causes.reacting(Cause(last.depth, self.bridge.state, trait, actor)):
                try:
                    method(change)
                except (Locked, LockTimeout):
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
        # Of several objects the newest reacts: it is of the newest class.
        self.turns: list[Turn] = []
        # By reaction and trait: what was last reacted to, and what came since.
        self._steps: dict[tuple[str, str], list[_Step]] = {}
        # Up to where this process reacted.
        self._done: dict[str, int] = {}
        self._incarnation = session.replica.incarnation
        # Whose reaction is under way.
        self._running: Turn | None = None
        # By reaction, since when this process is there without a gap: what the room said of it before counts no more.
        self._since: dict[str, int] = {}
        # The conversation with the server, and the log, in which that is so.
        self._talk: tuple[object, str] = (None, "")
        # What was asked of the room and is not decided, or was not looked at since.
        self._claims: dict[str, Pending] = {}
        self._words: list[Pending] = []
        # Reactions that rest: nothing is asked for them, or they are not run; and those of which that was said.
        self._refused: set[str] = set()
        self._waiting: set[str] = set()
        self._warned: set[str] = set()

    def hear(self, news: News) -> None:
        """Something happened in the room; only looks who is to react to what."""
        self.look()

    def look(self) -> None:
        """Note what changed, and wake whoever is to react."""
        with self.connection.lock:
            self._note()
            problems = self._heard()
            due = [turn for turn in self.turns if self._due(turn) is not None]
            claims = bool(self._unclaimed())
        for problem in problems:
            log.warning("how far %s was reacted to cannot be noted: %s", self.state, problem)
        if claims:
            # Where nothing waits, and no news come in between.
            self.connection.later(self._claim)
        for turn in due:
            turn.bridge.look_behind()

    def run(self, turn: Turn) -> None:
        """React to what there is, one reaction after the other; one thread of this process at a time."""
        reacted = False
        while True:
            with self.connection.lock:
                self._note()
                due = None if self._running is not None else self._due(turn)
                if due is not None:
                    self._running = turn
            if due is None:
                if reacted:
                    # Other objects of this process had to wait for this one.
                    self.look()
                return
            reacted = True
            locked: Locked | LockTimeout | None = None
            try:
                turn.tell(due)
            except (Locked, LockTimeout) as error:
                locked = error
            finally:
                # An interrupted one is not run again: whoever interrupts it wants it to end.
                try:
                    self._ran(due, locked)
                finally:
                    # Behind the word of how far it got: whoever leaves is not missed before.
                    with self.connection.lock:
                        self._running = None
                        left = turn not in self.turns
                    if left:
                        self._release(turn)

    def _ran(self, due: _Due, locked: Locked | LockTimeout | None) -> None:
        """A reaction has come to its end, or is to be run again as it met a lock: no change is passed over for that."""
        if locked is None:
            with self.connection.lock:
                self._warned.discard(due.reaction)
                if self._incarnation == due.incarnation:
                    self._done[due.reaction] = due.seq
            self._say(due)
            return
        if due.reaction not in self._warned:
            log.warning("the reaction %s to %s is run again until it has the lock: %s", due.reaction, self.state, locked)
        with self.connection.lock:
            self._warned.add(due.reaction)
            self._rest(self._waiting, due.reaction)

    def told(self, due: _Due, trait: str) -> None:
        """Of this trait all was told: it is not told again when the next one meets a lock."""
        with self.connection.lock:
            if self._incarnation == due.incarnation:
                steps = self._steps[due.reaction, trait]
                while len(steps) > 1 and steps[1].seq <= due.seq:
                    del steps[0]

    def leave(self, turn: Turn) -> None:
        """An object less. While its reaction runs, this process stays one that can react: no other begins the same."""
        with self.connection.lock:
            self.turns = [other for other in self.turns if other is not turn]
            running = self._running is turn
        if not running:
            self._release(turn)

    def _release(self, turn: Turn) -> None:
        """Unlink the states beside that of an object that has left."""
        with self.connection.lock:
            for reaction in turn.reactions.keys() - self._newest().keys():
                self._since.pop(reaction, None)
            last = not self.turns and self._running is None
            if last and self.session.common.get(self.state + REACTS) is self:
                del self.session.common[self.state + REACTS]
        for reaction in turn.reactions:
            self.connection.unlink(self.session, beside(self.state, reaction), self.hear if last else None)

    def _claim(self) -> None:
        """Say in the room that this process reacts, where nobody else does; on the I/O thread."""
        with self.connection.lock:
            replica = self.session.replica
            wanted = {reaction: claim(replica, beside(self.state, reaction), self._member) for reaction in self._unclaimed()}
        for reaction, ops in wanted.items():
            try:
                push: Pending | None = self.connection.ask(self.session, ops, depth=0)[0]
            except SharedWidgetsError as error:
                log.debug("%s cannot be said to be reacted to: %s", self.state, error)
                push = None
            with self.connection.lock:
                if push is None:
                    self._rest(self._refused, reaction)
                else:
                    self._claims[reaction] = push

    def _say(self, due: _Due) -> None:
        """Note in the room how far the reaction got. Not a reaction itself: nobody is told of it."""
        ops = done(beside(self.state, due.reaction), due.member, [due.incarnation, due.seq, *due.watched])
        try:
            push, _ = self.connection.ask(self.session, ops, depth=0)
        except SharedWidgetsError as error:
            # The next process may react once more. That is better than never.
            log.debug("how far %s was reacted to is not noted: %s", self.state, error)
        else:
            with self.connection.lock:
                self._words.append(push)

    # --- with the lock held

    def _rest(self, resting: set[str], reaction: str) -> None:
        """Leave a reaction alone for a while."""

        def again() -> None:
            with self.connection.lock:
                resting.discard(reaction)
            self.look()

        resting.add(reaction)
        self.connection.later(again, _AGAIN_SECONDS)

    @property
    def _member(self) -> str:
        """Who this process is to the server; nobody while it is not connected."""
        welcome = self.connection.welcome
        return "" if welcome is None else welcome.member

    def _counts(self) -> bool:
        """Whether this process is among those that can react, as far as it can know: never while it is not connected."""
        session = self.session
        return self.connection.counted and bool(self._member) and not session.resuming and session.ended is None

    def _newest(self) -> dict[str, Turn]:
        """By reaction, the object of this process that runs it."""
        return {reaction: turn for turn in self.turns for reaction in turn.reactions}

    def _leads(self, reaction: str) -> bool:
        """Whether this process is the one that reacts."""
        since = self._since.get(reaction)
        state = beside(self.state, reaction)
        return since is not None and self._counts() and leads(self.session.replica, state, self._member, since)

    def _unseen(self, reaction: str, item: Reaction) -> dict[str, list[_Step]]:
        """What nobody has reacted to, by trait; nothing while it may not be reacted to."""
        # What it would write now would be refused: it reacts when the lock is free.
        if reaction in self._waiting or LockName(kind="state", name=self.state) in self.session.replica.locks:
            return {}
        steps = {str(trait): self._steps.get((reaction, str(trait)), []) for trait in item.trait_names}
        return {trait: found for trait, found in steps.items() if len(found) > 1}

    def _unclaimed(self) -> list[str]:
        """The reactions of which this process should say that it runs them; it does not before there is something to do."""
        if not self._counts():
            return []
        replica = self.session.replica
        return [
            reaction
            for reaction, turn in self._newest().items()
            if reaction not in self._claims
            and reaction not in self._refused
            and self._unseen(reaction, turn.reactions[reaction])
            and not self._leads(reaction)
            and may_claim(replica, beside(self.state, reaction), self._member)
        ]

    def _heard(self) -> list[str]:
        """Take in what the room made of what was asked; the sentences of what is worth a word."""
        is_open = self.session.replica.is_open
        for reaction, push in [*self._claims.items()]:
            if not is_open(push):
                del self._claims[reaction]
                if push.problem is not None:
                    # Somebody else was faster, and is heard of soon; or the room takes nothing now.
                    self._rest(self._refused, reaction)
        decided = [push for push in self._words if not is_open(push)]
        self._words = [push for push in self._words if is_open(push)]
        # That somebody has taken the place of this process is no trouble.
        return [
            push.problem.message for push in decided if push.problem is not None and push.problem.code != ValueMismatch.code
        ]

    def _due(self, turn: Turn) -> _Due | None:
        """What a turn has to do now."""
        replica = self.session.replica
        state = replica.states.get(self.state)
        newest = self._newest()
        for reaction, item in turn.reactions.items() if state is not None else ():
            new = self._unseen(reaction, item) if newest.get(reaction) is turn and self._leads(reaction) else {}
            if new:
                assert state is not None
                changes = {
                    trait: (found[0], _latest(found), state.last[trait].actor)
                    for trait, found in new.items()
                    if found[0].value is t.Undefined or not same(found[0].value, found[-1].value)
                }
                watched = tuple(map(str, item.trait_names))
                return _Due(reaction, self._member, replica.incarnation, replica.seq, watched, changes)
        return None

    def _begin(self) -> None:
        """Note since when this process is there without a gap; later than it was is safe, and costs a word to the room."""
        if not self._counts():
            return
        replica = self.session.replica
        welcome, epoch = self._talk
        if welcome is not self.connection.welcome or epoch != replica.epoch:
            self._talk = (self.connection.welcome, replica.epoch)
            self._since.clear()
        for reaction in self._newest():
            self._since.setdefault(reaction, replica.seq)

    def _note(self) -> None:
        """Compare the room with what was seen of it before."""
        self._begin()
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
        state = replica.states.get(beside(self.state, reaction))
        if state is None or _DONE not in state.last:
            return 0, replica.seq, None
        match state.values[_DONE]:
            case [replica.incarnation, int(seq), *watched]:
                return seq, seq, watched
            case _:
                # Nobody has reacted yet, or to another log: what was there when this began leads to nothing.
                return 0, state.last[_DONE].seq, None


def _latest(steps: Sequence[_Step]) -> _Step:
    """The last of them, with the depth of the deepest that nobody has reacted to."""
    return steps[-1]._replace(depth=max(step.depth for step in steps[1:]))
