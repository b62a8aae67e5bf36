"""Writing below a folder, whatever links are there or come to be there.

Invariants: nothing is written outside of the folder, as no symbolic link below it is followed; and
a file has its name only when it is complete.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from latentfs.store.records import Inode

__all__ = ["Place", "make_link", "write_file"]

_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is to be written.

    Attributes:
        root: the folder that the user named; made if missing, links in its path are followed.
        names: of the folders below it, made if missing, and of the file.
    """

    root: Path
    names: tuple[str, ...]

    @property
    def path(self) -> Path:
        return self.root.joinpath(*self.names)

    def below(self, name: str) -> Place:
        return Place(self.root, (*self.names, name))


def write_file(place: Place, inode: Inode, fill: Callable[[BinaryIO], object]) -> None:
    """Write a file with the permissions and the time of *inode*; *fill* writes its bytes.

    Raises:
        OSError: it can't be written.  Nothing is left behind, as with any error of *fill*.
    """
    with (
        _new_entry(place) as (folder, name),
        os.fdopen(os.open(name, _NEW_FILE, 0o600, dir_fd=folder), "wb") as file,
    ):
        fill(file)
        file.flush()
        os.fchmod(file.fileno(), inode.mode & 0o777)
        os.utime(file.fileno(), ns=(inode.mtime_ns, inode.mtime_ns))


def make_link(place: Place, inode: Inode) -> None:
    """Make the symbolic link that *inode* is, with its time.  Where it leads does not matter.

    Raises:
        OSError: it can't be made.
    """
    with _new_entry(place) as (folder, name):
        os.symlink(inode.target, os.fsencode(name), dir_fd=folder)
        times = (inode.mtime_ns, inode.mtime_ns)
        os.utime(name, ns=times, dir_fd=folder, follow_symlinks=False)


@contextmanager
def _new_entry(place: Place) -> Iterator[tuple[int, str]]:
    """The folder and a name in it that nothing has; what is made there takes *place* at the end."""
    folder = _open_folder(place)
    temporary = f".latentfs-{secrets.token_hex(8)}"
    try:
        try:
            yield folder, temporary
            os.rename(temporary, place.names[-1], src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise
    finally:
        os.close(folder)


def _open_folder(place: Place) -> int:
    """Return a descriptor of the folder that the file belongs into."""
    place.root.mkdir(parents=True, exist_ok=True)
    folder = os.open(place.root, _FOLDER)
    for name in place.names[:-1]:
        try:
            below = _open_below(folder, name)
        finally:
            os.close(folder)
        folder = below
    return folder


def _open_below(folder: int, name: str) -> int:
    with suppress(FileNotFoundError):
        return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
    with suppress(FileExistsError):  # another file of the folder came first
        os.mkdir(name, dir_fd=folder)
    return os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
