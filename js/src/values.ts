// The value domain, the twin of core/values.py: what a trait's value may be on the wire, and how it is written in JSON.
//
// A value is null, a boolean, a number, a bigint, well-formed text, a Uint8Array, a list, or a dict. Here a whole number of at
// most ±(2^53 − 1) is an int, beyond that a bigint is an int and a number is a float. JSON cannot say all of that, so a few
// values travel as a *tag*, a dict with exactly one key:
//
//   {"$int": "9007199254740993"}   an int beyond ±(2^53 − 1), in decimal
//   {"$float": "nan"}              nan, inf, -inf, or a whole float beyond ±(2^53 − 1) in decimal
//   {"$bytes": 0}                  the buffer of that index, which travels beside the JSON
//   {"$dict": {...}}               a dict whose only key begins with "$", so that no user's dict is a tag
//
// JavaScript writes −0 as 0, and so does this file; `same` never tells them apart.

import { InvalidToken, InvalidValue, Malformed } from "./errors";

export type Value = null | boolean | number | bigint | string | Uint8Array | readonly Value[] | Dict;
export interface Dict {
  readonly [key: string]: Value;
}

export type Json = null | boolean | number | string | readonly Json[] | { readonly [key: string]: Json };

export const MAX_DEPTH = 32;
export const MAX_TOKEN = 128;

// A message adds levels of its own around a value (message, ops, op, value, tag); beyond this no value can be legal.
const MAX_FRAME_DEPTH = 2 * MAX_DEPTH + 16;
const MAX_INT_DIGITS = 4000;
const MAX_INT_BITS = 3 * MAX_INT_DIGITS;
const MAX_SAFE = BigInt(Number.MAX_SAFE_INTEGER);
const FORBIDDEN_IN_TOKENS = /[\p{Cc}\p{Cf}\p{Cs}\p{Co}\p{Zl}\p{Zp}]/u;
const OUTER_SPACE = /^\p{Zs}|\p{Zs}$/u;
const LONE_SURROGATE = /\p{Cs}/u;
const INT = /^-?[0-9]+$/;
const FLOAT = /^-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?$/;

/** A dict to fill. It has no prototype: `__proto__` and `constructor` are keys like any other in it. */
export function emptyDict<T>(): Record<string, T> {
  return Object.create(null) as Record<string, T>;
}

export function isList(value: unknown): value is readonly Value[] {
  return Array.isArray(value);
}

export function isDict(value: Value): value is Dict {
  return typeof value === "object" && value !== null && !isList(value) && !(value instanceof Uint8Array);
}

/** What a dict holds under a key; never what a prototype has. */
export function getKey(dict: Dict, key: string): Value | undefined {
  return Object.hasOwn(dict, key) ? dict[key] : undefined;
}

/** A private copy of what a user assigned, inside the domain; InvalidValue with the path to the offending part. */
export function normalise(value: unknown, levels = MAX_DEPTH): Value {
  if (value === null || typeof value === "boolean") return value;
  if (typeof value === "number") return value === 0 ? 0 : value;
  if (typeof value === "bigint") return wholeNumber(value);
  if (typeof value === "string") return domainText(value);
  if (ArrayBuffer.isView(value)) return new Uint8Array(value.buffer, value.byteOffset, value.byteLength).slice();
  if (value instanceof ArrayBuffer) return new Uint8Array(value).slice();
  if (Array.isArray(value)) {
    descend(levels);
    return Array.from(value, (item: unknown, index) => at(String(index), () => normalise(item, levels - 1)));
  }
  if (typeof value === "object" && isPlain(value)) {
    descend(levels);
    const copy = emptyDict<Value>();
    for (const [key, item] of Object.entries(value)) {
      copy[domainText(key)] = at(key, () => normalise(item, levels - 1));
    }
    return copy;
  }
  throw new InvalidValue(`${describe(value)} has no wire form; give null, boolean, number, bigint, text, bytes, list or dict`);
}

/** How many levels of list and dict a value has; 0 for a scalar. */
export function depth(value: Value): number {
  const items = isList(value) ? value : isDict(value) ? Object.values(value) : null;
  return items === null ? 0 : 1 + items.reduce<number>((most, item) => Math.max(most, depth(item)), 0);
}

