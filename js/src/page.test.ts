// @vitest-environment happy-dom
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { welcome } from "../test/world";
import { decodeUpstream, encode, type Frame } from "./codec";
import { pageRooms } from "./page";
import type { Upstream } from "./protocol";

const SLOT = Symbol.for("sharedwidgets.v1");

/** What a browser gives for `WebSocket`. */
class BrowserSocket {
  static readonly OPEN = 1;
  static made: BrowserSocket[] = [];
  readyState = 0;
  binaryType = "blob";
  closed = 0;
  readonly sent: Frame[] = [];
  onopen: (() => void) | null = null;
  onmessage: ((event: { data: string | ArrayBuffer }) => void) | null = null;
  onclose: (() => void) | null = null;

  constructor(
    readonly url: string,
    readonly protocol: string,
  ) {
    BrowserSocket.made.push(this);
  }

  send(frame: Frame): void {
    this.sent.push(frame);
  }

  close(): void {
    this.closed += 1;
  }

  accept(): void {
    this.readyState = 1;
    this.onopen?.();
  }

  get said(): Upstream[] {
    return this.sent.map(decodeUpstream);
  }
}

function only(): BrowserSocket {
  const socket = BrowserSocket.made.at(-1);
  if (socket === undefined) throw new Error("no socket was opened");
  return socket;
}

/** What pages of earlier tests listen to, which no page ever gives up. */
const ends: (() => void)[] = [];

function remembering(target: EventTarget): void {
  const add = target.addEventListener.bind(target);
  vi.spyOn(target, "addEventListener").mockImplementation(
    (type: string, listener: EventListenerOrEventListenerObject | null) => {
      add(type, listener);
      ends.push(() => target.removeEventListener(type, listener));
    },
  );
}

function forget(): void {
  Reflect.deleteProperty(globalThis, SLOT);
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal("WebSocket", BrowserSocket);
  vi.stubGlobal(
    "fetch",
    vi.fn(() => Promise.reject(new TypeError("no network"))),
  );
  vi.spyOn(Math, "random").mockReturnValue(1);
  document.head.innerHTML = `<script id="jupyter-config-data" type="application/json">{"baseUrl": "/b/"}</script>`;
  document.title = "notebook.ipynb";
  remembering(globalThis);
  remembering(document);
});

afterEach(() => {
  forget();
  for (const end of ends.splice(0)) end();
  BrowserSocket.made = [];
  sessionStorage.clear();
  document.head.innerHTML = "";
  vi.restoreAllMocks();
  vi.unstubAllGlobals();
  vi.useRealTimers();
});

describe("what a page has once", () => {
  test("its rooms and its socket, however often the module is loaded", async () => {
    const rooms = pageRooms();
    expect(pageRooms()).toBe(rooms);
    vi.resetModules();
    const another = await import("./page");
    expect(another.pageRooms).not.toBe(pageRooms);
    expect(another.pageRooms()).toBe(rooms);
    expect(BrowserSocket.made.length).toBe(1);
  });

  test("the socket goes to the server that served the page, with the protocol's name", () => {
    pageRooms();
    expect(only().url).toBe(`${location.origin.replace("http", "ws")}/b/sharedwidgets/ws`);
    expect([only().protocol, only().binaryType]).toEqual(["sharedwidgets.v1", "arraybuffer"]);
  });

  test("a page without a server opens none", () => {
    document.head.innerHTML = "";
    expect(pageRooms().link).toMatchObject({ kind: "offline", final: true });
    expect(BrowserSocket.made).toEqual([]);
  });
});

describe("what the browser gives", () => {
  test("text and buffers are frames; what cannot be sent any more is not", () => {
    pageRooms();
    const socket = only();
    socket.accept();
    expect(socket.said).toMatchObject([{ type: "hello", name: "notebook.ipynb", member: null }]);
    socket.onmessage?.({ data: String(encode(welcome())) });
    expect(pageRooms().link.kind).toBe("live");
    // A fragment that is the whole message: 0x02, 0x03, text.
    socket.onmessage?.({ data: Uint8Array.of(2, 3, ...new TextEncoder().encode(`{"type":"ping","id":3}`)).buffer });
    expect(socket.said.at(-1)).toEqual({ type: "pong", id: 3 });
    socket.readyState = 2;
    socket.onmessage?.({ data: `{"type":"ping","id":4}` });
    expect(socket.said.length).toBe(2);
  });

  test("a boot is random, 128 bits, and new for each page load", () => {
    const boots = [1, 2].map(() => {
      forget();
      pageRooms();
      only().accept();
      const [hello] = only().said;
      return hello?.type === "hello" ? hello.boot : "";
    });
    expect(boots[0]).toMatch(/^[0-9a-f]{32}$/);
    expect(boots[1]).toMatch(/^[0-9a-f]{32}$/);
    expect(boots[0]).not.toBe(boots[1]);
  });

  test("the member and its secret survive a reload of the tab", () => {
    pageRooms();
    only().accept();
    only().onmessage?.({ data: String(encode(welcome())) });
    forget();
    pageRooms();
    only().accept();
    expect(only().said).toMatchObject([{ member: "m1", secret: "sec" }]);
  });

  test.each(["{", "null", "7", `{"member": 1, "secret": "s"}`])("a stored member that is %s is none", (text) => {
    sessionStorage.setItem("sharedwidgets.v1.member", text);
    pageRooms();
    only().accept();
    expect(only().said).toMatchObject([{ member: null, secret: null }]);
  });

  test("without storage a page is a new member each time, nothing more", () => {
    vi.stubGlobal("sessionStorage", {
      getItem: () => {
        throw new DOMException("denied");
      },
      setItem: () => {
        throw new DOMException("denied");
      },
    });
    pageRooms();
    only().accept();
    only().onmessage?.({ data: String(encode(welcome())) });
    expect(pageRooms().link.kind).toBe("live");
    vi.unstubAllGlobals();
  });

  test("api/me is asked with the cookie, and not for ever", async () => {
    const get = vi.fn((_url: string, _options: RequestInit) => Promise.resolve({ status: 404 }));
    vi.stubGlobal("fetch", get);
    pageRooms();
    only().onclose?.();
    await vi.advanceTimersByTimeAsync(0);
    expect(get.mock.calls).toEqual([
      [`${location.origin}/b/sharedwidgets/api/me`, { credentials: "same-origin", signal: expect.any(AbortSignal) }],
    ]);
    expect(pageRooms().link).toMatchObject({ kind: "offline", problem: { code: "server-not-found" }, final: true });
  });

  test("nobody answers: it is tried again by the clock, and at once when the page comes online or to the front", async () => {
    pageRooms();
    only().onclose?.();
    await vi.advanceTimersByTimeAsync(0);
    expect(pageRooms().link).toMatchObject({ kind: "offline", problem: { code: "silent" }, final: false });
    await vi.advanceTimersByTimeAsync(99);
    expect(BrowserSocket.made.length).toBe(1);
    await vi.advanceTimersByTimeAsync(1);
    expect(BrowserSocket.made.length).toBe(2);
    only().onclose?.();
    await vi.advanceTimersByTimeAsync(0);
    dispatchEvent(new Event("online"));
    expect(BrowserSocket.made.length).toBe(3);
    only().onclose?.();
    await vi.advanceTimersByTimeAsync(0);
    document.dispatchEvent(new Event("visibilitychange"));
    expect(BrowserSocket.made.length).toBe(4);
  });
});
