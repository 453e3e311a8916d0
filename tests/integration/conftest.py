"""Real servers, one for many tests; each test uses a room of its own."""

from __future__ import annotations

import itertools
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

import ipywidgets
import pytest
import pytest_asyncio

import sharedwidgets.connection
from sharedwidgets_server.testing import LiveServer
from support.peers import Peer
from support.servers import TIGHT, limits, peers
from support.shops import Link, Shop

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server as anyone would start it, under a base URL that is easy to join wrongly."""
    with LiveServer(tmp_path_factory.mktemp("live"), "--ServerApp.base_url=/a%40b/") as server:
        yield server


@pytest.fixture(scope="session")
def tight(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server with limits so low that a test can pass each."""
    with LiveServer(tmp_path_factory.mktemp("tight"), limits(**TIGHT)) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server for one module, with the numbers it has by itself; the connections of this process end with it."""
    with LiveServer(tmp_path_factory.mktemp("server")) as running:
        yield running
        for connection in list(sharedwidgets.connection._shared.values()):
            connection.close()


@pytest.fixture
def room() -> str:
    """A token of its own."""
    return f"room-{next(_numbers)}"


@pytest.fixture
def token(request: pytest.FixtureRequest) -> str:
    """A room named after the test."""
    return re.sub(r"\W+", "-", request.node.name)


@pytest.fixture
def here(server: LiveServer, token: str) -> Link:
    """Links an object to the room of the test."""
    return lambda state: state.link_to(token, server=server.url, credential=server.credential)


@pytest.fixture
def there(server: LiveServer, token: str) -> Link:
    """Links an object to that room by another connection, as another process would."""
    return lambda state: state.link_to(token, server=server.url, credential=server.token)


@pytest.fixture
def one(here: Link) -> Shop:
    """An object in the room of the test; a file that is about another class has its own."""
    shop: Shop = here(Shop())
    return shop


@pytest.fixture
def two(there: Link) -> Shop:
    """Another one there."""
    shop: Shop = there(Shop())
    return shop


@pytest.fixture(autouse=True)
def widgets_closed() -> Iterator[None]:
    """No widget of a test outlives it."""
    yield
    ipywidgets.Widget.close_all()


Enter = Callable[..., Awaitable[Peer]]


@pytest_asyncio.fixture
async def enter(live: LiveServer) -> AsyncIterator[Enter]:
    """Peers of the plain server, by its token; closed afterwards."""
    async with peers() as made:
        yield lambda room=None, **how: made(live.socket_url, live.headers, room, **how)
