"""When a path changed last."""

from __future__ import annotations

import pytest

from sharedwidgets.core.protocol import Append, Delete, EntryOp, Inc, Splice, TraitSchema
from sharedwidgets.core.revisions import Revisions
from support.build import define, entry, put


def after(*ops: EntryOp, floor: int = 0) -> Revisions:
    """Revisions that saw these ops at seq 1, 2, 3 ..."""
    revisions = Revisions(floor)
    for seq, op in enumerate(ops, 1):
        revisions.note(entry(floor + seq, op))
    return revisions


def delete(path: str) -> Delete:
    return Delete(state="S", path=tuple(path.split(".")))


def of(revisions: Revisions, path: str) -> int:
    return revisions.of("S", tuple(path.split(".")))


def test_what_was_never_written_is_as_old_as_the_image() -> None:
    assert of(after(floor=7), "count") == 7
    assert after(floor=7).of_state("S") == 7
    assert of(after(put("title", "x"), floor=7), "count") == 7


@pytest.mark.parametrize(
    "op",
    [
        put("tags.a", 1),
        delete("tags.a"),
        Inc(state="S", path=("tags", "a"), by=1, value=1),
        Append(state="S", path=("tags", "a"), items=(1,)),
        Splice(state="S", path=("tags", "a"), rev=0, at=0, remove=0, insert="x"),
    ],
    ids=lambda op: type(op).__name__,
)
def test_each_op_moves_its_path_and_what_holds_it(op: EntryOp) -> None:
    revisions = after(put("title", "x"), op)
    assert of(revisions, "tags.a") == 2
    assert of(revisions, "tags") == 2
    assert of(revisions, "tags.a.below") == 2
    assert of(revisions, "title") == 1
    assert revisions.of_state("S") == 2
    assert revisions.of_state("T") == 0


def test_a_neighbour_does_not_move_a_path() -> None:
    revisions = after(put("tags.a", 1), put("tags.b", 1), put("tags.a.x.y", 1))
    assert of(revisions, "tags.b") == 2
    assert of(revisions, "tags.a") == 3
    assert of(revisions, "tags.a.x") == 3
    assert of(revisions, "tags.a.z") == 1


def test_a_whole_value_makes_what_was_below_it_as_new() -> None:
    revisions = after(put("tags.a.x", 1), put("tags", {}), put("tags.b", 1))
    assert of(revisions, "tags.a.x") == 2
    assert of(revisions, "tags.b") == 3


def test_a_deleted_key_moves_the_dict_it_was_in() -> None:
    """Found by reading: a dict that was written whole, and then lost a key, kept its old revision."""
    revisions = after(put("tags", {"a": 1, "b": {"c": 1}}), put("tags.b", {"c": 2}), delete("tags.a"))
    assert of(revisions, "tags") == 3
    assert of(revisions, "tags.a") == 3
    revisions.note(entry(4, delete("tags.b.c")))
    assert of(revisions, "tags.b") == 4
    assert of(revisions, "tags") == 4


def test_a_deletion_elsewhere_does_not_move_a_key_that_is_there() -> None:
    revisions = after(put("tags.a", 1), put("tags.b", {}), put("tags.b.c", 1), delete("tags.b.c"), delete("tags.z"))
    assert of(revisions, "tags.a") == 1
    assert of(revisions, "tags.b") == 4


def test_a_key_that_is_not_there_is_as_new_as_the_last_deletion_beside_it() -> None:
    revisions = after(put("tags.a", 1), put("tags.b", {"c": 1}), delete("tags.b.c"), delete("tags.a"))
    assert of(revisions, "tags.a") == 4
    # Only a dict on its way counts.
    revisions = after(put("tags.a", 1), delete("tags.a"), put("tags.b", {"c": 1}), delete("tags.b.c"))
    assert of(revisions, "tags.a") == 2


def test_a_key_that_is_back_has_its_own_number() -> None:
    revisions = after(put("tags.a", 1), delete("tags.a"), put("tags.a", 1), delete("tags.b"))
    assert of(revisions, "tags.a") == 3


def test_the_number_of_a_deletion_goes_with_the_dict_it_was_in() -> None:
    revisions = after(put("tags.b", {"c": 1}), delete("tags.b.c"), put("tags.b", {"c": 2}))
    assert of(revisions, "tags.b") == 3
    assert of(revisions, "tags.b.d") == 3
    assert revisions.of_state("S") == 3


def test_a_deletion_is_a_change_of_the_state() -> None:
    revisions = after(put("tags.a", 1), delete("tags.a"))
    assert revisions.of_state("S") == 2


def test_a_definition_moves_its_traits_and_no_others() -> None:
    schema = {"count": TraitSchema(kind="int")}
    revisions = after(put("title", "x"), define(schema, {"count": 0}))
    assert of(revisions, "count") == 2
    assert of(revisions, "title") == 1
    assert revisions.of_state("S") == 2


def test_several_ops_of_one_entry_have_one_number() -> None:
    revisions = Revisions()
    revisions.note(entry(5, put("tags.a", 1), put("title", "x"), put("tags.a.b", 1)))
    assert [of(revisions, path) for path in ("tags.a", "title", "tags.a.b", "tags.c")] == [5, 5, 5, 0]
