"""Open directories: listing them while they change."""

from __future__ import annotations

import errno
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import pyfuse3
from pyfuse3 import FUSEError

from latentfs.errors import StoreCorruptError
from latentfs.fs import attributes
from latentfs.fs.open_inodes import OpenInodes, require
from latentfs.fs.prefetch import SequenceDetector
from latentfs.store.live_store import LiveStore
from latentfs.store.snapshot import Snapshot

__all__ = ["Directories"]

log = logging.getLogger(__name__)

_OWN_NAMES = (b".", b"..")


@dataclass(frozen=True, slots=True)
class _OpenDirectory:
    """A handle.

    A listing goes on behind the name it had come to.  So each entry that stays in the directory
    is listed exactly once, whatever comes and goes beside it.

    Attributes:
        ino: of the directory.
        names: those listed last, by position behind ``.`` and ``..``; kept when the reader goes
            back, as it may return.
    """

    ino: int
    names: list[bytes] = field(default_factory=list)


class Directories:
    """The open directories of a mount."""

    def __init__(
        self,
        store: LiveStore,
        open_inodes: OpenInodes,
        detector: SequenceDetector,
        handles: itertools.count[int],
    ) -> None:
        self._store = store
        self._open_inodes = open_inodes
        self._detector = detector
        self._handles = handles
        self._directories: dict[int, _OpenDirectory] = {}

    def open(self, ino: int) -> int:
        with self._store.read() as snapshot:
            if not require(snapshot, ino).is_directory:
                raise FUSEError(errno.ENOTDIR)
        handle = next(self._handles)
        self._directories[handle] = _OpenDirectory(ino)
        self._open_inodes.opened(ino)
        return handle

    def list(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Reply with as many entries as fit, from the position *start_id* on."""
        directory = self._directories[fh]
        with self._store.read() as snapshot:
            for position, name, ino in self._entries(snapshot, directory, start_id):
                entry = self._entry(snapshot, directory, name, ino)
                if entry is None:
                    continue
                if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                    return
                if position >= len(_OWN_NAMES):
                    index = position - len(_OWN_NAMES)
                    directory.names[index : index + 1] = [name]

    def _entry(
        self, snapshot: Snapshot, directory: _OpenDirectory, name: bytes, ino: int
    ) -> pyfuse3.EntryAttributes | None:
        """Return what is listed; None where a name leads nowhere.

        A damaged record costs its own file: its neighbours are listed, and it is by its name.
        """
        try:
            inode = snapshot.inode(ino)
        except StoreCorruptError as error:
            log.warning("inode %d is listed without its attributes: %s", ino, error)
            return attributes.damaged_entry(ino)
        if inode is None:
            return None
        if inode.content is not None:
            self._detector.saw_name(ino, directory.ino, name)
        return attributes.entry(ino, inode)

    def _entries(
        self, snapshot: Snapshot, directory: _OpenDirectory, start_id: int
    ) -> Iterator[tuple[int, bytes, int]]:
        """Yield (position, name, ino) from a position on."""
        listed = min(max(0, start_id - len(_OWN_NAMES)), len(directory.names))
        if start_id < len(_OWN_NAMES):
            inode = require(snapshot, directory.ino)
            own = (directory.ino, inode.parent_ino)
            yield from ((i, _OWN_NAMES[i], own[i]) for i in range(start_id, len(_OWN_NAMES)))
        after = directory.names[listed - 1] if listed else b""
        entries = snapshot.entries(directory.ino, after=after)
        for position, (name, ino) in enumerate(entries, listed + len(_OWN_NAMES)):
            yield position, name, ino

    async def close(self, fh: int) -> None:
        directory = self._directories.pop(fh, None)
        if directory is not None:
            await self._open_inodes.closed(directory.ino)
