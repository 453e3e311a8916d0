"""The REST interface over real HTTP: every route, every refusal, and tokens that need encoding."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest

from sharedwidgets.core.protocol import Acquire, Bye, Entries, LockName, TraitSchema
from sharedwidgets_server.testing import LiveServer
from support.peers import SECRET, VALUES, add, assign
from support.rest import Answer, ask, room_url
from support.servers import TIGHT, peers

pytestmark = pytest.mark.asyncio

REFUSAL = {"code", "message", "state", "trait", "path", "expected"}
TOKENS = [
    "a/b",
    "%",
    "%2F",
    "100%25",
    "?#",
    "a?b#c&d=e",
    "🎉",
    "é",
    "e\u0301",
    "a b",
    "a+b",
    "a_b",
    "a-b",
    "...",
    ".a",
    "~",
    "\\",
    '"',
    "'",
    "<script>",
    ";",
    ":",
    "@",
    "ws",
    "states",
    "日本語",
    "x" * 128,
    "𝒳" * 128,
    "[]",
    "{token}",
    "|",
    "^",
    "`",
]


def get(server: LiveServer, *segments: str, **headers: str) -> Answer:
    return ask(room_url(server, *segments), headers={**server.headers, **headers})


def patch(server: LiveServer, token: str, body: Any, *, state: str = "S", raw: bytes | None = None, **headers: str) -> Answer:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(room_url(server, "rooms", token, "states", state), "PATCH", body, {**server.headers, **names}, raw=raw)


def refused(answer: Answer, status: int, code: str) -> dict[str, Any]:
    assert (answer.status, answer.body.get("code")) == (status, code), answer
    assert answer.body.keys() == REFUSAL
    assert answer.headers["Content-Type"].startswith("application/json")
    return dict(answer.body)


async def test_a_room_as_json(live: LiveServer, room: str) -> None:
    async with peers() as made:
        peer = await made(live.socket_url, live.headers, room)
        await peer.write(room, assign("tags", {"$odd": 2**60, "list": [1, None, float("inf")]}))
        await peer.write(room, assign("blob", b"\x00\xff"))
        answer = get(live, "rooms", room)
        held = peer.replicas[room]
        assert answer.status == 200
        assert answer.headers["ETag"] == f'"{held.incarnation}.{held.epoch}.3"'
        body = answer.body
        assert (body["token"], body["incarnation"], body["epoch"], body["seq"]) == (room, held.incarnation, held.epoch, 3)
        assert body["states"]["S"]["values"] == {
            **VALUES,
            "tags": {"$odd": {"$int": str(2**60)}, "list": [1, None, {"$float": "inf"}]},
            "blob": {"$bytes": base64.b64encode(b"\x00\xff").decode()},
        }
        assert body["states"]["S"]["schema"]["level"] == {"kind": "int", "min": 0, "max": 10, "default": 5}
        last = body["states"]["S"]["last"]
        assert {name: last[name]["seq"] for name in ("count", "tags", "blob")} == {"count": 1, "tags": 2, "blob": 3}
        assert last["blob"]["actor"] == {"id": peer.welcome.member, "kind": "script", "user": body["members"][0]["user"]}  # type: ignore[union-attr]
        (member,) = body["members"]
        assert (member["kind"], member["state"], member["states"]) == ("script", "live", ["S"])
        assert member["id"] == peer.welcome.member  # type: ignore[union-attr]
        # Members come and go without a new revision: a conditional read is answered all the same.
        other = await made(live.socket_url, live.headers, room, make=False)
        again = get(live, "rooms", room, **{"If-None-Match": answer.headers["ETag"]})
        assert (again.status, len(again.body["members"])) == (200, 2)
        assert other.replicas[room].seq == 3


async def test_the_rooms_there_are(live: LiveServer, room: str) -> None:
    async with peers() as made:
        peer = await made(live.socket_url, live.headers, room)
        await made(live.socket_url, live.headers, room)
        await peer.write(room, add())
        await peer.join(f"{room}-empty", make=False, state=None)
        listed = {item["token"]: item for item in get(live, "rooms").body["rooms"]}
        assert listed[room] == {"token": room, "seq": 2, "states": ["S"], "members": 2}
        assert f"{room}-empty" not in listed
        assert list(listed) == sorted(listed)


async def test_who_the_caller_is(live: LiveServer) -> None:
    answer = get(live, "me").body
    assert answer.keys() == {"user", "audience", "may_read", "may_write", "version", "server"}
    assert (answer["audience"], answer["may_read"], answer["may_write"]) == ("kernel", True, True)


@pytest.mark.parametrize("token", TOKENS)
async def test_every_legal_token_names_one_room(live: LiveServer, token: str) -> None:
    async with peers() as made:
        peer = await made(live.socket_url, live.headers, token)
        seq = get(live, "rooms", token).body["seq"]
        answer = patch(live, token, {"text": token})
        assert (answer.status, answer.body) == (200, {"seq": seq + 1})
        await peer.until(token, text=token)
        assert get(live, "rooms", token).body["states"]["S"]["values"]["text"] == token
        assert token in [item["token"] for item in get(live, "rooms").body["rooms"]]
        assert ask(room_url(live, "rooms", token), "DELETE", headers=live.headers).status == 204
        assert (await peer.next(Bye)).room == token
        refused(get(live, "rooms", token), 404, "no-such-room")


@pytest.mark.parametrize("state", ["a/b", "%", "?#", "🎉", "S.T", " "])
async def test_every_name_of_a_state_is_reached(live: LiveServer, room: str, state: str) -> None:
    async with peers() as made:
        peer = await made(live.socket_url, live.headers)
        await peer.join(room, state=state)
        assert patch(live, room, {"count": 3}, state=state).status == 200
        await peer.until(room, state, count=3)


async def test_a_patch_is_one_entry_for_everyone(live: LiveServer, room: str) -> None:
    async with peers() as made:
        one = await made(live.socket_url, live.headers, room)
        two = await made(live.socket_url, live.headers, room)
        answer = patch(live, room, {"count": 3, "level": 9, "blob": {"$bytes": "AP8="}, "tags": {"a": {"$float": "nan"}}})
        assert (answer.status, answer.body) == (200, {"seq": 2})
        for peer in (one, two):
            await peer.until(room, count=3, level=9, blob=b"\x00\xff")
            (entry,) = [entry for frame in peer.all(Entries) for entry in frame.entries]
            assert (entry.by.kind, entry.seq, len(entry.ops)) == ("rest", 2, 4)
            assert entry.by.user


async def test_a_patch_is_all_or_nothing(live: LiveServer, room: str) -> None:
    async with peers() as made:
        peer = await made(live.socket_url, live.headers, room)
        error = refused(patch(live, room, {"count": 3, "level": 11}), 422, "invalid-value")
        assert (error["state"], error["trait"], error["path"]) == ("S", "level", ["level"])
        assert error["expected"] == "int between 0 and 10"
        await peer.barrier(room)
        assert peer.entries(room) == 0
        assert get(live, "rooms", room).body["seq"] == 1


async def test_a_condition_that_holds_and_one_that_does_not(live: LiveServer, room: str) -> None:
    async with peers() as made:
        peer = await made(live.socket_url, live.headers, room)
        await peer.join(room, state="T")
        etag = get(live, "rooms", room).headers["ETag"]
        # Another state moved: what was read of this one still holds.
        await peer.write(room, add(1, "count", "T"))
        assert patch(live, room, {"count": 1}, If_Match=etag).status == 200
        refused(patch(live, room, {"count": 2}, If_Match=etag), 409, "revision-mismatch")
        assert patch(live, room, {"count": 2}, If_Match=get(live, "rooms", room).headers["ETag"]).status == 200
        assert patch(live, room, {"count": 3}, If_Match="*").status == 200
        ask(room_url(live, "rooms", room), "DELETE", headers=live.headers)
        await made(live.socket_url, live.headers, room)
        # A room of the same name is another room.
        refused(patch(live, room, {"count": 4}, If_Match=etag), 409, "revision-mismatch")
        for wrong in ("3", '"3"', 'W/"a.b.3"', '"a.b.c"', '"a.b.1", "a.b.2"', '"a.b.9999999999999999999"', ""):
            refused(patch(live, room, {"count": 4}, If_Match=wrong), 400, "malformed")
        assert get(live, "rooms", room).body["states"]["S"]["values"]["count"] == 0


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"", 400, "malformed"),
        (b"{", 400, "malformed"),
        (b"\xff", 400, "malformed"),
        (b"[]", 400, "malformed"),
        (b"{}", 400, "malformed"),
        (b"[" * 5000, 400, "malformed"),
        (b'{"count":NaN}', 400, "malformed"),
        (b'{"count":9007199254740993}', 400, "malformed"),
        (b'{"text":"\\ud800"}', 400, "malformed"),
        (b'{"blob":{"$bytes":"%%"}}', 400, "malformed"),
        (b'{"blob":{"$bytes":0}}', 400, "malformed"),
        (b'{"count":"three"}', 422, "invalid-value"),
        (b'{"count":true}', 422, "invalid-value"),
        (b'{"level":11}', 422, "invalid-value"),
        (b'{"tags":' + b"[" * 33 + b"]" * 33 + b"}", 422, "invalid-value"),
        (b'{"cuont":1}', 404, "no-such-trait"),
        (b'{"":1}', 404, "no-such-trait"),
    ],
)
async def test_bodies_that_are_refused(live: LiveServer, room: str, raw: bytes, status: int, code: str) -> None:
    async with peers() as made:
        peer = await made(live.socket_url, live.headers, room)
        refused(patch(live, room, None, raw=raw), status, code)
        await peer.barrier(room)
        assert peer.entries(room) == 0


async def test_what_is_not_there(live: LiveServer, room: str) -> None:
    refused(get(live, "rooms", room), 404, "no-such-room")
    refused(patch(live, room, {"count": 1}), 404, "no-such-room")
    refused(ask(room_url(live, "rooms", room), "DELETE", headers=live.headers), 404, "no-such-room")
    async with peers() as made:
        await made(live.socket_url, live.headers, room)
        assert refused(patch(live, room, {"count": 1}, state="T"), 404, "no-such-state")["state"] == "T"
    # A look makes no room.
    refused(get(live, "rooms", f"{room}-never"), 404, "no-such-room")
    assert f"{room}-never" not in [item["token"] for item in get(live, "rooms").body["rooms"]]


@pytest.mark.parametrize("token", [".", "..", " a", "a\n", "x" * 129, "\u200b", "\ue000", "a\0"])
async def test_tokens_that_are_none(live: LiveServer, token: str) -> None:
    encoded = "".join(f"%{byte:02X}" for byte in token.encode())
    for method, more, body in (("GET", "", None), ("DELETE", "", None), ("PATCH", "/states/S", {"count": 1})):
        url = f"{live.url}sharedwidgets/api/rooms/{encoded}{more}"
        refused(ask(url, method, body, live.headers), 400, "invalid-token")


async def test_a_path_that_is_no_text(live: LiveServer) -> None:
    answer = ask(f"{live.url}sharedwidgets/api/rooms/%FF", headers=live.headers)
    assert answer.status == 400


async def test_larger_than_allowed(tight: LiveServer, room: str) -> None:
    async with peers() as made:
        peer = await made(tight.socket_url, tight.headers, room)
        error = refused(patch(tight, room, {"text": "x" * 1999}), 413, "too-large")
        assert error["expected"] == f"≤ {TIGHT['op_bytes']} bytes"
        refused(patch(tight, room, {f"t{n}": 1 for n in range(6)}), 413, "too-large")
        assert patch(tight, room, {"text": "x" * 1998}).status == 200
        await peer.until(room, text="x" * 1998)


@pytest.mark.parametrize(
    ("method", "segments"),
    [
        ("PATCH", ("rooms",)),
        ("DELETE", ("rooms",)),
        ("PUT", ("rooms", "r")),
        ("GET", ("rooms", "r", "states", "S")),
        ("POST", ("me",)),
    ],
)
async def test_methods_that_are_none(live: LiveServer, method: str, segments: tuple[str, ...]) -> None:
    assert ask(room_url(live, *segments), method, {}, live.headers).status == 405


async def test_h18_a_deleted_room_is_gone_for_its_members_and_not_made_by_a_write(live: LiveServer, room: str) -> None:
    async with peers() as made:
        one = await made(live.socket_url, live.headers, room)
        page = await made(live.socket_url, {**live.headers, "Origin": live.url.partition("/a%40b")[0]}, room, make=False)
        await one.write(room, add())
        assert ask(room_url(live, "rooms", room), "DELETE", headers=live.headers).status == 204
        for peer in (one, page):
            bye = await peer.next(Bye)
            assert (bye.room, bye.problem.code) == (room, "room-gone")
        await one.push(room, add())
        await one.next(object)
        refused(patch(live, room, {"count": 1}), 404, "no-such-room")
        refused(get(live, "rooms", room), 404, "no-such-room")
        # Only a link makes another, and it begins anew; the connections live.
        again = await one.join(room)
        assert again.seq == 1
        assert again.states["S"].values["count"] == 0
        assert again.incarnation != one.all(type(again))[0].incarnation
        assert SECRET not in str(page.frames)


async def test_a_reset_is_a_change_like_any_other_and_nobody_is_dropped(live: LiveServer, room: str) -> None:
    def reset(body: Any = None, **headers: str) -> Answer:
        return ask(room_url(live, "rooms", room) + "/reset", "POST", body, headers={**live.headers, **headers})

    async with peers() as made:
        one = await made(live.socket_url, live.headers, room)
        page = await made(live.socket_url, {**live.headers, "Origin": live.url.partition("/a%40b")[0]}, room, make=False)
        await one.join(room, state="T", schema={"n": TraitSchema(kind="int", default=4)}, values={"n": 9})
        await one.write(room, assign("tags", {"a": 1}), assign("_salt", "changed"), add(3), assign("n", 8, state="T"))
        # A page resets what it sees.
        answer = reset({"states": ["S"]}, Origin=live.url.partition("/a%40b")[0])
        assert (answer.status, answer.body) == (200, {"seq": 4})
        await page.until(room, count=0, tags={}, level=5)
        await one.until(room, count=0, tags={}, _salt="changed")
        assert (await one.until(room, state="T", n=8)) is None
        # A kernel or script all of it; what holds its default already is not touched.
        assert reset().body == {"seq": 5}
        await one.until(room, _salt=SECRET)
        await one.until(room, state="T", n=4)
        assert one.replicas[room].last_change("T", "n").actor.kind == "rest"  # type: ignore[union-attr]
        assert one.replicas[room].last_change("S", "count").seq == 4  # type: ignore[union-attr]
        assert reset().body == {"seq": 5}
        assert (one.entries(room), page.refusals(), one.refusals()) == (4, [], [])
        assert SECRET not in str(page.frames)
        refused(reset({"states": ["Nothing"]}), 404, "no-such-state")
        for bad in ({"states": "S"}, {"states": [1]}, ["S"], 5):
            refused(reset(bad), 400, "malformed")
    refused(ask(room_url(live, "rooms", f"{room}-nowhere") + "/reset", "POST", headers=live.headers), 404, "no-such-room")


async def test_a_lock_named_in_the_wrong_place_is_not_broken_in_silence(live: LiveServer, room: str) -> None:
    def broken(*segments: str) -> Answer:
        return ask(room_url(live, "rooms", room, *segments), "DELETE", headers=live.headers)

    def held() -> list[tuple[str, str]]:
        return [(lock["lock"]["kind"], lock["lock"]["name"]) for lock in get(live, "rooms", room).body["locks"]]

    async with peers() as made:
        peer = await made(live.socket_url, live.headers, room)
        state = LockName(kind="state", name="S")
        named = LockName(kind="named", name="S")
        await peer.say(Acquire(id=1, room=room, lock=state, owner="o", lease=60.0))
        await peer.barrier(room)
        assert held() == [("state", "S")]
        error = refused(broken("locks", "S"), 404, "no-such-lock")
        assert error["message"].endswith("DELETE …/states/S/lock")
        assert (held(), error["state"]) == ([("state", "S")], None)
        error = refused(broken("states", "Nope", "lock"), 404, "no-such-state")
        assert (error["message"], error["state"]) == ("there is no state 'Nope' to lock; there is S", "Nope")
        # A named lock may be called like a state; then that one is meant.
        await peer.say(Acquire(id=2, room=room, lock=named, owner="o", lease=60.0))
        await peer.barrier(room)
        assert held() == [("state", "S"), ("named", "S")]
        assert (broken("locks", "S").status, held()) == (204, [("state", "S")])
        # What nobody holds, and no state is called like, is as it should be.
        assert (broken("locks", "fit").status, broken("locks", "fit").status, held()) == (204, 204, [("state", "S")])
        assert [broken("states", "S", "lock").status for _ in range(2)] == [204, 204]
        assert held() == []


async def test_many_patches_at_once_are_ordered_and_all_there(live: LiveServer, room: str) -> None:
    async with peers() as made:
        peer = await made(live.socket_url, live.headers, room)
        loop = asyncio.get_running_loop()
        answers = await asyncio.gather(
            *(loop.run_in_executor(None, lambda n=n: patch(live, room, {"tags": {"n": n}})) for n in range(30))
        )
        assert sorted(answer.body["seq"] for answer in answers) == list(range(2, 32))
        await peer.barrier(room)
        assert peer.entries(room) == 30
