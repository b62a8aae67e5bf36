"""What the kernel tells of processes, with real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from mounts import wait_until

from latentfs.fs.readers import is_gone, process_of, reader_of
from latentfs.render.job_queue import Reader


@contextmanager
def child(*command: str, new_group: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        command or ("sleep", "60"), process_group=0 if new_group else None, stdin=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def kill_unreaped(process: subprocess.Popen[bytes]) -> None:
    """Kill it and wait until it is a zombie."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def test_a_reader_is_its_user_and_process_group() -> None:
    with child(new_group=True) as leader, child() as member:
        assert reader_of(7, leader.pid) == Reader(7, leader.pid)
        assert reader_of(7, member.pid) == Reader(7, os.getpgrp())


def test_of_a_reader_that_has_ended_only_the_user_is_known() -> None:
    with child() as process:
        pass
    assert reader_of(7, process.pid) == Reader(7, 0)


def test_pid_0_is_nobody_we_can_see() -> None:
    assert reader_of(7, 0) == Reader(7, 0)
    assert not is_gone(0)


def test_a_thread_is_one_of_its_process() -> None:
    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(threading.get_native_id).result()
        assert thread != os.getpid()
        assert process_of(thread) == os.getpid()
    wait_until(lambda: process_of(thread) == 0, "the thread has ended, which was only told to")


def test_we_are_here() -> None:
    assert not is_gone(os.getpid())


def test_a_process_that_sleeps_or_is_stopped_is_not_gone() -> None:
    with child() as process:
        assert not is_gone(process.pid)
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert not is_gone(process.pid)


def test_a_killed_process_is_gone_before_its_parent_has_taken_note() -> None:
    with child() as process:
        kill_unreaped(process)
        assert is_gone(process.pid)


def test_a_process_that_was_waited_for_is_gone() -> None:
    with child() as process:
        pass
    assert is_gone(process.pid)


def test_a_name_with_parentheses_and_blanks_is_no_state() -> None:
    rename = "from pathlib import Path; Path('/proc/self/comm').write_text('x) Z (4 y'); input()"
    with child(sys.executable, "-c", rename) as process:
        comm = Path(f"/proc/{process.pid}/comm")
        while comm.read_text() != "x) Z (4 y\n":
            os.sched_yield()
        assert not is_gone(process.pid)
        kill_unreaped(process)
        assert is_gone(process.pid)


def test_a_process_that_ends_between_opening_and_reading_its_state_is_gone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def vanish(path: Path) -> bytes:
        raise ProcessLookupError

    monkeypatch.setattr(Path, "read_bytes", vanish)
    assert is_gone(4711)


def test_what_can_not_be_told_is_taken_for_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert not is_gone(4711)
