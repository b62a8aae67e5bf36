"""What renders and fetches cost is measured, smoothed, and never nothing."""

from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfs.cache.costs import MeasuredCosts

SECONDS = st.floats(0.0, 1e4)


def test_something_is_taken_for_what_was_not_measured_yet() -> None:
    costs = MeasuredCosts()
    assert 0 < costs.fetch_s < 2.0 ** costs.render_log2_s("any")
    assert costs.fetch_log2_s == log2(costs.fetch_s)
    assert costs.render_s() == {}


def test_the_first_measurement_is_taken_as_it_is() -> None:
    costs = MeasuredCosts()
    costs.fetched(0.25)
    costs.rendered("vae", 3.0, weight=2.0)
    assert costs.fetch_s == 0.25
    assert costs.fetch_log2_s == -2.0
    assert costs.render_s() == {"vae": 1.5}
    assert costs.render_log2_s("vae") == log2(1.5)


def test_a_change_is_followed_within_a_hundred_measurements() -> None:
    costs = MeasuredCosts()
    for cost_s in (0.001, 0.1, 0.001):
        for _ in range(100):
            costs.fetched(cost_s)
            costs.rendered("vae", cost_s, weight=1.0)
        assert costs.fetch_s == pytest.approx(cost_s, rel=0.25)
        assert costs.render_s()["vae"] == pytest.approx(cost_s, rel=0.25)


def test_one_that_was_held_up_counts_little() -> None:
    costs = MeasuredCosts()
    costs.fetched(0.01)
    costs.fetched(60.0)
    assert 0.01 < costs.fetch_s < 0.015


def test_kinds_are_measured_apart_and_an_unknown_one_costs_what_they_do_on_average() -> None:
    costs = MeasuredCosts()
    costs.rendered("fast", 0.01, weight=1.0)
    costs.rendered("slow", 0.03, weight=1.0)
    assert costs.render_s() == {"fast": 0.01, "slow": 0.03}
    assert 2.0 ** costs.render_log2_s("unknown") == pytest.approx(0.02)


def test_what_it_tells_is_a_copy() -> None:
    costs = MeasuredCosts()
    costs.rendered("vae", 1.0, weight=1.0)
    costs.render_s().clear()
    assert costs.render_s() == {"vae": 1.0}


@given(st.lists(SECONDS, min_size=1), st.floats(1e-3, 1e3))
def test_costs_stay_above_nothing_and_within_what_was_measured(
    measured_s: list[float], weight: float
) -> None:
    costs = MeasuredCosts()
    for elapsed_s in measured_s:
        costs.fetched(elapsed_s)
        costs.rendered("vae", elapsed_s, weight=weight)
    most_s = max(1e-6, *measured_s)
    assert 0.99e-6 <= costs.fetch_s <= most_s * 1.01
    assert 0.99e-6 <= costs.render_s()["vae"] <= max(1e-6, max(measured_s) / weight) * 1.01
    assert 2.0**costs.fetch_log2_s == pytest.approx(costs.fetch_s)
