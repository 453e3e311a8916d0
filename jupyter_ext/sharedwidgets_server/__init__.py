"""The Jupyter server extension of sharedwidgets: rooms, links and presence. This file is the extension point, nothing else."""

from typing import Any


def _jupyter_server_extension_points() -> list[dict[str, Any]]:
    from sharedwidgets_server.app import SharedWidgetsApp

    return [{"module": "sharedwidgets_server", "app": SharedWidgetsApp}]
