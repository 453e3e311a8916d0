"""Whether the process behind a kernel lives, as far as this server's kernel manager can know."""

from __future__ import annotations

from typing import Any, Protocol

from jupyter_core.utils import ensure_async


class Kernels(Protocol):
    """What is asked of the server's kernel manager."""

    def list_kernel_ids(self) -> list[str]:
        """The kernels there are."""

    def get_kernel(self, kernel_id: str) -> Any:
        """The manager of one; `KeyError` when there is none."""


class Process:
    """The process a kernel had when it said hello; one started later under the same kernel id is another (H25).

    Parameters
    ----------
    kernels : Kernels
        The server's kernel manager.
    kernel_id : str
        A kernel of this server.
    handle : Popen-like or None
        The process itself, where the server started it on this machine.
    """

    def __init__(self, kernels: Kernels, kernel_id: str, handle: Any) -> None:
        self._kernels = kernels
        self._kernel_id = kernel_id
        self._handle = handle

    async def alive(self) -> bool:
        """Whether it still runs."""
        if self._handle is not None:
            return self._handle.poll() is None
        try:
            kernel = self._kernels.get_kernel(self._kernel_id)
        except KeyError:
            return False
        return bool(await ensure_async(kernel.is_alive()))


def process_of(kernels: Kernels, kernel_id: str | None, pid: int) -> Process | None:
    """The process of a kernel that says it has this process id; None when the claim is another's, as a forked child's is."""
    if kernel_id is None:
        return None
    try:
        kernel = kernels.get_kernel(kernel_id)
    except KeyError:
        return None
    handle = getattr(getattr(kernel, "provisioner", None), "process", None)
    if handle is not None and getattr(handle, "pid", None) != pid:
        return None
    return Process(kernels, kernel_id, handle)
