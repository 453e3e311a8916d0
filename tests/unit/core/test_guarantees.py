"""Each guarantee and each hard case of the core, as the one schedule that breaks a naive build."""

from __future__ import annotations

import pytest

from sharedwidgets.core.delta import State, apply_entry, fold
from sharedwidgets.core.protocol import (
    Actor,
    Append,
    Delete,
    Entries,
    Entry,
    Failure,
    Inc,
    Join,
    Limits,
    Nack,
    Problem,
    Push,
    Resend,
    Set,
    Snapshot,
    Splice,
    TraitSchema,
)
from sharedwidgets.core.room import Send
from sharedwidgets.errors import InvalidValue, NoSuchTrait
from support.wire import SCHEMA, Client, World, same_views


def put(trait: str, value: object) -> Set:
    return Set(state="S", path=(trait,), value=value)


def key(name: str, value: object) -> Set:
    return Set(state="S", path=("tags", name), value=value)


def add(by: int = 1, trait: str = "count") -> Inc:
    return Inc(state="S", path=(trait,), by=by)


@pytest.fixture
def world() -> World:
    world = World()
    for boot in ("k1", "k2"):
        world.connect(world.client(boot))
    world.connect(world.client("p1", "frontend"))
    world.settle()
    return world


def clients(world: World) -> tuple[Client, Client, Client]:
    return world.clients["k1"], world.clients["k2"], world.clients["p1"]


def sent(client: Client) -> list[Push]:
    client.take()
    return [message for message in client.up if isinstance(message, Push)]


def values(world: World) -> dict[str, object]:
    return dict(world.room.states["S"].values)


def test_g1_g2_one_order_and_each_boots_own(world: World) -> None:
    k1, k2, _ = clients(world)
    for number in range(5):
        k1.write(put("count", number), key("a", number))
        k2.write(add())
    world.settle()
    assert [entry.seq for entry in world.log] == list(range(1, 8))
    mine = [entry.ops[0] for entry in world.log if entry.by.id == "k1" and len(entry.ops) == 2]
    assert [op.value for op in mine if isinstance(op, Set)] == [0, 1, 2, 3, 4]
    same_views(world)


def test_g3_a_push_that_arrives_twice_counts_once(world: World) -> None:
    k1, _, _ = clients(world)
    k1.write(add())
    pushes = sent(k1)
    k1.up += pushes
    world.settle()
    assert values(world)["count"] == 1
    assert k1.replica.undecided == 0


def test_g4_a_refused_push_has_no_effect_and_its_author_gets_the_authoritative_value(world: World) -> None:
    k1, k2, _ = clients(world)
    k1.write(add(4, "level"))
    k2.write(add(4, "level"))
    k1.take()
    world.deliver(k1)
    k2.take()
    world.deliver(k2)
    (nack,) = [message for message in k2.down if isinstance(message, Nack)]
    assert (nack.problem.code, nack.values) == ("invalid-value", {"S": {"level": 9}})
    (news,) = [news for news in k2.hear() if news.refused]
    assert [(change.old, change.new, change.origin) for change in news.changes] == [(13, 9, "rollback")]
    world.settle()
    assert values(world)["level"] == 9
    assert k2.replica.value("S", "level") == 9
    assert k2.refused == [1]


def test_g8_what_a_lagging_client_missed_is_told_from_the_log(world: World) -> None:
    k1, k2, _ = clients(world)
    world.keep = lambda client: client is not k2
    for number in range(3):
        k1.write(put("count", number), key(str(number), number))
        k1.take()
        world.deliver(k1)
    world.settle()
    world.keep = lambda client: True
    k1.write(put("count", 7))
    world.settle()
    assert k2.replica.seq == world.room.seq
    same_views(world)


