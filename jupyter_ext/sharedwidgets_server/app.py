"""The extension: config traits become a manager and routes, and kernels are told where the rooms are."""

from __future__ import annotations

import getpass
import hashlib
import json
import math
import os
from importlib import resources
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
from jupyter_core.paths import jupyter_data_dir, jupyter_runtime_dir
from jupyter_server.extension.application import ExtensionApp
from jupyter_server.serverapp import ServerApp
from traitlets import Bool, Bunch, Dict, Float, TraitError, Unicode, validate

from sharedwidgets.core.protocol import Limits
from sharedwidgets_server.auth import Keys
from sharedwidgets_server.manager import RoomManager
from sharedwidgets_server.routes import make_routes
from sharedwidgets_server.stores import open_store

URL, CREDENTIAL, SERVER = "SHAREDWIDGETS_URL", "SHAREDWIDGETS_CREDENTIAL", "SHAREDWIDGETS_SERVER"
_DEFAULTS: dict[str, int | float] = {name: getattr(Limits(), name) for name in Limits.__struct_fields__}
WILDCARDS = {"", "0.0.0.0", "::", "*"}


class SharedWidgetsApp(ExtensionApp):
    """Rooms of shared widget state on a Jupyter server."""

    name = "sharedwidgets"
    description = "Shared state for kernels and pages: rooms, links and presence."
    load_other_extensions = True
    manager: RoomManager | None = None
    # The page module, under the hash of its content; the same files the library's widgets name.
    static_paths = [str(resources.files("sharedwidgets") / "static")]  # noqa: RUF012 - a traitlets default

    store_url = Unicode("memory://", help="Where rooms persist; 'memory://' keeps them until the server stops.").tag(
        config=True
    )
    room_ttl = Float(86400.0, help="Seconds a room is kept after its last member left.").tag(config=True)
    state_dir = Unicode(
        "", help="Folder of this server's key (mode 0600). Default: 'sharedwidgets' in Jupyter's data directory."
    ).tag(config=True)
    kernel_url = Unicode(
        "", help="URL under which kernels reach this server, when it is not the one the server would say of itself."
    ).tag(config=True)
    tell_kernels = Bool(
        True, help="Put the server's URL and a scoped secret into the environment of the kernels it starts."
    ).tag(config=True)

    limits = Dict(
        key_trait=Unicode(),
        value_trait=Float(),
        help="The numbers clients are held to, by name, in bytes, seconds or counts. Defaults: "
        + ", ".join(f"{name} {default:g}" for name, default in _DEFAULTS.items()),
    ).tag(config=True)

    @validate("limits")
    def _known_limits(self, proposal: Bunch) -> dict[str, float]:
        for name, number in proposal.value.items():
            if name not in _DEFAULTS:
                raise TraitError(f"SharedWidgetsApp.limits has no {name!r}; it has {', '.join(_DEFAULTS)}")
            least = 1 if isinstance(_DEFAULTS[name], int) else 0
            if not (math.isfinite(number) and number > 0 and number >= least):
                raise TraitError(f"SharedWidgetsApp.limits[{name!r}] must be a number above 0, not {number}")
        return {**proposal.value}

    def effective_limits(self) -> Limits:
        """`limits` over the defaults, whole where the default is."""
        numbers = {name: type(_DEFAULTS[name])(number) for name, number in self.limits.items()}
        return msgspec.structs.replace(Limits(), **numbers)

    def initialize_settings(self) -> None:
        """Make the manager, under the name by which other extensions find it."""
        self.keys = Keys.load(self._folder() / f"{self._root_hash()}.key")
        self.manager = RoomManager(open_store(self.store_url), limits=self.effective_limits(), room_ttl=self.room_ttl)
        self.settings["sharedwidgets_manager"] = self.manager

    def initialize_handlers(self) -> None:
        """Add the routes, and tell kernels; the port may change yet, so they are told again at start."""
        assert self.manager is not None
        self.handlers.extend(make_routes(self.manager, self.keys, _owner(), distribution_version("sharedwidgets")))
        self._tell_kernels()

    async def _start_jupyter_server_extension(self, serverapp: ServerApp) -> None:
        self._tell_kernels()
        self._write_runtime_file()

    async def stop_extension(self) -> None:
        """Say goodbye to clients, and take back what was left for them."""
        self._runtime_file().unlink(missing_ok=True)
        if self.manager is None:
            # It never came up, a wrong setting for example; the server must be able to stop all the same.
            return
        if os.environ.get(SERVER) == self.keys.server_id:
            for name in (URL, CREDENTIAL, SERVER):
                os.environ.pop(name, None)
        await self.manager.stop()

    def url(self) -> str:
        """The base URL under which a client on this machine reaches the server."""
        if self.kernel_url:
            return self.kernel_url
        server = self._server()
        parts = urlsplit(str(server.connection_url))
        if server.ip in WILDCARDS and not server.sock:
            parts = parts._replace(netloc=f"127.0.0.1:{server.port}")
        return urlunsplit(parts)

    def _tell_kernels(self) -> None:
        """Values that stand beside a server's id are an inherited leftover; those without are the user's, and win (H33)."""
        if not self.tell_kernels or (os.environ.get(URL) and not os.environ.get(SERVER)):
            return
        os.environ.update({URL: self.url(), CREDENTIAL: self.keys.credential, SERVER: self.keys.server_id})

    def _write_runtime_file(self) -> None:
        facts = {
            "url": self.url(),
            "credential": self.keys.credential,
            "server": self.keys.server_id,
            "pid": os.getpid(),
            "root": str(self._server().root_dir),
        }
        path = self._runtime_file()
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(facts, file)

    def _runtime_file(self) -> Path:
        return Path(jupyter_runtime_dir()) / f"sharedwidgets-{os.getpid()}.json"

    def _folder(self) -> Path:
        return Path(self.state_dir or Path(jupyter_data_dir()) / "sharedwidgets")

    def _root_hash(self) -> str:
        return hashlib.sha256(str(self._server().root_dir).encode()).hexdigest()[:16]

    def _server(self) -> Any:
        assert self.serverapp is not None
        return self.serverapp


def _owner() -> str:
    """The name of the user this server runs as; a container may run as one that has none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}" if hasattr(os, "getuid") else "owner"
