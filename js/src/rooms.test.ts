import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { FakeHost, from, PLACE, person, problem, Server, trait, turns, welcome } from "../test/world";
import { InvalidToken, InvalidValue, TooLarge } from "./errors";
import type { Downstream, Join, Resume, Upstream } from "./protocol";
import { explain, type PageRoom, Rooms, type Told } from "./rooms";
import { emptyDict, type Value } from "./values";

const reported = vi.fn();

beforeEach(() => vi.stubGlobal("reportError", reported));

afterEach(() => {
  vi.unstubAllGlobals();
  reported.mockReset();
});

/** A page whose socket is open and welcome, and no server at the far end but the test. */
function live() {
  const host = new FakeHost();
  const rooms = new Rooms(PLACE, host);
  const told: Told[] = [];
  const hear = (item: Told): void => void told.push(item);
  host.socket.accept();
  host.socket.deliver(welcome());
  host.socket.said();
  return { host, rooms, told, hear };
}

function snapshot(room = "r", more: Record<string, Value> = {}): Downstream {
  const S = { schema: { n: { kind: "int", max: 100 }, x: {} }, values: { n: 1, x: null } };
  return from({ type: "snapshot", room, incarnation: "i", epoch: "e", seq: 5, states: { S }, ...more });
}

function entry(seq: number, value: Value, { decided = 0, epoch = "e", room = "r" } = {}): Downstream {
  const ops = [{ op: "set", state: "S", path: ["n"], value }];
  const entries = [{ seq, at: 0, by: { id: "k", kind: "kernel" }, ops }];
  return from({ type: "entries", room, epoch, prev: seq - 1, last: seq, entries, decided });
}

async function said(host: FakeHost): Promise<Upstream[]> {
  await turns();
  return host.socket.said();
}

function brief(messages: Upstream[]): string[] {
  return messages.map((message) => {
    if (message.type === "join" || message.type === "leave") return `${message.type} ${message.room} ${message.state}`;
    return message.type === "push" ? `push ${message.room} ${message.n}` : message.type;
  });
}

function join(message: Upstream | undefined): Join {
  if (message?.type !== "join") throw new Error(`${message?.type} is no join`);
  return message;
}

function write(room: PageRoom, value: Value): void {
  room.assign("S", "n", room.replica.value("S", "n"), value);
}

/** A page in room r at seq 5, its join answered. */
async function inRoom() {
  const page = live();
  const { room, leave } = page.rooms.enter("r", "S", page.hear);
  const [request] = await said(page.host);
  page.host.socket.deliver(snapshot(), from({ type: "joined", id: join(request).id, room: "r", seq: 5 }));
  page.told.length = 0;
  return { ...page, room, leave };
}

/** What a resume is answered with when nothing has happened since. */
function nothingSince(seq: number): Downstream {
  return from({ type: "entries", room: "r", epoch: "e", prev: seq, last: seq, entries: [], decided: 0 });
}

async function reconnected(host: FakeHost): Promise<void> {
  host.socket.drop();
  await host.advance(200);
  host.socket.accept();
}

