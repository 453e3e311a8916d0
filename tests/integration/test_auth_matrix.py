"""Who gets in where, and as what: every route and every way to say who is asking, over real connections."""

from __future__ import annotations

import base64
import getpass
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tornado.httpclient import HTTPClientError

from sharedwidgets.core.protocol import Entries, Failure, Join, Kind, Nack, TraitSchema
from sharedwidgets_server.testing import LiveServer
from support.peers import SECRET, Peer, add, assign
from support.rest import Answer, ask, cookies, room_url
from support.servers import peers

pytestmark = pytest.mark.asyncio

FOREIGN = "http://evil.example"


@dataclass(frozen=True)
class Caller:
    """How a request says who it is; `query` goes behind the address."""

    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""


def scoped(server: LiveServer) -> dict[str, str]:
    return {"Authorization": f"SharedWidgets {server.credential}"}


def origin(server: LiveServer) -> dict[str, str]:
    return {"Origin": server.url.partition("/a%40b")[0]}


def cookie(server: LiveServer, *, xsrf: bool = True) -> dict[str, str]:
    held = cookies(server)
    return {"Cookie": held["Cookie"], **({"X-XSRFToken": held["_xsrf"]} if xsrf else {})}


KERNELS: dict[str, Callable[[LiveServer], Caller]] = {
    "scoped secret": lambda server: Caller(scoped(server)),
    "token header": lambda server: Caller(server.headers),
    "bearer": lambda server: Caller({"Authorization": f"Bearer {server.token}"}),
    "token in the query": lambda server: Caller(query=f"?token={server.token}"),
}
PAGES: dict[str, Callable[[LiveServer], Caller]] = {
    "cookie": lambda server: Caller(cookie(server)),
    "cookie and own origin": lambda server: Caller({**cookie(server), **origin(server)}),
    "token and own origin": lambda server: Caller({**server.headers, **origin(server)}),
    "token and foreign origin": lambda server: Caller({**server.headers, "Origin": FOREIGN}),
    "token in the query and own origin": lambda server: Caller(origin(server), f"?token={server.token}"),
    "token and cookie": lambda server: Caller({**server.headers, **cookie(server)}),
    "scoped secret and own origin": lambda server: Caller({**scoped(server), **origin(server)}),
    "scoped secret and cookie": lambda server: Caller({**scoped(server), **cookie(server)}),
    # A browser says so itself, also where a page leaves Origin and cookies away.
    "token from a page": lambda server: Caller({**server.headers, "Sec-Fetch-Mode": "cors", "Sec-Fetch-Site": "same-origin"}),
}
NOBODY: dict[str, Callable[[LiveServer], Caller]] = {
    "nobody": lambda server: Caller(),
    "wrong secret": lambda server: Caller({"Authorization": "SharedWidgets wrong"}),
    "secret cut short": lambda server: Caller({"Authorization": f"SharedWidgets {server.credential[:-1]}"}),
    "empty secret": lambda server: Caller({"Authorization": "SharedWidgets "}),
    "non-ascii secret": lambda server: Caller({"Authorization": "SharedWidgets sw1-gehëim"}),
    "wrong token": lambda server: Caller({"Authorization": "token wrong"}),
    "wrong token in the query": lambda server: Caller(query="?token=wrong"),
    "secret as a token": lambda server: Caller({"Authorization": f"token {server.credential}"}),
    "secret as a bearer": lambda server: Caller({"Authorization": f"Bearer {server.credential}"}),
    "secret in the query": lambda server: Caller(query=f"?token={quote(server.credential)}"),
    "token as a secret": lambda server: Caller({"Authorization": f"SharedWidgets {server.token}"}),
    "wrong secret and cookie": lambda server: Caller({"Authorization": "SharedWidgets wrong", **cookie(server)}),
    "forged cookie": lambda server: Caller({"Cookie": f"username-127-0-0-1-{server.port}=root"}),
}


def each(*tables: dict[str, Callable[[LiveServer], Caller]]) -> pytest.MarkDecorator:
    rows = [pytest.param(make, id=name) for table in tables for name, make in table.items()]
    return pytest.mark.parametrize("make", rows)


