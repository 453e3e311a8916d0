import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { bytesOf, dataView, FakeHost, FakeModel, PLACE, proxied, Server, stateModel, trait } from "../test/world";
import { bindModels } from "./bind";
import { LinkedModel, type Model } from "./model";
import { Rooms } from "./rooms";
import type { Value } from "./values";

beforeEach(() => vi.stubGlobal("reportError", vi.fn()));

afterEach(() => {
  expect(reportError).not.toHaveBeenCalled();
  vi.unstubAllGlobals();
});

type Linker = (rooms: Rooms, state: FakeModel, slider: FakeModel) => () => void;

const bound: Linker = (rooms, state, slider) => bindModels(rooms, [state, "count"], [slider, "value"]);

/** ipywidgets' own link, which does not ask where a change came from. */
const jslinked: Linker = (_, state, slider) => {
  const toSlider = (): void => {
    slider.set("value", state.get("count"));
    slider.save_changes();
  };
  state.on("change:count", toSlider);
  slider.on("change:value", () => {
    state.set("count", slider.get("value"));
    state.save_changes();
  });
  toSlider();
  return () => {};
};

interface Tab {
  readonly host: FakeHost;
  readonly rooms: Rooms;
  readonly state: FakeModel;
  readonly slider: FakeModel;
  readonly end: () => void;
}

async function tabs(
  count: number,
  server: Server,
  link: Linker = bound,
  values: Record<string, unknown> = { count: 0 },
): Promise<Tab[]> {
  const made = Array.from({ length: count }, (_, index) => {
    const host = new FakeHost(`tab${index}-`);
    server.serve(host);
    const rooms = new Rooms(PLACE, host);
    const state = stateModel("r", "S", values);
    const slider = new FakeModel({ value: 0, min: 0, max: 1000 });
    new LinkedModel(proxied(state), rooms);
    return { host, rooms, state, slider, end: link(rooms, state, slider) };
  });
  await server.settle();
  for (const { slider } of made) slider.saved.length = 0;
  return made;
}

function counter(count = 0, max = 100): Server {
  const server = new Server();
  server.define("r", "S", { count: trait("int", { max }) }, { count });
  return server;
}

/** A person moves the slider: its view sets the model and saves it. */
function press(slider: FakeModel, by = 1): void {
  slider.set("value", Number(slider.get("value")) + by);
  slider.save_changes();
}

async function one(
  server = counter(5),
  link: Linker = bound,
  values?: Record<string, unknown>,
): Promise<Tab & { server: Server }> {
  const [tab] = await tabs(1, server, link, values);
  if (tab === undefined) throw new Error("no tab");
  return { ...tab, server };
}

/**
 * The kernel behind the sliders of several tabs: it takes what they save one after the other, in its own time, and tells all tabs
 * of each (ipywidgets' `echo_update`). A tab leaves out what came before its own last save, as ipywidgets does.
 */
class SlowKernel {
  private readonly inbox: { from: number; id: number; state: Record<string, unknown> }[] = [];
  private readonly outbox: { to: number; from: number; id: number; state: Record<string, unknown> }[] = [];
  private readonly expected = new Map<number, number>();
  private ids = 0;

  constructor(private readonly sliders: readonly FakeModel[]) {
    sliders.forEach((slider, from) => {
      slider.comm = (state) => {
        const id = ++this.ids;
        this.expected.set(from, id);
        this.inbox.push({ from, id, state });
      };
    });
  }

  get quiet(): boolean {
    return this.inbox.length === 0 && this.outbox.length === 0;
  }

  work(): void {
    const message = this.inbox.shift();
    if (message !== undefined) this.sliders.forEach((_, to) => void this.outbox.push({ ...message, to }));
  }

  deliver(): void {
    const echo = this.outbox.shift();
    if (echo === undefined) return;
    const awaited = this.expected.get(echo.to);
    if (awaited !== undefined && awaited !== echo.id) return;
    this.expected.delete(echo.to);
    this.sliders[echo.to]?.set_state(echo.state);
  }
}

