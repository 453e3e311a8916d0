// What anywidget calls: `initialize` once per model on a page, `render` once per view. Neither waits for the socket.

import { bindModels } from "./bind";
import { renderCard } from "./card";
import { LinkedModel, type Model } from "./model";
import { pageRooms } from "./page";
import { type Cleanup, type Context, runView, sourceOf } from "./view";

/** Follow the room for as long as the model lives here, shown or not. */
export function initialize(context: Context): Cleanup {
  const linked = new LinkedModel(context.model, pageRooms());
  const end = sourceOf(context.model) === "" ? null : runView("initialize", context);
  return () => {
    end?.();
    linked.close();
  };
}

/** Draw the class's own view, or the card. */
export function render(context: Context & { readonly el: HTMLElement }): Cleanup {
  const { model, el } = context;
  if (sourceOf(model) !== "") return runView("render", context);
  const linked = new LinkedModel(model, pageRooms());
  const end = renderCard(linked, el);
  return () => {
    end();
    linked.close();
  };
}

/** The model of a `bind`: it has no view, only two ends. */
export function initializeBinding({ model }: { model: Model }): Cleanup {
  let end: Cleanup | null = null;
  let closed = false;
  const [source, target] = [endOf(model, "source"), endOf(model, "target")];
  Promise.all([model.widget_manager.get_model(source.id), model.widget_manager.get_model(target.id)])
    .then(([state, widget]) => {
      if (!closed) end = bindModels(pageRooms(), [state, source.name], [widget, target.name]);
    })
    .catch(reportError);
  return () => {
    closed = true;
    end?.();
  };
}

function endOf(model: Model, which: string): { id: string; name: string } {
  const pair = model.get(which);
  const [reference, name] = Array.isArray(pair) ? pair : ["", ""];
  return { id: String(reference).replace(/^IPY_MODEL_/, ""), name: String(name) };
}
