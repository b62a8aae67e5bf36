import io
import struct
import zlib

import numpy as np
import pytest
import sample_pictures as samples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from latentfs.errors import FramingError, InvalidArgumentError
from latentfs.images import png
from latentfs.images.pixels import Pixels
from latentfs.images.png import Effort


def _text_of(data: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        assert isinstance(picture, PngImagePlugin.PngImageFile)
        return {key: str(value) for key, value in picture.text.items()}


def _inflated(data: bytes) -> bytes:
    return zlib.decompress(b"".join(body for kind, body in png.chunks(data) if kind == b"IDAT"))


@pytest.mark.parametrize("effort", list(Effort))
@pytest.mark.parametrize("name", samples.SYNTHETIC)
def test_pixels_survive(name: str, effort: Effort) -> None:
    pixels = samples.SYNTHETIC[name]
    data = png.encode(pixels, effort=effort)
    assert np.array_equal(samples.decoded(data), pixels)
    assert data == png.encode(pixels.copy(), effort=effort)


@samples.real
@pytest.mark.parametrize("folder", samples.REAL_NAMES)
def test_real_pictures_survive_and_more_effort_is_smaller(folder: str) -> None:
    pixels = samples.real_picture(folder)
    files = [png.encode(pixels, effort=effort) for effort in Effort]
    for data in files:
        assert np.array_equal(samples.decoded(data), pixels)
    lengths = [len(data) for data in files]
    assert lengths == sorted(set(lengths), reverse=True)


def test_more_effort_is_smaller_on_synthetic_pictures() -> None:
    lengths = [len(png.encode(samples.smooth(300, 200), effort=effort)) for effort in Effort]
    assert lengths == sorted(set(lengths), reverse=True)


@given(height=st.integers(1, 70), width=st.integers(1, 12), effort=st.sampled_from(list(Effort)))
def test_any_size_survives(height: int, width: int, effort: Effort) -> None:
    pixels = samples.noise(height, width)
    assert np.array_equal(samples.decoded(png.encode(pixels, effort=effort)), pixels)


def test_rows_take_the_filter_with_the_smallest_differences() -> None:
    """A row each for which exactly Sub, Up, Average and Paeth leave nothing."""
    rows = np.zeros((4, 30), np.uint8)
    rows[0] = 50
    rows[1] = np.arange(30) * 7
    rows[2] = rows[1]
    rows[3, :3] = rows[2, :3] // 2
    for i in range(3, 30):
        rows[3, i] = (int(rows[3, i - 3]) + int(rows[2, i])) // 2
    data = png.encode(rows.reshape(4, 10, 3), effort=Effort.SMALL)
    filters = _inflated(data)[:: 1 + 30]
    assert (filters[0], filters[2], filters[3]) == (1, 2, 3)
    assert np.array_equal(samples.decoded(data).reshape(4, 30), rows)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 8, 3), np.uint8)[:, ::2],
    ],
)
def test_other_arrays_are_refused(pixels: Pixels) -> None:
    with pytest.raises(InvalidArgumentError):
        png.encode(pixels)


def test_metadata_is_verbatim_between_header_and_pixels() -> None:
    metadata = [png.text_chunk("parameters", "a cat\nSteps: 20"), png.text_chunk("prompt", "{}")]
    data = png.encode(samples.smooth(20, 20), metadata=metadata)
    assert [kind for kind, _ in png.chunks(data)] == [b"IHDR", b"tEXt", b"tEXt", b"IDAT", b"IEND"]
    assert data[33:].startswith(b"".join(metadata))
    assert _text_of(data) == {"parameters": "a cat\nSteps: 20", "prompt": "{}"}


@pytest.mark.parametrize("text", ["", "plain", "naïve ÿ", "猫, 🐈", "two\nlines"])
def test_text_chunks_are_those_of_pillow(text: str) -> None:
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", text)
    target = io.BytesIO()
    Image.new("RGB", (2, 2)).save(target, "PNG", pnginfo=info)
    chunk = png.text_chunk("workflow", text)
    assert chunk in target.getvalue()
    assert _text_of(png.encode(samples.flat(2, 2), metadata=[chunk])) == {"workflow": text}


@pytest.mark.parametrize(
    ("keyword", "text"),
    [("", "x"), ("k" * 80, "x"), ("a\0b", "x"), ("猫", "x"), ("k", "a\0b"), ("k", "\ud800")],
)
def test_impossible_text_is_refused(keyword: str, text: str) -> None:
    with pytest.raises(InvalidArgumentError):
        png.text_chunk(keyword, text)


@pytest.mark.parametrize("kind", [b"", b"abc", b"abcde", b"ab1d"])
def test_impossible_chunk_types_are_refused(kind: bytes) -> None:
    with pytest.raises(InvalidArgumentError):
        png.chunk(kind, b"")


_PICTURE = samples.smooth(9, 11)
_ENCODED = png.encode(_PICTURE, metadata=[png.text_chunk("prompt", "a cat")])


@given(gap=st.one_of(st.just(0), st.integers(12, 80), st.integers(81, 300_000)))
def test_padding_keeps_everything_else(gap: int) -> None:
    padded = png.pad(_ENCODED, len(_ENCODED) + gap)
    assert len(padded) == len(_ENCODED) + gap
    assert np.array_equal(samples.decoded(padded), _PICTURE)
    kept = [item for item in png.chunks(padded) if item[0] != png.PADDING_CHUNK]
    assert kept == list(png.chunks(_ENCODED))
    assert _text_of(padded) == {"prompt": "a cat"}


@pytest.mark.parametrize("gap", [-len(_ENCODED), -1, *range(1, 12)])
def test_impossible_gaps_are_refused(gap: int) -> None:
    with pytest.raises(FramingError):
        png.pad(_ENCODED, len(_ENCODED) + gap)


def test_padding_needs_a_whole_file() -> None:
    with pytest.raises(FramingError):
        png.pad(_ENCODED[:-1], len(_ENCODED) + 100)


def test_padding_chunk_is_ancillary_private_and_unsafe_to_copy() -> None:
    assert [bool(byte & 0x20) for byte in png.PADDING_CHUNK] == [True, True, False, False]


@given(st.integers(0, len(_ENCODED) - 1))
def test_truncation_is_found(length: int) -> None:
    with pytest.raises(FramingError):
        list(png.chunks(_ENCODED[:length]))


@given(st.integers(0, len(_ENCODED) - 1), st.integers(1, 255))
def test_any_changed_byte_is_found(position: int, change: int) -> None:
    damaged = bytearray(_ENCODED)
    damaged[position] ^= change
    with pytest.raises(FramingError):
        list(png.chunks(bytes(damaged)))


def test_wrong_order_is_found() -> None:
    end = png.chunk(b"IEND", b"")
    with pytest.raises(FramingError, match="IHDR"):
        list(png.chunks(png.SIGNATURE + end))
    with pytest.raises(FramingError, match="follow"):
        list(png.chunks(_ENCODED + b"x"))


def test_chunk_layout() -> None:
    made = png.chunk(b"teSt", b"abc")
    assert made == struct.pack(">I", 3) + b"teStabc" + struct.pack(">I", zlib.crc32(b"teStabc"))
