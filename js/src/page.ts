// What a page has once, however often this module is loaded: its boot, its socket, its rooms.
//
// anywidget loads a widget's module anew for every model, so module variables are not shared; a slot on globalThis is.

import type { Host, Socket } from "./connection";
import { locate } from "./locate";
import { Rooms } from "./rooms";

const SLOT = Symbol.for("sharedwidgets.v1");
const MEMBER_KEY = "sharedwidgets.v1.member";
const GET_TIMEOUT = 10_000;

/** The rooms of this page; made on first use. */
export function pageRooms(): Rooms {
  const slots = globalThis as { [SLOT]?: Rooms };
  let rooms = slots[SLOT];
  if (rooms === undefined) {
    const made = new Rooms(locate(document, location.href), browser());
    slots[SLOT] = rooms = made;
    addEventListener("online", () => made.hurry());
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") made.hurry();
    });
  }
  return rooms;
}

function browser(): Host {
  return {
    open: openSocket,
    get: (url) =>
      // Without a limit a server that hangs would keep the page from trying again.
      fetch(url, { credentials: "same-origin", signal: AbortSignal.timeout(GET_TIMEOUT) }).then(
        ({ status }) => ({ status }),
        () => ({ status: 0 }),
      ),
    after: (milliseconds, task) => {
      const timer = setTimeout(task, milliseconds);
      return () => clearTimeout(timer);
    },
    random: () => Math.random(),
    id: newId,
    title: () => document.title || location.pathname,
    recall,
    remember: (member, secret) => {
      try {
        sessionStorage.setItem(MEMBER_KEY, JSON.stringify({ member, secret }));
      } catch {
        // Storage is switched off: after a reload this page is a new member, nothing more.
      }
    },
  };
}

function openSocket(url: string, protocol: string): Socket {
  const socket = new WebSocket(url, protocol);
  socket.binaryType = "arraybuffer";
  const wrapped: Socket = {
    send: (frame) => {
      if (socket.readyState === WebSocket.OPEN) socket.send(frame as string | Uint8Array<ArrayBuffer>);
    },
    close: () => socket.close(),
    onopen: null,
    onframe: null,
    onclose: null,
  };
  socket.onopen = () => wrapped.onopen?.();
  socket.onmessage = ({ data }: MessageEvent<string | ArrayBuffer>) =>
    wrapped.onframe?.(typeof data === "string" ? data : new Uint8Array(data));
  socket.onclose = () => wrapped.onclose?.();
  return wrapped;
}

function recall(): { member: string; secret: string } | null {
  try {
    const known: unknown = JSON.parse(sessionStorage.getItem(MEMBER_KEY) ?? "null");
    if (typeof known !== "object" || known === null) return null;
    const { member, secret } = known as { member?: unknown; secret?: unknown };
    return typeof member === "string" && typeof secret === "string" ? { member, secret } : null;
  } catch {
    return null;
  }
}

/** `crypto.randomUUID` exists on https and localhost only; Jupyter is also served by plain http. */
function newId(): string {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
