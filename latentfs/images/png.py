"""PNG files: the same pixels and metadata always give the same bytes, and any file can be padded.

Encoding is deterministic for one version of the compression libraries.  Padding changes neither the
pixels nor any other chunk.
"""

from __future__ import annotations

import enum
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from isal import isal_zlib

from latentfs.errors import FramingError, InvalidArgumentError
from latentfs.images.deflate import deflated_in_strips
from latentfs.images.pixels import Pixels, require_picture

__all__ = [
    "SIGNATURE",
    "ENCODERS",
    "FAST_ENCODER",
    "PADDING_CHUNK",
    "SMALL_ENCODER",
    "Effort",
    "Encoder",
    "encode",
    "head_bytes",
    "head",
    "room_bytes",
    "pad",
    "chunk",
    "text_chunk",
    "chunks",
]

SIGNATURE = b"\x89PNG\r\n\x1a\n"

PADDING_CHUNK = b"lfPD"
"""Ancillary, private, unsafe to copy: editors drop it, since it means nothing once a file changes.
"""

_CHUNK_OVERHEAD_BYTES = 12
_IHDR_BYTES = _CHUNK_OVERHEAD_BYTES + 13

_ZLIB_HEADER = b"\x78\x01"
"""Deflate with a window of 32 KiB, no dictionary, the fastest level."""

_EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"
"""A stored block of length 0, not the last one: it inflates to nothing."""

_ROOM_BYTES_MIN = _CHUNK_OVERHEAD_BYTES + len(_ZLIB_HEADER)
_MAX_KEYWORD_BYTES = 79

_RGB8 = (8, 2, 0, 0, 0)
"""The end of IHDR: bit depth, colour type, compression, filter method, no interlacing."""

_NONE, _SUB, _UP, _AVERAGE, _PAETH = range(5)

_BAND_ROWS = 32
"""Rows filtered at a time, so that the temporary arrays stay in the processor's cache."""


class Effort(enum.IntEnum):
    """How hard to compress.  On generated pictures each step comes out smaller than the last.

    The times are for 1024x1024 on one core of the reference machine, the sizes are means.
    """

    FAST = 0
    """Up filter, igzip level 1: 8-15 ms; in strips on two cores half of that.

    Levels 2 and 3 take 0.7 and 2.4 ms more for 0.4 and 0.3% fewer bytes.
    """

    SMALL = 1
    """The best filter of each row, igzip level 3: 35-60 ms, 5% smaller than FAST."""

    SMALLEST = 2
    """The best filter of each row, zlib level 9: 0.1-5 s, 11% smaller than FAST."""


class Encoder(NamedTuple):
    """What makes a file's first encoding; *strips_max* counts for FAST alone."""

    effort: Effort
    strips_max: int = 1


FAST_ENCODER: Final = "png-up-igzip1-strips4"
SMALL_ENCODER: Final = "png-best-igzip3"

ENCODERS: Final[Mapping[str, Encoder]] = {
    FAST_ENCODER: Encoder(Effort.FAST, strips_max=4),
    "png-up-igzip1": Encoder(Effort.FAST),  # of files imported before there were strips
    SMALL_ENCODER: Encoder(Effort.SMALL),
}
"""By the names that files are kept with: what one has once begun with stays its encoder."""


def encode(
    pixels: Pixels,
    *,
    metadata: Sequence[bytes] = (),
    trailing: Sequence[bytes] = (),
    effort: Effort = Effort.FAST,
    strips_max: int = 1,
    room_bytes: int = 0,
) -> bytes:
    """Return *pixels*, uint8 [H, W, 3] RGB in C order, as a PNG file.

    Args:
        metadata: serialised ancillary chunks, put verbatim and in order between IHDR and IDAT.
        trailing: the same between IDAT and IEND.
        strips_max: how many strips of the picture FAST compresses at the same time, at most.
        room_bytes: of a first IDAT chunk that says nothing of the pixels; see `room_bytes`.

    Raises:
        InvalidArgumentError: *pixels* has another dtype, shape or memory order, or no chunk has
            *room_bytes*.
    """
    require_picture(pixels)
    height, width, _ = pixels.shape
    start = head(width=width, height=height, metadata=metadata, room_bytes=room_bytes)
    data = _compressed(pixels.reshape(height, width * 3), effort, strips_max)
    if room_bytes:
        data = data[len(_ZLIB_HEADER) :]
    return b"".join((start, chunk(b"IDAT", data), *trailing, _END))


def head(*, width: int, height: int, metadata: Sequence[bytes], room_bytes: int = 0) -> bytes:
    """Return how a file of these begins, whatever its pixels are.

    Raises:
        InvalidArgumentError: no chunk has *room_bytes*.
    """
    header = chunk(b"IHDR", struct.pack(">II5B", width, height, *_RGB8))
    return b"".join((SIGNATURE, header, *metadata, _room(room_bytes)))


