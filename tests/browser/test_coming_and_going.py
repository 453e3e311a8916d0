"""Reloads, restarts, lost sockets and closed tabs."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import traitlets as t
from playwright.sync_api import Browser, expect

from conftest import PAGE_AWAY_SECONDS, new_context
from sharedwidgets import SharedState
from support.stalling import Stalling
from support.tabs import CONTROLS, MOTOR, SHOW, Jupyter, Tab, eventually

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


def test_a_reload_with_a_busy_kernel_comes_back_when_the_kernel_is_idle(
    jupyter: Jupyter, open_tab: OpenTab, token: str
) -> None:
    """Jupyter asks the kernel for its widgets: until it answers there is nothing to show, and we promise nothing else."""
    name, _ = jupyter.motor(token)
    other, kernel = jupyter.motor(token)
    tab = open_tab(other)
    before = jupyter.seq(token)
    (page,) = jupyter.members(token, "frontend")
    room, left = jupyter.script(token), []
    room.on_leave(lambda member: left.append((member.kind, member.id)))
    with kernel.occupy() as busy:
        tab.press()
        tab.page.reload()
        tab.wait("() => document.querySelectorAll('.jp-CodeCell').length === 3")
        # The room goes on meanwhile.
        elsewhere = open_tab(name)
        elsewhere.shows(21)
        elsewhere.press(4)
        elsewhere.shows(25)
        assert busy.lasts
        assert tab.page.locator(".sharedwidgets-card").count() == 0
        (away,) = [member for member in jupyter.members(token, "frontend") if member["id"] == page["id"]]
        assert (away["state"], away["since"]) == ("away", page["since"])
    tab.live()
    assert page["id"] in {member["id"] for member in jupyter.members(token, "frontend", "live")}
    assert left == []
    tab.shows(25)
    tab.press()
    elsewhere.shows(26)
    assert jupyter.seq(token) == before + 6


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
    eventually(lambda: len(events), 1, PAGE_AWAY_SECONDS + 5)
    took = time.monotonic() - closed
    (left,) = events
    assert left[0] == "leave"
    assert {member["id"] for member in jupyter.members(token, "frontend")} == pages - {left[1]}
    assert PAGE_AWAY_SECONDS - 1 < took < PAGE_AWAY_SECONDS + 4
    expect(staying.card.locator("summary")).to_have_text("1 kernel, 1 page, 1 script")


def test_cells_run_in_lab_and_all_again_after_a_restart(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    observed = MOTOR.format(room=token) + '\nmotor.observe(lambda change: print("observed", change.new), names="speed")'
    name = jupyter.notebook(observed, SHOW, CONTROLS, 'print("mine")\ntime.sleep(1)\nprint("mine again")')
    kernel = jupyter.attach(jupyter.demo.start_kernel(name))
    tab = open_tab(name, cards=0)
    tab.wait("() => document.querySelectorAll('.jp-CodeCell').length === 4")
    cells = tab.page.locator(".jp-CodeCell")
    for index in range(4):
        tab.run_cell(index)
        expect(cells.nth(index).locator(".jp-InputPrompt")).to_have_text(f"[{index + 1}]:", timeout=20_000)
    tab.live()

    # Prints of an observer go to the cell that made the state; not to the one that runs.
    tab.press(3)
    expect(cells.nth(0).locator(".jp-OutputArea")).to_contain_text("observed 23")
    tab.run_cell(3)
    tab.press(2)
    expect(cells.nth(3).locator(".jp-OutputArea")).to_contain_text("mine again")
    expect(cells.nth(0).locator(".jp-OutputArea")).to_contain_text("observed 25")
    assert "observed" not in "".join(cells.nth(index).inner_text() for index in (1, 2, 3))
    tab.shot("prints")

    # The same cell again and again leaves one model, in the kernel and in the page.
    following = "room => globalThis[Symbol.for('sharedwidgets.v1')].open.get(room).listeners.size"
    most = tab.page.evaluate(following, token)
    for _ in range(4):
        tab.run_cell(0)
        expect(cells.nth(0).locator(".jp-InputPrompt")).not_to_have_text("[*]:", timeout=20_000)
    models = "[type(model).__name__ for model in w.Widget.widgets.values()].count('Motor')"
    eventually(lambda: kernel.value(models), 1)
    tab.wait(f"([room, most]) => ({following})(room) <= most", [token, most])
    assert len(jupyter.members(token, "kernel", "live")) == 1

    # The room outlives the kernel, and what comes back takes its values.
    before = jupyter.seq(token)
    old = {member["id"] for member in jupyter.members(token, "kernel")}
    tab.begin("notebook:restart-run-all")
    tab.page.locator(".jp-Dialog .jp-mod-accept").click()
    eventually(lambda: {member["id"] for member in jupyter.members(token, "kernel", "live")} & old, set())
    expect(cells.nth(3).locator(".jp-InputPrompt")).to_have_text("[4]:", timeout=20_000)
    tab.live()
    tab.shows(25)
    tab.press(3, "ArrowLeft")
    tab.shows(22)
    # This client is older than the kernel, and subscribes to its output anew only when it looks; what it asked before that
    # would seem to have no end (jupyter_client #593).
    kernel.client.wait_for_ready(timeout=60)
    eventually(lambda: kernel.value("[motor.speed, slider.value]"), [22, 22])
    assert len(jupyter.members(token, "kernel", "live")) == 1
    assert jupyter.seq(token) == before + 3


class Line(Stalling):
    """A way to the server that can be gone: nobody answers at its port."""

    def close(self) -> None:
        """End every connection, and take no new one."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def reopen(self) -> None:
        """Be there again, on the same port."""
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._start(self._accept)


