"""Copying a store as of one moment, while it is used."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latentfs.errors import (
    InvalidArgumentError,
    StoreError,
    StoreExistsError,
    StoreFullError,
    VaeCorruptError,
)
from latentfs.store.disk import is_full_disk, sync_directory
from latentfs.store.environment import rows_of_copy
from latentfs.store.mark import MARK_NAME, write_mark
from latentfs.store.new_folder import PRIVATE_MODE
from latentfs.store.records import Totals, VaeRecord
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store
from latentfs.store.vae_files import file_in, vae_folder, verify

__all__ = ["Backup", "back_up"]

_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Backup:
    """What was copied.

    Attributes:
        totals: of the copy.
        size_bytes: of its files.
        damaged: what is wrong with VAEs in it, as it is in the store.
    """

    totals: Totals
    size_bytes: int
    damaged: tuple[str, ...]


def back_up(store: Store, target: Path) -> Backup:
    """Copy *store*, as it is on disk now, to the new folder *target*, on disk when this returns.

    The folder is for its owner alone, whatever the mode of the store's.  The mark
    ``latentfs.toml`` is written last: half a copy is not taken for a store, and is removed unless
    this process is killed.  Changes go on meanwhile and wait for nothing.

    Raises:
        StoreExistsError: something is at *target*.
        InvalidArgumentError: *target* is in the store.
        StoreFullError, StoreError: it can't be written.
    """
    if os.path.lexists(target):
        raise StoreExistsError(f"there is something at {target} already; choose another path")
    if target.resolve().is_relative_to(store.path.resolve()):
        raise InvalidArgumentError(f"{target} is in the store {store.path}; choose another path")
    try:
        target.mkdir(PRIVATE_MODE, parents=True)
        try:
            return _copy(store, target)
        except BaseException:
            shutil.rmtree(target, ignore_errors=True)
            raise
    except OSError as error:
        kind = StoreFullError if is_full_disk(error, target.parent) else StoreError
        raise kind(f"can't copy the store {store.path} to {target}: {error}") from error


def _copy(store: Store, target: Path) -> Backup:
    database = target / "lmdb" / "data.mdb"
    database.parent.mkdir()
    store.copy_database(database)
    with rows_of_copy(database) as rows:
        snapshot = Snapshot(rows)
        totals = snapshot.totals()
        vaes = {vae.id: (name, vae) for name, vae in snapshot.vaes()}
    (target / "vae").mkdir()
    damaged = []
    for name, vae in vaes.values():
        try:
            _copy_vae(vae_folder(store.path, vae.id), vae_folder(target, vae.id), vae)
        except VaeCorruptError as error:
            damaged.append(f"VAE {name!r}: {error}")
    for folder in (target / "vae", database.parent, target):
        sync_directory(folder)
    write_mark(target, (store.path / MARK_NAME).read_bytes())
    size_bytes = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Backup(totals, size_bytes, tuple(damaged))


def _copy_vae(source: Path, target: Path, vae: VaeRecord) -> None:
    """Copy what can be read of a VAE's files, and see whether they are what was added.

    Raises:
        VaeCorruptError: they are not, or one can't be read; what can be is copied all the same.
    """
    target.mkdir()
    unread: VaeCorruptError | None = None
    for file in vae.files:
        try:
            _copy_file(file_in(source, file.name), file_in(target, file.name))
        except VaeCorruptError as error:
            unread = unread or error
    sync_directory(target)
    if unread is not None:
        raise unread
    verify(target, vae.files)


def _copy_file(source: Path, target: Path) -> None:
    """Copy a file of a VAE, on disk, or nothing of it if it can't be read to its end."""
    try:
        with target.open("wb") as file:
            for block in _blocks(source):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    except VaeCorruptError:
        target.unlink()
        raise


def _blocks(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file of the store, whose disk may be bad: that is no failure to copy."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise VaeCorruptError(f"VAE file {path} is no file; add the VAE again")
        with path.open("rb") as file:
            while block := file.read(_BLOCK_BYTES):
                yield block
    except OSError as error:
        raise VaeCorruptError(
            f"VAE file {path} can't be read ({error.strerror}); add the VAE again"
        ) from error
