// The wire as types, the twin of core/protocol.py: `Upstream` is what a client may say, `Downstream` what a server may say.
//
// A message is plain data with the wire's own field names. Each has a *shape* below, which reads it from a value (every field
// checked, defaults filled in) and writes it to one (defaults left out). PROTOCOL.md is the written form.

import { Malformed } from "./errors";
import { type Dict, emptyDict, isDict, isList, MAX_DEPTH, type Value } from "./values";

export const PROTOCOL_VERSION = 1;
export const SUBPROTOCOL = "sharedwidgets.v1";

const KINDS = ["kernel", "frontend", "script"] as const;
const AUDIENCES = ["kernel", "frontend"] as const;
const ORIGINS = ["kernel", "frontend", "script", "rest", "server"] as const;
const MEMBER_STATES = ["live", "away", "unresponsive"] as const;
const LOCK_KINDS = ["state", "named"] as const;
const REASONS = ["released", "expired", "broken", "gone"] as const;
const TRAIT_KINDS = ["any", "bool", "int", "float", "text", "bytes", "list", "dict"] as const;

export type Kind = (typeof KINDS)[number];
export type Audience = (typeof AUDIENCES)[number];
export type Origin = (typeof ORIGINS)[number];
export type MemberState = (typeof MEMBER_STATES)[number];
export type TraitKind = (typeof TRAIT_KINDS)[number];

/** A trait, then dict keys. */
export type Path = readonly string[];
export type Numeric = number | bigint;
/** Made without a prototype: any name is only a name. */
export type Table<T> = Readonly<Record<string, T>>;

/** The numbers a server holds its clients to. Bytes, seconds and counts. */
export interface Limits {
  readonly op_bytes: number;
  readonly frame_bytes: number;
  readonly push_bytes: number;
  readonly push_ops: number;
  readonly room_bytes: number;
  readonly rooms: number;
  readonly hello_bytes: number;
  readonly hello_seconds: number;
  readonly heartbeat_seconds: number;
  readonly dead_seconds: number;
  readonly away_seconds: number;
  readonly page_away_seconds: number;
  readonly unsent_pushes: number;
  readonly in_flight_pushes: number;
  readonly tail_entries: number;
  readonly tail_bytes: number;
  readonly tail_seconds: number;
  readonly mark_seconds: number;
  readonly outbox_fold_bytes: number;
  readonly outbox_drop_bytes: number;
  readonly outbox_stall_seconds: number;
  readonly lease_seconds: number;
  readonly hold_seconds: number;
  readonly locks: number;
  readonly lock_waiters: number;
  readonly reactions: number;
}

/** A state whose name ends so is none of a user's: it says who runs a reaction to another state, and how far that one got. */
export const REACTS = "@reacts";

/** The states that people are shown, in order. */
export function ofUsers(states: Iterable<string>): string[] {
  return [...states].filter((state) => !state.endsWith(REACTS)).sort();
}

/** What one trait may hold, and what it is reset to. */
export interface TraitSchema {
  readonly kind: TraitKind;
  readonly nullable: boolean;
  readonly kernel_only: boolean;
  readonly min: Numeric | null;
  readonly max: Numeric | null;
  readonly choices: readonly Value[] | null;
  readonly default: Value;
}

/** Who made an entry, as the server knows it. */
export interface Actor {
  readonly id: string;
  readonly kind: Origin;
  readonly user: string;
  readonly kernel_id: string | null;
}

/** One kernel, page or script in a room. */
export interface Member {
  readonly id: string;
  readonly kind: Kind;
  readonly user: string;
  readonly kernel_id: string | null;
  readonly name: string;
  readonly since: number;
  readonly state: MemberState;
  readonly states: readonly string[];
}

/** An error on the wire: machine facts and a sentence. */
export interface Problem {
  readonly code: string;
  readonly message: string;
  readonly state: string | null;
  readonly path: readonly string[];
  readonly expected: string | null;
}

