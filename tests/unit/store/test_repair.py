"""A repair puts right what can be without guessing, keeps what is left of files, and is done once.

The test at the end damages rows at random: nothing of it may ever raise.
"""

import random
import shutil
import stat

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_contents import RECIPE, add_picture, picture_latent, problems
from store_damage import LATENT_A, LATENT_B, NOISE, Damage, copied_rows, fill

from latentfs.latents import payload as payload_codec
from latentfs.store import tables
from latentfs.store.file_transaction import FileTransaction
from latentfs.store.fsck.repair import repair_store
from latentfs.store.snapshot import blob_id
from latentfs.store.store import Store
from latentfs.store.transaction import pack_blob

ROOT = tables.ROOT_INO


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    path = tmp_path_factory.mktemp("repair") / "art.lfs"
    fill(Store.create(path)).close()
    return path


@pytest.fixture
def store(filled, tmp_path):
    with Store.open(shutil.copytree(filled, tmp_path / "art.lfs"), writable=True) as store:
        yield store


@pytest.fixture
def damage(store):
    return Damage(store)


def tree(store):
    """Paths in the store and the inodes that they lead to."""
    found = {}
    with store.read() as snapshot:

        def walk(path, ino):
            for name, child in snapshot.entries(ino):
                found[f"{path}/{name.decode()}"] = child
                inode = snapshot.inode(child)
                if inode is not None and inode.is_directory:
                    walk(f"{path}/{name.decode()}", child)

        walk("", ROOT)
    return found


def repaired(store, *checks):
    """Repair, and assert that it took *checks*, that nothing is wrong then or to be done again."""
    done = repair_store(store)
    assert {repair.check for repair in done} == set(checks), done
    assert problems(store) == []
    assert repair_store(store) == []


def test_a_sound_store_is_left_as_it_is(store):
    before = copied_rows(store)
    assert repair_store(store) == []
    assert copied_rows(store) == before


# Entries and folders


def test_dangling_entries_are_removed(store, damage):
    before = tree(store)
    for name in (b"gone", b"..", b"a/b"):
        damage.put("dentries", tables.dentry_key(damage.ino("/folder"), name), tables.ino_key(999))
    damage.put("dentries", tables.dentry_key(ROOT, b"short"), b"\x01")
    damage.put("dentries", tables.dentry_key(damage.ino("/a.png"), b"x"), tables.ino_key(2))
    repaired(store, "dangling-entries")
    assert tree(store) == before


def test_a_file_in_no_folder_goes_to_lost_and_found(store, damage):
    ino = damage.ino("/folder/b.png")
    damage.delete("dentries", tables.dentry_key(damage.ino("/folder"), b"b.png"))
    repaired(store, "orphan-inodes", "link-counts", "totals")
    assert tree(store)[f"/lost+found/inode-{ino}"] == ino
    assert damage.inode(f"/lost+found/inode-{ino}").content is not None
    assert stat.S_IMODE(damage.inode("/lost+found").mode) == 0o700


def test_lost_and_found_is_used_again(store, damage):
    for name in (b"noise", b"again", b"fifo"):
        if name == b"fifo":
            repair_store(store)
        damage.delete("dentries", tables.dentry_key(damage.ino("/notes"), name))
    repaired(store, "orphan-inodes")
    assert sorted(path for path in tree(store) if path.startswith("/lost+found/")) == [
        "/lost+found/inode-10",
        "/lost+found/inode-8",
    ]
    assert damage.inode("/lost+found/inode-8").nlink == 1


def test_a_file_called_lost_and_found_stays(store, damage):
    with store.write() as transaction:
        add_picture(transaction, ROOT, b"lost+found", picture_latent(5))
    ino = damage.ino("/notes/fifo")
    damage.delete("dentries", tables.dentry_key(damage.ino("/notes"), b"fifo"))
    repaired(store, "orphan-inodes", "link-counts", "totals")
    assert damage.ino(f"/lost+found-2/inode-{ino}") == ino
    assert damage.inode("/lost+found").content is not None


def test_a_name_that_is_taken_in_lost_and_found(store, damage):
    ino = damage.ino("/notes/fifo")
    with store.write() as transaction:
        folder = transaction.make_directories("/lost+found", uid=0, gid=0)
        add_picture(transaction, folder, b"inode-%d" % ino, picture_latent(5))
    damage.delete("dentries", tables.dentry_key(damage.ino("/notes"), b"fifo"))
    repaired(store, "orphan-inodes")
    assert damage.ino(f"/lost+found/inode-{ino}-2") == ino


