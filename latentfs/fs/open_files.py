"""Open files: reading renditions and bytes, and writing bytes."""

from __future__ import annotations

import errno
import functools
import itertools
import logging
import os
import stat
from collections import Counter
from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Any

import trio
from pyfuse3 import EntryAttributes, FUSEError, RequestContext, SetattrFields

from latentfs.errors import LatentfsError, RenderError
from latentfs.fs import attributes
from latentfs.fs.heads import Heads
from latentfs.fs.latent_files import LatentFiles
from latentfs.fs.open_file import OpenFile
from latentfs.fs.open_inodes import OpenInodes, require
from latentfs.fs.pins import Pins
from latentfs.fs.prefetch import SequenceDetector
from latentfs.fs.readers import is_gone, process_of, reader_of
from latentfs.fs.renditions import Renditions
from latentfs.render.job_queue import Reader
from latentfs.render.jobs import content_key
from latentfs.store.live_store import LiveStore
from latentfs.store.records import Inode, LatentContent
from latentfs.store.tables import storable_ns
from latentfs.telemetry.activity import Activity, ReadTrail, Tier

__all__ = ["OpenFileStatistics", "OpenFiles"]

log = logging.getLogger(__name__)

# The kernel asks once more for one page when its readahead has failed, within some milliseconds
# even on a busy machine: so that a read does not wait for two deadlines.  No longer, as a server
# may serve all its clients from one handle.
_FAILED_FOR_S = 0.2
# That are looked at for pictures to render ahead; there may be few among many other files.
_ENTRIES_AHEAD_MAX = 512
_PINNED_BYTES_MAX = 128 << 20
# About what a changed inode takes on disk.
_INODE_BYTES = 256


@dataclass(frozen=True, slots=True)
class OpenFileStatistics:
    """Counters since the mount.

    Attributes:
        reads_total: read requests that reached the daemon; the page cache answers most others.
        read_bytes_total: bytes they were given.
        head_reads_total: reads of pictures that ended in front of the pixel data, so that no
            render was needed.
        heads_shown_total: opens at which the kernel was given that part of a picture.
        writes_total: write requests.
        written_bytes_total: bytes they brought.
        opens_total: files opened.
        open_files: handles open now.
        pinned_bytes: of renditions that handles in the middle of a file keep, and of open latent
            files as far as they are decompressed.
    """

    reads_total: int
    read_bytes_total: int
    head_reads_total: int
    heads_shown_total: int
    writes_total: int
    written_bytes_total: int
    opens_total: int
    open_files: int
    pinned_bytes: int


class _OverwrittenError(Exception):
    """A file's bytes could not be had because it has others by now."""


