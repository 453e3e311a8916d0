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
    rounds = [(kind, place, found) for kind, places in measured.items() for place, found in places.items()]
    assert [(kind, place, len(found["shares"]), found["lost"]) for kind, place, found in rounds] == [
        ("acquire and release", "alone", 1, 0),
        ("acquire and release", "four", 4, 0),
        ("with c.count += 1", "alone", 1, 0),
        ("with c.count += 1", "four", 4, 0),
    ]
    for _, _, found in rounds:
        # First come first served: nobody is left out, whatever the machine does meanwhile.
        assert min(found["shares"]) > 0
        assert 0 < found["p50_ms"] <= found["p99_ms"]


def test_a_figure_that_is_none_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        figures.main(["--only", "nonsense"])
    assert ended.value.code == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "'locks'" in told.err


def test_one_figure_by_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    figures.main(["--only", "bytes of one increment"])
    assert capsys.readouterr().out.startswith('bytes of one increment {\n "up": ')


def test_no_sum_is_lost(server: LiveServer) -> None:
    measured = figures.increments(server, 1.0)
    assert measured["lost"] == 0
    assert measured["calls"] > 0


def test_each_change_of_what_is_derived_is_told() -> None:
    assert figures.computed_traits(20)["missed"] == 0
