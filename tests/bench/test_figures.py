"""The figures at a small size: each is still measured, and nothing is lost while it is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bench import figures
from sharedwidgets_server.testing import LiveServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    with LiveServer(tmp_path_factory.mktemp("server")) as running:
        yield running


def test_each_change_arrives_in_the_other_kernel(server: LiveServer) -> None:
    measured = figures.kernel_to_kernel(server, 20)
    assert (measured["shared"]["n"], measured["ipywidgets"]["n"]) == (20, 20)


def test_each_change_arrives_at_each_member(server: LiveServer) -> None:
    assert figures.server_cpu_per_delivery(server, 5, 20)["microseconds_per_delivery"] >= 0


def test_one_increment_takes_few_bytes() -> None:
    size = figures.bytes_of_one_increment()
    assert size["up"] < 150
    assert size["down"] < 400


def test_no_round_under_a_lock_is_lost_and_each_kernel_has_its_share(server: LiveServer) -> None:
    measured = figures.locks(server, 2.0)
    assert (measured["alone"]["lost"], measured["four"]["lost"]) == (0, 0)
    # First come first served: nobody is left out, whatever the machine does meanwhile.
    assert min(measured["four"]["shares"]) > 0


def test_no_sum_is_lost(server: LiveServer) -> None:
    measured = figures.increments(server, 1.0)
    assert measured["lost"] == 0
    assert measured["calls"] > 0


def test_each_change_of_what_is_derived_is_told() -> None:
    assert figures.computed_traits(20)["missed"] == 0
