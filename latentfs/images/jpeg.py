"""JPEG files: the same pixels and metadata always give the same bytes, and any file can be padded.

Encoding is deterministic for one version of libjpeg-turbo.  Padding changes neither the pixels nor
any other segment.
"""

from __future__ import annotations

import functools
import io
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageFile, TiffTags

from latentfs.errors import FramingError, InvalidArgumentError
from latentfs.images.pixels import Pixels, require_picture

__all__ = [
    "END",
    "ENCODER",
    "encode",
    "exif_segment",
    "head",
    "head_bytes",
    "leading_metadata",
    "pad",
    "pad_end",
    "room_bytes",
]

ENCODER = "jpeg-turbo-444"
"""Names the encoder behind ``optimize=False`` and its settings."""

_START = b"\xff\xd8"
END = b"\xff\xd9"
"""How every file ends."""

_APP0, _APP1, _APP15, _COMMENT = 0xE0, 0xE1, 0xEF, 0xFE
_FRAME, _SCAN = 0xC0, 0xDA
# Of a frame header, behind marker, length and precision.
_HEIGHT_OFFSET = 5
_DIMENSIONS_BYTES = 4

_LENGTH_BYTES = 2
_SEGMENT_OVERHEAD_BYTES = 2 + _LENGTH_BYTES
_MAX_SEGMENT_DATA_BYTES = 0xFFFF - _LENGTH_BYTES

_pillow_buffer_lock = threading.Lock()


def encode(
    pixels: Pixels, *, quality: int, metadata: Sequence[bytes] = (), optimize: bool = False
) -> bytes:
    """Return *pixels*, uint8 [H, W, 3] RGB in C order, as a baseline 4:4:4 JPEG file.

    Args:
        quality: 1 to 100 on libjpeg's scale.
        metadata: whole marker segments, put verbatim and in order behind SOI and APP0.
        optimize: compute Huffman tables for this picture: 2-8% smaller from quality 75 up, and 3
            times slower.  The quantization tables stay the same.  Below quality 96 the pixels
            don't: it takes the accurate DCT where the usual encoding takes the fast one, which
            moves half of the decoded values at quality 90, by 27 levels at most.

    Raises:
        InvalidArgumentError: *quality* is out of range, or *pixels* has another dtype, shape or
            memory order.
    """
    require_picture(pixels)
    if not 1 <= quality <= 100:
        raise InvalidArgumentError(f"JPEG quality {quality} is out of range; use 1 to 100")
    data = _optimized(pixels, quality) if optimize else _fast(pixels, quality)
    offset = len(_START)
    for marker, end in _leading_segments(data):
        if marker == _APP0:
            offset = end
    return b"".join((data[:offset], *metadata, data[offset:]))


def pad(data: bytes, size_bytes: int) -> bytes:
    """Return the JPEG file *data* brought to exactly *size_bytes*.

    The padding is comments of zeros behind the leading APPn segments, ahead of any other comment,
    so that readers which keep the last comment don't keep padding.  A gap of 1 to 3 bytes, too
    small for a comment, is fill bytes in front of a marker.

    Raises:
        FramingError: *data* is longer than that, or does not start as a JPEG file does.
    """
    gap_bytes = size_bytes - len(data)
    if gap_bytes < 0:
        raise FramingError(
            f"a JPEG of {len(data)} bytes is longer than the {size_bytes} it has to be padded to; "
            f"encode it with optimize"
        )
    offset = len(_START)
    for marker, end in _leading_segments(data):
        if marker != _COMMENT:
            offset = end
    view = memoryview(data)
    return b"".join((view[:offset], *_padding(gap_bytes), view[offset:]))


def pad_end(data: bytes, size_bytes: int) -> bytes:
    """Return the JPEG file *data* brought to exactly *size_bytes* with fill bytes before its end.

    Nothing in front of the pixel data changes.

    Raises:
        FramingError: *data* is longer than that, or does not end as a JPEG file does.
    """
    gap_bytes = size_bytes - len(data)
    if gap_bytes < 0:
        raise FramingError(
            f"a JPEG of {len(data)} bytes is longer than the {size_bytes} it has to be padded to"
        )
    if not data.endswith(END):
        raise FramingError(f"{len(data)} bytes don't end in an EOI marker; only a whole JPEG pads")
    return b"".join((memoryview(data)[: -len(END)], gap_bytes * b"\xff", END))


def head(
    *, width: int, height: int, quality: int, metadata: Sequence[bytes], room_bytes: int
) -> bytes:
    """Return how a file of these begins, whatever its pixels are.

    With a room that is all in front of the pixel data, the Huffman tables too, so that only the
    usual encoding will do.  Without one it ends early: padding may be anywhere behind.
    """
    beginning = _beginning(quality)
    if room_bytes == 0:
        return beginning.start
    dimensions = struct.pack(">HH", height, width)
    tables = (beginning.to_dimensions, dimensions, beginning.to_pixels)
    whole = b"".join((beginning.start, *metadata, *tables))
    return pad(whole, len(whole) + room_bytes)


def head_bytes(*, quality: int, metadata_bytes: int, room_bytes: int) -> int:
    """Return the length of `head`."""
    beginning = _beginning(quality)
    if room_bytes == 0:
        return len(beginning.start)
    return sum(map(len, beginning)) + _DIMENSIONS_BYTES + metadata_bytes + room_bytes


def room_bytes(*, quality: int, metadata_bytes: int, multiple_bytes: int) -> int:
    """Return the room that brings a head to a multiple of *multiple_bytes*; at least 1."""
    least = head_bytes(quality=quality, metadata_bytes=metadata_bytes, room_bytes=1)
    return 1 + -least % multiple_bytes