describe("coming and going", () => {
  test("one join per room and state, however many views; a leave when the last view goes", async () => {
    const { host, rooms, hear } = live();
    const views = [rooms.enter("r", "S", hear), rooms.enter("r", "S", () => {}), rooms.enter("r", "T", () => {})];
    rooms.enter("q", "S", () => {});
    expect(new Set(views.map(({ room }) => room)).size).toBe(1);
    expect(brief(await said(host))).toEqual(["join r S", "join r T", "join q S"]);
    views[0]?.leave();
    views[0]?.leave();
    expect(brief(await said(host))).toEqual([]);
    views[1]?.leave();
    expect(brief(await said(host))).toEqual(["leave r S"]);
    views[2]?.leave();
    expect(brief(await said(host))).toEqual(["leave r null"]);
  });

  test("a page joins without a schema, and asks for nothing before the welcome", async () => {
    const host = new FakeHost();
    const rooms = new Rooms(PLACE, host);
    rooms.enter("r", "S", () => {});
    host.socket.accept();
    expect(brief(await said(host))).toEqual(["hello"]);
    host.socket.deliver(welcome());
    expect(await said(host)).toEqual([
      { type: "join", id: expect.any(Number), room: "r", state: "S", schema: null, values: null, resume: null },
    ]);
  });

  test("two rooms share the socket, and each hears its own", async () => {
    const { host, rooms } = live();
    const [first, second]: [Told[], Told[]] = [[], []];
    const r = rooms.enter("r", "S", (item) => void first.push(item));
    const q = rooms.enter("q", "S", (item) => void second.push(item));
    host.socket.deliver(snapshot("r"), snapshot("q"), entry(6, 7, { room: "q" }));
    expect([r.room.replica.value("S", "n"), q.room.replica.value("S", "n")]).toEqual([1, 7]);
    expect([first.length, second.length]).toEqual([1, 2]);
    write(r.room, 2);
    write(q.room, 3);
    await turns();
    expect(brief(host.socket.said()).filter((message) => message.startsWith("push"))).toEqual(["push r 1", "push q 1"]);
    expect(host.sockets.length).toBe(1);
  });

  test("leave goes behind what was written, and only once that has its verdict", async () => {
    const { host, room, leave, rooms } = await inRoom();
    write(room, 2);
    leave();
    expect(brief(await said(host))).toEqual(["push r 1"]);
    host.socket.deliver(entry(6, 2, { decided: 1 }));
    expect(brief(await said(host))).toEqual(["leave r null"]);
    // Whoever comes again begins anew.
    expect(rooms.enter("r", "S", () => {}).room).not.toBe(room);
  });

  test("so it does when the verdict is a refusal", async () => {
    const { host, room, leave } = await inRoom();
    write(room, 2);
    leave();
    await said(host);
    host.socket.deliver({
      type: "nack",
      room: "r",
      n: 1,
      problem: problem("forbidden"),
      through: null,
      seq: 5,
      values: emptyDict(),
    });
    expect(brief(await said(host))).toEqual(["leave r null"]);
  });

  test("who comes back before the leave finds the same room", async () => {
    const { host, room, leave, rooms } = await inRoom();
    write(room, 2);
    leave();
    const again = rooms.enter("r", "S", () => {});
    expect(again.room).toBe(room);
    expect(again.room.replica.value("S", "n")).toBe(2);
    host.socket.deliver(entry(6, 2, { decided: 1 }));
    expect(brief(await said(host))).not.toContain("leave r null");
  });

  test("rooms that were left while the socket was away are not mentioned again", async () => {
    const { host, leave } = await inRoom();
    host.socket.drop();
    leave();
    await host.advance(200);
    host.socket.accept();
    host.socket.deliver(welcome());
    expect(await said(host)).toMatchObject([{ type: "hello", rooms: [] }]);
  });

  test("what is too large for one push is refused at its author, offline too: it would be sent again for ever", async () => {
    const { host, room } = await inRoom();
    const huge = "x".repeat(9 << 20);
    const assign = () => room.assign("S", "x", null, huge);
    expect(assign).toThrow(TooLarge);
    host.socket.drop();
    expect(assign).toThrow(TooLarge);
    expect(room.replica.undecided).toBe(0);
  });

  test("an illegal token is refused before anything is sent", async () => {
    const { host, rooms, hear } = live();
    expect(() => rooms.enter("a\u0000b", "S", hear)).toThrow(InvalidToken);
    expect(await said(host)).toEqual([]);
  });

  test("a page that no server serves is offline for good, and keeps still", async () => {
    const host = new FakeHost();
    const rooms = new Rooms(null, host);
    const { room, leave } = rooms.enter("r", "S", () => {});
    expect(room.link).toMatchObject({ kind: "offline", final: true, problem: { code: "server-not-found" } });
    rooms.wake();
    rooms.hurry();
    leave();
    expect(host.sockets).toEqual([]);
  });
});

