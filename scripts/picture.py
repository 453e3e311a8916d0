"""Make the README's picture, two-notebooks.png: one slider in two notebooks, moved while one of the kernels is busy."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import nbformat
from demo import ROOT, Demo
from playwright.sync_api import Page, sync_playwright

PICTURE = ROOT / "two-notebooks.png"
WIDTH, HEIGHT = 1400, 640
LARGEST = 150_000
PRESSES = 22

SHARED = """
import traitlets as t
from ipywidgets import IntSlider, VBox
from sharedwidgets import SharedState, bind

class Motor(SharedState):
    speed = t.Int(20, min=0, max=100)

motor = Motor().link_to("two-notebooks-demo")
slider = IntSlider(max=100)
bind((motor, "speed"), (slider, "value"))
VBox([motor, slider])
"""

BUSY = """
for step in motor.live(range(10_000)):
    train(motor.speed)  # busy for an hour
"""

TRAIN = """
import time

def train(speed):
    time.sleep(0.1)
"""


def main() -> None:
    """Run the two notebooks, move a slider, and take the picture."""
    folder = Path(tempfile.mkdtemp(prefix="sharedwidgets-picture-"))
    _write(folder / "A.ipynb", SHARED, BUSY)
    _write(folder / "B.ipynb", SHARED, "motor.speed, slider.value")
    demo = Demo(folder / "lab", {name: folder / name for name in ("A.ipynb", "B.ipynb")})
    # So that the loop in the picture can be two lines.
    startup = folder / "lab" / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "train.py").write_text(TRAIN)
    demo.environ["IPYTHONDIR"] = str(folder / "lab" / "ipython")
    try:
        demo.start("--port=0")
        demo.run_notebooks()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
            )
            page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
            page.goto(demo.url)
            _move(page)
            page.screenshot(path=str(PICTURE))
            browser.close()
    finally:
        demo.stop()
        shutil.rmtree(folder, ignore_errors=True)
    size = PICTURE.stat().st_size
    if size > LARGEST:
        raise SystemExit(f"{PICTURE.name} has {size} bytes, more than {LARGEST}")
    print(f"{PICTURE.name}: {size} bytes")


def _move(page: Page) -> None:
    """Begin the loop in A, move the slider of B, and wait until both show it, and B's kernel too."""
    live = "n => document.querySelectorAll('.sharedwidgets-card[data-link=live] dd').length === n"
    page.wait_for_function(live, arg=2, timeout=60_000)
    prompt = page.locator(".jp-NotebookPanel").first.locator(".jp-CodeCell .jp-InputPrompt").nth(1)
    while prompt.inner_text() != "[*]:":
        # Lab may look idle before it takes orders.
        page.locator(".jp-NotebookPanel").first.locator(".cm-content").nth(1).click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(500)
    handle = page.locator(".noUi-handle").last
    for _ in range(PRESSES):
        handle.press("ArrowRight")
        page.wait_for_timeout(60)
    shown = "text => [...document.querySelectorAll('.widget-readout, dd[data-trait=speed]')].every(e => e.textContent === text)"
    page.wait_for_function(shown, arg=str(20 + PRESSES))
    second = page.locator(".jp-NotebookPanel").last
    while "(42, 42)" not in second.inner_text():
        second.locator(".cm-content").nth(1).click()
        page.keyboard.press("Shift+Enter")
        page.wait_for_timeout(500)
    page.evaluate("document.activeElement.blur()")
    page.mouse.move(WIDTH / 2, HEIGHT - 5)


def _write(path: Path, setup: str, by_hand: str) -> None:
    cells = [
        nbformat.v4.new_code_cell(setup.strip()),
        nbformat.v4.new_code_cell(by_hand.strip(), metadata={"tags": ["by-hand"]}),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
