// The rooms of a page: one replica per token, fed by the page's one connection, read by any number of views.

import { encode, fragments } from "./codec";
import { Connection, type Host, type LinkState, problemOf, type Speaker } from "./connection";
import { Locked, type SharedWidgetsError, TooLarge } from "./errors";
import type { Place } from "./locate";
import {
  type Downstream,
  type Entries,
  type Hello,
  type Op,
  type Problem,
  type Resume,
  type Snapshot,
  type Upstream,
  write,
} from "./protocol";
import { type News, Replica } from "./replica";
import { checkToken, emptyDict, size, type Value } from "./values";

// A server reads no more than 64 KiB of one it does not know yet.
const HELLO_ROOM_BYTES = 48 << 10;
// What one push may have, until a server has said so.
const DEFAULT_PUSH_BYTES = 8 << 20;

/** What a view hears of: news from the room, a state of the link, or the end of the room. */
export type Told =
  | { readonly kind: "news"; readonly news: News }
  | { readonly kind: "link"; readonly link: LinkState }
  | { readonly kind: "trouble"; readonly problem: Problem }
  | { readonly kind: "ended"; readonly problem: Problem };

export type Listener = (told: Told) => void;

/** One room on this page. */
export class PageRoom {
  readonly replica: Replica;
  readonly states = new Map<string, number>();
  readonly listeners = new Set<Listener>();
  /** Why the server did not let this page in; null while it did. */
  trouble: Problem | null = null;
  /** The server has said where the room stands since the socket opened. Before, what is sent could get no verdict (H8). */
  answered = false;
  /** The server was started again and nobody has made the room anew; this page goes on with its copy, and sends nothing. */
  lost = false;
  asked = false;

  constructor(
    readonly token: string,
    private readonly rooms: Rooms,
  ) {
    this.replica = new Replica(token);
  }

  get link(): LinkState {
    return this.rooms.link;
  }

  /** Whether this page and the server have the same room. */
  get here(): boolean {
    return this.replica.live && !this.lost;
  }

  /** Write as an author who saw `shown`; throws a SharedWidgetsError and writes nothing when the value may not be. */
  assign(state: string, trait: string, shown: Value, value: Value): void {
    const ops = this.replica.assign(state, trait, shown, value);
    if (ops.length > 0) this.write(ops);
  }

  write(ops: readonly Op[]): void {
    for (const { state } of ops) {
      const holder = this.replica.holder(state);
      if (holder !== null)
        throw new Locked(`${state} is locked by ${holder.label || holder.member}`, { room: this.token, state });
    }
    this.rooms.checkSize(this.token, ops);
    const news = this.replica.write(ops, { group: ops.length > 1 });
    this.tell({ kind: "news", news });
    this.rooms.wake();
  }

  tell(told: Told): void {
    for (const listener of [...this.listeners]) {
      if (!this.listeners.has(listener)) continue;
      try {
        listener(told);
      } catch (error) {
        // Listeners set attributes, and so run the code of any widget: its faults are not those of the others.
        reportError(error);
      }
    }
  }
}

/** All rooms of one page, behind one socket. */
export class Rooms implements Speaker {
  private readonly open = new Map<string, PageRoom>();
  private readonly control: Upstream[] = [];
  private lastPushBytes = DEFAULT_PUSH_BYTES;
  private readonly requests = new Map<number, string>();
  private nextId = 1;
  private readonly connection: Connection | null;

  constructor(place: Place | null, host: Host) {
    this.connection = place === null ? null : new Connection(place, host, this);
  }

  get link(): LinkState {
    return (
      this.connection?.state ?? {
        kind: "offline",
        problem: problemOf("server-not-found", "this page is not served by a Jupyter server"),
        final: true,
      }
    );
  }

  /** Look at a state of a room; the returned function ends it. Throws InvalidToken. */
  enter(token: string, state: string, listener: Listener): { room: PageRoom; leave: () => void } {
    const room = this.open.get(checkToken(token)) ?? new PageRoom(token, this);
    this.open.set(token, room);
    room.listeners.add(listener);
    const users = room.states.get(state) ?? 0;
    room.states.set(state, users + 1);
    if (users === 0) this.join(room, state);
    this.wake();
    let left = false;
    const leave = () => {
      if (!left) this.leave(room, state, listener);
      left = true;
    };
    return { room, leave };
  }

  /** A push the server could only refuse by hanging up would be sent again for ever: it is refused here. */
  checkSize(room: string, ops: readonly Op[]): void {
    // Offline by the last numbers known: what is too large would be sent again after each reconnect, for ever.
    const limit = this.pushBytes();
    const rest = { depth: 0, fences: emptyDict<number>(), answer: false, epoch: "" };
    const frame = encode({ type: "push", room, n: Number.MAX_SAFE_INTEGER, ops, ...rest });
    // UTF-8 has at most three bytes for a UTF-16 unit.
    if (frame.length * 3 > limit && fragments(frame, limit).length > 1) {
      throw new TooLarge(`these writes are larger than the ${limit} bytes of one push`, { room, expected: `≤ ${limit} bytes` });
    }
  }

  private pushBytes(): number {
    if (this.link.kind === "live") this.lastPushBytes = this.link.welcome.limits.push_bytes;
    return this.lastPushBytes;
  }