/** Put a value at a path; with `if_rev` only if it has not changed after that seq, with `if_in` only if it is one of these. */
export interface Set {
  readonly op: "set";
  readonly state: string;
  readonly path: Path;
  readonly value: Value;
  readonly if_rev: number | null;
  readonly if_in: readonly Value[] | null;
}

/** Remove a dict key; removing a missing one changes nothing. */
export interface Delete {
  readonly op: "delete";
  readonly state: string;
  readonly path: Path;
}

/** Add a number, unless the sum would leave `min` to `max`; in an entry `value` is the sum. */
export interface Inc {
  readonly op: "inc";
  readonly state: string;
  readonly path: Path;
  readonly by: Numeric;
  readonly value: Numeric | null;
  readonly min: Numeric | null;
  readonly max: Numeric | null;
}

/** Put items at the end of a list. */
export interface Append {
  readonly op: "append";
  readonly state: string;
  readonly path: Path;
  readonly items: readonly Value[];
}

/**
 * Replace part of a text, bytes or list; compression of a `Set`, cut against revision `rev` of the path.
 * `at` and `remove` count code points in text, bytes in bytes, items in a list.
 */
export interface Splice {
  readonly op: "splice";
  readonly state: string;
  readonly path: Path;
  readonly rev: number;
  readonly at: number;
  readonly remove: number;
  readonly insert: Value;
}

/** A state appears, or gains or replaces traits; made by the server. */
export interface Define {
  readonly op: "define";
  readonly state: string;
  readonly schema: Table<TraitSchema>;
  readonly values: Dict;
}

/** A state's own lock, which is enforced for that state's traits, or a named one, which is advisory. */
export interface LockName {
  readonly kind: (typeof LOCK_KINDS)[number];
  readonly name: string;
}

/** A lock is held from here on; the fence is the seq of the entry. */
export interface Granted {
  readonly op: "granted";
  readonly lock: LockName;
  readonly member: string;
  readonly owner: string;
  readonly label: string;
  readonly lease: number;
}

/** A lock is no longer held under that fence, and why. */
export interface Freed {
  readonly op: "freed";
  readonly lock: LockName;
  readonly fence: number;
  readonly reason: (typeof REASONS)[number];
}

export type Op = Set | Delete | Inc | Append | Splice;
export type EntryOp = Op | Define | Granted | Freed;

/** A lock that is held, as a snapshot tells it. */
export interface LockImage {
  readonly lock: LockName;
  readonly member: string;
  readonly owner: string;
  readonly fence: number;
  readonly label: string;
  readonly lease: number;
}

/** Whatever took a sequence number. `at` is the server's wall clock in seconds. */
export interface Entry {
  readonly seq: number;
  readonly at: number;
  readonly by: Actor;
  readonly ops: readonly EntryOp[];
  readonly depth: number;
}

/** Who made the entry that changed a trait last, its seq, and the server's wall clock in seconds. */
export interface LastChange {
  readonly actor: Actor;
  readonly seq: number;
  readonly at: number;
}

/** One state of a room, whole; `last` says who made or changed each trait last. */
export interface StateImage {
  readonly schema: Table<TraitSchema>;
  readonly values: Dict;
  readonly last: Table<LastChange>;
}

/** Where a replica stands; in `Hello` after a reconnect, on its own when a gap was seen. */
export interface Resume {
  readonly type: "resume";
  readonly room: string;
  readonly incarnation: string;
  readonly epoch: string;
  readonly seq: number;
  readonly lowest: number;
  readonly highest: number;
  readonly states: readonly string[];
}

/** First message of a connection. `member` and `secret` come from a former `Welcome`. */
export interface Hello {
  readonly type: "hello";
  readonly protocol: number;
  readonly boot: string;
  readonly kind: Kind;
  readonly member: string | null;
  readonly secret: string | null;
  readonly name: string;
  readonly kernel_id: string | null;
  readonly pid: number;
  readonly rooms: readonly Resume[];
}

/** Enter a room. A page gives no schema. */
export interface Join {
  readonly type: "join";
  readonly id: number;
  readonly room: string;
  readonly state: string | null;
  readonly schema: Table<TraitSchema> | null;
  readonly values: Dict | null;
  readonly resume: Resume | null;
}

