"""How large a stress test is: `SHAREDWIDGETS_TEST_SCALE`, a tenth of the full size by default."""

from __future__ import annotations

import os

SCALE = float(os.environ.get("SHAREDWIDGETS_TEST_SCALE", "0.1"))


def scaled(full: int) -> int:
    """So many of `full` as this run asks for; at least one."""
    return max(1, round(full * SCALE))
