// The default view of a shared state: where it is linked, who else is there, and its values, live.
//
// Every text is set as text: no value of a room ever becomes markup.

import type { LinkState } from "./connection";
import type { LinkedModel } from "./model";
import type { LockImage, Member, Problem } from "./protocol";
import { isDict, isList, type Value } from "./values";

/** What a person reads for each thing that can be wrong, and what to do next. The server's own sentence goes between. */
export const TROUBLES: { readonly [code: string]: { readonly text: string; readonly next: string } } = {
  "server-not-found": {
    text: "No shared-state server here.",
    next: "Install sharedwidgets on the Jupyter server and restart it.",
  },
  forbidden: { text: "You may not do this here.", next: "Log in again, or ask the server's operator for the right 'write'." },
  "invalid-token": { text: "This is no name for a room.", next: "Link to another name, such as 'demo-room'." },
  "invalid-value": { text: "That value was not taken.", next: "The room's value is shown again; choose another one." },
  "too-large": { text: "That value is too large.", next: "The room's value is shown again; share less of it." },
  "too-many-rooms": { text: "This page looks at too many rooms.", next: "Close some views and reload." },
  "schema-conflict": {
    text: "Two classes disagree about a trait.",
    next: "Give one of them another state_name, or rename the trait.",
  },
  "no-such-state": {
    text: "The room has not told its values yet.",
    next: "Wait until they are here, or run the cell that links the state, and set it again.",
  },
  "no-such-trait": { text: "The room has no such trait.", next: "Run the cell that links the state again." },
  "outcome-unknown": { text: "The server was started again.", next: "Look at the value, and set it again if needed." },
  "room-gone": { text: "The room was deleted.", next: "Link to it again to make a new one." },
  "unsupported-protocol": {
    text: "Page and server are of different releases.",
    next: "Install the same release in both places and reload.",
  },
  locked: { text: "Somebody else holds the lock.", next: "Wait until it is free, then set it again." },
  "lock-lost": { text: "The lock was lost.", next: "Look at the value, and set it again." },
  "going-away": { text: "Not connected.", next: "Nothing to do: this page comes back with it." },
  silent: { text: "The server was not heard.", next: "Nothing to do: the connection is opened again." },
  closed: { text: "The connection was lost.", next: "Nothing to do: it is opened again, and nothing you set is lost." },
};

const OTHER = { text: "Something went wrong.", next: "Reload the page; if it stays, tell the server's operator." };
const LONGEST = 200;