describe("coming back", () => {
  test("hello says where each room stands, with the states looked at and the numbers that are open", async () => {
    const { host, room, rooms } = await inRoom();
    rooms.enter("r", "T", () => {});
    host.socket.deliver(entry(6, 3));
    write(room, 4);
    await turns();
    host.socket.drop();
    write(room, 5);
    await host.advance(200);
    host.socket.accept();
    const [hello] = await said(host);
    expect(hello).toMatchObject({
      type: "hello",
      rooms: [{ room: "r", incarnation: "i", epoch: "e", seq: 6, lowest: 1, highest: 1, states: ["S", "T"] }],
    });
    host.socket.deliver(welcome());
    // Not before the server has said that it knows the room, and this page in it.
    expect(await said(host)).toEqual([]);
    host.socket.deliver(nothingSince(6));
    expect(brief(await said(host))).toEqual(["push r 1", "push r 2"]);
  });

  test("a write of a view that is gone is brought to its end all the same", async () => {
    const { host, room, leave } = await inRoom();
    write(room, 2);
    await turns();
    leave();
    await reconnected(host);
    expect(await said(host)).toMatchObject([{ type: "hello", rooms: [{ room: "r", states: [] }] }]);
    host.socket.deliver(welcome(), nothingSince(5));
    expect(brief(await said(host))).toEqual(["push r 1"]);
    host.socket.deliver(entry(6, 2, { decided: 1 }));
    expect(brief(await said(host))).toEqual(["leave r null"]);
  });

  test("a room that never answered is joined again", async () => {
    const { host, rooms } = live();
    rooms.enter("r", "S", () => {});
    expect(brief(await said(host))).toEqual(["join r S"]);
    await reconnected(host);
    expect(await said(host)).toMatchObject([{ type: "hello", rooms: [] }]);
    host.socket.deliver(welcome());
    expect(brief(await said(host))).toEqual(["join r S"]);
  });

  test("hello stays below what a server reads before it knows who speaks; the rest follows the welcome", async () => {
    const { host, rooms } = live();
    const tokens = Array.from({ length: 128 }, (_, index) => "語".repeat(125) + String(index).padStart(3, "0"));
    for (const token of tokens) {
      rooms.enter(token, "S", () => {});
      host.socket.deliver(snapshot(token, { incarnation: "i".repeat(32), epoch: "e".repeat(32) }));
    }
    await reconnected(host);
    const frames = host.socket.frames.map((frame) => new TextEncoder().encode(String(frame)).length);
    expect(frames.length).toBe(1);
    expect(frames[0]).toBeLessThan(1 << 16);
    const [hello] = await said(host);
    host.socket.deliver(welcome());
    const rest = await said(host);
    expect(rest.every(({ type }) => type === "resume")).toBe(true);
    const resumed = [...(hello?.type === "hello" ? hello.rooms : []), ...(rest as Resume[])];
    expect(resumed.map(({ room }) => room).sort()).toEqual(tokens);
  });

  test("a gap is asked for once", async () => {
    const { host } = await inRoom();
    host.socket.deliver(entry(8, 3), entry(9, 4));
    expect(await said(host)).toMatchObject([{ type: "resume", room: "r", seq: 5 }]);
    host.socket.deliver(snapshot("r", { seq: 9 }));
    host.socket.deliver(entry(12, 3));
    expect(await said(host)).toMatchObject([{ type: "resume", room: "r", seq: 9 }]);
  });

  test("what is asked to be sent again is", async () => {
    const { host, room } = await inRoom();
    write(room, 2);
    await said(host);
    host.socket.deliver(from({ type: "resend", room: "r", n: 1 }));
    expect(brief(await said(host))).toEqual(["push r 1"]);
  });
});

