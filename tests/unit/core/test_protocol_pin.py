"""The wire is pinned: a change of its schema needs a line in PROTOCOL.md's changelog."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import msgspec

from sharedwidgets.core.protocol import Downstream, Upstream

PROTOCOL = Path(__file__).resolve().parents[3] / "PROTOCOL.md"


def schema_hash() -> str:
    """Of what msgspec says of both unions, words apart."""
    unions, components = msgspec.json.schema_components([Upstream, Downstream])
    plain = json.dumps(without_words([list(unions), components]), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


def without_words(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: without_words(item) for key, item in schema.items() if key not in ("description", "title")}
    if isinstance(schema, list):
        return [without_words(item) for item in schema]
    return schema


def test_the_schema_is_the_one_the_changelog_names() -> None:
    changelog = PROTOCOL.read_text().split("## Changelog")[1]
    pinned = re.findall(r"schema `([0-9a-f]{16})`", changelog)
    assert pinned, "PROTOCOL.md's changelog names no schema"
    assert schema_hash() == pinned[0], (
        f"the wire changed: put a line with schema `{schema_hash()}` on top of PROTOCOL.md's changelog, saying what changed; "
        "raise PROTOCOL_VERSION when an older peer would misunderstand it"
    )
