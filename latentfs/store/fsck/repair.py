"""Repairing a store: what can be put right without guessing, in one transaction.

Files of which anything is left are kept: what no folder leads to goes to ``/lost+found``.  Nothing
is removed that a damaged inode may need.  Each step reads the tables as the last one left them, so
that a second repair changes nothing.
"""

from __future__ import annotations

import stat
import time
from collections.abc import Callable, Iterator

import msgspec

from latentfs.store import tables
from latentfs.store.fsck import Problem
from latentfs.store.fsck.facts import (
    DIGEST_BYTES,
    INO_END,
    PAYLOAD_KEY_BYTES,
    Facts,
    read_as,
    shown,
)
from latentfs.store.fsck.row_checks import chunk_end, expected_counters, expected_totals
from latentfs.store.fsck.tree_checks import expected_links, expected_parent
from latentfs.store.records import Inode
from latentfs.store.snapshot import Decoders
from latentfs.store.store import Store
from latentfs.store.tables import ROOT_INO

__all__ = ["repair_store"]

_LOST_AND_FOUND = b"lost+found"
_FOLDER_MODE = stat.S_IFDIR | 0o700
_ROOT_MODE = stat.S_IFDIR | 0o755


def repair_store(store: Store) -> list[Problem]:
    """Repair what can be; return what was done, by the check that would have named it.

    The caller sees to it that no daemon has the store.

    Raises:
        StoreFullError, StoreError: it can't be written, or LMDB finds its pages damaged; nothing
            was changed.
    """
    done = []
    with store.write_rows() as rows:
        for check, step in _STEPS:
            repair = _Repair(Facts(store.path, rows, lambda: None))
            done += [Problem(check, message) for message in step(repair)]
    return done


