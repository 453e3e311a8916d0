"""The scenarios of shared state that real kernels show, by their numbers: see `tests/scenarios.md`; and H20.

The kernels are started by a real server, over every store there is. A page is a member of the frontends' audience, or, where
the widget's own channel matters, whoever listens to the kernel's messages. How many entries and frames there were is checked
as well.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from sharedwidgets.core.protocol import Members, Snapshot
from sharedwidgets_server.stores import STORES
from sharedwidgets_server.testing import LiveServer
from support.faults import Faults
from support.kernels import Kernel, Message
from support.onlookers import Onlooker, Onlookers
from support.rest import ask, room_url
from support.scripts import eventually, seq
from support.servers import limits, scheme, store

SETUP = """
import asyncio, json, os, threading, time, urllib.request
import traitlets as t
import sharedwidgets.connection
from sharedwidgets import SharedState, lock
from sharedwidgets.core import codec
from sharedwidgets.errors import *

class Counter(SharedState):
    count = t.Int(0)
    other = t.Int(0)
    who = t.Unicode("nobody")
    changes = t.Int(0)
    text = t.Unicode("")
    _salt = t.Unicode("pepper")
    draft = t.Unicode("").tag(shared=False)

class Special(Counter):
    own = t.Int(0)

class Notes(SharedState):
    note = t.Unicode("")

frames = []          # what this kernel was sent
feed = codec.Assembler.feed
def noted(self, frame):
    frames.append(len(frame))
    return feed(self, frame)
codec.Assembler.feed = noted

def made(kind, room=None, **private):
    '''An object of a class, linked, and the news its observers hear.'''
    state = kind(**private)
    state.seen = []
    if room is not None:
        state.link_to(room)
    state.observe(lambda change: state.seen.append([change.name, change.new, change.origin]), t.All)
    return state

def version():
    return c._bridge.session.replica.version
"""
CLOSE = "for state in [item for item in SharedState.widgets.values() if isinstance(item, SharedState)]: state.close()"


class Trio(NamedTuple):
    one: Kernel
    two: Kernel
    three: Kernel


def started(server: LiveServer) -> Kernel:
    kernel = Kernel(server)
    kernel.run(SETUP)
    return kernel


@pytest.fixture(scope="module", params=STORES, ids=scheme)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("server")
    with LiveServer(folder, store(request.param, folder), limits(away_seconds=20.0)) as running:
        yield running


@pytest.fixture(scope="module")
def running(server: LiveServer) -> Iterator[Trio]:
    with contextlib.ExitStack() as kernels:
        yield Trio(*(kernels.enter_context(started(server)) for _ in range(3)))


@pytest.fixture
def trio(running: Trio) -> Iterator[Trio]:
    yield running
    for kernel in running:
        kernel.run(CLOSE)


@pytest.fixture
def pair(trio: Trio, token: str) -> tuple[Kernel, Kernel]:
    """Two of them, with a Counter each in the test's room."""
    for kernel in trio[:2]:
        kernel.run(f"c = made(Counter, {token!r})")
    return trio.one, trio.two


@pytest.fixture
def onlookers(server: LiveServer) -> Iterator[Onlookers]:
    with Onlookers(server) as made:
        yield made


@pytest.fixture
def page(pair: tuple[Kernel, Kernel], onlookers: Onlookers, token: str) -> Onlooker:
    """A page of the test's room, that has heard nothing since the pair came."""
    seen = onlookers.page(token)
    seen.begin()
    return seen


def room(server: LiveServer, token: str) -> dict[str, Any]:
    """A room as REST shows it."""
    found: dict[str, Any] = server.ask("GET", f"sharedwidgets/api/rooms/{token}")
    return found


def tokens(server: LiveServer) -> list[str]:
    """The rooms there are."""
    return [item["token"] for item in server.ask("GET", "sharedwidgets/api/rooms")["rooms"]]


def comes_to(kernel: Kernel, expression: str, value: object) -> None:
    """Wait until a kernel finds an expression to have a value."""
    deadline = time.monotonic() + 10
    while (found := kernel.value(expression)) != value:
        assert time.monotonic() < deadline, f"{expression} is {found}, not {value}"
        time.sleep(0.005)


@contextlib.contextmanager
def listening(kernel: Kernel) -> Iterator[list[Message]]:
    """What the kernel's own pages hear from now on."""
    messages: list[Message] = []
    with kernel.listening(messages.append):
        yield messages


def shown(messages: list[Message]) -> list[dict[str, Any]]:
    """What the kernel's own pages were told by the widget's channel, update by update."""
    return [
        message["content"]["data"]["state"]
        for message in list(messages)
        if message["msg_type"] == "comm_msg" and message["content"]["data"].get("method") == "update"
    ]


# --- what the kernel's own pages show