class OpenFiles:
    """The open files of a mount.

    A picture is read as its rendition until somebody writes into it.  From then on it is kept byte
    for byte, beginning with the bytes of the rendition.

    Args:
        ahead_bytes: asked each time for what files that are rendered ahead from one file may have.
        on_written: called with each file that was written and closed.
    """

    def __init__(
        self,
        store: LiveStore,
        renditions: Renditions,
        open_inodes: OpenInodes,
        detector: SequenceDetector,
        handles: itertools.count[int],
        activity: Activity,
        *,
        ahead_bytes: Callable[[], int],
        on_written: Callable[[int], None],
    ) -> None:
        self._store = store
        self._renditions = renditions
        self._open_inodes = open_inodes
        self._detector = detector
        self._handles = handles
        self._activity = activity
        self._ahead_bytes = ahead_bytes
        self._on_written = on_written
        self._files: dict[int, OpenFile] = {}
        self._writers: Counter[int] = Counter()
        self._unfinished: set[int] = set()
        self._pins = Pins(_PINNED_BYTES_MAX)
        self._latent_files = LatentFiles(store)
        self._heads = Heads()
        self._counts: Counter[str] = Counter()

    def statistics(self) -> OpenFileStatistics:
        return OpenFileStatistics(
            reads_total=self._counts["reads"],
            read_bytes_total=self._counts["read_bytes"],
            head_reads_total=self._counts["head_reads"],
            heads_shown_total=self._counts["heads_shown"],
            writes_total=self._counts["writes"],
            written_bytes_total=self._counts["written_bytes"],
            opens_total=self._counts["opens"],
            open_files=len(self._files),
            pinned_bytes=self._pins.held_bytes + self._latent_files.kept_bytes,
        )

    # Opening and closing

    async def open(self, ino: int, flags: int, ctx: RequestContext) -> int:
        """Return a new handle; with O_TRUNC the file is emptied first, as the kernel leaves it."""
        with self._store.read() as snapshot:
            inode = require(snapshot, ino)
        if inode.is_directory:
            raise FUSEError(errno.EISDIR)
        if flags & os.O_TRUNC:  # also of a handle that is only read: so does Linux
            # The kernel does it at every other change of the bytes; root's own leave the bits.
            is_root = ctx.uid == 0
            await self.resize(ino, 0, reader_of(ctx.uid, ctx.pid), clears_set_ids=not is_root)
        elif inode.content is not None and not self._open_inodes.is_open(ino):
            self._show_head(ino, inode.content)
        return self.opened(ino, inode, flags, ctx)

    def _show_head(self, ino: int, content: LatentContent) -> None:
        try:
            with self._store.read() as snapshot:
                self._counts["heads_shown"] += self._heads.show_kernel(snapshot, ino, content)
        except (LatentfsError, OSError) as error:  # a read says more, if there is one
            log.warning("the head of inode %d is not shown to the kernel: %s", ino, error)

    def opened(self, ino: int, inode: Inode, flags: int, ctx: RequestContext) -> int:
        """Return a new handle of a file that is there."""
        handle = next(self._handles)
        writable = flags & os.O_ACCMODE != os.O_RDONLY
        self._files[handle] = OpenFile(
            ino,
            inode,
            reader_of(ctx.uid, ctx.pid),
            ctx.pid,
            writable=writable,
            written=writable and bool(flags & os.O_TRUNC),
        )
        if writable:
            self._writers[ino] += 1
        self._open_inodes.opened(ino)
        self._counts["opens"] += 1
        return handle

    def closing(self, fh: int) -> None:
        """Give up reads that a killed process waits for.  Comes at each close of a descriptor.

        A killed reader does not wait for the readahead it has started, and the kernel says nothing
        else of it before that is answered.
        """
        file = self._files.get(fh)
        if file is None or not file.waiting or file.opener_pid is None:
            return
        if is_gone(file.opener_pid):
            for scope in file.waiting:
                scope.cancel()

    async def close(self, fh: int) -> None:
        self._pins.unpin(fh)
        file = self._files.pop(fh, None)
        if file is None:
            return
        if file.latent_file is not None:
            self._latent_files.forget(file.latent_file)
        if file.written:
            self._unfinished.add(file.ino)
        if not file.asked and not file.writable and file.inode.content is not None:
            # The kernel says nothing of reads that it answers; a file is hardly opened for less.
            self._renditions.kernel_hit(file.inode)
        if file.writable:
            self._writers[file.ino] -= 1
            if not self._writers[file.ino]:
                del self._writers[file.ino]
                if file.ino in self._unfinished:
                    self._unfinished.remove(file.ino)
                    self._on_written(file.ino)
        await self._open_inodes.closed(file.ino)

    def is_being_written(self, ino: int) -> bool:
        """Whether somebody has the file open to write into it."""
        return ino in self._writers

    # Reading

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self._counts["reads"] += 1
        file = self._files[fh]
        file.asked = True
        trail = ReadTrail()
        start_s = trio.current_time()
        try:
            piece = await self._piece(fh, file, off, size, trail)
        except Exception as error:
            number = error.errno if isinstance(error, FUSEError) else errno.EIO
            self._read_done(file, trail, number, start_s)
            if isinstance(error, LatentfsError):
                # Not what it was made of: the names of latent files may hold prompts.
                raise RenderError(f"inode {file.ino}: {error}") from error
            raise
        self._counts["read_bytes"] += len(piece)
        self._read_done(file, trail, 0, start_s)
        return piece

    def _read_done(self, file: OpenFile, trail: ReadTrail, number: int, start_s: float) -> None:
        elapsed_s = trio.current_time() - start_s
        size_bytes = file.inode.size_bytes
        self._activity.read_done(trail, number, elapsed_s, ino=file.ino, size_bytes=size_bytes)

    async def _piece(self, fh: int, file: OpenFile, off: int, size: int, trail: ReadTrail) -> bytes:
        with self._store.read() as snapshot:
            # Another process that did not know of this mount may have removed the file; it can be
            # read until it is closed, unless its bytes were in the store alone.
            found = snapshot.inode(file.ino)
            if found is None and file.inode.is_chunked:
                raise FUSEError(errno.ESTALE)
            inode = file.inode = found or file.inode
            end = min(off + size, inode.size_bytes)
            if inode.is_chunked:
                self._pins.unpin(fh)
                trail.tier = Tier.BYTES
                return snapshot.bytes_of(file.ino, offset=min(off, end), end=end)
            if inode.content is not None and file.rendition is None:
                trail.tier = Tier.HEAD
                head = self._heads.piece(snapshot, inode.content, offset=off, end=end)
                if head is not None:
                    self._counts["head_reads"] += 1
                    return head
        self._pixels_asked_for(file)
        try:
            if inode.latent_file is not None:
                file.latent_file = inode.latent_file
                trail.tier = Tier.LATENT_FILE
                get = functools.partial(
                    self._latent_files.read, inode.latent_file, offset=min(off, end), end=end
                )
                return await self._waited_for(file, inode, trail, get)
            return await self._read_picture(fh, file, off, end, trail)
        except _OverwrittenError:
            return await self._piece(fh, file, off, size, trail)

    def _pixels_asked_for(self, file: OpenFile) -> None:
        """Follow the reader through the directory: only here, as many look at heads alone."""
        if file.shows_pixels or file.inode.content is None:
            return
        file.shows_pixels = True
        try:
            self._render_ahead(file.reader, file.ino)
        except LatentfsError as error:  # a damaged neighbour is no reason to refuse this file
            log.warning("nothing is rendered ahead of inode %d: %s", file.ino, error)

    def _render_ahead(self, reader: Reader, ino: int) -> None:
        """Have what *reader* will probably read next rendered, within the budget."""
        with self._store.read() as snapshot:

            def next_files(parent_ino: int, name: bytes) -> Iterator[tuple[bytes, int]]:
                entries = snapshot.entries(parent_ino, after=name)
                for following, child_ino in itertools.islice(entries, _ENTRIES_AHEAD_MAX):
                    child = snapshot.inode(child_ino)
                    if child is not None and child.content is not None:
                        yield following, child_ino

            left_bytes = self._ahead_bytes()
            for next_ino in self._detector.opened(reader, ino, next_files):
                record = require(snapshot, next_ino)
                if record.content is None:
                    continue
                left_bytes -= record.size_bytes
                if left_bytes < 0:
                    return
                is_ahead = functools.partial(self._detector.is_wanted, reader, next_ino)
                self._renditions.prefetch(next_ino, record, is_ahead)

    async def _read_picture(
        self, fh: int, file: OpenFile, off: int, end: int, trail: ReadTrail
    ) -> bytes:
        rendition, inode = file.rendition, file.inode
        trail.tier = Tier.HANDLE
        if rendition is None or file.rendition_of != _key(inode):
            get = functools.partial(self._renditions.get, file.ino, inode, file.reader, trail)
            rendition = await self._waited_for(file, inode, trail, get)
        if end >= inode.size_bytes:
            self._pins.unpin(fh)
        elif fh in self._files:
            self._pins.pin(fh, file, rendition, _key(inode))
        # pyfuse3 takes any buffer
        return memoryview(rendition)[off:end]  # type: ignore[return-value]

    async def _waited_for(
        self, file: OpenFile, inode: Inode, trail: ReadTrail, get: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """Return what *get* gives of a file, as long as somebody can take it.

        Raises:
            FUSEError: EIO, a read of the handle has just failed; EINTR, its process has gone.
            _OverwrittenError, LatentfsError: as in :meth:`_unless_overwritten`.
        """
        if trio.current_time() < file.failed_until_s:
            trail.tier = Tier.REFUSED
            raise FUSEError(errno.EIO)
        if file.opener_pid is None:
            file.opener_pid = process_of(file.opener_thread)
        scope = trio.CancelScope()
        file.waiting.add(scope)
        try:
            with scope:
                return await self._unless_overwritten(file.ino, inode, get)
        except LatentfsError:
            file.failed_until_s = trio.current_time() + _FAILED_FOR_S
            raise
        finally:
            file.waiting.discard(scope)
        raise FUSEError(errno.EINTR)

    async def _unless_overwritten(
        self, ino: int, inode: Inode, get: Callable[[], Awaitable[bytes]]
    ) -> bytes:
        """Return what *get* gives of a file that isn't kept in chunks.

        Raises:
            _OverwrittenError: it was overwritten before that was fetched.
            LatentfsError: it can't be had.
        """
        try:
            return await get()
        except LatentfsError as error:
            with self._store.read() as snapshot:
                now = snapshot.inode(ino)
            if now is None or _key(now) == _key(inode):
                raise
            raise _OverwrittenError from error

    # Writing

    async def write(self, fh: int, off: int, data: bytes) -> int:
        self._counts["writes"] += 1
        file = self._files[fh]
        await self._make_writable(file.ino, file.reader)
        with self._store.change(adds_bytes=len(data) + _INODE_BYTES) as transaction:
            inode = transaction.require(file.ino)
            file.inode = transaction.write_bytes(file.ino, inode, offset=off, data=data)
        file.written = True
        self._counts["written_bytes"] += len(data)
        return len(data)

    async def resize(
        self, ino: int, size_bytes: int, reader: Reader, *, clears_set_ids: bool = False
    ) -> Inode:
        """Cut or lengthen a file; return its inode as it is then.

        Args:
            clears_set_ids: also take set-user-ID and set-group-ID away, as a write does.
        """
        if size_bytes == 0:
            await self._store.may_change()
        else:
            await self._make_writable(ino, reader)
        with self._store.change(adds_bytes=_INODE_BYTES if size_bytes else 0) as transaction:
            inode = transaction.require(ino)
            if not inode.is_chunked:
                inode = transaction.make_chunked(ino, inode, b"")
            if clears_set_ids and inode.mode & (stat.S_ISUID | stat.S_ISGID):
                mode = inode.mode & ~(stat.S_ISUID | stat.S_ISGID)
                inode = transaction.update(ino, inode, mode=mode)
            inode = transaction.truncate(ino, inode, size_bytes=size_bytes)
        if size_bytes or ino in self._writers:
            self._has_changed(ino)
        return inode

    def _has_changed(self, ino: int) -> None:
        """Have it told that a file was written, once nobody may write into it any more."""
        if ino in self._writers:
            self._unfinished.add(ino)
        else:
            self._on_written(ino)

    async def _make_writable(self, ino: int, reader: Reader) -> None:
        """Wait for a turn to change the store, in which the file is one kept byte for byte."""
        await self._store.may_change()
        while True:
            with self._store.read() as snapshot:
                inode = require(snapshot, ino)
            if inode.is_chunked:
                return
            try:
                data = await self._whole(ino, inode, reader)
            except _OverwrittenError:
                await self._store.may_change()
                continue
            await self._store.may_change()
            with self._store.change(adds_bytes=len(data)) as transaction:
                now = transaction.require(ino)
                if (now.content, now.latent_file) == (inode.content, inode.latent_file):
                    transaction.make_chunked(ino, now, data)
            self._has_changed(ino)  # though what is to be written may be refused

    async def _whole(self, ino: int, inode: Inode, reader: Reader) -> bytes:
        """Return all bytes of a file that isn't kept in chunks; raises as what it calls."""
        if inode.latent_file is not None:
            get = functools.partial(self._latent_files.whole, inode.latent_file)
        else:
            get = functools.partial(self._renditions.get, ino, inode, reader, ReadTrail())
        return await self._unless_overwritten(ino, inode, get)

    # Attributes

    async def set_attributes(
        self,
        ino: int,
        wanted: EntryAttributes,
        fields: SetattrFields,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Change what *fields* says to what *wanted* says; who may do so the kernel has checked."""
        if fields.update_size:
            await self.resize(ino, wanted.st_size, reader_of(ctx.uid, ctx.pid))
        await self._store.may_change()
        with self._store.change() as transaction:
            inode = transaction.require(ino)
            inode = transaction.update(ino, inode, **_changes(inode, wanted, fields))
        return attributes.entry(ino, inode)


def _key(inode: Inode) -> Hashable:
    """What decides the bytes of a file, None where it is kept in chunks."""
    return None if inode.is_chunked else inode.latent_file or content_key(inode)


def _changes(inode: Inode, wanted: EntryAttributes, fields: SetattrFields) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if fields.update_mode:
        changes["mode"] = stat.S_IFMT(inode.mode) | stat.S_IMODE(wanted.st_mode)
    if fields.update_uid:
        changes["uid"] = wanted.st_uid
    if fields.update_gid:
        changes["gid"] = wanted.st_gid
    if fields.update_atime:
        changes["atime_ns"] = storable_ns(wanted.st_atime_ns)
    if fields.update_mtime:
        changes["mtime_ns"] = storable_ns(wanted.st_mtime_ns)
        if inode.atime_ns is None and not fields.update_atime:
            changes["atime_ns"] = inode.mtime_ns
    return changes
