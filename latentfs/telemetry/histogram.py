"""How often values fell between bounds: what a Prometheus histogram is made of.

Kept by ourselves: a histogram of prometheus_client takes a lock, and more than a microsecond for a
value.  These count every request, whether or not anybody asks.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

__all__ = ["BATCH_SIZES", "SECONDS", "Histogram", "HistogramStatistics"]

SECONDS = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)
"""Bounds for all that takes time: a lookup takes 20 us, a read at its deadline 60 s."""

BATCH_SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Bounds for latents that are decoded together."""


@dataclass(frozen=True, slots=True)
class HistogramStatistics:
    """Counts since the start.

    Attributes:
        bounds: upper ones, included, ascending.
        counts: of the values up to each bound and above the one before; the last one is of those
            above all bounds.
        total: sum of all values, in their unit.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    total: float

    @property
    def count(self) -> int:
        return sum(self.counts)


class Histogram:
    """Counts values.  Belongs to one thread."""

    __slots__ = ("_bounds", "_counts", "_total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._total = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._total += value

    def statistics(self) -> HistogramStatistics:
        return HistogramStatistics(self._bounds, tuple(self._counts), self._total)