def test_a_lost_folder_keeps_what_is_in_it(store, damage):
    ino = damage.ino("/folder")
    damage.delete("dentries", tables.dentry_key(ROOT, b"folder"))
    repaired(store, "orphan-inodes", "link-counts", "totals")
    lost = f"/lost+found/inode-{ino}"
    assert {f"{lost}/b.png", f"{lost}/c.png", f"{lost}/below"} <= tree(store).keys()


def test_a_ring_of_folders_is_opened(store, damage):
    folder, below = damage.ino("/folder"), damage.ino("/folder/below")
    damage.delete("dentries", tables.dentry_key(ROOT, b"folder"))
    damage.put("dentries", tables.dentry_key(below, b"ring"), tables.ino_key(folder))
    repaired(store, "orphan-inodes", "parents", "link-counts", "totals")
    assert damage.ino(f"/lost+found/inode-{folder}/below") == below


def test_a_folder_in_two_places_stays_in_one(store, damage):
    before = tree(store)
    damage.put(
        "dentries",
        tables.dentry_key(damage.ino("/folder/below"), b"loop"),
        tables.ino_key(damage.ino("/folder")),
    )
    damage.put("dentries", tables.dentry_key(damage.ino("/notes"), b"root"), tables.ino_key(ROOT))
    repaired(store, "parents")
    assert tree(store) == before


def test_a_missing_folder_is_made_again(store, damage):
    before = tree(store)
    damage.delete("inodes", tables.ino_key(damage.ino("/notes")))
    repaired(store, "dangling-entries")
    assert tree(store) == before


def test_a_damaged_folder_is_made_again(store, damage):
    before = tree(store)
    damage.put("inodes", tables.ino_key(damage.ino("/notes")), b"\xc1")
    repaired(store, "dangling-entries")
    assert tree(store) == before


@pytest.mark.parametrize("value", [None, b"\xc1"])
def test_a_missing_root_is_made_again(store, damage, value):
    before = tree(store)
    if value is None:
        damage.delete("inodes", tables.ino_key(ROOT))
    else:
        damage.put("inodes", tables.ino_key(ROOT), value)
    repaired(store, "dangling-entries", "link-counts")
    assert tree(store) == before


def test_a_file_in_the_place_of_the_root_is_kept(store, damage):
    key = tables.ino_key(damage.ino("/notes/fifo"))
    damage.put("inodes", tables.ino_key(ROOT), damage.get("inodes", key))
    assert repair_store(store)
    assert problems(store) == []
    (lost,) = (path for path in tree(store) if path.startswith("/lost+found/"))
    assert stat.S_ISFIFO(damage.inode(lost).mode)


@pytest.mark.parametrize("path", ["/", "/folder", "/folder/below", "/a.png", "/notes/noise"])
def test_link_counts(store, damage, path):
    damage.change_inode(path, nlink=77)
    repaired(store, "link-counts")


@pytest.mark.parametrize("path", ["/", "/folder/below", "/a.png"])
def test_parents(store, damage, path):
    damage.change_inode(path, parent_ino=77)
    repaired(store, "link-counts")


# Orphans


def orphaned(store, damage):
    with store.write_rows() as rows:
        transaction = FileTransaction(rows)
        folder = damage.ino("/folder")
        transaction.remove_entry(folder, b"b.png", directory=False)
        transaction.remove_entry(folder, b"below", directory=True)
        notes = damage.ino("/notes")
        for name in (b"noise", b"again"):
            transaction.remove_entry(notes, name, directory=False)
        transaction.finish()


def test_orphans_are_discarded_with_all_they_had(store, damage):
    orphaned(store, damage)
    assert problems(store) == []
    repaired(
        store,
        "orphan-inodes",
        "chunks",
        "xattrs",
        "payload-references",
        "metadata",
        "totals",
    )
    assert damage.keys("chunks") == damage.keys("xattrs") == []
    assert "/lost+found" not in tree(store)


def test_rows_of_orphans_that_are_none(store, damage):
    damage.put("catalog", tables.orphan_key(damage.ino("/a.png")), b"")
    damage.put("catalog", tables.orphan_key(999), b"")
    repaired(store, "orphan-inodes")


