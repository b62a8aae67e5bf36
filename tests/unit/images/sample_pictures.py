"""Pictures for the tests of latentfs.images: synthetic ones always, real ones where they are."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentfs.images.pixels import Pixels

_REAL = Path(__file__).parents[4] / "shared" / "images"

real = pytest.mark.skipif(not _REAL.is_dir(), reason="needs the pictures in ../shared/images")

REAL_NAMES = ["a1111-1024", "comfyui-1024", "sd15-512"]


def real_picture(folder: str) -> Pixels:
    """A crop of 384x384, to keep the tests quick."""
    path = min((_REAL / folder).glob("*.png"))
    with Image.open(path) as picture:
        return np.ascontiguousarray(np.asarray(picture.convert("RGB"))[64:448, 64:448])


def noise(height: int, width: int) -> Pixels:
    return np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 3), dtype=np.uint8
    )


def flat(height: int, width: int) -> Pixels:
    return np.full((height, width, 3), 37, np.uint8)


def smooth(height: int, width: int) -> Pixels:
    """Waves with a little grain, as compressible as a generated picture."""
    y, x = np.mgrid[0:height, 0:width] / 40
    waves = np.stack([np.sin(x + y), np.cos(x * 1.3), np.sin(y * 0.7 - x)], axis=-1)
    grain = np.random.default_rng(5).normal(0, 1.5, waves.shape)
    return np.clip(waves * 90 + 128 + grain, 0, 255).astype(np.uint8)


SYNTHETIC = {
    "1x1": noise(1, 1),
    "1x300": noise(1, 300),
    "300x1": noise(300, 1),
    "7x13": noise(7, 13),
    "noise": noise(150, 97),
    "flat": flat(65, 64),
    "black": np.zeros((33, 40, 3), np.uint8),
    "smooth": smooth(200, 160),
}


def decoded(data: bytes) -> Pixels:
    """Verify *data* with Pillow and return its pixels, uint8 [H, W, 3]."""
    with Image.open(io.BytesIO(data)) as picture:
        picture.verify()
    with Image.open(io.BytesIO(data)) as picture:
        picture.load()
        assert picture.mode == "RGB"
        return np.asarray(picture)
