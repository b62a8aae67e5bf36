import io

import numpy as np
import pytest
import sample_pictures as samples
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile, get_sampling

from latentfs.errors import FramingError, InvalidArgumentError
from latentfs.images import jpeg

_MAKE, _MODEL = 0x010F, 0x0110


def _opened(data: bytes) -> JpegImageFile:
    picture = Image.open(io.BytesIO(data))
    picture.load()
    assert isinstance(picture, JpegImageFile)
    return picture


def _comment(text: bytes) -> bytes:
    return b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("quality", [1, 50, 90, 100])
@pytest.mark.parametrize("name", samples.SYNTHETIC)
def test_files_are_valid_444_and_deterministic(name: str, quality: int, optimize: bool) -> None:
    pixels = samples.SYNTHETIC[name]
    data = jpeg.encode(pixels, quality=quality, optimize=optimize)
    assert samples.decoded(data).shape == pixels.shape
    assert get_sampling(_opened(data)) == 0
    assert data == jpeg.encode(pixels.copy(), quality=quality, optimize=optimize)
    if quality == 100:
        difference = samples.decoded(data).astype(int) - pixels
        assert np.abs(difference).max() <= 4


@samples.real
@pytest.mark.parametrize("folder", samples.REAL_NAMES)
@pytest.mark.parametrize(("quality", "largest"), [(75, 40), (90, 30), (95, 25), (96, 0), (100, 0)])
def test_optimized_is_smaller_and_close(folder: str, quality: int, largest: int) -> None:
    """From quality 96 up both use the accurate DCT, so that the pixels are equal."""
    pixels = samples.real_picture(folder)
    usual = jpeg.encode(pixels, quality=quality)
    optimized = jpeg.encode(pixels, quality=quality, optimize=True)
    assert len(optimized) < len(usual)
    assert _opened(optimized).quantization == _opened(usual).quantization
    difference = samples.decoded(optimized).astype(int) - samples.decoded(usual)
    assert np.abs(difference).max() <= largest


def test_optimizing_noise_leaves_pillow_as_it_was() -> None:
    before = ImageFile.MAXBLOCK
    jpeg.encode(samples.noise(256, 256), quality=100, optimize=True)
    assert before == ImageFile.MAXBLOCK


@pytest.mark.parametrize("quality", [-1, 0, 101])
def test_other_qualities_are_refused(quality: int) -> None:
    with pytest.raises(InvalidArgumentError):
        jpeg.encode(samples.flat(4, 4), quality=quality)


def test_other_arrays_are_refused() -> None:
    with pytest.raises(InvalidArgumentError):
        jpeg.encode(np.zeros((4, 4, 1), np.uint8), quality=90)


@pytest.mark.parametrize("optimize", [False, True])
def test_metadata_is_verbatim_behind_app0(optimize: bool) -> None:
    exif = jpeg.exif_segment({_MODEL: "prompt:{}"})
    assert exif is not None
    metadata = [exif, _comment(b"a cat")]
    data = jpeg.encode(samples.smooth(20, 20), quality=90, metadata=metadata, optimize=optimize)
    assert data[20:].startswith(b"".join(metadata))
    picture = _opened(data)
    assert picture.info["jfif_version"] == (1, 1)
    assert picture.info["comment"] == b"a cat"
    assert picture.getexif()[_MODEL] == "prompt:{}"


def test_exif_holds_text_that_is_not_ascii() -> None:
    segment = jpeg.exif_segment({_MAKE: "猫", _MODEL: ""})
    assert segment is not None
    exif = _opened(jpeg.encode(samples.flat(8, 8), quality=90, metadata=[segment])).getexif()
    assert exif[_MAKE].encode("latin-1").decode() == "猫"
    assert exif[_MODEL] == ""


def test_exif_fills_one_segment_at_most() -> None:
    fixed = len(jpeg.exif_segment({_MODEL: ""}) or b"")
    room = 65535 + 2 - fixed
    largest = max(
        length for length in range(room - 8, room + 8) if jpeg.exif_segment({_MODEL: "x" * length})
    )
    segment = jpeg.exif_segment({_MODEL: "x" * largest})
    assert segment is not None
    assert 65530 <= len(segment) <= 65537
    data = jpeg.encode(samples.flat(8, 8), quality=90, metadata=[segment])
    assert len(_opened(data).getexif()[_MODEL]) == largest


@pytest.mark.parametrize("fields", [{0x0100: "x"}, {_MODEL: "a\0b"}, {_MODEL: "\ud800"}])
def test_impossible_exif_is_refused(fields: dict[int, str]) -> None:
    with pytest.raises(InvalidArgumentError):
        jpeg.exif_segment(fields)


_EXIF = jpeg.exif_segment({_MODEL: "m"}) or b""
_ENCODED = jpeg.encode(samples.smooth(9, 11), quality=90, metadata=[_EXIF, _comment(b"a cat")])


def _require_same_picture(padded: bytes) -> None:
    assert np.array_equal(samples.decoded(padded), samples.decoded(_ENCODED))
    assert np.array_equal(simplejpeg.decode_jpeg(padded), simplejpeg.decode_jpeg(_ENCODED))
    picture = _opened(padded)
    assert picture.info["comment"] == b"a cat"
    assert picture.getexif()[_MODEL] == "m"


@given(gap=st.integers(0, 300_000))
def test_padding_changes_only_the_length(gap: int) -> None:
    padded = jpeg.pad(_ENCODED, len(_ENCODED) + gap)
    assert len(padded) == len(_ENCODED) + gap
    _require_same_picture(padded)


@pytest.mark.parametrize("gap", [*range(20), *range(65530, 65550), *range(131070, 131085)])
def test_padding_at_the_edges_of_a_segment(gap: int) -> None:
    padded = jpeg.pad(_ENCODED, len(_ENCODED) + gap)
    assert len(padded) == len(_ENCODED) + gap
    _require_same_picture(padded)


@given(first=st.integers(0, 70_000), second=st.integers(0, 70_000))
def test_padded_files_can_be_padded_again(first: int, second: int) -> None:
    once = jpeg.pad(_ENCODED, len(_ENCODED) + first)
    twice = jpeg.pad(once, len(once) + second)
    assert len(twice) == len(_ENCODED) + first + second
    _require_same_picture(twice)


def test_padding_follows_the_last_application_segment() -> None:
    padded = jpeg.pad(_ENCODED, len(_ENCODED) + 50)
    start = 20 + len(_EXIF)
    assert padded[:start] == _ENCODED[:start]
    assert padded[start:] == _comment(bytes(46)) + _ENCODED[start:]


def test_a_longer_file_is_refused() -> None:
    with pytest.raises(FramingError):
        jpeg.pad(_ENCODED, len(_ENCODED) - 1)


@pytest.mark.parametrize("data", [b"", b"\x89PNG", b"\xff\xd8", b"\xff\xd8\xff\xe0\x00\x10JFIF"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(FramingError):
        jpeg.pad(data, 100)
