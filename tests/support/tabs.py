"""Notebooks of a private JupyterLab, their kernels, and the browser tabs open on them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import nbformat
from jupyter_client.blocking.client import BlockingKernelClient
from playwright.sync_api import BrowserContext, Locator, Page, WebSocket
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from sharedwidgets import Room, connect
from sharedwidgets.connection import shared
from sharedwidgets.discovery import Address
from support.kernels import Kernel
from support.lab import RESULTS, demo_module, until

WAIT_MS = 20_000
# A move is a key press at least so long after the one before.
PACE_MS = 55

# Before any script of the page: counts its sockets, and notes on one clock for all tabs when keys came and what was painted.
RECORDER = """
window.sockets = [];
window.WebSocket = class extends WebSocket {
  constructor(url, protocols) {
    super(url, protocols);
    if (String(url).includes("sharedwidgets")) window.sockets.push(this);
  }
};
window.painted = [];
window.keys = [];
{
  const shown = new WeakMap();
  const kinds = [[".noUi-handle", "slider"], [".widget-readout", "readout"], ["dd[data-trait]", "card"]];
  const look = () => {
    for (const [selector, kind] of kinds) {
      for (const element of document.querySelectorAll(selector)) {
        const text = kind === "slider" ? String(Number(element.ariaValueNow)) : element.textContent;
        if (shown.get(element) === text) continue;
        shown.set(element, text);
        const note = { kind, text, shown: performance.timeOrigin + performance.now(), painted: Infinity };
        window.painted.push(note);
        // Painted: the frame that shows it is done.
        requestAnimationFrame(() => {
          const { port1, port2 } = new MessageChannel();
          port1.onmessage = () => {
            note.painted = performance.timeOrigin + performance.now();
            port1.close();
          };
          port2.postMessage(null);
        });
      }
    }
  };
  new MutationObserver(look).observe(document, {
    subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ["aria-valuenow"],
  });
  addEventListener("keydown", ({ target, timeStamp }) => {
    if (target.classList.contains("noUi-handle")) window.keys.push(performance.timeOrigin + timeStamp);
  }, true);
}
"""

# A state with a slider and a button bound to it; `{room}` and `{more}` are filled in.
MOTOR = """
import pathlib, time
import ipywidgets as w
import traitlets as t
from sharedwidgets import SharedState, bind

class Motor(SharedState):
    speed = t.Int(20, min=0, max=100)
    heard = t.Int(0)
    stop = t.Bool(False)
    _salt = t.Unicode("")
    draft = t.Unicode("").tag(shared=False)

