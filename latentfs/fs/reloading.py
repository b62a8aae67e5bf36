"""What a reload does: opens the log file anew, and takes up settings that may change live."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import trio

from latentfs.fs.live_settings import LiveSettings
from latentfs.fs.parts import MountParts
from latentfs.service.notify import Notifier
from latentfs.telemetry.logs import LogOutput

__all__ = ["Reloader", "setters_of"]

log = logging.getLogger(__name__)

_REOPEN_MAX_S = 10.0


def setters_of(parts: MountParts, log_output: LogOutput) -> Mapping[str, Callable[[Any], None]]:
    """Return what takes a new value of a setting, by the setting's name."""

    def set_render_timeout(timeout_s: float) -> None:
        parts.scheduler.render_timeout_s = timeout_s
        parts.renditions.render_timeout_s = timeout_s

    def set_slow_read(threshold_s: float) -> None:
        parts.operations.activity.slow_reads.threshold_s = threshold_s

    return {
        "pixel_share": parts.cache.divide,
        "render_timeout": set_render_timeout,
        "prefetch": parts.detector.limit,
        "slow_read": set_slow_read,
        "log_level": log_output.set_level,
    }


class Reloader:
    """Reloads whenever it is told, also where that was before the mount was there.

    Args:
        is_ready: whether the mount is; only then is a service manager told of a reload, as that
            ends with READY=1.
    """

    def __init__(
        self, log_output: LogOutput, notifier: Notifier, *, is_ready: Callable[[], bool]
    ) -> None:
        self._log_output = log_output
        self._notifier = notifier
        self._is_ready = is_ready
        self._told = trio.Event()
        self._reopening = trio.CapacityLimiter(1)

    def tell(self) -> None:
        self._told.set()

    async def run(self, live: LiveSettings) -> None:
        """Reload *live* and the log, one reload at a time, until cancelled."""
        while True:
            await self._told.wait()
            self._told = trio.Event()
            await self._reload(live)

    async def _reload(self, live: LiveSettings) -> None:
        is_told = self._is_ready()
        if is_told:
            self._notifier.reloading()
        try:
            await self._reopen_log()
            await live.reload()
        except Exception:  # whatever is wrong with a file, the mount goes on
            log.exception("the reload failed unexpectedly")
        if is_told:
            self._notifier.ready()

    async def _reopen_log(self) -> None:
        """Open the log file anew; a thread for which that takes too long is left behind."""
        with trio.move_on_after(_REOPEN_MAX_S) as opening:
            await trio.to_thread.run_sync(
                self._log_output.reopen, abandon_on_cancel=True, limiter=self._reopening
            )
        if opening.cancelled_caught:
            log.error("the log file stays as it was: opening it takes over %g s", _REOPEN_MAX_S)
