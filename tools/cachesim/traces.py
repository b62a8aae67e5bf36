"""Traces drawn from models of how people and programs read pictures.

Each function draws one trace; the same arguments give the same arrays.  Traces of one seed and
number of pictures show the same collection (but for `mixed`), so that they differ only in how it
is read.  Unless a docstring says otherwise, pictures are 1024x1024 with one VAE, and requests
arrive at random (Poisson) at 20 a second.

    for name, draw in all_traces().items():
        trace = draw()
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from functools import partial

import numpy as np

from cachesim.trace import FULL, TINY, WIDE, Floats, Ints, Pictures, Trace, draw_pictures, trace_of
from latentfs.errors import InvalidArgumentError

__all__ = [
    "Trace",
    "ageing",
    "all_traces",
    "crawler",
    "diurnal",
    "flash_crowd",
    "galleries",
    "midway",
    "mixed",
    "shifting",
    "zipf",
]

REQUESTS = 1_000_000
PICTURES = 100_000
REQUESTS_PER_S = 20.0
DAY_S = 86_400.0
SMALLEST = 100
"""Fewer requests or pictures don't show what a trace stands for."""


def all_traces(
    requests: int = REQUESTS, pictures: int = PICTURES, *, seed: int = 0
) -> dict[str, Callable[[], Trace]]:
    """Every trace by name, always in this order; each is drawn when its value is called."""
    size = {"requests": requests, "pictures": pictures, "seed": seed}
    named: dict[str, Callable[[], Trace]] = {
        f"zipf-{alpha}": partial(zipf, **size, alpha=alpha) for alpha in (0.6, 0.8, 1.0, 1.2)
    }
    for draw in (ageing, shifting, diurnal, galleries, crawler, flash_crowd, mixed, midway):
        named[draw.__name__.replace("_", "-")] = partial(draw, **size)
    return named


def zipf(
    requests: int = REQUESTS, pictures: int = PICTURES, *, seed: int = 0, alpha: float = 0.8
) -> Trace:
    """Popularity that never changes: the picture of rank r is read in proportion to r**-alpha.

    Stands for a settled collection.  Caches of the web see an `alpha` of 0.6 to 0.8, a site with
    stars among its pictures 1.0 to 1.2.
    """
    rng = _generator(seed, "zipf", requests, pictures)
    ranked = rng.permutation(pictures)
    objects = ranked[_zipf_ranks(rng, requests, pictures, alpha)]
    times_s = _poisson_times_s(rng, requests)
    return trace_of(f"zipf-{alpha}", times_s, objects, _collection(pictures, seed))


def ageing(
    requests: int = REQUESTS,
    pictures: int = PICTURES,
    *,
    seed: int = 0,
    days: float = 365.0,
    archive_share: float = 0.5,
    age_scale_days: float = 1.0,
    tail: float = 0.8,
    spread: float = 2.3,
) -> Trace:
    """A feed: pictures are made all the time, most reads are of new ones, a few go on for years.

    In `days`, pictures are born evenly, and their index is the order of their birth; the share
    `archive_share` was born at the same pace before the first request.  A picture is read at age
    a in proportion to (1 + a / `age_scale_days`)**-(1 + `tail`): half of its reads come within
    1.4 days, 6% after a month, 1% after a year.  How often differs between pictures by a
    log-normal factor of `spread`, so that many are read once, or never, and some for ever.
    """
    rng = _generator(seed, "ageing", requests, pictures)
    first_birth = -days * archive_share / (1 - archive_share)
    births = np.linspace(first_birth, days, pictures, endpoint=False)
    liking = np.exp(spread * rng.standard_normal(pictures))

    def still_unread(age: Floats) -> Floats:
        return (1 + age / age_scale_days) ** -tail

    at_start, at_end = still_unread(np.maximum(0.0, -births)), still_unread(days - births)
    chosen = _weighted(rng, requests, liking * (at_start - at_end))
    unread = at_end[chosen] + rng.random(requests) * (at_start - at_end)[chosen]
    ages = age_scale_days * (unread ** (-1 / tail) - 1)
    times_s = np.clip(births[chosen] + ages, 0.0, days) * DAY_S
    return _in_order("ageing", times_s, chosen, _collection(pictures, seed))


