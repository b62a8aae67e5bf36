"""File operations to be done in two directories alike, and all that programs can see of them."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from latentfs.store.tables import CHUNK_BYTES

__all__ = [
    "FAR_OFFSETS",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "Call",
    "Place",
    "data_of",
    "difference",
    "rename_with_flags",
]

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
# Behind what a test can read as a whole.
FAR_OFFSETS = (2**31 + 1, 2**40 + CHUNK_BYTES - 3)

_AT_FDCWD = -100
_libc = ctypes.CDLL(None, use_errno=True)
_NOISE = random.Random(0).randbytes(1 << 20)
_DAY_NS = 24 * 3600 * 10**9
_WHOLE_BYTES_MAX = 4 << 20
_WINDOW_BYTES = 512 << 10
# Never open, and not negative: for that os.fsync has a ValueError.
_CLOSED_FD = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a method of :class:`Place`.

    Attributes:
        paths: its leading arguments, as many as the method has; looked at afterwards.
        arguments: the others.
    """

    method: str
    paths: tuple[bytes, ...] = ()
    arguments: tuple[object, ...] = ()

    def __repr__(self) -> str:
        return f"{self.method}({', '.join(map(repr, (*self.paths, *self.arguments)))})"


def data_of(seed: int, size_bytes: int) -> bytes:
    """Return bytes that differ by *seed*: noise, and for even seeds what can be compressed."""
    if seed % 2 == 0:
        return b"%08d" % seed * (size_bytes // 8) + b"." * (size_bytes % 8)
    return _NOISE[seed * 1000 : seed * 1000 + size_bytes]


def rename_with_flags(source: bytes, target: bytes, flags: int) -> None:
    """``renameat2``.

    Raises:
        OSError: as the call ends.
    """
    if _libc.renameat2(_AT_FDCWD, source, _AT_FDCWD, target, flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), source, None, target)