def test_a_lost_socket_comes_back_and_nothing_set_meanwhile_is_lost(jupyter: Jupyter, browser: Browser, token: str) -> None:
    name, kernel = jupyter.motor(token)
    context = new_context(browser)
    with Line(jupyter.port) as way:
        # Lab loads parts of itself when it first needs them; those are not what the line is cut for.
        context.route(
            f"{way.url}static/**", lambda route: route.continue_(url=route.request.url.replace(way.url, jupyter.demo.base))
        )
        tab = jupyter.open(context, name, base=way.url)
        tab.page.evaluate(
            """() => {
                window.links = [];
                const card = document.querySelector(".sharedwidgets-card");
                new MutationObserver(() => window.links.push([card.dataset.link, card.querySelector(".sw-link").textContent]))
                    .observe(card, { attributes: true, attributeFilter: ["data-link"] });
            }"""
        )
        before = jupyter.seq(token)
        way.close()
        expect(tab.card).to_have_attribute("data-link", "offline")
        expect(tab.card.get_by_role("alert")).to_have_text(
            f"The server was not heard: nobody answers at {way.url}. Nothing to do: the connection is opened again."
        )
        tab.press(3)
        tab.shows(23)
        tab.page.locator(".widget-toggle-button").click()
        tab.shot("offline")
        # Others go on, and neither side has heard of the other yet.
        jupyter.set(token, heard=7)
        kernel.run("motor._salt = 'pepper'; motor.flush()")
        assert jupyter.seq(token) == before + 2
        way.reopen()
        tab.live()
        tab.wait("() => document.querySelector('dd[data-trait=heard]').textContent === '7'")
        eventually(lambda: [jupyter.value(token, trait) for trait in ("speed", "stop", "heard")], [23, True, 7])
        tab.shows(23)
        # Three moves that nobody could see were one by the time they left.
        assert jupyter.seq(token) == before + 4
        expect(tab.card.get_by_role("alert")).to_be_hidden()
        links = tab.page.evaluate("window.links")
        assert links[0] == ["offline", "offline"]
        assert links[-1] == ["live", "live"]
        assert ["connecting", "connecting"] in links

        # Cut again and again under moves: each counts once at most, the last one for certain.
        for _ in range(4):
            way.cut()
            tab.press(3)
        tab.live()
        tab.shows(35)
        eventually(lambda: jupyter.value(token, "speed"), 35)
        eventually(lambda: kernel.value("[motor.speed, motor.stop]"), [35, True])
        assert before + 4 < jupyter.seq(token) <= before + 4 + 12
        assert len(jupyter.members(token, "frontend")) == 1
        assert tab.errors == []
        context.close()


@pytest.fixture
def mortal(tmp_path: Path) -> Iterator[Jupyter]:
    """A server that this test may end."""
    running = Jupyter(tmp_path)
    running.start()
    try:
        yield running
    finally:
        running.stop()


