"""What the tables of a store say, read without trusting any row.

A row whose key or value can't be true is passed over here and named by the checks.  What hangs on
an inode that can't be true is left alone: it may be all that is left of the file.
"""

from __future__ import annotations

import re
import stat
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import msgspec

from latentfs.errors import LatentfsError
from latentfs.latents.recipe import Recipe
from latentfs.store import chunks, tables
from latentfs.store.records import Inode, LatentContent, VaeRecord
from latentfs.store.rows import Rows, Value
from latentfs.store.snapshot import Decoders, Snapshot
from latentfs.store.tables import ROOT_INO

__all__ = ["INO_END", "Entry", "Facts", "impossible", "impossible_vae", "read_as", "shown"]

T = TypeVar("T")

INO_END = 1 << 63
"""Inode numbers and other ids are below; no store ever gets there by counting."""

PAYLOAD_KEY_BYTES = 10
CHUNK_KEY_BYTES = 12
DIGEST_BYTES = 32
BLOB_ID_BYTES = 16
RECIPE_ID_BYTES = 16
_KINDS = {
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
    stat.S_IFCHR,
    stat.S_IFBLK,
}
_ID_END = 1 << 32
_VAE_ID = re.compile(r"\w{1,64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Entry:
    """A directory entry.

    Attributes:
        key: of its row.
        ino: that it leads to; None if its value can't be read.
    """

    key: bytes
    parent_ino: int
    name: bytes
    ino: int | None


class Facts:
    """One snapshot of a store, looked through as often as the checks need.

    Args:
        progress: called for each payload and each chunk that was decoded.
    """

    def __init__(self, store_path: Path, rows: Rows, progress: Callable[[], None]) -> None:
        self.store_path = store_path
        self.rows = rows
        self.snapshot = Snapshot(rows)
        self.progress = progress

    # Inodes

    @cached_property
    def _survey(self) -> tuple[set[int], set[int], set[int]]:
        """(all inode numbers, those of damaged inodes, those of directories)."""
        inos: set[int] = set()
        damaged: set[int] = set()
        directories: set[int] = set()
        for key, value in self.rows.items("inodes"):
            ino = _ino_of(key)
            if ino is None:
                continue
            inos.add(ino)
            inode = read_as(Decoders.inode, value)
            if inode is None or impossible(inode):
                damaged.add(ino)
            elif inode.is_directory:
                directories.add(ino)
        return inos, damaged, directories

    @property
    def inos(self) -> set[int]:
        return self._survey[0]

    @property
    def damaged_inos(self) -> set[int]:
        """Of inodes that are there and can't be read, or can't be true."""
        return self._survey[1]

    @property
    def directory_inos(self) -> set[int]:
        return self._survey[2]

    @cached_property
    def folder_inos(self) -> set[int]:
        """Of directories and of what can't be read: its entries would show that it is one."""
        return self.directory_inos | self.damaged_inos

    def inode(self, ino: int) -> Inode | None:
        """Return an inode that can be true."""
        if ino not in self.inos or ino in self.damaged_inos:
            return None
        value = self.rows.get("inodes", tables.ino_key(ino))
        return None if value is None else read_as(Decoders.inode, value)

    def inodes(self) -> Iterator[tuple[int, Inode]]:
        """Yield all that can be true."""
        for key, value in self.rows.items("inodes"):
            ino = _ino_of(key)
            inode = read_as(Decoders.inode, value)
            if ino is not None and inode is not None and not impossible(inode):
                yield ino, inode

    def pictures(self) -> Iterator[tuple[int, Inode, LatentContent]]:
        for ino, inode in self.inodes():
            if inode.content is not None:
                yield ino, inode, inode.content

    # Entries

    def entries(self, parent_ino: int | None = None) -> Iterator[Entry]:
        """Yield those of all directories, or of one; without such whose key can't be read."""
        start = b"" if parent_ino is None else tables.ino_key(parent_ino)
        for row_key, value in self.rows.items("dentries", start):
            key = bytes(row_key)
            if parent_ino is not None and key[:8] != start:
                return
            found = _ino_of(key[:8])
            if found is None or not 8 < len(key) <= 8 + tables.NAME_BYTES_MAX:
                continue
            yield Entry(key, found, key[8:], _ino_of(value))

    def broken(self, entry: Entry) -> str | None:
        """Return why an entry can't stay, if it can't."""
        if entry.ino is None:
            return "doesn't say which inode it leads to"
        if entry.name in (b".", b"..") or b"/" in entry.name or b"\0" in entry.name:
            return "has a name that no folder can hold"
        if entry.parent_ino not in self.inos:
            return f"is in the folder inode {entry.parent_ino}, which is missing"
        if entry.parent_ino not in self.folder_inos:
            return f"is in inode {entry.parent_ino}, which is no folder"
        if entry.ino not in self.inos:
            return f"leads to inode {entry.ino}, which is missing"
        return None

    def sound_entries(self, parent_ino: int | None = None) -> Iterator[tuple[Entry, int]]:
        """Yield entries that can stay, and where they lead to."""
        for entry in self.entries(parent_ino):
            if entry.ino is not None and self.broken(entry) is None:
                yield entry, entry.ino

    # The tree

    @cached_property
    def tree(self) -> dict[int, tuple[int, bytes]]:
        """Directories that are reached from the root, with parent and name, as first found."""
        found = {ROOT_INO: (ROOT_INO, b"")}
        if ROOT_INO not in self.directory_inos:
            return {}
        self.reach_from(ROOT_INO, found)
        return found

    def reach_from(self, ino: int, found: dict[int, tuple[int, bytes]]) -> None:
        """Add the directories below *ino* to *found*."""
        pending = deque([ino])
        while pending:
            parent_ino = pending.popleft()
            for entry, child_ino in self.sound_entries(parent_ino):
                if child_ino in self.folder_inos and child_ino not in found:
                    found[child_ino] = (parent_ino, entry.name)
                    pending.append(child_ino)

    def is_extra(self, entry: Entry) -> bool:
        """Whether an entry in the tree leads to a directory that another one leads to."""
        return entry.ino in self.directory_inos and (
            entry.ino == ROOT_INO or self.tree.get(entry.ino) != (entry.parent_ino, entry.name)
        )

    @cached_property
    def links(self) -> Counter[int]:
        """How many entries of the tree lead to each inode; the root has none."""
        return Counter(
            ino
            for entry, ino in self.sound_entries()
            if entry.parent_ino in self.tree and not self.is_extra(entry)
        )

    @cached_property
    def subfolders(self) -> Counter[int]:
        """How many directories are in each."""
        return Counter(
            parent_ino
            for ino, (parent_ino, _) in self.tree.items()
            if ino in self.directory_inos and ino != ROOT_INO
        )

    def is_reached(self, ino: int) -> bool:
        return ino == ROOT_INO or bool(self.links[ino])

    def orphan_rows(self) -> Iterator[int]:
        """Yield the inode numbers that the catalog lists as those of files without links."""
        for key in self.catalog_keys(b"orphan:"):
            ino = _ino_of(key[7:])
            if ino is not None:
                yield ino

    # What files are kept as

    @cached_property
    def payload_uses(self) -> Counter[int]:
        return Counter(payload for _, inode in self.inodes() for payload in inode.payloads)

    @cached_property
    def blob_uses(self) -> Counter[bytes]:
        return Counter(blob for _, inode in self.inodes() for blob in inode.blobs)

    @cached_property
    def payload_bytes(self) -> dict[int, int]:
        """Bytes of all payloads that have any row."""
        found: dict[int, int] = {}
        for key, value in self.rows.items("payloads"):
            payload = _ino_of(key[:8])
            if len(key) == PAYLOAD_KEY_BYTES and payload is not None:
                found[payload] = found.get(payload, 0) + len(value)
        return found

    def payload_index(self) -> Iterator[tuple[bytes, int, int]]:
        """Yield (digest, payload, references) of rows that can be read."""
        for key, value in self.rows.items("payload_index"):
            payload = _ino_of(value[:8])
            if len(key) == DIGEST_BYTES and len(value) == 16 and payload is not None:
                yield bytes(key), payload, int.from_bytes(value[8:], "big")

    def digest_of(self, payload: int) -> bytes | None:
        """Return the digest in a payload's header, None if that can't be read."""
        try:
            header = self.snapshot.payload_header(payload)
        except LatentfsError:
            return None
        return None if header is None else header.digest

    def blobs(self) -> Iterator[tuple[bytes, bool, Value]]:
        """Yield (id, whether it is the reference count, value) of all rows of metadata."""
        for key, value in self.rows.items("metadata"):
            if len(key) == BLOB_ID_BYTES + 1 and key[-1] in (0, 1):
                yield bytes(key[:-1]), key[-1] == 1, value

    def chunk_rows(self) -> Iterator[tuple[bytes, int, int, Value]]:
        """Yield (key, ino, index, value) of all chunks."""
        for key, value in self.rows.items("chunks"):
            ino = _ino_of(key[:8])
            if len(key) == CHUNK_KEY_BYTES and ino is not None:
                yield bytes(key), ino, tables.chunk_index(key), value

    def xattr_rows(self) -> Iterator[tuple[bytes, int, bytes]]:
        """Yield (key, ino, name) of all extended attributes."""
        for row_key in self.rows.keys("xattrs"):
            key = bytes(row_key)
            ino = _ino_of(key[:8])
            if ino is not None and 8 < len(key) <= 8 + tables.NAME_BYTES_MAX:
                yield key, ino, key[8:]

    def renditions(self) -> Iterator[tuple[bytes, LatentContent | None]]:
        """Yield (hash, content, or None where it can't be true) of all renditions."""
        for key, value in self.rows.items("renditions"):
            content = read_as(Decoders.content, value)
            is_own = content is not None and content.rendition_sha256 == bytes(key)
            yield bytes(key), content if is_own else None

    # Catalog

    def catalog_keys(self, prefix: bytes) -> Iterator[bytes]:
        for key, _ in self.rows.items("catalog", prefix):
            if bytes(key[: len(prefix)]) != prefix:
                return
            yield bytes(key)

    def integer(self, key: bytes) -> int | None:
        """Return a counter of the catalog, None if it is missing or can't be true."""
        value = self.rows.get("catalog", key)
        number = None if value is None else read_as(Decoders.integer, value)
        return number if number is not None and 0 < number < INO_END else None

    @cached_property
    def recipes(self) -> dict[bytes, Recipe]:
        """Those that can be read, by the id that they are kept under."""
        found = {}
        for key in self.catalog_keys(b"recipe:"):
            recipe = read_as(Decoders.recipe, self.rows.get("catalog", key) or b"")
            if recipe is not None:
                found[key.removeprefix(b"recipe:")] = recipe
        return found

    def vaes(self) -> Iterator[tuple[str, VaeRecord]]:
        """Yield (name, record) of those that can be true."""
        for key in self.catalog_keys(b"vae:"):
            vae = read_as(Decoders.vae, self.rows.get("catalog", key) or b"")
            if vae is not None and not impossible_vae(vae):
                yield shown(key.removeprefix(b"vae:")), vae

    @cached_property
    def vaes_by_id(self) -> dict[str, VaeRecord]:
        return {vae.id: vae for _, vae in self.vaes()}

    # For messages

    def path_of_entry(self, parent_ino: int, name: bytes) -> str:
        names = [name]
        while parent_ino != ROOT_INO and parent_ino in self.tree:
            parent_ino, folder = self.tree[parent_ino]
            names.append(folder)
        if parent_ino != ROOT_INO:
            return f"{shown(name)!r} in folder inode {parent_ino}"
        return "/" + "/".join(shown(part) for part in reversed(names))

    @cached_property
    def _names(self) -> dict[int, tuple[int, bytes]]:
        return {
            ino: (entry.parent_ino, entry.name)
            for entry, ino in self.sound_entries()
            if entry.parent_ino in self.tree and not self.is_extra(entry)
        }

    def path_of(self, ino: int) -> str:
        """Return a path that leads to *ino*, or its number."""
        if ino == ROOT_INO:
            return "/"
        found = self._names.get(ino)
        return f"inode {ino}" if found is None else self.path_of_entry(*found)


def read_as(
    decoder: msgspec.msgpack.Decoder[T] | msgspec.json.Decoder[T], value: Value
) -> T | None:
    """Return the record that *value* holds, None if it holds none."""
    try:
        return decoder.decode(value)
    except (msgspec.MsgspecError, LatentfsError, ValueError, RecursionError):
        return None


def impossible(inode: Inode) -> str | None:
    """Return what of an inode can't be true, if anything."""
    kind = stat.S_IFMT(inode.mode) if 0 <= inode.mode < 1 << 16 else 0
    times = (inode.mtime_ns, inode.ctime_ns, inode.atime_ns or 0)
    if kind not in _KINDS:
        return f"mode {inode.mode:#o} is of no kind of file"
    if not 0 <= inode.size_bytes <= chunks.FILE_BYTES_MAX:
        return f"a size of {inode.size_bytes} bytes is impossible"
    if not (0 <= inode.uid < _ID_END and 0 <= inode.gid < _ID_END):
        return f"owner {inode.uid}:{inode.gid} is impossible"
    if any(abs(time_ns) >= 1 << 63 for time_ns in times) or inode.rdev < 0:
        return "a time or a device number is impossible"
    if (kind == stat.S_IFLNK) != bool(inode.target):
        return "it has a target and is no symbolic link, or is one and has none"
    has_content = inode.content is not None or inode.latent_file is not None
    if has_content and kind != stat.S_IFREG:
        return "it has the content of a file and is none"
    if inode.content is not None and inode.latent_file is not None:
        return "it is both a picture and a latent file"
    if not _has_possible_content(inode):
        return "its content is impossible"
    return None


def _has_possible_content(inode: Inode) -> bool:
    ids = all(0 < payload < INO_END for payload in inode.payloads)
    if not ids or not all(len(blob) == BLOB_ID_BYTES for blob in inode.blobs):
        return False
    content = inode.content
    return content is None or (
        len(content.recipe) == RECIPE_ID_BYTES
        and len(content.rendition_sha256) == DIGEST_BYTES
        and content.width > 0
        and content.height > 0
    )


def impossible_vae(vae: VaeRecord) -> str | None:
    """Return what of a VAE's record can't be true, if anything."""
    if _VAE_ID.fullmatch(vae.id) is None:
        return f"{vae.id!r} is no id"
    for file in vae.files:
        if file.name in ("", ".", "..") or "/" in file.name or "\0" in file.name:
            return f"{file.name!r} is no name of a file"
    return None


def shown(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _ino_of(value: Value) -> int | None:
    """Return the inode number, or other id, that eight bytes are."""
    number = int.from_bytes(value, "big") if len(value) == 8 else 0
    return number if 0 < number < INO_END else None
