"""A process that reads files and times each, started by :mod:`latentfs.bench.readers`.

Jobs come as packets on the socket that is its standard input, which it shares with other readers:
whoever is free takes the next.  A job is JSON::

    {"paths": [...], "for_s": seconds, "pause_s": seconds}

Read the files in turn, each once, and go on so until *for_s* have passed.  When the socket ends,
this goes to standard output::

    {"readings": [[path, start_s, end_s, size_bytes], ...], "error": text or null}

Times are of the system's monotonic clock, so those of several readers can be compared.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import sys
import time
from typing import Any

_PACKET_BYTES_MAX = 1 << 18
_READ_BYTES = 1 << 17

_Reading = tuple[str, float, float, int]


def read_cold(path: str) -> _Reading:
    """Read the whole file, its pages dropped from the kernel's cache before the clock starts.

    Raises:
        OSError: it can't be read, or is not as long as it says.
    """
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    start_s = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    try:
        size_bytes = 0
        while piece := os.read(fd, _READ_BYTES):
            size_bytes += len(piece)
        end_s = time.perf_counter()
        expected_bytes = os.fstat(fd).st_size
    finally:
        os.close(fd)
    if size_bytes != expected_bytes:
        raise OSError(0, f"gave {size_bytes} bytes instead of {expected_bytes}", path)
    return path, start_s, end_s, size_bytes


def _work(job: dict[str, Any], readings: list[_Reading]) -> None:
    until_s = time.perf_counter() + job["for_s"]
    for count, path in enumerate(itertools.cycle(job["paths"])):
        if count >= len(job["paths"]) and time.perf_counter() >= until_s:
            return
        readings.append(read_cold(path))
        time.sleep(job["pause_s"])


def main() -> None:
    jobs = socket.socket(fileno=os.dup(0))
    print("ready", flush=True)
    readings: list[_Reading] = []
    error = None
    try:
        while packet := jobs.recv(_PACKET_BYTES_MAX):
            _work(json.loads(packet), readings)
    except OSError as failed:
        error = f"{failed.filename}: {failed.strerror}"
    json.dump({"readings": readings, "error": error}, sys.stdout)


if __name__ == "__main__":
    main()
