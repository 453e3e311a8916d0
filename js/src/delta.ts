// The difference between two values as ops, and ops applied to values, the twin of core/delta.py.
//
// Values are never changed in place: applying an op gives a new value that shares what did not change.

import { InvalidValue, NoSuchPath, NoSuchState, NoSuchTrait } from "./errors";
import {
  type Entry,
  type EntryOp,
  type LastChange,
  type Numeric,
  type Op,
  ofUsers,
  type Set as SetOp,
  type Splice,
  type StateImage,
  type TraitKind,
  type TraitSchema,
} from "./protocol";
import { emptyDict, getKey, isDict, isList, same, size, type Value, wholeNumber } from "./values";

// A splice must save at least this many bytes over the whole value, or it is not worth its base revision.
export const SPLICE_SAVES = 256;
// Keys of a dict that may change one by one in one assignment; with more of them the dict is set whole.
export const MOST_KEYS = 200;

/** One state of a room: what its traits may hold, what they hold, and who changed them last. */
export interface State {
  readonly schema: Map<string, TraitSchema>;
  readonly values: Map<string, Value>;
  readonly last: Map<string, LastChange>;
}

export type States = Map<string, State>;

export interface TraitKey {
  readonly state: string;
  readonly trait: string;
}

/** A state as a snapshot tells it. */
export function fromImage(image: StateImage): State {
  return {
    schema: new Map(Object.entries(image.schema)),
    values: new Map(Object.entries(image.values)),
    last: new Map(Object.entries(image.last)),
  };
}

/** Schema and value of a trait; NoSuchState and NoSuchTrait name what there is. */
export function find(states: States, state: string, trait: string): { schema: TraitSchema; value: Value } {
  const found = states.get(state);
  if (found === undefined)
    throw new NoSuchState(`there is no state '${state}' here; there is ${listed(ofUsers(states.keys()))}`, { state });
  const schema = found.schema.get(trait);
  if (schema === undefined) {
    throw new NoSuchTrait(`${state} has no trait '${trait}'; it has ${listed([...found.schema.keys()].sort())}`, {
      state,
      path: [trait],
    });
  }
  return { schema, value: found.values.get(trait) ?? null };
}

/** The value of a trait after an op on it; NoSuchPath where the value has another shape than the op needs. */
export function apply(value: Value, op: Op): Value {
  return applyAt(value, op, 1);
}

/** Apply a decided entry in place; the traits it touched. */
export function applyEntry(states: States, entry: Entry): TraitKey[] {
  const change = { actor: entry.by, seq: entry.seq, at: entry.at };
  for (const op of entry.ops) {
    if (op.op === "define") {
      const state = states.get(op.state) ?? { schema: new Map(), values: new Map(), last: new Map() };
      states.set(op.state, state);
      for (const trait of Object.keys(op.schema)) state.last.set(trait, change);
      for (const [trait, schema] of Object.entries(op.schema)) state.schema.set(trait, schema);
      for (const [trait, value] of Object.entries(op.values)) state.values.set(trait, value);
    } else if (op.op !== "granted" && op.op !== "freed") {
      const trait = traitOf(op);
      const { value } = find(states, op.state, trait);
      states.get(op.state)?.values.set(trait, apply(value, op));
      states.get(op.state)?.last.set(trait, change);
    }
  }
  return entry.ops.flatMap(touched);
}

/** The traits an op concerns. */
export function touched(op: EntryOp): TraitKey[] {
  if (op.op === "granted" || op.op === "freed") return [];
  if (op.op === "define") return Object.keys(op.schema).map((trait) => ({ state: op.state, trait }));
  return [{ state: op.state, trait: traitOf(op) }];
}

/** The trait an op is about. */
export function traitOf(op: Op): string {
  return op.path[0] ?? "";
}

/**
 * The ops that lead from the value an author saw to the one it assigned.
 * Only a trait declared as a dict is compared key by key; any other value is atomic, and so is a dict that differs in more than
 * `MOST_KEYS` keys: one push could not hold them.
 */
