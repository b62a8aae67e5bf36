"""What a mount was asked for, what answered, and how long that took.

Counted always, whether or not there is a metrics endpoint: it costs a request about a microsecond.
All of it belongs to the trio thread.
"""

from __future__ import annotations

import enum
import errno
import heapq
import time
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field

from latentfs.telemetry.histogram import Histogram, HistogramStatistics
from latentfs.telemetry.slow_reads import FinishedRead, SlowReads, errno_name

__all__ = [
    "Activity",
    "ActivityStatistics",
    "OperationTimes",
    "ReadTrail",
    "Tier",
    "TierTimes",
]

# Reads that took as long as this may be among the slowest lately.
_NOTED_S = 0.005
_NOTED_MAX = 1024
_LATELY_S = 60.0
_SLOWEST_MAX = 20


class Tier(enum.StrEnum):
    """What answered a read.

    Reads that the kernel answers never come here; the cache counts them (``kernel_hits``).
    """

    HEAD = "head"
    """It ended in front of the pixel data."""
    HANDLE = "handle"
    """The rendition that the handle keeps."""
    PIXELS = "pixels"
    """A finished file in the cache."""
    LATENT = "latent"
    """A render, of a latent in the cache."""
    MISS = "miss"
    """A render, after a fetch from the store."""
    SHARED = "shared"
    """A render that was begun for another reader, or ahead."""
    BYTES = "bytes"
    """A file that is kept byte for byte."""
    LATENT_FILE = "latent_file"
    """A latent file, put together from payloads."""
    REFUSED = "refused"
    """Nothing: the handle has failed a moment ago, or the store can't be read."""


@dataclass(slots=True)
class ReadTrail:
    """How a read goes; filled in by those it passes.  See :class:`FinishedRead` for the fields."""

    tier: Tier = Tier.REFUSED
    stages_s: dict[str, float] = field(default_factory=dict)
    joined: str = ""
    unfinished: str = ""


@dataclass(frozen=True, slots=True)
class OperationTimes:
    """Requests of one kind since the mount.

    Attributes:
        count: all of them.
        errors: how many were answered with an error, by its name; many are no trouble, such as
            ENOENT of a lookup.
        total_s: that all took together.
    """

    count: int
    errors: dict[str, int]
    total_s: float


@dataclass(frozen=True, slots=True)
class TierTimes:
    """Reads that one tier answered since the mount.

    Attributes:
        count: all of them.
        failed: how many were answered with an error; not those that ended with their program.
        total_s: that all took together.
    """

    count: int
    failed: int
    total_s: float


@dataclass(frozen=True, slots=True)
class ActivityStatistics:
    """Counters since the mount.

    Attributes:
        operations: by the name of the FUSE operation; those that were asked for.
        reads: by tier, all of them but the kernel's.
        slowest: reads of the last minute that took longest, the slowest first, 20 at most; those
            under 5 ms are left out.
        slow_reads_total: reads that took longer than the threshold.
    """

    operations: dict[str, OperationTimes]
    reads: dict[str, TierTimes]
    slowest: tuple[FinishedRead, ...]
    slow_reads_total: int


class Activity:
    """Counts what handlers do.

    Attributes:
        slow_reads: logs reads that took long.
    """

    def __init__(self) -> None:
        self.slow_reads = SlowReads()
        self._operations: defaultdict[str, Histogram] = defaultdict(Histogram)
        self._errors: Counter[tuple[str, int]] = Counter()
        self._reads = {tier: Histogram() for tier in Tier}
        self._reads_failed = dict.fromkeys(Tier, 0)
        # With the time of the monotonic clock at their end: the other one may be set.
        self._noted: deque[tuple[float, FinishedRead]] = deque(maxlen=_NOTED_MAX)

    def operation_done(self, name: str, number: int, elapsed_s: float) -> None:
        """Count a request that was answered with errno *number*, 0 for success."""
        self._operations[name].observe(elapsed_s)
        if number:
            self._errors[name, number] += 1

    def read_done(
        self, trail: ReadTrail, number: int, elapsed_s: float, *, ino: int, size_bytes: int
    ) -> None:
        """Count a read that was answered with errno *number*, 0 for success.

        One that was given up, as its program was killed (EINTR), has not failed.
        """
        self._reads[trail.tier].observe(elapsed_s)
        if number not in (0, errno.EINTR):
            self._reads_failed[trail.tier] += 1
        is_slow = self.slow_reads.is_slow(elapsed_s)
        if not is_slow and elapsed_s < _NOTED_S:
            return
        read = FinishedRead(
            ended_at=time.time(),
            ino=ino,
            size_bytes=size_bytes,
            tier=trail.tier,
            total_s=elapsed_s,
            stages_s=dict(trail.stages_s),
            joined=trail.joined,
            unfinished=trail.unfinished,
            errno=errno_name(number),
        )
        self._noted.append((time.monotonic(), read))
        if is_slow:
            self.slow_reads.note(read)

    def statistics(self) -> ActivityStatistics:
        since_s = time.monotonic() - _LATELY_S
        lately = (read for ended_s, read in self._noted if ended_s >= since_s)
        return ActivityStatistics(
            operations={name: self._operation_times(name) for name in self._operations},
            reads={str(tier): self._tier_times(tier) for tier in Tier},
            slowest=tuple(heapq.nlargest(_SLOWEST_MAX, lately, key=lambda read: read.total_s)),
            slow_reads_total=self.slow_reads.total,
        )

    def _operation_times(self, name: str) -> OperationTimes:
        times = self._operations[name].statistics()
        errors = {
            errno_name(number): count
            for (operation, number), count in self._errors.items()
            if operation == name
        }
        return OperationTimes(times.count, errors, times.total)

    def _tier_times(self, tier: Tier) -> TierTimes:
        times = self._reads[tier].statistics()
        return TierTimes(times.count, self._reads_failed[tier], times.total)

    def answered_total(self) -> int:
        """Return how many requests were answered since the mount."""
        return sum(times.statistics().count for times in self._operations.values())

    def operation_seconds(self) -> dict[str, HistogramStatistics]:
        """Return how long requests took, by the name of the operation."""
        return {name: times.statistics() for name, times in self._operations.items()}

    def read_seconds(self) -> dict[str, HistogramStatistics]:
        """Return how long reads took, by tier."""
        return {str(tier): times.statistics() for tier, times in self._reads.items()}
