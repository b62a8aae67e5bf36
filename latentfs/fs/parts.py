"""The parts of a mount that are there as long as it is."""

from __future__ import annotations

from dataclasses import dataclass

from latentfs.fs.operations import LatentOperations
from latentfs.fs.prefetch import SequenceDetector
from latentfs.fs.renditions import PictureCache, Renditions
from latentfs.ingest.developer import Developer
from latentfs.render.scheduler import Scheduler
from latentfs.store.live_store import LiveStore

__all__ = ["MountParts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MountParts:
    """Put together by the daemon, and shown to those who tell what they do."""

    store: LiveStore
    cache: PictureCache
    scheduler: Scheduler
    renditions: Renditions
    detector: SequenceDetector
    operations: LatentOperations
    developer: Developer
