// One boot's copy of a room, the twin of core/replica.py: what the server confirmed, plus own writes not decided yet.
//
// The *view* is the confirmed values with the pending writes applied in order, so an own write shows at once and a remote one
// never covers it. Writes are numbered when they are taken for sending, not before: until then a newer set of the same path
// replaces an older one, and an unbounded sum is added up. Every number that was given keeps its ops until its verdict came.

import type { States, TraitKey } from "./delta";
import * as delta from "./delta";
import { InvalidValue, NoSuchPath, NoSuchState, NoSuchTrait, SharedWidgetsError } from "./errors";
import type {
  Actor,
  Entries,
  EntryOp,
  Inc,
  LastChange,
  LockImage,
  LockName,
  Member,
  Members,
  Nack,
  Op,
  Problem,
  Push,
  Resend,
  Resume,
  Set as SetOp,
  Snapshot,
  Table,
  Waiting,
} from "./protocol";
import * as schemas from "./schema";
import { type Dict, emptyDict, getKey, isDict, isIllFormed, MAX_DEPTH, normalise, same, type Value } from "./values";

export type ChangeOrigin = "local" | "remote" | "rollback" | "resync";

/** One trait looks different now. `seq` is 0 for an own write not decided yet. */
export interface Change {
  readonly state: string;
  readonly trait: string;
  readonly old: Value;
  readonly new: Value;
  readonly origin: ChangeOrigin;
  readonly actor: Actor | null;
  readonly seq: number;
}

/** An own push had no effect; `problem` says why and `values` what the room holds. */
export interface Refused {
  readonly n: number;
  readonly ops: readonly Op[];
  readonly problem: Problem;
  readonly values: Table<Dict>;
}

/** What one message did to the replica. */
export interface News {
  readonly changes: readonly Change[];
  readonly refused: readonly Refused[];
  readonly joined: readonly Member[];
  readonly gone: readonly Member[];
  readonly send: readonly Resume[];
  readonly defined: boolean;
  /** Who holds a lock changed. */
  readonly locked: boolean;
}

export interface WriteOptions {
  /** Whether the push must keep its border: it is never merged with another. */
  readonly group?: boolean;
  /** How many reactions led here. */
  readonly depth?: number;
}

/** Ops of one push that have no verdict. `n` is 0 until taken; a `group` is never merged with others. */
export interface Pending {
  ops: readonly Op[];
  readonly group: boolean;
  readonly depth: number;
  /** The log of the revisions its author named; empty when it named none. */
  readonly epoch: string;
  n: number;
  sent: boolean;
  whole: boolean;
}

const NOTHING: News = { changes: [], refused: [], joined: [], gone: [], send: [], defined: false, locked: false };

/** The state machine of one boot in one room. */
export class Replica {
  incarnation = "";
  epoch = "";
  seq = 0;
  version = 0;
  readonly members = new Map<string, Member>();
  private readonly locks = new Map<string, LockImage>();
  // Member ids, in order of coming; presence, and forgotten where a lock is granted or a snapshot comes.
  private readonly waiting = new Map<string, readonly string[]>();
  private states: States = new Map();
  // Numbered pushes come first, and of those the sent ones: the list is in the order of making.
  private pending: Pending[] = [];
  // The view of traits with pending writes; forgotten whenever what it was made from changes.
  private readonly shown = new TraitMap<Value>();
  private nextN = 1;
  // A `Resume` is under way: with it the server was told where this replica stands.
  private catchingUp = false;

  constructor(readonly room: string) {}

  /** Whether a snapshot came at least once. */
  get live(): boolean {
    return this.epoch !== "";
  }

  /** How many pushes have no verdict yet, sent or not. */
  get undecided(): number {
    return this.pending.length;
  }

  /** How many pushes wait to be sent. */
  get unsent(): number {
    return this.pending.length - this.inFlight();
  }

  /** The push made last, while it has no verdict. */
  newest(): Pending | null {
    return this.pending.at(-1) ?? null;
  }

  /** Whether a push has no verdict yet. */
  isOpen(push: Pending): boolean {
    return this.pending.includes(push);
  }

  /** The names of the states there are. */
  get stateNames(): string[] {
    return [...this.states.keys()];
  }

