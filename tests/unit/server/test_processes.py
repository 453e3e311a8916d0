"""Which process a kernel's hello is of, and whether it lives: real ones, and what a manager may say of those elsewhere."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from sharedwidgets_server.processes import Process, process_of

pytestmark = pytest.mark.asyncio

# Says its number, and lives until it is told to go.
CHILD = "import os, sys; print(os.getpid(), flush=True); sys.stdin.read()"


class Kernels:
    """A kernel manager with one kernel, as Jupyter's looks from outside."""

    def __init__(self, process: Any, alive: bool = True) -> None:
        self.kernel = SimpleNamespace(provisioner=SimpleNamespace(process=process), is_alive=lambda: alive)
        self.kernels = {"k": self.kernel}

    def list_kernel_ids(self) -> list[str]:
        return [*self.kernels]

    def get_kernel(self, kernel_id: str) -> Any:
        return self.kernels[kernel_id]


@pytest.fixture
def script() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A shell script that starts a kernel and goes on behind it, and the number of the kernel's process."""
    command = ["sh", "-c", f"'{sys.executable}' -c '{CHILD}'; cat >/dev/null; exit 1"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


def found(kernels: Kernels, pid: int) -> Process:
    process = process_of(kernels, "k", pid)
    assert process is not None
    return process


async def test_the_process_the_server_started(script: tuple[subprocess.Popen[str], int]) -> None:
    process, _ = script
    kernel = found(Kernels(process), process.pid)
    assert await kernel.alive()
    process.kill()
    process.wait()
    assert not await kernel.alive()


async def test_a_kernel_behind_a_shell_script_is_dead_when_it_is_and_not_when_the_script_is(
    script: tuple[subprocess.Popen[str], int],
) -> None:
    process, pid = script
    kernel = found(Kernels(process), pid)
    assert await kernel.alive()
    os.kill(pid, 9)
    # Nobody may have waited for it yet: its entry in the table of processes is no life.
    deadline = time.monotonic() + 5
    while await kernel.alive():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.001)
    assert process.poll() is None


@pytest.mark.parametrize("pid", [1, 0, 2**31 - 1, 2**53 - 1])
async def test_nobody_is_taken_for_a_process_that_the_server_did_not_start(
    script: tuple[subprocess.Popen[str], int], pid: int
) -> None:
    assert process_of(Kernels(script[0]), "k", pid) is None
    assert process_of(Kernels(script[0]), "k", os.getpid()) is None


async def test_no_kernel_and_an_unknown_one() -> None:
    assert process_of(Kernels(None), None, 7) is None
    assert process_of(Kernels(None), "another", 7) is None


async def test_h25_a_kernel_elsewhere_that_was_started_anew_is_another_process() -> None:
    """Its id is alive again, and only the provisioner is another."""
    kernels = Kernels(None)
    before = found(kernels, 7)
    assert await before.alive()
    kernels.kernel.provisioner = SimpleNamespace(process=None)
    assert not await before.alive()
    assert await found(kernels, 8).alive()
    kernels.kernels.clear()
    assert not await before.alive()


async def test_a_kernel_elsewhere_is_as_alive_as_its_manager_says() -> None:
    assert not await found(Kernels(None, alive=False), 7).alive()
