"""The value domain: what a trait's value may be on the wire, and how it is written in JSON.

A value is null, a bool, an int, a float, text of Unicode scalar values, bytes, a list, or a dict with text keys. JSON
cannot say all of that, so a few values travel as a *tag*, a dict with exactly one key:

================================  =====================================================================
``{"$int": "9007199254740993"}``  an int beyond ±(2^53 − 1), in decimal
``{"$float": "nan"}``             nan, inf, -inf, or a whole float beyond ±(2^53 − 1) in decimal
``{"$bytes": 0}``                 the buffer of that index, which travels beside the JSON (HTTP: base64 text in place)
``{"$dict": {...}}``              a dict whose only key begins with ``$``, so that no user's dict is a tag
================================  =====================================================================

A plain number beyond ±(2^53 − 1) is refused: JavaScript would read another number than Python wrote.
"""

from __future__ import annotations

import base64
import contextlib
import math
import re
import unicodedata
from typing import TypeAlias

from sharedwidgets.errors import InvalidToken, InvalidValue, Malformed

Value: TypeAlias = "bool | int | float | str | bytes | list[Value] | dict[str, Value] | None"
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

SAFE_INT = 2**53 - 1
MAX_DEPTH = 32
MAX_TOKEN = 128

# A message adds levels of its own around a value (message, ops, op, value, tag); beyond this no value can be legal.
_MAX_FRAME_DEPTH = 2 * MAX_DEPTH + 16
_MAX_INT_BITS = 12_000
_MAX_INT_DIGITS = 3_613
_INT = re.compile(r"-?[0-9]+")
_FLOAT = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?")
_FORBIDDEN_IN_TOKENS = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})