/** Small and repeatable. */
function chanceOf(seed: number): () => number {
  let state = seed;
  return () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state / 2 ** 32;
  };
}

/** So many presses in turns in two tabs of one kernel, whose echoes come late; what came of them. */
async function round(seed: number, link: Linker, presses = 30): Promise<{ room: Value; shown: unknown[]; ops: number }> {
  const server = counter();
  const made = await tabs(2, server, link);
  const kernel = new SlowKernel(made.map(({ slider }) => slider));
  const chance = chanceOf(seed);
  for (let n = 0; n < presses; n++) {
    const slider = made[n % 2]?.slider;
    if (slider !== undefined) press(slider);
    // Now and then the echo is there before the room's own news.
    while (chance() < 0.5) {
      kernel.work();
      kernel.deliver();
      kernel.deliver();
    }
    await server.settle();
    while (chance() < 0.55) {
      kernel.work();
      if (chance() < 0.5) kernel.deliver();
      await server.settle();
    }
  }
  for (let step = 0; step < 2000 && !kernel.quiet; step++) {
    kernel.work();
    kernel.deliver();
    await server.settle();
  }
  expect(kernel.quiet).toBe(true);
  return {
    room: server.value("r", "S", "count") ?? null,
    shown: made.flatMap(({ state, slider }) => [state.get("count"), slider.get("value")]),
    ops: server.pushes.length,
  };
}

