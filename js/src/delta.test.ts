import { describe, expect, test } from "vitest";
import { addedUp, apply, applyEntry, compress, diff, find, fromImage, MOST_KEYS, type State, type States } from "./delta";
import type { Entry, Op, Set as SetOp, StateImage } from "./protocol";
import { parseDownstream, parseUpstream } from "./protocol";
import { same, unpack, type Value } from "./values";
import { cases, codeOf } from "./vectors";

function readOp(json: unknown, buffers: readonly Uint8Array[] = []): Op {
  const push = parseUpstream({ type: "push", room: "r", n: 1, ops: [unpack(json, buffers)] });
  if (push.type !== "push" || push.ops[0] === undefined) throw new Error("no push of one op");
  return push.ops[0];
}

function readEntry(json: unknown): Entry {
  const frame = parseDownstream({ type: "entries", room: "r", epoch: "e", prev: 0, last: 1, entries: [unpack(json, [])] });
  if (frame.type !== "entries" || frame.entries[0] === undefined) throw new Error("no frame of one entry");
  return frame.entries[0];
}

function readImages(states: Value): Readonly<Record<string, StateImage>> {
  const message = parseDownstream({ type: "snapshot", room: "r", incarnation: "i", epoch: "e", seq: 0, states });
  if (message.type !== "snapshot") throw new Error("no snapshot");
  return message.states;
}

test.each(cases("delta", "apply"))("apply: $name", (given) => {
  const op = readOp(given.raw.op, given.buffers());
  const value = given.value("value");
  if (given.has("error")) expect(codeOf(() => apply(value, op))).toBe(given.raw.error);
  else expect(same(apply(value, op), given.value("after"))).toBe(true);
  expect(same(value, given.value("value"))).toBe(true);
});

test.each(cases("delta", "entries"))("entries: $name", (given) => {
  const states: States = new Map(
    Object.entries(readImages(given.value("states"))).map(([name, image]) => [name, fromImage(image)]),
  );
  const last = new Map<string, number>();
  for (const step of given.list("entries") as { entry: unknown; touched: string[][] }[]) {
    const entry = readEntry(step.entry);
    const touched = applyEntry(states, entry).map(({ state, trait }) => `${state}.${trait}`);
    expect(new Set(touched)).toEqual(new Set(step.touched.map((key) => key.join("."))));
    for (const key of step.touched) last.set(key.join("."), entry.seq);
  }
  const changed = [...states].flatMap(([name, state]) =>
    [...state.last].map(([trait, { seq }]) => [`${name}.${trait}`, seq] as const),
  );
  expect(new Map(changed)).toEqual(last);
  for (const state of states.values()) state.last.clear();
  const after = Object.entries(readImages(given.value("after"))).map(([name, image]) => [name, fromImage(image)] as const);
  expect(states).toEqual(new Map(after));
});

test.each(cases("delta", "diff"))("diff: $name", (given) => {
  const [shown, value] = [given.value("shown"), given.value("new")];
  const ops = diff("S", "t", given.text("kind") as "dict", shown, value);
  expect(ops).toEqual(given.list("ops").map((op) => readOp(op)));
  expect(same(ops.reduce(apply, shown), value)).toBe(true);
});

test.each(cases("delta", "compress"))("compress: $name", (given) => {
  const [base, value] = [given.value("base"), given.value("new")];
  const whole: SetOp = { op: "set", state: "S", path: ["t"], value, if_rev: null, if_in: null };
  const op = compress(whole, base, 7);
  if (given.raw.cut === null) expect(op).toBe(whole);
  else expect(op).toEqual({ op: "splice", state: "S", path: ["t"], rev: 7, ...given.dict("cut") });
  expect(same(apply(base, op), value)).toBe(true);
});

test.each([
  [1, 2, 3],
  [1, 0.5, 1.5],
  [1e308, -1e308, 0],
  [1e308, 1e308, null],
  [Number.POSITIVE_INFINITY, 1, null],
  [Number.NaN, 1, null],
  [2n ** 11_999n, 2n ** 11_999n, null],
  [10n ** 400n, 0.5, null],
])("two sums are one only where that says the same (H12): %s and %s", (left, right, total) => {
  expect(addedUp(left, right)).toBe(total);
});

describe("applying never changes a value in place", () => {
  const bytes = Uint8Array.of(1, 2, 3);
  const value = { list: [1, 2, 3], bytes, text: "abc", deep: { a: {} } };
  const ops: Op[] = [
    { op: "splice", state: "S", path: ["t", "list"], rev: 1, at: 0, remove: 1, insert: [9] },
    { op: "splice", state: "S", path: ["t", "bytes"], rev: 1, at: 0, remove: 1, insert: Uint8Array.of(9) },
    { op: "append", state: "S", path: ["t", "list"], items: [4] },
    { op: "set", state: "S", path: ["t", "deep", "a", "b"], value: 1, if_rev: null, if_in: null },
    { op: "delete", state: "S", path: ["t", "deep", "a"] },
  ];

  test.each(ops)("$op $path", (op) => {
    apply(value, op);
    expect(value).toEqual({ list: [1, 2, 3], bytes: Uint8Array.of(1, 2, 3), text: "abc", deep: { a: {} } });
  });
});

test.each([
  [MOST_KEYS, MOST_KEYS],
  [MOST_KEYS + 1, 1],
])("a dict that changes in %i keys is %i ops", (keys, many) => {
  const value = Object.fromEntries(Array.from({ length: keys }, (_, number) => [String(number), number]));
  const ops = diff("S", "t", "dict", {}, value);
  expect(ops).toHaveLength(many);
  expect(same(ops.reduce(apply, {}), value)).toBe(true);
});

test("people are not told of what stands beside a state of theirs", () => {
  const state = (): State => ({ schema: new Map(), values: new Map(), last: new Map() });
  const states: States = new Map([
    ["Fit", state()],
    ["Fit@lead@reacts", state()],
  ]);
  expect(() => find(states, "Other", "a")).toThrow(/there is Fit$/);
});
