import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import {
  bytesOf,
  dataView,
  FakeHost,
  FakeModel,
  PLACE,
  problem,
  proxied,
  Server,
  setOp,
  stateModel,
  trait,
  turns,
} from "../test/world";
import { attribute, cameFromKernel, LinkedModel, painted } from "./model";
import { Rooms } from "./rooms";
import type { Value } from "./values";

beforeEach(() => vi.stubGlobal("reportError", vi.fn()));

afterEach(() => {
  expect(reportError).not.toHaveBeenCalled();
  vi.unstubAllGlobals();
});

const SCHEMA = { count: trait("int", { max: 100 }), label: trait("text") };

/** A server whose room r holds count 5 and label "x", and a page whose model was painted with other values. */
function page({ server = new Server(), host = new FakeHost(), make = true } = {}) {
  if (make) server.define("r", "S", SCHEMA, { count: 5, label: "x" });
  server.serve(host);
  const rooms = new Rooms(PLACE, host);
  const model = stateModel("r", "S", { count: 0, label: "" });
  return { server, host, rooms, model };
}

async function linkedPage() {
  const world = page();
  const linked = new LinkedModel(proxied(world.model), world.rooms);
  await world.server.settle();
  world.model.told.length = 0;
  return { ...world, linked };
}

/** One trait of any value, linked, as a model attribute. */
async function holding(value: Value, kind: Parameters<typeof trait>[0] = "any") {
  const server = new Server();
  server.define("r", "S", { x: trait(kind, { nullable: true }) }, { x: value });
  const host = new FakeHost();
  server.serve(host);
  const rooms = new Rooms(PLACE, host);
  const model = stateModel("r", "S", { x: null });
  const linked = [new LinkedModel(proxied(model), rooms), new LinkedModel(proxied(model), rooms)];
  await server.settle();
  return { server, host, rooms, model, linked };
}

function relink(model: FakeModel, room: string, more: Record<string, unknown> = {}): void {
  model.set_state({ _link: { ...(model.get("_link") as object), room, ...more } });
}

