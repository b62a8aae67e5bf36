"""The cache: pictures as finished bytes and as latents, under one budget."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from math import inf
from typing import Generic, TypeVar

from latentfs.cache.costs import MeasuredCosts
from latentfs.cache.decay_tuner import DecayTuner
from latentfs.cache.ranking import Form, Ranking

__all__ = ["ENTRY_BYTES", "CacheStatistics", "CachedPicture", "TieredCache"]

Pixels = TypeVar("Pixels")
Latent = TypeVar("Latent")

# What an entry takes beside the bytes it stands for: records, heap items, keys, trials, ghosts.
ENTRY_BYTES = 400
# Of a latent as part of its file, until some are known.
_LATENT_PART = 1 / 12


@dataclass(frozen=True, slots=True)
class CachedPicture:
    """A picture as the cache knows it.

    Attributes:
        key: equal for all files that have the same bytes.
        size_bytes: of the finished file.
        kind: of its render; those of one kind cost the same for the same weight.
        weight: of its render, in pixels for instance.
    """

    key: Hashable
    size_bytes: int
    kind: Hashable
    weight: float


@dataclass(frozen=True, slots=True)
class CacheStatistics:
    """Counters since the start, what is held now, and why.

    Attributes:
        kernel_hits: requests that the kernel's page cache answered.
        pixel_hits: answered with finished bytes.
        latent_hits: that took a render, but no fetch.
        misses: that took both.
        pixel_evictions, latent_evictions: forms dropped to keep within the budget.
        pixel_entries, latent_entries: held now.
        pixel_bytes, latent_bytes: that they take, with all that is kept to manage them.
        budget_bytes: never exceeded by both together.
        pixel_share: of the budget, as it was asked for; None if it moves by itself.
        pixel_edge_s_per_gb, latent_edge_s_per_gb: what the least valuable gigabyte of either form
            saves readers, in seconds for each request; None where nothing is held.
        fetch_s: that a fetch takes.
        render_s: that a render of weight 1 takes, by its kind.
        half_life_requests: after which a request counts half.
        latent_slowness: how much slower the demand for latents is taken to fall.
    """

    kernel_hits: int
    pixel_hits: int
    latent_hits: int
    misses: int
    pixel_evictions: int
    latent_evictions: int
    pixel_entries: int
    latent_entries: int
    pixel_bytes: int
    latent_bytes: int
    budget_bytes: int
    pixel_share: float | None
    pixel_edge_s_per_gb: float | None
    latent_edge_s_per_gb: float | None
    fetch_s: float
    render_s: dict[str, float]
    half_life_requests: float
    latent_slowness: float


class TieredCache(Generic[Pixels, Latent]):
    """Holds what saves readers most time; see :mod:`latentfs.cache.ranking` for what that is.

    What is evicted while somebody uses it lives on with them, and is no longer counted here.  All
    methods belong to one thread.

    Args:
        budget_bytes: for both forms and all that manages them.
        pixel_share: of the budget for pixels, from 0 to 1; None for wherever they save most.
    """

    def __init__(self, *, budget_bytes: int, pixel_share: float | None = None) -> None:
        self.costs = MeasuredCosts()
        self._budget_bytes = budget_bytes
        self._pixel_share = pixel_share
        self._tuner = DecayTuner(
            budget_bytes=budget_bytes, pixel_share=pixel_share, costs=self.costs
        )
        self._ranking: Ranking[Pixels, Latent] = Ranking(
            budget_bytes=budget_bytes,
            pixel_share=pixel_share,
            costs=self.costs,
            decay=self._tuner.decay,
            on_evicted=self._evicted,
        )
        self._latent_part = _LATENT_PART
        self._requests = dict.fromkeys(Form, 0)
        self._evictions = dict.fromkeys(Form, 0)
        self._kernel_hits = 0

    def request(self, picture: CachedPicture, *, joins_render: bool = False) -> Form:
        """Count a request; return what is held of the picture.

        Args:
            joins_render: it waits for a render that has begun: demand, but neither hit nor miss.
        """
        form = self._ranking.request(picture.key)
        if not joins_render:
            self._requests[form] += 1
        self._tuner.request(
            picture.key,
            pixel_bytes=picture.size_bytes + ENTRY_BYTES,
            latent_bytes=int(picture.size_bytes * self._latent_part) + ENTRY_BYTES,
            kind=picture.kind,
            weight=picture.weight,
        )
        if self._ranking.decay != self._tuner.decay:
            self._ranking.decay = self._tuner.decay
        return form

    def kernel_hit(self, picture: CachedPicture) -> None:
        """Count a read that the kernel has answered from its page cache.

        Only of pictures that were asked for here before, as the kernel has its pages from here.
        The rank stays: what the kernel holds need not be held twice, and readers wait less so
        unless its page cache is small (docs/caching.md has the figures).
        """
        if self._ranking.knows(picture.key):
            self._kernel_hits += 1

    def pixels(self, key: Hashable) -> Pixels | None:
        """Return the finished bytes if they are held; not a request."""
        return self._ranking.pixels(key)

    def latent(self, key: Hashable) -> Latent | None:
        """Return the latent if it is held; not a request."""
        return self._ranking.latent(key)

    def held_bytes(self) -> int:
        """Return what both forms take together."""
        return self._ranking.pixel_bytes + self._ranking.latent_bytes

    @property
    def budget_bytes(self) -> int:
        """That both forms, and all that manages them, may take now."""
        return self._budget_bytes

    def pixel_part(self) -> float:
        """Return what part of the bytes held are pixels."""
        held_bytes = self.held_bytes()
        return self._ranking.pixel_bytes / held_bytes if held_bytes else 0.0

    def keep_latent(self, picture: CachedPicture, latent: Latent, *, held_bytes: int) -> None:
        """Keep what was fetched, if it is worth its bytes.

        Args:
            held_bytes: of memory that *latent* takes.
        """
        self._latent_part += (held_bytes / picture.size_bytes - self._latent_part) / 64
        self._ranking.hold_latent(picture.key, latent, size_bytes=held_bytes + ENTRY_BYTES)

    def keep_pixels(self, picture: CachedPicture, pixels: Pixels, *, held_bytes: int) -> None:
        """Keep what was rendered, if it is worth its bytes.

        Args:
            held_bytes: of memory that *pixels* take.
        """
        self._ranking.hold_pixels(
            picture.key,
            pixels,
            size_bytes=held_bytes + ENTRY_BYTES,
            kind=picture.kind,
            weight=picture.weight,
        )

    def resize(self, budget_bytes: int) -> None:
        """Set the budget; what no longer fits is dropped at once."""
        self._budget_bytes = budget_bytes
        self._ranking.resize(budget_bytes)
        self._tuner.resize(budget_bytes)

    def divide(self, pixel_share: float | None) -> None:
        """Set the share of the budget for pixels; what no longer fits is dropped at once."""
        self._pixel_share = pixel_share
        self._ranking.divide(pixel_share)
        self._tuner.divide(pixel_share)

    def statistics(self) -> CacheStatistics:
        pixel_edge_s, latent_edge_s = self._ranking.edges()
        return CacheStatistics(
            kernel_hits=self._kernel_hits,
            pixel_hits=self._requests[Form.PIXELS],
            latent_hits=self._requests[Form.LATENT],
            misses=self._requests[Form.NOTHING],
            pixel_evictions=self._evictions[Form.PIXELS],
            latent_evictions=self._evictions[Form.LATENT],
            pixel_entries=self._ranking.pixel_entries,
            latent_entries=self._ranking.latent_entries,
            pixel_bytes=self._ranking.pixel_bytes,
            latent_bytes=self._ranking.latent_bytes,
            budget_bytes=self._budget_bytes,
            pixel_share=self._pixel_share,
            pixel_edge_s_per_gb=_per_gb(pixel_edge_s),
            latent_edge_s_per_gb=_per_gb(latent_edge_s),
            fetch_s=self.costs.fetch_s,
            render_s={str(kind): cost_s for kind, cost_s in self.costs.render_s().items()},
            half_life_requests=self._ranking.half_life_requests(),
            latent_slowness=self._ranking.decay.latent_slowness,
        )

    def _evicted(self, key: Hashable, form: Form) -> None:
        self._evictions[form] += 1


def _per_gb(edge_s: float) -> float | None:
    return None if edge_s == inf else edge_s * 1e9
