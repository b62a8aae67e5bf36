"""The filesystem: what the kernel asks, answered from the store and from renditions.

Rules:

* Everything runs on the trio thread.  Lookups, attributes and directories come straight from LMDB:
  a read of the memory map costs far less than a thread hop.
* Only ``read`` may wait, and only for a rendition.
* No exception but ``FUSEError`` ever leaves a handler: pyfuse3 would end the whole mount.
* An inode number stands for one content for ever, so the kernel may keep attributes and pages.
"""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import trio
from pyfuse3 import FUSEError

from latentfs.errors import LatentfsError
from latentfs.fs import attributes
from latentfs.fs.prefetch import SequenceDetector
from latentfs.fs.readers import is_gone, reader_of
from latentfs.fs.renditions import Renditions
from latentfs.render.job_queue import Reader
from latentfs.store.records import Inode
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store
from latentfs.store.tables import NAME_BYTES_MAX

__all__ = ["LatentOperations", "OperationStatistics"]

log = logging.getLogger(__name__)

_FAILED_FOR_S = 1.0
_PINNED_BYTES_MAX = 128 << 20

P = ParamSpec("P")
R = TypeVar("R")
_Handler = Callable[Concatenate["LatentOperations", P], Coroutine[Any, Any, R]]


@dataclass(frozen=True, slots=True)
class OperationStatistics:
    """Counters since the mount.

    Attributes:
        reads_total: read requests that reached the daemon; the page cache answers most others.
        read_bytes_total: bytes they were given.
        opens_total: files opened.
        errors_total: requests answered with EIO.
        open_files: handles open now.
        pinned_bytes: of renditions that handles in the middle of a file keep.
    """

    reads_total: int
    read_bytes_total: int
    opens_total: int
    errors_total: int
    open_files: int
    pinned_bytes: int


@dataclass(slots=True)
class _OpenFile:
    """A handle.  It keeps its rendition from the first read to the last byte, not longer.

    So that one reader never sees two renders mixed.  Handles that are never read to the end keep
    theirs only as long as all such together stay within a budget.  A failure is remembered for a
    moment: the kernel asks again at once when its readahead fails, and the reader would wait for
    two deadlines instead of one.

    Attributes:
        reader: whose turn its renders take.
        opener_pid: process that opened it.
        waiting: a scope for each read that waits; cancelled when nobody can take the answer.
    """

    ino: int
    inode: Inode
    reader: Reader
    opener_pid: int
    rendition: bytes | None = None
    failed_until_s: float = -inf
    waiting: set[trio.CancelScope] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _OpenDirectory:
    """A directory as it was when opened: entries by position never shift under a reader."""

    ino: int
    entries: list[tuple[bytes, int]]


