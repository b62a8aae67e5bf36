"""Files in chunks hold what a bytearray would hold, and chunks that can't be true are refused."""

from __future__ import annotations

import errno
import os
import resource
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from latentfs.errors import RefusedChangeError, StoreCorruptError
from latentfs.store import chunks, tables
from latentfs.store.rows import Layer, LayeredRows
from latentfs.store.store import Store
from latentfs.store.tables import CHUNK_BYTES

INO = 7
RAW, ZSTD = b"\x00", b"\x01"
# Around the ends of chunks, where mistakes are, and anywhere.
POSITIONS = st.integers(0, 4).flatmap(
    lambda chunk: st.integers(-3, 3).map(lambda off: max(0, chunk * CHUNK_BYTES + off))
) | st.integers(0, 4 * CHUNK_BYTES)
LENGTHS = st.sampled_from([1, 2, 4096, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1]) | (
    st.integers(0, 2 * CHUNK_BYTES)
)


def pattern(seed: int, size_bytes: int) -> bytes:
    """Bytes of which each piece says where it is from; half of the seeds compress well."""
    if seed % 2:
        return bytes([seed]) * size_bytes
    return (seed.to_bytes(8, "big") + os.urandom(4093)) * (size_bytes // 4096 + 1)


class ChunkedFile(RuleBasedStateMachine):
    """A file against a bytearray; layers are committed, as a mount does, at any time."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store.create(Path(self.folder.name) / "art.lfs")
        self.layers = [Layer()]
        self.model = bytearray()
        self.chunks = 0
        with self.store.stored_rows() as stored:
            rows = LayeredRows(tuple(self.layers), stored)
            for ino in (INO - 1, INO + 1):
                chunks.write_chunks(rows, ino, offset=0, data=b"a neighbour")

    def changed(self, change):
        with self.store.stored_rows() as stored:
            return change(LayeredRows(tuple(self.layers), stored))

    @rule(offset=POSITIONS, size_bytes=LENGTHS, seed=st.integers(0, 255))
    def write(self, offset, size_bytes, seed):
        data = pattern(seed, size_bytes)[:size_bytes]
        self.chunks += self.changed(
            lambda rows: chunks.write_chunks(rows, INO, offset=offset, data=data)
        )
        if data:
            self.model.extend(bytes(max(0, offset - len(self.model))))
            self.model[offset : offset + len(data)] = data

    @rule(size_bytes=POSITIONS)
    def cut(self, size_bytes):
        if size_bytes >= len(self.model):
            return
        self.chunks -= self.changed(
            lambda rows: chunks.cut_chunks(rows, INO, size_bytes=size_bytes)
        )
        del self.model[size_bytes:]

    @rule(more_bytes=LENGTHS)
    def lengthen(self, more_bytes):
        """What comes to light behind the old end must be zeros."""
        self.model.extend(bytes(more_bytes))

    @rule()
    def drop(self):
        dropped = self.changed(lambda rows: chunks.drop_chunks(rows, INO))
        assert dropped == self.chunks
        self.chunks = 0
        self.model.clear()

    @rule()
    def commit(self):
        self.store.apply(self.layers.pop())
        if not self.layers:
            self.layers.append(Layer())

    @rule()
    def begin_layer(self):
        if len(self.layers) == 1:
            self.layers.insert(0, Layer())

    @rule(start=POSITIONS, size_bytes=LENGTHS)
    def read(self, start, size_bytes):
        end = min(len(self.model), start + size_bytes)
        found = self.changed(lambda rows: chunks.read_chunks(rows, INO, offset=start, end=end))
        assert found == self.model[start:end]

    @invariant()
    def the_whole_file_reads_back(self):
        def whole(rows):
            return chunks.read_chunks(rows, INO, offset=0, end=len(self.model))

        assert self.changed(whole) == self.model

    @invariant()
    def no_chunk_is_uncounted_or_behind_the_end(self):
        indices = self.changed(lambda rows: list(chunks.chunk_indices(rows, INO)))
        assert len(indices) == self.chunks
        assert indices == sorted(set(indices))
        assert all(index * CHUNK_BYTES < len(self.model) for index in indices)

    def teardown(self):
        for ino in (INO - 1, INO + 1):
            neighbour = self.changed(
                lambda rows, ino=ino: chunks.read_chunks(rows, ino, offset=0, end=11)
            )
            assert neighbour == b"a neighbour"
        self.store.close()
        self.folder.cleanup()


TestChunkedFile = ChunkedFile.TestCase
TestChunkedFile.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)


@pytest.fixture
def rows(tmp_path: Path) -> Iterator[LayeredRows]:
    with Store.create(tmp_path / "art.lfs") as store, store.stored_rows() as stored:
        yield LayeredRows((Layer(),), stored)


def held(rows: LayeredRows, value: bytes) -> LayeredRows:
    rows.put("chunks", tables.chunk_key(INO, 0), value)
    return rows


# Compression


@settings(deadline=None, max_examples=50)
@given(data=st.binary(max_size=3000), times=st.integers(0, 40))
def test_a_chunk_reads_back_whether_compressed_or_not(tmp_path_factory, data, times):
    data = (data * times)[:CHUNK_BYTES]
    value = chunks.compressed(RAW + data)
    with Store.create(tmp_path_factory.mktemp("s") / "art.lfs") as store:
        layer = Layer()
        layer.put("chunks", tables.chunk_key(INO, 0), RAW + data)
        store.apply(layer)
        with store.stored_rows() as stored:
            kept = stored.get("chunks", tables.chunk_key(INO, 0))
            assert kept is not None
            assert bytes(kept) == value
            assert chunks.read_chunks(stored, INO, offset=0, end=len(data)) == data


def test_what_compresses_is_compressed_once_and_noise_is_kept_as_it_is():
    noise = RAW + os.urandom(CHUNK_BYTES)
    assert chunks.compressed(noise) is noise
    packed = chunks.compressed(RAW + bytes(CHUNK_BYTES))
    assert len(packed) < 100
    assert packed[:1] == ZSTD
    assert chunks.compressed(packed) == packed


# Limits


def test_nothing_is_written_behind_the_greatest_length(rows):
    end = chunks.FILE_BYTES_MAX
    with pytest.raises(RefusedChangeError) as caught:
        chunks.write_chunks(rows, INO, offset=end - 1, data=b"ab")
    assert caught.value.errno == errno.EFBIG
    assert list(chunks.chunk_indices(rows, INO)) == []
    assert chunks.write_chunks(rows, INO, offset=end - 2, data=b"ab") == 1
    assert chunks.read_chunks(rows, INO, offset=end - 3, end=end) == b"\0ab"
    assert chunks.cut_chunks(rows, INO, size_bytes=end - 1) == 0
    assert chunks.cut_chunks(rows, INO, size_bytes=1) == 1


# Damage


def claiming(size_bytes: int) -> bytes:
    """A zstd frame whose header claims that size, and then some data."""
    magic, single_segment_and_8_bytes = 0xFD2FB528, 0b1110_0000
    return struct.pack("<IBQ", magic, single_segment_and_8_bytes, size_bytes) + bytes(100)


def wide_window() -> bytes:
    """A frame that doesn't say its size and wants a window of 3.75 TB."""
    return struct.pack("<IBB", 0xFD2FB528, 0, 0xFF) + bytes(100)


WHOLE = zstandard.ZstdCompressor().compress(bytes(1000))
DAMAGED = {
    "empty": b"",
    "unknown_kind": b"\x02abc",
    "compressed_nothing": ZSTD,
    "no_frame": ZSTD + b"abc",
    "half_a_frame": ZSTD + zstandard.ZstdCompressor().compress(os.urandom(1000))[:500],
    "a_bit_flipped": ZSTD + WHOLE[:4] + bytes([WHOLE[4] ^ 0xFF]) + WHOLE[5:],
    "claims_a_terabyte": ZSTD + claiming(1 << 40),
    "claims_a_byte_too_many": ZSTD + claiming(CHUNK_BYTES + 1),
    "claims_nothing": ZSTD
    + zstandard.ZstdCompressor(write_content_size=False).compress(bytes(1000)),
    "wants_a_wide_window": ZSTD + wide_window(),
    "raw_and_too_long": RAW + bytes(CHUNK_BYTES + 1),
    "zstd_and_too_long": ZSTD + zstandard.ZstdCompressor().compress(bytes(CHUNK_BYTES + 1)),
    "a_bomb": ZSTD + zstandard.ZstdCompressor().compress(bytes(1 << 28)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_chunk_that_can_not_be_true_is_an_error_that_names_it(rows, name):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    held(rows, DAMAGED[name])
    with pytest.raises(StoreCorruptError, match=f"chunk 0 of inode {INO} .*latentfs fsck"):
        chunks.read_chunks(rows, INO, offset=0, end=10)
    with pytest.raises(StoreCorruptError):
        chunks.write_chunks(rows, INO, offset=5, data=b"part of it")
    with pytest.raises(StoreCorruptError):
        chunks.cut_chunks(rows, INO, size_bytes=5)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kib < 64 << 10
    assert rows.get("chunks", tables.chunk_key(INO, 0)) == DAMAGED[name]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_chunk_can_be_overwritten_and_removed(rows, name):
    held(rows, DAMAGED[name])
    new = os.urandom(CHUNK_BYTES)
    assert chunks.write_chunks(rows, INO, offset=0, data=new) == 0
    assert chunks.read_chunks(rows, INO, offset=0, end=CHUNK_BYTES) == new
    held(rows, DAMAGED[name])
    assert chunks.drop_chunks(rows, INO) == 1


def test_a_chunk_of_less_than_is_asked_for_ends_in_zeros(rows):
    held(rows, ZSTD + zstandard.ZstdCompressor().compress(b"short"))
    assert chunks.read_chunks(rows, INO, offset=3, end=10) == b"rt" + bytes(5)
    assert chunks.read_chunks(rows, INO, offset=10, end=20) == bytes(10)
