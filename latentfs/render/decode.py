"""Torch side: from a latent to 8-bit pixels, exactly as its recipe says.

The arithmetic is that of diffusers' pipelines and image processor, step for step and dtype for
dtype, so that pixels equal those a pipeline would have made.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from latentfs.errors import RenderFailedError
from latentfs.latents.latent import Latent
from latentfs.latents.recipe import Recipe
from latentfs.latents.scaling import Step
from latentfs.render.vae_models import torch_dtype

__all__ = ["decode_pixels", "latent_tensor"]


def latent_tensor(latent: Latent) -> torch.Tensor:
    """Return the latent as a [1, C, h, w] tensor of its own dtype, bit for bit."""
    signed = latent.bits.view(np.int32 if latent.dtype == "float32" else np.int16)
    return torch.from_numpy(signed.copy()).view(torch_dtype(latent.dtype))[None]


def decode_pixels(vae: Any, latent: Latent, recipe: Recipe) -> np.ndarray:
    """Return uint8 pixels [H, W, 3].

    Raises:
        RenderFailedError: the VAE can't take this latent, or gives numbers that are not finite.
    """
    torch.set_num_threads(recipe.cpu_threads)
    with torch.inference_mode():
        z = _scaled(latent_tensor(latent), recipe)
        try:
            sample = vae.decode(z, return_dict=False)[0]
        except (RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise RenderFailedError(
                f"{recipe.vae_class} can't decode a latent of shape {latent.shape}: {reason}"
            ) from error
        return _to_pixels(sample, recipe)


def _scaled(z: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    dtype = torch_dtype(recipe.dtype)
    z = z.to(dtype if recipe.scaling_dtype == "recipe" else torch.float32)
    for step in recipe.scaling:
        z = _apply(step, z)
    return z.to(dtype)


def _apply(step: Step, z: torch.Tensor) -> torch.Tensor:
    if step.op == "multiply":
        return z * step.value
    if step.op == "divide":
        return z / step.value
    if step.op == "add":
        return z + step.value
    return z - step.value


def _to_pixels(sample: torch.Tensor, recipe: Recipe) -> np.ndarray:
    if sample.ndim != 4 or sample.shape[:2] != (1, 3):
        raise RenderFailedError(
            f"{recipe.vae_class} decoded to shape {tuple(sample.shape)}; "
            "only still RGB pictures, [1, 3, H, W], can be framed"
        )
    if not bool(torch.isfinite(sample).all()):
        raise RenderFailedError(
            f"{recipe.vae_class} in {recipe.dtype} decoded to NaN or infinite values; "
            "add the VAE again under another name with --dtype float32"
        )
    # In the VAE's dtype until after the clamp, as diffusers' VaeImageProcessor does; ComfyUI and
    # A1111 widen what was decoded first.
    if recipe.rounding == "truncate":
        sample = sample.float()
    unit = (sample * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0).float()
    levels = (unit * 255).round() if recipe.rounding == "round" else unit * 255
    return levels.to(torch.uint8).contiguous().numpy()