/** Leave one state, or with `state` null the whole room. */
export interface Leave {
  readonly type: "leave";
  readonly room: string;
  readonly state: string | null;
}

/** One or more ops, all or nothing; its identity is (boot, n). */
export interface Push {
  readonly type: "push";
  readonly room: string;
  readonly n: number;
  readonly ops: readonly Op[];
  readonly depth: number;
  /** By state, under which fence the author holds its lock. */
  readonly fences: Table<number>;
  /** Whether the author wants to hear which number the last op left. */
  readonly answer: boolean;
  /** In which log the revisions are that its ops name. */
  readonly epoch: string;
}

/** Take a lock, or a place in its queue; without `wait` it is that lock now, or none. */
export interface Acquire {
  readonly type: "acquire";
  readonly id: number;
  readonly room: string;
  readonly lock: LockName;
  readonly owner: string;
  readonly lease: number;
  readonly label: string;
  readonly wait: boolean;
}

/** Do not wait any more. */
export interface Cancel {
  readonly type: "cancel";
  readonly room: string;
  readonly lock: LockName;
  readonly owner: string;
}

/** Start a lease anew. */
export interface Renew {
  readonly type: "renew";
  readonly room: string;
  readonly lock: LockName;
  readonly owner: string;
  readonly fence: number;
}

/** Give a lock back. */
export interface Release {
  readonly type: "release";
  readonly room: string;
  readonly lock: LockName;
  readonly owner: string;
  readonly fence: number;
}

/** Answered by `Pong` with the same id; either side may ask. */
export interface Ping {
  readonly type: "ping";
  readonly id: number;
}

/** The answer to `Hello`: who the server says you are, and its numbers. */
export interface Welcome {
  readonly type: "welcome";
  readonly protocol: number;
  readonly server: string;
  readonly version: string;
  readonly member: string;
  readonly secret: string;
  readonly audience: Audience;
  readonly user: string;
  readonly may_write: boolean;
  readonly limits: Limits;
}

/** The room whole, at `seq`. `decided` is the highest n of this boot that has a verdict. */
export interface Snapshot {
  readonly type: "snapshot";
  readonly room: string;
  readonly incarnation: string;
  readonly epoch: string;
  readonly seq: number;
  readonly states: Table<StateImage>;
  readonly decided: number;
  readonly members: readonly Member[];
  readonly locks: readonly LockImage[];
}

/** The verdict on `Join` `id`: in force once this replica reached `seq`. */
export interface Joined {
  readonly type: "joined";
  readonly id: number;
  readonly room: string;
  readonly seq: number;
}

/** Covers (prev, last]: applied in one go. `decided` is the highest n of this boot decided at `last`. */
export interface Entries {
  readonly type: "entries";
  readonly room: string;
  readonly epoch: string;
  readonly prev: number;
  readonly last: number;
  readonly entries: readonly Entry[];
  readonly decided: number;
}

/** Push `n` (up to and with `through`, when given) has no effect anywhere. Final. `values` are what the room holds at `seq`. */
export interface Nack {
  readonly type: "nack";
  readonly room: string;
  readonly n: number;
  readonly problem: Problem;
  readonly through: number | null;
  readonly seq: number;
  readonly values: Table<Dict>;
}

/** Push `n`, which asked for an `answer`, took effect as entry `seq`; `value` is the number it left, if it is one. */
export interface Applied {
  readonly type: "applied";
  readonly room: string;
  readonly n: number;
  readonly seq: number;
  readonly value: Numeric | null;
}

/** Not a verdict: send everything from `n` again under the same numbers, values whole. */
export interface Resend {
  readonly type: "resend";
  readonly room: string;
  readonly n: number;
}

/** Who came or changed, and who went. */
export interface Members {
  readonly type: "members";
  readonly room: string;
  readonly present: readonly Member[];
  readonly gone: readonly string[];
  /** Whether `present` is everyone there is. */
  readonly complete: boolean;
}

/** Who waits for a lock now, in order. */
export interface Waiting {
  readonly type: "waiting";
  readonly room: string;
  readonly lock: LockName;
  readonly waiters: readonly string[];
}

