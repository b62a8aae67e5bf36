"""Reader processes, as programs that use the mount: started before the clock, fed with jobs."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latentfs.errors import RenderError

__all__ = ["Reading", "Readers", "open_readers"]


@dataclass(frozen=True, slots=True)
class Reading:
    """One file read whole.  Times are of :func:`time.perf_counter`, which all processes share."""

    path: Path
    start_s: float
    end_s: float
    size_bytes: int

    @property
    def seconds(self) -> float:
        return self.end_s - self.start_s


class Readers:
    """Processes that take jobs from one socket.  Made by :func:`open_readers`."""

    def __init__(self, processes: list[subprocess.Popen[str]], jobs: socket.socket) -> None:
        self._processes = processes
        self._jobs = jobs

    def read(self, *paths: Path, for_s: float = 0.0, pause_s: float = 0.0) -> None:
        """Let one reader read the files in turn, each once, and on so until *for_s* have passed.

        Waits only if very many jobs are waiting.
        """
        job = {"paths": [str(path) for path in paths], "for_s": for_s, "pause_s": pause_s}
        with contextlib.suppress(BrokenPipeError):  # all have failed: finish tells why
            self._jobs.send(json.dumps(job).encode())

    def finish(self, *, timeout_s: float) -> list[Reading]:
        """Wait until all jobs are done and return what was read.

        Raises:
            RenderError: a file could not be read, or *timeout_s* passed.
        """
        self._jobs.close()
        readings = []
        for process in self._processes:
            try:
                out, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired as error:
                raise RenderError(f"readers did not end within {timeout_s:g} s") from error
            if process.returncode != 0:
                raise RenderError(f"a reader ended with {process.returncode}")
            answer = json.loads(out)
            if answer["error"] is not None:
                raise RenderError(f"a picture can't be read through the mount: {answer['error']}")
            readings += [Reading(Path(path), *rest) for path, *rest in answer["readings"]]
        return readings


@contextlib.contextmanager
def open_readers(count: int) -> Iterator[Readers]:
    """*count* readers that wait for jobs; those still running at the end are killed."""
    jobs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    processes: list[subprocess.Popen[str]] = []
    with jobs, ours:
        try:
            processes.extend(_start(jobs) for _ in range(count))
            jobs.close()  # so that ours breaks when the last reader ends
            for process in processes:
                assert process.stdout is not None
                process.stdout.readline()
            yield Readers(processes, ours)
        finally:
            for process in processes:
                process.kill()
                process.communicate()


def _start(jobs: socket.socket) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "latentfs.bench.reader"],
        stdin=jobs.fileno(),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the command, which ends them
    )
