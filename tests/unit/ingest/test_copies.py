"""Which files are taken for copies of pictures, and what is kept of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest
from store_contents import add_picture, picture_latent

from latentfs.errors import CorruptPayloadError
from latentfs.images import png
from latentfs.images.parts import take_picture_apart
from latentfs.ingest.copies import CopyFinder
from latentfs.render.job_queue import Priority, RenderJob, Rendition
from latentfs.render.protocol import Rendered
from latentfs.render.scheduler import Scheduler
from latentfs.store.live_store import LiveStore
from latentfs.store.store import Store
from latentfs.store.tables import ROOT_INO

TEXT = png.text_chunk("Artist", "someone")


class KeyedScheduler:
    """Renders a job to the bytes whose digest is its key, but for those that have *drifted*."""

    def __init__(self) -> None:
        self.drifted: set[bytes] = set()
        self.priorities: list[Priority] = []

    async def render(self, job: RenderJob, *, priority: Priority) -> Rendition:
        self.priorities.append(priority)
        key = cast(bytes, job.content)
        report = Rendered(
            number=1,
            width=8,
            height=8,
            size_bytes=job.request.size_bytes or 0,
            sha256=bytes(32) if key in self.drifted else key,
            encode_retries=0,
            psnr_db=None,
            stages_s={},
        )
        return Rendition(report, b"", {})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "art.lfs") as store:
        yield store


@pytest.fixture
def scheduler() -> KeyedScheduler:
    return KeyedScheduler()


@pytest.fixture
def finder(store: Store, scheduler: KeyedScheduler) -> CopyFinder:
    return CopyFinder(LiveStore(store), cast(Scheduler, scheduler))


def _pixels(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, (16, 24, 3), np.uint8)


def _with_text(data: bytes, *, count: int) -> bytes:
    """Put chunks in front of the IEND chunk, which is 12 bytes long."""
    return data[:-12] + TEXT * count + data[-12:]


def _developed_picture(store: Store, seed: int) -> bytes:
    """Add a picture that a mount made beside a latent file; all have one recipe and framing."""
    data = png.encode(_pixels(seed))
    with store.write() as transaction:
        latent = picture_latent(seed)
        inode = transaction.inode(add_picture(transaction, ROOT_INO, b"%d.first" % seed, latent))
        assert inode is not None
        assert inode.content is not None
        content = msgspec.structs.replace(
            inode.content,
            rendition_sha256=hashlib.sha256(data).digest(),
            pixel_data_sha256=take_picture_apart(data).pixel_data_sha256,
            source=msgspec.structs.replace(inode.content.source, developed_in=ROOT_INO),
        )
        changed = msgspec.structs.replace(inode, content=content, size_bytes=len(data))
        transaction.add_file(ROOT_INO, b"%d.png" % seed, changed)
    return data


async def test_that_one_picture_comes_out_alike_says_nothing_of_another(
    store: Store, scheduler: KeyedScheduler, finder: CopyFinder
) -> None:
    same, other = (_developed_picture(store, seed) for seed in (1, 2))
    scheduler.drifted.add(hashlib.sha256(other).digest())
    assert await finder.find(same) is not None
    assert await finder.find(other) is None


async def test_a_picture_is_tried_once_however_often_it_is_copied(
    store: Store, scheduler: KeyedScheduler, finder: CopyFinder
) -> None:
    same, other = (_developed_picture(store, seed) for seed in (1, 2))
    scheduler.drifted.add(hashlib.sha256(other).digest())
    for _ in range(3):
        assert await finder.find(same) is not None
        assert await finder.find(other) is None
    assert scheduler.priorities == [Priority.IMPORT, Priority.IMPORT]


async def test_a_picture_that_was_damaged_since_it_was_tried_is_not_copied_from(
    store: Store, finder: CopyFinder
) -> None:
    data = _developed_picture(store, 1)
    assert await finder.find(data) is not None
    with store.write_rows() as rows:
        key, value = next(iter(rows.items("payloads")))
        rows.put("payloads", bytes(key), bytes(value)[:-1] + b"!")
    with pytest.raises(CorruptPayloadError, match="payload"):
        await finder.find(data)


@pytest.mark.parametrize("chunks", [0, 2])
async def test_a_copy_is_not_one_that_the_mount_made_by_itself(
    store: Store, finder: CopyFinder, chunks: int
) -> None:
    data = _developed_picture(store, 1)
    copy = await finder.find(_with_text(data, count=chunks))
    assert copy is not None
    assert len(copy.metadata) == chunks
    assert copy.content.source.name == "a.latent"
    assert copy.content.source.developed_in == 0


async def test_a_picture_with_thousands_of_chunks_around_it_is_no_copy(
    store: Store, scheduler: KeyedScheduler, finder: CopyFinder
) -> None:
    data = _developed_picture(store, 1)
    assert await finder.find(_with_text(data, count=2000)) is None
    assert scheduler.priorities == []
