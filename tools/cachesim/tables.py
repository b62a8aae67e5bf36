"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf

from cachesim.policies import POLICIES
from cachesim.results import (
    AUTO,
    PIXELS,
    PLAIN,
    PLAIN_LRU,
    Results,
    Run,
    judge_splits,
    policy_results,
)

__all__ = ["tables"]


def tables(results: Results) -> Iterator[str]:
    """Yield the lines of a table for each experiment."""
    for name, table in (
        ("Splits", _splits),
        ("Sums over all traces", _sums),
        ("Policies", _policies),
        ("Plain store", _plain),
        ("Budgets", _budgets),
    ):
        yield from ("", f"## {name}", "", *table(results))


def _header(*names: str) -> Iterator[str]:
    yield f"| {' | '.join(names)} |"
    yield f"|---|{'---:|' * (len(names) - 1)}"


def _splits(results: Results) -> Iterator[str]:
    yield from _header(
        "trace",
        "budget",
        "fetch / render, ms",
        "auto, mean ms",
        "best fixed, ms",
        "at pixel share",
        "auto over best",
        "half, ms",
        "pixels only, ms",
    )
    for judged in judge_splits(results):
        run = judged.run
        yield (
            f"| {run.trace} | {run.budget:.0%} | {run.fetch_ms:g} / {run.render_ms:g} "
            f"| {judged.auto_ms:.2f} | {judged.best_ms:.2f} | {judged.best_share:g} "
            f"| {judged.over_best:+.1%} | {judged.even_ms:.2f} | {judged.pixels_ms:.2f} |"
        )


def _sums(results: Results) -> Iterator[str]:
    yield from _header("budget", "fetch / render, ms", "auto", "best fixed", "half", "pixels only")
    sums: dict[tuple[float, str], list[float]] = {}
    for judged in judge_splits(results):
        run = judged.run
        means = (judged.auto_ms, judged.best_ms, judged.even_ms, judged.pixels_ms)
        place = run.budget, f"{run.fetch_ms:g} / {run.render_ms:g}"
        before = sums.get(place, [0.0] * len(means))
        sums[place] = [one + other for one, other in zip(before, means, strict=True)]
    for (budget, delays), means_ms in sorted(sums.items()):
        yield f"| {budget:.0%} | {delays} | " + " | ".join(f"{ms:.1f}" for ms in means_ms) + " |"


def _policies(results: Results) -> Iterator[str]:
    found = {policy: policy_results(results, policy) for policy in POLICIES}
    columns = [
        (policy, way)
        for policy, by_trace in found.items()
        for way in ("moving", "shadowed", "best fixed")
        if any(way in ways for _, ways in by_trace.values())
    ]
    yield from _header("trace", "latentfs, ms", *(f"{policy}, {way}" for policy, way in columns))
    for trace, (auto_ms, _) in sorted(found["lru"].items()):
        over = (found[policy][trace][1][way] / auto_ms - 1 for policy, way in columns)
        yield f"| {trace} | {auto_ms:.2f} | " + " | ".join(f"{part:+.1%}" for part in over) + " |"


def _plain(results: Results) -> Iterator[str]:
    yield from _header(
        "trace",
        "budget",
        "fetch, ms",
        "MB/s",
        "render, ms",
        "latentfs, mean ms",
        "plain, same ranking",
        "plain, LRU",
        "latentfs, p99 ms",
        "plain",
        "pixel hits",
        "latent hits",
        "plain hits",
    )
    places = {run for run in results.by_run if run.cache == AUTO}
    for run in sorted(places, key=_by_delays):
        plain = results.by_run.get(run.of(PLAIN))
        if plain is None:
            continue
        auto, lru = results.by_run[run], results.by_run.get(run.of(PLAIN_LRU))
        mb_per_s = "" if run.mb_per_s is None else f"{run.mb_per_s:g}"
        yield (
            f"| {run.trace} | {run.budget:.0%} | {run.fetch_ms:g} | {mb_per_s} "
            f"| {run.render_ms:g} | {auto.mean_ms:.2f} | {plain.mean_ms:.2f} "
            f"| {'' if lru is None else f'{lru.mean_ms:.2f}'} "
            f"| {auto.p99_ms:.1f} | {plain.p99_ms:.1f} "
            f"| {auto.pixels:.1%} | {auto.latents:.1%} | {plain.pixels:.1%} |"
        )


def _budgets(results: Results) -> Iterator[str]:
    yield from _header(
        "trace", "budget", "fetch / render, ms", "auto, ms", "pixels only, ms", "plain, ms"
    )
    places: dict[tuple[str, float, float], list[Run]] = {}
    for run in sorted((r for r in results.by_run if r.cache == AUTO), key=_by_delays):
        if {run.of(PIXELS), run.of(PLAIN)} <= results.by_run.keys():
            places.setdefault((run.trace, run.fetch_ms, run.render_ms), []).append(run)
    most = max(map(len, places.values()), default=0)
    for runs in places.values():
        for run in runs if len(runs) == most else ():
            means_ms = [results.by_run[run.of(cache)].mean_ms for cache in (AUTO, PIXELS, PLAIN)]
            yield (
                f"| {run.trace} | {run.budget:.0%} | {run.fetch_ms:g} / {run.render_ms:g} | "
                + " | ".join(f"{mean_ms:.2f}" for mean_ms in means_ms)
                + " |"
            )


def _by_delays(run: Run) -> tuple[float | str, ...]:
    mb_per_s = inf if run.mb_per_s is None else run.mb_per_s
    return run.fetch_ms, -mb_per_s, run.render_ms, run.budget, run.trace
