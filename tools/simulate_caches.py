#!/usr/bin/env python3
"""What caches are worth: traces replayed through the product's own cache, and through others.

    tools/simulate_caches.py [--only splits] [--jobs 2] [--output docs/caches/results.json]

Experiments:

- splits: the split that moves by itself against fixed ones, on all traces;
- policies: the product's ranking against two tiers with well-known policies of eviction;
- plain: against a cache of the same bytes over a store of finished files;
- budgets: what more memory is worth.

Results are added to those in the output file; what it has already is not made again, unless
requests, pictures or the seed differ, or with --again.  Prints Markdown tables of what was judged.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from cachesim.caches import PolicyTiers, ProductCache
from cachesim.policies import POLICIES, Lru
from cachesim.results import (
    AUTO,
    EVEN,
    PIXELS,
    PLAIN,
    PLAIN_LRU,
    Result,
    Results,
    Run,
    result_of,
    split,
)
from cachesim.simulator import Delays, SimulatedCache, plain_store, replay
from cachesim.tables import tables
from cachesim.trace import Trace
from cachesim.traces import all_traces
from cachesim.two_tiers import MovingLine

SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
COARSE = (0.3, 0.5, 0.7, 0.9, 1.0)
POLICY_SHARES = (0.7, 0.9)
SHADOWED = ("wtinylfu",)

FETCH_MS, RENDER_MS, BUDGET = 10.0, 30.0, 0.05
OTHER_BUDGETS = (0.02, 0.1)
OTHER_DELAYS = ((1.0, 300.0), (50.0, 30.0), (50.0, 10.0))
STORES: tuple[tuple[float, float | None, float], ...] = (
    (1.0, None, 0.05),
    (10.0, None, 0.05),
    (50.0, None, 0.05),
    (50.0, None, 0.1),
    (100.0, None, 0.05),
    (10.0, 100.0, 0.05),
    (50.0, 50.0, 0.05),
    (50.0, 50.0, 0.1),
)
"""(milliseconds until it sends, megabytes a second, budget)."""
RENDERS_MS = (10.0, 30.0)

FEW_TRACES = ("zipf-0.8", "ageing", "galleries")
BUDGET_SWEEP = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4)
MOVING_TRACES = ("midway", "shifting", "diurnal")
PLOTTED_CACHES = (AUTO, EVEN, PIXELS, PLAIN)


@dataclass(frozen=True, slots=True)
class Size:
    """Of the traces."""

    requests: int
    pictures: int
    seed: int


@dataclass(frozen=True, slots=True)
class Job:
    """Runs of one trace, to be done by one process.

    Attributes:
        sweeps: whether to add the fixed splits about the best one to the places of the runs.
        known: what has been done of it.
    """

    size: Size
    runs: tuple[Run, ...]
    sweeps: bool
    known: dict[Run, Result]


def place(trace: str, *, budget: float = BUDGET, cache: str = AUTO) -> Run:
    """Return a run with the usual delays."""
    return Run(
        trace=trace,
        budget=budget,
        fetch_ms=FETCH_MS,
        mb_per_s=None,
        render_ms=RENDER_MS,
        cache=cache,
    )


def splits(trace: str) -> Iterator[list[Run]]:
    usual = place(trace)
    other_budgets = [place(trace, budget=budget) for budget in OTHER_BUDGETS]
    yield [usual, *other_budgets, *(with_delays(usual, *delays) for delays in OTHER_DELAYS)]


def policies(trace: str) -> Iterator[list[Run]]:
    for policy in POLICIES:
        how = ["moving", *(f"{share:.2f}" for share in POLICY_SHARES)]
        how += ["shadowed"] if policy in SHADOWED else []
        yield [place(trace, cache=f"{policy} {way}") for way in how]


def plain(trace: str) -> Iterator[list[Run]]:
    for fetch_ms, mb_per_s, budget in STORES:
        usual = fetch_ms in (10.0, 50.0) and mb_per_s is None and budget == BUDGET
        if not usual and trace not in FEW_TRACES:
            continue
        run = place(trace, budget=budget)
        lru = (PLAIN_LRU,) if usual else ()
        yield [with_delays(run.of(cache), fetch_ms, 0, mb_per_s) for cache in (PLAIN, *lru)]
        yield [with_delays(run, fetch_ms, render_ms, mb_per_s) for render_ms in RENDERS_MS]


def budgets(trace: str) -> Iterator[list[Run]]:
    if trace in FEW_TRACES:
        for budget in BUDGET_SWEEP:
            run = with_delays(place(trace, budget=budget), 50.0, RENDER_MS)
            yield [run, run.of(PIXELS), run.of(PLAIN)]


EXPERIMENTS: dict[str, Callable[[str], Iterable[list[Run]]]] = {
    "splits": splits,
    "plain": plain,
    "policies": policies,
    "budgets": budgets,
}


def with_delays(run: Run, fetch_ms: float, render_ms: float, mb_per_s: float | None = None) -> Run:
    return Run(
        trace=run.trace,
        budget=run.budget,
        fetch_ms=fetch_ms,
        mb_per_s=mb_per_s,
        render_ms=render_ms,
        cache=run.cache,
    )


def jobs_of(results: Results, experiment: str) -> list[Job]:
    """Return what is to be done, longest jobs first."""
    size = Size(results.requests, results.pictures, results.seed)
    sweeps = experiment == "splits"
    jobs = []
    for trace in all_traces(size.requests, size.pictures, seed=size.seed):
        for runs in EXPERIMENTS[experiment](trace):
            places = {run.of(AUTO) for run in runs}
            known = {r: result for r, result in results.by_run.items() if r.of(AUTO) in places}
            if sweeps or not set(runs) <= known.keys():
                jobs.append(Job(size, tuple(runs), sweeps, known))
    return sorted(jobs, key=lambda job: -len(job.runs))


def work(job: Job) -> dict[Run, Result]:
    """Return the results of a job, with those that were known."""
    done = dict(job.known)
    for run in job.runs:
        once(job.size, run, done)
    if job.sweeps:
        for number, run in enumerate(job.runs):
            start = COARSE if number == 0 else (0.5, 1.0, expected_best(job.runs[0], run, done))
            sweep(job.size, run, start, done)
    return done


def sweep(size: Size, run: Run, shares: Iterable[float], done: dict[Run, Result]) -> None:
    """Replay fixed splits, and all next to the best of them until it is the best there is."""
    wanted = set(shares)
    while True:
        for share in wanted:
            once(size, run.of(split(share)), done)
        means = {
            share: done[run.of(split(share))].mean_ms
            for share in SHARES
            if run.of(split(share)) in done
        }
        at = SHARES.index(min(means, key=lambda share: means[share]))
        wanted = set(SHARES[max(0, at - 1) : at + 2]) - means.keys()
        if not wanted:
            return


def expected_best(like: Run, run: Run, done: dict[Run, Result]) -> float:
    """Return the best split, if as many were found as with the delays and budget of *like*."""

    def expected_ms(result: Result) -> float:
        fetches_ms = result.misses * run.fetch_ms
        return fetches_ms + (result.latents + result.misses) * run.render_ms

    swept = {
        share: done[like.of(split(share))] for share in SHARES if like.of(split(share)) in done
    }
    return min(swept, key=lambda share: expected_ms(swept[share]))


def once(size: Size, run: Run, done: dict[Run, Result]) -> None:
    if run in done:
        return
    usual = run.budget == BUDGET and run.mb_per_s is None
    done[run] = result_of(
        replay(*cache_of(run, trace_of(size, run.trace))),
        quantiles=usual and run.cache in PLOTTED_CACHES and run.trace in FEW_TRACES,
        shares=usual and run.cache == AUTO and run.trace in MOVING_TRACES,
    )


def cache_of(run: Run, trace: Trace) -> tuple[Trace, SimulatedCache, Delays]:
    """Return what *run* replays: the trace, the empty cache, and the delays."""
    delays = run.delays
    budget_bytes = int(trace.total_pixel_bytes * run.budget)
    if run.plain:
        trace, delays = plain_store(trace, delays)
    cache: SimulatedCache
    if run.cache == PLAIN_LRU:
        cache = PolicyTiers(trace, delays, budget_bytes=budget_bytes, policy=Lru, pixel_share=1.0)
    elif run.cache in (AUTO, PLAIN) or run.pixel_share is not None:
        share = 1.0 if run.plain else run.pixel_share
        cache = ProductCache(trace, delays, budget_bytes=budget_bytes, pixel_share=share)
    else:
        policy, how = run.cache.split()
        cache = PolicyTiers(
            trace,
            delays,
            budget_bytes=budget_bytes,
            policy=POLICIES[policy],
            pixel_share=MovingLine() if how in ("moving", "shadowed") else float(how),
            shadowed=how == "shadowed",
        )
    return trace, cache, delays


@lru_cache(maxsize=2)
def trace_of(size: Size, name: str) -> Trace:
    return all_traces(size.requests, size.pictures, seed=size.seed)[name]()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=EXPERIMENTS, action="append", help="may be repeated")
    parser.add_argument("--requests", type=int, default=100_000, help="of each trace")
    parser.add_argument("--pictures", type=int, default=10_000, help="of each trace")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--output", type=Path, default=Path("docs/caches/results.json"))
    parser.add_argument("--again", action="store_true", help="forget what the output has")
    arguments = parser.parse_args()
    results = Results(arguments.requests, arguments.pictures, arguments.seed, {})
    if arguments.output.exists() and not arguments.again:
        before = Results.load(arguments.output)
        if (before.requests, before.pictures, before.seed) == (
            results.requests,
            results.pictures,
            results.seed,
        ):
            results = before
    for experiment in arguments.only or EXPERIMENTS:
        make(results, experiment, processes=arguments.jobs, output=arguments.output)
    for line in tables(results):
        print(line)


def make(results: Results, experiment: str, *, processes: int, output: Path) -> None:
    """Do an experiment, and write the results of each job as it ends."""
    jobs = jobs_of(results, experiment)
    start_s = time.monotonic()
    with multiprocessing.Pool(processes) as pool:
        for number, done in enumerate(pool.imap_unordered(work, jobs), 1):
            results.by_run.update(done)
            results.save(output)
            passed_s = time.monotonic() - start_s
            print(f"{experiment}: {number} of {len(jobs)}, {passed_s:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
