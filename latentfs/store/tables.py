"""The layout of the LMDB environment: each table, its keys and its values.

Integers in keys are big-endian, so that LMDB's byte order is numeric order.  Records are msgpack
(:mod:`latentfs.store.records`).

==============  ===================================  ==============================================
table           key                                  value
==============  ===================================  ==============================================
catalog         ``schema``                           schema version, msgpack integer
                ``next_ino``, ``next_payload``,      next free id, msgpack integer
                ``next_change``
                ``totals``                           Totals
                ``vae:`` + name                      VaeRecord
                ``recipe:`` + recipe id (16 bytes)   Recipe, JSON
                ``change:`` + number (8)             Change, of the last CHANGES_KEPT transactions
                ``orphan:`` + ino (8)                empty; a file without links that was open
inodes          ino (8)                              Inode
dentries        parent ino (8) + name (1-255)        ino (8)
payloads        payload id (8) + row (2)             a piece of the payload, see below
payload_index   digest of the latent (32)            payload id (8) + references (8)
metadata        blob id (16) + 0                     blob, zstd
                blob id (16) + 1                     references (8)
chunks          ino (8) + index (4)                  CHUNK_BYTES of a file, see below
xattrs          ino (8) + name (1-255)               value of an extended attribute
renditions      sha256 of a rendition (32)           LatentContent that it is the rendition of
pixel_data      sha256 of its pixel data (32)        the same
==============  ===================================  ==============================================

A **payload** is stored as a run of rows.  LMDB gives a value of more than about 2 KB pages of its
own, on average half of the last page empty: 7% of a 4-channel latent.  So row 0 takes as many
bytes as fill whole pages exactly, and the rest follows in rows small enough to share a leaf page.
Payload ids are handed out in order, so that rows are appended and leaf pages fill up.

A file that is no picture is kept byte for byte in **chunks** of ``CHUNK_BYTES``: one byte that says
how the rest is kept (``CHUNK_RAW``, ``CHUNK_ZSTD``), then the bytes.  What a chunk lacks up to the
file's size, or to the next chunk, reads as zeros, and a chunk that isn't there is a hole.

A row of **renditions** or **pixel_data** may outlive the payload that it names: payload ids are
never used again, so whoever reads it looks whether the payload is still there.

**Migration.**  A store of a newer schema is refused.  An older one is migrated by the functions in
``MIGRATIONS`` (from version N to N + 1), in one transaction, before anything else is read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import lmdb
import msgspec

from latentfs.errors import StoreCorruptError
from latentfs.store.records import Inode

__all__ = [
    "CHANGES_KEPT",
    "CHUNKS_MAX",
    "CHUNK_BYTES",
    "CHUNK_RAW",
    "CHUNK_ZSTD",
    "MIGRATIONS",
    "NAME_BYTES_MAX",
    "PAGE_BYTES",
    "ROOT_INO",
    "SCHEMA_VERSION",
    "TABLES",
    "blob_key",
    "blob_references_key",
    "change_key",
    "chunk_index",
    "chunk_key",
    "dentry_key",
    "ino_key",
    "orphan_key",
    "parse_payload_key",
    "payload_key",
    "split_payload",
    "storable_ns",
    "xattr_key",
]

SCHEMA_VERSION = 2


def _add_tables(txn: lmdb.Transaction, dbs: dict[str, lmdb._Database]) -> None:
    """From 1 to 2: the new tables, which are made when opened; those for chunks stay empty."""
    for _, value in txn.cursor(db=dbs["inodes"]):
        content = msgspec.msgpack.decode(value, type=Inode).content
        if content is not None:
            encoded = msgspec.msgpack.encode(content)
            txn.put(content.rendition_sha256, encoded, db=dbs["renditions"])


# Each is given the write transaction and the tables by name, those of newer versions too.
MIGRATIONS: dict[int, Callable[[lmdb.Transaction, dict[str, lmdb._Database]], None]] = {
    1: _add_tables
}

TABLES = (
    "catalog",
    "inodes",
    "dentries",
    "payloads",
    "payload_index",
    "metadata",
    "chunks",
    "xattrs",
    "renditions",
    "pixel_data",
)
ROOT_INO = 1
NAME_BYTES_MAX = 255

CHANGES_KEPT = 1000
"""A daemon looks for changes twice a second, so it misses none unless it is stopped for long."""

PAGE_BYTES = 4096
_OVERFLOW_HEADER_BYTES = 16
# Four rows of this size, with their keys and node headers, fill a leaf page.
_TAIL_ROW_BYTES = 994

CHUNK_BYTES = 128 * 1024
"""What the kernel writes at a time."""
CHUNK_RAW, CHUNK_ZSTD = 0, 1
CHUNKS_MAX = 1 << 32

_U64 = struct.Struct(">Q")
_PAYLOAD_KEY = struct.Struct(">QH")
_CHUNK_KEY = struct.Struct(">QI")


_NS_MIN, _NS_MAX = -(1 << 63), (1 << 63) - 1


def storable_ns(time_ns: int) -> int:
    """Return the time, in nanoseconds since 1970, or the nearest that an inode can hold.

    Those are of 64 bits, from 1677 to 2262.  Other file systems do so too: an archive may well
    have files of 1601, which is zero on some.
    """
    return max(_NS_MIN, min(time_ns, _NS_MAX))


def ino_key(ino: int) -> bytes:
    return _U64.pack(ino)


def dentry_key(parent_ino: int, name: bytes) -> bytes:
    return _U64.pack(parent_ino) + name


def payload_key(payload: int, row: int) -> bytes:
    return _PAYLOAD_KEY.pack(payload, row)


def parse_payload_key(key: bytes | memoryview) -> tuple[int, int]:
    """Return (payload id, row).

    Raises:
        StoreCorruptError: it is no key of that table.
    """
    if len(key) != _PAYLOAD_KEY.size:
        raise StoreCorruptError(f"{bytes(key)!r} is no key of a payload; run latentfs fsck")
    payload, row = _PAYLOAD_KEY.unpack(key)
    return payload, row


def blob_key(blob: bytes) -> bytes:
    return blob + b"\x00"


def blob_references_key(blob: bytes) -> bytes:
    return blob + b"\x01"


def chunk_key(ino: int, index: int) -> bytes:
    return _CHUNK_KEY.pack(ino, index)


def chunk_index(key: bytes | memoryview) -> int:
    return int.from_bytes(key[8:], "big")


def xattr_key(ino: int, name: bytes) -> bytes:
    return _U64.pack(ino) + name


def orphan_key(ino: int) -> bytes:
    return b"orphan:" + _U64.pack(ino)


def change_key(number: int) -> bytes:
    return b"change:" + _U64.pack(number)


def split_payload(payload: bytes) -> Iterator[bytes]:
    """Yield the rows of *payload*: whole pages first, then the tail in small rows."""
    view = memoryview(payload)
    pages = (len(view) + _OVERFLOW_HEADER_BYTES) // PAGE_BYTES
    start = max(0, pages * PAGE_BYTES - _OVERFLOW_HEADER_BYTES)
    if start:
        yield bytes(view[:start])
    while start < len(view):
        yield bytes(view[start : start + _TAIL_ROW_BYTES])
        start += _TAIL_ROW_BYTES