class _Repair:
    """The store within the transaction, as one step finds it.  Steps yield what they have done."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._rows = facts.rows
        self._lost_and_found: tuple[int, bytes] | None = None

    def _put_inode(self, ino: int, inode: Inode) -> None:
        self._rows.put("inodes", tables.ino_key(ino), msgspec.msgpack.encode(inode))

    def _put_catalog(self, key: bytes, value: object) -> None:
        self._rows.put("catalog", key, msgspec.msgpack.encode(value))

    def _next_ino(self) -> int:
        # Counted anew each time: the recorded counter may be as damaged as all else.
        least = max((int.from_bytes(key, "big") for key in self._ids("inodes")), default=0) + 1
        ino = max(least, self.facts.integer(b"next_ino") or 0)
        self._put_catalog(b"next_ino", ino + 1)
        return ino

    def _ids(self, table: str) -> Iterator[bytes]:
        for key in self._rows.keys(table):
            if len(key) == 8 and not key[0] & 0x80:
                yield bytes(key)

    # Catalog

    def remove_unreadable_changes(self) -> Iterator[str]:
        """Changes are for daemons that run, and none does."""
        for key in list(self.facts.catalog_keys(b"change:")):
            value = self._rows.get("catalog", key)
            if value is not None and read_as(Decoders.change, value) is None:
                self._rows.delete("catalog", key)
                yield f"removed the change {key[7:].hex()}"

    def raise_counters(self) -> Iterator[str]:
        for key, least in expected_counters(self.facts).items():
            if (self.facts.integer(key) or 0) < least:
                self._put_catalog(key, least)
                yield f"{key.decode()} is {least}"

    def name_recipes(self) -> Iterator[str]:
        """Keep each recipe under its own name."""
        recipes = self.facts.recipes
        misnamed = {key: recipe for key, recipe in recipes.items() if recipe.id != key}
        for key in misnamed:
            self._rows.delete("catalog", b"recipe:" + key)
        for key, recipe in misnamed.items():
            self._rows.put("catalog", b"recipe:" + recipe.id, msgspec.json.encode(recipe))
            yield f"recipe {key.hex()} is kept under its own name, {recipe.id.hex()}"

    # The tree

    def make_root(self) -> Iterator[str]:
        facts = self.facts
        if ROOT_INO in facts.directory_inos:
            return
        misplaced = facts.inode(ROOT_INO)
        if misplaced is not None:
            ino = self._next_ino()
            self._put_inode(ino, misplaced)
            yield f"what was kept as the root folder is inode {ino} now"
        now_ns = time.time_ns()
        owner = facts.store_path.stat()
        root = Inode(_ROOT_MODE, owner.st_uid, owner.st_gid, 2, 0, now_ns, now_ns, None, ROOT_INO)
        self._put_inode(ROOT_INO, root)
        yield "made the root folder"

    def make_missing_folders(self) -> Iterator[str]:
        """A folder that is missing or damaged is made again where its entries lead to anything."""
        facts = self.facts
        needed = {
            entry.parent_ino
            for entry in facts.entries()
            if (entry.parent_ino not in facts.inos or entry.parent_ino in facts.damaged_inos)
            and entry.ino in facts.inos
        }
        end = facts.integer(b"next_ino") or 0
        for ino in sorted(ino for ino in needed if ino < end or ino in facts.inos):
            self._make_folder(ino)
            yield f"made the folder inode {ino} again, for what is in it"

    def _make_folder(self, ino: int) -> None:
        now_ns = time.time_ns()
        root = self.facts.inode(ROOT_INO)
        uid, gid = (0, 0) if root is None else (root.uid, root.gid)
        folder = Inode(_FOLDER_MODE, uid, gid, 2, 0, now_ns, now_ns, None, ROOT_INO)
        self._put_inode(ino, folder)

    def remove_entries(self) -> Iterator[str]:
        for entry in list(self.facts.entries()):
            reason = self.facts.broken(entry)
            if reason is not None:
                self._rows.delete("dentries", entry.key)
                yield f"removed {self.facts.path_of_entry(entry.parent_ino, entry.name)}: {reason}"

    def remove_extra_entries(self) -> Iterator[str]:
        facts = self.facts
        extra = [
            entry
            for entry, _ in facts.sound_entries()
            if entry.parent_ino in facts.tree and facts.is_extra(entry)
        ]
        for entry in extra:
            self._rows.delete("dentries", entry.key)
            path = facts.path_of_entry(entry.parent_ino, entry.name)
            yield f"removed {path}, which led to the folder inode {entry.ino} a second time"

    def settle_orphans(self) -> Iterator[str]:
        """Discard what was removed while it was open; the rest are no orphans."""
        facts = self.facts
        for ino in list(facts.orphan_rows()):
            self._rows.delete("catalog", tables.orphan_key(ino))
            inode = facts.inode(ino)
            unused = not facts.is_reached(ino) and next(facts.entries(ino), None) is None
            if inode is not None and not inode.nlink and unused:
                self._rows.delete("inodes", tables.ino_key(ino))
                yield f"discarded inode {ino}, which was removed while it was open"
            else:
                yield f"inode {ino} is not listed as an orphan any more"

    def place_lost(self) -> Iterator[str]:
        """Give what no folder leads to a name in ``/lost+found``; whole folders as one."""
        facts = self.facts
        found = dict(facts.tree)
        named = {ino for _, ino in facts.sound_entries()}
        # Folders that another lost folder leads to come last: those still not found then are in a
        # ring.  Files that are named are in a lost folder, and come back with it.
        for ino in sorted(facts.directory_inos, key=lambda ino: (ino in named, ino)):
            if ino not in found:
                path = self._place(ino)
                found[ino] = (ROOT_INO, path)
                facts.reach_from(ino, found)
                yield f"the folder inode {ino} is /{shown(path)} now"
        for ino in sorted(facts.inos - facts.folder_inos - named):
            yield f"inode {ino} is /{shown(self._place(ino))} now"

    def _place(self, ino: int) -> bytes:
        """Put *ino* into ``/lost+found`` and return its path."""
        if self._lost_and_found is None:
            self._lost_and_found = self._found_or_made(_LOST_AND_FOUND)
        folder_ino, folder = self._lost_and_found
        name = self._free_name(folder_ino, b"inode-%d" % ino)
        self._rows.put("dentries", tables.dentry_key(folder_ino, name), tables.ino_key(ino))
        return folder + b"/" + name

    def _found_or_made(self, name: bytes) -> tuple[int, bytes]:
        """Return number and name of a folder in the root, another one where *name* is a file."""
        value = self._rows.get("dentries", tables.dentry_key(ROOT_INO, name))
        known = 0 if value is None else int.from_bytes(value, "big")
        if known in self.facts.directory_inos:
            return known, name
        name = self._free_name(ROOT_INO, name)
        ino = self._next_ino()
        self._make_folder(ino)
        self._rows.put("dentries", tables.dentry_key(ROOT_INO, name), tables.ino_key(ino))
        return ino, name

    def _free_name(self, folder_ino: int, name: bytes) -> bytes:
        number, free = 1, name
        while self._rows.get("dentries", tables.dentry_key(folder_ino, free)) is not None:
            number += 1
            free = b"%s-%d" % (name, number)
        return free

    def count_links(self) -> Iterator[str]:
        facts = self.facts
        for ino, inode in list(facts.inodes()):
            links, parent_ino = (
                expected_links(facts, ino, inode),
                expected_parent(facts, ino, inode),
            )
            right = msgspec.structs.replace(
                inode,
                nlink=inode.nlink if links is None else links,
                parent_ino=inode.parent_ino if parent_ino is None else parent_ino,
            )
            if right != inode:
                self._put_inode(ino, right)
                yield (
                    f"{facts.path_of(ino)} (inode {ino}) has {right.nlink} links and is in "
                    f"{right.parent_ino}, was {inode.nlink} and {inode.parent_ino}"
                )

    # What files are kept as

    def measure(self) -> Iterator[str]:
        """Sizes of what is no regular file follow from what it is."""
        for ino, inode in list(self.facts.inodes()):
            size_bytes = inode.size_bytes if inode.is_regular else len(inode.target)
            if size_bytes != inode.size_bytes:
                self._put_inode(ino, msgspec.structs.replace(inode, size_bytes=size_bytes))
                yield f"{self.facts.path_of(ino)} has size {size_bytes}, was {inode.size_bytes}"

    def remove_stray_chunks(self) -> Iterator[str]:
        facts = self.facts
        stray = []
        for key, ino, _, _ in facts.chunk_rows():
            inode = facts.inode(ino)
            if not (inode is not None and inode.is_chunked) and ino not in facts.damaged_inos:
                stray.append((key, ino))
        for key, ino in stray:
            self._rows.delete("chunks", key)
            yield f"removed chunk {tables.chunk_index(key)} of inode {ino}, which can't have any"

    def count_chunks(self) -> Iterator[str]:
        """Count chunks; a file that is shorter than they are is made as long."""
        facts = self.facts
        for ino, inode in list(facts.inodes()):
            indices = list(facts.snapshot.chunk_indices(ino))
            size_bytes = inode.size_bytes
            if indices:
                value = self._rows.get("chunks", tables.chunk_key(ino, indices[-1]))
                size_bytes = max(size_bytes, chunk_end(value or b"", ino, indices[-1])[0])
            if (inode.chunks, inode.size_bytes) != (len(indices), size_bytes):
                right = msgspec.structs.replace(inode, chunks=len(indices), size_bytes=size_bytes)
                self._put_inode(ino, right)
                yield (
                    f"{facts.path_of(ino)} has {len(indices)} chunks and size {size_bytes}, was "
                    f"{inode.chunks} and {inode.size_bytes}"
                )

    def remove_stray_xattrs(self) -> Iterator[str]:
        for key, ino, name in list(self.facts.xattr_rows()):
            if ino not in self.facts.inos:
                self._rows.delete("xattrs", key)
                yield f"removed attribute {shown(name)!r} of inode {ino}, which is missing"

    def _is_unused(self, uses: int) -> bool:
        """Whether nothing uses what has *uses*; a damaged inode might use anything."""
        return uses == 0 and not self.facts.damaged_inos

    def remove_unused_payloads(self) -> Iterator[str]:
        facts = self.facts
        indexed = {payload for _, payload, _ in facts.payload_index()}
        unused = {
            payload
            for payload in indexed | facts.payload_bytes.keys()
            if self._is_unused(facts.payload_uses[payload])
        }
        for digest, payload, _ in list(facts.payload_index()):
            if payload in unused:
                self._rows.delete("payload_index", digest)
        for key in [bytes(key) for key in self._rows.keys("payloads")]:
            if len(key) == PAYLOAD_KEY_BYTES and int.from_bytes(key[:8], "big") in unused:
                self._rows.delete("payloads", key)
        for payload in sorted(unused):
            yield f"removed payload {payload}, which no file uses"

    def index_payloads(self) -> Iterator[str]:
        """Put payloads into the index under their own digests.

        One whose header can't be read keeps its place, from which an import can mend it.
        """
        facts = self.facts
        # Rows lie in the map, where the next change may move them.
        for digest, value in [(bytes(k), bytes(v)) for k, v in self._rows.items("payload_index")]:
            payload = int.from_bytes(value[:8], "big") if len(value) == 16 else 0
            found = facts.digest_of(payload) if 0 < payload < INO_END else bytes(DIGEST_BYTES)
            if len(digest) == DIGEST_BYTES and found not in (None, digest):
                self._rows.delete("payload_index", digest)
                yield f"payload {payload} is not in the index under {digest.hex()} any more"
        indexed = {payload for _, payload, _ in facts.payload_index()}
        for payload in sorted(facts.payload_bytes.keys() - indexed):
            own = facts.digest_of(payload)
            if own is not None and self._rows.get("payload_index", own) is None:
                self._rows.put("payload_index", own, tables.ino_key(payload) + bytes(8))
                yield f"payload {payload} is in the index under its own digest, {own.hex()}"

    def count_payload_references(self) -> Iterator[str]:
        facts = self.facts
        for digest, payload, count in list(facts.payload_index()):
            used = facts.payload_uses[payload]
            if count < used or (count > used and not facts.damaged_inos):
                counted = tables.ino_key(payload) + tables.ino_key(used)
                self._rows.put("payload_index", digest, counted)
                yield f"payload {payload} has {used} references, was {count}"

    def count_metadata(self) -> Iterator[str]:
        facts = self.facts
        recorded: dict[bytes, int] = dict.fromkeys(facts.blob_uses, -1)
        for blob, is_count, value in facts.blobs():
            recorded.setdefault(blob, -1)
            if is_count and len(value) == 8:
                recorded[blob] = int.from_bytes(value, "big")
        for blob, count in recorded.items():
            used = facts.blob_uses[blob]
            if self._is_unused(used):
                self._rows.delete("metadata", tables.blob_key(blob))
                self._rows.delete("metadata", tables.blob_references_key(blob))
                yield f"removed metadata blob {blob.hex()}, which no file uses"
            elif count < used or (count > used and not facts.damaged_inos):
                self._rows.put("metadata", tables.blob_references_key(blob), tables.ino_key(used))
                yield f"metadata blob {blob.hex()} has {used} references, was {max(0, count)}"

    def name_renditions(self) -> Iterator[str]:
        """Know pictures by their bytes; what knows none is of no use."""
        facts = self.facts
        known = set()
        for key, content in list(facts.renditions()):
            if content is None:
                self._rows.delete("renditions", key)
                yield f"removed the rendition {key.hex()}, which led to no such picture"
            else:
                known.add(key)
        unknown = [
            (ino, content)
            for ino, _, content in facts.pictures()
            if content.rendition_sha256 not in known
        ]
        for ino, content in unknown:
            encoded = msgspec.msgpack.encode(content)
            self._rows.put("renditions", content.rendition_sha256, encoded)
            yield f"{facts.path_of(ino)} is known by its bytes"

    # Sums

    def sum_up(self) -> Iterator[str]:
        found = expected_totals(self.facts)
        value = self._rows.get("catalog", b"totals")
        if value is None or read_as(Decoders.totals, value) != found:
            self._put_catalog(b"totals", found)
            yield "the totals are those of what was found"


_STEPS: tuple[tuple[str, Callable[[_Repair], Iterator[str]]], ...] = (
    ("records", _Repair.remove_unreadable_changes),
    ("counters", _Repair.raise_counters),
    ("recipes", _Repair.name_recipes),
    ("dangling-entries", _Repair.make_root),
    ("orphan-inodes", _Repair.settle_orphans),
    ("dangling-entries", _Repair.make_missing_folders),
    ("dangling-entries", _Repair.remove_entries),
    ("orphan-inodes", _Repair.place_lost),
    ("parents", _Repair.remove_extra_entries),
    ("link-counts", _Repair.count_links),
    ("sizes", _Repair.measure),
    ("chunks", _Repair.remove_stray_chunks),
    ("chunks", _Repair.count_chunks),
    ("xattrs", _Repair.remove_stray_xattrs),
    ("payload-references", _Repair.remove_unused_payloads),
    ("payload-index", _Repair.index_payloads),
    ("payload-references", _Repair.count_payload_references),
    ("metadata", _Repair.count_metadata),
    ("renditions", _Repair.name_renditions),
    ("totals", _Repair.sum_up),
)
"""The steps in order, each with the check that names what it repairs."""
