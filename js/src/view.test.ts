// @vitest-environment happy-dom
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { FakeHost, FakeModel, PLACE, Server, stateModel, trait, turns } from "../test/world";
import { initialize, render } from "./index";
import { Rooms } from "./rooms";
import { runView } from "./view";

const SLOT = Symbol.for("sharedwidgets.v1");
let server: Server;
let told: unknown[];

beforeEach(() => {
  told = [];
  vi.stubGlobal("reportError", (error: unknown) => told.push(error));
  server = new Server();
  server.define("r", "S", { count: trait("int") }, { count: 5 });
  const host = new FakeHost();
  server.serve(host);
  Reflect.set(globalThis, SLOT, new Rooms(PLACE, host));
});

afterEach(() => {
  Reflect.deleteProperty(globalThis, SLOT);
  vi.unstubAllGlobals();
});

const BUTTON = `
function render({ model, el }) {
  const button = document.createElement("button");
  const draw = () => { button.textContent = model.get("count"); };
  button.onclick = () => { model.set("count", model.get("count") + 1); model.save_changes(); };
  model.on("change:count", draw);
  draw();
  el.append(button);
  return () => { model.off("change:count", draw); button.remove(); };
}
`;

/** A module that Node can load, where a page loads a blob. */
function blobs(): void {
  vi.spyOn(URL, "createObjectURL").mockImplementation((blob) => {
    const source = Reflect.get(blob, "source");
    return `data:text/javascript,${encodeURIComponent(String(source))}`;
  });
  vi.stubGlobal(
    "Blob",
    class {
      source: string;
      constructor(parts: string[]) {
        this.source = parts.join("");
      }
    },
  );
}

describe("a view of the class's own", () => {
  beforeEach(blobs);
  afterEach(() => vi.restoreAllMocks());

  test("draws instead of the card, and the room is behind it", async () => {
    const model = stateModel("r", "S", { count: 0 });
    model.set("_view_esm", `${BUTTON} export default { render };`);
    const ends = [initialize({ model })];
    const el = document.createElement("div");
    ends.push(render({ model, el }));
    await server.settle();
    await vi.waitFor(() => expect(el.textContent).toBe("5"));
    expect(el.querySelector(".sharedwidgets-card")).toBeNull();
    el.querySelector("button")?.click();
    await server.settle();
    expect(server.room("r").states.get("S")?.values.get("count")).toBe(6);
    for (const end of ends) end();
    await server.settle();
    expect(el.children).toHaveLength(0);
    expect([model.listeners, told]).toEqual([0, []]);
  });

  test.each([
    ["a function that makes the parts", "export default async () => ({ initialize: ({ model }) => model.set('seen', 1) });"],
    ["the parts", "export default { initialize({ model }) { model.set('seen', 1); } };"],
  ])("has its own initialize: %s", async (_name, source) => {
    const model = stateModel("r", "S", { count: 0 });
    model.set("_view_esm", source);
    initialize({ model });
    await vi.waitFor(() => expect(model.get("seen")).toBe(1));
    await server.settle();
    expect(model.get("count")).toBe(5);
  });

  test("of anywidget's first days, a bare render, still draws", async () => {
    const model = stateModel("r", "S", { count: 0 });
    model.set("_view_esm", BUTTON.replace("function render", "export function render"));
    const el = document.createElement("div");
    render({ model, el });
    await vi.waitFor(() => expect(el.querySelector("button")).not.toBeNull());
  });

  test("that fails says so in its place, and the link goes on", async () => {
    const model = stateModel("r", "S", { count: 0 });
    model.set("_view_esm", "export default { render() { throw new Error('<b>broken</b>'); } };");
    initialize({ model });
    const el = document.createElement("div");
    render({ model, el });
    await server.settle();
    await vi.waitFor(() => expect(el.textContent).toBe("This view could not be shown: Error: <b>broken</b>"));
    expect(el.querySelector("b")).toBeNull();
    expect(told).toHaveLength(1);
    expect(model.get("count")).toBe(5);
  });
});

describe("a view that ends", () => {
  test("before it was loaded never begins", async () => {
    const parts = { render: vi.fn() };
    const model = new FakeModel({ _view_esm: "never begins" });
    runView("render", { model }, async () => ({ default: parts }))();
    await turns();
    expect(parts.render).not.toHaveBeenCalled();
  });

  test("while it begins is cleaned up once it has begun", async () => {
    const end = vi.fn();
    let begin = (_end: () => void) => {};
    const parts = { render: () => new Promise<() => void>((resolve) => (begin = resolve)) };
    const model = new FakeModel({ _view_esm: "begins slowly" });
    const stop = runView("render", { model }, async () => ({ default: parts }));
    await turns();
    stop();
    begin(end);
    await turns();
    expect(end).toHaveBeenCalledOnce();
  });
});
