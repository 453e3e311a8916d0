// The page's one socket: opens it, keeps it up, and moves messages. Knows no merge rules; the rooms tell it what to send.

import { Assembler, decodeDownstream, encode, type Frame, fragments } from "./codec";
import { SharedWidgetsError } from "./errors";
import type { Place } from "./locate";
import {
  type Downstream,
  type Hello,
  PROTOCOL_VERSION,
  type Problem,
  SUBPROTOCOL,
  type Upstream,
  type Welcome,
} from "./protocol";

/** What a connection is doing, each with only its own facts. */
export type LinkState =
  | { readonly kind: "connecting" }
  | { readonly kind: "live"; readonly welcome: Welcome }
  | { readonly kind: "offline"; readonly problem: Problem; readonly final: boolean };

/** What the browser gives: named, so that tests can give something else. */
export interface Host {
  open(url: string, protocol: string): Socket;
  /** Status and body of a GET; status 0 when nobody answered. */
  get(url: string): Promise<{ status: number }>;
  after(milliseconds: number, task: () => void): () => void;
  random(): number;
  id(): string;
  title(): string;
  recall(): { member: string; secret: string } | null;
  remember(member: string, secret: string): void;
}

export interface Socket {
  send(frame: Frame): void;
  close(): void;
  onopen: (() => void) | null;
  onframe: ((frame: Frame) => void) | null;
  onclose: (() => void) | null;
}

/** What the rooms of the page answer when the connection asks. */
export interface Speaker {
  hello(): Hello["rooms"];
  due(inFlight: number): Upstream[];
  hear(message: Downstream): void;
  lost(): void;
  state(state: LinkState): void;
}

const FIRST_DELAY = 100;
const BASE_DELAY = 250;
const MAX_DELAY = 10_000;
const CEILING = 80 << 20;
const DEAD_AFTER = 25_000;
// A connection that lasted so long is no failed try: a server that accepts and ends each one must not be asked without pause.
const HEALTHY_AFTER = 5_000;
const MAX_NAME = 256;

/** Keeps one socket to one server. */
export class Connection {
  private current: LinkState = { kind: "connecting" };
  private readonly boot: string;
  private socket: Socket | null = null;
  private failures = 0;
  private withToken = false;
  private said: { problem: Problem; retryAfter: number | null } | null = null;
  private stopRetry: (() => void) | null = null;
  private stopWatch: (() => void) | null = null;
  private stopHealthy: (() => void) | null = null;
  private stopSlow: (() => void) | null = null;
  private queued = false;

  constructor(
    private readonly place: Place,
    private readonly host: Host,
    private readonly speaker: Speaker,
  ) {
    this.boot = host.id();
    this.open();
  }

  get state(): LinkState {
    return this.current;
  }

  /** There may be something to send. The first change goes at once; those made in the same turn go with it. */
  wake(): void {
    if (this.queued || this.stopSlow !== null) return;
    this.queued = true;
    queueMicrotask(() => {
      this.queued = false;
      this.flush();
    });
  }

  /** The page came back to the foreground or online: do not wait for the next try. */
  hurry(): void {
    if (this.stopRetry !== null) {
      this.stopRetry();
      this.open();
    }
  }

  private open(): void {
    this.stopRetry = null;
    this.enter({ kind: "connecting" });
    // A browser cannot put a token into a header of a socket; it goes into the URL only where the cookie was refused.
    const url = this.withToken
      ? `${this.place.socketUrl}?token=${encodeURIComponent(this.place.token ?? "")}`
      : this.place.socketUrl;
    const socket = this.host.open(url, SUBPROTOCOL);
    const assembler = new Assembler(CEILING);
    let opened = false;
    this.socket = socket;
    this.said = null;
    socket.onopen = () => {
      opened = true;
      this.hello(socket);
    };
    socket.onframe = (frame) => this.take(socket, assembler, frame);
    socket.onclose = () => this.closed(socket, opened);
  }

  private hello(socket: Socket): void {
    const known = this.host.recall();
    this.watch();
    this.post(socket, {
      type: "hello",
      protocol: PROTOCOL_VERSION,
      boot: this.boot,
      kind: "frontend",
      member: known?.member ?? null,
      secret: known?.secret ?? null,
      name: nameOf(this.host.title()),
      kernel_id: null,
      pid: 0,
      rooms: this.speaker.hello(),
    });
  }

