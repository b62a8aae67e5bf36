"""Each check names the damage that it is there for, and no other check does."""

import stat

import msgspec
import pytest
from store_contents import RECIPE, VAE, picture_latent, problems
from store_damage import LATENT_A, LATENT_B, NOISE, Damage, fill

from latentfs.latents import payload as payload_codec
from latentfs.store import tables
from latentfs.store.file_transaction import FileTransaction
from latentfs.store.fsck import CHECKS, check_store, orphans_to_discard, steps
from latentfs.store.records import Totals, VaeFile
from latentfs.store.snapshot import blob_id
from latentfs.store.store import Store
from latentfs.store.transaction import pack_blob

A, B = LATENT_A, LATENT_B


@pytest.fixture
def store(tmp_path):
    with Store.create(tmp_path / "art.lfs") as store:
        yield fill(store)


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
    damage.put_counter(b"next_ino", 51)
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
    only(store, "link-counts", f"(inode {damage.ino(path)}) has 9 links")


def test_a_file_in_two_folders(store, damage):
    key = tables.dentry_key(tables.ROOT_INO, b"again.png")
    damage.put("dentries", key, tables.ino_key(damage.ino("/a.png")))
    only(store, "link-counts", "1 links recorded, 2 found")


def test_a_folder_within_itself(store, damage):
    key = tables.dentry_key(damage.ino("/folder/below"), b"loop")
    damage.put("dentries", key, tables.ino_key(damage.ino("/folder")))
    only(store, "parents", "/folder/below/loop", "/folder (inode")


def test_missing_recipe(store, damage):
    damage.delete("catalog", b"recipe:" + RECIPE.id)
    found = problems(store)
    assert {problem.check for problem in found} == {"recipes"}
    assert len(found) == 3


def test_recipe_under_another_name(store, damage):
    damage.put("catalog", b"recipe:" + bytes(16), damage.get("catalog", b"recipe:" + RECIPE.id))
    only(store, "recipes", bytes(16).hex())


def test_missing_vae(store, damage):
    damage.delete("catalog", b"vae:tiny")
    found = problems(store)
    assert {problem.check for problem in found} == {"missing-vaes"}
    assert all(VAE.id in problem.message for problem in found)


@pytest.mark.parametrize(("path", "data"), [("/a.png", b"prompt"), ("/folder/b.png", b"{}")])
def test_missing_metadata(store, damage, path, data):
    damage.delete("metadata", tables.blob_key(blob_id(data)))
    only(store, "contents", f"{path} needs metadata blob")


def test_missing_payload(store, damage):
    payload = damage.payload("/folder/b.png")
    with store.write() as transaction:
        bytes_ = transaction.payload_bytes(payload)
        transaction._delete_payload_rows(payload)
    damage.change_totals(payload_bytes=-bytes_)
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
    damage.put("payload_index", A.digest(), entry + tables.ino_key(9))
    only(store, "payload-references", "9 references recorded, 3 found")


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
        transaction.add_blob(pack_blob(b"unused"))
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


def test_progress_is_told_for_each_payload_and_chunk(store):
    told = []
    with store.read() as snapshot:
        assert list(check_store(store.path, snapshot, progress=lambda: told.append(1))) == []
        assert steps(snapshot) == 2 + 3
    assert len(told) == 2 + 3


# What is kept byte for byte, links and special files


def test_entry_in_a_missing_folder(store, damage):
    key = tables.dentry_key(damage.ino("/folder"), b"b.png")
    ino = damage.get("dentries", key)
    damage.put("dentries", tables.dentry_key(77, b"b.png"), ino)
    only(store, "dangling-entries", "'b.png' in folder inode 77", "which is missing")


def test_entry_in_a_file(store, damage):
    entry = tables.ino_key(damage.ino("/a.png"))
    damage.put("dentries", tables.dentry_key(damage.ino("/folder/b.png"), b"x"), entry)
    only(store, "dangling-entries", "which is no folder")


@pytest.mark.parametrize("name", [b".", b"..", b"a/b", b"nul\0"])
def test_entry_with_an_impossible_name(store, damage, name):
    damage.put("dentries", tables.dentry_key(tables.ROOT_INO, name), tables.ino_key(1))
    only(store, "dangling-entries", "a name that no folder can hold")