describe("held equal", () => {
  test("the room wins at the start, and the widget's kernel is told", async () => {
    const server = counter(5);
    const host = new FakeHost();
    server.serve(host);
    const slider = new FakeModel({ value: 77 });
    const state = stateModel("r", "S", { count: 1 });
    bindModels(new Rooms(PLACE, host), [state, "count"], [slider, "value"]);
    await server.settle();
    expect([state.get("count"), slider.get("value"), server.value("r", "S", "count")]).toEqual([5, 5, 5]);
    expect(slider.saved.at(-1)).toEqual({ value: 5 });
    expect(server.pushes).toEqual([]);
  });

  test("an edit of the widget is one op, although the state's model has a follower of its own", async () => {
    const { server, slider, state } = await one();
    press(slider);
    await server.settle();
    expect(server.pushes.length).toBe(1);
    expect([state.get("count"), server.value("r", "S", "count")]).toEqual([6, 6]);
    expect(slider.saved).toEqual([{ value: 6 }]);
    expect(state.saved).toEqual([]);
  });

  test("what others write moves the widget, and is no edit", async () => {
    const { server, slider } = await one();
    server.write("r", "S", "count", 42);
    await server.settle();
    expect(slider.get("value")).toBe(42);
    expect(slider.saved).toEqual([{ value: 42 }]);
    expect(server.pushes).toEqual([]);
  });

  test("an edit the room does not take is undone in the widget too", async () => {
    const { server, slider, state } = await one(counter(5, 10));
    press(slider, 100);
    expect([slider.get("value"), state.get("count")]).toEqual([5, 5]);
    press(slider, 1);
    await server.settle();
    expect([slider.get("value"), server.value("r", "S", "count")]).toEqual([6, 6]);
  });

  test("so is one made before the room has told its values", async () => {
    const server = counter(5);
    const host = new FakeHost();
    server.serve(host);
    const [slider, state] = [new FakeModel({ value: 1 }), stateModel("r", "S", { count: 1 })];
    bindModels(new Rooms(PLACE, host), [state, "count"], [slider, "value"]);
    press(slider);
    expect([slider.get("value"), state.get("count")]).toEqual([1, 1]);
    await server.settle();
    expect([slider.get("value"), server.value("r", "S", "count")]).toEqual([5, 5]);
    expect(server.pushes).toEqual([]);
  });

  test("with the socket away an edit stands, and goes when it is back", async () => {
    const { server, slider, host } = await one();
    host.socket.drop();
    press(slider);
    press(slider);
    expect(slider.get("value")).toBe(7);
    await host.advance(200);
    await server.settle();
    expect([server.value("r", "S", "count"), slider.get("value"), server.pushes.length]).toEqual([7, 7, 1]);
  });

  test("a widget that keeps to its own limits does not move the room", async () => {
    const server = counter(5, 1000);
    const clamp: Linker = (rooms, state, slider) => {
      slider.on("change:value", () => {
        if (Number(slider.get("value")) > 10) slider.set("value", 10);
      });
      return bound(rooms, state, slider);
    };
    const { slider, state } = await one(server, clamp);
    server.write("r", "S", "count", 150);
    await server.settle();
    expect([slider.get("value"), state.get("count")]).toEqual([10, 150]);
    // It is not told the same again and again.
    const { length } = slider.told;
    server.define("r", "T", { x: trait() }, { x: 1 });
    server.write("r", "T", "x", 2);
    expect(slider.told.length).toBe(length);
    // Nor does its kernel, when it is that which clamps.
    slider.set_state({ value: 10 });
    server.write("r", "S", "count", 160);
    await server.settle();
    expect([server.value("r", "S", "count"), server.pushes.length]).toEqual([160, 0]);
    press(slider, -1);
    await server.settle();
    expect([slider.get("value"), server.value("r", "S", "count"), server.pushes.length]).toEqual([9, 9, 1]);
  });

  test("bytes, too, go both ways", async () => {
    const server = new Server();
    server.define("r", "S", { count: trait("bytes") }, { count: Uint8Array.of(1, 2) });
    const { slider, state } = await one(server, bound, { count: dataView() });
    expect([...bytesOf(slider.get("value"))]).toEqual([1, 2]);
    server.write("r", "S", "count", Uint8Array.of(3));
    await server.settle();
    expect([...bytesOf(slider.get("value"))]).toEqual([3]);
    slider.set("value", dataView(4));
    await server.settle();
    expect(server.value("r", "S", "count")).toEqual(Uint8Array.of(4));
    expect([...bytesOf(state.get("count"))]).toEqual([4]);
  });

  test.each([
    ["nan", Number.NaN, Number.POSITIVE_INFINITY],
    ["null and nothing", null, 0],
    ["dicts whose keys come in another order", { a: 1, b: 2 }, { b: 2, a: 3 }],
    ["lists", [1, [2]], [1, [3]]],
    ["a long int", 2n ** 60n, 2n ** 61n],
  ])("%s", async (_, first, second) => {
    const server = new Server();
    server.define("r", "S", { count: trait() }, { count: first });
    const { slider, state } = await one(server, bound, { count: null });
    const { length } = slider.saved;
    server.define("r", "T", { x: trait() }, { x: 1 });
    await server.settle();
    expect(slider.saved.length).toBe(length);
    server.write("r", "S", "count", second);
    await server.settle();
    expect(slider.get("value")).toEqual(state.get("count"));
    expect(slider.saved.length).toBe(length + 1);
    expect(server.pushes).toEqual([]);
  });
});