motor = Motor().link_to({room!r})
slider = w.IntSlider(description="speed", min=0, max=100)
button = w.ToggleButton(description="stop")
bind((motor, "speed"), (slider, "value"))
bind((motor, "stop"), (button, "value"))
"""
SHOW = "motor"
CONTROLS = "w.HBox([slider, button])"


class NotebookKernel(Kernel):
    """The kernel of a notebook that was started already."""

    def __init__(self, jupyter: Jupyter, kernel_id: str) -> None:
        self.jupyter = jupyter
        self.id = kernel_id
        self.client = BlockingKernelClient(connection_file=str(jupyter.demo.runtime / f"kernel-{kernel_id}.json"))
        self.client.load_connection_file()
        self.client.start_channels(hb=False)
        self.client.wait_for_ready(timeout=60)

    def occupy(self, seconds: float = 20.0) -> Busy:
        """Run a blocking loop of small sleeps, for so long or until it is released."""
        return Busy(self, seconds)

    def stop(self) -> None:
        """Shut the kernel down."""
        self.client.stop_channels()
        self.jupyter.ask("DELETE", f"api/kernels/{self.id}")


class Busy:
    """A kernel that is really busy: its main thread is in a loop that looks at nothing of ours."""

    def __init__(self, kernel: NotebookKernel, seconds: float) -> None:
        self._kernel = kernel
        self.loop = Loop(kernel.jupyter.demo.root, seconds)
        self._cell = kernel.start(self.loop.code)
        self.loop.wait()

    @property
    def lasts(self) -> bool:
        """Whether the kernel is still at it. Not what REST says: that is idle after every comm message."""
        return not self._kernel.client.shell_channel.msg_ready()

    def __enter__(self) -> Busy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.loop.end()
        self._kernel.finish(self._cell)


class Loop:
    """A cell that blocks the main thread with small sleeps for so long, or until `end`."""

    _names = itertools.count(1)

    def __init__(self, folder: Path, seconds: float = 20.0) -> None:
        number = next(self._names)
        self._begun, self._free = folder / f".begun-{number}", folder / f".free-{number}"
        self.code = (
            f"import pathlib, time\n_end, _free = time.monotonic() + {seconds}, pathlib.Path({str(self._free)!r})\n"
            f"pathlib.Path({str(self._begun)!r}).touch()\n"
            "while time.monotonic() < _end and not _free.exists():\n    time.sleep(0.01)\n"
        )

    def wait(self) -> None:
        """Wait until the kernel is in it."""
        until(self._begun.exists)

    def end(self) -> None:
        """Let the kernel go."""
        self._free.touch()


class Jupyter:
    """A private JupyterLab; each test makes its own notebooks and rooms in it.

    Parameters
    ----------
    folder : Path
        For everything it keeps.
    *arguments : str
        Further command line.
    """

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.demo = demo_module().Demo(folder / "lab", {})
        self.arguments = arguments
        self.kernels: list[NotebookKernel] = []
        self._scripts: list[Room] = []
        self._names = itertools.count(1)

    def start(self) -> None:
        """Start it, on the port it had before if it was started before."""
        port = [f"--port={self.port}", "--ServerApp.port_retries=0"] if self.demo.base else ["--port=0"]
        self.demo.base = ""
        self.demo.start(*port, "--LabApp.expose_app_in_browser=True", *self.arguments)

    def stop(self) -> None:
        """Stop it and its kernels."""
        for room in self._scripts:
            room.close()
        shared(Address(self.demo.base, self.demo.token)).close()
        for kernel in self.kernels:
            kernel.client.stop_channels()
        self.demo.stop()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.demo.base.rstrip("/").rpartition(":")[2])

    def ask(self, method: str, where: str, body: Mapping[str, Any] | None = None) -> Any:
        """A REST call to the server."""
        return self.demo.ask(method, where, **(body or {}))

    def notebook(self, *cells: str, by_hand: Sequence[str] = (), name: str | None = None) -> str:
        """A new notebook of these cells and of those that `run` leaves alone; its name."""
        name = name or f"{next(self._names)}.ipynb"
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in cells])
        later = {"tags": ["by-hand"]}
        notebook.cells += [nbformat.v4.new_code_cell(cell.strip(), metadata=later) for cell in by_hand]
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, self.demo.root / name)
        return name

    def configure(self, plugin: str, **settings: Any) -> None:
        """Change settings of a plugin of Lab, for pages opened from now on."""
        self.ask("PUT", f"lab/api/settings/{plugin}", {"raw": json.dumps(settings)})

    def run(self, name: str) -> NotebookKernel:
        """Start the notebook's kernel and run its cells, outside of any browser."""
        kernel_id = self.demo.start_kernel(name)
        self.demo.run(name, kernel_id)
        return self.attach(kernel_id)

    def motor(self, room: str, *cells: str, by_hand: Sequence[str] = ()) -> tuple[str, NotebookKernel]:
        """A notebook with the motor in a room, its card and its controls, already run."""
        name = self.notebook(MOTOR.format(room=room), SHOW, CONTROLS, *cells, by_hand=by_hand)
        return name, self.run(name)

    def motors(self, room: str, *, by_hand: Sequence[str] = ()) -> tuple[tuple[str, NotebookKernel], ...]:
        """Two of them, the first with cells to be run by hand."""
        cells = MOTOR.format(room=room), SHOW, CONTROLS
        names = self.notebook(*cells, by_hand=by_hand), self.notebook(*cells)
        # Both kernels start at the same time.
        kernels = [self.demo.start_kernel(name) for name in names]
        for name, kernel_id in zip(names, kernels, strict=True):
            self.demo.run(name, kernel_id)
        return tuple((name, self.attach(kernel_id)) for name, kernel_id in zip(names, kernels, strict=True))

    def attach(self, kernel_id: str) -> NotebookKernel:
        """The client of a kernel that runs."""
        kernel = NotebookKernel(self, kernel_id)
        self.kernels.append(kernel)
        return kernel

    def room(self, token: str) -> Any:
        """A room as REST shows it."""
        return self.ask("GET", f"sharedwidgets/api/rooms/{token}")

    def seq(self, token: str) -> int:
        """How many entries the room has had."""
        return int(self.room(token)["seq"])

    def value(self, token: str, trait: str, state: str = "Motor") -> Any:
        """A trait on the server."""
        return self.room(token)["states"][state]["values"][trait]

    def members(self, token: str, kind: str, state: str | None = None) -> list[dict[str, Any]]:
        """Members of a kind."""
        found = self.room(token)["members"]
        return [member for member in found if member["kind"] == kind and state in (None, member["state"])]

    def set(self, token: str, state: str = "Motor", **values: Any) -> None:
        """Write from outside."""
        self.ask("PATCH", f"sharedwidgets/api/rooms/{token}/states/{state}", values)

    def script(self, token: str) -> Room:
        """A handle of the room in this very process; closed with its connection by `stop`."""
        room = connect(token, self.demo.base, self.demo.token, delivery="thread")
        self._scripts.append(room)
        return room

    def open(self, context: BrowserContext, *names: str, cards: int | None = None, base: str | None = None) -> Tab:
        """A new browser tab with these notebooks side by side, and so many cards live."""
        workspace = f"w{next(self._names)}"
        self.demo.arrange(workspace, list(names))
        tab = Tab(window(context), list(names))
        tab.page.goto(f"{base or self.demo.base}lab/workspaces/{workspace}?token={self.demo.token}")
        tab.live(len(names) if cards is None else cards)
        return tab