def exif_segment(fields: Mapping[int, str]) -> bytes | None:
    """Return an APP1 Exif segment with *fields*, IFD0 tag number to text.

    Text is written as UTF-8, so ASCII is kept as it is and nothing is lost.

    Returns:
        The whole segment with its marker, or None when one segment can't hold it.

    Raises:
        InvalidArgumentError: a tag is not one that holds text, or a text holds a NUL or half of a
            surrogate pair.
    """
    exif = Image.Exif()
    for tag, text in fields.items():
        exif[tag] = _exif_text(tag, text)
    data = exif.tobytes()
    return None if len(data) > _MAX_SEGMENT_DATA_BYTES else _segment(_APP1, data)


def _exif_text(tag: int, text: str) -> bytes:
    if TiffTags.lookup(tag).type != TiffTags.ASCII:
        raise InvalidArgumentError(f"Exif tag {tag:#06x} doesn't hold text; choose one that does")
    if "\0" in text:
        raise InvalidArgumentError(f"the text of Exif tag {tag:#06x} holds a NUL; remove it")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"the text of Exif tag {tag:#06x} is not valid Unicode at character {error.start}; "
            f"remove the lone surrogate"
        ) from error


def _fast(pixels: Pixels, quality: int) -> bytes:
    encoded = simplejpeg.encode_jpeg(pixels, quality, "RGB", "444", False)
    return bytes(encoded)


def _optimized(pixels: Pixels, quality: int) -> bytes:
    target = io.BytesIO()
    picture = Image.fromarray(pixels)
    with _pillow_buffer_lock:
        # libjpeg can't suspend while it optimizes, so all its output has to fit Pillow's buffer,
        # and Pillow's own estimate is too small for noise.  Other threads only see it larger.
        before_bytes = ImageFile.MAXBLOCK
        ImageFile.MAXBLOCK = max(before_bytes, 2 * pixels.nbytes)
        try:
            picture.save(target, "JPEG", quality=quality, subsampling="4:4:4", optimize=True)
        finally:
            ImageFile.MAXBLOCK = before_bytes
    return target.getvalue()


class _Beginning(NamedTuple):
    """How the usual encoding of any picture begins.

    Attributes:
        start: SOI and APP0; metadata come behind it.
        to_dimensions: from there to the frame header's height and width.
        to_pixels: from behind these to the end of the scan header.
    """

    start: bytes
    to_dimensions: bytes
    to_pixels: bytes


@functools.lru_cache(maxsize=100)
def _beginning(quality: int) -> _Beginning:
    """Found by encoding a picture of one block; all but the dimensions hangs on the quality."""
    data = _fast(np.zeros((8, 8, 3), np.uint8), quality)
    start_end = dimensions = 0
    for marker, offset, end in _segments(data):
        if marker == _APP0:
            start_end = end
        elif marker == _FRAME:
            dimensions = offset + _HEIGHT_OFFSET
        elif marker == _SCAN:
            break
    return _Beginning(
        data[:start_end], data[start_end:dimensions], data[dimensions + _DIMENSIONS_BYTES : end]
    )


def leading_metadata(
    data: bytes, *, segments_max: int | None = None
) -> tuple[int, list[bytes], int]:
    """Return where SOI and APP0 end, the APPn and COM segments behind them, and where those end.

    Raises:
        FramingError: *data* does not start as a JPEG file does, or there are more than
            *segments_max* of these segments, APP0 among them.
    """
    start_end = end = len(_START)
    segments: list[bytes] = []
    for number, (marker, segment_end) in enumerate(_leading_segments(data), start=1):
        if segments_max is not None and number > segments_max:
            raise FramingError(
                f"a JPEG file of more than {segments_max} segments is not taken apart"
            )
        if marker == _APP0 and not segments:
            start_end = segment_end
        else:
            segments.append(data[end:segment_end])
        end = segment_end
    return start_end, segments, end


def _leading_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker code, end offset) of each APPn and COM segment before any other marker."""
    for marker, _, end in _segments(data):
        if not (_APP0 <= marker <= _APP15 or marker == _COMMENT):
            return
        yield marker, end


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker code, offset, end offset) of the segments up to the first scan's data."""
    if not data.startswith(_START):
        raise FramingError(f"not a JPEG file: it starts with {data[:2]!r}")
    offset = len(_START)
    while True:
        header = data[offset : offset + _SEGMENT_OVERHEAD_BYTES]
        if len(header) < _SEGMENT_OVERHEAD_BYTES or header[0] != 0xFF:
            raise FramingError(f"damaged JPEG file: no marker segment at byte {offset}")
        end = offset + 2 + int.from_bytes(header[2:], "big")
        yield header[1], offset, end
        offset = end


def _padding(gap_bytes: int) -> Iterator[bytes]:
    while gap_bytes >= _SEGMENT_OVERHEAD_BYTES:
        take = min(gap_bytes, _SEGMENT_OVERHEAD_BYTES + _MAX_SEGMENT_DATA_BYTES)
        if 0 < gap_bytes - take < _SEGMENT_OVERHEAD_BYTES:
            # Leave the next comment enough to be one.
            take -= _SEGMENT_OVERHEAD_BYTES
        yield _segment(_COMMENT, bytes(take - _SEGMENT_OVERHEAD_BYTES))
        gap_bytes -= take
    yield b"\xff" * gap_bytes


def _segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, _LENGTH_BYTES + len(data)) + data