@dataclass
class Rest:
    """REST calls as one caller."""

    server: LiveServer
    caller: Caller

    def __call__(self, method: str, *segments: str, body: Any = None) -> Answer:
        return ask(room_url(self.server, *segments) + self.caller.query, method, body, self.caller.headers)

    def everything(self, room: str) -> dict[str, int]:
        """The status of each route, the deletion last."""
        return {
            "me": self("GET", "me").status,
            "list": self("GET", "rooms").status,
            "read": self("GET", "rooms", room).status,
            "write": self("PATCH", "rooms", room, "states", "S", body={"count": 7}).status,
            "delete": self("DELETE", "rooms", room).status,
        }


async def enter(server: LiveServer, caller: Caller, made: peers, kind: Kind = "kernel") -> Peer:
    peer = await Peer.open(server.socket_url + caller.query, caller.headers)
    made.made.append(peer)
    await peer.hello(kind=kind)
    return peer


@each(NOBODY)
async def test_nobody_gets_in_anywhere(live: LiveServer, room: str, make: Callable[[LiveServer], Caller]) -> None:
    caller = make(live)
    async with peers() as made:
        witness = await made(live.socket_url, live.headers, room)
        assert Rest(live, caller).everything(room) == dict.fromkeys(("me", "list", "read", "write", "delete"), 403)
        with pytest.raises(HTTPClientError) as caught:
            await enter(live, caller, made)
        assert caught.value.code == 403
        await witness.barrier(room)
        assert witness.entries(room) == 0


@each(KERNELS)
async def test_kernels_and_scripts_see_everything(live: LiveServer, room: str, make: Callable[[LiveServer], Caller]) -> None:
    caller = make(live)
    rest = Rest(live, caller)
    async with peers() as made:
        await made(live.socket_url, live.headers, room)
        peer = await enter(live, caller, made)
        assert peer.welcome is not None
        assert (peer.welcome.audience, peer.welcome.may_write) == ("kernel", True)
        snapshot = await peer.join(room, make=False)
        assert snapshot.states["S"].values["_salt"] == SECRET
        assert rest("GET", "me").body["audience"] == "kernel"
        assert rest("GET", "rooms", room).body["states"]["S"]["values"]["_salt"] == SECRET
        assert isinstance(await peer.write(room, assign("_salt", "new")), Entries)
        assert rest.everything(room) == {"me": 200, "list": 200, "read": 200, "write": 200, "delete": 204}


@each(PAGES)
@pytest.mark.parametrize("claims", ["kernel", "frontend", "script"])
async def test_h15_a_page_is_a_page_whatever_it_says_of_itself(
    live: LiveServer, room: str, make: Callable[[LiveServer], Caller], claims: Kind
) -> None:
    caller = make(live)
    rest = Rest(live, caller)
    async with peers() as made:
        kernel = await made(live.socket_url, live.headers, room)
        page = await enter(live, caller, made, claims)
        assert page.welcome is not None
        assert page.welcome.audience == "frontend"
        # Snapshot.
        assert "_salt" not in (await page.join(room, make=False)).states["S"].values
        # Entries: of the secret alone, and of both.
        await kernel.write(room, assign("_salt", SECRET + "1"))
        await kernel.write(room, add(), assign("_salt", SECRET + "2"))
        await page.until(room, count=1)
        # A refusal and the values that come with it, also for a push that names both.
        for ops in ([assign("_salt", "x")], [assign("level", 99), assign("_salt", "x")], [assign("level", 99)]):
            nack = await page.write(room, *ops)
            assert isinstance(nack, Nack)
            assert "_salt" not in nack.values.get("S", {})
        # A definition of its own.
        schema = {"_salt": TraitSchema(kind="text")}
        await page.say(Join(id=90, room=room, state="S", schema=schema, values={"_salt": ""}))
        assert (await page.next(Failure)).problem.code == "forbidden"
        # Another kernel adds one more secret.
        more = {"_more": TraitSchema(kind="text", kernel_only=True), "open": TraitSchema(kind="int")}
        await kernel.join(room, schema=more, values={"_more": SECRET, "open": 1})
        await page.until(room, open=1)
        # Resume, from before and from another log.
        await page.say(page.replicas[room].position())
        await page.barrier(room)
        told = [message.problem.message for message in (*page.all(Nack), *page.all(Failure))]
        heard = "".join(str(frame) for frame in page.frames)
        assert SECRET not in heard
        assert "_more" not in heard
        # It is named back to the page that named it, and never in a list of what there is.
        assert not [text for text in told if "has _" in text or ", _" in text]
        # REST.
        assert rest("GET", "me").body["audience"] == "frontend"
        answers = [
            rest("GET", "rooms"),
            rest("GET", "rooms", room),
            rest("PATCH", "rooms", room, "states", "S", body={"_more": "x"}),
            rest("PATCH", "rooms", room, "states", "S", body={"cuont": 1}),
            rest("PATCH", "rooms", room, "states", "T", body={"count": 1}),
        ]
        assert [answer.status for answer in answers] == [200, 200, 404, 404, 404]
        assert SECRET not in str(answers)
        assert "_salt" not in str(answers)
        assert "_more" not in str(answers[:2] + answers[3:])
        # And a page may do what a page may do.
        verdict = await page.write(room, add(10))
        assert isinstance(verdict, Entries)
        await kernel.until(room, count=11)
        assert rest("PATCH", "rooms", room, "states", "S", body={"count": 7}).status == 200
        assert kernel.replicas[room].view("S")["_salt"] == SECRET + "2"


