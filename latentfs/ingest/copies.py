"""Finding out whether a finished PNG or JPEG file is a copy of a picture in the store."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

import msgspec
import trio

from latentfs.errors import FramingError, RenderError
from latentfs.images.parts import Parts, take_picture_apart
from latentfs.latents import payload as payload_codec
from latentfs.render.job_queue import Priority
from latentfs.render.jobs import job_for_content
from latentfs.render.scheduler import Scheduler
from latentfs.store.live_store import LiveStore
from latentfs.store.records import LatentContent
from latentfs.store.snapshot import Snapshot, blob_id

__all__ = ["Copy", "CopyFinder"]

log = logging.getLogger(__name__)

_PARTS_MAX = 1000
_TRIED_MAX = 10_000


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
        self._faithful: dict[tuple[bytes, int, bytes], bool] = {}

    async def find(self, data: bytes) -> Copy | None:
        """Return what *data* is a copy of, None if of nothing, or if that could not be found out.

        May take a render, at the priority of an import.  If cancelled, nothing has happened.

        Raises:
            StoreCorruptError, CorruptPayloadError: the picture that it is a copy of is damaged.
        """
        try:
            return await self._find(data)
        except FramingError:  # it is no whole picture
            return None
        except RenderError as error:
            log.info("a copy of a picture stays as it was written: %s", error)
            return None

    async def _find(self, data: bytes) -> Copy | None:
        digest = await trio.to_thread.run_sync(lambda: hashlib.sha256(data).digest())
        with self._store.read() as snapshot:
            known = snapshot.content_of_rendition(digest)
        if known is not None and known.rendition_sha256 == digest:
            content = _copied(known)
            is_one = await self._is_rendered_alike(content, size_bytes=len(data))
            return Copy(known, content, ()) if is_one else None
        parts = await trio.to_thread.run_sync(
            lambda: take_picture_apart(data, parts_max=_PARTS_MAX)
        )
        with self._store.read() as snapshot:
            known = snapshot.content_of_pixel_data(parts.pixel_data_sha256)
        if known is None:
            return None
        content = await trio.to_thread.run_sync(_with_parts, known, parts, digest)
        metadata = (*parts.before, *parts.after)
        is_one = await self._is_rendered_to(content, metadata, digest, size_bytes=len(data))
        return Copy(known, content, metadata) if is_one else None

    async def _is_rendered_alike(self, content: LatentContent, *, size_bytes: int) -> bool:
        """Whether a stored picture is rendered to its own bytes; found out once for each.

        One says nothing of another: they may have been rendered first by other libraries.  That it
        is undamaged is looked at each time.
        """
        metadata = await trio.to_thread.run_sync(
            _intact_metadata, self._store.read_in_thread(), content
        )
        way = (content.rendition_sha256, content.payload, content.recipe)
        if way not in self._faithful:
            is_alike = await self._is_rendered_to(
                content, metadata, content.rendition_sha256, size_bytes=size_bytes
            )
            if len(self._faithful) >= _TRIED_MAX:
                self._faithful.pop(next(iter(self._faithful)))
            self._faithful[way] = is_alike
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


def _intact_metadata(
    read: Callable[[], AbstractContextManager[Snapshot]], content: LatentContent
) -> tuple[bytes, ...]:
    """Return the metadata of a stored picture, without the padding, which is made anew.

    Decompresses all that the picture is made of: to be called in a thread.

    Raises:
        StoreCorruptError, CorruptPayloadError: something of it is damaged.
    """
    with read() as snapshot:
        payload_codec.decode(snapshot.payload(content.payload) or b"")
        return tuple(snapshot.blob(blob) or b"" for blob in (*content.chunks, *content.trailing))


def _copied(known: LatentContent) -> LatentContent:
    """Return the content of a picture that somebody made of *known*: it is not the mount's own."""
    source = msgspec.structs.replace(known.source, developed_in=0)
    return msgspec.structs.replace(known, source=source)


def _with_parts(known: LatentContent, parts: Parts, digest: bytes) -> LatentContent:
    """Return the content of a picture that has the pixels of *known* and other metadata.

    Hashes the metadata, which may be 64 MiB: to be called in a thread.
    """
    return msgspec.structs.replace(
        _copied(known),
        chunks=tuple(blob_id(chunk) for chunk in parts.before),
        trailing=tuple(blob_id(chunk) for chunk in parts.after),
        rendition_sha256=digest,
    )
