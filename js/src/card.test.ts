// @vitest-environment happy-dom
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { FakeHost, type FakeModel, PLACE, person, problem, proxied, Server, stateModel, trait, turns } from "../test/world";
import { renderCard, show, TROUBLES } from "./card";
import { LinkedModel } from "./model";
import { Rooms } from "./rooms";
import type { Value } from "./values";

const MARKUP = `<img src=x onerror="alert(1)"><script>alert(2)</script>&amp;`;

beforeEach(() => vi.stubGlobal("reportError", vi.fn()));

afterEach(() => {
  document.body.replaceChildren();
  expect(reportError).not.toHaveBeenCalled();
  vi.unstubAllGlobals();
});

interface Card {
  readonly server: Server;
  readonly host: FakeHost;
  readonly rooms: Rooms;
  readonly model: FakeModel;
  readonly linked: LinkedModel;
  readonly el: HTMLElement;
  readonly end: () => void;
  text(part: string): string;
}

/** A card of a state in room r; with `settle` false before the server has said a word. */
async function card({
  room = "r",
  state = "S",
  values = { n: 1 } as Record<string, Value>,
  settle = true,
  place = true,
} = {}): Promise<Card> {
  const server = new Server();
  const schema = Object.fromEntries(Object.keys(values).map((name) => [name, trait()]));
  if (room !== "") server.define(room, state, schema, values);
  const host = new FakeHost();
  server.serve(host);
  const rooms = new Rooms(place ? PLACE : null, host);
  const model = stateModel(room, state, values);
  const linked = new LinkedModel(proxied(model), rooms);
  const el = document.createElement("div");
  document.body.append(el);
  const end = renderCard(linked, el);
  if (settle && place) await server.settle();
  const text = (part: string): string => el.querySelector(part)?.textContent ?? "";
  return { server, host, rooms, model, linked, el, end, text };
}

function kind({ el }: Card): string | undefined {
  return el.querySelector<HTMLElement>(".sharedwidgets-card")?.dataset.link;
}

function lines({ el }: Card): string[] {
  const names = [...el.querySelectorAll("dt")].map(({ textContent }) => textContent);
  return [...el.querySelectorAll("dd")].map(({ textContent }, index) => `${names[index]} ${textContent}`);
}

function members({ el }: Card): string[] {
  return [...el.querySelectorAll("li")].map(({ textContent }) => String(textContent));
}

function troubled({ el }: Card): string | null {
  const box = el.querySelector<HTMLElement>(".sw-trouble");
  return box === null || box.hidden ? null : box.textContent;
}

function tell({ host }: Card, present: ReturnType<typeof person>[], gone: string[] = []): void {
  host.socket.deliver({ type: "members", room: "r", present, gone, complete: false });
}

