"""Files that are kept byte for byte: reading and writing ranges of their chunks."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import zstandard

from latentfs.errors import RefusedChangeError, StoreCorruptError
from latentfs.store import tables
from latentfs.store.rows import Rows, Value
from latentfs.store.tables import CHUNK_BYTES, CHUNK_RAW, CHUNK_ZSTD

__all__ = [
    "FILE_BYTES_MAX",
    "chunk_bytes",
    "chunk_indices",
    "compressed",
    "cut_chunks",
    "drop_chunks",
    "read_chunks",
    "write_chunks",
]

FILE_BYTES_MAX = tables.CHUNKS_MAX * CHUNK_BYTES

_RAW = bytes([CHUNK_RAW])
_LEVEL = 3
# What saves less than that is not worth the time of each read.
_KEPT_PARTS = 15 / 16


def read_chunks(rows: Rows, ino: int, *, offset: int, end: int) -> bytes:
    """Return the bytes from *offset* to *end*, which must not lie behind the file's size.

    Raises:
        StoreCorruptError: a chunk can't be true.
    """
    pieces = []
    while offset < end:
        index, start = divmod(offset, CHUNK_BYTES)
        stop = min(CHUNK_BYTES, start + end - offset)
        value = rows.get("chunks", tables.chunk_key(ino, index))
        piece = b"" if value is None else chunk_bytes(value, ino, index)[start:stop]
        pieces.append(piece)
        pieces.append(bytes(stop - start - len(piece)))
        offset += stop - start
    return b"".join(pieces)


def write_chunks(rows: Rows, ino: int, *, offset: int, data: bytes | memoryview) -> int:
    """Write *data* at *offset*; return how many chunks were added.

    Raises:
        RefusedChangeError: EFBIG.
        StoreCorruptError: a chunk that is to be changed in part can't be true.
    """
    if offset + len(data) > FILE_BYTES_MAX:
        raise RefusedChangeError(
            errno.EFBIG, f"a file can't be longer than {FILE_BYTES_MAX} bytes; write less"
        )
    view, added = memoryview(data), 0
    while view:
        index, start = divmod(offset, CHUNK_BYTES)
        piece = view[: CHUNK_BYTES - start]
        added += _write_in_chunk(rows, ino, index, start, piece)
        view = view[len(piece) :]
        offset += len(piece)
    return added


def _write_in_chunk(rows: Rows, ino: int, index: int, start: int, piece: memoryview) -> bool:
    """Write *piece* at *start* of one chunk; return whether there was none before."""
    key = tables.chunk_key(ino, index)
    before = rows.get("chunks", key)
    whole = start == 0 and len(piece) == CHUNK_BYTES
    known = b"" if before is None or whole else chunk_bytes(before, ino, index)
    gap = bytes(max(0, start - len(known)))
    kept_end = start + len(piece)
    value = b"".join((_RAW, known[:start], gap, piece, known[kept_end:]))
    rows.put("chunks", key, value)
    return before is None


def cut_chunks(rows: Rows, ino: int, *, size_bytes: int) -> int:
    """Remove what lies behind *size_bytes*; return how many chunks were removed."""
    index, end = divmod(size_bytes, CHUNK_BYTES)
    if end:
        key = tables.chunk_key(ino, index)
        value = rows.get("chunks", key)
        if value is not None:
            rows.put("chunks", key, _RAW + bytes(chunk_bytes(value, ino, index)[:end]))
        index += 1
    return drop_chunks(rows, ino, first=index) if index < tables.CHUNKS_MAX else 0


def drop_chunks(rows: Rows, ino: int, *, first: int = 0) -> int:
    """Remove the chunks from index *first* on; return how many there were."""
    indices = list(chunk_indices(rows, ino, first=first))
    for index in indices:
        rows.delete("chunks", tables.chunk_key(ino, index))
    return len(indices)


def chunk_indices(rows: Rows, ino: int, *, first: int = 0) -> Iterator[int]:
    prefix = tables.ino_key(ino)
    for key, _ in rows.items("chunks", tables.chunk_key(ino, first)):
        if key[:8] != prefix:
            return
        yield tables.chunk_index(key)


def compressed(value: bytes) -> bytes:
    """Return a chunk's value as it is to be kept on disk: compressed where that helps."""
    if value[0] != CHUNK_RAW:
        return value
    packed = zstandard.ZstdCompressor(level=_LEVEL).compress(memoryview(value)[1:])
    if len(packed) >= _KEPT_PARTS * len(value):
        return value
    return bytes([CHUNK_ZSTD]) + packed


def chunk_bytes(value: Value, ino: int, index: int) -> memoryview | bytes:
    """Return the bytes that a chunk's value stands for.

    Raises:
        StoreCorruptError: they can't be told.
    """
    view = memoryview(value)
    try:
        if view[0] == CHUNK_RAW and len(view) <= 1 + CHUNK_BYTES:
            return view[1:]
        # The decompressor believes what a frame says of its size; -1 where it says nothing.
        if view[0] == CHUNK_ZSTD and 0 <= zstandard.frame_content_size(view[1:]) <= CHUNK_BYTES:
            return zstandard.ZstdDecompressor().decompress(view[1:])
    except (IndexError, zstandard.ZstdError) as error:
        raise _damaged(ino, index, str(error)) from error
    raise _damaged(ino, index, f"{len(view)} bytes that begin with {bytes(view[:8]).hex()}")


def _damaged(ino: int, index: int, reason: str) -> StoreCorruptError:
    return StoreCorruptError(
        f"chunk {index} of inode {ino} can't be read ({reason}); run latentfs fsck"
    )
