"""Which server, which credential: arguments, then the environment, then what running servers left in the runtime folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from sharedwidgets.errors import ServerNotFound

URL, CREDENTIAL, SERVER = "SHAREDWIDGETS_URL", "SHAREDWIDGETS_CREDENTIAL", "SHAREDWIDGETS_SERVER"

# How the extension's scoped secret begins; anything else is an ordinary Jupyter token.
_SCOPED = "sw1-"
# What to do when a server answers and does not let in.
CREDENTIALS = f"Give credential= or set {CREDENTIAL}; the token of the Jupyter server will do."
# What to do when no server answers.
HOW = (
    "Install sharedwidgets in the environment of the Jupyter server and restart it (`jupyter server extension list` must show "
    f"sharedwidgets_server), or give server= and credential=, or set {URL} and {CREDENTIAL}."
)


@dataclass(frozen=True)
class Address:
    """A server as a client reaches it.

    Parameters
    ----------
    url : str
        Base URL, with a slash at the end.
    credential : str
        The scoped secret or a Jupyter token; never printed.
    server : str or None
        The server's id, by which it is found again after a restart.
    """

    url: str
    credential: str
    server: str | None = None

    def __repr__(self) -> str:
        return f"Address({self.url!r})"

    @property
    def socket_url(self) -> str:
        """Where the websocket is."""
        parts = urlsplit(self.url)
        scheme = "wss" if parts.scheme == "https" else "ws"
        return urlunsplit(parts._replace(scheme=scheme, path=parts.path + "sharedwidgets/ws"))

    def rest_url(self, *segments: str) -> str:
        """A REST address; each segment is percent-encoded."""
        return self.url + "sharedwidgets/api/" + "/".join(quote(segment, safe="") for segment in segments)

    def headers(self) -> dict[str, str]:
        """What proves who is asking."""
        if not self.credential:
            return {}
        scheme = "SharedWidgets" if self.credential.startswith(_SCOPED) else "token"
        return {"Authorization": f"{scheme} {self.credential}"}


def find(server: str | None = None, credential: str | None = None, environ: Mapping[str, str] | None = None) -> Address:
    """The server to talk to.

    Parameters
    ----------
    server : str, optional
        Base URL; wins over everything.
    credential : str, optional
        Scoped secret or Jupyter token for it.
    environ : mapping, optional
        Instead of ``os.environ``.

    Raises
    ------
    ServerNotFound
        There is none, or several and nothing says which.
    """
    environ = os.environ if environ is None else environ
    told = environ.get(URL)
    known = {address.url: address for address in _running()} if server or told else {}
    if server and _plain(server) != _plain(told or ""):
        # A credential from the environment belongs to the server in the environment, and is not shown to another one.
        return _with(known, _checked(server), credential, None)
    if told:
        own = credential if credential is not None else environ.get(CREDENTIAL)
        return _with(known, _checked(told), own, environ.get(SERVER))
    running = _running()
    if len(running) == 1:
        return running[0] if credential is None else replace(running[0], credential=_sendable(credential))
    if not running:
        raise ServerNotFound(f"No Jupyter server with the sharedwidgets extension was found. {HOW}")
    names = ", ".join(address.url for address in running)
    raise ServerNotFound(f"Several Jupyter servers run here ({names}); say which with server=, or set {URL}.")


def _with(known: Mapping[str, Address], url: str, credential: str | None, server: str | None) -> Address:
    """The server at a URL; without a credential the one it left on this machine, for those who may read it."""
    if credential is None and url in known:
        return known[url]
    return Address(url, _sendable(credential or ""), server)


def again(address: Address) -> Address:
    """The same server after a restart, which may have moved it to another port."""
    if address.server is None:
        return address
    return next((found for found in _running() if found.server == address.server), address)


def _running() -> list[Address]:
    from jupyter_core.paths import jupyter_runtime_dir

    found: dict[str, Address] = {}
    for path in sorted(Path(jupyter_runtime_dir()).glob("sharedwidgets-*.json")):
        try:
            facts = json.loads(path.read_text())
            address = Address(_checked(str(facts["url"])), _sendable(str(facts["credential"])), str(facts["server"]))
            os.kill(int(facts["pid"]), 0)
        except (OSError, OverflowError, ValueError, KeyError, TypeError, ServerNotFound):
            # Left behind by a server that was killed, or being written right now: not a server to talk to.
            continue
        found[address.url] = address
    return list(found.values())


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        shown = _plain(url) if parts.netloc else parts.path
        raise ServerNotFound(f"{shown!r} is no base URL of a server; give one such as 'http://localhost:8888/'")
    return _plain(url)


def _sendable(credential: str) -> str:
    if not (credential.isascii() and credential.isprintable()):
        raise ServerNotFound("The credential has characters that no server takes; copy it again, without line breaks.")
    return credential


def _plain(url: str) -> str:
    """A base URL without what may be secret: a token in its query, or a user and password before the host."""
    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=netloc, path=parts.path.rstrip("/") + "/", query="", fragment=""))
