"""Several tabs on one kernel: whatever the kernel echoes late must not count as a move."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from support.scale import SCALE
from support.tabs import CONTROLS, SHOW, Jupyter, Tab, eventually

OpenTab = Callable[..., Tab]

ROUNDS = max(2, round(8 * SCALE))
PRESSES = 30

LINKED_BY_JSLINK = """
import ipywidgets as w
import traitlets as t
from sharedwidgets import SharedState

class Motor(SharedState):
    speed = t.Int(20, min=0, max=100)

motor = Motor().link_to({room!r})
slider, button = w.IntSlider(max=100), w.ToggleButton()
link = w.jslink((motor, "speed"), (slider, "value"))
"""

TWELVE = """
import traitlets as t
from sharedwidgets import SharedState

class Motor(SharedState):
    speed = t.Int(20)

motors = [Motor().link_to("{room}-" + str(number % 3)) for number in range(12)]
display(*motors)
"""


@pytest.mark.timeout(60 + 30 * ROUNDS)
def test_presses_in_turns_on_one_kernel(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    name, kernel = jupyter.motor(f"{token}-0")
    tabs = [open_tab(name), open_tab(name)]
    for number in range(1, ROUNDS + 1):
        room = f"{token}-{number}"
        kernel.run(f"motor.link_to({room!r})")
        for tab in tabs:
            expect(tab.card.locator(".sw-token")).to_have_text(room)
            tab.shows(20)
        before, speed = jupyter.seq(room), 20
        # One by one in the first round; then each tab moves several times before it is the other's turn.
        turn = 1 if number % 2 else 3
        for count in range(PRESSES // turn):
            tab = tabs[count % 2]
            tab.shows(speed)
            tab.press(turn)
            speed += turn
        for tab in tabs:
            tab.shows(20 + PRESSES)
        eventually(lambda: kernel.value("[motor.speed, slider.value]"), [20 + PRESSES] * 2)
        assert jupyter.seq(room) == before + PRESSES
    # The kernel's own writes reach both tabs, and come back from neither.
    before = jupyter.seq(room)
    kernel.run("motor.speed = 70; motor.flush()")
    for tab in tabs:
        tab.shows(70)
    eventually(lambda: kernel.value("slider.value"), 70)
    tabs[1].press()
    for tab in tabs:
        tab.shows(71)
    assert jupyter.seq(room) == before + 2


def test_two_tabs_and_a_busy_kernel(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    name, kernel = jupyter.motor(token)
    first, second = open_tab(name), open_tab(name)
    before = jupyter.seq(token)
    with kernel.occupy() as busy:
        for tab, presses, key, after in (
            (first, 20, "ArrowRight", 40),
            (second, 8, "ArrowLeft", 32),
            (first, 3, "ArrowRight", 35),
        ):
            tab.press(presses, key)
            first.shows(after)
            second.shows(after)
        assert jupyter.seq(token) == before + 31
        assert busy.lasts
    eventually(lambda: kernel.value("[motor.speed, slider.value]"), [35, 35])
    for tab in (first, second):
        tab.shows(35)
    assert jupyter.seq(token) == before + 31
    # Whatever the kernel would have sent late has come before these.
    second.press()
    first.shows(36)
    first.press()
    second.shows(37)
    eventually(lambda: kernel.value("[motor.speed, slider.value]"), [37, 37])
    assert jupyter.seq(token) == before + 33


def test_jslink_with_one_tab(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    name = jupyter.notebook(LINKED_BY_JSLINK.format(room=token), SHOW, CONTROLS)
    kernel = jupyter.run(name)
    tab = open_tab(name)
    tab.shows(20)
    before = jupyter.seq(token)
    tab.press(5)
    tab.shows(25)
    jupyter.set(token, speed=70)
    tab.shows(70)
    tab.press(2, "ArrowLeft")
    tab.shows(68)
    eventually(lambda: kernel.value("[motor.speed, slider.value]"), [68, 68])
    assert jupyter.seq(token) == before + 8


def test_twelve_states_in_three_rooms_are_one_socket(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    name = jupyter.notebook(TWELVE.format(room=token))
    jupyter.run(name)
    tab = open_tab(name, cards=12)
    assert tab.page.locator(".sharedwidgets-card[data-link=live]").count() == 12
    assert tab.sockets() == 1
    for number in range(3):
        jupyter.set(f"{token}-{number}", speed=30)
        assert len(jupyter.members(f"{token}-{number}", "frontend")) == len(jupyter.members(f"{token}-{number}", "kernel")) == 1
    tab.shows(30)