/** A request was refused; `id` and `room` say which. */
export interface Failure {
  readonly type: "error";
  readonly problem: Problem;
  readonly id: number | null;
  readonly room: string | null;
}

/** The server ends the connection (or with `room`, this membership); come back after so many seconds, or never. */
export interface Bye {
  readonly type: "bye";
  readonly problem: Problem;
  readonly room: string | null;
  readonly retry_after: number | null;
  /** That of the room that ended: another one under the same token goes on. */
  readonly incarnation: string;
}

/** Ask for fewer pushes: wait so many seconds between them. Nothing is refused. */
export interface Slow {
  readonly type: "slow";
  readonly delay: number;
}

/** The answer to `Ping`. */
export interface Pong {
  readonly type: "pong";
  readonly id: number;
}

export type Upstream = Hello | Join | Leave | Resume | Push | Acquire | Cancel | Renew | Release | Ping | Pong;
export type Downstream =
  | Welcome
  | Snapshot
  | Joined
  | Entries
  | Nack
  | Applied
  | Resend
  | Members
  | Waiting
  | Failure
  | Bye
  | Slow
  | Ping
  | Pong;

/** How a part of a message is read and written. `fallback` is what a record leaves out and fills in. */
interface Shape<T> {
  readonly read: (json: Value, at: string) => T;
  readonly write: (part: T) => Value;
  readonly fallback?: T;
}

type Fields<T> = { readonly [K in keyof T]: Shape<T[K]> };
type Tags = "type" | "op";

const anything: Shape<Value> = { read: (json) => json, write: (value) => value };
const bool = scalar((json): json is boolean => typeof json === "boolean", "a bool");
const real: Shape<number> = {
  read: (json, at) => (typeof json === "bigint" ? Number(json) : number.read(json, at)),
  write: (value) => value,
};
const number = scalar((json): json is number => typeof json === "number", "a number");
const numeric = scalar((json): json is Numeric => typeof json === "number" || typeof json === "bigint", "a number");
const int = scalar((json): json is number => Number.isSafeInteger(json), "an int");
const count = atLeast(0);
const positive = atLeast(1);
const string = text(0, Number.POSITIVE_INFINITY);
const id = text(1, 64);
const name = text(0, 256);
const stateName = text(1, 256);
const path = list(string, 1, MAX_DEPTH);

const limits = record<Limits>({
  op_bytes: or(int, 1 << 20),
  frame_bytes: or(int, 1 << 20),
  push_bytes: or(int, 8 << 20),
  push_ops: or(int, 500),
  room_bytes: or(int, 64 << 20),
  rooms: or(int, 128),
  hello_bytes: or(int, 64 << 10),
  hello_seconds: or(real, 10),
  heartbeat_seconds: or(real, 10),
  dead_seconds: or(real, 25),
  away_seconds: or(real, 10),
  page_away_seconds: or(real, 60),
  unsent_pushes: or(int, 10_000),
  in_flight_pushes: or(int, 64),
  tail_entries: or(int, 10_000),
  tail_bytes: or(int, 16 << 20),
  tail_seconds: or(real, 3600),
  mark_seconds: or(real, 7 * 86400),
  outbox_fold_bytes: or(int, 256 << 10),
  outbox_drop_bytes: or(int, 4 << 20),
  outbox_stall_seconds: or(real, 5),
  lease_seconds: or(real, 15),
  hold_seconds: or(real, 600),
  locks: or(int, 1000),
  lock_waiters: or(int, 1000),
  reactions: or(int, 16),
});

const traitSchema = record<TraitSchema>({
  kind: or(oneOf(TRAIT_KINDS), "any"),
  nullable: or(bool, false),
  kernel_only: or(bool, false),
  min: maybe(numeric),
  max: maybe(numeric),
  choices: maybe(list(anything)),
  default: or(anything, null),
});

const actor = record<Actor>({ id: string, kind: oneOf(ORIGINS), user: or(string, ""), kernel_id: maybe(string) });

