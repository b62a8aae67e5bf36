"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterator

from cachesim.results import AUTO, EVEN, PIXELS, PLAIN, PLAIN_LRU, Results, Run, judge_splits

__all__ = ["tables"]


def tables(results: Results) -> Iterator[str]:
    """Yield the lines of a table for each experiment."""
    yield from splits_table(results)


def splits_table(results: Results) -> Iterator[str]:
    yield "| trace | budget | fetch, ms | render, ms | auto, ms | best split | ms | auto over best | 50/50, ms | pixels, ms |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
    for judged in judge_splits(results):
        run = judged.run
        yield (
            f"| {run.trace} | {run.budget:.0%} | {run.fetch_ms:g} | {run.render_ms:g} "
            f"| {judged.auto_ms:.2f} | {judged.best_share:g} | {judged.best_ms:.2f} "
            f"| {judged.over_best:+.1%} | {judged.even_ms:.2f} | {judged.pixels_ms:.2f} |"
        )
