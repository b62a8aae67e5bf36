"""A picture file taken apart: its pixel data, and what stands around it.

Two files with equal pixel data show the same picture, and differ in their metadata alone.
Nothing is decoded.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from latentfs.errors import FramingError
from latentfs.images import jpeg, png

__all__ = ["Parts", "take_picture_apart"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a file is made of.

    Attributes:
        pixel_data_sha256: of all that decides the pixels, compressed as it is.
        before: metadata in front of the pixel data, as whole chunks or segments.
        after: metadata behind it; always empty for JPEG.
    """

    pixel_data_sha256: bytes
    before: tuple[bytes, ...]
    after: tuple[bytes, ...]


def take_picture_apart(data: bytes, *, parts_max: int | None = None) -> Parts:
    """Take a whole PNG or JPEG file apart.

    Args:
        parts_max: chunks that a PNG may have in all, or segments that a JPEG may have in front of
            its pixel data.  A file may be nothing but empty ones, and takes fifty times its size
            in memory then, so there has to be a limit for files from anywhere.

    Raises:
        FramingError: it is neither, or damaged, or has more parts than that.
    """
    if data.startswith(png.SIGNATURE):
        return _png_parts(data, parts_max)
    return _jpeg_parts(data, parts_max)


def _png_parts(data: bytes, chunks_max: int | None) -> Parts:
    digest = hashlib.sha256()
    around: tuple[list[bytes], list[bytes]] = ([], [])
    behind = False
    for number, (kind, body) in enumerate(png.chunks(data), start=1):
        if chunks_max is not None and number > chunks_max:
            raise FramingError(f"a PNG file of more than {chunks_max} chunks is not taken apart")
        if kind in (b"IHDR", b"IDAT"):
            digest.update(body)
            behind = behind or kind == b"IDAT"
        elif kind != b"IEND":
            around[behind].append(png.chunk(kind, body))
    return Parts(digest.digest(), tuple(around[0]), tuple(around[1]))


def _jpeg_parts(data: bytes, segments_max: int | None) -> Parts:
    start_end, segments, rest = jpeg.leading_metadata(data, segments_max=segments_max)
    digest = hashlib.sha256(data[:start_end])
    digest.update(data[rest:])
    if not data.endswith(jpeg.END):
        raise FramingError("damaged JPEG file: it doesn't end in an EOI marker")
    return Parts(digest.digest(), tuple(segments), ())