describe("the link", () => {
  test("connecting, joining, live, offline, and back", async () => {
    const shown = await card({ settle: false });
    const { host, server, text } = shown;
    expect([kind(shown), text(".sw-link")]).toEqual(["connecting", "connecting"]);
    await server.settle();
    expect([kind(shown), text(".sw-link"), text(".sw-token"), text("strong")]).toEqual(["live", "live", "r", "S"]);
    expect(troubled(shown)).toBeNull();
    host.socket.drop();
    expect([kind(shown), text(".sw-link")]).toEqual(["offline", "offline"]);
    expect(troubled(shown)).toBe("The connection was lost. Nothing to do: it is opened again, and nothing you set is lost.");
    await host.advance(200);
    expect(kind(shown)).toBe("connecting");
    await server.settle();
    expect([kind(shown), troubled(shown)]).toEqual(["live", null]);
  });

  test("live, but the room has not answered", async () => {
    const shown = await card({ settle: false });
    const { socket } = shown.host;
    socket.accept();
    const { welcome } = await import("../test/world");
    socket.deliver(welcome());
    await turns();
    expect([kind(shown), shown.text(".sw-link")]).toEqual(["live", "joining"]);
    expect(lines(shown)).toEqual(["n 1"]);
  });

  test("not linked, and why not when the kernel says so", async () => {
    const shown = await card({ room: "" });
    expect([kind(shown), shown.text(".sw-link"), shown.text(".sw-token"), troubled(shown)]).toEqual([
      "private",
      "not linked",
      "private",
      null,
    ]);
    expect(lines(shown)).toEqual(["n 1"]);
    expect(shown.el.querySelector("details")?.hidden).toBe(true);
    shown.model.set_state({ _link: { room: "", state: "S", traits: ["n"], offline: "no server answers" } });
    expect([kind(shown), shown.text(".sw-link"), troubled(shown)]).toEqual(["offline", "offline", "no server answers"]);
  });

  test("a page that no server serves", async () => {
    const shown = await card({ place: false });
    expect(kind(shown)).toBe("offline");
    expect(troubled(shown)).toContain(TROUBLES["server-not-found"]?.next);
  });

  test("follows the model to another room", async () => {
    const shown = await card();
    shown.server.define("q", "S", { n: trait() }, { n: "there" });
    shown.model.set_state({ _link: { room: "q", state: "S", traits: ["n"], offline: "" } });
    await shown.server.settle();
    expect([shown.text(".sw-token"), lines(shown)]).toEqual(["q", [`n "there"`]]);
  });

  test("says its place to those who do not see it", async () => {
    const shown = await card();
    const section = shown.el.querySelector(".sharedwidgets-card");
    expect(section?.getAttribute("aria-label")).toBe("S in room r");
    expect(shown.el.querySelector(".sw-link")?.getAttribute("role")).toBe("status");
    expect(shown.el.querySelector(".sw-trouble")?.getAttribute("role")).toBe("alert");
  });
});

describe("text only", () => {
  test("markup in every name, token, value, key, member and message stays text", async () => {
    const token = MARKUP.slice(0, 60).trim();
    const shown = await card({
      room: token,
      state: MARKUP,
      values: { [MARKUP]: MARKUP, dict: { [MARKUP]: [MARKUP] } },
    });
    const present = [person("k", { kind: "kernel", user: MARKUP, name: MARKUP })];
    shown.host.socket.deliver({ type: "members", room: token, present, gone: [], complete: false });
    shown.linked.room?.tell({ kind: "trouble", problem: problem("internal", MARKUP) });
    const elements = [...shown.el.querySelectorAll("*")].map(({ localName }) => localName);
    expect(new Set(elements)).toEqual(
      new Set([
        "section",
        "style",
        "header",
        "strong",
        "code",
        "span",
        "p",
        "dl",
        "dt",
        "dd",
        "details",
        "summary",
        "ul",
        "li",
      ]),
    );
    expect(shown.text("strong")).toBe(MARKUP);
    expect(shown.text(".sw-token")).toBe(token);
    expect(shown.text("dt")).toBe(MARKUP);
    expect(shown.text("dd")).toBe(JSON.stringify(MARKUP));
    expect(lines(shown)[1]).toContain(`{${MARKUP}: [`);
    expect(members(shown)).toEqual([`kernel ${MARKUP}, ${MARKUP}`]);
    expect(troubled(shown)).toContain(MARKUP);
  });

  test("nor does the kernel's reason become markup", async () => {
    const shown = await card({ room: "" });
    shown.model.set_state({ _link: { room: "", state: MARKUP, traits: [], offline: MARKUP } });
    expect([troubled(shown), shown.el.querySelector("img, script")]).toEqual([MARKUP, null]);
  });
});

