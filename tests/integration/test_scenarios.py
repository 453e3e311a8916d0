"""The scenarios of shared state, by their numbers: see `tests/scenarios.md`. Those that need real kernels are next door.

"One" and "two" are two members in this process, two sockets of two boots; a page is a member of the frontends' audience. Values
alone prove little: how many entries and frames there were is checked as well. Everything runs over every store there is.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
import traitlets as t

import sharedwidgets.connection
from sharedwidgets import Room, SharedState, background, computed, connect
from sharedwidgets.core.protocol import (
    Acquire,
    Bye,
    Entries,
    Freed,
    Granted,
    Leave,
    LockName,
    Members,
    Nack,
    Release,
    Renew,
    Set,
    TraitSchema,
)
from sharedwidgets.errors import Locked, LockLost, LockTimeout
from sharedwidgets_server.app import SharedWidgetsApp
from sharedwidgets_server.stores import STORES
from sharedwidgets_server.testing import LiveServer
from support.onlookers import Onlookers
from support.peers import Peer, add, assign
from support.rest import Answer, ask, room_url
from support.scripts import Heard, eventually, seq
from support.servers import limits, peers, scheme, store
from support.stalling import Stalling

State = TypeVar("State", bound=SharedState)
Link = Callable[[State], State]


class Counter(SharedState, delivery="thread"):
    count = t.Int(0)
    other = t.Int(0)
    who = t.Unicode("nobody")
    text = t.Unicode("")
    tags = t.Dict()
    items = t.List()
    _salt = t.Unicode("pepper")
    draft = t.Unicode("").tag(shared=False)


class Special(Counter, delivery="thread"):
    own = t.Int(0)


class Notes(SharedState, delivery="thread"):
    note = t.Unicode("")


@pytest.fixture(scope="module", params=STORES, ids=scheme)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("server")
    with LiveServer(folder, store(request.param, folder)) as running:
        yield running
        close_connections()


@pytest.fixture(scope="module", params=STORES, ids=scheme)
def quick(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that forgets who is away, what nobody holds and what nobody is in within about a second."""
    folder = tmp_path_factory.mktemp("quick")
    numbers = {"lease_seconds": 0.6, "hold_seconds": 1.2, "heartbeat_seconds": 0.4, "dead_seconds": 30.0, "away_seconds": 1.5}
    with LiveServer(folder, store(request.param, folder), limits(**numbers), "--SharedWidgetsApp.room_ttl=0.5") as running:
        yield running
        close_connections()


def close_connections() -> None:
    for connection in list(sharedwidgets.connection._shared.values()):
        connection.close()


@pytest.fixture
def one(server: LiveServer, token: str) -> Counter:
    return Counter().link_to(token, server=server.url, credential=server.credential)


@pytest.fixture
def two(server: LiveServer, token: str) -> Counter:
    return Counter().link_to(token, server=server.url, credential=server.token)


@pytest.fixture
def here(server: LiveServer, token: str) -> Callable[[State], State]:
    """Link as "one" does."""
    return lambda state: state.link_to(token, server=server.url, credential=server.credential)


@pytest.fixture
def there(server: LiveServer, token: str) -> Callable[[State], State]:
    """Link as "two" does."""
    return lambda state: state.link_to(token, server=server.url, credential=server.token)


@pytest.fixture
def onlookers(server: LiveServer) -> Iterator[Onlookers]:
    with Onlookers(server) as made:
        yield made


def patch(
    server: LiveServer, token: str, state: str = "Counter", *, page: bool = False, tag: str = "", **values: Any
) -> Answer:
    """Set traits by REST."""
    headers = {**server.headers, **({"Origin": server.url.rstrip("/")} if page else {}), **({"If-Match": tag} if tag else {})}
    return ask(room_url(server, "rooms", token, "states", state), "PATCH", values, headers)


def reset(server: LiveServer, token: str, *states: str, page: bool = False) -> Answer:
    """Put states back to their defaults by REST."""
    headers = {**server.headers, **({"Origin": server.url.rstrip("/")} if page else {})}
    return ask(room_url(server, "rooms", token, "reset"), "POST", {"states": states} if states else None, headers)


def held(server: LiveServer, token: str) -> dict[str, dict[str, Any]]:
    """The values of a room, by state."""
    states = server.ask("GET", f"sharedwidgets/api/rooms/{token}")["states"]
    return {name: state["values"] for name, state in states.items()}


def names_of(server: LiveServer, token: str) -> list[str]:
    """The ids of a room's members."""
    return [member["id"] for member in server.ask("GET", f"sharedwidgets/api/rooms/{token}")["members"]]


def decided(*states: SharedState) -> None:
    """Everything these wrote is decided, and each of them shows all of it."""
    for state in states:
        state.flush()
    sessions = [state._bridge.session for state in states if state._bridge is not None]
    for state, session in zip(states, sessions, strict=True):
        last = max(other.replica.seq for other in sessions)
        assert state.wait_until(lambda session=session, last=last: session.replica.seq >= last, 10)  # type: ignore[misc]


def in_threads(*tasks: Callable[[], object]) -> None:
    """Run tasks side by side to their ends; what one raises, this raises."""
    failed: list[BaseException] = []

    def run(task: Callable[[], object]) -> None:
        try:
            task()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "a thread hangs"
    for error in failed:
        raise error


# --- linking, and what pages see of it


