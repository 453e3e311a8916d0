"""A class with a trait of each kind, the same one that waits for its turn, and what tests of threads do with them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import traitlets as t

from sharedwidgets import SharedState

Link = Callable[[SharedState], Any]
# What keeps writes back, by its name.
GROUPS = ["transaction", "hold_trait_notifications", "hold_sync"]


class Shop(SharedState, delivery="thread"):
    stock = t.Int(0)
    sold = t.Int(0)
    price = t.Float(0.0)
    names = t.List()
    prices = t.Dict()
    till = t.Int(0).tag(shared=False)

    @t.validate("sold")
    def _even(self, proposal: Any) -> int:
        if proposal.value % 2:
            raise t.TraitError("sold in pairs")
        return int(proposal.value)


class Patient(SharedState, state_name="Shop", delivery="thread", on_locked="wait"):
    stock = t.Int(0)
    sold = t.Int(0)
    price = t.Float(0.0)
    names = t.List()
    prices = t.Dict()
    till = t.Int(0).tag(shared=False)


def beside(work: Callable[[], object]) -> Any:
    """Do it on a thread of its own, to its end."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(20)


class Gate:
    """A place where one thread stops until another one lets it go on."""

    def __init__(self) -> None:
        self._reached, self._open = threading.Event(), threading.Event()

    def stop(self) -> None:
        """Stand here until it is open."""
        self._reached.set()
        assert self._open.wait(10)

    def reached(self) -> bool:
        """Wait until somebody stands here, or has gone through; whether that came to be."""
        return self._reached.wait(10)

    def open(self) -> None:
        """Let everybody through from now on."""
        self._open.set()


def nothing_open(*states: SharedState) -> None:
    """Nothing of a transaction, hold or write is left in these."""
    for state in states:
        bridge: Any = state._bridge
        assert (state._parts, bridge._groups, bridge._holds, bridge.session.groups) == ({}, {}, 0, {})
        assert (bridge._writing, bridge._dirty) == (0, {})
