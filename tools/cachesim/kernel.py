"""The kernel's page cache in front of a cache: reads that it answers never get there."""

from __future__ import annotations

from cachesim.caches import ProductCache
from cachesim.policies import Lru
from cachesim.simulator import Delays
from cachesim.trace import Trace
from latentfs.cache.ranking import Form

__all__ = ["BehindKernel"]


class BehindKernel:
    """The product's cache behind a page cache, which is taken to be an LRU of whole files.

    Args:
        kernel_bytes: of the page cache.
        counts_hits: whether the daemon counts what the kernel answers as requests.
        keeps_pixels: whether it keeps finished files, although the kernel has just got them.
        forgets_every: requests after which the kernel loses all its pages; None for never.
    """

    def __init__(
        self,
        trace: Trace,
        delays: Delays,
        *,
        budget_bytes: int,
        kernel_bytes: int,
        counts_hits: bool,
        keeps_pixels: bool,
        forgets_every: int | None = None,
    ) -> None:
        self._cache = ProductCache(trace, delays, budget_bytes=budget_bytes, pixel_share=None)
        self._kernel = Lru(kernel_bytes)
        self._pixel_bytes = trace.pixel_bytes.tolist()
        self._counts_hits = counts_hits
        self._keeps_pixels = keeps_pixels
        self._forgets_every = forgets_every
        self._requests = 0

    def request(self, picture: int) -> Form:
        self._requests += 1
        if self._forgets_every is not None and self._requests % self._forgets_every == 0:
            self._kernel = Lru(self._kernel.budget_bytes)
        if self._kernel.get(picture):
            if self._counts_hits:
                self._cache.request(picture)
            return Form.PIXELS
        form = self._cache.request(picture)
        if form is Form.PIXELS:
            self._give_kernel(picture)
        return form

    def fetched(self, picture: int) -> None:
        self._cache.fetched(picture)

    def rendered(self, picture: int) -> None:
        if self._keeps_pixels:
            self._cache.rendered(picture)
        self._give_kernel(picture)

    def pixel_share(self) -> float:
        return self._cache.pixel_share()

    def _give_kernel(self, picture: int) -> None:
        self._kernel.put(picture, self._pixel_bytes[picture], 0.0)
