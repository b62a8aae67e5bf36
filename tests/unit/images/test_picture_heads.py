"""What is known of a file without its pixels is how every render of it begins."""

from __future__ import annotations

import io
import struct
import zlib

import msgspec
import numpy as np
import pytest
import sample_pictures as samples
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from latentfs.errors import FramingError, InvalidArgumentError
from latentfs.images import drift, framing, jpeg, png
from latentfs.images.framing import Framing, PngLevel
from latentfs.images.pixels import Pixels

PAGE = 4096
BASES = [Framing.png(), Framing.png(level="small"), Framing.jpeg(quality=90)]


def pixels_of(seed: int, width: int = 24, height: int = 40) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def roomy(base: Framing, metadata: list[bytes], multiple_bytes: int = PAGE) -> Framing:
    return framing.with_room(
        base, metadata_bytes=sum(map(len, metadata)), multiple_bytes=multiple_bytes
    )


def head_of(chosen: Framing, pixels: Pixels, metadata: list[bytes]) -> bytes:
    height, width, _ = pixels.shape
    head = framing.head(chosen, width=width, height=height, metadata=metadata)
    assert len(head) == framing.head_bytes(chosen, metadata_bytes=sum(map(len, metadata)))
    return head


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=2000)
png_metadata = st.lists(
    st.one_of(
        st.builds(png.text_chunk, st.sampled_from(["prompt", "workflow", "parameters"]), texts),
        st.builds(png.chunk, st.sampled_from([b"tIME", b"eXIf", b"prVt"]), st.binary(max_size=300)),
    ),
    max_size=5,
)
jpeg_segments = st.builds(
    lambda marker, data: struct.pack(">BBH", 0xFF, marker, 2 + len(data)) + data,
    st.sampled_from([0xE1, 0xE2, 0xED, 0xEF, 0xFE]),
    st.binary(max_size=5000),
)


@given(
    metadata=png_metadata,
    level=st.sampled_from(["fast", "small"]),
    multiple_bytes=st.sampled_from([0, PAGE, 4 * PAGE]),
    seed=st.integers(0, 100),
    width=st.integers(1, 70),
    height=st.integers(1, 70),
)
def test_a_png_begins_with_its_head(
    metadata: list[bytes], level: PngLevel, multiple_bytes: int, seed: int, width: int, height: int
) -> None:
    chosen = Framing.png(level=level)
    if multiple_bytes:
        chosen = roomy(chosen, metadata, multiple_bytes)
    pixels = pixels_of(seed, width, height)
    data = framing.frame_first(pixels, chosen, metadata=metadata).data
    head = head_of(chosen, pixels, metadata)
    assert data.startswith(head)
    assert not multiple_bytes or len(head) % multiple_bytes <= 4
    kinds = [kind for kind, _ in png.chunks(data)]
    assert kinds.count(b"IDAT") == (2 if multiple_bytes else 1)
    assert np.array_equal(samples.decoded(data), pixels)


@given(
    metadata=st.lists(jpeg_segments, max_size=4),
    quality=st.integers(1, 100),
    multiple_bytes=st.sampled_from([0, PAGE, 4 * PAGE]),
    seed=st.integers(0, 100),
    width=st.integers(1, 70),
    height=st.integers(1, 70),
)
def test_a_jpeg_begins_with_its_head(
    metadata: list[bytes], quality: int, multiple_bytes: int, seed: int, width: int, height: int
) -> None:
    chosen = Framing.jpeg(quality=quality)
    if multiple_bytes:
        chosen = roomy(chosen, metadata, multiple_bytes)
    pixels = pixels_of(seed, width, height)
    first = framing.frame_first(pixels, chosen, metadata=metadata).data
    head = head_of(chosen, pixels, metadata)
    assert first.startswith(head)
    plain = framing.encode_picture(pixels, Framing.jpeg(quality=quality))
    assert np.array_equal(samples.decoded(first), samples.decoded(plain))
    if multiple_bytes:
        assert len(head) % multiple_bytes == 0
        assert head[-14:-10] == b"\xff\xda\x00\x0c"  # what follows are pixels
        assert all(segment in head for segment in metadata)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("setting", ["noise:0.001", "noise:0.05", "flat:0.1", "flat:1"])
