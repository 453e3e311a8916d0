import { describe, expect, test } from "vitest";
import { InvalidValue } from "./errors";
import type { Op, Push } from "./protocol";
import { parseDownstream, parseUpstream, write } from "./protocol";
import { type News, Replica } from "./replica";
import { type Dict, emptyDict, isDict, isList, pack, unpack, type Value } from "./values";
import { cases, codeOf } from "./vectors";

/** What a step may tell; what it leaves out is as in `kept`, or empty. */
const kept = ["view", "undecided", "unsent", "seq", "members", "lock"] as const;
const fresh = ["changes", "refused", "joined", "gone", "send", "pushes", "ops", "position", "error"] as const;

describe("replica", () => {
  test.each(cases("replica", "scripts"))("$name", (given) => {
    const replica = new Replica("r");
    const buffers = given.buffers();
    let expected: Dict = { view: {}, undecided: 0, unsent: 0, seq: 0, members: [], lock: [null] };
    for (const raw of given.list("steps")) {
      const step = unpack(raw, buffers);
      if (!isDict(step)) throw new Error("a step is a dict");
      const told = perform(replica, step);
      for (const key of kept) if (key in step) expected = { ...expected, [key]: step[key] ?? null };
      const wanted: Record<string, Value> = { ...expected, defined: step.defined ?? false };
      for (const key of fresh) wanted[key] = step[key] ?? [];
      wanted.changes = sorted(wanted.changes as Value[][]);
      expect(plain(told), JSON.stringify(raw)).toEqual(plain(wanted));
    }
  });

  test("remembers who changed a trait last, until the next snapshot", () => {
    const replica = new Replica("r");
    replica.receive(snapshot());
    expect(replica.lastChange("S", "n")).toBeNull();
    const by = { id: "k", kind: "kernel" };
    const ops = [{ op: "set", state: "S", path: ["n"], value: 5 }];
    const frame = { type: "entries", room: "r", epoch: "e", prev: 1, last: 2, entries: [{ seq: 2, at: 1.5, by, ops }] };
    replica.receive(forRoom(frame));
    expect(replica.lastChange("S", "n")).toMatchObject({ actor: by, seq: 2, at: 1.5 });
    replica.receive(snapshot());
    expect(replica.lastChange("S", "n")).toBeNull();
  });

  test("every message that may change the view makes a newer version", () => {
    const replica = new Replica("r");
    const versions = [replica.version];
    replica.receive(snapshot());
    versions.push(replica.version);
    replica.write([set(2)]);
    versions.push(replica.version);
    replica.receive(forRoom({ type: "nack", room: "r", n: 1, problem: { code: "c", message: "m" } }));
    versions.push(replica.version);
    expect(versions).toEqual([...new Set(versions)].sort((left, right) => left - right));
  });

  test("keeps a private copy of what it is given", () => {
    const replica = new Replica("r");
    replica.receive(snapshot());
    const value = [1];
    replica.write([{ op: "set", state: "S", path: ["x"], value, if_rev: null, if_in: null }]);
    value.push(2);
    expect(replica.value("S", "x")).toEqual([1]);
  });

  test("says where a refused write went wrong", () => {
    const replica = new Replica("r");
    replica.receive(snapshot());
    const bad = { op: "set", state: "S", path: ["x", "a"], value: { b: ["\ud800"] }, if_rev: null, if_in: null } as const;
    expect(() => replica.write([{ ...bad, path: ["x"] }])).toThrow(
      expect.objectContaining({ code: "invalid-value", room: "r", state: "S", trait: "x", path: ["x", "b", "0"] }),
    );
    expect(() => replica.write([set(1), { ...bad, path: ["x", "\udc00"], value: 1 }])).toThrow(InvalidValue);
    expect(() => replica.write([{ op: "append", state: "S", path: ["x"], items: ["\ud800"] }])).toThrow(InvalidValue);
    expect(replica.undecided).toBe(0);
  });

  test("knows whether a push has its verdict", () => {
    const replica = new Replica("r");
    replica.receive(snapshot());
    expect(replica.newest()).toBeNull();
    replica.write([set(2)]);
    const push = replica.newest();
    expect(push !== null && replica.isOpen(push)).toBe(true);
    replica.take(1);
    replica.receive(forRoom({ type: "entries", room: "r", epoch: "e", prev: 1, last: 1, decided: 1 }));
    expect(push !== null && replica.isOpen(push)).toBe(false);
  });
});

function set(value: Value): Op {
  return { op: "set", state: "S", path: ["n"], value, if_rev: null, if_in: null };
}

