"""`SharedState`: a widget whose traits live in a room while it is linked, and in this kernel while it is not."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import msgspec
import traitlets as t
from anywidget import AnyWidget
from ipywidgets import Layout
from ipywidgets.widgets.widget import _instances
from traitlets.utils.bunch import Bunch

from sharedwidgets import bundle, cells, computing, discovery, host, reactions
from sharedwidgets.atomic import AtomicOps
from sharedwidgets.bridge import Bridge, Event
from sharedwidgets.classes import RESERVED, SharedStateMeta, has_own_init
from sharedwidgets.connection import Connection, shared
from sharedwidgets.core.protocol import LastChange, LockName, Member, Problem, TraitSchema, shown
from sharedwidgets.core.values import Value, check_token, same
from sharedwidgets.delivery import Mode
from sharedwidgets.drafts import Draft
from sharedwidgets.errors import Forbidden, InvalidValue, LinkTimeout, ServerNotFound, SharedWidgetsError
from sharedwidgets.layers import Layers
from sharedwidgets.links import Part, Session, Wanted
from sharedwidgets.parts import StatePart, SyncPart
from sharedwidgets.reactions import Reaction
from sharedwidgets.room import Room
from sharedwidgets.traits import ANYWIDGET_TRAITS, SharedTrait, differ, is_private, prepared, shared_trait
from sharedwidgets.transactions import nowhere, transaction, writer

if TYPE_CHECKING:
    from sharedwidgets.locks import LocalLock, Lock

log = logging.getLogger("sharedwidgets")

Self = TypeVar("Self", bound="SharedState")
Item = TypeVar("Item")

# How long a constructor waits for its room before the object starts out private.
CONSTRUCTOR_SECONDS = 3.0
RETRY_SECONDS = 2.0


class SharedState(AtomicOps, AnyWidget, metaclass=SharedStateMeta):
    """Base class of shared state: declare traits, then `link_to` a room.

    A public trait is shared with every kernel, page and script of the room, **and goes to everyone's browser**. A name with a
    leading underscore, or ``.tag(sync=False)``, is shared between kernels only. ``.tag(shared=False)`` keeps a trait in this
    kernel and its own views. A method under ``@computed`` is a trait that each kernel makes of the others.

    Parameters
    ----------
    room : str, optional
        Link at once. Never fails for a missing server: the object stays private, says so, and joins when the server comes.
    server, credential : str, optional
        With `room`: which server.
    **traits
        First private values.

    Class keywords
    --------------
    state_name : str
        Name of the state in a room; the class name by default.
    delivery : "main" or "thread"
        Where observers of remote changes run: on the kernel's main thread (default), or on a thread of the object's own.
    on_locked : "raise" or "wait"
        What an assignment does while somebody else holds the state's lock: raise `Locked` (default), or take its turn, which is
        ``with state.lock(timeout=5)`` around it. One that is on its way when the lock is granted is refused in either case, and
        its author told by a change of type ``"rejected"``; who must not lose any takes the lock.
    """

    _options: ClassVar[dict[str, Any]] = {}
    _computed_traits: ClassVar[Mapping[str, computing.Computed[Any]]] = {}
    _leading: ClassVar[dict[str, Reaction]] = {}
    _esm = bundle.stub()
    # The source of a view of the class's own, where it has one: the page module keeps the link and then lets it draw.
    _view_source: ClassVar[Any] = ""
    _view_esm = t.Unicode().tag(sync=True)
    # What a page must know to talk to the room itself. No secret is in it: it is saved with the notebook.
    _link = t.Dict().tag(sync=True)

    def __init__(
        self, *, room: str | None = None, server: str | None = None, credential: str | None = None, **traits: Any
    ) -> None:
        unknown = sorted(name for name in traits if not self.has_trait(name))
        if unknown:
            raise TypeError(f"{self._class_name()} has no trait {unknown[0]!r}; it has {', '.join(self._own_traits())}")
        for name in traits.keys() & self._computed_traits.keys():
            raise TypeError(f"{self._class_name()}.{name} is computed and takes no first value; give the traits it is made of")
        if room is not None:
            check_token(room)
        super().__init__(_view_esm=bundle.source(self._view_source), **traits)
        # Ends with this object, unless it is the user's, who may have others that look like it.
        self._own_layout = None if isinstance(traits.get("layout"), Layout) else self.layout
        self.on_msg(send_module)
        self._say_link()
        cells.note(self)
        host.watch_cells()
        if room is not None:
            self._link_when_possible(room, server, credential, set(traits))

    def setup_instance(self, /, *args: Any, **options: Any) -> None:
        """Called by traitlets when there is nothing of the object yet, before any constructor."""
        self._bridge: Bridge | None = None
        self._private: dict[str, Any] = {}
        self._handle: Room | None = None
        self._waiting: threading.Event | None = None
        # By thread or task: the innermost transaction or hold of traitlets that it is in.
        self._parts: dict[tuple[int, int], StatePart] = {}
        # What those make private traits show.
        self._layers = Layers[Any]()
        # How many threads and tasks keep its pages waiting.
        self._sync_holders = 0
        self._sync_lock = host.leaf_lock()
        # By whom traitlets is told to ask no validators.
        self._unasked: set[tuple[int, int]] = set()
        super().setup_instance(*args, **options)

    # --- linking

    def link_to(
        self: Self, token: str, timeout: float = 10.0, *, server: str | None = None, credential: str | None = None
    ) -> Self:
        """Join a room: its values are this object's values from now on. Returns the object itself.

        A room that has no such state yet gets it with the *class defaults*; this object's private values come back at
        `unlink`. Linking to another room while linked switches; when it fails nothing has changed.

        Parameters
        ----------
        token : str
            The room's name.
        timeout : float
            Seconds to wait for the server.
        server, credential : str, optional
            Base URL and secret of a server; found by itself by default.

        Raises
        ------
        InvalidToken, ServerNotFound, LinkTimeout, SchemaConflict, Forbidden, TooManyRooms, InvalidValue, WrongThread
        """
        connection, session, wanted = self._opened(token, server, credential)
        until = time.monotonic() + timeout
        with self._joining(connection, session) as joined:
            for state, how in wanted:
                with joined(state) as first:
                    connection.join(session, state, how, timeout if first else max(0.0, until - time.monotonic()))
        self._adopt(connection, session).show_all("resync", now=True)
        return self

    async def link_to_async(
        self: Self, token: str, timeout: float = 10.0, *, server: str | None = None, credential: str | None = None
    ) -> Self:
        """`link_to` that lets the loop run meanwhile."""
        connection, session, wanted = self._opened(token, server, credential)
        until = time.monotonic() + timeout
        with self._joining(connection, session) as joined:
            for state, how in wanted:
                with joined(state) as first:
                    left = timeout if first else max(0.0, until - time.monotonic())
                    await connection.join_async(session, state, how, left)
        self._adopt(connection, session).show_all("resync", now=True)
        return self

    def unlink(self, *, flush: bool = False, timeout: float = 10.0) -> None:
        """Leave the room; the private values from before the link come back at once.

        What was written to the room before is still sent. Never blocks, unless `flush` waits for the answers.

        Raises
        ------
        LinkTimeout
            With `flush`: not answered in time; the object is unlinked all the same.
        """
        bridge = self._bridge
        if bridge is None:
            if self._waiting is not None:
                self._stop_waiting()
                self._say_link()
            return
        self._check_not_grouping("unlink")
        self._stop_waiting()
        self._detach(bridge)
        self._restore_private()
        if flush:
            bridge.connection.flush(bridge.session, timeout)

    @property
    def linked_to(self) -> str | None:
        """The token of the room, or None."""
        return None if self._bridge is None else self._bridge.session.room

    @property
    def linked_from(self) -> tuple[Member, ...]:
        """Who links this state in the room, this process too; empty while unlinked."""
        bridge = self._bridge
        if bridge is None:
            return ()
        with bridge.connection.lock:
            members = bridge.session.replica.members.values()
            linked = [shown(member) for member in members if bridge.state in member.states]
        return tuple(sorted(linked, key=lambda member: (member.since, member.id)))

    @property
    def room(self) -> Room | None:
        """The handle of the room, for what concerns it as a whole; None while unlinked.

        It is closed when the object unlinks or links to another room, and its callbacks with it: give them to the new one.
        """
        bridge = self._bridge
        if bridge is None:
            return None
        if self._handle is None:
            self._handle = Room(bridge.connection, bridge.connection.open(bridge.session.room), self._mode())
        return self._handle

    # --- locks

    def lock(self, timeout: float = 30.0, lease: float | None = None) -> Lock | LocalLock:
        """The lock of this state: while it is held, nobody else anywhere writes the state's traits.

        ::

            with counter.lock():
                counter.count += 1  # read, change and write that cannot be lost

        Parameters
        ----------
        timeout : float
            Seconds to wait for its turn; then `LockTimeout` names the holder.
        lease : float, optional
            Seconds it lasts without being renewed, for bodies that let no other code run; 15 by default.

        Returns
        -------
        Lock
            To be used as ``with`` or ``async with``. While the state is not linked it is a `LocalLock` of this process.
        """
        # Loaded by who locks: importing this library is to cost little.
        from sharedwidgets.locks import Lock

        bridge = self._bridge
        if bridge is None:
            return self._local_lock(timeout)
        name = LockName(kind="state", name=bridge.state)
        return Lock(bridge.connection, bridge.session, name, timeout=timeout, lease=lease, mode=self._mode())

    def _local_lock(self, timeout: float) -> LocalLock:
        from sharedwidgets.locks import LocalLock, Mutex

        return LocalLock(self.__dict__.setdefault("_mutex", Mutex()), timeout)

    @property
    def locked_by(self) -> Member | None:
        """Who holds the lock of this state, this process too; None when nobody does, or while unlinked."""
        bridge = self._bridge
        if bridge is None:
            return None
        with bridge.connection.lock:
            return bridge.session.replica.holder(LockName(kind="state", name=bridge.state))

    # --- while linked

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make the assignments of this thread or task one entry: all or nothing.

        On any exception they are undone, and nobody is told. Observers hear at the end, of final values only. Inside of another
        transaction or a hold it can be undone by itself, and is part of that one's entry otherwise.
        """
        with self._together(StatePart, BaseException):
            yield

    def _together(
        self, kind: type[SyncPart], undone_by: type[BaseException] | tuple[type[BaseException], ...]
    ) -> AbstractContextManager[None]:
        """What this thread or task writes from here on is one entry, or part of that it is in already."""
        bridge = self._bridge
        draft = (None if bridge is None else bridge.draft()) or Draft()
        part = kind(self, draft)
        write = nowhere if bridge is None else writer(bridge.connection, bridge.session, draft, [part], bridge.hear)
        return transaction([part], lambda: nowhere() if part.inside else write(), undone_by)

    def _part(self, draft: Draft) -> Part:
        """What this object does in a transaction of its room.

        Raises
        ------
        RuntimeError
            It is in a transaction or hold of its own already.
        """
        mine = None if self._bridge is None else self._bridge.draft()
        if mine not in (None, draft):
            raise RuntimeError(
                f"open the transaction of the room around that of the {self._class_name()}, not inside of it: one entry cannot "
                "be half of another"
            )
        return StatePart(self, draft)

    def pull(self: Self) -> Self:
        """Show what has come from the room by now: for a loop in a busy cell. Returns the object itself."""
        if self._bridge is not None:
            self._warn_of_changes_in_place()
            self._bridge.delivery.pull()
        return self

    def live(self, items: Iterable[Item]) -> Iterator[Item]:
        """Go through `items`; before each step the traits show what has come from the room."""
        for item in items:
            self.pull()
            yield item

    def flush(self, timeout: float = 10.0) -> None:
        """Wait until the server has answered every write made so far; refused ones are undone then.

        Raises
        ------
        LinkTimeout, WrongThread
        """
        bridge = self._bridge
        if bridge is not None:
            self._warn_of_changes_in_place()
            bridge.connection.flush(bridge.session, timeout)

    def wait_until(self, condition: Callable[[], object], timeout: float | None = None) -> bool:
        """Wait until `condition()` is true, showing what comes from the room meanwhile; whether it became so in time."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            bridge = self._bridge
            if bridge is None:
                return bool(condition())

            def unlinked(was: Bridge = bridge) -> bool:
                return self._bridge is not was

            since = bridge.connection.moment(bridge.session)
            self.pull()
            if condition():
                return True
            bridge.connection.check_may_wait()
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            waited = bridge.connection.wait_for_news(bridge.session, since, left, unlinked)
            if not waited and not unlinked():
                return bool(condition())

    def changed(self, *names: str) -> asyncio.Future[Bunch]:
        """The next change of one of these traits (of any shared one, without names), from wherever it comes, to be awaited.

        It counts from the call, not from the ``await``: what was written in between was not missed. What is written after it is
        no reaction to the change: a chain through such loops is not counted, and none of its writes is one too many.

        Returns
        -------
        asyncio.Future of Bunch
            ``name``, ``old``, ``new``, ``origin`` and ``actor``.
        """
        loop = asyncio.get_running_loop()
        came: asyncio.Future[Bunch] = loop.create_future()

        def hear(change: Bunch) -> None:
            try:
                loop.call_soon_threadsafe(_settle, came, change)
            except RuntimeError:
                # The loop is closed, and nobody awaits this any more.
                self.unobserve(hear, names=watched)

        watched = list(names) or sorted(self._shared())
        self.observe(hear, names=watched)
        came.add_done_callback(lambda done: self.unobserve(hear, names=watched))
        self.pull()
        return came

    def last_change(self, trait: str) -> LastChange | None:
        """Who made or changed a trait last, in which entry and when; None while unlinked, and for private traits.

        Returns
        -------
        LastChange or None
            ``actor`` (``kind``, ``user``, ``kernel_id``, ``id``; established by the server), ``seq``, and ``at`` in seconds
            since 1970 by the server's clock.

        Raises
        ------
        NoSuchTrait
        """
        bridge = self._linked_by(trait)
        if bridge is None:
            return None
        with bridge.connection.lock:
            return bridge.session.replica.last_change(bridge.state, trait)

    @property
    def invalid_traits(self) -> dict[str, str]:
        """Traits that show another value than the room holds, as this class does not take that one: by name, and why.

        Observers were told so by a change of type ``"invalid"``. Empty while unlinked.
        """
        return {} if self._bridge is None else dict(self._bridge.invalid)

    # --- what traitlets and ipywidgets call

    def __setattr__(self, name: str, value: Any) -> None:
        if computing.frames:
            computing.check_assignment(self, name)
        bridge = self.__dict__.get("_bridge")
        if bridge is None or name not in bridge.traits:
            super().__setattr__(name, value)
            return
        if differ(self._trait_values.get(name), value):
            bridge.check_unlocked(name)
        then: list[Callable[[], None]] = []
        with bridge.assigning(name) as wrote:
            super().__setattr__(name, value)
            if not wrote():
                then = bridge.write_again(name, getattr(self, name))
        for task in then:
            task()

    def _notify_trait(self, name: str, old_value: Any, new_value: Any) -> None:
        """Called by a trait that was set, also inside a hold: the room hears before any observer does."""
        bridge = self.__dict__.get("_bridge")
        if bridge is None or name not in bridge.traits:
            super()._notify_trait(name, old_value, new_value)
            return
        try:
            old_value, then = bridge.write(name, old_value, new_value)
        except BaseException:
            computing.changed(self, name, "rollback", None)
            raise
        try:
            # Unless something newer was shown and told already, on another thread: the last event must be of the last value.
            if not differ(self._trait_values.get(name), new_value):
                super()._notify_trait(name, old_value, new_value)
        finally:
            for task in then:
                task()

    def notify_change(self, change: Bunch) -> None:
        """Send a private trait to the own views, and tell observers; ``origin`` is part of every change."""
        change.setdefault("origin", "local")
        change.setdefault("actor", None)
        if self._parts and self._keep_back(change):
            return
        if "_computed_dependents" in self.__dict__:
            self._told(change)
        else:
            super().notify_change(change)

    def _keep_back(self, change: Bunch, *, checked: bool = False) -> bool:
        """Keep a change back for the transaction or hold that this thread or task is in; whether it is in one."""
        mine = self._parts.get(host.owner())
        if mine is None:
            self._layers.forget(change.name)
            return False
        mine.hold(change, checked=checked)
        return True

    def _told(self, change: Bunch) -> None:
        """Tell a change, also during a hold, and then what is computed of the trait."""
        try:
            super().notify_change(change)
        finally:
            computing.changed(self, change.name, change.origin, change.actor)

    def observe(self, handler: Callable[[Bunch], Any], names: Any = t.All, type: Any = "change") -> None:
        """traitlets' observe; computed traits are told of what differs from now on."""
        computing.attend(self, names)
        super().observe(handler, names, type)

    def trait_values(self, **metadata: Any) -> dict[str, Any]:
        """traitlets' values by name; a computed trait that cannot be computed now is left out, and raises where it is read."""
        return computing.readable(self, self.trait_names(**metadata))

    def set_trait(self, name: str, value: Any) -> None:
        """traitlets' way to set a trait by its name, read-only ones too."""
        if computing.frames:
            computing.check_assignment(self, name)
        super().set_trait(name, value)

    @property
    def _cross_validation_lock(self) -> bool:
        """Whether traitlets asks no validators: this thread or task is in a hold or transaction, which asks at its end."""
        if not self._parts and not self._unasked:
            return False
        me = host.owner()
        return me in self._parts or me in self._unasked

    @_cross_validation_lock.setter
    def _cross_validation_lock(self, locked: bool) -> None:
        """Called by traitlets, while it makes an object or a default value."""
        me = host.owner()
        if not locked:
            self._unasked.discard(me)
        elif me not in self._parts:
            self._unasked.add(me)

    @contextmanager
    def hold_trait_notifications(self) -> Iterator[None]:
        """traitlets' hold, of this thread or task; what is assigned in it is one entry, and nothing remote is shown meanwhile.

        As in traitlets, a `TraitError` undoes it and no other exception does.
        """
        if self._cross_validation_lock:
            # It is in one already, or being made.
            yield
            return
        with self._together(StatePart, t.TraitError):
            yield

    @contextmanager
    def hold_sync(self) -> Iterator[None]:
        """ipywidgets' hold; what this thread or task assigns in it is one entry, and nothing remote is shown meanwhile."""
        with self._together(SyncPart, ()):
            with self._sync_lock:
                self._sync_holders += 1
                self._holding_sync = True
            try:
                yield
            finally:
                # ipywidgets lets the first who leaves send what all of them have held back, while others still add to it.
                with self._sync_lock:
                    self._sync_holders -= 1
                    self._holding_sync = self._sync_holders > 0
                    held = set() if self._holding_sync else set(self._states_to_send)
                    self._states_to_send -= held
                self.send_state(held)

    def add_traits(self, **traits: t.TraitType[Any, Any]) -> None:
        """Add traits to this one object, while it is unlinked."""
        new = {name: trait for name, trait in traits.items() if name not in ANYWIDGET_TRAITS}
        if new and self.__dict__.get("_bridge") is not None:
            raise TypeError(f"unlink before you add {sorted(new)[0]!r}: the room must know every trait of a state")
        prepared(self._class_name(), new, RESERVED | set(dir(SharedState)))
        options = type(self)._options
        super().add_traits(**traits)
        # The class of this one object is no class of the user's: it keeps its name and options.
        type(self)._options = options
        if any(isinstance(trait, computing.Computed) for trait in traits.values()):
            self._say_link()

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """What a page sends by comm; shared values come by the room alone, and are dropped here, as computed ones are."""
        bridge = self._bridge
        others = {*self._computed_traits, *(() if bridge is None else bridge.traits)}
        mine = {key: item for key, item in sync_data.items() if key not in others}
        if mine:
            super().set_state(mine)
        if computed := sync_data.keys() & self._computed_traits.keys():
            # The page shows what it tried to set.
            self.send_state(computed)

    def get_state(self, key: Any = None, drop_defaults: bool = False) -> dict[str, Any]:
        """What the own views get; a computed trait that has no value now, or none they could have, is left out."""
        own = self._computed_traits
        if not own or (isinstance(key, str) and key not in own):
            return super().get_state(key, drop_defaults)  # type: ignore[no-any-return]
        keys = self.keys if key is None else [key] if isinstance(key, str) else list(key)
        others = [name for name in keys if name not in own]
        state: dict[str, Any] = super().get_state(others, drop_defaults) if others else {}
        for name in keys:
            if name in own:
                state.update(computing.to_send(self, name))
        return state

    def _should_send_property(self, key: str, value: Any) -> bool:
        bridge = self.__dict__.get("_bridge")
        return (bridge is None or key not in bridge.traits) and bool(super()._should_send_property(key, value))

    def close(self) -> None:
        """Leave the room, end what runs in the background, and close the widget; nothing is restored. Safe in a finaliser."""
        bridge, handle = self.__dict__.get("_bridge"), self.__dict__.get("_handle")
        if self.__dict__.get("_waiting") is not None:
            self._stop_waiting()
        if bridge is not None:
            self._bridge = self._handle = None
            if handle is not None:
                bridge.connection.later(handle.close)
            bridge.end_soon()
        computing.end(self)
        # Nothing is imported here: it may be the end of the interpreter.
        for work in list(self.__dict__.get("_sharedwidgets_begun", ())):
            if not work.runs_here():
                work.cancel()
        super().close()
        layout = self.__dict__.pop("_own_layout", None)
        # Another widget may have been given it, or its class gives all of them the same.
        if layout is not None and not any(getattr(other, "layout", None) is layout for other in [*_instances.values()]):
            layout.close()

    # --- parts of linking

    def _opened(
        self, token: str, server: str | None, credential: str | None
    ) -> tuple[Connection, Session, Iterator[tuple[str, Wanted]]]:
        """The room, and the states of it that this object links: its own, and those that say how far it reacted."""
        check_token(token)
        self._check_not_grouping("link")
        wanted = [(self._state_name(), self._wanted())]
        wanted += [(reactions.beside(self._state_name(), name), reactions.wanted()) for name in self._leading]
        connection = shared(discovery.find(server, credential))
        session = connection.open(token)
        if host.owner() in session.groups:
            connection.close_session(session)
            raise RuntimeError("link outside of a transaction of the room: what is written in it is one entry")
        return connection, session, _permitted(connection, wanted)

    @contextmanager
    def _joining(self, connection: Connection, session: Session) -> Iterator[Callable[[str], AbstractContextManager[bool]]]:
        """Around the joins of a link, which holds as a whole or not at all: each link of a state is one use of the session."""
        held: list[str] = []

        @contextmanager
        def joined(state: str) -> Iterator[bool]:
            if held:
                connection.open(session.room)
            try:
                yield not held
            except Forbidden:
                connection.close_session(session)
                if not held:
                    raise
                return
            except BaseException:
                connection.close_session(session)
                raise
            held.append(state)

        try:
            yield joined
            # Another thread or task may have begun one meanwhile.
            self._check_not_grouping("link")
        except BaseException:
            for state in held:
                connection.unlink(session, state)
            raise

    def _adopt(self, connection: Connection, session: Session, context: contextvars.Context | None = None) -> Bridge:
        """The room has the state: from now on this object is linked to it. The values of before the first link are kept."""
        waits = self._options.get("on_locked") == "wait"
        bridge = Bridge(self, connection, session, self._state_name(), self._shared(), self._mode(), context, waits)
        try:
            private = {name: getattr(self, name) for name in self._shared()} if self._bridge is None else self._private
            bridge.begin()
            with connection.lock:
                states = {*session.states}
            able = {name: item for name, item in self._leading.items() if reactions.beside(bridge.state, name) in states}
            if able:
                reactions.attach(bridge, able)
        except BaseException:
            bridge.end()
            raise
        self._stop_waiting()
        if self._bridge is not None:
            self._detach(self._bridge)
        self._private, self._bridge = private, bridge
        self._say_link()
        return bridge

    def _detach(self, bridge: Bridge) -> None:
        self._bridge = None
        if self._handle is not None:
            self._handle.close()
            self._handle = None
        bridge.end()
        self._say_link()

    def _say_link(self, offline: str = "") -> None:
        """Tell the own pages which room to join, or that there is none, and why."""
        public = sorted(name for name, trait in self._shared().items() if not trait.schema.kernel_only)
        computed = sorted(name for name, trait in self._computed_traits.items() if trait.metadata.get("sync"))
        self._link = {
            "room": self.linked_to or "",
            "state": self._state_name(),
            "traits": public,
            "computed": computed,
            "offline": offline,
        }

    def _restore_private(self) -> None:
        """Put the values of before the link back, and tell observers and the own views."""
        private, self._private = self._private, {}
        events = []
        for name, value in private.items():
            old = self._trait_values.get(name)
            self._trait_values[name] = value
            if differ(old, value):
                events.append(Bunch(name=name, old=old, new=value, owner=self, type="change", origin="local", restored=True))
        for event in events:
            self.notify_change(event)

    def _room_ended(self, problem: Problem) -> None:
        """The room was deleted: the object is private again."""
        bridge = self._bridge
        if bridge is None:
            return
        log.warning("%r is no more (%s); %s is private again", bridge.session.room, problem.message, self._class_name())
        self._detach(bridge)
        self._restore_private()

    def _link_when_possible(self, room: str, server: str | None, credential: str | None, given: set[str]) -> None:
        """Link now if a server answers soon; otherwise go on trying beside, and stay private meanwhile."""
        mine: dict[str, Value] = {}
        for name in given & set(self._shared()):
            with suppress(InvalidValue):  # a private value need not have a wire form
                mine[name] = self._shared()[name].to_wire(getattr(self, name), self)
        try:
            self.link_to(room, CONSTRUCTOR_SECONDS, server=server, credential=credential)
        except (ServerNotFound, LinkTimeout) as error:
            log.warning("%s is private for now: %s", self._class_name(), error)
            self._say_link(offline=str(error))
            waiting = self._waiting = threading.Event()
            # Output of observers goes to the cell that made the object, also when the room comes later.
            link = _Late(weakref.ref(self), room, server, credential, mine, contextvars.copy_context())
            waiter = threading.Thread(target=link.keep_trying, args=(waiting,), name="sharedwidgets-waiting", daemon=True)
            waiter.start()
            return
        assert self._bridge is not None
        replaced = self._replaced(self._bridge, mine)
        if replaced:
            # Whoever made the object, or called this constructor from one of its own.
            warnings.warn(replaced, stacklevel=3 if has_own_init(type(self)) else 4)

    def _replaced(self, bridge: Bridge, mine: Mapping[str, Value]) -> str:
        """What to say of first values that the room's took the place of; empty when there is nothing to say."""
        with bridge.connection.lock:
            held = bridge.session.replica.view(bridge.state)
        names = sorted(name for name, value in mine.items() if name not in held or not same(held[name], value))
        if not names:
            return ""
        return (
            f"{self._class_name()}(room={bridge.session.room!r}): the room's values replaced {', '.join(names)}; assign after "
            "linking to change the room"
        )

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.set()
            self._waiting = None

    def _check_not_grouping(self, verb: str) -> None:
        if self._grouping():
            raise RuntimeError(f"{verb} outside of a transaction or hold: what was assigned in it has no room yet")

    def _grouping(self) -> bool:
        return bool(self._parts) or (self._bridge is not None and self._bridge.grouped)

    def _check_not_mine(self, verb: str) -> None:
        if host.owner() in self._parts or (self._bridge is not None and self._bridge.grouping()):
            raise RuntimeError(f"{verb} outside of a transaction or hold: it waits for an answer of the server")

    def _wanted(self) -> Wanted:
        """What the room needs to make the state: schemas and class defaults, ``@default`` methods included."""
        fresh = self._user_class().__new__(self._user_class())
        schema: dict[str, TraitSchema] = {}
        for name, trait in self._shared().items():
            try:
                schema[name] = msgspec.structs.replace(trait.schema, default=trait.to_wire(getattr(fresh, name), fresh))
            except InvalidValue as error:
                raise InvalidValue(
                    f"the default of {self._class_name()}.{name} has no wire form: {error}", path=(name,)
                ) from None
        return Wanted(schema)

    # --- the class

    @classmethod
    def _user_class(cls) -> type[SharedState]:
        """The class the user wrote; anywidget makes a further one per object."""
        found: type[SharedState] = next(item for item in cls.__mro__ if "_anywidget_id" not in vars(item))
        return found

    @classmethod
    def _class_name(cls) -> str:
        return str(cls._user_class().__name__)

    @classmethod
    def _state_name(cls) -> str:
        return str(cls._options.get("state_name", cls._class_name()))

    @classmethod
    def _mode(cls) -> Mode:
        mode: Mode = cls._options.get("delivery", "main")
        return mode

    def _own_traits(self) -> list[str]:
        return sorted(set(self.trait_names()) - set(SharedState.class_trait_names()) - ANYWIDGET_TRAITS)

    def _shared(self) -> dict[str, SharedTrait]:
        """The shared traits of this object, by name."""
        found: dict[str, SharedTrait] | None = self.__dict__.get("_shared_traits")
        if found is None or self.__dict__["_shared_of"] is not type(self):
            own = SharedState.class_trait_names()
            found = {
                name: shared_trait(self._class_name(), name, trait)
                for name, trait in self.traits().items()
                if name not in own and name not in ANYWIDGET_TRAITS and not is_private(trait)
            }
            self.__dict__.update(_shared_traits=found, _shared_of=type(self))
        return found

    # --- what the bridge calls

    def _accepted(self, name: str, value: Any) -> Any:
        """The value as the trait's own type takes it; no validator that looks at other traits runs."""
        trait = getattr(type(self), name)
        if value is None and trait.allow_none:
            return value
        # Not under traitlets' `cross_validation_lock`: a hold that begins meanwhile on another thread would take it for an
        # outer one.
        return trait.validate(self, value) if hasattr(trait, "validate") else value

    def _cross_checked(self, name: str, value: Any) -> Any:
        return getattr(type(self), name)._cross_validate(self, value)

    def _changed_here(self, name: str, old: Any, new: Any, *, checked: bool) -> None:
        change = Bunch(name=name, old=old, new=new, owner=self, type="change", origin="local", actor=None)
        if not self._keep_back(change, checked=checked):
            self.notify_change(change)

    def _tell(self, event: Event) -> None:
        # Never kept back: it is no change that the thread or task which tells it has made (H3).
        self._told(
            Bunch(
                name=event.trait,
                old=event.old,
                new=event.new,
                owner=self,
                type=event.type,
                origin=event.origin,
                actor=event.actor,
                problem=event.problem,
            )
        )

    def _warn_of_changes_in_place(self) -> None:
        assert self._bridge is not None
        for name in self._bridge.changed_in_place():
            kind = type(getattr(self, name)).__name__
            warnings.warn(
                f"{self._class_name()}.{name} is a {kind} that was changed in place, which nobody hears of; assign a new one, "
                f"for example x.{name} = {'{**x.' + name + ', ...}' if kind == 'dict' else '[*x.' + name + ', ...]'}",
                stacklevel=3,
            )