describe("a linked model", () => {
  test("shows the room's values, and what was painted loses to them", async () => {
    const { model, server, linked } = await linkedPage();
    expect([model.get("count"), model.get("label")]).toEqual([5, "x"]);
    expect(server.pushes).toEqual([]);
    expect(linked.values()).toEqual([
      ["count", 5],
      ["label", "x"],
    ]);
  });

  test("follows what others write, and tells whoever watches", async () => {
    const { model, server, linked } = await linkedPage();
    const watcher = vi.fn();
    const end = linked.watch(watcher);
    server.write("r", "S", "count", 6);
    expect(model.get("count")).toBe(6);
    expect(watcher).toHaveBeenCalledTimes(1);
    end();
    server.write("r", "S", "count", 7);
    expect(watcher).toHaveBeenCalledTimes(1);
    expect(model.told).toEqual(["count", "count"]);
  });

  test("an edit on this page is exactly one op, and nothing goes by comm", async () => {
    const { model, server } = await linkedPage();
    model.set("count", 7);
    await server.settle();
    expect(server.pushes.map(({ ops }) => ops)).toEqual([[setOp("S", ["count"], 7)]]);
    expect(server.value("r", "S", "count")).toBe(7);
    expect(model.told).toEqual(["count"]);
    expect(model.saved).toEqual([]);
  });

  test("setting what is shown already is no edit", async () => {
    const { model, server } = await linkedPage();
    model.set("count", 5);
    await server.settle();
    expect(server.pushes).toEqual([]);
  });

  test("an update the kernel sent by comm is put back, and makes no op", async () => {
    const { model, server } = await linkedPage();
    model.save_changes();
    model.saved.length = 0;
    model.set_state({ count: 99, label: "late" });
    expect([model.get("count"), model.get("label")]).toEqual([5, "x"]);
    model.save_changes();
    await server.settle();
    expect(server.pushes).toEqual([]);
    expect(model.saved).toEqual([]);
  });

  test("two followers of one model, the model's and the view's, make one op of an edit and none of the room's news", async () => {
    const { model, server, rooms } = await linkedPage();
    new LinkedModel(proxied(model), rooms);
    new LinkedModel(proxied(model), rooms);
    model.set("count", 7);
    await server.settle();
    expect(server.pushes.length).toBe(1);
    server.write("r", "S", "count", 8);
    await server.settle();
    expect(server.pushes.length).toBe(1);
    expect(model.get("count")).toBe(8);
    model.set_state({ count: 3 });
    await server.settle();
    expect(server.pushes.length).toBe(1);
    expect(model.get("count")).toBe(8);
  });

  test("a value the room does not take is put back, and everyone of the room is told", async () => {
    const { model, server, linked, rooms } = await linkedPage();
    const other = new LinkedModel(stateModel("r", "S", { count: 0, label: "" }), rooms);
    model.set("count", 101);
    expect(model.get("count")).toBe(5);
    expect([linked.trouble?.code, other.trouble?.code]).toEqual(["invalid-value", "invalid-value"]);
    model.set("label", "\ud800");
    expect(model.get("label")).toBe("x");
    model.set("label", () => {});
    expect(model.get("label")).toBe("x");
    await server.settle();
    expect(server.pushes).toEqual([]);
    model.set("count", 6);
    expect(linked.trouble).toBeNull();
  });

  test("a value the server refuses is put back, with its reason", async () => {
    const { model, server, linked } = await linkedPage();
    // The server's schema is narrower by now, and this page has not heard of it.
    server
      .room("r")
      .states.get("S")
      ?.schema.set("count", trait("int", { max: 6 }));
    model.set("count", 50);
    expect(model.get("count")).toBe(50);
    await server.settle();
    expect(model.get("count")).toBe(5);
    expect(linked.trouble?.code).toBe("invalid-value");
  });

  test("what a member of the room names a trait, but the kernel did not share, is no attribute of the model", async () => {
    const { model, server } = await linkedPage();
    const evil = { _esm: trait("text"), layout: trait("text"), _link: trait() };
    server.define("r", "S", evil, { _esm: "alert(1)", layout: "IPY_MODEL_x", _link: { room: "evil" } });
    server.write("r", "S", "_esm", "alert(2)");
    server.write("r", "S", "_link", { room: "evil" });
    await server.settle();
    expect([model.get("_esm"), model.get("layout")]).toEqual([undefined, undefined]);
    expect(model.get("_link")).toMatchObject({ room: "r" });
  });

  test("a handler of the user's that fails stops nobody else, and loses no edit", async () => {
    const { model, server, rooms } = await linkedPage();
    const other = stateModel("r", "S", { count: 0, label: "" });
    other.on("change:count", () => {
      throw new Error("the user's");
    });
    new LinkedModel(other, rooms);
    const third = stateModel("r", "S", { count: 0, label: "" });
    new LinkedModel(third, rooms);
    await server.settle();
    model.set("count", 8);
    await server.settle();
    expect(server.value("r", "S", "count")).toBe(8);
    expect(third.get("count")).toBe(8);
    expect(reportError).toHaveBeenCalled();
    vi.mocked(reportError).mockReset();
  });

  test("an edit while the socket is away goes with the next one", async () => {
    const { model, server, host, linked } = await linkedPage();
    host.socket.drop();
    model.set("count", 7);
    expect(linked.room?.link.kind).toBe("offline");
    expect(model.get("count")).toBe(7);
    await host.advance(200);
    await server.settle();
    expect(server.value("r", "S", "count")).toBe(7);
    expect(server.pushes.length).toBe(1);
  });
});

