"""Each check names the damage that it is there for, and no other check does."""

import msgspec
import pytest
from store_contents import RECIPE, VAE, add_picture, picture_latent, problems

from latentfs.latents import payload as payload_codec
from latentfs.store import tables
from latentfs.store.fsck import CHECKS, check_store
from latentfs.store.records import Totals, VaeFile
from latentfs.store.snapshot import Decoders, blob_id
from latentfs.store.store import Store

A, B = picture_latent(1), picture_latent(2, height=40, width=40)


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            folder = transaction.make_directories("/folder", uid=0, gid=0)
            transaction.make_directories("/folder/below", uid=0, gid=0)
            add_picture(transaction, tables.ROOT_INO, b"a.png", A, chunks=(b"prompt",))
            add_picture(transaction, folder, b"b.png", B, metadata=b"{}")
            add_picture(transaction, folder, b"c.png", A)
        yield store


class Damage:
    """Raw changes to a store's tables, past everything that keeps them in order."""

    def __init__(self, store):
        self._store = store

    def put(self, table, key, value):
        with self._store._env.begin(write=True, db=self._store._dbs[table]) as txn:
            txn.put(key, value)

    def delete(self, table, key):
        with self._store._env.begin(write=True, db=self._store._dbs[table]) as txn:
            assert txn.delete(key)

    def get(self, table, key):
        with self._store._env.begin(db=self._store._dbs[table]) as txn:
            return txn.get(key)

    def ino(self, path):
        with self._store.read() as snapshot:
            return snapshot.resolve(path)[0]

    def payload(self, path):
        with self._store.read() as snapshot:
            return snapshot.resolve(path)[1].content.payload

    def change_inode(self, path, **fields):
        key = tables.ino_key(self.ino(path))
        inode = msgspec.structs.replace(Decoders.inode.decode(self.get("inodes", key)), **fields)
        self.put("inodes", key, msgspec.msgpack.encode(inode))

    def change_content(self, path, **fields):
        key = tables.ino_key(self.ino(path))
        inode = Decoders.inode.decode(self.get("inodes", key))
        assert inode.content is not None
        self.change_inode(path, content=msgspec.structs.replace(inode.content, **fields))

    def change_totals(self, **changes):
        totals = Decoders.totals.decode(self.get("catalog", b"totals"))
        self.put("catalog", b"totals", msgspec.msgpack.encode(totals.plus(**changes)))


@pytest.fixture
def damage(store):
    return Damage(store)


def only(store, check, *texts):
    """Assert that only *check* finds something, one problem, and that it says *texts*."""
    found = problems(store)
    assert [problem.check for problem in found] == [check], found
    for text in texts:
        assert text in found[0].message


def test_a_sound_store(store):
    assert problems(store) == []


def test_every_check_says_what_it_checks():
    assert all(check.__doc__ for check in CHECKS.values())


def test_dangling_entry(store, damage):
    damage.put("dentries", tables.dentry_key(damage.ino("/folder"), b"z"), tables.ino_key(999))
    only(store, "dangling-entries", "/folder/z", "999")


def test_missing_root(store, damage):
    damage.delete("inodes", tables.ino_key(tables.ROOT_INO))
    assert "dangling-entries" in {problem.check for problem in problems(store)}


def test_orphan_inode(store, damage):
    inode = damage.get("inodes", tables.ino_key(damage.ino("/folder/below")))
    damage.put("inodes", tables.ino_key(50), inode)
    damage.put("catalog", b"next_ino", msgspec.msgpack.encode(51))
    damage.change_totals(directories=1)
    only(store, "orphan-inodes", "inode 50")


def test_parent(store, damage):
    damage.change_inode("/folder/below", parent_ino=tables.ROOT_INO)
    only(store, "parents", "/folder/below", "inode 1")


def test_parent_of_the_root(store, damage):
    damage.change_inode("/", parent_ino=7)
    only(store, "parents", "/ names inode 7")


@pytest.mark.parametrize("path", ["/", "/folder", "/folder/below", "/a.png"])
def test_link_count(store, damage, path):
    damage.change_inode(path, nlink=9)
    only(store, "link-counts", f"inode {damage.ino(path)} has 9")


def test_a_file_in_two_folders(store, damage):
    key = tables.dentry_key(tables.ROOT_INO, b"again.png")
    damage.put("dentries", key, tables.ino_key(damage.ino("/a.png")))
    only(store, "link-counts", "1 links recorded, 2 found")


def test_a_folder_within_itself(store, damage):
    key = tables.dentry_key(damage.ino("/folder/below"), b"loop")
    damage.put("dentries", key, tables.ino_key(damage.ino("/folder")))
    assert {problem.check for problem in problems(store)} == {"link-counts"}


def test_file_without_a_content(store, damage):
    damage.change_inode("/a.png", content=None)
    found = problems(store)
    assert "contents: /a.png has no content" in [f"{p.check}: {p.message}" for p in found]
    assert {problem.check for problem in found} == {"contents", "payload-references", "metadata"}


def test_missing_recipe(store, damage):
    damage.delete("catalog", b"recipe:" + RECIPE.id)
    found = problems(store)
    assert {problem.check for problem in found} == {"contents"}
    assert len(found) == 3


def test_missing_vae(store, damage):
    damage.delete("catalog", b"vae:tiny")
    found = problems(store)
    assert {problem.check for problem in found} == {"contents"}
    assert all(VAE.id in problem.message for problem in found)


