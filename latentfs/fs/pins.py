"""The renditions that open files keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable

import trio

from latentfs.fs.open_file import OpenFile

__all__ = ["Pins"]

# Whoever reads on asks again before that, unless it waits for something slow.
_IDLE_S = 5.0


class Pins:
    """Lets handles in the middle of a file keep their rendition, as many as a budget has room for.

    Where it has none, those that were not read for a while lose theirs.  A handle that has just
    begun gets nothing rather than that of one that is read: readers in turns would take it from
    each other, and each read would be a render.

    Args:
        bytes_max: the budget.  Bytes that several handles share count once.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._files: dict[int, tuple[OpenFile, float]] = {}  # the one read longest ago first
        self._holders: Counter[int] = Counter()  # by the id of the bytes, which live as long
        self._held_bytes = 0

    @property
    def held_bytes(self) -> int:
        return self._held_bytes

    def pin(self, fh: int, file: OpenFile, rendition: bytes, rendition_of: Hashable) -> None:
        """Let the handle keep a rendition, if there is room for it."""
        self.unpin(fh)
        now_s = trio.current_time()
        new_bytes = 0 if id(rendition) in self._holders else len(rendition)
        if not self._has_room(new_bytes, now_s):
            return
        self._files[fh] = file, now_s
        self._holders[id(rendition)] += 1
        self._held_bytes += new_bytes
        file.rendition = rendition
        file.rendition_of = rendition_of

    def unpin(self, fh: int) -> None:
        """Take the handle's rendition away, if it has one."""
        file, _ = self._files.pop(fh, (None, 0.0))
        if file is None or file.rendition is None:
            return
        number = id(file.rendition)
        self._holders[number] -= 1
        if not self._holders[number]:
            del self._holders[number]
            self._held_bytes -= len(file.rendition)
        file.rendition = None

    def _has_room(self, new_bytes: int, now_s: float) -> bool:
        """Make room by taking from idle handles, if it must be; return whether there is enough."""
        while self._files and self._held_bytes + new_bytes > self._bytes_max:
            fh, (_, read_s) = next(iter(self._files.items()))
            if read_s > now_s - _IDLE_S:
                return False
            self.unpin(fh)
        return self._held_bytes + new_bytes <= self._bytes_max
