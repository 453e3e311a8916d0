"""On which thread news reach user code, how often, and what a main thread that is busy is told."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from sharedwidgets import delivery, host
from sharedwidgets.delivery import Delivery

where: contextvars.ContextVar[str] = contextvars.ContextVar("where", default="nowhere")


class Consumer:
    """Counts the calls of `run`, and on which thread and in which context they were."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.failing: list[BaseException] = []
        self.came = threading.Semaphore(0)

    def run(self) -> None:
        self.calls.append((threading.current_thread().name, where.get()))
        self.came.release()
        if self.failing:
            raise self.failing.pop()


class Timers:
    """Keeps what is to be looked at later until the test says so."""

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], None]]] = []

    def later(self, seconds: float, task: Callable[[], None]) -> None:
        self.due.append((seconds, task))

    def elapse(self) -> None:
        due, self.due = self.due, []
        for _, task in due:
            task()


@contextmanager
def main_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An asyncio loop that runs on a thread named main, as a kernel's does."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="main")
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
        loop.close()


def on(loop: asyncio.AbstractEventLoop, make: Callable[[], Delivery]) -> Delivery:
    async def there() -> Delivery:
        return make()

    return asyncio.run_coroutine_threadsafe(there(), loop).result(5)


def test_without_a_loop_news_come_on_a_thread_of_its_own() -> None:
    consumer = Consumer()
    token = where.set("made here")
    mine = Delivery(consumer.run, "main")
    where.reset(token)
    mine.ring()
    assert consumer.came.acquire(timeout=5)
    assert consumer.calls == [("sharedwidgets-delivery", "made here")]
    mine.close()


def test_with_a_loop_news_come_on_its_thread_in_the_context_of_the_maker() -> None:
    consumer = Consumer()
    with main_loop() as loop:

        def make() -> Delivery:
            where.set("in the cell")
            return Delivery(consumer.run, "main")

        mine = on(loop, make)
        mine.ring()
        assert consumer.came.acquire(timeout=5)
        given = contextvars.Context()
        other = on(loop, lambda: Delivery(consumer.run, "main", given))
        other.ring()
        assert consumer.came.acquire(timeout=5)
    assert consumer.calls == [("main", "in the cell"), ("main", "nowhere")]


def test_thread_mode_leaves_the_loop_alone() -> None:
    consumer = Consumer()
    with main_loop() as loop:
        mine = on(loop, lambda: Delivery(consumer.run, "thread"))
        mine.ring()
        assert consumer.came.acquire(timeout=5)
        mine.close()
    assert consumer.calls[0][0] == "sharedwidgets-delivery"


def test_any_number_of_rings_are_one_call() -> None:
    consumer = Consumer()
    with main_loop() as loop:
        busy, free = threading.Event(), threading.Event()
        mine = on(loop, lambda: Delivery(consumer.run, "main"))

        def block() -> None:
            busy.set()
            free.wait(10)

        loop.call_soon_threadsafe(block)
        assert busy.wait(5)
        for _ in range(100):
            mine.ring()
        free.set()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(5)
    assert len(consumer.calls) == 1


def test_what_was_pulled_is_not_delivered_again() -> None:
    consumer = Consumer()
    with main_loop() as loop:
        busy, free = threading.Event(), threading.Event()
        mine = on(loop, lambda: Delivery(consumer.run, "main"))

        def cell() -> None:
            busy.set()
            free.wait(10)
            mine.pull()

        loop.call_soon_threadsafe(cell)
        assert busy.wait(5)
        mine.ring()
        free.set()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(5)
    assert [name for name, _ in consumer.calls] == ["main"]


def test_a_loop_that_is_closed_leaves_a_script_with_a_thread() -> None:
    consumer = Consumer()
    with main_loop() as loop:
        mine = on(loop, lambda: Delivery(consumer.run, "main"))
    mine.ring()
    assert consumer.came.acquire(timeout=5)
    mine.ring()
    assert consumer.came.acquire(timeout=5)
    mine.close()
    assert [name for name, _ in consumer.calls] == ["sharedwidgets-delivery"] * 2


