"""Latent files that are kept as their payloads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from latentfs.errors import StoreCorruptError
from latentfs.latents import payload as payload_codec
from latentfs.latents.latent import little_endian_type
from latentfs.latents.taken_apart import put_together, tensor_bytes
from latentfs.store.records import LatentFileContent
from latentfs.store.snapshot import Snapshot

__all__ = [
    "LatentFileParts",
    "decoded_latents",
    "latent_file_parts",
    "stored_latent_bytes",
    "stored_latents",
    "stored_rest",
]


@dataclass(frozen=True, slots=True)
class LatentFileParts:
    """What a latent file is put together from, copied out of the store."""

    content: LatentFileContent
    payloads: list[bytes]
    rest: bytes

    def put_together(self) -> bytes:
        """Return the bytes of the file.  Decompresses, so it takes tens of milliseconds.

        Raises:
            CorruptPayloadError: a payload doesn't decompress to what was stored.
            StoreCorruptError: its latents have a shape that can't be packed.
        """
        tensor = decoded_latents(self.payloads, self.content)
        return put_together(tensor, self.rest, offset=self.content.offset)


def latent_file_parts(snapshot: Snapshot, content: LatentFileContent) -> LatentFileParts:
    """Return what the file of *content* is put together from.

    Raises:
        StoreCorruptError: a payload, or the rest of the file, is missing.
    """
    payloads = stored_latents(snapshot, content.payloads)
    return LatentFileParts(content, payloads, stored_rest(snapshot, content))


def stored_latent_bytes(snapshot: Snapshot, content: LatentFileContent) -> int:
    """Return the length in the file of each of its latents: they are of one tensor.

    Raises:
        CorruptPayloadError: that can't be told.
        StoreCorruptError: the first payload is missing.
    """
    header = snapshot.payload_header(content.payloads[0])
    if header is None:
        raise _missing(content.payloads[:1])
    return prod(header.shape) * little_endian_type(header.dtype).itemsize


def stored_latents(snapshot: Snapshot, payloads: Sequence[int]) -> list[bytes]:
    """Return copies of *payloads*.

    Raises:
        StoreCorruptError: one is missing.
    """
    found = [snapshot.payload(payload) for payload in payloads]
    copies = [payload for payload in found if payload is not None]
    if len(copies) < len(found):
        raise _missing(payloads)
    return copies


def stored_rest(snapshot: Snapshot, content: LatentFileContent) -> bytes:
    """Return the bytes of the file without those of its latents.

    Raises:
        StoreCorruptError: they are missing, or damaged.
    """
    rest = snapshot.blob(content.rest)
    if rest is None:
        raise StoreCorruptError(f"metadata blob {content.rest.hex()} is missing; run latentfs fsck")
    return rest


def decoded_latents(payloads: Sequence[bytes], content: LatentFileContent) -> bytes:
    """Return what *payloads*, which follow each other in the file of *content*, are in it.

    Raises:
        CorruptPayloadError: a payload doesn't decompress to what was stored.
        StoreCorruptError: its latents have a shape that can't be packed.
    """
    latents = [payload_codec.decode(payload) for payload in payloads]
    try:
        return tensor_bytes(latents, packed=content.packed)
    except ValueError as error:
        raise StoreCorruptError(
            f"payloads {content.payloads} can't be packed ({error}); run latentfs fsck"
        ) from error


def _missing(payloads: Sequence[int]) -> StoreCorruptError:
    return StoreCorruptError(f"one of the payloads {payloads} is missing; run latentfs fsck")
