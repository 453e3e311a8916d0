"""`SharedState` in real kernels, of the newest and of the oldest ipykernel we promise to work with.

The kernels are started by the server, so that they are told where it is. "Far" is a member in the test's own process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import traitlets as t

import sharedwidgets.connection
from sharedwidgets import SharedState
from sharedwidgets_server.testing import LiveServer
from support.kernels import PYTHONS, Kernel, specs
from support.scripts import Heard, eventually, seq

SETUP = """
import asyncio, json, os, signal, threading, time
import traitlets as t
import sharedwidgets, sharedwidgets.delivery
from sharedwidgets import SharedState

class Counter(SharedState):
    count = t.Int(0)
    other = t.Int(0)
    text = t.Unicode("")
    tags = t.Dict()
    _salt = t.Unicode("s")
    draft = t.Unicode("").tag(shared=False)

def behind(seq):
    '''Keep the main thread busy until the replica has this entry, which the traits do not show.'''
    deadline = time.monotonic() + 20
    while c._bridge.session.replica.seq < seq:
        assert time.monotonic() < deadline

def linked(token, **traits):
    '''A linked Counter, and what its observers hear.'''
    global c, seen
    if "c" in globals():
        c.close()
    c, seen = Counter(**traits), []
    c.observe(lambda change: seen.append([threading.current_thread().name, change.name, change.new, change.origin]), t.All)
    c.link_to(token)
    seen.clear()
    return c
"""


class Counter(SharedState):
    count = t.Int(0)
    other = t.Int(0)
    text = t.Unicode("")
    tags = t.Dict()
    _salt = t.Unicode("s")
    draft = t.Unicode("").tag(shared=False)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("server")) as running:
        specs(running)
        yield running
        for connection in list(sharedwidgets.connection._shared.values()):
            connection.close()


@pytest.fixture(scope="module", params=PYTHONS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def kernel(server: LiveServer, kind: str) -> Iterator[Kernel]:
    with Kernel(server, kind) as running:
        running.run(SETUP)
        yield running


@pytest.fixture
def far(server: LiveServer, token: str) -> Counter:
    return Counter().link_to(token, server=server.url, credential=server.token)


def told(server: LiveServer, token: str) -> list[dict[str, Any]]:
    members: list[dict[str, Any]] = server.ask("GET", f"sharedwidgets/api/rooms/{token}")["members"]
    return members


def write(state: Counter, **traits: Any) -> int:
    """Write in one entry and wait for its number."""
    with state.transaction():
        for name, value in traits.items():
            setattr(state, name, value)
    state.flush()
    assert state.room is not None
    return state.room.seq


def test_the_environment_is_the_one_it_says(kernel: Kernel, kind: str) -> None:
    kernel.run("import ipykernel")
    version = tuple(map(int, kernel.value("ipykernel.__version__").split(".")[:2]))
    assert version >= (7, 0) if kind == "newest" else version == (6, 31)


def test_a_kernel_finds_its_server_and_is_listed_as_what_it_is(
    kernel: Kernel, server: LiveServer, far: Counter, token: str
) -> None:
    kernel.run(f"linked({token!r}, count=5)")
    assert kernel.value("[c.linked_to, c.count]") == [token, 0]
    assert far.wait_until(lambda: len(far.linked_from) == 2, 10)
    me = next(member for member in far.linked_from if member.kind == "kernel")
    assert (me.kernel_id, me.states, me.state) == (kernel.id, ("Counter",), "live")
    kernel.run("c.count = 3; c.flush()")
    assert far.wait_until(lambda: far.count == 3, 10)
    last = far.last_change("count")
    assert last is not None
    assert (last.actor.kind, last.actor.kernel_id, last.actor.id) == ("kernel", kernel.id, me.id)
    assert seq(server, token) == 2
    assert "sw1-" not in json.dumps(kernel.value("c.get_state()"))


def test_observers_run_on_the_main_thread_between_cells(kernel: Kernel, server: LiveServer, far: Counter, token: str) -> None:
    kernel.run(f"linked({token!r})")
    write(far, count=1)
    eventually(lambda: kernel.value("seen") == [["MainThread", "count", 1, "remote"]])
    assert seq(server, token) == 2


def test_output_of_observers_goes_to_the_cell_that_linked(kernel: Kernel, far: Counter, token: str) -> None:
    def ran(code: str) -> str:
        """Run a cell, all of whose messages are read by the test."""
        cell = kernel.start(code)
        kernel.finish(cell)
        # The word that an earlier one is over may still be on its way.
        of, state = "", ""
        while (of, state) != (cell, "idle"):
            message = kernel.client.get_iopub_msg(timeout=10)
            of, state = message["parent_header"].get("msg_id"), message["content"].get("execution_state")
        return cell

    ran(f"linked({token!r})")
    linking = ran(f"c.observe(lambda change: print('heard', change.new), 'count'); c.unlink(); c.link_to({token!r}); None")
    other = ran("1 + 1")
    write(far, count=7)
    while (message := kernel.client.get_iopub_msg(timeout=10))["msg_type"] != "stream":
        pass
    assert message["content"]["text"].strip() == "heard 7"
    assert message["parent_header"]["msg_id"] == linking
    assert message["parent_header"]["msg_id"] != other
    kernel.run("pass")


def test_a_busy_cell_sees_what_it_pulls(kernel: Kernel, server: LiveServer, far: Counter, token: str) -> None:
    kernel.run(f"linked({token!r})")
    cell = kernel.start(
        """