def _permitted(connection: Connection, wanted: list[tuple[str, Wanted]]) -> Iterator[tuple[str, Wanted]]:
    """The states to link, as far as this process may: one that only reads cannot say what it reacted to, and does not react.

    Asked for one after the other, as the first answer brings the word of what it may.
    """
    yield wanted[0]
    if connection.welcome is None or connection.welcome.may_write:
        yield from wanted[1:]


def send_module(widget: AnyWidget, content: Any, buffers: Any) -> None:
    """Answer a page whose server does not have the page module of this release."""
    if isinstance(content, dict) and content.get("sharedwidgets") == "module":
        widget.send({"sharedwidgets_module": bundle.module()})


def _settle(future: asyncio.Future[Bunch], change: Bunch) -> None:
    if not future.done():
        future.set_result(change)


class _Unwanted(Exception):
    """Nobody wants the link any more."""


@dataclass(frozen=True, eq=False)
class _Late:
    """A link that was asked for before its server was there."""

    state: weakref.ref[SharedState]
    room: str
    server: str | None
    credential: str | None
    given: Mapping[str, Value]
    context: contextvars.Context

    def keep_trying(self, stop: threading.Event) -> None:
        """Join when the server comes; the values are shown where the object's news are."""
        while not stop.wait(RETRY_SECONDS):
            state = self.state()
            if state is None or self._tried(state, stop):
                return
            # Nothing but the user keeps the object while this waits.
            del state

    def _tried(self, state: SharedState, stop: threading.Event) -> bool:
        """Whether there is nothing more to try."""
        if state._grouping():
            return False
        try:
            connection, session, wanted = state._opened(self.room, self.server, self.credential)
            with state._joining(connection, session) as joined:
                for name, how in wanted:
                    with joined(name):
                        connection.join(session, name, how, RETRY_SECONDS)
                if stop.is_set():
                    raise _Unwanted
            bridge = state._adopt(connection, session, self.context)
        except (ServerNotFound, LinkTimeout):
            return False
        except _Unwanted:
            return True
        except SharedWidgetsError as error:
            log.warning("%s stays private: %s", state._class_name(), error)
            state._say_link(offline=str(error))
            return True
        replaced = state._replaced(bridge, self.given)
        if replaced:
            log.warning("%s", replaced)
        bridge.show_all("resync", now=False)
        return True
