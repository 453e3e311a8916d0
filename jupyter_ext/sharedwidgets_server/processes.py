"""Whether the process behind a kernel lives, as far as this server's kernel manager can know."""

from __future__ import annotations

from typing import Any, Protocol

import psutil
from jupyter_core.utils import ensure_async


class Kernels(Protocol):
    """What is asked of the server's kernel manager."""

    def list_kernel_ids(self) -> list[str]:
        """The kernels there are."""

    def get_kernel(self, kernel_id: str) -> Any:
        """The manager of one; `KeyError` when there is none."""


class Process(Protocol):
    """The process that said hello for a kernel; one started later under the same kernel id is another (H25)."""

    async def alive(self) -> bool:
        """Whether it still runs."""


class Started:
    """The process the server started on this machine.

    Parameters
    ----------
    handle : Popen-like
        The process itself.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def alive(self) -> bool:
        """Whether it still runs."""
        return self._handle.poll() is None


class Descendant:
    """One that the started process has started itself: a kernel behind a shell script, or a child of the kernel.

    Parameters
    ----------
    process : psutil.Process
        It; a later one with the same number is not meant.
    """

    def __init__(self, process: psutil.Process) -> None:
        self._process = process

    async def alive(self) -> bool:
        """Whether it still runs."""
        try:
            return bool(self._process.is_running() and self._process.status() != psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return False


class Elsewhere:
    """One on another machine: what its manager says, until the kernel is started anew, by another provisioner.

    Parameters
    ----------
    kernels : Kernels
        The server's kernel manager.
    kernel_id : str
        A kernel of this server.
    """

    def __init__(self, kernels: Kernels, kernel_id: str) -> None:
        self._kernels = kernels
        self._kernel_id = kernel_id
        self._provisioner = getattr(kernels.get_kernel(kernel_id), "provisioner", None)

    async def alive(self) -> bool:
        """Whether it still runs."""
        try:
            kernel = self._kernels.get_kernel(self._kernel_id)
        except KeyError:
            return False
        return kernel.provisioner is self._provisioner and bool(await ensure_async(kernel.is_alive()))


def process_of(kernels: Kernels, kernel_id: str | None, pid: int) -> Process | None:
    """The process that says it has this id, of a kernel of this server; None when the claim cannot be true."""
    if kernel_id is None:
        return None
    try:
        kernel = kernels.get_kernel(kernel_id)
    except KeyError:
        return None
    handle = getattr(getattr(kernel, "provisioner", None), "process", None)
    if handle is None:
        return Elsewhere(kernels, kernel_id)
    started = getattr(handle, "pid", None)
    return Started(handle) if started == pid else _descendant(pid, started)


def _descendant(pid: int, ancestor: int | None) -> Descendant | None:
    """The process of this number, if the other one has started it."""
    try:
        process = psutil.Process(pid)
        return Descendant(process) if ancestor in [parent.pid for parent in process.parents()] else None
    except (psutil.Error, ValueError, OverflowError):
        return None