@dataclass(slots=True)
class Place:
    """A directory to do operations in.

    Paths are relative to it.  The methods do one thing each, raise ``OSError`` as it ends, and
    return what can be compared with another place.
    """

    root: bytes
    _handles: dict[int, int] = field(default_factory=dict)

    def outcome(self, call: Call) -> object:
        """Do it; return the result or the errno's name, and how its paths are then."""
        result: object
        try:
            result = getattr(self, call.method)(*call.paths, *call.arguments)
        except OSError as error:
            result = _name_of(error)
        return result, [self._attributes_or_errno(path) for path in _with_parents(call.paths)]

    def close_all(self) -> None:
        for slot in list(self._handles):
            self.close(slot)

    def tree(self) -> dict[bytes, object]:
        """Return all that is in the place, by path."""
        first_names: dict[int, bytes] = {}
        found: dict[bytes, object] = {}
        for path in self._walk(b"."):
            ino = os.lstat(self._at(path)).st_ino
            first_name = first_names.setdefault(ino, path)
            found[path] = (first_name, self.lstat(path), self._holds(path))
        return found

    def _walk(self, directory: bytes) -> Iterator[bytes]:
        yield directory
        for name in sorted(os.listdir(self._at(directory))):
            path = os.path.join(directory, name)
            if stat.S_ISDIR(os.lstat(self._at(path)).st_mode):
                yield from self._walk(path)
            else:
                yield path

    def _holds(self, path: bytes) -> object:
        mode = os.lstat(self._at(path)).st_mode
        if stat.S_ISLNK(mode):
            return self.readlink(path)
        names = os.listxattr(self._at(path)) if stat.S_ISREG(mode) or stat.S_ISDIR(mode) else []
        xattrs = {name: os.getxattr(self._at(path), name) for name in names}
        return xattrs, self.read_file(path) if stat.S_ISREG(mode) else None

    # Attributes

    def _at(self, path: bytes) -> bytes:
        return os.path.join(self.root, path)

    def lstat(self, path: bytes) -> object:
        return _attributes(os.lstat(self._at(path)))

    def stat(self, path: bytes) -> object:
        return _attributes(os.stat(self._at(path)))

    def _attributes_or_errno(self, path: bytes) -> object:
        try:
            return self.lstat(path)
        except OSError as error:
            return _name_of(error)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def lchown(self, path: bytes, uid: int, gid: int) -> None:
        os.lchown(self._at(path), uid, gid)

    def set_times(self, path: bytes, atime_ns: int, mtime_ns: int) -> object:
        # Looked at past the path: a plain folder notes when a link in it was followed.
        fd = os.open(self._at(path), os.O_PATH | os.O_NOFOLLOW)
        try:
            os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)
            status = os.fstat(fd)
        finally:
            os.close(fd)
        return status.st_atime_ns, status.st_mtime_ns

    def set_times_to_now(self, path: bytes) -> None:
        os.utime(self._at(path))

    def set_xattr(self, path: bytes, name: str, value: bytes, flags: int) -> None:
        os.setxattr(self._at(path), name, value, flags)

    def get_xattr(self, path: bytes, name: str) -> object:
        return os.getxattr(self._at(path), name)

    def list_xattrs(self, path: bytes) -> object:
        return sorted(os.listxattr(self._at(path)))

    def remove_xattr(self, path: bytes, name: str) -> None:
        os.removexattr(self._at(path), name)

    # Names

    def mkdir(self, path: bytes, mode: int) -> None:
        os.mkdir(self._at(path), mode)

    def mknod(self, path: bytes, mode: int) -> None:
        os.mknod(self._at(path), mode)

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._at(path))

    def unlink(self, path: bytes) -> None:
        os.unlink(self._at(path))

    def link(self, source: bytes, target: bytes) -> None:
        os.link(self._at(source), self._at(target), follow_symlinks=False)

    def symlink(self, path: bytes, target: bytes) -> None:
        os.symlink(target, self._at(path))

    def readlink(self, path: bytes) -> object:
        return os.readlink(self._at(path))

    def rename(self, source: bytes, target: bytes, flags: int) -> None:
        rename_with_flags(self._at(source), self._at(target), flags)

    def list_directory(self, path: bytes) -> object:
        with os.scandir(self._at(path)) as entries:
            return sorted(
                (entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink())
                for entry in entries
            )

    # Bytes by path

    def truncate(self, path: bytes, size_bytes: int) -> None:
        os.truncate(self._at(path), size_bytes)

    def read_file(self, path: bytes) -> object:
        """Return the bytes of a file; of one with far holes those around where tests write."""
        fd = os.open(self._at(path), os.O_RDONLY | os.O_NONBLOCK)
        try:
            size_bytes = os.fstat(fd).st_size
            if size_bytes <= _WHOLE_BYTES_MAX:
                return os.pread(fd, _WHOLE_BYTES_MAX, 0)
            starts = (
                0,
                size_bytes - _WINDOW_BYTES,
                *(far - _WINDOW_BYTES // 2 for far in FAR_OFFSETS),
            )
            return [os.pread(fd, _WINDOW_BYTES, start) for start in starts]
        finally:
            os.close(fd)

    # Open files

    def open(self, path: bytes, slot: int, flags: int, mode: int) -> object:
        """Open a file as number *slot*, in the place of the one opened before."""
        fd = os.open(self._at(path), flags | os.O_NONBLOCK | os.O_CLOEXEC, mode)
        self.close(slot)
        self._handles[slot] = fd
        return self.fstat(slot)

    def close(self, slot: int) -> None:
        if slot in self._handles:
            os.close(self._handles.pop(slot))

    def _fd(self, slot: int) -> int:
        return self._handles.get(slot, _CLOSED_FD)

    def fstat(self, slot: int) -> object:
        return _attributes(os.fstat(self._fd(slot)))

    def pread(self, slot: int, offset: int, size_bytes: int) -> object:
        return os.pread(self._fd(slot), size_bytes, offset)

    def pwrite(self, slot: int, offset: int, seed: int, size_bytes: int) -> object:
        return os.pwrite(self._fd(slot), data_of(seed, size_bytes), offset), self.fstat(slot)

    def write(self, slot: int, seed: int, size_bytes: int) -> object:
        """Write where the handle is; at the end, if it was opened for appending."""
        return os.write(self._fd(slot), data_of(seed, size_bytes)), self.fstat(slot)

    def ftruncate(self, slot: int, size_bytes: int) -> object:
        os.ftruncate(self._fd(slot), size_bytes)
        return self.fstat(slot)

    def fchmod(self, slot: int, mode: int) -> object:
        os.fchmod(self._fd(slot), mode)
        return self.fstat(slot)

    def fsync(self, slot: int) -> None:
        os.fsync(self._fd(slot))

    def list_open_directory(self, slot: int) -> object:
        return sorted(os.listdir(self._fd(slot)))


def _attributes(status: os.stat_result) -> object:
    """What has to be equal; times that nobody set, and sizes of directories, have not."""
    return {
        "mode": oct(status.st_mode),
        "nlink": status.st_nlink,
        "owner": (status.st_uid, status.st_gid),
        "size": None if stat.S_ISDIR(status.st_mode) else status.st_size,
        # The kernel doesn't tell a FUSE file system of writes into a fifo.
        "mtime": None if stat.S_ISFIFO(status.st_mode) else _unless_recent(status.st_mtime_ns),
        "ctime": _unless_recent(status.st_ctime_ns),
    }


def _unless_recent(time_ns: int) -> int | None:
    return None if abs(time.time_ns() - time_ns) < _DAY_NS else time_ns


def _name_of(error: OSError) -> str:
    return errno.errorcode.get(error.errno or 0, repr(error))


def _with_parents(paths: tuple[bytes, ...]) -> list[bytes]:
    return [each for path in paths for each in (path, os.path.dirname(path) or b".")]


def difference(left: object, right: object) -> str:
    """Say in a few lines how two outcomes or trees differ."""
    if not isinstance(left, dict) or not isinstance(right, dict):
        return f"{_shown(left)}\n{_shown(right)}"
    keys = sorted(key for key in {*left, *right} if left.get(key) != right.get(key))
    return "\n".join(f"{key}:\n{_shown(left.get(key))}\n{_shown(right.get(key))}" for key in keys)


def _shown(value: object) -> str:
    match value:
        case bytes() if len(value) > 64:
            digest = hashlib.blake2b(value, digest_size=4).hexdigest()
            return f"<{len(value)} bytes from {value[:8].hex()} to {value[-8:].hex()}, {digest}>"
        case tuple() | list():
            return f"({', '.join(map(_shown, value))})"
        case dict():
            return f"{{{', '.join(f'{key!r}: {_shown(item)}' for key, item in value.items())}}}"
        case _:
            return repr(value)