function snapshot() {
  const S = { schema: { n: { kind: "int" }, x: {} }, values: { n: 1, x: null } };
  return forRoom({ type: "snapshot", room: "r", incarnation: "i", epoch: "e", seq: 1, states: { S } });
}

function forRoom(json: Value) {
  const message = parseDownstream(json);
  switch (message.type) {
    case "snapshot":
    case "entries":
    case "nack":
    case "resend":
    case "members":
    case "waiting":
      return message;
    default:
      throw new Error(`${message.type} is not for a replica`);
  }
}

function readOps(json: Value | undefined): readonly Op[] {
  if (Array.isArray(json) && json.length === 0) return [];
  const push = parseUpstream({ type: "push", room: "r", n: 1, ops: json ?? null });
  if (push.type !== "push") throw new Error("no push");
  return push.ops;
}

function perform(replica: Replica, step: Dict): Record<string, Value> {
  const outcome: Record<string, Value> = {};
  let news: News | null = null;
  const code = codeOf(() => {
    news = act(replica, step, outcome);
  });
  const error = code === "no error" ? [] : code;
  return { ...told(news), view: viewOf(replica), ...standing(replica), pushes: [], ops: [], position: [], ...outcome, error };
}

function act(replica: Replica, step: Dict, outcome: Record<string, Value>): News | null {
  if (step.receive !== undefined) return replica.receive(forRoom({ room: "r", ...(step.receive as Dict) }));
  if (step.write !== undefined) {
    return replica.write(readOps(step.write), { group: step.group === true, depth: Number(step.depth ?? 0) });
  }
  if (step.assign !== undefined) {
    const [state, trait, shown, value] = step.assign as Value[];
    const ops = replica.assign(String(state), String(trait), shown ?? null, value ?? null);
    outcome.ops = plainOps(ops);
    return ops.length > 0 ? replica.write(ops) : null;
  }
  if (step.take !== undefined) {
    outcome.pushes = replica
      .take(Number(step.take))
      .map(({ n, ops, depth, epoch }) => [n, plainOps(ops), ...(epoch !== "" ? [depth, epoch] : depth > 0 ? [depth] : [])]);
  } else if (step.position_of !== undefined) {
    outcome.position = write(replica.position(step.position_of as string[]));
  } else if (step.abandon !== undefined) {
    const failure = parseDownstream({ type: "error", problem: step.abandon });
    return failure.type === "error" ? replica.abandon(failure.problem) : null;
  } else {
    expect(step.disconnected).toBe(true);
    replica.disconnected();
  }
  return null;
}

function plainOps(ops: readonly Op[]): Value {
  const push: Push = { type: "push", room: "r", n: 1, ops, depth: 0, fences: {}, answer: false, epoch: "" };
  return (write(push) as Dict).ops ?? null;
}

function told(news: News | null): Record<string, Value> {
  const { changes = [], refused = [], joined = [], gone = [], send = [], defined = false } = news ?? {};
  return {
    changes: sorted(
      changes.map(({ state, trait, old, new: value, origin, actor, seq }) => {
        const who = actor === null ? [] : [actor.id, seq];
        return [state, trait, old, value, origin, ...who];
      }),
    ),
    refused: refused.map(({ n, problem, values }) => [n, problem.code, values]),
    joined: joined.map(({ id }) => id),
    gone: gone.map(({ id }) => id),
    send: send.map(write),
    defined,
  };
}

function viewOf(replica: Replica): Value {
  const states = replica.stateNames.map((state) => [state, replica.view(state)] as const);
  return Object.assign(Object.create(null), Object.fromEntries(states));
}

function standing(replica: Replica): Record<string, Value> {
  const { undecided, unsent, seq } = replica;
  const lock = [replica.holder("S")?.member ?? null, ...replica.waiters("S")];
  return { undecided, unsent, seq, members: [...replica.members.keys()], lock };
}

function sorted(changes: readonly (readonly Value[])[]): Value[] {
  return [...changes].sort((left, right) => (String(left.slice(0, 2)) < String(right.slice(0, 2)) ? -1 : 1));
}

/** One text for what is the same on the wire, whatever the order of keys. */
function plain(value: Value): string {
  const buffers: Uint8Array[] = [];
  return JSON.stringify([pack(ordered(value), buffers), buffers.map(String)], null, 1);
}

function ordered(value: Value): Value {
  if (isList(value)) return value.map(ordered);
  if (!isDict(value)) return value;
  const copy = emptyDict<Value>();
  for (const key of Object.keys(value).sort()) copy[key] = ordered(value[key] ?? null);
  return copy;
}
