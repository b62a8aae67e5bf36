"""``latentfs.toml``: the mark of a store, and the version of its format."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import tomli_w

from latentfs.errors import (
    StoreCorruptError,
    StoreError,
    StoreNotFoundError,
    StoreVersionError,
)
from latentfs.store.disk import sync_directory

__all__ = [
    "FORMAT_VERSION",
    "MARK_NAME",
    "NEW_MARK_NAME",
    "check_format_version",
    "is_marked",
    "newer_version",
    "new_mark",
    "write_mark",
]

FORMAT_VERSION = 1
MARK_NAME = "latentfs.toml"
NEW_MARK_NAME = f"{MARK_NAME}.new"


def is_marked(path: Path) -> bool:
    """Whether the folder *path* is a store."""
    return (path / MARK_NAME).exists()


def new_mark() -> bytes:
    """Return the mark of a store that this latentfs makes."""
    return tomli_w.dumps({"format_version": FORMAT_VERSION}).encode()


def write_mark(path: Path, mark: bytes) -> None:
    """Make the folder *path* a store, on disk when this returns: the last step of making one."""
    new = path / NEW_MARK_NAME
    with new.open("wb") as file:
        file.write(mark)
        file.flush()
        os.fsync(file.fileno())
    new.rename(path / MARK_NAME)
    sync_directory(path)
    sync_directory(path.parent)


def check_format_version(path: Path) -> None:
    """Make sure that *path* is a store that this latentfs can read.

    Raises:
        StoreNotFoundError: it is no store.
        StoreVersionError: it was written by a newer latentfs.
        StoreCorruptError: its mark can't be understood.
        StoreError: its mark can't be read.
    """
    mark = path / MARK_NAME
    try:
        fields = tomllib.loads(mark.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise StoreNotFoundError(
            f"there is no latentfs store at {path} (no {MARK_NAME} in it); "
            "make one with latentfs init"
        ) from None
    except OSError as error:
        raise StoreError(f"the store {path} can't be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StoreCorruptError(f"{mark} can't be read: {error}") from error
    version = fields.get("format_version")
    if type(version) is not int or version < 1:
        raise StoreCorruptError(f"{mark} has no format_version")
    if version > FORMAT_VERSION:
        raise newer_version("format", version, FORMAT_VERSION, path)


def newer_version(what: str, version: int, known: int, path: Path) -> StoreVersionError:
    """Return what to raise for *version* of *what*, of which only those up to *known* are known."""
    return StoreVersionError(
        f"the store {path} has {what} version {version}, this latentfs knows versions up to "
        f"{known}; use a newer latentfs"
    )
