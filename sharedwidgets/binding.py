"""`bind`: hold a shared trait and an attribute of any widget equal, in the page, with the kernel busy or dead."""

from __future__ import annotations

from typing import Any

import traitlets as t
from anywidget import AnyWidget
from ipywidgets import Layout, Widget
from ipywidgets.widgets.widget import widget_serialization

from sharedwidgets import bundle, cells
from sharedwidgets.state import SharedState, send_module


class Binding(AnyWidget):
    """What `bind` returns: it lives in the pages; `unlink` ends it."""

    _esm = bundle.stub()
    _binding = t.Bool(True).tag(sync=True)
    # It has no view: at the end of a cell it is one line of text.
    _view_name = t.Unicode(None, allow_none=True).tag(sync=True)  # type: ignore[assignment]
    # Nor a layout, which would be one more model for each.
    layout = t.Instance(Layout, allow_none=True).tag(sync=True, **widget_serialization)
    source: t.List[str] = t.List().tag(sync=True)
    target: t.List[str] = t.List().tag(sync=True)

    def __init__(self, ends: str = "", **traits: Any) -> None:
        super().__init__(**traits)
        self._ends = ends
        cells.note(self)
        self.on_msg(send_module)

    def __repr__(self) -> str:
        return f"<Binding {self._ends}>"

    def unlink(self) -> None:
        """Let the two go their own ways again."""
        self.close()


def bind(source: tuple[Widget, str], target: tuple[Widget, str]) -> Binding:
    """Hold a shared trait and an attribute of another widget equal, as `ipywidgets.jslink` does for two widgets.

    The link lives in each page that shows either of them, so it works while the kernel is busy, with any number of pages, and
    after the kernel is gone. The room's value wins at the start. Assign to the shared state in Python, not to the other widget:
    what a kernel sends of that is put back to the room's value.

    Parameters
    ----------
    source, target : tuple of (widget, str)
        One of them names a shared, public trait of a `SharedState`, the other a synced attribute of any widget.

    Returns
    -------
    Binding
        Its `unlink` ends it.

    Raises
    ------
    TypeError
        Neither end is a shared trait, or an attribute is not synced to pages.
    """
    if not isinstance(source[0], SharedState):
        source, target = target, source
    state, trait = source
    if not isinstance(state, SharedState):
        raise TypeError("bind needs a SharedState at one end; to link two ordinary widgets use ipywidgets.jslink")
    for widget, name in (source, target):
        if not isinstance(widget, Widget) or name not in widget.keys:
            there = ", ".join(sorted(key for key in getattr(widget, "keys", ()) if not key.startswith("_"))) or "none"
            raise TypeError(f"{type(widget).__name__} sends no {name!r} to pages; it sends {there}")
    if trait not in state._link["traits"]:
        raise TypeError(f"{trait!r} is not shared; link it with ipywidgets.jslink")
    return Binding(
        f"{state._class_name()}.{trait} ↔ {type(target[0]).__name__}.{target[1]}",
        source=[f"IPY_MODEL_{state.model_id}", trait],
        target=[f"IPY_MODEL_{target[0].model_id}", target[1]],
    )
