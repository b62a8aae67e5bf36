"""Reading latent files from their payloads, and what of them is decompressed and kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing
import zstandard
from store_contents import picture_latent

from latentfs.errors import StoreCorruptError
from latentfs.fs import latent_files
from latentfs.fs.latent_files import LatentFiles
from latentfs.latents import payload as payload_codec
from latentfs.latents.diffusers import packed_bytes
from latentfs.latents.latent import Latent
from latentfs.store import tables
from latentfs.store.live_store import LiveStore
from latentfs.store.records import LatentFileContent
from latentfs.store.snapshot import blob_id
from latentfs.store.store import Store

LATENTS = [picture_latent(seed, height=4, width=6) for seed in range(7)]
LATENT_BYTES = LATENTS[0].nbytes
REST = b"header" + b"trailing bytes"
OFFSET = 6


def tensor_of(latents: list[Latent], *, packed: bool = False) -> bytes:
    return b"".join(packed_bytes(x) if packed else x.bits.tobytes() for x in latents)


def file_of(tensor: bytes) -> bytes:
    return REST[:OFFSET] + tensor + REST[OFFSET:]


class Decoding:
    """Counts what is decompressed, by payload."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counts: Counter[bytes] = Counter()
        decode = payload_codec.decode

        def counting(payload: bytes) -> Latent:
            self.counts[payload] += 1
            return decode(payload)

        monkeypatch.setattr(payload_codec, "decode", counting)


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Decoding:
    """Two latents a part."""
    monkeypatch.setattr(latent_files, "_PART_BYTES", 2 * LATENT_BYTES + 1)
    return Decoding(monkeypatch)


@asynccontextmanager
async def stored(
    tmp_path: Path, latents: list[Latent] = LATENTS, *, packed: bool = False
) -> AsyncIterator[tuple[LatentFiles, LatentFileContent]]:
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            payloads = tuple(
                transaction.add_payload(latent.digest(), payload_codec.encode(latent))
                for latent in latents
            )
        with store.write_rows() as rows:
            rows.put("metadata", tables.blob_key(blob_id(REST)), zstandard.compress(REST))
        content = LatentFileContent(payloads, blob_id(REST), OFFSET, packed)
        yield LatentFiles(LiveStore(store)), content


@pytest.mark.parametrize("packed", [False, True])
async def test_any_range_is_that_of_the_file(tmp_path, decoding, packed):
    whole = file_of(tensor_of(LATENTS, packed=packed))
    steps = [0, 1, OFFSET, OFFSET + 1, OFFSET + LATENT_BYTES, OFFSET + 5 * LATENT_BYTES + 3]
    steps += [len(whole) - 14, len(whole) - 1, len(whole)]
    async with stored(tmp_path, packed=packed) as (files, content):
        for offset in steps:
            for end in steps:
                expected = whole[offset : max(offset, end)]
                got = await files.read(content, offset=offset, end=max(offset, end))
                assert got == expected, (offset, end)
        assert await files.whole(content) == whole


async def test_files_read_in_turns_are_decompressed_once(tmp_path, decoding):
    """One that took its place from another at each read would be put together for each."""
    async with stored(tmp_path) as (files, content):
        swapped = msgspec.structs.replace(content, payloads=content.payloads[::-1])
        twice = msgspec.structs.replace(content, offset=0)
        wholes = {content: b"", swapped: b"", twice: b""}
        size_bytes = len(REST) + 7 * LATENT_BYTES
        for offset in range(0, size_bytes, 10):
            for each in wholes:
                end = min(offset + 10, size_bytes)
                wholes[each] += await files.read(each, offset=offset, end=end)
        assert wholes[content] == file_of(tensor_of(LATENTS))
        assert wholes[swapped] == file_of(tensor_of(LATENTS[::-1]))
        assert wholes[twice] == tensor_of(LATENTS) + REST
        assert set(decoding.counts.values()) == {3}


async def test_only_what_is_asked_for_is_decompressed(tmp_path, decoding):
    async with stored(tmp_path) as (files, content):
        await files.read(content, offset=0, end=OFFSET)
        assert not decoding.counts
        await files.read(content, offset=OFFSET + 4 * LATENT_BYTES, end=OFFSET + 5 * LATENT_BYTES)
        assert sum(decoding.counts.values()) == 2
        assert files.kept_bytes == len(REST) + 2 * LATENT_BYTES
        files.forget(content)
        assert files.kept_bytes == 0


async def test_reads_at_the_same_time_share_what_is_decompressed(tmp_path, decoding):
    async with stored(tmp_path) as (files, content):
        got = []

        async def read() -> None:
            got.append(await files.read(content, offset=OFFSET, end=OFFSET + LATENT_BYTES))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(read)
        assert got == [tensor_of(LATENTS[:1])] * 10
        assert set(decoding.counts.values()) == {1}


async def test_a_read_goes_on_for_others_when_who_began_it_was_cancelled(tmp_path, decoding):
    async with stored(tmp_path) as (files, content):
        got = []

        async def read(scope: trio.CancelScope) -> None:
            with scope:
                got.append(await files.read(content, offset=OFFSET, end=OFFSET + LATENT_BYTES))

        threads = [object() for _ in range(latent_files._AT_ONCE_MAX)]
        for thread in threads:
            files._places.acquire_on_behalf_of_nowait(thread)
        first = trio.CancelScope()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, first)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(read, trio.CancelScope())
            await trio.testing.wait_all_tasks_blocked()
            first.cancel()
            await trio.testing.wait_all_tasks_blocked()
            files._places.release_on_behalf_of(threads[0])
        assert got == [tensor_of(LATENTS[:1])]


async def test_what_is_kept_has_a_limit(tmp_path, decoding, monkeypatch):
    monkeypatch.setattr(latent_files, "_KEPT_BYTES_MAX", 2 * LATENT_BYTES)
    whole = file_of(tensor_of(LATENTS))
    async with stored(tmp_path) as (files, content):
        for _ in range(2):
            assert await files.read(content, offset=0, end=len(whole)) == whole
            assert files.kept_bytes <= 2 * LATENT_BYTES


async def test_damage_is_told_to_all_who_wait_and_nothing_of_it_is_kept(tmp_path, decoding):
    async with stored(tmp_path) as (files, content):
        missing = msgspec.structs.replace(content, payloads=(*content.payloads, 999))
        failed = []

        async def read() -> None:
            start = OFFSET + 7 * LATENT_BYTES
            with pytest.raises(StoreCorruptError, match="999"):
                await files.read(missing, offset=start, end=start + 1)
            failed.append(True)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(read)
        assert len(failed) == 3
        assert files.kept_bytes == 0
        with pytest.raises(StoreCorruptError, match="too short"):
            await files.read(content, offset=0, end=len(REST) + 7 * LATENT_BYTES + 1)


async def test_latents_of_another_length_than_the_first_are_damage(tmp_path, decoding):
    larger = picture_latent(9, height=4, width=8)
    async with stored(tmp_path, [LATENTS[0], larger]) as (files, content):
        with pytest.raises(StoreCorruptError, match="not of one tensor"):
            await files.read(content, offset=0, end=OFFSET + LATENT_BYTES)
