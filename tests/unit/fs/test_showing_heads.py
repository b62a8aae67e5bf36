"""When a head is given to the kernel, and which reads it answers; without a mount or a render."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyfuse3
import pytest
from store_contents import add_picture, picture_latent

from latentfs.fs import heads
from latentfs.fs.heads import Heads
from latentfs.images import framing, png
from latentfs.images.framing import Framing
from latentfs.store.records import LatentContent
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store

CHUNKS = (png.text_chunk("prompt", "a cat"), png.text_chunk("workflow", "a dog" * 3000))


@pytest.fixture
def snapshot(tmp_path: Path) -> Iterator[Snapshot]:
    Store.create(tmp_path / "art.lfs")
    with Store.open(tmp_path / "art.lfs", writable=True) as store:
        with store.write() as transaction:
            add_picture(transaction, 1, b"a.png", picture_latent(1), chunks=CHUNKS)
        with store.read() as snapshot:
            yield snapshot


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, bytes]]:
    calls: list[tuple[int, int, bytes]] = []
    monkeypatch.setattr(pyfuse3, "notify_store", lambda *told: calls.append(told))
    return calls


def content_of(snapshot: Snapshot, *, multiple_bytes: int = 0) -> LatentContent:
    found = snapshot.resolve("/a.png")
    assert found is not None
    content = found[1].content
    assert content is not None
    if not multiple_bytes:
        return content
    roomy = framing.with_room(
        Framing.png(), metadata_bytes=sum(map(len, CHUNKS)), multiple_bytes=multiple_bytes
    )
    return msgspec.structs.replace(content, framing=roomy)


@pytest.mark.parametrize("multiple_bytes", [0, 4096, 16384])
def test_reads_within_a_head_are_answered_and_others_not(
    snapshot: Snapshot, multiple_bytes: int
) -> None:
    content = content_of(snapshot, multiple_bytes=multiple_bytes)
    whole = framing.head(
        content.framing, width=content.width, height=content.height, metadata=CHUNKS
    )
    made = Heads()
    for offset, end in itertools.combinations((0, 1, 33, 4096, len(whole) - 1, len(whole)), 2):
        assert made.piece(snapshot, content, offset=offset, end=end) == whole[offset:end]
    for offset in (0, len(whole) - 1, len(whole), len(whole) + 1):
        assert made.piece(snapshot, content, offset=offset, end=len(whole) + 1) is None


def test_the_kernel_is_given_whole_pages(
    snapshot: Snapshot, shown: list[tuple[int, int, bytes]]
) -> None:
    content = content_of(snapshot, multiple_bytes=16384)
    assert Heads().show_kernel(snapshot, 7, content)
    ((ino, offset, data),) = shown
    whole = framing.head(
        content.framing, width=content.width, height=content.height, metadata=CHUNKS
    )
    assert (ino, offset, data) == (7, 0, whole[:16384])


def test_a_head_without_a_room_is_not_given_to_the_kernel(
    snapshot: Snapshot, shown: list[tuple[int, int, bytes]]
) -> None:
    assert not Heads().show_kernel(snapshot, 7, content_of(snapshot))
    assert shown == []


def test_where_metadata_are_missing_nothing_is_known(snapshot: Snapshot) -> None:
    content = content_of(snapshot)
    damaged = msgspec.structs.replace(content, chunks=(*content.chunks, bytes(16)))
    assert Heads().piece(snapshot, damaged, offset=0, end=8) is None


def test_a_long_head_is_neither_made_nor_given_to_the_kernel(
    snapshot: Snapshot, shown: list[tuple[int, int, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take long, each time, while all others wait; a rendition has it too."""
    content = content_of(snapshot, multiple_bytes=16384)
    monkeypatch.setattr(heads, "_HEAD_BYTES_MAX", 16384)
    monkeypatch.setattr(Snapshot, "blob", None)
    assert Heads().piece(snapshot, content, offset=0, end=8) is None
    assert not Heads().show_kernel(snapshot, 7, content)
    assert shown == []


def test_all_heads_that_are_made_can_be_kept() -> None:
    assert 4 * heads._HEAD_BYTES_MAX < heads._KEPT_BYTES_MAX


def test_a_head_is_made_once(snapshot: Snapshot, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Heads()
    content = content_of(snapshot)
    first = made.piece(snapshot, content, offset=0, end=5000)
    monkeypatch.setattr(Snapshot, "blob", None)
    assert made.piece(snapshot, content, offset=0, end=5000) == first
