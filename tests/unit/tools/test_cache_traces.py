"""The traces have the properties that their docstrings claim, and are the same on every draw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from cachesim.trace import LATENT_RANGE_BYTES, PIXEL_RANGE_BYTES, Floats, Ints
from cachesim.traces import (
    Trace,
    ageing,
    all_traces,
    crawler,
    diurnal,
    flash_crowd,
    galleries,
    midway,
    mixed,
    shifting,
    zipf,
)

from latentfs.errors import InvalidArgumentError

REQUESTS = 20_000
PICTURES = 2_000
NAMES = [
    "zipf-0.6",
    "zipf-0.8",
    "zipf-1.0",
    "zipf-1.2",
    "ageing",
    "shifting",
    "diurnal",
    "galleries",
    "crawler",
    "flash-crowd",
    "mixed",
    "midway",
]


def small(seed: int = 0) -> dict[str, Callable[[], Trace]]:
    return all_traces(REQUESTS, PICTURES, seed=seed)


def counts(objects: Ints) -> Ints:
    return np.bincount(objects, minlength=PICTURES)


def share_of_most_read(objects: Ints, pictures: int) -> float:
    return float(np.sort(counts(objects))[::-1][:pictures].sum() / len(objects))


def test_all_traces_come_by_name_in_one_order() -> None:
    traces = small()
    assert list(traces) == NAMES
    assert [draw().name for draw in traces.values()] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_gives_the_same_arrays_and_another_one_does_not(name: str) -> None:
    one, again, other = small()[name](), small()[name](), small(seed=1)[name]()
    for each in fields(Trace):
        value = getattr(one, each.name)
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(value, getattr(again, each.name))
        else:
            assert value == getattr(again, each.name)
    assert not np.array_equal(one.objects, other.objects)
    assert not np.array_equal(one.times_s, other.times_s)
    assert not np.array_equal(one.pixel_bytes, other.pixel_bytes)


@pytest.mark.parametrize("name", NAMES)
def test_a_trace_has_the_size_asked_for_and_requests_in_order(name: str) -> None:
    trace = small()[name]()
    assert (trace.requests, trace.pictures) == (REQUESTS, PICTURES)
    assert trace.times_s.dtype == trace.render_weights.dtype == np.float64
    integers = (trace.objects, trace.pixel_bytes, trace.latent_bytes, trace.kinds)
    assert {array.dtype for array in integers} == {np.dtype(np.int64)}
    assert trace.times_s[0] >= 0
    assert (np.diff(trace.times_s) >= 0).all()
    assert trace.total_pixel_bytes == sum(trace.pixel_bytes.tolist())


@pytest.mark.parametrize("name", [name for name in NAMES if name != "mixed"])
def test_traces_of_one_seed_show_the_same_collection(name: str) -> None:
    one, other = small()["zipf-0.6"](), small()[name]()
    np.testing.assert_array_equal(one.pixel_bytes, other.pixel_bytes)
    np.testing.assert_array_equal(one.latent_bytes, other.latent_bytes)
    assert one.kind_names == ("1024x1024 full",)
    assert (one.render_weights == 1.0).all()


def test_sizes_are_those_of_generated_pictures() -> None:
    trace = zipf(REQUESTS, 20_000)
    assert 1_100_000 <= trace.pixel_bytes.min() < 1_150_000
    assert 1_850_000 < trace.pixel_bytes.max() <= 1_900_000
    assert 90_000 <= trace.latent_bytes.min() < 93_000
    assert 117_000 < trace.latent_bytes.max() <= 120_000
    ratios = trace.pixel_bytes / trace.latent_bytes
    assert 13 < np.median(ratios) < 15
    assert ((ratios > 10) & (ratios < 20)).mean() > 0.98
    assert 0.4 < np.corrcoef(trace.pixel_bytes, trace.latent_bytes)[0, 1] < 0.6


@pytest.mark.parametrize("alpha", [0.6, 0.8, 1.0, 1.2])
def test_popularity_falls_with_rank_as_the_zipf_law_says(alpha: float) -> None:
    trace = zipf(200_000, PICTURES, alpha=alpha)
    top = np.sort(counts(trace.objects))[::-1][:100]
    slope, _ = np.polyfit(np.log(np.arange(1, 101)), np.log(top), 1)
    assert slope == pytest.approx(-alpha, abs=0.06)


def test_popularity_has_nothing_to_do_with_index_or_size() -> None:
    trace = zipf(200_000, PICTURES)
    read = counts(trace.objects)
    assert abs(np.corrcoef(np.arange(PICTURES), read)[0, 1]) < 0.1
    assert abs(np.corrcoef(trace.pixel_bytes, read)[0, 1]) < 0.1


def test_requests_arrive_at_random_at_twenty_a_second() -> None:
    gaps_s = np.diff(zipf(REQUESTS, PICTURES).times_s)
    assert gaps_s.mean() == pytest.approx(1 / 20, rel=0.03)
    assert gaps_s.std() == pytest.approx(1 / 20, rel=0.05)  # of an exponential: as the mean


def ages_days(trace: Trace) -> Floats:
    births = np.linspace(-365.0, 365.0, trace.pictures, endpoint=False)
    return trace.times_s / 86_400 - births[trace.objects]


def test_pictures_that_age_are_read_when_new_and_a_few_for_ever() -> None:
    trace = ageing(200_000, 20_000)
    ages = ages_days(trace)
    assert ages.min() >= 0  # none is read before its birth
    assert 0.7 < np.median(ages) < 2.5
    assert 0.03 < (ages > 30).mean() < 0.12
    assert (ages > 200).mean() > 0.005


def test_many_pictures_that_age_are_read_once_or_never() -> None:
    trace = ageing(200_000, 20_000)
    read = np.bincount(trace.objects, minlength=trace.pictures)
    born_meanwhile = read[trace.pictures // 2 :]
    assert (read[read > 0] == 1).mean() > 0.2
    assert (born_meanwhile == 0).mean() > 0.1
    assert np.sort(born_meanwhile)[::-1][:100].sum() > 0.3 * born_meanwhile.sum()


def test_pictures_that_age_are_read_at_an_even_load() -> None:
    trace = ageing(200_000, 20_000)
    tenths, _ = np.histogram(trace.times_s, bins=10, range=(0.0, 365 * 86_400.0))
    assert tenths.min() > 0.5 * tenths.mean()
    assert tenths.max() < 1.7 * tenths.mean()


def test_a_working_set_holds_for_its_phase_and_no_longer() -> None:
    trace = shifting(REQUESTS, PICTURES, phases=10)
    phases = trace.objects.reshape(10, -1)
    members = PICTURES // 20
    tops = [set(np.argsort(counts(phase))[::-1][:members].tolist()) for phase in phases]
    for phase in phases:
        assert share_of_most_read(phase, members) > 0.88
    for before, after in pairwise(tops):
        assert len(before & after) < 0.25 * members
    assert share_of_most_read(trace.objects, members) < 0.5


def test_load_follows_the_hour() -> None:
    trace = diurnal(REQUESTS, PICTURES)
    assert 3.9 * 86_400 < trace.times_s[-1] <= 4 * 86_400
    hours = (trace.times_s / 3600).astype(int)
    by_hour = np.bincount(hours, minlength=96).reshape(4, 24)
    assert by_hour.max(axis=1).min() > 2 * by_hour.min(axis=1).max()
    for day in by_hour[1:]:
        assert np.corrcoef(by_hour[0], day)[0, 1] > 0.9


def test_the_popular_set_follows_the_hour_and_comes_back_the_next_day() -> None:
    trace = diurnal(100_000, PICTURES)
    hours = trace.times_s / 3600

    def popular(hour: float) -> set[int]:
        there = trace.objects[np.abs(hours - hour) < 2]
        return set(np.argsort(counts(there))[::-1][:20].tolist())

    evening, noon, noon_after = popular(33), popular(24), popular(48)
    assert len(noon & noon_after) >= 14
    assert len(noon & evening) <= 10


def test_galleries_are_scanned_in_order() -> None:
    """Most pictures are read shortly after the one before them in their folder."""
    trace = galleries(REQUESTS, PICTURES)
    at: dict[int, list[float]] = {}
    follows = 0
    for time_s, index in zip(trace.times_s.tolist(), trace.objects.tolist(), strict=True):
        before = at.get(index - 1, [])
        follows += any(0 < time_s - earlier < 0.8 for earlier in before[-20:])
        at.setdefault(index, []).append(time_s)
    assert 0.65 < follows / REQUESTS < 0.87


def test_folders_differ_in_popularity_and_visits_overlap() -> None:
    trace = galleries(REQUESTS, PICTURES)
    assert share_of_most_read(trace.objects, PICTURES // 20) > 0.2
    assert (np.diff(trace.objects) == 1).mean() < 0.5  # others read between two of one visit


def test_a_crawler_reads_every_picture_in_order_on_each_pass() -> None:
    trace = crawler(REQUESTS, PICTURES)
    assert counts(trace.objects).min() >= 2
    position = trace.times_s / trace.times_s[-1]
    for begin in (0.2, 0.7):
        for part, end in ((0.5, begin + 0.05), (1.0, begin + 0.11)):
            during = trace.objects[(position > begin - 0.01) & (position < end)]
            expected = 0
            for index in during.tolist():
                expected += index == expected
            assert expected == pytest.approx(part * PICTURES, rel=0.05)
    away = trace.objects[(position > 0.35) & (position < 0.65)]
    assert (counts(away) == 0).mean() > 0.1


def test_a_crawler_that_leaves_no_request_for_people_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="more than half of 7999 requests"):
        crawler(7_999, PICTURES)


def test_a_flash_crowd_comes_at_once_and_forgets() -> None:
    trace = flash_crowd(REQUESTS, PICTURES)
    position = trace.times_s / trace.times_s[-1]
    for burst in range(10):
        begin = (burst + 0.5) / 10
        during = (position >= begin) & (position < begin + 0.02)
        stars = np.argsort(counts(trace.objects[during]))[::-1]
        quiet = (position < begin - 0.002) | (position > begin + 0.09)
        away = counts(trace.objects[quiet]) / quiet.sum()
        here = counts(trace.objects[during]) / during.sum()
        unknown = [star for star in stars[:20] if away[star] < 0.001]
        assert len(unknown) >= 4
        assert here[unknown[:5]].sum() > 0.3


def test_a_mix_has_all_sizes_and_vaes_at_their_costs() -> None:
    trace = mixed(REQUESTS, PICTURES)
    assert len(trace.kind_names) == len(set(trace.kind_names)) == 12
    assert trace.kind_names[0] == "1024x1024 full"
    costs = {"full": 1.0, "tiny": 0.1, "wide": 4.0}
    for kind, name in enumerate(trace.kind_names):
        size, vae = name.split()
        side = int(size.split("x")[0])
        mine = trace.kinds == kind
        assert mine.sum() >= 10
        assert trace.render_weights[mine] == pytest.approx(costs[vae] * (side / 1024) ** 2)
        low, high = PIXEL_RANGE_BYTES[side]
        assert low <= trace.pixel_bytes[mine].min() <= trace.pixel_bytes[mine].max() <= high
        factor = 3.5 if vae == "wide" else 1.0
        low, high = LATENT_RANGE_BYTES[side]
        latents = trace.latent_bytes[mine] / factor
        assert low - 1 <= latents.min() <= latents.max() <= high + 1


def test_the_halves_of_midway_want_opposite_splits() -> None:
    trace = midway(100_000, PICTURES)
    first, second = trace.objects[:50_000], trace.objects[50_000:]
    hot = PICTURES // 25
    assert share_of_most_read(first, hot) > 0.97
    assert share_of_most_read(second, hot) < 0.12
    assert share_of_most_read(second, PICTURES // 2) < 0.65
    pixels_of_hot = np.sort(trace.pixel_bytes)[::-1][:hot].sum()
    assert pixels_of_hot < 0.06 * trace.total_pixel_bytes  # one budget: all of the hot set...
    assert trace.latent_bytes.sum() * 0.5 < 0.05 * trace.total_pixel_bytes  # ...or half of all


@pytest.mark.parametrize("name", [name for name in NAMES if name != "crawler"])
def test_the_smallest_trace_can_be_drawn_and_a_smaller_one_is_refused(name: str) -> None:
    assert all_traces(100, 100)[name]().requests == 100
    for requests, pictures in ((99, 100), (100, 99)):
        with pytest.raises(InvalidArgumentError, match="is 99; give 100 or more"):
            all_traces(requests, pictures)[name]()
    with pytest.raises(InvalidArgumentError, match="seed is -1"):
        all_traces(100, 100, seed=-1)[name]()


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    trace = zipf(100, 100)
    nothing = np.zeros(0, dtype=np.int64)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"objects": trace.objects[1:]}, "differ in length"),
        ({"kinds": trace.kinds[1:]}, "differ in length"),
        ({"objects": nothing, "times_s": nothing.astype(np.float64)}, "no request"),
        ({"times_s": trace.times_s[::-1]}, "ascending"),
        ({"times_s": np.full(100, np.nan)}, "finite"),
        ({"objects": trace.objects - 100}, "isn't below 100"),
        ({"objects": trace.objects + 100}, "isn't below 100"),
        ({"kinds": trace.kinds + 1}, "without a name"),
        ({"latent_bytes": trace.latent_bytes * 0}, "has no bytes"),
        ({"render_weights": trace.render_weights - 2}, "below 0"),
    ]
    for change, reason in wrong:
        with pytest.raises(InvalidArgumentError, match=reason):
            replace(trace, **change)
