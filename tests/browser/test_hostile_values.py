"""What a page makes of hostile values, and what never reaches it."""

from __future__ import annotations

from jupyter_client.blocking.client import BlockingKernelClient
from playwright.sync_api import WebSocket

from support.lab import Lab


def kernel(lab: Lab, name: str) -> BlockingKernelClient:
    session = next(item for item in lab.ask("GET", "api/sessions") if item["path"] == name)
    client = BlockingKernelClient(connection_file=str(lab.demo.runtime / f"kernel-{session['kernel']['id']}.json"))
    client.load_connection_file()
    client.start_channels()
    return client


def test_a_change_from_outside_and_a_hostile_text(lab: Lab) -> None:
    """A value is text and nothing else, whatever it holds."""
    page = lab.open()
    client = kernel(lab, "A.ipynb")
    code = """
from sharedwidgets import SharedState
class Hostile(SharedState):
    text = t.Unicode()
    tags = t.Dict()
    _hidden = t.Unicode("KERNELS" + "-ONLY")
hostile = Hostile().link_to("two-notebooks-demo")
hostile.text = "<img src=x onerror=window.pwned=1>"
hostile.tags = {"__proto__": {"polluted": 1}, "constructor": 2}
hostile.flush()
"""
    assert client.execute_interactive(code, timeout=30)["content"]["status"] == "ok"
    frames: list[str] = []
    rooms: list[str] = []

    def listen(socket: WebSocket) -> None:
        heard = rooms if "sharedwidgets" in socket.url else frames
        socket.on("framereceived", lambda payload: heard.append(str(payload)))

    page.on("websocket", listen)
    page.reload()
    lab.live(page, 2)
    assert page.evaluate("window.pwned") == 0
    assert page.evaluate("({}).polluted === undefined")
    assert any("onerror" in frame for frame in rooms)
    assert not [frame for frame in (*rooms, *frames) if "KERNELS-ONLY" in frame]
    assert not [frame for frame in rooms if "_hidden" in frame]
    assert "sw1-" not in page.content()
