"""Reading files as a trace says: when each request is due, by several threads."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path

from latentfs.bench.trace import Trace
from latentfs.errors import InvalidArgumentError

__all__ = ["Replayed", "due_times", "find_pictures", "pictures_for", "replay"]

_SUFFIXES = (".png", ".jpg", ".jpeg")
_READ_BYTES = 256 << 10
_LEAD_S = 0.1
_WAIT_S_MAX = 3600.0
_END_S = 1.0


@dataclass(frozen=True, slots=True)
class Replayed:
    """Requests that were made.

    Attributes:
        latencies_s: from when each was due to its last byte, or to its error.
        services_s: the part of that since the file began to be opened, in the same order.
        errors: how many ended with each errno.
        read_bytes: of all.
        duration_s: from when the first was due to the end of the last.
        interrupted: whether there would have been more.
    """

    latencies_s: array[float]
    services_s: array[float]
    errors: Counter[int]
    read_bytes: int
    duration_s: float
    interrupted: bool


def due_times(trace: Trace, *, rate: float | None, speed: float) -> array[float]:
    """Return when each request is due, in seconds after the first.

    Args:
        rate: requests a second, evenly spaced; None for the times of the trace.
        speed: how many seconds of the trace pass in one; nothing changes where there is a rate.

    Raises:
        InvalidArgumentError: one of them is not a positive number.
    """
    for name, value in (("rate", rate), ("speed", speed)):
        if value is not None and not 0 < value < inf:
            raise InvalidArgumentError(f"the {name} {value:g} is not a positive number")
    if rate is not None:
        return array("d", (index / rate for index in range(len(trace))))
    start_s = trace.times_s[0]
    return array("d", ((time_s - start_s) / speed for time_s in trace.times_s))


def find_pictures(folder: Path) -> list[str]:
    """Return the paths of all pictures below *folder*, sorted.  Links are not followed.

    Raises:
        OSError: a folder can't be read.
    """
    return sorted(_walk(os.fspath(folder)))


def _walk(folder: str) -> Iterator[str]:
    folders = [folder]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.name.lower().endswith(_SUFFIXES) and entry.is_file(
                    follow_symlinks=False
                ):
                    yield entry.path


def pictures_for(trace: Trace, pictures: Sequence[str], *, folder: Path) -> Sequence[str]:
    """Return a picture for each object: the first for the one that is asked for first, and so on.

    Raises:
        InvalidArgumentError: there are more objects than pictures.
    """
    if trace.object_count > len(pictures):
        raise InvalidArgumentError(
            f"the trace asks for {trace.object_count} different objects, but below {folder} are "
            f"{len(pictures)} pictures ({' '.join(_SUFFIXES)}); take a folder with more of them, "
            "or with --requests only the start of the trace"
        )
    return pictures[: trace.object_count]


def replay(
    trace: Trace,
    paths: Sequence[str],
    due_s: Sequence[float],
    *,
    readers: int,
    drop_kernel_pages: bool,
) -> Replayed:
    """Read *paths*, one for each object of *trace*, when *due_s* says, with *readers* threads.

    A thread takes the next request, waits until it is due, opens the file, reads it to its end and
    closes it.  If all are busy then, it starts later than it is due, which its latency counts.
    With *drop_kernel_pages* the kernel forgets a file's pages after each read, and before the
    first, so that only reads of one file at the same time share them.

    KeyboardInterrupt ends it within about a second, and what was measured until then is returned:
    reads that hang longer than that are not counted.
    """
    if drop_kernel_pages:
        for path in paths:
            _drop_pages(path)
    stop = threading.Event()
    run = _Run(trace.objects, paths, due_s, time.perf_counter() + _LEAD_S, drop_kernel_pages, stop)
    records = [_Record() for _ in range(readers)]
    # Reads give up the interpreter's lock, so that threads wait for each other no more than
    # processes do.  They are daemons: one that hangs in a read must not keep the command.
    threads = [threading.Thread(target=run.read, args=(record,), daemon=True) for record in records]
    interrupted = False
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        interrupted = True
        stop.set()
        _join(threads, timeout_s=_END_S)
    return _gathered(records, run.start_s, interrupted=interrupted)


@dataclass(slots=True)
class _Record:
    """What one thread has measured; *samples_s* has latency and service time in turns."""

    samples_s: array[float] = field(default_factory=lambda: array("d"))
    errors: Counter[int] = field(default_factory=Counter)
    read_bytes: int = 0
    end_s: float = -inf


class _Run:
    """What the threads share."""

    def __init__(
        self,
        objects: Sequence[int],
        paths: Sequence[str],
        due_s: Sequence[float],
        start_s: float,
        drop_kernel_pages: bool,
        stop: threading.Event,
    ) -> None:
        self.start_s = start_s
        self._objects = objects
        self._paths = paths
        self._due_s = due_s
        self._drop_kernel_pages = drop_kernel_pages
        self._stop = stop
        self._next = itertools.count()

    def read(self, record: _Record) -> None:
        buffers = [bytearray(_READ_BYTES)]
        while (index := next(self._next)) < len(self._due_s):
            due_s = self.start_s + self._due_s[index]
            if not self._wait_until(due_s):
                return
            self._request(self._paths[self._objects[index]], due_s, record, buffers)

    def _wait_until(self, due_s: float) -> bool:
        """Wait, at least not longer than that if the run is stopped; whether it goes on."""
        while (left_s := due_s - time.perf_counter()) > 0:
            if self._stop.wait(min(left_s, _WAIT_S_MAX)):
                return False
        return not self._stop.is_set()

    def _request(self, path: str, due_s: float, record: _Record, buffers: list[bytearray]) -> None:
        fd, read_bytes = -1, 0
        open_s = time.perf_counter()
        try:
            fd = os.open(path, os.O_RDONLY)
            while piece_bytes := os.readv(fd, buffers):
                read_bytes += piece_bytes
        except OSError as error:
            record.errors[error.errno or 0] += 1
        end_s = time.perf_counter()
        record.samples_s.extend((end_s - due_s, end_s - open_s))
        record.read_bytes += read_bytes
        record.end_s = end_s
        if fd >= 0:
            if self._drop_kernel_pages:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(fd)


def _drop_pages(path: str) -> None:
    with contextlib.suppress(OSError):  # its requests will tell
        fd = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def _join(threads: list[threading.Thread], *, timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    for thread in threads:
        if thread.is_alive():
            thread.join(max(deadline_s - time.monotonic(), 0))


def _gathered(records: list[_Record], start_s: float, *, interrupted: bool) -> Replayed:
    latencies_s, services_s = array("d"), array("d")
    errors: Counter[int] = Counter()
    for record in records:
        samples_s = record.samples_s[:]  # once, as a thread that hung may go on
        latencies_s.extend(samples_s[0::2])
        services_s.extend(samples_s[1::2])
        errors.update(record.errors)
    return Replayed(
        latencies_s=latencies_s,
        services_s=services_s,
        errors=errors,
        read_bytes=sum(record.read_bytes for record in records),
        duration_s=max(max(record.end_s for record in records) - start_s, 0.0),
        interrupted=interrupted,
    )
