"""A file is framed to exactly its size: the one place where encoders and file sizes meet.

A file's size is fixed once, from its first encoding and a little slack.  Whatever a later render
of the same picture encodes to, `encode_to_size` returns that many bytes or raises.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

from latentfs.errors import FramingError, InvalidArgumentError
from latentfs.images import drift, jpeg, png
from latentfs.images.pixels import Pixels

__all__ = [
    "Fitted",
    "Framing",
    "PngLevel",
    "encode_picture",
    "encode_to_size",
    "frame_first",
    "framed_size_bytes",
    "head",
    "head_bytes",
    "with_room",
]

_SLACK_DIVISOR = 100
_SLACK_DIVISOR_WITHOUT_HARDER = 25
_SLACK_MIN_BYTES = 64

PngLevel = Literal["fast", "small"]
"""How hard a PNG's first encoding tries: `png.Effort.FAST` or `png.Effort.SMALL`."""


class Framing(msgspec.Struct, frozen=True, omit_defaults=True):
    """The format of a file and how it is encoded.

    Attributes:
        format: ``png`` or ``jpeg``.
        quality: 1 to 100 for JPEG, None for PNG.
        encoder: names the encoder, and its settings, that made the first encoding.  Later ones
            begin with it.  Another version of latentfs may encode otherwise; the file keeps its
            size all the same.
        room_bytes: of what says nothing in front of the pixel data, so that a read which ends
            within it needs no render; 0 for none.  See `with_room`.
    """

    format: Literal["png", "jpeg"]
    quality: int | None
    encoder: str
    room_bytes: int = 0

    def __post_init__(self) -> None:
        if self.room_bytes < 0:
            raise InvalidArgumentError(f"a room of {self.room_bytes} bytes is impossible")
        if self.format == "png" and self.quality is not None:
            raise InvalidArgumentError(
                f"PNG has no quality; {self.quality} was given: leave it out"
            )
        if self.format == "jpeg" and not 1 <= (self.quality or 0) <= 100:
            raise InvalidArgumentError(f"JPEG quality {self.quality} is out of range; use 1 to 100")

    @classmethod
    def png(cls, *, level: PngLevel = "fast") -> Framing:
        return cls("png", None, png.SMALL_ENCODER if level == "small" else png.FAST_ENCODER)

    @classmethod
    def jpeg(cls, *, quality: int = 90) -> Framing:
        """Raises InvalidArgumentError for a *quality* that is not 1 to 100."""
        return cls("jpeg", quality, jpeg.ENCODER)

    @property
    def suffix(self) -> str:
        """The end of a file's name: ``.png`` or ``.jpg``."""
        return ".png" if self.format == "png" else ".jpg"


@dataclass(frozen=True, slots=True)
class Fitted:
    """A file of the size asked for.

    Attributes:
        data: the whole file.
        retries: encodings beyond the first that it took.
        pad_s: seconds spent padding the encoding to its size.
    """

    data: bytes
    retries: int
    pad_s: float


def with_room(framing: Framing, *, metadata_bytes: int, multiple_bytes: int) -> Framing:
    """Return *framing* with a room that brings the head to a multiple of *multiple_bytes*.

    Programs that look only at what a picture is read it in blocks up to its pixel data, often more
    than they use.  Such a head holds their last block.

    Args:
        metadata_bytes: length of all chunks or segments that the file has.
    """
    if framing.quality is None:
        room = png.room_bytes(metadata_bytes=metadata_bytes, multiple_bytes=multiple_bytes)
    else:
        room = jpeg.room_bytes(
            quality=framing.quality, metadata_bytes=metadata_bytes, multiple_bytes=multiple_bytes
        )
    return msgspec.structs.replace(framing, room_bytes=room)


def head_bytes(framing: Framing, *, metadata_bytes: int) -> int:
    """Return the length of `head`."""
    if framing.quality is None:
        return png.head_bytes(metadata_bytes=metadata_bytes, room_bytes=framing.room_bytes)
    return jpeg.head_bytes(
        quality=framing.quality, metadata_bytes=metadata_bytes, room_bytes=framing.room_bytes
    )


def head(framing: Framing, *, width: int, height: int, metadata: Sequence[bytes]) -> bytes:
    """Return the first bytes of a file: those that every render of it has, known without one.

    Args:
        width, height: in pixels.
        metadata: as in `encode_picture`.
    """
    room = framing.room_bytes
    if framing.quality is None:
        return png.head(width=width, height=height, metadata=metadata, room_bytes=room)
    return jpeg.head(
        width=width,
        height=height,
        quality=framing.quality,
        metadata=metadata,
        room_bytes=room,
    )


