from collections.abc import Callable

import numpy as np
import pytest
import sample_pictures as samples
from hypothesis import given
from hypothesis import strategies as st

from latentfs.errors import FramingError
from latentfs.images import framing, jpeg, png
from latentfs.images.framing import Framing
from latentfs.images.parts import take_picture_apart
from latentfs.images.pixels import Pixels

TEXTS = [png.text_chunk(f"key{n}", "text " * n) for n in range(4)]
SEGMENT = jpeg.exif_segment({0x010E: "a description"}) or b""
Encode = Callable[[Pixels], bytes]


@given(before=st.lists(st.sampled_from(TEXTS)), after=st.lists(st.sampled_from(TEXTS)))
def test_metadata_around_the_pixel_data_make_no_other_picture(
    before: list[bytes], after: list[bytes]
) -> None:
    pixels = samples.smooth(40, 30)
    plain = take_picture_apart(png.encode(pixels))
    data = png.encode(pixels, metadata=before, trailing=after)
    parts = take_picture_apart(data)
    assert parts.pixel_data_sha256 == plain.pixel_data_sha256
    assert (list(parts.before), list(parts.after)) == (before, after)
    assert np.array_equal(samples.decoded(data), pixels)


@pytest.mark.parametrize("chosen", [Framing.png(), Framing.png(level="small"), Framing.jpeg()])
def test_what_was_taken_apart_is_encoded_to_the_same_bytes(chosen: Framing) -> None:
    """Padding is kept as metadata like any other."""
    pixels = samples.smooth(200, 160)
    metadata = [SEGMENT] if chosen.format == "jpeg" else TEXTS[:2]
    first = framing.frame_first(pixels, chosen, metadata=metadata).data
    parts = take_picture_apart(first)
    again = framing.encode_to_size(
        pixels, chosen, metadata=parts.before, trailing=parts.after, size_bytes=len(first)
    )
    assert again.data == first


def test_other_metadata_in_a_jpeg_make_no_other_picture() -> None:
    pixels = samples.smooth(40, 30)
    plain = jpeg.encode(pixels, quality=90)
    other = jpeg.encode(pixels, quality=90, metadata=[SEGMENT, SEGMENT])
    parts = take_picture_apart(other)
    assert parts.before == (SEGMENT, SEGMENT)
    assert parts.pixel_data_sha256 == take_picture_apart(plain).pixel_data_sha256


@pytest.mark.parametrize("encode", [png.encode, lambda pixels: jpeg.encode(pixels, quality=90)])
def test_other_pixels_make_another_picture(encode: Encode) -> None:
    pixels = samples.smooth(40, 30)
    other = pixels.copy()
    other[20, 20, 1] ^= 64
    digests = {take_picture_apart(encode(each)).pixel_data_sha256 for each in (pixels, other)}
    assert len(digests) == 2


@pytest.mark.parametrize("cut", [1, 9, 20, 100])
@pytest.mark.parametrize("encode", [png.encode, lambda pixels: jpeg.encode(pixels, quality=90)])
def test_a_damaged_file_is_refused(encode: Encode, cut: int) -> None:
    with pytest.raises(FramingError):
        take_picture_apart(encode(samples.smooth(40, 30))[:-cut])


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(FramingError):
        take_picture_apart(b"neither of the two")


def _png_with(texts: int) -> bytes:
    return png.encode(samples.smooth(40, 30), metadata=[TEXTS[0]] * texts)


def _jpeg_with(segments: int) -> bytes:
    return jpeg.encode(samples.smooth(40, 30), quality=90, metadata=[SEGMENT] * segments)


@pytest.mark.parametrize(
    ("encode_with", "others"), [(_png_with, 3), (_jpeg_with, 1)], ids=["PNG", "JPEG"]
)
def test_a_picture_of_more_parts_than_allowed_is_refused(
    encode_with: Callable[[int], bytes], others: int
) -> None:
    """The others are IHDR, IDAT and IEND, or APP0."""
    parts_max = 5 + others
    assert len(take_picture_apart(encode_with(5), parts_max=parts_max).before) == 5
    with pytest.raises(FramingError, match=f"more than {parts_max} "):
        take_picture_apart(encode_with(6), parts_max=parts_max)
    assert len(take_picture_apart(encode_with(2000)).before) == 2000


@pytest.mark.parametrize(
    "data",
    [
        _png_with(0)[:33] + png.chunk(b"teXt", b"") * 100_000,
        b"\xff\xd8" + b"\xff\xe1\x00\x02" * 100_000,
    ],
    ids=["PNG", "JPEG"],
)
def test_too_many_parts_are_not_read_to_their_end(data: bytes) -> None:
    """Else these would be refused for how they end."""
    with pytest.raises(FramingError, match="more than 1000 "):
        take_picture_apart(data, parts_max=1000)
