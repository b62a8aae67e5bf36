"""A line in the log for each read that took long, with what it waited for.

Files appear by their inode numbers alone: names, and prompts in them, stay out of logs.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["FinishedRead", "SlowReads", "errno_name"]

log = logging.getLogger(__name__)

_LINES_PER_S_MAX = 10


@dataclass(frozen=True, slots=True)
class FinishedRead:
    """A read request that the daemon has answered.

    Attributes:
        ended_at: Unix time, in seconds.
        ino: of the file.
        size_bytes: of the file.
        tier: what answered it, a :class:`latentfs.telemetry.activity.Tier`.
        total_s: from the request to the answer.
        stages_s: seconds by stage of the render it waited for, in order, as far as it came; for
            one that was going on already they begin before the read does.
        joined: who had begun that render: ``read`` or ``prefetch``; empty if this read did.
        unfinished: where that render was when the read ended without it: ``parked``, ``fetch``,
            ``queue`` or ``renderer``; empty if it had ended.
        errno: name of the error it was answered with, empty for none.
    """

    ended_at: float
    ino: int
    size_bytes: int
    tier: str
    total_s: float
    stages_s: dict[str, float]
    joined: str
    unfinished: str
    errno: str

    def __str__(self) -> str:
        words = [f"inode {self.ino} ({self.size_bytes} bytes), tier {self.tier}"]
        words += [f"{stage} {elapsed_s:.3f} s" for stage, elapsed_s in self.stages_s.items()]
        if self.joined:
            words.append(f"waited for the render of another {self.joined}")
        if self.unfinished:
            words.append(f"left at stage {self.unfinished}")
        if self.errno:
            words.append(f"failed with {self.errno}")
        return f"{self.total_s:.3f} s for a read of " + ", ".join(words)


class SlowReads:
    """Logs reads that took longer than a threshold, ten lines a second at the most.

    Attributes:
        threshold_s: 0 for no lines; may be changed at any time.
        total: how many reads took longer, those without a line among them.
    """

    def __init__(
        self, *, threshold_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.threshold_s = threshold_s
        self.total = 0
        self._clock = clock
        self._second = -1
        self._lines = 0
        self._left_out = 0

    def is_slow(self, elapsed_s: float) -> bool:
        return 0 < self.threshold_s < elapsed_s

    def note(self, read: FinishedRead) -> None:
        """Count a slow read, and log it unless there were too many within this second.

        The next line says how many were left out.
        """
        self.total += 1
        second = int(self._clock())
        if second != self._second:
            self._second, self._lines = second, 0
        if self._lines == _LINES_PER_S_MAX:
            self._left_out += 1
            return
        self._lines += 1
        left_out, self._left_out = self._left_out, 0
        log.warning(
            "slow read: %s%s",
            read,
            f"; {left_out} more since the last line" if left_out else "",
            extra={
                "event": "slow_read",
                "inode": read.ino,
                "size_bytes": read.size_bytes,
                "tier": read.tier,
                "total_s": round(read.total_s, 6),
                "stages_s": {stage: round(s, 6) for stage, s in read.stages_s.items()},
                "joined": read.joined,
                "unfinished": read.unfinished,
                "errno": read.errno,
                "left_out": left_out,
            },
        )


def errno_name(number: int) -> str:
    """Return ``ENOENT`` for 2, and an empty text for 0."""
    return errno.errorcode.get(number, str(number)) if number else ""
