"""What a mount did between two answers of its daemon, as lines for people."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

from latentfs.cli.arguments import counted, shown_bytes
from latentfs.cli.output import one_line
from latentfs.telemetry.renderer_state import shown_renderers

__all__ = ["nothing_done", "watched_lines"]

_OPERATIONS_MAX = 8
_SLOWEST_MAX = 8
_BYTES_PER_MB = 1e6
_HIT_COUNTERS = {
    "kernel": "kernel_hits",
    "files": "pixel_hits",
    "latents": "latent_hits",
    "misses": "misses",
}

Status = dict[str, Any]
PathOf = Callable[[int, tuple[int, bytes] | None], bytes | None]


def nothing_done(status: Status) -> Status:
    """Return what the daemon would have told as it was mounted: every number is 0."""

    def zeroed(value: object) -> Any:
        if isinstance(value, dict):
            return {name: zeroed(each) for name, each in value.items()}
        return 0 if isinstance(value, (int, float)) else value

    return {name: zeroed(value) for name, value in status.items()}


def watched_lines(
    before: Status,
    after: Status,
    *,
    elapsed_s: float,
    path_of: PathOf,
) -> list[tuple[str, str]]:
    """Return (label, text) of each line, in order, with nothing in them that a terminal acts on.

    Args:
        before, after: what the daemon told of itself, *elapsed_s* seconds apart.
        path_of: gives the path of a file by its number, and the folder and name it was last asked
            for by, if that is known.
    """
    rows = [
        ("mount", _mount(after)),
        ("operations", _operations(before, after, elapsed_s)),
        ("reads", _reads(before, after, elapsed_s)),
        ("tiers", _tiers(before, after)),
        ("hits", _hits(before, after)),
        ("renders", _renders(before, after, elapsed_s)),
        ("queue", _queue(before, after)),
        ("cache", _cache(after["cache"])),
        *(("slowest" if not n else "", text) for n, text in enumerate(_slowest(after, path_of))),
    ]
    return [(label, one_line(text)) for label, text in rows]


def _mount(status: Status) -> str:
    renderers = shown_renderers(status["renderer_devices"], status.get("renderer_problem"))
    problem = f", {status['problem']}" if status["problem"] else ""
    return f"{status['mountpoint']}, up {status['uptime_s']:.0f} s, renderer {renderers}{problem}"


def _operations(before: Status, after: Status, elapsed_s: float) -> str:
    rates = {
        name: (times["count"] - _count(before["operations"], name)) / elapsed_s
        for name, times in after["operations"].items()
    }
    most = sorted(((rate, name) for name, rate in rates.items() if rate), reverse=True)
    words = [f"{name} {rate:.1f}" for rate, name in most[:_OPERATIONS_MAX]]
    errors = (after["errors_total"] - before["errors_total"]) / elapsed_s
    listed = f": {', '.join(words)}" if words else ""
    return f"{sum(rates.values()):.1f}/s, {errors:.1f} EIO/s{listed}"


def _count(counted: dict[str, Any], name: str) -> int:
    count = counted[name]["count"] if name in counted else 0
    assert isinstance(count, int)
    return count


def _reads(before: Status, after: Status, elapsed_s: float) -> str:
    reads = (after["reads_total"] - before["reads_total"]) / elapsed_s
    read_bytes = (after["read_bytes_total"] - before["read_bytes_total"]) / elapsed_s
    slow = after["slow_reads_total"] - before["slow_reads_total"]
    return (
        f"{reads:.1f}/s, {read_bytes / _BYTES_PER_MB:.2f} MB/s, {slow} slow, "
        f"{after['open_files']} files open"
    )


def _tiers(before: Status, after: Status) -> str:
    counts = {
        tier: times["count"] - _count(before["reads"], tier)
        for tier, times in after["reads"].items()
    }
    total = sum(counts.values())
    most = sorted(((count, tier) for tier, count in counts.items() if count), reverse=True)
    shares = [f"{tier} {count / total:.0%}" for count, tier in most]
    return ", ".join(shares) or "no reads"


def _hits(before: Status, after: Status) -> str:
    """What answered for each picture that was read, in however many requests."""
    counts = {
        name: after["cache"][counter] - before["cache"][counter]
        for name, counter in _HIT_COUNTERS.items()
    }
    shared = "render_waits_shared_total"
    counts["joined a render"] = after[shared] - before[shared]
    total = sum(counts.values())
    if not total:
        return "no pictures"
    shares = ", ".join(f"{name} {count / total:.0%}" for name, count in counts.items())
    return f"{shares}; of {counted(total, 'picture')}"


def _renders(before: Status, after: Status, elapsed_s: float) -> str:
    def grown(name: str) -> int:
        count = after[name] - before[name]
        assert isinstance(count, int)
        return count

    return (
        f"{grown('renders_total') / elapsed_s:.1f}/s, {grown('renders_failed_total')} failed, "
        f"{grown('render_timeouts_total')} timed out, "
        f"{grown('renderer_restarts_total')} renderers lost"
    )


def _queue(before: Status, after: Status) -> str:
    words = [
        f"{after['renders_queued']} for readers",
        f"{after['renders_queued_background']} ahead",
        f"{after['renders_in_flight']} renders under way in total",
    ]
    for priority, waits in after["queue_waits"].items():
        earlier = before["queue_waits"][priority]
        count = waits["count"] - earlier["count"]
        if count:
            wait_ms = 1000 * (waits["total_s"] - earlier["total_s"]) / count
            words.append(f"{priority} waited {wait_ms:.0f} ms")
    return ", ".join(words)


def _cache(cache: dict[str, Any]) -> str:
    held_bytes = cache["pixel_bytes"] + cache["latent_bytes"]
    share = cache["pixel_bytes"] / held_bytes if held_bytes else 0.0
    split = "moving by itself" if cache["pixel_share"] is None else "fixed"
    return (
        f"{shown_bytes(held_bytes)} of {shown_bytes(cache['budget_bytes'])}, {share:.0%} of it in "
        f"{cache['pixel_entries']} files, the rest in {cache['latent_entries']} latents; {split}"
    )


def _slowest(status: Status, path_of: PathOf) -> list[str]:
    """The reads of the last minute that took longest, each file once."""
    lines: dict[int, str] = {}
    for read in status["slowest"]:
        ino, name = read["ino"], read["name"]
        if ino in lines:
            continue
        path = path_of(ino, None if name is None else (read["parent_ino"], os.fsencode(name)))
        shown = f"inode {ino}" if path is None else os.fsdecode(path)
        ago_s = max(0.0, time.time() - read["ended_at"])
        errno = f" {read['errno']}" if read["errno"] else ""
        how = f"{read['total_s']:.3f} s {read['tier']}{errno}"
        lines[ino] = f"{how}, {ago_s:.0f} s ago: {shown}"
        if len(lines) == _SLOWEST_MAX:
            break
    return list(lines.values()) or ["none took 5 ms within the last minute"]
