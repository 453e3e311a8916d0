"""Coroutines of the user's beside the main thread: one daemon thread and its loop, made at first use."""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

from sharedwidgets import host

log = logging.getLogger("sharedwidgets")

T = TypeVar("T")

# How long a process that ends waits for what it cancels: to give back a lock, for example.
EXIT_SECONDS = 1.0

_lock = host.leaf_lock()
_running: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None
_ended = False
# Loops that a fork copied. Closing one would take the parent's descriptors out of the parent's poll set, so they are kept.
_of_parents: list[asyncio.AbstractEventLoop] = []


def start(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop | None = None) -> Future[T]:
    """Run a coroutine to its end, in a copy of the caller's context; returns at once, from any thread.

    Parameters
    ----------
    coroutine : coroutine
        On the loop of our own it must not block: everything there waits for it.
    loop : asyncio.AbstractEventLoop, optional
        Where; the loop of our own by default, and in place of one that is closed.

    Returns
    -------
    concurrent.futures.Future
        Its result; `cancel()` cancels the coroutine, from any thread.

    Raises
    ------
    RuntimeError
        The process is about to end.
    """
    if loop is not None and runs(loop):
        try:
            return asyncio.run_coroutine_threadsafe(coroutine, loop)
        except RuntimeError:
            # It was closed in between.
            pass
    try:
        return asyncio.run_coroutine_threadsafe(coroutine, background_loop())
    except BaseException:
        coroutine.close()
        raise


def runs(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a loop may run what it is given: it is not closed, and not that of a process this one was forked from."""
    return not loop.is_closed() and loop not in _of_parents


def here() -> bool:
    """Whether this is the thread of the loop of our own."""
    return _running is not None and threading.current_thread() is _running[1]


def background_loop() -> asyncio.AbstractEventLoop:
    """The loop of our own; its thread begins with its first use, and is a new one in a forked child.

    Raises
    ------
    RuntimeError
        The process is about to end.
    """
    global _running
    with _lock:
        if _ended:
            raise RuntimeError("this process is about to end: nothing is begun any more")
        if _running is None:
            loop = asyncio.new_event_loop()
            host.beside(loop)
            thread = threading.Thread(target=_run, args=(loop,), name="sharedwidgets-background", daemon=True)
            _running = loop, thread
            thread.start()
            # Now, and so before what was there earlier ends: the connections, over which locks are given back.
            atexit.unregister(_at_exit)
            atexit.register(_at_exit)
        return _running[0]


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        while not _ended:
            try:
                loop.run_forever()
            except BaseException:
                # What calls sys.exit() here ends neither the process nor this thread.
                log.exception("a task in the background raised")
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    finally:
        loop.close()


def _at_exit() -> None:
    """Cancel what runs, and give it a moment to tidy up while the connections are still there."""
    global _ended
    _ended = True
    if _running is not None:
        loop, thread = _running
        loop.call_soon_threadsafe(loop.stop)
        thread.join(EXIT_SECONDS)


def _after_fork() -> None:
    """The thread is not in the child: what is begun there gets one of its own."""
    global _running
    if _running is not None:
        _of_parents.append(_running[0])
    _running = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
