"""Latent files that are kept as their payloads."""

from __future__ import annotations

from dataclasses import dataclass

from latentfs.errors import StoreCorruptError
from latentfs.latents import payload as payload_codec
from latentfs.latents.taken_apart import put_together
from latentfs.store.records import LatentFileContent
from latentfs.store.snapshot import Snapshot

__all__ = ["LatentFileParts", "latent_file_parts"]


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
        latents = [payload_codec.decode(payload) for payload in self.payloads]
        content = self.content
        try:
            return put_together(latents, self.rest, offset=content.offset, packed=content.packed)
        except ValueError as error:
            raise StoreCorruptError(
                f"payloads {content.payloads} can't be packed ({error}); run latentfs fsck"
            ) from error


def latent_file_parts(snapshot: Snapshot, content: LatentFileContent) -> LatentFileParts:
    """Return what the file of *content* is put together from.

    Raises:
        StoreCorruptError: a payload, or the rest of the file, is missing.
    """
    found = [snapshot.payload(payload) for payload in content.payloads]
    payloads = [payload for payload in found if payload is not None]
    rest = snapshot.blob(content.rest)
    if rest is None or len(payloads) < len(found):
        raise StoreCorruptError(
            f"payloads {content.payloads} or metadata blob {content.rest.hex()} is missing; "
            "run latentfs fsck"
        )
    return LatentFileParts(content, payloads, rest)