def test_g9_kernel_only_traits_do_not_exist_for_a_page(world: World) -> None:
    k1, _, p1 = clients(world)
    k1.write(put("_salt", "KERNELS-ONLY again"))
    k1.write(put("_salt", "KERNELS-ONLY again"), put("count", 3))
    world.settle()
    assert "_salt" not in p1.replica.states["S"].schema
    with pytest.raises(NoSuchTrait) as caught:
        p1.write(put("_salt", "x"))
    assert "_salt" not in str(caught.value).split("it has")[1]
    effects = world.room.receive(p1.author, Push(room="r", n=1, ops=(put("_salt", "x"),)), world.now())
    (nack,) = [effect.message for effect in effects if isinstance(effect, Send) and isinstance(effect.message, Nack)]
    assert (nack.problem.code, nack.values) == ("no-such-trait", {})
    assert "_salt" not in nack.problem.message.split("it has")[1]


def test_g10_a_group_is_one_entry_or_none(world: World) -> None:
    k1, k2, _ = clients(world)
    k1.write(put("count", 1), add(3, "level"))
    k2.write(put("count", 2), add(3, "level"))
    world.settle()
    groups = [entry for entry in world.log if len(entry.ops) == 2]
    assert len(groups) == 1
    assert (values(world)["count"], values(world)["level"]) == (1, 8)
    same_views(world)


def test_h01_the_shown_value_assigned_again_is_a_write_when_the_room_moved_on(world: World) -> None:
    k1, k2, _ = clients(world)
    k2.write(put("count", 1))
    world.settle()
    assert k1.replica.value("S", "count") == 1
    # k1's trait still shows 0: the author saw 0 and says 0.
    assert k1.replica.assign("S", "count", shown=0, new=0) == [put("count", 0)]
    assert k1.replica.assign("S", "count", shown=1, new=1) == []


def test_h02_a_dict_is_compared_with_what_its_author_saw(world: World) -> None:
    k1, k2, _ = clients(world)
    k1.write(put("tags", {"a": 1}))
    world.settle()
    k2.write(key("b", 2))
    world.settle()
    ops = k1.replica.assign("S", "tags", shown={"a": 1}, new={"a": 1, "c": 3})
    assert ops == [key("c", 3)]
    k1.write(*ops)
    world.settle()
    assert values(world)["tags"] == {"a": 1, "b": 2, "c": 3}


def test_h04_an_ack_does_not_need_the_own_entry_to_come_by(world: World) -> None:
    k1, k2, _ = clients(world)
    world.fold = True
    k1.write(put("count", 1))
    k2.write(put("count", 2))
    k1.take()
    k2.take()
    (mine,) = [(k1, message) for message in k1.up]
    (other,) = [(k2, message) for message in k2.up]
    k1.up, k2.up = [], []
    world.decide([mine, other])
    (frame,) = [message for message in k1.down if isinstance(message, Entries)]
    assert [entry.by.id for entry in frame.entries] == ["k2"]
    k1.hear()
    assert k1.replica.undecided == 0
    assert k1.replica.value("S", "count") == 2


def test_h05_a_verdict_lost_with_the_socket_is_told_again(world: World) -> None:
    k1, _, _ = clients(world)
    k2 = world.clients["k2"]
    k2.write(add(4, "level"))
    k2.take()
    world.deliver(k2)
    k1.write(add(4, "level"))
    k1.take()
    world.cut(k1, arrive=1)
    assert world.marks["k1"].n == 1
    assert k1.replica.undecided == 1
    world.connect(k1)
    world.deliver(k1)
    assert [message.n for message in k1.down if isinstance(message, Nack)] == [1]
    world.settle()
    assert k1.refused == [1]
    assert k1.replica.value("S", "level") == 9


