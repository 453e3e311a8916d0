"""Who may do what on a test server."""

from __future__ import annotations

import getpass
from typing import Any

from jupyter_server.auth import Authorizer, User
from jupyter_server.base.handlers import JupyterHandler


class TokensOnlyRead(Authorizer):
    """Whoever comes with the scoped secret may write rooms; whoever comes with a Jupyter token only reads them."""

    def is_authorized(self, handler: JupyterHandler, user: User, action: str, resource: str) -> Any:
        return (action, resource) != ("write", "sharedwidgets") or user.username == getpass.getuser()
