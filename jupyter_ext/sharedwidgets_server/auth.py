"""Who is calling: the scoped secret beside jupyter_server's own identity, and the secrets derived from one key.

The secret opens the handlers of this extension and nothing else. It reaches kernels by their environment and is compared in
constant time; a wrong one is refused and never falls back to a cookie.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jupyter_server.auth.identity import IdentityProvider, User
from tornado import web

if TYPE_CHECKING:
    from jupyter_server.base.handlers import JupyterHandler

    _Base = JupyterHandler
else:
    _Base = object

SCHEME = "SharedWidgets"
SECRET_PREFIX = "sw1-"
KEY_BYTES = 32
BROWSERS_SEND = {"origin", "cookie", "sec-fetch-mode", "sec-fetch-site"}


class Keys:
    """Everything secret this server hands out, derived from one key.

    Parameters
    ----------
    key : bytes
        32 random bytes that survive a restart.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.server_id = self._derive("server")[:16]
        self.credential = SECRET_PREFIX + self._derive("credential")

    @classmethod
    def load(cls, path: Path) -> Keys:
        """The key in a file of mode 0600; made when it is missing or was never written whole."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        held: bytes | None = None
        with contextlib.suppress(FileNotFoundError):
            path.chmod(0o600)
            held = path.read_bytes()
            if len(held) == KEY_BYTES:
                return cls(held)
        # Seen by nobody before it is whole: secrets of an empty key could be computed by anyone.
        draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
        try:
            if held is None:
                os.link(draft, path)
            else:
                draft.replace(path)
        except FileExistsError:
            pass  # another server that starts right now was first
        except OSError:
            # A file system without links: of servers that start together the last one's key stays.
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
        return cls(path.read_bytes())

    def opens(self, secret: str) -> bool:
        """Whether this is the scoped secret."""
        return hmac.compare_digest(secret.encode("utf-8", "surrogateescape"), self.credential.encode())

    def member_secret(self, member: str, kind: str, user: str) -> str:
        """What proves that a client was this member, of this user, before."""
        return _base64(user.encode("utf-8", "surrogateescape")) + "." + self._derive("member", member, kind, user)

    def member_user(self, secret: str, member: str, kind: str) -> str | None:
        """Whose member it was, when the secret is that member's."""
        try:
            user = base64.urlsafe_b64decode(secret.partition(".")[0] + "==").decode("utf-8", "surrogateescape")
        except ValueError:
            return None
        proof = self.member_secret(member, kind, user)
        return user if hmac.compare_digest(secret.encode("utf-8", "surrogateescape"), proof.encode()) else None

    def _derive(self, *parts: str) -> str:
        text = "".join(f"{len(part)}:{part}" for part in parts).encode("utf-8", "surrogateescape")
        digest = hmac.digest(self._key, text, hashlib.sha256)
        return _base64(digest)


class ScopedIdentity:
    """The operator's identity provider, which also knows the scoped secret; everything else is passed on."""

    def __init__(self, provider: IdentityProvider, keys: Keys, owner: str) -> None:
        self._provider = provider
        self._keys = keys
        self._owner = owner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._provider, name)

    async def get_user(self, handler: web.RequestHandler) -> User | None:
        """The server's owner for the right secret, nobody for a wrong one, else whom the operator's provider finds."""
        secret = presented(handler)
        if secret is None:
            user = self._provider.get_user(handler)
            return user if user is None or isinstance(user, User) else await user
        return User(username=self._owner) if self._keys.opens(secret) else None

    def is_token_authenticated(self, handler: web.RequestHandler) -> bool:
        """Whether the caller proved itself without a cookie."""
        return presented(handler) is not None or self._provider.is_token_authenticated(handler)

    def should_check_origin(self, handler: web.RequestHandler) -> bool:
        """A secret in a header is no cookie that a foreign page could make a browser send."""
        return presented(handler) is None and self._provider.should_check_origin(handler)


class CredentialMixin(_Base):
    """Gives a handler the wrapped identity provider; `keys` and `owner` come with its route."""

    keys: Keys
    owner: str

    @property
    def identity_provider(self) -> IdentityProvider:  # noqa: D102 - documented in the base class
        return ScopedIdentity(super().identity_provider, self.keys, self.owner)  # type: ignore[return-value]

    @property
    def is_frontend(self) -> bool:
        """Whether the caller is a page, whatever it says of itself: it has what only a browser has, or no token.

        A page that sends a token to its own origin by ``GET`` has no Origin; it has a cookie, or at least what browsers say
        about each request and pages cannot leave out.
        """
        return bool(BROWSERS_SEND & {name.lower() for name in self.request.headers}) or not self.token_authenticated

    async def may(self, action: str) -> bool:
        """Ask the operator's authorizer; resource ``sharedwidgets``."""
        allowed = self.authorizer.is_authorized(self, self.current_user, action, "sharedwidgets")
        return allowed if isinstance(allowed, bool) else bool(await allowed)


def presented(handler: web.RequestHandler) -> str | None:
    """The scoped secret a request carries, right or wrong."""
    scheme, _, secret = handler.request.headers.get("Authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == SCHEME.lower() else None


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