const member = record<Member>({
  id: string,
  kind: oneOf(KINDS),
  user: or(string, ""),
  kernel_id: maybe(string),
  name: or(string, ""),
  since: or(real, 0),
  state: or(oneOf(MEMBER_STATES), "live"),
  states: or(list(string), []),
});

const problem = record<Problem>({
  code: string,
  message: string,
  state: maybe(string),
  path: or(list(string), []),
  expected: maybe(string),
});

const place = { state: stateName, path };

const ops = {
  set: tagged<Set, "op">("op", "set", { ...place, value: anything, if_rev: maybe(count), if_in: maybe(list(anything, 1)) }),
  delete: tagged<Delete, "op">("op", "delete", place),
  inc: tagged<Inc, "op">("op", "inc", {
    ...place,
    by: numeric,
    value: maybe(numeric),
    min: maybe(numeric),
    max: maybe(numeric),
  }),
  append: tagged<Append, "op">("op", "append", { ...place, items: list(anything) }),
  splice: tagged<Splice, "op">("op", "splice", { ...place, rev: count, at: count, remove: count, insert: anything }),
};

const define = tagged<Define, "op">("op", "define", { state: stateName, schema: table(traitSchema), values: table(anything) });

const lockName = record<LockName>({ kind: oneOf(LOCK_KINDS), name: stateName });
const granted = tagged<Granted, "op">("op", "granted", {
  lock: lockName,
  member: string,
  owner: string,
  label: or(string, ""),
  lease: or(real, 0),
});
const freed = tagged<Freed, "op">("op", "freed", { lock: lockName, fence: count, reason: oneOf(REASONS) });
const lockImage = record<LockImage>({
  lock: lockName,
  member: string,
  owner: string,
  fence: count,
  label: or(string, ""),
  lease: or(real, 0),
});

const op = union<Op, "op">("op", ops);
const entryOp = union<EntryOp, "op">("op", { ...ops, define, granted, freed });

const entry = record<Entry>({ seq: int, at: real, by: actor, ops: list(entryOp), depth: or(int, 0) });
const lastChange = record<LastChange>({ actor, seq: count, at: real });

const stateImage = record<StateImage>({
  schema: table(traitSchema),
  values: table(anything),
  last: or(table(lastChange), emptyDict<LastChange>()),
});

const resume = tagged<Resume, "type">("type", "resume", {
  room: string,
  incarnation: string,
  epoch: string,
  seq: count,
  lowest: or(positive, 1),
  highest: or(count, 0),
  states: or(list(stateName), []),
});

const ping = tagged<Ping, "type">("type", "ping", { id: int });
const pong = tagged<Pong, "type">("type", "pong", { id: int });

const upstream = {
  hello: tagged<Hello, "type">("type", "hello", {
    protocol: int,
    boot: id,
    kind: oneOf(KINDS),
    member: maybe(id),
    secret: maybe(text(0, 2048)),
    name: or(name, ""),
    kernel_id: maybe(name),
    pid: or(int, 0),
    rooms: or(list(resume), []),
  }),
  join: tagged<Join, "type">("type", "join", {
    id: int,
    room: string,
    state: maybe(stateName),
    schema: maybe(table(traitSchema)),
    values: maybe(table(anything)),
    resume: maybe(resume),
  }),
  leave: tagged<Leave, "type">("type", "leave", { room: string, state: maybe(string) }),
  resume,
  push: tagged<Push, "type">("type", "push", {
    room: string,
    n: positive,
    ops: list(op, 1),
    depth: or(count, 0),
    fences: or(table(count), emptyDict<number>()),
    answer: or(bool, false),
    epoch: or(string, ""),
  }),
  acquire: tagged<Acquire, "type">("type", "acquire", {
    id: count,
    room: string,
    lock: lockName,
    owner: id,
    lease: within(0, 86400),
    label: or(name, ""),
    wait: or(bool, true),
  }),
  cancel: tagged<Cancel, "type">("type", "cancel", { room: string, lock: lockName, owner: id }),
  renew: tagged<Renew, "type">("type", "renew", { room: string, lock: lockName, owner: id, fence: count }),
  release: tagged<Release, "type">("type", "release", { room: string, lock: lockName, owner: id, fence: count }),
  ping,
  pong,
};

