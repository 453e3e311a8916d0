"""Everything a client can get wrong or mean ill, over real sockets: the typed refusal, and that nobody else notices.

One table. Each row is tried by a client of its own while a member of the room works on; afterwards that member's next write has
the next number and the value it wrote, and it heard of nothing else.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from tornado.httpclient import HTTPClientError

from sharedwidgets.core import codec
from sharedwidgets.core.protocol import (
    Acquire,
    Append,
    Bye,
    Delete,
    Entries,
    Failure,
    Hello,
    Inc,
    Join,
    LockName,
    Nack,
    Ping,
    Push,
    Release,
    Resume,
    Set,
    TraitSchema,
)
from sharedwidgets.core.protocol import Resend as ResendMessage
from sharedwidgets.errors import BY_CODE
from sharedwidgets_server.testing import LiveServer
from support.peers import SCHEMA, SECRET, VALUES, Peer, add, assign
from support.rest import ask, room_url
from support.servers import TIGHT, peers

pytestmark = pytest.mark.asyncio

Stage = Literal["fresh", "greeted", "joined", "page"]


@dataclass
class Scene:
    """The hostile client, the room it disturbs, its other member, and the server."""

    peer: Peer
    room: str
    witness: Peer
    server: LiveServer
    peers: peers


Act = Callable[[Scene], Awaitable[object]]


@dataclass(frozen=True)
class Case:
    """A row: what is done at which stage, the refusal, and whether the connection survives it."""

    name: str
    code: str
    stage: Stage
    act: Act
    answer: type = Bye


def sends(*frames: str | bytes) -> Act:
    return lambda scene: scene.peer.send(*frames)


def pushes(*ops: Any, **fields: Any) -> Act:
    return lambda scene: scene.peer.say(Push(**{"room": scene.room, "n": 1, "ops": ops, **fields}))


def writes(value: str) -> Act:
    """A push whose value is this JSON, as it stands."""

    async def act(scene: Scene) -> None:
        op = f'{{"op":"set","state":"S","path":["tags"],"value":{value}}}'
        await scene.peer.send(f'{{"type":"push","room":{json.dumps(scene.room)},"n":1,"ops":[{op}]}}')

    return act


def joins(room: str | None = None, **fields: Any) -> Act:
    return lambda scene: scene.peer.say(Join(id=7, room=scene.room if room is None else room, **fields))


def says(**fields: Any) -> Act:
    """A message as plain JSON."""
    return lambda scene: scene.peer.send(json.dumps(fields))


def segments(*parts: bytes, lengths: list[int] | None = None, count: int | None = None) -> bytes:
    told = lengths if lengths is not None else [len(part) for part in parts]
    return b"\x00" + struct.pack(f">{len(told) + 1}I", len(told) if count is None else count, *told) + b"".join(parts)


def raw_op(op: dict[str, Any], n: int = 1) -> Act:
    """A push of one op as plain JSON."""
    return says(type="push", room="r", n=n, ops=[op])


def resume(room: str) -> Resume:
    return Resume(room=room, incarnation="i", epoch="e", seq=1)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


async def hello_over_the_limit(scene: Scene) -> None:
    frame = codec.encode(Hello(protocol=1, boot="b", kind="script", name="n")).frame()
    assert isinstance(frame, str)
    await scene.peer.send(frame + " " * (int(TIGHT["hello_bytes"]) - len(frame) + 1))


async def frame_over_the_limit(scene: Scene) -> None:
    frame = '{"type":"ping","id":1}'
    await scene.peer.send(frame + " " * (int(TIGHT["frame_bytes"]) - len(frame) + 1))


async def fragments_over_the_limit(scene: Scene) -> None:
    step = int(TIGHT["frame_bytes"]) - 1
    await scene.peer.send(*[b"\x01" + b"x" * step] * (int(TIGHT["push_bytes"]) // step + 1))


async def too_many_rooms(scene: Scene) -> None:
    for number in range(1, int(TIGHT["rooms"])):
        await scene.peer.join(f"{scene.room}-{number}", make=False)
    await scene.peer.say(Join(id=99, room=f"{scene.room}-last"))


async def over_room_bytes(scene: Scene) -> None:
    for n in range(1, 9):
        await scene.peer.say(Push(room=scene.room, n=n, ops=(Set(state="S", path=("tags", str(n)), value="x" * 1900),)))


async def another_boot(scene: Scene) -> None:
    await scene.peer.say(Hello(protocol=1, boot=scene.witness.boot, kind="script"))


async def after_a_refusal(scene: Scene) -> None:
    """Malformed, and in the same breath a proper hello and a write."""
    proper = (
        Hello(protocol=1, boot="late", kind="script"),
        Join(id=1, room=scene.room),
        Push(room=scene.room, n=1, ops=(add(100),)),
    )
    await scene.peer.send_at_once("{", *(codec.encode(message).frame() for message in proper))


async def writes_after_a_refusal(scene: Scene) -> None:
    push = Push(room=scene.room, n=1, ops=(add(100),))
    await scene.peer.send_at_once("{", codec.encode(push).frame())


async def stale_condition(scene: Scene) -> None:
    seq = scene.peer.replicas[scene.room].seq
    await scene.peer.write(scene.room, assign("text", "mine"))
    await scene.peer.push(scene.room, Set(state="S", path=("text",), value="x", if_rev=seq))


def with_fence(fence: int) -> Act:
    async def act(scene: Scene) -> None:
        await scene.peer.say(Push(room=scene.room, n=1, ops=(add(),), fences={"S": fence}))

    return act


def locks(state: str) -> Act:
    async def act(scene: Scene) -> None:
        name = LockName(kind="state", name=state)
        await scene.peer.say(Acquire(id=7, room=scene.room, lock=name, owner="o", lease=5.0))

    return act


async def locked_by_itself(scene: Scene) -> None:
    """Without the fence it is another thread of the process, or a liar; the lock is given back for the others."""
    name = LockName(kind="state", name="S")
    fence = scene.peer.replicas[scene.room].seq + 1
    await scene.peer.say(Acquire(id=7, room=scene.room, lock=name, owner="o", lease=5.0))
    await scene.peer.push(scene.room, add())
    await scene.peer.say(Release(room=scene.room, lock=name, owner="o", fence=fence))


async def a_second_connection(scene: Scene) -> None:
    assert scene.peer.welcome is not None
    again = await Peer.open(scene.server.socket_url, scene.server.headers)
    scene.peers.made.append(again)
    again.boot = scene.peer.boot
    await again.hello(kind="kernel", member=scene.peer.welcome.member, secret=scene.peer.welcome.secret)


async def deleted(scene: Scene) -> None:
    other = f"{scene.room}-deleted"
    await scene.peer.join(other)
    answer = ask(room_url(scene.server, "rooms", other), "DELETE", headers=scene.server.headers)
    assert answer.status == 204


async def resumes_what_nobody_knows(scene: Scene) -> None:
    held = scene.peer.replicas[scene.room]
    await scene.peer.say(
        Resume(room=scene.room, incarnation=held.incarnation, epoch=held.epoch, seq=held.seq, lowest=5, highest=6)
    )


HELLO = {"type": "hello", "protocol": 1, "boot": "b", "kind": "script"}
INT = {"a": TraitSchema(kind="int")}
CONFLICT = {**SCHEMA, "count": TraitSchema(kind="text")}

CASES = [
    # Before hello.
    Case("not-json", "malformed", "fresh", sends("{nope")),
    Case("empty-frame", "malformed", "fresh", sends("")),
    Case("empty-binary", "malformed", "fresh", sends(b"")),
    Case("not-an-object", "malformed", "fresh", sends("[]")),
    Case("unknown-type", "malformed", "fresh", says(type="nonsense")),
    Case("no-type", "malformed", "fresh", says(protocol=1)),
    Case("a-word-of-the-server", "malformed", "fresh", says(type="pang", id=1)),
    Case("unknown-binary", "malformed", "fresh", sends(b"\x07abc")),
    Case("binary-without-count", "malformed", "fresh", sends(b"\x00\x00")),
    Case("binary-of-no-segments", "malformed", "fresh", sends(segments(count=0))),
    Case("binary-of-too-many-segments", "malformed", "fresh", sends(segments(b"{}", count=2**32 - 1))),
    Case("binary-cut-in-its-lengths", "malformed", "fresh", sends(segments(b"{}", count=100))),
    Case("binary-cut-in-its-body", "malformed", "fresh", sends(segments(b"{}", lengths=[200]))),
    Case("binary-with-a-tail", "malformed", "fresh", sends(segments(b"{}xx", lengths=[2]))),
    Case("binary-header-not-utf8", "malformed", "fresh", sends(segments(b'"\xff"'))),
    Case("nested-too-deep", "malformed", "fresh", sends("[" * 2900)),
    Case("nested-objects", "malformed", "fresh", sends('{"a":' * 400 + "1" + "}" * 400)),
    Case("hello-without-boot", "malformed", "fresh", says(type="hello", protocol=1, kind="script")),
    Case("hello-with-an-empty-boot", "malformed", "fresh", says(**{**HELLO, "boot": ""})),
    Case("hello-with-a-long-boot", "malformed", "fresh", says(**{**HELLO, "boot": "b" * 65})),
    Case("hello-of-another-kind", "malformed", "fresh", says(**{**HELLO, "kind": "server"})),
    Case(
        "hello-with-a-lone-surrogate",
        "malformed",
        "fresh",
        sends('{"boot":"\\ud800","kind":"script","protocol":1}'),
    ),
    Case("unsupported-protocol", "unsupported-protocol", "fresh", says(**{**HELLO, "protocol": 2})),
    Case("ping-before-hello", "unexpected", "fresh", lambda scene: scene.peer.say(Ping(id=1))),
    Case("join-before-hello", "unexpected", "fresh", joins()),
    Case("push-before-hello", "unexpected", "fresh", pushes(add())),
    Case("no-hello", "silent", "fresh", sends()),
    Case("half-a-hello", "silent", "fresh", sends(b'\x01\x03{"type":')),
    Case("hello-too-large", "too-large", "fresh", hello_over_the_limit),
    Case("another-members-boot", "forbidden", "fresh", another_boot),
    Case("hello-after-a-refusal", "malformed", "fresh", after_a_refusal),
    # After it: the wire.
    Case("hello-twice", "unexpected", "greeted", says(**HELLO)),
    Case("welcome-from-a-client", "malformed", "greeted", says(type="welcome")),
    Case("frame-too-large", "too-large", "greeted", frame_over_the_limit),
    Case("fragments-too-large", "too-large", "greeted", fragments_over_the_limit),
    Case("frame-between-fragments", "malformed", "greeted", sends(b"\x01\x03{", '{"type":"ping","id":1}')),
    Case("binary-between-fragments", "malformed", "greeted", sends(b"\x01\x03{", segments(b"{}"))),
    Case("empty-fragment", "malformed", "greeted", sends(b"\x01")),
    Case("fragments-not-utf8", "malformed", "greeted", sends(b"\x01\x03\xff", b"\x02\xff")),
    Case("fragment-that-never-ends", "silent", "greeted", sends(b"\x01\x03{")),
    Case("number-nan", "malformed", "joined", writes("NaN")),
    Case("number-infinity", "malformed", "joined", writes("1e999")),
    Case("number-beyond-javascript", "malformed", "joined", writes(str(2**53))),
    Case("float-beyond-javascript", "malformed", "joined", writes("1e17")),
    Case("lone-surrogate", "malformed", "joined", writes('"\\ud800"')),
    Case("lone-surrogate-in-a-key", "malformed", "joined", writes('{"\\udfff":1}')),
    Case("unknown-tag", "malformed", "joined", writes('{"$date":"now"}')),
    Case("tag-without-its-buffer", "malformed", "joined", writes('{"$bytes":0}')),
    Case("tag-of-a-small-int", "malformed", "joined", writes('{"$int":"1"}')),
    Case("tag-of-an-endless-int", "malformed", "joined", writes('{"$int":"' + "9" * 3700 + '"}')),
    Case("n-zero", "malformed", "joined", raw_op({"op": "inc", "state": "S", "path": ["count"], "by": 1}, n=0)),
    Case("no-ops", "malformed", "joined", says(type="push", room="r", n=1, ops=[])),
    Case("unknown-op", "malformed", "joined", raw_op({"op": "eval", "state": "S", "path": ["count"]})),
    Case("define-as-an-op", "malformed", "joined", raw_op({"op": "define", "state": "S", "schema": {}, "values": {}})),
    Case("empty-path", "malformed", "joined", raw_op({"op": "set", "state": "S", "path": [], "value": 1})),
    Case("path-of-numbers", "malformed", "joined", raw_op({"op": "set", "state": "S", "path": [1], "value": 1})),
    Case("path-too-long", "malformed", "joined", raw_op({"op": "set", "state": "S", "path": ["a"] * 33, "value": 1})),
    Case("write-after-a-refusal", "malformed", "joined", writes_after_a_refusal),
    # After it: the rooms.
    *(
        Case(f"token-{name}", "invalid-token", "greeted", joins(token), Failure)
        for name, token in {
            "empty": "",
            "dot": ".",
            "dots": "..",
            "space": " a",
            "space-after": "a ",
            "long": "x" * 129,
            "newline": "a\nb",
            "nul": "a\0",
            "invisible": "a\u200bb",
            "private": "\ue000",
            "separator": "a\u2028b",
            "nbsp": "\u00a0a",
        }.items()
    ),
    Case(
        "resume-of-an-illegal-token",
        "invalid-token",
        "greeted",
        lambda scene: scene.peer.say(resume("..")),
        Failure,
    ),
    Case(
        "resume-of-a-lost-room",
        "no-such-room",
        "greeted",
        lambda scene: scene.peer.say(resume(f"{scene.room}-lost")),
        Failure,
    ),
    Case("too-many-rooms", "too-many-rooms", "joined", too_many_rooms, Failure),
    Case("push-to-a-room-not-joined", "no-such-room", "greeted", pushes(add()), Failure),
    Case("push-to-no-room", "no-such-room", "greeted", pushes(add(), room="nowhere"), Failure),
    Case("push-to-an-illegal-token", "no-such-room", "greeted", pushes(add(), room=".."), Failure),
    Case(
        "schema-conflict",
        "schema-conflict",
        "greeted",
        joins(state="S", schema=CONFLICT, values={**VALUES, "count": ""}),
        Failure,
    ),
    Case(
        "schema-that-shows-a-secret",
        "schema-conflict",
        "greeted",
        joins(state="S", schema={"_salt": TraitSchema(kind="text")}, values={"_salt": ""}),
        Failure,
    ),
    Case("first-value-missing", "invalid-value", "greeted", joins(state="T", schema=INT, values={}), Failure),
    Case("first-value-of-another-kind", "invalid-value", "greeted", joins(state="T", schema=INT, values={"a": "x"}), Failure),
    Case(
        "first-value-too-large",
        "too-large",
        "greeted",
        joins(state="T", schema={"a": TraitSchema(kind="text")}, values={"a": "x" * 1999}),
        Failure,
    ),
    Case("a-deleted-room", "room-gone", "greeted", deleted),
    Case("a-second-connection", "replaced", "joined", a_second_connection),
    Case("an-unknown-past", "outcome-unknown", "joined", resumes_what_nobody_knows, Nack),
    # After it: values.
    Case("wrong-kind", "invalid-value", "joined", pushes(assign("count", "three")), Nack),
    Case("bool-for-int", "invalid-value", "joined", pushes(assign("count", True)), Nack),
    Case("null-for-int", "invalid-value", "joined", pushes(assign("count", None)), Nack),
    Case("out-of-bounds", "invalid-value", "joined", pushes(assign("level", 11)), Nack),
    Case("sum-out-of-bounds", "invalid-value", "joined", pushes(Inc(state="S", path=("level",), by=6)), Nack),
    Case("sum-of-a-fraction", "invalid-value", "joined", pushes(Inc(state="S", path=("count",), by=0.5)), Nack),
    Case("value-too-deep", "invalid-value", "joined", pushes(assign("tags", {"a": nested(32)})), Nack),
    Case(
        "value-too-deep-by-its-path",
        "invalid-value",
        "joined",
        pushes(Set(state="S", path=("tags", "a"), value=nested(32))),
        Nack,
    ),
    Case("delete-a-trait", "invalid-value", "joined", pushes(Delete(state="S", path=("count",))), Nack),
    Case("no-such-state", "no-such-state", "joined", pushes(assign("count", 1, "T")), Nack),
    Case("no-such-trait", "no-such-trait", "joined", pushes(assign("cuont", 1)), Nack),
    Case("no-such-path", "no-such-path", "joined", pushes(Set(state="S", path=("tags", "a", "b"), value=1)), Nack),
    Case("path-into-a-number", "no-such-path", "joined", pushes(Set(state="S", path=("count", "a"), value=1)), Nack),
    Case("add-to-text", "no-such-path", "joined", pushes(add(1, "text")), Nack),
    Case("append-to-text", "no-such-path", "joined", pushes(Append(state="S", path=("text",), items=("x",))), Nack),
    Case("stale-condition", "revision-mismatch", "joined", stale_condition, Nack),
    Case(
        "not-what-was-expected",
        "value-mismatch",
        "joined",
        pushes(Set(state="S", path=("text",), value="x", if_in=("?",))),
        Nack,
    ),
    Case("beyond-its-own-bounds", "out-of-bounds", "joined", pushes(Inc(state="S", path=("count",), by=2, max=1)), Nack),
    Case("fence-of-no-lock", "lock-lost", "joined", with_fence(41), Nack),
    Case("fence-of-another-state", "lock-lost", "joined", with_fence(1), Nack),
    Case("locked-by-another-of-its-threads", "locked", "joined", locked_by_itself, Nack),
    Case("lock-of-no-state", "no-such-state", "joined", locks("nothing"), Failure),
    Case("lock-in-a-room-not-joined", "no-such-room", "greeted", locks("S"), Failure),
    Case("op-too-large", "too-large", "joined", pushes(assign("text", "x" * 1999)), Nack),
    Case("key-too-large", "too-large", "joined", pushes(Set(state="S", path=("tags", "x" * 2000), value=1)), Nack),
    Case("too-many-ops", "too-large", "joined", pushes(*[add()] * 6), Nack),
    Case("room-too-large", "too-large", "joined", over_room_bytes, Nack),
    Case("too-many-reactions-in-a-row", "reaction-too-deep", "joined", pushes(add(), depth=17), Nack),
    Case("one-bad-op-of-many", "invalid-value", "joined", pushes(add(), assign("level", 11), add()), Nack),
    # A page, whatever it says of itself.
    Case("page-writes-a-secret", "no-such-trait", "page", pushes(assign("_salt", "x")), Nack),
    Case("page-hides-a-secret-among-others", "no-such-trait", "page", pushes(add(), assign("_salt", "x")), Nack),
    Case("page-makes-a-state", "forbidden", "page", joins(state="T", schema=INT, values={"a": 1}), Failure),
    Case("page-adds-a-trait", "forbidden", "page", joins(state="S", schema=INT, values={"a": 1}), Failure),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_refused_and_nobody_else_notices(case: Case, tight: LiveServer, room: str) -> None:
    async with peers() as made:
        witness = await made(tight.socket_url, tight.headers, room)
        await witness.write(room, add())
        origin = {"Origin": tight.url.rstrip("/")} if case.stage == "page" else {}
        peer = await Peer.open(tight.socket_url, {**tight.headers, **origin})
        made.made.append(peer)
        scene = Scene(peer, room, witness, tight, made)
        if case.stage != "fresh":
            await peer.hello(kind="kernel")
        if case.stage in ("joined", "page"):
            await peer.join(room, make=False)
        before = witness.entries(room)
        await case.act(scene)
        refusal = await peer.next(case.answer)
        assert refusal.problem.code == case.code  # type: ignore[attr-defined]
        assert refusal.problem.message  # type: ignore[attr-defined]
        if case.answer is Bye and refusal.room is None:  # type: ignore[attr-defined]
            assert await peer.closed() is not None
        elif case.stage != "fresh":
            # The connection lives, and a proper write of it counts.
            await peer.join(room, make=False)
            decided = [message.decided for message in peer.all(Entries)]
            refused = [message.through or message.n for message in peer.all(Nack)]
            number = max([0, *decided, *refused]) + 1
            await peer.say(Push(room=room, n=number, ops=(add(10),)))
            await peer.next(Entries, lambda message: message.decided == number)
        # Told once, and in one way.
        assert peer.refusals() == [case.code] * max(1, peer.refusals().count(case.code))
        assert len(peer.refusals()) == (1 if case.name != "room-too-large" else peer.refusals().count("too-large"))
        # The other member goes on, and what was refused is nowhere.
        survived = case.answer is not Bye or case.code == "room-gone"
        await witness.barrier(room)
        verdict = await witness.write(room, add())
        assert isinstance(verdict, Entries)
        shown = witness.replicas[room].view("S")
        assert shown["count"] == (12 if survived else 2)
        assert (shown["level"], shown["_salt"]) == (5, SECRET)
        expected = 1 + (1 if survived else 0) + (1 if case.name == "stale-condition" else 0)
        if case.name == "locked-by-another-of-its-threads":
            expected += 2
        if case.name == "room-too-large":
            expected += sum(1 for key in shown["tags"] if key)  # type: ignore[union-attr]
        assert witness.entries(room) - before == expected
        assert witness.refusals() == []
        if case.stage == "page":
            assert SECRET not in str(peer.frames)


async def test_at_the_limit_everything_is_taken(tight: LiveServer, room: str) -> None:
    """What the table refuses at one over is accepted at the number itself."""
    async with peers() as made:
        peer = await Peer.open(tight.socket_url, tight.headers)
        made.made.append(peer)
        frame = codec.encode(Hello(protocol=1, boot=peer.boot, kind="script")).frame()
        assert isinstance(frame, str)
        await peer.send(frame + " " * (int(TIGHT["hello_bytes"]) - len(frame)))
        await peer.next(object)
        await peer.join(room)
        for number in range(1, int(TIGHT["rooms"])):
            await peer.join(f"{room}-{number}", make=False)
        await peer.send('{"type":"ping","id":1}' + " " * (int(TIGHT["frame_bytes"]) - 22))
        verdict: object = await peer.write(room, assign("text", "x" * 1998))
        assert isinstance(verdict, Entries)
        verdict = await peer.write(room, *[add()] * 5)
        assert isinstance(verdict, Entries)
        verdict = await peer.write(room, assign("tags", {"a": nested(31)}))
        assert isinstance(verdict, Entries)
        assert peer.refusals() == []


async def test_h06_a_gap_in_the_numbers_is_asked_for_once(tight: LiveServer, room: str) -> None:
    async with peers() as made:
        peer = await made(tight.socket_url, tight.headers, room)
        for n in (2, 3, 4):
            await peer.say(Push(room=room, n=n, ops=(add(),)))
        await peer.barrier(room)
        assert [(message.room, message.n) for message in peer.all(ResendMessage)] == [(room, 1)]
        for n in (1, 2, 3, 4):
            await peer.say(Push(room=room, n=n, ops=(add(),)))
        await peer.until(room, count=4)
        assert peer.entries(room) == 4


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"Authorization": "token wrong"}, 403),
        ({"Authorization": "SharedWidgets wrong"}, 403),
        ({"Origin": "http://evil.example"}, 403),
    ],
)
async def test_the_door_stays_shut(tight: LiveServer, headers: dict[str, str], status: int) -> None:
    with pytest.raises(HTTPClientError) as caught:
        await Peer.open(tight.socket_url, headers)
    assert caught.value.code == status


async def test_a_frame_far_beyond_the_limit_ends_the_connection_unread(tight: LiveServer, room: str) -> None:
    async with peers() as made:
        witness = await made(tight.socket_url, tight.headers, room)
        peer = await made(tight.socket_url, tight.headers, room)
        await peer.send("x" * (4 * int(TIGHT["frame_bytes"]) + 1))
        assert await peer.closed() == 1009
        verdict = await witness.write(room, add())
        assert isinstance(verdict, Entries)


# Codes a server sends in no answer to a client's fault, or over HTTP alone, and where they are tested; the rest only a client
# raises.
ELSEWHERE = {
    "no-such-lock": "test_rest: a lock named in the wrong place",
    "internal": "test_manager: an input that breaks the room",
    "store-failed": "test_manager: h09",
    "going-away": "test_reconnect: a server that stops",
}
CLIENT_ONLY = {
    "overloaded",
    "lock-order",
    "lock-timeout",
    "timeout",
    "server-not-found",
    "wrong-thread",
    "forked",
    "closed",
    "computed-cycle",
}


async def test_every_code_a_server_can_send_is_in_the_table() -> None:
    assert {case.code for case in CASES} | set(ELSEWHERE) == set(BY_CODE) - CLIENT_ONLY
    assert not {case.code for case in CASES} & CLIENT_ONLY
    assert len({case.name for case in CASES}) == len(CASES)
