"""Stores are made whole or not at all, and opened only if this latentfs knows what is in them."""

import contextlib
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import lmdb
import msgspec
import pytest
from store_contents import add_picture, picture_latent, problems

from latentfs.errors import (
    StoreCorruptError,
    StoreError,
    StoreExistsError,
    StoreFullError,
    StoreLockedError,
    StoreNotFoundError,
    StoreVersionError,
)
from latentfs.store import environment, tables
from latentfs.store import store as store_module
from latentfs.store.records import Totals
from latentfs.store.store import Store

HOLD_WRITE_LOCK = """
import sys
from pathlib import Path
from latentfs.store.store import Store
with Store.open(Path(sys.argv[1]), writable=True) as store, store.write():
    print("held", flush=True)
    sys.stdin.read()
"""
HOLD_SNAPSHOT = """
import sys
from pathlib import Path
from latentfs.store.store import Store
with Store.open(Path(sys.argv[1])) as store, store.read():
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "art.lfs"
    Store.create(path).close()
    return path


def start(script, path):
    process = subprocess.Popen(
        [sys.executable, "-c", script, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    return process


@pytest.fixture
def running():
    processes = []

    def run(script, path):
        processes.append(start(script, path))
        return processes[-1]

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def put_raw(path, table, key, value):
    with (
        lmdb.open(str(path / "lmdb"), max_dbs=20, map_size=1 << 30) as env,
        env.begin(write=True) as txn,
    ):
        txn.put(key, value, db=env.open_db(table, txn))


# Making


def test_a_new_store_is_empty_and_sound(tmp_path):
    path = tmp_path / "missing" / "art.lfs"
    with Store.create(path) as store:
        assert problems(store) == []
        assert store.statistics().totals == Totals(directories=1)
        with store.read() as snapshot:
            assert list(snapshot.entries(tables.ROOT_INO)) == []
            root = snapshot.resolve("/")
        assert root is not None
        assert (root[0], root[1].nlink, root[1].parent_ino) == (tables.ROOT_INO, 2, tables.ROOT_INO)
    names = sorted(entry.name for entry in path.iterdir())
    assert names == ["latentfs.toml", "lmdb", "vae", "writer.lock"]
    with Store.open(path) as store:
        assert problems(store) == []


def test_an_empty_folder_becomes_a_store(tmp_path):
    tmp_path.chmod(0o750)
    Store.create(tmp_path).close()
    Store.open(tmp_path).close()
    assert tmp_path.stat().st_mode & 0o777 == 0o750


def test_a_new_folder_is_for_its_owner_alone(tmp_path):
    """Others could read in it what files of a mount say that have the mode 0600."""
    Store.create(tmp_path / "new" / "art.lfs").close()
    assert (tmp_path / "new" / "art.lfs").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kind", ["store", "folder", "file", "dangling symlink"])
def test_what_is_there_stays(tmp_path, path, kind):
    there = path
    if kind != "store":
        there = tmp_path / "there"
    if kind == "folder":
        (there / "sub").mkdir(parents=True)
    elif kind == "file":
        there.write_text("mine")
    elif kind == "dangling symlink":
        there.symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StoreExistsError, match=r"a store at" if kind == "store" else "something"):
        Store.create(there)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("in_empty_folder", [False, True])
@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (OSError(errno.EIO, "Input/output error"), StoreError),
        (OSError(errno.ENOSPC, "No space left on device"), StoreFullError),
        (lmdb.DiskError("No space left on device"), StoreFullError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("step", ["open_environment", "sync_directory"])
def test_a_half_made_store_is_removed(
    tmp_path, monkeypatch, in_empty_folder, failure, expected, step
):
    path = tmp_path / "art.lfs"
    if in_empty_folder:
        path.mkdir()

    def fail(*args, **kwargs):
        raise failure

    monkeypatch.setattr(store_module, step, fail)
    with pytest.raises(expected):
        Store.create(path)
    assert path.is_dir() == in_empty_folder
    assert list(tmp_path.rglob("*")) == ([path] if in_empty_folder else [])
    monkeypatch.undo()
    Store.create(path).close()  # the LMDB environment was closed too


@pytest.mark.parametrize("step", ["art.lfs", "lmdb"])
@pytest.mark.parametrize("in_empty_folder", [False, True])
def test_of_two_that_are_made_at_once_one_stays(tmp_path, monkeypatch, step, in_empty_folder):
    """The other comes when the first has seen that nothing is there, or has made the folder."""
    path = tmp_path / "art.lfs"
    if in_empty_folder:
        path.mkdir()
    mkdir, refused = Path.mkdir, []

    def make_another_first(self, *args, **kwargs):
        if self.name == step:
            monkeypatch.undo()
            try:
                Store.create(path).close()
            except StoreError as error:
                refused.append(error)
        mkdir(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", make_another_first)
    try:
        Store.create(path).close()
    except StoreError as error:
        refused.append(error)
    assert len(refused) == 1
    assert type(refused[0]) in (StoreExistsError, StoreLockedError)
    with Store.open(path) as store:
        assert problems(store) == []


def test_a_folder_that_another_has_removed_meanwhile_is_no_place_for_a_store(tmp_path, monkeypatch):
    """As one does that could not make its store; yet another may have made one there since."""
    path = tmp_path / "art.lfs"

    def lock_in_vain(fd, operation):
        monkeypatch.undo()
        path.rmdir()
        Store.create(path).close()
        fcntl.flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", lock_in_vain)
    with pytest.raises(StoreLockedError, match="another process"):
        Store.create(path)
    with Store.open(path) as store:
        assert problems(store) == []


def test_folders_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="Not a directory"):
        Store.create(tmp_path / "file" / "art.lfs")


# Opening


@pytest.mark.parametrize("writable", [False, True])
def test_no_store(tmp_path, writable):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name in ("missing", "file", "folder"):
        with pytest.raises(StoreNotFoundError, match="latentfs init"):
            Store.open(tmp_path / name, writable=writable)


@pytest.mark.parametrize(
    ("text", "expected", "message"),
    [
        (b"", StoreCorruptError, "format_version"),
        (b"format_version = 'one'", StoreCorruptError, "format_version"),
        (b"format_version = true", StoreCorruptError, "format_version"),
        (b"format_version = 0", StoreCorruptError, "format_version"),
        (b"format_version = ", StoreCorruptError, "can't be read"),
        (b"\xff\xfe", StoreCorruptError, "can't be read"),
        (b"a = " + 5000 * b"[", StoreCorruptError, "can't be read"),
        (b"format_version = 2", StoreVersionError, "newer latentfs"),
    ],
)
def test_settings(path, text, expected, message):
    (path / "latentfs.toml").write_bytes(text)
    with pytest.raises(expected, match=message):
        Store.open(path)


@pytest.mark.parametrize("writable", [False, True])
def test_a_newer_schema(path, writable):
    put_raw(path, b"catalog", b"schema", msgspec.msgpack.encode(tables.SCHEMA_VERSION + 1))
    with pytest.raises(StoreVersionError, match=f"schema version {tables.SCHEMA_VERSION + 1}"):
        Store.open(path, writable=writable)
    # The environment was closed: one process can't have it open twice.
    put_raw(path, b"catalog", b"schema", msgspec.msgpack.encode(tables.SCHEMA_VERSION))
    Store.open(path, writable=writable).close()


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("value", [b"", b"\xc1", msgspec.msgpack.encode("one")])
def test_a_schema_version_that_cannot_be_read(path, writable, value):
    put_raw(path, b"catalog", b"schema", value)
    with pytest.raises(StoreCorruptError, match="schema version"):
        Store.open(path, writable=writable)


@pytest.mark.parametrize("writable", [False, True])
@pytest.mark.parametrize("damage", ["no folder", "no file", "empty", "noise", "zeros", "other"])
def test_a_broken_environment(path, writable, damage):
    data = path / "lmdb" / "data.mdb"
    if damage == "no folder":
        shutil.rmtree(path / "lmdb")
    elif damage == "no file":
        data.unlink()
    elif damage == "empty":
        data.write_bytes(b"")
    elif damage == "noise":
        data.write_bytes(os.urandom(data.stat().st_size))
    elif damage == "zeros":
        data.write_bytes(bytes(data.stat().st_size))
    elif damage == "other":
        shutil.rmtree(path / "lmdb")
        lmdb.open(str(path / "lmdb")).close()
    before = {p: p.stat().st_size for p in path.rglob("*") if p.name != "lock.mdb"}
    with pytest.raises(StoreCorruptError, match=r"lmdb|LMDB|schema"):
        Store.open(path, writable=writable)
    assert {p: p.stat().st_size for p in path.rglob("*") if p.name != "lock.mdb"} == before


def test_a_read_only_open_never_waits(path, running):
    running(HOLD_WRITE_LOCK, path)
    began_s = time.monotonic()
    with Store.open(path) as store:
        assert problems(store) == []
    assert time.monotonic() - began_s < 10


def test_readers_that_were_killed_pin_nothing(path, running):
    running(HOLD_SNAPSHOT, path)  # keeps the lock file from being made anew
    running(HOLD_SNAPSHOT, path).kill()
    time.sleep(0.1)
    with Store.open(path, writable=True) as store:
        readers = store._env.readers().splitlines()
    assert len(readers) == 2, readers  # a heading and the one that lives


# Migration

OLDER = tables.SCHEMA_VERSION


def to_next_version(txn, dbs):
    txn.put(b"colour", b"red", db=dbs["catalog"])


def to_version_after_next(txn, dbs):
    value = txn.get(b"colour", db=dbs["catalog"])
    txn.put(b"colour", bytes(value) + b"dish", db=dbs["catalog"])
    txn.put(b"new", b"1", db=dbs["colours"])


@pytest.fixture
def newer_latentfs(monkeypatch):
    monkeypatch.setattr(tables, "SCHEMA_VERSION", OLDER + 2)
    migrations = {OLDER: to_next_version, OLDER + 1: to_version_after_next}
    monkeypatch.setattr(tables, "MIGRATIONS", migrations)
    monkeypatch.setattr(tables, "TABLES", (*tables.TABLES, "colours"))


def content_of(store):
    catalog = store._dbs["catalog"]
    with store._env.begin(db=catalog) as txn:
        return [txn.get(b"colour"), txn.get(b"schema")]


@pytest.mark.parametrize("writable", [False, True])
def test_an_older_store_is_migrated_step_by_step(path, newer_latentfs, writable):
    for _ in range(2):
        with Store.open(path, writable=writable) as store:
            assert content_of(store) == [b"reddish", msgspec.msgpack.encode(OLDER + 2)]
            assert problems(store) == []


def test_a_migration_that_fails_changes_nothing(path, newer_latentfs, monkeypatch):
    def fail(txn, dbs):
        raise lmdb.DiskError("No space left on device")

    monkeypatch.setitem(tables.MIGRATIONS, OLDER + 1, fail)
    with pytest.raises(StoreFullError):
        Store.open(path)
    monkeypatch.undo()
    with Store.open(path) as store:
        assert content_of(store) == [None, msgspec.msgpack.encode(OLDER)]


# Use


def test_readers_see_a_snapshot_while_a_writer_commits(path):
    with Store.open(path, writable=True) as store:
        with store.write() as transaction:
            add_picture(transaction, tables.ROOT_INO, b"a.png", picture_latent(1))
        changes = store.changes()
        with store.read() as before:

            def write():
                with store.write() as transaction:
                    transaction.remove_file_by_command(tables.ROOT_INO, b"a.png")
                    add_picture(transaction, tables.ROOT_INO, b"b.png", picture_latent(2))

            thread = threading.Thread(target=write)
            thread.start()
            thread.join()
            assert [name for name, _ in before.entries(tables.ROOT_INO)] == [b"a.png"]
            found = before.resolve("/a.png")
            assert found is not None
            assert found[1].content is not None
            assert before.payload(found[1].content.payload) is not None
            assert before.resolve("/b.png") is None
        with store.read() as after:
            assert [name for name, _ in after.entries(tables.ROOT_INO)] == [b"b.png"]
        assert store.changes() > changes
        assert problems(store) == []


def test_a_snapshot_that_somebody_keeps_takes_no_place_among_readers(path):
    """Each read that waits for a render keeps its own, and thousands may."""
    with Store.open(path) as store:
        kept = []
        for number in range(3000):
            with contextlib.suppress(InterruptedError), store.read() as snapshot:
                kept.append(snapshot)
                assert snapshot.inode(tables.ROOT_INO) is not None
                if number % 2:
                    raise InterruptedError  # its traceback keeps more
        with store.read() as snapshot:
            assert snapshot.inode(tables.ROOT_INO) is not None


def test_too_many_readers_are_no_damage(path, monkeypatch):
    monkeypatch.setattr(environment, "READERS_MAX", 3)
    (path / "lmdb" / "lock.mdb").unlink()
    with Store.open(path) as store, contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(store.read())
        with pytest.raises(StoreError, match="try again") as caught:
            stack.enter_context(store.read())
        assert not isinstance(caught.value, StoreCorruptError)


def test_an_exception_in_a_write_leaves_the_store_as_it_was(path):
    with Store.open(path, writable=True) as store:
        before = store.statistics()
        try:
            with store.write() as transaction:
                add_picture(transaction, tables.ROOT_INO, b"a.png", picture_latent(1))
                raise InterruptedError
        except InterruptedError:
            pass
        assert store.statistics() == before
        assert problems(store) == []


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_a_database_that_was_cut_short_is_damage_and_no_bus_error(tmp_path, share):
    path = tmp_path / "art.lfs"
    with Store.create(path) as store, store.write() as transaction:
        for number in range(20):
            add_picture(transaction, 1, b"%d.png" % number, picture_latent(number, height=40))
    data = path / "lmdb" / "data.mdb"
    os.truncate(data, int(data.stat().st_size * share) // 4096 * 4096)
    # In a process of its own: a bus error would end this one.
    done = subprocess.run(
        [sys.executable, "-m", "latentfs", "fsck", path], capture_output=True, text=True
    )
    assert done.returncode == 1, done
    assert "problem" in done.stdout or "latentfs:" in done.stderr