describe("before the room has told its values", () => {
  test("an edit is put back to what was painted, said, and never sent", async () => {
    const { model, server, rooms } = page();
    const linked = new LinkedModel(proxied(model), rooms);
    new LinkedModel(proxied(model), rooms);
    model.set("count", 42);
    expect(model.get("count")).toBe(0);
    expect(linked.trouble?.code).toBe("no-such-state");
    await server.settle();
    expect(server.pushes).toEqual([]);
    expect([model.get("count"), server.value("r", "S", "count")]).toEqual([5, 5]);
    // Still there to be read once the room is live; the next edit that is taken ends it.
    expect(linked.trouble?.code).toBe("no-such-state");
    model.set("count", 6);
    expect(linked.trouble).toBeNull();
  });

  test("so it is in a room nobody has made the state in yet", async () => {
    const { model, server, rooms } = page({ make: false });
    const linked = new LinkedModel(proxied(model), rooms);
    await server.settle();
    expect(linked.room?.replica.live).toBe(true);
    model.set("count", 42);
    expect(model.get("count")).toBe(0);
    expect(linked.values()).toEqual([
      ["count", 0],
      ["label", ""],
    ]);
    server.define("r", "S", SCHEMA, { count: 5, label: "x" });
    await server.settle();
    expect([model.get("count"), model.get("label")]).toEqual([5, "x"]);
    expect(server.pushes).toEqual([]);
  });

  test("so it is when the server has lost the room: what was shown last stands until somebody makes it again", async () => {
    const { model, server, host, rooms, linked } = await linkedPage();
    new LinkedModel(proxied(model), rooms);
    server.write("r", "S", "count", 8);
    model.set("count", 9);
    await server.settle();
    server.rooms.delete("r");
    host.socket.deliver(server.snapshot("r", "x"));
    model.set("count", 42);
    expect([model.get("count"), linked.trouble?.code]).toEqual([9, "no-such-state"]);
    server.define("r", "S", SCHEMA, { count: 3, label: "x" });
    host.socket.deliver(server.snapshot("r", "x"));
    expect(model.get("count")).toBe(3);
  });

  test("what the kernel sends is the paint from then on", async () => {
    const { model, server, rooms } = page();
    new LinkedModel(proxied(model), rooms);
    new LinkedModel(proxied(model), rooms);
    model.set_state({ count: 3 });
    expect(model.get("count")).toBe(3);
    model.set("count", 42);
    expect(model.get("count")).toBe(3);
    await server.settle();
    expect(server.pushes).toEqual([]);
  });
});