found = []
c.other = 1                      # leaves at once, though the cell goes on
behind(22)
found.append([c.count, len(seen)])
c.pull()
found.append([c.count, [item[1:] for item in seen if item[1] == "count"]])
for step in c.live(range(3)):
    if step == 0:
        c.other = 2
        behind(24)
    found.append(c.count)
"""
    )
    assert far.wait_until(lambda: far.other == 1, 10)
    for number in range(1, 21):
        last = write(far, count=number)
    assert last == 22
    assert far.wait_until(lambda: far.other == 2, 10)
    assert write(far, count=50) == 24
    kernel.finish(cell)
    # Twenty values, one event: the last of them. In `live` the step during which it came still shows the value before.
    assert kernel.value("found") == [[0, 1], [20, [["count", 20, "remote"]]], 20, 50, 50]
    assert seq(server, token) == 24


def test_what_a_busy_cell_did_not_pull_comes_when_it_ends(kernel: Kernel, server: LiveServer, far: Counter, token: str) -> None:
    kernel.run(f"linked({token!r})")
    cell = kernel.start("c.other = 1; behind(12); found = [c.count, len(seen)]")
    assert far.wait_until(lambda: far.other == 1, 10)
    for number in range(1, 11):
        write(far, count=number)
    kernel.finish(cell)
    assert kernel.value("found") == [0, 1]
    eventually(lambda: kernel.value("seen[1:]") == [["MainThread", "count", 10, "remote"]])
    assert seq(server, token) == 12


def test_a_cell_that_awaits_sees_what_comes(kernel: Kernel, server: LiveServer, far: Counter, token: str) -> None:
    kernel.run(f"linked({token!r})")
    cell = kernel.start(
        """
c.other = 1
change = await asyncio.wait_for(c.changed("count"), 20)
found = [[change.name, change.old, change.new, change.origin, change.actor.kind]]
c.other = 2
while c.count != 2:
    await asyncio.sleep(0.001)