class Motor(SharedState, delivery="thread"):
    """The twin of the notebooks' class, in this process."""

    speed = t.Int(20, min=0, max=100)
    heard = t.Int(0)
    stop = t.Bool(False)
    _salt = t.Unicode("")


def test_a_server_comes_back_and_with_it_the_rooms(mortal: Jupyter, browser: Browser, token: str) -> None:
    """One room is held by a script as well, which brings it back; in the other the page is alone, and waits."""
    alone = f"{token}-alone"
    second = f"""
other = Motor().link_to({alone!r})
other_slider = w.IntSlider(max=100)
bind((other, "speed"), (other_slider, "value"))
display(motor, slider, other, other_slider)
"""
    name = mortal.notebook(MOTOR.format(room=token), second)
    mortal.run(name)
    context = new_context(browser)
    tab = mortal.open(context, name, cards=2)
    script = Motor().link_to(token, server=mortal.demo.base, credential=mortal.demo.token)
    for slider in (0, 1):
        tab.press(3, slider=slider)
    assert script.wait_until(lambda: script.speed == 23, 10)
    eventually(lambda: mortal.value(alone, "speed"), 23)
    mortal.demo.stop()
    cards = tab.page.locator(".sharedwidgets-card")
    for card in (cards.nth(0), cards.nth(1)):
        expect(card).to_have_attribute("data-link", "offline")
    for slider in (0, 1):
        tab.press(3, slider=slider)
    tab.shows(26)
    tab.shot("server-down")

    mortal.start()
    expect(cards.nth(0).locator(".sw-link")).to_have_text("live", timeout=20_000)
    assert script.wait_until(lambda: script.speed == 26, 10)
    assert mortal.value(token, "speed") == 26
    expect(cards.nth(0).locator("summary")).to_have_text("1 page, 1 script")

    expect(cards.nth(1).locator(".sw-link")).to_have_text("joining")
    tab.press(2, slider=1)
    late = Motor().link_to(alone, server=mortal.demo.base, credential=mortal.demo.token)
    expect(cards.nth(1).locator(".sw-link")).to_have_text("live", timeout=20_000)
    eventually(lambda: mortal.value(alone, "speed"), 28)
    assert late.wait_until(lambda: late.speed == 28, 10)
    expect(cards.nth(1).locator("dd[data-trait=speed]")).to_have_text("28")
    # Made, and what the page set meanwhile.
    assert mortal.seq(alone) == 2
    for card in (cards.nth(0), cards.nth(1)):
        expect(card.get_by_role("alert")).to_be_hidden()
    assert tab.errors == []
    context.close()
    for state in (script, late):
        state.close()


# Beside the user's own slider, a widget that shows the test what the page's manager has.
PROBE = """
import anywidget
import ipywidgets as w
import traitlets as t
from sharedwidgets import SharedState, bind

class Motor(SharedState):
    speed = t.Int(20, min=0, max=100)

class Probe(anywidget.AnyWidget):
    _esm = "export default { render({ model }) { window.manager = model.widget_manager; } };"

slider = w.IntSlider(max=100)
w.VBox([Probe(), slider])
"""
RUN_OFTEN = """
motor = Motor().link_to({room!r})
bind((motor, "speed"), (slider, "value"))
motor
"""
LIVE_MODELS = """async () => (await Promise.all(Object.values(window.manager._models))).map((model) => model.name).sort()"""


def test_a_cell_that_is_run_20_times_leaves_the_page_as_it_was(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    name = jupyter.notebook(PROBE, by_hand=[RUN_OFTEN.format(room=token)])
    kernel = jupyter.run(name)
    tab = open_tab(name, cards=0)
    tab.wait("() => window.manager !== undefined")
    before = tab.page.evaluate(LIVE_MODELS)
    for number in range(21):
        tab.run_cell(1)
        kernel.run(f"motor.speed = {number}; motor.flush()")
        tab.shows(number)
        # One state with its layout, and one binding.
        eventually(lambda: tab.page.evaluate(LIVE_MODELS), sorted([*before, "AnyModel", "AnyModel", "LayoutModel"]))
    assert tab.page.locator(".sharedwidgets-card").count() == 1
    assert tab.page.evaluate("window.sockets.map((socket) => socket.readyState)") == [1]
    assert [member["kind"] for member in jupyter.room(token)["members"]] == ["kernel", "frontend"]
