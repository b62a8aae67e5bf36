"""A store on disk: one directory that holds everything.

::

    STORE/
        latentfs.toml   the mark of a store (:mod:`latentfs.store.mark`)
        lmdb/           the LMDB environment (:mod:`latentfs.store.environment`)
        vae/<id>/       verified copies of the VAEs (:mod:`latentfs.store.vae_files`)
        daemon.lock     held by the daemon that has the store mounted
        control.sock    that daemon's control socket
        writer.lock     held by the process that is changing the store

LMDB lets many processes read while one writes, so the command line works beside a live mount.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import lmdb

from latentfs.errors import StoreCorruptError, StoreError, StoreFullError
from latentfs.store import chunks, tables
from latentfs.store.disk import is_full_disk, sync_directory
from latentfs.store.environment import READERS_MAX, open_environment, open_migrated_environment
from latentfs.store.mark import check_format_version, new_mark, write_mark
from latentfs.store.new_folder import claim_folder, not_made, remove_half_made
from latentfs.store.records import Totals
from latentfs.store.rows import Layer, StoredRows
from latentfs.store.snapshot import Snapshot
from latentfs.store.transaction import Transaction
from latentfs.store.use_lock import UseLock
from latentfs.store.writer_lock import WriterLock

__all__ = ["Store", "StoreStatistics"]

_META_PAGES = 2


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """Sums over a store.

    Attributes:
        totals: files, payloads and their bytes.
        store_bytes: LMDB pages in use, in bytes: everything but ``vae/`` and free pages.
        free_bytes: of pages that were freed and will be used again.
        table_bytes: of the pages in use, those of each table.
    """

    totals: Totals
    store_bytes: int
    free_bytes: int
    table_bytes: dict[str, int]


class Store:
    """An open store.

    Owns the LMDB environment; hands out snapshots and transactions.  Transactions of all processes
    exclude each other; snapshots never wait.  May be used from several threads, each with its own
    snapshot.
    """

    def __init__(
        self, path: Path, env: lmdb.Environment, use: UseLock, *, create: bool = False
    ) -> None:
        self.path = path
        self._env = env
        self._use = use
        self._dbs = {name: env.open_db(name.encode(), create=create) for name in tables.TABLES}

    # Creating and opening

    @classmethod
    def create(cls, path: Path) -> Store:
        """Make a new, empty store at *path*, which must not exist or be an empty directory.

        A directory that is made is for its owner alone; one that is there keeps its mode.  The mark
        ``latentfs.toml`` is written last: a half-made store is not taken for one.

        Raises:
            StoreExistsError: something is there.
            StoreLockedError: another process makes one there now.
            StoreFullError: the disk is full; what was made is removed again.
        """
        use, made_directory = claim_folder(path)
        try:
            return cls._create_in(path, use)
        except BaseException as error:
            told = not_made(path, error) if isinstance(error, (OSError, lmdb.Error)) else None
            remove_half_made(path, also_directory=made_directory)
            use.release()
            if told is not None:
                raise told from error
            raise

    @classmethod
    def _create_in(cls, path: Path, use: UseLock) -> Store:
        (path / "lmdb").mkdir()
        (path / "vae").mkdir()
        env = open_environment(path, writable=True, create=True)
        try:
            store = cls(path, env, use, create=True)
            with store.write() as transaction:
                transaction.create_tables(uid=os.getuid(), gid=os.getgid())
            sync_directory(path / "lmdb")
            write_mark(path, new_mark())
        except BaseException:
            env.close()
            raise
        return store

    @classmethod
    def open(cls, path: Path, *, writable: bool = False) -> Store:
        """Open the store at *path*, which never waits for a writer unless *writable*.

        Raises:
            StoreNotFoundError: there is none.
            StoreVersionError: it was written by a newer latentfs.
            StoreLockedError: its database is being replaced.
            StoreCorruptError: its mark or its LMDB environment can't be read.
        """
        check_format_version(path)
        try:
            use = UseLock(path)
            try:
                return cls._open_with(path, use, writable=writable)
            except BaseException:
                use.release()
                raise
        except (OSError, lmdb.Error) as error:
            if is_full_disk(error, path):
                raise StoreFullError(f"no space left to open the store {path}: {error}") from error
            if os.strerror(errno.EROFS) in str(error):
                raise StoreError(
                    f"the store {path} is on a read-only file system, so it can't be changed; "
                    "mount it with -o ro, or copy it with latentfs backup and use the copy"
                ) from error
            if "Permission denied" in str(error):
                raise StoreError(
                    f"the store {path} can't be opened: permission denied; run as its owner"
                ) from error
            raise StoreCorruptError(
                f"the LMDB environment of {path} can't be opened: {error}"
            ) from error

    @classmethod
    def _open_with(cls, path: Path, use: UseLock, *, writable: bool) -> Store:
        env = open_migrated_environment(path, writable=writable)
        try:
            return cls(path, env, use)
        except BaseException:
            env.close()
            raise

    # Use

    @contextlib.contextmanager
    def read(self) -> Iterator[Snapshot]:
        """A consistent view of the store; costs a few microseconds and never waits.

        Raises:
            StoreCorruptError: LMDB finds that its pages can't be true.
        """
        with self.stored_rows() as rows:
            yield Snapshot(rows)

    @contextlib.contextmanager
    def stored_rows(self) -> Iterator[StoredRows]:
        """The rows on disk, as they are now; see :meth:`read`."""
        try:
            with self._env.begin(buffers=True) as txn:
                rows = StoredRows(txn, self._dbs)
                del txn
                try:
                    yield rows
                finally:
                    rows.end()
        except lmdb.ReadersFullError as error:
            raise StoreError(
                f"the store {self.path} is read by {READERS_MAX} others at this moment; try again"
            ) from error
        except lmdb.Error as error:
            raise StoreCorruptError(
                f"the store {self.path} can't be read ({error}); run latentfs fsck"
            ) from error

    @contextlib.contextmanager
    def write(self) -> Iterator[Transaction]:
        """One atomic change, on disk when the block has ended without an exception.

        Waits for other writers, in this and other processes: beside a mount at most about a second.

        Raises:
            StoreFullError: the disk is full; the store is as it was.
            StoreError: writing failed otherwise; the store is as it was.
        """
        with self.write_rows() as rows:
            transaction = Transaction(rows)
            yield transaction
            transaction.finish()

    @contextlib.contextmanager
    def write_rows(self) -> Iterator[StoredRows]:
        """As :meth:`write`, past all that keeps the rows in order: for repairs."""
        with self._turn_to_write(), self._written_rows() as rows:
            yield rows

    @contextlib.contextmanager
    def _turn_to_write(self) -> Iterator[None]:
        lock = WriterLock(self.path)
        try:
            lock.acquire()
        except OSError as error:
            raise StoreError(
                f"the store {self.path} can't be written: {error.strerror}; run as its owner"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def apply(self, layer: Layer) -> None:
        """Write the changes of a *layer*, for whose sake the caller holds the writer lock.

        Compresses the chunks of files, so it may take seconds.

        Raises:
            StoreFullError, StoreError: as :meth:`write`.
        """
        with self._written_rows() as rows:
            for table, key, value in layer.changes():
                if value is None:
                    rows.delete(table, key)
                elif table == "chunks":
                    rows.put(table, key, chunks.compressed(value))
                else:
                    rows.put(table, key, value)

    @contextlib.contextmanager
    def _written_rows(self) -> Iterator[StoredRows]:
        try:
            with self._env.begin(write=True, buffers=True) as txn:
                yield StoredRows(txn, self._dbs)
        except lmdb.Error as error:
            if is_full_disk(error, self.path):
                raise StoreFullError(
                    f"no space left for the store {self.path} ({error}); nothing of this change "
                    "was kept: free some space and try again"
                ) from error
            raise StoreError(
                f"the store {self.path} can't be written ({error}); nothing of this change was kept"
            ) from error

    def changes(self) -> int:
        """Return a number that grows with every committed transaction of any process."""
        return int(self._env.info()["last_txnid"])

    def statistics(self) -> StoreStatistics:
        with self.read() as snapshot:
            totals = snapshot.totals()
        return StoreStatistics(
            totals=totals,
            store_bytes=self.used_bytes(),
            free_bytes=self.free_bytes(),
            table_bytes=self._table_bytes(),
        )

    def _table_bytes(self) -> dict[str, int]:
        with self._env.begin() as txn:
            return {name: _pages(txn, db) * tables.PAGE_BYTES for name, db in self._dbs.items()}

    def used_bytes(self) -> int:
        """Return the bytes of the pages in use."""
        return self._pages_in_use() * tables.PAGE_BYTES

    def release_dead_readers(self) -> None:
        """Let pages be used again that were kept for processes killed while they read."""
        self._env.reader_check()

    def free_bytes(self) -> int:
        """Return the bytes of pages that were freed and will be used again."""
        used = int(self._env.info()["last_pgno"]) + 1
        return max(0, used - self._pages_in_use()) * tables.PAGE_BYTES

    def _pages_in_use(self) -> int:
        with self._env.begin() as txn:
            return sum(_pages(txn, db) for db in (*self._dbs.values(), None)) + _META_PAGES

    def become_sole_user(self) -> None:
        """Keep all others from opening the store until it is closed.

        Raises:
            StoreLockedError: others have it open.
        """
        self._use.become_sole_user()

    def copy_database(self, path: Path) -> None:
        """Write a compacted copy of the database, as it is now, to the new file *path*, on disk.

        Reads one snapshot and keeps nobody from writing.

        Raises:
            StoreFullError, StoreError: it can't be written, and is removed again.
        """
        try:
            with path.open("xb") as file:
                self._env.copyfd(file.fileno(), compact=True)
                os.fsync(file.fileno())
        except (OSError, lmdb.Error) as error:
            full = is_full_disk(error, path.parent)
            path.unlink(missing_ok=True)
            if full:
                raise StoreFullError(
                    f"no space left to copy the database of {self.path} to {path}; free some space "
                    "and try again"
                ) from error
            raise StoreError(
                f"the database of {self.path} can't be copied to {path}: {error}"
            ) from error

    def close(self) -> None:
        self._env.close()
        self._use.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _pages(txn: lmdb.Transaction, db: lmdb._Database | None) -> int:
    """Return how many pages a table has in use; None stands for the list of tables."""
    told = txn.stat(db)
    return int(told["branch_pages"] + told["leaf_pages"] + told["overflow_pages"])
