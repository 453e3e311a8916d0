"""The one door: a frame becomes a typed message once, or a typed error that says where.

A message without bytes values is one text frame of JSON. One with bytes values is one binary frame::

    0x00 | u32 count | count × u32 length | header JSON | buffer | buffer ...      (big-endian; the header is segment 0)

A frame longer than the limit travels as consecutive fragments, binary frames that begin with ``0x01`` (more follow) or
``0x02`` (the last); their bodies joined are ``0x03 | text`` or the binary frame. Nothing is sent between two fragments.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from sharedwidgets.core import values
from sharedwidgets.core.protocol import Downstream, Entries, Upstream
from sharedwidgets.errors import Malformed, TooLarge

Frame: TypeAlias = str | bytes

WHOLE, MORE, LAST, TEXT = b"\x00", b"\x01", b"\x02", b"\x03"

_json = msgspec.json.Encoder()


@dataclass(frozen=True)
class Encoded:
    """A message as a frame. The same body serves every reader; `decided` is patched in for one of them."""

    header: bytes
    buffers: tuple[bytes, ...] = ()

    def frame(self, *, decided: int | None = None) -> Frame:
        """The frame to send; with `decided`, an `Entries` message that says so to one boot."""
        header = self.header if not decided else self.header[:-1] + b',"decided":%d}' % decided
        if not self.buffers:
            return header.decode()
        segments = (header, *self.buffers)
        lengths = struct.pack(f">{len(segments) + 1}I", len(segments), *map(len, segments))
        return b"".join((WHOLE, lengths, *segments))


def encode(message: Upstream | Downstream) -> Encoded:
    """The wire form of a message; its values are in the domain already."""
    buffers: list[bytes] = []
    plain = values.pack(msgspec.to_builtins(message, builtin_types=(bytes,)), buffers)
    return Encoded(_json.encode(plain), tuple(buffers))


def encode_shared(entries: Entries) -> Encoded:
    """Entries for a whole audience: without `decided`, which `Encoded.frame` adds for an author."""
    return encode(msgspec.structs.replace(entries, decided=0) if entries.decided else entries)


def decode_upstream(frame: Frame) -> Upstream:
    """What a client said, or `Malformed`."""
    message: Upstream = _convert(_open(frame), Upstream)
    return message


def decode_downstream(frame: Frame) -> Downstream:
    """What a server said, or `Malformed`."""
    message: Downstream = _convert(_open(frame), Downstream)
    return message


def fragments(frame: Frame, limit: int) -> list[Frame]:
    """The frame itself, or the fragments it must travel in: each at most `limit` bytes."""
    if len(frame) <= limit // (1 if isinstance(frame, bytes) or frame.isascii() else 4):
        return [frame]
    plain = frame.encode() if isinstance(frame, str) else frame
    if len(plain) <= limit:
        return [frame]
    body = TEXT + plain if isinstance(frame, str) else plain
    step = limit - 1
    starts = range(0, len(body), step)
    return [(LAST if start + step >= len(body) else MORE) + body[start : start + step] for start in starts]


@dataclass
class Assembler:
    """Puts fragments together again; at most `limit` bytes of them.

    Parameters
    ----------
    limit : int
        Bytes of one message.
    """

    limit: int
    _parts: list[bytes] = field(default_factory=list)
    _size: int = 0

    @property
    def partial(self) -> bool:
        """Whether a fragment came and the last one did not."""
        return bool(self._parts)

    def feed(self, frame: Frame) -> Frame | None:
        """The whole frame, or None while more fragments must come.

        Raises
        ------
        Malformed
            A frame between two fragments.
        TooLarge
            More than `limit` bytes.
        """
        if isinstance(frame, str) or frame[:1] not in (MORE, LAST):
            if self._parts:
                raise Malformed("a frame came between two fragments")
            return frame
        if len(frame) == 1:
            raise Malformed("an empty fragment")
        self._size += len(frame) - 1
        if self._size > self.limit:
            wanted = f"≤ {self.limit} bytes"
            raise TooLarge(f"a message may have {self.limit} bytes; split it into several writes", expected=wanted)
        self._parts.append(frame[1:])
        if frame[:1] == MORE:
            return None
        body = b"".join(self._parts)
        self._parts.clear()
        self._size = 0
        if body[:1] != TEXT:
            return body
        try:
            return body[1:].decode()
        except UnicodeDecodeError:
            raise Malformed("fragments of a text frame that are not UTF-8") from None


def _open(frame: Frame) -> values.Value:
    header, buffers = _split(frame)
    try:
        json = msgspec.json.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"not JSON: {error}") from None
    except RecursionError:
        raise Malformed("nested too deep") from None
    return values.unpack(json, buffers)


def _convert(json: values.Value, union: object) -> Any:
    try:
        return msgspec.convert(json, type=union)
    except msgspec.ValidationError as error:
        raise Malformed(f"not a message of this protocol: {error}") from None


def _split(frame: Frame) -> tuple[str | bytes, list[bytes]]:
    if isinstance(frame, str):
        return frame, []
    if frame[:1] != WHOLE or len(frame) < 5:
        raise Malformed("a binary frame must begin with 0x00 and the number of its segments")
    (count,) = struct.unpack_from(">I", frame, 1)
    if count < 1:
        raise Malformed("a binary frame has at least one segment")
    start = 5 + 4 * count
    if len(frame) < start:
        raise Malformed("a binary frame ends within its list of lengths")
    lengths = struct.unpack_from(f">{count}I", frame, 5)
    if start + sum(lengths) != len(frame):
        raise Malformed(f"a binary frame of {len(frame)} bytes announces {start + sum(lengths)}")
    segments: list[bytes] = []
    for length in lengths:
        segments.append(frame[start : start + length])
        start += length
    return segments[0], segments[1:]
