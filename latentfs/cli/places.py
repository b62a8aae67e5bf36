"""What paths given by users stand for: a store, a mount of one, a file in either."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import click

from latentfs.errors import PathError, StoreNotFoundError
from latentfs.fs.mountpoint import (
    FILESYSTEM_TYPE,
    MountEntry,
    find_mount,
    mounts_of,
    resolve_mountpoint,
)
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.mark import is_marked

__all__ = ["PLACE", "FilePlace", "file_place", "store_of", "why_no_answer"]


class _Place(click.Path[Path]):
    """A path that is not looked at: what is mounted there may belong to a daemon that hangs."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Path:
        return Path(value)


PLACE = _Place()
"""Of arguments that may be mount points."""


@dataclass(frozen=True, slots=True)
class FilePlace:
    """Where a file is.

    Attributes:
        store: path of the store.
        inside: path of the file below the store's root, as the mount has it.
        mount: the mount that the path leads through; None where it names the store itself.
        path: of the file in that mount, no links to it in front; None likewise.
    """

    store: Path
    inside: bytes
    mount: MountEntry | None = None
    path: Path | None = None


def store_of(where: Path) -> Path:
    """Return the store that is at *where*, or mounted there, without touching what may hang.

    Raises:
        StoreNotFoundError: there is none.
    """
    mount = find_mount(where)
    if mount is not None and mount.type == FILESYSTEM_TYPE:
        return Path(mount.source)
    if mount is None and not is_marked(where):
        raise StoreNotFoundError(f"{where} is neither a latentfs store nor a mount point of one")
    return Path(os.path.abspath(where))


def why_no_answer(store: Path) -> str:
    """Return why no daemon of *store* answers, and what to do about it."""
    lock = DaemonLock(store)
    command = lock.used_by()
    if command is not None:
        return f"the store is not mounted, and in use by {command}"
    where = next((entry.mountpoint for entry in mounts_of(store)), None)
    if where is not None and os.statvfs(store).f_flag & os.ST_RDONLY:
        return (
            f"it is mounted on {where} from a read-only file system, where its daemon can't be "
            "asked for want of a socket"
        )
    if lock.is_mounted():
        return "the store is mounted, but its daemon does not answer"
    if where is not None:
        return (
            f"its daemon has died, and its mount {where} is stale; mount it there again, or run "
            f"latentfs umount {where}"
        )
    return "the store is not mounted"


def file_place(file: str) -> FilePlace:
    """Return where *file*, a path in a mount or ``STORE:/path``, is; it need not exist.

    Raises:
        PathError: it is neither.
    """
    absolute = Path(os.path.abspath(file))
    # As it is written first: finding out what links in it lead to asks a daemon that may hang.
    found = _in_mount(absolute) or _in_mount(resolve_mountpoint(absolute))
    if found is not None:
        return found
    store, colon, inside = file.partition(":/")
    if colon and is_marked(Path(store)):
        return FilePlace(Path(os.path.abspath(store)), os.fsencode(inside))
    raise PathError(
        "it is not in a mount of latentfs; name a file of a store that is not mounted as "
        "STORE:/path"
    )


def _in_mount(path: Path) -> FilePlace | None:
    """Return the place of a *path* below a mount point of ours, asking from the outside in."""
    for folder in (*reversed(path.parents), path):
        mount = find_mount(folder)
        if mount is not None and mount.type == FILESYSTEM_TYPE:
            inside = path.relative_to(folder)
            return FilePlace(
                Path(mount.source), os.fsencode(inside), mount, Path(mount.mountpoint) / inside
            )
    return None
