// @vitest-environment happy-dom
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { FakeModel, proxied, turns } from "../test/world";
import text from "./stub.js?raw";

type Cleanup = () => void;
interface Stub {
  initialize(context: { model: unknown }): Cleanup;
  render(context: { model: unknown; el: HTMLElement }): Cleanup;
}
type Import = (url: unknown) => Promise<unknown>;

/** The stub as a model gets it, each with module variables of its own; `load` stands for what a browser's `import` does. */
function stub(load: Import): Stub {
  const source = text.replaceAll("import(", "bring(").replace("export default", "return");
  expect(source).not.toContain("import(");
  return new Function("bring", "document", "location", source)(load, document, {
    href: "http://host/lab/tree/a.ipynb",
  }) as Stub;
}

function page() {
  const end = vi.fn();
  return { end, initialize: vi.fn(() => end), render: vi.fn(() => end), initializeBinding: vi.fn(() => end) };
}

function model(attributes: Record<string, unknown> = {}): FakeModel {
  return new FakeModel(attributes);
}

const never: Import = () => new Promise(() => {});
const fails: Import = () => Promise.reject(new TypeError("Failed to fetch dynamically imported module"));

function config(content: string): void {
  document.head.innerHTML = `<script id="jupyter-config-data" type="application/json">${content}</script>`;
}

beforeEach(() => config(`{"baseUrl": "/user/a%40b/"}`));

afterEach(() => {
  document.head.innerHTML = "";
  document.body.replaceChildren();
  document.body.removeAttribute("data-base-url");
  vi.restoreAllMocks();
});

describe("the module is loaded", () => {
  test("from the page's server, once for all calls of a model", async () => {
    const module = page();
    const load = vi.fn(() => Promise.resolve(module));
    const made = stub(load);
    const context = { model: model() };
    made.initialize(context);
    made.render({ ...context, el: document.createElement("div") });
    await turns();
    expect(load.mock.calls.map(String)).toEqual(["http://host/user/a%40b/static/sharedwidgets/__FILE__"]);
    expect([module.initialize.mock.calls.length, module.render.mock.calls.length]).toEqual([1, 1]);
    expect(module.initialize).toHaveBeenCalledWith(context);
  });

  test.each([
    ["by the body where there is no config", "", "/classic/", "http://host/classic/static/sharedwidgets/__FILE__"],
    ["by the config where both are there", `{"baseUrl": "/"}`, "/voila/", "http://host/static/sharedwidgets/__FILE__"],
    ["from the root where nobody says", "", null, "http://host/static/sharedwidgets/__FILE__"],
  ])("%s", async (_, content, body, expected) => {
    if (content === "") document.head.innerHTML = "";
    else config(content);
    if (body !== null) document.body.dataset.baseUrl = body;
    const load = vi.fn(never);
    stub(load).initialize({ model: model() });
    expect(load.mock.calls.map(String)).toEqual([expected]);
  });

  test("never from where the output of a notebook says", () => {
    document.head.innerHTML = "";
    document.body.innerHTML = `<div id="jupyter-config-data">{"baseUrl": "https://evil/"}</div>`;
    const load = vi.fn(never);
    stub(load).initialize({ model: model() });
    expect(load.mock.calls.map(String)).toEqual(["http://host/static/sharedwidgets/__FILE__"]);
  });

  test("initialize returns at once although the import hangs", () => {
    const end = stub(never).initialize({ model: model() });
    expect(end).toBeTypeOf("function");
    end();
  });
});

describe("which call", () => {
  test("a state is a state and a binding is a binding", async () => {
    const module = page();
    const made = stub(() => Promise.resolve(module));
    made.initialize({ model: model() });
    made.initialize({ model: model({ _binding: true }) });
    await turns();
    expect([module.initialize.mock.calls.length, module.initializeBinding.mock.calls.length]).toEqual([1, 1]);
  });

  test("the cleanup runs what the module gave", async () => {
    const module = page();
    const end = stub(() => Promise.resolve(module)).initialize({ model: model() });
    await turns();
    expect(module.end).not.toHaveBeenCalled();
    end();
    expect(module.end).toHaveBeenCalledTimes(1);
  });

  test("what was over before the module came is never begun", async () => {
    const module = page();
    const end = stub(() => Promise.resolve(module)).initialize({ model: model() });
    end();
    await turns();
    expect(module.initialize).not.toHaveBeenCalled();
  });
});

describe("no server has the module", () => {
  test("the kernel is asked for it, once, by a custom message, and what it sends is run", async () => {
    const module = page();
    const blobs: string[] = [];
    vi.spyOn(URL, "createObjectURL").mockImplementation((blob) => {
      blobs.push((blob as Blob).type);
      return "blob:page";
    });
    const load = vi.fn<Import>((url) => (String(url) === "blob:page" ? Promise.resolve(module) : fails(url)));
    const made = stub(load);
    const widget = model();
    made.initialize({ model: proxied(widget) });
    made.render({ model: proxied(widget), el: document.createElement("div") });
    await turns();
    expect(widget.sent).toEqual([{ sharedwidgets: "module" }]);
    expect(module.initialize).not.toHaveBeenCalled();
    for (const other of [null, undefined, "text", 7, { event: "mine" }]) widget.trigger("msg:custom", other);
    widget.trigger("msg:custom", { sharedwidgets_module: "export const x = 1" });
    await turns();
    expect([module.initialize.mock.calls.length, module.render.mock.calls.length]).toEqual([1, 1]);
    expect(blobs).toEqual(["text/javascript"]);
    expect(widget.sent.length).toBe(1);
  });

  test.each(["{", "null", `{"baseUrl": "http://"}`, `{"baseUrl": 7}`, ""])(
    "nor does a config that is %j keep it from asking",
    async (content) => {
      config(content);
      const widget = model();
      const end = stub(fails).initialize({ model: proxied(widget) });
      await turns();
      expect(widget.sent).toEqual([{ sharedwidgets: "module" }]);
      end();
    },
  );

  test("an end before the kernel answered is an end", async () => {
    const module = page();
    vi.spyOn(URL, "createObjectURL").mockReturnValue("blob:page");
    const widget = model();
    const load: Import = (url) => (String(url) === "blob:page" ? Promise.resolve(module) : fails(url));
    const end = stub(load).initialize({ model: proxied(widget) });
    await turns();
    end();
    widget.trigger("msg:custom", { sharedwidgets_module: "x" });
    await turns();
    expect(module.initialize).not.toHaveBeenCalled();
  });
});
