// What anywidget calls: `initialize` once per model on a page, `render` once per view. Neither waits for the socket.

import { bindModels } from "./bind";
import { renderCard } from "./card";
import { LinkedModel, type Model } from "./model";
import { pageRooms } from "./page";

type Cleanup = () => void;

/** Follow the room for as long as the model lives here, shown or not. */
export function initialize({ model }: { model: Model }): Cleanup {
  const linked = new LinkedModel(model, pageRooms());
  return () => linked.close();
}

export function render({ model, el }: { model: Model; el: HTMLElement }): Cleanup {
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
