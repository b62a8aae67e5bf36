"""Who reads, as far as the kernel tells: told from the process that opened a file."""

from __future__ import annotations

import os
from pathlib import Path

from latentfs.render.job_queue import Reader

__all__ = ["is_gone", "process_of", "reader_of"]

_PF_EXITING = 0x4


def reader_of(uid: int, pid: int) -> Reader:
    """Return the user and process group of a process.

    A shell's pipeline is one process group, and so is nginx with all its workers.  Where the
    process has ended, or is in another PID namespace (0), the user is all that is known.
    """
    try:
        return Reader(uid, os.getpgid(pid) if pid > 0 else 0)
    except OSError:
        return Reader(uid, 0)


def process_of(thread: int) -> int:
    """Return the process of a thread, which is what the kernel names; 0 where it can't be told."""
    try:
        status = Path(f"/proc/{thread}/status").read_bytes()
    except OSError:
        return 0
    _, _, rest = status.partition(b"\nTgid:")
    return int(rest.split(maxsplit=1)[0])


def is_gone(pid: int) -> bool:
    """Whether the process has ended or is just ending; False where it can't be told."""
    if pid <= 0:
        return False
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # before it was opened, or since
        return True
    except OSError:
        return False
    # The state follows the name, which stands in parentheses and may hold any characters.
    fields = status.rpartition(b")")[2].split()
    flags = int(fields[6])
    return fields[0] in (b"Z", b"X") or bool(flags & _PF_EXITING)
