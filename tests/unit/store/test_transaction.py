"""A transaction keeps counts, totals and pages in order; a snapshot reads back what was written."""

import lmdb
import msgspec
import numpy as np
import pytest
import zstandard
from store_contents import RECIPE, VAE, add_picture, picture_latent, problems, sized_payload

from latentfs.errors import PathError, StoreCorruptError, VaeNotFoundError
from latentfs.latents import payload as payload_codec
from latentfs.store import tables
from latentfs.store.records import Totals
from latentfs.store.snapshot import blob_id, check_name, split_path
from latentfs.store.store import Store
from latentfs.store.transaction import pack_blob

ROOT = tables.ROOT_INO
TAIL, PAGE, HEAD = 994, 4096, 16
BOUNDARIES = [TAIL, 2 * TAIL, 3 * TAIL, 4 * TAIL, PAGE - HEAD, PAGE]
BOUNDARIES += [k * PAGE - HEAD + tail for k in (1, 2, 3, 16) for tail in (0, TAIL, 2 * TAIL)]
SIZES = sorted({50, 51} | {size + off for size in BOUNDARIES for off in (-1, 0, 1)})


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "art.lfs") as store:
        yield store


def entries(store, ino=ROOT):
    with store.read() as snapshot:
        return dict(snapshot.entries(ino))


# Payloads


def test_payloads_of_every_size_around_a_boundary_come_back(store):
    with store.write() as transaction:
        ids = {size: transaction.add_payload(*sized_payload(size)) for size in SIZES}
    with store.read() as snapshot:
        for size, payload in ids.items():
            assert snapshot.payload(payload) == sized_payload(size)[1]
            assert snapshot.payload_bytes(payload) == size
            header = snapshot.payload_header(payload)
            assert header is not None
            assert header.digest == sized_payload(size)[0]
        assert list(snapshot.payload_ids()) == list(ids.values())
        assert snapshot.totals().payload_bytes == sum(SIZES)


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_whole_pages_and_a_tail_of_small_rows(size):
    payload = bytes(np.random.default_rng(0).bytes(size))
    rows = list(tables.split_payload(payload))
    assert b"".join(rows) == payload
    assert all(rows)
    if size >= PAGE - HEAD:
        assert (len(rows[0]) + HEAD) % PAGE == 0
        assert size - len(rows[0]) < PAGE
        rows = rows[1:]
    assert all(len(row) == TAIL for row in rows[:-1])
    assert all(len(row) <= TAIL for row in rows)


def test_no_payload_has_no_rows():
    assert list(tables.split_payload(b"")) == []


