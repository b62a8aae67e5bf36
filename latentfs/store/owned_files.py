"""Files that a store has beside what is in it, such as locks: whoever needs one first makes it."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = ["make_file", "open_file"]

_MODE = 0o644


def open_file(path: Path) -> int:
    """Open a file for reading and writing, made if it is missing; return its descriptor.

    Raises:
        OSError: it can't be opened or made, or is a symbolic link.
    """
    while True:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        with contextlib.suppress(FileExistsError):
            return make_file(path)


def make_file(path: Path) -> int:
    """Make a file, open for reading and writing; return its descriptor.

    What root makes in somebody's folder is given to that one, who could not open it otherwise, and
    with it the store.

    Raises:
        FileExistsError: something has that name, be it a link that leads nowhere.
        OSError: it can't be made.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # root may lack that right, as in a service
            folder = path.parent.stat()
            if folder.st_uid != 0:
                os.fchown(fd, folder.st_uid, folder.st_gid)
    return fd
