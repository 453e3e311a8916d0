"""Run the unit tests on each Python from 3.10 to 3.13 that this machine has; one small environment each."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

VERSIONS = ("3.10", "3.11", "3.12", "3.13")
ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pytest", "pytest-timeout", "pytest-asyncio", "hypothesis", "numpy")


def interpreter(version: str) -> str | None:
    """A Python of this version: on the PATH, or among pyenv's."""
    candidates = [shutil.which(f"python{version}")]
    pyenv = shutil.which("pyenv")
    if pyenv:
        root = subprocess.run([pyenv, "root"], capture_output=True, text=True, check=True).stdout.strip()
        candidates += [str(path) for path in sorted(Path(root, "versions").glob(f"{version}.*/bin/python"))]
    for candidate in filter(None, candidates):
        answer = subprocess.run([candidate, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], capture_output=True)
        if answer.stdout.decode().strip() == version:
            return candidate
    return None


def main(verb: str) -> None:
    """``setup`` makes the environments, ``test`` runs the unit tests in each."""
    present = {version: found for version in VERSIONS if (found := interpreter(version))}
    print("unit tests on Python", ", ".join(present), flush=True)
    for version, python in present.items():
        venv = ROOT / f".venv-{version}"
        if verb == "setup":
            if not venv.exists():
                subprocess.run([python, "-m", "venv", str(venv)], check=True)
            pip = [str(venv / "bin/python"), "-m", "pip", "install", "--quiet"]
            subprocess.run([*pip, "--upgrade", "pip"], check=True)
            subprocess.run([*pip, *PACKAGES, "--editable", str(ROOT)], check=True)
        else:
            print(f"--- Python {version}", flush=True)
            subprocess.run([str(venv / "bin/python"), "-m", "pytest", "-q", "tests/unit"], cwd=ROOT, check=True)


if __name__ == "__main__":
    main(sys.argv[1])