@pytest.mark.parametrize("typical_bytes", [20_000, 100_000])
def test_payloads_waste_no_pages(store, typical_bytes):
    # The fill-up of half a page each would be 10% and 2% here.
    sizes = np.random.default_rng(0).integers(typical_bytes // 2, typical_bytes * 3 // 2, size=200)
    empty_bytes = store.statistics().store_bytes
    with store.write() as transaction:
        for number, size in enumerate(sizes.tolist()):
            transaction.add_payload(*sized_payload(size, number=number))
    used_bytes = store.statistics().store_bytes - empty_bytes
    index_bytes = 200 * 64
    assert used_bytes <= 1.02 * sizes.sum() + 2 * index_bytes


def test_an_unknown_payload(store):
    with store.read() as snapshot:
        assert snapshot.payload(7) is None
        assert snapshot.payload_bytes(7) == 0
        assert snapshot.payload_header(7) is None
        assert snapshot.payload_of_digest(bytes(32)) is None


def test_equal_latents_are_stored_once_and_freed_with_their_last_file(store):
    latent = picture_latent(1)
    with store.write() as transaction:
        for name in (b"a.png", b"b.png", b"c.png"):
            add_picture(transaction, ROOT, name, latent)
    with store.read() as snapshot:
        assert [references for _, _, references in snapshot.payload_index()] == [3]
        assert snapshot.totals().payloads == 1
    for left, name in ((2, b"b.png"), (1, b"a.png"), (0, b"c.png")):
        with store.write() as transaction:
            transaction.remove_file_by_command(ROOT, name)
        with store.read() as snapshot:
            found = [references for _, _, references in snapshot.payload_index()]
            assert found == [left] * (left > 0)
            assert len(list(snapshot.payload_ids())) == (left > 0)
        assert problems(store) == []


def test_what_is_removed_beside_a_mount_stays_until_it_is_discarded(store):
    with store.write() as transaction:
        ino = add_picture(transaction, ROOT, b"a.png", picture_latent(1))
    before = entries(store)
    assert before == {b"a.png": ino}
    with store.write() as transaction:
        transaction.remove_file_by_command(ROOT, b"a.png", is_mounted=True)
    with store.read() as snapshot:
        assert list(snapshot.orphans()) == [ino]
        inode = snapshot.inode(ino)
        assert inode is not None
        assert inode.nlink == 0
        assert snapshot.payload(inode.content.payload)
    assert entries(store) == {}
    assert problems(store) == []
    with store.write() as transaction:
        transaction.discard(ino)
    with store.read() as snapshot:
        assert list(snapshot.orphans()) == []
        assert snapshot.totals() == Totals(directories=1)
    assert problems(store) == []


@pytest.mark.parametrize("is_mounted", [False, True])
def test_a_file_whose_links_were_counted_wrong_can_be_removed(store, is_mounted):
    with store.write() as transaction:
        ino = add_picture(transaction, ROOT, b"a.png", picture_latent(1))
        transaction.put_inode(ino, msgspec.structs.replace(transaction.inode(ino), nlink=0))
    with store.write() as transaction:
        transaction.remove_file_by_command(ROOT, b"a.png", is_mounted=is_mounted)
    with store.read() as snapshot:
        assert list(snapshot.orphans()) == [ino] * is_mounted
        assert (snapshot.inode(ino) is not None) == is_mounted
    assert problems(store) == []


def test_removing_a_picture_frees_all_that_only_it_used(store):
    with store.write() as transaction:
        add_picture(
            transaction,
            ROOT,
            b"a.png",
            picture_latent(1, height=40, width=40),
            chunks=(b"prompt", b"workflow"),
            metadata=b"{}",
        )
    with store.write() as transaction:
        transaction.remove_file_by_command(ROOT, b"a.png")
    with store.read() as snapshot:
        assert snapshot.totals() == Totals(directories=1)
        assert list(snapshot.payload_index()) == list(snapshot.blobs()) == []
        assert list(snapshot.payload_ids()) == []
        assert [ino for ino, _ in snapshot.inodes()] == [ROOT]
        for table in ("payloads", "metadata", "payload_index", "dentries"):
            assert list(snapshot._rows.keys(table)) == []
    assert problems(store) == []


def test_pages_of_removed_pictures_are_used_again(store):
    with store.write() as transaction:
        add_picture(transaction, ROOT, b"0.png", picture_latent(0, height=90, width=90))
    file = store.path / "lmdb" / "data.mdb"
    sizes = []
    for number in range(1, 40):
        with store.write() as transaction:
            transaction.remove_file_by_command(ROOT, b"%d.png" % (number - 1))
            latent = picture_latent(number, height=90, width=90)
            add_picture(transaction, ROOT, b"%d.png" % number, latent)
        sizes.append(file.stat().st_size)
    assert sizes[-1] == sizes[10]


# Metadata


@pytest.mark.parametrize("data", [b"", b"x", b"workflow" * 100_000, bytes(range(256))])
def test_metadata_comes_back(store, data):
    with store.write() as transaction:
        blob = transaction.add_blob(pack_blob(data))
        assert transaction.add_blob(pack_blob(data)) == blob == blob_id(data)
    with store.read() as snapshot:
        assert snapshot.blob(blob) == data
        assert list(snapshot.blobs()) == [(blob, 0)]
        assert snapshot.blob(bytes(16)) is None


def test_metadata_is_shared_and_counted(store):
    with store.write() as transaction:
        add_picture(transaction, ROOT, b"a.png", picture_latent(1), chunks=(b"p", b"p", b"w"))
        add_picture(transaction, ROOT, b"b.png", picture_latent(2), chunks=(b"p",), metadata=b"w")
    with store.read() as snapshot:
        assert dict(snapshot.blobs()) == {blob_id(b"p"): 3, blob_id(b"w"): 2}
    with store.write() as transaction:
        transaction.remove_file_by_command(ROOT, b"a.png")
    with store.read() as snapshot:
        assert dict(snapshot.blobs()) == {blob_id(b"p"): 1, blob_id(b"w"): 1}
        assert snapshot.blob(blob_id(b"w")) == b"w"
    assert problems(store) == []


def test_metadata_that_does_not_decompress(store):
    with store.write() as transaction:
        blob = transaction.add_blob(pack_blob(b"prompt"))
        transaction._put("metadata", tables.blob_key(blob), b"noise")
    with store.read() as snapshot, pytest.raises(StoreCorruptError, match=blob.hex()):
        snapshot.blob(blob)


def _flip_a_bit(store, blob):
    """Damage a stored blob as a bad disk does; return what is stored then."""
    with store.write_rows() as rows:
        stored = bytearray(rows.get("metadata", tables.blob_key(blob)))
        stored[stored.index(b"cat")] ^= 2
        rows.put("metadata", tables.blob_key(blob), bytes(stored))
    return bytes(stored)


def test_metadata_with_a_flipped_bit_is_an_error_and_no_other_metadata(store):
    with store.write() as transaction:
        blob = transaction.add_blob(pack_blob(b"a cat on a mat"))
    assert zstandard.decompress(_flip_a_bit(store, blob)) == b"a aat on a mat"
    with store.read() as snapshot, pytest.raises(StoreCorruptError, match=blob.hex()):
        snapshot.blob(blob)


def test_storing_metadata_again_repairs_it_and_keeps_its_references(store):
    with store.write() as transaction:
        add_picture(transaction, ROOT, b"a.png", picture_latent(1), chunks=(b"a cat on a mat",))
    blob = blob_id(b"a cat on a mat")
    _flip_a_bit(store, blob)
    with store.write() as transaction:
        add_picture(transaction, ROOT, b"b.png", picture_latent(2), chunks=(b"a cat on a mat",))
    with store.read() as snapshot:
        assert snapshot.blob(blob) == b"a cat on a mat"
        assert dict(snapshot.blobs()) == {blob: 2}
    assert problems(store) == []


def test_storing_metadata_again_repairs_what_is_lost_of_it(store):
    with store.write() as transaction:
        add_picture(transaction, ROOT, b"a.png", picture_latent(1), chunks=(b"prompt",))
        transaction._rows.delete("metadata", tables.blob_key(blob_id(b"prompt")))
    with store.write() as transaction:
        assert transaction.add_blob(pack_blob(b"prompt")) == blob_id(b"prompt")
    assert problems(store) == []


def test_intact_metadata_is_not_written_again(store):
    """Whatever version of zstd compressed it."""
    data = b"a cat on a mat" * 100
    blob = blob_id(data)
    other_frame = zstandard.ZstdCompressor(level=1).compress(data)
    with store.write() as transaction:
        transaction.add_blob(pack_blob(data))
        transaction._put("metadata", tables.blob_key(blob), other_frame)
        transaction.add_blob(pack_blob(data))
        assert transaction._get("metadata", tables.blob_key(blob)) == other_frame


# Names and folders


@pytest.mark.parametrize("name", ["a", "a b.png", "ä" * 127 + "x", "...", "a\nb", "\u202e", "~"])
def test_names_that_can_be_used(store, name):
    encoded = check_name(name)
    with store.write() as transaction:
        ino = transaction.make_directories(f"/{name}", uid=1, gid=2)
        add_picture(transaction, ino, encoded, picture_latent(1))
    with store.read() as snapshot:
        found = snapshot.resolve(f"/{name}/{name}")
        assert found is not None
        assert found[1].size_bytes == 1000
    assert problems(store) == []


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("", "can't be used"),
        (".", "can't be used"),
        ("..", "can't be used"),
        ("a/b", "'/' or NUL"),
        ("a\0b", "'/' or NUL"),
        ("a\udcff", "not valid UTF-8"),
        ("x" * 256, "256 bytes long"),
        ("ä" * 128, "256 bytes long"),
    ],
)
def test_names_that_cannot_be_used(name, reason):
    with pytest.raises(PathError, match=reason) as refused:
        check_name(name)
    str(refused.value).encode()  # can be printed


