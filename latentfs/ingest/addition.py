"""The last steps of every picture into a store: its render, and its file."""

from __future__ import annotations

import stat
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from latentfs.images.framing import Framing
from latentfs.ingest.preparation import Picture
from latentfs.latents import payload as payload_codec
from latentfs.render.job_queue import RenderJob
from latentfs.render.protocol import Rendered, RenderRequest
from latentfs.store.records import Inode, LatentContent, VaeRecord
from latentfs.store.snapshot import PackedBlob, Snapshot
from latentfs.store.transaction import Transaction, pack_blobs
from latentfs.store.vae_files import vae_folder

__all__ = [
    "Owner",
    "PackedMetadata",
    "RenderedPicture",
    "add_picture",
    "compressed",
]


@dataclass(frozen=True, slots=True)
class PackedMetadata:
    """The metadata of a picture as it is kept.

    Attributes:
        chunks: that are in the file.
        source: what the latent file has besides, if anything.
    """

    chunks: tuple[PackedBlob, ...]
    source: PackedBlob | None

    @property
    def size_bytes(self) -> int:
        blobs = self.chunks if self.source is None else (*self.chunks, self.source)
        return sum(len(blob.frame) for blob in blobs)


@dataclass(frozen=True, slots=True)
class RenderedPicture:
    """A picture whose size is known, on its way into the store."""

    picture: Picture
    payload: bytes
    metadata: PackedMetadata
    report: Rendered

    @property
    def stored_bytes(self) -> int:
        """About what it takes in the store, if the store has nothing of it yet."""
        return len(self.payload) + self.metadata.size_bytes


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose a new file is, and its permissions, as in ``chmod``."""

    uid: int
    gid: int
    permissions: int = 0o644


def compressed(
    read: Callable[[], AbstractContextManager[Snapshot]],
    store_path: Path,
    vae: VaeRecord,
    framing: Framing,
    picture: Picture,
) -> tuple[RenderJob, PackedMetadata]:
    """Compress all that is to be stored of a picture; return the job of its render, too.

    Takes tens of milliseconds, and up to a second for a megabyte of metadata: to be called in a
    thread.

    Args:
        read: opens a view of the store.
    """
    return _job(store_path, vae, framing, picture), _packed_metadata(read, picture)


def _job(store_path: Path, vae: VaeRecord, framing: Framing, picture: Picture) -> RenderJob:
    """Compress the latent, and the exact one where that is to be compared with."""
    payload = payload_codec.encode(picture.latent)
    reference = b"" if picture.exact is None else payload_codec.encode(picture.exact)
    request = RenderRequest(
        number=0,
        vae_folder=str(vae_folder(store_path, vae.id)),
        vae_files=vae.files,
        recipe=picture.recipe,
        framing=framing,
        size_bytes=None,
        payload_bytes=len(payload),
        reference_bytes=len(reference),
        chunk_bytes=tuple(len(chunk) for chunk in picture.chunks),
        want_data=False,
    )
    return RenderJob(
        request,
        [payload, reference, *picture.chunks],
        picture.latent.shape,
        picture.identity,
    )


def _packed_metadata(
    read: Callable[[], AbstractContextManager[Snapshot]], picture: Picture
) -> PackedMetadata:
    source = () if picture.metadata is None else pack_blobs(read, [picture.metadata])
    return PackedMetadata(pack_blobs(read, picture.chunks), next(iter(source), None))


def add_picture(
    transaction: Transaction,
    parent_ino: int,
    name: bytes,
    rendered: RenderedPicture,
    *,
    framing: Framing,
    owner: Owner,
) -> None:
    """Make the file of a rendered picture; *name* must be free."""
    picture, metadata, report = rendered.picture, rendered.metadata, rendered.report
    source = None if metadata.source is None else transaction.add_blob(metadata.source)
    content = LatentContent(
        payload=transaction.add_payload(picture.identity.digest, rendered.payload),
        # Another than was asked for where the latent, or the memory, did not allow that.
        recipe=transaction.put_recipe(report.recipe or picture.recipe),
        framing=framing,
        chunks=tuple(transaction.add_blob(chunk) for chunk in metadata.chunks),
        rendition_sha256=report.sha256,
        width=report.width,
        height=report.height,
        source=msgspec.structs.replace(picture.source, metadata=source),
        pixel_data_sha256=report.pixel_data_sha256,
    )
    inode = Inode(
        mode=stat.S_IFREG | owner.permissions,
        uid=owner.uid,
        gid=owner.gid,
        nlink=1,
        size_bytes=report.size_bytes,
        mtime_ns=picture.mtime_ns,
        ctime_ns=time.time_ns(),
        content=content,
    )
    transaction.add_file(parent_ino, name, inode)
