"""One zlib stream made by several threads: the same bytes whatever the threads or their number."""

from __future__ import annotations

import functools
import itertools
import os
import struct
from concurrent.futures import ThreadPoolExecutor

from isal import isal_zlib

__all__ = ["deflated_in_strips"]

_HEADER = b"\x78\x01"
"""Deflate with a window of 32 KiB, no dictionary, the fastest level."""

_RAW_DEFLATE = -15
_STRIP_BYTES_MIN = 128 * 1024
"""Below that a thread costs more than it saves."""


def deflated_in_strips(data: memoryview, *, level: int, strips_max: int) -> bytes:
    """Return *data* as a zlib stream of up to *strips_max* equal strips, compressed at once.

    No strip refers back into the one before, which costs less than 0.1%.  How many there are
    depends on the length of *data* alone.

    Args:
        level: igzip's, 0 to 3.
    """
    strips = max(1, min(strips_max, len(data) // _STRIP_BYTES_MIN))
    ends = [len(data) * index // strips for index in range(strips + 1)]
    *others, last = (data[start:end] for start, end in itertools.pairwise(ends))
    pending = [_pool().submit(_deflated, strip, level, isal_zlib.Z_SYNC_FLUSH) for strip in others]
    end = _deflated(last, level, isal_zlib.Z_FINISH)
    checksum = struct.pack(">I", isal_zlib.adler32(data))
    return b"".join((_HEADER, *(strip.result() for strip in pending), end, checksum))


@functools.cache
def _pool() -> ThreadPoolExecutor:
    """Threads for the strips of all pictures; none of them waits for another."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)), thread_name_prefix="deflate")


def _deflated(strip: memoryview, level: int, flush: int) -> bytes:
    compressor = isal_zlib.compressobj(level, isal_zlib.DEFLATED, _RAW_DEFLATE)
    return compressor.compress(strip) + compressor.flush(flush)
