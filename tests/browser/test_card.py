"""The card: what a person sees of a state, in both themes, by keyboard, and where there is little room."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

from support.lab import RESULTS, ROOT
from support.tabs import MOTOR, SHOW, Jupyter, Tab, eventually

OpenTab = Callable[..., Tab]

AXE = ROOT / "js" / "node_modules" / "axe-core" / "axe.min.js"
SERIOUS = {"serious", "critical"}

MANY = """
import traitlets as t
from sharedwidgets import SharedState

class Everything(SharedState):
    a_name_of_a_trait_that_is_as_long_as_any_that_someone_may_think_of = t.Int(1)
    text = t.Unicode("no place to break" * 3 + "x" * 300)
    numbers = t.List(list(range(300)))
    table = t.Dict({{"key": {{"inner": [1, 2.5, None, True]}}, "k" * 80: "v"}})
    data = t.Bytes(b"12345")
    nothing = t.Any(None)

everything = Everything().link_to({room!r})
everything
"""

# More than the room takes at one end of the slider.
TOO_WIDE = """
wide = w.IntSlider(min=0, max=200, description="wide")
bind((motor, "speed"), (wide, "value"))
display(motor, wide)
"""


def serious(page: Page) -> list[Any]:
    """What axe-core finds wrong with the cards of a page, and must not."""
    page.evaluate(AXE.read_text())
    found = page.evaluate("() => axe.run('.sharedwidgets-card')")
    assert found["passes"]
    return [(item["id"], [node["html"] for node in item["nodes"]]) for item in found["violations"] if item["impact"] in SERIOUS]


def overflowing(page: Page) -> list[str]:
    """Parts of cards that reach out of them, and cards that reach out of what they are in."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll('.sharedwidgets-card')].flatMap((card) => {
            const right = (element) => element.getBoundingClientRect().right;
            const parts = [...card.querySelectorAll(':not(style)')].filter((part) =>
                right(part) > right(card) + 0.5 || (part.clientWidth && part.scrollWidth > part.clientWidth + 1));
            if (right(card) > right(card.parentElement) + 0.5 || right(card) > innerWidth) parts.push(card);
            return parts.map((part) => part.outerHTML.slice(0, 100));
        })"""
    )
    return found


def theme(tab: Tab, name: str, light: bool) -> None:
    tab.page.evaluate("theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme })", name)
    tab.wait("light => document.body.dataset.jpThemeLight === light", str(light).lower())
    # The style sheet of a theme comes a moment after its name.
    tab.wait(
        """light => {
            const [r, g, b] = getComputedStyle(document.querySelector('.sharedwidgets-card')).backgroundColor.match(/\\d+/g);
            return Number(r) + Number(g) + Number(b) > 384 === light;
        }""",
        light,
    )
    expect(tab.page.locator("#jupyterlab-splash")).to_have_count(0)


def test_light_dark_and_narrow(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    name = jupyter.notebook(MANY.format(room=token + "-" * 80))
    jupyter.run(name)
    tab = open_tab(name)
    tab.card.locator("summary").click()
    for look, light in (("JupyterLab Dark", False), ("JupyterLab Light", True)):
        theme(tab, look, light)
        tab.card.scroll_into_view_if_needed()
        tab.shot(f"card-{'light' if light else 'dark'}")
        assert serious(tab.page) == [], look
        assert overflowing(tab.page) == []
    tab.page.set_viewport_size({"width": 320, "height": 760})
    tab.wait("() => document.querySelector('.sharedwidgets-card').getBoundingClientRect().right <= 320")
    tab.card.scroll_into_view_if_needed()
    tab.shot("card-narrow")
    assert overflowing(tab.page) == []
    tab.page.set_viewport_size({"width": 900, "height": 760})


def test_by_keyboard(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    name = jupyter.notebook(MOTOR.format(room=token), SHOW)
    jupyter.run(name)
    tab = open_tab(name)
    page = tab.page
    # Into the notebook, out of its editor, and on by Tab.
    page.locator(".jp-CodeCell .cm-content").nth(1).click()
    page.keyboard.press("Escape")
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('.sharedwidgets-card summary')"):
            break
    expect(tab.card.locator("summary")).to_be_focused()
    expect(tab.card.locator("li")).to_have_count(2)
    expect(tab.card.locator("ul")).not_to_be_visible()
    page.keyboard.press("Enter")
    expect(tab.card.locator("ul")).to_be_visible()
    assert tab.card.locator("summary").evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    tab.shot("card-keyboard")
    page.keyboard.press("Enter")
    expect(tab.card.locator("ul")).not_to_be_visible()
    assert tab.card.get_attribute("aria-label") == f"Motor in room {token}"
    expect(tab.card.get_by_role("status")).to_have_text("live")


def test_a_value_the_room_does_not_take(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    name = jupyter.notebook(MOTOR.format(room=token), TOO_WIDE)
    jupyter.run(name)
    tab = open_tab(name)
    before = jupyter.seq(token)
    alert = tab.card.get_by_role("alert")
    expect(alert).to_be_hidden()
    tab.press(1, "End")
    expect(alert).to_be_visible()
    expect(alert).to_contain_text("That value was not taken: ")
    expect(alert).to_contain_text("The room's value is shown again; choose another one.")
    tab.shows(20)
    tab.shot("refused")
    assert serious(tab.page) == []
    assert jupyter.seq(token) == before
    tab.press(2)
    tab.shows(22)
    expect(alert).to_be_hidden()
    assert jupyter.seq(token) == before + 2


def test_a_locked_state_says_by_whom_and_its_controls_are_disabled(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    (one, a), (two, _) = jupyter.motors(token)
    tab = open_tab(two)
    a.run("held = motor.lock(); held.acquire(); motor.speed = 21; motor.flush()")
    tab.shows(21)
    lock = tab.card.locator(".sw-lock")
    expect(lock).to_have_text(f"Locked by kernel {one}")
    slider = tab.page.locator(".noUi-target")
    expect(slider).to_have_attribute("disabled", "true")
    before = jupyter.seq(token)
    tab.page.locator(".noUi-handle").focus()
    tab.page.keyboard.press("ArrowRight")
    assert serious(tab.page) == []
    tab.shot("locked")
    a.run("held.release()")
    expect(lock).to_be_hidden()
    expect(slider).not_to_have_attribute("disabled", "true")
    tab.press(2)
    tab.shows(23)
    assert jupyter.seq(token) == before + 1 + 2


def test_a_lock_disables_controls_where_it_is_seen_and_leaves_nothing_behind(
    jupyter: Jupyter, open_tab: OpenTab, token: str
) -> None:
    """Not in the kernel that made the control, nor in a page that comes during the lock or behind it."""
    (_, a), (two, b) = jupyter.motors(token)
    b.run("told = []; slider.observe(lambda change: told.append(change.new), 'disabled')")
    first = open_tab(two)
    a.run("held = motor.lock(); held.acquire(); motor.speed = 21; motor.flush()")
    first.shows(21)
    second = open_tab(two)
    a.run("motor.speed = 22; motor.flush()")
    for tab in (first, second):
        tab.shows(22)
        expect(tab.page.locator(".noUi-target")).to_have_attribute("disabled", "true")
    a.run("motor.speed = 23; held.release()")
    third = open_tab(two)
    for tab in (first, second, third):
        tab.shows(23)
        expect(tab.card.locator(".sw-lock")).to_be_hidden()
        expect(tab.page.locator(".noUi-target")).not_to_have_attribute("disabled", "true")
    third.press()
    first.shows(24)
    eventually(lambda: b.value("[slider.value, slider.disabled, told]"), [24, False, []])


def test_a_lock_whose_holder_goes_is_shown_as_the_next_ones(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    (one, a), (two, b) = jupyter.motors(token)
    tab = open_tab(two)
    lock, slider = tab.card.locator(".sw-lock"), tab.page.locator(".noUi-target")
    a.run("held = motor.lock(); held.acquire()")
    expect(lock).to_have_text(f"Locked by kernel {one}")
    waiting = b.start("held = motor.lock(); held.acquire()")
    expect(lock).to_have_text(f"Locked by kernel {one}; waiting: kernel {two}")
    a.stop()
    expect(lock).to_have_text(f"Locked by kernel {two}")
    expect(slider).to_have_attribute("disabled", "true")
    b.finish(waiting)
    b.run("held.release()")
    expect(lock).to_be_hidden()
    expect(slider).not_to_have_attribute("disabled", "true")
    tab.press()
    tab.shows(21)


OWN_VIEW = """
import anywidget
import traitlets as t
from sharedwidgets import SharedState