c.other = 3
found.append([c.wait_until(lambda: c.count == 3, 20), c.wait_until(lambda: False, 0.01)])
"""
    )
    for number in (1, 2, 3):
        assert far.wait_until(lambda number=number: far.other == number, 10)  # type: ignore[misc]
        write(far, count=number)
    kernel.finish(cell)
    assert kernel.value("found") == [["count", 0, 1, "remote", "script"], [True, False]]
    assert seq(server, token) == 7


def test_link_to_async(kernel: Kernel, far: Counter, token: str) -> None:
    write(far, count=4)
    kernel.run(f"linked({token + '-other'!r}); got = await c.link_to_async({token!r})")
    assert kernel.value("[got is c, c.linked_to, c.count]") == [True, token, 4]


def test_running_a_cell_again_grows_neither_members_nor_sockets(
    kernel: Kernel, server: LiveServer, far: Counter, token: str
) -> None:
    for _ in range(3):
        kernel.run(f"again = Counter().link_to({token!r})")
    assert far.wait_until(lambda: len(far.linked_from) == 2, 10)
    assert len(told(server, token)) == 2
    assert kernel.value("len(sharedwidgets.connection._shared)") == 1
    assert kernel.value("[thread.name for thread in threading.enumerate()].count('sharedwidgets-io')") == 1
    kernel.run("[state.close() for state in list(Counter.widgets.values()) if isinstance(state, Counter)]; None")
    eventually(lambda: len(told(server, token)) == 1)


AGAIN = """
c = Counter()
c.link_to({token!r})
b = bind((c, 'count'), (slider, 'value'))
c.count = {number}
"""
MINE = "sorted(type(item).__name__ for item in w.Widget.widgets.values())"
SLIDER = ["IntSlider", "Layout", "SliderStyle"]


def test_what_earlier_runs_of_a_cell_made_is_closed(kernel: Kernel, server: LiveServer, far: Counter, token: str) -> None:
    """In JupyterLab, which says which cell it runs: also models stay as few, and nobody sees the kernel leave."""
    kernel.run("import ipywidgets as w\nfrom sharedwidgets.binding import Binding, bind\nw.Widget.close_all()")
    kernel.run("slider = w.IntSlider()")
    kernel.run_cell("one", AGAIN.format(token=token, number=0))
    kernel.run_cell("two", f"first, d = (c, b), Counter().link_to({token!r})")
    assert far.wait_until(lambda: len(far.linked_from) == 2, 10)
    states = [[member["states"] for member in told(server, token)]]
    left: list[Any] = []
    far.room.on_leave(left.append)  # type: ignore[union-attr]
    for number in range(1, 21):
        kernel.run_cell("one", AGAIN.format(token=token, number=number))
        states.append([member["states"] for member in told(server, token)])
    assert states == [states[0]] * 21
    assert left == []
    assert kernel.value(MINE) == sorted(["Binding", "Counter", "Layout", "Counter", "Layout", *SLIDER])
    assert kernel.value("[state.linked_to for state in (first[0], c, d)]") == [None, token, token]
    assert kernel.value("[first[1].comm is None, b.comm is None]") == [True, False]


def test_handles_that_earlier_runs_of_a_cell_made_are_closed_and_call_nobody(
    kernel: Kernel, server: LiveServer, far: Counter, token: str
) -> None:
    kernel.run("from sharedwidgets import connect\njoined, noticed = [], []")
    cell = f"""
