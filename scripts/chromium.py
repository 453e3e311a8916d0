"""Make sure a Chromium is there for the browser tests: the system's, by apt-get when we may."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

PACKAGES = ("chromium", "fonts-dejavu-core")


def main() -> None:
    """Install what is missing, or say which line to type."""
    if shutil.which("chromium"):
        return
    line = f"apt-get update && apt-get install -y --no-install-recommends {' '.join(PACKAGES)}"
    if not shutil.which("apt-get") or os.geteuid() != 0:
        sys.exit(f"The browser tests need Chromium on the PATH. Type:\n\n    sudo sh -c '{line}'\n")
    print("installing Chromium; this takes some minutes, once", flush=True)
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], check=True, env=environ)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *PACKAGES], check=True, env=environ)


if __name__ == "__main__":
    main()