def test_entry_without_an_inode_number(store, damage):
    damage.put("dentries", tables.dentry_key(tables.ROOT_INO, b"x"), b"short")
    only(store, "dangling-entries", "/x doesn't say")


def test_removed_files_that_are_still_open_are_no_problem(store, damage):
    with store.write_rows() as rows:
        transaction = FileTransaction(rows)
        notes = damage.ino("/notes")
        for name in (b"noise", b"again", b"fifo"):
            transaction.remove_entry(notes, name, directory=False)
        transaction.finish()
    assert problems(store) == []
    with store.read() as snapshot:
        assert orphans_to_discard(snapshot) == 2


def unlinked(store, damage, path="/notes/fifo", *, nlink=0):
    """Take the only entry of a file away; return its number."""
    ino = damage.ino(path)
    damage.change_inode(path, nlink=nlink)
    folder, name = path.rsplit("/", 1)
    damage.delete("dentries", tables.dentry_key(damage.ino(folder), name.encode()))
    return ino


def test_file_without_links_that_is_not_listed(store, damage):
    ino = unlinked(store, damage)
    only(store, "orphan-inodes", f"inode {ino} is in no directory")


def test_listed_orphan_with_links(store, damage):
    ino = unlinked(store, damage, nlink=1)
    damage.put("catalog", tables.orphan_key(ino), b"")
    only(store, "orphan-inodes", "has 1 links recorded")


def test_listed_orphan_that_is_in_a_folder(store, damage):
    damage.put("catalog", tables.orphan_key(damage.ino("/a.png")), b"")
    only(store, "orphan-inodes", "/a.png", "is listed as an orphan")


def test_listed_orphan_without_an_inode(store, damage):
    damage.put("catalog", tables.orphan_key(500), b"")
    only(store, "orphan-inodes", "inode 500 is listed as an orphan, but is missing")


def test_parent_of_a_file(store, damage):
    damage.change_inode("/notes/noise", parent_ino=1)
    only(store, "parents", "and it is no folder")


def test_links_of_a_file_with_two_names(store, damage):
    damage.change_inode("/notes/noise", nlink=1)
    only(store, "link-counts", "1 links recorded, 2 found")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/notes/fifo", {"mode": 0o644}),
        ("/notes/noise", {"size_bytes": -1}),
        ("/notes/noise", {"size_bytes": 1 << 60}),
        ("/notes/noise", {"uid": 1 << 40}),
        ("/notes/noise", {"mtime_ns": 1 << 63}),
        ("/notes/link", {"target": b""}),
        ("/notes/device", {"rdev": -1}),
        ("/a.png", {"mode": stat.S_IFIFO | 0o644}),
    ],
)
def test_impossible_inode(store, damage, path, fields):
    inode = damage.inode(path)
    damage.change_inode(path, **fields)
    damage.change_totals(files=-1, size_bytes=-inode.size_bytes)
    found = problems(store)
    assert found[0].check == "inodes"
    assert path in found[0].message
    # What a damaged picture used can't be told any more.
    others = {problem.check for problem in found[1:]}
    assert others <= ({"payload-references", "metadata"} if inode.content else set())


def test_size_of_a_symbolic_link(store, damage):
    damage.change_inode("/notes/link", size_bytes=6)
    damage.change_totals(size_bytes=1)
    only(store, "sizes", "/notes/link has size 6, its target 5 bytes")


@pytest.mark.parametrize("path", ["/notes/fifo", "/notes/device"])
def test_size_of_a_special_file(store, damage, path):
    damage.change_inode(path, size_bytes=6)
    damage.change_totals(size_bytes=6)
    only(store, "sizes", f"{path} has size 6")


def test_metadata_that_leaves_no_room_for_the_picture(store, damage):
    damage.change_inode("/a.png", size_bytes=40)
    damage.change_totals(size_bytes=40 - 1000)
    only(store, "framing", "/a.png has size 40 and 6 bytes of metadata")


def test_chunk_that_cannot_be_read(store, damage):
    key = tables.chunk_key(damage.ino("/notes/noise"), 0)
    for value in (b"", b"\x07x", b"\x01noise"):
        damage.put("chunks", key, value)
        only(store, "chunks", "/notes/noise: chunk 0", "can't be read")


