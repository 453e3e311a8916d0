"""What this process is: a Jupyter kernel, or a script."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any, TypeAlias

from sharedwidgets.core.protocol import Kind

# How long a fork waits for one lock; more than enough, as nothing waits while it is held.
_FORK_SECONDS = 1.0
_leaves: weakref.WeakSet[threading.Lock] = weakref.WeakSet()
# Loops of ours on threads of their own: none is the user's, whoever asks on them.
# A thread, and the task of its loop.
Owner: TypeAlias = tuple[int, int]
_beside: weakref.WeakSet[asyncio.AbstractEventLoop] = weakref.WeakSet()
_registering = threading.Lock()
_held: list[threading.Lock] = []
# The shells whose cells are watched, and the tasks that run or ran one.
_watched: weakref.WeakSet[Any] = weakref.WeakSet()
_cell_tasks: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()


def running_kernel() -> Any | None:
    """The ipykernel this process runs, or None; imports nothing that is not there already."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None)


def kind() -> Kind:
    """What this process calls itself in a room."""
    return "script" if running_kernel() is None else "kernel"


def kernel_id() -> str | None:
    """The id the server gave this kernel, as its connection file tells it."""
    kernel = running_kernel()
    if kernel is None:
        return None
    path = getattr(getattr(kernel, "parent", None), "connection_file", "") or ""
    named = re.fullmatch(r"kernel-(.+)\.json", os.path.basename(path))
    return named.group(1) if named else None


def cell() -> tuple[str, str] | None:
    """The notebook cell that runs on this thread and the id of the request to run it, where the front end names its cells."""
    kernel = running_kernel()
    if kernel is None or threading.current_thread() is not threading.main_thread():
        return None
    request = kernel.get_parent("shell") or {}
    name = request.get("metadata", {}).get("cellId")
    return (str(name), str(request["header"]["msg_id"])) if name else None


def after_each_cell(task: Callable[..., None]) -> bool:
    """Run a task at the end of each cell from now on; whether this process has cells."""
    kernel = running_kernel()
    if kernel is None:
        return False
    kernel.shell.events.register("post_run_cell", task)
    return True


def watch_cells() -> None:
    """From now on the tasks that run cells are known."""
    kernel = running_kernel()
    if kernel is None or kernel.shell in _watched:
        return
    _watched.add(kernel.shell)
    kernel.shell.events.register("pre_run_cell", _note_cell)
    if (kernel.get_parent("shell") or {}).get("header", {}).get("msg_type") == "execute_request":
        task = _task()
        # It runs already; what is in the hands of a task of the user's own is not the cell.
        if task is not None and "ipykernel" in getattr(getattr(task.get_coro(), "cr_code", None), "co_filename", ""):
            _cell_tasks.add(task)


def _note_cell(*info: object) -> None:
    task = _task()
    if task is not None:
        _cell_tasks.add(task)


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


def current_task() -> asyncio.Task[Any] | None:
    """The task that runs here; None for what runs on the thread itself.

    A kernel may run each cell in a task of its own (ipykernel 7). To its user they are one thread that goes on: what one cell
    has taken, the next one gives back.
    """
    task = _task()
    return None if task is None or task in _cell_tasks else task


def owner() -> Owner:
    """Who runs here. Each thread and each task has locks and transactions of its own."""
    task = current_task()
    return threading.get_ident(), 0 if task is None else id(task)


def lives() -> Callable[[], bool]:
    """Says, from now on, whether the thread or task that runs here could still give back what it takes."""
    task = current_task()
    if task is not None:
        return lambda: not task.done()
    return threading.current_thread().is_alive


def title() -> str:
    """What a person would call this process: its notebook or script."""
    path = os.environ.get("JPY_SESSION_NAME") or (sys.argv[0] if running_kernel() is None else "")
    name = os.path.basename(path) or f"process {os.getpid()}"
    # A file name may be bytes that are no text, and longer than a name may be.
    return name.encode("utf-8", "replace").decode()[:256]


def main_loop() -> asyncio.AbstractEventLoop | None:
    """The loop of the kernel's main thread, or of the asyncio program this is; None in a plain script."""
    kernel = running_kernel()
    if kernel is not None:
        loop = kernel.io_loop.asyncio_loop
        assert isinstance(loop, asyncio.AbstractEventLoop)
        return loop
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return None
    return None if loop in _beside else loop


def beside(loop: asyncio.AbstractEventLoop) -> None:
    """This loop is one of ours, and nobody's main loop."""
    _beside.add(loop)


def leaf_lock() -> threading.Lock:
    """A lock under which nothing waits and no user code runs, and which a forked child finds open.

    A lock that another thread held at the moment of a fork would stay held in the child for ever, where that thread is not
    (H7); so a fork first waits for whoever holds one.
    """
    lock = threading.Lock()
    with _registering:
        _leaves.add(lock)
    return lock


def _before_fork() -> None:
    if _registering.acquire(timeout=_FORK_SECONDS):
        _held.append(_registering)
    _held.extend(lock for lock in list(_leaves) if lock.acquire(timeout=_FORK_SECONDS))


def _after_fork() -> None:
    while _held:
        _held.pop().release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