def test_h06_a_stale_splice_is_sent_again_whole_under_the_same_number(world: World) -> None:
    k1, k2, _ = clients(world)
    text = str(k1.replica.value("S", "text"))
    k2.write(put("text", "𝒳" + text))
    k2.take()
    world.deliver(k2)
    k1.write(put("text", text + "!"))
    k1.write(put("count", 6))
    first, second = sent(k1)
    assert isinstance(first.ops[0], Splice)
    world.deliver(k1)
    assert [message.n for message in k1.down if isinstance(message, Resend)] == [1]
    assert world.marks.get("k1") is None
    k1.hear()
    again = sent(k1)
    assert [(push.n, push.ops[0]) for push in again] == [(1, put("text", text + "!")), (second.n, put("count", 6))]
    world.settle()
    assert (values(world)["text"], values(world)["count"]) == (text + "!", 6)
    same_views(world)


def test_h07_two_boots_of_one_member_have_numbers_of_their_own() -> None:
    world = World()
    one = world.connect(world.client("boot-1", member="tab"))
    two = world.connect(world.client("boot-2", member="tab"))
    world.settle()
    one.write(add())
    two.write(add())
    world.settle()
    assert values(world)["count"] == 2
    assert [member.id for member in world.room.members] == ["tab"]


@pytest.mark.parametrize("fail", ["before", "after"])
def test_h09_nothing_is_told_of_what_the_store_did_not_take(world: World, fail: str) -> None:
    k1, k2, p1 = clients(world)
    seq, epoch = world.room.seq, world.room.epoch
    world.fail = fail
    k1.write(add())
    k1.take()
    world.deliver(k1)
    assert world.room.epoch != epoch
    assert world.room.seq == seq + (fail == "after")
    for client in (k1, k2, p1):
        snapshot, resend = client.down
        assert isinstance(snapshot, Snapshot)
        assert isinstance(resend, Resend)
        assert snapshot.seq == world.room.seq
    world.settle()
    assert values(world)["count"] == 1
    assert k1.replica.undecided == 0
    same_views(world)


def test_h09_a_refusal_the_store_took_is_told_although_its_window_failed(world: World) -> None:
    k1, k2, _ = clients(world)
    k2.write(add(4, "level"))
    k2.take()
    world.deliver(k2)
    k1.write(add(4, "level"))
    k1.take()
    world.fail = "after"
    world.deliver(k1)
    world.settle()
    assert k1.refused == [1]
    assert k1.replica.value("S", "level") == 9


def test_h13_a_fold_across_a_transaction_is_one_atomic_frame(world: World) -> None:
    k1, k2, _ = clients(world)
    world.fold = True
    k1.write(put("count", 1), key("x", 1))
    k1.write(put("count", 2))
    k1.write(add())
    k1.take()
    world.deliver(k1)
    (frame,) = [message for message in k2.down if isinstance(message, Entries)]
    assert (frame.prev, frame.last) == (world.room.seq - 3, world.room.seq)
    assert [len(entry.ops) for entry in frame.entries] == [1, 1, 1]
    (news,) = k2.hear()
    assert {change.trait: change.new for change in news.changes} == {"count": 3, "tags": {"x": 1}}


@pytest.mark.parametrize(
    "between",
    [
        Append(state="S", path=("any",), items=(1,)),
        Set(state="S", path=("any", "a"), value=1),
        Inc(state="S", path=("any",), by=1),
    ],
    ids=["append", "deeper path", "sum"],
)
def test_h13_what_something_in_between_builds_on_is_kept(between: Append | Set | Inc) -> None:
    first: dict[type, object] = {Append: [], Set: {}, Inc: 1}
    ops = [put("any", first[type(between)]), between, put("any", None)]
    by = Actor(id="k1", kind="kernel")
    entries = [Entry(seq=seq, at=0.0, by=by, ops=(op,)) for seq, op in enumerate(ops, 1)]
    state = State({"any": TraitSchema()}, {"any": None})
    for entry in fold(entries):
        apply_entry({"S": state}, entry)
    assert state.values == {"any": None}


