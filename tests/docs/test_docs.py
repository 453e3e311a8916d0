"""The documents say what the code says: protocol, errors, REST interface, configuration, and the map of the house."""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import yaml
from msgspec import inspect as types

import sharedwidgets
from sharedwidgets import errors
from sharedwidgets.core import codec, protocol
from sharedwidgets.core.protocol import Downstream, EntryOp, Limits, Op, Upstream
from sharedwidgets.core.values import MAX_DEPTH, SAFE_INT
from sharedwidgets.room import RoomState
from sharedwidgets_server.app import SharedWidgetsApp
from sharedwidgets_server.auth import Keys
from sharedwidgets_server.handlers import status_of
from sharedwidgets_server.manager import RoomManager
from sharedwidgets_server.routes import make_routes
from sharedwidgets_server.stores.memory import MemoryStore

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(ROOT.glob("*.md"))
PROTOCOL = (ROOT / "PROTOCOL.md").read_text(encoding="utf-8")
ERRORS = (ROOT / "ERRORS.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
OPENAPI = yaml.safe_load((ROOT / "jupyter_ext/sharedwidgets_server/rest-api.yml").read_text(encoding="utf-8"))

# Folders whose every file has a row in CONTRIBUTING.md; a row of any other folder only has to name a file that is there.
MAPPED = ("sharedwidgets", "jupyter_ext", "js/src")
# Made by a build or by Python, not by us.
UNMAPPED = ("/static/", "/__pycache__/", ".test.ts")

MESSAGES = dict.fromkeys([*get_args(Upstream), *get_args(Downstream)])
OPS = get_args(EntryOp)
PARTS = [protocol.Problem, protocol.Actor, protocol.Member, protocol.TraitSchema, protocol.StateImage, protocol.Entry]


def tag(kind: type) -> str:
    return str(kind.__struct_config__.tag or kind.__name__)


def section(text: str, title: str) -> str:
    """What stands under a heading, up to the next one of the same rank or a higher one."""
    found = re.search(rf"^(#+) {re.escape(title)}$", text, re.MULTILINE)
    assert found is not None, f"there is no heading {title!r}"
    rank = len(found.group(1))
    return re.split(rf"^#{{1,{rank}}} ", text[found.end() :], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> list[list[str]]:
    """The cells of each table row whose first cell is in backticks."""
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def table(text: str) -> dict[str, list[str]]:
    """Those rows by the name in their first cell."""
    return {cells[0].strip("| `"): cells[1:] for cells in rows(text)}


def words(kind: types.Type) -> str:
    """A field's type as PROTOCOL.md writes it."""
    match kind:
        case types.AnyType():
            return "`value`"
        case types.BoolType() | types.FloatType():
            return f"`{type(kind).__name__.removesuffix('Type').lower()}`"
        case types.NoneType():
            return "null"
        case types.IntType():
            return {(0, SAFE_INT): "`count`", (1, SAFE_INT): "`number`", (None, None): "`int`"}[kind.ge, kind.le]
        case types.StrType():
            least, most = kind.min_length, kind.max_length
            assert most is not None or least is None
            return "`text`" if most is None else f"`text {least}–{most}`" if least else f"`text ≤ {most}`"
        case types.LiteralType():
            return " or ".join(f'`"{value}"`' for value in sorted(kind.values))
        case types.VarTupleType(min_length=1, max_length=max_length) if max_length == MAX_DEPTH:
            return "`path`"
        case types.VarTupleType():
            return f"list of {words(kind.item_type)}"
        case types.DictType():
            return f"table of {words(kind.value_type)}"
        case types.StructType():
            return f"`{kind.cls.__name__}`"
        case types.UnionType():
            structs = {item.cls for item in kind.types if isinstance(item, types.StructType)}
            for name, union in (("Op", Op), ("EntryOp", EntryOp)):
                if structs == set(get_args(union)):
                    return f"`{name}`"
            order = sorted(kind.types, key=lambda item: isinstance(item, types.NoneType))
            return " or ".join(map(words, order))
    raise AssertionError(f"PROTOCOL.md has no word for {kind}")


def fields(kind: type) -> dict[str, list[str]]:
    """(type, default) of each field of a message, as PROTOCOL.md writes them."""
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    found: dict[str, list[str]] = {}
    for field in info.fields:
        default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        shown = "–" if default is msgspec.NODEFAULT else f"`{json.dumps(msgspec.to_builtins(default))}`"
        found[field.encode_name] = [words(field.type), shown]
    return found


def examples(direction: str) -> list[str]:
    return re.findall(rf"^```json {direction}\n(.*?)^```$", PROTOCOL, re.MULTILINE | re.DOTALL)


def tags_in(json_value: Any) -> Iterator[str]:
    """Every message type and op in an example."""
    if isinstance(json_value, dict):
        yield from (json_value[name] for name in ("type", "op") if isinstance(json_value.get(name), str))
        for item in json_value.values():
            yield from tags_in(item)
    elif isinstance(json_value, list):
        for item in json_value:
            yield from tags_in(item)


# --- PROTOCOL.md


@pytest.mark.parametrize("kind", [*MESSAGES, *OPS, *PARTS], ids=tag)
def test_each_message_op_and_part_is_described_field_by_field(kind: type) -> None:
    described = table(section(PROTOCOL, f"`{tag(kind)}`"))
    assert {name: cells[:2] for name, cells in described.items()} == fields(kind)
    assert list(described) == list(fields(kind))
    assert all(cells[2] for cells in described.values())


@pytest.mark.parametrize("example", examples("up"))
def test_examples_from_clients_are_messages_in_their_shortest_form(example: str) -> None:
    assert json.loads(str(codec.encode(codec.decode_upstream(example.strip())).frame())) == json.loads(example)


@pytest.mark.parametrize("example", examples("down"))
def test_examples_from_servers_are_messages_in_their_shortest_form(example: str) -> None:
    assert json.loads(str(codec.encode(codec.decode_downstream(example.strip())).frame())) == json.loads(example)


@pytest.mark.parametrize(("direction", "union"), [("up", Upstream), ("down", Downstream)])
def test_each_message_and_op_has_an_example(direction: str, union: Any) -> None:
    shown = {name for example in examples(direction) for name in tags_in(json.loads(example))}
    wanted = {tag(kind) for kind in get_args(union)} | (
        {tag(kind) for kind in get_args(Op)} if direction == "up" else {"define"}
    )
    assert wanted <= shown


def test_other_examples_are_json() -> None:
    blocks = re.findall(r"^```(json\S*) ?(\S*)\n(.*?)^```$", PROTOCOL, re.MULTILINE | re.DOTALL)
    assert {info for _, info, _ in blocks} == {"up", "down", ""}
    for _, _, text in blocks:
        json.loads(text)


def test_limits_have_their_defaults_and_a_meaning() -> None:
    described = table(section(PROTOCOL, "Limits"))
    assert {name: float(cells[0]) for name, cells in described.items()} == {
        name: float(getattr(Limits(), name)) for name in Limits.__struct_fields__
    }
    assert all(cells[1] for cells in described.values())


def test_links_lead_somewhere() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        anchors = {
            re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        }
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)):
            path, _, anchor = target.partition("#")
            if "://" not in path:
                assert not path or (ROOT / path).exists(), (document.name, target)
                assert path or anchor in anchors, (document.name, target)


