"""Building the render job of a stored content: everything a renderer needs, from one snapshot."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable
from pathlib import Path

import msgspec

from latentfs.errors import RenderFailedError, StoreCorruptError
from latentfs.latents import payload as payload_codec
from latentfs.latents.recipe import Recipe
from latentfs.render.job_queue import RenderJob, Rendition
from latentfs.render.protocol import RenderRequest
from latentfs.store.records import Inode, LatentContent
from latentfs.store.snapshot import Snapshot
from latentfs.store.vae_files import vae_folder

__all__ = ["check_rendition", "content_key", "job_for_content", "job_for_inode"]


def content_key(inode: Inode) -> bytes:
    """Return 16 bytes that stand for what decides a file's bytes.

    Files with equal keys share one render and one cache entry.  A digest, as a million of them may
    be held.
    """
    content = inode.content
    assert content is not None
    deciding = (
        content.payload,
        content.recipe,
        content.framing,
        content.chunks,
        content.trailing,
        inode.size_bytes,
    )
    return hashlib.blake2b(msgspec.msgpack.encode(deciding), digest_size=16).digest()


def job_for_inode(snapshot: Snapshot, store_path: Path, inode: Inode) -> RenderJob:
    """Return the job that renders *inode* to exactly its size.

    Raises:
        StoreCorruptError: payload, recipe, VAE or a metadata blob is missing.
        CorruptPayloadError: the payload's header can't be true.
        VaeCorruptError: the VAE's id would lead out of the store.
    """
    content = inode.content
    if content is None:
        raise StoreCorruptError("the file has no content; run latentfs fsck")
    return job_for_content(
        snapshot,
        store_path,
        content,
        chunks=_chunks(snapshot, content),
        size_bytes=inode.size_bytes,
        key=content_key(inode),
    )


def job_for_content(
    snapshot: Snapshot,
    store_path: Path,
    content: LatentContent,
    *,
    chunks: list[bytes],
    size_bytes: int,
    key: Hashable,
    want_data: bool = True,
) -> RenderJob:
    """Return the job that renders *content* with *chunks*, in place of its own, to *size_bytes*.

    Args:
        key: what names the content in the quarantine.

    Raises:
        StoreCorruptError, CorruptPayloadError, VaeCorruptError: as of :func:`job_for_inode`.
    """
    payload = snapshot.payload(content.payload)
    recipe = snapshot.recipe(content.recipe)
    if payload is None or recipe is None:
        raise StoreCorruptError(
            f"payload {content.payload} or recipe {content.recipe.hex()} is missing; "
            "run latentfs fsck"
        )
    found = snapshot.vae_of_id(recipe.vae)
    if found is None:
        raise StoreCorruptError(f"VAE {recipe.vae} is missing; run latentfs fsck")
    request = RenderRequest(
        number=0,
        vae_folder=str(vae_folder(store_path, recipe.vae)),
        vae_files=found[1].files,
        recipe=recipe,
        framing=content.framing,
        size_bytes=size_bytes,
        payload_bytes=len(payload),
        reference_bytes=0,
        chunk_bytes=tuple(len(chunk) for chunk in chunks),
        trailing_chunks=len(content.trailing),
        want_data=want_data,
    )
    shape = payload_codec.header(payload).shape
    return RenderJob(request, [payload, *chunks], shape, key)


def _chunks(snapshot: Snapshot, content: LatentContent) -> list[bytes]:
    chunks = []
    for blob in (*content.chunks, *content.trailing):
        data = snapshot.blob(blob)
        if data is None:
            raise StoreCorruptError(f"metadata blob {blob.hex()} is missing; run latentfs fsck")
        chunks.append(data)
    return chunks


def check_rendition(inode: Inode, asked: Recipe, rendition: Rendition) -> bool:
    """Return whether *rendition*, by the recipe *asked*, has the bytes *inode* had at import.

    Raises:
        RenderFailedError: it has another length, or other bytes for lack of memory.
    """
    assert inode.content is not None
    report = rendition.report
    if len(rendition.data) != inode.size_bytes:
        raise RenderFailedError(
            f"it was rendered to {len(rendition.data)} bytes, not to its size of {inode.size_bytes}"
        )
    if report.sha256 == inode.content.rendition_sha256:
        return True
    if report.recipe is not None and report.recipe.widened_from == asked.widened_from:
        # How much memory there is changes; a file's bytes may not change with it.
        raise RenderFailedError(
            "it could only be rendered in a smaller batch than its recipe has, for lack of memory, "
            "and came out different; free memory on the device"
        )
    return False