def test_h15_a_frame_of_kernel_only_entries_moves_a_pages_cursor(world: World) -> None:
    k1, _, p1 = clients(world)
    k1.write(put("_salt", "KERNELS-ONLY twice"))
    k1.take()
    world.deliver(k1)
    (frame,) = [message for message in p1.down if isinstance(message, Entries)]
    assert (frame.entries, frame.last) == ((), world.room.seq)
    p1.hear()
    k1.write(put("count", 1))
    world.settle()
    assert p1.up == []
    assert p1.replica.value("S", "count") == 1


def test_h16_a_page_waits_and_a_kernel_makes_the_state() -> None:
    world = World()
    page = world.connect(world.client("p1", "frontend"))
    world.settle()
    assert (world.log, page.replica.states) == ([], {})
    world.connect(world.client("k1"))
    world.settle()
    assert page.replica.value("S", "count") == 0


def test_h16_a_page_may_not_make_a_state() -> None:
    world = World()
    page = world.client("p1", "frontend")
    page.connected = True
    page.up.append(Join(id=7, room="r", state="S", schema={"x": TraitSchema()}, values={"x": 1}))
    world.deliver(page)
    (failure,) = page.down
    assert isinstance(failure, Failure)
    assert failure.problem.code == "forbidden"
    assert world.log == []


def test_h17_a_second_state_does_not_skip_what_the_first_one_missed(world: World) -> None:
    k1, k2, _ = clients(world)
    world.keep = lambda client: client is not k2
    k1.write(put("count", 5))
    k1.take()
    world.deliver(k1)
    world.keep = lambda client: True
    k2.up.append(Join(id=2, room="r", state="T", schema={"x": TraitSchema(kind="int")}, values={"x": 1}))
    world.settle()
    assert (k2.replica.value("S", "count"), k2.replica.value("T", "x")) == (5, 1)


def test_h18_after_a_deletion_nothing_is_sent_to_the_next_room_of_that_name(world: World) -> None:
    k1, _, _ = clients(world)
    k1.write(put("count", 8))
    gone = [getattr(effect, "message", None) for effect in world.room.delete()]
    byes = [message for message in gone if message is not None]
    assert [(bye.room, bye.problem.code) for bye in byes] == [("r", "room-gone")] * 3
    news = k1.replica.abandon(Problem(code="room-gone", message="the room was deleted"))
    assert [item.problem.code for item in news.refused] == ["room-gone"]
    assert k1.replica.take(8) == []


def test_a_restart_keeps_replicas_that_are_at_the_recovered_seq(world: World) -> None:
    """The log goes on under a new epoch: whoever stands at its end is told only what is new."""
    k1, k2, _ = clients(world)
    k1.write(add())
    world.settle()
    world.restart()
    world.connect(k2)
    world.deliver(k2)
    (answer,) = [message for message in k2.down if isinstance(message, (Snapshot, Entries))]
    assert isinstance(answer, Entries)
    k1.write(add())
    world.settle()
    assert values(world)["count"] == 2
    assert k1.replica.epoch == k2.replica.epoch == world.room.epoch
    same_views(world)


def test_a_boot_nobody_remembers_is_told_that_the_outcome_is_unknown(world: World) -> None:
    k1, _, _ = clients(world)
    k1.write(add())
    world.settle()
    k1.write(add())
    k1.take()
    world.cut(k1)
    world.marks.clear()
    world.restart()
    world.connect(k1)
    world.settle()
    assert k1.refused == [2]
    assert k1.replica.undecided == 0
    k1.write(add())
    world.settle()
    assert values(world)["count"] == 2


def test_a_room_the_server_lost_is_made_again_from_its_members(world: World) -> None:
    k1, _, _ = clients(world)
    k1.write(put("count", 41))
    world.settle()
    k1.write(add())
    k1.take()
    world.cut(k1)
    position = k1.replica.position(["S"])
    world.log.clear()
    world.marks.clear()
    world.restart()
    state = k1.replica.states["S"]
    k1.connected = True
    k1.up.append(Join(id=9, room="r", state="S", schema=dict(state.schema), values=dict(state.values), resume=position))
    world.deliver(k1)
    k1.hear()
    world.settle()
    assert values(world)["count"] == 42
    assert k1.refused == []
    same_views(world)


