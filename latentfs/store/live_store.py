"""A store under a mount: changes count at once, and are on disk within a second, in groups.

A commit waits for the disk several times, so one for each operation would allow a few hundred a
second.  A change goes to a layer of rows in memory that all readers look through.  Twice a second,
or when somebody needs it, the layer becomes one LMDB transaction, in a thread; changes made
meanwhile go to a new layer on top.

Rules:

* All methods belong to the trio thread, but for the views of :meth:`LiveStore.read_in_thread`.
  A layer that is being committed is only read.
* Between the first change of a layer and its commit this process holds the store's writer lock.
* A change is made in one go, without a checkpoint: whoever reads sees all of it or nothing.
* A killed process loses the layers that were not committed, whole.  So what is on disk is always
  the state that the mount was in at some moment.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from math import inf
from pathlib import Path

import trio

from latentfs.errors import LatentfsError, RefusedChangeError, StoreFullError
from latentfs.store.disk_reserve import DiskReserve
from latentfs.store.file_transaction import FileTransaction
from latentfs.store.rows import Layer, LayeredRows
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store, StoreStatistics
from latentfs.store.writer_lock import WriterLock

__all__ = ["LiveStore", "LiveStoreStatistics", "Space", "open_live_store"]

log = logging.getLogger(__name__)

_COMMIT_INTERVAL_S = 0.5
# Uncommitted bytes that make a commit come early, and that make changes wait for it.
_LAYER_BYTES_EARLY = 16 << 20
_LAYER_BYTES_MAX = 64 << 20
_LAYER_ROWS_MAX = 100_000
# The lock is given back when nothing has changed for that long, or others had to wait too long;
# then it is left to them for a moment.
_LOCK_IDLE_S = 0.1
_YIELD_S = 0.01
_LOCK_POLL_S = 0.005
_LOCK_TIMEOUT_S = 60.0
_LOCK_HELD_MAX_S = 1.0
_RETRY_S = 1.0
_FREE_SPACE_AGE_S = 0.2
# For what removing, compacting and the file system itself need.
_RESERVED_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class LiveStoreStatistics:
    """Counters since the mount.

    Attributes:
        changes_total: changes made.
        commits_total: transactions they became.
        commits_failed_total: that failed, and were or will be tried again.
        uncommitted_bytes: in memory now.
    """

    changes_total: int
    commits_total: int
    commits_failed_total: int
    uncommitted_bytes: int


@dataclass(frozen=True, slots=True)
class Space:
    """What the file system has, in bytes."""

    total_bytes: int
    free_bytes: int


class LiveStore:
    """The store as a mount shows it.  Made by :func:`open_live_store`.

    Args:
        size_limit_bytes: that the database may take; None for all the space there is.
    """

    def __init__(self, store: Store, *, size_limit_bytes: int | None = None) -> None:
        self.path: Path = store.path
        self._store = store
        self._size_limit_bytes = size_limit_bytes
        self._lock = WriterLock(store.path)
        self._reserve = DiskReserve(store.path, size_bytes=_RESERVED_BYTES)
        self._lock_free_s = -inf
        self._lock_since_s = inf
        self._closing = False
        self._is_waiting_stopped = False
        self._top = Layer()
        self._committing: Layer | None = None
        self._wake = trio.Event()
        self._hurry = trio.Event()
        self._committed = trio.Event()
        self._changes = 0
        self._commits = 0
        self._commits_failed = 0
        self._failure: Exception | None = None
        self._free_bytes = 0
        self._used_bytes = 0
        self._free_known_s = -inf

    def live_statistics(self) -> LiveStoreStatistics:
        return LiveStoreStatistics(
            changes_total=self._changes,
            commits_total=self._commits,
            commits_failed_total=self._commits_failed,
            uncommitted_bytes=self._uncommitted_bytes(),
        )

    def space(self) -> Space:
        """Return the space that there is, and what is left of it."""
        status = os.statvfs(self.path)
        total_bytes = status.f_blocks * status.f_frsize
        free_bytes = status.f_bavail * status.f_frsize
        if self._size_limit_bytes is not None:
            total_bytes = min(total_bytes, self._size_limit_bytes)
            left_bytes = self._size_limit_bytes - self._store.used_bytes()
            free_bytes = min(free_bytes, max(0, left_bytes))
        return Space(total_bytes, free_bytes)

    def statistics(self) -> StoreStatistics:
        """Sums of what is on disk."""
        return self._store.statistics()

    def changes(self) -> int:
        """Return a number that grows with every committed transaction of any process."""
        return self._store.changes()

    # Reading

    @contextlib.contextmanager
    def read(self) -> Iterator[Snapshot]:
        """A consistent view of the store with all changes made so far; see :meth:`Store.read`."""
        with self._store.stored_rows() as stored:
            yield Snapshot(LayeredRows(self._layers(), stored))

    def read_in_thread(self) -> Callable[[], AbstractContextManager[Snapshot]]:
        """Return what opens a view as :meth:`read` does, in another thread.

        For rows that are never changed once they are there: the uppermost layer may change
        meanwhile, so rows of one view need not belong to the same moment.
        """
        layers = self._layers()

        @contextlib.contextmanager
        def read() -> Iterator[Snapshot]:
            with self._store.stored_rows() as stored:
                yield Snapshot(LayeredRows(layers, stored))

        return read

    def _layers(self) -> tuple[Layer, ...]:
        return (self._top,) if self._committing is None else (self._top, self._committing)

    # Changing

    async def may_change(self) -> None:
        """Wait until this process may change the store and has room in memory for a change.

        To be awaited before each :meth:`change`, which then comes without a checkpoint.  If
        cancelled, nothing has happened.

        Raises:
            RefusedChangeError: EIO, another process has kept the writer lock for a minute;
                ESHUTDOWN, it has it after :meth:`stop_waiting`.
        """
        while self._closing or self._is_full_of_changes() or not self._lock.held:
            if self._lock.held:
                if not self._closing:
                    self._hurry.set()
                await self._committed.wait()
            else:
                await self._acquire_lock()

    def stop_waiting(self) -> None:
        """Wait for no other process any more, as the mount ends: such changes fail at once.

        All others go on.  Not with EIO: nothing is wrong with the disk, or the file.
        """
        self._is_waiting_stopped = True

    def _is_full_of_changes(self) -> bool:
        # Where commits fail there is no end to wait for: additions are refused, and removals are
        # small and must go on.
        if self._committing is None:
            return False
        return self._uncommitted_bytes() > _LAYER_BYTES_MAX or len(self._top) > _LAYER_ROWS_MAX

    def _uncommitted_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self._layers())

    async def _acquire_lock(self) -> None:
        await trio.sleep_until(self._lock_free_s + _YIELD_S)
        with trio.move_on_after(_LOCK_TIMEOUT_S):
            while not self._lock.held and not self._try_lock():
                if self._is_waiting_stopped:
                    raise RefusedChangeError(
                        errno.ESHUTDOWN,
                        "the store is being unmounted, and another process is changing it",
                    )
                await trio.sleep(_LOCK_POLL_S)
            self._lock_since_s = trio.current_time()
            self._wake.set()  # so that it is given back though nothing be changed
            return
        raise RefusedChangeError(
            errno.EIO,
            f"another process has been changing the store for {_LOCK_TIMEOUT_S:g} s; end it",
        )

    def _try_lock(self) -> bool:
        try:
            return self._lock.try_acquire()
        except OSError as error:
            raise RefusedChangeError(
                errno.EIO, f"the store {self.path} can't be locked: {error.strerror}"
            ) from error

    @contextlib.contextmanager
    def change(self, *, adds_bytes: int = 0, announced: bool = False) -> Iterator[FileTransaction]:
        """A change; counts when the block ends, and never happened if it raises.

        Args:
            adds_bytes: what it will take on disk, about; 0 for what makes room.
            announced: whether the kernel is to be told, within a second: it has not asked for this.

        Raises:
            RefusedChangeError: ENOSPC, or what the methods of the transaction raise.
            StoreCorruptError: a record can't be true.
        """
        if not self._lock.held:
            raise RuntimeError("change() without may_change()")
        if adds_bytes:
            self._require_space(adds_bytes)
        with self._store.stored_rows() as stored:
            rows = LayeredRows(self._layers(), stored)
            transaction = FileTransaction(rows, announced=announced)
            try:
                yield transaction
                transaction.finish()
            except BaseException:
                rows.undo()
                raise
        self._changes += 1
        self._wake.set()
        if self._top.size_bytes >= _LAYER_BYTES_EARLY:
            self._hurry.set()

    def _require_space(self, adds_bytes: int) -> None:
        now_s = trio.current_time()
        if now_s > self._free_known_s + _FREE_SPACE_AGE_S:
            status = os.statvfs(self.path)
            disk_bytes = status.f_bavail * status.f_frsize
            self._free_bytes = disk_bytes + self._reserve.held_bytes + self._store.free_bytes()
            if self._size_limit_bytes is not None:
                self._used_bytes = self._store.used_bytes()
            self._free_known_s = now_s
        waiting_bytes = self._uncommitted_bytes()
        limit_bytes = self._size_limit_bytes
        if limit_bytes is not None and self._used_bytes + waiting_bytes + adds_bytes > limit_bytes:
            raise RefusedChangeError(
                errno.EDQUOT,
                f"the store {self.path} may take {limit_bytes} bytes, and does: remove something, "
                "or mount it with a larger --size-limit",
            )
        if isinstance(self._failure, StoreFullError) or (
            self._free_bytes < waiting_bytes + adds_bytes + _RESERVED_BYTES
        ):
            raise RefusedChangeError(
                errno.ENOSPC,
                f"no space left for the store {self.path}: remove something, or free some space",
            )
        if self._failure is not None and waiting_bytes > _LAYER_BYTES_MAX:
            raise RefusedChangeError(errno.EIO, f"changes can't be written: {self._failure}")

    # Committing

    async def sync(self) -> None:
        """Return when all changes made so far are on disk.

        Raises:
            RefusedChangeError: ENOSPC or EIO, they can't be written; they are kept and tried again.
        """
        failed_before = self._commits_failed
        for layer in self._layers():
            while len(layer) and layer in self._layers():
                self._hurry.set()
                await self._committed.wait()
                if self._failure is not None and self._commits_failed > failed_before:
                    full = isinstance(self._failure, StoreFullError)
                    raise RefusedChangeError(
                        errno.ENOSPC if full else errno.EIO, str(self._failure)
                    )

    async def commit_forever(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Commit what has changed, twice a second; when cancelled, what is left, once more."""
        await trio.to_thread.run_sync(self._reserve.take)
        task_status.started()
        try:
            while True:
                with trio.move_on_after(_LOCK_IDLE_S if self._lock.held else inf):
                    await self._wake.wait()
                if not self._wake.is_set():
                    self._release_lock()
                    continue
                await self._pause_before_commit()
                await self._commit()
                if self._failure is not None:
                    await trio.sleep(_RETRY_S)
        finally:
            await self._commit()
            if len(self._top):
                self._commit_at_last()
            if len(self._top):
                log.error("the last changes could not be written, they are lost: %s", self._failure)
            self._reserve.remove()
            self._lock.release()

    def _commit_at_last(self) -> None:
        """Write what is left without a thread: there may be none, and nobody waits any more."""
        layer, self._top = self._top, Layer()
        try:
            self._apply(layer)
        except Exception as error:
            self._failure = error
            self._take_back(layer)

    async def _pause_before_commit(self) -> None:
        """Let changes gather, unless they are many or somebody waits for them to be on disk."""
        with trio.move_on_after(_COMMIT_INTERVAL_S):
            await self._hurry.wait()
        self._hurry = trio.Event()

    def _release_lock(self) -> None:
        self._lock.release()
        self._lock_free_s = trio.current_time()

    async def _commit(self) -> None:
        self._wake = trio.Event()
        layer = self._top
        if not len(layer):
            return
        self._committing, self._top = layer, Layer()
        # Without a gap in the changes the lock would never be free for another process.
        self._closing = trio.current_time() > self._lock_since_s + _LOCK_HELD_MAX_S
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._apply, layer)
        except Exception as error:  # what was changed must not be lost by whatever goes wrong
            self._commits_failed += 1
            if self._failure is None:
                log.error("changes can't be written, trying again: %s", error)
            self._failure = error
            self._take_back(layer)
        else:
            self._commits += 1
            self._failure = None
        self._committing = None
        self._free_known_s = -inf
        if len(self._top):
            self._wake.set()
        elif self._closing:
            self._release_lock()
        self._closing = False
        self._committed.set()
        self._committed = trio.Event()

    def _apply(self, layer: Layer) -> None:
        """Write a layer; with what is reserved, if there is no other space left.  In a thread."""
        self._store.release_dead_readers()
        while True:
            try:
                self._store.apply(layer)
            except StoreFullError:
                if not self._reserve.give_piece():
                    raise
            else:
                break
        self._reserve.take()

    def _take_back(self, layer: Layer) -> None:
        """Put what was changed meanwhile on top of *layer*, and go on with that."""
        for table, key, value in self._top.changes():
            layer.put(table, key, value)
        self._top = layer


