"""Computed traits, reactions and background methods where they meet: holds, locks, ends, and each other.

"Here" and "far" are two members in this process, with a socket and a boot each.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

import pytest
import traitlets as t

from sharedwidgets import SharedState, background, computed, connect, reacts
from sharedwidgets.errors import InvalidValue
from sharedwidgets_server.testing import LiveServer
from support.scripts import Heard, eventually


class Pair(SharedState, delivery="thread"):
    a = t.Int(0)
    b = t.Int(0)
    c = t.Int(0)


class Double(SharedState, delivery="thread"):
    a = t.Int(0)

    @computed
    def double(self) -> int:
        return 2 * self.a


def here(state: Any, server: LiveServer, token: str) -> Any:
    return state.link_to(token, server=server.url, credential=server.credential)


def far(state: Any, server: LiveServer, token: str) -> Any:
    return state.link_to(token, server=server.url, credential=server.token)


def boom(change: Any) -> None:
    raise ValueError("boom")


# --- an observer that raises, and a transaction


def test_an_observer_that_raises_keeps_no_other_object_of_a_room_transaction_from_being_told(
    server: LiveServer, token: str
) -> None:
    first, second = here(Pair(), server, token), here(Double(), server, token)
    first.observe(boom, "a")
    heard = Heard(second, "a", "double")
    with pytest.raises(ValueError, match="boom"), first.room.transaction():
        first.a, second.a = 7, 8
    second.flush()
    assert (second.a, second.double) == (8, 16)
    heard.wait(2, timeout=2)
    assert sorted(heard.steps) == [("a", 0, 8), ("double", 0, 16)]


def test_nor_another_object_of_the_state_from_showing_it(server: LiveServer, token: str) -> None:
    """As after a plain assignment whose observer raises."""
    one, other = here(Pair(), server, token), here(Pair(), server, token)
    one.observe(boom, "a")
    with pytest.raises(ValueError, match="boom"):
        one.b, one.a = 1, 5
    assert (other.b, other.a) == (1, 5)
    with pytest.raises(ValueError, match="boom"), one.transaction():
        one.a = 6
    assert other.a == 6


# --- a reaction whose object is unlinked meanwhile


def test_a_reaction_may_unlink_its_object(server: LiveServer, token: str) -> None:
    class Once(SharedState, delivery="thread"):
        a = t.Int(0)

        @reacts("a", leader=True)
        def finish(self, change: Any) -> None:
            self.unlink()

    once = here(Once(), server, token)
    with connect(token, server.url, server.token, delivery="thread") as plain:
        # Nobody but the loop shows what has come.
        once._bridge.delivery.ring = lambda: None
        plain["Once"].update({"a": 1})
        plain.flush()
        # It has come, and it is for this process to react to it.
        eventually(lambda: once._bridge.session.replica.states["Once@finish@reacts"].values["leader"])
        # RuntimeError: generator raised StopIteration
        for _ in once.live(range(3)):
            pass
    assert once.linked_to is None


# --- a change of two traits of which the second meets a lock


def test_what_was_reacted_to_is_not_reacted_to_again_when_another_trait_meets_a_lock(server: LiveServer, token: str) -> None:
    ran: list[tuple[str, Any]] = []

    class Split(SharedState, delivery="thread"):
        a = t.Int(0)
        b = t.Int(0)

        @reacts("a", "b", leader=True)
        def lead(self, change: Any) -> None:
            ran.append((change.name, change.new))
            if change.name == "b":
                target.c += 1

    target, holder = here(Pair(), server, token), far(Pair(), server, token)
    split = here(Split(), server, token)
    with holder.lock():
        assert target.wait_until(lambda: target.locked_by is not None, 10)
        with split.transaction():
            split.a, split.b = 1, 2
        eventually(lambda: ran.count(("b", 2)) >= 2)
    eventually(lambda: target.c == 1)
    assert ran.count(("a", 1)) == 1


# --- two classes of one state with different reactions


def test_linking_runs_nothing_also_after_a_reaction_was_given_another_trait(server: LiveServer, token: str) -> None:
    ran: list[tuple[Any, ...]] = []

    class Before(SharedState, state_name="Grown", delivery="thread"):
        a = t.Int(0)
        b = t.Int(0)

        @reacts("a", leader=True)
        def lead(self, change: Any) -> None:
            ran.append((change.name, change.old, change.new))

    class After(SharedState, state_name="Grown", delivery="thread"):
        a = t.Int(0)
        b = t.Int(0)

        @reacts("a", "b", leader=True)
        def lead(self, change: Any) -> None:
            ran.append((change.name, change.old, change.new))

    before = here(Before(), server, token)
    before.a = 1
    eventually(lambda: ran == [("a", 0, 1)])
    before.b = 5
    before.flush()
    # The cell is run again.
    after = here(After(), server, token)
    after.a = 2
    eventually(lambda: ("a", 1, 2) in ran)
    assert ran == [("a", 0, 1), ("a", 1, 2)]


# --- an older member of the room that links the state while the leader reacts


def test_a_handle_cannot_make_the_state_beside_another(server: LiveServer, token: str) -> None:
    """It would not see it, would count as who leads, and with a trait of the name of a reaction the class could not link."""
    with connect(token, server.url, server.token, delivery="thread") as plain, pytest.raises(InvalidValue):
        plain.define("Counter@lead@reacts", leader="", done=[])


def test_who_only_made_the_state_beside_another_does_not_lead(server: LiveServer, token: str) -> None:
    ran: list[int] = []

    class Led(SharedState, delivery="thread"):
        a = t.Int(0)

        @reacts("a", leader=True)
        def lead(self, change: Any) -> None:
            ran.append(change.new)

    with connect(token, server.url, server.token, delivery="thread") as plain:
        with suppress(InvalidValue):
            plain.define("Led@lead@reacts", note=0)
        led = here(Led(), server, token)
        led.a = 1
        eventually(lambda: ran == [1], 2)


# --- depth


def test_a_handle_made_in_a_reaction_does_not_keep_its_depth(server: LiveServer, token: str) -> None:
    one, two = here(Pair(), server, token), far(Pair(), server, token)
    greeted: list[str] = []

    def greet(member: Any) -> None:
        greeted.append(member.id)
        one.c += 1

    def answer(change: Any) -> None:
        if change.origin != "remote":
            return
        if change.new < 9:
            one.a = change.new + 1
        elif not listening.is_set():
            one.room.on_join(greet)
            listening.set()

    listening = threading.Event()
    one.observe(answer, "b")
    two.observe(lambda change: setattr(two, "b", change.new + 1) if change.origin == "remote" else None, "a")
    one.a = 1
    assert listening.wait(10)
    code = f"from sharedwidgets import connect; connect({token!r}, {server.url!r}, {server.token!r}).close()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    eventually(lambda: greeted)
    one.flush()
    # Nobody has reacted to anything: somebody came. Of the seventeenth such link the write would be refused.
    assert one._bridge.session.replica.depth("Pair", "c") == 0


# --- origin


def test_what_came_from_elsewhere_during_a_hold_is_told_as_that(server: LiveServer, token: str) -> None:
    source, other = here(Pair(), server, token), far(Pair(), server, token)

    class Dependent(SharedState):
        @computed
        def twice(self) -> int:
            return 2 * int(source.a)

    dependent = Dependent()
    heard = Heard(dependent, "twice")
    with dependent.hold_trait_notifications():
        other.a = 1
        assert source.wait_until(lambda: source.a == 1, 10)
        time.sleep(0.1)
    change = heard.wait()
    assert (change.new, change.origin, change.actor is not None) == (2, "remote", True)


# --- what is read twice


class Torn(SharedState):
    a = t.Int(0)
    half = t.Int(0)

    @computed(sync=False)
    def seen(self) -> tuple[int, int]:
        first = self.a
        self.__dict__.get("between", list)()
        second = self.a
        self.__dict__.get("behind", list)()
        return first, second


def test_a_value_that_changes_and_changes_back_during_an_evaluation_is_noticed() -> None:
    """Another thread; the value made of both is kept for ever otherwise."""
    torn = Torn()
    assert torn.seen == (0, 0)

    def elsewhere(value: int) -> None:
        # Once: the evaluation is then made again in peace.
        torn.__dict__.pop("between" if value == 2 else "behind")
        thread = threading.Thread(target=setattr, args=(torn, "a", value))
        thread.start()
        thread.join()

    torn.a = 1
    torn.__dict__.update(between=lambda: elsewhere(2), behind=lambda: elsewhere(1))
    assert torn.seen == (1, 1)
    assert torn.seen == (1, 1)


def test_an_async_one_shows_no_value_that_is_half_old() -> None:
    """Nobody observes it, so that no change ends the run."""
    begun, go_on = threading.Event(), threading.Event()

    class Sum(SharedState):
        a = t.Int(1)
        b = t.Int(10)

        @computed(sync=False)
        async def both(self) -> tuple[int, int]:
            first = self.a
            begun.set()
            await asyncio.to_thread(go_on.wait, 5)
            return first, self.b

    both = Sum()
    assert both.both is None
    assert begun.wait(5)
    with both.hold_trait_notifications():
        both.a, both.b = 2, 20
    go_on.set()
    # Nobody reads before it has come to its end.
    time.sleep(0.5)
    assert both.both in (None, (1, 10), (2, 20))
    eventually(lambda: both.both == (2, 20))


# --- a work that is cancelled is not at its end yet


def test_what_was_cancelled_is_done_when_it_has_ended() -> None:
    """Until then it may hold a lock, say: whoever waits for it and writes then meets `Locked` by his own process."""
    did: list[str] = []

    class Tidy(SharedState):
        @background
        async def work(self) -> None:
            try:
                begun.set()
                await asyncio.sleep(60)
            finally:
                await asyncio.sleep(0.3)
                did.append("tidied up")

    begun = threading.Event()
    work = Tidy().work()
    assert begun.wait(10)
    assert work.cancel()
    with pytest.raises(CancelledError):
        work.result(10)
    assert did == ["tidied up"]
    assert work.done()


# --- what is said at the end of a process


def told_at_the_end(code: str) -> str:
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stderr
    return answer.stderr


def test_a_script_that_has_used_a_background_method_ends_without_noise() -> None:
    code = """
from sharedwidgets import SharedState, background
class Fit(SharedState):
    @background
    async def train(self): pass
fit = Fit()
fit.train().result(10)
"""
    assert told_at_the_end(code) == ""


@pytest.mark.parametrize("how", ["state.train(); begun.wait(10)", "state.lock().__enter__()"], ids=["beside", "plain"])
def test_a_script_that_ends_with_a_lock_ends_without_noise(server: LiveServer, token: str, how: str) -> None:
    code = f"""
import asyncio, threading
from sharedwidgets import SharedState, background
begun = threading.Event()
class Fit(SharedState):
    @background
    async def train(self):
        async with self.lock():
            begun.set()
            await asyncio.sleep(60)
    def __del__(self): pass
state = Fit().link_to({token!r}, server={server.url!r}, credential={server.credential!r})
{how}
"""
    assert told_at_the_end(code) == ""
