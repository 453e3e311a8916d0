// What the tests of the page's edges stand on: a browser without a browser, a server without a network, and ipywidgets' model.
//
// Time is a number, sockets are arrays, and nothing happens but when a test says so. The server is hand-made of the same pure
// functions the page has; it decides as the real one does, as far as these tests need it.

import { Assembler, decodeUpstream, encode, type Frame } from "../src/codec";
import type { Host, Socket } from "../src/connection";
import * as delta from "../src/delta";
import { SharedWidgetsError } from "../src/errors";
import type { Place } from "../src/locate";
import type { Model } from "../src/model";
import {
  type Downstream,
  type Entry,
  type EntryOp,
  type Limits,
  type LockImage,
  type Member,
  type Op,
  type Problem,
  type Push,
  parseDownstream,
  type StateImage,
  type TraitSchema,
  type Upstream,
} from "../src/protocol";
import * as schemas from "../src/schema";
import { emptyDict, type Value } from "../src/values";

export const PLACE: Place = { baseUrl: "http://h/", socketUrl: "ws://h/sharedwidgets/ws", token: null };

/** One message of a server; what is left out has its default. */
export function from(json: Value): Downstream {
  return parseDownstream(json);
}

export function welcome(limits: Partial<Limits> = {}): Downstream {
  return from({
    type: "welcome",
    protocol: 1,
    server: "s",
    version: "0",
    member: "m1",
    secret: "sec",
    audience: "frontend",
    user: "ana",
    may_write: true,
    limits: { ...limits },
  });
}

export function trait(kind: TraitSchema["kind"] = "any", more: Partial<TraitSchema> = {}): TraitSchema {
  return { kind, nullable: false, kernel_only: false, min: null, max: null, choices: null, default: null, ...more };
}

export function problem(code: string, message = "why"): Problem {
  return { code, message, state: null, path: [], expected: null };
}

export function person(id: string, more: Partial<Member> = {}): Member {
  return { id, kind: "frontend", user: "ana", kernel_id: null, name: "", since: 0, state: "live", states: [], ...more };
}

/** Let every promise go on that can. */
export async function turns(count = 20): Promise<void> {
  for (let turn = 0; turn < count; turn++) await Promise.resolve();
}

/** The near end of a socket; the test, or a `Server`, is the far end. */
export class FakeSocket implements Socket {
  onopen: (() => void) | null = null;
  onframe: ((frame: Frame) => void) | null = null;
  onclose: (() => void) | null = null;
  readonly frames: Frame[] = [];
  /** Whether the page closed it; as in a browser, `onclose` comes later. */
  closing = false;
  boot = "";
  private read = 0;
  private readonly assembler = new Assembler(1 << 26);

  constructor(
    readonly url: string,
    readonly protocol: string,
  ) {}

  send(frame: Frame): void {
    if (!this.closing) this.frames.push(frame);
  }

  close(): void {
    this.closing = true;
  }

  accept(): void {
    this.onopen?.();
  }

  deliver(...messages: Downstream[]): void {
    for (const message of messages) this.onframe?.(encode(message));
  }

  drop(): void {
    this.closing = true;
    this.onclose?.();
  }

  /** What the page said since this was asked last. */
  said(): Upstream[] {
    const messages: Upstream[] = [];
    for (const frame of this.frames.slice(this.read)) {
      const whole = this.assembler.feed(frame);
      if (whole !== null) messages.push(decodeUpstream(whole));
    }
    this.read = this.frames.length;
    return messages;
  }
}

export class FakeHost implements Host {
  readonly sockets: FakeSocket[] = [];
  readonly asked: string[] = [];
  /** What a GET answers; null for not before the test says so. */
  status: number | null = 0;
  chance = 0.5;
  name = "Page";
  memory: { member: string; secret: string } | null = null;
  now = 0;
  private ids = 0;
  private timers: { at: number; task: () => void }[] = [];
  private readonly waiting: ((answer: { status: number }) => void)[] = [];

  constructor(readonly prefix = "boot") {}

  open(url: string, protocol: string): Socket {
    const socket = new FakeSocket(url, protocol);
    this.sockets.push(socket);
    return socket;
  }

  get(url: string): Promise<{ status: number }> {
    this.asked.push(url);
    const { status } = this;
    return status === null ? new Promise((resolve) => this.waiting.push(resolve)) : Promise.resolve({ status });
  }