@asynccontextmanager
async def open_live_store(
    store: Store, *, writable: bool, size_limit_bytes: int | None = None
) -> AsyncIterator[LiveStore]:
    """A :class:`LiveStore` of *store*; what was changed is on disk when it ends."""
    live = LiveStore(store, size_limit_bytes=size_limit_bytes)
    if not writable:
        yield live
        return
    async with trio.open_nursery() as nursery:
        await nursery.start(live.commit_forever)
        await _discard_orphans(live)
        yield live
        await _discard_orphans(live)
        nursery.cancel_scope.cancel()


async def _discard_orphans(live: LiveStore) -> None:
    """Remove files without links that this mount, or a killed one, still had.

    What can't be removed now, because another process changes the store, the next mount removes.
    """
    with live.read() as snapshot:
        found = list(snapshot.orphans())
    for index, ino in enumerate(found):
        try:
            await live.may_change()
        except RefusedChangeError as error:  # the others would wait as long, each
            left = len(found) - index
            log.warning("%d files without links are left to the next mount: %s", left, error)
            return
        try:
            with live.change() as transaction:
                transaction.discard_orphan(ino)
        except LatentfsError as error:  # a damaged one is no reason not to mount
            log.error("inode %d, which has no links, can't be removed: %s", ino, error)
