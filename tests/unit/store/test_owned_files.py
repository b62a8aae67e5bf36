"""What root makes in somebody's store does not lock that one out."""

import errno
import os

import pytest

from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.owned_files import open_file
from latentfs.store.store import Store
from latentfs.store.writer_lock import WriterLock

USER, GROUP = 1234, 2345

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


def owner(path):
    status = path.lstat()
    return status.st_uid, status.st_gid


@pytest.fixture
def path(tmp_path):
    """A store as a backup makes it: locks are made by who needs them first."""
    path = tmp_path / "art.lfs"
    Store.create(path).close()
    (path / "writer.lock").unlink()
    (path / "lmdb" / "lock.mdb").unlink()
    return path


def touch(path):
    with Store.open(path, writable=True) as store, store.write():
        pass
    with DaemonLock(path).held_by("gc"):
        pass


@needs_root
def test_what_root_makes_belongs_to_the_owner_of_the_store(path):
    for folder in (path, path / "lmdb", path / "vae"):
        os.chown(folder, USER, GROUP)
    touch(path)
    made = [path / name for name in ("lmdb/lock.mdb", "writer.lock", "daemon.lock")]
    assert {owner(file) for file in made} == {(USER, GROUP)}


@needs_root
def test_what_is_there_stays_whose_it_is(path):
    (path / "writer.lock").touch()
    os.chown(path, USER, GROUP)
    lock = WriterLock(path)
    lock.acquire()
    lock.release()
    assert owner(path / "writer.lock") == (0, 0)


@needs_root
def test_where_files_can_not_be_given_away(path, monkeypatch):
    """As in a service without that capability."""

    def refuse(fd, uid, gid):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    os.chown(path, USER, GROUP)
    touch(path)
    assert owner(path / "daemon.lock") == (0, 0)


@pytest.mark.parametrize("name", ["writer.lock", "daemon.lock"])
@pytest.mark.parametrize("there", [False, True])
def test_no_link_is_followed(path, tmp_path, name, there):
    """Its target, of root's, would be given away, or emptied."""
    target = tmp_path / "target"
    if there:
        target.write_text("mine")
    (path / name).symlink_to(target)
    with pytest.raises(OSError, match="symbolic links") as raised:
        open_file(path / name)
    assert raised.value.errno == errno.ELOOP
    assert target.exists() == there


def test_a_file_that_is_removed_meanwhile_is_made_again(path, monkeypatch):
    (path / "writer.lock").touch()
    open_now, opened = os.open, []

    def open_late(name, flags, *mode):
        opened.append(flags)
        if len(opened) == 1:
            raise FileNotFoundError
        if len(opened) == 3:
            (path / "writer.lock").unlink()
        return open_now(name, flags, *mode)

    monkeypatch.setattr(os, "open", open_late)
    fd = open_file(path / "writer.lock")
    os.close(fd)
    assert (path / "writer.lock").exists()
