"""What a user installs: a wheel and an sdist that carry the page module, enable the extension, and leave nothing behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, **environ: str) -> str:
    # From elsewhere, or the checkout itself would be what is imported.
    answer = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False, cwd="/", env={**os.environ, **environ}
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT)
    return out


@pytest.fixture(scope="module")
def page() -> str:
    return str(json.loads((ROOT / "sharedwidgets/static/bundle.json").read_text())["file"])


def test_the_wheel_carries_the_page_module_and_enables_the_extension(built: Path, page: str) -> None:
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = wheel.namelist()
    assert f"sharedwidgets/static/{page}" in names
    assert {"sharedwidgets/static/stub.js", "sharedwidgets/static/bundle.json", "sharedwidgets/py.typed"} <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name and ".data" not in name} == {
        "sharedwidgets",
        "sharedwidgets_server",
    }
    assert any(name.endswith("etc/jupyter/jupyter_server_config.d/sharedwidgets.json") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_carries_the_page_module_and_no_heavy_folders(built: Path, page: str) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = ["/".join(name.split("/")[1:]) for name in sdist.getnames()]
    assert f"sharedwidgets/static/{page}" in names
    assert not [name for name in names if "node_modules" in name or name.startswith((".venv", ".make", ".demo"))]


def test_an_sdist_installs_without_node_and_uninstall_leaves_nothing(built: Path, tmp_path: Path) -> None:
    """Dependencies come from this environment: what is tested is the package, not the registry."""
    venv = tmp_path / "venv"
    run(sys.executable, "-m", "venv", venv)
    site = next((venv / "lib").glob("python*/site-packages"))
    ours = next(path for path in map(Path, sys.path) if path.name == "site-packages")
    (site / "borrowed.pth").write_text(f"{ours}\n")
    before = {path for path in venv.rglob("*") if "__pycache__" not in path.parts}
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "env"):
        (tools / name).symlink_to(str(shutil.which(name)))
    bare = f"{venv / 'bin'}:{tools}"
    assert shutil.which("node", path=bare) is None
    assert shutil.which("npm", path=bare) is None
    pip = (venv / "bin/python", "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-build-isolation", "--ignore-installed", next(built.glob("*.tar.gz")), PATH=bare)
    where = run(venv / "bin/python", "-c", "import sharedwidgets; print(sharedwidgets.__file__)").strip()
    assert where.startswith(str(site))
    listed = run(venv / "bin/python", "-m", "jupyter_server", "extension", "list", PATH=bare)
    assert "sharedwidgets_server" in listed
    assert "OK" in listed.split("Validating sharedwidgets_server")[1].split("\n")[1]
    run(*pip, "uninstall", "--yes", "sharedwidgets", PATH=bare)
    after = {path for path in venv.rglob("*") if "__pycache__" not in path.parts}
    assert not [path for path in after - before if path.is_file()]


def test_what_was_set_up_is_not_set_up_again() -> None:
    """The second `make` of the day costs seconds."""
    asked = subprocess.run(["make", "--question", "setup"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert asked.returncode == 0, asked.stdout + asked.stderr
