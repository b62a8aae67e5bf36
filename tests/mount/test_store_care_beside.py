"""fsck, backup and scrub beside a mount that is written to; repair and gc not."""

import contextlib
import os
import threading

import pytest
from mounts import latentfs
from store_contents import problems

from latentfs.store.store import Store


@pytest.fixture
def written(mount):
    """Something writes into the mount all the time, and removes half of it again."""
    stop = threading.Event()

    def write():
        number = 0
        while not stop.is_set():
            number += 1
            folder = mount.path / f"new-{number % 20}"
            folder.mkdir(exist_ok=True)
            (folder / "noise").write_bytes(os.urandom(200_000))
            (folder / f"{number}").symlink_to("noise")
            (folder / f"{number}").rename(folder / "link")
            if number % 2:
                (folder / "noise").unlink()
                os.setxattr(folder, "user.number", b"%d" % number)

    thread = threading.Thread(target=write)
    thread.start()
    yield mount
    stop.set()
    thread.join()


def test_fsck_sees_a_consistent_state(written):
    for _ in range(2):
        done = latentfs("fsck", written.store)
        assert done.stdout == f"{written.store}: no problems\n"
        assert done.stderr.startswith("note: the store is mounted; changes of the last second")


def test_backup_is_a_sound_store(written, tmp_path):
    done = latentfs("backup", written.store, tmp_path / "copy")
    assert "changes of the last second are not copied" in done.stderr
    with Store.open(tmp_path / "copy") as copy:
        assert problems(copy) == []
        assert copy.statistics().totals.files >= 102


def test_scrub_passes_over_what_changes(written):
    done = latentfs("scrub", written.store, "--max-files", "3")
    assert "3 pictures rendered; all unchanged" in done.stdout


def test_a_removed_file_that_is_open_is_a_note(mount):
    with (mount.path / "open").open("wb") as file:
        file.write(b"x")
        (mount.path / "open").unlink()
        os.fsync(file.fileno())
        done = latentfs("fsck", mount.store)
    assert done.stdout == f"{mount.store}: no problems\n"
    assert "note: 1 file that was removed while open" in done.stderr


@pytest.mark.parametrize("command", [("fsck", "--repair"), ("gc",)])
def test_refused_while_mounted(mount, command):
    done = latentfs(command[0], mount.store, *command[1:], check=False)
    assert done.returncode == 1
    assert f"mounted on {mount.path}" in done.stderr


def test_repair_and_gc_after_a_mount_was_killed(mount):
    fd = os.open(mount.path / "open", os.O_WRONLY | os.O_CREAT)
    os.write(fd, os.urandom(3_000_000))
    (mount.path / "open").unlink()
    os.fsync(fd)
    mount.process.kill()
    mount.process.wait()
    with contextlib.suppress(OSError):  # what was open can't be closed properly any more
        os.close(fd)
    done = latentfs("fsck", mount.store, "--repair")
    assert "repaired orphan-inodes: discarded inode" in done.stderr
    assert "no problems left" in done.stdout
    before = (mount.store / "lmdb" / "data.mdb").stat().st_size
    latentfs("gc", mount.store)
    assert (mount.store / "lmdb" / "data.mdb").stat().st_size < before - 2_900_000
    assert latentfs("fsck", mount.store).stdout == f"{mount.store}: no problems\n"