def _guarded(handler: _Handler[P, R]) -> _Handler[P, R]:
    """Turn whatever a handler raises into EIO, and a line in the log."""

    @functools.wraps(handler)
    async def guard(self: LatentOperations, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except LatentfsError as error:
            self.count_error()
            log.error("%s: %s", handler.__name__, error)
            raise FUSEError(errno.EIO) from error
        except Exception as error:
            self.count_error()
            log.exception("%s failed unexpectedly", handler.__name__)
            raise FUSEError(errno.EIO) from error

    return guard


class LatentOperations(pyfuse3.Operations):
    """A read-only view of a store."""

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self, store: Store, renditions: Renditions, detector: SequenceDetector, *, ahead_bytes: int
    ) -> None:
        super().__init__()
        self._store = store
        self._renditions = renditions
        self._detector = detector
        self._ahead_bytes = ahead_bytes
        self._handles = itertools.count(1)
        self._files: dict[int, _OpenFile] = {}
        self._pinned: dict[int, _OpenFile] = {}
        self._pinned_bytes = 0
        self._directories: dict[int, _OpenDirectory] = {}
        self._counts: Counter[str] = Counter()

    def statistics(self) -> OperationStatistics:
        return OperationStatistics(
            reads_total=self._counts["reads"],
            read_bytes_total=self._counts["read_bytes"],
            opens_total=self._counts["opens"],
            errors_total=self._counts["errors"],
            open_files=len(self._files),
            pinned_bytes=self._pinned_bytes,
        )

    def count_error(self) -> None:
        self._counts["errors"] += 1

    # Names and attributes

    @_guarded
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if len(name) > NAME_BYTES_MAX:
            raise FUSEError(errno.ENAMETOOLONG)
        with self._store.read() as snapshot:
            ino = snapshot.lookup(parent_inode, name)
            if ino is None:
                raise FUSEError(errno.ENOENT)
            self._detector.saw_name(ino, parent_inode, name)
            return attributes.entry(ino, _require(snapshot, ino))

    @_guarded
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        with self._store.read() as snapshot:
            return attributes.entry(inode, _require(snapshot, inode))

    @_guarded
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if not name.startswith(b"user."):
            # Not "no such attribute" but "not supported": ls then asks for labels and ACLs once
            # a file system instead of twice a file.
            raise FUSEError(errno.ENOTSUP)
        with self._store.read() as snapshot:
            value = attributes.xattr(snapshot, _require(snapshot, inode), name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    @_guarded
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        with self._store.read() as snapshot:
            return attributes.xattr_names(_require(snapshot, inode))

    @_guarded
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        with self._store.read() as snapshot:
            totals = snapshot.totals()
        return attributes.filesystem(os.statvfs(self._store.path), totals)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Nothing is kept per inode, so there is nothing to forget."""

    # Directories

    @_guarded
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        with self._store.read() as snapshot:
            directory = _require(snapshot, inode)
            if not directory.is_directory:
                raise FUSEError(errno.ENOTDIR)
            entries = [(b".", inode), (b"..", directory.parent_ino), *snapshot.entries(inode)]
        handle = next(self._handles)
        self._directories[handle] = _OpenDirectory(inode, entries)
        return handle

    @_guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        directory = self._directories[fh]
        entries = directory.entries
        with self._store.read() as snapshot:
            for position in range(start_id, len(entries)):
                name, ino = entries[position]
                inode = snapshot.inode(ino)
                if inode is None:  # removed since the directory was opened
                    continue
                if not inode.is_directory:
                    self._detector.saw_name(ino, directory.ino, name)
                entry = attributes.entry(ino, inode)
                if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                    return

    async def releasedir(self, fh: int) -> None:
        self._directories.pop(fh, None)

    # Files

    @_guarded
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise FUSEError(errno.EROFS)
        with self._store.read() as snapshot:
            record = _require(snapshot, inode)
        if record.is_directory:
            raise FUSEError(errno.EISDIR)
        handle = next(self._handles)
        reader = reader_of(ctx.uid, ctx.pid)
        self._files[handle] = _OpenFile(inode, record, reader, ctx.pid)
        self._counts["opens"] += 1
        try:
            self._render_ahead(reader, inode)
        except LatentfsError as error:  # a damaged neighbour is no reason to refuse this file
            log.warning("nothing is rendered ahead of inode %d: %s", inode, error)
        return pyfuse3.FileInfo(fh=handle, keep_cache=True)

    def _render_ahead(self, reader: Reader, ino: int) -> None:
        """Have what *reader* will probably open next rendered, within the budget."""
        with self._store.read() as snapshot:

            def next_files(parent_ino: int, name: bytes) -> Iterator[tuple[bytes, int]]:
                for following, child_ino in snapshot.entries(parent_ino, after=name):
                    child = snapshot.inode(child_ino)
                    if child is not None and not child.is_directory:
                        yield following, child_ino

            left_bytes = self._ahead_bytes
            for next_ino in self._detector.opened(reader, ino, next_files):
                record = _require(snapshot, next_ino)
                left_bytes -= record.size_bytes
                if left_bytes < 0:
                    return
                is_ahead = functools.partial(self._detector.is_wanted, reader, next_ino)
                self._renditions.prefetch(next_ino, record, is_ahead)

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        self._counts["reads"] += 1
        file = self._files[fh]
        rendition = file.rendition
        if rendition is None:
            rendition = await self._get_rendition(file)
        if off + size >= file.inode.size_bytes:
            self._unpin(fh)
        else:
            self._pin(fh, file, rendition)
        piece = memoryview(rendition)[off : off + size]
        self._counts["read_bytes"] += len(piece)
        return piece  # type: ignore[return-value]  # pyfuse3 takes any buffer

    def _pin(self, fh: int, file: _OpenFile, rendition: bytes) -> None:
        """Keep the handle's rendition; drop those of the handles read longest ago if need be."""
        self._unpin(fh)
        self._pinned[fh] = file
        self._pinned_bytes += len(rendition)
        file.rendition = rendition
        while self._pinned_bytes > _PINNED_BYTES_MAX:
            self._unpin(next(iter(self._pinned)))

    def _unpin(self, fh: int) -> None:
        file = self._pinned.pop(fh, None)
        if file is not None and file.rendition is not None:
            self._pinned_bytes -= len(file.rendition)
            file.rendition = None

    async def _get_rendition(self, file: _OpenFile) -> bytes:
        if trio.current_time() < file.failed_until_s:
            raise FUSEError(errno.EIO)
        scope = trio.CancelScope()
        file.waiting.add(scope)
        try:
            with scope:
                return await self._renditions.get(file.ino, file.inode, file.reader)
        except LatentfsError as error:
            file.failed_until_s = trio.current_time() + _FAILED_FOR_S
            self.count_error()
            source = file.inode.content.source.name if file.inode.content else "nothing"
            log.error("reading inode %d, made of %r: %s", file.ino, source, error)
            raise FUSEError(errno.EIO) from error
        finally:
            file.waiting.discard(scope)
        raise FUSEError(errno.EINTR)

    async def flush(self, fh: int) -> None:
        """Nothing is ever written.  Comes at each close, also when a process is killed.

        A killed reader does not wait for the readahead it has started, and the kernel says nothing
        else of it before that is answered.
        """
        file = self._files.get(fh)
        if file is not None and file.waiting and is_gone(file.opener_pid):
            for scope in file.waiting:
                scope.cancel()

    async def release(self, fh: int) -> None:
        self._unpin(fh)
        self._files.pop(fh, None)


def _require(snapshot: Snapshot, ino: int) -> Inode:
    inode = snapshot.inode(ino)
    if inode is None:  # removed by another process while the kernel still knew it
        # Makes the kernel look the name up again, which ENOENT would not.
        raise FUSEError(errno.ESTALE)
    return inode