const downstream = {
  welcome: tagged<Welcome, "type">("type", "welcome", {
    protocol: int,
    server: string,
    version: string,
    member: string,
    secret: string,
    audience: oneOf(AUDIENCES),
    user: string,
    may_write: bool,
    limits,
  }),
  snapshot: tagged<Snapshot, "type">("type", "snapshot", {
    room: string,
    incarnation: string,
    epoch: string,
    seq: int,
    states: table(stateImage),
    decided: or(int, 0),
    members: or(list(member), []),
    locks: or(list(lockImage), []),
  }),
  joined: tagged<Joined, "type">("type", "joined", { id: int, room: string, seq: int }),
  entries: tagged<Entries, "type">("type", "entries", {
    room: string,
    epoch: string,
    prev: int,
    last: int,
    entries: or(list(entry), []),
    decided: or(int, 0),
  }),
  nack: tagged<Nack, "type">("type", "nack", {
    room: string,
    n: positive,
    problem,
    through: maybe(int),
    seq: or(int, 0),
    values: or(table(table(anything)), emptyDict()),
  }),
  applied: tagged<Applied, "type">("type", "applied", { room: string, n: positive, seq: count, value: maybe(numeric) }),
  resend: tagged<Resend, "type">("type", "resend", { room: string, n: positive }),
  members: tagged<Members, "type">("type", "members", {
    room: string,
    present: or(list(member), []),
    gone: or(list(string), []),
    complete: or(bool, false),
  }),
  waiting: tagged<Waiting, "type">("type", "waiting", { room: string, lock: lockName, waiters: or(list(string), []) }),
  error: tagged<Failure, "type">("type", "error", { problem, id: maybe(int), room: maybe(string) }),
  bye: tagged<Bye, "type">("type", "bye", {
    problem,
    room: maybe(string),
    retry_after: maybe(real),
    incarnation: or(string, ""),
  }),
  slow: tagged<Slow, "type">("type", "slow", { delay: real }),
  ping,
  pong,
};

const upstreamUnion = union<Upstream, "type">("type", upstream);
const downstreamUnion = union<Downstream, "type">("type", downstream);
const bothUnions = union<Upstream | Downstream, "type">("type", { ...upstream, ...downstream });

/** What a client said; Malformed names the place, as in `$.ops[0].path`. */
export function parseUpstream(json: Value): Upstream {
  return upstreamUnion.read(json, "$");
}

/** What a server said; Malformed names the place, as in `$.entries[0].seq`. */
export function parseDownstream(json: Value): Downstream {
  return downstreamUnion.read(json, "$");
}

/** A message as a value, without the fields that have their default. */
export function write(message: Upstream | Downstream): Value {
  return bothUnions.write(message);
}

function scalar<T extends Value>(is: (json: Value) => json is T, wanted: string): Shape<T> {
  return { read: (json, at) => (is(json) ? json : expected(wanted, at)), write: (value) => value };
}

function atLeast(least: number): Shape<number> {
  return scalar((json): json is number => Number.isSafeInteger(json) && Number(json) >= least, `an int >= ${least}`);
}

/** A number above `above`, and at most `most`. */
function within(above: number, most: number): Shape<number> {
  return scalar(
    (json): json is number => typeof json === "number" && json > above && json <= most,
    `a number in (${above}, ${most}]`,
  );
}

function text(least: number, most: number): Shape<string> {
  const wanted = most === Number.POSITIVE_INFINITY ? "text" : `text of ${least} to ${most} characters`;
  return scalar((json): json is string => typeof json === "string" && hasLength(json, least, most), wanted);
}

/** Whether text has so many code points; they are counted only where their number is in doubt. */
function hasLength(json: string, least: number, most: number): boolean {
  if (json.length < least || json.length > 2 * most) return false;
  return json.length <= most || Array.from(json).length <= most;
}