describe("values", () => {
  test.each<[Value, string]>([
    [null, "null"],
    [true, "true"],
    [0.5, "0.5"],
    [Number.NaN, "NaN"],
    [2n ** 64n, "18446744073709551616"],
    ["a\nb", `"a\\nb"`],
    [Uint8Array.of(1, 2, 3), "3 bytes"],
    [[1, [2]], "[1, [2]]"],
    [{ a: { b: Uint8Array.of(1) } }, "{a: {b: 1 bytes}}"],
    ["x".repeat(5000), `"${"x".repeat(199)}…`],
    [Array.from({ length: 5000 }, () => 1), `${`[${"1, ".repeat(100)}`.slice(0, 200)}…`],
  ])("as one line, case %#", (value, line) => {
    expect(show(value)).toBe(line);
  });

  test("come, change in place, and go", async () => {
    const shown = await card({ values: { a: 1, b: 2 } });
    const first = shown.el.querySelector("dd");
    shown.server.write("r", "S", "a", 5);
    expect(lines(shown)).toEqual(["a 5", "b 2"]);
    expect(shown.el.querySelector("dd")).toBe(first);
    shown.server.define("r", "S", { c: trait() }, { c: null });
    expect(lines(shown)).toEqual(["a 5", "b 2", "c null"]);
    shown.server.rooms.delete("r");
    shown.server.define("r", "S", { b: trait() }, { b: 3 });
    shown.host.socket.deliver(shown.server.snapshot("r", "x"));
    expect(lines(shown)).toEqual(["b 3"]);
    expect(shown.el.querySelectorAll("dl > *").length).toBe(2);
  });

  test("names that a prototype has are names", async () => {
    const shown = await card({ values: JSON.parse(`{"constructor": 1, "toString": 2}`) });
    expect(lines(shown)).toEqual(["constructor 1", "toString 2"]);
  });
});

describe("computed traits", () => {
  const link = (computed: unknown, traits = ["n"]) => ({ _link: { room: "r", state: "S", traits, computed, offline: "" } });
  const hidden = ({ el }: Card) => el.querySelector<HTMLElement>(".sw-computed")?.hidden;

  test("stand below the shared ones and follow their kernel's comm", async () => {
    const shown = await card();
    expect(hidden(shown)).toBe(true);
    shown.model.set_state({ ...link(["double", "late"]), double: 2 });
    await shown.server.settle();
    expect([hidden(shown), lines(shown)]).toEqual([false, ["n 1", "double 2", "late –"]]);
    const cell = shown.el.querySelector(".sw-computed dd");
    shown.model.set_state({ double: 4 });
    shown.model.set_state({ late: null });
    expect(lines(shown)).toEqual(["n 1", "double 4", "late null"]);
    expect(shown.el.querySelector(".sw-computed dd")).toBe(cell);
    shown.model.set_state(link([]));
    await shown.server.settle();
    expect([hidden(shown), lines(shown)]).toEqual([true, ["n 1"]]);
  });

  test("also while the state is not linked, and never to the room", async () => {
    const shown = await card({ room: "" });
    shown.model.set_state({ _link: { room: "", state: "S", traits: ["n"], computed: ["double"], offline: "" } });
    shown.model.set_state({ double: 6 });
    expect(lines(shown)).toEqual(["n 1", "double 6"]);
    expect(shown.model.saved).toEqual([]);
  });

  test("are of this kernel, whatever the room has under their name", async () => {
    const shown = await card();
    shown.server.define("r", "S", { double: trait() }, { double: "the room's" });
    shown.model.set_state({ ...link(["double"]), double: 2 });
    await shown.server.settle();
    expect(lines(shown)).toEqual(["n 1", `double "the room's"`, "double 2"]);
  });

  test("are text, names and values alike", async () => {
    const shown = await card();
    shown.model.set_state({ ...link([MARKUP, 3, null]), [MARKUP]: { [MARKUP]: MARKUP } });
    await shown.server.settle();
    expect(shown.text(".sw-computed dt")).toBe(MARKUP);
    expect(shown.text(".sw-computed dd")).toContain(MARKUP);
    expect(shown.el.querySelector("img, script")).toBeNull();
  });
});

describe("members", () => {
  test("how many of each kind, and who, in the order of coming", async () => {
    const shown = await card();
    expect(shown.text("summary")).toBe("nobody");
    tell(shown, [
      person("p2", { since: 3, name: "b.ipynb", state: "away" }),
      person("0123456789", { since: 2, name: "" }),
      person("k", { since: 1, kind: "kernel", name: "fit.ipynb", user: "bo" }),
      person("s", { since: 4, kind: "script", name: "ci.py" }),
    ]);
    expect(shown.text("summary")).toBe("1 kernel, 2 pages, 1 script");
    expect(members(shown)).toEqual([
      "kernel fit.ipynb, bo",
      "page 01234567, ana",
      "page b.ipynb, ana (away)",
      "script ci.py, ana",
    ]);
    tell(shown, [], ["k", "s"]);
    expect([shown.text("summary"), members(shown).length]).toEqual(["2 pages", 2]);
  });

  test("one who takes the place of another is in the list when it is opened", async () => {
    const shown = await card();
    tell(shown, [person("a", { name: "first" })]);
    tell(shown, [person("b", { name: "second" })], ["a"]);
    expect(members(shown)).toEqual(["page second, ana"]);
    tell(shown, [person("b", { name: "second", state: "away" })]);
    expect(members(shown)).toEqual(["page second, ana (away)"]);
  });

  test("news of values leave the list alone, so that a selection in it stays", async () => {
    const shown = await card();
    tell(shown, [person("a", { name: "first" })]);
    const details = shown.el.querySelector("details");
    if (details !== null) details.open = true;
    const item = shown.el.querySelector("li");
    shown.server.write("r", "S", "n", 9);
    expect(shown.el.querySelector("li")).toBe(item);
  });
});

describe("troubles", () => {
  test.each(Object.keys(TROUBLES))("%s says what happened and what to do next", async (code) => {
    const shown = await card();
    shown.linked.room?.tell({ kind: "trouble", problem: problem(code, "the server's words") });
    const { text, next } = TROUBLES[code] ?? { text: "", next: "" };
    expect(troubled(shown)).toBe(`${text.slice(0, -1)}: the server's words. ${next}`);
    expect([text, next].every((sentence) => /^[A-Z].*\.$/.test(sentence))).toBe(true);
  });

  test.each(["what-is-this", "constructor", "__proto__", "toString"])(
    "an unknown one, %s, says at least what it is told",
    async (code) => {
      const shown = await card();
      shown.linked.room?.tell({ kind: "trouble", problem: problem(code, "m") });
      expect(troubled(shown)).toBe("Something went wrong: m. Reload the page; if it stays, tell the server's operator.");
    },
  );

  test("a refused edit is said, and goes with the next one that is taken", async () => {
    const shown = await card();
    shown.server.define("r", "S", { small: trait("int", { max: 3 }) }, { small: 1 });
    shown.model.set_state({ _link: { room: "r", state: "S", traits: ["n", "small"], offline: "" } });
    await shown.server.settle();
    shown.model.set("small", 9);
    expect(troubled(shown)).toContain("takes int of at most 3");
    shown.model.set("small", 2);
    expect(troubled(shown)).toBeNull();
  });

  test("an edit before the room answered is said", async () => {
    const shown = await card({ settle: false });
    shown.model.set("n", 9);
    expect(troubled(shown)).toContain(TROUBLES["no-such-state"]?.next);
  });

  test("a refused join is said until one is taken", async () => {
    const shown = await card({ settle: false });
    const { host, server } = shown;
    const { welcome } = await import("../test/world");
    host.socket.accept();
    host.socket.deliver(welcome());
    await turns();
    const request = host.socket.said().find((message) => message.type === "join");
    const id = request?.type === "join" ? request.id : null;
    host.socket.deliver({ type: "error", id, room: "r", problem: problem("forbidden") });
    expect(troubled(shown)).toContain(TROUBLES.forbidden?.next);
    host.socket.drop();
    await host.advance(200);
    await server.settle();
    expect([troubled(shown), lines(shown)]).toEqual([null, ["n 1"]]);
  });

  test("a room that was deleted is said", async () => {
    const shown = await card();
    shown.host.socket.deliver({ type: "bye", room: "r", problem: problem("room-gone"), retry_after: null, incarnation: "" });
    expect(troubled(shown)).toContain(TROUBLES["room-gone"]?.next);
    expect(shown.text(".sw-link")).toBe("not linked");
  });
});

describe("the end", () => {
  test("leaves no element, no watcher and no listener behind", async () => {
    const shown = await card();
    const { listeners } = shown.model;
    const changes = vi.spyOn(Element.prototype, "append");
    for (let round = 0; round < 5; round++) {
      const linked = new LinkedModel(proxied(shown.model), shown.rooms);
      const end = renderCard(linked, shown.el);
      expect(shown.el.childElementCount).toBe(2);
      end();
      linked.close();
      end();
    }
    expect([shown.el.childElementCount, shown.model.listeners]).toEqual([1, listeners]);
    shown.end();
    expect(shown.el.innerHTML).toBe("");
    changes.mockClear();
    shown.server.define("r", "S", { more: trait() }, { more: 1 });
    tell(shown, [person("a")]);
    await shown.server.settle();
    expect(changes).not.toHaveBeenCalled();
    expect(document.body.querySelector(".sharedwidgets-card")).toBeNull();
    vi.restoreAllMocks();
  });

  test("two cards of one model are drawn alike", async () => {
    const shown = await card();
    const el = document.createElement("div");
    renderCard(shown.linked, el);
    shown.server.write("r", "S", "n", 8);
    expect([...el.querySelectorAll("dd"), ...shown.el.querySelectorAll("dd")].map(({ textContent }) => textContent)).toEqual([
      "8",
      "8",
    ]);
  });
});

describe("a lock", () => {
  test("names who holds it, until it is free", async () => {
    const shown = await card();
    const hidden = (): unknown => shown.el.querySelector<HTMLElement>(".sw-lock")?.hidden;
    expect(hidden()).toBe(true);
    const release = shown.server.lock("r", "S", MARKUP);
    await shown.server.settle();
    expect([hidden(), shown.text(".sw-lock")]).toEqual([false, `Locked by ${MARKUP}`]);
    tell(shown, [person("a", { kind: "kernel", name: MARKUP }), person("0123456789", { name: "" })]);
    const lock = { kind: "state", name: "S" } as const;
    shown.host.socket.deliver({ type: "waiting", room: "r", lock, waiters: ["a", "0123456789", "nobody"] });
    expect(shown.text(".sw-lock")).toBe(`Locked by ${MARKUP}; waiting: kernel ${MARKUP}, page 01234567`);
    expect(shown.el.querySelector("img")).toBeNull();
    shown.host.socket.deliver({ type: "waiting", room: "r", lock, waiters: [] });
    expect(shown.text(".sw-lock")).toBe(`Locked by ${MARKUP}`);
    shown.model.set("n", 9);
    expect(shown.text(".sw-trouble")).toContain(TROUBLES.locked?.next);
    release();
    await shown.server.settle();
    expect(hidden()).toBe(true);
  });

  test("is shown until it is free, also when its holder has left, and then as the next one's", async () => {
    const shown = await card();
    const text = (): string | null =>
      shown.el.querySelector<HTMLElement>(".sw-lock")?.hidden === true ? null : shown.text(".sw-lock");
    const release = shown.server.lock("r", "S", "kernel one.ipynb");
    await shown.server.settle();
    const next = person("n", { kind: "kernel", name: "two.ipynb" });
    tell(shown, [person("k", { kind: "kernel", name: "one.ipynb" }), next, person("p", { name: "late.ipynb" })]);
    const lock = { kind: "state", name: "S" } as const;
    shown.host.socket.deliver({ type: "waiting", room: "r", lock, waiters: ["n", "p"] });
    expect(text()).toBe("Locked by kernel one.ipynb; waiting: kernel two.ipynb, page late.ipynb");
    // Who waits and is away still waits; who has left does not.
    tell(shown, [{ ...next, state: "away" }], ["p"]);
    expect(text()).toBe("Locked by kernel one.ipynb; waiting: kernel two.ipynb");
    tell(shown, [], ["k"]);
    expect(text()).toBe("Locked by kernel one.ipynb; waiting: kernel two.ipynb");
    release();
    expect(text()).toBe(null);
    const last = shown.server.lock("r", "S", "kernel two.ipynb", "n");
    expect(text()).toBe("Locked by kernel two.ipynb");
    last();
    expect(text()).toBe(null);
  });
});
