"""The cases both languages must agree on: ``tests/vectors`` read by this file and by ``js/src/*.test.ts``.

A case with ``python`` says what this side does not do yet: it must fail here, and the note goes when it no longer does.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sharedwidgets.core import codec, delta, values
from sharedwidgets.core.delta import State, States
from sharedwidgets.core.protocol import Entry, LockName, Op, Problem, Set, StateImage
from sharedwidgets.core.replica import Change, News, Replica
from sharedwidgets.core.values import Value
from sharedwidgets.errors import InvalidToken, Malformed, SharedWidgetsError

Case = dict[str, Any]
VECTORS = Path(__file__).parents[2] / "vectors"


def cases(file: str, section: str) -> list[Any]:
    found = json.loads((VECTORS / f"{file}.json").read_text(encoding="utf-8"))[section]
    return [pytest.param(case, id=str(case.get("name", case.get("why", index)))) for index, case in enumerate(found)]


def buffers_of(case: Case, key: str = "buffers") -> list[bytes]:
    return [bytes.fromhex(item) for item in case.get(key, [])]


def unpack(case: Case, key: str) -> Value:
    return values.unpack(case[key], buffers_of(case))


def plain(text: str) -> str:
    """JSON with its order of fields, and with whole floats as the other language writes them."""
    return json.dumps(json.loads(text, parse_float=lambda number: _whole(float(number))))


def _whole(number: float) -> int | float:
    return int(number) if number.is_integer() else number


def header(message: object) -> str:
    return codec.encode(message).header.decode()  # type: ignore[arg-type]


def read_op(json: object, buffers: list[bytes]) -> Op:
    op: Op = msgspec.convert(values.unpack(json, buffers), type=Op)
    return op


def decode(union: str, frame: codec.Frame) -> Any:
    return codec.decode_upstream(frame) if union == "upstream" else codec.decode_downstream(frame)


@pytest.mark.parametrize("case", cases("tokens", "legal"))
def test_legal_token(case: Case) -> None:
    assert values.check_token(case["token"]) == case["token"]


@pytest.mark.parametrize("case", cases("tokens", "illegal"))
def test_illegal_token(case: Case) -> None:
    with pytest.raises(InvalidToken, match=re.escape(case["says"])):
        values.check_token(case["token"])


@pytest.mark.parametrize("case", cases("values", "values"))
def test_value(case: Case) -> None:
    value = unpack(case, "packed")
    buffers: list[bytes] = []
    packed = values.pack(value, buffers)
    assert plain(json.dumps(packed)) == plain(json.dumps(case.get("repacked", case["packed"])))
    assert buffers == buffers_of(case, "rebuffers" if "rebuffers" in case else "buffers")
    assert values.same(values.unpack(packed, buffers), value)
    assert values.size(value) == case["size"]
    assert values.depth(value) == case["depth"]


@pytest.mark.parametrize("case", cases("values", "illegal"))
def test_illegal_packed_form(case: Case) -> None:
    with pytest.raises(Malformed):
        unpack(case, "packed")


@pytest.mark.parametrize("case", cases("values", "same"))
def test_same(case: Case) -> None:
    left, right = unpack(case, "left"), unpack(case, "right")
    assert values.same(left, right) is case["same"]
    assert values.same(right, left) is case["same"]
    assert values.same(left, left)


@pytest.mark.parametrize("union", ["upstream", "downstream"])
def test_messages_are_complete(union: str) -> None:
    known = {kind.__struct_config__.tag for kind in getattr(codec, union.capitalize()).__args__}
    assert {case.values[0]["wire"]["type"] for case in cases("messages", union)} == known


@pytest.mark.parametrize("case", cases("messages", "upstream"))
def test_upstream_message(case: Case) -> None:
    message = codec.decode_upstream(json.dumps(case["wire"]))
    assert plain(header(message)) == plain(json.dumps(case.get("canonical", case["wire"])))


@pytest.mark.parametrize("case", cases("messages", "downstream"))
def test_downstream_message(case: Case) -> None:
    message = codec.decode_downstream(json.dumps(case["wire"]))
    assert plain(header(message)) == plain(json.dumps(case.get("canonical", case["wire"])))


@pytest.mark.parametrize("case", cases("messages", "malformed"))
def test_malformed_message(case: Case) -> None:
    with pytest.raises(Malformed) as raised:
        decode(case["union"], case["text"] if "text" in case else json.dumps(case["wire"]))
    sentence = str(raised.value)
    place = re.search(r" - at `(.+)`$", sentence)
    root = "$" if sentence.startswith("not a message of this protocol") else None
    assert (place[1] if place and root else root) == case["at"]


@pytest.mark.parametrize("case", cases("frames", "binary"))
def test_binary_frame(case: Case) -> None:
    frame = bytes.fromhex(case["frame"])
    encoded = codec.encode(decode(case["union"], frame))
    assert encoded.header.decode() == case["header"]
    assert list(encoded.buffers) == buffers_of(case)
    assert encoded.frame() == frame


@pytest.mark.parametrize("case", cases("frames", "readable"))
def test_readable_frame(case: Case) -> None:
    assert codec.encode(codec.decode_downstream(bytes.fromhex(case["frame"]))).frame() == case["canonical"]


@pytest.mark.parametrize("case", cases("frames", "malformed"))
def test_malformed_frame(case: Case) -> None:
    with pytest.raises(Malformed):
        codec.decode_downstream(bytes.fromhex(case["frame"]))


@pytest.mark.parametrize("case", cases("frames", "fragments"))
def test_fragments(case: Case) -> None:
    frame = case["text"] if "text" in case else bytes.fromhex(case["hex"])
    parts = codec.fragments(frame, case["limit"])
    if case["fragments"] is None:
        assert parts == [frame]
    else:
        assert [part.hex() for part in parts if isinstance(part, bytes)] == case["fragments"]
    assembler = codec.Assembler(1000)
    fed = [assembler.feed(part) for part in parts]
    assert fed == [None] * (len(parts) - 1) + [frame]
    assert not assembler.partial


@pytest.mark.parametrize("case", cases("frames", "assembled"))
def test_assembled(case: Case) -> None:
    assembler = codec.Assembler(case["limit"])
    *early, last = [bytes.fromhex(part) for part in case["feed"]]
    for part in early:
        assert assembler.feed(part) is None
        assert assembler.partial
    if "error" in case:
        with pytest.raises(SharedWidgetsError) as raised:
            assembler.feed(last)
        assert raised.value.code == case["error"]
    else:
        assert assembler.feed(last) == case["text"]


@pytest.mark.parametrize("case", cases("delta", "apply"))
def test_apply(case: Case) -> None:
    op = read_op(case["op"], buffers_of(case))
    value = unpack(case, "value")
    if "error" in case:
        with pytest.raises(SharedWidgetsError) as raised:
            delta.apply(value, op)
        assert raised.value.code == case["error"]
    else:
        assert values.same(delta.apply(value, op), unpack(case, "after"))
    assert values.same(value, unpack(case, "value"))


@pytest.mark.parametrize("case", cases("delta", "entries"))
def test_apply_entry(case: Case) -> None:
    images = msgspec.convert(values.unpack(case["states"], []), type=dict[str, StateImage])
    states: States = {name: State.from_image(image) for name, image in images.items()}
    last: dict[tuple[str, str], int] = {}
    for step in case["entries"]:
        entry = msgspec.convert(values.unpack(step["entry"], []), type=Entry)
        touched = delta.apply_entry(states, entry)
        assert sorted(touched) == sorted((state, trait) for state, trait in step["touched"])
        last.update(dict.fromkeys(map(tuple, step["touched"]), entry.seq))
    assert {(name, trait): item.seq for name, state in states.items() for trait, item in state.last.items()} == last
    after = {name: msgspec.structs.replace(state.image(), last={}) for name, state in states.items()}
    assert msgspec.to_builtins(after) == msgspec.to_builtins(msgspec.convert(case["after"], type=dict[str, StateImage]))


@pytest.mark.parametrize("case", cases("delta", "diff"))
def test_diff(case: Case) -> None:
    shown, new = unpack(case, "shown"), unpack(case, "new")
    ops = delta.diff("S", "t", case["kind"], shown, new)
    assert same_ops(ops, case["ops"], buffers_of(case))
    value = shown
    for op in ops:
        value = delta.apply(value, op)
    assert values.same(value, new)


@pytest.mark.parametrize("case", cases("delta", "compress"))
def test_compress(case: Case) -> None:
    base, new = unpack(case, "base"), unpack(case, "new")
    whole = Set(state="S", path=("t",), value=new)
    op = delta.compress(whole, base, 7)
    if case["cut"] is None:
        assert op is whole
    else:
        assert same_ops([op], [{"op": "splice", "state": "S", "path": ["t"], "rev": 7, **case["cut"]}], buffers_of(case))
    assert values.same(delta.apply(base, op), new)


def same_ops(ops: list[Op], wanted: list[object], buffers: list[bytes]) -> bool:
    return values.same(plain_values(ops), plain_values([read_op(op, buffers) for op in wanted]))


@pytest.mark.parametrize("case", cases("replica", "scripts"))
def test_replica(case: Case) -> None:
    replica = Replica("r")
    buffers = buffers_of(case)
    # What a step does not say again stays as it was.
    expected: Case = {"view": {}, "undecided": 0, "unsent": 0, "seq": 0, "members": [], "lock": [None]}
    for step in case["steps"]:
        outcome = perform(replica, step, buffers)
        expected |= {key: step[key] for key in expected if key in step}
        told = told_of(replica, outcome)
        wanted = {
            **{key: values.unpack(item, buffers) for key, item in expected.items()},
            **{
                key: values.unpack(step.get(key, []), buffers)
                for key in ("changes", "refused", "joined", "gone", "send", "pushes", "ops", "position", "error")
            },
            "defined": step.get("defined", False),
        }
        wanted["changes"] = sorted(wanted["changes"], key=place)
        for key, item in wanted.items():
            assert values.same(told[key], item), f"{step}: {key} is {told[key]}, not {item}"


def perform(replica: Replica, step: Case, buffers: list[bytes]) -> Case:
    try:
        if "receive" in step:
            text = json.dumps({"room": "r", **step["receive"]})
            return {"news": replica.receive(decode_with(text, buffers))}
        if "write" in step:
            ops = [read_op(op, buffers) for op in step["write"]]
            return {"news": replica.write(ops, group=step.get("group", False), depth=step.get("depth", 0))}
        if "assign" in step:
            state, trait, shown, new = step["assign"]
            ops = replica.assign(state, trait, values.unpack(shown, buffers), values.unpack(new, buffers))
            return {"ops": plain_values(ops), "news": replica.write(ops) if ops else News()}
        if "take" in step:
            return {"pushes": [push_of(plain_values(push)) for push in replica.take(step["take"])]}
        if "position_of" in step:
            return {"position": plain_values(replica.position(step["position_of"]))}
        if "abandon" in step:
            return {"news": replica.abandon(msgspec.convert(step["abandon"], type=Problem))}
        assert step["disconnected"]
        replica.disconnected()
        return {}
    except SharedWidgetsError as error:
        return {"error": error.code}


def decode_with(text: str, buffers: list[bytes]) -> Any:
    return codec.decode_downstream(codec.Encoded(text.encode(), tuple(buffers)).frame())


def plain_values(message: object) -> Any:
    return values.normalise(msgspec.to_builtins(message, builtin_types=(bytes,)))


def push_of(push: Case) -> list[Value]:
    named = [push.get("depth", 0), push["epoch"]] if "epoch" in push else [push["depth"]] if "depth" in push else []
    return [push["n"], push["ops"], *named]


def told_of(replica: Replica, outcome: Case) -> Case:
    lock = LockName(kind="state", name="S")
    holder = replica.locks.get(lock)
    news: News = outcome.get("news", News())
    return {
        "view": {state: replica.view(state) for state in replica.states},
        "undecided": replica.undecided,
        "unsent": replica.unsent,
        "seq": replica.seq,
        "members": list(replica.members),
        "lock": [holder.member if holder else None, *replica.waiting.get(lock, ())],
        "changes": sorted((change_of(change) for change in news.changes), key=place),
        "refused": [[item.n, item.problem.code, plain_values(item.values)] for item in news.refused],
        "joined": [member.id for member in news.joined],
        "gone": [member.id for member in news.gone],
        "send": plain_values(news.send),
        "pushes": outcome.get("pushes", []),
        "ops": outcome.get("ops", []),
        "position": outcome.get("position", []),
        "error": outcome.get("error", []),
        "defined": news.defined,
    }


def place(change: Any) -> Any:
    return change[:2]


def change_of(change: Change) -> list[Value]:
    who: list[Value] = [change.actor.id, change.seq] if change.actor else []
    return [change.state, change.trait, change.old, change.new, change.origin, *who]