@pytest.mark.parametrize(("path", "data"), [("/a.png", b"prompt"), ("/folder/b.png", b"{}")])
def test_missing_metadata(store, damage, path, data):
    damage.delete("metadata", tables.blob_key(blob_id(data)))
    found = [f"{problem.check}: {problem.message}" for problem in problems(store)]
    assert found[0].startswith(f"contents: {path} needs metadata blob")
    assert found[1].startswith("metadata: ")
    assert len(found) == 2


def test_missing_payload(store, damage):
    payload = damage.payload("/folder/b.png")
    with store.write() as transaction:
        bytes_ = transaction.payload_bytes(payload)
        transaction._delete_payload_rows(payload)
    damage.change_totals(payloads=-1, payload_bytes=-bytes_)
    found = problems(store)
    assert [problem.check for problem in found] == ["contents", "payload-index"]
    assert "/folder/b.png" in found[0].message


def test_size(store, damage):
    damage.change_inode("/a.png", size_bytes=0)
    damage.change_totals(size_bytes=-1000)
    only(store, "sizes", "/a.png has size 0")


def test_dimensions(store, damage):
    damage.change_content("/a.png", width=16, height=24)
    only(store, "sizes", "16x24", "24x16")


@pytest.mark.parametrize("where", ["header", "body"])
def test_damaged_payload(store, damage, where):
    key = tables.payload_key(damage.payload("/folder/b.png"), 0)
    row = bytearray(damage.get("payloads", key))
    row[0 if where == "header" else 2000] ^= 0xFF
    damage.put("payloads", key, bytes(row))
    only(store, "payloads", "/folder/b.png")


def test_truncated_payload(store, damage):
    key = tables.payload_key(damage.payload("/folder/b.png"), 0)
    row = damage.get("payloads", key)
    damage.put("payloads", key, row[:-10])
    damage.change_totals(payload_bytes=-10)
    only(store, "payloads", "/folder/b.png", "should have")


def test_missing_row(store, damage):
    payload = damage.payload("/folder/b.png")
    row = damage.get("payloads", tables.payload_key(payload, 1))
    damage.delete("payloads", tables.payload_key(payload, 1))
    damage.change_totals(payload_bytes=-len(row))
    only(store, "payloads", "/folder/b.png")


def test_payload_reference_count(store, damage):
    entry = tables.ino_key(damage.payload("/a.png"))
    damage.put("payload_index", A.digest(), entry + tables.ino_key(3))
    only(store, "payload-references", "3 references recorded, 2 found")


def test_payload_that_no_file_uses(store):
    with store.write() as transaction:
        unused = picture_latent(3)
        transaction.add_payload(unused.digest(), payload_codec.encode(unused))
    only(store, "payload-references", "no file uses")


def test_payload_that_is_not_in_the_index(store, damage):
    damage.delete("payload_index", A.digest())
    only(store, "payload-references", "is not in the index")


def test_payload_under_another_digest(store, damage):
    entry = damage.get("payload_index", A.digest())
    damage.delete("payload_index", A.digest())
    damage.put("payload_index", bytes(32), entry)
    only(store, "payload-index", "another digest")


def test_metadata_that_does_not_hash_to_its_name(store, damage):
    other = damage.get("metadata", tables.blob_key(blob_id(b"{}")))
    damage.put("metadata", tables.blob_key(blob_id(b"prompt")), other)
    only(store, "metadata", "does not hash")


def test_metadata_that_does_not_decompress(store, damage):
    damage.put("metadata", tables.blob_key(blob_id(b"{}")), b"noise")
    only(store, "metadata", blob_id(b"{}").hex())


def test_metadata_reference_count(store, damage):
    damage.put("metadata", tables.blob_references_key(blob_id(b"prompt")), tables.ino_key(5))
    only(store, "metadata", "5 references recorded, 1 found")


def test_metadata_without_a_reference_count(store, damage):
    damage.delete("metadata", tables.blob_references_key(blob_id(b"{}")))
    only(store, "metadata", "0 references recorded, 1 found")


def test_metadata_that_no_file_uses(store):
    with store.write() as transaction:
        transaction.add_blob(b"unused")
    only(store, "metadata", "no file uses")


def test_vae_files(store, damage):
    file = VaeFile("config.json", 2, "0" * 64)
    record = msgspec.structs.replace(VAE, files=(file,))
    damage.put("catalog", b"vae:tiny", msgspec.msgpack.encode(record))
    only(store, "vaes", "'tiny'", "can't be read")
    folder = store.path / "vae" / VAE.id
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    only(store, "vaes", "'tiny'", "is not what was added")


@pytest.mark.parametrize("counter", [b"next_ino", b"next_payload"])
def test_counters(store, damage, counter):
    damage.put("catalog", counter, msgspec.msgpack.encode(2))
    only(store, "counters", counter.decode())


@pytest.mark.parametrize("field", Totals.__struct_fields__)
def test_totals(store, damage, field):
    damage.change_totals(**{field: 1})
    only(store, "totals", f"{field}=")


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("inodes", tables.ino_key(50), b"\xc1"),
        ("catalog", b"vae:a\xff", b"\xc1"),
        ("payloads", b"short", b"x"),
    ],
)
def test_records_that_cannot_be_read_do_not_end_the_checking(store, damage, table, key, value):
    damage.put(table, key, value)
    damage.change_totals(files=1)
    found = problems(store)
    assert found
    damage.change_inode("/a.png", nlink=9)
    assert len(problems(store)) >= len(found)


def test_progress_is_told_for_each_payload(store):
    told = []
    with store.read() as snapshot:
        assert list(check_store(store.path, snapshot, progress=lambda: told.append(1))) == []
    assert len(told) == 2