async def test_a_cookie_writes_only_with_its_second_word(live: LiveServer, room: str) -> None:
    async with peers() as made:
        peer = await made(live.socket_url, live.headers, room)
        rest = Rest(live, Caller(cookie(live, xsrf=False)))
        assert rest.everything(room) == {"me": 200, "list": 200, "read": 200, "write": 403, "delete": 403}
        await peer.barrier(room)
        assert peer.entries(room) == 0
        # The socket needs none: its origin is checked instead.
        page = await enter(live, rest.caller, made)
        assert page.welcome is not None
        assert page.welcome.audience == "frontend"


async def test_a_foreign_page_cannot_use_the_cookie(live: LiveServer, room: str) -> None:
    async with peers() as made:
        peer = await made(live.socket_url, live.headers, room)
        caller = Caller({**cookie(live, xsrf=False), "Origin": FOREIGN})
        with pytest.raises(HTTPClientError) as caught:
            await enter(live, caller, made)
        assert caught.value.code == 403
        statuses = Rest(live, caller).everything(room)
        assert not {200, 204} & set(statuses.values()), statuses
        await peer.barrier(room)
        assert peer.entries(room) == 0


@pytest.mark.parametrize(
    "path", ["api/kernels", "api/contents", "api/sessions", "api/terminals", "api/kernelspecs", "api/status"]
)
async def test_the_scoped_secret_opens_nothing_else(live: LiveServer, path: str) -> None:
    secret = live.credential
    forms: list[Caller] = [
        Caller({"Authorization": f"{scheme} {secret}"}) for scheme in ("SharedWidgets", "token", "Bearer", "Basic")
    ]
    forms.append(Caller({"Authorization": "Basic " + base64.b64encode(f":{secret}".encode()).decode()}))
    forms.append(Caller(query=f"?token={quote(secret)}"))
    assert ask(live.url + path, headers=live.headers).status == 200
    assert [ask(live.url + path + form.query, headers=form.headers).status for form in forms] == [403] * len(forms)


async def test_the_scoped_secret_leaves_no_cookie(live: LiveServer) -> None:
    """A login cookie made from it would open the whole server."""
    for segments in (("me",), ("rooms",)):
        answer = ask(room_url(live, *segments), headers=scoped(live))
        assert answer.status == 200
        assert "Set-Cookie" not in answer.headers


async def test_the_secret_is_the_owner_and_a_token_is_not(live: LiveServer) -> None:
    assert Rest(live, Caller(scoped(live)))("GET", "me").body["user"] == getpass.getuser()
    assert Rest(live, Caller(live.headers))("GET", "me").body["user"] != getpass.getuser()


async def test_identity_is_kept_by_the_members_secret_and_by_nothing_else(live: LiveServer) -> None:
    async with peers() as made:
        first = await made(live.socket_url, live.headers)
        held = first.welcome
        assert held is not None
        # A token is a new anonymous user each time; the member is the same, and so is its user.
        again = await Peer.open(live.socket_url, live.headers)
        made.made.append(again)
        told = await again.hello(member=held.member, secret=held.secret)
        assert (told.member, told.user, told.secret) == (held.member, held.user, held.secret)
        for wrong in (
            {"secret": held.secret[:-2]},
            {"secret": "é"},
            {"member": "another"},
            {"kind": "kernel"},
            {"secret": None},
        ):
            peer = await Peer.open(live.socket_url, live.headers)
            made.made.append(peer)
            other = await peer.hello(**{"member": held.member, "secret": held.secret, **wrong})
            assert other.member not in (held.member, "another")