room = connect({token!r}); room.on_join(joined.append)
c = Counter().link_to({token!r}); c.room.on_join(noticed.append)
"""
    uses = "[room._session.users, len(room._session.listeners), len(room._session.linked)]"
    kernel.run_cell("one", cell)
    first = kernel.value(uses)
    for _ in range(20):
        kernel.run_cell("one", cell)
    # What is closed is let go of on the thread of the connection.
    eventually(lambda: kernel.value(uses) == first)
    assert kernel.value("[room.link_state, c.linked_to]") == ["live", token]
    far.unlink()
    eventually(lambda: len(told(server, token)) == 1)
    far.link_to(token, server=server.url, credential=server.token)
    eventually(lambda: kernel.value("[len(joined), len(noticed)]") == [1, 1])
    kernel.run("room.pull(); c.room.pull(); c.pull()")
    assert kernel.value("[len(joined), len(noticed)]") == [1, 1]


def test_a_run_that_fails_takes_the_place_of_the_one_before(kernel: Kernel, token: str) -> None:
    kernel.run("import ipywidgets as w\nfrom sharedwidgets.binding import Binding, bind\nw.Widget.close_all()")
    kernel.run_cell("one", f"c = Counter().link_to({token!r})")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        kernel.run_cell("one", f"c = Counter().link_to({token!r}); 1 / 0")
    assert kernel.value(MINE) == ["Counter", "Layout"]
    # A run that makes nothing closes nothing: what it made before may be in use.
    kernel.run_cell("one", "c.count = 5")
    assert kernel.value("[c.linked_to, c.count]") == [token, 5]


# --- hard cases


def test_h01_the_shown_value_is_a_write_when_the_room_has_moved_on(
    kernel: Kernel, server: LiveServer, far: Counter, token: str
) -> None:
    kernel.run(f"linked({token!r})")
    cell = kernel.start("c.other = 1; behind(3); found = [c.count]; c.count = 0; c.pull(); found.append(c.count); c.flush()")
    assert far.wait_until(lambda: far.other == 1, 10)
    write(far, count=9)
    kernel.finish(cell)
    assert kernel.value("found") == [0, 0]
    assert far.wait_until(lambda: far.count == 0, 10)
    assert seq(server, token) == 4


def test_h02_a_dict_is_compared_with_what_the_cell_saw(kernel: Kernel, server: LiveServer, far: Counter, token: str) -> None:
    kernel.run(f"linked({token!r}); c.tags = {{'a': 1}}; c.flush()")
    assert far.wait_until(lambda: far.tags == {"a": 1}, 10)
    cell = kernel.start("c.other = 1; behind(4); c.tags = {**c.tags, 'c': 3}; c.flush()")
    assert far.wait_until(lambda: far.other == 1, 10)
    write(far, tags={"a": 1, "b": 2})
    kernel.finish(cell)
    everything = {"a": 1, "b": 2, "c": 3}
    assert far.wait_until(lambda: far.tags == everything, 10)
    eventually(lambda: kernel.value("c.tags") == everything)
    assert seq(server, token) == 5


def test_h03_a_pull_inside_a_hold_puts_nothing_in(kernel: Kernel, server: LiveServer, far: Counter, token: str) -> None:
    kernel.run(f"linked({token!r})")
    cell = kernel.start(
        """
with c.hold_trait_notifications():
    found = []
    c.other = 0
    marker = Counter().link_to(c.linked_to)
    marker.text = "busy"
    behind(3)
    c.pull()
    found.append(c.count)
c.pull()
found.append(c.count)
c.flush()
marker.close()
"""
    )
    assert far.wait_until(lambda: far.text == "busy", 10)
    write(far, count=9)
    kernel.finish(cell)
    assert kernel.value("found") == [0, 9]
    assert seq(server, token) == 3
    assert far.count == 9


def test_h04_flush_ends_though_own_sets_were_folded(kernel: Kernel, server: LiveServer, far: Counter, token: str) -> None:
    kernel.run(f"linked({token!r})\nfor number in range(1, 1001): c.count = number\nc.flush()")
    assert far.wait_until(lambda: far.count == 1000, 10)
    assert 2 <= seq(server, token) < 500


def test_h10_what_a_kernel_wrote_last_arrives(server: LiveServer, kind: str, far: Counter, token: str) -> None:
    with Kernel(server, kind) as ending:
        ending.run(SETUP)
        ending.run(f"linked({token!r})")
        ending.run("c.count = 7")
    assert far.wait_until(lambda: far.count == 7, 10)
    assert seq(server, token) == 2
    eventually(lambda: len(told(server, token)) == 1)


def test_h29_an_observer_between_cells_may_wait(kernel: Kernel, server: LiveServer, far: Counter, token: str) -> None:
    kernel.run(f"linked({token!r}); found = []")
    kernel.run(
        f"""
def wait(change):
    if change.new != 1: return
    c.other = 5
    c.flush()
    found.append(c.other)
    found.append(c.wait_until(lambda: c.text == "now", 20))
    found.append(c.link_to({token + "-next"!r}).count)
c.observe(wait, "count")
"""
    )
    write(far, count=1)
    assert far.wait_until(lambda: far.other == 5, 10)
    write(far, text="now")
    eventually(lambda: kernel.value("found") == [5, True, 0])
    assert kernel.value("c.linked_to") == token + "-next"
    assert seq(server, token) == 4


def test_h34_an_interrupt_in_the_middle_of_a_delivery_loses_no_event(kernel: Kernel, far: Counter, token: str) -> None:
    kernel.run(
        f"""
linked({token!r})
fired = []
for name in ("count", "other", "tags"):
    c.observe(lambda change: fired.append(change.name), name)
