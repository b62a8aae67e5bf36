"""The folder of a store that is being made: claimed by one process, and removed if it fails."""

from __future__ import annotations

import contextlib
import errno
import shutil
from pathlib import Path

import lmdb

from latentfs.errors import StoreError, StoreExistsError, StoreFullError
from latentfs.store.disk import is_full_disk
from latentfs.store.mark import MARK_NAME, NEW_MARK_NAME, is_marked
from latentfs.store.use_lock import UseLock

__all__ = ["PRIVATE_MODE", "claim_folder", "not_made", "remove_half_made"]

PRIVATE_MODE = 0o700
"""Of its folder: the database holds the bytes of files that a mount shows to some only."""
_WHY_NOT_MADE = {
    errno.EACCES: "this user may not write there; choose another folder, or run as one who may",
    errno.EROFS: "it would be on a read-only file system; choose another place",
}


def claim_folder(path: Path) -> tuple[UseLock, bool]:
    """Return the lock on the empty folder of a new store, and whether this has made the folder.

    Of all that find it empty one gets the lock.  So whatever is in it later was made by that one,
    which may remove it again.
    """
    try:
        made = _make_directory(path)
        use = UseLock(path, alone=True)
        try:
            _require_empty(path)
            use.share()
        except BaseException:
            use.release()
            raise
    except OSError as error:
        raise not_made(path, error) from error
    return use, made


def _make_directory(path: Path) -> bool:
    """Make the folder of a new store; return False where there is an empty one."""
    try:
        path.mkdir(PRIVATE_MODE, parents=True)
    except FileExistsError:
        _require_empty(path)
        return False
    return True


def _require_empty(path: Path) -> None:
    if not path.is_dir() or any(path.iterdir()):
        what = "a store" if is_marked(path) else "something"
        raise StoreExistsError(f"there is {what} at {path} already; choose another path")


def not_made(path: Path, error: OSError | lmdb.Error) -> StoreError:
    """Return what to raise where *error* has kept a store at *path* from being made."""
    if is_full_disk(error, path):
        return StoreFullError(f"no space left to make a store at {path}")
    known = _WHY_NOT_MADE.get(getattr(error, "errno", None) or 0)
    reason = known or f"{getattr(error, 'strerror', None) or error}; choose another place"
    return StoreError(f"can't make a store at {path}: {reason}")


def remove_half_made(path: Path, *, also_directory: bool) -> None:
    """Remove what was made of a store in its claimed folder, as far as that is possible."""
    for name in ("lmdb", "vae"):
        shutil.rmtree(path / name, ignore_errors=True)
    with contextlib.suppress(OSError):
        for name in (MARK_NAME, NEW_MARK_NAME, "writer.lock"):
            (path / name).unlink(missing_ok=True)
        if also_directory:
            path.rmdir()
