// A widget model on this page: its shared attributes follow the room, and what the page changes in them goes to the room.
//
// The widget comm carries private traits, and at creation the values to paint before the socket opens. It must never carry a
// shared value afterwards: two paths for one value make widgets oscillate. So a change that came by comm is put back, and the
// kernel neither sends nor takes shared values by comm while it is linked.

import type { LockImage, Member, Problem } from "./protocol";
import type { PageRoom, Rooms, Told } from "./rooms";
import { explain } from "./rooms";
import { isDict, isList, normalise, same, type Value } from "./values";

/** What anywidget gives of a widget model. */
export interface Model {
  get(name: string): unknown;
  set(name: string, value: unknown): void;
  save_changes(): void;
  send(content: unknown): void;
  on(event: string, callback: (...args: unknown[]) => void): void;
  off(event: string, callback: (...args: unknown[]) => void): void;
  widget_manager: { get_model(id: string): Promise<Model> };
}

/** What the kernel says of the link, in the synced trait `_link`. */
export interface LinkFacts {
  readonly room: string;
  readonly state: string;
  readonly traits: readonly string[];
  /** Of this kernel alone: they come by its comm, and the room knows nothing of them. */
  readonly computed: readonly string[];
  readonly offline: string;
}

export type Watcher = () => void;

/** Follows one model for as long as it lives on this page. */
export class LinkedModel {
  facts: LinkFacts;
  room: PageRoom | null = null;
  /** The last thing that went wrong here, for the card. */
  trouble: Problem | null = null;
  private leave: (() => void) | null = null;
  private applying = false;
  /** What each attribute was when it was last in order: what an edit that cannot be is put back to while the room has no value. */
  private readonly shown = new Map<string, unknown>();
  private readonly watchers = new Set<Watcher>();
  private readonly ends: (() => void)[] = [];

  constructor(
    readonly model: Model,
    private readonly rooms: Rooms,
  ) {
    this.facts = factsOf(model);
    this.listen("change:_link", (source) => {
      this.unlink(source);
      this.facts = factsOf(this.model);
      this.link();
    });
    this.link();
  }

  /** Call back when anything the card shows has changed; returns what ends it. */
  watch(watcher: Watcher): () => void {
    this.watchers.add(watcher);
    return () => this.watchers.delete(watcher);
  }

  close(): void {
    this.unlink(null);
    for (const end of this.ends.splice(0)) end();
    this.watchers.clear();
  }

  /** Who holds the lock of this state; null when nobody does. */
  get holder(): LockImage | null {
    return this.room?.replica.holder(this.facts.state) ?? null;
  }

  /** Who waits for it, in order of coming. */
  get waiters(): readonly Member[] {
    const { room, facts } = this;
    const waiters = room?.replica.waiters(facts.state) ?? [];
    return waiters.flatMap((id) => room?.replica.members.get(id) ?? []);
  }

  /** The traits the room has of this state now; before the first snapshot those the kernel painted. */
  values(): [string, Value][] {
    const { room, facts } = this;
    const state = room?.replica.stateNames.includes(facts.state) ? room.replica.view(facts.state) : null;
    if (state !== null) return Object.entries(state);
    return facts.traits.map((trait) => [trait, painted(this.model.get(trait))]);
  }

  /** The computed traits of the model's own kernel; undefined while it has sent no value. */
  computed(): [string, Value | undefined][] {
    return this.facts.computed.map((name) => {
      const raw = this.model.get(name);
      return [name, raw === undefined ? undefined : painted(raw)];
    });
  }

  private link(): void {
    const { room: token, state, traits, computed } = this.facts;
    for (const name of computed) this.listen(`change:${name}`, () => this.notify());
    if (token !== "") {
      try {
        const { room, leave } = this.rooms.enter(token, state, (told) => this.hear(told));
        this.room = room;
        this.leave = leave;
        for (const trait of traits) {
          this.shown.set(trait, this.model.get(trait));
          this.listen(`change:${trait}`, (source) => this.changed(trait, source));
        }
        this.show(traits);
      } catch (error) {
        this.trouble = explain(error);
      }
    }
    this.notify();
  }

  private unlink(source: unknown): void {
    this.leave?.();
    this.leave = null;
    this.room = null;
    this.trouble = null;
    this.shown.clear();
    for (const end of this.ends.splice(1)) end();
    forgetUnsaved(source, this.facts.traits);
  }

  private hear(told: Told): void {
    if (told.kind === "ended") {
      this.trouble = told.problem;
      this.leave = null;
      this.room = null;
    } else if (told.kind === "trouble") {
      this.trouble = told.problem;
    } else if (told.kind === "news") {
      const mine = told.news.changes.filter((change) => change.state === this.facts.state);
      this.show(told.news.defined ? this.facts.traits : mine.map((change) => change.trait));
      const refused = told.news.refused.find(({ ops }) => ops.some((op) => op.state === this.facts.state));
      if (refused !== undefined) this.trouble = refused.problem;
      else if (mine.some((change) => change.origin === "local")) this.trouble = null;
    }
    this.notify();
  }

