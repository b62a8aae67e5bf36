"""What the kernel forgets, and what a rename replaces, as the operations see it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pyfuse3
import pytest
import trio
from store_contents import add_picture, picture_latent

from latentfs.errors import StoreCorruptError
from latentfs.fs.open_inodes import OpenInodes
from latentfs.fs.operations import LatentOperations
from latentfs.fs.prefetch import SequenceDetector
from latentfs.fs.renditions import Renditions
from latentfs.store.live_store import LiveStore, open_live_store
from latentfs.store.store import Store
from latentfs.store.tables import ROOT_INO

CTX = cast(pyfuse3.RequestContext, SimpleNamespace(uid=1, gid=2, pid=3, umask=0))


def operations_of(live: LiveStore) -> LatentOperations:
    renditions = cast(Renditions, SimpleNamespace(kernel_hit=lambda inode: None))
    detector = SequenceDetector(files_max=0)
    return LatentOperations(live, renditions, detector, ahead_bytes=lambda: 0)


async def test_nothing_that_fails_while_an_inode_is_forgotten_ends_the_mount(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.abc.Clock
) -> None:
    seen: list[int] = []

    async def forgotten(inodes: OpenInodes, ino: int) -> None:
        seen.append(ino)
        raise StoreCorruptError("a page is damaged") if ino == 7 else KeyError(ino)

    monkeypatch.setattr(OpenInodes, "forgotten", forgotten)
    with Store.create(tmp_path / "art.lfs") as store:
        async with open_live_store(store, writable=True) as live:
            operations = operations_of(live)
            await operations.forget([(7, 1), (8, 1), (9, 2)])
            assert operations.statistics().errors_total == 3
            with store.write() as transaction:
                ino = add_picture(transaction, ROOT_INO, b"a.png", picture_latent(1))
                transaction.remove_file_by_command(ROOT_INO, b"a.png", is_mounted=True)
            await operations.removed_elsewhere(ino)
            assert operations.statistics().errors_total == 4
    assert seen == [7, 8, 9, ino]


async def test_what_no_copy_can_be_made_of_is_let_go_when_it_is_replaced(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    told: list[tuple[int, int | None]] = []
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            picture_ino = add_picture(transaction, ROOT_INO, b"a.png", picture_latent(1))
        async with open_live_store(store, writable=True) as live:
            operations = operations_of(live)
            operations.on_finished = lambda ino, replaced_ino: told.append((ino, replaced_ino))
            inos = []
            for name in (b"a.txt", b"new.txt", b"new.png"):
                mode = stat.S_IFREG | 0o644
                made = await operations.mknod(ROOT_INO, name, mode, 0, CTX)
                inos.append(made.st_ino)
            await operations.rename(ROOT_INO, b"new.txt", ROOT_INO, b"a.txt", 0, CTX)
            await operations.rename(ROOT_INO, b"new.png", ROOT_INO, b"a.png", 0, CTX)
            assert told == [(inos[1], None), (inos[2], picture_ino)]
            await operations.release_replaced(picture_ino)


async def test_of_what_others_remove_only_what_has_no_name_left_goes(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            named, removed, known = (
                add_picture(transaction, ROOT_INO, b"%d.png" % seed, picture_latent(seed))
                for seed in (1, 2, 3)
            )
        with store.write() as transaction:
            transaction.remove_file_by_command(ROOT_INO, b"2.png", is_mounted=True)
        async with open_live_store(store, writable=False) as live:
            operations = operations_of(live)
            await operations.unlink(ROOT_INO, b"3.png", CTX)
            for ino in (named, removed, known, 999):
                await operations.removed_elsewhere(ino)
            with live.read() as snapshot:
                left = [snapshot.inode(ino) is not None for ino in (named, removed, known)]
    assert left == [True, False, True]


async def test_what_is_removed_behind_the_kernels_back_goes_when_it_is_open_no_more(
    tmp_path: Path, autojump_clock: trio.abc.Clock
) -> None:
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            inos = [
                add_picture(transaction, ROOT_INO, b"%d.png" % seed, picture_latent(seed))
                for seed in (1, 2)
            ]
        async with open_live_store(store, writable=True) as live:
            operations = operations_of(live)
            opened = await operations.open(inos[0], os.O_RDONLY, CTX)
            await live.may_change()
            with live.change(announced=True) as transaction:
                for name in (b"1.png", b"2.png"):
                    transaction.remove_entry(ROOT_INO, name, directory=False)
            for ino in inos:
                await operations.let_go(ino)
            with live.read() as snapshot:
                assert [snapshot.inode(ino) is not None for ino in inos] == [True, False]
            await operations.release(opened.fh)
            with live.read() as snapshot:
                assert snapshot.inode(inos[0]) is None
