"""What is written is true: examples parse, names are there, nothing public is undocumented."""

from __future__ import annotations

import inspect
import re
import typing
from pathlib import Path

import pytest
from sharedwidgets_server.app import SharedWidgetsApp
from sharedwidgets_server.routes import make_routes

import sharedwidgets
from sharedwidgets.core import codec
from sharedwidgets.core.protocol import Downstream, EntryOp, Limits, Upstream
from sharedwidgets.errors import BY_CODE
from sharedwidgets.room import RoomState

ROOT = Path(__file__).resolve().parents[2]
PROTOCOL = (ROOT / "PROTOCOL.md").read_text()
ERRORS = (ROOT / "ERRORS.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
DOCS = sorted(ROOT.glob("*.md"))

Wire = typing.Any


def tags(union: Wire) -> list[str]:
    return [struct.__struct_config__.tag for struct in typing.get_args(union)]


@pytest.mark.parametrize(("union", "direction"), [(Upstream, "up"), (Downstream, "down")])
def test_every_message_has_an_example_that_parses(union: Wire, direction: str) -> None:
    decode = codec.decode_upstream if direction == "up" else codec.decode_downstream
    examples = re.findall(rf"```json {direction}\n(.*?)```", PROTOCOL, re.DOTALL)
    shown = {type(decode(example)).__struct_config__.tag for example in examples}
    assert shown == set(tags(union))


def test_every_op_and_limit_is_described() -> None:
    for name in (*tags(EntryOp), *Limits.__struct_fields__):
        assert f"`{name}`" in PROTOCOL, name


def test_every_error_code_has_a_section_and_every_section_a_code() -> None:
    assert set(re.findall(r"^## (\S+)$", ERRORS, re.MULTILINE)) == set(BY_CODE)
    for code, kind in BY_CODE.items():
        section = ERRORS.split(f"## {code}\n")[1].split("\n## ")[0]
        assert f"`{kind.__name__}`" in section
        assert "*Do:*" in section


def test_every_route_is_described() -> None:
    routes = make_routes(typing.cast(typing.Any, None), typing.cast(typing.Any, None), "owner", "0")
    for pattern, handler, _ in routes:
        if pattern == "sharedwidgets/ws":
            continue
        path = pattern.replace("([^/]+)", "{token}", 1).replace("([^/]+)", "{state}", 1)
        for method in ("get", "patch", "put", "post", "delete"):
            if method in vars(handler):
                assert f"`{method.upper()} {path}`" in PROTOCOL, (method, path)


def test_every_config_trait_has_help_and_is_described() -> None:
    for name, trait in SharedWidgetsApp.class_own_traits(config=True).items():
        assert trait.help, name
        assert f"`{name}`" in PROTOCOL, name


@pytest.mark.parametrize("name", sorted(sharedwidgets.__all__))
def test_every_public_name_is_documented(name: str) -> None:
    item = getattr(sharedwidgets, name)
    assert inspect.getdoc(item), name
    if inspect.isclass(item):
        assert undocumented(item) == []


def test_what_a_room_hands_out_is_documented() -> None:
    assert undocumented(RoomState) == []


def undocumented(kind: type) -> list[str]:
    return [
        name
        for name, item in vars(kind).items()
        if not name.startswith("_") and (callable(item) or isinstance(item, property)) and not inspect.getdoc(item)
    ]


def test_every_file_of_the_house_has_its_line() -> None:
    for folder in ("sharedwidgets", "jupyter_ext/sharedwidgets_server", "js/src"):
        for path in sorted((ROOT / folder).rglob("*")):
            ours = path.suffix in (".py", ".ts", ".js") and "static" not in path.parts and not path.name.endswith(".test.ts")
            if ours and path.name != "__init__.py" and "test" not in path.parent.name:
                assert f"`{path.name}`" in CONTRIBUTING, path


@pytest.mark.parametrize("path", DOCS, ids=lambda path: path.name)
def test_links_inside_the_repository_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text()):
        assert (ROOT / target).exists(), target
