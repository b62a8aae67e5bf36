"""The filesystem: what the kernel asks, handed to those who know.

Rules:

* Everything runs on the trio thread.  Lookups, attributes and directories come straight from LMDB:
  a read of the memory map costs far less than a thread hop.
* Only reading and writing pictures wait for a rendition; changes wait at most for their turn to
  change the store, and ``fsync`` for the disk.
* No exception but ``FUSEError`` ever leaves a handler: pyfuse3 would end the whole mount.
* All changes come through the kernel, or are announced to it, so it may keep what it was told.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, RequestContext

from latentfs.errors import LatentfsError
from latentfs.fs import attributes
from latentfs.fs.directories import Directories
from latentfs.fs.extended_attributes import ExtendedAttributes
from latentfs.fs.guard import guarded
from latentfs.fs.names import Names
from latentfs.fs.open_files import OpenFiles, OpenFileStatistics
from latentfs.fs.open_inodes import OpenInodes, require
from latentfs.fs.prefetch import SequenceDetector
from latentfs.fs.renditions import Renditions
from latentfs.store.live_store import LiveStore
from latentfs.telemetry.activity import Activity

__all__ = ["LatentOperations", "OperationStatistics"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class OperationStatistics:
    """Counters since the mount; *errors_total* counts requests answered with EIO."""

    files: OpenFileStatistics
    errors_total: int


class LatentOperations(pyfuse3.Operations):
    """The handlers of one mount.

    Args:
        ahead_bytes: asked each time for what files that are rendered ahead from one file may have.

    Attributes:
        activity: counts and times of what is asked for.
        on_finished: called with each file that was written and closed, or renamed; and with the
            inode that a renamed one took the place of, if any, which stays until it is given to
            :meth:`release_replaced`.
        on_vae_named: called when a folder has got another VAE.
    """

    supports_dot_lookup = False
    enable_writeback_cache = False

    def __init__(
        self,
        store: LiveStore,
        renditions: Renditions,
        detector: SequenceDetector,
        *,
        ahead_bytes: Callable[[], int],
    ) -> None:
        super().__init__()
        self.activity = Activity()
        self.operation_done = self.activity.operation_done
        self.on_finished: Callable[[int, int | None], None] | None = None
        self.on_vae_named: Callable[[], None] | None = None
        handles = itertools.count(1)
        open_inodes = OpenInodes(store)
        self._store = store
        self._open_inodes = open_inodes
        self._names = Names(store, open_inodes, detector, on_renamed=self._renamed)
        self._directories = Directories(store, open_inodes, detector, handles)
        self._xattrs = ExtendedAttributes(store, on_vae_named=self._vae_named)
        self._files = OpenFiles(
            store,
            renditions,
            open_inodes,
            detector,
            handles,
            self.activity,
            ahead_bytes=ahead_bytes,
            on_written=self._finished,
        )
        self.name_of = self._names.name_of
        self.is_being_written = self._files.is_being_written
        self._errors_total = 0

    def statistics(self) -> OperationStatistics:
        return OperationStatistics(self._files.statistics(), self._errors_total)

    def count_error(self) -> None:
        self._errors_total += 1

    def _finished(self, ino: int) -> None:
        if self.on_finished is not None:
            self.on_finished(ino, None)

    def _vae_named(self) -> None:
        if self.on_vae_named is not None:
            self.on_vae_named()

    def _renamed(self, ino: int, replaced_ino: int | None) -> None:
        if self.on_finished is None:
            return
        if replaced_ino is not None and not self._may_be_copied_from(replaced_ino):
            replaced_ino = None
        if replaced_ino is not None:
            self._open_inodes.opened(replaced_ino)
        self.on_finished(ino, replaced_ino)

    def _may_be_copied_from(self, ino: int) -> bool:
        """Whether what replaces a file may be a copy of it, so that it can't be let go yet."""
        with self._store.read() as snapshot:
            inode = snapshot.inode(ino)
        return inode is not None and (inode.content is not None or inode.latent_file is not None)

    async def release_replaced(self, ino: int) -> None:
        """Let an inode go that *on_finished* was told of as replaced."""
        await self._open_inodes.closed(ino)

    async def let_go(self, ino: int) -> None:
        """Discard an inode that lost its last name without the kernel having asked for that.

        One that is open goes when it is closed.  The kernel may know it for a second more, and then
        finds it gone.
        """
        self._open_inodes.orphaned(ino)
        await self._open_inodes.forgotten(ino)

    async def removed_elsewhere(self, ino: int) -> None:
        """Let an inode go from which another process has taken a name, if that was its last.

        Not what this mount has removed, and waits for the kernel to forget.  Nothing but
        cancellation leaves this: what is left behind is removed by the next mount.
        """
        with self._without_failing(ino):
            with self._store.read() as snapshot:
                inode = snapshot.inode(ino)
            is_orphan = inode is not None and inode.nlink == 0
            if is_orphan and not self._open_inodes.keeps(ino):
                await self.let_go(ino)

    # Names

    @guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        return self._names.lookup(parent_inode, name)

    @guarded
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        return await self._names.make(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode), ctx)

    @guarded
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        return await self._names.make(parent_inode, name, mode, ctx, rdev=rdev)

    @guarded
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return await self._names.make(parent_inode, name, mode, ctx, target=target)

    @guarded
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        return await self._names.link(inode, new_parent_inode, new_name)

    @guarded
    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._names.remove(parent_inode, name, directory=False)

    @guarded
    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._names.remove(parent_inode, name, directory=True)

    @guarded
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self._names.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @guarded
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel counts its references itself and forgets an inode with the last of them.

        Nothing may leave this handler: unlike all others it has no answer, and pyfuse3 would end
        the mount.  What is left behind is removed by the next mount.
        """
        for inode, _ in inode_list:
            with self._without_failing(inode):
                await self._open_inodes.forgotten(inode)

    @contextlib.contextmanager
    def _without_failing(self, ino: int) -> Iterator[None]:
        try:
            yield
        except LatentfsError as error:
            self.count_error()
            log.error("inode %d, which has no links, can't be removed: %s", ino, error)
        except Exception:
            self.count_error()
            log.exception("inode %d, which has no links, can't be removed", ino)

    # Attributes

    @guarded
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        with self._store.read() as snapshot:
            return attributes.entry(inode, require(snapshot, inode))

    @guarded
    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        return await self._files.set_attributes(inode, attr, fields, ctx)

    @guarded
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        with self._store.read() as snapshot:
            return require(snapshot, inode).target

    @guarded
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return self._xattrs.get(inode, name)

    @guarded
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        return self._xattrs.names(inode)

    @guarded
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self._xattrs.set(inode, name, value)

    @guarded
    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._xattrs.remove(inode, name)

    @guarded
    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        with self._store.read() as snapshot:
            totals = snapshot.totals()
        return attributes.filesystem(self._store.space(), totals)

    # Directories

    @guarded
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self._directories.open(inode)

    @guarded
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        self._directories.list(fh, start_id, token)

    @guarded
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._store.sync()

    @guarded
    async def releasedir(self, fh: int) -> None:
        await self._directories.close(fh)

    # Files

    @guarded
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        mode = stat.S_IFREG | stat.S_IMODE(mode)
        entry = await self._names.make(parent_inode, name, mode, ctx)
        with self._store.read() as snapshot:
            handle = self._files.opened(entry.st_ino, require(snapshot, entry.st_ino), flags, ctx)
        return FileInfo(fh=handle, keep_cache=True), entry

    @guarded
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return FileInfo(fh=await self._files.open(inode, flags, ctx), keep_cache=True)

    @guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._files.read(fh, off, size)

    @guarded
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._files.write(fh, off, buf)

    @guarded
    async def flush(self, fh: int) -> None:
        self._files.closing(fh)

    @guarded
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._store.sync()

    @guarded
    async def release(self, fh: int) -> None:
        await self._files.close(fh)