def test_paths():
    assert split_path("/") == split_path("//./") == []
    assert split_path("/a//b/./c/") == [b"a", b"b", b"c"]
    for path in ("", "a", "./a", "/a/../b", "/a\0b", "/\udc80", "/" + "x" * 256):
        with pytest.raises(PathError):
            split_path(path)


def test_a_lookup_of_an_impossible_name_finds_nothing(store):
    with store.read() as snapshot:
        for name in (b"", b"x" * 256, b"x" * 5000, b"\0"):
            assert snapshot.lookup(ROOT, name) is None


def test_folders_are_made_once_and_know_their_parent(store):
    with store.write() as transaction:
        c = transaction.make_directories("/a/b/c", uid=1, gid=2)
        assert transaction.make_directories("/a/b/c", uid=3, gid=4) == c
        assert transaction.make_directories("/", uid=3, gid=4) == ROOT
        transaction.make_directories("/a/d", uid=1, gid=2)
    with store.read() as snapshot:
        inodes = {}
        for path in ("/", "/a", "/a/b", "/a/b/c", "/a/d"):
            found = snapshot.resolve(path)
            assert found is not None
            inodes[path] = found
        assert [inode.nlink for _, inode in inodes.values()] == [3, 4, 3, 2, 2]
        assert inodes["/a/b/c"][1].parent_ino == inodes["/a/b"][0]
        assert (inodes["/a"][1].uid, inodes["/a"][1].gid) == (1, 2)
        assert snapshot.totals() == Totals(directories=5)
    assert problems(store) == []


