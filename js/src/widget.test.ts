// @vitest-environment happy-dom
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { FakeHost, FakeModel, managerOf, PLACE, proxied, Server, stateModel, trait, turns } from "../test/world";
import { initialize, initializeBinding, render } from "./index";
import { Rooms } from "./rooms";

const SLOT = Symbol.for("sharedwidgets.v1");
let server: Server;
let host: FakeHost;

beforeEach(() => {
  vi.stubGlobal("reportError", vi.fn());
  server = new Server();
  server.define("r", "S", { count: trait("int") }, { count: 5 });
  host = new FakeHost();
  server.serve(host);
  Reflect.set(globalThis, SLOT, new Rooms(PLACE, host));
});

afterEach(() => {
  Reflect.deleteProperty(globalThis, SLOT);
  document.body.replaceChildren();
  expect(reportError).not.toHaveBeenCalled();
  vi.unstubAllGlobals();
});

function binding(
  models: Record<string, FakeModel>,
  source = ["IPY_MODEL_a", "count"],
  target = ["IPY_MODEL_b", "value"],
): FakeModel {
  return new FakeModel({ _binding: true, source, target }, managerOf(models));
}

describe("initialize", () => {
  test("follows the room whether the model is shown or not, until its end", async () => {
    const model = stateModel("r", "S", { count: 0 });
    const end = initialize({ model: proxied(model) });
    await server.settle();
    expect(model.get("count")).toBe(5);
    end();
    await server.settle();
    expect([model.listeners, server.room("r").attached.size]).toEqual([0, 0]);
  });

  test("returns at once, without a server in sight", () => {
    Reflect.deleteProperty(globalThis, SLOT);
    const end = initialize({ model: stateModel("r", "S", { count: 0 }) });
    expect(end).toBeTypeOf("function");
    end();
  });
});

describe("render", () => {
  test("draws a card that lives until its own end; the model goes on", async () => {
    const model = stateModel("r", "S", { count: 0 });
    initialize({ model: proxied(model) });
    const { listeners } = model;
    const el = document.createElement("div");
    const end = render({ model: proxied(model), el });
    await server.settle();
    expect(el.querySelector("dd")?.textContent).toBe("5");
    end();
    expect([el.childElementCount, model.listeners]).toEqual([0, listeners]);
    server.write("r", "S", "count", 6);
    expect(model.get("count")).toBe(6);
  });

  test("however many views, the page joins once and an edit is one op", async () => {
    const model = stateModel("r", "S", { count: 0 });
    initialize({ model: proxied(model) });
    for (let view = 0; view < 3; view++) render({ model: proxied(model), el: document.createElement("div") });
    await server.settle();
    model.set("count", 9);
    await server.settle();
    expect(server.heard.map(({ type }) => type)).toEqual(["hello", "join", "push"]);
  });
});

describe("a binding", () => {
  test("holds its two ends equal until its end", async () => {
    const [state, slider] = [stateModel("r", "S", { count: 0 }), new FakeModel({ value: 0 })];
    const end = initializeBinding({ model: proxied(binding({ a: state, b: slider })) });
    await server.settle();
    slider.set("value", 8);
    await server.settle();
    expect([state.get("count"), server.value("r", "S", "count")]).toEqual([8, 8]);
    end();
    expect([state.listeners, slider.listeners]).toEqual([0, 0]);
  });

  test("that ends before its models came binds nothing", async () => {
    const [state, slider] = [stateModel("r", "S", { count: 0 }), new FakeModel({ value: 0 })];
    const end = initializeBinding({ model: binding({ a: state, b: slider }) });
    end();
    await turns();
    expect([state.listeners, slider.listeners]).toEqual([0, 0]);
  });

  test("whose other end is not on this page binds nothing, and says so on the console alone", async () => {
    const state = stateModel("r", "S", { count: 0 });
    const end = initializeBinding({ model: binding({ a: state }) });
    await turns();
    expect(state.listeners).toBe(0);
    expect(vi.mocked(reportError).mock.calls.map(([error]) => String(error))).toEqual(["Error: no model b"]);
    vi.mocked(reportError).mockReset();
    end();
  });
});
