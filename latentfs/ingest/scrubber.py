"""Rendering what a store holds, to see whether it is still what it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass

import trio

from latentfs.errors import LatentfsError, NoRendererError, StoreCorruptError
from latentfs.latents import payload as payload_codec
from latentfs.render.job_queue import Priority
from latentfs.render.jobs import check_rendition, content_key, job_for_inode
from latentfs.render.scheduler import Scheduler
from latentfs.store import tables
from latentfs.store.chunks import chunk_bytes
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store

__all__ = ["ScrubItem", "ScrubPlan", "Scrubber", "scrub_plan"]

_PARALLEL_FILES = 4
_CHANGED = (
    "it was rendered to other bytes than at first: another device or library version decodes or "
    "encodes differently, or the store is damaged"
)


@dataclass(frozen=True, slots=True)
class ScrubItem:
    """A picture: its path in the store when the scrub began, and its inode number."""

    path: str
    ino: int


@dataclass(frozen=True, slots=True)
class ScrubPlan:
    """What is to be looked at: pictures, ids of payloads, keys of chunks."""

    pictures: list[ScrubItem]
    payloads: list[int]
    chunks: list[bytes]

    @property
    def steps(self) -> int:
        return len(self.pictures) + len(self.payloads) + len(self.chunks)


def scrub_plan(
    store: Store, *, max_files: int | None, report: Callable[[str, str], None]
) -> ScrubPlan:
    """Return all pictures that differ in any byte, or *max_files* of them by chance.

    Args:
        report: called with (path, reason) for what can't be told whether it is a picture.
    """
    with store.read() as snapshot:
        pictures = list(_pictures(snapshot, report))
        payloads = list(snapshot.payload_ids())
        chunks = [bytes(key) for key in snapshot.rows.keys("chunks")]
    if max_files is not None and max_files < len(pictures):
        pictures = sorted(random.sample(pictures, max_files), key=lambda item: item.path)
    return ScrubPlan(pictures, payloads, chunks)


def _pictures(snapshot: Snapshot, report: Callable[[str, str], None]) -> Iterator[ScrubItem]:
    seen: set[Hashable] = set()
    folders = {tables.ROOT_INO}
    pending = [("", tables.ROOT_INO)]
    while pending:
        folder, folder_ino = pending.pop()
        for name, ino in snapshot.entries(folder_ino):
            path = f"{folder}/{name.decode('utf-8', 'backslashreplace')}"
            try:
                inode = snapshot.inode(ino)
            except StoreCorruptError as error:
                report(path, str(error))
                continue
            if inode is None:
                report(path, "it leads nowhere; run latentfs fsck")
            elif inode.is_directory and ino not in folders:
                folders.add(ino)
                pending.append((path, ino))
            elif inode.content is not None:
                key = (content_key(inode), inode.content.rendition_sha256)
                if key not in seen:
                    seen.add(key)
                    yield ScrubItem(path, ino)


class Scrubber:
    """Looks at all of a plan.  What was removed meanwhile is passed over.

    Each item is read in a snapshot of its own, so that a mount beside it can use freed pages.

    Args:
        report: called with (what, reason) for what is not as it was.
        on_done: called after each item.
    """

    def __init__(
        self,
        store: Store,
        *,
        report: Callable[[str, str], None],
        on_done: Callable[[], None],
    ) -> None:
        self._store = store
        self._report = report
        self._on_done = on_done

    def decode(self, plan: ScrubPlan) -> None:
        """Decode payloads against their digests, and chunks."""
        for payload in plan.payloads:
            with self._store.read() as snapshot:
                data = snapshot.payload(payload)
            try:
                if data is not None:
                    payload_codec.decode(data)
            except LatentfsError as error:
                self._report(f"payload {payload}", str(error))
            self._on_done()
        for key in plan.chunks:
            self._decode_chunk(key)
            self._on_done()

    def _decode_chunk(self, key: bytes) -> None:
        ino, index = int.from_bytes(key[:8], "big"), tables.chunk_index(key)
        with self._store.read() as snapshot:
            value = snapshot.rows.get("chunks", key)
            try:
                if value is not None:
                    chunk_bytes(value, ino, index)
            except LatentfsError as error:
                self._report(f"inode {ino}", str(error))

    async def render(self, plan: ScrubPlan, scheduler: Scheduler) -> None:
        """Render the pictures and compare their hashes.

        Raises:
            NoRendererError: none can be started.
        """
        queue = iter(plan.pictures)

        async def work() -> None:
            for item in queue:
                await self._render(item, scheduler)
                self._on_done()

        async with trio.open_nursery() as nursery:
            for _ in range(_PARALLEL_FILES):
                nursery.start_soon(work)

    async def _render(self, item: ScrubItem, scheduler: Scheduler) -> None:
        try:
            with self._store.read() as snapshot:
                inode = snapshot.inode(item.ino)
                if inode is None or inode.content is None:
                    return
                job = job_for_inode(snapshot, self._store.path, inode)
            rendition = await scheduler.render(job, priority=Priority.IMPORT)
            if not check_rendition(inode, job.recipe, rendition):
                self._report(item.path, _CHANGED)
        except NoRendererError:
            raise  # no picture after this one fares better
        except LatentfsError as error:
            self._report(item.path, str(error))
