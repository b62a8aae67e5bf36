"""JPEG files: the same pixels and metadata always give the same bytes, and any file can be padded.

Encoding is deterministic for one version of libjpeg-turbo.  Padding changes neither the pixels nor
any other segment.
"""

from __future__ import annotations

import io
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence

import simplejpeg
from PIL import Image, ImageFile, TiffTags

from latentfs.errors import FramingError, InvalidArgumentError
from latentfs.images.pixels import Pixels, require_picture

__all__ = ["ENCODER", "encode", "pad", "exif_segment"]

ENCODER = "jpeg-turbo-444"
"""Names the encoder behind ``optimize=False`` and its settings."""

_START = b"\xff\xd8"
_APP0, _APP1, _APP15, _COMMENT = 0xE0, 0xE1, 0xEF, 0xFE

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


def _leading_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker code, end offset) of each APPn and COM segment before any other marker."""
    if not data.startswith(_START):
        raise FramingError(f"not a JPEG file: it starts with {data[:2]!r}")
    offset = len(_START)
    while True:
        header = data[offset : offset + _SEGMENT_OVERHEAD_BYTES]
        if len(header) < _SEGMENT_OVERHEAD_BYTES or header[0] != 0xFF:
            raise FramingError(f"damaged JPEG file: no marker segment at byte {offset}")
        marker = header[1]
        if not (_APP0 <= marker <= _APP15 or marker == _COMMENT):
            return
        offset += 2 + int.from_bytes(header[2:], "big")
        yield marker, offset


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
