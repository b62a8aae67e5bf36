"""A gc that is killed, wherever, leaves the old database or the new one."""

import signal
import subprocess
import sys

import pytest
from store_contents import add_picture, picture_latent, problems
from store_damage import fill

from latentfs.store import tables
from latentfs.store.compaction import compact
from latentfs.store.store import Store

# Kills itself before or after the call of that number of any function that changes the disk.
PROGRAM = """
import os, signal, sys
from pathlib import Path
from latentfs.store.compaction import compact
from latentfs.store.store import Store

path, when, number = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls = 0


def killing(function):
    def call(*arguments, **options):
        global calls
        calls += 1
        own_number = calls
        if own_number == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*arguments, **options)
        if own_number == number and when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result
    return call


for name in ("fsync", "replace", "unlink", "rmdir", "chown"):
    setattr(os, name, killing(getattr(os, name)))
Store.copy_database = killing(Store.copy_database)
compact(path)
"""
CALLS_MAX = 40


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "art.lfs"
    with fill(Store.create(path)) as store:
        latent = picture_latent(100, height=128, width=128)
        with store.write() as transaction:
            add_picture(transaction, tables.ROOT_INO, b"gone.png", latent)
        with store.write() as transaction:
            transaction.remove_file_by_command(tables.ROOT_INO, b"gone.png")
    return path


@pytest.mark.parametrize("when", ["before", "after"])
def test_killed_at_every_step(path, when):
    with Store.open(path) as store:
        files = store.statistics().totals.files
    for number in range(1, CALLS_MAX):
        stray = path / "vae" / "stray"
        stray.mkdir(exist_ok=True)
        (stray / "weights").write_bytes(bytes(100))
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, path, when, str(number)], check=False, timeout=60
        )
        with Store.open(path, writable=True) as store:
            assert problems(store) == []
            assert store.statistics().totals.files == files
            with store.write() as transaction:
                add_picture(transaction, tables.ROOT_INO, b"new.png", picture_latent(number))
            with store.write() as transaction:
                transaction.remove_file_by_command(tables.ROOT_INO, b"new.png")
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL
    assert 8 < number < CALLS_MAX - 1
    compact(path)
    assert sorted(entry.name for entry in (path / "lmdb").iterdir()) == ["data.mdb", "lock.mdb"]
    assert list((path / "vae").iterdir()) == []