def head_bytes(*, metadata_bytes: int, room_bytes: int = 0) -> int:
    """Return the length of `head`."""
    return len(SIGNATURE) + _IHDR_BYTES + metadata_bytes + room_bytes


def room_bytes(*, metadata_bytes: int, multiple_bytes: int) -> int:
    """Return the room that brings a head to a multiple of *multiple_bytes*, or up to 4 beyond one.

    The room is a first IDAT chunk, so that programs which stop at the pixel data stop in front of
    it: the start of the stream, then empty blocks of 5 bytes each.
    """
    least = head_bytes(metadata_bytes=metadata_bytes, room_bytes=_ROOM_BYTES_MIN)
    return _ROOM_BYTES_MIN + -(-(-least % multiple_bytes) // len(_EMPTY_BLOCK)) * len(_EMPTY_BLOCK)


def _room(room_bytes: int) -> bytes:
    if room_bytes == 0:
        return b""
    blocks, rest = divmod(room_bytes - _ROOM_BYTES_MIN, len(_EMPTY_BLOCK))
    if blocks < 0 or rest:
        raise InvalidArgumentError(
            f"a PNG can't have a room of {room_bytes} bytes: it takes {_ROOM_BYTES_MIN}, and a "
            f"multiple of {len(_EMPTY_BLOCK)} more"
        )
    return chunk(b"IDAT", _ZLIB_HEADER + blocks * _EMPTY_BLOCK)


def pad(data: bytes, size_bytes: int) -> bytes:
    """Return the PNG file *data* brought to exactly *size_bytes* with a chunk of zeros before IEND.

    Raises:
        FramingError: *data* is longer than that, is 1 to 11 bytes shorter (the least chunk takes
            12), or does not end as a PNG file does.
    """
    gap_bytes = size_bytes - len(data)
    if not data.endswith(_END):
        raise FramingError(f"{len(data)} bytes don't end in an IEND chunk; only a whole PNG pads")
    if gap_bytes == 0:
        return data
    if gap_bytes < _CHUNK_OVERHEAD_BYTES:
        raise FramingError(
            f"a PNG of {len(data)} bytes can't be padded to {size_bytes}: it must be equally long "
            f"or at least {_CHUNK_OVERHEAD_BYTES} bytes shorter; encode it with more effort"
        )
    padding = chunk(PADDING_CHUNK, bytes(gap_bytes - _CHUNK_OVERHEAD_BYTES))
    return b"".join((memoryview(data)[: -len(_END)], padding, _END))


def chunk(kind: bytes, data: bytes) -> bytes:
    """Return one chunk as it stands in a file: length, type, data, CRC.

    Raises InvalidArgumentError when *kind* is not four ASCII letters.
    """
    if len(kind) != 4 or not kind.isalpha():
        raise InvalidArgumentError(f"PNG chunk type {kind!r} is not four ASCII letters")
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return b"".join((struct.pack(">I", len(data)), kind, data, struct.pack(">I", checksum)))


_END = chunk(b"IEND", b"")


def text_chunk(keyword: str, text: str) -> bytes:
    """Return a text chunk as Pillow's `PngInfo.add_text` writes it.

    It is tEXt when *text* is Latin-1, and otherwise iTXt in UTF-8; never compressed.

    Raises:
        InvalidArgumentError: *keyword* is not 1 to 79 bytes of Latin-1 without NUL, or *text* holds
            a NUL or half of a surrogate pair.
    """
    key = _keyword_bytes(keyword)
    if "\0" in text:
        raise InvalidArgumentError(f"the text of PNG keyword {keyword!r} holds a NUL; remove it")
    try:
        return chunk(b"tEXt", key + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        pass
    try:
        # NUL, then: not compressed, method 0, no language, no translated keyword.
        return chunk(b"iTXt", key + b"\0\0\0\0\0" + text.encode("utf-8"))
    except UnicodeEncodeError as error:
        raise InvalidArgumentError(
            f"the text of PNG keyword {keyword!r} is not valid Unicode at character {error.start}; "
            f"remove the lone surrogate"
        ) from error


def chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (type, data) of each chunk of a PNG file, IHDR to IEND, checking as it goes.

    Raises:
        FramingError: the signature, a length or a CRC is wrong, IHDR is not first, or IEND is
            missing or not last.
    """
    if not data.startswith(SIGNATURE):
        raise FramingError(f"not a PNG file: it starts with {data[:8]!r}")
    offset = len(SIGNATURE)
    kind = b""
    while kind != b"IEND":
        first = not kind
        kind, body = _chunk_at(data, offset)
        if first and kind != b"IHDR":
            raise FramingError(f"damaged PNG file: the first chunk is {kind!r}, not IHDR")
        offset += _CHUNK_OVERHEAD_BYTES + len(body)
        yield kind, body
    if offset != len(data):
        raise FramingError(f"damaged PNG file: {len(data) - offset} bytes follow its IEND chunk")


def _chunk_at(data: bytes, offset: int) -> tuple[bytes, bytes]:
    start = offset + 8
    if start > len(data):
        raise FramingError(f"damaged PNG file: it ends at byte {len(data)}, before an IEND chunk")
    length, kind = struct.unpack_from(">I4s", data, offset)
    end = start + length
    if end + 4 > len(data):
        raise FramingError(
            f"damaged PNG file: chunk {kind!r} at byte {offset} claims {length} bytes of data, "
            f"but the file ends at byte {len(data)}"
        )
    body = data[start:end]
    (stored,) = struct.unpack_from(">I", data, end)
    if stored != isal_zlib.crc32(body, isal_zlib.crc32(kind)):
        raise FramingError(f"damaged PNG file: chunk {kind!r} at byte {offset} has a wrong CRC")
    return kind, body


def _keyword_bytes(keyword: str) -> bytes:
    try:
        key = keyword.encode("latin-1")
    except UnicodeEncodeError:
        key = b""
    if not 1 <= len(key) <= _MAX_KEYWORD_BYTES or b"\0" in key:
        raise InvalidArgumentError(
            f"PNG keyword {keyword!r} is not 1 to {_MAX_KEYWORD_BYTES} Latin-1 characters "
            f"without NUL; choose another"
        )
    return key


def _compressed(rows: Pixels, effort: Effort, strips_max: int) -> bytes:
    """Filter and deflate *rows*, uint8 [H, W * 3]."""
    if effort == Effort.FAST:
        filtered = _up_filtered(rows).data.cast("B")
        if strips_max == 1:
            return isal_zlib.compress(filtered, 1)
        return deflated_in_strips(filtered, level=1, strips_max=strips_max)
    filtered = _best_filtered(rows).data
    if effort == Effort.SMALL:
        return isal_zlib.compress(filtered, 3)
    # Z_FILTERED is 2-4% smaller than the default strategy, and smaller than SMALL on noise too.
    compressor = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS, 9, zlib.Z_FILTERED)
    return compressor.compress(filtered) + compressor.flush()


def _up_filtered(rows: Pixels) -> Pixels:
    """Return uint8 [H, 1 + W * 3]: each row less the row above, behind its filter type."""
    filtered = np.empty((rows.shape[0], rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = _UP
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def _best_filtered(rows: Pixels) -> Pixels:
    """Return uint8 [H, 1 + W * 3]: each row by the filter that leaves the smallest differences."""
    height, row_bytes = rows.shape
    filtered = np.empty((height, row_bytes + 1), np.uint8)
    above = np.zeros((1, row_bytes), np.uint8)
    for top in range(0, height, _BAND_ROWS):
        band = rows[top : top + _BAND_ROWS]
        candidates = _candidates(band, np.concatenate((above, band[:-1])))
        choice = _magnitudes(candidates).argmin(axis=0)
        target = filtered[top : top + _BAND_ROWS]
        target[:, 0] = choice
        target[:, 1:] = candidates[choice, np.arange(len(band))]
        above = band[-1:]
    return filtered


def _candidates(band: Pixels, up: Pixels) -> Pixels:
    """Return uint8 [5, rows, W * 3]: the band by each filter type; *up* is the row above each."""
    left = _shifted(band)
    candidates = np.empty((5, *band.shape), np.uint8)
    candidates[_NONE] = band
    np.subtract(band, left, out=candidates[_SUB])
    np.subtract(band, up, out=candidates[_UP])
    average = ((left.astype(np.uint16) + up) >> 1).astype(np.uint8)
    np.subtract(band, average, out=candidates[_AVERAGE])
    np.subtract(band, _paeth(left, up, _shifted(up)), out=candidates[_PAETH])
    return candidates


def _shifted(rows: Pixels) -> Pixels:
    """Return the value one pixel to the left of each, 0 before the first."""
    left = np.zeros_like(rows)
    left[:, 3:] = rows[:, :-3]
    return left


def _paeth(left: Pixels, up: Pixels, corner: Pixels) -> Pixels:
    """Return whichever neighbour is nearest to left + up - corner; on ties in that order."""
    across = up.astype(np.int16) - corner
    down = left.astype(np.int16) - corner
    to_left, to_up, to_corner = np.abs(across), np.abs(down), np.abs(across + down)
    nearest = np.where(to_up <= to_corner, up, corner)
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, nearest)


def _magnitudes(candidates: Pixels) -> npt.NDArray[np.uint64]:
    """Return uint64 [5, rows]: sums of absolute differences, taken as signed bytes."""
    absolute = np.minimum(candidates, np.uint8(0) - candidates)
    sums: npt.NDArray[np.uint64] = absolute.sum(axis=2, dtype=np.uint64)
    return sums