describe("a room the server lost", () => {
  const lost = from({ type: "error", room: "r", problem: { code: "no-such-room", message: "m" } });

  test("is joined again, once, with where this page stands; what was set meanwhile waits for who makes it anew", async () => {
    const { host, room } = await inRoom();
    await reconnected(host);
    write(room, 2);
    host.socket.deliver(welcome());
    await said(host);
    expect(room.here).toBe(true);
    host.socket.deliver(lost, lost);
    const again = await said(host);
    expect(again).toMatchObject([{ type: "join", state: "S", resume: { seq: 5, lowest: 1, highest: 0 } }]);
    host.socket.deliver(
      from({ type: "snapshot", room: "r", incarnation: "j", epoch: "f", seq: 0, states: {} }),
      from({ type: "joined", id: join(again[0]).id, room: "r", seq: 0 }),
    );
    write(room, 3);
    expect(await said(host)).toEqual([]);
    expect([room.here, room.replica.value("S", "n"), room.trouble]).toEqual([false, 3, null]);
    // Somebody makes it: this page asks for the whole, once, and then says what it has to say.
    host.socket.deliver(entry(1, 0, { epoch: "f" }), entry(2, 0, { epoch: "f" }));
    expect(await said(host)).toMatchObject([{ type: "resume", room: "r", seq: 5, states: ["S"] }]);
    host.socket.deliver(snapshot("r", { incarnation: "j", epoch: "f", seq: 2 }));
    expect(brief(await said(host))).toEqual(["push r 1"]);
    expect([room.here, room.replica.value("S", "n")]).toEqual([true, 3]);
    // The next time it is lost is another time.
    host.socket.deliver(lost);
    expect(brief(await said(host))).toEqual(["join r S"]);
  });

  test("also when a join was not answered before the socket went", async () => {
    const { host, rooms } = await inRoom();
    rooms.enter("r", "T", () => {});
    await reconnected(host);
    host.socket.deliver(welcome());
    await said(host);
    host.socket.deliver(lost);
    expect(brief(await said(host))).toEqual(["join r S", "join r T"]);
  });

  test("also when only a write is left of this page in it", async () => {
    const { host, room, leave } = await inRoom();
    write(room, 2);
    leave();
    await said(host);
    host.socket.deliver(lost);
    expect(await said(host)).toMatchObject([{ type: "join", room: "r", state: null, resume: { highest: 1 } }]);
  });
});

describe("refused", () => {
  const refusal = (id: number): Downstream =>
    from({ type: "error", id, room: "r", problem: { code: "forbidden", message: "m" } });

  test("a join that is refused is the room's trouble, until one is taken", async () => {
    const { host, rooms, told, hear } = live();
    const { room } = rooms.enter("r", "S", hear);
    const [request] = await said(host);
    host.socket.deliver(refusal(join(request).id));
    expect(room.trouble?.code).toBe("forbidden");
    expect(told.length).toBe(1);
    await reconnected(host);
    host.socket.deliver(welcome());
    const again = (await said(host)).find(({ type }) => type === "join");
    expect(room.trouble?.code).toBe("forbidden");
    told.length = 0;
    host.socket.deliver(snapshot(), from({ type: "joined", id: join(again).id, room: "r", seq: 5 }));
    expect(room.trouble).toBeNull();
    expect(told.map(({ kind }) => kind)).toEqual(["news", "link"]);
  });

  test("answers for rooms that were left say nothing", async () => {
    const { host, rooms, told, hear } = live();
    const { leave } = rooms.enter("r", "S", hear);
    const [request] = await said(host);
    leave();
    await turns();
    told.length = 0;
    host.socket.deliver(refusal(join(request).id), snapshot(), from({ type: "joined", id: 99, room: "r", seq: 1 }));
    host.socket.deliver(from({ type: "error", problem: { code: "internal", message: "m" } }));
    host.socket.deliver({ type: "bye", room: "r", problem: problem("room-gone"), retry_after: null, incarnation: "" });
    expect(told).toEqual([]);
  });

  test("a write that is refused is told with its problem, and its value is gone", async () => {
    const { host, room, told } = await inRoom();
    write(room, 2);
    await said(host);
    told.length = 0;
    host.socket.deliver({
      type: "nack",
      room: "r",
      n: 1,
      problem: problem("forbidden"),
      through: null,
      seq: 5,
      values: emptyDict(),
    });
    expect(told).toMatchObject([{ kind: "news", news: { refused: [{ n: 1, problem: { code: "forbidden" } }] } }]);
    expect(room.replica.value("S", "n")).toBe(1);
  });

  test("a value that may not be writes nothing and sends nothing", async () => {
    const { host, room, told } = await inRoom();
    expect(() => write(room, 101)).toThrow(InvalidValue);
    expect(() => write(room, "x")).toThrow(InvalidValue);
    expect(told).toEqual([]);
    expect(await said(host)).toEqual([]);
  });
});