@pytest.mark.parametrize("error", [ValueError("mine"), SystemExit(1)])
def test_an_observer_that_raises_ends_nothing(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    consumer = Consumer()
    mine = Delivery(consumer.run, "thread")
    consumer.failing.append(error)
    for _ in range(2):
        mine.ring()
        assert consumer.came.acquire(timeout=5)
    mine.close()
    assert "an observer of a shared state raised" in caplog.text


def test_a_pull_hears_of_an_observer_that_raises_and_deliver_does_not(caplog: pytest.LogCaptureFixture) -> None:
    consumer = Consumer()
    mine = Delivery(consumer.run, "thread")
    consumer.failing = [ValueError("second"), ValueError("first")]
    with pytest.raises(ValueError, match="first"):
        mine.pull()
    mine.deliver()
    assert "second" in caplog.text


def test_after_close_nothing_comes_and_the_thread_ends() -> None:
    consumer = Consumer()
    before = set(threading.enumerate())
    mine = Delivery(consumer.run, "thread")
    mine.ring()
    assert consumer.came.acquire(timeout=5)
    threads = [thread for thread in set(threading.enumerate()) - before if thread.name == "sharedwidgets-delivery"]
    assert threads
    mine.close()
    mine.ring()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert len(consumer.calls) == 1


# --- a busy main thread


@contextmanager
def busy(loop: asyncio.AbstractEventLoop) -> Iterator[None]:
    began, free = threading.Event(), threading.Event()

    def cell() -> None:
        began.set()
        free.wait(10)

    loop.call_soon_threadsafe(cell)
    assert began.wait(5)
    try:
        yield
    finally:
        free.set()
        asyncio.run_coroutine_threadsafe(asyncio.sleep(0), loop).result(5)


def test_a_busy_cell_is_told_once_how_to_see_its_news(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    consumer, timers = Consumer(), Timers()
    with main_loop() as loop:
        mine = on(loop, lambda: Delivery(consumer.run, "main", name="Counter", later=timers.later))
        with busy(loop):
            mine.ring()
            mine.ring()
            assert [seconds for seconds, _ in timers.due] == [delivery.BUSY_SECONDS]
            timers.elapse()  # too early: it is looked at again when the time is over
            assert len(timers.due) == 1
            assert 0 < timers.due[0][0] <= delivery.BUSY_SECONDS
            assert caplog.text == ""
            monkeypatch.setattr(delivery, "BUSY_SECONDS", 0.0)
            timers.elapse()
            assert "Counter has news from its room that this busy cell has not seen" in caplog.text
            assert "pull()" in caplog.text
            assert "live(...)" in caplog.text
            assert timers.due == []
        with busy(loop):
            mine.ring()
            assert timers.due == []
    assert len(caplog.records) == 1


def test_a_cell_that_takes_its_news_is_told_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(delivery, "BUSY_SECONDS", 0.001)
    consumer, timers = Consumer(), Timers()
    with main_loop() as loop:
        mine = on(loop, lambda: Delivery(consumer.run, "main", name="Counter", later=timers.later))
        for _ in range(3):
            with busy(loop):
                mine.ring()
                mine.pull()
                timers.elapse()
    assert caplog.text == ""


def test_a_thread_is_never_told_that_it_is_busy() -> None:
    timers = Timers()
    mine = Delivery(Consumer().run, "thread", name="Counter", later=timers.later)
    mine.ring()
    mine.close()
    assert timers.due == []


def test_a_leaf_lock_is_a_lock() -> None:
    lock = host.leaf_lock()
    with lock:
        assert not lock.acquire(blocking=False)
    assert lock.acquire(blocking=False)
    lock.release()
