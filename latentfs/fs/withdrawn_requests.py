"""Keeps the daemon from waiting for a request that the kernel has taken back.

pyfuse3 waits until /dev/fuse is readable, and then reads.  Between the two the kernel may withdraw
what there was to read: its caller was killed, or it was the interruption of a request that has been
answered meanwhile.  The read then waits, with Python's lock held, and the mount with it, until
somebody asks for something else.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

__all__ = ["interrupted_reads"]

_EVERY_S = 0.25


@contextlib.contextmanager
def interrupted_reads() -> Iterator[None]:
    """End reads of the main thread that wait, four times a second, while the block runs.

    By SIGALRM: a read that it ends is begun anew by who knows of EINTR, as pyfuse3 and Python do.
    Only for the main thread.
    """
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    signal.setitimer(signal.ITIMER_REAL, _EVERY_S, _EVERY_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