# --- ERRORS.md


def test_each_code_has_a_section_and_each_section_a_code() -> None:
    assert re.findall(r"^## `(.+)`$", ERRORS, re.MULTILINE) == list(errors.BY_CODE)


@pytest.mark.parametrize("code", errors.BY_CODE)
def test_a_section_names_the_class_and_says_what_to_do(code: str) -> None:
    text = section(ERRORS, f"`{code}`")
    kind = errors.BY_CODE[code]
    bases = [base.__name__ for base in kind.__bases__ if base.__module__ == "builtins" and base is not Exception]
    assert re.search(rf"^- \*\*Class\*\*: `{kind.__name__}`", text, re.MULTILINE)
    for base in bases:
        assert f"`{base}`" in text
    for part in ("Means", "Raised", "What to do"):
        assert re.search(rf"^- \*\*{part}\*\*: \S", text, re.MULTILINE), part


# --- what help() shows


@pytest.mark.parametrize("name", sharedwidgets.__all__)
def test_a_public_name_has_a_docstring(name: str) -> None:
    thing = getattr(sharedwidgets, name)
    assert inspect.getdoc(thing)
    # What a kernel's help() shows must be of ours, not of a base class.
    if inspect.isclass(thing):
        assert thing.__doc__


OWN_CLASSES = [kind for name in sharedwidgets.__all__ if inspect.isclass(kind := getattr(sharedwidgets, name))]


