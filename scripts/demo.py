"""Open JupyterLab with two notebooks side by side that share one live state, already run; prints the URL.

Everything it makes is under one private folder: config, data, settings, workspace and copies of the notebooks.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.blocking.client import BlockingKernelClient
from nbformat.sign import NotebookNotary

ROOT = Path(__file__).resolve().parent.parent
WORKSPACE = "demo"
START_SECONDS = 60.0
CELL_SECONDS = 60.0


class Demo:
    """A private JupyterLab with notebooks side by side.

    Parameters
    ----------
    folder : Path
        Where everything is kept; emptied first.
    notebooks : dict of str to Path
        Name in the demo → notebook to copy, left to right.
    """

    def __init__(self, folder: Path, notebooks: dict[str, Path]) -> None:
        self.folder = folder
        self.names = list(notebooks)
        self.token = secrets.token_hex(16)
        shutil.rmtree(folder, ignore_errors=True)
        private = {name: folder / name for name in ("workspaces", "settings", "data", "config", "runtime", "root")}
        for path in private.values():
            path.mkdir(mode=0o700, parents=True)
        self.root = private["root"]
        self.runtime = private["runtime"]
        self.environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("JUPYTER", "JPY_", "SHAREDWIDGETS"))},
            "JUPYTERLAB_WORKSPACES_DIR": str(private["workspaces"]),
            "JUPYTERLAB_SETTINGS_DIR": str(private["settings"]),
            "JUPYTER_DATA_DIR": str(private["data"]),
            "JUPYTER_CONFIG_DIR": str(private["config"]),
            "JUPYTER_RUNTIME_DIR": str(private["runtime"]),
        }
        for name, path in notebooks.items():
            shutil.copy(path, self.root / name)
        # A toast about news would lie over the notebooks.
        apputils = private["settings"] / "@jupyterlab" / "apputils-extension"
        apputils.mkdir(parents=True)
        (apputils / "notification.jupyterlab-settings").write_text('{"fetchNews": "false"}')
        self.server: subprocess.Popen[bytes] | None = None
        self.base = ""

    @property
    def url(self) -> str:
        """The page to open."""
        return f"{self.base}lab/workspaces/{WORKSPACE}?token={self.token}"

    def start(self, *arguments: str) -> None:
        """Start the server and wait until it answers."""
        root = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        command = [sys.executable, "-m", "jupyterlab", "--no-browser"]
        command += [f"--IdentityProvider.token={self.token}", f"--ServerApp.root_dir={self.root}"]
        with (self.folder / "server.log").open("wb") as log:
            self.server = subprocess.Popen(
                [*command, *root, *arguments], env=self.environ, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + START_SECONDS
        while not self.base:
            if self.server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server did not start; see {self.folder / 'server.log'}")
            for path in self.runtime.glob("jpserver-*.json"):
                facts = json.loads(path.read_text() or "{}")
                if facts.get("pid") == self.server.pid and self._answers(facts["url"]):
                    self.base = facts["url"]
            time.sleep(0.05)
        if self.names:
            self.arrange(WORKSPACE, self.names)

    def arrange(self, workspace: str, names: list[str]) -> None:
        """Lay a workspace out: these notebooks side by side, nothing else."""
        self.ask("PUT", f"lab/api/workspaces/{workspace}", **_layout(workspace, names))

    def run_notebooks(self) -> None:
        """Start a kernel for each notebook, run every cell, and write the outputs into the notebook."""
        kernels = {name: self.start_kernel(name) for name in self.names}
        for name, kernel_id in kernels.items():
            self.run(name, kernel_id)

    def start_kernel(self, name: str) -> str:
        """Start the kernel of a notebook; its id."""
        session = self.ask("POST", "api/sessions", path=name, name=name, type="notebook", kernel={"name": "python3"})
        return str(session["kernel"]["id"])

    def ask(self, method: str, where: str, **body: Any) -> Any:
        """A REST call to the server."""
        request = urllib.request.Request(
            self.base + where,
            method=method,
            data=json.dumps(body).encode() if body else None,
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def stop(self) -> None:
        """Stop the server and its kernels."""
        if self.server is not None and self.server.poll() is None:
            self.server.send_signal(signal.SIGTERM)
            try:
                self.server.wait(10)
            except subprocess.TimeoutExpired:
                self.server.kill()
                self.server.wait()

    def run(self, name: str, kernel_id: str) -> None:
        """Run every cell of a notebook but those tagged ``by-hand``, and write the outputs into it."""
        path = self.root / name
        client = BlockingKernelClient(connection_file=str(self.runtime / f"kernel-{kernel_id}.json"))
        client.load_connection_file()
        # Without heartbeats: on a loaded machine a late one would be taken for the kernel's death.
        client.start_channels(hb=False)
        client.wait_for_ready(timeout=START_SECONDS)
        notebook = nbformat.read(path, as_version=4)
        cells = [cell for cell in notebook.cells if cell.cell_type == "code" and "by-hand" not in cell.metadata.get("tags", ())]
        for count, cell in enumerate(cells, 1):
            outputs: list[Any] = []
            answer = client.execute_interactive(
                cell.source, timeout=CELL_SECONDS, output_hook=lambda message, outputs=outputs: _collect(outputs, message)
            )
            if answer["content"]["status"] != "ok":
                raise SystemExit(f"{path.name}: {answer['content']}")
            cell.outputs, cell.execution_count = outputs, count
        client.stop_channels()
        nbformat.write(notebook, path)
        # Signed under the same data directory, or Lab shows widgets as text.
        notary = NotebookNotary(data_dir=self.environ["JUPYTER_DATA_DIR"])
        notary.sign(notebook)
        notary.store.close()

    def _answers(self, url: str) -> bool:
        request = urllib.request.Request(url + "api/status", headers={"Authorization": f"token {self.token}"})
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _collect(outputs: list[Any], message: dict[str, Any]) -> None:
    if message["msg_type"] in ("stream", "display_data", "execute_result", "error"):
        outputs.append(nbformat.v4.output_from_msg(message))


def _layout(workspace: str, names: list[str]) -> dict[str, Any]:
    tabs = [{"type": "tab-area", "currentIndex": 0, "widgets": [f"notebook:{name}"]} for name in names]
    dock = {"type": "split-area", "orientation": "horizontal", "sizes": [1 / len(names)] * len(names), "children": tabs}
    side = {"collapsed": True, "visible": True, "widgets": [], "widgetStates": {}}
    data: dict[str, Any] = {
        "layout-restorer:data": {
            "main": {"dock": dock, "current": f"notebook:{names[0]}"},
            "down": {"size": 0, "widgets": []},
            "left": {**side, "widgets": ["filebrowser"]},
            "right": side,
            "relativeSizes": [0, 1, 0],
            "top": {"simpleVisibility": True},
        }
    }
    for name in names:
        data[f"notebook:{name}"] = {"data": {"path": name, "factory": "Notebook"}}
    return {"data": data, "metadata": {"id": workspace}}


def main() -> None:
    """Start the demo and keep it running until it is interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / ".demo")
    parser.add_argument("--port", default="8888", help="first port to try")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    options = parser.parse_args()
    notebook = ROOT / "notebooks" / "02_two_notebooks.ipynb"
    demo = Demo(options.folder, {"A.ipynb": notebook, "B.ipynb": notebook})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    try:
        demo.start(f"--port={options.port}")
        demo.run_notebooks()
        print(f"\n    {demo.url}\n\nMove a slider: the other notebook follows. Ctrl-C stops the demo.", flush=True)
        if options.open:
            import webbrowser

            webbrowser.open(demo.url)
        assert demo.server is not None
        demo.server.wait()
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        demo.stop()


if __name__ == "__main__":
    main()
