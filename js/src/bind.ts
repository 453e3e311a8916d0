// `bind`: a shared trait and an attribute of any widget on this page, held equal with the kernel busy or dead.
//
// Unlike a jslink it knows where a change came from. A change of the target that the kernel sent by comm, an echo of another
// tab for instance, is no edit: it is put back to the room's value and goes nowhere.

import { cameFromKernel, LinkedModel, type Model, painted } from "./model";
import type { Rooms } from "./rooms";
import { shutterOf } from "./shutter";
import { same } from "./values";

/** Ends what it began. */
export type End = () => void;

/** Hold `source[0]`'s trait and `target[0]`'s attribute equal; the room wins at the start. */
export function bindModels(rooms: Rooms, source: readonly [Model, string], target: readonly [Model, string]): End {
  const [state, trait] = source;
  const [widget, name] = target;
  const linked = new LinkedModel(state, rooms);
  let putting = false;

  const put = (value: unknown, save: boolean): void => {
    if (equal(widget.get(name), value)) return;
    putting = true;
    try {
      widget.set(name, value);
      // The widget's own kernel is told as well, as by any edit on this page.
      if (save) widget.save_changes();
    } finally {
      putting = false;
    }
  };
  const toTarget = (): void => put(state.get(trait), true);
  const toSource = (model: unknown): void => {
    if (putting) return;
    if (cameFromKernel(model) && linked.room !== null) {
      put(state.get(trait), false);
      return;
    }
    state.set(trait, widget.get(name));
    // Unlinked, the state is an ordinary widget whose kernel must hear of it.
    if (linked.room === null) state.save_changes();
    // What the room did not take is not left standing.
    put(state.get(trait), true);
  };

  // While somebody holds the state's lock nobody else can write it: the control says so, as far as it can be disabled.
  const shutter = shutterOf(widget);
  let open: End | null = null;
  const drawLock = (): void => {
    if (linked.holder === null) {
      open?.();
      open = null;
    } else if (open === null && widget.get("disabled") !== undefined) {
      open = shutter.shut();
    }
  };
  const unwatch = linked.watch(drawLock);
  drawLock();

  state.on(`change:${trait}`, toTarget);
  widget.on(`change:${name}`, toSource);
  toTarget();
  return () => {
    state.off(`change:${trait}`, toTarget);
    widget.off(`change:${name}`, toSource);
    unwatch();
    open?.();
    linked.close();
  };
}

function equal(left: unknown, right: unknown): boolean {
  return left === right || same(painted(left), painted(right));
}
