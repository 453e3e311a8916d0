"""The system's Chromium, and the demo that starts a private JupyterLab for it."""

from __future__ import annotations

import importlib.util
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import Browser, Playwright

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


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    """Wait for something no page can tell, with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)