def test_a_file_without_links_that_is_not_listed_is_kept(store, damage):
    ino = damage.ino("/notes/fifo")
    damage.change_inode("/notes/fifo", nlink=0)
    damage.delete("dentries", tables.dentry_key(damage.ino("/notes"), b"fifo"))
    repaired(store, "orphan-inodes", "link-counts", "totals")
    assert damage.inode(f"/lost+found/inode-{ino}").nlink == 1


# What files are kept as


@pytest.mark.parametrize("path", ["/notes/link", "/notes/fifo", "/folder"])
def test_sizes_of_what_is_no_file(store, damage, path):
    damage.change_inode(path, size_bytes=300)
    if path != "/folder":
        damage.change_totals(size_bytes=300 - (5 if path == "/notes/link" else 0))
    assert {repair.check for repair in repair_store(store)} <= {"sizes", "totals"}
    assert problems(store) == []


def test_a_file_is_as_long_as_its_chunks(store, damage):
    damage.change_inode("/notes/noise", size_bytes=10, chunks=1)
    damage.change_totals(size_bytes=10 - len(NOISE))
    repaired(store, "chunks", "totals")
    inode = damage.inode("/notes/noise")
    assert (inode.size_bytes, inode.chunks) == (len(NOISE), 3)
    with store.read() as snapshot:
        assert snapshot.bytes_of(damage.ino("/notes/noise"), offset=0, end=len(NOISE)) == NOISE


def test_chunks_and_attributes_of_nothing_are_removed(store, damage):
    before = damage.keys("chunks"), damage.keys("xattrs")
    for ino in (900, damage.ino("/a.png"), damage.ino("/folder"), damage.ino("/notes/fifo")):
        damage.put("chunks", tables.chunk_key(ino, 3), b"\0x")
    damage.put("xattrs", tables.xattr_key(900, b"user.x"), b"")
    repaired(store, "chunks", "xattrs")
    assert (damage.keys("chunks"), damage.keys("xattrs")) == before


def test_what_may_belong_to_a_damaged_inode_is_left_alone(store, damage):
    kept = {t: damage.keys(t) for t in ("chunks", "xattrs", "payloads", "metadata", "dentries")}
    for path in ("/notes/noise", "/folder/b.png"):
        damage.put("inodes", tables.ino_key(damage.ino(path)), b"\xc1")
    assert {repair.check for repair in repair_store(store)} == {"totals"}
    assert {t: damage.keys(t) for t in kept} == kept
    found = problems(store)
    assert {problem.check for problem in found} == {"records", "payload-references", "metadata"}
    assert repair_store(store) == []


def test_references(store, damage):
    entry = tables.ino_key(damage.payload("/a.png"))
    damage.put("payload_index", LATENT_A.digest(), entry + tables.ino_key(1))
    damage.put("metadata", tables.blob_references_key(blob_id(b"prompt")), tables.ino_key(7))
    damage.delete("metadata", tables.blob_references_key(blob_id(b"{}")))
    repaired(store, "payload-references", "metadata")


def test_what_no_file_uses_is_removed(store):
    with store.write() as transaction:
        unused = picture_latent(3)
        transaction.add_payload(unused.digest(), payload_codec.encode(unused))
        transaction.add_blob(pack_blob(b"unused"))
    repaired(store, "payload-references", "metadata", "totals")


def test_the_index_of_payloads(store, damage):
    a = damage.get("payload_index", LATENT_A.digest())
    b = damage.get("payload_index", LATENT_B.digest())
    damage.put("payload_index", LATENT_A.digest(), b)
    damage.put("payload_index", LATENT_B.digest(), b"short")
    damage.put("payload_index", bytes(32), a)
    assert repair_store(store)
    assert problems(store) == []
    assert damage.get("payload_index", LATENT_A.digest()) == a
    assert damage.get("payload_index", LATENT_B.digest()) == b


def test_a_payload_that_is_gone_can_still_be_put_back(store, damage):
    payload = damage.payload("/folder/b.png")
    for key in damage.keys("payloads"):
        if tables.parse_payload_key(key)[0] == payload:
            damage.delete("payloads", key)
    assert [repair.check for repair in repair_store(store)] == ["totals"]
    assert {problem.check for problem in problems(store)} == {"contents", "payload-index"}
    assert repair_store(store) == []
    with store.write() as transaction:
        again = transaction.add_payload(LATENT_B.digest(), payload_codec.encode(LATENT_B))
    assert again == payload
    assert problems(store) == []