describe("the end of a room", () => {
  test("one that was entered since under the same token goes on (H18)", async () => {
    const { host, room, rooms, told } = await inRoom();
    const bye = { type: "bye", room: "r", problem: problem("room-gone"), retry_after: null } as const;
    host.socket.deliver({ ...bye, incarnation: "before" });
    expect(told).toEqual([]);
    write(room, 2);
    expect(await said(host)).toMatchObject([{ type: "push", n: 1 }]);
    host.socket.deliver({ ...bye, incarnation: "i" });
    expect(told.at(-1)).toMatchObject({ kind: "ended" });
    expect(rooms.hello()).toEqual([]);
  });

  test("what was not decided is refused, all are told, and nobody makes the room again", async () => {
    const { host, room, told, rooms } = await inRoom();
    write(room, 2);
    await said(host);
    told.length = 0;
    host.socket.deliver({ type: "bye", room: "r", problem: problem("room-gone"), retry_after: null, incarnation: "" });
    expect(told).toMatchObject([
      {
        kind: "news",
        news: { refused: [{ n: 1, problem: { code: "room-gone" } }], changes: [{ new: 1, origin: "rollback" }] },
      },
      { kind: "ended", problem: { code: "room-gone" } },
    ]);
    await reconnected(host);
    host.socket.deliver(welcome());
    expect(await said(host)).toMatchObject([{ type: "hello", rooms: [] }]);
    expect(rooms.enter("r", "S", () => {}).room).not.toBe(room);
  });
});

describe("telling", () => {
  test("everyone hears of the members, of the link, and of what others write", async () => {
    const { host, room, told } = await inRoom();
    host.socket.deliver({ type: "members", room: "r", present: [person("k")], gone: [], complete: false }, entry(6, 3));
    host.socket.drop();
    expect(told.map((item) => (item.kind === "link" ? item.link.kind : item.kind))).toEqual(["news", "news", "offline"]);
    expect([...room.replica.members.keys()]).toEqual(["k"]);
  });

  test("a listener that fails stops neither the others nor what is to be sent", async () => {
    const { host, rooms } = live();
    const heard: string[] = [];
    const fault = new Error("a view's fault");
    rooms.enter("r", "S", () => {
      throw fault;
    });
    const { room } = rooms.enter("r", "S", ({ kind }) => void heard.push(kind));
    host.socket.deliver(snapshot());
    await said(host);
    write(room, 2);
    expect(heard).toEqual(["news", "news"]);
    expect(brief(await said(host))).toEqual(["push r 1"]);
    expect(reported.mock.calls).toEqual([[fault], [fault]]);
  });

  test("who leaves while something is told does not hear it", async () => {
    const { host, rooms } = live();
    const heard: string[] = [];
    let second: { leave: () => void } | null = null;
    rooms.enter("r", "S", () => second?.leave());
    second = rooms.enter("r", "S", ({ kind }) => void heard.push(kind));
    host.socket.deliver(snapshot());
    expect(heard).toEqual([]);
  });

  test("an error as a problem, also one of another copy of this module", () => {
    const { code, path, state } = explain(new InvalidValue("m", { state: "S", path: ["x"] }));
    expect({ code, path, state }).toEqual({ code: "invalid-value", path: ["x"], state: "S" });
    const foreign = Object.assign(new Error("m"), { code: "invalid-token", state: null, path: [], expected: null });
    expect(explain(foreign)).toMatchObject({ code: "invalid-token", message: "m" });
    const fault = new TypeError("not ours");
    expect(() => explain(fault)).toThrow(fault);
  });
});

test("two pages and a server: what one writes the other sees, and neither hears itself twice", async () => {
  const server = new Server();
  const hosts = [new FakeHost("a"), new FakeHost("b")];
  server.serve(...hosts).define("r", "S", { n: trait("int") }, { n: 0 });
  const views = hosts.map((host) => new Rooms(PLACE, host).enter("r", "S", () => {}));
  await server.settle();
  for (let n = 1; n <= 20; n++) {
    const room = views[n % 2]?.room;
    if (room !== undefined) write(room, n);
    await server.settle();
  }
  expect(views.map(({ room }) => room.replica.value("S", "n"))).toEqual([20, 20]);
  expect(views.map(({ room }) => room.replica.undecided)).toEqual([0, 0]);
  expect(server.pushes.length).toBe(20);
});
