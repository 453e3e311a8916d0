"""The door: frames become messages or typed errors, and fragments become frames."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from sharedwidgets.core import codec
from sharedwidgets.core.codec import Assembler, Encoded
from sharedwidgets.core.protocol import Entries, Hello, Ping, Pong, Push, Set, Snapshot, StateImage, TraitSchema
from sharedwidgets.errors import Malformed, TooLarge
from support.build import entry, put


def push(value: Any) -> Push:
    return Push(room="r", n=1, ops=(put("title", value),))


def binary(*segments: bytes, count: int | None = None, lengths: list[int] | None = None) -> bytes:
    sizes = [len(item) for item in segments] if lengths is None else lengths
    return b"\x00" + struct.pack(f">{len(sizes) + 1}I", len(segments) if count is None else count, *sizes) + b"".join(segments)


def test_a_message_without_bytes_is_text() -> None:
    frame = codec.encode(push("é😀")).frame()
    assert isinstance(frame, str)
    assert codec.decode_upstream(frame) == push("é😀")


def test_a_message_with_bytes_is_one_binary_frame() -> None:
    frame = codec.encode(push([b"ab", b""])).frame()
    assert isinstance(frame, bytes)
    assert frame[:1] == codec.WHOLE
    assert frame.endswith(b"ab")
    assert codec.decode_upstream(frame) == push([b"ab", b""])


@pytest.mark.parametrize("name", ["$state", "$dict", "$bytes"])
def test_names_that_look_like_tags_come_back(name: str) -> None:
    image = StateImage(schema={name: TraitSchema()}, values={name: {name: 1}})
    snapshot = Snapshot(room="r", incarnation="i", epoch="e", seq=1, states={name: image})
    assert codec.decode_downstream(codec.encode(snapshot).frame()) == snapshot


@pytest.mark.parametrize("value", ["x", b"x"])
def test_one_body_serves_all_and_tells_each_author_what_is_decided(value: Any) -> None:
    message = Entries(room="r", epoch="e", prev=1, last=2, entries=(entry(2, put("title", value)),), decided=9)
    body = codec.encode_shared(message)
    for decided in (None, 0, 7):
        heard = codec.decode_downstream(body.frame(decided=decided))
        assert isinstance(heard, Entries)
        assert heard.decided == (decided or 0)
        assert heard.entries == message.entries
    # The direct way keeps it, and a body without it is not copied for nothing.
    assert codec.decode_downstream(codec.encode(message).frame()) == message
    assert (
        codec.encode_shared(Entries(room="r", epoch="e", prev=1, last=1)).frame()
        == codec.encode(Entries(room="r", epoch="e", prev=1, last=1)).frame()
    )


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("nul", "not JSON"),
        ("[" * 100_000, "not JSON|nested too deep"),
        ("[1]", "not a message"),
        ("null", "not a message"),
        ("{}", "not a message"),
        ('{"type":"nonsense"}', "not a message"),
        ('{"type":"ping"}', r"id"),
        ('{"type":"ping","id":-1}', r"\$\.id"),
        ('{"type":"ping","id":true}', r"\$\.id"),
        ('{"type":"ping","id":9007199254740993}', "beyond"),
        ('{"type":"push","room":"r","n":1,"ops":[]}', r"\$\.ops"),
        ('{"type":"push","room":"r","n":1,"ops":[{"op":"define","state":"S","schema":{},"values":{}}]}', r"\$\.ops\[0\]"),
        ('{"type":"push","room":"r","n":1,"ops":[{"op":"set","state":"S","path":[],"value":1}]}', r"\$\.ops\[0\]\.path"),
        ('{"type":"push","room":"r","n":1,"ops":[{"op":"set","state":"S","path":["a"],"value":{"$x":1}}]}', "not a tag"),
        ('{"type":"leave","room":"\\ud800"}', "surrogate|not JSON"),
        (b"", "must begin with 0x00"),
        (b"\x00\x00\x00", "must begin with 0x00"),
        (b"\x07\x00\x00\x00\x01\x00\x00\x00\x00", "must begin with 0x00"),
        (binary(count=0, lengths=[]), "at least one segment"),
        (binary(b"{}", count=3, lengths=[2])[:-2], "ends within its list of lengths"),
        (binary(b'{"type":"ping","id":1}', lengths=[99]), "announces"),
        (binary(b"{}") + b"x", "announces"),
        (binary(b"\xff\xfe"), "not JSON"),
        (binary(b'{"type":"leave","room":{"$bytes":0}}'), "not a tag"),
    ],
)
def test_bytes_that_are_no_message_say_why(frame: str | bytes, says: str) -> None:
    with pytest.raises(Malformed, match=says):
        codec.decode_upstream(frame)


def test_each_side_hears_only_what_the_other_may_say() -> None:
    up = codec.encode(Hello(protocol=1, boot="b", kind="kernel")).frame()
    down = codec.encode(Entries(room="r", epoch="e", prev=0, last=0)).frame()
    assert isinstance(codec.decode_upstream(up), Hello)
    assert isinstance(codec.decode_downstream(down), Entries)
    with pytest.raises(Malformed):
        codec.decode_downstream(up)
    with pytest.raises(Malformed):
        codec.decode_upstream(down)
    for both in (Ping(id=1), Pong(id=1)):
        frame = codec.encode(both).frame()
        assert codec.decode_upstream(frame) == codec.decode_downstream(frame) == both


def test_unknown_fields_are_ignored() -> None:
    assert codec.decode_upstream('{"type":"ping","id":3,"colour":{"x":[1]}}') == Ping(id=3)


def test_a_binary_frame_without_buffers_is_read_too() -> None:
    assert codec.decode_upstream(binary(b'{"type":"ping","id":3}')) == Ping(id=3)


@pytest.mark.parametrize("frame", ["x" * 50, "é" * 25, "x" * 9 + "😀" * 20, "\ufeffx" * 10, bytes(range(90)), b"\x00"])
@pytest.mark.parametrize("limit", [2, 3, 7, 40, 49, 50, 51, 90, 200])
def test_fragments_are_within_the_limit_and_give_the_frame_again(frame: str | bytes, limit: int) -> None:
    parts = codec.fragments(frame, limit)
    size = len(frame.encode() if isinstance(frame, str) else frame)
    assert (len(parts) == 1) is (size <= limit)
    assert all(len(part.encode() if isinstance(part, str) else part) <= limit for part in parts)
    assembler = Assembler(1000)
    for part in parts[:-1]:
        assert assembler.feed(part) is None
        assert assembler.partial
    assert assembler.feed(parts[-1]) == frame
    assert not assembler.partial
    # Nothing of it is left for the next one.
    assert assembler.feed("next") == "next"


def test_whole_frames_pass_through() -> None:
    assembler = Assembler(3)
    assert assembler.feed("longer than the limit") == "longer than the limit"
    assert assembler.feed(b"\x00abcdef") == b"\x00abcdef"
    assert assembler.feed(b"") == b""


@pytest.mark.parametrize("between", ["text", b"\x00abc", b""])
def test_nothing_comes_between_two_fragments(between: str | bytes) -> None:
    assembler = Assembler(100)
    assembler.feed(b"\x01abc")
    with pytest.raises(Malformed, match="between two fragments"):
        assembler.feed(between)


def test_fragments_beyond_the_limit_are_refused_before_the_last_came() -> None:
    assembler = Assembler(5)
    assert assembler.feed(b"\x01abc") is None
    assert assembler.feed(b"\x01de") is None
    with pytest.raises(TooLarge, match="5 bytes"):
        assembler.feed(b"\x01f")


def test_the_limit_counts_anew_for_each_message() -> None:
    assembler = Assembler(5)
    for _ in range(3):
        assert assembler.feed(b"\x01\x03ab") is None
        assert assembler.feed(b"\x02cd") == "abcd"


@pytest.mark.parametrize("empty", [b"\x01", b"\x02"])
def test_an_empty_fragment_is_refused(empty: bytes) -> None:
    with pytest.raises(Malformed, match="empty fragment"):
        Assembler(10).feed(empty)


def test_text_fragments_must_be_text() -> None:
    with pytest.raises(Malformed, match="not UTF-8"):
        Assembler(10).feed(b"\x02\x03\xff")


def test_encoded_is_a_value() -> None:
    assert Encoded(b"{}") == Encoded(b"{}", ())
    assert Encoded(b"{}", (b"x",)).frame() == binary(b"{}", b"x")
    assert codec.encode(Push(room="r", n=1, ops=(Set(state="S", path=("a",), value=None),))).buffers == ()


def test_a_message_may_have_any_number_of_buffers() -> None:
    values = [bytes([index % 256]) for index in range(5000)]
    push = Push(room="r", n=1, ops=(Set(state="S", path=("a",), value=values),))
    assert codec.decode_upstream(codec.encode(push).frame()) == push
