"""One process at a time may change a store, and a dead one doesn't count."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from latentfs.errors import StoreError
from latentfs.store.store import Store
from latentfs.store.writer_lock import WriterLock

HOLD = """
import sys
from pathlib import Path
from latentfs.store.writer_lock import WriterLock
lock = WriterLock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock until its stdin is closed."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_a_lock_excludes_other_processes_until_it_is_released(tmp_path, holder):
    lock = WriterLock(tmp_path)
    assert not lock.try_acquire()
    assert not lock.held
    holder.communicate()
    assert lock.try_acquire()
    assert lock.held


def test_the_lock_of_a_killed_process_is_free(tmp_path, holder):
    holder.kill()
    holder.wait()
    assert WriterLock(tmp_path).try_acquire()


def test_acquire_waits_for_the_other_process(tmp_path, holder):
    lock = WriterLock(tmp_path)
    waiter = threading.Thread(target=lock.acquire)
    waiter.start()
    waiter.join(0.1)
    assert waiter.is_alive()
    holder.communicate()
    waiter.join(30)
    assert lock.held


def test_two_locks_of_one_process_exclude_each_other_too(tmp_path):
    first, second = WriterLock(tmp_path), WriterLock(tmp_path)
    assert first.try_acquire()
    assert not second.try_acquire()
    first.release()
    first.release()
    assert not first.held
    assert second.try_acquire()


def test_a_program_that_is_started_meanwhile_does_not_keep_the_lock(tmp_path):
    lock = WriterLock(tmp_path)
    lock.acquire()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False):
        lock.release()
        assert WriterLock(tmp_path).try_acquire()


def test_a_failed_try_leaves_no_descriptor_behind(tmp_path):
    first = WriterLock(tmp_path)
    first.acquire()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(10):
        assert not WriterLock(tmp_path).try_acquire()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_lock_file_that_can_not_be_opened_is_an_error_of_the_store(tmp_path):
    with Store.create(tmp_path / "art.lfs") as store:
        (store.path / "writer.lock").unlink(missing_ok=True)
        (store.path / "writer.lock").mkdir()
        with pytest.raises(IsADirectoryError):
            WriterLock(store.path).try_acquire()
        with pytest.raises(StoreError, match="can't be written"), store.write():
            pass
