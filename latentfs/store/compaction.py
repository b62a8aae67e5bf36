"""Giving space back to the disk.

LMDB uses pages that were freed again, and never makes its file shorter.  So a copy without them
takes the file's place: written beside it, on disk, compared row by row, and then renamed over it,
which is all or nothing.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import msgspec

from latentfs.errors import StoreCorruptError, StoreError, StoreFullError
from latentfs.store import tables
from latentfs.store.disk import sync_directory
from latentfs.store.environment import rows_of_copy
from latentfs.store.mark import NEW_MARK_NAME
from latentfs.store.records import LatentContent
from latentfs.store.rows import Rows
from latentfs.store.snapshot import Decoders, Snapshot
from latentfs.store.store import Store

__all__ = ["Compaction", "compact"]

_COPY_NAME = "data.mdb.new"
_SPARE_BYTES = 1 << 20
# Tables that say what pictures are known by, and what by.
_HASHES: dict[str, Callable[[LatentContent], bytes]] = {
    "renditions": lambda content: content.rendition_sha256,
    "pixel_data": lambda content: content.pixel_data_sha256,
}


@dataclass(frozen=True, slots=True)
class Compaction:
    """What was given back.

    Attributes:
        before_bytes, after_bytes: of the database.
        removed: folders and files that belonged to nothing.
        removed_bytes: what these took.
    """

    before_bytes: int
    after_bytes: int
    removed: tuple[Path, ...]
    removed_bytes: int


def compact(store_path: Path) -> Compaction:
    """Make the database as small as what is in it, and remove what belongs to nothing.

    The caller holds the daemon lock.  Whenever this is killed, the store has its old database or
    its new one, whole.

    Raises:
        StoreLockedError: another process has the store open.
        StoreFullError: there is no room for the copy.
        StoreError: it can't be written, or the copy is not the same; nothing was changed.
    """
    database = store_path / "lmdb" / "data.mdb"
    with Store.open(store_path, writable=True) as store:
        store.become_sole_user()
        try:
            removed, removed_bytes = _remove_left_overs(store)
            _discard_orphans(store)
            _forget_renditions(store)
            before_bytes = database.stat().st_size
            _replace_database(store, database)
        except (OSError, msgspec.MsgspecError) as error:
            raise StoreError(f"the store {store_path} can't be compacted: {error}") from error
    return Compaction(before_bytes, database.stat().st_size, removed, removed_bytes)


def _replace_database(store: Store, database: Path) -> None:
    copy = database.with_name(_COPY_NAME)
    _require_space(store)
    store.copy_database(copy)
    try:
        with store.stored_rows() as rows, rows_of_copy(copy) as copied:
            _compare(rows, copied)
        shutil.copymode(database, copy)
        owner = database.stat()
        os.chown(copy, owner.st_uid, owner.st_gid)
        sync_directory(database.parent)
    except BaseException:
        copy.unlink()
        raise
    os.replace(copy, database)
    sync_directory(database.parent)


def _require_space(store: Store) -> None:
    needed_bytes = store.statistics().store_bytes + _SPARE_BYTES
    status = os.statvfs(store.path)
    free_bytes = status.f_bavail * status.f_frsize
    if free_bytes < needed_bytes:
        raise StoreFullError(
            f"compacting {store.path} takes a copy of {needed_bytes} bytes, {free_bytes} are free; "
            "free some space on its disk for a while"
        )


def _compare(rows: Rows, copied: Rows) -> None:
    for table in tables.TABLES:
        others = copied.items(table)
        for row in rows.items(table):
            if next(others, None) != row:
                raise StoreCorruptError(
                    f"the copy of table {table} is not the same; run latentfs fsck"
                )
        if next(others, None) is not None:
            raise StoreCorruptError(f"the copy of table {table} has more rows; run latentfs fsck")


def _discard_orphans(store: Store) -> None:
    """Discard what was removed while a mount had it open; no mount is left that could."""
    with store.read() as snapshot:
        found = list(snapshot.orphans())
    for ino in found:
        # What is wrong with one is for fsck to say, and no reason to give nothing back.
        with contextlib.suppress(StoreCorruptError), store.write() as transaction:
            transaction.discard_orphan(ino)


def _forget_renditions(store: Store) -> None:
    """Forget the bytes of pictures that are gone, unless another picture has the same."""
    with store.write_rows() as rows:
        for table, hash_of in _HASHES.items():
            gone = set()
            for key, value in rows.items(table):
                payload = Decoders.content.decode(value).payload
                if rows.get("payloads", tables.payload_key(payload, 0)) is None:
                    gone.add(bytes(key))
            others = {}
            for _, inode in Snapshot(rows).inodes() if gone else ():
                if inode.content is not None and hash_of(inode.content) in gone:
                    others[hash_of(inode.content)] = msgspec.msgpack.encode(inode.content)
            for key in gone:
                rows.delete(table, key)
            for key, content in others.items():
                rows.put(table, key, content)


def _remove_left_overs(store: Store) -> tuple[tuple[Path, ...], int]:
    """Remove VAEs that nothing names, and what killed commands have left."""
    folder = store.path / "vae"
    with store.read() as snapshot:
        named = _named_vaes(snapshot, folder)
    files = [store.path / "lmdb" / _COPY_NAME, store.path / NEW_MARK_NAME]
    left = [path for path in files if path.exists()]
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)  # no VAE is being copied there
        left += [path for path in sorted(folder.iterdir()) if path.name not in named]
        removed_bytes = sum(_bytes_below(path) for path in left)
        for path in left:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    finally:
        os.close(fd)
    return tuple(left), removed_bytes


def _named_vaes(snapshot: Snapshot, folder: Path) -> set[str]:
    """Return the ids in records of VAEs, and in recipes, whose pictures need them all the same."""
    named = {vae.id for _, vae in snapshot.vaes()}
    for key, value in snapshot.rows.items("catalog", b"recipe:"):
        if bytes(key[:7]) != b"recipe:":
            break
        try:
            named.add(Decoders.recipe.decode(value).vae)
        except msgspec.MsgspecError:  # it may name any but what a killed copy has left
            named |= {path.name for path in folder.iterdir() if path.name[0] != "."}
    return named


def _bytes_below(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.lstat().st_size for file in files if not file.is_dir())
