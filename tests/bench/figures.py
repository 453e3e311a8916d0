"""The figures of this project: each measured beside what it is compared with, in one run. ``python tests/bench/figures.py``.

Times of single changes are taken on the machine's monotonic clock, which all processes share.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import traitlets as t
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from sharedwidgets import SharedState, computed
from sharedwidgets.core import codec
from sharedwidgets.core.protocol import Entries, Hello, Inc, Join, Joined, Limits, Member, Push, Set, TraitSchema
from sharedwidgets.core.room import Author, Now, Record, Room
from sharedwidgets_server.testing import LiveServer
from support.kernels import Kernel

SETUP = """
import time, ipywidgets, traitlets as t
from sharedwidgets import SharedState
class Counter(SharedState):
    count = t.Int(0)
c = Counter().link_to("bench")
"""


def quantiles(seconds: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    return {
        "p50_ms": 1e3 * statistics.median(ordered),
        "p99_ms": 1e3 * ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))],
    }


def kernel_to_kernel(server: LiveServer, changes: int) -> dict[str, Any]:
    """One trait change, set in kernel 1 → observer in kernel 2; and an ordinary widget's, kernel 1 → websocket client."""
    with Kernel(server) as first, Kernel(server) as second:
        first.run(SETUP + "w = ipywidgets.IntSlider(max=10**9)\nstate, plain = [], []")
        second.run(SETUP + "seen = {}\nc.observe(lambda change: seen.setdefault(change.new, time.monotonic()), 'count')")
        arrived: dict[int, float] = {}
        with first.listening(lambda message: _note(arrived, message)):
            first.run(
                f"""
for i in range(1, {changes} + 1):
    state.append(time.monotonic()); c.count = i
    time.sleep(0.004)
    plain.append(time.monotonic()); w.value = i
    time.sleep(0.004)
"""
            )
            deadline = time.monotonic() + 10
            while len(arrived) < changes and time.monotonic() < deadline:
                time.sleep(0.01)
        state, plain = first.value("(state, plain)")
        seen = {int(key): moment for key, moment in second.value("seen").items()}
    room = [seen[i] - state[i - 1] for i in range(1, changes + 1) if i in seen]
    comm = [arrived[i] - plain[i - 1] for i in range(1, changes + 1) if i in arrived]
    figures = {"shared": {**quantiles(room), "n": len(room)}, "ipywidgets": {**quantiles(comm), "n": len(comm)}}
    figures["ratio_p50"] = figures["shared"]["p50_ms"] / figures["ipywidgets"]["p50_ms"]
    return figures


LOCKED = """
spans = []
while time.monotonic() < {end}:
    began = time.monotonic()
    with c.lock():
        {body}
    spans.append(time.monotonic() - began)
"""
# How many kernels at once.
PLACES = {"alone": 1, "four": 4}
ADDED = """
made = 0
while time.monotonic() < {end}:
    c.increment("count")
    made += 1
c.flush(30)
"""


def locks(server: LiveServer, seconds: float) -> dict[str, Any]:
    """What a lock takes by itself, and a whole round with a write: in one kernel alone, and in four at once in equal loops."""
    return {
        "acquire and release": {where: _rounds(server, seconds, "pass", 0, kernels) for where, kernels in PLACES.items()},
        "with c.count += 1": {where: _rounds(server, seconds, "c.count += 1", 1, kernels) for where, kernels in PLACES.items()},
    }


def _rounds(server: LiveServer, seconds: float, body: str, writes: int, kernels: int) -> dict[str, Any]:
    """``with c.lock():`` around a body, over and over."""
    loop = LOCKED.replace("{body}", body)
    spans, shares, total, took = _together(server, f"locked-{kernels}-{writes}", loop, "spans", seconds, kernels, writes)
    counts = [len(share) for share in shares]
    return {
        **quantiles(spans),
        "per_second": len(spans) / took,
        "shares": counts,
        "fairness": max(counts) / max(1, min(counts)),
        "lost": writes * sum(counts) - total,
    }


