"""Reading latent files that are kept as their payloads."""

from __future__ import annotations

import trio

from latentfs.store.latent_files import latent_file_parts
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
        parts = latent_file_parts(snapshot, content)
    return await trio.to_thread.run_sync(parts.put_together)