def shifting(
    requests: int = REQUESTS,
    pictures: int = PICTURES,
    *,
    seed: int = 0,
    phases: int = 20,
    set_share: float = 0.05,
    loyalty: float = 0.9,
    alpha: float = 0.8,
) -> Trace:
    """People work on one project, then on the next: the working set changes at once.

    The trace has `phases` of equal length.  In each, the share `loyalty` of the reads goes to
    `set_share` of all pictures, drawn anew and read by a Zipf law with `alpha`; the others go to
    any picture.
    """
    rng = _generator(seed, "shifting", requests, pictures)
    members = max(1, round(pictures * set_share))
    objects = rng.integers(pictures, size=requests)
    for phase in np.array_split(np.arange(requests), phases):
        loyal = phase[rng.random(len(phase)) < loyalty]
        working_set = rng.choice(pictures, size=members, replace=False)
        objects[loyal] = working_set[_zipf_ranks(rng, len(loyal), members, alpha)]
    times_s = _poisson_times_s(rng, requests)
    return trace_of("shifting", times_s, objects, _collection(pictures, seed))


def diurnal(
    requests: int = REQUESTS,
    pictures: int = PICTURES,
    *,
    seed: int = 0,
    days: int = 4,
    audiences: tuple[float, ...] = (1.0, 0.5, 0.25),
    night: float = 0.05,
    alpha: float = 0.9,
) -> Trace:
    """Readers around the world: load and taste follow the hour.

    There is an audience for each element of `audiences`, which says how large it is; their noons
    are evenly apart, the first at the start of each day.  An audience's load falls from noon to
    midnight as a cosine, down to `night` of its noon, and each reads the whole collection by a
    Zipf law with `alpha`, with its own favourites.
    """
    rng = _generator(seed, "diurnal", requests, pictures)
    noons = np.arange(len(audiences)) / len(audiences)

    def loads(times_s: Floats) -> Floats:
        day_part = np.cos(2 * np.pi * (times_s[:, None] / DAY_S - noons))
        return np.asarray(audiences) * (night + (1 - night) * (1 + day_part) / 2)

    minutes_s = np.linspace(0.0, days * DAY_S, days * 1440 + 1)
    arrived = np.concatenate([[0.0], np.cumsum(loads(minutes_s[:-1] + 30).sum(axis=1))])
    times_s = np.interp(np.sort(rng.random(requests)) * arrived[-1], arrived, minutes_s)
    shares = np.cumsum(loads(times_s), axis=1)
    audience = (rng.random(requests)[:, None] * shares[:, -1:] > shares[:, :-1]).sum(axis=1)
    favourites = np.stack([rng.permutation(pictures) for _ in audiences])
    objects = favourites[audience, _zipf_ranks(rng, requests, pictures, alpha)]
    return trace_of("diurnal", times_s, objects, _collection(pictures, seed))


