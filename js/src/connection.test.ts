import { afterEach, describe, expect, test, vi } from "vitest";
import { FakeHost, type FakeSocket, from, PLACE, problem, setOp, turns, welcome } from "../test/world";
import { encode, fragments } from "./codec";
import { Connection, type LinkState, type Speaker } from "./connection";
import type { Place } from "./locate";
import type { Downstream, Hello, Push, Upstream } from "./protocol";

const TOKEN: Place = { ...PLACE, token: "a b&c" };
const ME = "http://h/sharedwidgets/api/me";

/** What the rooms would be. */
class Recorder implements Speaker {
  readonly heard: Downstream[] = [];
  readonly states: LinkState[] = [];
  readonly resumes: Hello["rooms"][number][] = [];
  readonly waiting: Upstream[] = [];
  limits: number[] = [];
  lostTimes = 0;

  hello(): Hello["rooms"] {
    return this.resumes;
  }

  due(inFlight: number): Upstream[] {
    this.limits.push(inFlight);
    return this.waiting.splice(0);
  }

  hear(message: Downstream): void {
    this.heard.push(message);
  }

  lost(): void {
    this.lostTimes += 1;
  }

  state(state: LinkState): void {
    this.states.push(state);
  }

  get kinds(): string[] {
    return this.states.map(({ kind }) => kind);
  }
}

function start(place: Place = PLACE, host = new FakeHost()) {
  const speaker = new Recorder();
  const connection = new Connection(place, host, speaker);
  return { host, speaker, connection };
}

function live(place: Place = PLACE, limits = {}) {
  const world = start(place);
  world.host.socket.accept();
  world.host.socket.deliver(welcome(limits));
  world.host.socket.said();
  return { ...world, socket: world.host.socket };
}

function push(n: number, value: Push["ops"][number] = setOp("S", ["x"], n)): Push {
  return { type: "push", room: "r", n, ops: [value], depth: 0, fences: {}, answer: false, epoch: "" };
}

function types(socket: FakeSocket): string[] {
  return socket.said().map(({ type }) => type);
}

function offline(connection: Connection): { code: string; final: boolean } {
  const { state } = connection;
  if (state.kind !== "offline") throw new Error(`it is ${state.kind}`);
  return { code: state.problem.code, final: state.final };
}

afterEach(() => vi.unstubAllGlobals());

describe("the first words", () => {
  test("one socket, with the protocol's name, and hello first", () => {
    const { host, speaker } = start();
    expect(host.sockets.map(({ url, protocol }) => [url, protocol])).toEqual([[PLACE.socketUrl, "sharedwidgets.v1"]]);
    expect(host.socket.frames).toEqual([]);
    host.socket.accept();
    expect(host.socket.said()).toEqual([
      {
        type: "hello",
        protocol: 1,
        boot: "boot1",
        kind: "frontend",
        member: null,
        secret: null,
        name: "Page",
        kernel_id: null,
        pid: 0,
        rooms: [],
      },
    ]);
    expect(speaker.kinds).toEqual(["connecting"]);
  });

  test("nothing but hello before the welcome, and all that waits after it", async () => {
    const { host, speaker, connection } = start();
    speaker.waiting.push(push(1), push(2));
    connection.wake();
    await turns();
    host.socket.accept();
    connection.wake();
    await turns();
    expect(types(host.socket)).toEqual(["hello"]);
    host.socket.deliver(welcome({ in_flight_pushes: 7 }));
    expect(types(host.socket)).toEqual(["push", "push"]);
    expect(speaker.limits).toEqual([7]);
    expect(connection.state.kind).toBe("live");
  });

  test("the member's secret is kept for the next socket, the boot stays, and rooms say where they stand", async () => {
    const { host, socket, speaker } = live();
    expect(host.memory).toEqual({ member: "m1", secret: "sec" });
    speaker.resumes.push({
      type: "resume",
      room: "r",
      incarnation: "i",
      epoch: "e",
      seq: 4,
      lowest: 1,
      highest: 0,
      states: ["S"],
    });
    socket.drop();
    await host.advance(100);
    host.socket.accept();
    expect(host.socket.said()).toMatchObject([
      { type: "hello", boot: "boot1", member: "m1", secret: "sec", rooms: [{ seq: 4 }] },
    ]);
  });

  test("the title is cut to 256 characters, never within one, and has nothing that cannot travel", () => {
    const host = new FakeHost();
    host.name = `${"x".repeat(254)}\ud800😀😀`;
    start(PLACE, host);
    host.socket.accept();
    expect(host.socket.said()).toMatchObject([{ name: `${"x".repeat(254)}\ufffd😀` }]);
  });
});

