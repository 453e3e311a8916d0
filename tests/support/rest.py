"""REST calls whose refusals are answers, and the cookies of a page that logged in."""

from __future__ import annotations

import http.cookiejar
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from sharedwidgets_server.testing import LiveServer


@dataclass(frozen=True)
class Answer:
    """What came back; `body` is decoded JSON, or the text when it is none."""

    status: int
    headers: Mapping[str, str]
    body: Any


def ask(
    url: str, method: str = "GET", body: Any = None, headers: Mapping[str, str] | None = None, *, raw: bytes | None = None
) -> Answer:
    """One request; `raw` is a body as it is."""
    data = raw if raw is not None else (None if body is None else json.dumps(body).encode())
    request = urllib.request.Request(url, method=method, data=data)
    # As latin-1 on the wire, whatever it is.
    for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
        request.add_header(name, value)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return _answer(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return _answer(error.code, error.headers, error.read())


def room_url(server: LiveServer, *segments: str) -> str:
    """The address of rooms; each segment percent-encoded."""
    return server.url + "sharedwidgets/api/" + "/".join(quote(segment, safe="") for segment in segments)


def cookies(server: LiveServer) -> dict[str, str]:
    """The ``Cookie`` header of a page that logged in, and under ``_xsrf`` what it must say to write."""
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    opener.open(server.url + "login", timeout=30).close()
    opener.open(urllib.request.Request(server.url + "api/status", headers=server.headers), timeout=30).close()
    held = {cookie.name: cookie.value or "" for cookie in jar}
    return {"Cookie": "; ".join(f"{name}={value}" for name, value in held.items()), "_xsrf": held["_xsrf"]}


def _answer(status: int, headers: Mapping[str, str], text: bytes) -> Answer:
    try:
        return Answer(status, headers, json.loads(text) if text else None)
    except ValueError:
        return Answer(status, headers, text.decode(errors="replace"))
