"""Reloads and closed tabs."""

from __future__ import annotations

import time
from collections.abc import Callable

from playwright.sync_api import expect

from conftest import AWAY_SECONDS
from support.tabs import Jupyter, Tab, eventually

OpenTab = Callable[..., Tab]


def test_a_reload_with_an_idle_kernel(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    name, kernel = jupyter.motor(token)
    tab = open_tab(name)
    before = jupyter.seq(token)
    tab.press(3)
    tab.page.reload()
    tab.live()
    tab.shows(23)
    tab.press(2)
    tab.shows(25)
    eventually(lambda: kernel.value("[motor.speed, slider.value]"), [25, 25])
    assert jupyter.seq(token) == before + 5


def test_a_reload_is_no_leaving_and_a_closed_tab_is(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    name, _ = jupyter.motor(token)
    staying, closing = open_tab(name), open_tab(name)
    pages = {member["id"] for member in jupyter.members(token, "frontend")}
    assert len(pages) == 2
    events: list[tuple[str, str]] = []
    room = jupyter.script(token)
    room.on_join(lambda member: events.append(("join", member.id)))
    room.on_leave(lambda member: events.append(("leave", member.id)))

    staying.page.reload()
    staying.live()
    assert {member["id"] for member in jupyter.members(token, "frontend", "live")} == pages
    closing.page.close()
    closed = time.monotonic()
    # A leave of the page that was reloaded would have come before this one.
    eventually(lambda: len(events), 1, AWAY_SECONDS + 5)
    took = time.monotonic() - closed
    (left,) = events
    assert left[0] == "leave"
    assert {member["id"] for member in jupyter.members(token, "frontend")} == pages - {left[1]}
    assert AWAY_SECONDS - 1 < took < AWAY_SECONDS + 4
    expect(staying.card.locator("summary")).to_have_text("1 kernel, 1 page, 1 script")