  answer(status: number): void {
    for (const resolve of this.waiting.splice(0)) resolve({ status });
  }

  after(milliseconds: number, task: () => void): () => void {
    const timer = { at: this.now + milliseconds, task };
    this.timers.push(timer);
    return () => {
      this.timers = this.timers.filter((other) => other !== timer);
    };
  }

  random(): number {
    return this.chance;
  }

  id(): string {
    this.ids += 1;
    return `${this.prefix}${this.ids}`;
  }

  title(): string {
    return this.name;
  }

  recall(): { member: string; secret: string } | null {
    return this.memory;
  }

  remember(member: string, secret: string): void {
    this.memory = { member, secret };
  }

  /** The socket opened last. */
  get socket(): FakeSocket {
    const socket = this.sockets.at(-1);
    if (socket === undefined) throw new Error("no socket was opened");
    return socket;
  }

  /** How long until each timer, the next first. */
  get waits(): number[] {
    return this.timers.map(({ at }) => at - this.now).sort((left, right) => left - right);
  }

  async advance(milliseconds: number): Promise<void> {
    const end = this.now + milliseconds;
    for (;;) {
      const next = this.timers.filter(({ at }) => at <= end).sort((left, right) => left.at - right.at)[0];
      if (next === undefined) break;
      this.timers = this.timers.filter((timer) => timer !== next);
      this.now = next.at;
      next.task();
      await turns();
    }
    this.now = end;
    await turns();
  }
}

interface ServedRoom {
  readonly states: delta.States;
  readonly marks: Map<string, number>;
  readonly attached: Set<FakeSocket>;
  readonly entries: Entry[];
  seq: number;
}

/** Decides pushes in the order in which they came, and tells every page; one instance serves any number of hosts. */
export class Server {
  readonly rooms = new Map<string, ServedRoom>();
  /** Everything any page said, in order. */
  readonly heard: Upstream[] = [];
  private readonly hosts: FakeHost[] = [];

  serve(...hosts: FakeHost[]): this {
    this.hosts.push(...hosts);
    return this;
  }

  /** A kernel makes a state, or adds traits to it. */
  define(token: string, state: string, schema: Record<string, TraitSchema>, values: Record<string, Value>): void {
    this.decide(token, [{ op: "define", state, schema, values }]);
  }

  /** A kernel writes. */
  write(token: string, state: string, name: string, value: Value): void {
    this.decide(token, [{ op: "set", state, path: [name], value, if_rev: null, if_in: null }]);
  }

  /** A kernel takes the lock of a state; returns what gives it back. */
  lock(token: string, state: string, label = "kernel a.ipynb", member = "k"): () => void {
    const lock = { kind: "state", name: state } as const;
    this.decide(token, [{ op: "granted", lock, member, owner: "o", label, lease: 15 }]);
    const fence = this.room(token).seq;
    return () => this.decide(token, [{ op: "freed", lock, fence, reason: "released" }]);
  }

  value(token: string, state: string, name: string): Value | undefined {
    return this.room(token).states.get(state)?.values.get(name);
  }

  /** The pushes that came, in order. */
  get pushes(): Push[] {
    return this.heard.filter((message) => message.type === "push");
  }

  /** Read what the pages sent and answer it, until nobody has anything to say. */
  async settle(): Promise<void> {
    for (let quiet = 0; quiet < 2; ) {
      await turns();
      quiet += 1;
      for (const host of this.hosts) {
        const { socket } = host;
        if (socket.closing) continue;
        if (socket.onopen !== null && socket.boot === "") {
          socket.boot = "?";
          socket.accept();
        }
        for (const message of socket.said()) {
          quiet = 0;
          this.hear(socket, message);
        }
      }
    }
  }

  room(token: string): ServedRoom {
    let room = this.rooms.get(token);
    if (room === undefined) {
      room = { states: new Map(), marks: new Map(), attached: new Set(), entries: [], seq: 0 };
      this.rooms.set(token, room);
    }
    return room;
  }

  snapshot(token: string, boot: string): Downstream {
    const { states, seq, marks } = this.room(token);
    const images = emptyDict<StateImage>();
    for (const [name, { schema, values, last }] of states) {
      images[name] = {
        schema: Object.fromEntries(schema),
        values: Object.assign(emptyDict(), tableOf(values)),
        last: Object.fromEntries(last),
      };
    }
    return {
      type: "snapshot",
      room: token,
      incarnation: "i",
      epoch: "e",
      seq,
      states: images,
      decided: marks.get(boot) ?? 0,
      members: [],
      locks: this.locksOf(token),
    };
  }