def window(context: BrowserContext) -> Page:
    """A page in a window of its own: behind another tab of one window, Chromium paints once a second."""
    opener = context.pages[0] if context.pages else context.new_page()
    with context.expect_page() as opened:
        opener.evaluate("open('about:blank', '_blank', 'popup,noopener')")
    return opened.value


class Tab:
    """A browser tab with notebooks in it."""

    def __init__(self, page: Page, names: list[str]) -> None:
        self.page = page
        self.names = names
        self.errors: list[str] = []
        # What the page was sent, by socket: Lab's kernel channels and ours.
        self.frames: dict[str, list[bytes]] = {}
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("websocket", self._follow)

    def _follow(self, socket: WebSocket) -> None:
        frames = self.frames.setdefault(socket.url, [])
        socket.on("framereceived", lambda data: frames.append(data.encode() if isinstance(data, str) else data))

    def live(self, cards: int = 1) -> None:
        """Wait until so many cards are live and show values."""
        try:
            self.wait("n => document.querySelectorAll('.sharedwidgets-card[data-link=live] dl dd').length >= n", cards)
        except PlaywrightTimeout:
            outputs = self.page.locator(".jp-OutputArea").all_inner_texts()
            self.shot("not-live")
            raise AssertionError(f"no {cards} live cards: {outputs}, {self.errors}") from None

    def wait(self, condition: str, argument: Any = None, timeout: float = WAIT_MS) -> None:
        """Wait until a function of the page is true."""
        self.page.wait_for_function(condition, arg=argument, timeout=timeout, polling=50)

    @property
    def card(self) -> Locator:
        """The first card."""
        return self.page.locator(".sharedwidgets-card").first

    def panel(self, name: str) -> Locator:
        """One notebook of the tab."""
        return self.page.locator(".jp-NotebookPanel").nth(self.names.index(name))

    def press(self, times: int = 1, key: str = "ArrowRight", *, slider: int = 0) -> None:
        """Move a slider by key presses: a person's pace."""
        handle = self.page.locator(".noUi-handle").nth(slider)
        done = int(self.page.evaluate("window.keys.length"))
        for wanted in range(done + 1, done + times + 1):
            deadline = time.monotonic() + WAIT_MS / 1000
            while self.page.evaluate("window.keys.length") < wanted:
                # Lab may take the focus while it is starting; a key that went elsewhere was no move.
                assert time.monotonic() < deadline, "the slider gets no keys"
                # So does its word that the server is gone, which lies over everything.
                for button in self.page.locator(".jp-Dialog .jp-mod-accept").all():
                    button.click()
                handle.press(key, timeout=WAIT_MS)
            self.page.wait_for_timeout(PACE_MS)

    def shows(self, value: int, trait: str = "speed", timeout: float = WAIT_MS) -> None:
        """Wait until every slider, readout and card of the tab shows the value."""
        try:
            self.wait(
                """([trait, text]) => {
                    const cards = [...document.querySelectorAll(`dd[data-trait=${trait}]`)];
                    const readouts = [...document.querySelectorAll('.widget-readout')];
                    const handles = [...document.querySelectorAll('.noUi-handle')];
                    return cards.length && [...cards, ...readouts].every((e) => e.textContent === text)
                        && handles.every((e) => Number(e.ariaValueNow) === Number(text));
                }""",
                [trait, str(value)],
                timeout,
            )
        except PlaywrightTimeout:
            raise AssertionError(f"{self.shown()} instead of {value}") from None

    def shown(self) -> dict[str, list[str]]:
        """What the tab shows."""
        page = self.page
        return {
            "cards": page.locator("dd[data-trait=speed]").all_inner_texts(),
            "readouts": page.locator(".widget-readout").all_inner_texts(),
            "links": page.locator(".sw-link").all_inner_texts(),
        }

    def sockets(self) -> int:
        """How many sockets to the rooms this load of the page has made."""
        return int(self.page.evaluate("window.sockets.length"))

    def begin(self, command: str) -> None:
        """Run a command of JupyterLab and do not wait for its end."""
        self.page.evaluate("name => { window.jupyterapp.commands.execute(name); }", command)

    def save(self) -> None:
        """Save the notebook."""
        self.page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")

    def run_cell(self, index: int) -> Locator:
        """Shift+Enter in a cell until its prompt changes: Lab may look idle before it takes orders. The cell."""
        self.wait("() => document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle'")
        cell = self.page.locator(".jp-CodeCell").nth(index)
        before = cell.locator(".jp-InputPrompt").inner_text()
        changed = "([i, before]) => document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')[i].innerText !== before"
        deadline = time.monotonic() + WAIT_MS / 1000
        while True:
            cell.locator(".cm-content").click()
            self.page.keyboard.press("Shift+Enter")
            try:
                self.wait(changed, [index, before], 1000)
            except PlaywrightTimeout:
                assert time.monotonic() < deadline, "Lab does not run the cell"
            else:
                return cell

    def shot(self, name: str) -> None:
        """A picture for a person to look at."""
        RESULTS.mkdir(exist_ok=True)
        self.page.screenshot(path=str(RESULTS / f"{name}.png"))