export function diff(state: string, trait: string, kind: TraitKind, shown: Value, value: Value): Op[] {
  if (same(shown, value)) return [];
  const whole: Op[] = [{ op: "set", state, path: [trait], value, if_rev: null, if_in: null }];
  if (kind !== "dict" || !isDict(shown) || !isDict(value)) return whole;
  const ops: Op[] = [];
  for (const key of Object.keys(shown)) {
    if (!Object.hasOwn(value, key)) ops.push({ op: "delete", state, path: [trait, key] });
  }
  for (const [key, item] of Object.entries(value)) {
    const held = getKey(shown, key);
    if (held === undefined || !same(held, item))
      ops.push({ op: "set", state, path: [trait, key], value: item, if_rev: null, if_in: null });
  }
  return ops.length <= MOST_KEYS ? ops : whole;
}

/** A `Set` as a `Splice` against `base` at revision `rev`, where that saves enough bytes. */
export function compress(op: SetOp, base: Value, rev: number): SetOp | Splice {
  const cut = cutOf(base, op.value);
  if (cut === null || size(op.value) - size(cut.insert) < SPLICE_SAVES) return op;
  return { op: "splice", state: op.state, path: op.path, rev, ...cut };
}

/** The sum of two numbers of the domain; of two ints exactly, of whatever length. */
export function add(left: Numeric, right: Numeric): Numeric {
  if (isInt(left) && isInt(right)) return wholeNumber(BigInt(left) + BigInt(right));
  const sum = Number(left) + Number(right);
  if (!Number.isFinite(sum) && [left, right].some((part) => typeof part === "bigint" && !Number.isFinite(Number(part)))) {
    throw new InvalidValue("an int of this length cannot be added to a float");
  }
  return sum;
}

/** What two sums in a row add; null where that is no number that says the same as both, one after the other. */
export function addedUp(left: Numeric, right: Numeric): Numeric | null {
  try {
    const sum = add(left, right);
    return typeof sum === "bigint" || Number.isFinite(sum) ? sum : null;
  } catch (error) {
    if (error instanceof InvalidValue) return null;
    throw error;
  }
}

function isInt(value: Numeric): boolean {
  return typeof value === "bigint" || Number.isSafeInteger(value);
}

function applyAt(value: Value, op: Op, depth: number): Value {
  const key = op.path[depth];
  if (key === undefined) return applyHere(value, op);
  if (!isDict(value)) throw noSuchPath(op, `is no dict, so it has no key '${key}'`, depth);
  const last = depth + 1 === op.path.length;
  const copy = emptyDict<Value>();
  for (const [name, item] of Object.entries(value)) copy[name] = item;
  if (last && op.op === "delete") {
    delete copy[key];
    return copy;
  }
  const held = getKey(value, key);
  if (held === undefined && !(last && op.op === "set")) throw noSuchPath(op, `has no key '${key}'`, depth);
  copy[key] = applyAt(held ?? null, op, depth + 1);
  return copy;
}

function applyHere(value: Value, op: Op): Value {
  switch (op.op) {
    case "set":
      return op.value;
    case "inc":
      if (op.value !== null) return op.value;
      if (typeof value === "number" || typeof value === "bigint") return add(value, op.by);
      throw noSuchPath(op, "is no number to add to");
    case "append":
      if (isList(value)) return [...value, ...op.items];
      throw noSuchPath(op, "is no list to append to");
    case "splice":
      return spliced(value, op);
    case "delete":
      throw new InvalidValue(`${op.state}.${traitOf(op)} is a trait: set it, it cannot be deleted`, {
        state: op.state,
        path: op.path,
      });
  }
}

