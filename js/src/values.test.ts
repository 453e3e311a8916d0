import { describe, expect, test } from "vitest";
import { InvalidToken, InvalidValue, Malformed } from "./errors";
import { checkToken, depth, getKey, isDict, normalise, pack, same, size, unpack } from "./values";
import { cases, toHex } from "./vectors";

describe("tokens", () => {
  test.each(cases("tokens", "legal"))("legal: $name", (given) => {
    expect(checkToken(given.raw.token)).toBe(given.raw.token);
  });

  test.each(cases("tokens", "illegal"))("illegal: $name", (given) => {
    expect(() => checkToken(given.raw.token)).toThrow(InvalidToken);
    expect(() => checkToken(given.raw.token)).toThrow(given.text("says"));
  });
});

describe("values", () => {
  test.each(cases("values", "values"))("$name", (given) => {
    const value = given.value("packed");
    const buffers: Uint8Array[] = [];
    const packed = pack(value, buffers);
    expect(JSON.stringify(packed)).toBe(JSON.stringify(given.raw.repacked ?? given.raw.packed));
    expect(buffers.map(toHex)).toEqual(given.list(given.has("rebuffers") ? "rebuffers" : "buffers"));
    expect(same(unpack(packed, buffers), value)).toBe(true);
    expect(size(value)).toBe(given.raw.size);
    expect(depth(value)).toBe(given.raw.depth);
  });

  test.each(cases("values", "illegal"))("illegal: $name", (given) => {
    expect(() => given.value("packed")).toThrow(Malformed);
  });

  test.each(cases("values", "same"))("same: $name", (given) => {
    const [left, right] = [given.value("left"), given.value("right")];
    expect(same(left, right)).toBe(given.raw.same);
    expect(same(right, left)).toBe(given.raw.same);
    expect(same(left, left)).toBe(true);
  });

  test("the keys of a prototype are only keys", () => {
    const value = unpack(JSON.parse('{"__proto__": {"polluted": 1}, "constructor": 2}'), []);
    expect(isDict(value) && getKey(value, "constructor")).toBe(2);
    expect(isDict(value) && getKey(value, "toString")).toBeUndefined();
    expect("polluted" in {}).toBe(false);
    const copy = normalise(value);
    expect(Object.getPrototypeOf(copy)).toBeNull();
    expect(JSON.stringify(copy)).toBe('{"__proto__":{"polluted":1},"constructor":2}');
  });
});

describe("normalise", () => {
  test.each([
    ["null", null],
    ["a boolean", true],
    ["nan", Number.NaN],
    ["text", "é😀"],
    ["a list", [1, [2.5]]],
    ["a dict", { a: { b: null } }],
    ["a dict without prototype", Object.assign(Object.create(null), { a: 1 })],
    ["a large bigint", 2n ** 60n],
    ["bytes", Uint8Array.of(1, 2)],
    ["32 levels", nested(32)],
  ])("keeps %s", (_, value) => {
    expect(same(normalise(value), value)).toBe(true);
  });

  test("gives one form to what is the same on the wire", () => {
    expect(normalise(7n)).toBe(7);
    expect(Object.is(normalise(-0), 0)).toBe(true);
    expect(normalise(Uint8Array.of(1, 2, 3).subarray(1, 2))).toEqual(Uint8Array.of(2));
    expect(normalise(Uint8Array.of(1, 2).buffer)).toEqual(Uint8Array.of(1, 2));
    expect(normalise(Uint16Array.of(1))).toEqual(Uint8Array.of(1, 0));
  });

  test("shares nothing that could be changed in place", () => {
    const bytes = Uint8Array.of(1);
    const given = { list: [bytes] };
    const copy = normalise(given);
    bytes[0] = 2;
    given.list.push(bytes);
    expect(same(copy, { list: [Uint8Array.of(1)] })).toBe(true);
  });

  test.each([
    ["undefined", undefined, []],
    ["a function", { a: [() => 1] }, ["a", "0"]],
    ["a symbol", [Symbol("s")], ["0"]],
    ["a date", { when: new Date(0) }, ["when"]],
    ["a map", new Map(), []],
    ["a hole", new Array(1), ["0"]],
    ["an undefined item", { a: undefined }, ["a"]],
    ["an instance of a class", { a: new (class Point {})() }, ["a"]],
    ["a lone surrogate", ["\ud800"], ["0"]],
    ["a lone surrogate in a key", { "\udc00": 1 }, []],
    ["a bigint of 12,001 bits", 2n ** 12_000n, []],
    ["33 levels", nested(33), Array(32).fill("0")],
  ])("refuses %s", (_, value, path) => {
    expect(() => normalise(value)).toThrow(InvalidValue);
    expect(() => normalise(value)).toThrow(expect.objectContaining({ code: "invalid-value", path }));
  });

  test("refuses a cycle", () => {
    const cycle: unknown[] = [];
    cycle.push(cycle);
    expect(() => normalise(cycle)).toThrow(InvalidValue);
  });
});

function nested(levels: number): unknown {
  return levels === 0 ? 1 : [nested(levels - 1)];
}
