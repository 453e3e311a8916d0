"""Coroutines of the user's, run on the main loop or, where there is none, on a loop on a thread of our own."""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from sharedwidgets import host

T = TypeVar("T")

# How long the end of the process waits for coroutines that are told to end.
_END_SECONDS = 1.0
_lock = host.leaf_lock()
_loop: asyncio.AbstractEventLoop | None = None
_thread: threading.Thread | None = None
# Loops that a fork copied. Closing one would take the parent's descriptors out of the parent's poll set, so they are kept.
_of_parents: list[asyncio.AbstractEventLoop] = []


def start(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop | None = None) -> Future[T]:
    """Run a coroutine to its end; returns at once, from any thread.

    Parameters
    ----------
    coroutine : coroutine
        It runs in a copy of the caller's context.
    loop : asyncio.AbstractEventLoop, optional
        Where; the main loop by default. A loop of our own, on the thread "sharedwidgets-background", takes the place of one
        that is closed or is not there.

    Returns
    -------
    concurrent.futures.Future
        Its result; `cancel()` cancels the coroutine, from any thread.
    """
    loop = loop or host.main_loop()
    if loop is not None and runs(loop):
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, loop)
        except RuntimeError:
            # It was closed in between.
            pass
    return asyncio.run_coroutine_threadsafe(coroutine, background_loop())


def runs(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop may run what it is given: it is not closed, and not that of a process this one was forked from."""
    return not loop.is_closed() and loop not in _of_parents


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop of our own; its thread begins with its first use, and is a new one in a forked child."""
    global _loop, _thread
    begun = None
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            begun = _thread = threading.Thread(target=_run, args=(_loop,), name="sharedwidgets-background", daemon=True)
        loop = _loop
    if begun is not None:
        begun.start()
    return loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _end() -> None:
    """Cancel what still runs: a task that is dropped with the interpreter would complain on stderr."""
    loop, thread = _loop, _thread
    if loop is None or thread is None or not thread.is_alive():
        return

    def cancel() -> None:
        running = asyncio.all_tasks(loop)
        for task in running:
            task.cancel()
        # Once more around, so that each of them has heard of it.
        asyncio.gather(*running, return_exceptions=True).add_done_callback(lambda done: loop.stop()) if running else loop.stop()

    loop.call_soon_threadsafe(cancel)
    thread.join(_END_SECONDS)


def _after_fork() -> None:
    global _loop, _thread
    if _loop is not None:
        _of_parents.append(_loop)
    _loop = _thread = None


atexit.register(_end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