function spliced(value: Value, op: Splice): Value {
  const { at, remove, insert } = op;
  if (typeof value === "string" && typeof insert === "string") {
    const start = unitsOf(value, at);
    const end = unitsOf(value, at + remove);
    if (end !== null && start !== null) return value.slice(0, start) + insert + value.slice(end);
  } else if (value instanceof Uint8Array && insert instanceof Uint8Array && at + remove <= value.length) {
    const whole = new Uint8Array(value.length - remove + insert.length);
    whole.set(value.subarray(0, at));
    whole.set(insert, at);
    whole.set(value.subarray(at + remove), at + insert.length);
    return whole;
  } else if (isList(value) && isList(insert) && at + remove <= value.length) {
    return [...value.slice(0, at), ...insert, ...value.slice(at + remove)];
  }
  throw noSuchPath(op, "is not what the splice was cut from");
}

interface Cut {
  readonly at: number;
  readonly remove: number;
  readonly insert: Value;
}

function cutOf(base: Value, value: Value): Cut | null {
  if (size(value) < SPLICE_SAVES) return null;
  if (typeof base === "string" && typeof value === "string") return cutText(base, value);
  if (base instanceof Uint8Array && value instanceof Uint8Array) {
    const alike: Alike = (left, right) => base[left] === value[right];
    const at = headOf(base, value, alike);
    const tail = tailOf(base, value, at, alike);
    return { at, remove: base.length - at - tail, insert: value.slice(at, value.length - tail) };
  }
  if (isList(base) && isList(value)) {
    const alike: Alike = (left, right) => same(base[left] ?? null, value[right] ?? null);
    const at = headOf(base, value, alike);
    const tail = tailOf(base, value, at, alike);
    return { at, remove: base.length - at - tail, insert: value.slice(at, value.length - tail) };
  }
  return null;
}

function cutText(base: string, value: string): Cut {
  const alike: Alike = (left, right) => base.charCodeAt(left) === value.charCodeAt(right);
  // Two characters may share one half of a surrogate pair: either border moves back to where both texts are whole.
  let head = headOf(base, value, alike);
  if (isHigh(base, head - 1)) head -= 1;
  let tail = tailOf(base, value, head, alike);
  if (isLow(base, base.length - tail)) tail -= 1;
  return {
    at: pointsOf(base, 0, head),
    remove: pointsOf(base, head, base.length - tail),
    insert: value.slice(head, value.length - tail),
  };
}

type Alike = (left: number, right: number) => boolean;
type Sized = { readonly length: number };

/** How many items two sequences share at their beginning. */
function headOf(left: Sized, right: Sized, alike: Alike): number {
  const most = Math.min(left.length, right.length);
  let head = 0;
  while (head < most && alike(head, head)) head++;
  return head;
}

/** How many items they share at their end, behind that beginning. */
function tailOf(left: Sized, right: Sized, head: number, alike: Alike): number {
  const most = Math.min(left.length, right.length) - head;
  let tail = 0;
  while (tail < most && alike(left.length - 1 - tail, right.length - 1 - tail)) tail++;
  return tail;
}

/** The index in UTF-16 units of a code point; null beyond the end. */
function unitsOf(text: string, points: number): number | null {
  let index = 0;
  for (let passed = 0; passed < points; passed++) {
    if (index >= text.length) return null;
    index += isHigh(text, index) ? 2 : 1;
  }
  return index;
}

function pointsOf(text: string, start: number, end: number): number {
  let points = 0;
  for (let index = start; index < end; index++) points += isLow(text, index) ? 0 : 1;
  return points;
}

function isHigh(text: string, index: number): boolean {
  return (text.charCodeAt(index) & 0xfc00) === 0xd800;
}

function isLow(text: string, index: number): boolean {
  return (text.charCodeAt(index) & 0xfc00) === 0xdc00;
}

function noSuchPath(op: Op, what: string, depth = op.path.length): NoSuchPath {
  return new NoSuchPath(`${op.state}.${op.path.slice(0, depth).join(".")} ${what}`, { state: op.state, path: op.path });
}

function listed(names: readonly string[]): string {
  return names.join(", ") || "none";
}
