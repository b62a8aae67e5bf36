"""Changing the store: one atomic, durable transaction.

Everything that a transaction did is on disk when it has committed, and none of it when it has not.
Reference counts, link counts and totals are kept here and nowhere else.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

import msgspec
import zstandard

from latentfs.errors import CorruptPayloadError, PathError, StoreCorruptError
from latentfs.latents import payload as payload_codec
from latentfs.latents.recipe import Recipe
from latentfs.store import chunks, tables
from latentfs.store.records import Change, Inode, VaeRecord
from latentfs.store.rows import Rows
from latentfs.store.snapshot import PackedBlob, Snapshot, blob_id, split_path

__all__ = ["Transaction", "pack_blob", "pack_blobs"]

_DIRECTORY_MODE = stat.S_IFDIR | 0o755
_METADATA_LEVEL = 19


def pack_blob(data: bytes) -> PackedBlob:
    """Compress a metadata blob: prompts and workflows are text, and written once.

    Takes up to a second a megabyte: to be called in a thread.
    """
    frame = zstandard.ZstdCompressor(level=_METADATA_LEVEL).compress(data)
    return PackedBlob(blob_id(data), frame)


def pack_blobs(
    read: Callable[[], AbstractContextManager[Snapshot]], blobs: Iterable[bytes]
) -> tuple[PackedBlob, ...]:
    """Compress metadata blobs that the store lacks; many pictures have one workflow.

    To be called in a thread, as :func:`pack_blob`.

    Args:
        read: opens a view of the store.
    """
    packed = []
    for data in blobs:
        with read() as snapshot:
            stored = snapshot.packed_blob(blob_id(data))
        packed.append(stored or pack_blob(data))
    return tuple(packed)


class Transaction(Snapshot):
    """A write transaction; made by :meth:`latentfs.store.store.Store.write`."""

    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self._totals_before = self._totals = self.totals()
        self._removed: list[tuple[int, bytes, int]] = []
        self._attributes: set[int] = set()

    def finish(self) -> None:
        """Write what is kept in memory until the end; called once, before the commit."""
        self.finish_totals()
        if self._removed or self._attributes:
            self._put_change(Change(tuple(self._removed), tuple(self._attributes)))

    def finish_totals(self) -> None:
        if self._totals != self._totals_before:
            self._put_catalog(b"totals", self._totals)

    def _put_change(self, change: Change) -> None:
        number = self._next(b"next_change")
        self._put_catalog(tables.change_key(number), change)
        self._rows.delete("catalog", tables.change_key(number - tables.CHANGES_KEPT))

    def _put(self, table: str, key: bytes, value: bytes, *, append: bool = False) -> None:
        self._rows.put(table, key, value, append=append)

    def _put_catalog(self, key: bytes, value: object) -> None:
        self._put("catalog", key, msgspec.msgpack.encode(value))

    def _next(self, counter: bytes) -> int:
        number = self._catalog_integer(counter)
        self._put_catalog(counter, number + 1)
        return number

    # Set-up

    def create_tables(self, *, uid: int, gid: int) -> None:
        """Write an empty store: schema version, counters and the root directory."""
        self._put_catalog(b"schema", tables.SCHEMA_VERSION)
        self._put_catalog(b"next_ino", tables.ROOT_INO + 1)
        self._put_catalog(b"next_payload", 1)
        self._put_catalog(b"next_change", tables.CHANGES_KEPT)
        now_ns = time.time_ns()
        root = Inode(_DIRECTORY_MODE, uid, gid, 2, 0, now_ns, now_ns, None, tables.ROOT_INO)
        self.put_inode(tables.ROOT_INO, root)
        self._totals = self._totals.plus(directories=1)

    # Catalog

    def put_vae(self, name: str, vae: VaeRecord) -> None:
        self._put_catalog(b"vae:" + name.encode(), vae)

    def put_recipe(self, recipe: Recipe) -> bytes:
        """Store *recipe* unless it is there; return its id."""
        key = b"recipe:" + recipe.id
        if self._get("catalog", key) is None:
            self._put("catalog", key, msgspec.json.encode(recipe))
        return recipe.id

    # Inodes and directory entries

    def put_inode(self, ino: int, inode: Inode) -> None:
        self._put("inodes", tables.ino_key(ino), msgspec.msgpack.encode(inode))

    def make_directories(self, path: str, *, uid: int, gid: int) -> int:
        """Return the inode number of the directory *path*, making what is missing of it."""
        ino = tables.ROOT_INO
        for name in split_path(path):
            child = self.lookup(ino, name)
            if child is None:
                child = self._make_directory(ino, name, uid=uid, gid=gid)
            else:
                inode = self.inode(child)
                if inode is None or not inode.is_directory:
                    raise PathError(
                        f"{name.decode()!r} in {path!r} is a file, not a folder; choose another "
                        "target folder"
                    )
            ino = child
        return ino

    def _make_directory(self, parent_ino: int, name: bytes, *, uid: int, gid: int) -> int:
        now_ns = time.time_ns()
        ino = self._next(b"next_ino")
        directory = Inode(_DIRECTORY_MODE, uid, gid, 2, 0, now_ns, now_ns, None, parent_ino)
        self.put_inode(ino, directory)
        self._put("dentries", tables.dentry_key(parent_ino, name), tables.ino_key(ino))
        self._touch_directory(parent_ino, now_ns=now_ns, links=1)
        self._totals = self._totals.plus(directories=1)
        return ino

    def _touch_directory(self, ino: int, *, now_ns: int, links: int = 0) -> None:
        directory = self.inode(ino)
        if directory is None:
            raise StoreCorruptError(f"directory inode {ino} is missing; run latentfs fsck")
        changed = msgspec.structs.replace(
            directory, mtime_ns=now_ns, ctime_ns=now_ns, nlink=directory.nlink + links
        )
        self.put_inode(ino, changed)
        self._attributes.add(ino)

    def add_file(self, parent_ino: int, name: bytes, inode: Inode) -> int:
        """Make *inode* a new file called *name*, which must be free; return its number.

        References to the payload and the metadata blobs of its content are counted here.
        """
        key = tables.dentry_key(parent_ino, name)
        if self._get("dentries", key) is not None:
            raise PathError(f"{name.decode()!r} exists already in directory inode {parent_ino}")
        ino = self._next(b"next_ino")
        self.put_inode(ino, inode)
        self._put("dentries", key, tables.ino_key(ino))
        self._count_references(inode, +1)
        self._touch_directory(parent_ino, now_ns=time.time_ns())
        self._totals = self._totals.plus(files=1, size_bytes=inode.size_bytes)
        return ino

    def remove_file_by_command(
        self, parent_ino: int, name: bytes, *, is_mounted: bool = False
    ) -> None:
        """Remove the file *name* and, with its last link, its content.

        For the command line, which can't know who has it open in a mount.  Where the store
        *is_mounted* the content stays as an orphan's, until that mount, or the next, discards it.
        """
        ino = self.lookup(parent_ino, name)
        inode = None if ino is None else self.inode(ino)
        if ino is None or inode is None or inode.is_directory:
            raise PathError(f"{name.decode()!r} in directory inode {parent_ino} is not a file")
        self._rows.delete("dentries", tables.dentry_key(parent_ino, name))
        self._removed.append((parent_ino, name, ino))
        self._touch_directory(parent_ino, now_ns=time.time_ns())
        links = max(0, inode.nlink - 1)
        if links == 0 and not is_mounted:
            self.discard(ino)
            return
        changed = msgspec.structs.replace(inode, nlink=links, ctime_ns=time.time_ns())
        self.put_inode(ino, changed)
        self._attributes.add(ino)
        if links == 0:
            self._put("catalog", tables.orphan_key(ino), b"")

    def discard(self, ino: int) -> None:
        """Remove an inode that no entry leads to, with all that it holds."""
        inode = self.inode(ino)
        if inode is None:
            raise StoreCorruptError(f"inode {ino} is missing; run latentfs fsck")
        self.drop_content(ino, inode)
        for name in list(self.xattr_names(ino)):
            self._rows.delete("xattrs", tables.xattr_key(ino, name))
        self._rows.delete("inodes", tables.ino_key(ino))
        self._rows.delete("catalog", tables.orphan_key(ino))
        if inode.is_directory:
            self._totals = self._totals.plus(directories=-1)
        else:
            self._totals = self._totals.plus(files=-1, size_bytes=-inode.size_bytes)

    def discard_orphan(self, ino: int) -> None:
        """Remove what is listed as an orphan, unless it has links after all: that is for fsck."""
        inode = self.inode(ino)
        if inode is None or inode.nlink == 0:
            self.discard(ino)

    def drop_content(self, ino: int, inode: Inode) -> None:
        """Remove what a file's bytes are kept as; its inode is to be changed or removed next."""
        self._count_references(inode, -1)
        if inode.chunks:
            chunks.drop_chunks(self._rows, ino)

    # Payloads and metadata

    def add_payload(self, digest: bytes, payload: bytes) -> int:
        """Store *payload* unless a latent of that *digest* is stored intact; return its id.

        Its reference count starts at 0: the file that uses it is added in the same transaction.
        """
        known = self.payload_of_digest(digest)
        if known is not None:
            self._repair_payload(known, payload)
            return known
        number = self._next(b"next_payload")
        for row, piece in enumerate(tables.split_payload(payload)):
            self._put("payloads", tables.payload_key(number, row), piece, append=True)
        self._put("payload_index", digest, tables.ino_key(number) + bytes(8))
        self._totals = self._totals.plus(payloads=1, payload_bytes=len(payload))
        return number

    def _repair_payload(self, number: int, payload: bytes) -> None:
        """Put *payload* in the place of a stored one that is damaged; an intact one is kept."""
        stored = self.payload(number) or b""
        if stored == payload or _is_intact(stored):
            return
        self._delete_payload_rows(number)
        for row, piece in enumerate(tables.split_payload(payload)):
            self._put("payloads", tables.payload_key(number, row), piece)
        self._totals = self._totals.plus(payload_bytes=len(payload) - len(stored))

    def add_blob(self, blob: PackedBlob) -> bytes:
        """Store a metadata blob unless it is stored intact; return its id.

        Its reference count starts at 0, as that of a payload.
        """
        key = tables.blob_key(blob.id)
        if self._get("metadata", key) != blob.frame and self.packed_blob(blob.id) is None:
            self._put("metadata", key, blob.frame)
        if self._get("metadata", tables.blob_references_key(blob.id)) is None:
            self._put("metadata", tables.blob_references_key(blob.id), bytes(8))
        return blob.id

    def _count_references(self, inode: Inode, change: int) -> None:
        for payload in inode.payloads:
            self._count_payload(payload, change)
        for blob in inode.blobs:
            self._count_blob(blob, change)
        if change > 0 and inode.content is not None:
            encoded = msgspec.msgpack.encode(inode.content)
            self._put("renditions", inode.content.rendition_sha256, encoded)
            if inode.content.pixel_data_sha256:
                self._put("pixel_data", inode.content.pixel_data_sha256, encoded)

    def _count_payload(self, payload: int, change: int) -> None:
        try:
            header = self.payload_header(payload)
        except CorruptPayloadError:
            if change > 0:
                raise
            header = None
        entry = None if header is None else self._get("payload_index", header.digest)
        if header is None or entry is None:
            if change < 0:
                return  # what is damaged can be removed all the same; a repair counts anew
            raise StoreCorruptError(f"payload {payload} or its index is missing; run latentfs fsck")
        references = int.from_bytes(entry[8:], "big") + change
        if references > 0:
            counted = tables.ino_key(payload) + tables.ino_key(references)
            self._put("payload_index", header.digest, counted)
            return
        self._totals = self._totals.plus(payloads=-1, payload_bytes=-self.payload_bytes(payload))
        self._rows.delete("payload_index", header.digest)
        self._delete_payload_rows(payload)

    def _delete_payload_rows(self, payload: int) -> None:
        row = 0
        while self._rows.delete("payloads", tables.payload_key(payload, row)):
            row += 1

    def _count_blob(self, blob: bytes, change: int) -> None:
        key = tables.blob_references_key(blob)
        entry = self._get("metadata", key)
        if entry is None:
            if change < 0:
                return
            raise StoreCorruptError(f"metadata blob {blob.hex()} is missing; run latentfs fsck")
        references = int.from_bytes(entry, "big") + change
        if references > 0:
            self._put("metadata", key, tables.ino_key(references))
            return
        self._rows.delete("metadata", key)
        self._rows.delete("metadata", tables.blob_key(blob))


def _is_intact(payload: bytes) -> bool:
    try:
        payload_codec.decode(payload)
    except CorruptPayloadError:
        return False
    return True