def test_recipes_are_kept_under_their_names(store, damage):
    value = damage.get("catalog", b"recipe:" + RECIPE.id)
    damage.delete("catalog", b"recipe:" + RECIPE.id)
    damage.put("catalog", b"recipe:" + bytes(16), value)
    repaired(store, "recipes")


def test_renditions(store, damage):
    (key,) = damage.keys("renditions")
    damage.put("renditions", b"\x07" * 32, damage.get("renditions", key))
    damage.delete("renditions", key)
    repaired(store, "renditions")
    assert damage.keys("renditions") == [key]


@pytest.mark.parametrize("counter", [b"next_ino", b"next_payload", b"next_change"])
def test_counters(store, damage, counter):
    damage.put_counter(counter, 1)
    repaired(store, "counters")
    damage.delete("catalog", counter)
    repaired(store, "counters")


@pytest.mark.parametrize("value", [b"\xc1", msgspec.msgpack.encode([1, 2, 3, 4, 5])])
def test_totals(store, damage, value):
    damage.put("catalog", b"totals", value)
    repaired(store, "totals")


def test_changes_that_cannot_be_read(store, damage):
    damage.put("catalog", tables.change_key(2), b"\xc1")
    repaired(store, "records")


def test_what_cannot_be_repaired_stays_reported(store, damage):
    key = tables.payload_key(damage.payload("/folder/b.png"), 0)
    row = bytearray(damage.get("payloads", key))
    row[2000] ^= 1
    damage.put("payloads", key, bytes(row))
    damage.delete("catalog", b"vae:tiny")
    damage.put("chunks", tables.chunk_key(damage.ino("/notes/noise"), 0), b"\x07")
    before = problems(store)
    assert {problem.check for problem in before} == {"payloads", "missing-vaes", "chunks"}
    assert repair_store(store) == []
    assert problems(store) == before


@pytest.mark.parametrize("what", ["payload", "header", "metadata"])
def test_what_is_damaged_can_still_be_removed(store, damage, what):
    payload = tables.payload_key(damage.payload("/folder/b.png"), 0)
    if what == "payload":
        damage.delete("payloads", payload)
    elif what == "header":
        damage.put("payloads", payload, b"no payload")
    else:
        damage.delete("metadata", tables.blob_references_key(blob_id(b"{}")))
    with store.write() as transaction:
        transaction.remove_file_by_command(damage.ino("/folder"), b"b.png")
    assert "/folder/b.png" not in tree(store)
    repair_store(store)
    assert problems(store) == []


# At random


_UNREPAIRABLE = {
    "records",
    "inodes",
    "contents",
    "recipes",
    "missing-vaes",
    "framing",
    "sizes",
    "payloads",
    "payload-references",
    "payload-index",
    "metadata",
    "chunks",
    "vaes",
}
"""Checks that may still report after a repair: what was lost, and what is left alone for it."""


def _damage_at_random(rows, choose):
    """Delete, flip, cut or swap values."""
    everything = [(table, bytes(key)) for table in tables.TABLES for key in rows.keys(table)]
    table, key = choose.choice(everything)
    value = bytearray(rows.get(table, key) or b"")
    match choose.choice(["delete", "flip", "cut", "swap"]):
        case "delete":
            rows.delete(table, key)
        case "flip" if value:
            value[choose.randrange(len(value))] ^= 1 << choose.randrange(8)
            rows.put(table, key, bytes(value))
        case "cut":
            rows.put(table, key, bytes(value[: choose.randrange(len(value) + 1)]))
        case "swap":
            other = choose.choice([known for known in everything if known[0] == table])[1]
            rows.put(table, key, bytes(rows.get(table, other) or b""))
            rows.put(table, other, bytes(value))


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 1 << 32), changes=st.integers(1, 6))
def test_random_damage_is_reported_and_repaired_once(filled, tmp_path_factory, seed, changes):
    path = shutil.copytree(filled, tmp_path_factory.mktemp("damaged") / "art.lfs")
    try:
        with Store.open(path, writable=True) as store:
            choose = random.Random(seed)
            with store.write_rows() as rows:
                for _ in range(changes):
                    _damage_at_random(rows, choose)
            found = problems(store)
            done = repair_store(store)
            assert not done or found
            left = problems(store)
            assert {problem.check for problem in left} <= _UNREPAIRABLE, (found, done, left)
            assert repair_store(store) == [], (found, done, left)
            assert problems(store) == left
    finally:
        shutil.rmtree(path.parent)
