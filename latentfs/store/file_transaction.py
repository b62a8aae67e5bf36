"""What programs change through a mount: entries, links, attributes and the bytes of files."""

from __future__ import annotations

import errno
import time
from itertools import islice

import msgspec

from latentfs.errors import RefusedChangeError
from latentfs.store import chunks, tables
from latentfs.store.records import Inode, LatentContent, LatentFileContent
from latentfs.store.rows import Rows
from latentfs.store.transaction import Transaction

__all__ = ["FileTransaction"]

_XATTR_BYTES_MAX = 64 * 1024


class FileTransaction(Transaction):
    """A change made through a mount; made by :meth:`latentfs.store.live_store.LiveStore.change`.

    Each method checks before it changes anything.  What POSIX forbids is a ``RefusedChangeError``
    with its errno; permissions are the kernel's to check.  The kernel of the mount knows of these
    changes, so nothing is announced to it, unless they are *announced* because nobody asked the
    kernel for them.
    """

    def __init__(self, rows: Rows, *, announced: bool = False) -> None:
        super().__init__(rows)
        self._announced = announced

    def finish(self) -> None:
        if self._announced:
            super().finish()
        else:
            self.finish_totals()

    # Entries

    def make(self, parent_ino: int, name: bytes, inode: Inode) -> int:
        """Make *inode*, of any type, under a *name* that must be free; return its number."""
        parent = self._directory_for_entry(parent_ino, name)
        if self.lookup(parent_ino, name) is not None:
            raise RefusedChangeError(errno.EEXIST, "the name exists already")
        ino = self._next(b"next_ino")
        self.put_inode(ino, inode)
        self._put_entry(parent_ino, name, ino)
        self._touch(parent_ino, parent, links=int(inode.is_directory))
        if inode.is_directory:
            self._totals = self._totals.plus(directories=1)
        else:
            self._totals = self._totals.plus(files=1, size_bytes=inode.size_bytes)
        return ino

    def link(self, ino: int, parent_ino: int, name: bytes) -> Inode:
        """Give a file another *name*; return its inode as it is then."""
        parent = self._directory_for_entry(parent_ino, name)
        inode = self.require(ino)
        if inode.is_directory:
            raise RefusedChangeError(errno.EPERM, "a folder can't have two names")
        if self.lookup(parent_ino, name) is not None:
            raise RefusedChangeError(errno.EEXIST, "the name exists already")
        if inode.nlink == 0:
            raise RefusedChangeError(errno.ENOENT, "the file was removed")
        self._put_entry(parent_ino, name, ino)
        self._touch(parent_ino, parent)
        return self.update(ino, inode, nlink=inode.nlink + 1)

    def remove_entry(self, parent_ino: int, name: bytes, *, directory: bool) -> tuple[int, bool]:
        """Remove the entry *name* of a directory, or of anything else.

        Returns:
            The inode number, and whether that was its last link: it is an orphan then, to be
            discarded when nobody has it open any more.
        """
        parent = self.require(parent_ino)
        ino, inode = self._child(parent_ino, name)
        if directory and not inode.is_directory:
            raise RefusedChangeError(errno.ENOTDIR, "it is no folder")
        if not directory and inode.is_directory:
            raise RefusedChangeError(errno.EISDIR, "it is a folder")
        self._check_replaceable(ino, inode)
        self._rows.delete("dentries", tables.dentry_key(parent_ino, name))
        self._removed.append((parent_ino, name, ino))
        self._attributes |= {parent_ino, ino}
        self._touch(parent_ino, parent, links=-int(inode.is_directory))
        return ino, self._unlink(ino, inode)

    def rename(
        self,
        parent_ino: int,
        name: bytes,
        new_parent_ino: int,
        new_name: bytes,
        *,
        may_replace: bool,
    ) -> int | None:
        """Move an entry; return the inode that has lost its last link by that, if any."""
        self._directory_for_entry(new_parent_ino, new_name)
        ino, inode = self._child(parent_ino, name)
        replaced_ino = self.lookup(new_parent_ino, new_name)
        orphan = None
        if replaced_ino is not None:
            if not may_replace:
                raise RefusedChangeError(errno.EEXIST, "the name exists already")
            if replaced_ino == ino:
                return None
        self._check_not_below(ino, inode, new_parent_ino)
        if replaced_ino is not None:
            replaced = self.require(replaced_ino)
            if inode.is_directory and not replaced.is_directory:
                raise RefusedChangeError(errno.ENOTDIR, "it is no folder")
            if replaced.is_directory and not inode.is_directory:
                raise RefusedChangeError(errno.EISDIR, "it is a folder")
            self._check_replaceable(replaced_ino, replaced)
            if self._unlink(replaced_ino, replaced):
                orphan = replaced_ino
            self._touch(
                new_parent_ino, self.require(new_parent_ino), links=-int(replaced.is_directory)
            )
        self._rows.delete("dentries", tables.dentry_key(parent_ino, name))
        self._put_entry(new_parent_ino, new_name, ino)
        self._moved(ino, inode, parent_ino, new_parent_ino)
        return orphan

    def exchange(
        self, parent_ino: int, name: bytes, other_parent_ino: int, other_name: bytes
    ) -> None:
        """Let two entries, of any type, change places."""
        ino, inode = self._child(parent_ino, name)
        other_ino, other = self._child(other_parent_ino, other_name)
        if ino == other_ino:
            return
        self._check_not_below(ino, inode, other_parent_ino)
        self._check_not_below(other_ino, other, parent_ino)
        self._put_entry(parent_ino, name, other_ino)
        self._put_entry(other_parent_ino, other_name, ino)
        self._moved(ino, inode, parent_ino, other_parent_ino)
        self._moved(other_ino, other, other_parent_ino, parent_ino)

    def _child(self, parent_ino: int, name: bytes) -> tuple[int, Inode]:
        ino = self.lookup(parent_ino, name)
        if ino is None:
            raise RefusedChangeError(errno.ENOENT, "the name doesn't exist")
        return ino, self.require(ino)

    def _directory_for_entry(self, ino: int, name: bytes) -> Inode:
        """Return the directory *ino*, into which an entry *name* may be put."""
        if not name:
            raise RefusedChangeError(errno.ENOENT, "the name is empty")
        if len(name) > tables.NAME_BYTES_MAX:
            raise RefusedChangeError(
                errno.ENAMETOOLONG, f"the name has more than {tables.NAME_BYTES_MAX} bytes"
            )
        directory = self.require(ino)
        if not directory.is_directory:
            raise RefusedChangeError(errno.ENOTDIR, "its parent is no folder")
        if directory.nlink == 0:
            raise RefusedChangeError(errno.ENOENT, "its folder was removed")
        return directory

    def _check_replaceable(self, ino: int, inode: Inode) -> None:
        if inode.is_directory and next(self.entries(ino), None) is not None:
            raise RefusedChangeError(errno.ENOTEMPTY, "the folder isn't empty")

    def _check_not_below(self, ino: int, inode: Inode, folder_ino: int) -> None:
        """Raise EINVAL if the directory *ino* is, or is above, the directory *folder_ino*."""
        if not inode.is_directory:
            return
        above = set()
        while folder_ino != tables.ROOT_INO and folder_ino not in above:
            if folder_ino == ino:
                raise RefusedChangeError(errno.EINVAL, "a folder can't be moved into itself")
            above.add(folder_ino)
            folder_ino = self.require(folder_ino).parent_ino

    def _put_entry(self, parent_ino: int, name: bytes, ino: int) -> None:
        self._put("dentries", tables.dentry_key(parent_ino, name), tables.ino_key(ino))

    def _touch(self, ino: int, directory: Inode, *, links: int = 0) -> None:
        now_ns = time.time_ns()
        self.update(ino, directory, nlink=directory.nlink + links, mtime_ns=now_ns)

    def _moved(self, ino: int, inode: Inode, from_ino: int, to_ino: int) -> None:
        """Count and date what changes where an inode has moved between two directories."""
        links = int(inode.is_directory)
        if from_ino == to_ino:
            links = 0
        self._touch(from_ino, self.require(from_ino), links=-links)
        self._touch(to_ino, self.require(to_ino), links=links)
        self.update(ino, inode, parent_ino=to_ino if inode.is_directory else 0)

    # Inodes

    def require(self, ino: int) -> Inode:
        inode = self.inode(ino)
        if inode is None:
            raise RefusedChangeError(errno.ESTALE, f"inode {ino} doesn't exist any more")
        return inode

    def update(self, ino: int, inode: Inode, **changes: object) -> Inode:
        """Store *inode* with *changes* and, unless among them, a new ctime; return it."""
        changed = msgspec.structs.replace(inode, **{"ctime_ns": time.time_ns(), **changes})
        self.put_inode(ino, changed)
        if changed.size_bytes != inode.size_bytes:
            self._totals = self._totals.plus(size_bytes=changed.size_bytes - inode.size_bytes)
        return changed

    def _unlink(self, ino: int, inode: Inode) -> bool:
        """Take a link away; return whether it was the last."""
        links = 0 if inode.is_directory else inode.nlink - 1
        self.update(ino, inode, nlink=links)
        if links == 0:
            self._put("catalog", tables.orphan_key(ino), b"")
        return links == 0

    # Bytes

    def write_bytes(self, ino: int, inode: Inode, *, offset: int, data: bytes) -> Inode:
        """Write into a file that is kept in chunks; return its inode as it is then."""
        added = chunks.write_chunks(self._rows, ino, offset=offset, data=data)
        now_ns = time.time_ns()
        return self.update(
            ino,
            inode,
            size_bytes=max(inode.size_bytes, offset + len(data)),
            chunks=inode.chunks + added,
            mtime_ns=now_ns,
            ctime_ns=now_ns,
        )

    def truncate(self, ino: int, inode: Inode, *, size_bytes: int) -> Inode:
        """Cut or lengthen a file that is kept in chunks; return its inode as it is then."""
        if size_bytes > chunks.FILE_BYTES_MAX:
            raise RefusedChangeError(
                errno.EFBIG, f"a file can't be longer than {chunks.FILE_BYTES_MAX} bytes"
            )
        removed = 0
        if size_bytes < inode.size_bytes and inode.chunks:
            removed = chunks.cut_chunks(self._rows, ino, size_bytes=size_bytes)
        now_ns = time.time_ns()
        return self.update(
            ino,
            inode,
            size_bytes=size_bytes,
            chunks=inode.chunks - removed,
            mtime_ns=now_ns,
            ctime_ns=now_ns,
        )

    def drop_some_chunks(self, ino: int, inode: Inode, *, first: int, count: int) -> int:
        """Remove up to *count* chunks of an orphan from index *first* on; return the next index."""
        indices = list(islice(chunks.chunk_indices(self._rows, ino, first=first), count))
        for index in indices:
            self._rows.delete("chunks", tables.chunk_key(ino, index))
        self.update(ino, inode, chunks=inode.chunks - len(indices))
        return indices[-1] + 1 if indices else first

    def make_chunked(self, ino: int, inode: Inode, data: bytes) -> Inode:
        """Keep a file byte for byte, as *data*, from now on; return its inode as it is then."""
        self.drop_content(ino, inode)
        added = chunks.write_chunks(self._rows, ino, offset=0, data=data)
        return self.update(
            ino, inode, content=None, latent_file=None, chunks=added, size_bytes=len(data)
        )

    def make_latent(
        self,
        ino: int,
        inode: Inode,
        content: LatentContent | LatentFileContent,
    ) -> None:
        """Keep a chunked file as *content* from now on, which stands for the same bytes.

        So nothing changes that can be seen of the file, its times least of all.
        """
        self.drop_content(ino, inode)
        if isinstance(content, LatentContent):
            changed = msgspec.structs.replace(inode, content=content, chunks=0)
        else:
            changed = msgspec.structs.replace(inode, latent_file=content, chunks=0)
        self._count_references(changed, +1)
        self.put_inode(ino, changed)

    # Extended attributes

    def set_xattr(self, ino: int, name: bytes, value: bytes) -> None:
        inode = self.require(ino)
        if len(value) > _XATTR_BYTES_MAX:
            raise RefusedChangeError(
                errno.E2BIG, f"the value has more than {_XATTR_BYTES_MAX} bytes"
            )
        self._put("xattrs", tables.xattr_key(ino, name), value)
        self.update(ino, inode)

    def note_xattr(self, ino: int, name: bytes, value: bytes | None) -> None:
        """Set, or with None remove, an attribute of our own; the file has not changed by that."""
        if value is None:
            self._rows.delete("xattrs", tables.xattr_key(ino, name))
        else:
            self._put("xattrs", tables.xattr_key(ino, name), value[:_XATTR_BYTES_MAX])

    def remove_xattr(self, ino: int, name: bytes) -> None:
        inode = self.require(ino)
        if not self._rows.delete("xattrs", tables.xattr_key(ino, name)):
            raise RefusedChangeError(errno.ENODATA, "the attribute is not set")
        self.update(ino, inode)