@pytest.mark.parametrize("kind", [*OWN_CLASSES, RoomState], ids=lambda kind: kind.__name__)
def test_each_public_attribute_has_a_docstring(kind: type) -> None:
    for name, attribute in vars(kind).items():
        if not name.startswith("_") and (callable(attribute) or isinstance(attribute, (property, classmethod, staticmethod))):
            assert inspect.getdoc(attribute), f"{kind.__name__}.{name}"


# --- the REST interface


def own(handler: type) -> set[str]:
    """The methods of a handler and of its bases of ours; Jupyter's base class has OPTIONS for all."""
    return {name for kind in handler.__mro__ if kind.__module__.startswith("sharedwidgets") for name in vars(kind)}


def routes(folder: Path) -> dict[str, set[str]]:
    """Path, with its parameters by name, and the methods of each handler."""
    manager = RoomManager(MemoryStore(), limits=Limits(), room_ttl=1.0)
    found: dict[str, set[str]] = {}
    for pattern, handler, _ in make_routes(manager, Keys.load(folder / "key"), "owner", "0"):
        path = pattern
        for name in ("token", "name" if "/locks/" in pattern else "state"):
            path = path.replace("([^/]+)", f"{{{name}}}", 1)
        # Those of the handler itself and not of a base class, which has OPTIONS for all.
        found[path] = {method for method in ("get", "head", "post", "put", "patch", "delete") if method in own(handler)}
    return found


def test_each_route_is_in_both_descriptions(tmp_path: Path) -> None:
    there = routes(tmp_path)
    assert {path.lstrip("/"): set(item) - {"parameters"} for path, item in OPENAPI["paths"].items()} == there
    told: dict[str, set[str]] = {}
    for method, path in re.findall(r"^\| ([A-Z]+) \| `([^`]+)` \|", section(PROTOCOL, "REST"), re.MULTILINE):
        told.setdefault(path, set()).add(method.lower())
    assert told == there


def test_the_openapi_description_names_its_parameters_and_answers() -> None:
    assert OPENAPI["openapi"].startswith("3.")
    for path, item in OPENAPI["paths"].items():
        assert {resolved(parameter)["name"] for parameter in item.get("parameters", ())} == set(re.findall(r"{(\w+)}", path))
        for method in set(item) - {"parameters"}:
            assert item[method]["summary"]
            assert all(resolved(answer)["description"] for answer in item[method]["responses"].values())


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """A part of the OpenAPI description, with its reference followed."""
    if "$ref" not in part:
        return part
    found: Any = OPENAPI
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_every_reference_in_the_openapi_description_leads_somewhere() -> None:
    def walk(part: Any) -> None:
        if isinstance(part, dict):
            if "$ref" in part:
                assert resolved(part)
            for item in part.values():
                walk(item)
        elif isinstance(part, list):
            for item in part:
                walk(item)

    walk(OPENAPI)


