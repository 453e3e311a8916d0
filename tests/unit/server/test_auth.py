"""The key, the scoped secret and the secrets of members, and who is asked when."""

from __future__ import annotations

import base64
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from jupyter_server.auth.identity import IdentityProvider, User
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine

from sharedwidgets_server.auth import Keys, ScopedIdentity, presented

KEYS = Keys(b"k" * 32)
OTHER = Keys(b"o" * 32)


class Request:
    """As much of a handler as an identity provider looks at here: a real request."""

    def __init__(self, authorization: str | None = None) -> None:
        headers = HTTPHeaders({"Host": "localhost"})
        if authorization is not None:
            headers["Authorization"] = authorization
        self.request = HTTPServerRequest(headers=headers, start_line=RequestStartLine("GET", "/", "HTTP/1.1"))


class Operator(IdentityProvider):
    """A provider that knows everybody, so that whoever falls through to it is let in."""

    async def get_user(self, handler: Any) -> User:  # type: ignore[override]
        return User(username="cookie")

    def is_token_authenticated(self, handler: Any) -> bool:
        return False

    def should_check_origin(self, handler: Any) -> bool:
        return True


# --- the key


def test_the_key_is_made_once_and_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder" / "server.key"
    first = Keys.load(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert len(path.read_bytes()) == 32
    again = Keys.load(path)
    assert (again.credential, again.server_id) == (first.credential, first.server_id)
    assert Keys.load(tmp_path / "other.key").credential != first.credential


@pytest.mark.parametrize("left", [b"", b"half a key"])
def test_a_key_that_was_never_written_whole_is_no_key(tmp_path: Path, left: bytes) -> None:
    """Secrets derived from an empty or short key could be computed by anyone."""
    path = tmp_path / "server.key"
    path.write_bytes(left)
    keys = Keys.load(path)
    assert keys.credential != Keys(left).credential
    assert len(path.read_bytes()) == 32
    assert Keys.load(path).credential == keys.credential


def test_a_key_that_others_may_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "server.key"
    credential = Keys.load(path).credential
    path.chmod(0o644)
    assert Keys.load(path).credential == credential
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_servers_that_start_together_agree_on_the_key(tmp_path: Path) -> None:
    for attempt in range(20):
        path = tmp_path / f"{attempt}.key"
        together = threading.Barrier(4)
        found: list[str] = []

        def load(path: Path = path, together: threading.Barrier = together, found: list[str] = found) -> None:
            together.wait()
            found.append(Keys.load(path).credential)

        threads = [threading.Thread(target=load) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [Keys(path.read_bytes()).credential] * 4
        assert [item.name for item in tmp_path.glob(f"{attempt}*")] == [path.name]


def test_what_is_derived_is_apart() -> None:
    secrets = {KEYS.server_id, KEYS.credential, KEYS.member_secret("m", "script", "u"), OTHER.credential}
    assert len(secrets) == 4
    assert KEYS.credential.startswith("sw1-")
    assert KEYS.server_id not in KEYS.credential


# --- the scoped secret


def test_the_scoped_secret_opens() -> None:
    assert KEYS.opens(KEYS.credential)


@pytest.mark.parametrize(
    "secret", ["", "sw1-", KEYS.credential[:-1], KEYS.credential + "x", OTHER.credential, "sw1-gehëim", "\udcff", "日本"]
)
def test_nothing_else_opens(secret: str) -> None:
    assert not KEYS.opens(secret)


@pytest.mark.asyncio
async def test_the_right_secret_is_the_owner() -> None:
    identity = ScopedIdentity(Operator(), KEYS, "ana")
    handler: Any = Request(f"SharedWidgets {KEYS.credential}")
    user = await identity.get_user(handler)
    assert user is not None
    assert user.username == "ana"
    assert identity.is_token_authenticated(handler)
    assert not identity.should_check_origin(handler)


@pytest.mark.asyncio
@pytest.mark.parametrize("secret", ["", "wrong", "sw1-gehëim", OTHER.credential])
@pytest.mark.parametrize("scheme", ["SharedWidgets", "sharedwidgets", "SHAREDWIDGETS"])
async def test_a_wrong_secret_never_falls_back_to_the_cookie(scheme: str, secret: str) -> None:
    identity = ScopedIdentity(Operator(), KEYS, "ana")
    assert await identity.get_user(Request(f"{scheme} {secret}")) is None  # type: ignore[arg-type]


@pytest.mark.asyncio
@pytest.mark.parametrize("authorization", [None, "token abc", "Bearer x", f"token {KEYS.credential}"])
async def test_everything_else_is_the_operators_affair(authorization: str | None) -> None:
    identity = ScopedIdentity(Operator(), KEYS, "ana")
    handler: Any = Request(authorization)
    user = await identity.get_user(handler)
    assert user is not None
    assert user.username == "cookie"
    assert not identity.is_token_authenticated(handler)
    assert identity.should_check_origin(handler)
    assert presented(handler) is None


def test_the_providers_other_names_are_its_own() -> None:
    provider = Operator(token="t")
    identity = ScopedIdentity(provider, KEYS, "ana")
    assert identity.token == "t"
    with pytest.raises(AttributeError):
        identity.nonsense  # noqa: B018


# --- members


@pytest.mark.parametrize("user", ["ana", "", "a.b", "日本", "a\0b", "\udcff"])
def test_a_member_proves_itself_and_whose_it_is(user: str) -> None:
    secret = KEYS.member_secret("m", "script", user)
    assert KEYS.member_user(secret, "m", "script") == user


@pytest.mark.parametrize(
    ("secret", "member", "kind"),
    [
        (KEYS.member_secret("m", "script", "ana"), "n", "script"),
        (KEYS.member_secret("m", "script", "ana"), "m", "kernel"),
        (KEYS.member_secret("m", "frontend", "ana"), "m", "script"),
        (OTHER.member_secret("m", "script", "ana"), "m", "script"),
        (KEYS.member_secret("m", "script", "ana")[:-1], "m", "script"),
        (KEYS.member_secret("m", "script", "ana") + "A", "m", "script"),
        ("", "m", "script"),
        (".", "m", "script"),
        ("ü.ü", "m", "script"),
        ("\udcff", "m", "script"),
        ("YW5h", "m", "script"),
        (KEYS.credential, "m", "script"),
    ],
)
def test_another_member_kind_or_server_proves_nothing(secret: str, member: str, kind: str) -> None:
    assert KEYS.member_user(secret, member, kind) is None


def test_a_member_cannot_take_another_user() -> None:
    proof = KEYS.member_secret("m", "script", "ana").partition(".")[2]
    forged = base64.urlsafe_b64encode(b"root").decode().rstrip("=") + "." + proof
    assert KEYS.member_user(forged, "m", "script") is None


def test_names_do_not_run_into_each_other() -> None:
    """`a` + `b\\0c` and `a\\0b` + `c` are two members."""
    assert KEYS.member_secret("a", "b\0c", "u") != KEYS.member_secret("a\0b", "c", "u")


def test_the_process_environment_is_left_alone(tmp_path: Path) -> None:
    before = dict(os.environ)
    Keys.load(tmp_path / "server.key")
    assert dict(os.environ) == before
