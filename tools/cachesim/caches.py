"""The caches that a trace is replayed through: the product's own, and those it is compared with."""

from __future__ import annotations

from cachesim.policies import PolicyFactory
from cachesim.simulator import Delays
from cachesim.trace import Trace
from cachesim.two_tiers import MovingLine, ShadowedTwoTiers, TwoTiers
from latentfs.cache.ranking import Form
from latentfs.cache.tiered_cache import ENTRY_BYTES, CachedPicture, TieredCache

__all__ = ["PolicyTiers", "ProductCache"]


class ProductCache:
    """The product's own cache, with nothing in place of bytes.

    Args:
        pixel_share: as of :class:`TieredCache`.
    """

    def __init__(
        self, trace: Trace, delays: Delays, *, budget_bytes: int, pixel_share: float | None
    ) -> None:
        self.tiers: TieredCache[None, None] = TieredCache(
            budget_bytes=budget_bytes, pixel_share=pixel_share
        )
        self._latent_bytes = trace.latent_bytes.tolist()
        columns = (trace.pixel_bytes, trace.kinds, trace.render_weights)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        self._pictures = [CachedPicture(key, *row) for key, row in enumerate(rows)]
        self._render_s = delays.render_s
        self._fetch_s = delays.fetches_s(trace.latent_bytes).tolist()

    def request(self, picture: int) -> Form:
        return self.tiers.request(self._pictures[picture])

    def fetched(self, picture: int) -> None:
        self.tiers.costs.fetched(self._fetch_s[picture])
        held_bytes = self._latent_bytes[picture]
        self.tiers.keep_latent(self._pictures[picture], None, held_bytes=held_bytes)

    def rendered(self, picture: int) -> None:
        cached = self._pictures[picture]
        elapsed_s = self._render_s * cached.weight
        self.tiers.costs.rendered(cached.kind, elapsed_s, weight=cached.weight)
        self.tiers.keep_pixels(cached, None, held_bytes=cached.size_bytes)

    def pixel_share(self) -> float:
        return self.tiers.pixel_part()


class PolicyTiers:
    """A tier for pixels and one for latents, with a policy of eviction and a line between them.

    Args:
        pixel_share: of the budget; or what moves it, made for this cache alone.
        shadowed: whether what moves the line goes by a shadow, see :class:`ShadowedTwoTiers`.
    """

    def __init__(
        self,
        trace: Trace,
        delays: Delays,
        *,
        budget_bytes: int,
        policy: PolicyFactory,
        pixel_share: float | MovingLine,
        shadowed: bool = False,
    ) -> None:
        self._tiers: TwoTiers | ShadowedTwoTiers
        if shadowed and isinstance(pixel_share, MovingLine):
            self._tiers = ShadowedTwoTiers(budget_bytes, policy=policy, line=pixel_share)
            self._held = self._tiers.tiers
        else:
            self._tiers = TwoTiers(budget_bytes, policy=policy, pixel_share=pixel_share)
            self._held = self._tiers
        self._pixel_bytes = (trace.pixel_bytes + ENTRY_BYTES).tolist()
        self._latent_bytes = (trace.latent_bytes + ENTRY_BYTES).tolist()
        self._render_s = (trace.render_weights * delays.render_s).tolist()
        self._fetch_s = delays.fetches_s(trace.latent_bytes).tolist()

    def request(self, picture: int) -> Form:
        return _FORMS[self._tiers.request(picture)]

    def fetched(self, picture: int) -> None:
        self._tiers.fetched(picture, self._latent_bytes[picture], self._fetch_s[picture])

    def rendered(self, picture: int) -> None:
        self._tiers.rendered(picture, self._pixel_bytes[picture], self._render_s[picture])

    def pixel_share(self) -> float:
        pixel_bytes, latent_bytes = self._held.pixels.held_bytes, self._held.latents.held_bytes
        return pixel_bytes / (pixel_bytes + latent_bytes) if pixel_bytes else 0.0


_FORMS = {"pixel": Form.PIXELS, "latent": Form.LATENT, "miss": Form.NOTHING}
