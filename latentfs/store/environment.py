"""The LMDB environment of a store: how it is opened, kept from harm, and migrated."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import lmdb
import msgspec

from latentfs.errors import StoreCorruptError
from latentfs.store import tables
from latentfs.store.mark import newer_version
from latentfs.store.owned_files import make_file
from latentfs.store.rows import StoredRows

__all__ = ["READERS_MAX", "open_environment", "open_migrated_environment", "rows_of_copy"]

log = logging.getLogger(__name__)

READERS_MAX = 2048
"""Transactions under way at a time, in all processes."""
# Only address space: the file grows by what is written.  Large enough never to be reached.
_MAP_BYTES = 4 << 40
_READER_SLOT_BYTES = 64


def open_environment(path: Path, *, writable: bool, create: bool = False) -> lmdb.Environment:
    """Open, or *create*, the database of the store at *path*.

    Raises:
        StoreCorruptError: its file is empty.
        OSError, lmdb.Error: it can't be opened.
    """
    folder = path / "lmdb"
    if not create and not (folder / "data.mdb").stat().st_size:
        raise StoreCorruptError(f"{folder / 'data.mdb'} is empty; restore it from a backup")
    _reserve_lock_file(folder / "lock.mdb")
    env = lmdb.open(
        os.fsencode(folder),  # of a text it takes UTF-8 alone
        readonly=not writable,
        create=create,
        map_size=_MAP_BYTES,
        max_dbs=len(tables.TABLES),
        max_readers=READERS_MAX,
        # Payloads and chunks are runs of pages.  Without it each page is a wait for the disk of its
        # own: a cold read of 256 MiB went at 21 MiB/s instead of 687.
        readahead=True,
        meminit=False,
    )
    # Pages that a killed reader saw would never be used again.
    env.reader_check()
    _restore_length(folder / "data.mdb", (env.info()["last_pgno"] + 1) * tables.PAGE_BYTES)
    return env


def _restore_length(path: Path, needed_bytes: int) -> None:
    """Make a database file that was cut short as long as its map again.

    What is missing then reads as zeros, which LMDB calls corrupt; reading the map past the end of
    the file would be a bus error, and the end of the daemon.  Never shortens, unlike truncate: a
    writer may have made the file longer meanwhile.
    """
    if path.stat().st_size >= needed_bytes:
        return
    log.info("%s is shorter than its map; making it %d bytes long", path, needed_bytes)
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.posix_fallocate(fd, needed_bytes - 1, 1)
    finally:
        os.close(fd)


def _reserve_lock_file(path: Path) -> None:
    """Give the lock file its disk blocks: LMDB maps it, so a full disk would be a bus error.

    An existing one is left alone, as closing a descriptor of it drops this process's locks on it.
    """
    try:
        fd = make_file(path)
    except (FileExistsError, PermissionError):
        return
    except OSError as error:
        if error.errno == errno.EROFS:  # LMDB needs no lock file then
            return
        raise
    try:
        # LMDB's own head takes the room of two slots.
        os.posix_fallocate(fd, 0, (READERS_MAX + 2) * _READER_SLOT_BYTES)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)


def open_migrated_environment(path: Path, *, writable: bool) -> lmdb.Environment:
    """Open the database of the store at *path*, brought to the present schema if it is older.

    Raises:
        StoreVersionError: its schema is of a newer latentfs.
        StoreCorruptError: its schema can't be read, or its file is empty.
        OSError, lmdb.Error: it can't be opened or migrated.
    """
    env = open_environment(path, writable=writable)
    try:
        if _schema_version(path, env) == tables.SCHEMA_VERSION:
            return env
    except BaseException:
        env.close()
        raise
    env.close()
    _migrate(path)
    return open_environment(path, writable=writable)


def _schema_version(path: Path, env: lmdb.Environment) -> int:
    catalog = env.open_db(b"catalog", create=False)
    with env.begin(db=catalog) as txn:
        value = txn.get(b"schema")
    try:
        version = msgspec.msgpack.decode(value or b"", type=int)
    except msgspec.MsgspecError as error:
        raise StoreCorruptError(
            f"the schema version of the store {path} can't be read: {error}"
        ) from error
    if version > tables.SCHEMA_VERSION:
        raise newer_version("schema", version, tables.SCHEMA_VERSION, path)
    return version


def _migrate(path: Path) -> None:
    with open_environment(path, writable=True) as env, env.begin(write=True) as txn:
        # Under the write lock: another process may have migrated it meanwhile.
        dbs = {name: env.open_db(name.encode(), txn) for name in tables.TABLES}
        older = msgspec.msgpack.decode(txn.get(b"schema", db=dbs["catalog"]) or b"", type=int)
        for version in range(older, tables.SCHEMA_VERSION):
            tables.MIGRATIONS[version](txn, dbs)
        current = msgspec.msgpack.encode(tables.SCHEMA_VERSION)
        txn.put(b"schema", current, db=dbs["catalog"])


@contextlib.contextmanager
def rows_of_copy(path: Path) -> Iterator[StoredRows]:
    """The rows of a database file that belongs to no store yet.

    Raises:
        StoreCorruptError: it can't be read.
    """
    try:
        with lmdb.open(
            os.fsencode(path),  # of a text it takes UTF-8 alone
            subdir=False,
            readonly=True,
            lock=False,
            map_size=_MAP_BYTES,
            max_dbs=len(tables.TABLES),
        ) as env:
            dbs = {name: env.open_db(name.encode(), create=False) for name in tables.TABLES}
            with env.begin(buffers=True) as txn:
                yield StoredRows(txn, dbs)
    except lmdb.Error as error:
        raise StoreCorruptError(f"the copy {path} can't be read: {error}") from error
