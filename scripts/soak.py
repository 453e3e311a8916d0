"""Run the stress tests at their full size and write what was run into tests/soak.md: commit, seeds, counts, times."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("tests/property", "tests/unit/core", "tests/integration", "tests/browser")
REPORT = ROOT / "tests" / "soak.md"


def main() -> None:
    """Exit status 1 when a test failed; the report is written all the same, and says so."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows: list[str] = []
    failed = False
    for folder in FOLDERS:
        with tempfile.NamedTemporaryFile(suffix=".xml") as report:
            began = time.monotonic()
            run = subprocess.run(
                [sys.executable, "-m", "pytest", folder, f"--junitxml={report.name}", "-q", "--timeout=1800"],
                cwd=ROOT,
                env={**os.environ, "SHAREDWIDGETS_TEST_SCALE": "1"},
                check=False,
            )
            failed = failed or run.returncode != 0
            counts = _counts(Path(report.name))
        facts = ", ".join(f"{name} {value}" for name, value in _facts(folder))
        rows.append(f"| `{folder}` | {counts['tests']} | {counts['failed']} | {time.monotonic() - began:.0f} s | {facts} |")
    REPORT.write_text(
        "# The last full-size run of the stress tests\n\n"
        f"`make soak` at commit `{commit}`{' with uncommitted changes' if dirty else ''}, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, on {time.strftime('%Y-%m-%d')}.\n\n"
        "| tests | run | failed | time | seeds and sizes |\n| --- | --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"
    )
    print(REPORT.read_text())
    sys.exit(failed)


def _counts(report: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        counts["tests"] += int(suite.get("tests", 0))
        counts["failed"] += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return counts


def _facts(folder: str) -> list[tuple[str, str]]:
    if folder == "tests/property":
        return [("schedules", "4000"), ("seeds", "b·100000 … b·100000+399 for b in 0…9"), ("steps each", "300")]
    return [("scale", "1")]


if __name__ == "__main__":
    main()
