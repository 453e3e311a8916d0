"""Computed traits of coroutine functions: a change begins a run, its value is shown when it has finished."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future
from typing import Any

from sharedwidgets import host, tasks
from sharedwidgets.formulas import HERE, Cause, Formula, Owner, Recipe, changed, check_no_way_back, made
from sharedwidgets.reads import Frame, Inputs, alike, dependents, evaluating, evaluation, unchanged

log = logging.getLogger("sharedwidgets")


class AsyncFormula(Formula):
    """Of a coroutine function. To others its last value is a raw one, under its name."""

    def __init__(self, owner: Owner, trait: Recipe) -> None:
        super().__init__(owner, trait)
        self._trait_values: dict[str, Any] = {self.name: None}
        self.told = None
        self.run: _Run | None = None
        # Where it was begun first, as a change may come on any thread.
        self._loop: asyncio.AbstractEventLoop | None = None

    def read(self) -> Any:
        """The last value that was finished; begins a new one where what it is made of has changed."""
        frame = evaluating()
        if frame is not None:
            self.check_not_within(frame)
            check_no_way_back(self, frame.reader)
        self.renew(HERE)
        value = self._trait_values[self.name]
        if frame is not None and frame.noting:
            frame.note(self, self.name, value)
            frame.depth = max(frame.depth, self.depth + 1)
        return value

    def renew(self, cause: Cause) -> None:
        """Begin anew where what the last run has read is different now; the last one is cancelled."""
        owner, run = self.owner(), self.run
        if owner is None or not made(owner) or (run is not None and run.counts()):
            return
        if self._loop is None or not tasks.runs(self._loop):
            self._loop = host.main_loop() or tasks.background_loop()
        self.run = new = _Run(self, cause, self._loop)
        if run is not None:
            run.cancel()
        new.start(owner)

    def _latest(self, cause: Cause) -> Any:
        self.renew(cause)
        return self._trait_values[self.name]

    def finish(self, run: _Run, value: Any) -> None:
        """A run is at its end: its value is shown and told, unless a newer one was begun."""
        if self.run is not run:
            return
        if not run.counts():
            # It may have seen what there was before a change, and what there was after it.
            self.renew(run.cause)
            return
        self._failure = ""
        if not alike(self._trait_values[self.name], value):
            self._trait_values[self.name] = value
        self.tell(run.cause)
        changed(self, self.name, *run.cause)

    def inputs(self) -> Inputs | None:
        """What the last run has read."""
        return None if self.run is None else self.run.frame.inputs()

    def attend(self, owner: Owner) -> None:
        """It will be observed."""
        if not self.wanted(owner):
            self.renew(HERE)
            self.told = self._trait_values[self.name]

    def wanted(self, owner: Owner) -> bool:
        """Whether somebody wants to know; who is made of it, for one, cannot begin it."""
        seen: set[int] = set()
        formulas: list[Formula] = [self]
        while formulas:
            formula = formulas.pop()
            there = formula.owner()
            if id(formula) in seen or there is None:
                continue
            seen.add(id(formula))
            if formula.heard(there):
                return True
            formulas += dependents(formula)
        return False

    def end(self) -> None:
        """Cancel what runs."""
        if self.run is not None:
            self.run.cancel()


class _Run:
    """One run of an asynchronous computed trait."""

    def __init__(self, formula: AsyncFormula, cause: Cause, loop: asyncio.AbstractEventLoop) -> None:
        self.formula = formula
        self.cause = cause
        self.loop = loop
        self.frame = Frame(formula, None)
        self._future: Future[None] | None = None
        # It came to a value or an error; it is wanted no more.
        self._ended = False
        self._over = False

    def start(self, owner: Owner) -> None:
        """Begin."""
        self._future = tasks.start(self._go(owner), self.loop)
        if self._over:
            self._future.cancel()

    def cancel(self) -> None:
        """Its value is wanted no more."""
        self._over = True
        if self._future is not None:
            self._future.cancel()

    def counts(self) -> bool:
        """Whether its value is, or will be, of what its inputs are now."""
        if self._over or self.frame.torn or (self._future is not None and self._future.cancelled()):
            return False
        if not self._ended and not tasks.runs(self.loop):
            return False
        inputs = self.frame.inputs()
        return unchanged(inputs.leaves) or inputs.renewed() is not None

    async def _go(self, owner: Owner) -> None:
        formula = self.formula
        evaluation.set(self.frame)
        try:
            with self.frame as frame:
                frame.note_names(owner)
                value = await formula.trait.function(owner)
        except Exception as error:
            self._ended = True
            if formula.run is self:
                formula.failed(error)
            return
        self._ended = True
        try:
            formula.finish(self, value)
        except Exception:
            log.exception("an observer of a shared state raised")
