"""The daemon: one store, one mount, from mounting to the last answer.

Never imports torch: it mounts in well under a second and answers while the model still loads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from latentfs import __version__
from latentfs.cache.tiered_cache import TieredCache
from latentfs.errors import MountError
from latentfs.fs.change_follower import follow_changes
from latentfs.fs.control import serve_control
from latentfs.fs.fetching import StoreFetch
from latentfs.fs.memory import MemoryGauge, fit_cache_to_memory
from latentfs.fs.mountpoint import FILESYSTEM_TYPE, prepare_mountpoint
from latentfs.fs.operations import LatentOperations
from latentfs.fs.prefetch import SequenceDetector
from latentfs.fs.renditions import PictureCache, Renditions, open_renditions
from latentfs.fs.tuning import MAX_BACKGROUND, tune
from latentfs.fs.warm_up import warm_up_jobs
from latentfs.ingest.developer import Developer
from latentfs.render.scheduler import Scheduler, open_scheduler
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.live_store import LiveStore, open_live_store
from latentfs.store.store import Store

__all__ = ["MountOptions", "mount_and_serve"]

log = logging.getLogger(__name__)

# Reads of readahead windows come on top of the background limit.
_TASKS_MAX = 2 * MAX_BACKGROUND
# A read is never delayed by more than one render that no reader waits for.
_BACKGROUND_GROUPS_MAX = 1
# Of the cache, for what is rendered ahead of a reader.
_AHEAD_CACHE_PARTS = 4
_END_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MountOptions:
    """How a store is mounted.

    Attributes:
        cache_bytes: memory for finished files and latents.
        pixel_share: of that for finished files, 0 to 1; None for wherever it saves most.
        render_timeout_s: after which a read ends with EIO.
        device: what renders: ``cpu``, ``cuda``, ``cuda:N`` or ``auto``.
        prefetch_files: rendered ahead of a reader that goes through a directory; 0 for none.
        read_only: whether nothing may be changed through the mount.
        develop: whether latent files that are written become pictures, and copies of pictures
            share their payloads.
        size_limit_bytes: that the database may take; None for all the space there is.
        fuse_options: passed on to the kernel, such as ``allow_other``.
    """

    cache_bytes: int
    pixel_share: float | None
    render_timeout_s: float
    device: str
    prefetch_files: int
    read_only: bool
    develop: bool
    size_limit_bytes: int | None
    fuse_options: frozenset[str]


def mount_and_serve(
    store_path: Path,
    mountpoint: Path,
    options: MountOptions,
    *,
    on_ready: Callable[[], None],
) -> None:
    """Mount the store and serve it until it is unmounted or a signal ends it.

    *on_ready* is called once the mount answers and is tuned.

    Raises:
        StoreError: the store can't be opened, or another daemon has it.
        MountError: it can't be mounted there.
    """
    with Store.open(store_path, writable=not options.read_only) as store:
        lock = DaemonLock(store_path)
        lock.acquire(mountpoint=mountpoint)
        try:
            prepare_mountpoint(mountpoint, store_path=store_path)
            trio.run(_Daemon(store, mountpoint, options, on_ready).run)
        finally:
            lock.release()


class _Daemon:
    def __init__(
        self,
        store: Store,
        mountpoint: Path,
        options: MountOptions,
        on_ready: Callable[[], None],
    ) -> None:
        self._store = store
        self._mountpoint = mountpoint
        self._options = options
        self._on_ready = on_ready
        self._started_s = time.time()

    async def run(self) -> None:
        options = self._options
        cache: PictureCache = TieredCache(
            budget_bytes=options.cache_bytes, pixel_share=options.pixel_share
        )
        async with (
            open_live_store(
                self._store,
                writable=not options.read_only,
                size_limit_bytes=options.size_limit_bytes,
            ) as store,
            open_scheduler(
                render_timeout_s=options.render_timeout_s,
                device=options.device,
                background_groups_max=_BACKGROUND_GROUPS_MAX,
                warm_up_jobs=lambda: warm_up_jobs(self._store),
            ) as scheduler,
            open_renditions(
                StoreFetch(store), scheduler, cache, render_timeout_s=options.render_timeout_s
            ) as renditions,
        ):
            operations = LatentOperations(
                store,
                renditions,
                SequenceDetector(files_max=options.prefetch_files),
                ahead_bytes=options.cache_bytes // _AHEAD_CACHE_PARTS,
            )
            developer = Developer(
                store,
                scheduler,
                name_of=operations.name_of,
                is_being_written=operations.is_being_written,
                release_replaced=operations.release_replaced,
            )
            if options.develop:
                operations.on_finished = developer.finished
                operations.on_vae_named = developer.look_again
            self._mount(operations)

            def status() -> dict[str, Any]:
                return self._status(store, operations, renditions, scheduler, cache, developer)

            try:
                commands = {"status": status, "renders": lambda: _renders(renditions)}
                async with serve_control(self._store.path, commands):
                    await self._serve(renditions, developer, cache)
            finally:
                pyfuse3.close(unmount=True)

    async def _fit_to_memory(self, cache: PictureCache) -> None:
        await fit_cache_to_memory(
            cache, budget_bytes=self._options.cache_bytes, read_memory=MemoryGauge().read
        )

    def _mount(self, operations: LatentOperations) -> None:
        source = str(self._store.path).replace("\\", "\\\\").replace(",", "\\,")
        subtype = FILESYSTEM_TYPE.removeprefix("fuse.")
        fuse_options = {f"fsname={source}", f"subtype={subtype}", *self._options.fuse_options}
        if self._options.read_only:
            fuse_options.add("ro")
        try:
            pyfuse3.init(operations, str(self._mountpoint), fuse_options)
        except RuntimeError as error:
            raise MountError(
                f"can't mount on {self._mountpoint} with options "
                f"{','.join(sorted(self._options.fuse_options))}: {error}; is /dev/fuse there and "
                "permitted, and user_allow_other set in /etc/fuse.conf where it is needed?"
            ) from error

    async def _serve(
        self, renditions: Renditions, developer: Developer, cache: PictureCache
    ) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._fit_to_memory, cache)
            if self._options.develop and not self._options.read_only:
                nursery.start_soon(developer.run)
            await nursery.start(self._await_signals, renditions)
            nursery.start_soon(follow_changes, self._store)
            nursery.start_soon(self._become_ready)
            await pyfuse3.main(max_tasks=_TASKS_MAX)
            log.info("%s is unmounted", self._mountpoint)
            nursery.cancel_scope.cancel()

    async def _become_ready(self) -> None:
        await trio.to_thread.run_sync(tune, self._mountpoint)
        with contextlib.suppress(OSError):  # whoever was to be told has gone away
            self._on_ready()

    async def _await_signals(
        self, renditions: Renditions, *, task_status: trio.TaskStatus[None]
    ) -> None:
        with trio.open_signal_receiver(*_END_SIGNALS) as signals:
            task_status.started()
            async for number in signals:
                log.info("%s: unmounting %s", signal.Signals(number).name, self._mountpoint)
                renditions.abort()
                pyfuse3.terminate()

    def _status(
        self,
        store: LiveStore,
        operations: LatentOperations,
        renditions: Renditions,
        scheduler: Scheduler,
        cache: PictureCache,
        developer: Developer,
    ) -> dict[str, Any]:
        rendered, counted = scheduler.statistics(), operations.statistics()
        flights = renditions.statistics()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "mountpoint": str(self._mountpoint),
            "uptime_s": round(time.time() - self._started_s, 3),
            "renders_total": rendered.renders_total,
            "renders_failed_total": rendered.renders_failed_total,
            "renders_in_flight": flights.in_flight,
            "renders_queued": rendered.queued,
            "renders_queued_background": rendered.queued_background,
            "renders_widened_total": rendered.renders_widened_total,
            "renders_given_up_total": flights.given_up_total,
            "renders_prefetched_total": flights.prefetched_total,
            "renders_warm_up_total": rendered.warm_ups_total,
            "renders_warming_up": rendered.warming_up,
            "renders_out_of_memory_total": rendered.out_of_memory_total,
            "contents_quarantined": rendered.quarantined,
            "renderer_ready": bool(rendered.devices),
            "renderer_devices": list(rendered.devices),
            "renderer_restarts_total": rendered.renderer_restarts_total,
            "render_timeouts_total": flights.timeouts_total,
            "render_waits_shared_total": flights.shared_total,
            "hash_mismatches_total": flights.hash_mismatches_total,
            **dataclasses.asdict(counted.files),
            "errors_total": counted.errors_total,
            **dataclasses.asdict(store.live_statistics()),
            **dataclasses.asdict(developer.statistics()),
            "cache": dataclasses.asdict(cache.statistics()),
        }


def _renders(renditions: Renditions) -> dict[str, Any]:
    return {"renders": [dataclasses.asdict(flown) for flown in renditions.flown()]}
