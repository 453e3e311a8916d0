"""Every store passes the one suite."""

from __future__ import annotations

import pkgutil

import pytest

import sharedwidgets_server.stores
from sharedwidgets.core.protocol import Actor, Define, Entry, Set, TraitSchema
from sharedwidgets.core.room import Mark
from sharedwidgets_server.stores import STORES, Batch, Store, open_store
from sharedwidgets_server.testing import StoreContract


@pytest.mark.asyncio
class TestMemory(StoreContract):
    @pytest.fixture
    def store(self) -> Store:
        return open_store("memory://")

    async def test_a_batch_that_breaks_in_the_middle_changes_nothing(self, store: Store) -> None:
        """It applies entries one by one; what came before the one that cannot be applied is not there either."""
        actor = Actor(id="m", kind="kernel")
        made = Define(state="S", schema={"count": TraitSchema(kind="int")}, values={"count": 0})
        ops = [made, Set(state="S", path=("count",), value=9), Set(state="missing", path=("count",), value=1)]
        first, second, broken = (Entry(seq=seq, at=1.0, by=actor, ops=(op,)) for seq, op in enumerate(ops, 1))
        await store.append(Batch("room", "i", (("e", 1),), [first]), {"boot": Mark(n=1)}, 0)
        with pytest.raises(KeyError):
            await store.append(Batch("room", "i", (("e", 1),), [second, broken]), {"boot": Mark(n=2)}, 1)
        image = await store.load("room")
        assert image is not None
        assert (image.seq, image.states["S"].values, image.marks) == (1, {"count": 0}, {"boot": Mark(n=1)})
        with pytest.raises(KeyError):
            await store.append(Batch("new", "i", (("e", 1),), [broken]), {}, 0)
        assert await store.load("new") is None
        await store.append(Batch("room", "i", (("e", 1),), [second]), {}, 1)


def test_an_unknown_store_says_what_there_is() -> None:
    with pytest.raises(ValueError, match="memory://"):
        open_store("mysql://here")


def test_every_store_has_its_url_in_the_registry() -> None:
    """Whose URL is not there would be left out of the tests that run over every store."""
    modules = {module.name for module in pkgutil.iter_modules(sharedwidgets_server.stores.__path__)}
    assert {url.partition(":")[0] for url in STORES} == modules