describe("tabs of one kernel", () => {
  test.each([1, 2, 3, 4, 5, 6, 7, 8])(
    "30 presses in turns while echoes come late, round %i: none lost, none twice",
    async (seed) => {
      expect(await round(seed, bound)).toEqual({ room: 30, shown: [30, 30, 30, 30], ops: 30 });
    },
  );

  test("the same rounds with a jslink lose presses or make more: what is tested here is there", async () => {
    const outcomes = await Promise.all([1, 2, 3, 4, 5, 6, 7, 8].map((seed) => round(seed, jslinked)));
    expect(outcomes.filter(({ room, ops }) => room !== 30 || ops !== 30).length).toBeGreaterThan(2);
  });

  test("what the kernel assigns to the widget is put back, and goes nowhere", async () => {
    const server = counter(5);
    const made = await tabs(2, server);
    for (const { slider } of made) slider.set_state({ value: 99 });
    await server.settle();
    expect(made.map(({ slider }) => slider.get("value"))).toEqual([5, 5]);
    expect(made.flatMap(({ slider }) => slider.saved)).toEqual([]);
    expect(server.pushes).toEqual([]);
  });

  test("what the kernel assigns to the state comes by the room, once", async () => {
    const server = counter(5);
    const made = await tabs(2, server);
    server.write("r", "S", "count", 6);
    // The stale comm update that a kernel without our guards would send.
    for (const { state } of made) state.set_state({ count: 4 });
    await server.settle();
    expect(made.flatMap(({ state, slider }) => [state.get("count"), slider.get("value")])).toEqual([6, 6, 6, 6]);
    expect(server.pushes).toEqual([]);
  });
});

describe("not linked", () => {
  async function unlinked(): Promise<{ state: FakeModel; slider: FakeModel; end: () => void; server: Server; rooms: Rooms }> {
    const server = counter(5);
    const host = new FakeHost();
    server.serve(host);
    const rooms = new Rooms(PLACE, host);
    const state = stateModel("", "S", { count: 3, label: "a" });
    const slider = new FakeModel({ value: 0 });
    new LinkedModel(proxied(state), rooms);
    const end = bound(rooms, state, slider);
    await server.settle();
    return { state, slider, end, server, rooms };
  }

  test("it is what a jslink is: the state's value at the start, then either way, by comm", async () => {
    const { state, slider, server } = await unlinked();
    expect(slider.get("value")).toBe(3);
    press(slider);
    expect([state.get("count"), state.saved]).toEqual([4, [{ count: 4 }]]);
    state.set_state({ count: 10 });
    expect([slider.get("value"), slider.saved.at(-1)]).toEqual([10, { value: 10 }]);
    slider.set_state({ value: 20 });
    expect([state.get("count"), state.saved.at(-1)]).toEqual([20, { count: 20 }]);
    await server.settle();
    expect(server.pushes).toEqual([]);
  });

  test("linked later the room wins; unlinked again nothing of the room is saved to the kernel", async () => {
    const { state, slider, server } = await unlinked();
    const link = { room: "r", state: "S", traits: ["count", "label"], offline: "" };
    server.define("r", "S", { label: trait() }, { label: "room's" });
    state.set_state({ _link: link });
    await server.settle();
    expect([slider.get("value"), state.get("label")]).toEqual([5, "room's"]);
    press(slider);
    await server.settle();
    expect(server.value("r", "S", "count")).toBe(6);
    state.saved.length = 0;
    state.set_state({ _link: { ...link, room: "" } });
    state.set_state({ count: 3 });
    state.set_state({ label: "a" });
    expect(slider.get("value")).toBe(3);
    press(slider);
    await server.settle();
    expect(state.saved).toEqual([{ count: 4 }]);
    expect([server.value("r", "S", "count"), server.pushes.length]).toEqual([6, 1]);
  });
});

describe("ends", () => {
  test("nothing listens any more, the room is left, and each goes its own way", async () => {
    const server = counter(5);
    const host = new FakeHost();
    server.serve(host);
    const [slider, state] = [new FakeModel({ value: 1 }), stateModel("r", "S", { count: 1 })];
    const end = bindModels(new Rooms(PLACE, host), [state, "count"], [slider, "value"]);
    await server.settle();
    end();
    end();
    await server.settle();
    expect([slider.listeners, state.listeners, server.room("r").attached.size]).toEqual([0, 0, 0]);
    server.write("r", "S", "count", 50);
    press(slider);
    await server.settle();
    expect([state.get("count"), slider.get("value")]).toEqual([5, 6]);
    expect(server.pushes).toEqual([]);
  });

  test("the follower of the model itself stays in the room", async () => {
    const { server, end, state } = await one();
    end();
    await server.settle();
    server.write("r", "S", "count", 50);
    expect(state.get("count")).toBe(50);
  });
});

