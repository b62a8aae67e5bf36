import zlib

import numpy as np
import pytest
import sample_pictures as samples
from hypothesis import given
from hypothesis import strategies as st

from latentfs.images import png
from latentfs.images.deflate import deflated_in_strips

STRIP_BYTES = 128 * 1024


def _bytes(length: int) -> memoryview:
    return memoryview(np.random.default_rng(length).integers(0, 40, length, np.uint8).tobytes())


@pytest.mark.parametrize(
    "length",
    [0, 1, STRIP_BYTES - 1, 2 * STRIP_BYTES - 1, 2 * STRIP_BYTES, 4 * STRIP_BYTES + 3, 2_000_003],
)
@pytest.mark.parametrize("strips_max", [1, 2, 4, 7])
def test_strips_are_one_stream(length: int, strips_max: int) -> None:
    data = _bytes(length)
    stream = deflated_in_strips(data, level=1, strips_max=strips_max)
    unpacked = zlib.decompressobj()
    assert unpacked.decompress(stream) == data
    assert unpacked.eof
    assert unpacked.unused_data == b""


@given(st.binary(max_size=2000), st.integers(0, 3))
def test_whatever_is_in_it_survives(data: bytes, level: int) -> None:
    assert zlib.decompress(deflated_in_strips(memoryview(data), level=level, strips_max=4)) == data


def test_the_bytes_are_the_same_each_time() -> None:
    data = _bytes(1_500_000)
    streams = {deflated_in_strips(data, level=1, strips_max=4) for _ in range(20)}
    assert len(streams) == 1


def test_a_strip_begins_a_block_of_its_own() -> None:
    data = _bytes(4 * STRIP_BYTES)
    ends_of_strips = b"\x00\x00\xff\xff"
    counts = [
        deflated_in_strips(data, level=1, strips_max=n).count(ends_of_strips) for n in (1, 2, 4, 9)
    ]
    assert counts == [0, 1, 3, 3]


def test_a_png_in_strips_is_hardly_larger() -> None:
    pixels = samples.smooth(512, 512)
    whole, strips = (len(png.encode(pixels, strips_max=n)) for n in (1, 4))
    assert strips < whole * 1.002
    assert np.array_equal(samples.decoded(png.encode(pixels, strips_max=4)), pixels)