  private take(socket: Socket, assembler: Assembler, frame: Frame): void {
    if (socket !== this.socket) return;
    this.watch();
    let message: Downstream;
    try {
      const whole = assembler.feed(frame);
      if (whole === null) return;
      message = decodeDownstream(whole);
    } catch (error) {
      if (!(error instanceof SharedWidgetsError)) throw error;
      this.said = {
        problem: problemOf(error.code, `the server sent what this page does not understand: ${error.message}`),
        retryAfter: null,
      };
      socket.close();
      return;
    }
    switch (message.type) {
      case "welcome":
        this.withToken = false;
        this.stopHealthy = this.host.after(HEALTHY_AFTER, () => {
          this.failures = 0;
        });
        this.host.remember(message.member, message.secret);
        this.enter({ kind: "live", welcome: message });
        this.flush();
        break;
      case "ping":
        this.post(socket, { type: "pong", id: message.id });
        break;
      case "pong":
        break;
      case "slow":
        this.stopSlow?.();
        this.stopSlow = this.host.after(message.delay * 1000, () => {
          this.stopSlow = null;
          this.flush();
        });
        break;
      case "bye":
        if (message.room === null) this.said = { problem: message.problem, retryAfter: message.retry_after };
        else this.speaker.hear(message);
        break;
      default:
        this.speaker.hear(message);
        this.wake();
    }
  }

  private flush(): void {
    const { current, socket } = this;
    if (current.kind !== "live" || socket === null || this.stopSlow !== null) return;
    for (const message of this.speaker.due(current.welcome.limits.in_flight_pushes)) this.post(socket, message);
  }

  private post(socket: Socket, message: Upstream): void {
    const limit = this.current.kind === "live" ? this.current.welcome.limits.frame_bytes : 1 << 16;
    for (const part of fragments(encode(message), limit)) socket.send(part);
  }

  private closed(socket: Socket, opened: boolean): void {
    if (socket !== this.socket) return;
    this.socket = null;
    this.stopWatch?.();
    this.stopHealthy?.();
    this.stopSlow?.();
    this.stopSlow = null;
    this.speaker.lost();
    if (this.said !== null || opened) {
      const said = this.said;
      this.offline(said?.problem ?? problemOf("closed", ""), said?.retryAfter ?? null);
      return;
    }
    // A browser sees only that there is no socket, not why: ask where the answer can be read.
    void this.host.get(`${this.place.baseUrl}sharedwidgets/api/me`).then(({ status }) => {
      if (this.socket !== null || this.stopRetry !== null) return;
      // Somebody is there, and the cookie did not do. A server that is away refused nothing: the token stays where it is.
      this.withToken = !this.withToken && this.place.token !== null && (status === 200 || status === 401 || status === 403);
      if (this.withToken) this.open();
      else this.offline(...explained(status, this.place.baseUrl));
    });
  }

  private offline(problem: Problem, retryAfter: number | null, final = false): void {
    this.enter({ kind: "offline", problem, final });
    const ceiling = final
      ? MAX_DELAY
      : this.failures === 0
        ? FIRST_DELAY
        : Math.min(MAX_DELAY, BASE_DELAY * 2 ** (this.failures - 1));
    this.failures += 1;
    const wait = (retryAfter ?? 0) * 1000 + this.host.random() * ceiling;
    this.stopRetry = this.host.after(wait, () => this.open());
  }

  private enter(state: LinkState): void {
    this.current = state;
    this.speaker.state(state);
  }

  /** The server pings in silence; when even that stops, the connection is dead. */
  private watch(): void {
    this.stopWatch?.();
    const { current, socket } = this;
    const patience = current.kind === "live" ? current.welcome.limits.dead_seconds * 1000 : DEAD_AFTER;
    this.stopWatch = this.host.after(patience, () => {
      if (socket === null) return;
      this.said = { problem: problemOf("silent", "nothing came for too long"), retryAfter: null };
      socket.close();
      // Over a dead network the socket's own end may be long in coming.
      this.closed(socket, true);
    });
  }
}

function explained(status: number, baseUrl: string): [Problem, null, boolean] {
  if (status === 404) {
    return [problemOf("server-not-found", `${baseUrl} has no sharedwidgets extension`), null, true];
  }
  if (status === 401 || status === 403) {
    return [problemOf("forbidden", "the server does not let this page in"), null, true];
  }
  const why =
    status === 200
      ? "it answers, but no websocket reaches it; a proxy in between may be in the way"
      : `nobody answers at ${baseUrl}`;
  return [problemOf("silent", why), null, false];
}

/** A title as a name on the wire: well-formed, and cut where a character ends. */
function nameOf(title: string): string {
  return Array.from(title.replace(/\p{Cs}/gu, "\ufffd"))
    .slice(0, MAX_NAME)
    .join("");
}

export function problemOf(code: string, message: string): Problem {
  return { code, message, state: null, path: [], expected: null };
}
