#!/usr/bin/env python3
"""What the cache would do for your own readers: replays a trace in the CSV form of libCacheSim.

    tools/replay_trace.py access.csv --form 'time-col=1, obj-id-col=2, obj-size-col=3'

A line of the trace is a request: when, which object, of how many bytes.  Prints a Markdown table:
the split that moves by itself, some fixed ones, and a cache of the same bytes over a store of
finished files.
"""

from __future__ import annotations

import argparse
from math import inf
from pathlib import Path

from cachesim.caches import ProductCache
from cachesim.simulator import Delays, Replay, plain_store, replay
from cachesim.trace import Trace
from cachesim.trace_file import CsvForm, parse_form, read_trace

from latentfs.cache.ranking import Form
from latentfs.errors import LatentfsError

SHARES = (None, 0.0, 0.25, 0.5, 0.75, 0.9, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("trace", type=Path)
    parser.add_argument("--form", type=parse_form, default=CsvForm(), help="as libCacheSim's -t")
    parser.add_argument("--time-unit-s", type=float, default=1.0, help="of the column of times")
    parser.add_argument("--latent-ratio", type=float, default=12.0, help="file size / latent size")
    parser.add_argument("--cache-mb", type=float, required=True)
    parser.add_argument("--fetch-ms", type=float, default=10.0)
    parser.add_argument("--mb-per-s", type=float, default=inf, help="that the store sends")
    parser.add_argument("--render-ms", type=float, default=30.0, help="of a picture of mean size")
    arguments = parser.parse_args()
    try:
        trace = read_trace(
            arguments.trace,
            form=arguments.form,
            latent_ratio=arguments.latent_ratio,
            time_unit_s=arguments.time_unit_s,
        )
    except LatentfsError as error:
        parser.error(str(error))
    delays = Delays(
        fetch_s=arguments.fetch_ms / 1e3,
        render_s=arguments.render_ms / 1e3,
        bytes_per_s=arguments.mb_per_s * 1e6,
    )
    print_table(trace, delays, budget_bytes=int(arguments.cache_mb * 1e6))


def print_table(trace: Trace, delays: Delays, *, budget_bytes: int) -> None:
    """Print what readers would wait with each cache."""
    print(f"{trace.requests:,} requests for {trace.pictures:,} objects\n")
    print("| cache | mean, ms | p50 | p95 | p99 | p99.9 | pixels | latents | misses |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for share in SHARES:
        cache = ProductCache(trace, delays, budget_bytes=budget_bytes, pixel_share=share)
        label = "moving" if share is None else f"{share:.0%} pixels"
        print_row(label, replay(trace, cache, delays))
    trace, delays = plain_store(trace, delays)
    cache = ProductCache(trace, delays, budget_bytes=budget_bytes, pixel_share=1.0)
    print_row("finished files", replay(trace, cache, delays))


def print_row(label: str, replayed: Replay) -> None:
    waits_s = [replayed.mean_s, *(replayed.percentile_s(p) for p in (50, 95, 99, 99.9))]
    parts = [replayed.part(form) for form in (Form.PIXELS, Form.LATENT, Form.NOTHING)]
    values = [f"{wait_s * 1e3:.2f}" for wait_s in waits_s] + [f"{part:.1%}" for part in parts]
    print(f"| {label} | {' | '.join(values)} |")


if __name__ == "__main__":
    main()