@pytest.mark.parametrize("index", [0, 2])
def test_chunk_that_is_too_long(store, damage, index):
    long = b"\0" * (tables.CHUNK_BYTES + 2)
    damage.change_inode("/notes/noise", size_bytes=3 * tables.CHUNK_BYTES)
    damage.change_totals(size_bytes=3 * tables.CHUNK_BYTES - len(NOISE))
    damage.put("chunks", tables.chunk_key(damage.ino("/notes/noise"), index), long)
    only(store, "chunks", f"chunk {index}", f"{tables.CHUNK_BYTES + 2} bytes")


@pytest.mark.parametrize("size_bytes", [0, 100, len(NOISE) - 1])
def test_chunks_behind_the_end_of_a_file(store, damage, size_bytes):
    damage.change_inode("/notes/noise", size_bytes=size_bytes)
    damage.change_totals(size_bytes=size_bytes - len(NOISE))
    only(store, "chunks", f"has size {size_bytes}, its last chunk ends at {len(NOISE)}")


def test_chunks_of_a_missing_inode(store, damage):
    damage.put("chunks", tables.chunk_key(900, 4), b"\0x")
    only(store, "chunks", "1 chunks belong to inode 900, which is missing")


@pytest.mark.parametrize("path", ["/a.png", "/folder", "/notes/fifo"])
def test_chunks_of_what_has_none(store, damage, path):
    damage.put("chunks", tables.chunk_key(damage.ino(path), 0), b"\0x")
    only(store, "chunks", path, "is no file that is kept in chunks")


@pytest.mark.parametrize("path", ["/a.png", "/notes/noise"])
def test_count_of_chunks(store, damage, path):
    damage.change_inode(path, chunks=9)
    only(store, "chunks", path, "has 9 chunks recorded")


def test_length_of_a_latent_file(store, damage):
    size_bytes = damage.inode("/notes/cat.latent").size_bytes
    damage.change_inode("/notes/cat.latent", size_bytes=size_bytes + 1)
    damage.change_totals(size_bytes=1)
    only(store, "sizes", f"has size {size_bytes + 1}, its parts come to {size_bytes} bytes")


@pytest.mark.parametrize("value", [b"\xc1", None])
def test_rendition_that_leads_to_another_picture(store, damage, value):
    own = damage.get("renditions", damage.keys("renditions")[0])
    damage.put("renditions", b"\x07" * 32, value or own)
    only(store, "renditions", (b"\x07" * 32).hex())


def test_picture_that_is_not_known_by_its_bytes(store, damage):
    damage.change_content("/a.png", rendition_sha256=b"\x07" * 32)
    only(store, "renditions", "/a.png is not known by its bytes")


def test_attributes_of_a_missing_inode(store, damage):
    damage.put("xattrs", tables.xattr_key(900, b"user.x"), b"")
    only(store, "xattrs", "'user.x'", "inode 900")


def test_next_change(store, damage):
    damage.put_counter(b"next_change", 3)
    only(store, "counters", "next_change is 3")


@pytest.mark.parametrize("counter", [b"next_ino", b"next_payload", b"next_change"])
def test_missing_counters(store, damage, counter):
    damage.delete("catalog", counter)
    only(store, "counters", f"{counter.decode()} is missing")


@pytest.mark.parametrize("table", ["dentries", "payloads", "payload_index", "chunks", "xattrs"])
def test_rows_whose_key_is_none(store, damage, table):
    damage.put(table, b"bad", b"x" * 16)
    only(store, "records", "b'bad'")


@pytest.mark.parametrize(
    ("key", "text"),
    [(b"vae:odd", "VAE 'odd'"), (b"recipe:x", "recipe 78"), (tables.change_key(1), "change")],
)
def test_catalog_rows_that_cannot_be_read(store, damage, key, text):
    damage.put("catalog", key, b"\xc1")
    only(store, "records", text)


def test_vae_that_names_files_elsewhere(store, damage):
    file = VaeFile("../config.json", 2, "0" * 64)
    record = msgspec.structs.replace(VAE, id="w" * 32, files=(file,))
    damage.put("catalog", b"vae:other", msgspec.msgpack.encode(record))
    only(store, "records", "'../config.json' is no name of a file")