function oneOf<T extends string>(names: readonly T[]): Shape<T> {
  return scalar((json): json is T => names.some((known) => known === json), `one of ${names.join(", ")}`);
}

function maybe<T>(shape: Shape<T>): Shape<T | null> {
  return {
    read: (json, at) => (json === null ? null : shape.read(json, at)),
    write: (part) => (part === null ? null : shape.write(part)),
    fallback: null,
  };
}

function or<T>(shape: Shape<T>, fallback: T): Shape<T> {
  return { ...shape, fallback };
}

function list<T>(item: Shape<T>, least = 0, most = Number.POSITIVE_INFINITY): Shape<readonly T[]> {
  return {
    read: (json, at) => {
      if (!isList(json)) return expected("a list", at);
      if (json.length < least || json.length > most) return expected(`a list of ${least} to ${most} items`, at);
      return json.map((part, index) => item.read(part, `${at}[${index}]`));
    },
    write: (part) => part.map(item.write),
  };
}

function table<T>(item: Shape<T>): Shape<Table<T>> {
  return {
    read: (json, at) => {
      const found = emptyDict<T>();
      // A key may be any text of any length, so the place does not repeat it.
      for (const [key, part] of Object.entries(dict(json, at))) found[key] = item.read(part, `${at}[...]`);
      return found;
    },
    write: (part) => {
      const written = emptyDict<Value>();
      for (const [key, value] of Object.entries(part)) written[key] = item.write(value);
      return written;
    },
  };
}

function record<T extends object>(fields: Fields<T>): Shape<T> {
  const names = Object.keys(fields) as (keyof T & string)[];
  return {
    read: (json, at) => {
      const found = dict(json, at);
      const message: Partial<T> = {};
      for (const field of names) {
        const { read, fallback } = fields[field];
        if (Object.hasOwn(found, field)) message[field] = read(found[field] ?? null, `${at}.${field}`);
        else if (fallback !== undefined) message[field] = fallback;
        else throw new Malformed(`the field \`${field}\` is missing`, at);
      }
      return message as T;
    },
    write: (message) => {
      const written = emptyDict<Value>();
      for (const field of names) {
        const { write, fallback } = fields[field];
        if (!isDefault(message[field], fallback)) written[field] = write(message[field]);
      }
      return written;
    },
  };
}

/** A record that says what it is; only a `union` needs the tag to be there. */
function tagged<T extends { readonly [K in Tag]: string }, Tag extends Tags>(
  tag: Tag,
  value: T[Tag] & Value,
  fields: Fields<Omit<T, Tag>>,
): Shape<T> {
  const says = or(
    scalar((json): json is T[Tag] & Value => json === value, `\`${value}\``),
    value,
  );
  const { read, write } = record<T>({ [tag]: says, ...fields } as unknown as Fields<T>);
  return { read, write: (message) => ({ [tag]: value, ...(write(message) as Dict) }) };
}

function union<T extends { readonly [K in Tag]: string }, Tag extends Tags>(
  tag: Tag,
  shapes: { readonly [K in T[Tag]]: Shape<Extract<T, { readonly [P in Tag]: K }>> },
): Shape<T> {
  const byTag = new Map<string, Shape<T>>(Object.entries(shapes));
  return {
    read: (json, at) => {
      const name = dict(json, at)[tag];
      if (name === undefined) throw new Malformed(`the field \`${tag}\` is missing`, at);
      const shape = typeof name === "string" ? byTag.get(name) : undefined;
      return shape === undefined ? expected("a known tag", `${at}.${tag}`) : shape.read(json, at);
    },
    write: (message) => (byTag.get(message[tag]) as Shape<T>).write(message),
  };
}

function isDefault(part: unknown, fallback: unknown): boolean {
  if (typeof part !== "object" || part === null || typeof fallback !== "object" || fallback === null) return part === fallback;
  return Object.keys(part).length === 0 && Object.keys(fallback).length === 0;
}

function dict(json: Value, at: string): Dict {
  return isDict(json) ? json : expected("an object", at);
}

function expected(wanted: string, at: string): never {
  throw new Malformed(`expected ${wanted}`, at);
}
