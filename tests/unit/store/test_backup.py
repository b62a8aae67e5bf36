"""A backup is a store as the other was at one moment."""

import errno
import hashlib
import os
import threading

import msgspec
import pytest
from store_contents import VAE, add_picture, picture_latent, problems
from store_damage import copied_rows, fill

from latentfs.errors import InvalidArgumentError, StoreError, StoreExistsError, StoreFullError
from latentfs.store import backup, tables
from latentfs.store.backup import back_up
from latentfs.store.records import VaeFile
from latentfs.store.store import Store


@pytest.fixture
def store(tmp_path):
    with fill(Store.create(tmp_path / "art.lfs")) as store:
        yield store


def test_the_copy_is_the_same_store(store, tmp_path):
    (store.path / "vae" / VAE.id).mkdir()
    target = tmp_path / "new" / "copy"
    done = back_up(store, target)
    assert done.damaged == ()
    with Store.open(target, writable=True) as copy:
        assert copied_rows(copy) == copied_rows(store)
        assert copy.statistics().totals == done.totals
        assert problems(copy) == []
        with copy.write() as transaction:
            add_picture(transaction, tables.ROOT_INO, b"new.png", picture_latent(9))
    assert target.stat().st_mode & 0o777 == 0o700
    names = {path.name for path in target.iterdir()}
    assert names == {"latentfs.toml", "lmdb", "vae", "writer.lock"}


def test_the_vaes_files_are_copied(store, tmp_path):
    files = (VaeFile("config.json", 2, "0" * 64), VaeFile("weights", 3, "0" * 64))
    with store.write() as transaction:
        transaction.put_vae("other", msgspec.structs.replace(VAE, id="w" * 32, files=files))
    folder = store.path / "vae" / ("w" * 32)
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    done = back_up(store, tmp_path / "copy")
    assert (tmp_path / "copy" / "vae" / folder.name / "config.json").read_bytes() == b"{}"
    assert [text.split(":")[0] for text in done.damaged] == ["VAE 'other'"]
    assert done.size_bytes > 2


def test_a_vae_file_that_can_not_be_read_is_told_of_and_all_else_copied(store, tmp_path):
    empty = hashlib.sha256(b"").hexdigest()
    names = ("config.json", "unreadable", "weights", "gone", "weights")
    files = tuple(VaeFile(name, 0, empty) for name in names)
    with store.write() as transaction:
        transaction.put_vae("other", msgspec.structs.replace(VAE, id="w" * 32, files=files))
    folder = store.path / "vae" / ("w" * 32)
    folder.mkdir()
    for name in ("config.json", "weights"):
        (folder / name).write_bytes(b"")
    (folder / "unreadable").symlink_to("/proc/self/mem")  # opens, and reads as a bad sector does
    (store.path / "vae" / VAE.id).mkdir()
    done = back_up(store, tmp_path / "copy")
    assert done.damaged == (
        f"VAE 'other': VAE file {folder / 'unreadable'} can't be read (Input/output error); "
        "add the VAE again",
    )
    copied = tmp_path / "copy" / "vae" / folder.name
    assert {path.name for path in copied.iterdir()} == {"config.json", "weights"}
    with Store.open(tmp_path / "copy") as copy:
        assert copied_rows(copy) == copied_rows(store)


def test_a_vae_that_can_not_be_written_ends_the_backup(store, tmp_path, monkeypatch):
    files = (VaeFile("config.json", 2, "0" * 64),)
    with store.write() as transaction:
        transaction.put_vae("other", msgspec.structs.replace(VAE, id="w" * 32, files=files))
    folder = store.path / "vae" / ("w" * 32)
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    fsync = os.fsync

    def full(fd):
        if os.readlink(f"/proc/self/fd/{fd}").endswith("config.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(fd)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreFullError, match="can't copy the store"):
        back_up(store, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize("outside", ["../../outside", "/{}/outside", "..", "a/b", "", "n\0l"])
def test_a_hostile_record_leads_nowhere_outside(store, tmp_path, outside):
    """Neither is anything outside of the store read, nor written outside of the target."""
    outside = outside.format(tmp_path)
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_bytes(b"secret")
    (store.path.parent / "secret").write_bytes(b"secret")
    files = (VaeFile("secret", 6, "0" * 64), VaeFile("config.json", 2, "0" * 64))
    led = (VaeFile(outside, 6, "0" * 64), VaeFile("../../../secret", 6, "0" * 64), files[1])
    with store.write() as transaction:
        transaction.put_vae("id", msgspec.structs.replace(VAE, id=outside, files=files))
        transaction.put_vae("names", msgspec.structs.replace(VAE, id="w" * 32, files=led))
    folder = store.path / "vae" / ("w" * 32)
    folder.mkdir()
    (folder / "config.json").write_bytes(b"{}")
    before = sorted(tmp_path.rglob("*"))
    target = tmp_path / "deep" / "down" / "copy"
    done = back_up(store, target)
    assert [text.split(":")[0] for text in done.damaged] == ["VAE 'id'", "VAE 'names'"]
    assert all("is no name of a file" in text for text in done.damaged)
    # What can be copied of the other is.
    copied = target / "vae" / folder.name
    assert [path.relative_to(target / "vae") for path in copied.rglob("*")] == [
        (copied / "config.json").relative_to(target / "vae")
    ]
    assert {path.name for path in (target / "vae").iterdir()} == {VAE.id, folder.name}
    after = {path for path in tmp_path.rglob("*") if not path.is_relative_to(target)}
    assert after - {target.parent, target.parent.parent} == set(before)


def test_changes_go_on_meanwhile(store, tmp_path):
    stop = threading.Event()

    def change():
        number = 0
        while not stop.is_set():
            number += 1
            with store.write() as transaction:
                folder = transaction.make_directories(f"/{number}", uid=0, gid=0)
                add_picture(transaction, folder, b"a.png", picture_latent(number))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        totals = [back_up(store, tmp_path / f"copy{n}").totals for n in range(5)]
    finally:
        stop.set()
        thread.join()
    assert totals[-1].files > totals[0].files
    for number in range(5):
        with Store.open(tmp_path / f"copy{number}") as copy:
            assert problems(copy) == []


def test_where_something_is(store, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("there", "link"):
        with pytest.raises(StoreExistsError):
            back_up(store, tmp_path / name)


def test_within_the_store(store):
    with pytest.raises(InvalidArgumentError, match="is in the store"):
        back_up(store, store.path / "vae" / "copy")


def test_a_copy_that_fails_is_removed(store, tmp_path, monkeypatch):
    def full(folder):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(backup, "sync_directory", full)
    with pytest.raises(StoreError, match="can't copy the store"):
        back_up(store, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
