"""Profiles for Hypothesis and the size of stress tests; both follow `SHAREDWIDGETS_TEST_SCALE`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from support.scale import SCALE, scaled

# Below the full size the examples are the same in each run: a change is red for what it changed.
settings.register_profile(
    "sharedwidgets",
    max_examples=scaled(2000),
    deadline=None,
    derandomize=SCALE < 1,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("sharedwidgets")
