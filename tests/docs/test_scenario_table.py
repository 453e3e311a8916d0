"""`tests/scenarios.md` has every scenario: with a test that is there, or with a reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
FILES = ("integration/test_scenarios.py", "integration/test_scenarios_kernels.py")


def rows() -> list[list[str]]:
    lines = (TESTS / "scenarios.md").read_text(encoding="utf-8").splitlines()
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if re.match(r"\| \d+ \|", line)]


def functions() -> list[str]:
    """The tests of scenarios there are; beside them are some of hard cases."""
    found: list[str] = []
    for name in FILES:
        body = ast.parse((TESTS / name).read_text(encoding="utf-8")).body
        found += [item.name for item in body if isinstance(item, (ast.FunctionDef, ast.AsyncFunctionDef))]
    return [name for name in found if name.startswith("test_s")]


def test_every_scenario_is_in_the_table_once() -> None:
    assert [int(row[0]) for row in rows()] == list(range(1, 81))


def test_every_row_has_its_test_or_a_reason() -> None:
    named: list[str] = []
    for number, what, test, when in rows():
        assert what, number
        if test == "–":
            assert when.endswith("."), f"{number}: why it does not apply is a sentence"
            continue
        assert test.startswith(f"`test_s{int(number):02}_"), (number, test)
        assert re.match(r"`\S+\.py`", when), f"{number}: a change of a file that makes it fail"
        named.append(test.strip("`"))
    assert sorted(named) == sorted(functions())