  /** A trait as this boot sees it: confirmed, with own pending writes; NoSuchState, NoSuchTrait. */
  value(state: string, trait: string): Value {
    const { value } = delta.find(this.states, state, trait);
    if (this.pending.length === 0) return value;
    const key = { state, trait };
    let view = this.shown.get(key);
    if (view === undefined) {
      view = this.pending.reduce((before, push) => replayed(before, push.ops, key), value);
      this.shown.set(key, view);
    }
    return view;
  }

  /** Who holds the lock of a state; null when nobody does. */
  holder(state: string): LockImage | null {
    return this.locks.get(lockKey({ kind: "state", name: state })) ?? null;
  }

  /** The ids of the members that wait for the lock of a state, in order of coming. */
  waiters(state: string): readonly string[] {
    return this.waiting.get(lockKey({ kind: "state", name: state })) ?? [];
  }

  /** All traits of a state as this boot sees them; empty while the state does not exist. */
  view(state: string): Dict {
    const view = emptyDict<Value>();
    for (const trait of this.states.get(state)?.schema.keys() ?? []) view[trait] = this.value(state, trait);
    return view;
  }

  /** Who made or changed a trait last; null when there is no such trait. */
  lastChange(state: string, trait: string): LastChange | null {
    return this.states.get(state)?.last.get(trait) ?? null;
  }

  /**
   * The ops of an assignment by an author who saw `shown`.
   *
   * It is a write when the value differs from what the author saw, or from what this replica holds: news not shown yet must
   * neither be taken for the author's own, nor win over what the author says now.
   */
  assign(state: string, trait: string, shown: Value, value: Value): Op[] {
    const { schema } = delta.find(this.states, state, trait);
    const ops = delta.diff(state, trait, schema.kind, shown, value);
    if (ops.length > 0 || same(this.value(state, trait), value)) return ops;
    return [{ op: "set", state, path: [trait], value, if_rev: null, if_in: null }];
  }

  /**
   * Make an own push of these ops, all or nothing; it shows in the view at once.
   * InvalidValue, NoSuchState, NoSuchTrait and NoSuchPath say that nothing was written.
   */
  write(ops: readonly Op[], { group = false, depth = 0 }: WriteOptions = {}): News {
    const before = this.valuesOf(ops.map(keyOf));
    const trial = new TraitMap<Value>();
    const checked = ops.map((op) => this.tried(op, trial));
    const [first, second] = checked;
    if (first === undefined) return NOTHING;
    const alone = !group && second === undefined;
    if (!alone || !this.merged(first, depth)) {
      const epoch = checked.some((op) => op.op === "set" && op.if_rev !== null) ? this.epoch : "";
      this.pending.push({ ops: checked, group: !alone, depth, epoch, n: 0, sent: false, whole: false });
    }
    for (const [key, value] of trial) this.shown.set(key, value);
    return { ...NOTHING, changes: this.changes(before, "local") };
  }

  /** Pushes to send now, numbered; no more than keep `inFlight` of them undecided at the server. */
  take(inFlight: number): Push[] {
    const pushes: Push[] = [];
    if (!this.live) return pushes;
    for (const [index, push] of this.pending.entries()) {
      if (index >= inFlight) break;
      if (push.sent) continue;
      if (push.n === 0) push.n = this.nextN++;
      push.sent = true;
      const ops = this.compressed(push, index);
      const { n, depth } = push;
      const epoch = ops.some((op) => op.op === "splice") ? this.epoch : push.epoch;
      pushes.push({ type: "push", room: this.room, n, ops, depth, fences: emptyDict(), answer: false, epoch });
    }
    return pushes;
  }

  /** The connection is gone: what has no verdict counts as not sent. */
  disconnected(): void {
    this.catchingUp = this.live;
    for (const push of this.pending) push.sent = false;
  }

  /** Where this replica stands: what it has, and which of its numbers are open. */
  position(states: readonly string[] = []): Resume {
    const lowest = this.pending.find((push) => push.n > 0)?.n ?? this.nextN;
    return {
      type: "resume",
      room: this.room,
      incarnation: this.incarnation,
      epoch: this.epoch,
      seq: this.seq,
      lowest,
      highest: this.nextN - 1,
      states,
    };
  }