  private hear(socket: FakeSocket, message: Upstream): void {
    this.heard.push(message);
    switch (message.type) {
      case "hello":
        socket.boot = message.boot;
        socket.deliver(welcome());
        for (const resume of message.rooms) this.attach(socket, resume.room);
        return;
      case "join":
        if (!this.room(message.room).attached.has(socket)) this.attach(socket, message.room);
        socket.deliver({ type: "joined", id: message.id, room: message.room, seq: this.room(message.room).seq });
        return;
      case "resume":
        this.attach(socket, message.room);
        return;
      case "leave":
        if (message.state === null) this.room(message.room).attached.delete(socket);
        return;
      case "push":
        this.push(socket, message);
    }
  }

  private attach(socket: FakeSocket, token: string): void {
    this.room(token).attached.add(socket);
    socket.deliver(this.snapshot(token, socket.boot));
  }

  private push(socket: FakeSocket, { room: token, n, ops }: Push): void {
    const room = this.room(token);
    const expected = (room.marks.get(socket.boot) ?? 0) + 1;
    if (n !== expected) throw new Error(`push ${n} came where ${expected} was expected`);
    room.marks.set(socket.boot, n);
    try {
      for (const op of ops) {
        const { schema, value } = delta.find(room.states, op.state, delta.traitOf(op));
        schemas.check(schema, delta.apply(value, op), op.state, delta.traitOf(op));
      }
    } catch (error) {
      if (!(error instanceof SharedWidgetsError)) throw error;
      const why = problem(error.code, error.message);
      socket.deliver({ type: "nack", room: token, n, problem: why, through: null, seq: room.seq, values: emptyDict() });
      return;
    }
    this.decide(token, ops, socket.boot);
  }

  private locksOf(token: string): LockImage[] {
    const held = new Map<string, LockImage>();
    for (const { seq, ops } of this.room(token).entries) {
      for (const op of ops) {
        if (op.op === "granted") held.set(op.lock.name, { ...op, fence: seq });
        else if (op.op === "freed") held.delete(op.lock.name);
      }
    }
    return [...held.values()].map(({ lock, member, owner, fence, label, lease }) => ({
      lock,
      member,
      owner,
      fence,
      label,
      lease,
    }));
  }

  private decide(token: string, ops: readonly EntryOp[], author = "kernel"): void {
    const room = this.room(token);
    const by = { id: author, kind: "kernel", user: "", kernel_id: null } as const;
    const entry: Entry = { seq: room.seq + 1, at: 0, by, ops, depth: 0 };
    delta.applyEntry(room.states, entry);
    room.entries.push(entry);
    room.seq = entry.seq;
    for (const socket of [...room.attached]) {
      if (socket.closing) continue;
      const decided = room.marks.get(socket.boot) ?? 0;
      socket.deliver({
        type: "entries",
        room: token,
        epoch: "e",
        prev: entry.seq - 1,
        last: entry.seq,
        entries: [entry],
        decided,
      });
    }
  }
}

function tableOf(values: Map<string, Value>): Record<string, Value> {
  const table = emptyDict<Value>();
  for (const [name, value] of values) table[name] = value;
  return table;
}

type Callback = (...args: unknown[]) => void;
type State = Record<string, unknown>;

/**
 * ipywidgets' model, as far as these files see of it. As in Backbone a `set` inside a change event tells its own change at once,
 * and an event goes to those who listened when it began; as in ipywidgets `_state_lock` is what the kernel is setting now, and
 * `save_changes` sends what was set since the last one, less that.
 */
export class FakeModel implements Model {
  _state_lock: State | null = null;
  _buffered_state_diff: State = {};
  /** What `save_changes` sent, one by one. */
  readonly saved: State[] = [];
  /** Custom messages to the kernel. */
  readonly sent: unknown[] = [];
  /** Change events of each attribute that were told. */
  readonly told: string[] = [];
  /** What takes a save to the kernel. */
  comm: ((state: State) => void) | null = null;
  readonly attributes: State;
  private changing = false;
  private previous: State = {};
  private changed: State = {};
  private readonly callbacks = new Map<string, Callback[]>();

  constructor(
    attributes: State,
    readonly widget_manager: Model["widget_manager"] = managerOf({}),
  ) {
    this.attributes = { ...attributes };
  }

