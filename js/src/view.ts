// The view a class brings along: an anywidget module as text, run beside the page's link instead of in its place.

import type { Model } from "./model";

export type Cleanup = () => void;

/** What anywidget gives with a call; more than these two is passed on as it is. */
export interface Context {
  readonly model: Model;
  readonly el?: HTMLElement;
}

type Part = (context: Context) => unknown;
interface View {
  readonly initialize?: Part;
  readonly render?: Part;
}
type Load = (source: string) => Promise<unknown>;

// By source: a module is loaded once per page, however many models and views have it.
const loaded = new Map<string, Promise<View>>();

/** The source of a model's own view; empty when the card is shown. */
export function sourceOf(model: Model): string {
  const source = model.get("_view_esm");
  return typeof source === "string" ? source : "";
}

/** Run a part of the model's own view, and return what ends it. What fails in it is the page's to report, and ends nothing else. */
export function runView(part: keyof View, context: Context, load: Load = loadText): Cleanup {
  const source = sourceOf(context.model);
  let end: unknown;
  let over = false;
  const finish = () => {
    if (typeof end === "function") end();
  };
  viewOf(source, load)
    .then(async (view) => {
      if (over) return;
      end = await view[part]?.(context);
      if (over) finish();
    })
    .catch((error: unknown) => {
      if (context.el !== undefined) context.el.textContent = `This view could not be shown: ${String(error)}`;
      reportError(error);
    });
  return () => {
    over = true;
    finish();
  };
}

function viewOf(source: string, load: Load): Promise<View> {
  const known = loaded.get(source);
  if (known !== undefined) return known;
  const view = load(source).then(partsOf);
  loaded.set(source, view);
  return view;
}

/** anywidget's forms: a default export that is the parts or makes them, or, from its first days, a bare `render`. */
async function partsOf(module: unknown): Promise<View> {
  const { default: main, ...bare } = module as { default?: unknown } & View;
  const parts: unknown = typeof main === "function" ? await main() : (main ?? bare);
  return (parts ?? {}) as View;
}

async function loadText(source: string): Promise<unknown> {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  try {
    return await import(url);
  } finally {
    URL.revokeObjectURL(url);
  }
}
