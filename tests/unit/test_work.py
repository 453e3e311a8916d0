"""`@background` and its loop: begun from anywhere, heard of, ended with its object and with the process."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError
from typing import Any

import ipywidgets
import pytest
import traitlets as t

from sharedwidgets import SharedState, background, causes, reacts, tasks
from sharedwidgets.causes import Cause
from sharedwidgets.errors import WrongThread
from sharedwidgets.work import Work
from support.scripts import eventually

place: contextvars.ContextVar[str] = contextvars.ContextVar("place", default="nowhere")


class Worker(SharedState):
    n = t.Int(0)

    def __init__(self, **how: Any) -> None:
        self.gate = threading.Event()
        self.begun = threading.Event()
        super().__init__(**how)

    @background
    async def add(self, by: int = 1) -> int:
        """Add."""
        self.n += by
        return self.n

    @background
    async def where(self) -> tuple[str, str]:
        return threading.current_thread().name, place.get()

    @background
    async def wait(self) -> str:
        self.begun.set()
        while not self.gate.is_set():  # noqa: ASYNC110 - it is set by another thread
            await asyncio.sleep(0.005)
        return "through"

    @background
    async def fail(self) -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    @background
    async def wait_for_itself(self) -> Any:
        return self.add().result(5)

    @background
    async def await_another(self) -> int:
        return await self.add(10)

    @background
    async def close_itself(self) -> str:
        self.close()
        await asyncio.sleep(0)
        return "closed"

    @background
    async def leave(self) -> None:
        sys.exit(3)


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    ipywidgets.Widget.close_all()


def test_a_call_begins_it_and_returns_at_once() -> None:
    worker = Worker()
    work = worker.wait()
    assert isinstance(work, Work)
    assert worker.begun.wait(5)
    assert (work.done(), repr(work)) == (False, "<Work Worker.wait, runs>")
    with pytest.raises(TimeoutError, match=r"Worker\.wait is not done after 0\.01 s; it goes on"):
        work.result(0.01)
    worker.gate.set()
    assert work.result(5) == "through"
    assert (work.done(), work.cancelled(), repr(work)) == (True, False, "<Work Worker.wait, is done>")
    assert worker.add(by=3).result(5) == 3
    assert Worker.add.__doc__ == "Add."


def test_it_runs_on_one_thread_in_the_context_of_its_caller() -> None:
    worker = Worker()
    token = place.set("here")
    try:
        assert worker.where().result(5) == ("sharedwidgets-background", "here")
    finally:
        place.reset(token)
    assert worker.where().result(5)[1] == "nowhere"
    assert [thread.name for thread in threading.enumerate()].count("sharedwidgets-background") == 1


def test_it_is_part_of_the_chain_that_began_it() -> None:
    """A reaction that has the work done beside is a reaction all the same."""

    @background
    async def depth() -> int:
        await asyncio.sleep(0)
        return causes.depth()

    with causes.reacting(Cause(3, "S", "n", None)):
        work = depth()
    assert (work.result(5), depth().result(5)) == (3, 0)


def test_a_reaction_may_be_begun_in_the_background() -> None:
    class Slow(SharedState):
        n = t.Int(0)
        twice = t.Int(0)

        @reacts("n", leader=True)
        @background
        async def double(self, change: Any) -> None:
            await asyncio.sleep(0)
            self.twice = 2 * change.new

    slow = Slow()
    came = threading.Event()
    slow.observe(lambda change: came.set(), "twice")
    slow.n = 4
    assert came.wait(5)
    assert slow.twice == 8


def test_a_button_begins_it() -> None:
    worker, button = Worker(), ipywidgets.Button()
    came = threading.Event()
    worker.observe(lambda change: came.set(), "n")
    button.on_click(lambda _: worker.add())
    button.click()
    assert came.wait(5)
    assert worker.n == 1


@pytest.mark.asyncio
async def test_it_may_be_awaited_in_any_loop() -> None:
    worker = Worker()
    assert await worker.add(2) == 2
    assert await worker.await_another() == 12
    with pytest.raises(ValueError, match="no"):
        await worker.fail()
    waiting = worker.wait()
    with pytest.raises((asyncio.TimeoutError, TimeoutError)):
        await asyncio.wait_for(waiting, 0.02)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert waiting.cancelled()


def test_it_cannot_wait_for_itself() -> None:
    with pytest.raises(WrongThread, match=r"Worker\.add runs on this very thread.*await it"):
        Worker().wait_for_itself().result(5)


class Circle(SharedState):
    """Awaits what it is given; `both` holds two until each has the other."""

    def __init__(self, **how: Any) -> None:
        self.works: list[Work[Any]] = []
        self.both = threading.Event()
        super().__init__(**how)

    @background
    async def first(self) -> Any:
        return await self.other(-1)

    @background
    async def second(self) -> Any:
        return await self.other(0)

    async def other(self, which: int) -> Any:
        await asyncio.to_thread(self.both.wait, 5)
        return await self.works[which]


def test_what_awaits_itself_raises(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr("sharedwidgets.work.ASK_SECONDS", 0.0)
    circle = Circle()
    circle.works.append(circle.first())
    circle.both.set()
    # Nobody else has asked, so it is said.
    eventually(lambda: caplog.records)
    assert [record.getMessage() for record in caplog.records] == ["Circle.first raised, and nobody has asked for its outcome"]
    with pytest.raises(RuntimeError, match=r"^Circle\.first awaits itself, and would wait for ever: leave out this await$"):
        circle.works[0].result(5)


def test_what_awaits_what_awaits_it_raises_in_one_of_them() -> None:
    circle = Circle()
    circle.works += [circle.first(), circle.second()]
    circle.both.set()
    for work in circle.works:
        # The one that came last raises, and the other hears it from that one.
        with pytest.raises(RuntimeError, match=r"(first → Circle\.second|second → Circle\.first) await each other"):
            work.result(5)


def test_a_task_it_leaves_behind_may_await_it() -> None:
    class Parent(SharedState):
        @background
        async def begin(self, named: threading.Event) -> asyncio.Task[int]:
            return asyncio.create_task(self.look(named))

        @background
        async def collect(self, child: asyncio.Task[int]) -> int:
            return await child

        async def look(self, named: threading.Event) -> int:
            await asyncio.to_thread(named.wait, 5)
            await self.work
            return 4

    parent, named = Parent(), threading.Event()
    parent.work = parent.begin(named)
    named.set()
    assert parent.collect(parent.work.result(5)).result(5) == 4


def test_one_it_has_awaited_may_await_it_later() -> None:
    """A circle is one only while both wait."""

    class Chain(SharedState):
        @background
        async def first(self) -> str:
            await self.quick()
            return "first"

        @background
        async def quick(self) -> None: ...

        @background
        async def last(self) -> str:
            return await self.work

    chain = Chain()
    chain.work = chain.first()
    assert chain.last().result(5) == "first"


def test_cancelled_it_ends_at_its_next_await() -> None:
    worker = Worker()
    work = worker.wait()
    assert worker.begun.wait(5)
    assert work.cancel()
    # It is done when it has ended, as a task is.
    with pytest.raises(CancelledError):
        work.result(5)
    assert (work.done(), work.cancelled(), work.cancel()) == (True, True, False)
    assert repr(work) == "<Work Worker.wait, was cancelled>"
    assert worker.add().result(5) == 1


def test_what_nobody_asks_for_is_logged_by_name_and_once(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr("sharedwidgets.work.ASK_SECONDS", 0.0)
    Worker().fail()
    eventually(lambda: caplog.records)
    (record,) = caplog.records
    assert record.getMessage() == "Worker.fail raised, and nobody has asked for its outcome"
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


def test_what_is_asked_for_is_not_logged(caplog: pytest.LogCaptureFixture, monkeypatch: Any) -> None:
    """Also when it is asked for after it has failed, within the time for it."""
    monkeypatch.setattr("sharedwidgets.work.ASK_SECONDS", 0.2)
    worker = Worker()
    work = worker.fail()
    with pytest.raises(ValueError, match="no"):
        work.result(5)
    late = worker.fail()
    while not late.done():
        time.sleep(0.001)
    with pytest.raises(ValueError, match="no"):
        late.result(5)
    tasks.start(asyncio.sleep(0.4)).result(5)
    assert caplog.records == []


def test_close_ends_what_the_object_has_begun_and_nothing_keeps_it() -> None:
    class Dropped:
        """What a widget is apart from ipywidgets, which has references of its own."""

        def __init__(self) -> None:
            self.begun = threading.Event()

        @background
        async def wait(self) -> None:
            self.begun.set()
            await asyncio.sleep(3600)

        @background
        async def quick(self) -> None:
            pass

    worker = Worker()
    work, other = worker.wait(), Worker().wait()
    assert worker.begun.wait(5)
    worker.close()
    with pytest.raises(CancelledError):
        work.result(5)
    assert work.cancelled()
    assert not other.done()
    other.cancel()
    assert Worker().close_itself().result(5) == "closed"

    dropped = Dropped()
    waiting = dropped.wait()
    assert dropped.begun.wait(5)
    dropped.quick().result(5)
    waiting.cancel()
    seen = weakref.ref(dropped)
    del dropped, waiting
    for _ in range(200):
        tasks.start(asyncio.sleep(0)).result(5)
        gc.collect()
        if seen() is None:
            return
        time.sleep(0.01)
    raise AssertionError("something keeps it")


def test_only_what_is_made_with_async_def() -> None:
    with pytest.raises(TypeError, match=r"@background is for methods made with async def, and .*plain is none"):

        class Wrong(SharedState):
            @background  # type: ignore[arg-type]
            def plain(self) -> None: ...


def test_what_leaves_the_process_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    worker = Worker()
    with pytest.raises(SystemExit):
        worker.leave().result(5)
    assert worker.add().result(5) == 1


def test_a_plain_function_may_be_begun_too() -> None:
    @background
    async def twice(n: int) -> int:
        return 2 * n

    assert twice(4).result(5) == 8


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_a_loop_of_its_own() -> None:
    code = """
import os, sys, warnings
warnings.simplefilter("ignore")
from sharedwidgets import background
@background
async def pid(): return os.getpid()
assert pid().result(5) == os.getpid()
child = os.fork()
if child == 0:
    os._exit(0 if pid().result(5) == os.getpid() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert told(code) == ("0", "")


def test_a_process_ends_in_the_middle_of_it_without_noise() -> None:
    code = """
import asyncio, threading
from sharedwidgets import background
begun = threading.Event()
@background
async def wait():
    begun.set()
    try:
        await asyncio.sleep(3600)
    finally:
        print("tidied up")
wait()
begun.wait(5)
"""
    assert told(code) == ("tidied up", "")


def test_what_failed_last_is_told_at_the_end() -> None:
    code = """
from sharedwidgets import background
@background
async def fail(): raise ValueError("the last")
work = fail()
while not work.done(): pass
"""
    said, errors = told(code)
    assert said == ""
    assert "fail raised, and nobody has asked for its outcome" in errors
    assert errors.strip().endswith("ValueError: the last")


def told(code: str) -> tuple[str, str]:
    """What a fresh interpreter prints to both."""
    answer = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip(), answer.stderr
