"""What a picture is to the encoders: uint8 [H, W, 3] RGB in C order, with at least one pixel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latentfs.errors import InvalidArgumentError

__all__ = ["Pixels", "require_picture"]

Pixels = npt.NDArray[np.uint8]


def require_picture(pixels: Pixels) -> None:
    """Raise InvalidArgumentError unless *pixels* is a C-contiguous, non-empty uint8 [H, W, 3]."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise InvalidArgumentError(
            f"a picture must be uint8 of shape [H, W, 3] with at least one pixel, "
            f"not {pixels.dtype} of shape {list(pixels.shape)}; convert it to 8-bit RGB first"
        )
    if not pixels.flags.c_contiguous:
        raise InvalidArgumentError(
            f"a picture of shape {list(pixels.shape)} is not contiguous; "
            f"pass it through numpy.ascontiguousarray first"
        )