c.observe(lambda change: signal.raise_signal(signal.SIGINT), "other")
"""
    )
    cell = kernel.start(
        """
c.text = "busy"
behind(3)
try:
    c.pull()
except KeyboardInterrupt:
    found = list(fired)
"""
    )
    assert far.wait_until(lambda: far.text == "busy", 10)
    write(far, count=1, other=2, tags={"a": 1})
    kernel.finish(cell)
    assert kernel.value("found") == ["count", "other"]  # in the middle of it
    eventually(lambda: kernel.value("fired") == ["count", "other", "tags"])
    assert kernel.value("[c.count, c.other, c.tags]") == [1, 2, {"a": 1}]


def test_h07_a_forked_child_of_a_kernel_is_inert(kernel: Kernel, server: LiveServer, far: Counter, token: str) -> None:
    kernel.run(f"linked({token!r}, count=5); c.count = 1; c.flush()")
    kernel.run(
        """
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)
context = multiprocessing.get_context("fork")
def child(results):
    try:
        c.count = 2
        results.put("written")
    except sharedwidgets.errors.Forked:
        results.put([c.count, c.pull().count, c.linked_to])
    c.unlink()
    results.put(c.count)
results = context.SimpleQueue()
process = context.Process(target=child, args=(results,))
process.start()
found = [results.get(), results.get()]
process.join(10)
"""
    )
    assert kernel.value("[found, process.exitcode]") == [[[1, 1, token], 5], 0]
    kernel.run("c.count = 3; c.flush()")
    assert far.wait_until(lambda: far.count == 3, 10)
    assert write(far, count=4) == 4
    eventually(lambda: kernel.value("c.count") == 4)
    assert (len(far.linked_from), seq(server, token)) == (2, 4)


def test_a_kernel_that_is_restarted_comes_back_as_one_member(server: LiveServer, kind: str, far: Counter, token: str) -> None:
    with Kernel(server, kind) as kernel:
        kernel.run(SETUP)
        kernel.run(f"linked({token!r}); c.count = 1; c.flush()")
        server.ask("POST", f"api/kernels/{kernel.id}/restart")
        kernel.client.wait_for_ready(timeout=30)
        kernel.run(SETUP)
        kernel.run(f"linked({token!r})")
        assert kernel.value("c.count") == 1
        kernel.run("c.count += 1; c.flush()")
        assert far.wait_until(lambda: far.count == 2, 10)
        eventually(lambda: [member["kind"] for member in told(server, token)] == ["script", "kernel"])
        assert [member["kernel_id"] for member in told(server, token)][1] == kernel.id
    assert seq(server, token) == 3


# --- the comm is no second path


def test_the_kernel_sends_no_shared_value_by_comm(
    kernel: Kernel, server: LiveServer, kind: str, far: Counter, token: str
) -> None:
    messages: list[dict[str, Any]] = []
    with Kernel(server, kind) as other:
        other.run(SETUP)
        other.run(f"linked({token!r})")
        kernel.run(f"linked({token!r})")
        with kernel.listening(messages.append):
            other.run("for number in range(1, 51): c.count = number; c.flush()")
            eventually(lambda: kernel.value("c.count") == 50)
            kernel.run("c.other = 1; c.tags = {'a': 1}; c.draft = 'mine'; c.send_state('draft')")
            eventually(lambda: any("draft" in state for state in updates(messages)))
    shared = {"count", "other", "text", "tags", "_salt"}
    assert [state for state in updates(messages) if shared & set(state)] == []
    assert seq(server, token) == 53


def updates(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The states of the widget updates and echoes a kernel sent."""
    return [
        message["content"]["data"]["state"]
        for message in list(messages)
        if message["msg_type"] == "comm_msg" and message["content"]["data"].get("method") in ("update", "echo_update")
    ]


