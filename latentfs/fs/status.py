"""What the daemon tells of itself and of a file, over the control socket.

Everything here belongs to the trio thread, and answers at once: nothing is rendered, and nothing is
read of a file but its inode.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentfs import __version__
from latentfs.errors import InvalidArgumentError, PathError
from latentfs.fs.parts import MountParts
from latentfs.fs.renditions import Flown
from latentfs.render.jobs import content_key
from latentfs.store.records import Inode
from latentfs.telemetry.activity import Tier

__all__ = ["QUARANTINED", "StatusReport"]

QUARANTINED = "quarantined"
"""In the place of a tier: the content is refused for a while."""


class StatusReport:
    """Puts together what the parts of a mount know.

    Args:
        problem: says what is wrong with the mount as a whole, None if it is well.
        metrics_address: where metrics are served, None for nowhere.
    """

    def __init__(
        self,
        parts: MountParts,
        *,
        mountpoint: Path,
        problem: Callable[[], str | None],
        metrics_address: str | None,
    ) -> None:
        self._parts = parts
        self._mountpoint = mountpoint
        self._problem = problem
        self._metrics_address = metrics_address
        self._started_s = time.monotonic()

    def status(self) -> dict[str, Any]:
        """Return counters since the mount, and the state now.

        The ``slowest`` reads have the folder and name that their file was last asked for by.
        """
        rendered, counted = self._parts.scheduler.statistics(), self._parts.operations.statistics()
        flights = self._parts.renditions.statistics()
        waits = rendered.queue_waits_s.items()
        return {
            "version": __version__,
            "pid": os.getpid(),
            "mountpoint": str(self._mountpoint),
            "uptime_s": round(time.monotonic() - self._started_s, 3),
            "problem": self._problem(),
            "metrics_address": self._metrics_address,
            "renders_total": rendered.renders_total,
            "renders_failed_total": rendered.renders_failed_total,
            "renders_in_flight": flights.in_flight,
            "renders_queued": rendered.queued + flights.parked,
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
            "renderer_problem": rendered.problem,
            "renderer_restarts_total": rendered.renderer_restarts_total,
            "render_timeouts_total": flights.timeouts_total,
            "render_waits_shared_total": flights.shared_total,
            "hash_mismatches_total": flights.hash_mismatches_total,
            **dataclasses.asdict(counted.files),
            "errors_total": counted.errors_total,
            **self._activity(),
            "queue_waits": {
                priority.name.lower(): {"count": wait.count, "total_s": wait.total}
                for priority, wait in waits
            },
            **dataclasses.asdict(self._parts.store.live_statistics()),
            **dataclasses.asdict(self._parts.developer.statistics()),
            "cache": dataclasses.asdict(self._parts.cache.statistics()),
        }

    def _activity(self) -> dict[str, Any]:
        activity = dataclasses.asdict(self._parts.operations.activity.statistics())
        for read in activity["slowest"]:
            place = self._parts.operations.name_of(read["ino"])
            read["parent_ino"], name = (None, None) if place is None else place
            read["name"] = None if name is None else os.fsdecode(name)
        return activity

    def renders(self) -> dict[str, Any]:
        """Return the last finished renders, oldest first."""
        return {"renders": [dataclasses.asdict(flown) for flown in self._parts.renditions.flown()]}

    def explain(self, ino: int) -> dict[str, Any]:
        """Return what only the daemon knows of the file *ino*.

        ``tier`` is what would answer a read of its pixel data that the kernel does not answer: a
        :class:`~latentfs.telemetry.activity.Tier`, or ``quarantined``; None for what has no bytes.
        ``last_render`` is None where it is not among the last renders.

        Raises:
            InvalidArgumentError: *ino* is no number of an inode.
            PathError: there is no such file.
        """
        if type(ino) is not int or not 0 < ino < 1 << 64:
            raise InvalidArgumentError(f"{ino!r} is not the number of an inode")
        with self._parts.store.read() as snapshot:
            inode = snapshot.inode(ino)
        if inode is None:
            raise PathError(f"there is no inode {ino}")
        content = None if inode.content is None else content_key(inode)
        refused_s = 0.0 if content is None else self._parts.scheduler.refused_for_s(content)
        flown = self._last_render(ino)
        return {
            "tier": self._tier(inode, content, refused_s),
            "refused_for_s": refused_s,
            "last_render": None if flown is None else dataclasses.asdict(flown),
            "renderer_devices": list(self._parts.scheduler.statistics().devices),
        }

    def _tier(self, inode: Inode, content: bytes | None, refused_s: float) -> str | None:
        if content is None:
            if inode.latent_file is not None:
                return Tier.LATENT_FILE
            return Tier.BYTES if inode.is_regular else None
        if self._parts.cache.pixels(content) is not None:
            return Tier.PIXELS
        if self._parts.renditions.is_rendering(content):
            return Tier.SHARED
        if refused_s > 0:
            return QUARANTINED
        return Tier.MISS if self._parts.cache.latent(content) is None else Tier.LATENT

    def _last_render(self, ino: int) -> Flown | None:
        return next((f for f in reversed(self._parts.renditions.flown()) if f.ino == ino), None)
