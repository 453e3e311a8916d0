"""The page module that is packed is the one of these sources, and the stub that travels with every model is small."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from anywidget import AnyWidget

from sharedwidgets import SharedState, bundle

SOURCES = Path(__file__).resolve().parents[2] / "js" / "src"


def source_hash() -> str:
    """The hash of the sources, as ``js/build.mjs`` computes it."""
    found = hashlib.sha256()
    for path in sorted(SOURCES.iterdir(), key=lambda path: path.name):
        if not path.name.endswith(".test.ts") and path.name != "vectors.ts":
            found.update(f"{path.name}\0".encode())
            found.update(path.read_bytes())
    return found.hexdigest()


def test_the_bundle_is_of_these_sources() -> None:
    assert bundle.facts()["source"] == source_hash(), "js/src changed since the build; run `npm run build` in js/"


def test_the_stub_is_below_one_kilobyte_and_names_the_module() -> None:
    assert len(bundle.stub().encode()) < 1024
    assert bundle.facts()["file"] in bundle.stub()
    assert "__FILE__" not in bundle.stub()
    assert SharedState._esm == bundle.stub()


def test_the_modules_name_is_the_hash_of_its_content() -> None:
    content = hashlib.sha256(bundle.module().encode()).hexdigest()[:16]
    assert bundle.facts()["file"] == f"page-{content}.js"


def test_nothing_else_is_packed() -> None:
    assert {path.name for path in bundle.STATIC.iterdir()} == {"bundle.json", "stub.js", bundle.facts()["file"]}


def test_a_checkout_without_a_build_says_so_in_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "STATIC", tmp_path)
    text = bundle.stub.__wrapped__()
    assert "the page module is not built; run npm run build in js/" in text
    assert len(text) < 1024


VIEW = "export default { render({ el }) { el.textContent = 'mine'; } };"


class Mine(SharedState):
    _esm = VIEW
    _css = ".mine { color: red; }"


class Below(Mine):
    pass


class Widget(AnyWidget):
    _esm = VIEW


class Mixed(Widget, SharedState):
    pass


class MixedIn(SharedState, Widget):
    pass


@pytest.mark.parametrize("kind", [Mine, Below, Mixed, MixedIn])
def test_a_view_of_the_class_stands_beside_the_page_link(kind: type[SharedState]) -> None:
    widget = kind()
    assert (widget._esm, widget._view_esm) == (bundle.stub(), VIEW)
    assert {"_esm", "_view_esm"} <= set(widget.keys)


def test_a_view_may_be_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.js"
    file.write_text(VIEW)
    for path in (file, str(file)):
        kind = type(SharedState)("Filed", (SharedState,), {"_esm": path})
        assert (kind()._esm, kind()._view_esm) == (bundle.stub(), VIEW)


def test_without_one_the_card_is_shown() -> None:
    assert (SharedState()._esm, SharedState()._view_esm) == (bundle.stub(), "")
