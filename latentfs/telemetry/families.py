"""Metrics by area, made from the statistics of a mount's parts when they are asked for.

Other rooms are imported for their types alone: this one is below them.  Names follow Prometheus'
conventions: base units, ``_total`` for what only grows.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from latentfs.telemetry.histogram import HistogramStatistics

if TYPE_CHECKING:
    from latentfs.cache.tiered_cache import CacheStatistics
    from latentfs.fs.open_files import OpenFileStatistics
    from latentfs.fs.renditions import RenditionStatistics
    from latentfs.ingest.developer import DeveloperStatistics
    from latentfs.latents.recipe import Recipe
    from latentfs.render.scheduler import SchedulerStatistics
    from latentfs.store.live_store import LiveStoreStatistics, Space
    from latentfs.store.store import StoreStatistics
    from latentfs.telemetry.activity import ActivityStatistics, OperationTimes
    from latentfs.telemetry.render_times import RenderTimes

__all__ = [
    "cache_families",
    "developer_families",
    "file_families",
    "info_families",
    "operation_families",
    "queue_families",
    "read_families",
    "recipe_families",
    "render_families",
    "store_families",
]

Family = TypeVar("Family", CounterMetricFamily, GaugeMetricFamily)


def _counter(name: str, text: str, value: float) -> CounterMetricFamily:
    return CounterMetricFamily(f"latentfs_{name}", text, value=value)


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"latentfs_{name}", text, value=value)


def _by(
    kind: type[Family], name: str, text: str, label: str, values: Mapping[str, float]
) -> Family:
    """Return a family with one label."""
    family = kind(f"latentfs_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _histograms(
    name: str, text: str, label: str, values: Mapping[str, HistogramStatistics]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"latentfs_{name}", text, labels=[label])
    for key, statistics in values.items():
        family.add_metric([key], _buckets(statistics), statistics.total)
    return family


def _buckets(statistics: HistogramStatistics) -> list[tuple[str, float]]:
    """Return upper bounds with the counts of all values up to them."""
    names = [*map(str, statistics.bounds), "+Inf"]
    up_to, buckets = 0, []
    for name, count in zip(names, statistics.counts, strict=True):
        up_to += count
        buckets.append((name, float(up_to)))
    return buckets


def info_families(*, version: str, is_ready: bool, uptime_s: float) -> Iterator[Metric]:
    yield InfoMetricFamily("latentfs_build", "What runs.", value={"version": version})
    yield _gauge("mount_ready", "1 if /readyz answers 200, otherwise 0.", is_ready)
    yield _gauge("mount_uptime_seconds", "Since the mount.", uptime_s)


def operation_families(
    times: Mapping[str, OperationTimes],
    seconds: Mapping[str, HistogramStatistics],
    *,
    errors_total: int,
) -> Iterator[Metric]:
    operations = CounterMetricFamily(
        "latentfs_fuse_operations", "Requests of the kernel, answered.", labels=["op", "errno"]
    )
    for name, operation in times.items():
        successes = operation.count - sum(operation.errors.values())
        operations.add_metric([name, "OK"], successes)
        for errno, count in operation.errors.items():
            operations.add_metric([name, errno], count)
    yield operations
    yield _histograms("fuse_operation_seconds", "Time of a request in the daemon.", "op", seconds)
    yield _counter("errors", "Requests answered with EIO, and a line in the log.", errors_total)


def read_families(
    statistics: ActivityStatistics,
    seconds: Mapping[str, HistogramStatistics],
    *,
    kernel_hits: int,
) -> Iterator[Metric]:
    reads = {tier: times.count for tier, times in statistics.reads.items()}
    failed = {tier: times.failed for tier, times in statistics.reads.items()}
    yield _by(
        CounterMetricFamily,
        "reads",
        "Reads by what answered; of the kernel's, files that were opened and asked for nothing.",
        "tier",
        {"kernel": kernel_hits, **reads},
    )
    yield _by(
        CounterMetricFamily,
        "reads_failed",
        "Reads answered with an error; not those of killed programs.",
        "tier",
        failed,
    )
    yield _histograms(
        "read_seconds",
        "Time of a read in the daemon, by what answered.",
        "tier",
        seconds,
    )
    yield _counter(
        "slow_reads", "Reads that took longer than slow_read.", statistics.slow_reads_total
    )


def file_families(files: OpenFileStatistics) -> Iterator[Metric]:
    yield _counter("read_bytes", "Bytes that reads were given.", files.read_bytes_total)
    yield _counter("written_bytes", "Bytes that were written.", files.written_bytes_total)
    yield _counter("opens", "Files opened.", files.opens_total)
    yield _counter(
        "heads_shown", "Opens at which the kernel was given a head.", files.heads_shown_total
    )
    yield _gauge("open_files", "Handles open now.", files.open_files)
    yield _gauge(
        "pinned_bytes",
        "Of renditions that handles within a file keep, and of open latent files.",
        files.pinned_bytes,
    )


def render_families(renders: SchedulerStatistics, flights: RenditionStatistics) -> Iterator[Metric]:
    yield _counter("renders", "Renders that a renderer finished.", renders.renders_total)
    yield _counter(
        "renders_failed", "Renders that ended with an error.", renders.renders_failed_total
    )
    yield _counter(
        "renders_widened",
        "Renders that gave NaN in a narrow dtype, and were done in float32.",
        renders.renders_widened_total,
    )
    yield _counter(
        "renders_out_of_memory",
        "Renders that failed for lack of memory.",
        renders.out_of_memory_total,
    )
    yield _counter(
        "renders_given_up", "Renders whose last reader had gone.", flights.given_up_total
    )
    yield _counter("prefetches", "Renders begun ahead of any read.", flights.prefetched_total)
    yield _counter("warm_ups", "Renders done only to load VAEs.", renders.warm_ups_total)
    yield _counter("render_timeouts", "Reads that ended at the deadline.", flights.timeouts_total)
    yield _counter(
        "hash_mismatches",
        "Renders whose bytes differ from those of the import.",
        flights.hash_mismatches_total,
    )
    yield _counter(
        "renderer_restarts",
        "Renderers that were lost and replaced.",
        renders.renderer_restarts_total,
    )
    ready = dict.fromkeys(renders.devices, 1.0)
    yield _by(
        GaugeMetricFamily, "renderer_ready", "1 for each device that renders.", "device", ready
    )
    yield _gauge("renderers", "Renderers that take requests.", len(renders.devices))
    yield _gauge(
        "contents_quarantined",
        "Contents refused for a while because they broke renderers.",
        renders.quarantined,
    )


def queue_families(renders: SchedulerStatistics, flights: RenditionStatistics) -> Iterator[Metric]:
    yield _by(
        GaugeMetricFamily,
        "render_queue_depth",
        "Renders that no renderer has yet.",
        "priority",
        {
            "foreground": renders.queued + flights.parked,
            "background": renders.queued_background,
        },
    )
    yield _gauge("flights", "Contents that are rendered, or wait for it.", flights.in_flight)
    yield _gauge("renders_in_flight", "Renders that renderers have.", renders.in_flight)
    waits = {priority.name.lower(): wait for priority, wait in renders.queue_waits_s.items()}
    yield _histograms(
        "render_queue_wait_seconds", "Time until a renderer had it.", "priority", waits
    )
    sizes = HistogramMetricFamily(
        "latentfs_render_batch_latents",
        "Latents in each group sent to a renderer.",
        buckets=_buckets(renders.batch_sizes),
        sum_value=renders.batch_sizes.total,
    )
    yield sizes


def recipe_families(times: RenderTimes, *, vae_names: Mapping[str, str]) -> Iterator[Metric]:
    yield _histograms(
        "render_work_seconds",
        "Time that a renderer worked for a render, without waiting.",
        "recipe",
        times.work_seconds(),
    )
    yield _histograms(
        "render_stage_seconds", "Time of a render by stage.", "stage", times.stage_seconds()
    )
    labels = ["recipe", "vae", "vae_class", "dtype", "device", "batch", "compiled"]
    recipes = InfoMetricFamily("latentfs_recipe", "What a recipe is.", labels=labels)
    for name, recipe in times.recipes.items():
        recipes.add_metric(_recipe_labels(name, recipe, vae_names[name]), {})
    yield recipes


def _recipe_labels(name: str, recipe: Recipe, vae_name: str) -> list[str]:
    return [
        name,
        vae_name,
        recipe.vae_class,
        recipe.dtype,
        recipe.device,
        str(recipe.batch),
        "yes" if recipe.compiled else "no",
    ]


def cache_families(cache: CacheStatistics, *, recipes: Container[str]) -> Iterator[Metric]:
    yield _by(
        CounterMetricFamily,
        "cache_hits",
        "Requests answered with that form.",
        "form",
        {"pixels": cache.pixel_hits, "latent": cache.latent_hits},
    )
    yield _counter("cache_misses", "Requests of which nothing was held.", cache.misses)
    yield _by(
        CounterMetricFamily,
        "cache_evictions",
        "Dropped to keep within the budget.",
        "form",
        {"pixels": cache.pixel_evictions, "latent": cache.latent_evictions},
    )
    held = {"pixels": cache.pixel_bytes, "latent": cache.latent_bytes}
    yield _by(GaugeMetricFamily, "cache_bytes", "Memory taken now.", "form", held)
    entries = {"pixels": cache.pixel_entries, "latent": cache.latent_entries}
    yield _by(GaugeMetricFamily, "cache_entries", "Pictures held now.", "form", entries)
    yield _gauge("cache_budget_bytes", "That both forms may take now.", cache.budget_bytes)
    held_bytes = sum(held.values())
    yield _gauge(
        "cache_pixel_ratio",
        "Part of the bytes held that are pixels.",
        cache.pixel_bytes / held_bytes if held_bytes else 0.0,
    )
    if cache.pixel_share is not None:
        yield _gauge(
            "cache_pixel_target_ratio",
            "Part of the budget that pixels shall have, where it is fixed.",
            cache.pixel_share,
        )
    yield from _cost_families(cache, recipes)


def _cost_families(cache: CacheStatistics, recipes: Container[str]) -> Iterator[Metric]:
    edges = {"pixels": cache.pixel_edge_s_per_gb, "latent": cache.latent_edge_s_per_gb}
    yield _by(
        GaugeMetricFamily,
        "cache_edge_seconds_per_byte",
        "What the least valuable byte of a form saves a request.",
        "form",
        {form: edge_s / 1e9 for form, edge_s in edges.items() if edge_s is not None},
    )
    yield _gauge("cache_fetch_cost_seconds", "What a fetch takes, smoothed.", cache.fetch_s)
    yield _by(
        GaugeMetricFamily,
        "cache_render_cost_seconds",
        "What a render takes for a megapixel, smoothed.",
        "recipe",
        {recipe: cost_s for recipe, cost_s in cache.render_s.items() if recipe in recipes},
    )


def store_families(
    store: StoreStatistics, live: LiveStoreStatistics, space: Space
) -> Iterator[Metric]:
    totals = store.totals
    yield _by(
        GaugeMetricFamily,
        "store_bytes",
        "Pages of the database by what they hold.",
        "kind",
        _bytes_by_kind(store),
    )
    yield _gauge("store_payload_bytes", "Of all payloads.", totals.payload_bytes)
    yield _gauge("store_file_bytes", "Sum of the sizes that files show.", totals.size_bytes)
    yield _gauge("store_files", "Regular files.", totals.files)
    yield _gauge("store_directories", "Directories.", totals.directories)
    yield _gauge("store_payloads", "Distinct payloads.", totals.payloads)
    yield _gauge("store_space_bytes", "Space of the file system.", space.total_bytes)
    yield _gauge("store_space_free_bytes", "What is left of it.", space.free_bytes)
    yield _counter("store_changes", "Changes made through the mount.", live.changes_total)
    yield _counter("store_commits", "Transactions they became.", live.commits_total)
    yield _counter("store_commits_failed", "Commits that failed.", live.commits_failed_total)
    yield _gauge(
        "store_uncommitted_bytes", "Changes that are only in memory.", live.uncommitted_bytes
    )


def _bytes_by_kind(store: StoreStatistics) -> dict[str, float]:
    """Return kinds that together are the file of the database."""
    kinds = {
        "payloads": store.table_bytes["payloads"],
        "metadata": store.table_bytes["metadata"],
        "bytes": store.table_bytes["chunks"],
    }
    return {**kinds, "index": store.store_bytes - sum(kinds.values()), "free": store.free_bytes}


def developer_families(developer: DeveloperStatistics) -> Iterator[Metric]:
    yield _counter("developed", "Latent files whose pictures were made.", developer.developed_total)
    yield _counter(
        "undeveloped",
        "Times that no picture could be made of a latent file.",
        developer.undeveloped_total,
    )
    yield _counter(
        "copies_recognised",
        "Files that turned out to be copies of pictures.",
        developer.copies_recognised_total,
    )
    yield _gauge("developing_files", "Files that wait for their turn.", developer.developing)