describe("chains", () => {
  test("two widgets at one trait: an edit of either moves the other, and is one op", async () => {
    const { server, rooms, state, slider } = await one();
    const second: Model & FakeModel = new FakeModel({ value: 0 });
    bindModels(rooms, [state, "count"], [second, "value"]);
    expect(second.get("value")).toBe(5);
    press(slider);
    await server.settle();
    expect([second.get("value"), second.saved.at(-1), server.pushes.length]).toEqual([6, { value: 6 }, 1]);
    press(second);
    await server.settle();
    expect([slider.get("value"), server.value("r", "S", "count"), server.pushes.length]).toEqual([7, 7, 2]);
    server.write("r", "S", "count", 50);
    await server.settle();
    expect([slider.get("value"), second.get("value"), server.pushes.length]).toEqual([50, 50, 2]);
  });

  test("two rooms at one widget follow each other, with one op for each step, and come to rest", async () => {
    const { server, rooms, slider } = await one();
    server.define("q", "S", { count: trait("int") }, { count: 5 });
    const other = stateModel("q", "S", { count: 5 });
    new LinkedModel(proxied(other), rooms);
    bindModels(rooms, [other, "count"], [slider, "value"]);
    await server.settle();
    press(slider);
    await server.settle();
    expect(server.pushes.map(({ room }) => room).sort()).toEqual(["q", "r"]);
    server.write("r", "S", "count", 50);
    await server.settle();
    expect([server.value("q", "S", "count"), slider.get("value"), server.pushes.length]).toEqual([50, 50, 3]);
    server.write("q", "S", "count", 60);
    await server.settle();
    expect([server.value("r", "S", "count"), slider.get("value"), server.pushes.length]).toEqual([60, 60, 4]);
  });

  test("a state may be the other end of a state", async () => {
    const { server, rooms, state } = await one();
    server.define("q", "T", { x: trait("int") }, { x: 1 });
    const other = stateModel("q", "T", { x: 0 });
    new LinkedModel(proxied(other), rooms);
    bindModels(rooms, [state, "count"], [other, "x"]);
    await server.settle();
    // Which of two rooms wins at the start is a matter of which answers first.
    expect(server.value("q", "T", "x")).toBe(server.value("r", "S", "count"));
    const before = server.pushes.length;
    expect(before).toBe(1);
    server.write("q", "T", "x", 9);
    await server.settle();
    expect([state.get("count"), server.value("r", "S", "count")]).toEqual([9, 9]);
    server.write("r", "S", "count", 11);
    await server.settle();
    expect([other.get("x"), server.value("q", "T", "x")]).toEqual([11, 11]);
    expect(server.pushes.length).toBe(before + 2);
  });
});

