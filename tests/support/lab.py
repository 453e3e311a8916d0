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

RECORDER = "window.pwned = 0;"


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
            "n => [...document.querySelectorAll('.sw-link')].filter(e => e.textContent === 'live').length >= n",
            arg=cards,
            timeout=WAIT_MS,
        )

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


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something no page can tell, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
