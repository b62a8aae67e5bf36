"""Giving space back: the same rows in a smaller database, or everything as it was."""

import os

import msgspec
import pytest
from store_contents import RECIPE, VAE, add_picture, picture_latent, problems
from store_damage import Damage, copied_rows, fill

from latentfs.errors import StoreCorruptError, StoreFullError, StoreLockedError
from latentfs.store import tables, use_lock
from latentfs.store.compaction import compact
from latentfs.store.rows import Layer
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store
from latentfs.store.use_lock import UseLock


@pytest.fixture
def path(tmp_path):
    """A store that has much free space in its database."""
    path = tmp_path / "art.lfs"
    with fill(Store.create(path)) as store:
        for number in range(20):
            with store.write() as transaction:
                latent = picture_latent(100 + number, height=64, width=64)
                add_picture(transaction, tables.ROOT_INO, b"%d.png" % number, latent)
        with store.write() as transaction:
            for number in range(20):
                transaction.remove_file_by_command(tables.ROOT_INO, b"%d.png" % number)
    return path


def database_bytes(path):
    return (path / "lmdb" / "data.mdb").stat().st_size


def test_what_was_removed_while_it_was_open_is_discarded(path):
    with Store.open(path, writable=True) as store, store.write() as transaction:
        ino = add_picture(transaction, tables.ROOT_INO, b"open.png", picture_latent(200))
        transaction.remove_file_by_command(tables.ROOT_INO, b"open.png", is_mounted=True)
    compact(path)
    with Store.open(path) as store:
        with store.read() as snapshot:
            assert list(snapshot.orphans()) == []
            assert snapshot.inode(ino) is None
        assert problems(store) == []


def test_damaged_lists_of_what_was_removed_keep_nothing_from_being_given_back(path):
    with Store.open(path, writable=True) as store:
        with store.write() as transaction:
            ino = add_picture(transaction, tables.ROOT_INO, b"kept.png", picture_latent(200))
        damage = Layer()
        for listed in (ino, 999):
            damage.put("catalog", tables.orphan_key(listed), b"")
        store.apply(damage)
    before_bytes = database_bytes(path)
    compact(path)
    assert database_bytes(path) < before_bytes
    with Store.open(path) as store, store.read() as snapshot:
        assert snapshot.inode(ino) is not None
        assert snapshot.lookup(tables.ROOT_INO, b"kept.png") == ino


def test_the_same_rows_take_less(path):
    with Store.open(path) as store:
        before = copied_rows(store)
        assert store.free_bytes() > 100_000
    size_bytes = database_bytes(path)
    done = compact(path)
    assert (done.before_bytes, done.after_bytes) == (size_bytes, database_bytes(path))
    assert done.after_bytes < size_bytes / 2
    with Store.open(path, writable=True) as store:
        after = copied_rows(store)
        # The picture that was known by these bytes is gone, others have the same.
        assert [key for key, _ in after["renditions"]] == [bytes(32)]
        assert {**after, "renditions": before["renditions"]} == before
        assert problems(store) == []
        assert store.free_bytes() < 20_000
        with store.write() as transaction:
            add_picture(transaction, tables.ROOT_INO, b"new.png", picture_latent(7))
        assert problems(store) == []
    assert compact(path).removed == ()


def test_mode_and_owner_stay(path):
    database = path / "lmdb" / "data.mdb"
    database.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(database, 12, 34)
    before = database.stat()
    compact(path)
    after = database.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )
    assert after.st_ino != before.st_ino


def test_what_belongs_to_nothing_is_removed(path):
    with Store.open(path) as store, store.read() as snapshot:
        ((_, vae),) = snapshot.vaes()
    (path / "vae" / vae.id).mkdir()
    for folder in ("stranger", ".new-abc"):
        (path / "vae" / folder).mkdir()
        (path / "vae" / folder / "config.json").write_bytes(b"12345")
    (path / "vae" / "stray").symlink_to("/nowhere")
    (path / "lmdb" / "data.mdb.new").write_bytes(b"left")
    (path / "latentfs.toml.new").write_bytes(b"left")
    done = compact(path)
    assert [entry.name for entry in (path / "vae").iterdir()] == [vae.id]
    assert sorted(entry.name for entry in (path / "lmdb").iterdir()) == ["data.mdb", "lock.mdb"]
    assert not (path / "latentfs.toml.new").exists()
    assert len(done.removed) == 5
    assert done.removed_bytes == 18


def test_vaes_that_only_recipes_name_stay(path):
    """Without its record nothing says so but the recipes of the pictures that need it."""
    (path / "vae" / VAE.id).mkdir()
    (path / "vae" / "stranger").mkdir()
    with Store.open(path, writable=True) as store:
        Damage(store).delete("catalog", b"vae:tiny")
    assert [left.name for left in compact(path).removed] == ["stranger"]
    assert [entry.name for entry in (path / "vae").iterdir()] == [VAE.id]


def test_a_recipe_that_can_not_be_read_may_name_any_vae(path):
    for folder in ("stranger", ".new-abc"):
        (path / "vae" / folder).mkdir()
    with Store.open(path, writable=True) as store:
        Damage(store).put("catalog", b"recipe:" + RECIPE.id, b"{")
    assert [left.name for left in compact(path).removed] == [".new-abc"]


def test_renditions_of_what_is_gone_are_forgotten(path):
    with Store.open(path, writable=True) as store, store.write_rows() as rows:
        found = Snapshot(rows).resolve("/a.png")
        assert found is not None
        assert found[1].content is not None
        gone = msgspec.structs.replace(found[1].content, payload=999, rendition_sha256=b"\x07" * 32)
        rows.put("renditions", gone.rendition_sha256, msgspec.msgpack.encode(gone))
    compact(path)
    with Store.open(path) as store:
        assert [key for key, _ in copied_rows(store)["renditions"]] == [bytes(32)]
        assert problems(store) == []


def test_not_while_another_has_it_open(path, monkeypatch):
    monkeypatch.setattr(use_lock, "_WAIT_S", 0.05)
    before = database_bytes(path)
    lock = UseLock(path)
    with pytest.raises(StoreLockedError):
        compact(path)
    lock.release()
    assert database_bytes(path) == before


def test_too_little_space(path, monkeypatch):
    def almost_full(where):
        return os.statvfs_result((4096, 4096, 100, 9, 9, 0, 0, 0, 0, 255))

    before = database_bytes(path)
    monkeypatch.setattr(os, "statvfs", almost_full)
    with pytest.raises(StoreFullError, match=f"takes a copy of .* bytes, {9 * 4096} are free"):
        compact(path)
    assert database_bytes(path) == before


def test_a_copy_that_is_not_the_same_is_not_taken(path, monkeypatch):
    with Store.open(path) as store:
        before = copied_rows(store)
    copy_database = Store.copy_database

    def copy_another(store, target):
        with fill(Store.create(path.parent / "other.lfs")) as other:
            with other.write() as transaction:
                transaction.make_directories("/more", uid=0, gid=0)
            copy_database(other, target)

    monkeypatch.setattr(Store, "copy_database", copy_another)
    with pytest.raises(StoreCorruptError, match="is not the same"):
        compact(path)
    assert not (path / "lmdb" / "data.mdb.new").exists()
    with Store.open(path) as store:
        assert {**copied_rows(store), "renditions": before["renditions"]} == before