describe("linking", () => {
  test("not linked, it is an ordinary widget", async () => {
    const { model, server, rooms } = page();
    relink(model, "");
    const linked = new LinkedModel(proxied(model), rooms);
    model.set("count", 42);
    model.set_state({ label: "k" });
    await server.settle();
    expect(server.heard.map(({ type }) => type)).toEqual(["hello"]);
    expect([model.get("count"), model.get("label")]).toEqual([42, "k"]);
    expect([linked.room, linked.facts.room]).toEqual([null, ""]);
  });

  test("to another room: the values are those of the new one, and the old one hears nothing more", async () => {
    const { model, server, linked } = await linkedPage();
    server.define("q", "S", SCHEMA, { count: 50, label: "q" });
    relink(model, "q");
    await server.settle();
    expect([model.get("count"), linked.room?.token]).toEqual([50, "q"]);
    expect(server.room("r").attached.size).toBe(0);
    server.write("r", "S", "count", 9);
    model.set("count", 51);
    await server.settle();
    expect([server.value("r", "S", "count"), server.value("q", "S", "count"), model.get("count")]).toEqual([9, 51, 51]);
    expect(server.pushes.length).toBe(1);
  });

  test("unlinked, the room's values go nowhere by comm: neither now nor with the next save of another attribute", async () => {
    const { model, server, linked } = await linkedPage();
    server.write("r", "S", "count", 9);
    relink(model, "");
    // The kernel gives the private values of before back.
    model.set_state({ count: 1 });
    model.set_state({ label: "mine" });
    await server.settle();
    expect([model.get("count"), linked.room]).toEqual([1, null]);
    server.write("r", "S", "count", 10);
    expect(model.get("count")).toBe(1);
    model.set("draft", "typed");
    model.save_changes();
    expect(model.saved).toEqual([{ draft: "typed" }]);
    model.set("count", 2);
    model.save_changes();
    expect(model.saved.at(-1)).toEqual({ count: 2 });
    await server.settle();
    expect(server.pushes).toEqual([]);
  });

  test("linked again it follows again, and one edit is still one op", async () => {
    const { model, server } = await linkedPage();
    const { listeners } = model;
    for (let round = 0; round < 5; round++) {
      relink(model, "");
      await server.settle();
      relink(model, "r");
      await server.settle();
    }
    expect(model.listeners).toBe(listeners);
    model.set("count", 7);
    await server.settle();
    expect(server.pushes.length).toBe(1);
  });

  test("linked again within one turn it stays in the room", async () => {
    const { model, server } = await linkedPage();
    relink(model, "");
    relink(model, "r");
    await server.settle();
    server.write("r", "S", "count", 8);
    expect(model.get("count")).toBe(8);
  });

  test("traits that came with the new link are followed", async () => {
    const { model, server } = await linkedPage();
    server.define("r", "S", { more: trait("int") }, { more: 1 });
    relink(model, "r", { traits: ["count", "label", "more"] });
    await server.settle();
    expect(model.get("more")).toBe(1);
    model.set("more", 2);
    await server.settle();
    expect(server.value("r", "S", "more")).toBe(2);
    expect(server.pushes.length).toBe(1);
  });

  test("the room is deleted: said, private from now on, and a new link is a new start", async () => {
    const { model, server, linked, host } = await linkedPage();
    const { listeners } = model;
    host.socket.deliver({ type: "bye", room: "r", problem: problem("room-gone"), retry_after: null, incarnation: "" });
    expect([linked.room, linked.trouble?.code]).toEqual([null, "room-gone"]);
    model.set("count", 77);
    expect(model.get("count")).toBe(77);
    server.rooms.delete("r");
    server.define("r", "S", SCHEMA, { count: 1, label: "new" });
    relink(model, "");
    relink(model, "r");
    await server.settle();
    expect([model.get("count"), model.listeners, linked.trouble]).toEqual([1, listeners, null]);
    model.set("count", 2);
    await server.settle();
    expect(server.pushes.length).toBe(1);
  });

  test("a token that may not be is trouble, not an exception", async () => {
    const { server, rooms } = page();
    const model = stateModel("a\nb", "S", { count: 0 });
    const linked = new LinkedModel(model, rooms);
    expect(linked.trouble?.code).toBe("invalid-token");
    relink(model, "r");
    await server.settle();
    expect([linked.trouble, model.get("count")]).toEqual([null, 5]);
  });

  test.each([undefined, null, 7, "r", [], { room: 7, state: null, traits: "count", offline: [] }])(
    "facts that are %j",
    async (facts) => {
      const { rooms } = page();
      const model = new FakeModel({ _link: facts });
      const linked = new LinkedModel(model, rooms);
      expect(linked.facts).toEqual({ room: "", state: "", traits: [], computed: [], offline: "" });
      expect(linked.room).toBeNull();
    },
  );

  test("closed, it leaves the room and listens to nothing", async () => {
    const { model, server, linked } = await linkedPage();
    const watcher = vi.fn();
    linked.watch(watcher);
    linked.close();
    linked.close();
    await server.settle();
    expect(model.listeners).toBe(0);
    expect(server.room("r").attached.size).toBe(0);
    server.write("r", "S", "count", 9);
    model.set("count", 3);
    relink(model, "q");
    await server.settle();
    expect(model.get("count")).toBe(3);
    expect(server.pushes).toEqual([]);
    expect(watcher).not.toHaveBeenCalled();
  });
});