def normalise(value: object, *, levels: int = MAX_DEPTH) -> Value:
    """A private copy of `value` inside the domain: tuples become lists, other bytes-like objects become bytes.

    Parameters
    ----------
    value : object
        What a user assigned.
    levels : int
        How many levels of list and dict are allowed.

    Returns
    -------
    Value
        Nothing in it is shared with `value` that could be changed in place.

    Raises
    ------
    InvalidValue
        With ``path``, the keys and indexes that lead to the offending part.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, str):
        return text(value)
    if isinstance(value, int):
        return whole(int(value))
    if isinstance(value, float):
        return float(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, (list, tuple)):
        _descend(levels)
        items: list[Value] = []
        for index, item in enumerate(value):
            try:
                items.append(normalise(item, levels=levels - 1))
            except InvalidValue as error:
                raise error.located(path=(str(index),)) from None
        return items
    if isinstance(value, dict):
        _descend(levels)
        mapping: dict[str, Value] = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise InvalidValue(
                    f"a dict key must be text, not {type(key).__name__} {key!r}; use str({key!r})", expected="text key"
                )
            try:
                mapping[text(key)] = normalise(item, levels=levels - 1)
            except InvalidValue as error:
                raise error.located(path=(key,)) from None
        return mapping
    raise InvalidValue(
        f"a {type(value).__name__} has no wire form; give null, bool, int, float, text, bytes, list or dict, "
        "or tag the trait with to_json/from_json"
    )


def whole(value: int) -> int:
    """The int itself, when it is short enough for the wire; `InvalidValue` otherwise."""
    if value.bit_length() > _MAX_INT_BITS:
        raise InvalidValue(f"an int of {value.bit_length()} bits is too long; keep it below {_MAX_INT_BITS} bits")
    return value


def plus(left: int | float, right: int | float) -> int | float:
    """The sum as it can travel.

    Raises
    ------
    InvalidValue
        It is too long an int, or an int too large to be added to a float.
    """
    try:
        total = left + right
    except OverflowError:
        raise InvalidValue("the sum of so large an int and a float is no number; set the value instead") from None
    return whole(total) if isinstance(total, int) else total


def added_up(left: int | float, right: int | float) -> int | float | None:
    """What two sums in a row add; None where that is no number that says the same as both, one after the other."""
    try:
        total = plus(left, right)
    except InvalidValue:
        return None
    return total if isinstance(total, int) or math.isfinite(total) else None


def depth(value: Value) -> int:
    """How many levels of list and dict a value has; 0 for a scalar."""
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 0


def same(left: Value, right: Value) -> bool:
    """Whether two values are equal on the wire: ``1`` and ``1.0`` are, ``1`` and ``True`` are not, nan equals nan."""
    if left is right:
        return True
    if isinstance(left, bool) or isinstance(right, bool):
        return False
    if isinstance(left, (int, float)) and isinstance(right, (int, float)):
        return left == right or (left != left and right != right)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(item, right[key]) for key, item in left.items())
    return type(left) is type(right) and left == right


def size(value: Value) -> int:
    """About how many bytes a value takes on the wire; exact for bytes, never less than half for text."""
    if isinstance(value, str):
        return len(value) + 2 if value.isascii() else len(value.encode()) + 2
    if isinstance(value, bytes):
        return len(value) + 16
    if isinstance(value, list):
        return 2 + sum(size(item) + 1 for item in value)
    if isinstance(value, dict):
        return 2 + sum(size(key) + size(item) + 2 for key, item in value.items())
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > SAFE_INT:
        return 12 + value.bit_length() // 3
    return 8


def pack(value: Value, buffers: list[bytes] | None) -> Json:
    """The JSON form of a value of the domain; its bytes are appended to `buffers`, or written in place without."""
    if isinstance(value, dict):
        packed: dict[str, Json] = {key: pack(item, buffers) for key, item in value.items()}
        return {"$dict": packed} if _looks_like_tag(packed) else packed
    if isinstance(value, (list, tuple)):
        return [pack(item, buffers) for item in value]
    if isinstance(value, bytes):
        if buffers is None:
            return {"$bytes": base64.b64encode(value).decode()}
        buffers.append(value)
        return {"$bytes": len(buffers) - 1}
    if isinstance(value, float):
        if not math.isfinite(value) or (abs(value) > SAFE_INT and value.is_integer()):
            return {"$float": repr(value)}
        return value
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > SAFE_INT:
        return {"$int": str(value)}
    return value


def unpack(json: object, buffers: list[bytes] | None, *, levels: int = _MAX_FRAME_DEPTH) -> Value:
    """The value whose JSON form this is.

    Raises
    ------
    Malformed
        A bad tag, a number JavaScript cannot hold, a lone surrogate, a missing buffer, or too deep.
    """
    if levels < 0:
        raise Malformed(f"nested deeper than {_MAX_FRAME_DEPTH} levels")
    if isinstance(json, dict):
        if _looks_like_tag(json):
            return _untag(json, buffers, levels)
        return {_scalar_text(key): unpack(item, buffers, levels=levels - 1) for key, item in json.items()}
    if isinstance(json, list):
        return [unpack(item, buffers, levels=levels - 1) for item in json]
    if isinstance(json, str):
        return _scalar_text(json)
    if json is None or isinstance(json, bool):
        return json
    if isinstance(json, int):
        if abs(json) > SAFE_INT:
            raise Malformed('a number beyond ±(2^53 − 1) must be sent as {"$int": "…"}')
        return json
    if isinstance(json, float):
        if json.is_integer() and abs(json) > SAFE_INT:
            raise Malformed('a whole number beyond ±(2^53 − 1) must be sent as {"$float": "…"} or {"$int": "…"}')
        return json
    raise Malformed(f"a {type(json).__name__} is no JSON")


def check_token(token: object) -> str:
    """The token itself, when it is a legal room name.

    1–128 code points, none a control, format, surrogate, private-use or line/paragraph separator character, no space at
    either end, not ``.`` or ``..``. Nothing is normalised: ``a_b`` and ``a-b`` are two rooms.

    Raises
    ------
    InvalidToken
        Says which rule is broken.
    """
    if not isinstance(token, str):
        raise InvalidToken(f"a token is text, not {type(token).__name__}; give a name such as 'demo-room'")
    if not 1 <= len(token) <= MAX_TOKEN:
        raise InvalidToken(f"a token has 1 to {MAX_TOKEN} characters, this one has {len(token)}")
    if token in (".", ".."):
        raise InvalidToken(f"{token!r} is a step in a path; give a name such as 'demo-room'")
    for char in token:
        if unicodedata.category(char) in _FORBIDDEN_IN_TOKENS:
            raise InvalidToken(f"U+{ord(char):04X} may not be in a token (control, format, private or separator character)")
    if unicodedata.category(token[0]) == "Zs" or unicodedata.category(token[-1]) == "Zs":
        raise InvalidToken(f"{token!r} begins or ends with a space; take it off")
    return token


def _looks_like_tag(json: dict[str, Json] | dict[str, object]) -> bool:
    return len(json) == 1 and next(iter(json)).startswith("$")


def _untag(json: dict[str, object], buffers: list[bytes] | None, levels: int) -> Value:
    ((tag, body),) = json.items()
    match tag, body:
        case "$int", str() if len(body) <= _MAX_INT_DIGITS + 1 and _INT.fullmatch(body):
            number = int(body)
            if abs(number) > SAFE_INT and number.bit_length() <= _MAX_INT_BITS and str(number) == body:
                return number
        case "$float", "nan" | "inf" | "-inf":
            return float(body)
        case "$float", str() if len(body) <= 32 and _FLOAT.fullmatch(body):
            real = float(body)
            if math.isfinite(real) and abs(real) > SAFE_INT:
                return real
        case "$bytes", int() if buffers is not None and not isinstance(body, bool) and 0 <= body < len(buffers):
            return buffers[body]
        case "$bytes", str() if buffers is None:
            with contextlib.suppress(ValueError):
                return base64.b64decode(body, validate=True)
        case "$dict", dict() if _looks_like_tag(body):
            return {_scalar_text(key): unpack(item, buffers, levels=levels - 1) for key, item in body.items()}
    raise Malformed(f"{str(json)[:80]} is not a tag this protocol knows")


def _descend(levels: int) -> None:
    if levels <= 0:
        raise InvalidValue(f"nested deeper than {MAX_DEPTH} levels of list and dict", expected=f"at most {MAX_DEPTH} levels")


def text(value: str) -> str:
    """Text of Unicode scalar values; `InvalidValue` for a lone surrogate."""
    plain = str.__str__(value)
    if not plain.isascii() and _has_surrogate(plain):
        raise InvalidValue("text with a lone surrogate has no wire form; decode it with errors='replace'", expected="text")
    return plain


def _scalar_text(value: str) -> str:
    if not value.isascii() and _has_surrogate(value):
        raise Malformed("text with a lone surrogate")
    return value


def _has_surrogate(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False