describe("who the page is", () => {
  test("the cookie first; the page's token only after somebody refused it, and only in the URL", async () => {
    const { host, speaker } = start(TOKEN);
    host.status = 403;
    expect(host.socket.url).toBe(PLACE.socketUrl);
    host.socket.drop();
    await turns();
    expect(host.sockets.map(({ url }) => url)).toEqual([PLACE.socketUrl, `${PLACE.socketUrl}?token=a%20b%26c`]);
    host.socket.accept();
    host.socket.deliver(welcome());
    expect(host.socket.said()).toMatchObject([{ type: "hello", boot: "boot1" }]);
    expect(speaker.states.at(-1)?.kind).toBe("live");
    expect(JSON.stringify(host.socket.frames)).not.toContain("a b&c");
  });

  test("a cookie that opens pages but no sockets is refused too", async () => {
    const { host } = start(TOKEN);
    host.status = 200;
    host.socket.drop();
    await turns();
    expect(host.socket.url).toContain("?token=");
  });

  test("a server that is away refused nobody: the token stays where it is", async () => {
    const { host } = start(TOKEN);
    host.status = 0;
    for (let round = 0; round < 5; round++) {
      host.socket.drop();
      await turns();
      await host.advance(10_000);
    }
    expect(host.sockets.length).toBe(6);
    expect(host.sockets.filter(({ url }) => url.includes("token"))).toEqual([]);
  });

  test("when the token is refused as well, the cookie has its turn again: somebody may have logged in", async () => {
    const { host, connection } = start(TOKEN);
    host.status = 403;
    host.socket.drop();
    await turns();
    host.socket.drop();
    await turns();
    expect(offline(connection)).toEqual({ code: "forbidden", final: true });
    await host.advance(10_000);
    expect(host.socket.url).toBe(PLACE.socketUrl);
    expect(host.sockets.length).toBe(3);
  });

  test("after a connection that the token opened, the next begins with the cookie", async () => {
    const { host } = start(TOKEN);
    host.status = 403;
    host.socket.drop();
    await turns();
    host.socket.accept();
    host.socket.deliver(welcome());
    host.socket.drop();
    await host.advance(10_000);
    expect(host.socket.url).toBe(PLACE.socketUrl);
  });

  test.each([
    [404, "server-not-found", true],
    [403, "forbidden", true],
    [401, "forbidden", true],
    [0, "silent", false],
    [502, "silent", false],
    [200, "silent", false],
  ])("a page without a token asks api/me why: %i", async (status, code, final) => {
    const { host, connection } = start();
    host.status = status;
    host.socket.drop();
    expect(connection.state.kind).toBe("connecting");
    await turns();
    expect(host.asked).toEqual([ME]);
    expect(offline(connection)).toEqual({ code, final });
    // Waiting cannot mend it, but the operator may have: it is tried again all the same, without haste.
    expect(host.waits).toEqual([final ? 5000 : 50]);
  });
});

