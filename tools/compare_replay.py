#!/usr/bin/env python3
"""Replays a trace on a real mount and in the simulator: do their hit rates agree?

    tools/compare_replay.py STORE --trace zipf-0.8 --requests 5000 --rate 100 --cache 20M

Each picture of the store stands for one of the trace.  The simulator gets the sizes that pictures
have there, and the costs that the daemon has measured in the end.  The kernel's pages are dropped
after each read, as the simulator knows of none.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from cachesim.caches import ProductCache
from cachesim.simulator import Delays, replay
from cachesim.trace import Trace
from cachesim.trace_file import write_trace
from cachesim.traces import all_traces

from latentfs.bench.replay import find_pictures
from latentfs.cache.ranking import Form
from latentfs.fs.control import ask_daemon
from latentfs.fs.fetching import held_bytes
from latentfs.render.jobs import job_for_inode
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store
from latentfs.store.tables import ROOT_INO

PIXEL_OVERHEAD_BYTES = sys.getsizeof(b"")


def main() -> None:
    arguments = parsed()
    pictures = stored_pictures(arguments.store)
    drawn = all_traces(arguments.requests, max(100, len(pictures)), seed=arguments.seed)
    trace = on_pictures(drawn[arguments.trace](), pictures, rate=arguments.rate)
    live, costs = replayed_live(arguments, trace)
    simulated = simulate(trace, costs, budget_bytes=arguments.cache, share=arguments.pixel_share)
    print(f"{len(pictures)} pictures, {trace.requests} requests, {arguments.cache} bytes of cache")
    print(f"measured: {costs['fetch_s'] * 1e3:.2f} ms a fetch, {costs['render_s']} s a megapixel")
    print("| | pixel hits | latent hits | misses |\n|---|---|---|---|")
    for name, parts in (("live", live), ("simulated", simulated)):
        print(f"| {name} | {' | '.join(f'{part:.1%}' for part in parts)} |")


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument("--trace", default="zipf-0.8")
    parser.add_argument("--requests", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second")
    parser.add_argument("--cache", type=int, default=20_000_000, help="bytes")
    parser.add_argument("--pixel-share", type=float)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def stored_pictures(store_path: Path) -> list[tuple[int, int, float]]:
    """Return (bytes of the file, bytes held for its latent, megapixels) in order of the paths."""
    with Store.open(store_path) as store, store.read() as snapshot:
        return [_measured(snapshot, store_path, name) for name in _names(snapshot)]


def _names(snapshot: Snapshot) -> list[bytes]:
    return sorted(name for name, _ in snapshot.entries(ROOT_INO))


def _measured(snapshot: Snapshot, store_path: Path, name: bytes) -> tuple[int, int, float]:
    ino = snapshot.lookup(ROOT_INO, name)
    inode = None if ino is None else snapshot.inode(ino)
    if inode is None or inode.content is None:
        sys.exit(f"{name.decode()} in the store is no picture; use a store that has nothing else")
    latent_bytes = held_bytes(job_for_inode(snapshot, store_path, inode))
    return inode.size_bytes, latent_bytes, inode.content.width * inode.content.height / 1e6


def on_pictures(trace: Trace, pictures: list[tuple[int, int, float]], *, rate: float) -> Trace:
    """Give the trace's pictures, in order of their first request, the sizes of real ones."""
    _, first = np.unique(trace.objects % len(pictures), return_index=True)
    objects = trace.objects % len(pictures)
    rank = {int(objects[index]): number for number, index in enumerate(sorted(first))}
    columns = np.asarray(pictures)
    return replace(
        trace,
        times_s=np.arange(trace.requests) / rate,
        objects=np.asarray([rank[picture] for picture in objects.tolist()]),
        pixel_bytes=columns[:, 0].astype(np.int64) + PIXEL_OVERHEAD_BYTES,
        latent_bytes=columns[:, 1].astype(np.int64),
        kinds=np.zeros(len(pictures), np.int64),
        kind_names=("picture",),
        render_weights=columns[:, 2],
    )


def replayed_live(
    arguments: argparse.Namespace, trace: Trace
) -> tuple[list[float], dict[str, Any]]:
    """Return the parts of pixel hits, latent hits and misses, and what the daemon has measured."""
    with tempfile.TemporaryDirectory() as scratch:
        mountpoint, trace_path = Path(scratch, "mnt"), Path(scratch, "trace.csv")
        mountpoint.mkdir()
        write_trace(trace, trace_path)
        share = "auto" if arguments.pixel_share is None else str(arguments.pixel_share)
        command = ["mount", arguments.store, mountpoint, "--prefetch", "0", "--pixel-share", share]
        daemon = subprocess.Popen(
            _latentfs(*command, "--cache", arguments.cache), stderr=subprocess.PIPE, text=True
        )
        try:
            assert daemon.stderr is not None
            print(daemon.stderr.readline(), end="")
            count = len(find_pictures(mountpoint))
            print(f"replaying on {count} files", flush=True)
            options = ("--rate", arguments.rate, "--drop-kernel-pages", "--json")
            done = subprocess.run(
                _latentfs("bench", "replay", trace_path, mountpoint, *options),
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            status = ask_daemon(arguments.store, "status")
        finally:
            daemon.terminate()
            daemon.wait()
    assert status is not None
    print(json.dumps(json.loads(done.stdout), indent=1))
    cache = status["cache"]
    found = [cache["pixel_hits"], cache["latent_hits"], cache["misses"]]
    return [part / sum(found) for part in found], cache


def _latentfs(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "latentfs", *map(str, arguments)]


def simulate(
    trace: Trace, costs: dict[str, Any], *, budget_bytes: int, share: float | None
) -> list[float]:
    [render_s] = costs["render_s"].values()
    delays = Delays(fetch_s=costs["fetch_s"], render_s=render_s)
    cache = ProductCache(trace, delays, budget_bytes=budget_bytes, pixel_share=share)
    found = replay(trace, cache, delays)
    return [found.part(form) for form in (Form.PIXELS, Form.LATENT, Form.NOTHING)]


if __name__ == "__main__":
    main()
