"""Checks of rows by themselves, and of sums and counters over them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from latentfs.errors import LatentfsError
from latentfs.store import tables
from latentfs.store.chunks import chunk_bytes
from latentfs.store.fsck.facts import (
    BLOB_ID_BYTES,
    CHUNK_KEY_BYTES,
    DIGEST_BYTES,
    INO_END,
    PAYLOAD_KEY_BYTES,
    Facts,
    impossible,
    impossible_vae,
    read_as,
    shown,
)
from latentfs.store.records import Totals
from latentfs.store.rows import Value
from latentfs.store.snapshot import Decoders
from latentfs.store.tables import CHUNK_BYTES
from latentfs.store.vae_files import vae_folder, verify

__all__ = [
    "check_chunks",
    "check_counters",
    "check_inodes",
    "check_records",
    "check_totals",
    "check_vaes",
    "check_xattrs",
    "chunk_end",
    "expected_counters",
    "expected_totals",
]


def check_records(facts: Facts) -> Iterator[str]:
    """Every row has a key and a record that can be read."""
    for key, value in facts.rows.items("inodes"):
        if not _is_id(key):
            yield f"{bytes(key)!r} is no key of an inode"
        elif read_as(Decoders.inode, value) is None:
            yield f"inode {int.from_bytes(key, 'big')} can't be read"
    yield from _unknown_keys(facts)
    for key in facts.catalog_keys(b"vae:"):
        vae = read_as(Decoders.vae, facts.rows.get("catalog", key) or b"")
        reason = "it can't be read" if vae is None else impossible_vae(vae)
        if reason:
            yield f"VAE {shown(key[4:])!r}: {reason}"
    for key in facts.catalog_keys(b"recipe:"):
        if key[7:] not in facts.recipes:
            yield f"recipe {key[7:].hex()} can't be read"
    for key in facts.catalog_keys(b"change:"):
        if read_as(Decoders.change, facts.rows.get("catalog", key) or b"") is None:
            yield f"the change {key[7:].hex()} can't be read"
    for digest, value in facts.rows.items("payload_index"):
        if len(digest) == DIGEST_BYTES and (len(value) != 16 or not _is_id(value[:8])):
            yield f"the index entry of digest {bytes(digest).hex()} can't be read"


def _unknown_keys(facts: Facts) -> Iterator[str]:
    for key in facts.rows.keys("dentries"):
        if not _is_id(key[:8]) or not 8 < len(key) <= 8 + tables.NAME_BYTES_MAX:
            yield f"{bytes(key)!r} is no key of a directory entry"
    for key in facts.rows.keys("payloads"):
        if len(key) != PAYLOAD_KEY_BYTES or not _is_id(key[:8]):
            yield f"{bytes(key)!r} is no key of a payload"
    for key in facts.rows.keys("payload_index"):
        if len(key) != DIGEST_BYTES:
            yield f"{bytes(key)!r} is no digest of a payload"
    for key in facts.rows.keys("metadata"):
        if len(key) != BLOB_ID_BYTES + 1 or key[-1] not in (0, 1):
            yield f"{bytes(key)!r} is no key of a metadata blob"
    for key in facts.rows.keys("chunks"):
        if len(key) != CHUNK_KEY_BYTES or not _is_id(key[:8]):
            yield f"{bytes(key)!r} is no key of a chunk"
    for key in facts.rows.keys("xattrs"):
        if not _is_id(key[:8]) or not 8 < len(key) <= 8 + tables.NAME_BYTES_MAX:
            yield f"{bytes(key)!r} is no key of an extended attribute"


def _is_id(key: Value) -> bool:
    return len(key) == 8 and 0 < int.from_bytes(key, "big") < INO_END


def check_inodes(facts: Facts) -> Iterator[str]:
    """Every inode is one that a file, folder, link or device can have."""
    for ino in sorted(facts.damaged_inos):
        inode = read_as(Decoders.inode, facts.rows.get("inodes", tables.ino_key(ino)) or b"")
        if inode is not None:
            yield f"{facts.path_of(ino)} (inode {ino}): {impossible(inode)}"


def check_chunks(facts: Facts) -> Iterator[str]:
    """Chunks belong to files that have none else, can be read, and lie within the file's size."""
    counted_ino, count, end = 0, 0, 0
    found: set[int] = set()
    for _, ino, index, value in facts.chunk_rows():
        if ino != counted_ino:
            yield from _chunks_of(facts, counted_ino, count, end)
            counted_ino, count = ino, 0
            found.add(ino)
        count += 1
        end, reason = chunk_end(value, ino, index)
        if reason is not None:
            yield f"{facts.path_of(ino)}: {reason}"
        facts.progress()
    yield from _chunks_of(facts, counted_ino, count, end)
    for ino, inode in facts.inodes():
        if inode.chunks and ino not in found:
            yield f"{facts.path_of(ino)} has {inode.chunks} chunks recorded, 0 found"


