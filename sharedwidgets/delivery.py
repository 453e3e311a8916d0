"""On which thread news reach user code: each consumer has one `Delivery`, which is told *that* there are news, never which.

The consumer's `run` takes what there is and calls user code; it is never called by the I/O thread.
"""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from typing import Literal, TypeAlias

from sharedwidgets.host import main_loop

log = logging.getLogger("sharedwidgets")

Mode: TypeAlias = Literal["main", "thread"]


class Delivery:
    """Calls `run` on the right thread, once for any number of rings.

    Parameters
    ----------
    run : callable
        Takes what there is and calls user code. May be called when there is nothing.
    mode : "main" or "thread"
        ``"main"``: on the loop of the kernel's main thread, between cells and at each ``await``; without such a loop this is
        ``"thread"``. ``"thread"``: on a thread of its own.
    """

    def __init__(self, run: Callable[[], None], mode: Mode) -> None:
        self._run = run
        self._loop = main_loop() if mode == "main" else None
        # Output of user code goes where this consumer was made, not where the last cell ran.
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
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
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._turn, context=self._context)
            except RuntimeError:
                # The kernel's loop is closed: the process is ending, and nobody is left to tell.
                return
        else:
            self._start_thread()
            self._bell.set()

    def pull(self) -> None:
        """Take the news now, on the calling thread."""
        with self._lock:
            self._rung = False
        self._run()

    def close(self) -> None:
        """No more news are taken."""
        with self._lock:
            self._closed = True
        self._bell.set()

    def _turn(self) -> None:
        with self._lock:
            if self._closed or not self._rung:
                return
            self._rung = False
        try:
            self._run()
        except Exception:
            log.exception("an observer of a shared state raised")

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
            self._context.run(self._turn)