const STYLE = `
.sharedwidgets-card {
  box-sizing: border-box; max-width: 32rem; min-width: 0; padding: 8px 12px; overflow: hidden;
  border: 1px solid var(--jp-border-color1, #bdbdbd); border-radius: 4px;
  background: var(--jp-layout-color1, #ffffff); color: var(--jp-ui-font-color1, #212121);
  font-family: var(--jp-ui-font-family, system-ui, sans-serif); font-size: var(--jp-ui-font-size1, 13px); line-height: 1.5;
}
.sharedwidgets-card * { box-sizing: border-box; }
.sharedwidgets-card header { display: flex; flex-wrap: wrap; gap: 2px 8px; align-items: baseline; }
.sharedwidgets-card header strong, .sharedwidgets-card header code { min-width: 0; overflow-wrap: anywhere; }
.sharedwidgets-card code { font-family: var(--jp-code-font-family, monospace); background: none; color: inherit; padding: 0; }
.sharedwidgets-card .sw-link { margin-left: auto; white-space: nowrap; }
.sharedwidgets-card .sw-link::before { content: "●"; margin-right: 4px; }
.sharedwidgets-card[data-link="live"] .sw-link::before { color: var(--jp-success-color1, #2e7d32); }
.sharedwidgets-card[data-link="offline"] .sw-link::before { color: var(--jp-error-color1, #c62828); }
.sharedwidgets-card[data-link="connecting"] .sw-link::before { color: var(--jp-warn-color1, #b26a00); }
.sharedwidgets-card .sw-trouble {
  margin: 6px 0 0; padding: 4px 8px; border-left: 3px solid var(--jp-error-color1, #c62828); overflow-wrap: anywhere;
}
.sharedwidgets-card .sw-lock { margin: 6px 0 0; overflow-wrap: anywhere; }
.sharedwidgets-card .sw-lock[hidden] { display: none; }
.sharedwidgets-card .sw-trouble[hidden] { display: none; }
.sharedwidgets-card dl {
  display: grid; grid-template-columns: fit-content(40%) minmax(0, 1fr); gap: 2px 12px; margin: 6px 0;
}
.sharedwidgets-card dl[hidden] { display: none; }
.sharedwidgets-card .sw-computed dt { font-style: italic; }
.sharedwidgets-card dt, .sharedwidgets-card dd {
  float: none; width: auto; min-width: 0; margin: 0; padding: 0; overflow-wrap: anywhere; text-align: left;
}
.sharedwidgets-card dt { font-weight: 600; }
.sharedwidgets-card dd { font-family: var(--jp-code-font-family, monospace); }
.sharedwidgets-card details summary { cursor: pointer; }
.sharedwidgets-card summary:focus-visible { outline: 2px solid var(--jp-brand-color1, #1976d2); outline-offset: 1px; }
.sharedwidgets-card ul { margin: 2px 0 0; padding-left: 20px; }
.sharedwidgets-card li { overflow-wrap: anywhere; }
`;

/** Draw a card into `el` and keep it true; returns what ends it. */
export function renderCard(linked: LinkedModel, el: HTMLElement): () => void {
  const card = child(el, "section", "sharedwidgets-card");
  child(card, "style").textContent = STYLE;
  const header = child(card, "header");
  const name = child(header, "strong");
  const token = child(header, "code", "sw-token");
  const link = child(header, "span", "sw-link");
  link.setAttribute("role", "status");
  const lock = child(card, "p", "sw-lock");
  lock.setAttribute("role", "status");
  const trouble = child(card, "p", "sw-trouble");
  trouble.setAttribute("role", "alert");
  const list = child(card, "dl", "sw-values");
  const computed = child(card, "dl", "sw-computed");
  computed.title = "Computed by the kernel of this view";
  const details = child(card, "details", "sw-members");
  const summary = child(details, "summary");
  const members = child(details, "ul");
  const cells: Cells = new Map();
  // Apart from the room's: it may have a trait of the same name, of another class.
  const computedCells: Cells = new Map();

  const draw = (): void => {
    const { facts, room } = linked;
    const state = room?.link ?? null;
    setText(name, facts.state);
    setText(token, facts.room === "" ? "private" : facts.room);
    card.setAttribute("aria-label", facts.room === "" ? `${facts.state}, private` : `${facts.state} in room ${facts.room}`);
    const kind = linkKind(state, facts.offline);
    if (card.dataset.link !== kind) card.dataset.link = kind;
    setText(link, linkText(state, facts.offline, room?.here === true));
    const { holder, waiters } = linked;
    lock.hidden = holder === null;
    setText(lock, holder === null ? "" : lockText(holder, waiters));
    drawTrouble(trouble, linked.trouble ?? room?.trouble ?? problemOfLink(state), facts.offline);
    drawValues(list, cells, linked.values());
    const made = linked.computed();
    computed.hidden = made.length === 0;
    drawValues(computed, computedCells, made);
    const present = [...(room?.replica.members.values() ?? [])].sort((left, right) => left.since - right.since);
    details.hidden = room === null;
    setText(summary, headcount(present));
    drawMembers(members, present);
  };
  const unwatch = linked.watch(draw);
  draw();
  return () => {
    unwatch();
    card.remove();
  };
}

/** A value as one line of text. */
export function show(value: Value): string {
  const line = plain(value);
  return line.length > LONGEST ? `${line.slice(0, LONGEST)}…` : line;
}

