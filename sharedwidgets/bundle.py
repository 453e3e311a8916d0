"""The built page module: the stub every widget model carries, and the module's text for pages no server has it for."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"

_NOT_BUILT = (
    "export default { render({ el }) { el.textContent = "
    "'sharedwidgets: the page module is not built; run npm run build in js/, or install a release'; } };"
)


@cache
def stub() -> str:
    """The ``_esm`` of a widget: below 1 kB, as it travels with every model."""
    path = STATIC / "stub.js"
    return path.read_text() if path.exists() else _NOT_BUILT


def module() -> str:
    """The page module itself."""
    return (STATIC / str(facts()["file"])).read_text()


def facts() -> dict[str, str]:
    """``file``, the module's file name, and ``source``, the hash of what it was built from."""
    found: dict[str, str] = json.loads((STATIC / "bundle.json").read_text())
    return found


def source(esm: object) -> str:
    """The text of an ``_esm`` as anywidget takes it: text, or the path of a file, read now."""
    is_path = isinstance(esm, Path) or (isinstance(esm, str) and "\n" not in esm and esm.endswith((".js", ".mjs")))
    return Path(str(esm)).read_text() if is_path else str(esm)