def galleries(
    requests: int = REQUESTS,
    pictures: int = PICTURES,
    *,
    seed: int = 0,
    folder_pictures: float = 40.0,
    alpha: float = 0.8,
    single_share: float = 0.15,
    gap_s: float = 0.5,
) -> Trace:
    """People open a folder and look at its pictures one after the other.

    Folders are neighbours by index and have `folder_pictures` on average (geometric).  Which
    folder is opened follows a Zipf law with `alpha`; half of the visits see all of it, the others
    stop anywhere; pictures follow each other after `gap_s` on average, and visits overlap.  The
    share `single_share` of the reads are of single pictures, by the same law.
    """
    rng = _generator(seed, "galleries", requests, pictures)
    ends = np.minimum(np.cumsum(rng.geometric(1 / folder_pictures, size=pictures)), pictures)
    ends = np.unique(ends)
    starts = np.concatenate([[0], ends[:-1]])
    singles = round(requests * single_share)
    in_order = requests - singles

    folders = rng.permutation(len(ends))[_zipf_ranks(rng, in_order, len(ends), alpha)]
    seen = np.where(rng.random(in_order) < 0.5, 1.0, rng.random(in_order))
    lengths = np.ceil((ends - starts)[folders] * seen).astype(np.int64)
    # Each visit sees a picture at least, so these are enough visits; the first of them are taken.
    visits = int(np.searchsorted(np.cumsum(lengths), in_order)) + 1
    folders, lengths = folders[:visits], lengths[:visits]
    visit = np.repeat(np.arange(visits), lengths)
    step = np.arange(len(visit)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    duration_s = requests / REQUESTS_PER_S
    opened_s = rng.random(visits) * duration_s
    looked_s = opened_s[visit] + step * gap_s * rng.uniform(0.5, 1.5, visits)[visit]

    alone = rng.permutation(pictures)[_zipf_ranks(rng, singles, pictures, alpha)]
    times_s = np.concatenate([looked_s[:in_order], rng.random(singles) * duration_s])
    objects = np.concatenate([(starts[folders][visit] + step)[:in_order], alone])
    return _in_order("galleries", times_s, objects, _collection(pictures, seed))


def crawler(
    requests: int = REQUESTS,
    pictures: int = PICTURES,
    *,
    seed: int = 0,
    alpha: float = 0.9,
    passes: int = 2,
    pass_share: float = 0.1,
) -> Trace:
    """A Zipf load, and a program (a backup, an indexer) which reads everything `passes` times.

    Each pass reads all pictures in order of their index at an even pace, within the share
    `pass_share` of the time; people read as ever meanwhile.  Raises InvalidArgumentError if the
    passes take more than half of the requests.
    """
    rng = _generator(seed, "crawler", requests, pictures)
    crawled = passes * pictures
    if 2 * crawled > requests:
        raise InvalidArgumentError(
            f"{passes} passes over {pictures} pictures are more than half of {requests} requests; "
            "ask for more requests, fewer pictures or fewer passes"
        )
    people = requests - crawled
    duration_s = requests / REQUESTS_PER_S
    read = rng.permutation(pictures)[_zipf_ranks(rng, people, pictures, alpha)]
    begins = (np.arange(passes) + 0.5) / passes - pass_share / 2
    pace = np.linspace(0.0, pass_share, pictures, endpoint=False)
    crawl_s = (begins[:, None] + pace).ravel() * duration_s
    times_s = np.concatenate([rng.random(people) * duration_s, crawl_s])
    objects = np.concatenate([read, np.tile(np.arange(pictures), passes)])
    return _in_order("crawler", times_s, objects, _collection(pictures, seed))


def flash_crowd(
    requests: int = REQUESTS,
    pictures: int = PICTURES,
    *,
    seed: int = 0,
    alpha: float = 0.9,
    bursts: int = 10,
    burst_pictures: int = 5,
    burst_share: float = 0.2,
    burst_length: float = 0.02,
) -> Trace:
    """A Zipf load, and links which go round: nobody knew a picture, all read it, none does again.

    There are `bursts`, evenly apart, each on `burst_pictures` from the less popular half; together
    they make `burst_share` of the requests.  A burst starts at once and dies away exponentially:
    nine tenths of it are over in the share `burst_length` of the time.
    """
    rng = _generator(seed, "flash-crowd", requests, pictures)
    ranked = rng.permutation(pictures)
    linked = rng.choice(ranked[pictures // 2 :], size=(bursts, burst_pictures))
    crowd = round(requests * burst_share)
    people = requests - crowd
    duration_s = requests / REQUESTS_PER_S
    burst = rng.integers(bursts, size=crowd)
    after = rng.exponential(burst_length / np.log(10), size=crowd)
    crowd_s = np.minimum((burst + 0.5) / bursts + after, 1.0) * duration_s
    read = ranked[_zipf_ranks(rng, people, pictures, alpha)]
    times_s = np.concatenate([rng.random(people) * duration_s, crowd_s])
    objects = np.concatenate([read, linked[burst, rng.integers(burst_pictures, size=crowd)]])
    return _in_order("flash-crowd", times_s, objects, _collection(pictures, seed))


def mixed(
    requests: int = REQUESTS, pictures: int = PICTURES, *, seed: int = 0, alpha: float = 0.8
) -> Trace:
    """A collection of many origins: four sizes and three VAEs, read by a Zipf law with `alpha`.

    A third each are 512 and 1024 pixels wide, the others 768 and 1536; six in ten have a full
    VAE, a quarter a tiny one which renders ten times as fast, the others a wide one which takes
    four times as long and has 16 channels, so that its latents are large.  A render costs from
    1/40 to 9 times that of a 1024x1024 picture with the full VAE; kind 0 is that one.
    """
    rng = _generator(seed, "mixed", requests, pictures)
    collection = draw_pictures(
        pictures,
        rng,
        sides=((1024, 0.35), (512, 0.35), (768, 0.2), (1536, 0.1)),
        vaes=((FULL, 0.6), (TINY, 0.25), (WIDE, 0.15)),
    )
    ranked = rng.permutation(pictures)
    objects = ranked[_zipf_ranks(rng, requests, pictures, alpha)]
    return trace_of("mixed", _poisson_times_s(rng, requests), objects, collection)


def midway(
    requests: int = REQUESTS,
    pictures: int = PICTURES,
    *,
    seed: int = 0,
    hot_share: float = 0.04,
    hot_reads: float = 0.98,
    flat_alpha: float = 0.2,
) -> Trace:
    """A small hot set, and from the middle on nearly everything alike.

    First, `hot_reads` of the requests go to `hot_share` of the pictures, evenly: a cache that
    holds these as pixels (4% of all pixel bytes) renders next to nothing, and room for latents is
    wasted.  Then all pictures are read by a nearly flat Zipf law (`flat_alpha`): pixels of the
    same bytes hit hardly ever, latents of the same bytes more than half of the time.  So no fixed
    share of pixels is good for both halves at a budget near `hot_share` of all pixel bytes.
    """
    rng = _generator(seed, "midway", requests, pictures)
    first = requests // 2
    ranked = rng.permutation(pictures)
    hot = rng.integers(max(1, round(pictures * hot_share)), size=first)
    anything = rng.integers(pictures, size=first)
    narrow = np.where(rng.random(first) < hot_reads, hot, anything)
    flat = _zipf_ranks(rng, requests - first, pictures, flat_alpha)
    objects = ranked[np.concatenate([narrow, flat])]
    times_s = _poisson_times_s(rng, requests)
    return trace_of("midway", times_s, objects, _collection(pictures, seed))


def _generator(seed: int, name: str, requests: int, pictures: int) -> np.random.Generator:
    """Random numbers of its own for each trace, so that a change to one changes no other."""
    for what, value, least in (
        ("requests", requests, SMALLEST),
        ("pictures", pictures, SMALLEST),
        ("seed", seed, 0),
    ):
        if value < least:
            raise InvalidArgumentError(f"{what} is {value}; give {least} or more")
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))


def _collection(pictures: int, seed: int) -> Pictures:
    return draw_pictures(pictures, np.random.Generator(np.random.PCG64(seed)))


def _poisson_times_s(rng: np.random.Generator, requests: int) -> Floats:
    return np.cumsum(rng.exponential(1 / REQUESTS_PER_S, size=requests))


def _zipf_ranks(rng: np.random.Generator, count: int, ranks: int, alpha: float) -> Ints:
    return _weighted(rng, count, np.arange(1, ranks + 1, dtype=np.float64) ** -alpha)


def _weighted(rng: np.random.Generator, count: int, weights: Floats) -> Ints:
    """`count` indexes, drawn in proportion to their weights."""
    sums = np.cumsum(weights)
    drawn = np.searchsorted(sums, rng.random(count) * sums[-1], side="right")
    indexes: Ints = np.minimum(drawn, len(weights) - 1).astype(np.int64)
    return indexes


def _in_order(name: str, times_s: Floats, objects: Ints, pictures: Pictures) -> Trace:
    order = np.argsort(times_s, kind="stable")
    return trace_of(name, times_s[order], objects[order], pictures)
