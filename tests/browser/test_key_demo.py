"""The thing itself: two notebooks, two kernels, several pages, one live state; also while a kernel is busy."""

from __future__ import annotations

import json
import os
import statistics
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from playwright.sync_api import Page, WebSocket

from support.lab import AT_ONCE_MS, RESULTS, Lab, all_show, press, until

SCALE = float(os.environ.get("SHAREDWIDGETS_TEST_SCALE", "0.1"))
BUSY = """
import time
log, until = [], time.monotonic() + {seconds}
for _ in motor.live(iter(lambda: time.monotonic() < until, False)):
    log.append(motor.speed)
    time.sleep(0.02)
"""


def kernel(lab: Lab, name: str) -> BlockingKernelClient:
    session = next(item for item in lab.ask("GET", "api/sessions") if item["path"] == name)
    client = BlockingKernelClient(connection_file=str(lab.demo.runtime / f"kernel-{session['kernel']['id']}.json"))
    client.load_connection_file()
    client.start_channels()
    return client


def value(client: BlockingKernelClient, expression: str) -> Any:
    answer = client.execute_interactive(
        "", timeout=60, output_hook=lambda message: None, user_expressions={"v": f"__import__('json').dumps({expression})"}
    )
    told = answer["content"]["user_expressions"]["v"]
    assert told["status"] == "ok", told
    return json.loads(told["data"]["text/plain"][1:-1])


def delay_of(page: Page, text: str) -> float:
    """Milliseconds from the last key press to the last slider or card painted with this text."""
    times = page.evaluate(
        "text => painted.filter(([, s, at]) => s === text && at >= pressed).map(([,, at]) => at - pressed)",
        text,
    )
    assert len(times) >= 3, times
    return max(times)


def one_press(page: Page, index: int, expected: int) -> float:
    press(page, index, 1)
    all_show(page, expected)
    return delay_of(page, str(expected))


def test_idle_busy_and_afterwards(lab: Lab) -> None:
    page = lab.open()
    start = lab.value("speed")
    before = lab.seq()
    idle = [one_press(page, index % 2, start + count) for count, index in enumerate((0, 1) * 3, 1)]
    assert lab.seq() == before + 6

    a, b = kernel(lab, "A.ipynb"), kernel(lab, "B.ipynb")
    until(lambda: value(b, "motor.speed") == start + 6)
    busy_cell = a.execute(BUSY.format(seconds=20))

    before = lab.seq()
    value_now = start + 6
    busy = []
    for index in (1, 0) * 3:
        value_now += 1
        busy.append(one_press(page, index, value_now))
    # A is still in its loop; what was moved in A's page reached kernel B all the same.
    until(lambda: value(b, "motor.speed") == value_now, seconds=5)
    RESULTS.mkdir(exist_ok=True)
    page.screenshot(path=str(RESULTS / "busy.png"))
    assert lab.seq() == before + 6
    assert not _finished(a, busy_cell)

    _finish(a, busy_cell)
    assert value(a, "motor.speed") == value_now
    assert set(range(start + 7, value_now + 1)) <= set(value(a, "log"))
    all_show(page, value_now)
    assert lab.seq() == before + 6
    assert max(idle + busy) < AT_ONCE_MS, (idle, busy)
    figures = {"idle_ms": statistics.median(idle), "busy_ms": statistics.median(busy), "n": 6}
    (RESULTS / "press_to_painted.json").write_text(json.dumps(figures))


def test_two_tabs_on_one_kernel_lose_nothing(lab: Lab) -> None:
    first, second = lab.open(), lab.open()
    for _ in range(max(2, int(8 * SCALE))):
        start, before = lab.value("speed"), lab.seq()
        key, step = ("ArrowRight", 1) if start < 50 else ("ArrowLeft", -1)
        for count in range(30):
            press((first, second)[count % 2], count % 2, 1, key)
        for page in (first, second):
            all_show(page, start + 30 * step)
        assert lab.seq() == before + 30
    assert [page.evaluate("window.sockets") for page in (first, second)] == [1, 1]


def test_reload_comes_back_live_and_without_leave_and_join(lab: Lab) -> None:
    page = lab.open()
    members = {
        member["id"] for member in lab.ask("GET", f"sharedwidgets/api/rooms/{lab.room}")["members"] if member["state"] == "live"
    }
    page.reload()
    lab.live(page, 2)
    after = {
        member["id"] for member in lab.ask("GET", f"sharedwidgets/api/rooms/{lab.room}")["members"] if member["state"] == "live"
    }
    assert after == members
    before, start = lab.seq(), lab.value("speed")
    press(page, 1, 2)
    all_show(page, start + 2)
    assert lab.seq() == before + 2


