"""What a VAE gave becomes 8-bit pixels as diffusers, or ComfyUI, would make them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor

from latentfs.images.pixels import Pixels
from latentfs.latents.recipe import Recipe
from latentfs.render.decode import NotFiniteError, to_pixels

WIDTH = 128


def _recipe(rounding: Literal["round", "truncate"]) -> Recipe:
    return Recipe(
        vae="id",
        vae_class="AutoencoderTiny",
        dtype="float32",
        scaling=(),
        scaling_dtype="recipe",
        rounding=rounding,
        batch=1,
        cpu_threads=1,
    )


def _pictures() -> dict[str, torch.Tensor]:
    """[3, H, W] each: every finite value there is in 16 bits, and many in 32."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    pictures = {
        "bfloat16": bits.view(torch.bfloat16),
        "float16": bits.view(torch.float16),
        "float32": torch.linspace(-1.3, 1.3, 1 << 16),
    }
    finite = {name: torch.where(values.isfinite(), values, 0) for name, values in pictures.items()}
    return {name: values.reshape(1, -1, WIDTH).repeat(3, 1, 1) for name, values in finite.items()}


@pytest.mark.parametrize("dtype", _pictures())
def test_rounded_pixels_are_those_of_diffusers(dtype: str) -> None:
    sample = _pictures()[dtype]
    sample[1] = sample[0].flip(0)
    sample[2] = sample[0].flip(1)
    expected = VaeImageProcessor().postprocess(sample[None].clone(), output_type="np")[0]
    pixels = to_pixels(sample, _recipe("round"))
    assert pixels.flags.c_contiguous
    assert np.array_equal(pixels, (expected * 255).round().astype(np.uint8))


@pytest.mark.parametrize("dtype", _pictures())
def test_truncated_pixels_are_those_of_comfyui(dtype: str) -> None:
    sample = _pictures()[dtype]
    widened = sample.float().permute(1, 2, 0).numpy()
    expected: Pixels = (np.clip(widened / 2 + 0.5, 0, 1) * 255).astype(np.uint8)
    assert np.array_equal(to_pixels(sample, _recipe("truncate")), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_no_picture(value: float) -> None:
    sample = torch.zeros(3, 8, 8)
    sample[1, 4, 4] = value
    with pytest.raises(NotFiniteError, match="NaN or infinite"):
        to_pixels(sample, _recipe("round"))