def test_a_file_is_no_folder(store):
    with store.write() as transaction:
        add_picture(transaction, ROOT, b"a.png", picture_latent(1))
    for path in ("/a.png", "/a.png/b"):
        with store.write() as transaction, pytest.raises(PathError, match="is a file"):
            transaction.make_directories(path, uid=0, gid=0)
    with store.read() as snapshot:
        assert snapshot.resolve("/a.png/b") is None


def test_a_name_is_given_once(store):
    with store.write() as transaction:
        folder = transaction.make_directories("/folder", uid=0, gid=0)
        add_picture(transaction, folder, b"a.png", picture_latent(1))
        for parent, name in ((folder, b"a.png"), (ROOT, b"folder")):
            with pytest.raises(PathError, match="exists already"):
                transaction.add_file(parent, name, transaction.inode(ROOT))


def test_only_files_that_are_there_are_removed(store):
    with store.write() as transaction:
        transaction.make_directories("/folder", uid=0, gid=0)
        for name in (b"folder", b"missing"):
            with pytest.raises(PathError, match="is not a file"):
                transaction.remove_file_by_command(ROOT, name)


def test_entries_are_those_of_one_folder_in_byte_order(store):
    with store.write() as transaction:
        first = transaction.make_directories("/first", uid=0, gid=0)
        second = transaction.make_directories("/second", uid=0, gid=0)
        for number, name in enumerate([b"z", b"a", b"\xc3\xa4", b"a.png"]):
            add_picture(transaction, first, name, picture_latent(number))
        add_picture(transaction, second, b"b", picture_latent(9))
    assert list(entries(store, first)) == [b"a", b"a.png", b"z", b"\xc3\xa4"]
    assert list(entries(store, second)) == [b"b"]
    assert list(entries(store, 999)) == []


def test_inode_numbers_are_never_used_again(store):
    given = []
    for number in range(5):
        with store.write() as transaction:
            given.append(add_picture(transaction, ROOT, b"a.png", picture_latent(number)))
        with store.write() as transaction:
            transaction.remove_file_by_command(ROOT, b"a.png")
    assert len(set(given)) == 5


# Catalog


def test_vaes_and_recipes(store):
    with store.write() as transaction:
        recipe = transaction.put_recipe(RECIPE)
        assert transaction.put_recipe(RECIPE) == recipe
        for name in ("b", "a"):
            transaction.put_vae(name, VAE)
    with store.read() as snapshot:
        assert list(snapshot.vaes()) == [("a", VAE), ("b", VAE)]
        assert snapshot.vae("b") == VAE
        assert snapshot.vae_of_id(VAE.id) == ("a", VAE)
        assert snapshot.vae_of_id("other") is None
        assert snapshot.recipe(recipe) == RECIPE
        assert snapshot.recipe(bytes(16)) is None
        for name in ("c", "", "x" * 5000, "\udcff", "\0"):
            with pytest.raises(VaeNotFoundError, match=r"\(it has: a, b\)"):
                snapshot.vae(name)


def test_a_store_without_vaes_says_so(store):
    with store.read() as snapshot, pytest.raises(VaeNotFoundError, match=r"\(it has: none\)"):
        snapshot.vae("a")


# Changes


def test_what_loses_one_of_its_links_is_to_be_asked_for_anew(store):
    with store.write() as transaction:
        ino = add_picture(transaction, ROOT, b"a.png", picture_latent(1))
        inode = transaction.inode(ino)
        transaction.put_inode(ino, msgspec.structs.replace(inode, nlink=2))
    with store.read() as snapshot:
        first = snapshot.next_change()
    with store.write() as transaction:
        transaction.remove_file_by_command(ROOT, b"a.png")
    with store.read() as snapshot:
        (change,) = snapshot.changes_since(first)
        assert set(change.directories) == {ROOT, ino}


