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
    faults: list[str] = []
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
            counts, properties = _counts(Path(report.name)), _properties(Path(report.name))
        facts = ", ".join(f"{name} {value}" for name, value in _facts(folder, properties))
        faults += [
            f"| {name.removeprefix('faults of').strip() or 'message'} | {value} |"
            for name, value in properties.items()
            if name.startswith("faults of")
        ]
        rows.append(f"| `{folder}` | {counts['tests']} | {counts['failed']} | {time.monotonic() - began:.0f} s | {facts} |")
    REPORT.write_text(
        "# The last full-size run of the stress tests\n\n"
        f"`make soak` at commit `{commit}`{' with uncommitted changes' if dirty else ''}, "
        f"Python {platform.python_version()}, {os.cpu_count()} cores, on {time.strftime('%Y-%m-%d')}.\n\n"
        "| tests | run | failed | time | seeds and sizes |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(rows)
        + "\n"
        + _table(faults)
    )
    print(REPORT.read_text())
    sys.exit(failed)


def _counts(report: Path) -> Counter[str]:
    counts: Counter[str] = Counter()
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        counts["tests"] += int(suite.get("tests", 0))
        counts["failed"] += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
    return counts


def _properties(report: Path) -> dict[str, str]:
    """What the tests have to say of themselves."""
    found = ElementTree.parse(report).getroot().iter("property")
    return {item.get("name", ""): item.get("value", "") for item in found}


def _table(faults: list[str]) -> str:
    """How often each fault met each kind of message."""
    if not faults:
        return ""
    first, *rest = faults
    line = "| " + " | ".join("---" for _ in first.strip("|").split("|")) + " |"
    return "\nHow often each fault met each kind of message:\n\n" + "\n".join((first, line, *rest)) + "\n"


def _facts(folder: str, properties: dict[str, str]) -> list[tuple[str, str]]:
    if folder == "tests/property":
        schedules = int(properties.get("schedules", 0))
        return [("schedules", str(schedules)), ("seeds", f"0 … {schedules - 1}"), ("steps each", "600")]
    return [("scale", "1")]


if __name__ == "__main__":
    main()
