"""The message types are those of the changelog in PROTOCOL.md: a change of the wire is never by accident."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from sharedwidgets.core.protocol import PROTOCOL_VERSION, Downstream, Upstream

PROTOCOL = Path(__file__).resolve().parents[3] / "PROTOCOL.md"

# Lists in a JSON schema whose order means nothing.
UNORDERED = {"anyOf", "enum", "required"}


def plain(schema: Any, key: str = "") -> Any:
    """A JSON schema without what is written for people, and without the order that one Python or msgspec may change."""
    if isinstance(schema, dict):
        return {
            name: plain(item, name) for name, item in schema.items() if not (name == "description" and isinstance(item, str))
        }
    if isinstance(schema, (list, tuple)):
        items = [plain(item) for item in schema]
        return sorted(items, key=canonical) if key in UNORDERED else items
    return schema


def canonical(item: Any) -> str:
    return json.dumps(item, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def schema_hash() -> str:
    unions, components = msgspec.json.schema_components([Upstream, Downstream])
    return hashlib.sha256(canonical(plain([list(unions), components])).encode()).hexdigest()[:16]


def changelog() -> list[tuple[int, str]]:
    """(version, hash) of each line of the changelog, oldest first."""
    text = PROTOCOL.read_text(encoding="utf-8").split("\n## Changelog\n")[1]
    return [(int(version), pin) for version, pin in re.findall(r"^\| (\d+) \| `([0-9a-f]{16})` \|", text, re.MULTILINE)]


def test_the_changelog_ends_with_this_schema() -> None:
    version, pin = changelog()[-1]
    now = schema_hash()
    assert pin == now, (
        f"The message types changed: their hash is {now}, the changelog of PROTOCOL.md ends with {pin}. Add a line to that "
        f"changelog, | {PROTOCOL_VERSION} | `{now}` | what changed |, and describe the change in the text above it. If an old "
        "peer would read a message wrongly now, raise PROTOCOL_VERSION in core/protocol.py (and in js/src/protocol.ts) as well."
    )
    assert version == PROTOCOL_VERSION, (
        f"PROTOCOL_VERSION is {PROTOCOL_VERSION}, the changelog of PROTOCOL.md ends with version {version}: add a line to it."
    )


def test_versions_only_rise_and_no_hash_comes_twice() -> None:
    versions = [version for version, _ in changelog()]
    assert versions[0] == 1
    assert versions == sorted(versions)
    assert len({pin for _, pin in changelog()}) == len(versions)


def test_words_for_people_do_not_count() -> None:
    schema = {"title": "A", "description": "words", "properties": {"description": {"type": "string"}}, "required": ["b", "a"]}
    other = {**schema, "description": "other words", "required": ["a", "b"]}
    assert plain(schema) == plain(other)
    assert "description" in plain(schema)["properties"]
