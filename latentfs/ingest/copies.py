"""Finding out whether a finished PNG or JPEG file is a copy of a picture in the store."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass

import msgspec
import trio

from latentfs.errors import FramingError, RenderError
from latentfs.images.framing import Framing
from latentfs.images.parts import Parts, take_picture_apart
from latentfs.render.job_queue import Priority
from latentfs.render.jobs import job_for_content
from latentfs.render.scheduler import Scheduler
from latentfs.store.live_store import LiveStore
from latentfs.store.records import LatentContent
from latentfs.store.snapshot import Snapshot, blob_id

__all__ = ["Copy", "CopyFinder"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Copy:
    """A file whose bytes the store can make.

    Attributes:
        of: the picture it is a copy of.
        content: that is rendered to its bytes.
        metadata: that the store may lack, as whole chunks or segments.
    """

    of: LatentContent
    content: LatentContent
    metadata: tuple[bytes, ...]


class CopyFinder:
    """Compares files with the pictures of a store: by all their bytes, or by their pixel data.

    What looks like a copy is one only if it is rendered to the very bytes, here and now.  On
    another device, or with other libraries, it may not be, and then the file would not give the
    bytes any more that were written.
    """

    def __init__(self, store: LiveStore, scheduler: Scheduler) -> None:
        self._store = store
        self._scheduler = scheduler
        self._faithful: dict[tuple[bytes, Framing], bool] = {}

    async def find(self, data: bytes) -> Copy | None:
        """Return what *data* is a copy of, None if of nothing, or if that could not be found out.

        May take a render, at the priority of an import.  If cancelled, nothing has happened.
        """
        try:
            return await self._find(data)
        except FramingError:  # it is no whole picture
            return None
        except RenderError as error:
            log.info("a copy of a picture stays as it was written: %s", error)
            return None

    async def _find(self, data: bytes) -> Copy | None:
        parts = await trio.to_thread.run_sync(take_picture_apart, data)
        digest = await trio.to_thread.run_sync(lambda: hashlib.sha256(data).digest())
        with self._store.read() as snapshot:
            known = snapshot.content_of_rendition(digest) or snapshot.content_of_pixel_data(
                parts.pixel_data_sha256
            )
        if known is None:
            return None
        if known.rendition_sha256 == digest:
            is_one = await self._is_rendered_alike(known, digest, size_bytes=len(data))
            return Copy(known, known, ()) if is_one else None
        content = _with_parts(known, parts, digest)
        metadata = (*parts.before, *parts.after)
        is_one = await self._is_rendered_to(content, metadata, digest, size_bytes=len(data))
        return Copy(known, content, metadata) if is_one else None

    async def _is_rendered_alike(
        self, known: LatentContent, digest: bytes, *, size_bytes: int
    ) -> bool:
        """Whether a picture is rendered to its own bytes.

        If one is, so are others by the same recipe and framing.
        """
        way = (known.recipe, known.framing)
        if way not in self._faithful:
            with self._store.read() as snapshot:
                metadata = _metadata(snapshot, known)
            self._faithful[way] = await self._is_rendered_to(
                known, metadata, digest, size_bytes=size_bytes
            )
        return self._faithful[way]

    async def _is_rendered_to(
        self,
        content: LatentContent,
        metadata: tuple[bytes, ...],
        digest: bytes,
        *,
        size_bytes: int,
    ) -> bool:
        with self._store.read() as snapshot:
            job = job_for_content(
                snapshot,
                self._store.path,
                content,
                chunks=list(metadata),
                size_bytes=size_bytes,
                key=digest,
                want_data=False,
            )
        rendition = await self._scheduler.render(job, priority=Priority.IMPORT)
        return rendition.report.sha256 == digest


def _metadata(snapshot: Snapshot, content: LatentContent) -> tuple[bytes, ...]:
    """Return the metadata of a stored picture, without the padding, which is made anew."""
    return tuple(snapshot.blob(blob) or b"" for blob in (*content.chunks, *content.trailing))


def _with_parts(known: LatentContent, parts: Parts, digest: bytes) -> LatentContent:
    """Return the content of a picture that has the pixels of *known* and other metadata."""
    return msgspec.structs.replace(
        known,
        chunks=tuple(blob_id(chunk) for chunk in parts.before),
        trailing=tuple(blob_id(chunk) for chunk in parts.after),
        rendition_sha256=digest,
    )