def present(lab: Lab) -> set[str]:
    """The members of the room that are not away."""
    members = lab.ask("GET", f"sharedwidgets/api/rooms/{lab.room}")["members"]
    return {member["id"] for member in members if member["state"] == "live"}


def test_a_closed_tab_is_gone_from_the_list(lab: Lab) -> None:
    page, other = lab.open(), lab.open()

    def pages() -> int:
        members = lab.ask("GET", f"sharedwidgets/api/rooms/{lab.room}")["members"]
        return sum(member["kind"] == "frontend" for member in members)

    until(lambda: pages() == 2)
    other.close()
    until(lambda: pages() == 1)
    page.wait_for_function("document.querySelector('.sw-members summary').textContent.includes('1 page')")


def test_a_change_from_outside_and_a_hostile_text(lab: Lab) -> None:
    """A value is text and nothing else, whatever it holds."""
    page = lab.open()
    client = kernel(lab, "A.ipynb")
    code = """
from sharedwidgets import SharedState
class Hostile(SharedState):
    text = t.Unicode()
    tags = t.Dict()
    _hidden = t.Unicode("KERNELS" + "-ONLY")
hostile = Hostile().link_to("two-notebooks-demo")
hostile.text = "<img src=x onerror=window.pwned=1>"
hostile.tags = {"__proto__": {"polluted": 1}, "constructor": 2}
hostile.flush()
"""
    assert client.execute_interactive(code, timeout=30)["content"]["status"] == "ok"
    frames: list[str] = []
    rooms: list[str] = []

    def listen(socket: WebSocket) -> None:
        heard = rooms if "sharedwidgets" in socket.url else frames
        socket.on("framereceived", lambda payload: heard.append(str(payload)))

    page.on("websocket", listen)
    page.reload()
    lab.live(page, 2)
    assert page.evaluate("window.pwned") == 0
    assert page.evaluate("({}).polluted === undefined")
    assert any("onerror" in frame for frame in rooms)
    assert not [frame for frame in (*rooms, *frames) if "KERNELS-ONLY" in frame]
    assert not [frame for frame in rooms if "_hidden" in frame]
    assert "sw1-" not in page.content()


def test_a_lost_server_is_found_again_and_nothing_set_meanwhile_is_lost(lab: Lab) -> None:
    page = lab.open()
    start = lab.value("speed")
    lab.context.set_offline(True)
    page.evaluate(
        "[...Object.getOwnPropertySymbols(globalThis)].map(s => globalThis[s]).forEach(r => r?.connection?.socket?.close?.())"
    )
    page.wait_for_function("document.querySelector('.sharedwidgets-card').dataset.link !== 'live'", timeout=10_000)
    press(page, 0, 3)
    page.wait_for_function("text => document.querySelector('.widget-readout').textContent === text", arg=str(start + 3))
    assert lab.value("speed") == start
    lab.context.set_offline(False)
    lab.live(page, 2)
    all_show(page, start + 3)
    until(lambda: lab.value("speed") == start + 3)


def test_pages_go_on_when_a_kernel_is_shut_down(lab: Lab) -> None:
    """The last test of its module: kernel A does not come back."""
    first, second = lab.open(), lab.open()
    session = next(item for item in lab.ask("GET", "api/sessions") if item["path"] == "A.ipynb")
    lab.ask("DELETE", f"api/kernels/{session['kernel']['id']}")
    start, before = lab.value("speed"), lab.seq()
    first.wait_for_function("document.querySelectorAll('.sw-members summary')[0].textContent.includes('1 kernel')")
    press(first, 0, 3)
    press(second, 0, 2)
    for page in (first, second):
        all_show(page, start + 5)
    assert lab.seq() == before + 5


def _finished(client: BlockingKernelClient, message_id: str) -> bool:
    while client.shell_channel.msg_ready():
        if client.get_shell_msg(timeout=1)["parent_header"].get("msg_id") == message_id:
            return True
    return False


def _finish(client: BlockingKernelClient, message_id: str) -> None:
    until(lambda: _finished(client, message_id), seconds=40)