def test_s01_what_is_not_linked_is_alone(trio: Trio, server: LiveServer) -> None:
    before = tokens(server)
    for kernel in trio[:2]:
        kernel.run("c = made(Counter)")
    for kernel, name in ((trio.one, "Alice"), (trio.two, "Bob")):
        with listening(kernel) as messages:
            kernel.run(f"c.who = {name!r}; c.changes += 1")
            eventually(lambda messages=messages: len(shown(messages)) >= 2)
        assert shown(messages) == [{"who": name}, {"changes": 1}]
    assert trio.one.value("[c.who, c.changes, c.seen]") == ["Alice", 1, [["who", "Alice", "local"], ["changes", 1, "local"]]]
    assert trio.two.value("[c.who, c.changes, c.linked_to]") == ["Bob", 1, None]
    assert tokens(server) == before


def test_s05_unlink_restores_the_private_values(trio: Trio, server: LiveServer, onlookers: Onlookers, token: str) -> None:
    trio.one.run(f"c = made(Counter, {token!r})")
    trio.two.run(f"c = made(Counter, who='Bob', changes=1); c.link_to({token!r})")
    trio.one.run("c.who, c.count = 'Charlie', 3; c.flush()")
    comes_to(trio.two, "[c.who, c.changes, c.count]", ["Charlie", 0, 3])
    page = onlookers.page(token)
    with listening(trio.two) as messages:
        trio.two.run("c.seen.clear(); c.unlink()")
        eventually(lambda: {"who", "changes", "count"} <= {name for state in shown(messages) for name in state})
    # Without a reload: its own page is told by the channel it has, first that there is no room any more.
    updates = shown(messages)
    assert updates[0]["_link"]["room"] == ""
    assert {name: value for update in updates[1:] for name, value in update.items()} == {"who": "Bob", "changes": 1, "count": 0}
    assert trio.two.value("[c.who, c.changes, c.count, c.linked_to]") == ["Bob", 1, 0, None]
    heard = sorted(item for item in trio.two.value("c.seen") if item[0] in ("who", "changes", "count"))
    assert heard == [["changes", 1, "local"], ["count", 0, "local"], ["who", "Bob", "local"]]
    assert (page.view["who"], page.view["count"]) == ("Charlie", 3)
    assert page.state_told == []
    assert seq(server, token) == 3


def test_s08_a_kernel_that_links_in_its_first_cell_has_everything(
    pair: tuple[Kernel, Kernel], server: LiveServer, onlookers: Onlookers, page: Onlooker, token: str
) -> None:
    pair[0].run("c.who, c.count, c._salt = 'Diana', 4, 'shared'; c.flush()")
    with Kernel(server) as late:
        late.run(f"parameters = {{'room': {token!r}}}\n{SETUP}\nc = made(Counter, parameters['room'], who='Eve')")
        assert late.value("[c.who, c.count, c._salt, c.linked_to, len(c.linked_from)]") == ["Diana", 4, "shared", token, 4]
        assert onlookers.page(token).view["who"] == "Diana"
        late.run("c.count += 1")
        page.shows(count=5)
    assert page.steps("count") == [4, 5]
    assert seq(server, token) == 5


# --- three kernels at once


READY = """
c.room["Counter"].increment("changes")
c.flush()
assert c.wait_until(lambda: c.who == "go {round}", 20)
"""


def together(trio: Trio, page: Onlooker, code: str, round: int = 1) -> None:
    """Run a cell in each at the same time: when all of them are ready."""
    cells = [(kernel, kernel.start(READY.format(round=round) + code)) for kernel in trio]
    page.shows(changes=3 * round)
    page.write(who=f"go {round}")
    for kernel, cell in cells:
        kernel.finish(cell)


# Five tasks that reach the shared object under the lock of a private one, and a thread under the shared one's own.
UNDER_LOCKS = """
async def by_a_private_widget():
    async with notes.lock():
        done = len(notes.note)
        async with c.lock():
            before = c.count
            await asyncio.sleep(0)
            c.count = before + 1
        notes.note = "x" * (done + 1)

def by_the_shared_one():
    for _ in range(5):
        with c.lock():
            c.count += 1

thread = threading.Thread(target=by_the_shared_one)
thread.start()
await asyncio.gather(*(by_a_private_widget() for _ in range(5)))
thread.join()
c.flush()
"""


def three_with_counters(trio: Trio, onlookers: Onlookers, token: str) -> list[Onlooker]:
    """A counter at 3 in a room of all three, and a page for each."""
    for kernel in trio:
        kernel.run(f"c = made(Counter, {token!r}); notes = made(Notes)")
    trio.one.run("c.count = 3; c.flush()")
    return [onlookers.page(token) for _ in range(3)]


