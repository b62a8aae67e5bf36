"""The line of a slow read: what is in it, and how many there are."""

from __future__ import annotations

import json
import logging

import pytest

from latentfs.telemetry.slow_reads import FinishedRead, SlowReads

READ = FinishedRead(
    ended_at=0.0,
    ino=7,
    size_bytes=1000,
    tier="shared",
    total_s=2.5,
    stages_s={"parked": 0.0, "fetch": 0.25},
    joined="prefetch",
    unfinished="queue",
    errno="EIO",
)


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def slow_reads(clock: Clock, caplog: pytest.LogCaptureFixture) -> SlowReads:
    caplog.set_level(logging.WARNING)
    return SlowReads(threshold_s=1.0, clock=clock)


def test_a_line_has_all_that_is_known_as_text_and_as_fields(slow_reads, caplog):
    slow_reads.note(READ)
    (record,) = caplog.records
    assert record.getMessage() == (
        "slow read: 2.500 s for a read of inode 7 (1000 bytes), tier shared, parked 0.000 s, "
        "fetch 0.250 s, waited for the render of another prefetch, left at stage queue, "
        "failed with EIO"
    )
    fields = {
        name: getattr(record, name)
        for name in ("event", "inode", "size_bytes", "tier", "total_s", "stages_s", "joined")
    }
    assert json.loads(json.dumps(fields)) == {
        "event": "slow_read",
        "inode": 7,
        "size_bytes": 1000,
        "tier": "shared",
        "total_s": 2.5,
        "stages_s": {"parked": 0.0, "fetch": 0.25},
        "joined": "prefetch",
    }
    assert (record.unfinished, record.errno, record.left_out) == ("queue", "EIO", 0)


def test_the_threshold_can_change_and_0_is_none(slow_reads):
    assert slow_reads.is_slow(1.5)
    assert not slow_reads.is_slow(1.0)
    slow_reads.threshold_s = 2.0
    assert not slow_reads.is_slow(1.5)
    slow_reads.threshold_s = 0.0
    assert not slow_reads.is_slow(1e9)


def test_ten_lines_a_second_at_most_and_the_next_says_how_many_were_left_out(
    slow_reads, clock, caplog
):
    for _ in range(25):
        slow_reads.note(READ)
    assert len(caplog.records) == 10
    assert slow_reads.total == 25
    clock.now_s += 1
    slow_reads.note(READ)
    slow_reads.note(READ)
    assert caplog.records[10].getMessage().endswith("; 15 more since the last line")
    assert caplog.records[10].left_out == 15
    assert caplog.records[11].left_out == 0