def test_a_newer_class_replaces_the_older_only_when_no_other_kernel_lives_in_it(world: World) -> None:
    k1, k2, _ = clients(world)
    other = {**SCHEMA, "count": TraitSchema(kind="float")}
    join = Join(id=5, room="r", state="S", schema=other, values={"count": 1.5})
    k1.up.append(join)
    world.deliver(k1)
    assert [message.problem.code for message in k1.down if hasattr(message, "problem")] == ["schema-conflict"]
    k1.hear()
    world.cut(k2)
    k1.up.append(join)
    world.deliver(k1)
    k1.hear()
    assert k1.replica.states["S"].schema["count"].kind == "float"
    # The value the room held fits the newer class, and stays.
    assert values(world)["count"] == 0


@pytest.mark.parametrize(
    ("limits", "ops", "code"),
    [
        (Limits(push_ops=2), [add(), add(), add()], "too-large"),
        (Limits(op_bytes=2000), [put("text", "x" * 3000)], "too-large"),
        (Limits(room_bytes=2000), [put("text", "x" * 3000)], "too-large"),
        (Limits(), [put("items", [[[[]]]])], None),
        (Limits(), [Delete(state="S", path=("count",))], "invalid-value"),
        (Limits(), [Append(state="S", path=("count",), items=(1,))], "no-such-path"),
        (Limits(), [Set(state="S", path=("tags", "a", "b"), value=1)], "no-such-path"),
        (Limits(), [Set(state="T", path=("x",), value=1)], "no-such-state"),
        (Limits(), [put("count", True)], "invalid-value"),
        (Limits(), [put("count", 1.5)], "invalid-value"),
        (Limits(), [put("count", None)], "invalid-value"),
        (Limits(), [Set(state="S", path=("count",), value=1, if_rev=0)], "revision-mismatch"),
    ],
)
def test_a_push_beyond_the_rules_is_refused_with_a_typed_error(limits: Limits, ops: list[Set], code: str | None) -> None:
    world = World(limits)
    k1 = world.connect(world.client("k1"))
    world.settle()
    before = values(world)
    k1.up.append(Push(room="r", n=1, ops=tuple(ops)))
    world.deliver(k1)
    nacks = [message.problem.code for message in k1.down if isinstance(message, Nack)]
    assert nacks == ([code] if code else [])
    assert (values(world) == before) is (code is not None)


def test_h11_an_author_is_told_at_the_assignment(world: World) -> None:
    k1, _, _ = clients(world)
    for value in ("\ud800", {1: 2}, object(), {"a": {"b": {1, 2}}}):
        with pytest.raises(InvalidValue) as caught:
            k1.write(put("tags", value))
        assert caught.value.path[0] == "tags"
    assert k1.replica.undecided == 0


def test_members_that_went_while_one_was_away_are_gone_for_it(world: World) -> None:
    k1, k2, p1 = clients(world)
    world.cut(k2)
    world.cut(p1)
    world.time += 60
    world.decide([], [lambda: world.room.tick(world.now())])
    world.connect(k2)
    world.deliver(k2)
    gone = [member.id for news in k2.hear() for member in news.gone]
    assert gone == ["p1"]
    assert sorted(k2.replica.members) == ["k1", "k2"]
    k1.hear()
    assert sorted(k1.replica.members) == ["k1", "k2"]


def test_a_refused_push_makes_no_room(world: World) -> None:
    empty = World()
    k1 = empty.client("k1")
    k1.connected = True
    k1.up += [Join(id=1, room="r"), Push(room="r", n=1, ops=(add(),))]
    empty.deliver(k1)
    assert [message.problem.code for message in k1.down if isinstance(message, Nack)] == ["no-such-state"]
    assert (empty.log, empty.marks) == ([], {})
