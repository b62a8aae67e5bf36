"""A real daemon on a real mount, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from latentfs.fs.control import ask_daemon

__all__ = ["Mount", "latentfs", "mounted", "stop_process", "wait_until"]

_WAIT_S = 60.0


def latentfs(*arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "latentfs", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def wait_until(condition: Callable[[], bool], what: str, *, timeout_s: float = _WAIT_S) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, f"waited {timeout_s} s in vain until {what}"
        time.sleep(0.02)


def stop_process(pid: int) -> None:
    """Send SIGSTOP, and wait for it: a thread may finish what it does before it is stopped."""
    os.kill(pid, signal.SIGSTOP)

    def is_stopped() -> bool:
        statuses = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/status")]
        return all("\nState:\tT" in status for status in statuses)

    wait_until(is_stopped, f"all threads of process {pid} are stopped")


class Mount:
    """A daemon in the foreground of a process of its own."""

    def __init__(self, store: Path, path: Path, process: subprocess.Popen[str], log: Path) -> None:
        self.store = store
        self.path = path
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    def status(self) -> dict[str, Any]:
        """What the daemon tells of itself, without a process for each question."""
        answer = ask_daemon(self.store, "status")
        assert answer is not None, "the daemon does not answer"
        return answer

    def full_status(self) -> dict[str, Any]:
        """What ``latentfs status`` prints."""
        answer = json.loads(latentfs("status", self.path, "--json").stdout)
        assert isinstance(answer, dict)
        return answer

    def renderer_pids(self) -> list[int]:
        """Process ids of the daemon's renderers, from /proc."""
        pids = []
        for children in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for pid in children.read_text().split():
                with contextlib.suppress(FileNotFoundError):
                    if b"latentfs.render.renderer" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        pids.append(int(pid))
        return pids

    def wait_for_renderer(self) -> int:
        """Wait until one is ready and warm, so that it has no work but what a test gives it."""

        def is_warm() -> bool:
            status = self.status()
            return bool(status["renderer_ready"]) and not status["renders_warming_up"]

        wait_until(is_warm, "a renderer is ready and warm")
        (pid,) = self.renderer_pids()
        return pid

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=_WAIT_S)


@contextlib.contextmanager
def mounted(
    store: Path,
    path: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    flags: tuple[str, ...] = ("-v",),
) -> Iterator[Mount]:
    """Mount *store*; unmounted and its daemon gone at the end, whatever happened."""
    with contextlib.suppress(FileExistsError):  # raised for a stale mount even with exist_ok
        path.mkdir()
    log = path.parent / f"{path.name}.log"
    with log.open("w") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "latentfs", "mount", str(store), str(path), *flags, *arguments],
            stderr=stderr,
            text=True,
            env={**os.environ, **(environment or {})},
        )
    mount = Mount(store, path, process, log)
    try:
        wait_until(
            lambda: "is mounted on" in mount.log or process.poll() is not None, "it is mounted"
        )
        assert process.poll() is None, mount.log
        yield mount
    finally:
        process.kill()
        process.wait()
        subprocess.run(["fusermount3", "-uz", str(path)], capture_output=True, check=False)
