"""On which thread news reach user code: each consumer has one `Delivery`, which is told *that* there are news, never which.

The consumer's `run` takes what there is and calls user code; it is never called by the I/O thread.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable
from typing import Literal, TypeAlias

from sharedwidgets import causes, host

log = logging.getLogger("sharedwidgets")

Mode: TypeAlias = Literal["main", "thread"]
# Runs a task after so many seconds, on a thread that no user code holds up.
Later: TypeAlias = Callable[[float, Callable[[], None]], None]

# How long a busy main thread may leave news untaken before it is told how to take them.
BUSY_SECONDS = 10.0


class Delivery:
    """Calls `run` on the right thread, once for any number of rings.

    Parameters
    ----------
    run : callable
        Takes what there is and calls user code. May be called when there is nothing.
    mode : "main" or "thread"
        ``"main"``: on the loop of the kernel's main thread, between cells and at each ``await``; without such a loop this is
        ``"thread"``. ``"thread"``: on a thread of its own.
    context : contextvars.Context, optional
        In which user code runs, so that its output goes where this consumer was made and not where the last cell ran; a copy
        of the caller's by default.
    name, later : str and callable, optional
        Whose news they are, and how to look again: with them a main thread that is busy for `BUSY_SECONDS` is warned, once.
    """

    def __init__(
        self,
        run: Callable[[], None],
        mode: Mode,
        context: contextvars.Context | None = None,
        *,
        name: str = "",
        later: Later | None = None,
    ) -> None:
        self._run = run
        self._loop = host.main_loop() if mode == "main" else None
        self._context = contextvars.copy_context() if context is None else context.copy()
        self._context.run(causes.forget)
        self._name = name
        # Forgotten once it has warned.
        self._later = later if self._loop is not None else None
        self._watching = False
        self._since = 0.0
        self._lock = host.leaf_lock()
        self._rung = False
        self._closed = False
        self._bell = threading.Event()
        self._thread: threading.Thread | None = None

    def ring(self) -> None:
        """There are news. Never blocks, never calls user code."""
        with self._lock:
            if self._rung or self._closed:
                return
            self._rung = True
            self._since = time.monotonic()
            watch = self._later if not self._watching else None
            self._watching = self._watching or watch is not None
        if watch is not None:
            watch(BUSY_SECONDS, self._look)
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._turn, context=self._context)
                return
            except RuntimeError:
                # The loop is closed. A kernel is ending then, and nobody is left to tell; a script goes on without one.
                if host.running_kernel() is not None:
                    return
                self._loop = None
        self._start_thread()
        self._bell.set()

    def pull(self) -> None:
        """Take the news now, on the calling thread."""
        with self._lock:
            self._rung = False
        self._run()

    def deliver(self) -> None:
        """`pull` for a caller who is not to hear of an observer that raises."""
        try:
            self.pull()
        except Exception:
            log.exception("an observer of a shared state raised")

    def close(self) -> None:
        """No more news are taken."""
        with self._lock:
            self._closed = True
        self._bell.set()

    def _turn(self) -> None:
        with self._lock:
            if self._closed or not self._rung:
                return
        self.deliver()

    def _look(self) -> None:
        """Whether the main thread has left news untaken for too long; runs where nothing holds it up."""
        with self._lock:
            later, waited = self._later, time.monotonic() - self._since
            if later is None or not self._rung or self._closed:
                self._watching = False
                return
            if waited >= BUSY_SECONDS:
                self._later = None
        if waited >= BUSY_SECONDS:
            log.warning(
                "%s has news from its room that this busy cell has not seen for %.3g s: call its pull(), or go through its "
                "live(...), where the values are used",
                self._name,
                waited,
            )
        else:
            later(BUSY_SECONDS - waited, self._look)

    def _start_thread(self) -> None:
        with self._lock:
            if self._thread is not None:
                return
            self._thread = threading.Thread(target=self._work, name="sharedwidgets-delivery", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        while True:
            self._bell.wait()
            self._bell.clear()
            if self._closed:
                return
            try:
                self._context.run(self._turn)
            except BaseException:
                # An observer that calls sys.exit() ends neither the process nor this thread.
                log.exception("an observer of a shared state raised")
