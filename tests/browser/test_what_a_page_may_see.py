"""Values of strangers are text, kernel-only traits reach no page, and no secret is where a page or a file would show it."""

from __future__ import annotations

import json
from collections.abc import Callable
from urllib.parse import quote

from playwright.sync_api import expect

from support.tabs import MOTOR, SHOW, Jupyter, Tab, eventually

OpenTab = Callable[..., Tab]

MARKUP = "<img src=x onerror=window.pwned=1>"

# Names, keys, values, the room and the notebook itself: whatever a stranger may choose.
HOSTILE = f"""
import traitlets as t
from sharedwidgets import SharedState

class Hostile(SharedState, state_name={MARKUP!r}):
    text = t.Unicode("<b>plain</b>")
    tags = t.Dict()
    rows = t.List()

hostile = Hostile().link_to({MARKUP + " room"!r})
hostile.text = {MARKUP!r}
hostile.tags = {{"__proto__": {{"polluted": 1}}, "constructor": {{"prototype": {{"polluted": 1}}}}, {MARKUP!r}: 1}}
hostile.rows = [{MARKUP!r}, {{"__proto__": {{"polluted": 1}}}}]
hostile.flush()
hostile
"""


def test_hostile_values_are_text(jupyter: Jupyter, open_tab: OpenTab) -> None:
    room = f"{MARKUP} room"
    name = jupyter.notebook(HOSTILE, name=f"{MARKUP}.ipynb")
    kernel = jupyter.run(name)
    tab = open_tab(name)

    def clean() -> None:
        assert tab.page.evaluate("[window.pwned, ({}).polluted, Object.prototype.polluted]") == [None, None, None]
        assert tab.card.locator("img, b, script").count() == 0

    tab.card.locator("summary").click()
    card = tab.card.inner_text()
    assert card.count(MARKUP) >= 6, card
    assert "__proto__: {polluted: 1}" in card
    assert "constructor: {prototype: {polluted: 1}}" in card
    clean()
    # And live: by a kernel, as one change of a dict and as a whole; and from outside.
    kernel.run(f"hostile.tags = {{**hostile.tags, 'toString': {MARKUP!r}, 'hasOwnProperty': 2}}; hostile.flush()")
    expect(tab.card.locator("dd[data-trait=tags]")).to_contain_text("hasOwnProperty: 2")
    where = f"sharedwidgets/api/rooms/{quote(room, safe='')}"
    state = jupyter.ask("GET", where)["states"][MARKUP]["values"]
    assert set(state["tags"]) == {"__proto__", "constructor", MARKUP, "toString", "hasOwnProperty"}
    values = {"text": f"{MARKUP}!", "tags": {"__proto__": {"polluted": 2}}}
    jupyter.ask("PATCH", f"{where}/states/{quote(MARKUP, safe='')}", values)
    expect(tab.card.locator("dd[data-trait=text]")).to_contain_text(f"{MARKUP}!")
    expect(tab.card.locator("dd[data-trait=tags]")).to_have_text("{__proto__: {polluted: 2}}")
    clean()
    assert kernel.value("hostile.tags") == {"__proto__": {"polluted": 2}}
    tab.shot("hostile")


# By how it is set; and a public one, which shows that we would see them.
WORDS = {name: f"{name}-7f3a9c" for name in ("default", "alone", "together", "remote", "public")}
# Spelled backwards in the code, for the code of a cell is sent to every page.
SPELLED = {name: f"{word[::-1]!r}[::-1]" for name, word in WORDS.items()}

VAULT = """
import traitlets as t
from sharedwidgets import SharedState

class Vault(SharedState):
    title = t.Unicode("")
    _hidden_key = t.Unicode({default})
    quiet_key = t.Unicode("").tag(sync=False)

vault = Vault().link_to({room!r})
"""


def test_kernel_only_values_reach_no_page(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    one, two = (jupyter.notebook(VAULT.format(room=token, default=SPELLED["default"]), "vault") for _ in range(2))
    a, b = jupyter.run(one), jupyter.run(two)
    tab = open_tab(one, two)
    a.run(f"vault._hidden_key = {SPELLED['alone']}; vault.flush()")
    a.run(f"with vault.transaction():\n    vault._hidden_key = {SPELLED['together']}\n    vault.title = 'x'\nvault.flush()")
    b.run(f"vault.quiet_key = {SPELLED['remote']}; vault.flush()")
    eventually(lambda: a.value("vault.quiet_key"), WORDS["remote"])
    assert b.value("vault._hidden_key") == WORDS["together"]
    a.run(f"vault.title = {SPELLED['public']}; vault.flush()")
    expect(tab.card.locator("dd[data-trait=title]")).to_have_text(f'"{WORDS["public"]}"')
    tab.page.reload()
    tab.live(2)

    everything = b"".join(frame for frames in tab.frames.values() for frame in frames)
    kept = tab.page.content() + json.dumps(tab.page.evaluate("[{...localStorage}, {...sessionStorage}]"))
    assert WORDS["public"].encode() in everything
    for name in ("default", "alone", "together", "remote"):
        assert WORDS[name].encode() not in everything, name
        assert WORDS[name] not in kept, name
    # That there are such traits is said in the code of the cells, and nowhere else.
    ours = b"".join(b"".join(frames) for url, frames in tab.frames.items() if "sharedwidgets" in url)
    comms = [frame for frames in tab.frames.values() for frame in frames if b'"msg_type":"comm_' in frame.replace(b" ", b"")]
    assert b"Vault" in ours
    assert any(b"title" in frame for frame in comms)
    for trait in (b"_hidden_key", b"quiet_key"):
        assert trait not in ours
        assert not [frame for frame in comms if trait in frame]


def test_no_secret_in_page_output_notebook_or_address(jupyter: Jupyter, open_tab: OpenTab, token: str) -> None:
    jupyter.configure("@jupyter-widgets/jupyterlab-manager:plugin", saveState=True)
    told = "print(motor, motor.room, motor.linked_from, motor.get_state())\nmotor.room"
    name = jupyter.notebook(MOTOR.format(room=token), SHOW, told)
    jupyter.run(name)
    (runtime,) = jupyter.demo.runtime.glob("sharedwidgets-*.json")
    credential = json.loads(runtime.read_text())["credential"]
    assert credential.startswith("sw1-")
    tab = open_tab(name)
    member = json.loads(tab.page.evaluate("sessionStorage['sharedwidgets.v1.member']"))["secret"]
    tab.save()
    saved = (jupyter.demo.root / name).read_text()
    assert "application/vnd.jupyter.widget-state+json" in json.loads(saved)["metadata"]["widgets"]

    page, log = tab.page.content(), (jupyter.demo.folder / "server.log").read_text()
    sent = b"".join(frame for frames in tab.frames.values() for frame in frames).decode(errors="replace")
    stored = json.dumps(tab.page.evaluate("[{...localStorage}, {...sessionStorage}]"))
    for where, text in (("page", page), ("sent", sent), ("stored", stored), ("notebook", saved), ("log", log)):
        assert credential not in text, where
    # The secret of a member is for the tab it was given to, and nobody else.
    for where, text in (("page", page), ("notebook", saved), ("log", log)):
        assert member not in text, where
    assert [url for url in tab.frames if "sharedwidgets" in url] == [f"ws://localhost:{jupyter.port}/sharedwidgets/ws"]
    assert jupyter.demo.token not in "".join([tab.page.url, saved, *tab.frames])