describe("coming back", () => {
  test("0–100 ms first, then 250 ms doubled up to 10 s, with jitter", async () => {
    const { host } = start();
    const waits: number[] = [];
    for (let round = 0; round < 9; round++) {
      host.socket.drop();
      await turns();
      waits.push(host.waits[0] ?? -1);
      host.chance = round % 2 === 0 ? 1 : 0.5;
      await host.advance(10_000);
    }
    expect(waits).toEqual([50, 250, 250, 1000, 1000, 4000, 4000, 10_000, 5000]);
  });

  test("a connection that lasted begins again with the first; one that did not goes on", async () => {
    const { host } = start();
    host.chance = 1;
    const dropped = async (): Promise<number> => {
      host.socket.drop();
      await turns();
      const wait = host.waits[0] ?? -1;
      await host.advance(wait);
      host.socket.accept();
      host.socket.deliver(welcome());
      return wait;
    };
    expect([await dropped(), await dropped(), await dropped()]).toEqual([100, 250, 500]);
    await host.advance(5000);
    expect(await dropped()).toBe(100);
  });

  test("hurry opens at once while a retry waits, and does nothing otherwise", async () => {
    const { host, connection, socket } = live();
    connection.hurry();
    expect(host.sockets.length).toBe(1);
    socket.drop();
    connection.hurry();
    expect(host.sockets.length).toBe(2);
    connection.hurry();
    await host.advance(9_000);
    expect(host.sockets.length).toBe(2);
  });

  test("hurry while api/me has not answered opens no second socket beside the one to come", async () => {
    const { host, connection } = start();
    host.status = null;
    host.socket.drop();
    connection.hurry();
    expect(host.sockets.length).toBe(1);
    host.answer(0);
    await turns();
    connection.hurry();
    expect(host.sockets.length).toBe(2);
  });

  test("rooms hear once that the socket is lost, and of each state of the link", async () => {
    const { host, speaker, socket } = live();
    socket.drop();
    expect(speaker.lostTimes).toBe(1);
    expect(speaker.kinds).toEqual(["connecting", "live", "offline"]);
    await host.advance(50);
    expect(speaker.kinds.at(-1)).toBe("connecting");
  });

  test("what the old socket still says is not heard", async () => {
    const { host, speaker, socket, connection } = live();
    socket.drop();
    await host.advance(50);
    host.socket.accept();
    host.socket.deliver(welcome());
    socket.deliver(from({ type: "members", room: "r" }), from({ type: "ping", id: 4 }));
    socket.onclose?.();
    expect(speaker.heard).toEqual([]);
    expect(types(socket)).toEqual([]);
    expect(speaker.lostTimes).toBe(1);
    expect(connection.state.kind).toBe("live");
    expect(host.sockets.length).toBe(2);
  });
});

describe("silence", () => {
  test("a connection nothing is heard of is dead, whether or not its socket says so", async () => {
    const { host, connection, socket, speaker } = live(PLACE, { dead_seconds: 25 });
    await host.advance(24_000);
    socket.deliver(from({ type: "ping", id: 1 }));
    await host.advance(24_000);
    expect(connection.state.kind).toBe("live");
    await host.advance(1_000);
    expect(socket.closing).toBe(true);
    expect(offline(connection)).toEqual({ code: "silent", final: false });
    expect(speaker.lostTimes).toBe(1);
    await host.advance(100);
    expect(host.sockets.length).toBe(2);
    // Its end comes late, as over a network that is away, and ends nothing any more.
    socket.drop();
    expect(speaker.lostTimes).toBe(1);
    expect(host.sockets.length).toBe(2);
  });

  test("so is one whose hello is not answered", async () => {
    const { host, connection } = start();
    host.socket.accept();
    await host.advance(25_000);
    expect(offline(connection).code).toBe("silent");
  });

  test("an end does not leave a watch behind that ends the next connection", async () => {
    const { host, socket } = live();
    await host.advance(20_000);
    socket.drop();
    await host.advance(50);
    host.socket.accept();
    host.socket.deliver(welcome());
    await host.advance(24_000);
    expect(host.socket.closing).toBe(false);
  });

  test("pings are answered, pongs are not", () => {
    const { socket, speaker } = live();
    socket.deliver(from({ type: "ping", id: 5 }), from({ type: "pong", id: 6 }));
    expect(socket.said()).toEqual([{ type: "pong", id: 5 }]);
    expect(speaker.heard).toEqual([]);
  });
});

