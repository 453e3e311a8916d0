"""Laws of values, ops and folds, for whatever Hypothesis thinks of."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from itertools import pairwise
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sharedwidgets.core import codec, delta
from sharedwidgets.core.delta import State, States
from sharedwidgets.core.protocol import Entries, Entry, Op, Push, Set, Splice
from sharedwidgets.core.replica import Replica
from sharedwidgets.core.values import Value, normalise, pack, same, size, unpack
from sharedwidgets.errors import InvalidValue, NoSuchPath
from support.strategies import FIRST, SECRET, TRAITS, history, logs, ops, sequences, small, values


def room_at(log: list[Entry], seq: int) -> States:
    states: States = {}
    for item in log[:seq]:
        delta.apply_entry(states, item)
    return states


def equal(left: States, right: States) -> bool:
    return left.keys() == right.keys() and all(
        state.schema == right[name].schema and same(state.values, right[name].values)  # type: ignore[arg-type]
        for name, state in left.items()
    )


# --- values


@given(values)
def test_a_value_comes_back_from_the_wire(value: Value) -> None:
    buffers: list[bytes] = []
    text = msgspec.json.encode(pack(value, buffers))
    back = unpack(msgspec.json.decode(text), buffers)
    assert same(back, value)
    assert msgspec.json.encode(pack(back, [])) == text
    # Without buffers it is JSON all through, for any reader of JSON.
    assert same(unpack(json.loads(json.dumps(pack(value, None), allow_nan=False)), None), value)


@given(values)
def test_normalise_changes_nothing_in_the_domain(value: Value) -> None:
    assert same(normalise(value), value)
    assert normalise(value) is not value or not isinstance(value, (list, dict))


@given(values, st.integers(1, 3))
def test_a_push_comes_back_whole_and_in_fragments(value: Value, third: int) -> None:
    push = Push(room="r", n=1, ops=(Set(state="S", path=("x",), value=value),))
    frame = codec.encode(push).frame()
    assembler = codec.Assembler(1 << 20)
    parts = codec.fragments(frame, max(2, len(frame) * third // 3))
    heard = [assembler.feed(part) for part in parts]
    assert heard == [None] * (len(parts) - 1) + [frame]
    back = codec.decode_upstream(heard[-1])  # type: ignore[arg-type]
    assert isinstance(back, Push)
    (op,) = back.ops
    assert isinstance(op, Set)
    assert same(op.value, value)


@given(st.lists(values, max_size=4))
def test_same_is_an_equivalence(some: list[Value]) -> None:
    copies = [unpack(pack(value, None), None) for value in some]
    for value, twin in zip(some, copies, strict=True):
        assert same(value, twin)
    for one in some:
        for other in some:
            assert same(one, other) is same(other, one)
            for third in some:
                assert same(one, third) or not (same(one, other) and same(other, third))


@given(st.sampled_from([0, False, 0.0, -0.0, 1, True, 1.0, 2**53, 2.0**53, 2**53 + 1]), st.data())
def test_same_is_transitive_among_numbers(one: Any, data: st.DataObject) -> None:
    like = st.sampled_from([0, False, 0.0, -0.0, 1, True, 1.0, 2**53, 2.0**53, 2**53 + 1])
    other, third = data.draw(like), data.draw(like)
    assert same(one, third) or not (same(one, other) and same(other, third))
    assert (isinstance(one, bool) is isinstance(other, bool)) or not same(one, other)


@given(values)
def test_size_is_within_a_factor_of_what_travels(value: Value) -> None:
    """So that a limit in bytes is one: the worst are large floats, text of control characters, and lists of small numbers."""
    buffers: list[bytes] = []
    wire = len(msgspec.json.encode(pack(value, buffers))) + sum(map(len, buffers))
    assert wire <= 6 * size(value)
    assert size(value) <= 5 * wire + 16 * len(buffers) + 8


# --- diff and apply


@given(small, small, st.sampled_from(["dict", "any", "list"]))
def test_apply_of_diff_gives_the_new_value(shown: Value, new: Value, kind: str) -> None:
    found = delta.diff("S", "x", kind, shown, new)
    assert bool(found) is not same(shown, new)
    value = shown
    for op in found:
        value = delta.apply(value, op)
    assert same(value, new)


dicts = st.dictionaries(st.sampled_from("abcd"), small, max_size=4)


@given(dicts, dicts, dicts)
def test_h02_a_diff_of_dicts_touches_only_what_its_author_changed(shown: Any, new: Any, held: Any) -> None:
    """Merging three ways, key by key: what the author left alone stays as the room has it."""
    value: Any = held
    for op in delta.diff("S", "d", "dict", shown, new):
        value = delta.apply(value, op)
    for key in {*shown, *new, *held}:
        changed = (key in shown) is not (key in new) or (key in shown and not same(shown[key], new[key]))
        wanted = new if changed else held
        assert (key in value) is (key in wanted)
        assert key not in wanted or same(value[key], wanted[key])


@given(small, ops())
def test_apply_changes_nothing_in_place(value: Value, op: Op) -> None:
    before = copy.deepcopy(value)
    with suppress(InvalidValue, NoSuchPath):
        delta.apply(value, op)
    assert same(value, before)


@given(sequences, sequences, st.integers(0, 300), st.integers(0, 300))
def test_compress_is_the_same_write_and_saves(left: Any, right: Any, head: int, tail: int) -> None:
    if type(left) is not type(right):
        right = left[::-1]
    unit: Any = {str: "a", bytes: b"a", list: [1]}[type(left)]
    base, new = unit * head + left + unit * tail, unit * tail + right + unit * head
    whole = Set(state="S", path=("x",), value=new)
    op = delta.compress(whole, base, 1)
    assert same(delta.apply(base, op), new)
    if isinstance(op, Splice):
        assert size(op.insert) <= size(new) - delta.SPLICE_SAVES
        # Nothing more could be left out at either end.
        assert not op.insert or not op.remove or not same(op.insert[0], base[op.at])
    else:
        assert op is whole


# --- entries


@given(logs())
def test_apply_entry_agrees_with_plain_code(log: list[Entry]) -> None:
    states: States = {}
    for item, plain in zip(log, history(log)[1:], strict=True):
        delta.apply_entry(states, item)
        assert equal(states, {name: State(plain.schema[name], plain.values[name]) for name in plain.schema})


@given(logs(), st.data())
def test_h13_a_folded_frame_is_the_unfolded_one(log: list[Entry], data: st.DataObject) -> None:
    """Also for a receiver in the middle of it, which applies only what is new to it."""
    prev = data.draw(st.integers(1, len(log)))
    folded = delta.fold(log[prev:])
    for stands in range(prev, len(log) + 1):
        states = room_at(log, stands)
        for item in folded:
            if item.seq > stands:
                delta.apply_entry(states, item)
        assert equal(states, room_at(log, len(log)))
    assert delta.fold(folded) == folded
    assert sum(len(item.ops) for item in folded) <= sum(len(item.ops) for item in log[prev:])


@given(logs(), st.data())
def test_h13_folding_in_steps_is_folding(log: list[Entry], data: st.DataObject) -> None:
    """An outbox folds a frame that was folded already with the next one."""
    middle = data.draw(st.integers(1, len(log)))
    twice = delta.fold([*delta.fold(log[1:middle]), *log[middle:]])
    states = room_at(log, 1)
    for item in twice:
        delta.apply_entry(states, item)
    assert equal(states, room_at(log, len(log)))


@given(logs())
def test_h15_g9_a_page_never_gets_a_hidden_name_or_value(log: list[Entry]) -> None:
    kernel: States = {}
    page: States = {}
    public: list[Entry] = []
    for item in log:
        delta.apply_entry(kernel, item)
        seen = delta.for_frontends(item, kernel)
        if seen is not None:
            public.append(seen)
            delta.apply_entry(page, seen)
        # G5: what the log tells a page is what a snapshot would.
        assert equal(page, {name: State.from_image(state.image(frontend=True)) for name, state in kernel.items()})
    for shown in (public, delta.fold(public)):
        frame = codec.encode(Entries(room="r", epoch="e", prev=0, last=len(log), entries=tuple(shown)))
        assert SECRET.encode() not in frame.header
        assert not any(SECRET.encode() in buffer for buffer in frame.buffers)


@given(logs(), st.data())
def test_g5_replicas_that_heard_it_in_other_frames_are_equal(log: list[Entry], data: st.DataObject) -> None:
    cuts = sorted({0, len(log), *data.draw(st.lists(st.integers(1, len(log)), max_size=4))})
    one, other = Replica("r"), Replica("r")
    for replica in (one, other):
        image = State(dict(TRAITS), dict(FIRST)).image()
        replica.states = {"S": State.from_image(image)}
        replica.seq, replica.epoch = 1, "e"
    one.receive(Entries(room="r", epoch="e", prev=1, last=len(log), entries=tuple(log[1:])))
    for begin, end in pairwise(cuts):
        other.receive(Entries(room="r", epoch="e", prev=begin, last=end, entries=delta.fold(log[begin:end])))
    assert one.seq == other.seq == max(1, len(log))
    assert equal(one.states, other.states)
    assert one.version > 0
