"""One boot's copy of a room; scripts both languages share are in ``tests/vectors/replica.json``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from sharedwidgets.core.protocol import (
    Actor,
    Append,
    Applied,
    Delete,
    Entries,
    Entry,
    Inc,
    LastChange,
    Member,
    Members,
    Nack,
    Op,
    Problem,
    Push,
    Resend,
    Set,
    Snapshot,
    Splice,
    StateImage,
    TraitSchema,
)
from sharedwidgets.core.replica import Change, News, Replica
from sharedwidgets.errors import InvalidValue, NoSuchPath, NoSuchState, NoSuchTrait
from support.build import ACTOR, NOW, SCHEMA, VALUES, define, entry, put

ANA, BOB = Member(id="ana", kind="kernel"), Member(id="bob", kind="frontend")
REFUSED = Problem(code="invalid-value", message="no")
LONG = "0123456789" * 60


def snapshot(seq: int = 1, *, decided: int = 0, epoch: str = "e1", members: Sequence[Member] = (), **values: Any) -> Snapshot:
    image = StateImage(schema=SCHEMA, values={**VALUES, **values})
    return Snapshot(
        room="r", incarnation="i1", epoch=epoch, seq=seq, states={"S": image}, decided=decided, members=tuple(members)
    )


def frame(*entries: Entry, prev: int | None = None, last: int | None = None, decided: int = 0, epoch: str = "e1") -> Entries:
    return Entries(
        room="r",
        epoch=epoch,
        prev=entries[0].seq - 1 if prev is None else prev,
        last=entries[-1].seq if last is None else last,
        entries=entries,
        decided=decided,
    )


def nack(n: int, through: int | None = None) -> Nack:
    return Nack(room="r", n=n, through=through, problem=REFUSED, seq=1, values={"S": {"count": 0}})


def inc(by: float, path: str = "count") -> Inc:
    return Inc(state="S", path=tuple(path.split(".")), by=by)


def live(**values: Any) -> Replica:
    replica = Replica("r")
    replica.receive(snapshot(**values))
    return replica


def sent(replica: Replica, *ops: Op, group: bool = False) -> Push:
    """Write the ops, and take the one push they are."""
    replica.write(ops, group=group)
    (push,) = replica.take(100)
    return push


def changes(news: News) -> list[tuple[str, Any, Any, str]]:
    return [(change.trait, change.old, change.new, change.origin) for change in news.changes]


# --- reading


def test_before_a_snapshot_there_is_nothing() -> None:
    replica = Replica("r")
    assert not replica.live
    assert replica.view("S") == {}
    assert replica.take(10) == []
    assert replica.newest() is None
    assert replica.receive(frame(entry(1, put("count", 1)))) == News()
    with pytest.raises(NoSuchState):
        replica.value("S", "count")
    with pytest.raises(NoSuchState):
        replica.write([put("count", 1)])
    replica.disconnected()
    assert replica.receive(frame(entry(1, put("count", 1)))) == News()
    assert not replica.live


def test_a_snapshot_shows_everything_and_says_so() -> None:
    replica = Replica("r")
    news = replica.receive(snapshot(4, count=3))
    assert replica.live
    assert (replica.seq, replica.epoch, replica.incarnation) == (4, "e1", "i1")
    assert replica.view("S") == {**VALUES, "count": 3}
    assert news.defined
    assert ("count", None, 3, "resync") in changes(news)
    assert {change.trait for change in news.changes} == set(VALUES)


def test_a_snapshot_reports_what_looks_different_and_what_is_gone() -> None:
    replica = live(count=1)
    replica.receive(Snapshot(room="r", incarnation="i1", epoch="e1", seq=5, states={}))
    assert replica.view("S") == {}
    news = replica.receive(snapshot(6, count=2))
    assert ("count", None, 2, "resync") in changes(news)
    news = replica.receive(snapshot(7, count=2, title="x"))
    assert changes(news) == [("title", "", "x", "resync")]


def test_a_remote_entry_shows_with_its_author() -> None:
    replica = live()
    news = replica.receive(frame(entry(2, put("count", 5), put("title", "x"))))
    assert news.changes == [
        Change("S", "count", 0, 5, "remote", ACTOR, 2),
        Change("S", "title", "", "x", "remote", ACTOR, 2),
    ]
    assert replica.last_change("S", "count") == LastChange(actor=ACTOR, seq=2, at=NOW.wall)
    assert replica.last_change("S", "tags") is None
    assert not news.defined


def test_a_change_says_how_many_reactions_led_to_it() -> None:
    """Of several at once the most; of a snapshot none; of an own write as many as it was made with."""
    replica = live()
    first, second, third = entry(2, put("count", 5), depth=4), entry(3, put("count", 6), depth=2), entry(4, put("title", "x"))
    news = replica.receive(frame(first, second, third))
    assert {change.trait: change.depth for change in news.changes} == {"count": 4, "title": 0}
    assert (replica.depth("S", "count"), replica.depth("S", "title"), replica.depth("S", "tags")) == (2, 0, 0)
    assert [(link.trait, link.actor) for link in replica.chain(3)] == [("count", ACTOR)]
    assert [change.depth for change in replica.write([put("count", 7)], depth=3).changes] == [3]
    replica.take(1)
    news = replica.receive(nack(1))
    assert ([change.depth for change in news.changes], news.refused[0].depth) == ([3], 3)
    assert [change.depth for change in replica.receive(snapshot(5, count=9)).changes if change.trait == "count"] == [0]
    assert (replica.depth("S", "count"), replica.chain(3)) == (0, [])


def test_a_definition_is_news_of_its_own() -> None:
    replica = live()
    news = replica.receive(frame(entry(2, define({"late": TraitSchema(kind="int")}, {"late": 3}))))
    assert news.defined
    assert changes(news) == [("late", None, 3, "remote")]
    assert replica.receive(frame(entry(3, define({}, {}, state="T")))).defined
    assert replica.view("T") == {}


# --- writing


def test_an_own_write_shows_at_once_and_is_no_news_when_it_comes_back() -> None:
    replica = live()
    news = replica.write([put("count", 5)])
    assert changes(news) == [("count", 0, 5, "local")]
    assert news.changes[0].actor is None
    assert replica.value("S", "count") == 5
    (push,) = replica.take(10)
    assert (push.n, push.ops) == (1, (put("count", 5),))
    assert changes(replica.receive(frame(entry(2, put("count", 5)), decided=1))) == []
    assert replica.undecided == 0


def test_a_remote_write_does_not_cover_an_open_own_one() -> None:
    replica = live()
    sent(replica, put("count", 5))
    assert changes(replica.receive(frame(entry(2, put("count", 7))))) == []
    assert replica.value("S", "count") == 5
    # A neighbour that was looked at while a write was open shows what is new all the same.
    assert replica.value("S", "title") == ""
    assert changes(replica.receive(frame(entry(3, put("title", "x"))))) == [("title", "", "x", "remote")]
    assert replica.value("S", "title") == "x"
    assert changes(replica.receive(nack(1))) == [("count", 5, 7, "rollback")]


def test_an_open_sum_rides_on_what_comes() -> None:
    replica = live(count=10)
    sent(replica, inc(5))
    assert changes(replica.receive(frame(entry(2, put("count", 100))))) == [("count", 15, 105, "remote")]


def test_a_write_of_nothing_is_nothing() -> None:
    replica = live()
    version = replica.version
    assert replica.write([]) == News()
    assert (replica.undecided, replica.version) == (0, version)


def test_each_change_is_a_new_version() -> None:
    replica = live()
    versions = [replica.version]
    for act in (
        lambda: replica.write([put("count", 1)]),
        lambda: replica.receive(frame(entry(2, put("title", "x")))),
        lambda: replica.receive(Members(room="r", present=(ANA,))),
        lambda: replica.abandon(REFUSED),
        lambda: replica.receive(snapshot(9)),
    ):
        act()
        versions.append(replica.version)
    assert versions == sorted(set(versions))


@pytest.mark.parametrize(
    ("ops", "error", "path"),
    [
        ([put("count", 1.5)], InvalidValue, ("count",)),
        ([put("level", 11)], InvalidValue, ("level",)),
        ([put("tags", {"a": {1: 2}})], InvalidValue, ("tags", "a")),
        ([put("tags.a\ud800", 1)], InvalidValue, ()),
        ([put("tags", "\ud800")], InvalidValue, ("tags",)),
        ([Append(state="S", path=("items",), items=(1, object()))], InvalidValue, ("items",)),
        ([inc(True)], InvalidValue, ("count",)),
        ([Inc(state="S", path=("count",), by="1")], InvalidValue, ("count",)),  # type: ignore[arg-type]
        ([inc(0.5)], InvalidValue, ("count",)),
        ([inc(1, "tags.x")], NoSuchPath, ("tags", "x")),
        ([Delete(state="S", path=("count",))], InvalidValue, ("count",)),
        ([put("cuont", 1)], NoSuchTrait, ("cuont",)),
        ([put("count", 1, state="T")], NoSuchState, ()),
        # A group is refused whole, also for its last op.
        ([put("title", "x"), put("count", 3), put("count", "no")], InvalidValue, ("count",)),
    ],
)
def test_h11_what_cannot_be_is_refused_at_the_author_and_nothing_is_written(
    ops: list[Op], error: type[Exception], path: tuple[str, ...]
) -> None:
    replica = live()
    replica.write([put("level", 1)])
    before = replica.view("S"), replica.undecided, replica.unsent
    with pytest.raises(error) as caught:
        replica.write(ops)
    assert caught.value.path == path  # type: ignore[attr-defined]
    assert (replica.view("S"), replica.undecided, replica.unsent) == before


def test_h11_the_place_of_a_refused_value_is_told() -> None:
    with pytest.raises(InvalidValue) as caught:
        live().write([put("tags.a", {"b": [1, {2}]})])
    assert (caught.value.room, caught.value.state) == ("r", "S")
    assert caught.value.path == ("tags", "a", "b", "1")


@pytest.mark.parametrize(
    ("path", "levels", "fits"), [("tags", 32, True), ("tags", 33, False), ("tags.a", 31, True), ("tags.a", 32, False)]
)
def test_h11_depth_counts_from_the_trait(path: str, levels: int, fits: bool) -> None:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"k": value}
    if fits:
        assert live().write([put(path, value)]).changes
    else:
        with pytest.raises(InvalidValue, match="nested deeper"):
            live().write([put(path, value)])


def test_h11_an_item_of_an_append_is_below_its_list() -> None:
    value: Any = []
    for _ in range(30):
        value = [value]
    replica = live()
    replica.write([Append(state="S", path=("items",), items=(value,))])
    with pytest.raises(InvalidValue):
        replica.write([Append(state="S", path=("items",), items=([value],))])


def test_g10_several_ops_are_one_push() -> None:
    replica = live()
    news = replica.write([put("count", 1), inc(1), put("tags.a", 1), put("tags.b", 2)])
    assert changes(news) == [("count", 0, 2, "local"), ("tags", {}, {"a": 1, "b": 2}, "local")]
    (push,) = replica.take(10)
    assert len(push.ops) == 4


def test_what_was_written_may_change_afterwards() -> None:
    mine: dict[str, Any] = {"a": [1]}
    replica = live()
    replica.write([put("tags", mine)])
    mine["a"].append(2)
    assert replica.value("S", "tags") == {"a": [1]}


# --- assignments


def test_h01_a_stale_trait_may_be_told_what_it_shows() -> None:
    replica = live(count=0)
    replica.receive(frame(entry(2, put("count", 1))))
    assert replica.assign("S", "count", 0, 0) == [put("count", 0)]
    assert replica.assign("S", "count", 1, 1) == []
    assert replica.assign("S", "count", 0, 1) == [put("count", 1)]


def test_h02_a_stale_dict_loses_nothing_it_was_not_told_of() -> None:
    replica = live(tags={"a": 1, "b": 2})
    ops = replica.assign("S", "tags", {"a": 1}, {"a": 1, "c": 3})
    assert ops == [put("tags.c", 3)]
    replica.write(ops)
    assert replica.value("S", "tags") == {"a": 1, "b": 2, "c": 3}
    # The shown value said again is what its author wants to see.
    assert replica.assign("S", "tags", {"a": 1}, {"a": 1}) == [put("tags", {"a": 1})]
    with pytest.raises(NoSuchTrait):
        replica.assign("S", "nope", 1, 2)


# --- windows: what is merged before it has a number


def test_sets_of_one_path_become_the_last() -> None:
    replica = live()
    for number in range(5):
        replica.write([put("count", number)])
    replica.write([put("tags.a", 1)])
    replica.write([put("tags.a", 2)])
    assert [push.ops for push in replica.take(10)] == [(put("count", 4),), (put("tags.a", 2),)]


def test_sums_of_an_unbounded_trait_are_added_up() -> None:
    replica = live()
    for by in (1, 2, -5):
        replica.write([inc(by)])
    assert replica.value("S", "count") == -2
    assert [push.ops for push in replica.take(10)] == [(inc(-2),)]


BORDERS: list[tuple[str, list[tuple[list[Op], bool, int]]]] = [
    ("a bounded sum", [([inc(1, "level")], False, 0), ([inc(1, "level")], False, 0)]),
    ("a group", [([put("count", 1)], True, 0), ([put("count", 2)], False, 0)]),
    ("a group after", [([put("count", 1)], False, 0), ([put("count", 2)], True, 0)]),
    ("several ops", [([put("count", 1), put("title", "")], False, 0), ([put("title", "x")], False, 0)]),
    ("a condition", [([put("count", 1, if_rev=1)], False, 0), ([put("count", 2)], False, 0)]),
    ("a condition after", [([put("count", 1)], False, 0), ([put("count", 2, if_rev=1)], False, 0)]),
    ("another path", [([put("tags.a", 1)], False, 0), ([put("tags.b", 1)], False, 0)]),
    ("another kind", [([put("count", 1)], False, 0), ([inc(1)], False, 0)]),
    ("another depth", [([put("count", 1)], False, 0), ([put("count", 2)], False, 1)]),
]


@pytest.mark.parametrize(("writes"), [writes for _, writes in BORDERS], ids=[name for name, _ in BORDERS])
def test_what_keeps_its_border(writes: list[tuple[list[Op], bool, int]]) -> None:
    replica = live()
    for ops, group, depth in writes:
        replica.write(ops, group=group, depth=depth)
    assert [(list(push.ops), push.depth) for push in replica.take(10)] == [(ops, depth) for ops, _, depth in writes]


@pytest.mark.parametrize(
    "schema", [TraitSchema(kind="int", max=5), TraitSchema(kind="int", min=0), TraitSchema(kind="int", choices=(0, 1, 2))]
)
def test_sums_that_may_be_refused_are_not_added_up(schema: TraitSchema) -> None:
    """One refused sum must not take others with it."""
    replica = live()
    replica.receive(frame(entry(2, define({"few": schema}, {"few": 0}))))
    replica.write([inc(1, "few")])
    replica.write([inc(1, "few")])
    assert len(replica.take(10)) == 2


def test_a_number_keeps_its_ops() -> None:
    replica = live()
    push = sent(replica, put("count", 1))
    replica.write([put("count", 2)])
    assert [(item.n, item.ops) for item in replica.take(10)] == [(2, (put("count", 2),))]
    replica.disconnected()
    assert replica.take(10)[0] == push


# --- sending


def test_no_more_than_so_many_are_open_at_the_server() -> None:
    replica = live()
    for number in range(5):
        replica.write([put(f"tags.{number}", number)])
    assert [push.n for push in replica.take(2)] == [1, 2]
    assert replica.take(2) == []
    assert (replica.undecided, replica.unsent) == (5, 3)
    replica.receive(frame(entry(2, put("tags.0", 0)), decided=1))
    assert [push.n for push in replica.take(2)] == [3]
    assert (replica.undecided, replica.unsent) == (4, 2)


def test_an_open_push_can_be_asked_about() -> None:
    replica = live()
    replica.write([put("count", 1)])
    push = replica.newest()
    assert push is not None
    assert replica.is_open(push)
    replica.take(1)
    assert replica.is_open(push)
    replica.receive(frame(entry(2, put("count", 1)), decided=1))
    assert not replica.is_open(push)
    assert replica.newest() is None


def test_h04_decided_is_the_ack_when_the_own_entry_was_folded_away() -> None:
    replica = live()
    sent(replica, put("count", 1))
    news = replica.receive(frame(entry(3, put("count", 2)), prev=1, decided=1))
    assert changes(news) == [("count", 1, 2, "remote")]
    assert replica.undecided == 0


def test_a_position_says_what_is_open() -> None:
    replica = live()
    assert (replica.position().lowest, replica.position().highest) == (1, 0)
    for number in range(3):
        sent(replica, put(f"tags.{number}", number))
    replica.write([put("count", 1)])
    replica.receive(frame(entry(2, put("tags.0", 0)), decided=1))
    position = replica.position(["S", "T"])
    assert (position.lowest, position.highest, position.seq, position.epoch) == (2, 3, 2, "e1")
    assert (position.incarnation, position.states) == ("i1", ("S", "T"))
    replica.receive(frame(prev=2, last=2, decided=3))
    assert (replica.position().lowest, replica.position().highest) == (4, 3)


def test_after_a_disconnect_the_same_numbers_go_out_again_whole() -> None:
    replica = live(title=LONG)
    first, second = sent(replica, put("title", LONG + "!")), sent(replica, put("count", 1))
    assert isinstance(first.ops[0], Splice)
    replica.disconnected()
    assert replica.unsent == 2
    again = replica.take(10)
    assert [push.n for push in again] == [first.n, second.n] == [1, 2]
    # H18: until the server answered, its log may be another one; a splice would name a revision of this one.
    assert again[0].ops == (put("title", LONG + "!"),)


def test_h18_no_splice_is_cut_before_the_server_answered() -> None:
    """Found by reading: the server lost the end of its log and wrote another; the splice fitted neither."""
    replica = live(seq=50, title=LONG)
    replica.disconnected()
    assert isinstance(sent(replica, put("title", LONG + "!")).ops[0], Set)
    replica.receive(snapshot(45, epoch="e2", title=LONG))
    replica.receive(frame(prev=45, last=45, decided=1, epoch="e2"))
    assert isinstance(sent(replica, put("title", LONG + "?")).ops[0], Splice)


def test_g8_after_a_gap_too() -> None:
    replica = live(title=LONG)
    assert replica.receive(frame(entry(3, put("count", 1)))).send
    assert isinstance(sent(replica, put("title", LONG + "!")).ops[0], Set)


# --- splices


def test_a_large_text_travels_as_what_changed() -> None:
    replica = live(title=LONG)
    push = sent(replica, put("title", LONG[:100] + "😀" + LONG[105:]))
    assert push.ops == (Splice(state="S", path=("title",), rev=1, at=100, remove=5, insert="😀"),)
    assert replica.value("S", "title") == LONG[:100] + "😀" + LONG[105:]


def test_only_against_what_the_server_is_known_to_hold() -> None:
    replica = live(title=LONG, tags={"a": LONG, "b": 1})
    first = sent(replica, put("title", LONG + "1"))
    assert isinstance(first.ops[0], Splice)
    # Another push of this trait is under way: its base is not in the room yet.
    assert isinstance(sent(replica, put("title", LONG + "2")).ops[0], Set)
    # Twice in one push: the second has no base in the room either.
    twice = sent(replica, put("tags.a", LONG + "x"), put("tags.a", LONG + "y"))
    assert [type(op) for op in twice.ops] == [Splice, Set]


@pytest.mark.parametrize("path", ["tags.missing", "tags.b.deeper"])
def test_nothing_is_cut_from_what_is_not_there(path: str) -> None:
    replica = live(tags={"a": LONG, "b": {}})
    assert isinstance(sent(replica, put(path, LONG)).ops[0], Set)


def test_a_condition_is_sent_as_it_is() -> None:
    replica = live(title=LONG)
    assert sent(replica, put("title", LONG + "!", if_rev=1)).ops == (put("title", LONG + "!", if_rev=1),)


# --- what is asked


def exchange(expected: Any, new: Any) -> Set:
    return Set(state="S", path=("count",), value=new, if_in=(expected,))


def test_what_is_asked_shows_nowhere_before_its_verdict() -> None:
    replica = live()
    version = replica.version
    asked = replica.ask([exchange(0, 5)])
    assert (replica.value("S", "count"), replica.version, replica.undecided) == (0, version, 1)
    (push,) = replica.take(10)
    assert (push.n, push.answer, push.ops) == (1, True, (exchange(0, 5),))
    # What is written on top shows, in its place behind it.
    replica.write([inc(1)])
    assert replica.value("S", "count") == 1
    assert replica.take(10)[0].answer is False
    news = replica.receive(frame(entry(2, put("count", 5)), decided=1))
    # Whose entry it is, is not known here.
    assert changes(news) == [("count", 1, 6, "remote")]
    assert not replica.is_open(asked)
    assert (asked.problem, asked.value) == (None, None)


@pytest.mark.parametrize(("author", "origin", "actor"), [("m-k1", "local", None), ("m-k2", "remote", ACTOR)])
def test_what_was_asked_is_an_own_write_unless_others_wrote_too(author: str, origin: str, actor: Actor | None) -> None:
    """A member of ``author`` hears entries of ``m-k1``."""
    replica = live()
    replica.member = author
    replica.ask([exchange(0, 5)])
    replica.take(10)
    news = replica.receive(frame(entry(2, put("count", 5)), decided=1))
    assert [(change.new, change.origin, change.actor) for change in news.changes] == [(5, origin, actor)]
    assert news.heard
    # What nothing was asked of is another boot's of this member.
    news = replica.receive(frame(entry(3, put("title", "x"))))
    assert [change.origin for change in news.changes] == ["remote"]


def test_the_answer_to_a_sum_is_kept_for_who_asked() -> None:
    replica = live()
    asked = replica.ask([Inc(state="S", path=("count",), by=1, max=9)])
    replica.take(10)
    assert changes(replica.receive(Applied(room="r", n=1, seq=2, value=1))) == []
    assert replica.is_open(asked)
    # Folded away: the replica never held 1.
    replica.receive(frame(entry(3, put("count", 70)), prev=1, decided=1))
    assert (replica.is_open(asked), asked.value, replica.value("S", "count")) == (False, 1, 70)


def test_g4_a_refusal_of_what_was_asked_is_an_answer_and_no_news() -> None:
    replica = live()
    asked = replica.ask([exchange(1, 5)])
    replica.write([inc(1)])
    replica.take(10)
    news = replica.receive(nack(1))
    assert (changes(news), news.refused) == ([], [])
    assert (replica.is_open(asked), asked.problem, replica.value("S", "count")) == (False, REFUSED, 1)


def test_only_what_was_not_numbered_can_be_taken_back() -> None:
    replica = live()
    first, second = replica.ask([exchange(0, 1)]), replica.ask([exchange(0, 2)])
    assert [push.n for push in replica.take(1)] == [1]
    assert [replica.withdraw(first), replica.withdraw(second), replica.withdraw(second)] == [False, True, False]
    replica.disconnected()
    assert not replica.withdraw(first)
    replica.receive(nack(1))
    replica.write([inc(1)])
    assert [push.n for push in replica.take(10)] == [2]


def test_h18_what_is_asked_under_a_condition_names_the_log_it_was_read_in() -> None:
    replica = live()
    replica.ask([put("count", 1, if_rev=1)])
    replica.ask([put("count", 1)])
    replica.disconnected()
    replica.receive(snapshot(epoch="e2"))
    assert [push.epoch for push in replica.take(9)] == ["e1", ""]


def test_what_is_asked_is_never_merged_or_cut() -> None:
    replica = live(title=LONG)
    replica.ask([Set(state="S", path=("title",), value=LONG + "!", if_in=(LONG,))])
    replica.ask([Inc(state="S", path=("count",), by=1)])
    replica.write([inc(1)])
    replica.ask([Inc(state="S", path=("count",), by=1)])
    pushes = replica.take(10)
    assert [push.answer for push in pushes] == [True, True, False, True]
    assert pushes[0].ops == (Set(state="S", path=("title",), value=LONG + "!", if_in=(LONG,)),)


def test_sums_with_bounds_of_their_own_are_not_added_up() -> None:
    replica = live()
    replica.write([Inc(state="S", path=("count",), by=1, max=9)])
    replica.write([inc(1)])
    replica.write([Inc(state="S", path=("count",), by=1, max=9)])
    assert len(replica.take(10)) == 3


@pytest.mark.parametrize(
    ("op", "error"),
    [
        (exchange(0, "x"), InvalidValue),
        (exchange(0, float("inf")), InvalidValue),
        (exchange(object(), 1), InvalidValue),
        (Inc(state="S", path=("count",), by=1, max="9"), InvalidValue),  # type: ignore[arg-type]
        (Inc(state="S", path=("count",), by=True), InvalidValue),
        (Inc(state="S", path=("nope",), by=1), NoSuchTrait),
        (Inc(state="T", path=("count",), by=1), NoSuchState),
    ],
)
def test_what_cannot_be_is_not_asked(op: Op, error: type[Exception]) -> None:
    replica = live()
    with pytest.raises(error):
        replica.ask([op])
    assert replica.undecided == 0


def test_h06_resend_is_no_verdict() -> None:
    replica = live(title=LONG)
    pushes = [sent(replica, put("count", 1)), sent(replica, put("title", LONG + "!")), sent(replica, put("tags.a", 1))]
    assert replica.receive(Resend(room="r", n=2)) == News()
    assert replica.value("S", "title") == LONG + "!"
    again = replica.take(10)
    assert [(push.n, push.ops) for push in again] == [(2, (put("title", LONG + "!"),)), (3, pushes[2].ops)]
    # Whole it stays, however often it is asked for.
    replica.receive(Resend(room="r", n=2))
    assert [push.ops for push in replica.take(10)] == [push.ops for push in again]


def test_h08_a_server_that_forgot_a_verdict_is_told_where_this_boot_is() -> None:
    """Found by reading: asked for numbers it no longer has, a client sent later ones, which were ignored for ever."""
    replica = live()
    sent(replica, put("count", 1))
    replica.receive(frame(entry(2, put("count", 1)), decided=1))
    sent(replica, put("count", 2))
    assert replica.receive(Resend(room="r", n=1)).send == [replica.position()]
    assert replica.position().lowest == 2
    # Also with nothing open: the next number would not be taken.
    replica.receive(frame(entry(3, put("count", 2)), decided=2))
    assert replica.receive(Resend(room="r", n=1)).send == [replica.position()]
    assert replica.receive(Resend(room="r", n=3)).send == []


# --- verdicts


def test_g4_a_nack_rolls_back_and_says_why() -> None:
    replica = live()
    sent(replica, put("count", 5), put("title", "x"))
    news = replica.receive(nack(1))
    assert changes(news) == [("count", 5, 0, "rollback"), ("title", "x", "", "rollback")]
    (refused,) = news.refused
    assert (refused.n, refused.problem, refused.values) == (1, REFUSED, {"S": {"count": 0}})
    assert refused.ops == (put("count", 5), put("title", "x"))
    assert replica.undecided == 0
    assert replica.receive(nack(1)).refused == []


def test_a_nack_of_one_leaves_what_was_written_on_top() -> None:
    replica = live()
    sent(replica, put("count", 5))
    sent(replica, inc(1))
    assert changes(replica.receive(nack(1))) == [("count", 6, 1, "rollback")]
    assert replica.undecided == 1


def test_a_nack_may_speak_of_several() -> None:
    replica = live()
    for number in range(4):
        sent(replica, put(f"tags.{number}", number))
    replica.write([put("title", "not sent")])
    assert [item.n for item in replica.receive(nack(2, through=3)).refused] == [2, 3]
    assert replica.value("S", "tags") == {"0": 0, "3": 3}
    assert replica.value("S", "title") == "not sent"


def test_a_write_whose_ground_is_gone_shows_nothing() -> None:
    replica = live(tags={"a": 1})
    sent(replica, inc(1, "tags.a"))
    news = replica.receive(frame(entry(2, put("tags", {}))))
    assert changes(news) == [("tags", {"a": 2}, {}, "remote")]
    replica.receive(frame(entry(3, put("tags", {"a": 10}))))
    assert replica.value("S", "tags") == {"a": 11}


def test_abandon_gives_up_everything() -> None:
    replica = live()
    sent(replica, put("count", 1))
    replica.write([put("title", "x")])
    news = replica.abandon(REFUSED)
    assert [item.n for item in news.refused] == [1, 0]
    assert (replica.undecided, replica.view("S")) == (0, VALUES)


def test_a_trait_of_a_state_that_is_gone_can_be_refused() -> None:
    replica = live()
    sent(replica, put("count", 1))
    news = replica.receive(Snapshot(room="r", incarnation="i1", epoch="e2", seq=1, states={}))
    assert ("count", 1, None, "resync") in changes(news)
    assert [item.n for item in replica.receive(nack(1)).refused] == [1]


# --- the order of frames


def test_g8_a_gap_is_asked_for_and_not_applied() -> None:
    replica = live()
    news = replica.receive(frame(entry(3, put("count", 9))))
    assert news.send == [replica.position()]
    assert (replica.seq, replica.value("S", "count")) == (1, 0)
    # Once is enough.
    assert replica.receive(frame(entry(4, put("count", 10)))) == News()
    answer = frame(entry(2, put("count", 8)), entry(3, put("count", 9)), entry(4, put("count", 10)))
    assert changes(replica.receive(answer)) == [("count", 0, 10, "remote")]
    assert replica.receive(frame(entry(6, put("count", 9)))).send == [replica.position()]


def test_h15_a_frame_may_hold_nothing_for_this_audience() -> None:
    replica = live()
    assert replica.receive(frame(prev=1, last=4)).send == []
    assert replica.seq == 4
    assert replica.receive(frame(entry(5, put("count", 1)))).send == []
    assert replica.value("S", "count") == 1


def test_what_came_already_is_not_applied_again() -> None:
    replica = live(count=0)
    replica.receive(frame(entry(2, put("tags.a", 1)), entry(3, put("count", 3))))
    assert changes(replica.receive(frame(entry(2, put("tags.a", 1)), entry(3, put("count", 3))))) == []
    news = replica.receive(frame(entry(3, put("count", 99)), entry(4, put("title", "x")), prev=2))
    assert changes(news) == [("title", "", "x", "remote")]
    assert replica.receive(frame(prev=0, last=1)).send == []
    assert replica.seq == 4


def test_another_epoch_is_a_gap_unless_the_server_was_asked() -> None:
    replica = live()
    assert replica.receive(frame(entry(2, put("count", 1)), epoch="e2")).send == [replica.position()]
    assert replica.seq == 1
    # Asked, it may go on under a new epoch, exactly from here.
    assert replica.receive(frame(entry(3, put("count", 1)), epoch="e3")) == News()
    replica.receive(frame(entry(2, put("count", 1)), epoch="e3"))
    assert (replica.seq, replica.epoch) == (2, "e3")
    assert replica.receive(frame(entry(3, put("count", 2)), epoch="e1")).send == [replica.position()]


def test_after_a_disconnect_the_answer_may_be_of_a_later_log() -> None:
    replica = live()
    replica.disconnected()
    assert replica.receive(frame(prev=1, last=1, epoch="e2")).send == []
    assert (replica.seq, replica.epoch) == (1, "e2")


def test_a_snapshot_ends_the_asking_and_may_stand_before_this_copy() -> None:
    replica = live(seq=9, count=5)
    replica.receive(frame(entry(11, put("count", 9))))
    news = replica.receive(snapshot(7, epoch="e2", count=4))
    assert changes(news) == [("count", 5, 4, "resync")]
    assert (replica.seq, replica.epoch) == (7, "e2")
    assert replica.receive(frame(entry(9, put("count", 9)), epoch="e2")).send == [replica.position()]


def test_a_snapshot_keeps_open_writes_and_forgets_decided_ones() -> None:
    replica = live()
    sent(replica, put("count", 1))
    sent(replica, put("title", "mine"))
    replica.write([put("tags.a", 1)])
    replica.receive(snapshot(5, decided=1, count=7))
    assert replica.undecided == 2
    assert replica.view("S") == {**VALUES, "count": 7, "title": "mine", "tags": {"a": 1}}
    assert replica.last_change("S", "count") is None
    # A number that was given stays with its push.
    replica.disconnected()
    assert [push.n for push in replica.take(10)] == [2, 3]


def test_the_numbers_go_on_where_an_earlier_membership_ended() -> None:
    replica = Replica("r")
    replica.receive(snapshot(5, decided=8))
    assert replica.position().lowest == 9
    assert sent(replica, put("count", 1)).n == 9
    replica.receive(snapshot(6, decided=3))
    assert sent(replica, put("count", 2)).n == 10


# --- members


def test_members_come_change_and_go() -> None:
    replica = Replica("r")
    news = replica.receive(snapshot(members=[ANA]))
    assert (news.joined, news.gone) == ([ANA], [])
    away = Member(id="ana", kind="kernel", state="away")
    news = replica.receive(Members(room="r", present=(away, BOB), gone=("nobody",)))
    assert (news.joined, news.gone) == ([BOB], [])
    assert list(replica.members.values()) == [away, BOB]
    news = replica.receive(Members(room="r", gone=("ana",)))
    assert (news.joined, news.gone) == ([], [away])
    news = replica.receive(snapshot(2, members=[ANA]))
    assert (news.joined, news.gone) == ([ANA], [BOB])
