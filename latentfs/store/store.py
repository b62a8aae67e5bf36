"""A store on disk: one directory that holds everything.

::

    STORE/
        latentfs.toml   format version and when it was made; the mark of a store
        lmdb/           the LMDB environment (:mod:`latentfs.store.tables`)
        vae/<id>/       verified copies of the VAEs (:mod:`latentfs.store.vae_files`)
        daemon.lock     held by the daemon that has the store mounted
        control.sock    that daemon's control socket
        writer.lock     held by the process that is changing the store

LMDB lets many processes read while one writes, so the command line works beside a live mount.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import lmdb
import msgspec
import tomli_w

from latentfs.errors import (
    StoreCorruptError,
    StoreError,
    StoreExistsError,
    StoreFullError,
    StoreNotFoundError,
    StoreVersionError,
)
from latentfs.store import chunks, tables
from latentfs.store.owned_files import make_file
from latentfs.store.records import Totals
from latentfs.store.rows import Layer, StoredRows
from latentfs.store.snapshot import Snapshot
from latentfs.store.transaction import Transaction
from latentfs.store.use_lock import UseLock
from latentfs.store.writer_lock import WriterLock

__all__ = [
    "FORMAT_VERSION",
    "PRIVATE_MODE",
    "SETTINGS_NAME",
    "Store",
    "StoreStatistics",
    "rows_of_copy",
]

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
SETTINGS_NAME = "latentfs.toml"
# Of a new store's folder: the database holds the bytes of files that a mount shows to some only.
PRIVATE_MODE = 0o700
# Only address space: the file grows by what is written.  Large enough never to be reached.
_MAP_BYTES = 4 << 40
# Transactions under way at a time, in all processes.
_READERS_MAX = 2048
_READER_SLOT_BYTES = 64
_META_PAGES = 2
_FULL_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
_NEARLY_FULL_BYTES = 1 << 20
_WHY_NOT_MADE = {
    errno.EACCES: "this user may not write there; choose another folder, or run as one who may",
    errno.EROFS: "it would be on a read-only file system; choose another place",
}


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
        use, made_directory = _claimed_folder(path)
        try:
            return cls._create_in(path, use)
        except BaseException as error:
            told = _not_made(path, error) if isinstance(error, (OSError, lmdb.Error)) else None
            _remove_half_made(path, also_directory=made_directory)
            use.release()
            if told is not None:
                raise told from error
            raise

    @classmethod
    def _create_in(cls, path: Path, use: UseLock) -> Store:
        (path / "lmdb").mkdir()
        (path / "vae").mkdir()
        env = _open_environment(path, writable=True, create=True)
        try:
            store = cls(path, env, use, create=True)
            with store.write() as transaction:
                transaction.create_tables(uid=os.getuid(), gid=os.getgid())
            sync_directory(path / "lmdb")
            settings = path / (SETTINGS_NAME + ".new")
            with settings.open("wb") as file:
                tomli_w.dump({"format_version": FORMAT_VERSION}, file)
                file.flush()
                os.fsync(file.fileno())
            settings.rename(path / SETTINGS_NAME)
            sync_directory(path)
            sync_directory(path.parent)
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
            StoreCorruptError: its settings or its LMDB environment can't be read.
        """
        _check_format_version(path)
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
        env = _open_environment(path, writable=writable)
        try:
            if _schema_version(path, env) < tables.SCHEMA_VERSION:
                env.close()
                _migrate(path)
                env = _open_environment(path, writable=writable)
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
                f"the store {self.path} is read by {_READERS_MAX} others at this moment; try again"
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


def _open_environment(path: Path, *, writable: bool, create: bool = False) -> lmdb.Environment:
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
        max_readers=_READERS_MAX,
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
        os.posix_fallocate(fd, 0, (_READERS_MAX + 2) * _READER_SLOT_BYTES)
    except OSError:
        path.unlink()
        raise
    finally:
        os.close(fd)


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
        raise _newer("schema", version, tables.SCHEMA_VERSION, path)
    return version


