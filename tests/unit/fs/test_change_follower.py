"""Telling the kernel of changes, and what is left of that when the mount ends; without a mount."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyfuse3
import pytest
import trio
from store_contents import add_picture, picture_latent

from latentfs.fs import change_follower
from latentfs.fs.change_follower import follow_changes
from latentfs.store.store import Store
from latentfs.store.tables import ROOT_INO

NAMES = (b"a.png", b"b.png", b"c.png")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(change_follower, "_INTERVAL_S", 0.01)
    monkeypatch.setattr(pyfuse3, "invalidate_inode", lambda ino, attr_only: None)
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            for seed, name in enumerate(NAMES):
                add_picture(transaction, ROOT_INO, name, picture_latent(seed))
        yield store


class Kernel:
    """Takes names; keeps the caller waiting while *may_go* is not set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.may_go, self.is_told, self.is_done = (threading.Event() for _ in range(3))
        self.began: list[bytes] = []
        self.ended: list[bytes] = []
        monkeypatch.setattr(pyfuse3, "invalidate_entry", self._invalidate)

    def _invalidate(self, parent_ino: int, name: bytes) -> None:
        self.began.append(name)
        self.is_told.set()
        assert self.may_go.wait(30)
        self.ended.append(name)
        if name == NAMES[-1]:
            self.is_done.set()


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    kernel = Kernel(monkeypatch)
    yield kernel
    kernel.may_go.set()


@asynccontextmanager
async def following(
    store: Store, let_go: Callable[[int], Awaitable[None]] | None = None
) -> AsyncIterator[trio.Nursery]:
    """All pictures are removed once it has begun."""

    async def keep(ino: int) -> None:
        pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow_changes, store, let_go or keep)
        await trio.sleep(0.1)
        with store.write() as transaction:
            for name in NAMES:
                transaction.remove_file_by_command(ROOT_INO, name)
        yield nursery


async def test_the_kernel_is_told_of_what_was_removed(store, kernel):
    kernel.may_go.set()
    async with following(store) as nursery:
        assert await trio.to_thread.run_sync(kernel.is_done.wait, 10)
        nursery.cancel_scope.cancel()
    assert kernel.ended == list(NAMES)


async def test_what_was_removed_is_let_go_when_the_kernel_knows(store, kernel):
    with store.read() as snapshot:
        inos = {ino for _, ino in snapshot.entries(ROOT_INO)}
    let_go: set[int] = set()
    all_gone = trio.Event()

    async def let_one_go(ino: int) -> None:
        assert kernel.is_done.is_set()
        let_go.add(ino)
        if let_go == inos:
            all_gone.set()

    kernel.may_go.set()
    async with following(store, let_one_go) as nursery:
        with trio.fail_after(10):
            await all_gone.wait()
        nursery.cancel_scope.cancel()


async def test_what_was_removed_before_it_began_is_let_go_too(store, kernel):
    with store.write() as transaction:
        ino = add_picture(transaction, ROOT_INO, b"d.png", picture_latent(9))
    with store.write() as transaction:
        transaction.remove_file_by_command(ROOT_INO, b"d.png", is_mounted=True)
    first: list[int] = []

    async def note(ino: int) -> None:
        first.append(ino)

    kernel.may_go.set()
    async with following(store, note) as nursery:
        nursery.cancel_scope.cancel()
    assert first == [ino]


async def test_the_end_waits_for_what_the_kernel_is_being_told_and_tells_no_more(store, kernel):
    """The session would be taken away from under it."""
    async with following(store) as nursery:
        assert await trio.to_thread.run_sync(kernel.is_told.wait, 10)
        threading.Timer(0.2, kernel.may_go.set).start()
        nursery.cancel_scope.cancel()
    assert kernel.ended == [NAMES[0]]
    await trio.sleep(0.1)
    assert kernel.began == [NAMES[0]]


async def test_a_kernel_that_does_not_answer_holds_the_end_up_only_for_a_moment(
    store, kernel, monkeypatch
):
    monkeypatch.setattr(change_follower, "_LAST_S", 0.1)
    async with following(store) as nursery:
        assert await trio.to_thread.run_sync(kernel.is_told.wait, 10)
        start_s = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() - start_s < 5
    assert kernel.ended == []
    kernel.may_go.set()
    await trio.sleep(0.1)
    assert kernel.began == [NAMES[0]]
