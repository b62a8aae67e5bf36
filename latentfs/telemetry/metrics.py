"""The metrics of one mount, in the formats that Prometheus reads.

prometheus_client takes about 0.1 s to load: other modules import this one only to serve metrics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from latentfs import __version__
from latentfs.telemetry import families

if TYPE_CHECKING:
    from latentfs.cache.tiered_cache import TieredCache
    from latentfs.fs.operations import LatentOperations
    from latentfs.fs.renditions import Renditions
    from latentfs.ingest.developer import Developer
    from latentfs.render.scheduler import Scheduler
    from latentfs.store.live_store import LiveStore

__all__ = ["Metrics"]

_OPENMETRICS = "application/openmetrics-text"


class Metrics(Collector):
    """Reads the statistics of a mount's parts whenever it is asked.

    All of them are sums that are kept anyway, so that asking costs a few milliseconds however large
    the store is.  Belongs to the trio thread.
    """

    def __init__(
        self,
        *,
        store: LiveStore,
        operations: LatentOperations,
        renditions: Renditions,
        scheduler: Scheduler,
        cache: TieredCache[Any, Any],
        developer: Developer,
    ) -> None:
        self._store = store
        self._operations = operations
        self._renditions = renditions
        self._scheduler = scheduler
        self._cache = cache
        self._developer = developer
        self._is_ready = False
        self._started_s = time.monotonic()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def render(self, accept: str, *, is_ready: bool) -> tuple[bytes, str]:
        """Return the metrics as text, and its content type.

        Args:
            accept: header of the request; OpenMetrics is given to those who name it, the plain text
                format to all others.
            is_ready: what ``/readyz`` would answer.
        """
        self._is_ready = is_ready
        # Not handed on as it came: versions in it would come back in the content type.
        encode, content_type = choose_encoder(_OPENMETRICS if _OPENMETRICS in accept else "")
        return encode(self._registry), content_type

    def describe(self) -> list[Metric]:
        """Nothing: asked for at registration, and the store need not be read for that."""
        return []

    def collect(self) -> Iterator[Metric]:
        counted, activity = self._operations.statistics(), self._operations.activity
        renders, flights = self._scheduler.statistics(), self._renditions.statistics()
        cache = self._cache.statistics()
        yield from families.info_families(
            version=__version__,
            is_ready=self._is_ready,
            uptime_s=time.monotonic() - self._started_s,
        )
        asked = activity.statistics()
        yield from families.operation_families(
            asked.operations, activity.operation_seconds(), errors_total=counted.errors_total
        )
        yield from families.read_families(
            asked, activity.read_seconds(), kernel_hits=cache.kernel_hits
        )
        yield from families.file_families(counted.files)
        yield from families.render_families(renders, flights)
        yield from families.queue_families(renders, flights)
        yield from families.recipe_families(self._renditions.times, vae_names=self._vae_names())
        yield from families.cache_families(cache, recipes=self._renditions.times.recipes)
        yield from families.store_families(
            self._store.statistics(), self._store.live_statistics(), self._store.space()
        )
        yield from families.developer_families(self._developer.statistics())

    def _vae_names(self) -> dict[str, str]:
        """Return what the VAEs of recipes are called, by the short names of the recipes."""
        recipes = self._renditions.times.recipes
        with self._store.read() as snapshot:
            return {
                name: snapshot.vae_name(recipe.vae, dtype=recipe.dtype) or recipe.vae[:12]
                for name, recipe in recipes.items()
            }
