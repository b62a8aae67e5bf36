#!/usr/bin/env python3
"""Draws the pictures of docs/caching.md from what tools/simulate_caches.py has written.

    tools/plot_caches.py [--results docs/caches/results.json] [--folder docs/caches]

Needs matplotlib: pip install 'latentfs[plots]'.  The same results give the same files.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from cachesim.policies import POLICIES
from cachesim.results import (
    AUTO,
    EVEN,
    PIXELS,
    PLAIN,
    QUANTILES,
    Result,
    Results,
    Run,
    policy_results,
)
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

# Of Okabe and Ito, which all sorts of eyes tell apart.
BLUE, ORANGE, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#777777"
BUDGET = 0.05
FEW_TRACES = ("zipf-0.8", "ageing", "galleries")
CACHES = (
    (AUTO, "auto", BLUE, "-"),
    (EVEN, "half for pixels", PURPLE, "-."),
    (PIXELS, "pixels only", ORANGE, "--"),
    (PLAIN, "plain PNG files, pixels cached", GREY, ":"),
)
DELAYS = ((10.0, 30.0, ORANGE, "o"), (50.0, 30.0, BLUE, "s"), (50.0, 10.0, GREEN, "^"))


def run_of(
    trace: str,
    cache: str = AUTO,
    *,
    fetch_ms: float = 10.0,
    render_ms: float = 30.0,
    budget: float = BUDGET,
) -> Run:
    return Run(
        trace=trace,
        budget=budget,
        fetch_ms=fetch_ms,
        mb_per_s=None,
        render_ms=render_ms,
        cache=cache,
    )


def traces_of(results: Results) -> list[str]:
    """Return all traces, those of one sort side by side."""
    names = {run.trace for run in results.by_run}
    return sorted(names, key=lambda name: (not name.startswith("zipf"), name))


def plot_splits(results: Results) -> Figure:
    """Mean wait by fixed split, and of the split that moves."""
    figure, grid = plt.subplots(3, 4, figsize=(11, 8), sharex=True, layout="constrained")
    for axes, trace in zip(grid.flat, traces_of(results), strict=True):
        for fetch_ms, render_ms, colour, marker in DELAYS:
            run = run_of(trace, fetch_ms=fetch_ms, render_ms=render_ms)
            label = f"{fetch_ms:g} / {render_ms:g} ms"
            swept = results.splits(run)
            means = [result.mean_ms for result in swept.values()]
            axes.plot(list(swept), means, marker, ls="-", lw=1, ms=4, c=colour, label=label)
            axes.axhline(results.by_run[run].mean_ms, color=colour, ls="--", lw=1.5)
        axes.set_title(trace, fontsize=10)
        axes.set_ylim(bottom=0)
    figure.supxlabel("part of the budget for pixels, fixed (dashed: the split that moves)")
    figure.supylabel("mean wait, ms")
    title = "fetch / render:"
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), title=title, loc="outside upper center", ncols=3
    )
    return figure


def plot_hits(results: Results) -> Figure:
    """What requests find, with the split that moves."""
    traces = traces_of(results)
    figure, row = plt.subplots(1, 3, figsize=(11, 4.2), sharey=True, layout="constrained")
    forms = (("pixels", BLUE, ""), ("latents", ORANGE, "//"), ("misses", "#dddddd", ""))
    for axes, (fetch_ms, render_ms, _, _) in zip(row, DELAYS, strict=True):
        found = [
            results.by_run[run_of(trace, fetch_ms=fetch_ms, render_ms=render_ms)]
            for trace in traces
        ]
        left = np.zeros(len(traces))
        for form, colour, hatch in forms:
            parts = np.array([getattr(result, form) for result in found]) * 100
            axes.barh(
                traces, parts, left=left, color=colour, hatch=hatch, edgecolor="white", label=form
            )
            left += parts
        axes.set_title(f"fetch {fetch_ms:g} ms, render {render_ms:g} ms", fontsize=10)
        axes.set_xlim(0, 100)
    row[0].invert_yaxis()
    figure.supxlabel("requests that found it, %")
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


def plot_waits(results: Results) -> Figure:
    """How many readers wait how long."""
    figure, grid = plt.subplots(
        2, 3, figsize=(11, 6.4), sharey=True, sharex=True, layout="constrained"
    )
    for row, render_ms in zip(grid, (30.0, 10.0), strict=True):
        for axes, trace in zip(row, FEW_TRACES, strict=True):
            for cache, label, colour, style in CACHES:
                run = run_of(trace, cache, fetch_ms=50.0, render_ms=render_ms)
                waits_ms = results.by_run[run].quantiles_ms
                assert waits_ms is not None, run
                at, percents = [waits_ms[0], *waits_ms], [0.0, *QUANTILES]
                axes.plot(at, percents, drawstyle="steps-pre", c=colour, ls=style, label=label)
            axes.set_title(f"{trace}, render {render_ms:g} ms", fontsize=10)
            axes.set_xscale("log")
            axes.set_xticks([0.2, 1, 10, 30, 60], ["0.2", "1", "10", "30", "60"])
            axes.set_xticks([], minor=True)
            axes.grid(alpha=0.3)
    figure.supxlabel("wait, ms (fetch 50 ms)")
    figure.supylabel("requests answered by then, %")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def plot_shares(results: Results) -> Figure:
    """Where the split moves to."""
    traces = ("midway", "shifting", "diurnal")
    figure, row = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True, layout="constrained")
    for axes, trace in zip(row, traces, strict=True):
        for fetch_ms, render_ms, colour, _ in DELAYS:
            run = run_of(trace, fetch_ms=fetch_ms, render_ms=render_ms)
            shares = results.by_run[run].shares
            assert shares is not None, run
            requests = np.linspace(0, results.requests, len(shares), endpoint=False) / 1000
            label = f"{fetch_ms:g} / {render_ms:g} ms"
            axes.plot(requests, np.array(shares) * 100, c=colour, lw=1.5, label=label)
        axes.set_title(trace, fontsize=10)
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
    figure.supxlabel("thousand requests")
    row[0].set_ylabel("pixels, % of the bytes held")
    title = "fetch / render:"
    figure.legend(
        *row[0].get_legend_handles_labels(), title=title, loc="outside upper center", ncols=3
    )
    return figure


def plot_policies(results: Results) -> Figure:
    """How much longer readers wait with other policies of eviction."""
    figure, axes = plt.subplots(figsize=(8, 4.2), layout="constrained")
    ways = (("moving", -0.2, BLUE, "o"), ("best fixed", 0.2, ORANGE, "s"))
    for way, shift, colour, marker in ways:
        for at, policy in enumerate(POLICIES):
            over = [
                (others[way] / auto_ms - 1) * 100
                for auto_ms, others in policy_results(results, policy).values()
            ]
            label = f"line: {way}" if at == 0 else None
            axes.bar(at + shift, float(np.mean(over)), 0.36, color=colour, alpha=0.35, label=label)
            axes.plot([at + shift] * len(over), over, marker, c=colour, ms=4)
    axes.axhline(0, color="black", lw=1)
    axes.set_xticks(range(len(POLICIES)), list(POLICIES))
    axes.set_ylabel("mean wait over that of latentfs, %")
    figure.legend(title="bars: mean of traces, points: traces", loc="outside upper center", ncols=2)
    return figure


def plot_budgets(results: Results) -> Figure:
    """What more memory is worth."""
    figure, row = plt.subplots(1, 3, figsize=(11, 3.8), layout="constrained")
    for axes, trace in zip(row, FEW_TRACES, strict=True):
        for cache, label, colour, style in CACHES:
            if cache == EVEN:
                continue
            found: dict[float, Result] = {
                run.budget: result
                for run, result in results.by_run.items()
                if run == run_of(trace, cache, fetch_ms=50.0, budget=run.budget)
            }
            budgets = sorted(found)
            means = [found[budget].mean_ms for budget in budgets]
            percents = [budget * 100 for budget in budgets]
            axes.plot(percents, means, "o", ls=style, ms=4, c=colour, label=label)
        axes.set_title(trace, fontsize=10)
        axes.set_xscale("log")
        axes.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
        axes.set_xticks([], minor=True)
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    figure.supxlabel("budget, % of the bytes of all finished files")
    row[0].set_ylabel("mean wait, ms (fetch 50, render 30)")
    figure.legend(*row[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


PLOTS: dict[str, Callable[[Results], Figure]] = {
    "splits": plot_splits,
    "hits": plot_hits,
    "waits": plot_waits,
    "shares": plot_shares,
    "policies": plot_policies,
    "budgets": plot_budgets,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=Path("docs/caches/results.json"))
    parser.add_argument("--folder", type=Path, default=Path("docs/caches"), help="for the pictures")
    parser.add_argument("--format", default="svg", help="as matplotlib names it")
    arguments = parser.parse_args()
    results = Results.load(arguments.results)
    mpl.use("agg")
    mpl.rcParams["svg.hashsalt"] = "latentfs"
    for name, plot in PLOTS.items():
        path = arguments.folder / f"{name}.{arguments.format}"
        date = {"Date": None} if arguments.format == "svg" else None
        plot(results).savefig(path, metadata=date)
        plt.close()


if __name__ == "__main__":
    main()
