// What every widget model carries: it loads the page module from the server, under the hash of its content, and where no
// server has it, asks the kernel for it. Nothing waits: anywidget gives up on a model after two seconds.
let loaded;
async function served() {
  // A script element: an output of the notebook may have any id, and must not say where code comes from.
  const config = document.querySelector("script#jupyter-config-data");
  const base = (config ? JSON.parse(config.textContent).baseUrl : document.body.dataset.baseUrl) || "/";
  return import(new URL(`${base}static/sharedwidgets/__FILE__`, location.href));
}
function load(model) {
  loaded ??= served().catch(
    () =>
      new Promise((resolve) => {
        model.on("msg:custom", (content) => {
          const text = content?.sharedwidgets_module;
          if (text) resolve(import(URL.createObjectURL(new Blob([text], { type: "text/javascript" }))));
        });
        model.send({ sharedwidgets: "module" });
      }),
  );
  return loaded;
}
function run(name, context) {
  let end;
  let over = false;
  load(context.model).then((page) => {
    if (!over) end = page[name](context);
  });
  return () => {
    over = true;
    end?.();
  };
}
export default {
  initialize: (context) => run(context.model.get("_binding") ? "initializeBinding" : "initialize", context),
  render: (context) => run("render", context),
};
