// Where the page's Jupyter server is, and what proves who the page is when its cookie does not.

export interface Place {
  /** Base URL of the server, absolute, with a slash at the end. */
  readonly baseUrl: string;
  /** The websocket of the rooms. */
  readonly socketUrl: string;
  /** Jupyter's own page token, used only after the cookie failed. */
  readonly token: string | null;
}

/** The server of this page: JupyterLab, Notebook and Voilà say it in a config element, NbClassic on the body. */
export function locate(document: Document, href: string): Place | null {
  const config = configOf(document);
  const base = folder(config.baseUrl ?? document.body?.dataset.baseUrl, href);
  const socketBase = folder(config.wsUrl || base?.href, href);
  if (base === null || socketBase === null) return null;
  const token = config.token ?? document.body?.dataset.jupyterApiToken ?? "";
  const socket = new URL("sharedwidgets/ws", socketBase);
  if (socket.protocol === "http:") socket.protocol = "ws:";
  if (socket.protocol === "https:") socket.protocol = "wss:";
  return { baseUrl: base.href, socketUrl: socket.href, token: token || null };
}

function configOf(document: Document): Record<string, string> {
  try {
    // A script element: outputs of a notebook may hold any other kind, with any id, also where nobody trusts them.
    const element = document.querySelector("script#jupyter-config-data");
    const parsed: unknown = JSON.parse(element?.textContent ?? "{}");
    const entries = typeof parsed === "object" && parsed !== null ? Object.entries(parsed) : [];
    return Object.fromEntries(entries.filter((entry): entry is [string, string] => typeof entry[1] === "string"));
  } catch {
    return {};
  }
}

/** A URL with a slash at its end; null for what no server can be at. */
function folder(text: string | undefined, href: string): URL | null {
  if (text === undefined) return null;
  try {
    const url = new URL(text, href);
    if (!url.pathname.endsWith("/")) url.pathname += "/";
    return /^(http|ws)s?:$/.test(url.protocol) ? url : null;
  } catch {
    return null;
  }
}
