"""Counts and times of what a mount is asked for."""

from __future__ import annotations

import errno
import time

import pytest
from scripted_renderer import RECIPE

from latentfs.telemetry.activity import Activity, OperationTimes, ReadTrail, Tier, TierTimes
from latentfs.telemetry.histogram import SECONDS, Histogram
from latentfs.telemetry.render_times import OTHER_RECIPES, RenderTimes


def read(activity: Activity, tier: Tier, elapsed_s: float, number: int = 0, *, ino: int = 7):
    activity.read_done(ReadTrail(tier), number, elapsed_s, ino=ino, size_bytes=100)


def test_a_histogram_counts_a_value_at_a_bound_below_it():
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    statistics = histogram.statistics()
    assert statistics.counts == (2, 2, 1)
    assert (statistics.count, statistics.total) == (5, 14.0)


def test_operations_are_counted_by_name_and_errno():
    activity = Activity()
    activity.operation_done("lookup", 0, 0.5)
    activity.operation_done("lookup", errno.ENOENT, 0.25)
    activity.operation_done("read", errno.EIO, 1.0)
    assert activity.statistics().operations == {
        "lookup": OperationTimes(2, {"ENOENT": 1}, 0.75),
        "read": OperationTimes(1, {"EIO": 1}, 1.0),
    }
    assert activity.answered_total() == 3


def test_an_errno_without_a_name_is_its_number():
    activity = Activity()
    activity.operation_done("read", 9999, 0.1)
    assert activity.statistics().operations["read"].errors == {"9999": 1}


def test_reads_are_counted_by_tier_and_every_tier_is_there():
    activity = Activity()
    read(activity, Tier.PIXELS, 0.001)
    read(activity, Tier.MISS, 1.5)
    read(activity, Tier.MISS, 0.5, errno.EIO)
    reads = activity.statistics().reads
    assert reads["miss"] == TierTimes(2, 1, 2.0)
    assert reads["pixels"] == TierTimes(1, 0, 0.001)
    assert set(reads) == set(Tier)
    assert sum(activity.read_seconds()["miss"].counts) == 2


def test_a_read_whose_program_was_killed_has_not_failed():
    activity = Activity()
    read(activity, Tier.MISS, 0.5, errno.EINTR)
    assert activity.statistics().reads["miss"] == TierTimes(1, 0, 0.5)
    assert activity.statistics().slowest[0].errno == "EINTR"


def test_the_slowest_reads_of_the_last_minute_are_told_slowest_first(monkeypatch):
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "time", lambda: -now)  # somebody sets the clock back
    activity = Activity()
    read(activity, Tier.MISS, 100.0, ino=1)
    now += 61
    read(activity, Tier.HEAD, 0.001, ino=2)
    for ino in range(3, 33):
        read(activity, Tier.MISS, ino / 10, errno.EIO, ino=ino)
    slowest = activity.statistics().slowest
    assert [slow.ino for slow in slowest] == list(range(32, 12, -1))
    assert (slowest[0].tier, slowest[0].errno, slowest[0].size_bytes) == ("miss", "EIO", 100)


def test_only_reads_above_the_threshold_are_slow():
    activity = Activity()
    read(activity, Tier.MISS, 9.0)
    activity.slow_reads.threshold_s = 1.0
    read(activity, Tier.MISS, 1.0)
    read(activity, Tier.MISS, 1.1)
    assert activity.statistics().slow_reads_total == 1


def test_renders_are_counted_by_recipe_up_to_a_number_of_them():
    times = RenderTimes()
    for number in range(70):
        times.rendered(f"recipe {number}", RECIPE, work_s=2.0, stages_s={"decode": 2.0})
    times.rendered("recipe 69", RECIPE, work_s=2.0, stages_s={"queue": 0.1, "decode": 2.0})
    work = times.work_seconds()
    assert len(work) == 65
    assert work[OTHER_RECIPES].count == 7
    assert len(times.recipes) == 64
    stages = times.stage_seconds()
    assert stages["decode"].count == 71
    assert stages["queue"].total == pytest.approx(0.1)


def test_bounds_reach_from_a_lookup_to_the_deadline_of_a_read():
    assert SECONDS[0] <= 1e-5
    assert SECONDS[-1] >= 60
    assert list(SECONDS) == sorted(set(SECONDS))
