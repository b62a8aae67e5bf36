#!/usr/bin/env python3
"""What the cache itself costs: time for each request, and memory for each entry.

tools/bench_cache.py --json figures.json

Times are of the processor, and of bookkeeping alone: what is held is one small object, shared by
all entries.  Memory is what the process has grown by (its resident set, in a process of its own for
each row) after enough pictures have passed for the cache to be full and to know as many that it no
longer holds as it ever will; the entries' keys are counted, what they stand for is not.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

from latentfs.cache.ranking import Form
from latentfs.cache.tiered_cache import ENTRY_BYTES, CachedPicture, TieredCache

PIXELS_BYTES = 1_500_000
LATENT_BYTES = 60_000
KEY_BYTES = 16
KIND = "vae"
HELD = object()
# Pictures that pass for each that stays, so that the cache knows all the others that it can.
PASSING = 1.75
TIMED_REQUESTS = 200_000


@dataclass(frozen=True, slots=True)
class Time:
    request: str
    entries: int
    microseconds: float


@dataclass(frozen=True, slots=True)
class Memory:
    held: str
    pictures: int
    bytes_per_picture: float
    bytes_per_entry: float


Cache = TieredCache[object, object]
Keep = Callable[[Cache, CachedPicture], None]


def keep_latent(cache: Cache, picture: CachedPicture) -> None:
    cache.keep_latent(picture, HELD, held_bytes=LATENT_BYTES)


def keep_pixels(cache: Cache, picture: CachedPicture) -> None:
    cache.keep_pixels(picture, HELD, held_bytes=PIXELS_BYTES)


def keep_both(cache: Cache, picture: CachedPicture) -> None:
    keep_latent(cache, picture)
    keep_pixels(cache, picture)


LATENT_ENTRY_BYTES = LATENT_BYTES + ENTRY_BYTES
PIXELS_ENTRY_BYTES = PIXELS_BYTES + ENTRY_BYTES
BOTH_BYTES = LATENT_ENTRY_BYTES + PIXELS_ENTRY_BYTES


def cache_for(held: str, pictures: int) -> tuple[Cache, Keep, int]:
    """Return a cache with room for so many pictures, how one is kept, and its entries each."""
    if held == "latents":
        return TieredCache(budget_bytes=pictures * LATENT_ENTRY_BYTES), keep_latent, 1
    if held == "pixels":
        return TieredCache(budget_bytes=pictures * PIXELS_ENTRY_BYTES), keep_pixels, 1
    share = (PIXELS_ENTRY_BYTES + 0.5) / BOTH_BYTES
    return TieredCache(budget_bytes=pictures * BOTH_BYTES, pixel_share=share), keep_both, 2


def new_picture() -> CachedPicture:
    return CachedPicture(os.urandom(KEY_BYTES), PIXELS_BYTES, KIND, random.random() + 0.5)


def filled(held: str, pictures: int) -> tuple[Cache, Keep, list[CachedPicture]]:
    cache, keep, _ = cache_for(held, pictures)
    known = [new_picture() for _ in range(pictures)]
    for picture in known:
        cache.request(picture)
        keep(cache, picture)
    return cache, keep, known


def microseconds(requests: Iterator[CachedPicture], use: Callable[[CachedPicture], None]) -> float:
    pictures = list(requests)
    start_s = time.process_time()
    for picture in pictures:
        use(picture)
    return (time.process_time() - start_s) / len(pictures) * 1e6


def hit_us(held: str, pictures: int) -> float:
    cache, _, known = filled(held, pictures)
    expected = Form.PIXELS if held == "pixels" else Form.LATENT
    value_of = cache.pixels if held == "pixels" else cache.latent

    def use(picture: CachedPicture) -> None:
        if cache.request(picture) is not expected or value_of(picture.key) is None:
            sys.exit("that was no hit")

    chosen = random.Random(1)
    return microseconds((chosen.choice(known) for _ in range(TIMED_REQUESTS)), use)


def miss_us(pictures: int) -> float:
    """Of requests that evict the pixels and the latent of others."""
    cache, keep, _ = filled("both", pictures)

    def use(picture: CachedPicture) -> None:
        cache.request(picture)
        keep(cache, picture)

    return microseconds((new_picture() for _ in range(TIMED_REQUESTS)), use)


def times(pictures: int) -> list[Time]:
    return [
        Time("hit of pixels", pictures, hit_us("pixels", pictures)),
        Time("hit of a latent", pictures, hit_us("latents", pictures)),
        Time("miss that evicts both", pictures, miss_us(pictures)),
    ]


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory(held: str, pictures: int) -> Memory:
    filled(held, 1000)
    gc.collect()
    before_bytes = resident_bytes()
    cache, keep, entries_each = cache_for(held, pictures)
    for _ in range(int(PASSING * pictures)):
        picture = new_picture()
        cache.request(picture)
        keep(cache, picture)
    gc.collect()
    each = (resident_bytes() - before_bytes) / pictures
    statistics = cache.statistics()
    if statistics.pixel_entries + statistics.latent_entries < 0.99 * entries_each * pictures:
        sys.exit(f"{held}: the cache holds less than it should: {statistics}")
    return Memory(held, pictures, each, each / entries_each)


def in_a_process(held: str, pictures: int) -> Memory:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        return executor.submit(memory, held, pictures).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--pictures", type=int, default=1_000_000, help="held, for the memory")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    print(f"{'request':24}{'entries':>12}{'us':>8}")
    timed = []
    for entries in options.entries:
        for row in times(entries):
            print(f"{row.request:24}{row.entries:12,}{row.microseconds:8.2f}", flush=True)
            timed.append(row)
    print(f"\n{'held':24}{'pictures':>12}{'bytes each':>12}{'an entry':>10}")
    measured = []
    for held in ("latents", "pixels", "both"):
        grown = in_a_process(held, options.pictures)
        print(
            f"{grown.held:24}{grown.pictures:12,}{grown.bytes_per_picture:12.0f}"
            f"{grown.bytes_per_entry:10.0f}",
            flush=True,
        )
        measured.append(grown)
    if options.json:
        figures = {"times": list(map(asdict, timed)), "memory": list(map(asdict, measured))}
        options.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
