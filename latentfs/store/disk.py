"""What the disk below a store says: that it is full, and that it has kept an entry."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import lmdb

__all__ = ["is_full_disk", "sync_directory"]

_FULL_DISK_ERRNOS = {errno.ENOSPC, errno.EDQUOT}
_NEARLY_FULL_BYTES = 1 << 20


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