@pytest.mark.parametrize("kind", [protocol.Member, protocol.TraitSchema])
def test_the_openapi_description_has_the_fields_of_the_wire(kind: type) -> None:
    assert list(OPENAPI["components"]["schemas"][kind.__name__]["properties"]) == list(fields(kind))


def test_statuses_are_those_the_handlers_give() -> None:
    told = {code: int(cells[0]) for code, cells in table(section(PROTOCOL, "REST")).items() if code in errors.BY_CODE}
    assert told == {code: status for code, kind in errors.BY_CODE.items() if (status := status_of(kind(""))) != 500}
    offered = {
        int(status)
        for item in OPENAPI["paths"].values()
        for method in set(item) - {"parameters"}
        for status in item[method]["responses"]
    }
    # A schema conflict has a status and no request that leads to it: states are not made over HTTP.
    assert set(told.values()) <= offered


# --- configuration


def test_each_setting_has_help_and_is_told() -> None:
    settings = SharedWidgetsApp.class_own_traits(config=True)
    described = table(section(PROTOCOL, "Configuration of the server"))
    assert list(described) == list(settings)
    for name, trait in settings.items():
        assert trait.help, name
        assert described[name][0] == f"`{json.dumps(trait.default())}`", name
        assert described[name][1], name


# --- CONTRIBUTING.md


def mapped() -> dict[str, str]:
    """The files CONTRIBUTING.md has a row for, and what they are for."""
    return {name: cells[0] for name, cells in table(section(CONTRIBUTING, "What each file is for")).items()}


def test_each_file_has_its_line() -> None:
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in MAPPED
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not any(part in path.as_posix() for part in UNMAPPED)
    }
    told = mapped()
    ours = {name for name in told if name.startswith(tuple(f"{folder}/" for folder in MAPPED))}
    assert there == ours, "the table of files in CONTRIBUTING.md is not the tree"
    assert all(told.values())


def test_other_rows_name_what_is_there() -> None:
    assert [name for name in mapped() if not (ROOT / name).exists()] == []


def test_each_target_of_the_makefile_is_told() -> None:
    targets = re.findall(r"^([a-z-]+):.*?## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    told = set(re.findall(r"`make ([a-z-]+)`", CONTRIBUTING))
    assert set(targets) - {"help"} <= told
    assert told <= set(targets)


def test_each_import_contract_is_told() -> None:
    contracts = re.findall(
        r'^\[\[tool\.importlinter\.contracts\]\]\nname = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    assert contracts
    assert [name for name in contracts if f"*{name}*" not in CONTRIBUTING] == []


def test_each_hard_case_the_code_names_is_told() -> None:
    sources = [path for name in mapped() if (path := ROOT / name).suffix in (".py", ".ts", ".js")]
    named = {number for path in sources for number in re.findall(r"\bH(\d+)\b", path.read_text(encoding="utf-8"))}
    told = set(re.findall(r"^\| H(\d+) \|", section(CONTRIBUTING, "Hard cases"), re.MULTILINE))
    assert sorted(named - told, key=int) == [], "a comment names a hard case that CONTRIBUTING.md does not tell"


def test_each_guarantee_is_told_where_it_is_defined() -> None:
    room = ast.get_docstring(ast.parse((ROOT / "sharedwidgets/core/room.py").read_text(encoding="utf-8"))) or ""
    for number in set(re.findall(r"\bG(\d+)\b", CONTRIBUTING)):
        assert re.search(rf"\bG{number}\b", room), f"G{number}"


# --- all documents


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_document_tells_of_where_it_was_written(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    found = re.findall(r"/work/|/home/|/root/|/tmp/|(?i:\bissue \d|\bsessions?\b|\bagents?\b|design\.md|hard-cases\.md)", text)
    assert found == []
    assert max(map(len, [line for line in text.splitlines() if not line.startswith(("|", "{", "  `", "```"))])) <= 140, (
        "wrap it"
    )
