"""Real kernels, started by a real server and driven as a notebook would."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from jupyter_client.blocking.client import BlockingKernelClient
from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from sharedwidgets_server.testing import LiveServer

Message = dict[str, Any]

ROOT = Path(__file__).resolve().parents[2]
# The newest ipykernel, and the oldest we promise to work with.
PYTHONS = {"newest": Path(sys.executable), "oldest": ROOT / ".venv-ipykernel6" / "bin" / "python"}


def specs(server: LiveServer) -> None:
    """Give a server both kinds of kernels."""
    for name, python in PYTHONS.items():
        assert python.exists(), f"{python} is missing: run `make setup`"
        folder = server.data / "kernels" / name
        folder.mkdir(parents=True, exist_ok=True)
        argv = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (folder / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": name, "language": "python"}))


class Kernel:
    """One kernel of a server.

    Parameters
    ----------
    server : LiveServer
        Starts it by REST, so that it gets the environment the extension gives.
    name : str
        The kernelspec.
    """

    def __init__(self, server: LiveServer, name: str = "python3") -> None:
        self.server = server
        self.id: str = server.ask("POST", "api/kernels", {"name": name})["id"]
        self.client = BlockingKernelClient(connection_file=str(server.runtime / f"kernel-{self.id}.json"))
        self.client.load_connection_file()
        # Without heartbeats: on a loaded machine a kernel that is starting would be taken for dead.
        self.client.start_channels(hb=False)
        self.client.wait_for_ready(timeout=30)

    def run(self, code: str, timeout: float = 30.0) -> str:
        """Run a cell to its end; what it printed. Raises `AssertionError` with the traceback when it failed."""
        printed: list[str] = []
        answer = self.client.execute_interactive(code, timeout=timeout, output_hook=lambda message: _print(printed, message))
        content = answer["content"]
        assert content["status"] == "ok", "\n".join(content.get("traceback", [str(content)]))
        return "".join(printed)

    def start(self, code: str) -> str:
        """Begin a cell and do not wait; its message id."""
        # Whatever becomes of it, the cells behind it are run.
        return str(self.client.execute(code, stop_on_error=False))

    def run_cell(self, cell: str, code: str) -> None:
        """Run a cell to its end under an id of its own, as JupyterLab does."""
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        request = self.client.session.msg("execute_request", content, metadata={"cellId": cell})
        self.client.shell_channel.send(request)
        self.finish(request["header"]["msg_id"])

    def finish(self, message_id: str, timeout: float = 60.0) -> None:
        """Wait for the end of a cell that was begun."""
        content = self._reply(message_id, timeout)
        assert content["status"] == "ok", "\n".join(content.get("traceback", []))

    def value(self, expression: str) -> Any:
        """What an expression is in the kernel; through JSON."""
        # Its reply says all there is. Whether the kernel is idle again is told on another channel, where what was told while
        # nobody had subscribed, as after a restart, or under another request, as with subshells, never comes.
        reply: Any = {"status": "aborted"}
        while reply["status"] == "aborted":
            # A kernel runs nothing of what it finds in its queue when a cell has failed, and says so.
            asked = self.client.execute(
                "import json as _json",
                store_history=False,
                stop_on_error=False,
                user_expressions={"value": f"__import__('json').dumps({expression})"},
            )
            reply = self._reply(str(asked), 30.0)
        told = reply["user_expressions"]["value"]
        while self.client.iopub_channel.msg_ready():
            self.client.get_iopub_msg(timeout=0)
        assert told["status"] == "ok", told
        text: str = told["data"]["text/plain"]
        return json.loads(_unquoted(text))

    def _reply(self, message_id: str, timeout: float) -> Any:
        while True:
            answer = self.client.get_shell_msg(timeout=timeout)
            if answer["parent_header"].get("msg_id") == message_id:
                return answer["content"]

    @contextmanager
    def listening(self, hear: Callable[[Message], None]) -> Iterator[None]:
        """Hear everything a page of this kernel would, over the server's websocket."""
        ready, over = threading.Event(), threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(self._listen(hear, ready, over)), daemon=True)
        thread.start()
        assert ready.wait(10)
        try:
            yield
        finally:
            over.set()
            thread.join(10)

    def stop(self) -> None:
        """Shut the kernel down."""
        self.client.stop_channels()
        self.server.ask("DELETE", f"api/kernels/{self.id}")

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.stop()

    async def _listen(self, hear: Callable[[Message], None], ready: threading.Event, over: threading.Event) -> None:
        url = self.server.url.replace("http", "ws", 1) + f"api/kernels/{self.id}/channels"
        socket: WebSocketClientConnection = await websocket_connect(HTTPRequest(url, headers=self.server.headers))
        # The server subscribes to what the kernel says after it has opened the socket, and only what comes shows that it has.
        # A busy kernel answers this too.
        asked = self.client.session.msg("kernel_info_request", {})
        await socket.write_message(json.dumps({**asked, "channel": "control"}, default=str))
        while not over.is_set():
            try:
                frame = await asyncio.wait_for(socket.read_message(), 0.05)
            except (asyncio.TimeoutError, TimeoutError):
                continue
            if frame is None:
                return
            if isinstance(frame, str):
                message = json.loads(frame)
                if message["channel"] == "iopub":
                    ready.set()
                hear(message)
        socket.close()
        while await socket.read_message() is not None:
            pass


def _print(printed: list[str], message: Message) -> None:
    if message["msg_type"] == "stream":
        printed.append(message["content"]["text"])


def _unquoted(text: str) -> str:
    import ast

    return str(ast.literal_eval(text))