def test_a_render_that_differs_has_the_same_head(
    base: Framing, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = samples.smooth(200, 160)
    chosen = roomy(base, [])
    first = framing.frame_first(pixels, chosen).data
    monkeypatch.setenv(drift.ENVIRONMENT_VARIABLE, setting)
    fitted = framing.encode_to_size(pixels, chosen, size_bytes=len(first))
    assert len(fitted.data) == len(first)
    assert fitted.data.startswith(head_of(chosen, pixels, []))
    assert samples.decoded(fitted.data).shape == pixels.shape


@pytest.mark.parametrize("effort", list(png.Effort))
def test_every_encoding_of_a_png_has_the_head(effort: png.Effort) -> None:
    pixels = samples.smooth(200, 160)
    chosen = roomy(Framing.png(), [])
    data = png.encode(pixels, effort=effort, room_bytes=chosen.room_bytes)
    assert data.startswith(head_of(chosen, pixels, []))
    assert np.array_equal(samples.decoded(data), pixels)


def test_a_jpeg_with_a_room_has_more_slack_in_place_of_a_harder_encoding() -> None:
    pixels = samples.smooth(200, 160)
    chosen = roomy(Framing.jpeg(quality=90), [])
    encoded = framing.encode_picture(pixels, chosen)
    assert len(framing.frame_first(pixels, chosen).data) == len(encoded) + len(encoded) // 25 + 64
    with pytest.raises(FramingError, match="doesn't fit"):
        framing.encode_to_size(pixels, chosen, size_bytes=len(encoded) - 1)


def test_the_room_of_a_png_inflates_to_nothing() -> None:
    """Strictly: by zlib as one stream, and by zlib's own inflate chunk by chunk."""
    pixels = pixels_of(1)
    chosen = roomy(Framing.png(), [], 16 * PAGE)
    data = framing.encode_picture(pixels, chosen)
    room, stream = [body for kind, body in png.chunks(data) if kind == b"IDAT"]
    inflater = zlib.decompressobj()
    assert inflater.decompress(room) == b""
    rows = inflater.decompress(stream)
    assert inflater.eof
    assert not inflater.unused_data
    assert len(rows) == 40 * (1 + 24 * 3)
    assert rows == zlib.decompress(room + stream)


def test_an_open_of_pillow_stops_in_the_head() -> None:
    for base, metadata in ((BASES[0], [png.text_chunk("prompt", "a cat" * 5000)]), (BASES[2], [])):
        pixels = pixels_of(2)
        chosen = roomy(base, metadata)
        head = head_of(chosen, pixels, metadata)
        with Image.open(io.BytesIO(head)) as image:
            assert image.size == (24, 40)
            assert image.info.get("prompt", "a cat" * 5000) == "a cat" * 5000


def test_without_a_room_the_bytes_are_laid_out_as_ever() -> None:
    """Put together here by hand: what the encoders give depends on the processor too."""
    pixels = samples.smooth(64, 48)
    text = png.text_chunk("prompt", "a cat")
    data = framing.frame_first(pixels, Framing.png(), metadata=[text]).data
    stream = next(body for kind, body in png.chunks(data) if kind == b"IDAT")
    assert stream[:2] == b"\x78\x01"
    header = png.chunk(b"IHDR", struct.pack(">II5B", 48, 64, 8, 2, 0, 0, 0))
    end = png.chunk(b"IEND", b"")
    pictured = b"".join((png.SIGNATURE, header, text, png.chunk(b"IDAT", stream), end))
    slack_bytes = len(pictured) // 100 + 64
    padding = png.chunk(b"lfPD", bytes(slack_bytes - 12))
    assert data == pictured[:-12] + padding + end

    comment = b"\xff\xfe\x00\x07a cat"
    data = framing.frame_first(pixels, Framing.jpeg(quality=90), metadata=[comment]).data
    plain = jpeg.encode(pixels, quality=90)
    slack_bytes = (len(plain) + len(comment)) // 100 + 64
    padding = struct.pack(">HH", 0xFFFE, slack_bytes - 2) + bytes(slack_bytes - 4)
    assert data == plain[:20] + padding + comment + plain[20:]


def test_records_without_a_room_stay_as_they_were() -> None:
    old = {"format": "png", "quality": None, "encoder": "png-up-igzip1"}
    decoded = msgspec.convert(old, Framing)
    assert decoded.room_bytes == 0
    assert msgspec.msgpack.encode(decoded) == msgspec.msgpack.encode(old)
    for base in BASES:
        chosen = roomy(base, [])
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(chosen), type=Framing) == chosen


def test_impossible_rooms_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="room"):
        Framing("png", None, "x", room_bytes=-1)
    for room_bytes in (1, 13, 15, 18):
        with pytest.raises(InvalidArgumentError, match="room"):
            framing.encode_picture(pixels_of(0), Framing("png", None, "x", room_bytes=room_bytes))


@given(metadata_bytes=st.integers(0, 1 << 22), pages=st.integers(1, 256))
def test_a_room_is_as_small_as_can_be(metadata_bytes: int, pages: int) -> None:
    for base, least in ((BASES[0], 14), (BASES[2], 1)):
        chosen = framing.with_room(base, metadata_bytes=metadata_bytes, multiple_bytes=pages * PAGE)
        assert least <= chosen.room_bytes < least + pages * PAGE + 5
        assert framing.head_bytes(chosen, metadata_bytes=metadata_bytes) % (pages * PAGE) <= 4


def test_padding_at_the_end_of_a_jpeg() -> None:
    pixels = samples.smooth(60, 40)
    data = jpeg.encode(pixels, quality=80)
    for gap_bytes in (0, 1, 2, 3, 4, 1000, 70_000):
        padded = jpeg.pad_end(data, len(data) + gap_bytes)
        assert len(padded) == len(data) + gap_bytes
        assert padded.startswith(data[:-2])
        assert np.array_equal(samples.decoded(padded), samples.decoded(data))
    with pytest.raises(FramingError, match="longer"):
        jpeg.pad_end(data, len(data) - 1)
    with pytest.raises(FramingError, match="EOI"):
        jpeg.pad_end(data[:-1], len(data))