def framed_size_bytes(encoded_bytes: int, *, slack_divisor: int = _SLACK_DIVISOR) -> int:
    """Return the size to give a file whose first encoding took *encoded_bytes*.

    The slack is 1% and 64 bytes; 4% for a JPEG with a room, which can't be encoded harder.

    How much longer a later render encodes than the first, worst of 23 generated pictures of
    512x512 and 1024x1024, and in the last row of 8 decoded latents:

    ==============================================  =====  ========  =========
    8-bit values                                    PNG    JPEG q90  JPEG q100
    ==============================================  =====  ========  =========
    0.1% moved by one level in the later render     0.17%  0.04%     0.12%
    1% moved by one level in the later render       1.5%   0.07%     1.3%
    48% moved by one level in both, independently   0.03%  0.07%     0.09%
    48% moved by one level in the later render      25%    2.5%      30%
    fp32 first, bf16 later: 25-42% differ           1.2%   0.9%
    ==============================================  =====  ========  =========

    The first row is the drift of a VAE in fp32.  One in bf16 should drift as in the third, since
    its rounding noise is in every render, the first included.  The slack holds both several times
    over.  The rest is for the harder encodings of encode_to_size, which gain 5-11% for PNG, 2-16%
    for PNG of the level "small", and 2-8% for JPEG; a first render without noise and a later one
    with much of it may not fit at all.
    """
    return encoded_bytes + encoded_bytes // slack_divisor + _SLACK_MIN_BYTES


def encode_picture(
    pixels: Pixels,
    framing: Framing,
    *,
    metadata: Sequence[bytes] = (),
    trailing: Sequence[bytes] = (),
) -> bytes:
    """Return the first, unpadded encoding of *pixels*, uint8 [H, W, 3] RGB in C order.

    Args:
        metadata: serialised PNG chunks or JPEG segments, whichever *framing* needs; kept verbatim.
        trailing: PNG chunks that are kept behind the pixel data.

    Raises:
        InvalidArgumentError: *pixels* has another dtype, shape or memory order.
    """
    return next(_encodings(pixels, framing, metadata, trailing))


def frame_first(pixels: Pixels, framing: Framing, *, metadata: Sequence[bytes] = ()) -> Fitted:
    """Return the first rendition of *pixels*: encoded once, framed to the size it will always have.

    Raises:
        InvalidArgumentError: *pixels* has another dtype, shape or memory order.
    """
    data = encode_picture(pixels, framing, metadata=metadata)
    size_bytes = framed_size_bytes(len(data), slack_divisor=_slack_divisor(framing))
    return _fit(data, framing, size_bytes, retries=0)


def encode_to_size(
    pixels: Pixels,
    framing: Framing,
    *,
    metadata: Sequence[bytes] = (),
    trailing: Sequence[bytes] = (),
    size_bytes: int,
) -> Fitted:
    """Return *pixels*, uint8 [H, W, 3] RGB in C order, as a file of exactly *size_bytes*.

    An encoding that can't be padded to the size is replaced by a harder, slower one.  Tests can
    make renders differ: see `latentfs.images.drift`.

    Raises:
        FramingError: even the hardest encoding doesn't fit.
        InvalidArgumentError: *pixels* has another dtype, shape or memory order.
    """
    pixels = drift.drifted(pixels)
    lengths = []
    for retries, data in enumerate(_encodings(pixels, framing, metadata, trailing)):
        try:
            return _fit(data, framing, size_bytes, retries=retries)
        except FramingError:
            lengths.append(len(data))
    raise FramingError(
        f"a {framing.format} of {min(lengths)} bytes at the least doesn't fit the {size_bytes} "
        f"bytes of its file; the pixels differ from those at import: check the VAE, the device and "
        f"the library versions, or import the picture again"
    )


def _slack_divisor(framing: Framing) -> int:
    if framing.format == "jpeg" and framing.room_bytes:
        return _SLACK_DIVISOR_WITHOUT_HARDER
    return _SLACK_DIVISOR


def _fit(data: bytes, framing: Framing, size_bytes: int, *, retries: int) -> Fitted:
    jpeg_pad = jpeg.pad_end if framing.room_bytes else jpeg.pad
    pad = png.pad if framing.format == "png" else jpeg_pad
    start_s = time.perf_counter()
    padded = pad(data, size_bytes)
    return Fitted(padded, retries, time.perf_counter() - start_s)


def _encodings(
    pixels: Pixels, framing: Framing, metadata: Sequence[bytes], trailing: Sequence[bytes]
) -> Iterator[bytes]:
    """Yield encodings from the usual one to the hardest, each made when it is asked for."""
    quality, room = framing.quality, framing.room_bytes
    if quality is None:
        effort, strips_max = png.ENCODERS.get(framing.encoder, png.ENCODERS[png.FAST_ENCODER])
        encode = functools.partial(
            png.encode, pixels, metadata=metadata, trailing=trailing, room_bytes=room
        )
        yield encode(effort=effort, strips_max=strips_max)
        for harder in list(png.Effort)[effort + 1 :]:
            yield encode(effort=harder)
    elif room:
        # A harder one would have other Huffman tables, in the head that is known without a render.
        data = jpeg.encode(pixels, quality=quality, metadata=metadata)
        yield jpeg.pad(data, len(data) + room)
    else:
        for optimize in (False, True):
            yield jpeg.encode(pixels, quality=quality, metadata=metadata, optimize=optimize)