def test_s02_a_fresh_room_begins_at_the_class_defaults(
    here: Link[Counter], there: Link[Counter], server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    one, two = here(Counter(who="Alice", count=5, _salt="mine")), there(Counter(who="Bob"))
    page = onlookers.page(token)
    assert (one.count, one.who, one._salt, two.count, two.who) == (0, "nobody", "pepper", 0, "nobody")
    assert page.view == {"count": 0, "other": 0, "who": "nobody", "text": "", "tags": {}, "items": []}
    assert seq(server, token) == 1
    assert "Alice" not in str(held(server, token))


class Greeter(SharedState, delivery="thread"):
    """Private: made of what another object shares."""

    of = t.Any(allow_none=True).tag(shared=False)

    @computed(sync=False)
    def greeting(self) -> str:
        return f"Hello {self.of._salt}" if self.of is not None else "Hello?"


def test_s03_a_kernel_only_trait_drives_computed_traits_elsewhere(
    one: Counter, two: Counter, server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    page = onlookers.page(token)
    greeter = Greeter(of=two)
    heard = Heard(greeter, "greeting")
    with one.transaction():
        one._salt = "Alice"
        one.increment("count")
    heard.wait()
    page.shows(count=1)
    decided(one, two)
    assert heard.steps == [("greeting", "Hello pepper", "Hello Alice")]
    assert (two.count, two._salt, seq(server, token)) == (1, "Alice", 2)
    # What is computed is nobody else's, and the kernels' trait is no page's.
    assert "_salt" not in page.view
    assert set(held(server, token)) == {"Counter"}


def test_s04_both_ways(one: Counter, two: Counter, server: LiveServer, onlookers: Onlookers, token: str) -> None:
    pages = [onlookers.page(token) for _ in range(2)]
    steps = [Heard(state, "count") for state in (one, two)]
    for number, page in enumerate((pages[1], pages[0], pages[1]), 1):
        page.click()
        for other in pages:
            other.shows(count=number)
        for heard in steps:
            heard.wait(number)
    assert [page.steps("count") for page in pages] == [[1, 2, 3]] * 2
    assert [heard.steps for heard in steps] == [[("count", number, number + 1) for number in range(3)]] * 2
    assert seq(server, token) == 4


def test_s06_linking_again_returns_to_the_live_room(
    here: Link[Counter], one: Counter, server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    two = Counter(who="Bob", count=1)
    two.link_to(token, server=server.url, credential=server.token)
    one.who, one.count = "Charlie", 3
    decided(one, two)
    two.unlink()
    assert (two.who, two.count) == ("Bob", 1)
    page = onlookers.page(token)
    page.begin()
    assert two.link_to(token, server=server.url, credential=server.token) is two
    assert (two.who, two.count) == ("Charlie", 3)
    assert page.view["who"] == "Charlie"
    # Coming back is presence and nothing else.
    assert page.state_told == []
    assert seq(server, token) == 3


def test_s07_who_was_absent_catches_up(
    here: Link[Counter], two: Counter, server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    one = here(Counter(who="Alice"))
    one.count = 3
    decided(one, two)
    one.unlink()
    eventually(lambda: len(names_of(server, token)) == 1)
    heard = Heard(one)
    two.who = "Diana"
    two.count = 4
    decided(two)
    # Whatever is on its way to this process is there when its other object has it.
    witness = here(Counter())
    assert (witness.who, witness.count) == ("Diana", 4)
    assert (one.who, heard.changes) == ("Alice", [])
    here(one)
    assert (one.who, one.count) == ("Diana", 4)
    assert {(change.name, change.origin) for change in heard.changes} == {
        ("_link", "local"), ("count", "resync"), ("who", "resync")
    }  # fmt: skip
    assert len(heard.changes) == 3
    assert onlookers.page(token).view["who"] == "Diana"
    assert seq(server, token) == 4


def test_s09_what_link_to_returns_is_linked_at_once(server: LiveServer, two: Counter, token: str) -> None:
    """Also inside a callback."""
    two.count = 3
    two.flush()
    one, found = Counter(), []

    def link(change: Any) -> None:
        linked = one.link_to(token, server=server.url, credential=server.credential)
        found.append((linked is one, linked.linked_to, linked.count, len(linked.linked_from)))

    one.observe(link, "draft")
    one.draft = "go"
    assert found == [(True, token, 3, 2)]


def test_s12_switching_rooms_while_linked(
    one: Counter, two: Counter, server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    one.count, one.who = 48, "Diana"
    decided(one, two)
    third = onlookers.page(token)
    third.begin()
    one.link_to(token + "-other", server=server.url, credential=server.credential)
    first = onlookers.page(token + "-other")
    assert (one.linked_to, one.count, one.who) == (token + "-other", 0, "nobody")
    assert first.view["who"] == "nobody"
    for _ in range(3):
        first.click()
    assert one.wait_until(lambda: one.count == 3, 10)
    assert first.steps("count") == [1, 2, 3]
    assert (two.count, two.who, third.view["count"], third.view["who"]) == (48, "Diana", 48, "Diana")
    assert third.state_told == []
    assert (seq(server, token), seq(server, token + "-other")) == (3, 4)


def test_s13_link_and_write_in_one_step(server: LiveServer, onlookers: Onlookers, token: str) -> None:
    one = Counter(count=7)

    def link_and_add(change: Any) -> None:
        one.link_to(token, server=server.url, credential=server.credential).count += 1

    one.observe(link_and_add, "draft")
    one.draft = "go"
    page = onlookers.page(token)
    page.shows(count=1)
    decided(one)
    assert (one.count, seq(server, token)) == (1, 2)
    one.unlink()
    assert one.count == 7


# --- the room from outside


def test_s14_writing_by_token_alone_from_outside(
    one: Counter, two: Counter, here: Link[Notes], server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    notes = here(Notes())
    pages = [onlookers.page(token) for _ in range(2)]
    assert patch(server, token, count=42).body == {"seq": 3}
    assert patch(server, token, "Notes", note="from outside").body == {"seq": 4}
    for page in pages:
        page.shows(count=42)
        assert page.steps("count") == [42]
        assert page.peer.replicas[token].view("Notes") == {"note": "from outside"}
    eventually(lambda: (one.count, two.count, notes.note) == (42, 42, "from outside"))
    pages[0].click()
    for page in pages:
        page.shows(count=43)
    assert two.wait_until(lambda: two.count == 43, 10)
    last = two.last_change("count")
    assert last is not None
    assert (last.seq, last.actor.kind) == (5, "frontend")
    assert seq(server, token) == 5


def test_s15_whoever_looks_it_up_finds_the_linked_values(here: Link[Notes], server: LiveServer, token: str) -> None:
    """By the room's handle, or by another object of the class: both are the linked state, and not a private copy."""
    notes = here(Notes(note="private"))
    notes.note = "shared"
    found: list[Any] = []

    class Private(t.HasTraits):
        go = t.Int(0)

        @t.observe("go")
        def _look(self, change: Any) -> None:
            assert notes.room is not None
            found.extend([notes.room["Notes"]["note"], here(Notes()).note, Notes().note])

    Private().go = 1
    assert found == ["shared", "shared", ""]
    assert names_of(server, token) == [notes.linked_from[0].id]
    assert seq(server, token) == 2


def test_s16_the_reset_of_something_else_is_harmless(
    one: Counter, here: Link[Notes], server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    notes, private = here(Notes()), Special(count=9)
    notes.note, one.count = "written", 5
    decided(one)
    page = onlookers.page(token)
    page.begin()
    for name, trait in private.traits().items():
        if name in ("count", "other", "who", "draft"):
            setattr(private, name, trait.default(private))
    assert page.state_told == []
    assert reset(server, token, "Notes").status == 200
    found: list[Any] = []
    one.observe(lambda change: found.append((one.linked_to, len(one.linked_from), one.count)), "draft")
    one.draft = "look"
    assert found == [(token, 2, 5)]
    assert page.steps("count") == []
    assert len(page.state_told) == 1
    assert held(server, token)["Notes"] == {"note": ""}


# --- whose change it is


def test_s17_four_that_read_one_state_are_computed_at_once(one: Counter, two: Counter) -> None:
    """Each waits until all four have begun: one after the other they would wait for ever."""
    begun: list[int] = []
    all_four = threading.Event()

    class Reader(SharedState, delivery="thread"):
        number = t.Int(0)

        @computed(sync=False)
        async def sum(self) -> int:
            found = two.count
            begun.append(found)
            if begun.count(found) == 4:
                all_four.set()
            await asyncio.to_thread(all_four.wait, 10)
            return found + self.number

    readers = [Reader(number=number) for number in range(4)]
    heard = [Heard(reader, "sum") for reader in readers]
    for item in heard:
        item.wait()
    all_four.clear()
    one.count = 10
    for item in heard:
        item.wait(2)
    assert [item.steps for item in heard] == [[("sum", None, number), ("sum", number, 10 + number)] for number in range(4)]
    assert begun == [0] * 4 + [10] * 4


def test_s18_a_reset_has_the_scope_it_names(here: Link[Counter], onlookers: Onlookers, server: LiveServer, token: str) -> None:
    """The state of a subclass has the traits it inherits for its own; the state of its base has others."""
    base, child = here(Counter()), here(Special())
    base._salt, base.count, child._salt, child.count, child.own = "base", 1, "child", 2, 3
    decided(base)
    page = onlookers.page(token)
    before = seq(server, token)
    assert reset(server, token, "Special").body == {"seq": before + 1}
    assert child.wait_until(lambda: (child._salt, child.count, child.own) == ("pepper", 0, 0), 10)
    assert (base._salt, base.count) == ("base", 1)
    # A page resets what it may see, and leaves what it may not.
    assert reset(server, token, page=True).body == {"seq": before + 2}
    assert base.wait_until(lambda: base.count == 0, 10)
    assert base._salt == "base"
    assert reset(server, token).body == {"seq": before + 3}
    assert base.wait_until(lambda: base._salt == "pepper", 10)
    assert page.steps("count") == [0]


def test_s19_only_the_owner_of_a_trait_counts_as_changed(
    here: Link[Counter], onlookers: Onlookers, server: LiveServer, token: str
) -> None:
    here(Counter())
    child = here(Special())
    script = onlookers.script(token)
    script.begin()
    url = room_url(server, "rooms", token)
    tag = ask(url, headers=server.headers).headers["ETag"]
    child._salt = "child's"
    decided(child)
    (frame,) = script.state_told
    assert isinstance(frame, Entries)
    assert [entry.ops for entry in frame.entries] == [(Set(state="Special", path=("_salt",), value="child's"),)]
    # Whoever read the base before may still write it; whoever read the child may not.
    refused = patch(server, token, "Special", tag=tag, own=1)
    assert (refused.status, refused.body["code"]) == (409, "revision-mismatch")
    assert patch(server, token, "Counter", tag=tag, other=1).status == 200


def test_s20_objects_of_one_process_have_no_copies_of_their_own(
    here: Link[Counter], server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    first, second = here(Counter()), here(Counter())
    script = onlookers.script(token)
    heard = Heard(second, "_salt")
    first._salt = "ground"
    # At once: there is nothing to wait for.
    assert second._salt == "ground"
    assert heard.steps == [("_salt", "pepper", "ground")]
    second.count += 1
    assert first.count == 1
    decided(first)
    assert (script.steps("_salt"), script.steps("count")) == (["ground"], [1])
    assert seq(server, token) == 3
    assert len(first.linked_from) == 2


def test_s21_a_change_from_outside_is_one_delta_and_leaves_nothing_open(
    one: Counter, two: Counter, here: Link[Counter], server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    special = here(Special())
    page, script = onlookers.page(token), onlookers.script(token)
    at = seq(server, token)
    changes: list[tuple[str, str, Any, Callable[[], Any]]] = [
        ("Counter", "count", 7, lambda: two.count),
        ("Counter", "_salt", "7", lambda: two._salt),
        ("Special", "own", 7, lambda: special.own),
        ("Special", "_salt", "8", lambda: special._salt),
    ]
    for number, (state, trait, value, shown) in enumerate(changes, 1):
        page.begin()
        script.begin()
        assert patch(server, token, state, **{trait: value}).body == {"seq": at + number}
        eventually(lambda shown=shown, value=value: shown() == value)  # type: ignore[misc]
        (frame,) = script.state_told
        assert isinstance(frame, Entries)
        assert [entry.ops for entry in frame.entries] == [(Set(state=state, path=(trait,), value=value),)]
        (seen,) = page.state_told
        assert isinstance(seen, Entries)
        assert [entry.ops for entry in seen.entries] == [
            (Set(state=state, path=(trait,), value=value),) for _ in range(not trait.startswith("_"))
        ]
        assert (seen.prev, seen.last) == (frame.prev, frame.last)
    for state in (one, two, special):
        assert state._bridge is not None
        assert state._bridge.session.replica.undecided == 0
    assert seq(server, token) == at + 4


def test_s22_what_reacts_to_a_change_writes_in_its_own_name(one: Counter, two: Counter, server: LiveServer, token: str) -> None:
    """While two's observers run it is two that writes, though one made the change; afterwards one is one again."""
    told: list[Any] = []

    def react(change: Any) -> None:
        told.append((change.origin, change.actor.id))
        two.other = change.new * 10

    two.observe(react, "count")
    one.count = 4
    assert one.wait_until(lambda: one.other == 40, 10)
    one.who = "one"
    decided(one, two)
    mine, theirs = (next(member for member in one.linked_from if member.id == name) for name in _ids(one, two))
    by = {trait: one.last_change(trait).actor.id for trait in ("count", "other", "who")}  # type: ignore[union-attr]
    assert by == {"count": mine.id, "other": theirs.id, "who": mine.id}
    assert told == [("remote", mine.id)]
    assert seq(server, token) == 4


def _ids(*states: Counter) -> list[str]:
    """The member ids of the processes these are in."""
    return [str(state._bridge.connection.welcome.member) for state in states]  # type: ignore[union-attr]


GROUPS: dict[str, Callable[[Counter], contextlib.AbstractContextManager[Any]]] = {
    "transaction": lambda state: state.transaction(),
    "hold_sync": lambda state: state.hold_sync(),
    "hold_trait_notifications": lambda state: state.hold_trait_notifications(),
}


def test_s23_contexts_are_set_once_and_what_was_there_before_is_restored(
    one: Counter, two: Counter, server: LiveServer, token: str
) -> None:
    """Each kind of group in each other: one entry at the end of the outermost; afterwards each assignment is one again."""
    private = Counter()
    at = seq(server, token)
    for number, (outer, inner) in enumerate(itertools.product(GROUPS, repeat=2), 1):
        for state in (one, private):
            with GROUPS[outer](state):
                state.count = number
                with GROUPS[inner](state):
                    state.other = number
                state.who = f"{outer} {inner}"
            with pytest.raises(ZeroDivisionError), GROUPS[outer](state), GROUPS[inner](state):
                raise ZeroDivisionError
            assert not state._parts, (outer, inner)
            assert (state.count, state.other, state.who) == (number, number, f"{outer} {inner}")
            assert not state._grouping()
        one.flush()
        assert seq(server, token) == at + 2 * number - 1, (outer, inner)
        one.text = f"{number}"
        one.flush()
        assert seq(server, token) == at + 2 * number
    decided(one, two)
    assert (two.count, two.other, two.text) == (9, 9, "9")
    assert private.linked_to is None


# --- locks


def test_s25_what_a_computed_trait_reaches_through_another_object_counts(one: Counter, here: Link[Counter]) -> None:
    """There is no session whose data could be another's; there is the object that a trait holds."""
    other = here(Special())
    other._salt = "vanilla"
    greeter = Greeter(of=one)
    heard = Heard(greeter, "greeting")
    greeter.of = other
    one._salt = "salt"
    other._salt = "thyme"
    assert heard.steps == [
        ("greeting", "Hello pepper", "Hello vanilla"),
        ("greeting", "Hello vanilla", "Hello thyme"),
    ]


def test_s26_ten_blocks_at_once_exclude_each_other(one: Counter, two: Counter, server: LiveServer, token: str) -> None:
    turn = threading.Barrier(10)

    def work(state: Counter) -> None:
        turn.wait(10)
        with state.lock():
            before = state.count
            # As long as another one needs to come in between.
            state.flush()
            state.count = before + 1

    in_threads(*(lambda state=state: work(state) for state in (one, two) * 5))
    decided(one, two)
    assert (one.count, two.count, one.locked_by, two.locked_by) == (10, 10, None, None)
    assert server.ask("GET", f"sharedwidgets/api/rooms/{token}")["locks"] == []
    # Of each a grant, a write, and an end.
    assert seq(server, token) == 1 + 3 * 10


def test_s27_a_lock_is_seen_while_it_is_held_and_is_no_other_rooms(
    one: Counter, two: Counter, server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    page = onlookers.page(token)
    elsewhere = Counter().link_to(token + "-other", server=server.url, credential=server.token)
    with one.lock() as lock:
        assert two.wait_until(lambda: two.locked_by is not None, 10)
        page.barrier()
        (mine,) = _ids(one)
        assert (one.locked_by.id, two.locked_by.id) == (mine, mine)  # type: ignore[union-attr]
        seen = page.peer.replicas[token].locks[LockName(kind="state", name="Counter")]
        assert (seen.member, seen.fence) == (mine, lock.fence)
        (told,) = server.ask("GET", f"sharedwidgets/api/rooms/{token}")["locks"]
        assert (told["member"], told["fence"]) == (mine, lock.fence)
        assert elsewhere.locked_by is None
        with elsewhere.lock(timeout=5):
            elsewhere.count = 1
    assert two.wait_until(lambda: two.locked_by is None, 10)
    page.barrier()
    ops = [op for frame in page.peer.all(Entries) for entry in frame.entries for op in entry.ops]
    assert [type(op) for op in ops] == [Granted, Freed]
    assert (page.peer.replicas[token].locks, server.ask("GET", f"sharedwidgets/api/rooms/{token}")["locks"]) == ({}, [])


def test_s28_nested_values_are_assigned_under_a_lock(
    one: Counter, two: Counter, onlookers: Onlookers, server: LiveServer, token: str
) -> None:
    with one.lock():
        one.tags = {"a": {"b": [1], "c": 2}, "d": 3}
        one.items = [[1], {"x": [2]}]
    decided(one, two)
    script = onlookers.script(token)
    with two.lock():
        two.tags = {**two.tags, "a": {**two.tags["a"], "b": [*two.tags["a"]["b"], 9]}}
        two.items = [*two.items[:1], {"x": [*two.items[1]["x"], 3]}]
    decided(one, two)
    assert (one.tags, one.items) == ({"a": {"b": [1, 9], "c": 2}, "d": 3}, [[1], {"x": [2, 3]}])
    script.barrier()
    ops = [op for frame in script.peer.all(Entries) for entry in frame.entries for op in entry.ops if isinstance(op, Set)]
    # Of the dict the one key that changed.
    assert [op.path for op in ops] == [("tags", "a"), ("items",)]
    assert seq(server, token) == 1 + 2 * 4


def stalled(server: LiveServer, faults: Stalling, token: str) -> Counter:
    """A member whose way to the server can be shut."""
    url = f"http://127.0.0.1:{faults.port}/"
    return Counter().link_to(token, server=url, credential=server.credential)


def test_s29_a_late_holder_fails_and_its_write_is_thrown_away(quick: LiveServer, token: str) -> None:
    two = Counter().link_to(token, server=quick.url, credential=quick.token)
    with Onlookers(quick) as onlookers, Stalling(quick.port) as faults:
        page = onlookers.page(token)
        one = stalled(quick, faults, token)
        undone = Heard(one, "count", type="rejected")
        with pytest.raises(LockLost, match="its lease ran out"), one.lock():
            faults.shut()
            one.count = 5
            assert two.wait_until(lambda: two.locked_by is not None, 10)
            assert two.wait_until(lambda: two.locked_by is None, 10)
            faults.open()
            undone.wait()
        assert undone.changes[0].problem.code == "lock-lost"
        assert (one.count, two.pull().count) == (0, 0)
        assert page.steps("count") == []
        one.close()


def test_s30_who_waits_goes_on_after_the_expiry_and_its_value_stays(quick: LiveServer, token: str) -> None:
    two = Counter().link_to(token, server=quick.url, credential=quick.token)
    order: list[str] = []
    with Onlookers(quick) as onlookers, Stalling(quick.port) as faults:
        page = onlookers.page(token)
        one = stalled(quick, faults, token)

        def wait() -> None:
            with two.lock(timeout=10):
                order.append("waiter")
                two.count = two.count + 10

        waiter = threading.Thread(target=wait)
        with pytest.raises(LockLost), one.lock() as held:
            order.append("blocker")
            faults.shut()
            waiter.start()
            waiter.join(20)
            one.count = one.count + 1
            faults.open()
            eventually(lambda: not held.held)
        assert one.wait_until(lambda: one.count == 10, 10)
        two.flush()
        assert (order, two.count, page.steps("count")) == (["blocker", "waiter"], 10, [10])
        one.close()


def test_s31_a_long_hold_is_noticed_and_ends(quick: LiveServer, token: str) -> None:
    """Renewed as it is: who waits is told who has it, and after `hold_seconds` it is renewed no more, and its holder told."""
    one = Counter().link_to(token, server=quick.url, credential=quick.credential)
    two = Counter().link_to(token, server=quick.url, credential=quick.token)
    lost = threading.Event()
    told: list[object] = []
    with pytest.raises(LockLost, match="its lease ran out"), one.lock(lease=1.5) as lock:
        lock.on_lost(lambda lock: told.append(lock) or lost.set())  # type: ignore[func-returns-value]
        with pytest.raises(LockTimeout, match=r"within 1\.4 s: script .* holds it"):
            # Longer than the lease, of which no more is given than may be held.
            two.lock(timeout=1.4).acquire()
        assert lost.wait(10)
    assert told == [lock]
    with two.lock(timeout=5):
        two.count = 1


def test_h26_a_server_that_was_stopped_takes_nobodys_lease(tmp_path: Path, token: str) -> None:
    """Longer than two leases: what its holder said meanwhile lies there unread, and counts."""
    numbers = {"lease_seconds": 1.5, "heartbeat_seconds": 0.5, "dead_seconds": 30.0}
    with LiveServer(tmp_path, limits(**numbers)) as server, Onlookers(server) as onlookers:
        one = Counter().link_to(token, server=server.url, credential=server.credential)
        two = Counter().link_to(token, server=server.url, credential=server.token)
        script = onlookers.script(token)
        found: list[int] = []

        def wait() -> None:
            with two.lock(timeout=20):
                found.append(two.count)
                two.count += 1

        waiter = threading.Thread(target=wait)
        with one.lock() as held:
            waiter.start()
            eventually(lambda: held.waiters)
            fence = held.fence
            os.kill(server.pid, signal.SIGSTOP)
            try:
                time.sleep(4)
            finally:
                os.kill(server.pid, signal.SIGCONT)
            one.count = 5
            one.flush()
            assert (held.held, held.fence, found) == (True, fence, [])
        waiter.join(20)
        assert found == [5]
        decided(one, two)
        assert (one.count, script.steps("count")) == (6, [5, 6])
        ops = [op for message in script.peer.all(Entries) for entry in message.entries for op in entry.ops]
        assert [op.reason for op in ops if isinstance(op, Freed)] == ["released", "released"]
        close_connections()


def test_h22_a_callback_on_another_thread_of_the_holder_writes_nothing_in_between(
    one: Counter, two: Counter, onlookers: Onlookers, token: str
) -> None:
    """A slider's callback on the main thread, between what a thread with the lock reads and what it writes."""
    page = onlookers.page(token)
    read, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with one.lock():
            before = one.count
            read.set()
            assert go_on.wait(10)
            one.count = before + 1

    def slide() -> None:
        try:
            assert read.wait(10)
            for write in (lambda: setattr(one, "count", 50), lambda: one.increment("count", 50)):
                with pytest.raises(Locked, match="Counter is locked by script"):
                    write()
            assert one.count == 0
        finally:
            go_on.set()

    in_threads(work, slide)
    decided(one, two)
    assert (one.count, two.count, page.steps("count")) == (1, 1, [1])
    one.count = 50
    page.shows(count=50)


def test_s32_numbers_that_cannot_be_are_refused(one: Counter) -> None:
    for numbers in ({"lease_seconds": 0.0}, {"hold_seconds": -1.0}, {"lock_waiters": 0.5}, {"lease": 5.0}):
        with pytest.raises(t.TraitError, match=next(iter(numbers))):
            SharedWidgetsApp(limits=numbers)
    for lease in (0, -1.0, math.nan, 1e6):
        with pytest.raises(ValueError, match="a lease has more than 0"):
            one.lock(lease=lease)
    assert one.locked_by is None


async def until(condition: Callable[[], object]) -> None:
    """Wait until something holds, and let the loop run meanwhile."""

    async def look() -> None:
        while not condition():  # noqa: ASYNC110 - nobody announces it
            await asyncio.sleep(0.001)

    await asyncio.wait_for(look(), 10)


@pytest.mark.asyncio
async def test_s33_a_task_that_waits_for_a_lock_holds_nobody_up(
    here: Link[Notes], one: Counter, two: Counter, server: LiveServer, token: str
) -> None:
    """And each time it is let in, it sees what came before."""
    notes = here(Notes())
    seen: list[int] = []

    async def work() -> None:
        async with one.lock(timeout=5):
            seen.append(one.count)
            one.other += 1

    loop = asyncio.get_running_loop()
    for number in (10, 20, 30):
        async with two.lock():
            two.count = number
            task = loop.create_task(work())
            await until(lambda: two.lock().waiters)
            # The loop runs, and so does everything else of this process.
            notes.note = f"meanwhile {number}"
            one.draft = "mine"
            await loop.run_in_executor(None, notes.flush)
            assert held(server, token)["Notes"]["note"] == f"meanwhile {number}"
            assert len(seen) == number / 10 - 1
        await asyncio.wait_for(task, 10)
    assert (seen, one.other) == ([10, 20, 30], 3)


def test_s34_outside_of_the_lock_every_write_fails_and_inside_all_work(
    one: Counter, two: Counter, server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    one.tags, one.items = {"a": {"b": 1}}, [1]
    decided(one, two)
    page = onlookers.page(token)
    handle: Room = connect(token, server.url, server.token, delivery="thread")

    def transaction() -> None:
        with two.transaction():
            two.count = 1
            two.other = 1

    writes: list[Callable[[], object]] = [
        lambda: setattr(two, "count", 1),
        lambda: setattr(two, "tags", {"a": {"b": 2}}),
        lambda: setattr(two, "items", [1, 2]),
        lambda: setattr(two, "_salt", "x"),
        transaction,
        lambda: handle["Counter"].increment("count"),
        lambda: handle["Counter"].append("items", 2),
        lambda: handle["Counter"].update({"count": 1}),
        # Another thread of the very process that holds it.
        lambda: in_threads(lambda: setattr(one, "count", 1)),
    ]
    with one.lock():
        assert two.wait_until(lambda: two.locked_by is not None, 10)
        at = seq(server, token)
        for write in writes:
            with pytest.raises(Locked, match="Counter is locked by script"):
                write()
        refused = page.write(count=1)
        assert isinstance(refused, Nack)
        assert refused.problem.code == "locked"
        for answer in (patch(server, token, count=1), reset(server, token)):
            assert (answer.status, answer.body["code"]) == (409, "locked")
        assert seq(server, token) == at
        assert (two.count, two.tags, two.items, two._salt) == (0, {"a": {"b": 1}}, [1], "pepper")
        # What is not shared is nobody's business.
        two.draft = "mine"
        one.count, one.tags, one.items = 1, {"a": {"b": 2}}, [1, 2]
        with one.transaction():
            one._salt = "x"
        one.flush()
    decided(one, two)
    assert (two.count, two.tags, two.items, two._salt) == (1, {"a": {"b": 2}}, [1, 2], "x")
    two.count = 2
    decided(one, two)
    assert page.steps("count") == [1, 2]
    handle.close()


def test_s35_a_reset_under_a_lock_works_and_is_observed(
    one: Counter, two: Counter, server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    one.count, one.who, one.tags, one._salt = 5, "Alice", {"a": 1}, "x"
    decided(one, two)
    page, heard = onlookers.page(token), Heard(two)
    at, defaults = seq(server, token), Counter()
    with one.lock():
        # From outside a reset is somebody else's write, whoever asks for it.
        refused = reset(server, token, "Counter")
        assert (refused.status, refused.body["code"]) == (409, "locked")
        with one.transaction():
            for name in ("count", "who", "tags", "_salt"):
                setattr(one, name, getattr(defaults, name))
    decided(one, two)
    eventually(lambda: len(heard.changes) == 4)
    assert sorted(heard.steps) == [
        ("_salt", "x", "pepper"),
        ("count", 5, 0),
        ("tags", {"a": 1}, {}),
        ("who", "Alice", "nobody"),
    ]
    assert (page.steps("count"), page.steps("who")) == ([0], ["nobody"])
    # A grant, one entry, an end; and nothing is left to be reset.
    assert seq(server, token) == at + 3
    assert reset(server, token, "Counter").status == 200
    assert seq(server, token) == at + 3
    assert len(two.linked_from) == 3


def test_s36_a_background_method_runs_beside_whoever_calls_it(server: LiveServer, token: str) -> None:
    """Called by an observer it has not run when that goes on, and what it waits for holds nobody up."""
    go = threading.Event()
    threads: list[str] = []

    class Busy(SharedState, delivery="thread"):
        count = t.Int(0)
        done = t.Int(0)

        @background
        async def work(self) -> int:
            threads.append(threading.current_thread().name)
            await asyncio.to_thread(go.wait, 10)
            self.done = self.count
            return self.count

    begun: list[Any] = []
    state = Busy().link_to(token, server=server.url, credential=server.credential)
    state.observe(lambda change: begun.append(state.work()), "count")
    state.count = 1
    state.count = 2
    assert [item.done() for item in begun] == [False, False]
    go.set()
    assert [item.result(10) for item in begun] == [2, 2]
    assert (state.done, set(threads)) == (2, {"sharedwidgets-background"})


def test_s37_who_observes_a_write_under_a_lock_has_the_object_itself(one: Counter, two: Counter) -> None:
    """No stand-in that may only be read: what it is given it may write, under the same lock."""
    given: list[Any] = []

    def observe(change: Any) -> None:
        given.append((change.owner is one, change.new is one.items, change.new))
        one.tags = {"heard": change.new}

    one.observe(observe, "items")
    mine = [1, [2]]
    with one.lock():
        one.items = mine
    decided(one, two)
    assert given == [(True, True, [1, [2]])]
    assert given[0][2] is mine
    assert (two.items, two.tags) == ([1, [2]], {"heard": [1, [2]]})


@pytest.mark.asyncio
async def test_s38_a_lock_that_could_not_be_entered_can_be_entered_again(
    one: Counter, two: Counter, server: LiveServer, token: str
) -> None:
    """Nor does it matter that it could not be left in order."""
    lock = two.lock(timeout=0.2)
    async with one.lock():
        with pytest.raises(LockTimeout):
            await lock.acquire_async()
        task = asyncio.get_running_loop().create_task(lock.acquire_async(10))
        await until(lambda: lock.waiters)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # Nobody waits on behalf of one that went.
        await until(lambda: not lock.waiters)
    for error in (ZeroDivisionError, KeyboardInterrupt, None):
        with pytest.raises(error) if error else contextlib.nullcontext():
            # The end of the one before may not be known here yet.
            await lock.acquire_async(10)
            try:
                two.count += 1
                if error:
                    raise error
            finally:
                await lock.release_async()
    await until(lambda: one.locked_by is None and one.count == 3)
    where = room_url(server, "rooms", token, "states", "Counter", "lock")
    with pytest.raises(LockLost):
        async with lock:
            assert (await asyncio.to_thread(ask, where, "DELETE", None, server.headers)).status == 204
    async with lock:
        two.count += 1
    await until(lambda: one.locked_by is None and one.count == 4)
    assert (two.count, lock.held) == (4, False)


def test_s39_what_was_held_from_before_a_lock_is_no_way_around_it(
    one: Counter, two: Counter, onlookers: Onlookers, token: str
) -> None:
    """Entering shows what there is now, in objects of its own; a path that is gone is refused and said so."""
    one.tags, one.items = {"a": {"b": 1}, "c": {}}, [1]
    decided(one, two)
    old, items = two.tags, two.items
    with one.lock():
        one.tags = {"a": {"b": 2}, "c": {}}
        one.items = [1, 2]
    with two.lock():
        assert (two.tags, two.items) == ({"a": {"b": 2}, "c": {}}, [1, 2])
        assert (old, items) == ({"a": {"b": 1}, "c": {}}, [1])
        # Changed in place nobody hears of it, and a word says so.
        two.tags["c"]["in place"] = 1
        with pytest.warns(UserWarning, match=r"Counter\.tags is a dict that was changed in place"):
            two.flush()
    decided(one, two)
    assert (one.tags, one.items) == ({"a": {"b": 2}, "c": {}}, [1, 2])
    page = onlookers.page(token)
    two.tags = {"c": {}}
    two.flush()
    gone = page.write_at(("tags", "a", "b"), 3)
    assert isinstance(gone, Nack)
    assert (gone.problem.code, gone.values) == ("no-such-path", {"Counter": {"tags": {"c": {}}}})
    assert one.wait_until(lambda: one.tags == {"c": {}}, 10)


# --- how long a room is kept


def test_s40_a_room_nobody_is_in_is_forgotten_and_begins_anew(quick: LiveServer, token: str) -> None:
    def gone(name: str) -> bool:
        return ask(room_url(quick, "rooms", name), headers=quick.headers).status == 404

    one = Counter().link_to(token, server=quick.url, credential=quick.credential)
    lives = Counter().link_to(token + "-lives", server=quick.url, credential=quick.credential)
    one.count = lives.count = 5
    one.flush()
    before = ask(room_url(quick, "rooms", token), headers=quick.headers).headers["ETag"].split(".")[0]
    with lives.lock():
        one.unlink(flush=True)
        # Looking at it and writing to it from outside does not make it longer.
        eventually(lambda: gone(token) or patch(quick, token, count=6).status == 404)
        eventually(lambda: gone(token))
    # Whose room has a member, and a lock that was held for as long as that, is as it was; a grant and an end came to it.
    lives.flush()
    assert (lives.count, seq(quick, token + "-lives")) == (5, 4)
    # Its time runs from its end.
    left = time.monotonic()
    lives.unlink()
    eventually(lambda: gone(token + "-lives"))
    assert time.monotonic() - left >= 0.5
    again = Counter().link_to(token, server=quick.url, credential=quick.credential)
    assert (again.count, seq(quick, token)) == (0, 1)
    assert ask(room_url(quick, "rooms", token), headers=quick.headers).headers["ETag"].split(".")[0] != before


# --- members


@pytest.mark.asyncio
async def test_s48_the_first_connection_makes_a_member_and_joining_again_makes_none(server: LiveServer, token: str) -> None:
    async with peers() as made:
        witness = await made(server.socket_url, server.headers, token)
        peer = await made(server.socket_url, server.headers, token)
        heard = await witness.next(Members)
        assert [member.id for member in heard.present] == [peer.welcome.member]  # type: ignore[union-attr]
        for _ in range(3):
            await peer.join(token, make=False)
        await peer.write(token, add())
        await witness.barrier(token)
        assert len(witness.all(Members)) == 1
        assert len(names_of(server, token)) == 2
        assert witness.entries(token) == peer.entries(token) == 1


@pytest.mark.asyncio
async def test_s49_a_duplicated_tab_is_another_boot_of_the_same_member(server: LiveServer, token: str) -> None:
    """It knows everything the first one stored: neither takes the other's place, and both count their writes from one."""
    async with peers() as made:
        witness = await made(server.socket_url, server.headers, token)
        first = await made(server.socket_url, server.headers, token)
        assert first.welcome is not None
        second = await Peer.open(server.socket_url, server.headers)
        made.made.append(second)
        again = await second.hello(member=first.welcome.member, secret=first.welcome.secret)
        await second.join(token, make=False)
        assert again.member == first.welcome.member
        for tab in (first, second):
            verdict = await tab.write(token, add())
            assert isinstance(verdict, Entries)
        await first.until(token, count=2)
        await witness.until(token, count=2)
        assert len(names_of(server, token)) == 2
        # The end of one tab is not the end of the member.
        second.close()
        await second.closed()
        await first.write(token, add())
        await witness.until(token, count=3)
        assert first.welcome.member in witness.replicas[token].members
        assert [member.state for member in witness.replicas[token].members.values()] == ["live", "live"]
        assert not any(message.gone for message in witness.all(Members))


@pytest.mark.asyncio
async def test_s50_leaving_takes_away_what_one_owns_and_nothing_else(server: LiveServer, token: str) -> None:
    async with peers() as made:
        witness = await made(server.socket_url, server.headers, token)
        first, other = [await made(server.socket_url, server.headers, token) for _ in range(2)]
        assert first.welcome is not None
        twin = await Peer.open(server.socket_url, server.headers)
        made.made.append(twin)
        await twin.hello(member=first.welcome.member, secret=first.welcome.secret)
        await twin.join(token, make=False)
        # Of a room or a state it never was in: harmless.
        stranger = await made(server.socket_url, server.headers)
        await stranger.say(Leave(room=token), Leave(room="nowhere"), Leave(room=token, state="S"))
        await stranger.join(token + "-own")
        await other.say(Leave(room=token, state="Nothing"))
        await other.barrier(token)
        assert len(names_of(server, token)) == 3
        await first.say(Leave(room=token))
        await first.say(Leave(room=token))
        await other.say(Leave(room=token))
        await witness.next(Members, lambda message: message.gone)
        await witness.barrier(token)
        assert [message.gone for message in witness.all(Members) if message.gone] == [(other.welcome.member,)]  # type: ignore[union-attr]
        assert first.welcome.member in names_of(server, token)
        assert isinstance(await twin.write(token, add()), Entries)


@pytest.mark.asyncio
async def test_s52_rooms_can_be_listed_and_their_members_vanish_as_they_go(server: LiveServer, token: str) -> None:
    def listed() -> dict[str, int]:
        rooms = server.ask("GET", "sharedwidgets/api/rooms")["rooms"]
        return {room["token"]: room["members"] for room in rooms if room["token"].startswith(token)}

    async with peers() as made:
        first, second = [await made(server.socket_url, server.headers, token + "-a") for _ in range(2)]
        await second.join(token + "-b")
        assert listed() == {token + "-a": 2, token + "-b": 1}
        await second.say(Leave(room=token + "-a"))
        await second.barrier(token + "-b")
        assert listed() == {token + "-a": 1, token + "-b": 1}
        await second.say(Leave(room=token + "-b"))
        await first.say(Leave(room=token + "-a"))
        await first.join(token + "-c")
        eventually(lambda: listed() == {token + "-a": 0, token + "-b": 0, token + "-c": 1})


def test_s53_everyone_sees_who_everyone_is(
    one: Counter, two: Counter, here: Link[Notes], server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    here(Notes())
    page, script = onlookers.page(token), onlookers.script(token)
    everyone = set(names_of(server, token))
    assert len(everyone) == 4
    handle = connect(token, server.url, server.token, delivery="thread")
    for state in (one, two):
        assert state.wait_until(lambda state=state: {member.id for member in state.linked_from} == everyone, 10)
    for seen in (page, script):
        seen.barrier()
        assert {member.id for member in seen.members} == everyone
    told = {member.id: (member.kind, member.states) for member in handle.members}
    mine, theirs = _ids(one, two)
    assert (told[mine], told[theirs]) == (("script", ("Counter", "Notes")), ("script", ("Counter",)))
    assert told[page.peer.welcome.member] == ("frontend", ("Counter",))  # type: ignore[union-attr]
    handle.close()


@pytest.mark.asyncio
async def test_s54_what_is_said_follows_a_boot_to_its_newer_socket(server: LiveServer, token: str) -> None:
    """To the one it has now and to that alone, from the place where it stood; any value survives the way."""
    values: list[Any] = [
        b"\x00\xff",
        2**70,
        -(2**70),
        math.inf,
        -0.5,
        {"": {"$int": "1"}},
        [None, True, "𝒳"],
        {"a": [b"", 1.5]},
    ]
    async with peers() as made:
        writer = await made(server.socket_url, server.headers)
        await writer.join(token, schema={"any": TraitSchema()}, values={"any": None})
        older = await made(server.socket_url, server.headers, token, make=False)
        assert older.welcome is not None
        place = older.replicas[token].position(["S"])
        newer = await Peer.open(server.socket_url, server.headers)
        made.made.append(newer)
        newer.boot, newer.replicas = older.boot, older.replicas
        await newer.hello(member=older.welcome.member, secret=older.welcome.secret, rooms=(place,))
        assert (await older.next(Bye)).problem.code == "replaced"
        for value in values:
            await writer.write(token, assign("any", value))
            await newer.until(token, any=value)
        assert newer.entries(token) == len(values)
        assert older.entries(token) == 0
        assert len(names_of(server, token)) == 2


@pytest.mark.asyncio
async def test_s55_what_is_told_goes_to_those_who_are_connected(server: LiveServer, token: str) -> None:
    """Who is away holds nobody up, and is told what it missed when it is back."""
    async with peers() as made:
        writer, present, absent = [await made(server.socket_url, server.headers, token) for _ in range(3)]
        assert absent.welcome is not None
        place = absent.replicas[token].position(["S"])
        absent.close()
        await absent.closed()
        await writer.next(Members, lambda message: any(member.state == "away" for member in message.present))
        for number in range(1, 4):
            await writer.write(token, add())
            await present.until(token, count=number)
        assert (present.entries(token), absent.entries(token)) == (3, 0)
        back = await Peer.open(server.socket_url, server.headers)
        made.made.append(back)
        back.boot, back.replicas = absent.boot, absent.replicas
        await back.hello(member=absent.welcome.member, secret=absent.welcome.secret, rooms=(place,))
        missed = await back.next(Entries)
        assert [entry.seq for entry in missed.entries] == [2, 3, 4]
        assert back.replicas[token].view("S")["count"] == 3


async def back_again(made: peers, server: LiveServer, peer: Peer, token: str) -> Peer:
    """The same process on another socket."""
    assert peer.welcome is not None
    place = peer.replicas[token].position(["S"])
    again = await Peer.open(server.socket_url, server.headers)
    made.made.append(again)
    again.boot, again.replicas, again._n = peer.boot, peer.replicas, peer._n
    await again.hello(member=peer.welcome.member, secret=peer.welcome.secret, rooms=(place,))
    return again


@pytest.mark.asyncio
async def test_s57_who_stays_away_is_gone_and_that_is_told_once(quick: LiveServer, token: str) -> None:
    async with peers() as made:
        witness, peer = [await made(quick.socket_url, quick.headers, token) for _ in range(2)]
        assert peer.welcome is not None
        name = peer.welcome.member
        handle = connect(token, quick.url, quick.token, delivery="thread")
        left: list[str] = []
        handle.on_leave(lambda member: left.append(member.id))
        peer.close()
        await peer.closed()
        await witness.next(Members, lambda message: (name, "away") in [(item.id, item.state) for item in message.present])
        gone = await witness.next(Members, lambda message: message.gone)
        assert gone.gone == (name,)
        eventually(lambda: left == [name])
        # Others come and go; this one is gone once.
        stranger = await made(quick.socket_url, quick.headers, token)
        await stranger.say(Leave(room=token))
        await witness.next(Members, lambda message: message.gone and message.gone != (name,))
        eventually(lambda: len(left) == 2)
        assert left == [name, stranger.welcome.member]  # type: ignore[union-attr]
        assert [message.gone for message in witness.all(Members)].count((name,)) == 1
        assert name not in names_of(quick, token)
        handle.close()


@pytest.mark.asyncio
async def test_s58_who_comes_back_in_time_stays_and_its_time_runs_anew(quick: LiveServer, token: str) -> None:
    """Others that went later, and did not come back, tell when its time was over; what it holds it has all along."""
    name_of_lock = LockName(kind="state", name="S")
    async with peers() as made:
        witness, peer, *others, leaver = [await made(quick.socket_url, quick.headers, token) for _ in range(5)]
        name, first, second, left = (item.welcome.member for item in (peer, *others, leaver) if item.welcome is not None)

        def gone() -> list[str]:
            return [name for message in witness.all(Members) for name in message.gone]

        async def goes(one: Peer, name: str) -> None:
            one.close()
            await witness.next(Members, lambda message: (name, "away") in [(item.id, item.state) for item in message.present])

        # Who leaves is no member any more: nothing of it runs out.
        await leaver.say(Leave(room=token))
        await witness.next(Members, lambda message: message.gone)
        await peer.say(Acquire(id=9, room=token, lock=name_of_lock, owner="main", lease=600.0))
        await peer.barrier(token)
        fence = peer.replicas[token].locks[name_of_lock].fence
        await goes(peer, name)
        await goes(others[0], first)
        again = await back_again(made, quick, peer, token)

        async def holds_on() -> None:
            while first not in gone():
                await again.say(Renew(room=token, lock=name_of_lock, owner="main", fence=fence))
                await witness.barrier(token)
                await asyncio.sleep(0.05)

        await asyncio.wait_for(holds_on(), 10)
        assert gone() == [left, first]
        await again.say(Release(room=token, lock=name_of_lock, owner="main", fence=fence))
        assert isinstance(await again.write(token, add()), Entries)
        await witness.barrier(token)
        ops = [op for message in witness.all(Entries) for entry in message.entries for op in entry.ops]
        assert [op.reason for op in ops if isinstance(op, Freed)] == ["released"]
        await goes(others[1], second)
        await goes(again, name)
        await witness.next(Members, lambda message: name in message.gone)
        # Not before the one that went before it; both may be in one message.
        assert gone()[:2] == [left, first]
        assert sorted(gone()[2:]) == sorted([second, name])
    with pytest.raises(t.TraitError, match="away_seconds"):
        SharedWidgetsApp(limits={"away_seconds": 0.0})


# --- what is sent


def test_s59_an_ordinary_change_sends_that_change_alone(
    one: Counter, two: Counter, server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    one.text, one.tags, one._salt = "x" * 50_000, {f"key {number}": number for number in range(500)}, "y" * 50_000
    decided(one, two)
    page, script = onlookers.page(token), onlookers.script(token)
    for onlooker in (page, script):
        onlooker.begin()
    one.draft = "private " * 1000
    one.count += 1
    one.draft = "more"
    decided(one, two)
    for onlooker in (page, script):
        (frame,) = onlooker.told
        assert isinstance(frame, Entries)
        assert [entry.ops for entry in frame.entries] == [(Set(state="Counter", path=("count",), value=1),)]
        assert onlooker.bytes < 500
    # Of a dict the key, of a text the piece.
    one.tags = {**one.tags, "key 7": "seven"}
    one.text = one.text + "!"
    decided(one, two)
    assert (two.text[-2:], two.tags["key 7"]) == ("x!", "seven")
    assert page.bytes < 1500


def test_s60_without_a_link_nothing_is_sent(server: LiveServer, onlookers: Onlookers, token: str) -> None:
    """Nor to another room; and alone in its room one hears its own verdicts only."""
    other = Counter().link_to(token + "-other", server=server.url, credential=server.token)
    page = onlookers.page(token + "-other")
    rooms = server.ask("GET", "sharedwidgets/api/rooms")["rooms"]
    connections = set(sharedwidgets.connection._shared)
    private = Counter()
    page.begin()
    for number in range(1, 51):
        private.count = number
    assert server.ask("GET", "sharedwidgets/api/rooms")["rooms"] == rooms
    assert set(sharedwidgets.connection._shared) == connections
    private.link_to(token, server=server.url, credential=server.credential)
    script = onlookers.script(token)
    script.begin()
    for number in range(1, 51):
        private.count = number
        private.flush()
    assert seq(server, token) == 51
    assert len(script.state_told) == 50
    assert page.told == []
    assert other._bridge is not None
    assert other._bridge.session.replica.seq == 1


@pytest.mark.parametrize("others", [0, 1, 8])
def test_s61_each_of_the_others_gets_each_change_once(
    one: Counter, server: LiveServer, onlookers: Onlookers, token: str, others: int
) -> None:
    pages = [onlookers.page(token) for _ in range(others)]
    mine = Heard(one, "count")
    for page in pages:
        page.begin()
    for number in (1, 2, 1, 0):
        one.count = number
        one.flush()
    assert [change.new for change in mine.changes] == [1, 2, 1, 0]
    assert {change.origin for change in mine.changes} == {"local"}
    for page in pages:
        assert page.steps("count") == [1, 2, 1, 0]
        assert len(page.told) == 4
    assert (held(server, token)["Counter"]["count"], seq(server, token)) == (0, 5)
