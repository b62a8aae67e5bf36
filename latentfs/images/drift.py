"""A test hook that makes a render come out a little longer or shorter, through the real processes.

Nothing is changed unless the environment variable ``LATENTFS_TEST_DRIFT`` is set:

``noise:SHARE``
    that share of the 8-bit values moves by one level, always the same ones: encodes longer.
``flat:SHARE``
    that share of the rows, the lowest ones, become copies of the row above them: encodes shorter.

SHARE is a number from 0 to 1.
"""

from __future__ import annotations

import os

import numpy as np

from latentfs.errors import InvalidArgumentError
from latentfs.images.pixels import Pixels

__all__ = ["ENVIRONMENT_VARIABLE", "drifted"]

ENVIRONMENT_VARIABLE = "LATENTFS_TEST_DRIFT"

_SEED = 20


def drifted(pixels: Pixels) -> Pixels:
    """Return *pixels* (uint8 [H, W, 3]) as the environment asks; the same array when it doesn't.

    Raises InvalidArgumentError for a value of the variable that is not in the module's list.
    """
    setting = os.environ.get(ENVIRONMENT_VARIABLE)
    if setting is None:
        return pixels
    kind, share = _parsed(setting)
    return _noisy(pixels, share) if kind == "noise" else _flattened(pixels, share)


def _parsed(setting: str) -> tuple[str, float]:
    kind, _, number = setting.partition(":")
    try:
        share = float(number)
    except ValueError:
        share = -1.0
    if kind not in ("noise", "flat") or not 0.0 <= share <= 1.0:
        raise InvalidArgumentError(
            f"{ENVIRONMENT_VARIABLE}={setting!r} is not noise:SHARE or flat:SHARE with a share "
            f"from 0 to 1; correct it, or unset it outside of tests"
        )
    return kind, share


def _noisy(pixels: Pixels, share: float) -> Pixels:
    random = np.random.default_rng(_SEED)
    chosen = random.random(pixels.shape, dtype=np.float32) < share
    upwards = random.integers(0, 2, pixels.shape, dtype=np.uint8) == 1
    # Values at the ends of the range can move one way only.
    upwards = (upwards | (pixels == 0)) & (pixels != 255)
    moved = np.where(upwards, pixels + np.uint8(1), pixels - np.uint8(1))
    return np.where(chosen, moved, pixels)


def _flattened(pixels: Pixels, share: float) -> Pixels:
    height = pixels.shape[0]
    kept = max(1, height - round(share * height))
    flattened = pixels.copy()
    # One block of rows, as JPEG would spend bytes on many small steps.
    flattened[kept:] = flattened[kept - 1]
    return flattened
