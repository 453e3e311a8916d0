"""The README's Python runs as written, in order, against a real server."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedwidgets_server.testing import LiveServer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("server")) as running:
        yield running


def test_snippets_run(server: LiveServer, tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) >= 5
    script = tmp_path / "readme.py"
    checks = "assert counter.wait_until(lambda: counter.count == 4, 5)\nassert shared['count'] == 4, dict(shared)\n"
    script.write_text("def work(*_): pass\n\n" + "\n".join(snippets) + "\n" + checks)
    answer = subprocess.run(
        [sys.executable, "-X", "dev", str(script)], capture_output=True, text=True, timeout=60, env=server.kernel_environ()
    )
    assert answer.returncode == 0, answer.stderr
    assert "not acknowledged" not in answer.stderr


def test_links_and_picture_are_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_first_screen() -> None:
    first = README.split("## ")[0]
    code = re.findall(r"```python\n(.*?)```", first, re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert "![" in first
    assert "pip install ." in first
