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
  const base = config.baseUrl ?? document.body?.dataset.baseUrl;
  if (base === undefined) return null;
  const baseUrl = withSlash(new URL(base, href)).href;
  const token = config.token ?? document.body?.dataset.jupyterApiToken ?? "";
  const wsBase = config.wsUrl ? withSlash(new URL(config.wsUrl, href)) : new URL(baseUrl);
  const socket = new URL("sharedwidgets/ws", wsBase);
  if (socket.protocol === "http:") socket.protocol = "ws:";
  if (socket.protocol === "https:") socket.protocol = "wss:";
  return { baseUrl, socketUrl: socket.href, token: token || null };
}

function configOf(document: Document): Record<string, string> {
  try {
    const parsed: unknown = JSON.parse(document.getElementById("jupyter-config-data")?.textContent ?? "{}");
    const entries = typeof parsed === "object" && parsed !== null ? Object.entries(parsed) : [];
    return Object.fromEntries(entries.filter((entry): entry is [string, string] => typeof entry[1] === "string"));
  } catch {
    return {};
  }
}

function withSlash(url: URL): URL {
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url;
}