  /** Take in what the server said of this room. */
  receive(message: Snapshot | Entries | Nack | Resend | Members | Waiting): News {
    switch (message.type) {
      case "snapshot":
        return this.snapshot(message);
      case "entries":
        return this.entries(message);
      case "nack": {
        const last = message.through ?? message.n;
        return this.drop((push) => message.n <= push.n && push.n <= last, message.problem, message.values);
      }
      case "resend":
        // The server forgot a verdict it gave: it must move on to where this boot is (H8).
        if (message.n < this.position().lowest) return { ...NOTHING, send: [this.position()] };
        for (const push of this.pending) {
          if (push.n >= message.n) {
            push.sent = false;
            push.whole = true;
          }
        }
        return NOTHING;
      case "waiting":
        this.waiting.set(lockKey(message.lock), message.waiters);
        this.version += 1;
        return { ...NOTHING, locked: true };
      case "members":
        return this.membership(message.present, message.complete ? this.unnamed(message.present) : message.gone);
    }
  }

  /** Give up every pending push: each is refused with `problem` and leaves the view. */
  abandon(problem: Problem): News {
    return this.drop(() => true, problem, emptyDict());
  }

  private snapshot(snapshot: Snapshot): News {
    const before = this.valuesOf(this.everyTrait());
    this.states = new Map();
    for (const [name, image] of Object.entries(snapshot.states)) this.states.set(name, delta.fromImage(image));
    this.incarnation = snapshot.incarnation;
    this.epoch = snapshot.epoch;
    this.seq = snapshot.seq;
    this.catchingUp = false;
    this.locks.clear();
    this.waiting.clear();
    for (const image of snapshot.locks) this.locks.set(lockKey(image.lock), image);
    this.shown.clear();
    this.book(snapshot.decided);
    // The numbers of this boot go on where the server stands: an earlier membership of the room counted too.
    if (!this.pending.some((push) => push.n > 0)) this.nextN = Math.max(this.nextN, snapshot.decided + 1);
    for (const key of this.everyTrait()) if (before.get(key) === undefined) before.set(key, null);
    const present = new Set(snapshot.members.map((member) => member.id));
    const news = this.membership(
      snapshot.members,
      [...this.members.keys()].filter((id) => !present.has(id)),
    );
    return { ...news, changes: this.changes(before, "resync"), defined: true, locked: true };
  }

  private entries(frame: Entries): News {
    if (!this.live) return NOTHING;
    // A server that was restarted goes on under a new epoch; only its answer to a `Resume` knows that this copy is on the way.
    const follows = frame.epoch === this.epoch || (this.catchingUp && frame.prev === this.seq);
    if (!follows || frame.prev > this.seq) return this.gap();
    this.catchingUp = false;
    this.epoch = frame.epoch;
    const fresh = frame.entries.filter((entry) => entry.seq > this.seq);
    const touched = fresh.flatMap((entry) => entry.ops.flatMap(delta.touched));
    for (const push of this.pending) if (0 < push.n && push.n <= frame.decided) touched.push(...push.ops.map(keyOf));
    const before = this.valuesOf(touched);
    for (const key of touched) this.shown.delete(key);
    let locked = false;
    for (const entry of fresh) {
      delta.applyEntry(this.states, entry);
      for (const op of entry.ops) locked = this.lockChanged(op, entry.seq) || locked;
    }
    this.seq = Math.max(this.seq, frame.last);
    this.book(frame.decided);
    const defined = fresh.some((entry) => entry.ops.some((op) => op.op === "define"));
    return { ...NOTHING, changes: this.changes(before, "remote"), defined, locked };
  }

  private lockChanged(op: EntryOp, seq: number): boolean {
    if (op.op === "granted") {
      const { lock, member, owner, label, lease } = op;
      this.locks.set(lockKey(lock), { lock, member, owner, label, lease, fence: seq });
      const waiting = this.waiting.get(lockKey(lock)) ?? [];
      const place = waiting.indexOf(member);
      this.waiting.set(
        lockKey(lock),
        waiting.filter((_, index) => index !== place),
      );
    } else if (op.op === "freed") this.locks.delete(lockKey(op.lock));
    return op.op === "granted" || op.op === "freed";
  }

