"""All of a store can be had without a mount, and none of it leads outside of the destination."""

import hashlib
import os
import stat
from pathlib import Path
from typing import cast

import msgspec
import pytest
from store_contents import add_picture, picture_latent
from store_damage import LATENT_A, NOISE, Damage, fill

from latentfs.ingest.exporter import Exporter, export_plan
from latentfs.latents.taken_apart import put_together, tensor_bytes
from latentfs.render.job_queue import RenderJob, Rendition
from latentfs.render.protocol import Rendered
from latentfs.render.scheduler import Scheduler
from latentfs.store import tables
from latentfs.store.file_transaction import FileTransaction
from latentfs.store.records import Inode
from latentfs.store.store import Store

TIME_NS = 1_000_000_000_123_456_789


@pytest.fixture
def store(tmp_path):
    with fill(Store.create(tmp_path / "art.lfs")) as store:
        yield store


class Told:
    def __init__(self):
        self.refused: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.changed: dict[str, str] = {}
        self.done = 0

    def finish_one(self):
        self.done += 1


class SameScheduler:
    """Renders every picture to the same bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def render(self, job: RenderJob) -> Rendition:
        report = Rendered(
            number=1,
            width=8,
            height=8,
            size_bytes=len(self._data),
            sha256=hashlib.sha256(self._data).digest(),
            encode_retries=0,
            psnr_db=None,
            stages_s={},
        )
        return Rendition(report, self._data)


async def _exported(store: Store, source: str, out: Path, rendered: bytes | None = None) -> Told:
    """Export what needs no render, or pictures that are rendered to *rendered*."""
    told = Told()
    exporter = Exporter(
        store,
        None if rendered is None else cast(Scheduler, SameScheduler(rendered)),
        refuse=told.refused.__setitem__,
        skip=told.skipped.__setitem__,
        tell_change=told.changed.__setitem__,
        on_done=told.finish_one,
    )
    plan = export_plan(store, source, out, refuse=told.refused.__setitem__)
    await exporter.run(plan)
    assert told.done == len(plan)
    return told


def _refuse_none(path: str, reason: str) -> None:
    pytest.fail(f"{path} was refused: {reason}")


def _inode(kind: int, *, target: bytes = b"", parent: int = 0) -> Inode:
    links = 2 if kind == stat.S_IFDIR else 1
    return Inode(kind | 0o640, 0, 0, links, len(target), 0, 0, parent_ino=parent, target=target)


def _make(store: Store, parent: int, name: bytes, inode: Inode, data: bytes = b"") -> int:
    with store.write_rows() as rows:
        files = FileTransaction(rows)
        ino = files.make(parent, name, inode)
        if data:
            files.write_bytes(ino, files.require(ino), offset=0, data=data)
        files.finish()
    return ino


def _lines(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


async def test_files_of_every_kind(store, tmp_path):
    damage = Damage(store)
    for path in ("/notes/noise", "/notes/link", "/notes/cat.latent"):
        damage.change_inode(path, mtime_ns=TIME_NS)
    mode = stat.S_IFREG | stat.S_ISUID | 0o700
    damage.change_inode("/notes/noise", mode=mode)
    told = await _exported(store, "/notes", tmp_path / "out")
    out = tmp_path / "out"
    assert told.refused == {}
    assert told.skipped == {"/notes/fifo": "it is a FIFO", "/notes/device": "it is a device"}
    assert _lines(out) == {"noise", "again", "link", "cat.latent"}
    assert (out / "noise").read_bytes() == (out / "again").read_bytes() == NOISE
    assert stat.S_IMODE((out / "noise").stat().st_mode) == 0o700
    tensor = tensor_bytes([LATENT_A], packed=False)
    latent = put_together(tensor, b"rest", offset=2)
    assert (out / "cat.latent").read_bytes() == latent
    assert os.readlink(out / "link") == "noise"
    assert {os.lstat(path).st_mtime_ns for path in out.iterdir()} == {TIME_NS}


async def test_a_single_file_of_each_kind(store, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("noise", "cat.latent", "link"):
        assert (await _exported(store, f"/notes/{name}", out)).refused == {}
        assert (await _exported(store, f"/notes/{name}", tmp_path / "new" / name)).refused == {}
    assert _lines(out) == _lines(tmp_path / "new") == {"noise", "cat.latent", "link"}


async def test_pictures_with_other_bytes_than_at_import_are_written_and_named(store, tmp_path):
    data = b"p" * 1000  # add_picture makes all pictures of that size
    sha256 = hashlib.sha256(data).digest()
    Damage(store).change_content("/folder/b.png", rendition_sha256=sha256)
    told = await _exported(store, "/folder", tmp_path / "out", data)
    assert told.refused == {}
    assert set(told.changed) == {"/folder/c.png"}
    assert "other bytes than at import" in told.changed["/folder/c.png"]
    for name in ("b.png", "c.png"):
        assert (tmp_path / "out" / name).read_bytes() == data


async def test_holes_stay_holes(store, tmp_path):
    ino = _make(store, tables.ROOT_INO, b"sparse", _inode(stat.S_IFREG), b"begin")
    size_bytes = 1 << 40
    with store.write_rows() as rows:
        files = FileTransaction(rows)
        files.write_bytes(ino, files.require(ino), offset=size_bytes - 3, data=b"end")
        files.finish()
    told = await _exported(store, "/sparse", tmp_path / "out")
    assert told.refused == {}
    with (tmp_path / "out").open("rb") as file:
        assert file.read(6) == b"begin\0"
        file.seek(-4, os.SEEK_END)
        assert file.read() == b"\0end"
        assert file.tell() == size_bytes
    assert (tmp_path / "out").stat().st_blocks * 512 < 1 << 20


async def test_names_that_are_no_text_are_kept(store, tmp_path):
    name = b"\xff" * 255
    _make(store, tables.ROOT_INO, name, _inode(stat.S_IFREG), b"x")
    with store.write() as transaction:
        folder = transaction.make_directories("/only", uid=0, gid=0)
    _make(store, folder, name, _inode(stat.S_IFREG), b"x")
    await _exported(store, "/only", tmp_path / "out")
    assert os.listdir(os.fsencode(tmp_path / "out")) == [name]


def test_folders_may_be_deeper_than_calls(store, tmp_path):
    deep = 1200
    with store.write_rows() as rows:
        files, parent = FileTransaction(rows), tables.ROOT_INO
        for _ in range(deep):
            parent = files.make(parent, b"down", _inode(stat.S_IFDIR, parent=parent))
        files.make(parent, b"file", _inode(stat.S_IFREG))
        files.finish()
    (item,) = export_plan(store, "/down", tmp_path / "out", refuse=_refuse_none)
    assert item.place.names == ("down",) * (deep - 1) + ("file",)


async def test_a_folder_in_itself(store, tmp_path):
    below = Damage(store).ino("/folder/below")
    Damage(store).put(
        "dentries", tables.dentry_key(below, b"up"), tables.ino_key(Damage(store).ino("/folder"))
    )
    refused: dict[str, str] = {}
    plan = export_plan(store, "/folder", tmp_path / "out", refuse=refused.__setitem__)
    assert [item.source for item in plan] == ["/folder/b.png", "/folder/c.png"]
    assert refused == {"/folder/below/up": "it is a folder with two names; run latentfs fsck"}


async def test_entries_that_can_not_be_followed_are_refused_and_the_others_copied(store, tmp_path):
    damage = Damage(store)
    damage.delete("inodes", tables.ino_key(damage.ino("/notes/fifo")))
    damage.put("inodes", tables.ino_key(damage.ino("/notes/cat.latent")), b"nonsense")
    told = await _exported(store, "/notes", tmp_path / "out")
    assert set(told.refused) == {"/notes/fifo", "/notes/cat.latent"}
    assert told.refused["/notes/fifo"] == "it leads nowhere; run latentfs fsck"
    assert "can't be read" in told.refused["/notes/cat.latent"]
    assert _lines(tmp_path / "out") == {"noise", "again", "link"}


async def test_damaged_files_are_refused_and_the_others_copied(store, tmp_path):
    damage = Damage(store)
    damage.put("chunks", tables.chunk_key(damage.ino("/notes/noise"), 1), b"\x07")
    damage.change_inode("/notes/cat.latent", size_bytes=7)
    damage.change_inode("/notes/fifo", mode=0o644)
    damage.change_inode("/notes/device", mode=stat.S_IFLNK | 0o777, target=b"a\0b")
    told = await _exported(store, "/notes", tmp_path / "out")
    names = {path.rsplit("/", 1)[-1] for path in told.refused}
    assert names == {"noise", "again", "cat.latent", "fifo", "device"}
    assert all("fsck" in reason for reason in told.refused.values())
    assert _lines(tmp_path / "out") == {"link"}


async def test_a_latent_file_that_can_not_be_packed(store, tmp_path):
    damage = Damage(store)
    parts = damage.inode("/notes/cat.latent").latent_file
    assert parts is not None
    damage.change_inode(
        "/notes/cat.latent", latent_file=msgspec.structs.replace(parts, packed=True)
    )
    told = await _exported(store, "/notes/cat.latent", tmp_path / "out")
    assert "can't be packed" in told.refused["/notes/cat.latent"]


async def test_what_changes_after_the_plan(store, tmp_path):
    plan = export_plan(store, "/notes", tmp_path / "out", refuse=_refuse_none)
    ino = Damage(store).ino("/notes/noise")
    with store.write_rows() as rows:
        files = FileTransaction(rows)
        files.write_bytes(ino, files.require(ino), offset=len(NOISE), data=b"more")
        files.finish()
    with store.write_rows() as rows:
        rows.delete("inodes", tables.ino_key(Damage(store).ino("/notes/link")))
    told = Told()
    await Exporter(
        store,
        None,
        refuse=told.refused.__setitem__,
        skip=told.skipped.__setitem__,
        tell_change=told.changed.__setitem__,
        on_done=told.finish_one,
    ).run(plan)
    assert (tmp_path / "out" / "noise").read_bytes() == NOISE + b"more"
    assert told.refused["/notes/link"] == "it was removed meanwhile"


@pytest.mark.parametrize("name", [b"../../escaped.png", b"/etc/escaped.png", b"..", b"."])
def test_names_that_lead_outside_are_refused(tmp_path: Path, name: bytes) -> None:
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            folder = transaction.make_directories("/pictures", uid=0, gid=0)
            add_picture(transaction, folder, name, picture_latent(1))
            add_picture(transaction, folder, b"good.png", picture_latent(2))
        refused: dict[str, str] = {}
        plan = export_plan(store, "/pictures", tmp_path / "out", refuse=refused.__setitem__)
        assert [item.source for item in plan] == ["/pictures/good.png"]
        assert refused == {
            f"/pictures/{name.decode()}": f"its name {name!r} can't be used for a file or folder; "
            "run latentfs fsck"
        }


async def test_nothing_is_written_through_a_link_that_an_export_made(store, tmp_path):
    """A link of one export is in the way of a folder, and of a file, in the next."""
    outside, out = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    (outside / "file").write_text("mine")
    with store.write() as transaction:
        first = transaction.make_directories("/first", uid=0, gid=0)
        second = transaction.make_directories("/second", uid=0, gid=0)
        inner = transaction.make_directories("/second/a", uid=0, gid=0)
    _make(store, first, b"a", _inode(stat.S_IFLNK, target=bytes(outside)))
    _make(store, first, b"b", _inode(stat.S_IFLNK, target=bytes(outside / "file")))
    _make(store, inner, b"file", _inode(stat.S_IFREG), b"theirs")
    _make(store, inner, b"new", _inode(stat.S_IFLNK, target=b"theirs"))
    _make(store, second, b"b", _inode(stat.S_IFREG), b"theirs")
    assert (await _exported(store, "/first", out)).refused == {}
    assert os.readlink(out / "a") == str(outside)
    told = await _exported(store, "/second", out)
    assert set(told.refused) == {"/second/a/file", "/second/a/new"}
    assert "can't write" in told.refused["/second/a/file"]
    assert _lines(outside) == {"file"}
    assert (outside / "file").read_text() == "mine"
    assert not (out / "b").is_symlink()
    assert (out / "b").read_bytes() == b"theirs"
