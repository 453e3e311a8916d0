"""Two notebooks, two kernels, one state; also while a kernel is busy, and when it is dead."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from playwright.sync_api import expect

from support.lab import AT_ONCE_MS, RESULTS
from support.tabs import Delays, Jupyter, Loop, Tab, delays, eventually

OpenTab = Callable[..., Tab]


def at_once(name: str, measured: Delays) -> None:
    """Nine of ten moves were painted at once; the tenth is the machine's."""
    lines = []
    for what, times in (("shown", measured.shown), ("painted", measured.painted)):
        tenth = statistics.quantiles(times, n=10)[-1]
        lines.append(
            f"{name}, {what}: median {statistics.median(times):.0f} ms, "
            f"90 % below {tenth:.0f}, max {max(times):.0f}, n = {len(times)}"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"press-to-painted-{name}.txt").write_text("\n".join([*lines, ""]))
    assert statistics.quantiles(measured.painted, n=10)[-1] < AT_ONCE_MS, measured.painted


def moved(source: Tab, target: Tab, start: int, presses: int) -> Delays:
    """Press the arrow so often in one tab; how long until all of the other had each value. Both show the last."""
    source.press(presses)
    for tab in (source, target):
        tab.shows(start + presses)
    return delays(source, target, range(start + 1, start + presses + 1))


def test_idle_kernels(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    (one, a), (two, b) = jupyter.motors(token)
    left, right = open_tab(one), open_tab(two)
    before = jupyter.seq(token)
    measured = moved(left, right, 20, 10) + moved(right, left, 30, 10)
    for kernel in (a, b):
        eventually(lambda kernel=kernel: kernel.value("[motor.speed, slider.value]"), [40, 40])
    assert jupyter.seq(token) == before + 20
    at_once("idle", measured)


def test_a_busy_kernel_freezes_nobody(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    loop = Loop(jupyter.demo.root)
    (one, a), (two, b) = jupyter.motors(token, by_hand=[loop.code])
    left, right = open_tab(one), open_tab(two)
    cell = left.run_cell(3)
    loop.wait()
    before = jupyter.seq(token)

    measured = moved(right, left, 20, 10)
    measured += moved(left, right, 30, 10)
    eventually(lambda: b.value("motor.speed"), 40)
    left.shot("busy-a")
    right.shot("busy-b")
    assert cell.locator(".jp-InputPrompt").inner_text() == "[*]:"
    assert jupyter.seq(token) == before + 20
    at_once("busy", measured)

    loop.end()
    expect(cell.locator(".jp-InputPrompt")).not_to_have_text("[*]:", timeout=20_000)
    for kernel in (a, b):
        eventually(lambda kernel=kernel: kernel.value("[motor.speed, slider.value]"), [40, 40])
    assert jupyter.seq(token) == before + 20
    # One more from each side: whatever a kernel that caught up would have sent late has come before it.
    moved(right, left, 40, 1)
    moved(left, right, 41, 1)
    eventually(lambda: a.value("motor.speed"), 42)
    assert jupyter.seq(token) == before + 22


def test_a_busy_loop_sees_every_move(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    live = "for _ in motor.live(iter(lambda: motor.stop, True)):\n    motor.heard = motor.speed\n    time.sleep(0.01)"
    pull = "while not motor.pull().stop:\n    motor.heard = motor.speed\n    time.sleep(0.01)"
    (one, _), (two, _) = jupyter.motors(token, by_hand=[live, pull])
    left, right = open_tab(one), open_tab(two)
    before, speed = jupyter.seq(token), 20
    stop = right.page.locator(".widget-toggle-button")
    for index in (3, 4):
        cell = left.run_cell(index)
        for _ in range(6):
            right.press()
            speed += 1
            right.shows(speed, "heard")
        assert cell.locator(".jp-InputPrompt").inner_text() == "[*]:"
        stop.click()
        expect(cell.locator(".jp-InputPrompt")).not_to_have_text("[*]:", timeout=20_000)
        stop.click()
        left.wait("() => document.querySelector('dd[data-trait=stop]').textContent === 'false'")
    # Each move, the loop's word of it, its first word before any, and the button four times.
    assert jupyter.seq(token) == before + 12 + 12 + 1 + 4


def test_side_by_side_in_one_tab(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    (one, a), (two, b) = jupyter.motors(token)
    tab = open_tab(one, two)
    before = jupyter.seq(token)
    tab.press(5, slider=0)
    tab.press(3, "ArrowLeft", slider=1)
    tab.shows(22)
    for kernel in (a, b):
        eventually(lambda kernel=kernel: kernel.value("[motor.speed, slider.value]"), [22, 22])
    assert jupyter.seq(token) == before + 8


def test_a_second_view_of_one_state(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    name, kernel = jupyter.motor(token, "display(motor, slider)")
    tab = open_tab(name, cards=2)
    before = jupyter.seq(token)
    assert tab.page.locator(".sharedwidgets-card").count() == tab.page.locator(".noUi-handle").count() == 2
    tab.press(4, slider=0)
    tab.shows(24)
    tab.press(3, "ArrowLeft", slider=1)
    tab.shows(21)
    jupyter.set(token, speed=50)
    tab.shows(50)
    eventually(lambda: kernel.value("[motor.speed, slider.value]"), [50, 50])
    assert jupyter.seq(token) == before + 8


def test_a_late_joiner(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    (one, _), (two, b) = jupyter.motors(token)
    early = open_tab(one)
    before = jupyter.seq(token)
    early.press(5)
    jupyter.set(token, heard=7)
    early.shows(25)
    late = open_tab(two)
    late.shows(25)
    assert late.card.locator("dd[data-trait=heard]").inner_text() == "7"
    late.press(2, "ArrowLeft")
    for tab in (early, late):
        tab.shows(23)
        expect(tab.card.locator("summary")).to_have_text("2 kernels, 2 pages")
    eventually(lambda: b.value("motor.speed"), 23)
    assert jupyter.seq(token) == before + 8


def test_pages_go_on_when_their_kernel_is_gone(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    name, kernel = jupyter.motor(token)
    first, second = open_tab(name), open_tab(name)
    before = jupyter.seq(token)
    kernel.stop()
    eventually(lambda: jupyter.members(token, "kernel"), [])
    first.press(5)
    second.shows(25)
    second.press(3, "ArrowLeft")
    for tab in (first, second):
        tab.shows(22)
        expect(tab.card.locator("summary")).to_have_text("2 pages")
    first.shot("kernel-gone")
    assert jupyter.seq(token) == before + 8
