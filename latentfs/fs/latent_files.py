"""Reading latent files that are kept as their payloads: in parts, of which the last are kept.

Concurrency: everything here runs on the trio thread but what decompresses.  A part that several
reads want at the same time is decompressed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import trio
from cachetools import LRUCache

from latentfs.errors import LatentfsError, StoreCorruptError
from latentfs.store.latent_files import (
    decoded_latents,
    latent_file_parts,
    stored_latent_bytes,
    stored_latents,
    stored_rest,
)
from latentfs.store.live_store import LiveStore
from latentfs.store.records import LatentFileContent

__all__ = ["LatentFiles"]

# As many latents as fill it, one at the least, are decompressed together: about what the kernel
# asks for at once.
_PART_BYTES = 1 << 20
# The largest latent there may be.
_KEPT_BYTES_MAX = 128 << 20
# They compute; more at once would only take more memory.
_AT_ONCE_MAX = 4
# The number of the part that is not the latents'.
_REST = -1

_Key = tuple[LatentFileContent, int]


@dataclass(eq=False, slots=True)
class _Flight:
    """A part that is being decompressed; without an outcome if whoever began it was cancelled."""

    done: trio.Event = field(default_factory=trio.Event)
    outcome: bytes | LatentfsError | None = None


class LatentFiles:
    """Gives the bytes of latent files.

    A file of a thousand latents would take a second to put together, and its bytes as much memory
    as the cache of all renditions: so only what is asked for is decompressed.  What was last, is
    kept until :meth:`forget`, as reads go on where the last one has ended.
    """

    def __init__(self, store: LiveStore) -> None:
        self._store = store
        self._kept: LRUCache[_Key, bytes] = LRUCache(_KEPT_BYTES_MAX, getsizeof=len)
        self._flights: dict[_Key, _Flight] = {}
        self._places = trio.CapacityLimiter(_AT_ONCE_MAX)

    @property
    def kept_bytes(self) -> int:
        """Of decompressed parts."""
        return int(self._kept.currsize)

    async def read(self, content: LatentFileContent, *, offset: int, end: int) -> bytes:
        """Return these bytes of a file, which are all within it.

        If cancelled, it waits for what is being decompressed.

        Raises:
            StoreCorruptError: a payload, or the rest of the file, is missing or has another length.
            CorruptPayloadError: a payload doesn't decompress to what was stored.
        """
        with self._store.read() as snapshot:
            latent_bytes = stored_latent_bytes(snapshot, content)
        pieces = []
        for number, start, stop in _sections(content, latent_bytes, offset, end):
            part = await self._part((content, number), latent_bytes)
            pieces.append(memoryview(part)[start:stop])
        data = b"".join(pieces)
        if len(data) < end - offset:
            raise StoreCorruptError(f"metadata blob {content.rest.hex()} is too short for its file")
        return data

    async def whole(self, content: LatentFileContent) -> bytes:
        """Return all bytes of a file; if cancelled, it waits for that.  Raises as :meth:`read`."""
        read = self._store.read_in_thread()

        def put_together() -> bytes:
            with read() as snapshot:
                parts = latent_file_parts(snapshot, content)
            return parts.put_together()

        return await trio.to_thread.run_sync(put_together, limiter=self._places)

    def forget(self, content: LatentFileContent) -> None:
        """Let go of what is kept of a file: the kernel has what was read."""
        for key in [key for key in self._kept if key[0] == content]:
            del self._kept[key]

    async def _part(self, key: _Key, latent_bytes: int) -> bytes:
        while True:
            kept = self._kept.get(key)
            if kept is not None:
                return kept
            flight = self._flights.get(key)
            if flight is None:
                return await self._fly(key, latent_bytes)
            await flight.done.wait()
            if isinstance(flight.outcome, LatentfsError):
                raise flight.outcome
            if flight.outcome is not None:
                return flight.outcome

    async def _fly(self, key: _Key, latent_bytes: int) -> bytes:
        flight = self._flights[key] = _Flight()
        try:
            fetch = self._fetch_of(key, latent_bytes)
            flight.outcome = data = await trio.to_thread.run_sync(fetch, limiter=self._places)
        except LatentfsError as error:
            flight.outcome = error
            raise
        finally:
            del self._flights[key]
            flight.done.set()
        if len(data) <= _KEPT_BYTES_MAX:
            self._kept[key] = data
        return data

    def _fetch_of(self, key: _Key, latent_bytes: int) -> Callable[[], bytes]:
        """Return what gets a part, in a thread."""
        content, number = key
        read = self._store.read_in_thread()

        def fetch() -> bytes:
            with read() as snapshot:
                if number == _REST:
                    return stored_rest(snapshot, content)
                at_once = _latents_at_once(latent_bytes)
                first = number * at_once
                payloads = stored_latents(snapshot, content.payloads[first : first + at_once])
            data = decoded_latents(payloads, content)
            if len(data) != len(payloads) * latent_bytes:
                raise StoreCorruptError(f"payloads {content.payloads} are not of one tensor")
            return data

        return fetch


def _latents_at_once(latent_bytes: int) -> int:
    return max(1, _PART_BYTES // latent_bytes)


def _sections(
    content: LatentFileContent, latent_bytes: int, offset: int, end: int
) -> Iterator[tuple[int, int, int]]:
    """Yield (part, start, stop): where the bytes from *offset* to *end* are, in their order."""
    tensor_bytes = latent_bytes * len(content.payloads)
    part_bytes = latent_bytes * _latents_at_once(latent_bytes)
    first, last = content.offset, content.offset + tensor_bytes
    if offset < first:
        yield _REST, offset, min(end, first)
    at, tensor_end = max(offset, first) - first, min(end, last) - first
    while at < tensor_end:
        number, start = divmod(at, part_bytes)
        stop = min(part_bytes, start + tensor_end - at)
        yield number, start, stop
        at += stop - start
    if end > last:
        yield _REST, max(offset, last) - tensor_bytes, end - tensor_bytes
