"""Break the house on purpose: apply each patch of tests/mutants to a copy of the tree and see that its tests fail.

The first line of a patch names what must catch it: ``caught by: tests/unit/core/test_room.py -k mark`` (pytest arguments), or
``caught by: vitest src/model.test.ts``. Exit status 1 when a mutant survives, or when the tests fail on the sound tree.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = ROOT / "tests" / "mutants"
COPIED = (
    "sharedwidgets",
    "jupyter_ext",
    "tests",
    "scripts",
    "notebooks",
    "js/src",
    "js/test",
    "js/package.json",
    "js/vitest.config.ts",
)
COPIED_FILES = ("pyproject.toml", "README.md", "PROTOCOL.md", "ERRORS.md", "CONTRIBUTING.md", "js/tsconfig.json")
# What pytest and vitest return when tests ran and some failed.
FAILED = 1


def copy_of_tree(folder: Path) -> None:
    """Everything the tests read; environments and node's packages are borrowed by links, the code comes first on the path."""
    for name in (*COPIED, *COPIED_FILES):
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "mutants"))
        elif source.exists():
            shutil.copy(source, target)
    for borrowed in ("js/node_modules", ".venv", ".venv-ipykernel6"):
        (folder / borrowed).symlink_to(ROOT / borrowed)


def run_tests(folder: Path, wanted: str) -> subprocess.CompletedProcess[str]:
    """Run what a patch names, on the copy."""
    words = wanted.split()
    environ = {**os.environ, "PYTHONPATH": f"{folder}:{folder / 'jupyter_ext'}", "PYTHONDONTWRITEBYTECODE": "1"}
    if words[0] == "vitest":
        command, where = ["npx", "vitest", "run", *words[1:]], folder / "js"
    else:
        command, where = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *words], folder
    return subprocess.run(command, cwd=where, env=environ, capture_output=True, text=True, check=False)


def main() -> None:
    """Go through the patches, and print a line for each."""
    patches = sorted(MUTANTS.glob("*.patch"))
    chosen = sys.argv[1:]
    survivors: list[str] = []
    for patch in patches:
        if chosen and patch.stem not in chosen:
            continue
        wanted = patch.read_text().splitlines()[0].removeprefix("caught by: ")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            copy_of_tree(folder)
            began = time.monotonic()
            sound = run_tests(folder, wanted)
            subprocess.run(["patch", "-p1", "--quiet", "-i", str(patch)], cwd=folder, check=True)
            broken = run_tests(folder, wanted)
        caught = sound.returncode == 0 and broken.returncode == FAILED
        verdict = "caught" if caught else "SURVIVED" if sound.returncode == 0 else "its tests fail on the sound tree"
        print(f"{patch.stem:<32} {verdict:<10} {time.monotonic() - began:5.1f} s   {wanted}", flush=True)
        if not caught:
            survivors.append(patch.stem)
            print((sound if sound.returncode else broken).stdout[-2000:], flush=True)
    if survivors:
        sys.exit(f"not caught: {', '.join(survivors)}")


if __name__ == "__main__":
    main()