def test_changes_say_what_a_mount_must_forget(store):
    with store.read() as snapshot:
        first = snapshot.next_change()
    with store.write() as transaction:
        folder = transaction.make_directories("/folder", uid=0, gid=0)
        ino = add_picture(transaction, folder, b"a.png", picture_latent(1))
    with store.write() as transaction:
        transaction.remove_file_by_command(folder, b"a.png")
    with store.write() as transaction:
        transaction.put_vae("a", VAE)  # nothing that a kernel knows
    with store.read() as snapshot:
        assert snapshot.next_change() == first + 2
        added, removed = snapshot.changes_since(first)
        assert added.removed == ()
        assert set(added.directories) == {ROOT, folder}
        assert removed.removed == ((folder, b"a.png", ino),)
        assert removed.directories == (folder,)
        assert snapshot.changes_since(first + 1) == [removed]
        assert snapshot.changes_since(first + 2) == []


def test_old_changes_are_dropped(store, monkeypatch):
    monkeypatch.setattr(tables, "CHANGES_KEPT", 5)
    with store.read() as snapshot:
        first = snapshot.next_change()
    for number in range(12):
        with store.write() as transaction:
            transaction.make_directories(f"/{number}", uid=0, gid=0)
    with store.read() as snapshot:
        assert snapshot.next_change() == first + 12
        assert len(snapshot.changes_since(0)) == 5
        assert snapshot.changes_since(0) == snapshot.changes_since(first + 7)


# Records that can't be true


def test_records_that_cannot_be_read_are_named(store):
    with store.write() as transaction:
        transaction._put("inodes", tables.ino_key(7), b"\xc1")
        transaction._put("catalog", b"vae:broken", b"\xc1")
        transaction._put("catalog", b"recipe:" + bytes(16), b"{")
        transaction._put("catalog", b"vae:\xff", b"\xc1")
    with store.read() as snapshot:
        with pytest.raises(StoreCorruptError, match="inode 7"):
            snapshot.inode(7)
        with pytest.raises(StoreCorruptError, match="VAE 'broken'"):
            snapshot.vae("broken")
        with pytest.raises(StoreCorruptError, match="VAE"):
            list(snapshot.vaes())
        with pytest.raises(StoreCorruptError, match="recipe 0000"):
            snapshot.recipe(bytes(16))
    with store._env.begin(write=True, db=store._dbs["catalog"]) as txn:
        txn.put(b"totals", b"\xc1")
        txn.delete(b"next_change")
    with store.read() as snapshot, pytest.raises(StoreCorruptError, match="next_change"):
        snapshot.next_change()
    with store.read() as snapshot, pytest.raises(StoreCorruptError, match="totals"):
        snapshot.totals()


def test_what_lmdb_finds_wrong_is_a_store_error(store):
    with pytest.raises(StoreCorruptError, match="MDB_PAGE_NOTFOUND"), store.read():
        raise lmdb.PageNotFoundError("MDB_PAGE_NOTFOUND")


def test_a_picture_whose_payload_is_gone_can_be_removed_and_not_added(store):
    latent = picture_latent(1)
    with store.write() as transaction:
        ino = add_picture(transaction, ROOT, b"a.png", latent)
        inode = transaction.inode(ino)
        assert inode is not None
        assert inode.content is not None
        transaction._delete_payload_rows(inode.content.payload)
    with pytest.raises(StoreCorruptError, match="latentfs fsck"), store.write() as transaction:
        transaction.add_file(ROOT, b"again.png", inode)
    with store.read() as snapshot:
        assert snapshot.resolve("/again.png") is None
    with store.write() as transaction:
        transaction.remove_file_by_command(ROOT, b"a.png")
    with store.read() as snapshot:
        assert snapshot.resolve("/a.png") is None


def test_sized_payloads_have_headers():
    digest, payload = sized_payload(5000, number=3)
    assert len(payload) == 5000
    assert payload_codec.header(payload).digest == digest


def test_storing_a_latent_again_repairs_its_damaged_payload(store):
    latent = picture_latent(1)
    with store.write() as transaction:
        ino = add_picture(transaction, ROOT, b"a.png", latent)
        number = transaction.inode(ino).content.payload
        whole = transaction.payload(number)
        transaction._put("payloads", tables.payload_key(number, 0), whole[:-1] + b"!" + b"longer")
    assert any(problem.check == "payloads" for problem in problems(store))
    with store.write() as transaction:
        add_picture(transaction, ROOT, b"b.png", latent)
        assert transaction.payload(number) == whole
    assert [p for p in problems(store) if p.check != "totals"] == []