class Clicks(SharedState):
    _esm = '''
    function render({{ model, el }}) {{
      const button = document.createElement("button");
      const draw = () => {{ button.textContent = `clicked ${{model.get("count")}}`; }};
      button.className = "own-view";
      button.onclick = () => {{ model.set("count", model.get("count") + 1); model.save_changes(); }};
      model.on("change:count", draw);
      draw();
      el.append(button);
    }}
    export default {{ render }};
    '''
    count = t.Int(0)

clicks = Clicks().link_to({room!r})
clicks
"""


def test_a_class_with_a_view_of_its_own(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    """Its view is shown in place of the card, and the room is behind it, a busy kernel or not."""
    name = jupyter.notebook(OWN_VIEW.format(room=token))
    kernel = jupyter.run(name)
    tab = open_tab(name, cards=0)
    button = tab.page.locator("button.own-view")
    expect(button).to_have_text("clicked 0")
    eventually(lambda: len(jupyter.members(token, "frontend", "live")), 1)
    before = jupyter.seq(token)
    with kernel.occupy() as busy:
        button.click()
        button.click()
        expect(button).to_have_text("clicked 2")
        eventually(lambda: jupyter.value(token, "count", "Clicks"), 2)
        jupyter.set(token, "Clicks", count=7)
        expect(button).to_have_text("clicked 7")
        assert busy.lasts
    eventually(lambda: kernel.value("clicks.count"), 7)
    assert jupyter.seq(token) == before + 3
    assert tab.page.locator(".sharedwidgets-card").count() == 0


def test_every_trouble_says_what_to_do_where_there_is_little_room(browser: Browser, tmp_path: Path) -> None:
    """The real card and its texts in a page of their own."""
    bundle = tmp_path / "card.js"
    esbuild = ROOT / "js" / "node_modules" / ".bin" / "esbuild"
    source = ROOT / "js" / "src" / "card.ts"
    subprocess.run(
        [esbuild, source, "--bundle", "--format=iife", "--global-name=card", f"--outfile={bundle}", "--log-level=error"],
        check=True,
    )
    page = browser.new_page(viewport={"width": 320, "height": 2400})
    page.set_content("<!doctype html><html lang=en><title>t</title><main></main></html>")
    page.evaluate(bundle.read_text().replace("var card =", "window.card =", 1))
    page.evaluate(
        """() => {
            for (const code of [...Object.keys(card.TROUBLES), "something-else"]) {
                const message = "an_unbroken_word_of_the_server_".repeat(4);
                const problem = { code, message, state: "S", path: [], expected: null };
                card.renderCard({
                    facts: { room: "r", state: code, traits: [], computed: [], offline: "" },
                    room: null, holder: null, trouble: problem,
                    values: () => [["speed", 20]], computed: () => [["double", 40], ["late", undefined]],
                    watch: () => () => {},
                }, document.querySelector("main"));
            }
        }"""
    )
    troubles = page.evaluate("card.TROUBLES")
    cards = page.locator(".sharedwidgets-card")
    assert cards.count() == len(troubles) + 1 > 12
    for index, (code, trouble) in enumerate(troubles.items()):
        alert = cards.nth(index).get_by_role("alert")
        expect(alert).to_be_visible()
        text = alert.inner_text()
        assert text.startswith(trouble["text"].rstrip(".")), code
        assert text.endswith(trouble["next"]), code
    assert serious(page) == []
    assert overflowing(page) == []
    RESULTS.mkdir(exist_ok=True)
    page.screenshot(path=str(RESULTS / "troubles.png"), full_page=True)
    page.close()