describe("while somebody holds the lock", () => {
  test("the control is disabled, and an edit that comes all the same is undone", async () => {
    const { server, state, slider, end } = await one();
    slider.set("disabled", false);
    const release = server.lock("r", "S");
    await server.settle();
    expect(slider.get("disabled")).toBeTruthy();
    press(slider);
    await server.settle();
    expect([slider.get("value"), state.get("count"), server.pushes.length]).toEqual([5, 5, 0]);
    server.write("r", "S", "count", 8);
    await server.settle();
    expect(slider.get("value")).toBe(8);
    release();
    await server.settle();
    expect(slider.get("disabled")).toBe(false);
    press(slider);
    await server.settle();
    expect(server.value("r", "S", "count")).toBe(9);
    end();
  });

  test("one that was disabled before stays so, and one that ends meanwhile is as it was", async () => {
    const { server, slider, end } = await one();
    slider.set("disabled", true);
    const release = server.lock("r", "S");
    await server.settle();
    release();
    await server.settle();
    expect(slider.get("disabled")).toBe(true);
    slider.set("disabled", false);
    server.lock("r", "S");
    await server.settle();
    end();
    expect(slider.get("disabled")).toBe(false);
  });

  test("one that cannot be disabled is left alone, and a page that comes later knows of the lock", async () => {
    const server = counter(5);
    const [tab] = await tabs(1, server);
    server.lock("r", "S");
    await server.settle();
    expect(tab?.slider.get("disabled")).toBeUndefined();
    const [late] = await tabs(1, server);
    late?.slider.set("disabled", false);
    press(late?.slider ?? new FakeModel({}));
    await server.settle();
    expect([late?.slider.get("value"), server.pushes.length]).toEqual([5, 0]);
  });

  test("what its holder writes disables it for this page only, and for no longer than the lock", async () => {
    const server = counter(5);
    const [first, second] = await tabs(2, server);
    const [one, two] = [first?.slider ?? new FakeModel({}), second?.slider ?? new FakeModel({})];
    for (const slider of [one, two]) slider.set_state({ disabled: false });
    const release = server.lock("r", "S");
    await server.settle();
    server.write("r", "S", "count", 8);
    server.write("r", "S", "count", 9);
    await server.settle();
    expect([one.get("disabled"), two.get("disabled")]).toEqual([1, 1]);
    release();
    await server.settle();
    server.write("r", "S", "count", 10);
    await server.settle();
    expect([one.get("disabled"), two.get("disabled")]).toEqual([false, false]);
    expect([...one.saved, ...two.saved].filter((state) => "disabled" in state)).toEqual([]);
    expect(one.saved.length).toBeGreaterThan(0);
  });

  test.each([true, false])("what the kernel says of it meanwhile (%s) counts afterwards", async (disabled) => {
    const { server, slider } = await one();
    slider.set_state({ disabled: !disabled });
    const release = server.lock("r", "S");
    await server.settle();
    slider.set_state({ disabled });
    expect(slider.get("disabled")).toBe(1);
    slider.save_changes();
    release();
    await server.settle();
    expect(slider.get("disabled")).toBe(disabled);
    slider.save_changes();
    expect(slider.saved).toEqual([]);
    // And from then on it is an ordinary control.
    slider.set("disabled", !disabled);
    slider.save_changes();
    expect(slider.saved).toEqual([{ disabled: !disabled }]);
  });

  test("one that is bound to two states is open when both locks are free, and ends open", async () => {
    const server = counter(5);
    server.define("r", "T", { most: trait("int") }, { most: 50 });
    const [tab] = await tabs(1, server);
    if (tab === undefined) throw new Error("no tab");
    const other = stateModel("r", "T", { most: 50 });
    new LinkedModel(proxied(other), tab.rooms);
    const end = bindModels(tab.rooms, [other, "most"], [tab.slider, "max"]);
    await server.settle();
    tab.slider.set_state({ disabled: false });
    const [first, second] = [server.lock("r", "S"), server.lock("r", "T")];
    await server.settle();
    first();
    await server.settle();
    expect(tab.slider.get("disabled")).toBe(1);
    second();
    await server.settle();
    expect(tab.slider.get("disabled")).toBe(false);
    server.lock("r", "S");
    server.lock("r", "T");
    await server.settle();
    end();
    expect(tab.slider.get("disabled")).toBe(1);
    tab.end();
    expect(tab.slider.get("disabled")).toBe(false);
  });

  test("one that was saved with its notebook during a lock is not disabled for good", async () => {
    const { rooms, state, end } = await one();
    const saved = new FakeModel({ value: 5, disabled: 1 });
    bindModels(rooms, [state, "count"], [saved, "value"])();
    expect(saved.get("disabled")).toBe(false);
    end();
  });
});