async def test_a_page_is_whoever_is_logged_in_now(live: LiveServer) -> None:
    async with peers() as made:
        ana, bob = Caller(cookie(live)), Caller(cookie(live))
        page = await enter(live, ana, made)
        held = page.welcome
        assert held is not None
        for caller, same in ((ana, True), (bob, False)):
            other = await Peer.open(live.socket_url, caller.headers)
            made.made.append(other)
            told = await other.hello(member=held.member, secret=held.secret)
            assert (told.member == held.member, told.user == held.user) == (same, same)


async def test_a_kernel_id_is_a_claim(live: LiveServer, room: str) -> None:
    async with peers() as made:
        peer = await Peer.open(live.socket_url, live.headers)
        made.made.append(peer)
        await peer.hello(kind="kernel", kernel_id="somebody-elses")
        snapshot = await peer.join(room)
        assert [member.kernel_id for member in snapshot.members] == [None]


# --- a server whose operator gives some the right to read only, and some none


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The scoped secret may do everything, a token only read, and a page of its own origin nothing."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "rights.py").write_text(
        "from jupyter_server.auth import Authorizer\n"
        "class Rights(Authorizer):\n"
        "    async def is_authorized(self, handler, user, action, resource):\n"
        "        if resource != 'sharedwidgets' or 'SharedWidgets' in handler.request.headers.get('Authorization', ''):\n"
        "            return True\n"
        "        return action == 'read' and 'Origin' not in handler.request.headers\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        with LiveServer(folder, "--ServerApp.authorizer_class=rights.Rights") as server:
            yield server


async def test_a_reader_reads_and_nothing_else(guarded: LiveServer, room: str) -> None:
    async with peers() as made:
        writer = await made(guarded.socket_url, scoped(guarded), room)
        reader = await made(guarded.socket_url, guarded.headers, room, make=False)
        assert reader.welcome is not None
        assert (reader.welcome.may_write, writer.welcome.may_write) == (False, True)  # type: ignore[union-attr]
        nack = await reader.write(room, add())
        assert isinstance(nack, Nack)
        assert nack.problem.code == "forbidden"
        assert nack.values["S"]["count"] == 0
        for name in (room, f"{room}-new"):
            await reader.say(Join(id=50, room=name, state="T", schema={"a": TraitSchema(kind="int")}, values={"a": 1}))
            assert (await reader.next(Failure)).problem.code == "forbidden"
        # What is there already needs no right to make it.
        await reader.join(room)
        await writer.write(room, add())
        await reader.until(room, count=1)
        assert writer.entries(room) == 1
        rest = Rest(guarded, Caller(guarded.headers))
        assert rest.everything(room) == {"me": 200, "list": 200, "read": 200, "write": 403, "delete": 403}
        refusal = rest("PATCH", "rooms", room, "states", "S", body={"count": 1}).body
        assert refusal["code"] == "forbidden"
        told = rest("GET", "me").body
        assert (told["may_read"], told["may_write"]) == (True, False)


async def test_who_may_not_read_finds_out_why(guarded: LiveServer, room: str) -> None:
    async with peers() as made:
        await made(guarded.socket_url, scoped(guarded), room)
        caller = Caller({**guarded.headers, "Origin": guarded.url.rstrip("/")})
        with pytest.raises(HTTPClientError) as caught:
            await enter(guarded, caller, made)
        assert caught.value.code == 403
        rest = Rest(guarded, caller)
        assert rest.everything(room) == {"me": 200, "list": 403, "read": 403, "write": 403, "delete": 403}
        told = rest("GET", "me").body
        assert (told["may_read"], told["may_write"]) == (False, False)
        assert rest("GET", "rooms").body["code"] == "forbidden"


async def test_no_secret_is_in_the_log(tmp_path: Path, room: str) -> None:
    with LiveServer(tmp_path, "--debug") as server:
        secret = server.credential
        async with peers() as made:
            peer = await made(server.socket_url, scoped(server), room)
            await peer.write(room, add())
            member = peer.welcome.secret  # type: ignore[union-attr]
            await peer.send("{")
            await peer.closed()
            ask(room_url(server, "me"), headers=scoped(server))
    text = (tmp_path / "server.log").read_text()
    assert "a client was refused" in text
    assert not [line for line in text.splitlines() if secret in line or member in line]
