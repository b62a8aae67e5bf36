"""A store is open in many processes, or in one that replaces its database."""

import subprocess
import sys

import pytest

from latentfs.errors import StoreLockedError
from latentfs.store import use_lock
from latentfs.store.store import Store
from latentfs.store.use_lock import UseLock

HOLD = """
import sys
from pathlib import Path
from latentfs.store.store import Store
store = Store.open(Path(sys.argv[1]), writable=True)
if sys.argv[2] == "alone":
    store.become_sole_user()
print("open", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setattr(use_lock, "_WAIT_S", 0.05)
    Store.create(tmp_path / "art.lfs").close()
    return tmp_path / "art.lfs"


@pytest.fixture
def hold(path):
    processes = []

    def start(how):
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, path, how], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_many_have_it_open(path, hold):
    hold("shared")
    hold("shared")
    with Store.open(path, writable=True) as store, store.write():
        pass


def test_nobody_is_alone_beside_another(path, hold):
    other = hold("shared")
    with Store.open(path) as store:
        with pytest.raises(StoreLockedError, match=r"another process has the store .* open"):
            store.become_sole_user()
        hold("shared").kill()  # others may still open it
        other.kill()
        other.wait()


def test_who_was_not_alone_still_keeps_others_from_it(path, hold):
    other = hold("shared")
    lock = UseLock(path)
    with pytest.raises(StoreLockedError):
        lock.become_sole_user()
    other.kill()
    other.wait()
    second = UseLock(path)
    with pytest.raises(StoreLockedError):
        second.become_sole_user()
    lock.release()
    second.become_sole_user()
    second.release()


def test_nobody_opens_it_beside_one_that_is_alone(path, hold):
    other = hold("alone")
    with pytest.raises(StoreLockedError, match="is being compacted by latentfs gc"):
        Store.open(path)
    other.kill()
    other.wait()
    Store.open(path).close()


def test_closing_lets_others_in(path):
    with Store.open(path) as store:
        store.become_sole_user()
    Store.open(path).close()