describe("slow", () => {
  test("nothing more goes until so many seconds have passed; what waited goes then", async () => {
    const { host, speaker, connection, socket } = live();
    socket.deliver(from({ type: "slow", delay: 0.5 }));
    speaker.waiting.push(push(1));
    connection.wake();
    await host.advance(499);
    expect(types(socket)).toEqual([]);
    socket.deliver(from({ type: "ping", id: 5 }));
    expect(types(socket)).toEqual(["pong"]);
    await host.advance(1);
    expect(types(socket)).toEqual(["push"]);
    speaker.waiting.push(push(2));
    connection.wake();
    await turns();
    expect(types(socket)).toEqual(["push"]);
  });

  test("a second one counts from when it came", async () => {
    const { host, speaker, connection, socket } = live();
    socket.deliver(from({ type: "slow", delay: 0.5 }));
    await host.advance(400);
    socket.deliver(from({ type: "slow", delay: 0.5 }));
    speaker.waiting.push(push(1));
    connection.wake();
    await host.advance(499);
    expect(types(socket)).toEqual([]);
    await host.advance(1);
    expect(types(socket)).toEqual(["push"]);
  });

  test("the next connection is not slow", async () => {
    const { host, speaker, socket } = live();
    socket.deliver(from({ type: "slow", delay: 60 }));
    socket.drop();
    await host.advance(50);
    speaker.waiting.push(push(1));
    host.socket.accept();
    host.socket.deliver(welcome());
    expect(types(host.socket)).toEqual(["hello", "push"]);
  });
});

describe("bye", () => {
  test("says why, and when to come back at the earliest", async () => {
    const { host, connection, socket } = live();
    socket.deliver({ type: "bye", problem: problem("going-away"), room: null, retry_after: 3, incarnation: "" });
    socket.drop();
    expect(offline(connection)).toEqual({ code: "going-away", final: false });
    await host.advance(2_999);
    expect(host.sockets.length).toBe(1);
    await host.advance(100);
    expect(host.sockets.length).toBe(2);
  });

  test("pages that were sent away together do not come back together", () => {
    const waits = [0, 0.5, 1].map((chance) => {
      const { host, socket } = live();
      host.chance = chance;
      socket.deliver({ type: "bye", problem: problem("going-away"), room: null, retry_after: 1, incarnation: "" });
      socket.drop();
      return host.waits[0];
    });
    expect(waits).toEqual([1000, 1050, 1100]);
  });

  test("before a welcome it says why too, and api/me is not asked", async () => {
    const { host, connection } = start(TOKEN);
    host.socket.accept();
    host.socket.deliver(from({ type: "bye", problem: { code: "unsupported-protocol", message: "m" } }));
    host.socket.drop();
    await turns();
    expect(offline(connection).code).toBe("unsupported-protocol");
    expect(host.asked).toEqual([]);
  });

  test("of one room is the room's matter", () => {
    const { socket, speaker, connection } = live();
    socket.deliver({ type: "bye", problem: problem("room-gone"), room: "r", retry_after: null, incarnation: "" });
    expect(speaker.heard).toMatchObject([{ type: "bye", room: "r" }]);
    expect(connection.state.kind).toBe("live");
  });
});

