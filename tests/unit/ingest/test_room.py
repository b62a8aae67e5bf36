"""The picture of an earlier version makes room, but not before nobody has it open any more."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from latent_files import latent_array, write_comfyui_latent
from store_contents import VAE, add_picture, picture_latent

from latentfs.images.framing import Framing
from latentfs.ingest.addition import Owner
from latentfs.ingest.discover import Candidate
from latentfs.ingest.preparation import ImportOptions, Picture, Preparation
from latentfs.ingest.room import FreeName, free_name
from latentfs.store.file_transaction import FileTransaction
from latentfs.store.records import Source
from latentfs.store.store import Store
from latentfs.store.tables import ROOT_INO

OWNER = Owner(0, 0)
SOURCE = Source("cat.latent", "comfyui", 0, None, developed_in=ROOT_INO)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "art.lfs") as store:
        yield store


@pytest.fixture
def picture(tmp_path: Path) -> Picture:
    """The one that a mount makes of cat.latent."""
    path = write_comfyui_latent(tmp_path / "cat.latent", latent_array(1, 4, 2, 2))
    options = ImportOptions(
        vae="tiny",
        to="/",
        precision="source",
        framing=Framing.png(),
        rounding="round",
        on_conflict="rename",
    )
    (found,) = Preparation(options, VAE).prepare(Candidate(path, "/", "cat"))
    assert found.source == msgspec.structs.replace(SOURCE, developed_in=0)
    return dataclasses.replace(found, source=SOURCE)


def _add_earlier(store: Store, *, links: int = 1) -> int:
    """Add the picture of an earlier version of cat.latent, as cat.png and under further names."""
    with store.write_rows() as rows:
        files = FileTransaction(rows)
        inode = files.inode(add_picture(files, ROOT_INO, b"first", picture_latent(1)))
        assert inode is not None
        assert inode.content is not None
        content = msgspec.structs.replace(inode.content, source=SOURCE)
        made = msgspec.structs.replace(inode, content=content)
        ino = files.add_file(ROOT_INO, b"cat.png", made)
        for number in range(1, links):
            files.link(ino, ROOT_INO, b"link %d" % number)
        files.finish()
    return ino


def test_a_picture_that_loses_its_only_name_is_kept_as_an_orphan(
    store: Store, picture: Picture
) -> None:
    ino = _add_earlier(store)
    with store.write_rows() as rows:
        files = FileTransaction(rows, announced=True)
        assert free_name(files, ROOT_INO, picture, OWNER) == FreeName(b"cat.png", ino)
        files.finish()
    with store.read() as snapshot:
        assert snapshot.lookup(ROOT_INO, b"cat.png") is None
        assert list(snapshot.orphans()) == [ino]
        inode = snapshot.inode(ino)
        assert inode is not None
        assert inode.nlink == 0
        assert inode.content is not None
        assert snapshot.has_all_of(inode.content)


def test_a_picture_that_has_another_name_keeps_it(store: Store, picture: Picture) -> None:
    ino = _add_earlier(store, links=2)
    with store.read() as snapshot:
        first = snapshot.next_change()
    with store.write_rows() as rows:
        files = FileTransaction(rows, announced=True)
        assert free_name(files, ROOT_INO, picture, OWNER) == FreeName(b"cat.png", None)
        files.finish()
    with store.read() as snapshot:
        assert snapshot.lookup(ROOT_INO, b"link 1") == ino
        assert list(snapshot.orphans()) == []
        (change,) = snapshot.changes_since(first)
        assert change.removed == ((ROOT_INO, b"cat.png", ino),)
        assert {ROOT_INO, ino} <= set(change.directories)


def test_a_name_that_is_free(store: Store, picture: Picture) -> None:
    with store.write_rows() as rows:
        assert free_name(FileTransaction(rows), ROOT_INO, picture, OWNER) == FreeName(b"cat.png")
