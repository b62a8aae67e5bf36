"""What is known of one open file."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf

import trio

from latentfs.render.job_queue import Reader
from latentfs.store.records import Inode, LatentFileContent

__all__ = ["OpenFile"]


@dataclass(slots=True)
class OpenFile:
    """A handle.  It keeps its rendition from the first read to the last byte, not longer.

    So that one reader never sees two renders mixed.  Handles that are never read to the end keep
    theirs only as long as all such together stay within a budget.  A failure is remembered for a
    moment: the kernel asks again at once when its readahead fails, and the reader would wait for
    two deadlines instead of one.

    Attributes:
        inode: as it was when last looked at.
        reader: whose turn its renders take.
        opener_thread: the thread that opened it.
        opener_pid: its process, once a read has waited; 0 where that can't be told.
        writable: whether it was opened to be written.
        written: whether something was.
        asked: whether a read of it reached the daemon.
        shows_pixels: whether pixel data of a picture were asked for.
        rendition: of the content *rendition_of*.
        latent_file: what was read of the file, if it was a latent file.
        waiting: a scope for each read that waits; cancelled when nobody can take the answer.
    """

    ino: int
    inode: Inode
    reader: Reader
    opener_thread: int
    opener_pid: int | None = None
    writable: bool = False
    written: bool = False
    asked: bool = False
    shows_pixels: bool = False
    rendition: bytes | None = None
    rendition_of: Hashable = None
    latent_file: LatentFileContent | None = None
    failed_until_s: float = -inf
    waiting: set[trio.CancelScope] = field(default_factory=set)
