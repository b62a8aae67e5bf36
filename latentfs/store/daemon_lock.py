"""One daemon per store: the lock that a mount holds for as long as it lives."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from latentfs.errors import StoreLockedError
from latentfs.store.owned_files import open_file

__all__ = ["DaemonLock"]

_LOOK_S = 0.2
_POLL_S = 0.005


class DaemonLock:
    """An exclusive lock on a store's ``daemon.lock``, freed by the kernel when the holder dies.

    The file says who holds it (process id and mount point), for messages only.
    """

    def __init__(self, store_path: Path) -> None:
        self._path = store_path / "daemon.lock"
        self._fd: int | None = None

    def acquire(self, *, mountpoint: Path) -> None:
        """Take the lock, as the daemon of *mountpoint*; waits for no other daemon.

        Raises:
            StoreLockedError: another daemon has the store mounted, or a command keeps it unmounted.
        """
        self._acquire(f"mounted on {mountpoint}")

    @contextlib.contextmanager
    def held_by(self, command: str) -> Iterator[None]:
        """Keep the store unmounted while *command* works on it.

        Raises:
            StoreLockedError: as :meth:`acquire`.
        """
        self._acquire(f"latentfs {command}")
        try:
            yield
        finally:
            self.release()

    def _acquire(self, use: str) -> None:
        fd = self._open()
        if fd is None:
            return
        if not _taken_soon(fd):
            holder = _said(fd)
            os.close(fd)
            raise StoreLockedError(self._refusal(holder))
        self._fd = fd
        holder = f"process {os.getpid()}, {use}\n"
        with contextlib.suppress(OSError):  # a full disk, or one that is only read: just messages
            os.ftruncate(fd, 0)
            os.pwrite(fd, holder.encode("utf-8", "backslashreplace"), 0)

    def _open(self) -> int | None:
        """Open the file; return None if there is none, and none can be made, where none is needed.

        On a read-only file system nobody changes the store.  A file that is there is locked all
        the same, for others that may see the store where it can be written.
        """
        try:
            return open_file(self._path)
        except OSError as error:
            if error.errno != errno.EROFS:
                raise
        with contextlib.suppress(FileNotFoundError):
            return os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        return None

    def _refusal(self, holder: str) -> str:
        if _command_of(holder) is not None:
            return f"the store {self._path.parent} is in use ({holder}); let that end first"
        return (
            f"the store {self._path.parent} is mounted already ({holder}); unmount it with "
            "latentfs umount first"
        )

    def held_elsewhere(self) -> bool:
        """Whether a daemon or a command, in this or another process, holds the lock now."""
        return self._holder() is not None

    def is_mounted(self) -> bool:
        """Whether a daemon holds the lock now."""
        holder = self._holder()
        return holder is not None and _command_of(holder) is None

    def used_by(self) -> str | None:
        """Return the command that holds the lock now, and its process; None where none does."""
        holder = self._holder()
        return None if holder is None else _command_of(holder)

    def _holder(self) -> str | None:
        """Return what the holder says of itself; None where there is none."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _said(fd)
        finally:
            os.close(fd)
        return None

    def release(self) -> None:
        if self._fd is not None:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def _said(fd: int) -> str:
    return os.read(fd, 4096).decode("utf-8", "replace").strip() or "another process"


def _command_of(holder: str) -> str | None:
    """Return such as ``latentfs gc (process 7)``; None for a daemon."""
    process, _, use = holder.partition(", ")
    return f"{use} ({process})" if use.startswith("latentfs ") else None


def _taken_soon(fd: int) -> bool:
    """Take the lock; try for longer than others hold it who only look whether it is taken."""
    end_s = time.monotonic() + _LOOK_S
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end_s:
                return False
            time.sleep(_POLL_S)
        else:
            return True