/** Whether two values are equal on the wire: `1` and `1n` are, `1` and `true` are not, nan equals nan. */
export function same(left: Value, right: Value): boolean {
  if (left === right) return true;
  if (typeof left === "number" && typeof right === "number") return Number.isNaN(left) && Number.isNaN(right);
  if (typeof left === "bigint" && typeof right === "number") return Number.isInteger(right) && BigInt(right) === left;
  if (typeof left === "number" && typeof right === "bigint") return same(right, left);
  if (left instanceof Uint8Array && right instanceof Uint8Array) {
    return left.length === right.length && left.every((byte, index) => byte === right[index]);
  }
  if (isList(left) && isList(right)) {
    return left.length === right.length && left.every((item, index) => same(item, right[index] ?? null));
  }
  if (isDict(left) && isDict(right)) {
    const keys = Object.keys(left);
    return (
      keys.length === Object.keys(right).length &&
      keys.every((key) => Object.hasOwn(right, key) && same(left[key] ?? null, right[key] ?? null))
    );
  }
  return false;
}

/** About how many bytes a value takes on the wire; the same number as in Python. */
export function size(value: Value): number {
  if (typeof value === "string") return utf8Length(value) + 2;
  if (value instanceof Uint8Array) return value.length + 16;
  if (isList(value)) return value.reduce<number>((sum, item) => sum + size(item) + 1, 2);
  if (isDict(value)) return Object.entries(value).reduce((sum, [key, item]) => sum + size(key) + size(item) + 2, 2);
  if (typeof value === "bigint" && !isSafe(value)) return 12 + Math.floor(bitLength(value) / 3);
  return 8;
}

/** The JSON form of a value of the domain; its bytes are appended to `buffers`. */
export function pack(value: Value, buffers: Uint8Array[]): Json {
  if (isList(value)) return value.map((item) => pack(item, buffers));
  if (value instanceof Uint8Array) return { $bytes: buffers.push(value) - 1 };
  if (typeof value === "bigint") return isSafe(value) ? Number(value) : { $int: String(value) };
  if (typeof value === "number") return travelsPlain(value) ? value : { $float: floatText(value) };
  if (!isDict(value)) return value;
  const packed = emptyDict<Json>();
  for (const [key, item] of Object.entries(value)) packed[key] = pack(item, buffers);
  return tagOf(packed) === null ? packed : { $dict: packed };
}

/** The value whose JSON form this is; Malformed for a bad tag or number, a lone surrogate, a missing buffer, or too deep. */
export function unpack(json: unknown, buffers: readonly Uint8Array[], levels = MAX_FRAME_DEPTH): Value {
  if (levels < 0) throw new Malformed(`nested deeper than ${MAX_FRAME_DEPTH} levels`);
  if (json === null || typeof json === "boolean") return json;
  if (typeof json === "string") return wireText(json);
  if (typeof json === "number") {
    // JSON has no infinity: a number that reads as one was out of range.
    if (travelsPlain(json)) return json;
    throw new Malformed('a number beyond ±(2^53 − 1) must be sent as {"$int": "…"} or {"$float": "…"}');
  }
  if (Array.isArray(json)) return json.map((item: unknown) => unpack(item, buffers, levels - 1));
  if (typeof json !== "object") throw new Malformed(`${describe(json)} is no JSON`);
  const tag = tagOf(json);
  return tag === null ? unpackDict(json, buffers, levels) : untag(tag, Reflect.get(json, tag), buffers, levels);
}

/** The token itself, when it is a legal room name; InvalidToken says which rule is broken. Nothing is normalised. */
export function checkToken(token: unknown): string {
  if (typeof token !== "string")
    throw new InvalidToken(`a token is text, not ${describe(token)}; give a name such as 'demo-room'`);
  const length = Array.from(token).length;
  if (length < 1 || length > MAX_TOKEN) {
    throw new InvalidToken(`a token has 1 to ${MAX_TOKEN} characters, this one has ${length}`);
  }
  if (token === "." || token === "..")
    throw new InvalidToken(`'${token}' is a step in a path; give a name such as 'demo-room'`);
  const bad = FORBIDDEN_IN_TOKENS.exec(token)?.[0].codePointAt(0);
  if (bad !== undefined) {
    const name = bad.toString(16).toUpperCase().padStart(4, "0");
    throw new InvalidToken(`U+${name} may not be in a token (control, format, private or separator character)`);
  }
  if (OUTER_SPACE.test(token)) throw new InvalidToken(`'${token}' begins or ends with a space; take it off`);
  return token;
}

