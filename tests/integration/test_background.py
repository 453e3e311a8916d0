"""Tasks, threads and `@background` methods that lock, link and unlink, also while a cell keeps the kernel busy."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import traitlets as t

from sharedwidgets import Room, SharedState, background, connect
from sharedwidgets_server.testing import LiveServer
from support.kernels import Kernel, specs
from support.scripts import Heard, eventually, seq

CELL_SECONDS = 5


class Counter(SharedState):
    count = t.Int(0)
    other = t.Int(0)

    @background
    async def add(self, times: int) -> None:
        for _ in range(times):
            async with self.lock():
                before = self.count
                await asyncio.sleep(0)
                self.count = before + 1

    @background
    async def come_and_go(self, token: str, server: str, credential: str) -> list[Any]:
        seen: list[Any] = [self.linked_to]
        await self.link_to_async(token, server=server, credential=credential)
        seen.append((self.linked_to, self.count))
        self.unlink()
        seen.append((self.linked_to, self.count))
        # The one that blocks: nothing else of this thread is needed for it.
        self.link_to(token, server=server, credential=credential)
        self.other += 1
        self.flush()
        seen.append((self.linked_to, self.count, self.other))
        self.unlink(flush=True)
        seen.append(self.linked_to)
        return seen


@pytest.fixture
def far(server: LiveServer, token: str) -> Iterator[Room]:
    """A member that writes and looks, over a connection of its own."""
    with connect(token, server.url, server.token, delivery="thread") as room:
        room.define("Counter", count=0, other=0)
        yield room


def in_thread(task: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(task).result(30)


# --- in a script


def test_a_task_a_thread_and_a_background_method_lose_no_increment(server: LiveServer, far: Room, token: str) -> None:
    state = Counter().link_to(token, server=server.url, credential=server.credential)

    async def task() -> None:
        for _ in range(15):
            async with state.lock():
                before = state.count
                await asyncio.sleep(0)
                state.count = before + 1

    def thread() -> None:
        for _ in range(15):
            with state.lock():
                state.count += 1

    works = [state.add(15), state.add(15)]
    worker = threading.Thread(target=thread)
    worker.start()
    asyncio.run(task())
    worker.join(30)
    for work in works:
        work.result(30)
    state.flush()
    assert state.count == 60
    assert far.wait_until(lambda: far["Counter"]["count"] == 60, 10)
    # Made, and of each round a grant, a write and an end.
    assert seq(server, token) == 1 + 3 * 60


def test_a_thread_links_and_unlinks(server: LiveServer, far: Room, token: str) -> None:
    far["Counter"]["count"] = 7
    far.flush()
    state = Counter(count=3)

    def work() -> list[Any]:
        seen: list[Any] = []
        for _ in range(2):
            state.link_to(token, server=server.url, credential=server.credential)
            state.other += 1
            seen.append((state.linked_to, state.count))
            state.unlink(flush=True)
            seen.append((state.linked_to, state.count))
        return seen

    assert in_thread(work) == [(token, 7), (None, 3)] * 2
    assert far.wait_until(lambda: far["Counter"]["other"] == 2, 10)


def test_a_task_links_and_unlinks(server: LiveServer, far: Room, token: str) -> None:
    far["Counter"]["count"] = 7
    far.flush()
    state = Counter(count=3)

    async def work() -> list[Any]:
        seen: list[Any] = []
        for _ in range(2):
            await state.link_to_async(token, server=server.url, credential=server.credential)
            state.other += 1
            seen.append((state.linked_to, state.count))
            state.unlink()
            seen.append((state.linked_to, state.count))
        return seen

    assert asyncio.run(work()) == [(token, 7), (None, 3)] * 2
    assert far.wait_until(lambda: far["Counter"]["other"] == 2, 10)


def test_a_background_method_links_and_unlinks(server: LiveServer, far: Room, token: str) -> None:
    far["Counter"]["count"] = 7
    far.flush()
    state = Counter(count=3)
    expected = [None, (token, 7), (None, 3), (token, 7, 1), None]
    assert state.come_and_go(token, server.url, server.credential).result(30) == expected
    assert far.wait_until(lambda: far["Counter"]["other"] == 1, 10)
    assert (state.count, state.other) == (3, 0)


def test_what_is_linked_in_the_background_tells_its_observers_on_a_thread_of_their_own(
    server: LiveServer, far: Room, token: str
) -> None:
    """The loop in the background is not the program's, and an observer that blocks must not keep what runs there."""

    class Linking(Counter, state_name="Counter"):
        @background
        async def come(self) -> None:
            await self.link_to_async(token, server=server.url, credential=server.credential)

    state = Linking()
    heard = Heard(state, "count")
    state.come().result(30)
    assert heard.changes == []
    far["Counter"]["count"] = 5
    heard.wait()
    assert heard.threads == ["sharedwidgets-delivery"]


def test_an_interrupted_one_gives_its_lock_back(server: LiveServer, far: Room, token: str) -> None:
    class Holding(Counter, state_name="Counter"):
        @background
        async def hold(self, held: threading.Event) -> None:
            async with self.lock():
                held.set()
                await asyncio.sleep(3600)

    state = Holding().link_to(token, server=server.url, credential=server.credential)
    held = threading.Event()
    work = state.hold(held)
    assert held.wait(10)
    assert state.locked_by is not None
    work.cancel()
    eventually(lambda: state.locked_by is None)
    with state.lock(timeout=5):
        state.count = 1


# --- in kernels

