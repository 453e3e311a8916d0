"""What servers of the integration tests are started with, and clients that are closed when a test ends."""

from __future__ import annotations

from pathlib import Path

from support.peers import Peer

# One over each of these is what the hostile tests send.
TIGHT = {
    "op_bytes": 2000,
    "frame_bytes": 4096,
    "push_bytes": 20_000,
    "push_ops": 5,
    "room_bytes": 12_000,
    "rooms": 3,
    "hello_bytes": 3000,
    "hello_seconds": 0.3,
    "outbox_fold_bytes": 10_000,
    "outbox_drop_bytes": 50_000,
}


def limits(**numbers: float) -> str:
    """The command line argument that sets limits."""
    return f"--SharedWidgetsApp.limits={numbers}"


def store(url: str, folder: Path) -> str:
    """The command line argument that chooses a store, by its URL as the registry has it."""
    return f"--SharedWidgetsApp.store_url={url.format(folder=folder)}"


def scheme(url: str) -> str:
    """What a store is called, for the name of a test."""
    return url.partition(":")[0]


class peers:
    """Makes peers and closes them."""

    def __init__(self) -> None:
        self.made: list[Peer] = []

    async def __call__(self, *args: object, **how: object) -> Peer:
        self.made.append(await Peer.enter(*args, **how))  # type: ignore[arg-type]
        return self.made[-1]

    async def __aenter__(self) -> peers:
        return self

    async def __aexit__(self, *error: object) -> None:
        for peer in self.made:
            peer.close()
        for peer in self.made:
            await peer.closed()