/** An int of any length as this side holds it: a number where that is exact. */
export function wholeNumber(value: bigint): number | bigint {
  if (isSafe(value)) return Number(value);
  const bits = bitLength(value);
  if (bits > MAX_INT_BITS) throw new InvalidValue(`an int of ${bits} bits is too long; keep it below ${MAX_INT_BITS} bits`);
  return value;
}

/** Whether text has a lone surrogate, which no UTF-8 can carry. */
export function isIllFormed(text: string): boolean {
  return LONE_SURROGATE.test(text);
}

function unpackDict(json: object, buffers: readonly Uint8Array[], levels: number): Dict {
  const dict = emptyDict<Value>();
  for (const [key, item] of Object.entries(json)) dict[wireText(key)] = unpack(item, buffers, levels - 1);
  return dict;
}

function tagOf(json: object): string | null {
  const [only, another] = Object.keys(json);
  return only?.startsWith("$") && another === undefined ? only : null;
}

function untag(tag: string, body: unknown, buffers: readonly Uint8Array[], levels: number): Value {
  if (tag === "$int" && typeof body === "string" && body.length <= MAX_INT_DIGITS + 1 && INT.test(body)) {
    const number = BigInt(body);
    if (!isSafe(number) && String(number) === body) return number;
  }
  if (tag === "$float" && typeof body === "string") {
    if (body === "nan") return Number.NaN;
    if (body === "inf") return Number.POSITIVE_INFINITY;
    if (body === "-inf") return Number.NEGATIVE_INFINITY;
    const real = body.length <= 32 && FLOAT.test(body) ? Number(body) : 0;
    if (Number.isFinite(real) && Math.abs(real) > Number.MAX_SAFE_INTEGER) return real;
  }
  if (tag === "$bytes" && typeof body === "number") {
    const buffer = buffers[body];
    if (buffer !== undefined) return buffer;
  }
  if (tag === "$dict" && typeof body === "object" && body !== null && !Array.isArray(body) && tagOf(body) !== null) {
    return unpackDict(body, buffers, levels);
  }
  throw new Malformed(`${tag} is not a tag this protocol knows, or not with this content`);
}

function travelsPlain(value: number): boolean {
  return Number.isFinite(value) && (Number.isSafeInteger(value) || !Number.isInteger(value));
}

/** As Python's `repr` writes it, so that both languages send the same bytes. */
function floatText(value: number): string {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  return Math.abs(value) < 1e16 ? `${value}.0` : value.toExponential();
}

function isSafe(value: bigint): boolean {
  return -MAX_SAFE <= value && value <= MAX_SAFE;
}

function bitLength(value: bigint): number {
  return (value < 0n ? -value : value).toString(2).length;
}

function utf8Length(text: string): number {
  let bytes = text.length;
  for (let index = 0; index < text.length; index++) {
    const unit = text.charCodeAt(index);
    // Each half of a surrogate pair stands for two of its four bytes.
    if (unit >= 0x80) bytes += unit < 0x800 || (unit >= 0xd800 && unit < 0xe000) ? 1 : 2;
  }
  return bytes;
}

function isPlain(value: object): boolean {
  // Object.prototype of another frame counts too, so its identity is no test.
  const prototype: unknown = Object.getPrototypeOf(value);
  return prototype === null || Object.getPrototypeOf(prototype) === null;
}

function at(key: string, normalised: () => Value): Value {
  try {
    return normalised();
  } catch (error) {
    throw error instanceof InvalidValue ? error.located({ path: [key] }) : error;
  }
}

function descend(levels: number): void {
  const expected = `at most ${MAX_DEPTH} levels`;
  if (levels <= 0) throw new InvalidValue(`nested deeper than ${MAX_DEPTH} levels of list and dict`, { expected });
}

function domainText(text: string): string {
  if (isIllFormed(text)) throw new InvalidValue("text with a lone surrogate has no wire form", { expected: "text" });
  return text;
}

function wireText(text: string): string {
  if (isIllFormed(text)) throw new Malformed("text with a lone surrogate");
  return text;
}

function describe(value: unknown): string {
  if (typeof value !== "object" || value === null) return typeof value === "undefined" ? "undefined" : `a ${typeof value}`;
  return `a ${value.constructor?.name ?? "object"}`;
}
