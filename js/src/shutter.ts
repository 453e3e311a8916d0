// A control that is disabled on this page while somebody holds the lock of a state it is bound to; what its kernel and its user
// say of it meanwhile is kept, and counts again afterwards.

import { forgetUnsaved, type Model } from "./model";

// Kept where every module of this page finds it, for each model has one of its own.
const SLOT = Symbol.for("sharedwidgets.v1.shutters");

/** What `disabled` is meanwhile. Not `true`: that the kernel disables the control too would be no change, and go unheard. */
const SHUT = 1;

/** One control of this page, for whoever shuts it: several `bind`s may. */
export interface Shutter {
  /** Shut it, and open it again with what is returned. */
  shut(): () => void;
}

/** The shutter of a control. */
export function shutterOf(widget: Model): Shutter {
  const slots = globalThis as { [SLOT]?: WeakMap<object, Shutter> };
  slots[SLOT] ??= new WeakMap();
  const all = slots[SLOT];
  const known = all.get(widget);
  if (known !== undefined) return known;
  const made = shutter(widget);
  all.set(widget, made);
  return made;
}

function shutter(widget: Model): Shutter {
  let locks = 0;
  let own: unknown = false;
  let putting = false;

  const put = (value: unknown): void => {
    putting = true;
    try {
      widget.set("disabled", value);
      // It is a matter of this page: neither the kernel nor another page hears of it.
      forgetUnsaved(widget, ["disabled"]);
    } finally {
      putting = false;
    }
  };
  const changed = (): void => {
    if (putting) return;
    own = widget.get("disabled");
    put(SHUT);
  };

  // Its notebook was saved during a lock.
  if (widget.get("disabled") === SHUT) put(false);
  return {
    shut: () => {
      if (locks === 0) {
        own = widget.get("disabled");
        put(SHUT);
        widget.on("change:disabled", changed);
      }
      locks += 1;
      let open = false;
      return () => {
        if (open) return;
        open = true;
        locks -= 1;
        if (locks > 0) return;
        widget.off("change:disabled", changed);
        put(own);
      };
    },
  };
}
