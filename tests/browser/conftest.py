"""A browser per module, one JupyterLab for all; a test opens its own notebooks and windows."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from support.lab import chromium
from support.tabs import RECORDER, Jupyter, Tab

# A reload takes longer than the first, and not as long as the second, which is short enough to wait for.
AWAY_SECONDS, PAGE_AWAY_SECONDS = 0.5, 15


# For a module and no longer: Playwright's loop runs on the main thread, where async tests of other modules need their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        running = chromium(playwright)
        yield running
        running.close()


@pytest.fixture(scope="session")
def jupyter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Jupyter]:
    """One server for the tests that leave it in peace; each has rooms and notebooks of its own."""
    limits = {"away_seconds": AWAY_SECONDS, "page_away_seconds": PAGE_AWAY_SECONDS}
    running = Jupyter(tmp_path_factory.mktemp("jupyter"), f"--SharedWidgetsApp.limits={limits}")
    running.start()
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = new_context(browser)
    yield opened
    opened.close()


def new_context(browser: Browser) -> BrowserContext:
    opened = browser.new_context(viewport={"width": 900, "height": 760})
    opened.add_init_script(RECORDER)
    return opened


@pytest.fixture
def token(request: pytest.FixtureRequest) -> str:
    """A room of the test's own."""
    return re.sub(r"\W+", "-", request.node.name)


@pytest.fixture
def open_tab(jupyter: Jupyter, context: BrowserContext) -> Iterator[Callable[..., Tab]]:
    """Opens tabs; afterwards none of them had an error, and none more than one socket to the rooms."""
    tabs: list[Tab] = []

    def opens(*names: str, cards: int | None = None) -> Tab:
        tabs.append(jupyter.open(context, *names, cards=cards))
        return tabs[-1]

    yield opens
    found = [(tab.errors, tab.sockets()) for tab in tabs if not tab.page.is_closed()]
    for tab in tabs:
        tab.page.close()
    assert found == [([], 1)] * len(found)
