"""Every store passes the one suite."""

from __future__ import annotations

import pytest

from sharedwidgets_server.stores import Store, open_store
from sharedwidgets_server.testing import StoreContract


@pytest.mark.asyncio
class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return open_store("memory://")


def test_an_unknown_store_says_what_there_is() -> None:
    with pytest.raises(ValueError, match="memory://"):
        open_store("mysql://here")
