"""The authority over one token: what it decides, in effects; whole schedules are in ``tests/property``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from sharedwidgets.core.protocol import (
    Acquire,
    Append,
    Applied,
    Bye,
    Delete,
    Entries,
    Failure,
    Freed,
    Granted,
    Inc,
    Joined,
    Leave,
    Limits,
    LockName,
    Members,
    Nack,
    Op,
    Push,
    Release,
    Renew,
    Resend,
    Resume,
    Set,
    Snapshot,
    Splice,
    TraitSchema,
    Waiting,
)
from sharedwidgets.core.replica import Replica
from sharedwidgets.core.room import (
    KEPT_EPOCHS,
    KEPT_MARKS,
    KEPT_REFUSALS,
    Answer,
    Attach,
    Detach,
    Effect,
    Mark,
    Now,
    Record,
    Revision,
    Room,
    Send,
    Tell,
    problem,
)
from sharedwidgets.errors import Forbidden, InvalidValue, Locked, NoSuchTrait, RevisionMismatch, SharedWidgetsError
from support.build import (
    NOW,
    SCHEMA,
    VALUES,
    author,
    empty_room,
    held,
    join,
    later,
    only,
    push,
    put,
    records,
    resume,
    room_with,
    sent,
)

K1, K2, P1 = author("k1"), author("k2"), author("p1")
ALL = ("k1", "k2", "p1")


@pytest.fixture
def room() -> Room:
    """Two kernels and a page in a room at seq 1."""
    return room_with(K1, K2, P1)


def inc(path: str, by: float = 1) -> Inc:
    return Inc(state="S", path=tuple(path.split(".")), by=by)


def splice(path: str, insert: Any, rev: int) -> Splice:
    return Splice(state="S", path=tuple(path.split(".")), rev=rev, at=0, remove=0, insert=insert)


def code(effects: Sequence[Effect]) -> str:
    """The code of the one refusal."""
    return only(effects, Nack).problem.code


def told(effects: Sequence[Effect]) -> list[Members]:
    return [effect.message for effect in effects if isinstance(effect, Tell)]


def reloaded(room: Room, *, epoch: str = "e2", **changed: Any) -> Room:
    """The room as a store would give it back."""
    return empty_room(limits=room.limits, image=msgspec.structs.replace(room.image(), **changed), epoch=epoch)


def bytes_of(room: Room) -> int:
    return sum(state.bytes for state in room.states.values())


# --- writing


def test_g1_g3_an_entry_takes_the_next_seq_and_its_mark_goes_with_it(room: Room) -> None:
    (record,) = room.receive(K1, push(1, put("count", 3), put("tags.a", 1), depth=2), later(1))
    assert isinstance(record, Record)
    assert record.entry is not None
    assert (record.entry.seq, record.entry.depth, record.entry.at) == (2, 2, later(1).wall)
    assert (record.entry.by.id, record.entry.by.kind, record.entry.by.user) == ("m-k1", "kernel", "ana")
    assert (record.boot, record.mark) == ("k1", Mark(n=1, at=later(1).wall))
    assert (room.seq, room.marks["k1"].n, room.revision("S")) == (2, 1, 2)
    assert held(room) == {**VALUES, "count": 3, "tags": {"a": 1}}


def test_a_sum_is_told_with_its_result(room: Room) -> None:
    (record,) = records(room.receive(K1, push(1, inc("count", 2)), NOW))
    (again,) = records(room.receive(K2, push(1, Inc(state="S", path=("count",), by=3, value=999)), NOW))
    assert record.entry is not None
    assert again.entry is not None
    assert [item.entry.ops[0].value for item in (record, again)] == [2, 5]  # type: ignore[union-attr]


def test_g2_a_gap_in_n_is_asked_for_once_and_the_rest_waits(room: Room) -> None:
    assert room.receive(K1, push(3, inc("count")), NOW) == [Send("k1", Resend(room="r", n=1))]
    assert room.receive(K1, push(2, inc("count")), NOW) == []
    assert room.receive(K1, push(4, inc("count")), NOW) == []
    for n in (1, 2):
        assert records(room.receive(K1, push(n, inc("count")), NOW))
    assert room.receive(K1, push(4, inc("count")), NOW) == [Send("k1", Resend(room="r", n=3))]
    assert held(room)["count"] == 2


def test_g3_what_was_decided_is_told_again_and_not_done_again(room: Room) -> None:
    room.receive(K1, push(1, inc("count")), NOW)
    room.receive(K2, push(1, inc("count")), NOW)
    assert room.receive(K1, push(1, inc("count")), NOW) == [
        Send("k1", Entries(room="r", epoch="e1", prev=3, last=3, decided=1))
    ]
    assert (room.seq, held(room)["count"]) == (3, 2)


def test_g4_a_refusal_is_final_has_no_effect_and_is_told_again(room: Room) -> None:
    before = dict(held(room))
    effects = room.receive(K1, push(1, put("title", "x"), put("level", 11)), NOW)
    nack = only(effects, Nack, "k1")
    assert (nack.n, nack.problem.code, nack.seq) == (1, "invalid-value", 1)
    assert nack.values == {"S": {"title": "", "level": 0}}
    assert nack.problem.path == ("level",)
    (record,) = records(effects)
    assert (record.entry, record.boot) == (None, "k1")
    assert record.mark is not None
    assert record.mark.refused == (msgspec.structs.replace(nack, values={}),)
    assert (held(room), room.seq) == (before, 1)
    room.receive(K1, push(2, inc("count")), NOW)
    assert only(room.receive(K1, push(1, put("level", 11)), NOW), Nack).n == 1
    assert not sent(room.receive(K1, push(2, inc("count")), NOW), Nack)


def test_refusals_are_kept_for_a_while(room: Room) -> None:
    for n in range(1, KEPT_REFUSALS + 2):
        room.receive(K1, push(n, put("level", 11)), NOW)
    kept = room.marks["k1"].refused
    assert [nack.n for nack in kept] == list(range(2, KEPT_REFUSALS + 2))


def test_who_is_not_in_the_room_does_not_write() -> None:
    room = room_with(K1)
    failure = only(room.receive(K2, push(1, inc("count")), NOW), Failure, "k2")
    assert (failure.problem.code, failure.room, failure.id) == ("no-such-room", "r", None)
    assert (room.seq, room.marks) == (1, {})


@pytest.mark.parametrize(
    ("ops", "limits", "expected"),
    [
        ([inc("count")] * 3, Limits(push_ops=2), "too-large"),
        ([put("title", "x" * 200)], Limits(op_bytes=100), "too-large"),
        ([put("tags." + "k" * 200, 1)], Limits(op_bytes=100), "too-large"),
        ([put("title", "x" * 200)], Limits(room_bytes=200), "too-large"),
        ([put("nope", 1)], Limits(), "no-such-trait"),
        ([put("count", 1, state="T")], Limits(), "no-such-state"),
        ([put("tags.a.b", 1)], Limits(), "no-such-path"),
        ([put("level", -1)], Limits(), "invalid-value"),
        ([put("count", None)], Limits(), "invalid-value"),
        ([Delete(state="S", path=("count",))], Limits(), "invalid-value"),
        ([put("count", 1, if_rev=0)], Limits(), "revision-mismatch"),
    ],
)
def test_g10_a_push_beyond_the_rules_is_refused_whole(ops: list[Op], limits: Limits, expected: str) -> None:
    room = room_with(K1, limits=limits)
    before = dict(held(room))
    effects = room.receive(K1, push(1, inc("count"), *ops) if len(ops) == 1 else push(1, *ops), NOW)
    assert code(effects) == expected
    assert (held(room), room.seq, room.bytes) == (before, 1, bytes_of(room))


def test_a_limit_is_what_still_fits() -> None:
    room = room_with(K1, limits=Limits(push_ops=2, room_bytes=bytes_of(room_with(K1)) + 10))
    assert records(room.receive(K1, push(1, inc("count"), inc("count")), NOW))[0].entry
    assert records(room.receive(K1, push(2, put("title", "x" * 10)), NOW))[0].entry
    assert code(room.receive(K1, push(3, put("tags.a", 1)), NOW)) == "too-large"
    # What takes room away is never too large.
    assert records(room.receive(K1, push(4, put("title", "x" * 9)), NOW))[0].entry


@pytest.mark.parametrize(
    ("path", "op"),
    [
        ("items", lambda value: put("items", value)),
        ("tags.a", lambda value: put("tags.a", value)),
        ("items", lambda value: Append(state="S", path=("items",), items=(*value,))),
        ("items", lambda value: splice("items", value, 1)),
    ],
    ids=["set", "below a key", "append", "splice"],
)
def test_h11_depth_is_checked_here_too(room: Room, path: str, op: Any) -> None:
    fits: Any = []
    for _ in range(31 - path.count(".")):
        fits = [fits]
    assert code(room.receive(K1, push(1, op([fits])), NOW)) == "invalid-value"
    assert records(room.receive(K1, push(2, op(fits)), NOW))[0].entry


def test_a_chain_of_reactions_is_cut_behind_the_last_that_may_be(room: Room) -> None:
    """The refused one counts as decided, and the next write of the same boot is as good as any."""
    most = Limits().reactions
    (record,) = room.receive(K1, push(1, put("count", 1), depth=most), NOW)
    assert isinstance(record, Record)
    effects = room.receive(K1, push(2, put("count", 2), depth=most + 1), NOW)
    assert code(effects) == "reaction-too-deep"
    assert only(effects, Nack).values == {"S": {"count": 1}}
    assert (room.seq, room.states["S"].values["count"]) == (2, 1)
    (record,) = room.receive(K1, push(3, put("count", 3)), NOW)
    assert isinstance(record, Record)


def test_a_member_is_as_old_as_its_coming_to_this_room() -> None:
    """However long its connection was in others: who was here first may be asked to do something for all."""
    room = empty_room()
    room.receive(K1, join(id=1), Now(1.0, 100.0))
    room.receive(K2, join(id=2), Now(2.0, 101.0))
    assert [member.since for member in room.members] == [100.0, 101.0]
    room.disconnect("k1", Now(3.0, 102.0))
    room.receive(K1, join(id=3), Now(4.0, 103.0))
    assert [member.since for member in room.members] == [100.0, 101.0]


def test_who_may_only_read_is_told_so() -> None:
    reader = author("p9", may_write=False)
    room = room_with(K1, reader)
    assert code(room.receive(reader, push(1, inc("count")), NOW)) == "forbidden"


@pytest.mark.parametrize(
    "ops",
    [
        [put("tags." + "k" * 100, 1)],
        [put("tags.a", {"x": "y"}), Delete(state="S", path=("tags", "a"))],
        [put("tags.a", {"x": "y"}), put("tags.a.x", "z" * 50), inc("count", 2**60)],
        [put("items", [1]), Append(state="S", path=("items",), items=("é", b"x"))],
        [Delete(state="S", path=("tags", "gone"))],
        [put("title", "x" * 100), put("title", "")],
    ],
)
def test_the_room_knows_how_many_bytes_it_holds(room: Room, ops: list[Op]) -> None:
    """Found by the simulation: keys were not counted, so a dict of long keys grew without a limit."""
    for n, op in enumerate(ops, 1):
        room.receive(K1, push(n, op), NOW)
        assert room.bytes == bytes_of(room)
    room.receive(K1, push(len(ops) + 1, *ops), NOW)
    assert room.bytes == bytes_of(room) == reloaded(room).bytes


# --- conditions and answers


@pytest.mark.parametrize(
    ("held_", "expected", "fits"),
    [(3, (3,), True), (3, (1, 2.0, 3.0), True), (1, (True,), False), (3, (4,), False), (3, (None,), False)],
)
def test_a_set_may_name_what_it_expects(room: Room, held_: Any, expected: tuple[Any, ...], fits: bool) -> None:
    room.receive(K1, push(1, put("count", held_)), NOW)
    effects = room.receive(K2, push(1, Set(state="S", path=("count",), value=9, if_in=expected)), NOW)
    if not fits:
        assert code(effects) == "value-mismatch"
        assert only(effects, Nack).values == {"S": {"count": held_}}
    else:
        (record,) = records(effects)
        assert record.entry is not None
        # The condition was for the room.
        assert record.entry.ops == (put("count", 9),)
    assert held(room)["count"] == (9 if fits else held_)


def test_a_condition_sees_the_ops_before_it_in_the_push(room: Room) -> None:
    exchange = Set(state="S", path=("count",), value=9, if_in=(1,))
    assert code(room.receive(K1, push(1, exchange), NOW)) == "value-mismatch"
    assert records(room.receive(K1, push(2, inc("count"), exchange), NOW))[0].entry
    assert held(room)["count"] == 9
    # A key that is not there holds nothing.
    key = Set(state="S", path=("tags", "a"), value=1, if_in=(None,))
    assert records(room.receive(K1, push(3, key), NOW))[0].entry
    assert code(room.receive(K1, push(4, key), NOW)) == "value-mismatch"


def test_g9_a_page_learns_nothing_of_a_hidden_trait_by_asking_for_its_value(room: Room) -> None:
    for n, guess in enumerate(("pepper", "salt"), 1):
        guessed = Set(state="S", path=("_salt",), value="x", if_in=(guess,))
        assert code(room.receive(P1, push(n, guessed), NOW)) == "no-such-trait"


@pytest.mark.parametrize(
    ("by", "bounds", "total"),
    [
        (2, {"max": 5}, 5),
        (3, {"max": 5}, None),
        (-3, {"min": 0}, 0),
        (-4, {"min": 0}, None),
        (1, {"min": 4, "max": 4}, 4),
        (-1, {"min": 4}, None),
        (0, {"max": 2}, None),
    ],
)
def test_a_sum_may_name_its_bounds(room: Room, by: float, bounds: dict[str, float], total: int | None) -> None:
    room.receive(K1, push(1, put("count", 3)), NOW)
    effects = room.receive(K2, push(1, Inc(state="S", path=("count",), by=by, **bounds)), NOW)  # type: ignore[arg-type]
    if total is None:
        assert code(effects) == "out-of-bounds"
        assert (held(room)["count"], room.seq) == (3, 2)
    else:
        (record,) = records(effects)
        assert record.entry is not None
        assert record.entry.ops == (Inc(state="S", path=("count",), by=by, value=total),)


def test_nan_is_within_no_bounds(room: Room) -> None:
    room = empty_room()
    room.receive(K1, join(schema={"x": TraitSchema(kind="float")}, values={"x": 0.0}), NOW)
    assert code(room.receive(K1, push(1, Inc(state="S", path=("x",), by=float("nan"), min=0)), NOW)) == "out-of-bounds"


def asks(n: int, *ops: Op) -> Push:
    return Push(room="r", n=n, ops=ops, answer=True)


def test_an_answer_comes_before_what_decides_it_and_only_to_who_asked(room: Room) -> None:
    effects = room.receive(K1, asks(1, inc("count", 2)), NOW)
    answer, record = effects
    assert answer == Send("k1", Applied(room="r", n=1, seq=2, value=2))
    assert isinstance(record, Record)
    assert record.mark is not None
    assert record.mark.applied == (answer.message,)  # type: ignore[union-attr]
    assert not sent(room.receive(K2, push(1, inc("count")), NOW), Applied)
    # Only a number is told; what else there is, the replica shows.
    last = room.receive(K1, asks(2, inc("count"), Append(state="S", path=("items",), items=(1,))), NOW)
    assert only(last, Applied) == Applied(room="r", n=2, seq=4, value=None)
    assert not sent(room.receive(K1, asks(3, put("level", 99)), NOW), Applied)


def test_g4_an_answer_lost_with_its_socket_is_told_again(room: Room) -> None:
    room.receive(K1, asks(1, inc("count", 2)), NOW)
    room.receive(K2, push(1, put("count", 70)), NOW)
    again = room.receive(K1, asks(1, inc("count", 2)), NOW)
    assert [item.message for item in again if isinstance(item, Send)] == [
        Applied(room="r", n=1, seq=2, value=2),
        Entries(room="r", epoch="e1", prev=3, last=3, decided=1),
    ]
    room.receive(K1, push(2, put("level", 99)), NOW)
    assert room.marks["k1"].applied
    back = room.receive(K1, resume(1, lowest=1, highest=2), later(1))
    kinds = [type(item.message) for item in back if isinstance(item, Send)]
    assert kinds[:3] == [Nack, Applied, Entries]
    assert not sent(room.receive(K1, resume(3, lowest=3, highest=2), later(2)), Applied)
    # A room that was loaded again from its store has it, too.
    fresh = reloaded(room)
    assert only(fresh.recovered(fresh.adopt(room, ALL, NOW)), Applied, "k1").value == 2


def test_answers_are_kept_for_as_many_as_may_be_under_way() -> None:
    room = room_with(K1, limits=Limits(in_flight_pushes=3))
    for n in range(1, 6):
        room.receive(K1, asks(n, inc("count")), NOW)
    assert [answer.n for answer in room.marks["k1"].applied] == [3, 4, 5]


# --- revisions


def test_h06_a_stale_splice_is_asked_for_whole_and_nothing_behind_it_overtakes(room: Room) -> None:
    room.receive(K1, push(1, put("title", "abc")), NOW)
    room.receive(K2, push(1, put("title", "xyz")), NOW)
    assert room.receive(K1, push(2, splice("title", "!", 2)), NOW) == [Send("k1", Resend(room="r", n=2))]
    assert room.receive(K1, push(3, put("title", "later")), NOW) == []
    assert room.marks["k1"].n == 1
    room.receive(K1, push(2, put("title", "!abc")), NOW)
    room.receive(K1, push(3, put("title", "later")), NOW)
    assert (held(room)["title"], room.seq) == ("later", 5)


def test_a_splice_on_its_base_is_taken(room: Room) -> None:
    room.receive(K1, push(1, put("title", "abc")), NOW)
    room.receive(K1, push(2, inc("count")), NOW)
    assert records(room.receive(K2, push(1, splice("title", "!", 2)), NOW))[0].entry
    assert held(room)["title"] == "!abc"
    # Twice in one push: the second was not cut from what it meets.
    assert only(room.receive(K2, push(2, put("title", "x"), splice("title", "!", 9)), NOW), Resend).n == 2


def test_a_condition_holds_only_while_nothing_changed(room: Room) -> None:
    room.receive(K1, push(1, put("tags", {"a": 1, "b": 2})), NOW)
    assert records(room.receive(K1, push(2, put("tags.a", 2, if_rev=2)), NOW))[0].entry
    effects = room.receive(K2, push(1, put("tags.a", 3, if_rev=2)), NOW)
    assert code(effects) == "revision-mismatch"
    assert only(effects, Nack).values == {"S": {"tags": {"a": 2, "b": 2}}}
    room.receive(K1, push(3, Delete(state="S", path=("tags", "b"))), NOW)
    assert code(room.receive(K2, push(2, put("tags", {}, if_rev=3)), NOW)) == "revision-mismatch"
    assert records(room.receive(K2, push(3, put("tags.a", 3, if_rev=3)), NOW))[0].entry


def test_h18_a_revision_still_to_come_is_of_a_log_that_was_lost(room: Room) -> None:
    assert only(room.receive(K1, push(1, splice("title", "!", 50)), NOW), Resend).n == 1
    assert code(room.receive(K1, push(1, put("count", 3, if_rev=50)), NOW)) == "revision-mismatch"
    assert records(room.receive(K1, push(2, put("count", 3, if_rev=1)), NOW))[0].entry


def test_h18_a_revision_is_one_of_its_log_and_of_no_other(room: Room) -> None:
    """A log that was lost had the same numbers: one that has caught up with them is not what was read."""

    def cut(n: int, rev: int, epoch: str) -> Push:
        return msgspec.structs.replace(push(n, splice("title", "!", rev)), epoch=epoch)

    def only_if(n: int, rev: int, epoch: str) -> Push:
        return msgspec.structs.replace(push(n, put("title", "x", if_rev=rev)), epoch=epoch)

    room.receive(K1, push(1, put("title", "abc")), NOW)
    room.receive(K1, push(2, inc("count")), NOW)
    assert only(room.receive(K1, cut(3, 2, "lost"), NOW), Resend).n == 3
    assert code(room.receive(K1, only_if(3, 2, "lost"), NOW)) == "revision-mismatch"
    assert records(room.receive(K1, cut(4, 2, "e1"), NOW))[0].entry
    assert records(room.receive(K1, only_if(5, 4, "e1"), NOW))[0].entry
    # Of a log that has ended, what came before its end fits, and nothing behind it.
    fresh = reloaded(room)
    fresh.receive(K1, resume(5), NOW)
    fresh.receive(K1, push(6, inc("count")), NOW)
    assert only(fresh.receive(K1, cut(7, 6, "e1"), NOW), Resend).n == 7
    assert code(fresh.receive(K1, only_if(7, 6, "e1"), NOW)) == "revision-mismatch"
    assert records(fresh.receive(K1, cut(8, 5, "e1"), NOW))[0].entry
    assert records(fresh.receive(K1, only_if(9, 7, "e2"), NOW))[0].entry


def test_after_a_reload_everything_is_as_old_as_the_image(room: Room) -> None:
    room.receive(K1, push(1, put("title", "abc")), NOW)
    room.receive(K1, push(2, inc("count")), NOW)
    fresh = reloaded(room)
    assert fresh.revision("S") == 3
    fresh.recovered(fresh.adopt(room, ALL, NOW))
    assert only(fresh.receive(K1, push(3, splice("title", "!", 2)), NOW), Resend).n == 3
    assert records(fresh.receive(K1, push(3, splice("title", "!", 3)), NOW))[0].entry


# --- G9


def test_g9_an_entry_of_hidden_traits_only_moves_the_cursor_of_a_page(room: Room) -> None:
    (record,) = records(room.receive(K1, push(1, put("_salt", "x")), NOW))
    assert record.public is None
    tail = room.since("frontend", "e1", 1)
    assert tail is not None
    assert (tail.prev, tail.last, tail.entries) == (1, 2, ())
    assert set(room.snapshot("p1", "frontend").states["S"].values) == set(VALUES) - {"_salt"}


def test_g9_for_a_page_a_hidden_trait_is_like_one_that_is_not_there(room: Room) -> None:
    said = []
    for n, name in enumerate(("_salt", "_nope"), 1):
        nack = only(room.receive(P1, push(n, put(name, "x"), put("count", 1)), NOW), Nack)
        assert nack.values == {"S": {"count": 0}}
        said.append(msgspec.json.encode(msgspec.structs.replace(nack, n=1)).decode().replace(name, "?"))
    assert said[0] == said[1]
    assert "_salt" not in said[0]


def test_a_kernel_is_told_the_hidden_value(room: Room) -> None:
    nack = only(room.receive(K1, push(1, put("_salt", 1), put("gone", 1, state="T")), NOW), Nack)
    assert nack.values == {"S": {"_salt": "pepper"}}


# --- joining


def test_h16_only_a_join_with_a_schema_makes_a_state() -> None:
    room = empty_room()
    effects = room.receive(P1, join(), NOW)
    assert only(effects, Snapshot).states == {}
    assert records(effects) == []
    (record, *rest) = room.receive(K1, join(id=7, schema=SCHEMA, values=VALUES), NOW)
    assert isinstance(record, Record)
    assert (record.boot, record.mark) == (None, None)
    assert rest[0] == Attach("k1", "kernel")
    assert only(rest, Snapshot).seq == 1
    assert only(rest, Joined) == Joined(id=7, room="r", seq=1)
    assert held(room) == VALUES


def test_a_join_says_who_came_to_those_who_are_here() -> None:
    room = room_with(K1)
    effects = room.receive(K2, join(), NOW)
    (tell,) = [effect for effect in effects if isinstance(effect, Tell)]
    assert [member.id for member in tell.message.present] == ["m-k2"]
    # Its snapshot says so already.
    assert tell.but == "k2"
    assert [member.id for member in only(effects, Snapshot).members] == ["m-k1", "m-k2"]


def test_a_second_state_needs_no_second_snapshot() -> None:
    room = room_with(K1)
    effects = room.receive(K1, join(id=2, state="T", schema={"x": TraitSchema()}, values={"x": 1}), NOW)
    assert sent(effects, Snapshot) == []
    assert only(effects, Joined).seq == 2
    (tell,) = [effect for effect in effects if isinstance(effect, Tell)]
    assert (tell.message.present[0].states, tell.but) == (("S", "T"), None)
    # Asked again, nothing is new.
    assert told(room.receive(K1, join(id=3, state="T"), NOW)) == []


def test_a_join_without_a_state_enters_the_room() -> None:
    room = room_with(K1)
    assert only(room.receive(K2, join(state=None, schema=SCHEMA), NOW), Snapshot).seq == 1
    assert room.members[1].states == ()


def test_a_newer_class_adds_what_is_missing_by_an_entry() -> None:
    room = room_with(K1)
    room.receive(K1, push(1, put("count", 5)), NOW)
    more = {**SCHEMA, "late": TraitSchema(kind="int")}
    (record,) = records(room.receive(K2, join(schema=more, values={**VALUES, "late": 9, "count": 1}), NOW))
    assert record.entry is not None
    assert held(room)["late"] == 9
    assert held(room)["count"] == 5
    assert room.bytes == bytes_of(room)
    assert records(room.receive(K1, join(schema=more, values={**VALUES, "late": 1}), NOW)) == []


def test_a_class_without_traits_is_a_state() -> None:
    room = empty_room()
    assert records(room.receive(K1, join(schema={}), NOW))
    assert room.states["S"].schema == {}
    assert records(room.receive(K1, join(schema={}), NOW)) == []


@pytest.mark.parametrize(
    ("who", "schema", "values", "expected"),
    [
        (P1, SCHEMA, VALUES, "forbidden"),
        (author("k9", may_write=False), SCHEMA, VALUES, "forbidden"),
        (K1, {"x": TraitSchema(kind="int")}, {}, "invalid-value"),
        (K1, {"x": TraitSchema(kind="int")}, None, "invalid-value"),
        (K1, {"x": TraitSchema(kind="int")}, {"x": "no"}, "invalid-value"),
        (K1, {"x": TraitSchema()}, {"x": "y" * 3000}, "too-large"),
        (K1, {"a": TraitSchema(), "b": TraitSchema()}, {"a": "y" * 900, "b": "y" * 900}, "too-large"),
    ],
)
def test_a_join_that_may_not_make_a_state_makes_nothing(who: Any, schema: Any, values: Any, expected: str) -> None:
    room = empty_room(limits=Limits(op_bytes=1000, room_bytes=1500))
    failure = only(room.receive(who, join(id=3, schema=schema, values=values), NOW), Failure)
    assert (failure.id, failure.problem.code) == (3, expected)
    assert (room.seq, room.states, room.idle) == (0, {}, True)


def test_a_first_value_may_not_be_too_deep() -> None:
    value: Any = 1
    for _ in range(33):
        value = [value]
    effects = empty_room().receive(K1, join(schema={"x": TraitSchema()}, values={"x": value}), NOW)
    assert only(effects, Failure).problem.code == "too-large"


def test_who_may_only_read_joins_what_is_there() -> None:
    room = room_with(K1)
    assert only(room.receive(author("k9", may_write=False), join(schema=SCHEMA, values=VALUES), NOW), Joined).seq == 1


def test_h20_two_kernels_that_disagree_are_told_how_to_agree() -> None:
    room = room_with(K1, K2)
    other = {**SCHEMA, "count": TraitSchema(kind="text")}
    problem = only(room.receive(K2, join(schema=other, values={**VALUES, "count": ""}), NOW), Failure).problem
    assert (problem.code, problem.state, problem.path) == ("schema-conflict", "S", ("count",))
    assert room.seq == 1


def test_h20_a_class_is_replaced_while_nobody_else_lives_in_it() -> None:
    room = room_with(K1, P1)
    other = {**SCHEMA, "count": TraitSchema(kind="text"), "level": TraitSchema(kind="float")}
    (record,) = records(room.receive(K1, join(schema=other, values={**VALUES, "count": "new", "level": 0.5}), NOW))
    assert record.entry is not None
    # What fits is kept, what does not begins anew.
    assert (held(room)["count"], held(room)["level"]) == ("new", 0)
    assert room.bytes == bytes_of(room)


@pytest.mark.parametrize(
    ("newcomer", "accepted"),
    [
        (author("k3", member="m-k1"), True),
        (author("k3", kernel_id="same"), True),
        (author("k3"), False),
        (author("s3"), False),
    ],
    ids=["the same member", "the same kernel", "another kernel", "a script"],
)
def test_h20_one_kernel_is_one_whatever_its_processes(newcomer: Any, accepted: bool) -> None:
    first = author("k1", kernel_id="same") if newcomer.member.kernel_id else K1
    room = room_with(first)
    other = {"count": TraitSchema(kind="text")}
    effects = room.receive(newcomer, join(schema=other, values={"count": ""}), NOW)
    assert bool(sent(effects, Joined)) is accepted


def test_h20_who_is_away_or_in_another_state_does_not_hold_a_class() -> None:
    room = room_with(K1, K2)
    room.receive(author("k3"), join(state="T", schema={}), NOW)
    room.disconnect("k2", NOW)
    other = {**SCHEMA, "count": TraitSchema(kind="text")}
    assert only(room.receive(K1, join(schema=other, values={**VALUES, "count": ""}), NOW), Joined)


def test_g9_who_may_see_a_trait_is_never_replaced() -> None:
    room = room_with(K1)
    public = {**SCHEMA, "_salt": TraitSchema(kind="text")}
    assert only(room.receive(K1, join(schema=public, values=VALUES), NOW), Failure).problem.code == "schema-conflict"


# --- coming back


def test_a_member_that_comes_back_is_told_what_it_missed(room: Room) -> None:
    room.disconnect("k2", NOW)
    room.receive(K1, push(1, inc("count")), NOW)
    effects = room.receive(K2, resume(1), NOW)
    assert effects[0] == Attach("k2", "kernel")
    tail = only(effects, Entries)
    assert (tail.prev, tail.last, len(tail.entries)) == (1, 2, 1)
    # A tail says nothing of members: whoever went meanwhile is known by not being named. The others hear of one member only.
    everyone = only(effects, Members)
    assert (everyone.complete, [member.id for member in everyone.present]) == (True, ["m-k1", "m-k2", "m-p1"])
    assert [[member.id for member in message.present] for message in told(effects)] == [["m-k2"]]


def test_a_gap_on_a_living_connection_is_answered_without_fuss(room: Room) -> None:
    room.receive(K1, push(1, inc("count")), NOW)
    effects = room.receive(K2, resume(1), NOW)
    assert [type(effect) for effect in effects] == [Send]
    assert only(effects, Entries).last == 2


@pytest.mark.parametrize(
    "stands",
    [resume(1, epoch="e0"), resume(9), resume(1, incarnation="i0"), resume(0)],
    ids=["another epoch", "the future", "another room", "before the tail"],
)
def test_who_stands_elsewhere_gets_a_snapshot(stands: Resume) -> None:
    room = reloaded(room_with(K1), epoch="e1")
    room.receive(K1, resume(1), NOW)
    room.receive(K1, push(1, inc("count")), NOW)
    effects = room.receive(K2, stands, NOW)
    snapshot = only(effects, Snapshot, "k2")
    assert snapshot.seq == 2
    assert [tell.present[0].id for tell in told(effects)] == ["m-k2"]


def test_a_snapshot_is_sent_where_it_is_shorter(room: Room) -> None:
    for n in range(1, 30):
        room.receive(K1, push(n, put("title", "x" * 100)), NOW)
    assert isinstance(room.catch_up("k2", "kernel", "i1", "e1", 1), Snapshot)
    answer = room.catch_up("k1", "kernel", "i1", "e1", room.seq - 1)
    assert isinstance(answer, Entries)
    assert answer.decided == 29


def test_the_epochs_are_a_chain(room: Room) -> None:
    room.receive(K1, push(1, inc("count")), NOW)
    second = reloaded(room)
    second.receive(K1, resume(2), NOW)
    second.receive(K1, push(2, inc("count")), NOW)
    assert second.epochs == [("e1", 1), ("e2", 3)]
    tail = second.since("kernel", "e1", 2)
    assert tail is not None
    assert (tail.epoch, tail.prev, tail.last) == ("e2", 2, 3)
    # Beyond its end the first log is another one; before it, the tail is not in memory.
    assert second.since("kernel", "e1", 3) is None
    assert second.since("kernel", "e1", 1) is None
    assert second.since("kernel", "e2", 3) is not None
    third = reloaded(second, epoch="e3")
    assert third.since("kernel", "e2", 3) is not None
    assert third.since("kernel", "e1", 3) is None


def test_the_chain_of_epochs_is_bounded_and_who_comes_from_before_it_gets_a_snapshot(room: Room) -> None:
    for number in range(2, 2 * KEPT_EPOCHS):
        room = reloaded(room, epoch=f"e{number}")
    first, last = KEPT_EPOCHS, 2 * KEPT_EPOCHS - 1
    assert [label for label, _ in room.epochs] == [f"e{number}" for number in range(first, last + 1)]
    assert len(room.image().epochs) == KEPT_EPOCHS
    for epoch, kind in ((f"e{first}", Entries), (f"e{first - 1}", Snapshot)):
        assert only(room.receive(author("k1"), resume(1, epoch=epoch), NOW), kind).epoch == room.epoch
        room.receive(K1, Leave(room="r"), NOW)


@pytest.mark.parametrize(
    ("limits", "seconds", "kept"),
    [
        (Limits(tail_entries=3, tail_seconds=10), 1.0, 10),
        (Limits(tail_entries=3, tail_seconds=5), 3.0, 3),
        (Limits(tail_bytes=0), 0.0, 0),
        (Limits(tail_bytes=350), 0.0, 3),
    ],
)
def test_the_tail_is_bounded(limits: Limits, seconds: float, kept: int) -> None:
    room = room_with(K1, limits=limits)
    for n in range(1, 10):
        room.receive(K1, push(n, inc("count")), later(n * seconds))
    assert room.since("kernel", "e1", room.seq - kept) is not None
    assert room.since("kernel", "e1", room.seq - kept - 1) is None


def test_h05_a_verdict_lost_with_the_socket_comes_before_the_mark(room: Room) -> None:
    room.receive(K1, push(1, put("level", 11)), NOW)
    room.receive(K1, push(2, put("level", 12)), NOW)
    room.disconnect("k1", NOW)
    effects = room.receive(K1, resume(1, lowest=2, highest=2), NOW)
    messages = [effect.message for effect in effects if isinstance(effect, Send)]
    # Who is here comes before what happened: it is never older.
    assert [type(message) for message in messages] == [Nack, Members, Entries]
    assert only(effects, Nack).n == 2
    assert only(effects, Entries).decided == 2


def test_h05_a_join_that_resumes_hears_its_verdicts_too(room: Room) -> None:
    room.receive(K1, push(1, put("level", 11)), NOW)
    room.disconnect("k1", NOW)
    effects = room.receive(K1, join(resume=resume(1, lowest=1, highest=1)), NOW)
    messages = [type(effect.message) for effect in effects if isinstance(effect, Send)]
    assert messages == [Nack, Snapshot, Joined]
    assert only(effects, Snapshot).decided == 1


def test_h08_a_boot_nobody_remembers_is_told_that_nobody_knows(room: Room) -> None:
    room.disconnect("k1", NOW)
    effects = room.receive(K1, resume(1, lowest=3, highest=5), NOW)
    nack = only(effects, Nack)
    assert (nack.n, nack.through, nack.problem.code) == (3, 5, "outcome-unknown")
    (record,) = records(effects)
    assert (record.boot, record.mark) == ("k1", room.marks["k1"])
    assert room.marks["k1"].n == 5
    assert records(room.receive(K1, push(6, inc("count")), NOW))[0].entry


@pytest.mark.parametrize("lost_again", [0, 1, 2])
def test_h08_and_is_told_so_until_it_heard_it(room: Room, lost_again: int) -> None:
    """Found by reading: the second resume after an unknown outcome counted it as done (G4)."""
    for _ in range(lost_again + 1):
        room.disconnect("k1", NOW)
        effects = room.receive(K1, resume(1, lowest=3, highest=5), NOW)
    nack = only(effects, Nack)
    assert (nack.n, nack.through) == (3, 5)
    # A number sent again on this connection gets the same answer.
    for n in (3, 4, 5):
        assert only(room.receive(K1, push(n, inc("count")), NOW), Nack).through == 5
    assert sent(room.receive(K1, push(2, inc("count")), NOW), Nack) == []
    assert held(room)["count"] == 0


def test_h08_in_a_room_made_anew_even_a_first_push_may_be_in(room: Room) -> None:
    """Found by reading: K2's first push was applied, its ack lost, and the room made again from K1's copy, which had it."""
    effects = room.receive(author("k3"), resume(1, incarnation="before", lowest=1, highest=1), NOW)
    assert only(effects, Nack).problem.code == "outcome-unknown"
    # In the room it knows, a first push that nobody heard of is only sent again.
    effects = room.receive(author("k4"), resume(1, lowest=1, highest=1), NOW)
    assert sent(effects, Nack) == []
    assert records(room.receive(author("k4"), push(1, inc("count")), NOW))[0].entry


def test_h08_a_mark_below_what_was_acked_moves_on_and_is_counted(room: Room) -> None:
    room.receive(K1, push(1, inc("count")), NOW)
    room.disconnect("k1", NOW)
    (record,) = records(room.receive(K1, resume(2, lowest=4, highest=4), NOW))
    assert record.mark is not None
    assert (record.mark.n, room.acked_lost) == (3, 2)
    assert records(room.receive(K1, push(4, inc("count")), NOW))[0].entry
    # Nothing open, nothing to say.
    room.disconnect("k1", NOW)
    assert records(room.receive(K1, resume(3, lowest=5, highest=4), NOW)) == []
    assert records(room.receive(author("k9"), resume(3, lowest=5, highest=4), NOW))[0].mark == Mark(n=4, at=NOW.wall)


def test_h18_a_resume_does_not_make_a_room() -> None:
    room = empty_room()
    assert only(room.receive(K1, resume(7), NOW), Failure).problem.code == "no-such-room"
    assert room.idle
    # One that never held anything may wait here.
    assert only(room.receive(P1, resume(0, epoch="", incarnation=""), NOW), Snapshot).seq == 0


def test_a_room_is_made_again_by_a_member_with_its_numbers() -> None:
    room = empty_room()
    effects = room.receive(K1, join(schema=SCHEMA, values=VALUES, resume=resume(50, lowest=8, highest=8)), NOW)
    assert [record.mark.n for record in records(effects) if record.mark] == [7]
    assert (only(effects, Snapshot).decided, room.acked_lost) == (7, 0)
    assert sent(effects, Nack) == []
    assert records(room.receive(K1, push(8, inc("count")), NOW))[0].entry


def test_h08_a_push_from_before_meets_no_copy_that_may_hold_it() -> None:
    """Found by a simulation: the room came back from one boot, a state of it from another, which had seen the push applied."""
    room = empty_room()
    ask = resume(50, lowest=8, highest=9)
    room.receive(K1, join(schema=SCHEMA, values=VALUES, resume=ask), NOW)
    other = {"n": TraitSchema(kind="int")}
    room.receive(K2, join(state="T", schema=other, values={"n": 1}, resume=resume(51, incarnation="i0")), NOW)
    room.receive(K1, join(state="T", schema=other, values={"n": 0}, resume=ask), NOW)
    assert records(room.receive(K1, push(8, inc("count")), NOW))[0].entry
    add = Inc(state="T", path=("n",), by=1)
    assert code(room.receive(K1, push(9, inc("count"), add), NOW)) == "outcome-unknown"
    assert (held(room)["count"], held(room, "T")["n"]) == (1, 1)
    # What is made from here on is like any other; so is all that the other one writes.
    assert records(room.receive(K1, push(10, add), NOW))[0].entry
    assert records(room.receive(K2, push(1, inc("count"), add), NOW))[0].entry


def test_h08_h09_a_push_from_before_is_known_after_a_store_that_failed() -> None:
    room = empty_room()
    room.receive(K1, join(schema=SCHEMA, values=VALUES, resume=resume(50, lowest=8, highest=8)), NOW)
    room.receive(K2, join(state="T", schema={"n": TraitSchema(kind="int")}, values={"n": 1}), NOW)
    fresh = reloaded(room)
    fresh.adopt(room, ALL, NOW)
    assert code(fresh.receive(K1, push(8, Inc(state="T", path=("n",), by=1)), NOW)) == "outcome-unknown"


def test_g3_what_was_sent_before_it_was_let_in_is_asked_for() -> None:
    """Found by reading: the push came with the resume of a room that was not there, and nobody asked for it again."""
    room = empty_room()
    replica = Replica("r")
    replica.receive(room_with(K1).snapshot("k1", "kernel"))
    replica.write([put("count", 1)])
    replica.take(4)
    replica.disconnected()
    for message in (replica.position(["S"]), *replica.take(4)):
        assert only(room.receive(K1, message, NOW), Failure).problem.code == "no-such-room"
    effects = room.receive(K1, join(schema=SCHEMA, values=VALUES, resume=replica.position()), NOW)
    for effect in effects:
        if isinstance(effect, Send) and not isinstance(effect.message, (Joined, Failure, Bye)):
            replica.receive(effect.message)
    (again,) = replica.take(4)
    assert records(room.receive(K1, again, NOW))[0].entry
    assert held(room)["count"] == 1
    # Nothing open, nothing asked for.
    room.disconnect("k1", NOW)
    position = resume(2, lowest=2, highest=1)
    assert sent(room.receive(K1, join(resume=position), NOW), Resend) == []


def test_a_resume_ends_the_waiting_for_a_number(room: Room) -> None:
    room.receive(K1, push(2, inc("count")), NOW)
    assert room.receive(K1, push(2, inc("count")), NOW) == []
    room.receive(K1, resume(1, lowest=1, highest=2), NOW)
    assert only(room.receive(K1, push(2, inc("count")), NOW), Resend).n == 1


# --- a failed append


def test_h09_everyone_is_brought_to_what_the_store_holds(room: Room) -> None:
    image = room.image()
    room.receive(K1, push(1, inc("count")), NOW)
    fresh = empty_room(image=image, epoch="e2")
    effects = fresh.recovered(fresh.adopt(room, ALL, NOW))
    assert [effect.boot for effect in effects if isinstance(effect, Send)] == ["k1", "k1", "k2", "k2", "p1", "p1"]
    snapshot, resend = sent(effects, Snapshot, "k1")[0], sent(effects, Resend, "k1")[0]
    assert (snapshot.seq, snapshot.epoch, snapshot.decided, resend.n) == (1, "e2", 0, 1)
    assert "_salt" not in sent(effects, Snapshot, "p1")[0].states["S"].values
    # What was under way behind the lost push waits for it.
    assert fresh.receive(K1, push(2, inc("count")), NOW) == []
    assert records(fresh.receive(K1, push(1, inc("count")), NOW))[0].entry
    assert [member.id for member in fresh.members] == ["m-k1", "m-k2", "m-p1"]


def test_h09_a_refusal_the_store_took_is_told_before_the_snapshot_that_counts_it(room: Room) -> None:
    room.receive(K1, push(1, put("level", 11)), NOW)
    fresh = reloaded(room)
    effects = fresh.recovered(fresh.adopt(room, ALL, NOW))
    mine = [effect.message for effect in effects if isinstance(effect, Send) and effect.boot == "k1"]
    assert [type(message) for message in mine] == [Nack, Snapshot, Resend]


def test_h08_a_store_that_forgot_a_mark_does_not_stop_its_boot(room: Room) -> None:
    """Found by reading: asked for n = 1, the boot sent n = 3, which was ignored for ever."""
    replica = Replica("r")
    replica.receive(room.snapshot("k1", "kernel"))
    for n in (1, 2):
        replica.write([inc("count")])
        room.receive(K1, replica.take(4)[0], NOW)
        tail = room.since("kernel", "e1", n)
        assert tail is not None
        replica.receive(msgspec.structs.replace(tail, decided=n))
    replica.write([inc("count")])
    replica.take(4)
    fresh = reloaded(room, marks={})
    effects: list[Effect] = fresh.recovered(fresh.adopt(room, ALL, NOW))
    refused: list[str] = []
    for _ in range(3):
        news = [
            replica.receive(effect.message)
            for effect in effects
            if isinstance(effect, Send)
            and effect.boot == "k1"
            and isinstance(effect.message, (Snapshot, Resend, Nack, Entries))
        ]
        refused += [item.problem.code for item in (item for one in news for item in one.refused)]
        out = [*(message for one in news for message in one.send), *replica.take(4)]
        effects = [effect for message in out for effect in fresh.receive(K1, message, NOW)]
    assert (replica.undecided, refused) == (0, ["outcome-unknown"])


# --- presence


def test_a_member_is_away_then_gone(room: Room) -> None:
    room.limits = Limits(away_seconds=10)
    assert room.next_deadline() is None
    effects = room.disconnect("k2", later(5))
    assert effects[0] == Detach("k2")
    (member,) = told(effects)[0].present
    assert (member.id, member.state, member.states) == ("m-k2", "away", ("S",))
    assert room.next_deadline() == later(15).mono
    assert room.tick(later(14.9)) == []
    assert room.tick(later(15)) == [Tell(Members(room="r", gone=("m-k2",)))]
    assert room.next_deadline() is None
    assert [item.id for item in room.members] == ["m-k1", "m-p1"]


def test_a_page_may_be_away_for_longer(room: Room) -> None:
    """It is loaded anew, and comes when the kernel behind it has answered."""
    room.limits = Limits(away_seconds=10, page_away_seconds=60)
    room.disconnect("k2", NOW)
    room.disconnect("p1", NOW)
    assert room.tick(later(59.9)) == [Tell(Members(room="r", gone=("m-k2",)))]
    assert room.tick(later(60)) == [Tell(Members(room="r", gone=("m-p1",)))]


def test_the_time_of_a_member_runs_from_when_it_went_and_not_from_when_that_was_noticed(room: Room) -> None:
    room.limits = Limits(away_seconds=10)
    room.disconnect("k2", later(5.9), later(5).mono)
    assert room.next_deadline() == later(15).mono


def test_a_member_that_comes_back_in_time_stays(room: Room) -> None:
    room.disconnect("k2", NOW)
    room.receive(K2, resume(1), later(5))
    assert room.next_deadline() is None
    assert room.tick(later(100)) == []
    assert room.members[1].state == "live"


def test_h07_two_boots_are_one_member_with_numbers_of_their_own() -> None:
    one, two = author("p1", member="tab"), author("p2", member="tab")
    room = room_with(K1, one, two)
    assert [member.id for member in room.members] == ["m-k1", "tab"]
    for who in (one, two):
        assert records(room.receive(who, push(1, inc("count")), NOW))[0].entry
    assert held(room)["count"] == 2
    # The member is here as long as one of them is.
    assert room.disconnect("p1", NOW) == [Detach("p1")]
    assert room.members[1].state == "live"
    assert told(room.disconnect("p2", NOW))[0].present[0].state == "away"


def test_the_states_of_a_member_are_those_of_its_boots() -> None:
    """Found by reading: what a boot took with it was not told while another stayed."""
    one, two = author("p1", member="tab"), author("p2", member="tab")
    room = room_with(K1, one)
    room.receive(two, join(state="T"), NOW)
    assert room.members[1].states == ("S", "T")
    effects = room.disconnect("p2", NOW)
    assert told(effects)[0].present[0].states == ("S",)


def test_a_stranger_that_disconnects_is_no_news(room: Room) -> None:
    assert room.disconnect("nobody", NOW) == []
    room.disconnect("k1", NOW)
    assert room.disconnect("k1", NOW) == []


def test_leaving_one_state_and_then_the_room(room: Room) -> None:
    effects = room.receive(K2, Leave(room="r", state="S"), NOW)
    assert told(effects)[0].present[0].states == ()
    assert room.receive(K2, Leave(room="r"), NOW) == [Detach("k2"), Tell(Members(room="r", gone=("m-k2",)))]
    assert room.receive(K2, Leave(room="r"), NOW) == []
    assert room.receive(author("k9", member="m-k1"), Leave(room="r"), NOW) == []
    assert only(room.receive(K2, push(1, inc("count")), NOW), Failure)


def test_h07_one_boot_leaves_and_the_other_stays() -> None:
    one, two = author("p1", member="tab"), author("p2", member="tab")
    room = room_with(K1, one, two)
    detach, tell = room.receive(one, Leave(room="r"), NOW)
    assert detach == Detach("p1")
    assert isinstance(tell, Tell)
    assert [member.id for member in tell.message.present] == ["tab"]
    assert records(room.receive(two, push(1, inc("count")), NOW))[0].entry


def test_a_room_is_idle_when_the_last_member_is_gone(room: Room) -> None:
    for who in (K1, K2):
        room.receive(who, Leave(room="r"), NOW)
    room.disconnect("p1", NOW)
    assert not room.idle
    room.tick(later(1000))
    assert room.idle


def test_h18_a_deleted_room_tells_everyone_and_lets_them_go(room: Room) -> None:
    effects = room.delete()
    assert [effect.boot for effect in effects if isinstance(effect, Detach)] == ["k1", "k2", "p1"]
    byes = sent(effects, Bye)
    told = {(bye.room, bye.incarnation, bye.problem.code, bye.retry_after) for bye in byes}
    assert told == {("r", "i1", "room-gone", None)}
    assert room.idle
    assert only(room.receive(K1, push(1, inc("count")), NOW), Failure).problem.code == "no-such-room"


@pytest.mark.parametrize("made_again", [False, True])
def test_h18_who_comes_back_to_a_deleted_room_hears_so_and_makes_nothing(made_again: bool) -> None:
    room = Room("r", incarnation="i2", epoch="e2", limits=Limits(), buried={("r", "i1")})
    if made_again:
        room.receive(K2, join(schema=SCHEMA, values=VALUES), NOW)
    before = (room.seq, room.members)
    (effect,) = room.receive(K1, resume(7, lowest=3, highest=4), NOW)
    bye = only([effect], Bye, "k1")
    assert (bye.room, bye.incarnation, bye.problem.code) == ("r", "i1", "room-gone")
    effects = room.receive(K1, join(id=9, schema=SCHEMA, values=VALUES, resume=resume(7)), NOW)
    failure = only(effects, Failure, "k1")
    assert [effect.message for effect in effects if isinstance(effect, Send)] == [bye, failure]
    assert (failure.id, failure.problem.code) == (9, "room-gone")
    assert ((room.seq, room.members), room.marks) == (before, {})
    # A new link makes one, or joins it.
    assert only(room.receive(K1, join(id=10, schema=SCHEMA, values=VALUES), NOW), Snapshot).incarnation == "i2"


def test_h18_with_a_room_goes_the_one_it_was_made_again_from() -> None:
    room = empty_room()
    room.receive(K1, join(schema=SCHEMA, values=VALUES, resume=resume(50, incarnation="i0")), NOW)
    room.receive(K2, resume(50, incarnation="made up"), NOW)
    assert room.names == (("r", "i1"), ("r", "i0"))
    fresh = reloaded(room)
    fresh.adopt(room, ALL, NOW)
    assert fresh.names == room.names


# --- marks and time


def test_marks_nobody_came_back_to_are_forgotten() -> None:
    room = room_with(K1, K2, limits=Limits(mark_seconds=100))
    for who in (K1, K2):
        room.receive(who, push(1, inc("count")), NOW)
    room.disconnect("k1", NOW)
    room.tick(later(100))
    assert set(room.marks) == {"k1", "k2"}
    room.tick(later(101))
    # Who is here is not forgotten, however silent.
    assert set(room.marks) == {"k2"}


def test_the_time_of_a_mark_runs_from_when_its_boot_went() -> None:
    """Found by reading: who was here in silence for a week was forgotten as soon as its socket broke."""
    room = room_with(K1, limits=Limits(mark_seconds=100))
    room.receive(K1, push(1, inc("count")), NOW)
    room.disconnect("k1", later(500))
    room.tick(later(520))
    assert room.marks["k1"].n == 1
    room.tick(later(601))
    assert room.marks == {}


def test_too_many_marks_are_forgotten_from_the_oldest() -> None:
    marks = {f"b{number}": Mark(n=1, at=NOW.wall - number) for number in range(KEPT_MARKS + 3)}
    room = reloaded(room_with(K1), marks=marks)
    room.tick(NOW)
    assert set(marks) - set(room.marks) == {f"b{KEPT_MARKS + number}" for number in range(3)}


def test_an_image_is_the_room(room: Room) -> None:
    room.receive(K1, push(1, put("tags.a", 1)), NOW)
    fresh = reloaded(room)
    assert (fresh.seq, fresh.states, fresh.marks, fresh.incarnation) == (2, room.states, room.marks, "i1")
    assert fresh.epoch == "e2"
    assert fresh.image() == msgspec.structs.replace(room.image(), epochs=(("e1", 1), ("e2", 3)))


# --- requests from outside


def request(room: Room, *ops: Op, who: Any = K1, base: Revision | None = None) -> tuple[list[Record], int | SharedWidgetsError]:
    effects = room.request(5, who, ops, base, NOW)
    (answer,) = [effect for effect in effects if isinstance(effect, Answer)]
    assert answer.ticket == 5
    assert effects[-1] is answer
    return records(effects), answer.outcome


def test_a_request_is_one_entry_and_moves_no_mark(room: Room) -> None:
    (record,), outcome = request(room, put("count", 1), put("title", "x"))
    assert outcome == 2
    assert (record.boot, record.mark, room.marks) == (None, None, {})
    assert (held(room)["count"], held(room)["title"]) == (1, "x")


@pytest.mark.parametrize(
    ("ops", "who", "kind"),
    [
        ([put("level", 11)], K1, InvalidValue),
        ([put("_salt", "x")], P1, NoSuchTrait),
        ([splice("title", "x", 0)], K1, InvalidValue),
        ([put("count", 1), put("count", 2, if_rev=0)], K1, RevisionMismatch),
    ],
)
def test_a_request_is_refused_whole(room: Room, ops: list[Op], who: Any, kind: type[SharedWidgetsError]) -> None:
    recorded, outcome = request(room, *ops, who=who)
    assert isinstance(outcome, kind)
    assert (recorded, room.seq) == ([], 1)


def test_a_request_may_depend_on_the_state_it_read(room: Room) -> None:
    room.receive(K1, join(state="T", schema={"x": TraitSchema()}, values={"x": 1}), NOW)
    assert request(room, put("count", 1), base=Revision("e1", 1))[1] == 3
    outcome = request(room, put("count", 2), base=Revision("e1", 2))[1]
    assert isinstance(outcome, RevisionMismatch)
    assert (outcome.room, outcome.expected) == ("r", "seq 3")
    assert request(room, put("x", 2, state="T"), base=Revision("e1", 2))[1] == 4


def test_h18_a_request_that_read_another_log_is_refused(room: Room) -> None:
    for base in (Revision("e0", 9), Revision("e2", 1)):
        outcome = request(room, put("count", 1), base=base)[1]
        assert isinstance(outcome, RevisionMismatch)
        assert (outcome.room, room.seq) == ("r", 1)


def test_a_push_can_be_refused_from_outside_when_it_is_its_turn(room: Room) -> None:
    error = SharedWidgetsError("the server failed on this")
    assert room.refuse(K1, push(2, inc("count")), error, NOW) == []
    nack = only(room.refuse(K1, push(1, inc("count")), error, NOW), Nack)
    assert (nack.n, nack.problem.code, room.marks["k1"].n) == (1, "internal", 1)
    assert room.refuse(K1, push(1, inc("count")), error, NOW) == []


def test_an_error_as_it_travels() -> None:
    wire = problem(InvalidValue("no", state="S", path=("a", "b"), expected="int"))
    assert (wire.code, wire.message, wire.state, wire.path, wire.expected) == ("invalid-value", "no", "S", ("a", "b"), "int")
    assert problem(InvalidValue("no", trait="a")).path == ("a",)
    assert problem(InvalidValue("no")).path == ()


def test_time_is_given() -> None:
    room = empty_room()
    (record,) = records(room.receive(K1, join(schema=SCHEMA, values=VALUES), Now(mono=1.0, wall=77.0)))
    assert record.entry is not None
    assert record.entry.at == 77.0


# --- what is known of processes


def test_h27_a_member_whose_process_lives_is_unresponsive_not_gone(room: Room) -> None:
    room.limits = Limits(away_seconds=10)
    room.disconnect("k2", later(5))
    assert room.process("k2", alive=True, now=NOW) == []
    assert room.tick(later(14.9)) == []
    (tell,) = room.tick(later(15))
    assert [(item.id, item.state) for item in tell.message.present] == [("m-k2", "unresponsive")]
    assert tell.message.gone == ()
    assert room.next_deadline() is None
    assert not room.idle
    # It comes back, and everything known of it is forgotten.
    room.receive(author("k2"), Resume(room="r", incarnation=room.incarnation, epoch=room.epoch, seq=room.seq), later(99))
    room.disconnect("k2", later(100))
    assert [item.state for item in room.members if item.id == "m-k2"] == ["away"]
    assert told(room.tick(later(110)))[0].gone == ("m-k2",)


@pytest.mark.parametrize("unresponsive", [False, True])
def test_a_member_whose_process_is_dead_is_gone_at_once(room: Room, unresponsive: bool) -> None:
    room.disconnect("k2", later(5))
    if unresponsive:
        room.process("k2", alive=True, now=NOW)
        room.tick(later(1000))
    assert room.process("k2", alive=False, now=NOW) == [Tell(Members(room="r", gone=("m-k2",)))]
    assert room.process("k2", alive=False, now=NOW) == []
    assert [item.id for item in room.members] == ["m-k1", "m-p1"]
    assert room.next_deadline() is None


def test_h07_a_boot_that_lives_and_speaks_elsewhere_is_gone_here_in_time(room: Room) -> None:
    """Its goodbye was never said, and that its process lives would keep it, and what it waits for, for good."""
    room.limits = Limits(away_seconds=10)
    room.receive(K1, acquire("p", lease=600.0), NOW)
    room.receive(K2, acquire(lease=600.0), NOW)
    room.disconnect("k2", later(5))
    room.process("k2", alive=True, now=later(5))
    room.tick(later(15))
    assert [item.state for item in room.members if item.id == "m-k2"] == ["unresponsive"]
    (tell,) = told(room.elsewhere("k2", later(20)))
    assert [(item.id, item.state) for item in tell.present] == [("m-k2", "away")]
    assert room.elsewhere("k1", later(20)) == []
    assert room.next_deadline() == later(30).mono
    effects = room.tick(later(30))
    assert waiting(effects) == [()]
    assert [tell.gone for tell in told(effects) if isinstance(tell, Members)] == [("m-k2",)]


def test_h25_a_member_that_came_back_during_the_look_stays(room: Room) -> None:
    room.disconnect("k2", later(5))
    room.receive(author("k2"), Resume(room="r", incarnation=room.incarnation, epoch=room.epoch, seq=room.seq), later(6))
    assert room.process("k2", alive=False, now=NOW) == []
    assert "m-k2" in [item.id for item in room.members]


# --- bounds a hostile or careless client meets


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "schema",
    [
        {"x": TraitSchema(choices=(deep(40),))},
        {"x": TraitSchema(default=deep(40))},
        {"x": TraitSchema(choices=tuple("y" * 1000 for _ in range(2000)))},
        {"x": TraitSchema(kind="text", default="y" * 2_000_000)},
        {"x" * 300: TraitSchema()},
    ],
    ids=["deep choices", "deep default", "wide choices", "long default", "long name"],
)
def test_a_schema_no_reader_could_take_is_refused(room: Room, schema: Any) -> None:
    """What is too deep for the door would end the connection of every member, and again after each reconnect."""
    (failure,) = room.receive(K1, join(state="T", schema=schema, values={"x": None}), NOW)
    assert isinstance(failure, Send)
    assert only([failure], Failure).problem.code in ("too-large", "invalid-value")
    assert len(only([failure], Failure).problem.message) < 300
    assert "T" not in room.states
    assert room.seq == 1


def test_schemas_count_among_the_bytes_of_a_room() -> None:
    room = room_with(K1)
    room.limits = Limits(room_bytes=room.bytes + 5000)
    schema = {"x": TraitSchema(nullable=True, choices=tuple("y" * 1000 for _ in range(10)))}
    assert only(room.receive(K1, join(state="T", schema=schema, values={"x": None}), NOW), Failure).problem.code == "too-large"
    small = {"x": TraitSchema(nullable=True, choices=("y",))}
    room.receive(K1, join(state="T", schema=small, values={"x": None}), NOW)
    assert room.bytes == bytes_of(room) == reloaded(room).bytes


def test_one_boot_links_so_many_states_and_no_more(room: Room) -> None:
    for number in range(200):
        last = room.receive(K1, join(state=f"state {number}", schema=None, values=None), NOW)
    assert only(last, Failure).problem.code == "too-large"
    (member,) = [item for item in room.members if item.id == "m-k1"]
    assert len(member.states) == 128


def test_leaving_what_was_never_linked_is_no_news(room: Room) -> None:
    assert room.receive(K1, Leave(room="r", state="nothing"), NOW) == []


def test_a_redefinition_weighs_in_the_tail(room: Room) -> None:
    """Otherwise the tail grows without a bound, and a tail is sent where a snapshot is shorter."""
    room.limits = Limits(tail_bytes=50_000)
    for number in range(20):
        kind = {"x": TraitSchema(kind="text" if number % 2 else "any", default="y" * 10_000)}
        room.receive(K1, join(state="T", schema=kind, values={"x": "y" * 10_000}), NOW)
    assert len(room._tail) < 5


def test_a_refusal_is_kept_without_what_its_author_sent(room: Room) -> None:
    name = "x" * 100_000
    assert code(room.receive(K1, push(1, put("tags", {"a": 1}), Set(state="S", path=(name,), value=1)), NOW)) == "invalid-value"
    assert code(room.receive(K1, push(2, Set(state="y" * 256, path=("z",), value=1)), NOW)) == "no-such-state"
    assert sum(len(str(nack)) for nack in room.marks["k1"].refused) < 3000


def test_as_many_refusals_are_kept_as_may_be_under_way() -> None:
    """G4: of each its author must hear, also after its socket died."""
    room = empty_room(limits=Limits(in_flight_pushes=150))
    room.receive(K1, join(schema=SCHEMA, values=VALUES), NOW)
    for n in range(1, 151):
        assert code(room.receive(K1, push(n, put("level", 99)), NOW)) == "invalid-value"
    room.disconnect("k1", NOW)
    back = room.receive(K1, resume(1, highest=150), NOW)
    assert [nack.n for nack in sent(back, Nack)] == list(range(1, 151))


def test_h15_a_page_is_not_told_of_a_kernel_only_change_by_its_condition(room: Room) -> None:
    room.receive(K1, push(1, put("_salt", "new")), NOW)
    page = room.request(7, P1, [put("count", 1)], Revision("e1", 1), NOW)
    assert page[-1] == Answer(7, 3)
    kernel = room.request(8, K1, [put("count", 2)], Revision("e1", 1), NOW)
    assert isinstance(kernel[-1], Answer)
    assert isinstance(kernel[-1].outcome, RevisionMismatch)


def test_a_push_of_many_appends_copies_the_list_once(room: Room) -> None:
    """500 small ops on a list of 28 MiB held the server up for minutes."""
    room.receive(K1, join(state="T", schema={"items": TraitSchema(kind="list", default=[])}, values={}), NOW)
    copies = 0

    class Counted(list[Any]):
        def __iter__(self) -> Any:
            nonlocal copies
            copies += 1
            return super().__iter__()

    room.states["T"].values["items"] = Counted(range(1000))
    before = room.states["T"].values["items"]
    copies = 0
    ops = [Append(state="T", path=("items",), items=(number,)) for number in range(100)]
    (record,) = records(room.receive(K1, push(1, *ops), NOW))
    assert record.entry is not None
    assert len(record.entry.ops) == 100
    # Once to decide and once to make it so.
    assert copies == 2
    assert len(before) == 1000  # type: ignore[arg-type]
    assert room.states["T"].values["items"] == [*range(1000), *range(100)]


def test_what_was_handed_out_is_never_changed_in_place(room: Room) -> None:
    room.receive(K1, push(1, put("tags", {"a": {"b": [1]}})), NOW)
    image = room.snapshot("k2", "kernel").states["S"].values["tags"]
    room.receive(K1, push(2, put("tags.a.c", 1), put("tags.a.d", 2), Delete(state="S", path=("tags", "a", "c"))), NOW)
    assert image == {"a": {"b": [1]}}
    assert held(room)["tags"] == {"a": {"b": [1], "d": 2}}


# --- locks

LOCK = LockName(kind="state", name="S")
FIT = LockName(kind="named", name="fit")


def acquire(owner: str = "o", *, lease: float = 10.0, lock: LockName = LOCK, number: int = 1, wait: bool = True) -> Acquire:
    return Acquire(id=number, room="r", lock=lock, owner=owner, lease=lease, label=f"kernel {owner}", wait=wait)


def release(fence: int, owner: str = "o") -> Release:
    return Release(room="r", lock=LOCK, owner=owner, fence=fence)


def under(n: int, fence: int, *ops: Op) -> Push:
    return Push(room="r", n=n, ops=ops, fences={"S": fence})


def waiting(effects: Sequence[Effect]) -> list[tuple[str, ...]]:
    """Who everyone is told to wait for the lock of the state."""
    said = [effect.message for effect in effects if isinstance(effect, Tell)]
    return [message.waiters for message in said if isinstance(message, Waiting) and message.lock == LOCK]


def entry_ops(effects: Sequence[Effect]) -> list[Any]:
    return [op for record in records(effects) if record.entry is not None for op in record.entry.ops]


def test_g6_a_grant_is_an_entry_and_its_fence_the_seq(room: Room) -> None:
    effects = room.receive(K1, acquire(), NOW)
    (granted,) = entry_ops(effects)
    assert (granted, room.seq) == (Granted(lock=LOCK, member="m-k1", owner="o", label="kernel o", lease=10.0), 2)
    assert records(effects)[0].public == records(effects)[0].entry
    assert [(image.lock, image.fence, image.owner) for image in room.snapshot("k2", "kernel").locks] == [(LOCK, 2, "o")]


def test_h22_what_another_thread_of_the_holders_process_writes_is_a_strangers(room: Room) -> None:
    """It comes from the same boot; the fence alone says whose it is."""
    room.receive(K1, acquire("thread 2"), NOW)
    refused = only(room.receive(K1, push(1, put("count", 1)), NOW), Nack).problem
    assert (refused.code, room.seq) == ("locked", 2)
    (record,) = records(room.receive(K1, under(2, 2, inc("count")), NOW))
    assert record.entry is not None
    assert (record.entry.ops[0].value, held(room)["count"]) == (1, 1)  # type: ignore[union-attr]
    # Nor does it end, or keep, what is not its own.
    for word in (release(2, "main"), Renew(room="r", lock=LOCK, owner="main", fence=2)):
        assert entry_ops(room.receive(K1, word, later(1))) == []
    assert [(image.fence, image.owner) for image in room.held_locks] == [(2, "thread 2")]


def test_a_locked_state_is_written_by_its_holder_alone(room: Room) -> None:
    room.receive(K1, acquire(), NOW)
    assert code(room.receive(K2, push(1, put("count", 1)), NOW)) == "locked"
    assert code(room.receive(K2, under(2, 2, put("count", 1)), NOW)) == "lock-lost"
    # Another thread of the process that holds it brings no fence (H22).
    assert code(room.receive(K1, push(1, put("count", 1)), NOW)) == "locked"
    assert records(room.receive(K1, under(2, 2, put("count", 2)), NOW))[0].entry
    (answer,) = [effect for effect in room.request(7, P1, [put("count", 3)], None, NOW) if isinstance(effect, Answer)]
    assert isinstance(answer.outcome, Locked)
    assert "kernel o" in str(answer.outcome)
    (answer,) = [effect for effect in room.reset(8, P1, ["S"], NOW) if isinstance(effect, Answer)]
    assert isinstance(answer.outcome, Locked)
    assert held(room)["count"] == 2


def test_a_state_that_is_none_of_a_users_is_neither_locked_nor_reset_with_all(room: Room) -> None:
    """It says who runs a reaction, and how far that one got: all would be kept from it, or would do it again."""
    beside = "S@lead@reacts"
    schema = {"leader": TraitSchema(kind="text", kernel_only=True, default="")}
    room.receive(K1, join(state=beside, schema=schema), NOW)
    room.receive(K1, push(1, put("leader", "m-k1", state=beside), put("count", 1)), NOW)
    for who in (K1, P1):
        effects = room.receive(who, acquire(lock=LockName(kind="state", name=beside)), NOW)
        assert only(effects, Failure).problem.code == "no-such-state"
    room.reset(8, K1, [], NOW)
    assert (held(room)["count"], held(room, beside)) == (0, {"leader": "m-k1"})
    (answer,) = [effect for effect in room.reset(9, K1, ["T"], NOW) if isinstance(effect, Answer)]
    assert str(answer.outcome) == "there is no state 'T' here; there is S"
    # By its name it is reset like any other.
    room.reset(10, K1, [beside], NOW)
    assert held(room, beside) == {"leader": ""}


def test_g10_a_transaction_is_refused_whole_if_one_state_in_it_is_locked(room: Room) -> None:
    room.receive(K1, join(state="T", schema={"n": TraitSchema(kind="int", default=0)}, values={}), NOW)
    room.receive(K1, acquire(), NOW)
    assert code(room.receive(K2, push(1, put("n", 1, state="T"), put("count", 1)), NOW)) == "locked"
    assert held(room, "T") == {"n": 0}
    assert records(room.receive(K2, push(2, put("n", 1, state="T")), NOW))


def test_g7_an_expired_lease_is_over_before_the_write_that_comes_with_it(room: Room) -> None:
    room.receive(K1, acquire(lease=5.0), NOW)
    effects = room.receive(K1, under(1, 2, put("count", 1)), later(5))
    assert entry_ops(effects) == [Freed(lock=LOCK, fence=2, reason="expired")]
    assert code(effects) == "lock-lost"
    assert records(effects)[0].entry.by.kind == "server"  # type: ignore[union-attr]
    assert entry_ops(room.receive(K1, Renew(room="r", lock=LOCK, owner="o", fence=2), later(6))) == []
    assert room.snapshot("k2", "kernel").locks == ()
    assert records(room.receive(K2, push(1, put("count", 3)), later(6)))


def test_an_expiry_needs_nobody_to_speak(room: Room) -> None:
    room.receive(K1, acquire(lease=5.0), NOW)
    room.receive(K1, Renew(room="r", lock=LOCK, owner="o", fence=2), later(4))
    room.receive(K2, acquire("p"), later(4))
    assert room.next_deadline() == later(9).mono
    assert room.tick(later(8.9)) == []
    assert entry_ops(room.tick(later(9))) == [
        Freed(lock=LOCK, fence=2, reason="expired"),
        Granted(lock=LOCK, member="m-k2", owner="p", label="kernel p", lease=10.0),
    ]


def test_who_waits_is_told_to_all_and_granted_in_turn(room: Room) -> None:
    room.receive(K1, acquire(), NOW)
    (tell,) = told(room.receive(K2, acquire("p"), NOW))
    assert tell == Waiting(room="r", lock=LOCK, waiters=("m-k2",))  # type: ignore[comparison-overlap]
    assert entry_ops(room.receive(K1, release(2), NOW)) == [
        Freed(lock=LOCK, fence=2, reason="released"),
        Granted(lock=LOCK, member="m-k2", owner="p", label="kernel p", lease=10.0),
    ]


@pytest.mark.parametrize("how", ["process", "leave", "away"])
def test_what_a_member_held_is_free_when_it_is_gone(room: Room, how: str) -> None:
    room.limits = Limits(away_seconds=10)
    room.receive(K1, acquire(lease=600.0), NOW)
    assert code(room.receive(K2, push(1, put("count", 1)), NOW)) == "locked"
    if how == "leave":
        effects = room.receive(K1, Leave(room="r"), NOW)
    else:
        room.disconnect("k1", NOW)
        assert code(room.receive(K2, push(2, put("count", 1)), NOW)) == "locked"
        effects = room.process("k1", alive=False, now=NOW) if how == "process" else room.tick(later(10))
    assert entry_ops(effects) == [Freed(lock=LOCK, fence=2, reason="gone")]
    assert records(room.receive(K2, push(room.marks["k2"].n + 1, put("count", 1)), later(10)))[0].entry


@pytest.mark.parametrize("how", ["process", "away", "join"])
def test_h07_a_boot_that_is_gone_takes_its_claims_with_it_though_another_of_its_member_lives(room: Room, how: str) -> None:
    room.limits = Limits(away_seconds=10)
    other = author("k3", member="m-k1")
    room.receive(other, join(), NOW)
    room.receive(K2, acquire("p", lease=600.0), NOW)
    room.receive(K1, acquire(lease=600.0), NOW)
    room.receive(K1, acquire("fit", lock=FIT, lease=600.0), NOW)
    # Its goodbye was lost with its socket; a boot of the same member stays, and one that is passed over keeps its place.
    room.disconnect("k1", NOW)
    assert room.locks.waiters(LOCK) != ()
    match how:
        case "process":
            effects = room.process("k1", alive=False, now=NOW)
        case "away":
            assert room.next_deadline() == later(10).mono
            assert room.tick(later(9.9)) == []
            effects = room.tick(later(10))
        case _:
            # It comes again as one that has nothing of the room: it left.
            effects = room.receive(K1, join(), NOW)
            assert only(effects, Snapshot).locks == room.held_locks
    assert waiting(effects) == [()]
    assert entry_ops(effects) == [Freed(lock=FIT, fence=3, reason="gone")]
    assert room.locks.waiters(LOCK) == ()
    assert [item.state for item in room.members if item.id == "m-k1"] == ["live"]
    assert room.next_deadline() == later(600).mono


def test_h27_a_boot_that_waits_and_lives_keeps_its_place(room: Room) -> None:
    room.limits = Limits(away_seconds=10)
    room.receive(author("k3", member="m-k1"), join(), NOW)
    room.receive(K2, acquire("p", lease=600.0), NOW)
    room.receive(K1, acquire(lease=600.0), NOW)
    room.disconnect("k1", NOW)
    room.process("k1", alive=True, now=NOW)
    assert room.tick(later(11)) == []
    assert [claim.owner for claim in room.locks.waiters(LOCK)] == ["o"]
    assert waiting(room.process("k1", alive=False, now=later(12))) == [()]


@pytest.mark.parametrize("how", ["connected", "lost as well"])
def test_h25_the_end_of_an_older_boot_leaves_the_lock_of_a_newer_one(room: Room, how: str) -> None:
    """A kernel that was restarted has the same id, and may be back before the death of its old process is noticed."""
    newer = author("k3", member="m-k1")
    room.receive(newer, join(), NOW)
    room.receive(K1, acquire("fit", lock=FIT, lease=600.0), NOW)
    room.receive(newer, acquire(lease=600.0), NOW)
    fence = room.seq
    room.disconnect("k1", NOW)
    if how == "lost as well":
        room.disconnect("k3", NOW)
    assert entry_ops(room.process("k1", alive=False, now=NOW)) == [Freed(lock=FIT, fence=2, reason="gone")]
    assert [(image.lock, image.fence, image.owner) for image in room.held_locks] == [(LOCK, fence, "o")]
    assert [item.state for item in room.members if item.id == "m-k1"] == ["live" if how == "connected" else "away"]
    if how == "lost as well":
        # What is known of the one is not known of the other: it comes back, and holds what it held.
        back = Resume(room="r", incarnation=room.incarnation, epoch=room.epoch, seq=room.seq)
        room.receive(newer, back, NOW)
    assert entry_ops(room.receive(newer, under(1, fence, put("count", 7)), NOW))[0].value == 7
    assert code(room.receive(K2, push(1, put("count", 1)), NOW)) == "locked"


@pytest.mark.parametrize("how", ["process", "leave", "away"])
def test_h09_an_end_that_the_store_did_not_take_frees_what_was_held(room: Room, how: str) -> None:
    def end(room: Room) -> list[Effect]:
        if how == "leave":
            return room.receive(K1, Leave(room="r"), later(20))
        return room.process("k1", alive=False, now=later(20)) if how == "process" else room.tick(later(20))

    room.receive(K1, acquire(lease=600.0), NOW)
    image = room.image()
    if how != "leave":
        room.disconnect("k1", NOW)
    freed = Freed(lock=LOCK, fence=2, reason="gone")
    for _ in range(3):
        assert entry_ops(end(room)) == [freed]
        # The store fails, and it is decided once more.
        fresh = empty_room(image=image, epoch="e2")
        fresh.recovered(fresh.adopt(room, ALL, later(20)))
        room = fresh
    assert entry_ops(room.receive(K2, Leave(room="r", state="S"), later(20))) == [freed]
    assert entry_ops(end(room)) == []


def test_h26_a_lock_outlives_a_reload_and_its_lease_starts_anew(room: Room) -> None:
    room.receive(K1, acquire(lease=5.0), NOW)
    image = room.image()
    fresh = Room("r", incarnation="i1", epoch="e2", limits=room.limits, image=image, now=later(1000).mono)
    fresh.receive(K1, resume(2), later(1000))
    assert entry_ops(fresh.tick(later(1004))) == []
    assert records(fresh.receive(K1, under(1, 2, put("count", 1)), later(1004)))
    assert entry_ops(fresh.tick(later(1005))) == [Freed(lock=LOCK, fence=2, reason="expired")]


def test_who_may_not_write_may_not_lock(room: Room) -> None:
    reader = author("k9", may_write=False)
    room.receive(reader, join(state=None), NOW)
    (failure,) = room.receive(reader, acquire(number=5), NOW)
    assert isinstance(failure, Send)
    assert (only([failure], Failure).problem.code, only([failure], Failure).id) == ("forbidden", 5)
    (failure,) = room.receive(K1, acquire(lock=LockName(kind="state", name="X")), NOW)
    assert only([failure], Failure).problem.code == "no-such-state"
    assert only(room.receive(author("k8"), acquire(), NOW), Failure).problem.code == "no-such-room"


@pytest.mark.parametrize("lock", [LOCK, FIT])
def test_who_does_not_wait_has_it_now_or_hears_that_it_is_taken(room: Room, lock: LockName) -> None:
    assert [type(op) for op in entry_ops(room.receive(K1, acquire(lock=lock, wait=False), NOW))] == [Granted]
    (refused,) = room.receive(K2, acquire("p", lock=lock, number=7, wait=False), NOW)
    failure = only([refused], Failure, "k2")
    assert (failure.id, failure.problem.code) == (7, "lock-timeout")
    assert "kernel o holds it" in failure.problem.message
    assert failure.problem.state == ("S" if lock is LOCK else None)
    assert room.locks.waiters(lock) == ()
    # Asked again by who holds it, it is no refusal; a lease that is over holds nobody up.
    assert room.receive(K1, acquire(lock=lock, wait=False), NOW) == []
    effects = room.receive(K2, acquire("p", lock=lock, wait=False), later(10))
    assert [type(op) for op in entry_ops(effects)] == [Freed, Granted]
    assert sent(effects, Failure) == []


def test_who_does_not_wait_goes_behind_nobody_who_waits(room: Room) -> None:
    room.receive(K1, acquire(lease=5.0), NOW)
    room.receive(K1, acquire("later", lease=5.0), NOW)
    effects = room.receive(K2, acquire("p", wait=False), later(5))
    assert [op.owner for op in entry_ops(effects) if isinstance(op, Granted)] == ["later"]
    assert only(effects, Failure).problem.code == "lock-timeout"


def test_an_admin_breaks_a_lock(room: Room) -> None:
    room.receive(K1, acquire(), NOW)
    effects = room.break_lock(4, P1, LOCK, NOW)
    assert entry_ops(effects) == [Freed(lock=LOCK, fence=2, reason="broken")]
    assert effects[-1] == Answer(4, 3)
    assert code(room.receive(K1, under(1, 2, put("count", 1)), NOW)) == "lock-lost"
    assert room.break_lock(5, P1, LOCK, NOW) == [Answer(5, 3)]
    reader = author("k9", may_write=False)
    room.receive(K1, acquire("q"), NOW)
    (answer,) = room.break_lock(6, reader, LOCK, NOW)
    assert isinstance(answer, Answer)
    assert isinstance(answer.outcome, Forbidden)
