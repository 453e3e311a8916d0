"""A real JupyterLab in the system's Chromium, with what the tests ask of it."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from playwright.sync_api import Browser, Page, Playwright

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "test-results"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# "At once" in a page, as this machine's CI can hold it.
AT_ONCE_MS = 250
WAIT_MS = 20_000

# Notes when each slider's readout and each card's value was painted with which text, on the page's own clock.
RECORDER = """
window.painted = [];
window.sockets = 0;
window.pwned = 0;
const Native = WebSocket;
window.WebSocket = class extends Native {
  constructor(url, protocols) { super(url, protocols); if (String(url).includes('sharedwidgets')) window.sockets += 1; }
};
new MutationObserver((mutations) => {
  for (const { target } of mutations) {
    const element = target.nodeType === 3 ? target.parentElement : target;
    const owner = element?.closest?.('.widget-readout, dd[data-trait]');
    if (!owner) continue;
    const name = owner.className || owner.dataset.trait;
    requestAnimationFrame(() => window.painted.push([name, owner.textContent, performance.now()]));
  }
}).observe(document, { subtree: true, childList: true, characterData: true });
addEventListener('keydown', () => { window.pressed = performance.now(); }, true);
"""


def demo_module() -> ModuleType:
    """``scripts/demo.py``, which is no package."""
    if "demo" not in sys.modules:
        spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules["demo"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["demo"])
    return sys.modules["demo"]


def chromium(playwright: Playwright) -> Browser:
    """The system's browser."""
    path = shutil.which("chromium")
    assert path, "no chromium on the PATH; `make setup` says how to get it"
    return playwright.chromium.launch(executable_path=path, args=FLAGS)


class Lab:
    """One JupyterLab with notebooks already run, and the pages open on it."""

    def __init__(self, demo: Any, browser: Browser, room: str) -> None:
        self.demo = demo
        self.browser = browser
        self.room = room
        self.context = browser.new_context(viewport={"width": 1400, "height": 900})
        self.context.add_init_script(RECORDER)
        self.errors: list[str] = []

    def open(self) -> Page:
        """A new tab, with both notebooks and both cards live. JupyterLab gives a workspace to one tab at a time."""
        page = self.context.new_page()
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        workspace = f"tab-{len(self.context.pages)}"
        self.demo.arrange(workspace, self.demo.names)
        page.goto(f"{self.demo.base}lab/workspaces/{workspace}?token={self.demo.token}")
        self.live(page, len(self.demo.names))
        return page

    def live(self, page: Page, cards: int) -> None:
        """Wait until that many cards are live."""
        page.wait_for_function(
            "n => document.querySelectorAll('.sharedwidgets-card[data-link=live] dd').length >= n", arg=cards, timeout=WAIT_MS
        )

    def seq(self) -> int:
        """The room's seq on the server."""
        return int(self.ask("GET", f"sharedwidgets/api/rooms/{self.room}")["seq"])

    def value(self, trait: str, state: str = "Motor") -> Any:
        """A value on the server."""
        return self.ask("GET", f"sharedwidgets/api/rooms/{self.room}")["states"][state]["values"][trait]

    def ask(self, method: str, where: str, body: Any = None) -> Any:
        """A REST call with the token."""
        request = urllib.request.Request(
            self.demo.base + where,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.demo.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def close(self) -> None:
        """Close every tab."""
        self.context.close()


def panel(page: Page, index: int) -> Any:
    """The notebook at that place, from the left."""
    return page.locator(".jp-NotebookPanel").nth(index)


def press(page: Page, index: int, times: int, key: str = "ArrowRight") -> None:
    """Move the slider of a notebook by key presses, each at least 50 ms after the one before."""
    panel(page, index).locator(".noUi-handle").first.focus()
    for _ in range(times):
        page.keyboard.press(key)
        page.wait_for_timeout(55)


def shown(page: Page) -> dict[str, list[str]]:
    """What sliders and cards show, from left to right."""
    return {
        "sliders": [item.inner_text() for item in page.locator(".widget-readout").all()],
        "cards": [item.inner_text() for item in page.locator("dd[data-trait=speed]").all()],
    }


def all_show(page: Page, value: int) -> None:
    """Wait until every slider and every card shows the value."""
    page.wait_for_function(
        "text => [...document.querySelectorAll('.widget-readout, dd[data-trait=speed]')].every(e => e.textContent === text)",
        arg=str(value),
        timeout=WAIT_MS,
    )


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something no page can tell, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