def increments(server: LiveServer, seconds: float) -> dict[str, Any]:
    """``c.increment("count")`` in four kernels at once, to the last acknowledgement."""
    _, made, total, took = _together(server, "added", ADDED, "[made]", seconds)
    calls = sum(share[0] for share in made)
    return {"per_second": calls / took, "lost": calls - total, "calls": calls}


def _together(
    server: LiveServer, room: str, loop: str, shared: str, seconds: float, count: int = 4, writes: int = 1
) -> tuple[list[float], list[list[Any]], int, float]:
    """A loop in kernels that begin and end together: all they noted, each one's share, what they counted, and the seconds."""
    with ExitStack() as stack:
        kernels = [stack.enter_context(Kernel(server)) for _ in range(count)]
        for kernel in kernels:
            kernel.run(SETUP.replace("bench", room))
        began = time.monotonic()
        cells = [kernel.start(loop.format(end=began + seconds)) for kernel in kernels]
        for kernel, cell in zip(kernels, cells, strict=True):
            kernel.finish(cell, timeout=seconds + 60)
        took = time.monotonic() - began
        shares = [kernel.value(shared) for kernel in kernels]
        made = writes * sum(map(_size, shares))
        total = kernels[0].value(f"(c.wait_until(lambda: c.count >= {made}, 10), c.count)[1]")
    return [item for share in shares for item in share], shares, total, took


def _size(share: list[Any]) -> int:
    return int(share[0]) if len(share) == 1 and isinstance(share[0], int) else len(share)


def bytes_of_one_increment() -> dict[str, int]:
    """Frames of one ``count += 1`` in a room of short names: what its author sends, what another kernel gets."""
    member = Member(id="0" * 32, kind="kernel", user="ana", kernel_id="0" * 36)
    author = Author(boot="b", member=member, audience="kernel", may_write=True, origin="kernel")
    room = Room("demo-room", incarnation="0" * 32, epoch="0" * 32, limits=Limits())
    schema = {"count": TraitSchema(kind="int")}
    room.receive(author, Join(id=1, room="demo-room", state="Counter", schema=schema, values={"count": 0}), Now(0.0, 1.7e9))
    push = Push(room="demo-room", n=1, ops=(Set(state="Counter", path=("count",), value=1),))
    effects = room.receive(author, push, Now(0.0, 1.7e9))
    (entry,) = [effect.entry for effect in effects if isinstance(effect, Record)]
    assert entry is not None
    down = Entries(room="demo-room", epoch=room.epoch, prev=1, last=2, entries=(entry,))
    return {"up": len(codec.encode(push).frame()), "down": len(codec.encode(down).frame())}


def server_cpu_per_delivery(server: LiveServer, members: int, changes: int) -> dict[str, float]:
    """CPU of the server process per change and member, with every member listening."""
    used = asyncio.run(_fan_out(server, members, changes))
    return {"microseconds_per_delivery": 1e6 * used / (members * changes), "members": members, "changes": changes}


class Observed(SharedState):
    """Derives a value in an observer, as one does without `computed`."""

    count = t.Int(0)
    double = t.Int(0).tag(shared=False)

    @t.observe("count")
    def _derive(self, change: Any) -> None:
        self.double = 2 * self.count


class Derived(SharedState):
    """Derives it as a computed trait."""

    count = t.Int(0)

    @computed
    def double(self) -> int:
        """Twice as many."""
        return 2 * self.count


def computed_traits(rounds: int) -> dict[str, float]:
    """One change of an input, told to an observer of what is made of it; a plain observer beside it, interleaved."""
    states = {"observer": Observed(), "computed": Derived()}
    heard: Counter[str] = Counter()
    times: dict[str, list[float]] = {name: [] for name in states}
    for name, state in states.items():
        state.observe(lambda change, name=name: heard.update([name]), "double")  # type: ignore[misc]
    for start in range(1, 1 + 11 * rounds, rounds):
        for name, state in states.items():
            began = time.perf_counter()
            for number in range(start, start + rounds):
                state.count = number  # type: ignore[attr-defined]
            times[name].append((time.perf_counter() - began) / rounds)
    micros = {name: 1e6 * statistics.median(taken) for name, taken in times.items()}
    return {
        "observer_us": micros["observer"],
        "computed_us": micros["computed"],
        "ratio": micros["computed"] / micros["observer"],
        "missed": abs(heard["observer"] - 11 * rounds) + abs(heard["computed"] - 11 * rounds),
    }


