"""Fetching what a renderer needs from the store, off the trio thread: a disk may take its time."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Protocol

import trio

from latentfs.errors import RenderFailedError, StoreCorruptError
from latentfs.render.job_queue import RenderJob
from latentfs.render.jobs import job_for_inode
from latentfs.store.live_store import LiveStore
from latentfs.store.records import Inode
from latentfs.store.snapshot import Snapshot

__all__ = ["Fetch", "StoreFetch", "fetched_job", "held_bytes"]

_AT_ONCE_MAX = 32
# A job beside its bulk: request, recipe, names and hashes of the VAE's files.
_JOB_BYTES = 2048


class Fetch(Protocol):
    """Gets the render job of a file."""

    async def __call__(self, ino: int, inode: Inode) -> RenderJob:
        """Return the job that renders *inode* to exactly its size.

        Raises:
            RenderFailedError: the file is gone.
            StoreError, LatentError: what it needs is missing or damaged.
        """
        ...


class StoreFetch:
    """Reads from a store, some pictures at once; waits for the disk if cancelled."""

    def __init__(self, store: LiveStore) -> None:
        self._store = store
        self._places = trio.CapacityLimiter(_AT_ONCE_MAX)

    async def __call__(self, ino: int, inode: Inode) -> RenderJob:
        read = self._store.read_in_thread()

        def fetch() -> RenderJob:
            with read() as snapshot:
                return fetched_job(snapshot, self._store.path, ino, inode)

        return await trio.to_thread.run_sync(fetch, limiter=self._places)


def held_bytes(job: RenderJob) -> int:
    """Return the memory that a job takes."""
    return _JOB_BYTES + sum(sys.getsizeof(piece) for piece in job.bulk)


def fetched_job(snapshot: Snapshot, store_path: Path, ino: int, inode: Inode) -> RenderJob:
    """Return the job of a file; raises as :class:`Fetch` does."""
    try:
        return job_for_inode(snapshot, store_path, inode)
    except StoreCorruptError as error:
        if snapshot.inode(ino) is not None:
            raise
        # Other files of the same content would have kept what it needs.
        raise RenderFailedError(f"inode {ino} was removed while it was open") from error
