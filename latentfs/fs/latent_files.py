"""Reading latent files that are kept as their payloads."""

from __future__ import annotations

import trio

from latentfs.errors import StoreCorruptError
from latentfs.latents import payload as payload_codec
from latentfs.latents.taken_apart import put_together
from latentfs.store.live_store import LiveStore
from latentfs.store.records import LatentFileContent

__all__ = ["latent_file_bytes"]


async def latent_file_bytes(store: LiveStore, content: LatentFileContent) -> bytes:
    """Return the bytes of a latent file, decompressed in a thread.

    Raises:
        StoreCorruptError: a payload, or the rest of the file, is missing.
        CorruptPayloadError: a payload doesn't decompress to what was stored.
    """
    with store.read() as snapshot:
        payloads = [snapshot.payload(payload) for payload in content.payloads]
        rest = snapshot.blob(content.rest)
    if rest is None or None in payloads:
        raise StoreCorruptError(
            f"payloads {content.payloads} or metadata blob {content.rest.hex()} is missing; "
            "run latentfs fsck"
        )

    def assembled() -> bytes:
        latents = [payload_codec.decode(payload) for payload in payloads if payload is not None]
        return put_together(latents, rest, offset=content.offset, packed=content.packed)

    return await trio.to_thread.run_sync(assembled)