def import_time(runs: int) -> dict[str, float]:
    """What the library's import costs over that of ipywidgets and anywidget, interleaved; medians of whole processes."""
    base = "import ipywidgets, anywidget"
    ours = base + "; from sharedwidgets import SharedState, connect, bind"
    times: dict[str, list[float]] = {base: [], ours: []}
    for _ in range(runs + 1):
        for code, taken in times.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            taken.append(time.perf_counter() - began)
    median = {code: statistics.median(taken[1:]) for code, taken in times.items()}
    return {"base_ms": 1e3 * median[base], "more_ms": 1e3 * (median[ours] - median[base]), "runs": runs}


async def _fan_out(server: LiveServer, members: int, changes: int) -> float:
    sockets = [await _joined(server, index) for index in range(members)]
    counters = [asyncio.create_task(_count(socket, changes)) for socket in sockets[1:]]
    before = _cpu(server.pid)
    for n in range(1, changes + 1):
        push = Push(room="fan", n=n, ops=(Inc(state="Counter", path=("count",), by=1),))
        await sockets[0].write_message(codec.encode(push).frame())
        await asyncio.sleep(0.005)
    await asyncio.wait_for(asyncio.gather(*counters), 60)
    used = _cpu(server.pid) - before
    for socket in sockets:
        socket.close()
        # Until the other side has said goodbye as well.
        while await socket.read_message() is not None:
            pass
    return used


async def _joined(server: LiveServer, index: int) -> WebSocketClientConnection:
    request = HTTPRequest(server.socket_url, headers=server.headers)
    socket = await websocket_connect(request, subprotocols=["sharedwidgets.v1"])
    hello = Hello(protocol=1, boot=f"bench-{index}", kind="script")
    join = Join(id=1, room="fan", state="Counter", schema={"count": TraitSchema(kind="int")}, values={"count": 0})
    for message in (hello, join):
        await socket.write_message(codec.encode(message).frame())
    while not isinstance(codec.decode_downstream(await socket.read_message() or ""), Joined):
        continue
    return socket


async def _count(socket: WebSocketClientConnection, changes: int) -> None:
    seen = 0
    while seen < changes:
        message = codec.decode_downstream(await socket.read_message() or "")
        if isinstance(message, Entries):
            seen += len(message.entries)


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _note(arrived: dict[int, float], message: dict[str, Any]) -> None:
    state = message.get("content", {}).get("data", {}).get("state", {})
    if message.get("msg_type") == "comm_msg" and "value" in state:
        arrived.setdefault(state["value"], time.monotonic())


FIGURES: dict[str, Callable[[LiveServer, argparse.Namespace], dict[str, Any]]] = {
    "kernel to kernel": lambda server, options: kernel_to_kernel(server, options.changes),
    "bytes of one increment": lambda server, options: bytes_of_one_increment(),
    "server CPU": lambda server, options: server_cpu_per_delivery(server, options.members, 500),
    "computed": lambda server, options: computed_traits(2000),
    "import": lambda server, options: import_time(15),
    "locks": lambda server, options: locks(server, options.seconds),
    "increments": lambda server, options: increments(server, options.seconds),
}


def main(arguments: list[str] | None = None) -> None:
    """Measure everything, or what is asked for, and print it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--changes", type=int, default=1000, help="from kernel to kernel")
    parser.add_argument("--members", type=int, default=100, help="of the room whose server is measured")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each loop of locks and increments")
    parser.add_argument("--only", choices=list(FIGURES), help="one figure")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder, LiveServer(Path(folder)) as server:
        for name, measure in FIGURES.items():
            if options.only in (None, name):
                print(name, json.dumps(measure(server, options), indent=1), flush=True)


if __name__ == "__main__":
    main()