def test_a_late_comm_update_of_a_page_makes_no_write(kernel: Kernel, server: LiveServer, far: Counter, token: str) -> None:
    kernel.run(f"linked({token!r})")
    heard = Heard(far)
    comm = kernel.value("c.comm.comm_id")

    def page(state: dict[str, Any]) -> None:
        """What a page sends that was left behind while the kernel was busy."""
        data = {"method": "update", "state": state, "buffer_paths": []}
        kernel.client.shell_channel.send(kernel.client.session.msg("comm_msg", {"comm_id": comm, "data": data}))

    for number in range(50):
        page({"count": number, "text": "stale"})
    page({"count": 99, "draft": "by page"})
    eventually(lambda: kernel.value("c.draft") == "by page")
    kernel.run("c.flush()")
    assert kernel.value("[c.count, c.text]") == [0, ""]
    assert (seq(server, token), heard.changes) == (1, [])


# --- computed traits go to the own pages, by the comm, and nowhere else


def test_a_page_of_the_kernel_gets_what_is_computed(kernel: Kernel, server: LiveServer, far: Counter, token: str) -> None:
    kernel.run(f"""
from sharedwidgets import computed

class Computing(Counter, state_name="Counter"):
    @computed
    def double(self):
        return 2 * self.count

    @computed
    async def later(self):
        threads.append(threading.current_thread().name)
        count = self.count
        await asyncio.sleep(0)
        return [count, self.other]

    @computed
    def frame(self):
        return {{1, 2, self.count}}

threads = []
linked({token!r}).close()
c = Computing().link_to({token!r})
""")
    comm, first = kernel.value("c.comm.comm_id"), seq(server, token)
    messages: list[dict[str, Any]] = []

    def page(data: dict[str, Any]) -> None:
        kernel.client.shell_channel.send(kernel.client.session.msg("comm_msg", {"comm_id": comm, "data": data}))

    def got(name: str) -> list[Any]:
        return [state[name] for state in updates(messages) if name in state]

    with kernel.listening(messages.append):
        # A listener is there before the kernel knows of it.
        eventually(lambda: kernel.run("c.send_state('draft')") == "" and got("draft"))
        write(far, count=4, other=7)
        eventually(lambda: got("double") == [8] and got("later")[-1:] == [[4, 7]])
        page({"method": "update", "state": {"double": 99, "draft": "by page"}, "buffer_paths": []})
        eventually(lambda: kernel.value("c.draft") == "by page")
        eventually(lambda: got("double") == [8, 8])  # which puts the page right
        page({"method": "request_state"})
        eventually(lambda: got("double") == [8, 8, 8])
    assert kernel.value("[c.double, sorted(c.frame), c._link['computed']]") == [8, [1, 2, 4], ["double", "frame", "later"]]
    assert got("frame") == []
    assert kernel.value("sorted(set(threads))") == ["MainThread"]
    assert seq(server, token) == first + 1


# --- a busy cell is told


def test_a_busy_cell_with_unseen_news_is_warned_once(kernel: Kernel, kind: str, far: Counter, token: str) -> None:
    kernel.run(f"sharedwidgets.delivery.BUSY_SECONDS = 0.1; linked({token!r})")
    code = """
c.other += 1
deadline = time.monotonic() + 20
while c._bridge.delivery._later is not None or c._bridge.session.replica.seq < WANTED:
    assert time.monotonic() < deadline
"""
    cell = kernel.start(code.replace("WANTED", "3"))
    assert far.wait_until(lambda: far.other == 1, 10)
    write(far, count=1)
    kernel.finish(cell)
    while (message := kernel.client.get_iopub_msg(timeout=10))["msg_type"] != "stream":
        pass
    # ipykernel 6 gives what a thread prints to the cell that started the thread: to the first that linked.
    assert kind == "oldest" or message["parent_header"]["msg_id"] == cell
    assert message["content"]["name"] == "stderr"
    warning = message["content"]["text"]
    assert "Counter has news from its room that this busy cell has not seen for" in warning
    assert "pull()" in warning
    assert "live(...)" in warning
    cell = kernel.start(code.replace("WANTED", "5"))
    assert far.wait_until(lambda: far.other == 2, 10)
    write(far, count=2)
    kernel.finish(cell)
    kernel.run("sharedwidgets.delivery.BUSY_SECONDS = 10.0")
    assert kernel.value("[c.count, c._bridge.delivery._later]") == [2, None]