  private gap(): News {
    if (this.catchingUp) return NOTHING;
    this.catchingUp = true;
    return { ...NOTHING, send: [this.position()] };
  }

  /** The members known here that a complete list does not name. */
  private unnamed(present: readonly Member[]): string[] {
    const named = new Set(present.map((member) => member.id));
    return [...this.members.keys()].filter((id) => !named.has(id));
  }

  private membership(present: readonly Member[], gone: readonly string[]): News {
    const joined: Member[] = [];
    const left: Member[] = [];
    for (const member of present) {
      if (!this.members.has(member.id)) joined.push(member);
      this.members.set(member.id, member);
    }
    for (const id of gone) {
      const member = this.members.get(id);
      if (member !== undefined) left.push(member);
      this.members.delete(id);
    }
    this.version += 1;
    return { ...NOTHING, joined, gone: left };
  }

  private drop(doomed: (push: Pending) => boolean, problem: Problem, values: Table<Dict>): News {
    const refused = this.pending.filter(doomed);
    const before = this.valuesOf(refused.flatMap((push) => push.ops.map(keyOf)));
    this.pending = this.pending.filter((push) => !doomed(push));
    for (const [key] of before) this.shown.delete(key);
    return {
      ...NOTHING,
      changes: this.changes(before, "rollback"),
      refused: refused.map(({ n, ops }) => ({ n, ops, problem, values })),
    };
  }

  /** Every own push up to `decided` has its verdict; a refused one was told before. */
  private book(decided: number): void {
    let push = this.pending[0];
    while (push !== undefined && 0 < push.n && push.n <= decided) {
      for (const op of push.ops) this.shown.delete(keyOf(op));
      this.pending.shift();
      push = this.pending[0];
    }
  }

  private inFlight(): number {
    const index = this.pending.findIndex((push) => !push.sent);
    return index < 0 ? this.pending.length : index;
  }

  /** The op as it will be sent, checked against the view and noted in `trial`. */
  private tried(op: Op, trial: TraitMap<Value>): Op {
    const key = keyOf(op);
    const { schema } = delta.find(this.states, key.state, key.trait);
    try {
      const plain = normalised(op);
      const value = delta.apply(trial.get(key) ?? this.value(key.state, key.trait), plain);
      schemas.check(schema, value, key.state, key.trait);
      trial.set(key, value);
      return plain;
    } catch (error) {
      throw error instanceof SharedWidgetsError ? error.located({ room: this.room, state: op.state }) : error;
    }
  }

  /** Whether the newest push, not taken yet, could swallow the op. */
  private merged(op: Op, depth: number): boolean {
    const last = this.pending.at(-1);
    const earlier = last?.ops[0];
    if (last === undefined || earlier === undefined || last.n > 0 || last.group || last.depth !== depth) return false;
    if (earlier.state !== op.state || !samePath(earlier.path, op.path)) return false;
    if (earlier.op === "set" && op.op === "set" && plain(earlier) && plain(op)) {
      last.ops = [op];
      return true;
    }
    if (earlier.op === "inc" && op.op === "inc" && free(earlier) && free(op) && this.unbounded(keyOf(op))) {
      const by = delta.addedUp(earlier.by, op.by);
      if (by !== null) last.ops = [{ ...op, by }];
      return by !== null;
    }
    return false;
  }

  /** Whether sums may be added up: within bounds each is allowed or refused by itself. */
  private unbounded({ state, trait }: TraitKey): boolean {
    const { schema } = delta.find(this.states, state, trait);
    return schema.min === null && schema.max === null && schema.choices === null;
  }

  /** The ops of a push as they travel: large values as a splice, where this replica knows what the server holds. */
  private compressed(push: Pending, index: number): readonly Op[] {
    // Until the answer to a `Resume` came, the server's log may be another one, with other revisions (H18).
    // A push names one log: what its author read of an older one keeps it from being cut from this one.
    const whole = push.whole || this.catchingUp || (push.epoch !== "" && push.epoch !== this.epoch);
    const earlier = new TraitMap<true>();
    for (const other of this.pending.slice(0, index)) for (const op of other.ops) earlier.set(keyOf(op), true);
    return push.ops.map((op) => {
      const key = keyOf(op);
      const known = earlier.get(key) === undefined;
      earlier.set(key, true);
      if (op.op !== "set" || !plain(op) || whole || !known) return op;
      return delta.compress(op, below(this.states.get(op.state)?.values.get(key.trait) ?? null, op.path), this.seq);
    });
  }

