"""Reading the store: a consistent view of all tables as of one moment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import zstandard

from latentfs.errors import PathError, StoreCorruptError, VaeNotFoundError
from latentfs.latents import payload as codec
from latentfs.latents.payload import PayloadHeader
from latentfs.latents.recipe import Recipe
from latentfs.store import chunks, tables
from latentfs.store.records import Change, Inode, LatentContent, Totals, VaeRecord
from latentfs.store.rows import Rows, Value

__all__ = ["PackedBlob", "Snapshot", "blob_id", "check_name", "split_path"]

T = TypeVar("T")

_METADATA_BLOB_BYTES_MAX = 256 * 1024 * 1024


class Decoders:
    """msgpack decoders, built once: building one costs more than using it."""

    inode = msgspec.msgpack.Decoder(Inode)
    content = msgspec.msgpack.Decoder(LatentContent)
    change = msgspec.msgpack.Decoder(Change)
    totals = msgspec.msgpack.Decoder(Totals)
    vae = msgspec.msgpack.Decoder(VaeRecord)
    integer = msgspec.msgpack.Decoder(int)
    recipe = msgspec.json.Decoder(Recipe)


def split_path(path: str) -> list[bytes]:
    """Return the names of an absolute *path* inside the store, outermost first.

    Raises:
        PathError: it is not absolute, or has a name that no directory can hold.
    """
    if not path.startswith("/"):
        raise PathError(f"path {path!r} inside the store must start with '/'")
    return [check_name(part) for part in path.split("/") if part not in ("", ".")]


def check_name(name: str) -> bytes:
    """Return *name* as the bytes of a directory entry.

    Raises:
        PathError: it is empty, ``.``, ``..``, too long, or has ``/``, NUL or invalid UTF-8.
    """
    try:
        encoded = name.encode("utf-8")
    except UnicodeEncodeError:
        shown = name.encode("utf-8", "backslashreplace").decode()
        raise PathError(f"name '{shown}' is not valid UTF-8; rename it first") from None
    if name in ("", ".", ".."):
        raise PathError(f"name {name!r} can't be used for a file or folder in the store")
    if b"/" in encoded or b"\0" in encoded:
        raise PathError(f"name {name!r} has a '/' or NUL in it; rename it first")
    if len(encoded) > tables.NAME_BYTES_MAX:
        raise PathError(
            f"name {name[:40]!r}... is {len(encoded)} bytes long, at most "
            f"{tables.NAME_BYTES_MAX} are possible; rename it first"
        )
    return encoded


def blob_id(data: bytes) -> bytes:
    """Return the 16 bytes that name a metadata blob: a hash of its bytes."""
    return hashlib.blake2b(data, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class PackedBlob:
    """A metadata blob as it is kept.

    Attributes:
        id: the hash of its bytes.
        frame: its bytes, compressed.
    """

    id: bytes
    frame: bytes


def _unpacked(blob: bytes, frame: Value) -> bytes:
    """Return the bytes of the metadata blob of that id.

    Raises:
        StoreCorruptError: they are others, or none.
    """
    try:
        data = zstandard.ZstdDecompressor().decompress(
            frame, max_output_size=_METADATA_BLOB_BYTES_MAX
        )
    except zstandard.ZstdError as error:
        raise StoreCorruptError(
            f"metadata blob {blob.hex()} can't be decompressed ({error}); run latentfs fsck"
        ) from error
    if blob_id(data) != blob:
        raise StoreCorruptError(
            f"metadata blob {blob.hex()} does not hash to its name; run latentfs fsck"
        )
    return data


class Snapshot:
    """A read transaction.  Buffers it returns are valid only until it is closed.

    Made by :meth:`latentfs.store.store.Store.read`; not to be shared between threads.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    @property
    def rows(self) -> Rows:
        """The plain rows, for those who can't rely on what is in them."""
        return self._rows

    def _get(self, table: str, key: bytes) -> Value | None:
        return self._rows.get(table, key)

    def _decode(self, decoder: msgspec.msgpack.Decoder[T], value: Value, what: str) -> T:
        try:
            return decoder.decode(value)
        except msgspec.MsgspecError as error:
            raise StoreCorruptError(f"{what} can't be read ({error}); run latentfs fsck") from error

    # Inodes and directory entries

    def inode(self, ino: int) -> Inode | None:
        value = self._get("inodes", tables.ino_key(ino))
        return None if value is None else self._decode(Decoders.inode, value, f"inode {ino}")

    def inodes(self) -> Iterator[tuple[int, Inode]]:
        for key, value in self._rows.items("inodes"):
            ino = int.from_bytes(key, "big")
            yield ino, self._decode(Decoders.inode, value, f"inode {ino}")

    def newest_inodes(self) -> Iterator[tuple[int, Inode]]:
        """Yield number and inode of all, those that were added last first."""
        for key, value in self._rows.items_backwards("inodes"):
            ino = int.from_bytes(key, "big")
            yield ino, self._decode(Decoders.inode, value, f"inode {ino}")

    def orphans(self) -> Iterator[int]:
        """Yield the inodes without a link."""
        for key, _ in self._rows.items("catalog", tables.orphan_key(0)):
            if bytes(key[:7]) != b"orphan:":
                return
            yield int.from_bytes(key[7:], "big")

    def lookup(self, parent_ino: int, name: bytes) -> int | None:
        """Return the inode number that *name* in the directory *parent_ino* leads to."""
        if not 0 < len(name) <= tables.NAME_BYTES_MAX:
            return None
        value = self._get("dentries", tables.dentry_key(parent_ino, name))
        return None if value is None else int.from_bytes(value, "big")

    def entries(self, parent_ino: int, *, after: bytes = b"") -> Iterator[tuple[bytes, int]]:
        """Yield (name, ino) of a directory in byte order of the names, from behind *after*."""
        prefix = tables.ino_key(parent_ino)
        for key, value in self._rows.items("dentries", tables.dentry_key(parent_ino, after)):
            if key[:8] != prefix:
                return
            name = bytes(key[8:])
            if name != after:
                yield name, int.from_bytes(value, "big")

    def all_entries(self, *, after: tuple[int, bytes]) -> Iterator[tuple[int, bytes, int]]:
        """Yield (parent ino, name, ino) of all entries, from behind (parent ino, name) on."""
        start = tables.dentry_key(*after)
        for key, value in self._rows.items("dentries", start):
            if key != start:
                yield int.from_bytes(key[:8], "big"), bytes(key[8:]), int.from_bytes(value, "big")

    def resolve(self, path: str) -> tuple[int, Inode] | None:
        """Return (ino, inode) of an absolute *path* in the store, None where there is none."""
        ino = tables.ROOT_INO
        for name in split_path(path):
            found = self.lookup(ino, name)
            if found is None:
                return None
            ino = found
        inode = self.inode(ino)
        return None if inode is None else (ino, inode)

    # Files that are kept byte for byte, and extended attributes

    def bytes_of(self, ino: int, *, offset: int, end: int) -> bytes:
        """Return a part of a file that is kept in chunks; *end* is not behind its size."""
        return chunks.read_chunks(self._rows, ino, offset=offset, end=end)

    def chunk_indices(self, ino: int) -> Iterator[int]:
        return chunks.chunk_indices(self._rows, ino)

    def xattr(self, ino: int, name: bytes) -> bytes | None:
        value = self._get("xattrs", tables.xattr_key(ino, name))
        return None if value is None else bytes(value)

    def xattr_names(self, ino: int) -> Iterator[bytes]:
        prefix = tables.ino_key(ino)
        for key, _ in self._rows.items("xattrs", prefix):
            if key[:8] != prefix:
                return
            yield bytes(key[8:])

    # Payloads and metadata

    def _payload_rows(self, payload: int) -> Iterator[Value]:
        prefix = tables.ino_key(payload)
        for key, value in self._rows.items("payloads", tables.payload_key(payload, 0)):
            if key[:8] != prefix:
                return
            yield value

    def payload(self, payload: int) -> bytes | None:
        """Return a copy of the payload's bytes, None where it is missing."""
        rows = list(self._payload_rows(payload))
        return b"".join(rows) if rows else None

    def payload_bytes(self, payload: int) -> int:
        """Return the payload's length without reading it; 0 where it is missing."""
        return sum(len(row) for row in self._payload_rows(payload))

    def payload_header(self, payload: int) -> PayloadHeader | None:
        """Return what the payload says of itself, None where it is missing.

        Raises:
            CorruptPayloadError: its header can't be true.
        """
        row = self._get("payloads", tables.payload_key(payload, 0))
        return None if row is None else codec.header(bytes(row))

    def payload_ids(self) -> Iterator[int]:
        for key in self._rows.keys("payloads"):
            payload, row = tables.parse_payload_key(key)
            if row == 0:
                yield payload

    def payload_index(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield (digest, payload id, references) of all payloads."""
        for key, value in self._rows.items("payload_index"):
            references = int.from_bytes(value[8:], "big")
            yield bytes(key), int.from_bytes(value[:8], "big"), references

    def payload_of_digest(self, digest: bytes) -> int | None:
        value = self._get("payload_index", digest)
        return None if value is None else int.from_bytes(value[:8], "big")

    def blob(self, blob: bytes) -> bytes | None:
        """Return the metadata blob of that id, None where it is missing.

        It is hashed each time, which takes about a millisecond a megabyte: other bytes than were
        stored would become part of a picture, or of a latent file that is nowhere else.

        Raises:
            StoreCorruptError: it is damaged.
        """
        value = self._get("metadata", tables.blob_key(blob))
        return None if value is None else _unpacked(blob, value)

    def packed_blob(self, blob: bytes) -> PackedBlob | None:
        """Return the metadata blob of that id as it is kept, None where it's missing or damaged."""
        value = self._get("metadata", tables.blob_key(blob))
        if value is None:
            return None
        try:
            _unpacked(blob, value)
        except StoreCorruptError:
            return None
        return PackedBlob(blob, bytes(value))

    def blob_bytes(self, blob: bytes) -> int | None:
        """Return the length of `blob` without decompressing it."""
        value = self._get("metadata", tables.blob_key(blob))
        if value is None:
            return None
        try:
            return zstandard.frame_content_size(value)
        except zstandard.ZstdError as error:
            raise StoreCorruptError(
                f"metadata blob {blob.hex()} is not a zstd frame ({error}); run latentfs fsck"
            ) from error

    def has_blob(self, blob: bytes) -> bool:
        return self._get("metadata", tables.blob_key(blob)) is not None

    def blobs(self) -> Iterator[tuple[bytes, int]]:
        """Yield (id, references) of all metadata blobs."""
        for key, value in self._rows.items("metadata"):
            if key[16:] == b"\x01":
                yield bytes(key[:16]), int.from_bytes(value, "big")

    def content_of_rendition(self, sha256: bytes) -> LatentContent | None:
        """Return a content that is rendered to bytes of that hash, if all it needs is still there.

        Raises:
            StoreCorruptError: its record can't be read.
        """
        return self._content_of("renditions", sha256)

    def content_of_pixel_data(self, sha256: bytes) -> LatentContent | None:
        """Return a content whose pixel data has that hash, if all it needs is still there.

        Raises:
            StoreCorruptError: its record can't be read.
        """
        return self._content_of("pixel_data", sha256)

    def _content_of(self, table: str, sha256: bytes) -> LatentContent | None:
        value = self._get(table, sha256)
        if value is None:
            return None
        content = self._decode(Decoders.content, value, f"{table} {sha256.hex()}")
        return content if self.has_all_of(content) else None

    def has_all_of(self, content: LatentContent) -> bool:
        """Whether payload, recipe and blobs of a content are there."""
        return (
            self.payload_bytes(content.payload) > 0
            and self.recipe(content.recipe) is not None
            and all(self.has_blob(blob) for blob in content.blobs)
        )

    # Catalog

    def recipe(self, recipe: bytes) -> Recipe | None:
        value = self._get("catalog", b"recipe:" + recipe)
        if value is None:
            return None
        try:
            return Decoders.recipe.decode(value)
        except msgspec.MsgspecError as error:
            raise StoreCorruptError(
                f"recipe {recipe.hex()} can't be read ({error}); run latentfs fsck"
            ) from error

    def vaes(self) -> Iterator[tuple[str, VaeRecord]]:
        """Yield (name, record) of every VAE in the store, by name."""
        for key, value in self._rows.items("catalog", b"vae:"):
            if key[:4] != b"vae:":
                return
            name = bytes(key[4:]).decode("utf-8", "backslashreplace")
            yield name, self._decode(Decoders.vae, value, f"VAE {name!r}")

    def vae(self, name: str) -> VaeRecord:
        """Return the VAE added under *name*.

        Raises:
            VaeNotFoundError: there is none; the message lists the names there are.
        """
        value = self._get("catalog", b"vae:" + name.encode("utf-8", "replace"))
        if value is None:
            names = ", ".join(known for known, _ in self.vaes()) or "none"
            raise VaeNotFoundError(
                f"the store has no VAE {name!r} (it has: {names}); add it with latentfs vae add"
            )
        return self._decode(Decoders.vae, value, f"VAE {name!r}")

    def vae_name(self, vae_id: str, *, dtype: str) -> str | None:
        """Return the name that a VAE was added under, None where it was not.

        Of several, the one that was added with *dtype* if there is such.
        """
        names: dict[str, str] = {vae.dtype: name for name, vae in self.vaes() if vae.id == vae_id}
        return names.get(dtype) or next(iter(names.values()), None)

    def vae_of_id(self, vae_id: str) -> tuple[str, VaeRecord] | None:
        """Return (name, record) of the first VAE with that id."""
        return next(((name, vae) for name, vae in self.vaes() if vae.id == vae_id), None)

    def totals(self) -> Totals:
        value = self._get("catalog", b"totals")
        return Totals() if value is None else self._decode(Decoders.totals, value, "the totals")

    def next_ids(self) -> tuple[int, int]:
        """Return the next free inode number and payload id."""
        return self._catalog_integer(b"next_ino"), self._catalog_integer(b"next_payload")

    def next_change(self) -> int:
        """Return the number that the next transaction's change will have."""
        return self._catalog_integer(b"next_change")

    def changes_since(self, number: int) -> list[Change]:
        """Return the changes numbered *number* and up, as far as they are still kept."""
        changes = []
        for key, value in self._rows.items("catalog", tables.change_key(number)):
            if bytes(key[:7]) != b"change:":
                break
            changes.append(self._decode(Decoders.change, value, "a change"))
        return changes

    def _catalog_integer(self, key: bytes) -> int:
        value = self._get("catalog", key)
        if value is None:
            raise StoreCorruptError(f"the catalog has no {key.decode()!r}; run latentfs fsck")
        return self._decode(Decoders.integer, value, key.decode())