describe("frames", () => {
  test.each([
    ["no JSON", "{"],
    ["no message", `{"type":"what"}`],
    ["a field amiss", `{"type":"members","room":7}`],
    ["a binary frame that is none", Uint8Array.of(9, 9)],
    ["a frame between two fragments", ""],
  ])("%s ends the connection, says so, and is tried again with patience", async (what, frame) => {
    const { host, connection, socket, speaker } = live();
    if (what.includes("fragments")) socket.onframe?.(Uint8Array.of(1, 3, 65));
    socket.onframe?.(frame === "" ? `{"type":"ping","id":1}` : frame);
    expect(socket.closing).toBe(true);
    socket.drop();
    expect(offline(connection)).toEqual({ code: "malformed", final: false });
    expect(speaker.heard).toEqual([]);
    expect(host.waits.length).toBe(1);
  });

  test("a fault of ours while hearing is thrown, not taken for the server's", () => {
    const { socket, speaker } = live();
    speaker.hear = () => {
      throw new RangeError("ours");
    };
    expect(() => socket.deliver(from({ type: "members", room: "r" }))).toThrow(RangeError);
  });

  test("fragments are put together on the way in", () => {
    const { socket, speaker } = live();
    const message = from({ type: "members", room: "r", gone: ["x".repeat(500), "😀"] });
    const parts = fragments(encode(message), 100);
    expect(parts.length).toBeGreaterThan(5);
    for (const part of parts) socket.onframe?.(part);
    expect(speaker.heard).toEqual([message]);
  });

  test("what half of a message left behind does not reach the next connection", async () => {
    const { host, socket, connection } = live();
    socket.onframe?.(Uint8Array.of(1, 3, 65));
    socket.drop();
    await host.advance(50);
    host.socket.accept();
    host.socket.deliver(welcome());
    expect(connection.state.kind).toBe("live");
  });

  test("fragments are made on the way out, of the server's length, and values with bytes travel in them", async () => {
    const { socket, speaker, connection } = live(PLACE, { frame_bytes: 64 });
    const big = push(
      1,
      setOp(
        "S",
        ["x"],
        Uint8Array.from({ length: 300 }, (_, index) => index % 256),
      ),
    );
    speaker.waiting.push(big);
    connection.wake();
    await turns();
    const sizes = socket.frames.slice(1).map((frame) => frame.length);
    expect(sizes.length).toBeGreaterThan(4);
    expect(Math.max(...sizes)).toBe(64);
    expect(socket.said()).toEqual([big]);
  });

  test("a message with bytes comes in as one", () => {
    const { socket, speaker } = live();
    const op = { op: "set", state: "S", path: ["x"], value: Uint8Array.of(1, 2) };
    const entry = { seq: 2, at: 0, by: { id: "k", kind: "kernel" }, ops: [op] };
    const message = from({ type: "entries", room: "r", epoch: "e", prev: 1, last: 2, entries: [entry] });
    socket.deliver(message);
    expect(speaker.heard).toEqual([message]);
  });
});

describe("when things leave", () => {
  test("in the order in which they were made", async () => {
    const { socket, speaker, connection } = live();
    speaker.waiting.push(push(1), { type: "leave", room: "r", state: "S" }, push(2));
    connection.wake();
    await turns();
    expect(socket.said()).toEqual([push(1), { type: "leave", room: "r", state: "S" }, push(2)]);
  });

  test("the first change at the end of this turn, and all of this turn together", async () => {
    const { socket, speaker, connection } = live();
    speaker.limits = [];
    for (const n of [1, 2, 3]) {
      speaker.waiting.push(push(n));
      connection.wake();
    }
    expect(types(socket)).toEqual([]);
    await Promise.resolve();
    expect(types(socket)).toEqual(["push", "push", "push"]);
    expect(speaker.limits.length).toBe(1);
  });

  test("an answer may make something due: it is asked after each message heard", async () => {
    const { socket, speaker } = live();
    speaker.waiting.push(push(1));
    socket.deliver(from({ type: "members", room: "r" }));
    await turns();
    expect(types(socket)).toEqual(["push"]);
  });

  test("nothing while the socket is away", async () => {
    const { host, socket, speaker, connection } = live();
    socket.drop();
    speaker.waiting.push(push(1));
    connection.wake();
    await turns();
    expect(speaker.waiting.length).toBe(1);
    await host.advance(50);
    host.socket.accept();
    host.socket.deliver(welcome());
    expect(types(host.socket)).toEqual(["hello", "push"]);
  });
});
