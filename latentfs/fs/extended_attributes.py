"""Extended attributes: those that programs set, and those that tell of pictures."""

from __future__ import annotations

import errno
from collections.abc import Sequence

import pyfuse3
from pyfuse3 import FUSEError

from latentfs.fs import attributes
from latentfs.fs.attributes import XATTR_PREFIX
from latentfs.fs.open_inodes import require
from latentfs.store.live_store import LiveStore
from latentfs.store.tables import NAME_BYTES_MAX

__all__ = ["ExtendedAttributes"]

_KEPT = (b"user.", b"trusted.")


class ExtendedAttributes:
    """The extended attributes of all files of a mount."""

    def __init__(self, store: LiveStore) -> None:
        self._store = store

    def get(self, ino: int, name: bytes) -> bytes:
        _require_kept(name)
        with self._store.read() as snapshot:
            inode = require(snapshot, ino)
            value = attributes.xattr(snapshot, inode, name)
            if value is None:
                value = snapshot.xattr(ino, name)
        if value is None:
            raise FUSEError(pyfuse3.ENOATTR)
        return value

    def names(self, ino: int) -> Sequence[bytes]:
        with self._store.read() as snapshot:
            own = attributes.xattr_names(require(snapshot, ino))
            return [*own, *snapshot.xattr_names(ino)]

    async def set(self, ino: int, name: bytes, value: bytes) -> None:
        _require_settable(name)
        if len(name) > NAME_BYTES_MAX:
            raise FUSEError(errno.ERANGE)
        await self._store.may_change()
        with self._store.change(adds_bytes=len(name) + len(value)) as transaction:
            transaction.set_xattr(ino, name, value)

    async def remove(self, ino: int, name: bytes) -> None:
        _require_settable(name)
        await self._store.may_change()
        with self._store.change() as transaction:
            transaction.remove_xattr(ino, name)


def _require_kept(name: bytes) -> None:
    if not name.startswith(_KEPT):
        # Not "no such attribute" but "not supported": ls then asks for labels and ACLs once a file
        # system instead of twice a file.
        raise FUSEError(errno.ENOTSUP)


def _require_settable(name: bytes) -> None:
    _require_kept(name)
    if name.startswith(XATTR_PREFIX):
        raise FUSEError(errno.EPERM)
