"""The stages of a cold read: their order, and what they come to over many reads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["STAGES", "StageFigures", "percentile", "read_stages", "stage_figures"]

STAGES = (
    "parked",
    "fetch",
    "queue",
    "send",
    "wait",
    "decompress",
    "load",
    "decode",
    "quantise",
    "handover",
    "encode",
    "frame",
    "transfer",
    "other",
    "reply",
)
"""In the order they run.  The daemon tells all but the last two."""


@dataclass(frozen=True, slots=True)
class StageFigures:
    """What a stage comes to: seconds of one read, and the share of all time of all reads."""

    median_s: float
    p95_s: float
    share: float


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the smallest of *values* that *percent* of them do not exceed."""
    ordered = sorted(values)
    # Rounded, as 41000 * 99.9 / 100 is a little more than 40959.
    count = math.ceil(round(len(ordered) * percent / 100, 6))
    return ordered[max(count, 1) - 1]


def read_stages(stages_s: dict[str, float], *, total_s: float, read_s: float) -> dict[str, float]:
    """Return the stages of a read that took *read_s*, whose render took the daemon *total_s*.

    ``other`` is what the daemon's stages leave of its total, ``reply`` what the reader waited
    beyond that: the kernel, copies, the reader itself.
    """
    rest = {"other": total_s - sum(stages_s.values()), "reply": read_s - total_s}
    return {**stages_s, **rest}


def stage_figures(reads: Sequence[dict[str, float]]) -> dict[str, StageFigures]:
    """Return the figures of each stage that any of the reads has, in order, and of ``total``."""
    seen = {stage for read in reads for stage in read}
    order = [stage for stage in STAGES if stage in seen] + sorted(seen.difference(STAGES))
    columns = {stage: [read.get(stage, 0.0) for read in reads] for stage in order}
    totals = [sum(read.values()) for read in reads]
    columns["total"] = totals
    return {
        stage: StageFigures(
            median_s=statistics.median(column),
            p95_s=percentile(column, 95),
            share=sum(column) / sum(totals),
        )
        for stage, column in columns.items()
        if column
    }