  /** Put the room's values into the model's attributes; views and jslinks follow. */
  private show(traits: readonly string[]): void {
    for (const trait of traits) {
      // A room may hold traits this class does not share, under any name; `_esm` for one is code when it is an attribute.
      const value = this.facts.traits.includes(trait) ? this.view(trait) : undefined;
      if (value !== undefined && !same(painted(this.model.get(trait)), value)) this.put(trait, attribute(value));
    }
  }

  private put(trait: string, raw: unknown): void {
    const outer = this.applying;
    this.applying = true;
    try {
      this.model.set(trait, raw);
    } catch (error) {
      // A handler of the user's failed; the attribute is set, and the other traits are still to come.
      reportError(error);
    } finally {
      this.applying = outer;
    }
  }

  /**
   * An attribute changed: by this file, by the kernel's comm, or by someone on this page.
   *
   * An edit made before the room has told its values is undone at once, and said so. It is not kept until they come: what is
   * painted may be old, and an edit of an old value must not win over what others wrote since. Paint always loses to the room.
   */
  private changed(trait: string, source: unknown): void {
    if (this.room === null) return;
    if (!this.applying) {
      const held = this.view(trait);
      // An edit is compared with what was shown: for a long int that is less than the room holds.
      const shown = held === undefined ? this.shown.get(trait) : attribute(held);
      if (!cameFromKernel(source)) {
        if (!this.taken(this.room, trait, shown)) return;
      } else if (held !== undefined) {
        this.put(trait, shown);
        return;
      }
    }
    this.shown.set(trait, this.model.get(trait));
  }

  /** Take an edit to the room; one it does not take is undone, and everyone of the room is told. */
  private taken(room: PageRoom, trait: string, shown: unknown): boolean {
    try {
      const value = normalise(this.model.get(trait));
      const before = painted(shown);
      if (!same(value, before)) room.assign(this.facts.state, trait, before, value);
      return true;
    } catch (error) {
      this.put(trait, shown);
      room.tell({ kind: "trouble", problem: explain(error) });
      return false;
    }
  }

  private view(trait: string): Value | undefined {
    const replica = this.room?.replica;
    if (replica === undefined || !replica.stateNames.includes(this.facts.state)) return undefined;
    const view = replica.view(this.facts.state);
    return Object.hasOwn(view, trait) ? view[trait] : undefined;
  }

  private listen(event: string, callback: (...args: unknown[]) => void): void {
    this.model.on(event, callback);
    this.ends.push(() => this.model.off(event, callback));
  }

  private notify(): void {
    for (const watcher of [...this.watchers]) watcher();
  }
}

/**
 * Whether a change is one the kernel sent by comm: ipywidgets' models hold the state they are being given meanwhile. The
 * attribute is private to ipywidgets; where it is missing every change counts as the page's own.
 */
export function cameFromKernel(source: unknown): boolean {
  const lock = (source as { _state_lock?: unknown } | null)?._state_lock;
  return lock !== null && lock !== undefined;
}

/**
 * ipywidgets sends with the next save whatever was set since the last one. The room's values are not for the kernel: it drops
 * them while it is linked, and after that would take them for its own. The attribute is private to ipywidgets.
 */
export function forgetUnsaved(source: unknown, traits: readonly string[]): void {
  const { _buffered_state_diff: unsaved = {} } = (source ?? {}) as { _buffered_state_diff?: Record<string, unknown> };
  for (const trait of traits) delete unsaved[trait];
}

/** A value as a model attribute: bytes are what ipywidgets makes of a buffer, and a long int is as near as a number gets. */
export function attribute(value: Value): unknown {
  if (value instanceof Uint8Array) {
    const copy = value.slice();
    return new DataView(copy.buffer);
  }
  if (typeof value === "bigint") return Number(value);
  if (isList(value)) return value.map(attribute);
  if (isDict(value)) return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, attribute(item)]));
  return value;
}

/** A model attribute as a value; null for what has none. */
export function painted(raw: unknown): Value {
  try {
    return normalise(raw);
  } catch {
    return null;
  }
}

function factsOf(model: Model): LinkFacts {
  const link = model.get("_link");
  const facts = (typeof link === "object" && link !== null ? link : {}) as { [key: string]: unknown };
  const [traits, computed] = [names(facts.traits), names(facts.computed)];
  return { room: text(facts.room), state: text(facts.state), traits, computed, offline: text(facts.offline) };
}

function names(value: unknown): string[] {
  return Array.isArray(value) ? value.filter((name): name is string => typeof name === "string") : [];
}

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}
