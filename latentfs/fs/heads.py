"""The first bytes of pictures, up to their pixel data: known without a render."""

from __future__ import annotations

import mmap
import sys
from collections.abc import Hashable

import pyfuse3
from cachetools import LRUCache

from latentfs.errors import StoreCorruptError
from latentfs.images import framing
from latentfs.store.records import LatentContent
from latentfs.store.snapshot import Snapshot

__all__ = ["Heads"]

_KEPT_BYTES_MAX = 16 << 20
# Making that many takes 5 ms, in which nobody else is answered.
_HEAD_BYTES_MAX = 2 << 20


class Heads:
    """Makes heads, and keeps those used last: programs read them in many small pieces."""

    def __init__(self) -> None:
        self._kept: LRUCache[Hashable, bytes] = LRUCache(_KEPT_BYTES_MAX, getsizeof=sys.getsizeof)

    def piece(
        self, snapshot: Snapshot, content: LatentContent, *, offset: int, end: int
    ) -> bytes | None:
        """Return these bytes of the picture; None where they don't end in the head.

        Also where the head is long, or a metadata blob is missing: a rendition has it, too, and
        may be in the pixel cache.

        Raises:
            StoreCorruptError: a metadata blob is damaged.
        """
        if not 0 < end <= _known_bytes(snapshot, content):
            return None
        return self._whole(snapshot, content)[offset:end]

    def show_kernel(self, snapshot: Snapshot, ino: int, content: LatentContent) -> bool:
        """Put the pages of a head with a room into the kernel's page cache; whether there are any.

        None of a long one, or of one of which a metadata blob is missing.

        The kernel reads ahead from the first page on that it lacks: four pages and more for one
        that a program asks for, which would be beyond any head of a sensible size.

        Nobody may have the file open: a page that is being read is locked, and the kernel would
        have this wait until that read is answered.

        Raises:
            StoreCorruptError: a metadata blob is damaged.
            OSError: the kernel refuses it.
        """
        if not content.framing.room_bytes or not _known_bytes(snapshot, content):
            return False
        head = self._whole(snapshot, content)
        whole_pages_bytes = len(head) // mmap.PAGESIZE * mmap.PAGESIZE
        if whole_pages_bytes:
            pyfuse3.notify_store(ino, 0, head[:whole_pages_bytes])
        return whole_pages_bytes > 0

    def _whole(self, snapshot: Snapshot, content: LatentContent) -> bytes:
        key = (content.framing, content.width, content.height, content.chunks)
        head = self._kept.get(key)
        if head is None:
            metadata = [_blob(snapshot, blob) for blob in content.chunks]
            head = framing.head(
                content.framing, width=content.width, height=content.height, metadata=metadata
            )
            self._kept[key] = head
        return head


def _known_bytes(snapshot: Snapshot, content: LatentContent) -> int:
    """Return the length of the head, 0 where it is not to be made."""
    lengths = [snapshot.blob_bytes(blob) for blob in content.chunks]
    known = [length for length in lengths if length is not None]
    head_bytes = framing.head_bytes(content.framing, metadata_bytes=sum(known))
    return head_bytes if len(known) == len(lengths) and head_bytes <= _HEAD_BYTES_MAX else 0


def _blob(snapshot: Snapshot, blob: bytes) -> bytes:
    data = snapshot.blob(blob)
    if data is None:
        raise StoreCorruptError(f"metadata blob {blob.hex()} is missing; run latentfs fsck")
    return data
