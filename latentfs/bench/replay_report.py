"""What a replay has measured, as one JSON document and as tables."""

from __future__ import annotations

import dataclasses
import errno
from collections.abc import Sequence
from typing import Any

from latentfs.bench.replay import Replayed
from latentfs.bench.stages import percentile
from latentfs.bench.tiers import TierCounts

__all__ = ["document", "screen"]

_MS = 1000
_PERCENTILES = {"p50_ms": 50, "p95_ms": 95, "p99_ms": 99, "p999_ms": 99.9}
_FIGURES = ("mean_ms", *_PERCENTILES, "max_ms")


def document(asked: dict[str, Any], replayed: Replayed, tiers: TierCounts | None) -> dict[str, Any]:
    """Return *asked* and all figures; the keys are those in docs/command-line.md."""
    requests = len(replayed.latencies_s)
    return {
        **asked,
        "interrupted": replayed.interrupted,
        "requests": requests,
        "errors": {
            errno.errorcode.get(number, str(number)): count
            for number, count in replayed.errors.most_common()
        },
        "bytes": replayed.read_bytes,
        "duration_s": replayed.duration_s,
        "requests_per_s": requests / replayed.duration_s if replayed.duration_s else 0.0,
        "latency": _figures(replayed.latencies_s),
        "service": _figures(replayed.services_s),
        "tiers": None if tiers is None else _tiers(tiers),
    }


def _figures(values_s: Sequence[float]) -> dict[str, float] | None:
    if not values_s:
        return None
    ordered = sorted(values_s)
    return {
        "mean_ms": sum(ordered) / len(ordered) * _MS,
        **{name: percentile(ordered, percent) * _MS for name, percent in _PERCENTILES.items()},
        "max_ms": ordered[-1] * _MS,
    }


def _tiers(tiers: TierCounts) -> dict[str, Any]:
    of_all = 1 / tiers.total if tiers.total else 0.0
    return {
        **dataclasses.asdict(tiers),
        "fetches": tiers.fetches,
        "kernel_hit_rate": tiers.kernel_hits * of_all,
        "pixel_hit_rate": tiers.pixel_hits * of_all,
        "latent_hit_rate": tiers.latent_hits * of_all,
    }


def screen(found: dict[str, Any]) -> str:
    """Return *found*, made by :func:`document`, as people read it."""
    shown_errors = ", ".join(f"{count} {name}" for name, count in found["errors"].items())
    head = [
        f"requests   {found['requests']} of {found['requests_asked']} to {found['files']} files, "
        f"{found['bytes']:,} bytes, {found['readers']} readers",
        f"time       {found['duration_s']:.3f} s, {found['requests_per_s']:.1f} requests a second",
        f"errors     {shown_errors or 'none'}",
    ]
    return "\n".join([*head, "", _latency_table(found), *_tier_lines(found["tiers"])])


def _latency_table(found: dict[str, Any]) -> str:
    titles = ("mean", "p50", "p95", "p99", "p99.9", "max")
    lines = [f"{'ms':<14}" + "".join(f"{title:>11}" for title in titles)]
    for title, key in (("since due", "latency"), ("since open", "service")):
        figures = found[key] or {}
        values = (f"{figures[name]:>11.3f}" for name in _FIGURES if name in figures)
        lines.append(f"{title:<14}" + "".join(values))
    return "\n".join(lines)


def _tier_lines(tiers: dict[str, Any] | None) -> list[str]:
    if tiers is None:
        return []
    answered = ", ".join(
        f"{tiers[f'{tier}_hits']} {tier} ({tiers[f'{tier}_hit_rate']:.1%})"
        for tier in ("kernel", "pixel", "latent")
    )
    return [
        "",
        f"hits       {answered}; {tiers['misses']} misses, {tiers['shared']} joined a render",
        f"daemon     {tiers['renders']} renders, {tiers['fetches']} fetches from the store",
    ]