def _migrate(path: Path) -> None:
    with _open_environment(path, writable=True) as env, env.begin(write=True) as txn:
        # Under the write lock: another process may have migrated it meanwhile.
        dbs = {name: env.open_db(name.encode(), txn) for name in tables.TABLES}
        older = msgspec.msgpack.decode(txn.get(b"schema", db=dbs["catalog"]) or b"", type=int)
        for version in range(older, tables.SCHEMA_VERSION):
            tables.MIGRATIONS[version](txn, dbs)
        current = msgspec.msgpack.encode(tables.SCHEMA_VERSION)
        txn.put(b"schema", current, db=dbs["catalog"])


def _check_format_version(path: Path) -> None:
    settings_path = path / SETTINGS_NAME
    try:
        settings = tomllib.loads(settings_path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(
            f"there is no latentfs store at {path} (no {SETTINGS_NAME} in it); "
            "make one with latentfs init"
        ) from None
    except OSError as error:
        raise StoreError(f"the store {path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StoreCorruptError(f"{settings_path} can't be read: {error}") from error
    version = settings.get("format_version")
    if type(version) is not int or version < 1:
        raise StoreCorruptError(f"{settings_path} has no format_version")
    if version > FORMAT_VERSION:
        raise _newer("format", version, FORMAT_VERSION, path)


def _newer(what: str, version: int, known: int, path: Path) -> StoreVersionError:
    return StoreVersionError(
        f"the store {path} has {what} version {version}, this latentfs knows versions up to "
        f"{known}; use a newer latentfs"
    )


def _claimed_folder(path: Path) -> tuple[UseLock, bool]:
    """Return the lock on the empty folder of a new store, and whether this has made the folder.

    Of all that find it empty one gets the lock.  So whatever is in it later was made by that one,
    which may remove it again.
    """
    try:
        made = _make_directory(path)
        use = UseLock(path, alone=True)
        try:
            _require_empty(path)
            use.share()
        except BaseException:
            use.release()
            raise
    except OSError as error:
        raise _not_made(path, error) from error
    return use, made


def _make_directory(path: Path) -> bool:
    """Make the folder of a new store; return False where there is an empty one."""
    try:
        path.mkdir(PRIVATE_MODE, parents=True)
    except FileExistsError:
        _require_empty(path)
        return False
    return True


def _require_empty(path: Path) -> None:
    if not path.is_dir() or any(path.iterdir()):
        what = "a store" if (path / SETTINGS_NAME).exists() else "something"
        raise StoreExistsError(f"there is {what} at {path} already; choose another path")


def _not_made(path: Path, error: OSError | lmdb.Error) -> StoreError:
    if is_full_disk(error, path):
        return StoreFullError(f"no space left to make a store at {path}")
    known = _WHY_NOT_MADE.get(getattr(error, "errno", None) or 0)
    reason = known or f"{getattr(error, 'strerror', None) or error}; choose another place"
    return StoreError(f"can't make a store at {path}: {reason}")


def _remove_half_made(path: Path, *, also_directory: bool) -> None:
    for name in ("lmdb", "vae"):
        shutil.rmtree(path / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        for name in (SETTINGS_NAME, SETTINGS_NAME + ".new", "writer.lock"):
            (path / name).unlink(missing_ok=True)
        if also_directory:
            path.rmdir()


def is_full_disk(error: OSError | lmdb.Error, path: Path) -> bool:
    """Whether *error*, of a write below *path*, says that the disk is full."""
    if isinstance(error, OSError):
        return error.errno in _FULL_DISK_ERRNOS
    if isinstance(error, (lmdb.MapFullError, lmdb.DiskError)):
        return True
    # LMDB calls a write that was cut short EIO; the part that was written has filled the disk up.
    return os.strerror(errno.EIO) in str(error) and _free_bytes(path) < _NEARLY_FULL_BYTES


def _free_bytes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _pages(txn: lmdb.Transaction, db: lmdb._Database | None) -> int:
    """Return how many pages a table has in use; None stands for the list of tables."""
    told = txn.stat(db)
    return int(told["branch_pages"] + told["leaf_pages"] + told["overflow_pages"])
