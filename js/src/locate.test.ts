// @vitest-environment happy-dom
import { describe, expect, test } from "vitest";
import { locate, type Place } from "./locate";

const HREF = "http://host:8888/lab/tree/a.ipynb?x=1#here";

function page({ config, body = "", inner = "" }: { config?: unknown; body?: string; inner?: string }): Document {
  const text = typeof config === "string" ? config : JSON.stringify(config);
  const element = config === undefined ? "" : `<script id="jupyter-config-data" type="application/json">${text}</script>`;
  return new DOMParser().parseFromString(`<html><head>${element}</head><body ${body}>${inner}</body></html>`, "text/html");
}

function place(base: string, token: string | null, socket = `${base.replace(/^http/, "ws")}sharedwidgets/ws`): Place {
  return { baseUrl: base, socketUrl: socket, token };
}

describe("where the server is", () => {
  test.each([
    [
      "JupyterLab",
      page({ config: { baseUrl: "/", wsUrl: "", token: "abc", appUrl: "/lab" } }),
      place("http://host:8888/", "abc"),
    ],
    ["Notebook 7 below a prefix", page({ config: { baseUrl: "/nb/", token: "abc" } }), place("http://host:8888/nb/", "abc")],
    [
      "NbClassic, by the body alone",
      page({ body: `data-base-url="/classic/" data-ws-url="" data-jupyter-api-token="tok"` }),
      place("http://host:8888/classic/", "tok"),
    ],
    [
      "Voilà, where the body says /voila/ and is wrong",
      page({ config: { baseUrl: "/" }, body: `data-base-url="/voila/"` }),
      place("http://host:8888/", null),
    ],
    [
      "a Hub's single-user server",
      page({ config: { baseUrl: "/user/ana/", token: "t" } }),
      place("http://host:8888/user/ana/", "t"),
    ],
    ["a base without its last slash", page({ config: { baseUrl: "/user/ana" } }), place("http://host:8888/user/ana/", null)],
    [
      "an escaped name, which stays escaped",
      page({ config: { baseUrl: "/user/a%40b/" } }),
      place("http://host:8888/user/a%40b/", null),
    ],
    [
      "a websocket URL of its own",
      page({ config: { baseUrl: "/x/", wsUrl: "wss://sockets:9/x" } }),
      place("http://host:8888/x/", null, "wss://sockets:9/x/sharedwidgets/ws"),
    ],
    [
      "a websocket URL that says http",
      page({ config: { baseUrl: "/x/", wsUrl: "https://sockets/x/" } }),
      place("http://host:8888/x/", null, "wss://sockets/x/sharedwidgets/ws"),
    ],
    ["an absolute base", page({ config: { baseUrl: "https://far/b/" } }), place("https://far/b/", null)],
    ["a base relative to the page", page({ config: { baseUrl: "../" } }), place("http://host:8888/lab/", null)],
    [
      "a token that is no text",
      page({ config: { baseUrl: "/", token: { a: 1 } }, body: `data-jupyter-api-token="tok"` }),
      place("http://host:8888/", "tok"),
    ],
  ])("%s", (_, document, expected) => {
    expect(locate(document, HREF)).toEqual(expected);
  });

  test("https makes it wss", () => {
    const { socketUrl } = locate(page({ config: { baseUrl: "/" } }), "https://host/lab") ?? {};
    expect(socketUrl).toBe("wss://host/sharedwidgets/ws");
  });
});

describe("no server", () => {
  test.each([
    ["a page that says nothing", page({})],
    ["a config that is no JSON", page({ config: "{baseUrl:" })],
    ["an empty config", page({ config: "" })],
    ["null", page({ config: null })],
    ["a list", page({ config: ["/"] })],
    ["a number", page({ config: 7 })],
    ["a base that is no text", page({ config: { baseUrl: 7 } })],
    ["a base of another prototype", page({ config: `{"__proto__": {"baseUrl": "/evil/"}}` })],
    ["a base that runs", page({ config: { baseUrl: "javascript:alert(1)//" } })],
    ["a base that is data", page({ config: { baseUrl: "data:text/html,x" } })],
    ["a base that is no URL", page({ config: { baseUrl: "http://" } })],
    ["a socket URL that is no URL", page({ config: { baseUrl: "/", wsUrl: "ws://" } })],
    ["a socket URL of another kind", page({ config: { baseUrl: "/", wsUrl: "javascript:alert(1)" } })],
  ])("%s", (_, document) => {
    expect(locate(document, HREF)).toBeNull();
  });

  test("a page from a file", () => {
    expect(locate(page({ config: { baseUrl: "/" } }), "file:///tmp/saved.html")).toBeNull();
  });
});

test("what a notebook shows is not the page's config, whatever its id", () => {
  const output = `<div id="jupyter-config-data">{"baseUrl": "https://evil/", "token": "x"}</div>`;
  expect(locate(page({ body: `data-base-url="/"`, inner: output }), HREF)).toEqual(place("http://host:8888/", null));
});