  get(name: string): unknown {
    return Object.hasOwn(this.attributes, name) ? this.attributes[name] : undefined;
  }

  set(name: string, value: unknown): void {
    this.setAll({ [name]: value });
  }

  /** What an update from the kernel, or the echo of another page's, does. */
  set_state(state: State): void {
    this._state_lock = state;
    try {
      this.setAll(state);
    } finally {
      this._state_lock = null;
    }
  }

  save_changes(): void {
    const state = this._buffered_state_diff;
    this._buffered_state_diff = {};
    for (const [name, value] of Object.entries(this._state_lock ?? {})) if (state[name] === value) delete state[name];
    if (Object.keys(state).length === 0) return;
    this.saved.push(state);
    this.comm?.(state);
  }

  send(content: unknown): void {
    this.sent.push(content);
  }

  on(event: string, callback: Callback): void {
    this.callbacks.set(event, [...(this.callbacks.get(event) ?? []), callback]);
  }

  off(event: string, callback: Callback): void {
    this.callbacks.set(
      event,
      (this.callbacks.get(event) ?? []).filter((other) => other !== callback),
    );
  }

  trigger(event: string, ...args: unknown[]): void {
    for (const callback of this.callbacks.get(event) ?? []) callback(...args);
  }

  /** How many callbacks are registered, for any event. */
  get listeners(): number {
    return [...this.callbacks.values()].reduce((sum, callbacks) => sum + callbacks.length, 0);
  }

  private setAll(attributes: State): void {
    const outermost = !this.changing;
    this.changing = true;
    if (outermost) {
      this.previous = { ...this.attributes };
      this.changed = {};
    }
    const changes: string[] = [];
    for (const [name, value] of Object.entries(attributes)) {
      if (!alike(this.attributes[name], value)) changes.push(name);
      if (alike(this.previous[name], value)) delete this.changed[name];
      else this.changed[name] = value;
      this.attributes[name] = value;
    }
    try {
      for (const name of changes) {
        this.told.push(name);
        this.trigger(`change:${name}`, this, this.attributes[name]);
      }
    } finally {
      if (outermost) this.changing = false;
    }
    const unsaved = { ...this.changed };
    for (const [name, value] of Object.entries(this._state_lock ?? {})) if (unsaved[name] === value) delete unsaved[name];
    Object.assign(this._buffered_state_diff, unsaved);
  }
}

/** What anywidget hands to a module in place of the model: its methods, and nothing else. */
export function proxied(model: FakeModel): Model {
  return {
    get: model.get.bind(model),
    set: model.set.bind(model),
    save_changes: model.save_changes.bind(model),
    send: model.send.bind(model),
    on: model.on.bind(model),
    off: model.off.bind(model),
    widget_manager: model.widget_manager,
  };
}

export function managerOf(models: Record<string, Model>): Model["widget_manager"] {
  return {
    get_model: async (id) => {
      const model = models[id];
      if (model === undefined) throw new Error(`no model ${id}`);
      return model;
    },
  };
}

/** The model of a state linked to a room. */
export function stateModel(room: string, state: string, values: State, manager?: Model["widget_manager"]): FakeModel {
  return new FakeModel({ ...values, _link: { room, state, traits: Object.keys(values), offline: "" } }, manager);
}

/** As underscore's `isEqual` for what attributes hold. */
function alike(left: unknown, right: unknown): boolean {
  if (Object.is(left, right)) return true;
  if (typeof left !== "object" || typeof right !== "object" || left === null || right === null) return false;
  if (left instanceof DataView && right instanceof DataView) {
    return alike(Array.from(bytesOf(left)), Array.from(bytesOf(right)));
  }
  if (Object.getPrototypeOf(left) !== Object.getPrototypeOf(right)) return false;
  const keys = Object.keys(left);
  return (
    keys.length === Object.keys(right).length && keys.every((key) => alike(Reflect.get(left, key), Reflect.get(right, key)))
  );
}

export function bytesOf(view: unknown): Uint8Array {
  if (!(view instanceof DataView)) throw new Error("no DataView");
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

export function dataView(...bytes: number[]): DataView {
  return new DataView(Uint8Array.from(bytes).buffer);
}

export function setOp(state: string, path: readonly string[], value: Value): Op {
  return { op: "set", state, path, value, if_rev: null, if_in: null };
}
