"""The value domain; the cases both languages share are in ``tests/vectors``."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from sharedwidgets.core import values
from sharedwidgets.core.values import MAX_DEPTH, SAFE_INT, added_up, depth, normalise, pack, plus, same, size, unpack
from sharedwidgets.errors import InvalidToken, InvalidValue, Malformed

LONGEST = 2**12_000 - 1


def nested(levels: int, inner: Any = None) -> Any:
    value = inner
    for level in range(levels):
        value = [value] if level % 2 else {"k": value}
    return value


class Text(str):
    __slots__ = ()


class Whole(int):
    pass


class Real(float):
    pass


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (None, None),
        (True, True),
        (Whole(7), 7),
        (Real(0.5), 0.5),
        (Text("é😀"), "é😀"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
        ((1, (2,)), [1, [2]]),
        ({Text("a"): (Text("b"),)}, {"a": ["b"]}),
        (LONGEST, LONGEST),
        (-LONGEST, -LONGEST),
    ],
)
def test_normalise_gives_plain_types(given: Any, kept: Any) -> None:
    value = normalise(given)
    assert value == kept
    assert type(value) is type(kept)


def test_normalise_shares_nothing_that_can_change() -> None:
    inner, raw = [1], bytearray(b"x")
    given = {"a": inner, "b": raw}
    value = normalise(given)
    inner.append(2)
    raw[0] = 0
    given["c"] = raw
    assert value == {"a": [1], "b": b"x"}


@pytest.mark.parametrize(
    ("given", "path", "says"),
    [
        ("\ud800", (), "lone surrogate"),
        ({"a": ["x", "\udfff"]}, ("a", "1"), "lone surrogate"),
        ({"a\ud800": 1}, ("a\ud800",), "lone surrogate"),
        ({"a": {1: 2}}, ("a",), "dict key must be text, not int 1"),
        ([{1, 2}], ("0",), "a set has no wire form"),
        ({"a": (1, object())}, ("a", "1"), "a object has no wire form"),
        ([2**12_000], ("0",), "12001 bits is too long"),
        (complex(1, 2), (), "a complex has no wire form"),
    ],
)
def test_h11_what_has_no_wire_form_is_refused_with_its_place(given: Any, path: tuple[str, ...], says: str) -> None:
    with pytest.raises(InvalidValue, match=says) as caught:
        normalise(given)
    assert caught.value.path == path


def test_h11_depth_is_counted_at_the_author() -> None:
    assert depth(normalise(nested(MAX_DEPTH))) == MAX_DEPTH
    for inner in ([], {}):
        with pytest.raises(InvalidValue, match="nested deeper than 32") as caught:
            normalise(nested(MAX_DEPTH, inner))
        assert len(caught.value.path) == MAX_DEPTH
    assert normalise([1], levels=1) == [1]
    with pytest.raises(InvalidValue):
        normalise({"a": [1]}, levels=1)


def test_h11_five_thousand_lists_do_not_break_the_stack() -> None:
    with pytest.raises(InvalidValue):
        normalise(nested(5000))
    with pytest.raises(Malformed, match="nested deeper"):
        unpack(nested(200), [])


@pytest.mark.parametrize(
    ("left", "right", "total"),
    [(1, 2, 3), (1, 0.5, 1.5), (SAFE_INT, 1, 2**53), (LONGEST, -LONGEST, 0), (math.inf, 1, math.inf)],
)
def test_plus(left: float, right: float, total: float) -> None:
    assert plus(left, right) == total
    assert type(plus(left, right)) is type(total)


@pytest.mark.parametrize(("left", "right", "says"), [(LONGEST, 1, "too long"), (2**2000, 0.5, "no number")])
def test_plus_never_leaves_the_domain(left: float, right: float, says: str) -> None:
    with pytest.raises(InvalidValue, match=says):
        plus(left, right)


@pytest.mark.parametrize(
    ("left", "right", "total"),
    [
        (1, 2, 3),
        (1, 0.5, 1.5),
        (1e308, -1e308, 0.0),
        (1e308, 1e308, None),
        (math.inf, 1, None),
        (math.nan, 1, None),
        (2**11_999, 2**11_999, None),
        (10**400, 0.5, None),
    ],
)
def test_h12_two_sums_are_one_only_where_that_says_the_same(left: float, right: float, total: float | None) -> None:
    assert added_up(left, right) == total


@pytest.mark.parametrize(("value", "levels"), [(1, 0), ("", 0), ([], 1), ({}, 1), ([1, [2, {}]], 3), ({"a": 1, "b": [[]]}, 3)])
def test_depth(value: Any, levels: int) -> None:
    assert depth(value) == levels


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        (0.0, -0.0, True),
        (2**53 + 1, float(2**53), False),
        (math.nan, float("nan"), True),
        (math.nan, 1.0, False),
        (1, True, False),
        (0, False, False),
        (False, None, False),
        ("1", 1, False),
        ("a", "a", True),
        (b"a", "a", False),
        ([1, 2], [1], False),
        ([1, [2.0]], [1.0, [2]], True),
        ([1], {"0": 1}, False),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, True),
        ({"a": 1}, {"a": 1, "b": 2}, False),
        ({"a": math.nan}, {"a": float("nan")}, True),
        ({"a": 1}, {"a": True}, False),
    ],
)
def test_same(left: Any, right: Any, equal: bool) -> None:
    assert same(left, right) is equal
    assert same(right, left) is equal


@pytest.mark.parametrize(
    "value",
    [None, True, 0, 1.5, 2**100, "", "ascii", "é😀", b"", b"abc", [], [1, "a"], {}, {"é": [1]}, {"$int": "1"}, math.inf],
)
def test_size_is_at_least_half_of_what_travels(value: Any) -> None:
    buffers: list[bytes] = []
    wire = len(msgspec.json.encode(pack(value, buffers))) + sum(map(len, buffers))
    assert 2 * size(value) >= wire


def test_size_is_a_sum() -> None:
    one, other = "x" * 300, {"k": b"y" * 200}
    assert size([one, other]) == size([one]) + size([other]) - size([])
    assert size({"a": one, "b": other}) == size({"a": one}) + size({"b": other}) - size({})
    assert size(2**6000) > size(2**600) > size(1)


@pytest.mark.parametrize(
    ("value", "json"),
    [
        (SAFE_INT, SAFE_INT),
        (SAFE_INT + 1, {"$int": "9007199254740992"}),
        (-SAFE_INT - 1, {"$int": "-9007199254740992"}),
        (math.nan, {"$float": "nan"}),
        (-math.inf, {"$float": "-inf"}),
        (1e22, {"$float": "1e+22"}),
        (2.0**53, {"$float": "9007199254740992.0"}),
        (0.1, 0.1),
        (True, True),
        ((1, 2), [1, 2]),
        ({"$a": 1}, {"$dict": {"$a": 1}}),
        ({"$dict": {"$a": 1}}, {"$dict": {"$dict": {"$dict": {"$a": 1}}}}),
        ({"$a": 1, "b": 2}, {"$a": 1, "b": 2}),
        ({}, {}),
    ],
)
def test_pack_and_back(value: Any, json: Any) -> None:
    assert pack(value, []) == json
    back = unpack(json, [])
    assert same(back, list(value) if isinstance(value, tuple) else value)
    assert type(back) is type(value) or isinstance(value, tuple)


def test_bytes_travel_beside_the_json_or_in_it() -> None:
    buffers: list[bytes] = []
    assert pack([b"a", {"k": b""}], buffers) == [{"$bytes": 0}, {"k": {"$bytes": 1}}]
    assert buffers == [b"a", b""]
    assert unpack([{"$bytes": 1}, {"$bytes": 0}], buffers) == [b"", b"a"]
    assert pack(b"\xff\x00", None) == {"$bytes": "/wA="}
    assert unpack({"$bytes": "/wA="}, None) == b"\xff\x00"


@pytest.mark.parametrize(
    "json",
    [
        SAFE_INT + 1,
        -SAFE_INT - 1,
        float(2**53),
        {"$int": "5"},
        {"$int": "09007199254740993"},
        {"$int": "-09007199254740993"},
        {"$int": "9007199254740993x"},
        {"$int": 9},
        {"$int": "9" * 3614},
        {"$int": "1" + "0" * 5000},
        {"$float": "0.5"},
        {"$float": "NaN"},
        {"$float": "1e999"},
        {"$float": "1" + "0" * 40},
        {"$float": 1.5},
        {"$float": "infinity"},
        {"$bytes": 1},
        {"$bytes": -1},
        {"$bytes": False},
        {"$bytes": "AAAA"},
        {"$dict": {"a": 1}},
        {"$dict": 1},
        {"$dict": {"$a": 1, "b": 2}},
        {"$what": 1},
        {"$": 1},
        ["\ud800"],
        {"a\ud800": 1},
        {"$dict": {"$\ud800": 1}},
        object(),
    ],
)
def test_unpack_refuses_what_pack_never_writes(json: Any) -> None:
    with pytest.raises(Malformed):
        unpack(json, [b"only one"])


@pytest.mark.parametrize("json", [{"$bytes": 0}, {"$bytes": "no base64!"}, {"$bytes": "A"}])
def test_unpack_without_buffers_takes_base64_only(json: Any) -> None:
    with pytest.raises(Malformed):
        unpack(json, None)


@pytest.mark.parametrize("token", ["demo-room", "a_b", "x" * 128, "größe 😀", "...", "a b", "e\u0301"])
def test_a_legal_token_is_itself(token: str) -> None:
    assert values.check_token(token) is token


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "text, not NoneType"),
        (7, "text, not int"),
        ("", "1 to 128 characters, this one has 0"),
        ("x" * 129, "has 129"),
        (".", "step in a path"),
        ("..", "step in a path"),
        ("a\nb", r"U\+000A"),
        ("a\u200bb", r"U\+200B"),
        ("a\ud800", r"U\+D800"),
        ("\ue000", r"U\+E000"),
        ("a\u2028b", r"U\+2028"),
        (" a", "begins or ends with a space"),
        ("a\u00a0", "begins or ends with a space"),
    ],
)
def test_an_illegal_token_says_which_rule_it_breaks(token: Any, says: str) -> None:
    with pytest.raises(InvalidToken, match=says):
        values.check_token(token)
