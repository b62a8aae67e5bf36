"""What goes wrong while files are looked at must not end the mount."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from latentfs.errors import (
    LatentfsError,
    NoRendererError,
    RefusedChangeError,
    RendererLostError,
    RenderFailedError,
    StoreCorruptError,
    VaeNotFoundError,
)
from latentfs.ingest import developer
from latentfs.ingest.developer import Developer
from latentfs.render.scheduler import Scheduler
from latentfs.store.live_store import LiveStore
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store


def _developer(store: Store, released: list[int], *, fails: bool) -> Developer:
    async def release(ino: int) -> None:
        released.append(ino)
        if fails:
            raise RefusedChangeError(5, "another process has been changing the store")

    return Developer(
        LiveStore(store),
        cast(Scheduler, None),
        name_of=lambda ino: None,
        is_being_written=lambda ino: False,
        release_replaced=release,
        let_go=release,
    )


async def test_what_was_replaced_is_let_go_though_that_fails(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    released: list[int] = []
    with Store.create(tmp_path / "art.lfs") as store:
        developer = _developer(store, released, fails=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(developer.run)
            developer.finished(7, 5)
            await trio.sleep(1)
            developer.finished(8, 6)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert released == [5, 6]
    assert "inode 5, which was replaced, can't be removed" in caplog.text


async def test_a_damaged_store_is_still_looked_after(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def damaged(self: Snapshot, **_: Any) -> None:
        raise StoreCorruptError("a record can't be read")

    monkeypatch.setattr(Snapshot, "all_entries", damaged)
    released: list[int] = []
    with Store.create(tmp_path / "art.lfs") as store:
        developer = _developer(store, released, fails=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(developer.run)
            developer.finished(7, 5)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
    assert released == [5]
    assert "could be found: a record can't be read" in caplog.text


@pytest.mark.parametrize(
    ("error", "is_worth_another_try"),
    [
        (RendererLostError("2 renderers were lost over it"), False),
        (RenderFailedError("out of memory"), False),
        (NoRendererError("no renderer can be started"), True),
        (VaeNotFoundError("there is no VAE for it"), True),
    ],
)
def test_only_what_lies_outside_of_a_file_is_worth_another_try(
    error: LatentfsError, is_worth_another_try: bool
) -> None:
    assert developer._reason(error).startswith(b"not yet: ") == is_worth_another_try
