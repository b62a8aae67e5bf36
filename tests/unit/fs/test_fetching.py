"""Fetches from a store: in a thread, of all that the mount shows, and never of what is gone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from store_contents import add_picture, picture_latent

from latentfs.errors import RenderFailedError, StoreCorruptError
from latentfs.fs import fetching
from latentfs.fs.fetching import StoreFetch, held_bytes
from latentfs.render.jobs import job_for_inode
from latentfs.store.live_store import LiveStore, open_live_store
from latentfs.store.records import Inode
from latentfs.store.store import Store
from latentfs.store.tables import ROOT_INO


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            add_picture(transaction, ROOT_INO, b"a.png", picture_latent(1))
        yield store


def picture(store: Store | LiveStore, name: bytes = b"a.png") -> tuple[int, Inode]:
    with store.read() as snapshot:
        ino = snapshot.lookup(ROOT_INO, name)
        assert ino is not None
        inode = snapshot.inode(ino)
        assert inode is not None
        return ino, inode


async def test_a_fetch_brings_the_job_of_the_picture(store: Store) -> None:
    ino, inode = picture(store)
    job = await StoreFetch(LiveStore(store))(ino, inode)
    with store.read() as snapshot:
        assert job == job_for_inode(snapshot, store.path, inode)
    assert held_bytes(job) > sum(len(piece) for piece in job.bulk)


async def test_what_is_not_on_disk_yet_is_fetched_too(store: Store) -> None:
    async with open_live_store(store, writable=True) as live:
        ino, inode = picture(live)
        await live.may_change()
        with live.change() as transaction:
            copy_ino = transaction.make(ROOT_INO, b"copy.png", inode)
            transaction.remove_entry(ROOT_INO, b"a.png", directory=False)
        copied = picture(live, b"copy.png")
        assert copied[0] == copy_ino != ino
        assert (await StoreFetch(live)(*copied)).bulk


async def test_other_tasks_run_while_the_disk_takes_its_time(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()

    def slow(*arguments: object) -> object:
        assert go_on.wait(30)
        return arguments

    monkeypatch.setattr(fetching, "job_for_inode", slow)
    fetch = StoreFetch(LiveStore(store))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(fetch, *picture(store))
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()


async def test_a_picture_that_was_removed_can_not_be_fetched(store: Store) -> None:
    ino, inode = picture(store)
    with store.write() as transaction:
        transaction.remove_file_by_command(ROOT_INO, b"a.png")
    with pytest.raises(RenderFailedError, match=f"inode {ino} was removed while it was open"):
        await StoreFetch(LiveStore(store))(ino, inode)


async def test_a_picture_whose_payload_is_missing_is_damage(store: Store) -> None:
    ino, inode = picture(store)
    with store.write_rows() as rows:
        for key in [bytes(key) for key in rows.keys("payloads")]:
            rows.delete("payloads", key)
    with pytest.raises(StoreCorruptError, match="run latentfs fsck"):
        await StoreFetch(LiveStore(store))(ino, inode)