@dataclass(frozen=True)
class Delays:
    """Milliseconds from presses until everything in a tab that shows the value had it.

    `shown`: it is in the document, and the page has nothing left to do for it. `painted`: the frame that shows it is done,
    which on a machine with too much to do is later, whatever the page does.
    """

    shown: list[float]
    painted: list[float]

    def __add__(self, other: Delays) -> Delays:
        return Delays(self.shown + other.shown, self.painted + other.painted)


def delays(source: Tab, target: Tab, values: Sequence[int]) -> Delays:
    """From each of the last presses in one tab until card, readout and slider of another had its value."""
    pressed = source.page.evaluate("window.keys")[-len(values) :]
    target.wait("() => window.painted.every(({ painted }) => painted < Infinity)")
    first: dict[tuple[str, str], tuple[float, float]] = {}
    for note in target.page.evaluate("window.painted"):
        if note["shown"] >= pressed[0]:
            first.setdefault((note["kind"], note["text"]), (note["shown"], note["painted"]))
    found = [[first[kind, str(value)] for kind in ("card", "readout", "slider")] for value in values]
    shown = [max(at for at, _ in times) - press for times, press in zip(found, pressed, strict=True)]
    painted = [max(at for _, at in times) - press for times, press in zip(found, pressed, strict=True)]
    return Delays(shown, painted)


def eventually(read: Callable[[], Any], expected: Any, seconds: float = 20.0) -> None:
    """Wait until something that no page can tell equals this; says what it was instead."""
    deadline = time.monotonic() + seconds
    while (found := read()) != expected:
        assert time.monotonic() < deadline, f"{found!r} instead of {expected!r} after {seconds:g} s"
        time.sleep(0.02)
