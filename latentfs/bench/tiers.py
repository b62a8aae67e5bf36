"""Which tier answered the reads of a mount: from what its daemon counts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentfs.fs.mountpoint import FILESYSTEM_TYPE, find_mount

__all__ = ["DaemonCounts", "TierCounts", "mounted_store", "tiers_between"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonCounts:
    """What a daemon has counted since it began.

    Attributes:
        pid: of the daemon; another one counts from 0.
        pixel_hits: pictures that the pixel cache had.
        latent_hits: others, whose payloads the latent cache had.
        misses: pictures that neither had.
        shared: reads that waited for a render that had begun already.
        renders: finished, also ahead of reads.
    """

    pid: int
    pixel_hits: int
    latent_hits: int
    misses: int
    shared: int
    renders: int

    @classmethod
    def from_status(cls, status: Mapping[str, Any]) -> DaemonCounts:
        cache = status["cache"]
        return cls(
            pid=status["pid"],
            pixel_hits=cache["pixel_hits"],
            latent_hits=cache["latent_hits"],
            misses=cache["misses"],
            shared=status["render_waits_shared_total"],
            renders=status["renders_total"],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TierCounts:
    """By what requests were answered.

    Attributes:
        kernel_hits: reads that never reached the daemon.
        pixel_hits, latent_hits, misses, shared, renders: as in :class:`DaemonCounts`.
    """

    kernel_hits: int
    pixel_hits: int
    latent_hits: int
    misses: int
    shared: int
    renders: int

    @property
    def fetches(self) -> int:
        """Payloads read from the store: one a render, but for those that were cached."""
        return self.renders - self.latent_hits

    @property
    def total(self) -> int:
        return self.kernel_hits + self.pixel_hits + self.latent_hits + self.misses + self.shared


def tiers_between(before: DaemonCounts, after: DaemonCounts, *, reads: int) -> TierCounts | None:
    """Return what answered *reads* whole files between two moments; None if the daemon changed.

    The daemon looks for a picture once for each handle that reads it, so reads it has not looked
    for were the kernel's.  A file larger than the kernel's readahead may be looked for several
    times; they all count, and there may be more of them than reads.
    """
    if before.pid != after.pid:
        return None
    pixel_hits = after.pixel_hits - before.pixel_hits
    latent_hits = after.latent_hits - before.latent_hits
    misses = after.misses - before.misses
    shared = after.shared - before.shared
    return TierCounts(
        kernel_hits=max(reads - pixel_hits - latent_hits - misses - shared, 0),
        pixel_hits=pixel_hits,
        latent_hits=latent_hits,
        misses=misses,
        shared=shared,
        renders=after.renders - before.renders,
    )


def mounted_store(folder: Path) -> Path | None:
    """Return the store whose mount *folder* is in, None if it is in no mount of latentfs."""
    resolved = Path(os.path.realpath(folder))
    for path in (resolved, *resolved.parents):
        mount = find_mount(path)
        if mount is not None:
            return Path(mount.source) if mount.type == FILESYSTEM_TYPE else None
    return None
