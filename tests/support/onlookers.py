"""Pages and scripts that look on from a thread of their own: for tests whose other members block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, TypeVar

from sharedwidgets.core.protocol import Downstream, Entries, Inc, Joined, Member, Nack, Ping, Set, Snapshot, Welcome
from sharedwidgets.core.values import Value
from sharedwidgets_server.testing import LiveServer
from support.peers import SECONDS, Peer
from support.rest import cookies

Result = TypeVar("Result")


def of_a_page(server: LiveServer) -> dict[str, str]:
    """The headers of a page somebody logged in to: with them one is a frontend, whatever one says of oneself."""
    return {"Cookie": cookies(server)["Cookie"], "Origin": server.url.rstrip("/")}


class Onlooker:
    """One member of a room, and everything it was told.

    Parameters
    ----------
    onlookers : Onlookers
        Where it runs.
    token : str
        The room.
    state : str
        The state it looks at.
    page : bool
        Whether it is of the frontends' audience, as a browser's page is, or a script.
    """

    def __init__(self, onlookers: Onlookers, token: str, state: str, *, page: bool) -> None:
        self._onlookers = onlookers
        self.server = onlookers.server
        self.token = token
        self.state = state
        self.page = page
        self.peer = self._open()
        self._from = len(self.peer.heard), len(self.peer.frames)

    def _open(self, **hello: Any) -> Peer:
        async def come() -> Peer:
            headers = self._onlookers.page_headers if self.page else self.server.headers
            peer = await Peer.open(self.server.socket_url, headers)
            await peer.hello(kind="frontend" if self.page else "script", **hello)
            await peer.join(self.token, make=False, state=self.state)
            return peer

        return self._onlookers.run(come())

    # --- what it sees

    def shows(self, **values: Value) -> None:
        """Wait until it shows these."""
        self._onlookers.run(self.peer.until(self.token, self.state, **values))  # type: ignore[arg-type]

    @property
    def view(self) -> dict[str, Value]:
        """What it shows, as far as it has read."""
        return self.peer.replicas[self.token].view(self.state)

    @property
    def members(self) -> tuple[Member, ...]:
        """Who is there, as far as it has read."""
        return tuple(self.peer.replicas[self.token].members.values())

    def steps(self, trait: str) -> list[Value]:
        """The values a trait went through since it came, entry by entry: what an observer in the page would count."""
        self.barrier()
        entries = [entry for message in self.peer.all(Entries) for entry in message.entries]
        ops = [op for entry in entries for op in entry.ops if isinstance(op, (Set, Inc)) and op.state == self.state]
        return [op.value for op in ops if op.path == (trait,)]

    def begin(self) -> None:
        """What it was told by now does not count."""
        self.barrier()
        self._from = len(self.peer.heard), len(self.peer.frames)

    @property
    def told(self) -> list[Downstream]:
        """Everything it was told since `begin`, up to now."""
        self.barrier()
        return [message for message in self.peer.heard[self._from[0] :] if not isinstance(message, (Joined, Ping))]

    @property
    def bytes(self) -> int:
        """About how much that was."""
        self.barrier()
        heard, frames = self._from
        told = zip(self.peer.heard[heard:], self.peer.frames[frames:], strict=True)
        return sum(len(frame) for message, frame in told if not isinstance(message, (Joined, Ping)))

    @property
    def state_told(self) -> list[Downstream]:
        """What of it says anything about values."""
        return [message for message in self.told if isinstance(message, (Snapshot, Entries))]

    def barrier(self) -> None:
        """Read everything that was told by now."""
        self._onlookers.run(self.peer.barrier(self.token))

    # --- what it does

    def write(self, **values: Value) -> Entries | Nack:
        """Set traits in one push; the verdict."""
        ops = [Set(state=self.state, path=(trait,), value=value) for trait, value in values.items()]
        return self._onlookers.run(self.peer.write(self.token, *ops))

    def write_at(self, path: tuple[str, ...], value: Value) -> Entries | Nack:
        """Set what is at a path; the verdict."""
        return self._onlookers.run(self.peer.write(self.token, Set(state=self.state, path=path, value=value)))

    def click(self, trait: str = "count") -> None:
        """Add one, as a button does."""
        verdict = self._onlookers.run(self.peer.write(self.token, Inc(state=self.state, path=(trait,), by=1)))
        assert isinstance(verdict, Entries), verdict

    def refresh(self) -> None:
        """Reload the page: another life of the same member; what the one before heard is not counted any more."""
        welcome, before = self.peer.welcome, self.peer
        assert isinstance(welcome, Welcome)
        self._onlookers.close(before)
        self.peer = self._open(member=welcome.member, secret=welcome.secret)
        self._from = len(self.peer.heard), len(self.peer.frames)


class Onlookers:
    """Makes onlookers of one server, and closes them."""

    def __init__(self, server: LiveServer) -> None:
        self.server = server
        self.page_headers = of_a_page(server)
        self._made: list[Onlooker] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="onlookers", daemon=True)
        self._thread.start()

    def page(self, token: str, state: str = "Counter") -> Onlooker:
        """A page of a room that is there."""
        self._made.append(Onlooker(self, token, state, page=True))
        return self._made[-1]

    def script(self, token: str, state: str = "Counter") -> Onlooker:
        """A script, of the kernels' audience."""
        self._made.append(Onlooker(self, token, state, page=False))
        return self._made[-1]

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Do something on the thread of the onlookers."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(SECONDS + 5)

    def close(self, peer: Peer) -> None:
        """Close a socket, and wait until it is."""

        async def end() -> None:
            peer.close()
            await peer.closed()

        self.run(end())

    def __enter__(self) -> Onlookers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        for onlooker in self._made:
            self.close(onlooker.peer)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()
