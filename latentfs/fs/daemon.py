"""The daemon: one store, one mount, from mounting to the last answer.

Never imports torch: it mounts in well under a second and answers while the model still loads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pyfuse3
import trio

from latentfs.cache.tiered_cache import TieredCache
from latentfs.errors import MountError
from latentfs.fs.change_follower import follow_changes
from latentfs.fs.control import serve_control
from latentfs.fs.fetching import StoreFetch
from latentfs.fs.kernel_mount import mount
from latentfs.fs.live_settings import LiveSettings
from latentfs.fs.memory import MemoryGauge, fit_cache_to_memory
from latentfs.fs.mountpoint import (
    MountEntry,
    check_mountpoint,
    find_mount,
    resolve_mountpoint,
    unmount_if_stale,
)
from latentfs.fs.operations import LatentOperations
from latentfs.fs.parts import MountParts
from latentfs.fs.prefetch import SequenceDetector
from latentfs.fs.reloading import Reloader, setters_of
from latentfs.fs.renditions import PictureCache, open_renditions
from latentfs.fs.status import StatusReport
from latentfs.fs.tuning import MAX_BACKGROUND, tune
from latentfs.fs.warm_up import warm_up_jobs
from latentfs.fs.withdrawn_requests import interrupted_reads
from latentfs.ingest.developer import Developer
from latentfs.render.scheduler import open_scheduler
from latentfs.service.health import Health, SelfRead, feed_watchdog
from latentfs.service.notify import Notifier
from latentfs.settings.mount_settings import MountSettings
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.live_store import open_live_store
from latentfs.store.store import Store
from latentfs.telemetry.address import Address
from latentfs.telemetry.endpoint import serve_metrics
from latentfs.telemetry.logs import LogOutput
from latentfs.telemetry.metrics import Metrics

__all__ = ["Callbacks", "mount_and_serve"]

log = logging.getLogger(__name__)

# A task for each request under way, made when it comes.  Reads of mapped pages, and with O_DIRECT,
# are not subject to the kernel's limit; what waits for a render must leave tasks for ls and stat.
_TASKS_MAX = 16 * MAX_BACKGROUND
# A read is never delayed by more than one render that no reader waits for.
_BACKGROUND_GROUPS_MAX = 1
# Of the cache, for what is rendered ahead of a reader.
_AHEAD_CACHE_PARTS = 4
_NOT_LIVE = "the mount is not live yet"
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# What the service manager is told that opening a store, and ending, may take.  The former it is
# told again while that goes on, but not for ever: one that hangs is to be ended.
_OPENING_S = 120.0
_OPENING_MAX_S = 600.0
_OPENING_TOLD_EVERY_S = 30.0
_ENDING_S = 60.0
# At SIGTERM: for what a renderer has, and then for readers to fetch the bytes.
_DRAIN_S = 2.0
_ANSWERS_S = 0.3
_ASK_AGAIN_S = 1.0
# A self-read that waits behind readers may take as long as they do, and this much more.
_LATE_AFTER_S = 20.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Callbacks:
    """What whoever mounts wants to do with the daemon.

    Attributes:
        on_ready: called once the mount answers and is tuned.
        reread: gives the settings anew, at SIGHUP; None to have that signal end the mount too.
        log_output: where lines go; its file is opened anew at SIGHUP.
    """

    on_ready: Callable[[], None]
    reread: Callable[[], MountSettings] | None
    log_output: LogOutput


def mount_and_serve(settings: MountSettings, callbacks: Callbacks) -> None:
    """Mount the store and serve it until it is unmounted or a signal ends it.

    A service manager is told how it goes, if there is one.

    Args:
        settings: with a store and a mount point.

    Raises:
        StoreError: the store can't be opened, or another daemon has it.
        MountError: it can't be mounted there, or metrics can't be served.
    """
    assert settings.store is not None
    assert settings.mountpoint is not None
    store_path = settings.store.resolve()
    mountpoint = resolve_mountpoint(settings.mountpoint)
    notifier = Notifier.from_environment()
    notifier.extend_timeout(_OPENING_S)
    notifier.status(f"opening {store_path}")
    with Store.open(store_path, writable=not settings.read_only) as store:
        lock = DaemonLock(store_path)
        lock.acquire(mountpoint=mountpoint)
        try:
            check_mountpoint(mountpoint, store_path=store_path)
            trio.run(_Daemon(store, mountpoint, settings, callbacks, notifier).run)
        finally:
            lock.release()


async def _left_to_the_next(ino: int) -> None:
    """What others removed is for a mount to discard that may change the store."""


class _Daemon:
    def __init__(
        self,
        store: Store,
        mountpoint: Path,
        settings: MountSettings,
        callbacks: Callbacks,
        notifier: Notifier,
    ) -> None:
        self._store = store
        self._mountpoint = mountpoint
        self._settings = settings
        self._callbacks = callbacks
        self._notifier = notifier
        self._is_tuned = False
        self._entry: MountEntry | None = None
        self._opening = trio.CancelScope()
        self._is_serving = False
        self._reloader = Reloader(callbacks.log_output, notifier, is_ready=lambda: self._is_tuned)
        self._told_to_end = trio.Event()
        self._draining = trio.CancelScope()

    async def run(self) -> None:
        # From before the mount on: a signal that came without it would leave a dead one behind.
        with trio.open_signal_receiver(*_SIGNALS) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._obey, signals)
                nursery.start_soon(self._ask_for_time)
                with self._opening:
                    await self._run()
                nursery.cancel_scope.cancel()

    async def _ask_for_time(self) -> None:
        """Keep the service manager patient until the mount is ready."""
        with trio.move_on_after(_OPENING_MAX_S):
            while not self._is_tuned:
                self._notifier.extend_timeout(_OPENING_S)
                await trio.sleep(_OPENING_TOLD_EVERY_S)

    async def _run(self) -> None:
        async with self._open_parts() as parts:
            health = self._health(parts)
            async with self._serve_metrics(parts, health) as address:
                self._entry = mount(
                    parts.operations,
                    self._mountpoint,
                    source=self._store.path,
                    settings=self._settings,
                )
                try:
                    report = self._report(parts, health, address)
                    commands: dict[str, Callable[..., dict[str, Any]]] = {
                        "status": report.status,
                        "renders": report.renders,
                        "explain": report.explain,
                    }
                    async with serve_control(self._store.path, commands):
                        await self._serve(parts, health)
                        was_aborted = self._is_mounted() and not self._told_to_end.is_set()
                finally:
                    self._notifier.stopping()
                    self._notifier.extend_timeout(_ENDING_S)
                    # By its path, which may be another mount's by now.
                    pyfuse3.close(unmount=self._entry is None or self._is_mounted())
                if was_aborted:
                    unmount_if_stale(self._mountpoint)
                    raise MountError(
                        f"the connection to {self._mountpoint} was aborted, as umount -f does"
                    )

    @asynccontextmanager
    async def _open_parts(self) -> AsyncIterator[MountParts]:
        settings = self._settings
        cache: PictureCache = TieredCache(
            budget_bytes=settings.cache_bytes, pixel_share=settings.pixel_share
        )
        detector = SequenceDetector(files_max=settings.prefetch_files)
        async with (
            open_live_store(
                self._store,
                writable=not settings.read_only,
                size_limit_bytes=settings.size_limit_bytes,
            ) as store,
            open_scheduler(
                render_timeout_s=settings.render_timeout_s,
                device=settings.device,
                background_groups_max=_BACKGROUND_GROUPS_MAX,
                warm_up_jobs=lambda: warm_up_jobs(self._store),
            ) as scheduler,
            open_renditions(
                StoreFetch(store), scheduler, cache, render_timeout_s=settings.render_timeout_s
            ) as renditions,
        ):
            operations = LatentOperations(
                store,
                renditions,
                detector,
                ahead_bytes=lambda: cache.budget_bytes // _AHEAD_CACHE_PARTS,
            )
            operations.activity.slow_reads.threshold_s = settings.slow_read_s
            developer = Developer(
                store,
                scheduler,
                name_of=operations.name_of,
                is_being_written=operations.is_being_written,
                release_replaced=operations.release_replaced,
                let_go=operations.let_go,
            )
            if settings.develop:
                operations.on_finished = developer.finished
                operations.on_vae_named = developer.look_again
            yield MountParts(
                store=store,
                cache=cache,
                scheduler=scheduler,
                renditions=renditions,
                detector=detector,
                operations=operations,
                developer=developer,
            )

    # Mounting

    def _is_mounted(self) -> bool:
        """Whether what is at the mount point is this mount."""
        return self._entry is not None and find_mount(self._mountpoint) == self._entry

    async def _serve(self, parts: MountParts, health: Health) -> None:
        self._is_serving = True
        live = LiveSettings(
            self._settings,
            reread=self._callbacks.reread or (lambda: self._settings),
            on_change=setters_of(parts, self._callbacks.log_output),
        )
        fit_cache = functools.partial(
            fit_cache_to_memory,
            parts.cache,
            budget_bytes=lambda: live.now.cache_bytes,
            read_memory=MemoryGauge().read,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fit_cache)
            if self._settings.develop and not self._settings.read_only:
                nursery.start_soon(parts.developer.run)
            nursery.start_soon(self._reloader.run, live)
            nursery.start_soon(self._end_when_told, parts)
            is_read_only = self._settings.read_only
            let_go = _left_to_the_next if is_read_only else parts.operations.removed_elsewhere
            nursery.start_soon(follow_changes, self._store, let_go)
            nursery.start_soon(self._become_ready, parts, health)
            with interrupted_reads():
                await pyfuse3.main(max_tasks=_TASKS_MAX)
            log.info("%s is unmounted", self._mountpoint)
            parts.store.stop_waiting()
            nursery.cancel_scope.cancel()

    async def _become_ready(self, parts: MountParts, health: Health) -> None:
        # The kernel takes up its own settings with the first answer, in place of what was set
        # before.
        await self._wait_for_an_answer()
        health.note_answer()
        try:
            await trio.to_thread.run_sync(tune, self._mountpoint)
        except RuntimeError as error:
            log.warning("the kernel's settings for the mount stay as they are: %s", error)
        self._is_tuned = True
        self._notifier.ready()
        with contextlib.suppress(OSError):  # whoever was to be told has gone away
            self._callbacks.on_ready()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(health.run)
            tell = functools.partial(self._status_line, parts)
            nursery.start_soon(
                functools.partial(feed_watchdog, self._notifier, health, status_text=tell)
            )

    async def _wait_for_an_answer(self) -> None:
        """Return when the mount has answered its own daemon, or can't be asked."""
        self_read = SelfRead(self._mountpoint)
        while True:
            try:
                await self_read()
            except MountError as error:
                log.warning("the mount is not ready yet: %s", error)
                await trio.sleep(_ASK_AGAIN_S)
            except (OSError, RuntimeError, MemoryError) as error:  # no process for it, too
                log.warning("the mount may not be ready yet, it can't be asked: %s", error)
                return
            else:
                return

    # Signals

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        """Take signals, also while the store is being opened; what they ask for others do."""
        async for number in signals:
            if number == signal.SIGHUP and self._callbacks.reread is not None:
                self._reloader.tell()
                continue
            log.info("%s: unmounting %s", signal.Signals(number).name, self._mountpoint)
            if self._told_to_end.is_set():
                self._draining.cancel()
            self._notifier.stopping()
            self._notifier.extend_timeout(_ENDING_S)
            self._told_to_end.set()
            if not self._is_serving:
                self._opening.cancel()

    async def _end_when_told(self, parts: MountParts) -> None:
        """End the mount: readers whose picture a renderer has get it, unless it takes too long.

        A second signal cancels that: all who still wait get an error at once.
        """
        await self._told_to_end.wait()
        parts.store.stop_waiting()
        with self._draining:
            if await parts.renditions.drain(_DRAIN_S):
                # The rest of a file is asked for when its first bytes have come.
                await trio.sleep(_ANSWERS_S)
        parts.renditions.abort()
        pyfuse3.terminate()

    # What is told

    def _health(self, parts: MountParts) -> Health:
        activity = parts.operations.activity
        return Health(
            SelfRead(self._mountpoint),
            late_after_s=lambda: parts.scheduler.render_timeout_s + _LATE_AFTER_S,
            is_mounted=self._is_mounted,
            answered_total=activity.answered_total,
        )

    def _serve_metrics(
        self, parts: MountParts, health: Health
    ) -> AbstractAsyncContextManager[Address | None]:
        def is_healthy() -> tuple[bool, str]:
            if not self._is_tuned:  # nothing has been asked yet, and nothing is wrong
                return True, _NOT_LIVE
            problem = health.problem()
            return problem is None, problem or "the mount answers"

        def is_ready() -> tuple[bool, str]:
            if not self._is_tuned:
                return False, _NOT_LIVE
            scheduler = parts.scheduler.statistics()
            if not scheduler.devices:
                return False, f"no renderer is ready: {scheduler.problem or 'starting'}"
            return is_healthy()

        if self._settings.metrics is None:
            return contextlib.nullcontext()
        metrics = Metrics(
            store=parts.store,
            operations=parts.operations,
            renditions=parts.renditions,
            scheduler=parts.scheduler,
            cache=parts.cache,
            developer=parts.developer,
        )
        return serve_metrics(
            self._settings.metrics, metrics, is_healthy=is_healthy, is_ready=is_ready
        )

    def _report(
        self, parts: MountParts, health: Health, metrics_address: Address | None
    ) -> StatusReport:
        return StatusReport(
            parts,
            mountpoint=self._mountpoint,
            problem=health.problem,
            metrics_address=None if metrics_address is None else str(metrics_address),
        )

    def _status_line(self, parts: MountParts) -> str:
        """What ``systemctl status`` shows."""
        rendered, files = parts.scheduler.statistics(), parts.operations.statistics().files
        return (
            f"{self._mountpoint}: renderer {rendered.renderers}, {rendered.renders_total} renders, "
            f"{rendered.queued} queued, {files.open_files} files open"
        )