describe("values", () => {
  test("bytes are a DataView here and bytes there", async () => {
    const { model, server } = await holding(Uint8Array.of(1, 2, 3), "bytes");
    expect([...bytesOf(model.get("x"))]).toEqual([1, 2, 3]);
    model.set("x", dataView(9, 8));
    await server.settle();
    expect(server.value("r", "S", "x")).toEqual(Uint8Array.of(9, 8));
    expect(server.pushes.length).toBe(1);
    const view = dataView(7, 7, 7, 7);
    model.set("x", new DataView(view.buffer, 1, 2));
    await server.settle();
    expect(server.value("r", "S", "x")).toEqual(Uint8Array.of(7, 7));
  });

  test("bytes that a view changes in its copy do not change the room's", async () => {
    const { model, linked } = await holding(Uint8Array.of(1, 2, 3), "bytes");
    (model.get("x") as DataView).setUint8(0, 99);
    expect(linked[0]?.room?.replica.value("S", "x")).toEqual(Uint8Array.of(1, 2, 3));
  });

  test("bytes within lists and dicts too", async () => {
    const { model, server } = await holding({ a: [Uint8Array.of(1)], b: { c: Uint8Array.of(2) } });
    const shown = model.get("x") as { a: DataView[]; b: { c: DataView } };
    expect([...bytesOf(shown.a[0]), ...bytesOf(shown.b.c)]).toEqual([1, 2]);
    model.set("x", { ...shown, a: [dataView(5)] });
    await server.settle();
    expect(server.value("r", "S", "x")).toEqual(
      Object.assign(Object.create(null), {
        a: [Uint8Array.of(5)],
        b: Object.assign(Object.create(null), { c: Uint8Array.of(2) }),
      }),
    );
  });

  test("an int no number can hold is shown as near as one gets, and looking at it does not change it", async () => {
    const long = 2n ** 53n + 1n;
    const { model, server, linked } = await holding(long);
    expect(model.get("x")).toBe(2 ** 53);
    server.write("r", "S", "x", long + 2n);
    await server.settle();
    expect(server.pushes).toEqual([]);
    expect(server.value("r", "S", "x")).toBe(long + 2n);
    expect(linked[0]?.trouble).toBeNull();
    model.set("x", 5);
    await server.settle();
    expect(server.value("r", "S", "x")).toBe(5);
  });

  test("nor does an edit of the key beside it", async () => {
    const long = 2n ** 60n + 1n;
    const { model, server } = await holding({ long, near: 1 }, "dict");
    model.set("x", { ...(model.get("x") as object), near: 2 });
    await server.settle();
    expect(server.pushes.map(({ ops }) => ops)).toEqual([[setOp("S", ["x", "near"], 2)]]);
    expect(server.value("r", "S", "x")).toMatchObject({ long, near: 2 });
  });

  test("keys that a prototype has are keys", async () => {
    const { model, server } = await holding(JSON.parse(`{"__proto__": {"polluted": 1}, "constructor": 2}`), "dict");
    const shown = model.get("x") as Record<string, unknown>;
    expect(Object.keys(shown)).toEqual(["__proto__", "constructor"]);
    expect(Object.getPrototypeOf(shown)).toBe(Object.prototype);
    expect(({} as Record<string, unknown>).polluted).toBeUndefined();
    model.set("x", JSON.parse(`{"__proto__": 3, "constructor": 2}`));
    await server.settle();
    expect(server.pushes.map(({ ops }) => ops)).toEqual([[setOp("S", ["x", "__proto__"], 3)]]);
    expect(model.get("x")).toEqual(JSON.parse(`{"__proto__": 3, "constructor": 2}`));
  });

  test("a dict is merged key by key, a list is not", async () => {
    const { model, server } = await holding({ a: 1, b: 2 }, "dict");
    model.set("x", { b: 2, c: 3 });
    await server.settle();
    expect(server.pushes[0]?.ops).toEqual([{ op: "delete", state: "S", path: ["x", "a"] }, setOp("S", ["x", "c"], 3)]);
  });

  test.each([
    ["nan", Number.NaN],
    ["an infinity", Number.POSITIVE_INFINITY],
    ["null", null],
    ["an empty list", []],
    ["astral text", "😀"],
  ])("%s is shown once and never sent back", async (_, value) => {
    const { model, server } = await holding(value);
    expect(model.get("x")).toEqual(value);
    server.define("r", "S", { other: trait() }, { other: 1 });
    await server.settle();
    expect(server.pushes).toEqual([]);
  });

  test("there and back", () => {
    const value = { list: [1, "a", null, true, Number.NaN], bytes: Uint8Array.of(1, 2), dict: { k: { l: 0.5 } } };
    expect(painted(attribute(value))).toEqual(painted(value));
    expect(painted(undefined)).toBeNull();
    expect(painted(() => {})).toBeNull();
    expect(painted(new Map())).toBeNull();
  });
});

test("whose change it is", () => {
  expect(cameFromKernel({ _state_lock: { count: 1 } })).toBe(true);
  for (const source of [{ _state_lock: null }, {}, null, undefined, 7]) expect(cameFromKernel(source)).toBe(false);
});

test("nothing is left to do once a page is quiet", async () => {
  const { host, model, server } = await linkedPage();
  for (let count = 10; count < 60; count++) model.set("count", count);
  await server.settle();
  // Made in one turn, they are one.
  expect(server.pushes.length).toBe(1);
  const frames = host.socket.frames.length;
  await turns(200);
  await server.settle();
  expect(host.socket.frames.length).toBe(frames);
});
