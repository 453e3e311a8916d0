"""Each notebook runs from top to bottom against a real server, and says what it says it says."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from sharedwidgets_server.testing import LiveServer

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))

# What the prose above or below a cell says that it shows.
SHOWN = {
    "01_first_link": {
        "cell-3": "0",
        "cell-7": "[(42, 'local')]",
        "cell-9": "(42, '')",
        "cell-11": "(5, 42)",
    },
    "02_two_notebooks": {"cell-5": "10"},
    "03_locks_and_transactions": {
        "cell-3": "9",
        "cell-5": "8",
        "cell-7": "(True, False, 'Ben')",
        "cell-9": "('kernel', 18, None)",
        "cell-11": "(1, 17, 0.5, ['1 to Ana'])",
    },
    "04_computed_reactions_background": {
        "cell-3": "[(1.0, 9.0)]",
        "cell-5": "(7.0, 3.0, 'kernel')",
        "cell-7": "(3.162277660168379, True)",
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("server")) as running:
        yield running


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in server.kernel_environ().items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    shown = {
        cell.id: output.data["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "execute_result"
    }
    assert {name: shown.get(name) for name in SHOWN[path.stem]} == SHOWN[path.stem]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_stored_without_outputs_and_begins_with_prose(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].cell_type == "markdown"
    assert all(not cell.get("outputs") and not cell.get("execution_count") for cell in notebook.cells)
    assert "widgets" not in json.dumps(notebook.metadata)