KERNEL = """
import asyncio, threading, time
import ipywidgets
import traitlets as t
from sharedwidgets import SharedState, background

class Counter(SharedState):
    count = t.Int(0)
    other = t.Int(0)
    private = t.Int(0).tag(shared=False)

    @background
    async def add(self, times):
        for _ in range(times):
            async with self.lock():
                before = self.count
                await asyncio.sleep(0)
                self.count = before + 1
        ended.append(time.monotonic())

    @background
    async def say(self, words):
        print(words)

    @background
    async def come_and_go(self, token):
        await self.link_to_async(token)
        self.unlink()
        self.link_to(token)
        ended.append(time.monotonic())

ended = []
button = ipywidgets.Button()
"""


@pytest.fixture(scope="module", params=["newest", "oldest"])
def kernel(server: LiveServer, request: pytest.FixtureRequest) -> Iterator[Kernel]:
    """Each has its own way to know where output goes."""
    specs(server)
    with Kernel(server, str(request.param)) as running:
        yield running


def test_a_background_method_works_while_a_cell_is_busy(kernel: Kernel, server: LiveServer, far: Room, token: str) -> None:
    """Begun by a button; meanwhile a thread of the same kernel and a task of another member count too."""
    kernel.run(f"{KERNEL}\nc = Counter().link_to({token!r})\nbutton.on_click(lambda b: c.add(20))")
    busy = kernel.start(
        f"""
button.click()
def work():
    for _ in range(20):
        with c.lock():
            c.count += 1
    ended.append(time.monotonic())
thread = threading.Thread(target=work)
thread.start()
began = time.monotonic()
time.sleep({CELL_SECONDS})
over = time.monotonic()
"""
    )
    state = Counter().link_to(token, server=server.url, credential=server.token)
    state.add(20).result(60)
    assert far.wait_until(lambda: far["Counter"]["count"] == 60, 60)
    kernel.finish(busy)
    kernel.run("thread.join(30)")
    assert kernel.value("[len(ended), all(began < moment < over for moment in ended)]") == [2, True]
    assert seq(server, token) == 1 + 3 * 60
    kernel.run("c.pull()")
    assert kernel.value("c.count") == 60


def test_a_background_method_of_a_kernel_links_while_a_cell_is_busy(kernel: Kernel, far: Room, token: str) -> None:
    kernel.run(KERNEL + "\nc = Counter(count=3)")
    far["Counter"]["count"] = 7
    far.flush()
    kernel.run(f"work = c.come_and_go({token!r}); time.sleep(1.5); over = time.monotonic()\nassert work.done(); work.result(0)")
    assert kernel.value("[len(ended), ended[0] < over, c.linked_to, c.count]") == [1, True, token, 7]


def test_a_task_and_a_thread_of_a_kernel_lock_and_link_too(kernel: Kernel, server: LiveServer, far: Room, token: str) -> None:
    kernel.run(KERNEL + "\nc = Counter(count=3)")
    kernel.run(
        f"""
async def task(number):
    for _ in range(10):
        async with c.lock():
            before = c.count
            await asyncio.sleep(0)
            c.count = before + 1

def thread():
    for _ in range(10):
        with c.lock():
            c.count += 1
    c.unlink(flush=True)
    ended.append([c.linked_to, c.count])
    c.link_to({token!r})
    ended.append([c.linked_to, c.count])

await c.link_to_async({token!r})
await asyncio.gather(task(1), task(2))
ended.append([c.linked_to, c.count])
worker = threading.Thread(target=thread)
worker.start()
worker.join(30)
c.unlink()
ended.append([c.linked_to, c.count])
"""
    )
    assert kernel.value("ended") == [[token, 20], [None, 3], [token, 30], [None, 3]]
    assert far.wait_until(lambda: far["Counter"]["count"] == 30, 10)
    assert seq(server, token) == 1 + 3 * 30


def test_its_output_goes_to_the_cell_that_began_it(kernel: Kernel, token: str) -> None:
    kernel.run(KERNEL + "\nc = Counter()")
    cell = kernel.start("work = c.say('from behind')")
    kernel.finish(cell)
    kernel.finish(kernel.start("work.result(10)"))
    while (message := kernel.client.get_iopub_msg(timeout=10))["msg_type"] != "stream":
        pass
    assert message["content"]["text"].strip() == "from behind"
    assert message["parent_header"]["msg_id"] == cell
    kernel.run("pass")


def test_a_slow_callback_of_one_kernel_keeps_nobody_else(kernel: Kernel, server: LiveServer, far: Room, token: str) -> None:
    """One is in a callback of its own for 5 s; what another writes meanwhile reaches a third, one by one."""
    with ExitStack() as stack:
        writer = stack.enter_context(Kernel(server))
        for one in (kernel, writer):
            one.run(f"{KERNEL}\nc = Counter().link_to({token!r})")
        slow = kernel.start(
            f"c.observe(lambda change: time.sleep({CELL_SECONDS}), 'private')\n"
            "c.other = 1\nc.private = 1\nover = time.monotonic()"
        )
        assert far.wait_until(lambda: far["Counter"]["other"] == 1, 10)
        came = [time.monotonic()]
        for number in range(1, 21):
            writer.run(f"c.count = {number}")
            assert far.wait_until(lambda number=number: far["Counter"]["count"] == number, 10)
            came.append(time.monotonic())
        kernel.finish(slow)
        assert len(came) == 1 + 20
        assert kernel.value("[c.count, c.private]") == [20, 1]
        # All of it while the callback ran; one clock for all processes of a machine.
        assert came[-1] < kernel.value("over")
    assert seq(server, token) == 1 + 1 + 20