def _chunks_of(facts: Facts, ino: int, count: int, end: int) -> Iterator[str]:
    """Check *count* chunks of *ino*, the last of which reaches to *end*."""
    if not count or ino in facts.damaged_inos:
        return
    inode = facts.inode(ino)
    if inode is None:
        yield f"{count} chunks belong to inode {ino}, which is missing"
    elif not inode.is_chunked:
        yield f"{facts.path_of(ino)} has {count} chunks and is no file that is kept in chunks"
    else:
        if inode.chunks != count:
            yield f"{facts.path_of(ino)} has {inode.chunks} chunks recorded, {count} found"
        if end > inode.size_bytes:
            yield (
                f"{facts.path_of(ino)} has size {inode.size_bytes}, its last chunk ends at {end}"
            )


def chunk_end(value: Value, ino: int, index: int) -> tuple[int, str | None]:
    """Return where a chunk ends in its file, and why it can't be read, if it can't.

    One that can't be read ends behind its first byte: it takes that much at least.
    """
    try:
        length, reason = len(chunk_bytes(value, ino, index)), None
    except LatentfsError as error:
        length, reason = 1, str(error).removesuffix("; run latentfs fsck")
    return index * CHUNK_BYTES + length, reason


def check_xattrs(facts: Facts) -> Iterator[str]:
    """Extended attributes belong to an inode."""
    for _, ino, name in facts.xattr_rows():
        if ino not in facts.inos:
            yield f"attribute {shown(name)!r} belongs to inode {ino}, which is missing"


def check_vaes(facts: Facts) -> Iterator[str]:
    """Every VAE's files have the hashes they were added with."""
    for name, vae in facts.vaes():
        try:
            verify(vae_folder(facts.store_path, vae.id), vae.files)
        except (LatentfsError, OSError) as error:
            yield f"VAE {name!r}: {error}"


def expected_counters(facts: Facts) -> dict[bytes, int]:
    """Return the least that each next id may be."""
    changes = [int.from_bytes(key[7:], "big") for key in facts.catalog_keys(b"change:")]
    payloads = max((*facts.payload_bytes, *facts.payload_uses), default=0)
    return {
        b"next_ino": max(facts.inos, default=0) + 1,
        b"next_payload": payloads + 1,
        b"next_change": max((n + 1 for n in changes if n < INO_END), default=tables.CHANGES_KEPT),
    }


def check_counters(facts: Facts) -> Iterator[str]:
    """The next free ids are above all that were given, so that none is given again."""
    for key, least in expected_counters(facts).items():
        number = facts.integer(key)
        if number is None:
            yield f"{key.decode()} is missing or can't be true"
        elif number < least:
            yield f"{key.decode()} is {number}, but {least - 1} was given"


def expected_totals(facts: Facts) -> Totals:
    found = Totals()
    files = directories = size_bytes = 0
    for _, inode in facts.inodes():
        directories += inode.is_directory
        files += not inode.is_directory
        size_bytes += 0 if inode.is_directory else inode.size_bytes
    payloads = facts.payload_bytes.keys() | {payload for _, payload, _ in facts.payload_index()}
    return found.plus(
        files=files,
        directories=directories,
        size_bytes=size_bytes,
        payloads=len(payloads),
        payload_bytes=sum(facts.payload_bytes.values()),
    )


def check_totals(facts: Facts) -> Iterator[str]:
    """The recorded totals are the sums over the tables."""
    value = facts.rows.get("catalog", b"totals")
    recorded = Totals() if value is None else read_as(Decoders.totals, value)
    found = expected_totals(facts)
    if recorded is None:
        yield "the totals can't be read"
    elif recorded != found:
        yield f"recorded {_sums(recorded)}; found {_sums(found)}"


def _sums(totals: Totals) -> str:
    fields = msgspec.structs.asdict(totals)
    return ", ".join(f"{name}={number}" for name, number in fields.items())
