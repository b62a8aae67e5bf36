"""Replays a trace under a virtual clock: what each reader would have waited."""

from __future__ import annotations

from dataclasses import dataclass, replace
from heapq import heappop, heappush
from math import inf
from typing import Protocol

import numpy as np

from cachesim.trace import Floats, Ints, Trace
from latentfs.cache.ranking import Form

__all__ = ["Delays", "Replay", "SimulatedCache", "plain_store", "replay"]

_SHARES_KEPT = 400


class SimulatedCache(Protocol):
    """A cache of the pictures of a trace, which are numbered."""

    def request(self, picture: int) -> Form:
        """Count a request; return what is held of the picture."""
        ...

    def fetched(self, picture: int) -> None:
        """Keep a latent, if that is worth it."""
        ...

    def rendered(self, picture: int) -> None:
        """Keep pixels, if that is worth it."""
        ...

    def pixel_share(self) -> float:
        """Return what part of the bytes held are pixels."""
        ...


@dataclass(frozen=True, slots=True)
class Delays:
    """What readers wait for, in seconds.

    Attributes:
        fetch_s: until the store begins to send anything.
        render_s: of a picture of weight 1.
        hit_s: what every read takes.
        bytes_per_s: that the store sends.
    """

    fetch_s: float
    render_s: float
    hit_s: float = 0.0002
    bytes_per_s: float = inf

    def fetches_s(self, sizes_bytes: Ints) -> Floats:
        """Return what fetching so many bytes takes."""
        fetches_s: Floats = self.fetch_s + sizes_bytes / self.bytes_per_s
        return fetches_s


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """What came of a trace.

    Attributes:
        waits_s: of each request.
        forms: requests that found pixels, a latent, nothing; one that waited for a render that was
            going on already found what that one did.
        share_at: (number of the request, part of the bytes that were pixels), some hundred times.
    """

    waits_s: Floats
    forms: dict[Form, int]
    share_at: list[tuple[int, float]]

    @property
    def mean_s(self) -> float:
        return float(self.waits_s.mean())

    def percentile_s(self, percent: float) -> float:
        return float(np.percentile(self.waits_s, percent))

    def part(self, form: Form) -> float:
        """Return the part of all requests that found *form*."""
        return self.forms[form] / len(self.waits_s)


def replay(trace: Trace, cache: SimulatedCache, delays: Delays) -> Replay:
    """Give *cache* the requests of *trace* as they come.

    Renderers and the store are never busy: each render and fetch takes what it takes.  One that is
    going on is shared by all who want the same picture meanwhile.
    """
    render_s = (trace.render_weights * delays.render_s).tolist()
    fetch_s = delays.fetches_s(trace.latent_bytes).tolist()
    waits_s: list[float] = []
    forms = dict.fromkeys(Form, 0)
    share_at: list[tuple[int, float]] = []
    share_every = max(1, trace.requests // _SHARES_KEPT)
    ends: list[tuple[float, int]] = []
    flying: dict[int, tuple[float, Form]] = {}
    for number, (now_s, picture) in enumerate(
        zip(trace.times_s.tolist(), trace.objects.tolist(), strict=True)
    ):
        while ends and ends[0][0] <= now_s:
            _land(heappop(ends)[1], flying, cache)
        form = cache.request(picture)
        if picture in flying:
            end_s, form = flying[picture]
            waits_s.append(end_s - now_s + delays.hit_s)
        elif form is Form.PIXELS:
            waits_s.append(delays.hit_s)
        else:
            wait_s = render_s[picture] + (fetch_s[picture] if form is Form.NOTHING else 0.0)
            flying[picture] = (now_s + wait_s, form)
            heappush(ends, (now_s + wait_s, picture))
            waits_s.append(wait_s + delays.hit_s)
        forms[form] += 1
        if number % share_every == 0:
            share_at.append((number, cache.pixel_share()))
    return Replay(np.asarray(waits_s), forms, share_at)


def plain_store(trace: Trace, delays: Delays) -> tuple[Trace, Delays]:
    """Return what stands for the same requests of pictures that are stored as finished files.

    To fetch one is what a render was, and there is nothing else to fetch.
    """
    fetches_s = delays.fetches_s(trace.pixel_bytes)
    return replace(trace, render_weights=fetches_s), replace(
        delays, fetch_s=0.0, render_s=1.0, bytes_per_s=inf
    )


def _land(picture: int, flying: dict[int, tuple[float, Form]], cache: SimulatedCache) -> None:
    if flying.pop(picture)[1] is Form.NOTHING:
        cache.fetched(picture)
    cache.rendered(picture)
