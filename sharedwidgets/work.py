"""`@background`: methods that go on beside the main thread, so that a busy cell does not keep them."""

from __future__ import annotations

import asyncio
import atexit
import contextvars
import functools
import inspect
import logging
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import Any, Generic, ParamSpec, TypeVar

from sharedwidgets import tasks
from sharedwidgets.errors import WrongThread

log = logging.getLogger("sharedwidgets")

Given = ParamSpec("Given")
Result = TypeVar("Result")

# How long somebody may take to ask for an outcome before an exception is logged.
ASK_SECONDS = 1.0
# Where an object keeps what it has begun.
BEGUN = "_sharedwidgets_begun"


def background(method: Callable[Given, Coroutine[Any, Any, Result]]) -> Callable[Given, Work[Result]]:
    """Make an ``async def`` method run beside the main thread: a call begins it, and returns at once.

    ::

        class Fit(SharedState):
            progress = t.Float(0.0)

            @background
            async def train(self):
                for step in range(100):
                    await asyncio.to_thread(one_step)
                    async with self.lock():
                        self.progress += 0.01

        button.on_click(lambda _: fit.train())

    It goes on while a cell is busy, and its output goes where the caller's does. All such methods of a process share one
    thread: what blocks belongs into `asyncio.to_thread`. `close()` of the object ends what it has begun.

    Parameters
    ----------
    method : coroutine function

    Returns
    -------
    callable
        Returns a `Work`.

    Raises
    ------
    TypeError
        The method is no ``async def``.
    """
    if not inspect.iscoroutinefunction(method):
        name = getattr(method, "__qualname__", repr(method))
        raise TypeError(f"@background is for methods made with async def, and {name} is none; write: async def")

    @functools.wraps(method)
    def begin(*args: Given.args, **kwargs: Given.kwargs) -> Work[Result]:
        work: Work[Result] = Work(method(*args, **kwargs), method.__qualname__)
        known = getattr(args[0], "__dict__", None) if args else None
        if isinstance(known, dict):
            # While it runs its object knows it, and has it end when the object is closed.
            begun: set[Work[Any]] = known.setdefault(BEGUN, set())
            begun.add(work)
            work.when_done(begun.discard)
        return work

    return begin


@dataclass(eq=False)
class _Run:
    """What a `Work` and the coroutine it stands for both know."""

    name: str
    asked: bool = False
    task: asyncio.Task[Any] | None = None
    # Whose outcome its task awaits just now.
    awaits: _Run | None = None
    # Raised, and not asked for so far.
    error: Exception | None = None

    def say(self) -> None:
        """Nobody has asked for what it raised."""
        error, self.error = self.error, None
        _unsaid.discard(self)
        if error is not None and not self.asked:
            log.error("%s raised, and nobody has asked for its outcome", self.name, exc_info=error)


_unsaid: set[_Run] = set()
# Whose coroutine runs here; tasks that it starts inherit it, and are other tasks.
_current: contextvars.ContextVar[_Run | None] = contextvars.ContextVar("sharedwidgets_work", default=None)


class _Outcome(Future[Result]):
    """What it comes to; one that is cancelled has an outcome when it has ended, and not before."""

    begun: Future[Result] | None = None

    def cancel(self) -> bool:
        if self.done() or self.begun is None:
            return False
        self.begun.cancel()
        return True

    def end(self, task: asyncio.Task[Result]) -> None:
        """The task has ended."""
        if task.cancelled():
            super().cancel()
            self.set_running_or_notify_cancel()
        elif (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(task.result())


class Work(Generic[Result]):
    """What a method with `background` has begun: to be awaited, asked or cancelled, from any thread.

    An exception that nobody asks for within a second is logged. Whoever is cancelled while he awaits it cancels it. Where it
    awaits itself, or what awaits it, the ``await`` raises `RuntimeError`.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, Result], name: str) -> None:
        self._run = _Run(name)
        self._future: _Outcome[Result] = _Outcome()
        self._future.begun = tasks.start(_watched(coroutine, self._run, self._future))

    def __repr__(self) -> str:
        state = "runs" if not self.done() else "was cancelled" if self.cancelled() else "is done"
        return f"<Work {self._run.name}, {state}>"

    def done(self) -> bool:
        """Whether it has come to its end, in whatever way."""
        return self._future.done()

    def cancel(self) -> bool:
        """Have it end at its next ``await``; whether it was still running."""
        return self._future.cancel()

    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._future.cancelled()

    def result(self, timeout: float | None = None) -> Result:
        """Wait for what it returns.

        Raises
        ------
        TimeoutError
            Not within so many seconds; it goes on.
        concurrent.futures.CancelledError
            It was cancelled.
        WrongThread
            Called by such a method: it would wait for itself. ``await`` it there.
        """
        self._run.asked = True
        if tasks.here() and not self.done():
            raise WrongThread(f"{self._run.name} runs on this very thread, and would wait for itself: await it")
        try:
            return self._future.result(timeout)
        except FutureTimeout:
            if self.done():
                raise
            # A class of its own before Python 3.11.
            raise TimeoutError(f"{self._run.name} is not done after {timeout:g} s; it goes on") from None

    def runs_here(self) -> bool:
        """Whether its task is the one that runs."""
        try:
            return self._run.task is not None and asyncio.current_task() is self._run.task
        except RuntimeError:
            return False

    def when_done(self, tell: Callable[[Work[Result]], object]) -> None:
        """Call `tell` with this when it has come to its end, on the thread where it runs."""
        self._future.add_done_callback(lambda done: tell(self))

    def __await__(self) -> Generator[Any, None, Result]:
        run = _current.get()
        if run is None or run.task is not asyncio.current_task():
            self._run.asked = True
            return (yield from asyncio.wrap_future(self._future).__await__())
        _check_no_circle(run, self._run)
        self._run.asked = True
        run.awaits = self._run
        try:
            return (yield from asyncio.wrap_future(self._future).__await__())
        finally:
            run.awaits = None


def _check_no_circle(run: _Run, wanted: _Run) -> None:
    """Raise where one of the two would wait for the other for ever."""
    path = [run.name]
    end: _Run | None = wanted
    while end is not None and end is not run:
        path.append(end.name)
        end = end.awaits
    if end is run:
        how = "awaits itself" if end is wanted else "await each other"
        raise RuntimeError(f"{' → '.join(path)} {how}, and would wait for ever: leave out this await")


async def _watched(coroutine: Coroutine[Any, Any, Result], run: _Run, outcome: _Outcome[Result]) -> Result:
    """Run it, and see that what it raises is heard of."""
    run.task = asyncio.current_task()
    assert run.task is not None
    _current.set(run)
    run.task.add_done_callback(outcome.end)
    try:
        return await coroutine
    except Exception as error:
        if not run.asked:
            run.error = error
            _unsaid.add(run)
            # In the context of the caller: to where its output goes.
            asyncio.get_running_loop().call_later(ASK_SECONDS, run.say)
        raise
    finally:
        run.task = None


def _at_exit() -> None:
    """Nobody will ask any more."""
    for run in list(_unsaid):
        run.say()


# Before the end of what runs, which is no failure of its own.
atexit.register(_at_exit)