def all_agree(trio: Trio, pages: list[Onlooker], server: LiveServer, token: str, count: int) -> None:
    """Each step from 4 on was seen once by every page, and pages, kernels and REST show the same."""
    for page in pages:
        page.shows(count=count)
        assert page.steps("count") == list(range(4, count + 1))
    for kernel in trio:
        comes_to(kernel, "[c.count, c.locked_by is None, notes.note, notes.linked_to]", [count, True, "xxxxx", None])
    found = room(server, token)
    assert (found["states"]["Counter"]["values"]["count"], found["locks"], "Notes" in found["states"]) == (count, [], False)


def test_s10_tasks_with_the_lock_in_three_kernels_lose_nothing(
    trio: Trio, server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    pages = three_with_counters(trio, onlookers, token)
    together(trio, pages[0], UNDER_LOCKS)
    all_agree(trio, pages, server, token, 33)
    # Made, set to 3, four for the start, and of each of 30 rounds a grant, a write and an end.
    assert seq(server, token) == 2 + 4 + 3 * 30


def test_s11_callbacks_that_send_each_step_in_three_kernels_lose_nothing(
    trio: Trio, server: LiveServer, onlookers: Onlookers, token: str
) -> None:
    """After the rounds of the tenth, in the same room: 45 more."""
    pages = three_with_counters(trio, onlookers, token)
    together(trio, pages[0], UNDER_LOCKS)
    for kernel in trio:
        kernel.run(
            """
def step(change):
    for _ in range(5):
        c.room["Counter"].increment("count")
        c.flush()
c.observe(step, "draft")
"""
        )
    together(trio, pages[0], "c.draft = 'go'", round=2)
    all_agree(trio, pages, server, token, 48)
    assert seq(server, token) == 2 + 4 + 3 * 30 + 4 + 15


# --- what must not be lost


def test_s62_one_trait_flushed_and_then_another(
    pair: tuple[Kernel, Kernel], server: LiveServer, page: Onlooker, token: str
) -> None:
    one, two = pair
    two.run("c.seen.clear()")
    one.run(
        """
def step(change):
    c.count = 1
    c.flush()
    c.other = 2
c.observe(step, "draft")
c.draft = "go"
c.flush()
"""
    )
    page.shows(count=1, other=2)
    assert (page.steps("count"), page.steps("other")) == ([1], [2])
    comes_to(two, "c.seen", [["count", 1, "remote"], ["other", 2, "remote"]])
    assert len(page.told) == 2
    assert seq(server, token) == 3


def test_s63_two_classes_in_one_room(pair: tuple[Kernel, Kernel], server: LiveServer, onlookers: Onlookers, token: str) -> None:
    one, two = pair
    for kernel in pair:
        kernel.run(f"notes = made(Notes, {token!r})")
    page = onlookers.page(token, "Notes")
    one.run("notes.note = 'written'; notes.flush()")
    assert room(server, token)["states"]["Notes"]["values"] == {"note": "written"}
    comes_to(two, "notes.seen", [["note", "written", "remote"]])
    one.run("c.count = 1; c.flush()")
    page.barrier()
    assert page.peer.replicas[token].view("Counter")["count"] == 1
    assert page.steps("note") == ["written"]
    comes_to(two, "[c.count, notes.note]", [1, "written"])
    assert sorted(member["states"] for member in room(server, token)["members"]) == [
        ["Counter", "Notes"], ["Counter", "Notes"], ["Notes"]
    ]  # fmt: skip
    assert seq(server, token) == 4


def test_s64_linked_in_the_opposite_order_they_neither_hang_nor_lose(trio: Trio, server: LiveServer, token: str) -> None:
    """Fifty times linked, locked, written and left again, by both at once, each in its own order."""
    rooms = [f"{token}-{name}" for name in "ab"]
    for kernel in trio[:2]:
        kernel.run("first, second = made(Counter), made(Counter)")
    # A sum that needs no lock, beside what is read, changed and written under both: in another state, that nobody locks.
    work = """
for number in range(50):
    for state, room in ((first, {0!r}), (second, {1!r})):
        state.link_to(room)
        state.room.define("Sums", count=0).increment("count")
    with lock(first, second, timeout=20):
        for state in (first, second):
            state.other += 1
    for state in (first, second):
        state.unlink()
"""
    orders = zip(trio[:2], (rooms, rooms[::-1]), strict=True)
    # Both are begun before either is waited for.
    cells = [(kernel, kernel.start(work.format(*order))) for kernel, order in orders]
    for kernel, cell in cells:
        kernel.finish(cell, 60)
    for name in rooms:
        found = room(server, name)
        values = {state: image["values"] for state, image in found["states"].items()}
        assert (values["Sums"], values["Counter"]["other"], found["locks"]) == ({"count": 100}, 100, [])
        assert found["members"] == []
    for kernel in trio[:2]:
        for name in rooms:
            kernel.run(f"first.link_to({name!r})")
            assert kernel.value("[first.other, first.room['Sums']['count']]") == [100, 100]


def test_s65_a_link_that_fails_changes_nothing(
    pair: tuple[Kernel, Kernel], server: LiveServer, page: Onlooker, token: str
) -> None:
    one, two = pair
    two.run("c.count = 1; c.flush()")
    comes_to(one, "c.count", 1)
    members = room(server, token)["members"]
    page.begin()
    one.run(
        """
c.seen.clear()
failed = []
for wrong in (" begins with a space", "", "x" * 129):
    try:
        c.link_to(wrong)
    except InvalidToken as error:
        failed.append(str(error))
"""
    )
    assert one.value("[len(failed), c.linked_to, c.count, c.seen]") == [3, token, 1, []]
    assert page.told == []
    # Without a word of its own it goes on hearing.
    two.run("c.count = 2; c.flush()")
    comes_to(one, "c.seen", [["count", 2, "remote"]])
    assert room(server, token)["members"] == members
    assert seq(server, token) == 3


RESET = """
def reset(*states):
    where = f"{os.environ['SHAREDWIDGETS_URL']}sharedwidgets/api/rooms/{c.linked_to}/reset"
    headers = {**c._bridge.connection.address.headers(), "Content-Type": "application/json"}
    body = json.dumps({"states": states} if states else {}).encode()
    with urllib.request.urlopen(urllib.request.Request(where, body, headers, method="POST"), timeout=10) as answer:
        return json.load(answer)
"""


def test_s66_a_reset_is_an_ordinary_change(pair: tuple[Kernel, Kernel], server: LiveServer, page: Onlooker, token: str) -> None:
    one, two = pair
    one.run(RESET)
    one.run("c.count, c.who, c._salt = 5, 'Alice', 'x'; c.flush()")
    comes_to(two, "[c.count, c.who, c._salt]", [5, "Alice", "x"])
    members = room(server, token)["members"]
    two.run("c.seen.clear()")
    page.begin()
    assert one.value("reset()") == {"seq": 5}
    for kernel in pair:
        comes_to(kernel, "[c.count, c.who, c._salt, c.linked_to]", [0, "nobody", "pepper", token])
    assert two.value("sorted(c.seen)") == [["_salt", "pepper", "remote"], ["count", 0, "remote"], ["who", "nobody", "remote"]]
    assert len(page.told) == 1
    assert page.view["who"] == "nobody"
    assert room(server, token)["members"] == members
    one.run("c.count = 6; c.flush()")
    page.shows(count=6)
    comes_to(two, "c.count", 6)
    assert seq(server, token) == 6


def test_s67_a_write_after_linking_or_unlinking_hits_what_is_linked(
    pair: tuple[Kernel, Kernel], server: LiveServer, page: Onlooker, token: str
) -> None:
    one, two = pair
    one.run(
        f"""
me = c
c.unlink(); c.count = 100
def step(change):
    c.link_to({token!r}).count = 1
    c.link_to({token + "-s"!r})
    c.count = 2
    c.unlink()
    c.count = 3
c.observe(step, "draft")
c.draft = "go"
"""
    )
    assert one.value("[c.count, c.linked_to, me is c]") == [3, None, True]
    page.shows(count=1)
    comes_to(two, "c.count", 1)
    eventually(lambda: token + "-s" in tokens(server) and seq(server, token + "-s") == 2)
    assert room(server, token + "-s")["states"]["Counter"]["values"]["count"] == 2
    assert page.steps("count") == [1]
    assert seq(server, token) == 2


# --- what costs nobody anything


def test_s68_what_is_private_makes_no_traffic(
    pair: tuple[Kernel, Kernel], server: LiveServer, onlookers: Onlookers, page: Onlooker, token: str
) -> None:
    one, two = pair
    script = onlookers.script(token)
    for onlooker in (page, script):
        onlooker.begin()
    two.run("c.seen.clear(); before = version()")
    one.run("for number in range(100): c.draft = str(number)\nc.flush()")
    one.run("c.count = 1; c.flush()")
    comes_to(two, "c.count", 1)
    # Behind a hundred of them, the one message of what is shared.
    assert two.value("version() - before") == 1
    assert two.value("c.seen") == [["count", 1, "remote"]]
    assert (len(page.told), len(script.told)) == (1, 1)
    assert seq(server, token) == 2


def test_s69_a_slow_neighbour_slows_nobody(pair: tuple[Kernel, Kernel], server: LiveServer, page: Onlooker, token: str) -> None:
    one, two = pair
    one.run(
        """
def slow(change):
    c.other = 1
    c.flush()
    deadline = time.monotonic() + 30
    while c._bridge.session.replica.value("Counter", "who") != "free":
        assert time.monotonic() < deadline
        time.sleep(0.01)
c.observe(slow, "changes")
"""
    )
    cell = one.start("c.changes = 1")
    page.shows(other=1)
    two.run(
        """
took = []
for number in range(1, 31):
    began = time.perf_counter()
    c.count = number
    c.flush()
    c.draft = str(number)
    took.append(time.perf_counter() - began)
"""
    )
    page.shows(count=30)
    # It is still at it.
    assert not one.client.shell_channel.msg_ready()
    assert page.steps("count") == list(range(1, 31))
    assert sorted(two.value("took"))[15] < 0.25
    two.run("c.who = 'free'")
    one.finish(cell)
    comes_to(one, "[c.count, [item for item in c.seen if item[0] == 'count']]", [30, [["count", 30, "remote"]]])
    assert seq(server, token) == 34


def test_s70_a_join_costs_those_who_are_there_one_word(
    pair: tuple[Kernel, Kernel], server: LiveServer, onlookers: Onlookers, page: Onlooker, token: str
) -> None:
    one, two = pair
    one.run("c.text = 'x' * 50_000; c._salt = 'y' * 10_000; c.flush()")
    comes_to(two, "[len(c.text), len(c._salt)]", [50_000, 10_000])
    script = onlookers.script(token)
    page.begin()
    script.begin()
    two.run("c.seen.clear(); frames.clear()")
    joined = [onlookers.page(token) if number % 2 else onlookers.script(token) for number in range(15)]
    assert all(len(str(item.peer.all(Snapshot)[0])) > 50_000 for item in joined)
    comes_to(two, "len(c.linked_from)", 4 + 15)
    for onlooker in (page, script):
        assert {type(message) for message in onlooker.told} == {Members}
        assert len(onlooker.told) <= 15
        assert onlooker.bytes < 15 * 400
    assert two.value("c.seen") == []
    assert two.value("sum(frames)") < 15 * 400
    assert seq(server, token) == 3


def test_s71_leaving_and_switching_send_no_state_to_those_who_stay(
    pair: tuple[Kernel, Kernel], server: LiveServer, page: Onlooker, token: str
) -> None:
    one, two = pair
    one.run("c.text = 'x' * 50_000; c.flush()")
    comes_to(two, "len(c.text)", 50_000)
    two.run("c.seen.clear(); frames.clear()")
    page.begin()
    one.run(f"c.link_to({token + '-s'!r}); c.link_to({token!r}); c.unlink()")
    comes_to(two, "len(c.linked_from)", 2)
    assert two.value("c.seen") == []
    assert two.value("sum(frames)") < 2000
    assert {type(message) for message in page.told} == {Members}
    assert page.bytes < 2000
    assert len(room(server, token)["members"]) == 2
    assert seq(server, token) == 2


# --- what must not be seen


def test_s72_a_transaction_that_raises_never_was(
    pair: tuple[Kernel, Kernel], server: LiveServer, page: Onlooker, token: str
) -> None:
    one, two = pair
    one.run("c.count = 1; c.flush(); c.seen.clear()")
    comes_to(two, "c.count", 1)
    two.run("c.seen.clear(); before = version()")
    one.run(
        """
def step(change):
    with c.transaction():
        c.count = 2
        c.who = "never"
        1 / 0
raised = []
c.observe(step, "draft")
try:
    c.draft = "go"
except ZeroDivisionError as error:
    raised.append(str(error))
"""
    )
    assert one.value("[raised, c.count, c.who]") == [["division by zero"], 1, "nobody"]
    assert one.value("[item for item in c.seen if item[0] != 'draft']") == []
    one.run("c.other = 1; c.flush()")
    comes_to(two, "[c.seen, version() - before]", [[["other", 1, "remote"]], 1])
    assert (page.steps("count"), page.steps("who"), page.steps("other")) == ([1], [], [1])
    assert room(server, token)["states"]["Counter"]["values"]["count"] == 1
    assert seq(server, token) == 3


def test_s73_what_is_refused_is_shown_by_nobody_and_taken_back_by_its_author(
    trio: Trio, server: LiveServer, onlookers: Onlookers, token: str, tmp_path: Path
) -> None:
    """A holder that does not know yet that its lock is broken, for what it is told is held up."""
    one, two, broken = trio.one, trio.two, tmp_path / "broken"
    with Faults(server.port) as faults:
        one.run(f"server = 'http://127.0.0.1:{faults.port}/'; credential = os.environ['SHAREDWIDGETS_CREDENTIAL']")
        one.run(f"c = made(Counter); c.link_to({token!r}, server=server, credential=credential)")
        two.run(f"c = made(Counter, {token!r})")
        page = onlookers.page(token)
        one.run(
            """
rejected = []
c.observe(lambda change: rejected.append([change.name, change.problem.code]), t.All, type="rejected")
"""
        )
        cell = one.start(
            f"""
try:
    with c.lock() as held:
        deadline = time.monotonic() + 20
        while not os.path.exists({str(broken)!r}):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        c.count = 5
        found = [c.count]
        c.wait_until(lambda: not held.held and c.count == 7, 20)
        found.append(c.count)
except LockLost as error:
    found.append("broke" in str(error))
"""
        )
        comes_to(two, "c.locked_by is not None", True)
        eventually(lambda: room(server, token)["locks"])
        faults.shut(up=False)
        where = room_url(server, "rooms", token, "states", "Counter") + "/lock"
        assert ask(where, "DELETE", headers=server.headers).status == 204
        comes_to(two, "c.locked_by is None", True)
        broken.touch()
        two.run("c.count = 7; c.flush()")
        page.shows(count=7)
        faults.open()
        one.finish(cell)
        comes_to(one, "[c.count, rejected]", [7, [["count", "lock-lost"]]])
        assert one.value("[held.held, found]") == [False, [5, 7, True]]
        assert page.steps("count") == [7]
        comes_to(two, "[item for item in c.seen if item[0] == 'count']", [["count", 7, "local"]])
        # Made, granted, broken, written.
        assert seq(server, token) == 4
        one.run(CLOSE)


@pytest.fixture(scope="module", params=STORES, ids=scheme)
def forgetful(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that forgets everything as soon as it may."""
    folder = tmp_path_factory.mktemp("forgetful")
    numbers = {"heartbeat_seconds": 0.4, "dead_seconds": 20.0, "away_seconds": 0.4, "mark_seconds": 0.4, "tail_seconds": 0.1}
    with LiveServer(folder, store(request.param, folder), limits(**numbers), "--SharedWidgetsApp.room_ttl=0.4") as running:
        yield running


def test_s74_a_room_somebody_is_in_stays(forgetful: LiveServer, token: str) -> None:
    """Others that nobody is in, made later, tell when every time has run out."""
    with Kernel(forgetful) as one:
        one.run(SETUP)
        one.run(f"c = made(Counter, {token!r}); c.count = 5; c.flush()")
        before = ask(room_url(forgetful, "rooms", token), headers=forgetful.headers)
        for number in range(2):
            other = f"{token}-{number}"
            one.run(f"other = made(Counter, {other!r}); other.unlink(flush=True)")
            assert other in tokens(forgetful)
            eventually(lambda other=other: other not in tokens(forgetful))  # type: ignore[misc]
        after = ask(room_url(forgetful, "rooms", token), headers=forgetful.headers)
        assert (after.body, after.headers["ETag"]) == (before.body, before.headers["ETag"])
        assert one.value("[c.count, c.linked_to, len(c.linked_from)]") == [5, token, 1]
        one.run("c.count = 6; c.flush()")
        assert seq(forgetful, token) == 3


# --- linking from anywhere, to anything


def test_s75_a_task_or_a_thread_links(pair: tuple[Kernel, Kernel], server: LiveServer, page: Onlooker, token: str) -> None:
    one, two = pair
    two.run("c.count = 4; c.flush(); c.seen.clear()")
    one.run("c.close()")
    one.run(
        f"""
found = []
async def link():
    linked = await made(Counter).link_to_async({token!r})
    found.append([linked.count, linked.linked_to])
    linked.count += 1
    return linked
by_task = await asyncio.create_task(link())
by_task.flush()

def link_in_thread():
    linked = made(Counter).link_to({token!r})
    found.append([linked.count, linked.linked_to])
    linked.count += 1
    linked.flush()
thread = threading.Thread(target=link_in_thread)
thread.start()
thread.join(20)
"""
    )
    assert one.value("found") == [[4, token], [5, token]]
    page.shows(count=6)
    assert page.steps("count") == [4, 5, 6]
    # The kernel may have been asked in between, or not.
    comes_to(two, "[c.count, c.seen[-1]]", [6, ["count", 6, "remote"]])
    assert seq(server, token) == 4


def test_s76_rooms_named_after_their_members_hang_nobody(trio: Trio, server: LiveServer, token: str) -> None:
    """To oneself, each to the other, and once more to where one is, also from within a callback."""
    one, two = trio.one, trio.two
    for kernel in (one, two):
        kernel.run(f"c = made(Counter, {token!r}); me = c._bridge.connection.welcome.member")
    mine, theirs = one.value("me"), two.value("me")
    for kernel, name in ((one, mine), (one, one.id), (one, theirs), (two, mine)):
        kernel.run(f"c.link_to({name!r}, timeout=10); c.count += 1; c.flush()")
        assert kernel.value("[c.linked_to, len(c.linked_from)]") == [name, 1]
    # Each is in the room named after the other.
    assert [room(server, name)["states"]["Counter"]["values"]["count"] for name in (mine, theirs, one.id)] == [2, 1, 1]
    one.run(
        f"""
def again(change):
    for _ in range(3):
        c.link_to({theirs!r}, timeout=10)
    c.other = 1
c.observe(again, "count")
c.seen.clear()
c.count += 1
c.flush()
"""
    )
    assert one.value("[c.linked_to, c.count, c.other, len(c.linked_from)]") == [theirs, 2, 1, 1]
    assert seq(server, theirs) == 4
    two.run(f"c.link_to({theirs!r}, timeout=10)")
    assert two.value("[c.count, c.other]") == [2, 1]
    comes_to(one, "len(c.linked_from)", 2)


def test_s77_a_subclass_shares_what_it_inherits(trio: Trio, server: LiveServer, onlookers: Onlookers, token: str) -> None:
    one, two = trio.one, trio.two
    for kernel in (one, two):
        kernel.run(f"c = made(Special, {token!r}); base = made(Counter, {token!r})")
    page = onlookers.page(token, "Special")
    one.run("c.count, c.own, c._salt, c.draft = 1, 2, 'inherited', 'mine'; c.flush()")
    comes_to(two, "c.seen", [["count", 1, "remote"], ["own", 2, "remote"], ["_salt", "inherited", "remote"]])
    page.shows(count=1, own=2)
    two.run("c.count = 3; c.flush()")
    page.shows(count=3)
    comes_to(one, "c.count", 3)
    # The base is a state of its own in the same room.
    assert one.value("[base.count, base._salt]") == [0, "pepper"]
    two.run("base.count = 9; base.flush()")
    comes_to(one, "[base.count, c.count]", [9, 3])
    assert page.steps("count") == [1, 3]
    assert room(server, token)["states"]["Special"]["values"]["_salt"] == "inherited"
    assert sorted(room(server, token)["states"]) == ["Counter", "Special"]
    one.run("c.unlink()")
    assert one.value("[c.count, c.own, c._salt, base.linked_to]") == [0, 0, "pepper", token]


def test_s78_no_two_tokens_are_one_room(trio: Trio, server: LiveServer, token: str) -> None:
    one, two = trio.one, trio.two
    names = ["a_b", "a-b", "a/b", "A_b", "../a_b", "a b", "a%2Fb", "é", "e\u0301", "𝒳" * 100, "?#&", "'\"\\", ".a"]
    names = [token[: 128 - len(name) - 1] + name if len(name) < 20 else name + token[:20] for name in names]
    names += ["x" * 127 + "y", "x" * 128, "a_b", "a-b"]
    one.run(f"mine = [made(Counter, name) for name in {names!r}]")
    one.run("for number, state in enumerate(mine): state.count = number + 1; state.flush()")
    two.run(f"theirs = [made(Counter, name) for name in {names!r}]")
    assert two.value("[state.count for state in theirs]") == list(range(1, len(names) + 1))
    assert two.value("[state.linked_to for state in theirs]") == names
    assert set(names) <= set(tokens(server))
    for name in names:
        answer = ask(room_url(server, "rooms", name), headers=server.headers)
        assert (answer.status, answer.body["token"], answer.body["seq"]) == (200, name, 2)
    before = tokens(server)
    one.run(
        """
rejected = []
for wrong in ("", " a", "a ", "x" * 129, ".", "..", "a\\nb", "a\\u202eb", "\\ud800", "a\\u00ad"):
    state = made(Counter, who="mine")
    try:
        state.link_to(wrong)
    except InvalidToken:
        rejected.append([state.linked_to, state.who, state.seen])
"""
    )
    assert one.value("rejected") == [[None, "mine", []]] * 10
    assert tokens(server) == before


def test_s79_the_list_of_members_is_true(pair: tuple[Kernel, Kernel], server: LiveServer, page: Onlooker, token: str) -> None:
    """A kernel that is killed is gone from everyone's, long before its time is over; a page that is loaded again is not."""
    one, _ = pair
    one.run("came, went = [], []; handle = c.room; ends = [handle.on_join(came.append), handle.on_leave(went.append)]")
    with Kernel(server) as doomed:
        doomed.run(SETUP)
        doomed.run(f"c = made(Counter, {token!r})")
        for kernel in pair:
            comes_to(kernel, "len(c.linked_from)", 4)
        os.kill(doomed.value("os.getpid()"), signal.SIGKILL)
        killed = time.monotonic()
        for kernel in pair:
            comes_to(kernel, "[member.kernel_id for member in c.linked_from].count(" + repr(doomed.id) + ")", 0)
        assert time.monotonic() - killed < 2.0
    page.barrier()
    assert doomed.id not in [member.kernel_id for member in page.members]
    comes_to(one, "[[member.kernel_id for member in told] for told in (came, went)]", [[doomed.id], [doomed.id]])
    me = page.peer.welcome
    page.refresh()
    assert page.peer.welcome is not None
    assert me is not None
    assert page.peer.welcome.member == me.member
    one.run("c.count = 1; c.flush()")
    page.shows(count=1)
    assert one.value("[len(came), len(went), len(c.linked_from)]") == [1, 1, 3]
    assert [member.state for member in page.members] == ["live"] * 3


def test_s80_a_message_that_is_missed_is_noticed(
    pair: tuple[Kernel, Kernel], server: LiveServer, page: Onlooker, token: str
) -> None:
    one, two = pair
    two.run(
        """
from sharedwidgets.core.protocol import Entries
connection = c._bridge.connection
take, dropped, asked = connection._feed, [], []
say = connection._send

def lossy(message):
    if isinstance(message, Entries) and not dropped:
        dropped.append(message.last)
        return
    take(message)

async def noted(socket, message):
    asked.append(type(message).__name__)
    await say(socket, message)

connection._feed, connection._send = lossy, noted
sockets = connection.welcome
c.seen.clear()
"""
    )
    one.run("c.count = 1; c.flush()")
    comes_to(two, "[dropped, c.count]", [[2], 0])
    one.run("c.other = 2; c.flush()")
    comes_to(two, "[c.count, c.other]", [1, 2])
    assert two.value("[asked, connection.welcome is sockets]") == [["Resume"], True]
    assert two.value("sorted([name, new] for name, new, origin in c.seen)") == [["count", 1], ["other", 2]]
    two.run("c.count += 1; c.flush()")
    page.shows(count=2)
    assert page.steps("count") == [1, 2]
    assert seq(server, token) == 4
    two.run("del connection._feed, connection._send")


# --- a class that is edited


FIT = """
class Fit(SharedState{options}):
    loss = t.{kind}(0{bounds})
    {name} = t.Unicode("")
    {more}

fit = Fit().link_to({token!r})
"""


def edited(token: str, **changed: str) -> str:
    """The cell of a class, with what somebody made of it."""
    return FIT.format(
        token=token, **{"kind": "Int", "bounds": ", max=10", "name": "note", "more": "", "options": "", **changed}
    )


def test_h20_a_cell_with_an_edited_class_is_run_again_by_the_only_kernel(trio: Trio, server: LiveServer, token: str) -> None:
    """What fits the newer class is kept, what does not begins at its default, and the object that was is closed."""
    one = trio.one

    def again(**changed: str) -> dict[str, Any]:
        one.run_cell("fit", edited(token, **changed))
        (member,) = room(server, token)["members"]
        assert member["states"] == ["Fit"]
        values: dict[str, Any] = room(server, token)["states"]["Fit"]["values"]
        shown = one.value("{name: getattr(fit, name) for name in Fit.class_own_traits()}")
        assert shown.items() <= values.items()
        return values

    assert again() == {"loss": 0, "note": ""}
    one.run("fit.loss, fit.note = 7, 'seven'; fit.flush()")
    # Another kind, that takes the value as it is.
    assert again(kind="Float") == {"loss": 7, "note": "seven"}
    # Wider bounds, and what they let in.
    assert again(kind="Float", bounds=", max=100") == {"loss": 7, "note": "seven"}
    one.run("fit.loss = 70.5; fit.flush()")
    # Another name begins anew, and so does one that is added; what had the older name stays in the room.
    named = {"kind": "Float", "bounds": ", max=100", "name": "remark", "more": "steps = t.Int(3)"}
    assert again(**named) == {"loss": 70.5, "note": "seven", "remark": "", "steps": 3}
    one.run("fit.remark, fit.steps = 'new', 4; fit.flush()")
    # Back to what it was: 70.5 is no int up to 10.
    assert again() == {"loss": 0, "note": "seven", "remark": "new", "steps": 4}
    assert one.value("[fit.loss, fit.note, fit.has_trait('remark')]") == [0, "seven", False]


def test_h20_a_class_that_lives_in_another_kernel_too_is_not_replaced(trio: Trio, server: LiveServer, token: str) -> None:
    """The error names the trait and both sides; with a name of its own the newer one has a state beside the older."""
    one, two = trio.one, trio.two
    one.run_cell("fit", edited(token))
    two.run_cell("fit", edited(token))
    one.run("fit.loss = 7; fit.flush()")
    comes_to(two, "fit.loss", 7)
    before = room(server, token)
    for changed, theirs in (({"kind": "Float"}, "float of at most 10 in"), ({"bounds": ", max=100"}, "int of at most 100 in")):
        with pytest.raises(AssertionError, match="SchemaConflict") as refused:
            one.run(edited(token, **changed))
        for said in ("Fit.loss", "int of at most 10 in", theirs, "state_name"):
            assert said in str(refused.value)
    after = room(server, token)
    assert (after["states"], after["seq"]) == (before["states"], before["seq"])
    # The way out that it names.
    one.run_cell("fit", edited(token, kind="Float", options=", state_name='Fit2'"))
    one.run("fit.loss = 0.5; fit.flush()")
    two.run("fit.loss = 8; fit.flush()")
    values = {name: state["values"] for name, state in room(server, token)["states"].items()}
    assert values == {"Fit": {"loss": 8, "note": ""}, "Fit2": {"loss": 0.5, "note": ""}}
    assert (one.value("fit.loss"), two.value("fit.loss")) == (0.5, 8)
    # A trait more is no conflict.
    one.run_cell("fit", edited(token, more="steps = t.Int(3)"))
    assert one.value("[fit.loss, fit.steps]") == [8, 3]