  wake(): void {
    this.connection?.wake();
  }

  hurry(): void {
    this.connection?.hurry();
  }

  // --- what the connection asks

  hello(): Hello["rooms"] {
    this.control.length = 0;
    this.requests.clear();
    const resumes: Resume[] = [];
    let bytes = 0;
    for (const room of this.open.values()) {
      room.answered = room.lost = room.asked = false;
      if (room.states.size === 0 && room.replica.undecided === 0) {
        this.open.delete(room.token);
      } else if (room.replica.live) {
        const resume = room.replica.position([...room.states.keys()]);
        bytes += size(write(resume));
        (bytes < HELLO_ROOM_BYTES ? resumes : this.control).push(resume);
      } else {
        for (const state of room.states.keys()) this.join(room, state);
      }
    }
    return resumes;
  }

  due(inFlight: number): Upstream[] {
    const messages = this.control.splice(0);
    for (const room of this.open.values()) {
      if (room.answered && !room.lost) messages.push(...room.replica.take(inFlight));
      // Nobody looks any more; the page leaves behind what it wrote, once that has its verdict.
      if (room.states.size === 0 && room.replica.undecided === 0) {
        messages.push({ type: "leave", room: room.token, state: null });
        this.open.delete(room.token);
      }
    }
    return messages;
  }

  lost(): void {
    for (const room of this.open.values()) room.replica.disconnected();
  }

  state(link: LinkState): void {
    for (const room of this.open.values()) room.tell({ kind: "link", link });
  }

  hear(message: Downstream): void {
    switch (message.type) {
      case "snapshot":
      case "entries":
      case "nack":
      case "resend":
      case "members":
      case "waiting": {
        const room = this.open.get(message.room);
        if (room === undefined) return;
        if (message.type === "snapshot" || message.type === "entries") {
          if (room.lost && !this.found(room, message)) return;
          room.answered = true;
        }
        const news = room.replica.receive(message);
        this.control.push(...news.send);
        room.tell({ kind: "news", news });
        return;
      }
      case "joined":
        this.joined(message.id, message.room);
        return;
      case "error":
        this.refused(message.id, message.room, message.problem);
        return;
      case "bye":
        if (message.room !== null) this.ended(message.room, message.incarnation, message.problem);
    }
  }

  private join(room: PageRoom, state: string | null): void {
    const id = this.nextId++;
    this.requests.set(id, room.token);
    const resume = room.replica.live ? room.replica.position() : null;
    this.control.push({ type: "join", id, room: room.token, state, schema: null, values: null, resume });
  }

  private leave(room: PageRoom, state: string, listener: Listener): void {
    room.listeners.delete(listener);
    const users = (room.states.get(state) ?? 1) - 1;
    if (users > 0) {
      room.states.set(state, users);
      return;
    }
    room.states.delete(state);
    if (room.states.size > 0) this.control.push({ type: "leave", room: room.token, state });
    this.wake();
  }

  private joined(id: number, token: string): void {
    this.requests.delete(id);
    const room = this.open.get(token);
    if (room === undefined || room.trouble === null) return;
    room.trouble = null;
    room.tell({ kind: "link", link: this.link });
  }

  private refused(id: number | null, token: string | null, problem: Problem): void {
    const asked = id === null ? undefined : this.requests.get(id);
    if (id !== null) this.requests.delete(id);
    const room = this.open.get(asked ?? token ?? "");
    if (room === undefined) return;
    if (asked === undefined && problem.code === "no-such-room") {
      room.lost = room.replica.live;
      this.enterAgain(room);
      room.tell({ kind: "link", link: this.link });
      return;
    }
    room.trouble = problem;
    room.tell({ kind: "link", link: this.link });
  }

  /** The server lost the room: a page cannot make it, but waits for who can. Every push under way is answered so; one join does. */
  private enterAgain(room: PageRoom): void {
    if ([...this.requests.values()].includes(room.token)) return;
    if (room.states.size === 0) this.join(room, null);
    for (const state of room.states.keys()) this.join(room, state);
  }

  /** Whether somebody has made the room anew; who hears of it only by an entry asks for the whole. */
  private found(room: PageRoom, message: Snapshot | Entries): boolean {
    if (message.type === "snapshot") room.lost = message.seq === 0;
    else if (!room.asked) this.control.push(room.replica.position([...room.states.keys()]));
    room.asked = message.type === "entries";
    return !room.lost;
  }

  private ended(token: string, incarnation: string, problem: Problem): void {
    const room = this.open.get(token);
    // Another room under this token, which was entered meanwhile, goes on.
    if (room === undefined || (incarnation !== "" && incarnation !== room.replica.incarnation)) return;
    this.open.delete(token);
    const news = room.replica.abandon(problem);
    room.tell({ kind: "news", news });
    room.tell({ kind: "ended", problem });
  }
}

/** An error of ours as a problem; thrown again when it is not ours. */
export function explain(error: unknown): Problem {
  // The class is no test: where the kernel gave the module each model has its own copy, and one of them has the page's rooms.
  if (!(error instanceof Error && "code" in error && "path" in error)) throw error;
  const { code, message, state, path, expected } = error as SharedWidgetsError;
  return { code, message, state, path, expected };
}
