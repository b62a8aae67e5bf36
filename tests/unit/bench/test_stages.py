"""What a read's stages add up to, and their figures over many reads."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfs.bench.stages import STAGES, percentile, read_stages, stage_figures

seconds = st.floats(0.0, 1e3)


def test_what_the_daemon_does_not_tell_is_the_reply_and_the_rest() -> None:
    stages_s = read_stages({"fetch": 0.25, "decode": 1.0}, total_s=1.5, read_s=2.0)
    assert stages_s == {"fetch": 0.25, "decode": 1.0, "other": 0.25, "reply": 0.5}


@given(st.dictionaries(st.sampled_from(STAGES[:-2]), seconds), seconds, seconds)
def test_the_stages_of_a_read_add_up_to_it(
    stages_s: dict[str, float], total_s: float, read_s: float
) -> None:
    assert sum(read_stages(stages_s, total_s=total_s, read_s=read_s).values()) == pytest.approx(
        read_s, abs=1e-6
    )


def test_figures_of_stages_are_in_the_order_they_run() -> None:
    reads = [
        {"reply": 1.0, "decode": 3.0, "fetch": 0.0, "invented": 0.0},
        {"reply": 2.0, "decode": 4.0, "fetch": 0.0},
    ]
    figures = stage_figures(reads)
    assert list(figures) == ["fetch", "decode", "reply", "invented", "total"]
    assert (figures["decode"].median_s, figures["decode"].p95_s) == (3.5, 4.0)
    assert (figures["total"].median_s, figures["total"].share) == (5.0, 1.0)
    assert figures["reply"].share == pytest.approx(0.3)


def test_without_a_read_there_are_no_figures() -> None:
    assert stage_figures([]) == {}


@given(st.lists(seconds, min_size=1), st.integers(1, 100))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(
    values: list[float], percent: int
) -> None:
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) * 100 >= len(values) * percent
    assert sum(value < found for value in values) * 100 < len(values) * percent


@pytest.mark.parametrize("count", [1000, 41_000, 164_000])
def test_one_in_a_thousand_lies_above_the_highest_percentile(count: int) -> None:
    assert percentile(range(1, count + 1), 99.9) == count - count // 1000