function plain(value: Value): string {
  if (value instanceof Uint8Array) return `${value.length} bytes`;
  if (typeof value === "string") return JSON.stringify(value.slice(0, LONGEST + 1));
  if (isList(value)) return `[${value.slice(0, LONGEST).map(plain).join(", ")}]`;
  if (isDict(value)) {
    const entries = Object.entries(value).slice(0, LONGEST);
    return `{${entries.map(([key, item]) => `${key}: ${plain(item)}`).join(", ")}}`;
  }
  return String(value);
}

function drawTrouble(box: HTMLElement, problem: Problem | null, offline: string): void {
  box.hidden = problem === null && offline === "";
  if (problem === null) {
    setText(box, offline);
    return;
  }
  const known = (Object.hasOwn(TROUBLES, problem.code) ? TROUBLES[problem.code] : undefined) ?? OTHER;
  const what = problem.message === "" ? known.text : `${known.text.slice(0, -1)}: ${problem.message}.`;
  setText(box, `${what} ${known.next}`);
}

type Cells = Map<string, { term: HTMLElement; cell: HTMLElement }>;

function drawValues(list: HTMLElement, cells: Cells, values: readonly [string, Value | undefined][]): void {
  const names = new Set(values.map(([trait]) => trait));
  for (const [trait, { term, cell }] of cells) {
    if (names.has(trait)) continue;
    term.remove();
    cell.remove();
    cells.delete(trait);
  }
  for (const [trait, value] of values) {
    let pair = cells.get(trait);
    if (pair === undefined) {
      const term = child(list, "dt");
      setText(term, trait);
      const cell = child(list, "dd");
      cell.dataset.trait = trait;
      pair = { term, cell };
      cells.set(trait, pair);
    }
    setText(pair.cell, value === undefined ? "–" : show(value));
  }
}

function drawMembers(list: HTMLElement, members: readonly Member[]): void {
  while (list.childElementCount > members.length) list.lastElementChild?.remove();
  members.forEach((member, index) => {
    const line = `${called(member)}, ${member.user}${member.state === "live" ? "" : ` (${member.state})`}`;
    setText(list.children[index] ?? child(list, "li"), line);
  });
}

const WORDS = { kernel: "kernel", frontend: "page", script: "script" } as const;

function lockText(holder: LockImage, waiters: readonly Member[]): string {
  const held = `Locked by ${holder.label === "" ? holder.member.slice(0, 8) : holder.label}`;
  return waiters.length === 0 ? held : `${held}; waiting: ${waiters.map(called).join(", ")}`;
}

/** What a person would call a member. */
function called(member: Member): string {
  return `${WORDS[member.kind]} ${member.name === "" ? member.id.slice(0, 8) : member.name}`;
}

function headcount(members: readonly Member[]): string {
  const counts = (["kernel", "frontend", "script"] as const).map((kind) => {
    const count = members.filter((member) => member.kind === kind).length;
    return count === 0 ? "" : `${count} ${WORDS[kind]}${count === 1 ? "" : "s"}`;
  });
  return counts.filter((words) => words !== "").join(", ") || "nobody";
}

function linkKind(link: LinkState | null, offline: string): string {
  if (link !== null) return link.kind;
  return offline === "" ? "private" : "offline";
}

function linkText(link: LinkState | null, offline: string, has: boolean): string {
  if (link === null) return offline === "" ? "not linked" : "offline";
  if (link.kind === "live") return has ? "live" : "joining";
  return link.kind;
}

function problemOfLink(link: LinkState | null): Problem | null {
  return link?.kind === "offline" ? link.problem : null;
}

function child<Tag extends keyof HTMLElementTagNameMap>(
  parent: HTMLElement,
  tag: Tag,
  className = "",
): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  if (className !== "") element.className = className;
  parent.append(element);
  return element;
}

function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}