  private everyTrait(): TraitKey[] {
    return [...this.states].flatMap(([state, { schema }]) => [...schema.keys()].map((trait) => ({ state, trait })));
  }

  private valuesOf(keys: readonly TraitKey[]): TraitMap<Value> {
    const found = new TraitMap<Value>();
    for (const key of keys) {
      const known = this.states.get(key.state)?.schema.has(key.trait) ?? false;
      found.set(key, known ? this.value(key.state, key.trait) : null);
    }
    return found;
  }

  private changes(before: TraitMap<Value>, origin: ChangeOrigin): Change[] {
    this.version += 1;
    const now = this.valuesOf([...before].map(([key]) => key));
    const changes: Change[] = [];
    for (const [key, old] of before) {
      const value = now.get(key) ?? null;
      if (same(old, value)) continue;
      const last = origin === "remote" || origin === "resync" ? this.lastChange(key.state, key.trait) : null;
      changes.push({ ...key, old, new: value, origin, actor: last?.actor ?? null, seq: last?.seq ?? 0 });
    }
    return changes;
  }
}

/** A map whose keys are traits, in the order in which they came. */
class TraitMap<T> implements Iterable<[TraitKey, T]> {
  private readonly items = new Map<string, [TraitKey, T]>();

  get(key: TraitKey): T | undefined {
    return this.items.get(label(key))?.[1];
  }

  set(key: TraitKey, item: T): void {
    this.items.set(label(key), [key, item]);
  }

  delete(key: TraitKey): void {
    this.items.delete(label(key));
  }

  clear(): void {
    this.items.clear();
  }

  [Symbol.iterator](): Iterator<[TraitKey, T]> {
    return this.items.values();
  }
}

/** Whether a set holds whatever the room holds. */
function plain(op: SetOp): boolean {
  return op.if_rev === null && op.if_in === null;
}

/** Whether a sum names no bounds of its own. */
function free(op: Inc): boolean {
  return op.min === null && op.max === null;
}

function lockKey({ kind, name }: LockName): string {
  return `${kind} ${name}`;
}

function label({ state, trait }: TraitKey): string {
  // Names may hold any character: the length says where the first one ends.
  return `${state.length} ${state}${trait}`;
}

function keyOf(op: Op): TraitKey {
  return { state: op.state, trait: delta.traitOf(op) };
}

function samePath(left: readonly string[], right: readonly string[]): boolean {
  return left.length === right.length && left.every((key, index) => key === right[index]);
}

function replayed(value: Value, ops: readonly Op[], key: TraitKey): Value {
  let view = value;
  for (const op of ops) {
    if (op.state !== key.state || delta.traitOf(op) !== key.trait) continue;
    try {
      view = delta.apply(view, op);
    } catch (error) {
      // The room moved on under this write; its verdict will be a nack, until then it shows nothing.
      if (!isVerdict(error)) throw error;
    }
  }
  return view;
}

function isVerdict(error: unknown): boolean {
  return [InvalidValue, NoSuchPath, NoSuchState, NoSuchTrait].some((kind) => error instanceof kind);
}

function below(value: Value, path: readonly string[]): Value {
  return path.slice(1).reduce<Value>((held, key) => (isDict(held) ? (getKey(held, key) ?? null) : null), value);
}

/** The op inside the value domain; what a server would call malformed or too deep is refused at the author already. */
function normalised(op: Op): Op {
  const levels = MAX_DEPTH - op.path.length + 1;
  try {
    if (op.path.some(isIllFormed)) throw new InvalidValue("a key with a lone surrogate has no wire form", { expected: "text" });
    if (op.op === "set") return { ...op, value: normalise(op.value, levels) };
    if (op.op === "append") return { ...op, items: op.items.map((item) => normalise(item, levels - 1)) };
    return op;
  } catch (error) {
    throw error instanceof InvalidValue ? error.located({ path: op.path }) : error;
  }
}
