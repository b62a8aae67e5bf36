"""Torch side: from latents to 8-bit pixels, exactly as their recipe says.

The arithmetic is that of diffusers' pipelines and image processor, step for step and dtype for
dtype, so that pixels equal those a pipeline would have made.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from latentfs.errors import RenderFailedError
from latentfs.images.pixels import Pixels
from latentfs.latents.latent import Latent
from latentfs.latents.recipe import Recipe
from latentfs.latents.scaling import Step
from latentfs.render.device_memory import is_out_of_memory
from latentfs.render.vae_models import memory_format, torch_dtype

__all__ = [
    "DeviceLostError",
    "NotFiniteError",
    "OutOfMemoryError",
    "decode_samples",
    "latent_tensor",
    "scaled_batch",
    "to_pixels",
    "understood",
]

_DEVICE_LOST_WORDS = ("cuda error", "cudnn error", "cublas error", "device-side assert")


class NotFiniteError(RenderFailedError):
    """The VAE gave NaN or infinite values for a latent, or ones that a picture can't have."""


class OutOfMemoryError(RenderFailedError):
    """The memory of the device, or of the host, did not suffice."""


class DeviceLostError(Exception):
    """The device has failed; nothing that this process asks of it will work again."""


def latent_tensor(latent: Latent) -> torch.Tensor:
    """Return the latent as a [1, C, h, w] tensor of its own dtype, bit for bit."""
    signed = latent.bits.view(np.int32 if latent.dtype == "float32" else np.int16)
    return torch.from_numpy(signed.copy()).view(torch_dtype(latent.dtype))[None]


def scaled_batch(
    latents: Sequence[Latent], recipes: Sequence[Recipe], *, device: torch.device
) -> torch.Tensor:
    """Return what goes to the VAE: [batch, C, h, w] on *device*, each scaled by its own recipe.

    All recipes have one dtype, layout and batch.  Where there are fewer latents than the batch has
    room for, zeros fill it up, as the bits of some VAEs depend on the shape they are given.
    """
    first = recipes[0]
    rows = [_scaled(latent_tensor(x), recipe) for x, recipe in zip(latents, recipes, strict=True)]
    rows += [torch.zeros_like(rows[0])] * (first.batch - len(rows))
    z = rows[0] if len(rows) == 1 else torch.cat(rows)
    if device.type == "cuda":
        z = z.pin_memory().to(device, non_blocking=True)
    return z.contiguous(memory_format=memory_format(first.layout))


def decode_samples(vae: Any, z: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Return what the VAE makes of the scaled latents *z*: [B, 3, H, W].

    Raises:
        OutOfMemoryError: memory did not suffice; what was taken is free again.
        DeviceLostError: the device has failed.
        VaeError: it can't be compiled.
        RenderFailedError: the VAE can't take this latent.
    """
    torch.set_num_threads(recipe.cpu_threads)
    if recipe.tiled:
        vae.enable_tiling()
    try:
        with understood(recipe, tuple(z.shape)), torch.inference_mode():
            sample: torch.Tensor = vae.decode(z, return_dict=False)[0]
            if sample.device.type == "cuda":  # what fails in a kernel is told only here
                torch.cuda.synchronize(sample.device)
    finally:
        if recipe.tiled:
            vae.disable_tiling()
    if sample.ndim != 4 or sample.shape[:2] != (len(z), 3):
        raise RenderFailedError(
            f"{recipe.vae_class} decoded to shape {tuple(sample.shape)}; "
            "only still RGB pictures, [1, 3, H, W], can be framed"
        )
    return sample


@contextmanager
def understood(recipe: Recipe, shape: tuple[int, ...]) -> Iterator[None]:
    """Turn what torch raises in the block into what it means.

    Raises:
        OutOfMemoryError, DeviceLostError, RenderFailedError: as in :func:`decode_samples`.
    """
    try:
        yield
    except (RuntimeError, ValueError, MemoryError) as error:
        raise _meaning(error, recipe, shape) from None


def _meaning(error: Exception, recipe: Recipe, shape: tuple[int, ...]) -> Exception:
    """Return what *error* means, without the traceback that would keep its tensors alive."""
    reason = " ".join(str(error).split())[:300]
    lower = reason.lower()
    message = f"{recipe.vae_class} can't decode a latent of shape {shape}: {reason}"
    if is_out_of_memory(error):
        return OutOfMemoryError(
            f"not enough memory to decode a latent of shape {shape} with {recipe.vae_class} in "
            f"{recipe.dtype}: {reason or type(error).__name__}"
        )
    if any(lower.startswith(words) for words in _DEVICE_LOST_WORDS):
        return DeviceLostError(reason)
    return RenderFailedError(message)


def to_pixels(sample: torch.Tensor, recipe: Recipe) -> Pixels:
    """Return uint8 pixels [H, W, 3], on the host, of one decoded [3, H, W].

    Rounded where it lies, so that a quarter of the bytes cross from a device.

    Raises:
        NotFiniteError: there are NaN or infinite values in it.
    """
    with torch.inference_mode():
        # One pass, and NaN shows in both; testing each value takes 20 times as long.
        least, greatest = torch.aminmax(sample)
        if not (bool(torch.isfinite(least)) and bool(torch.isfinite(greatest))):
            raise NotFiniteError(
                f"{recipe.vae_class} in {recipe.dtype} decoded to NaN or infinite values"
            )
        # In the VAE's dtype until after the clamp, as diffusers' VaeImageProcessor does; ComfyUI
        # and A1111 widen what was decoded first.
        if recipe.rounding == "truncate":
            sample = sample.float()
        # Halves are exact in each dtype, so one step rounds as two would.
        half = torch.tensor(0.5, dtype=sample.dtype, device=sample.device)
        levels = torch.add(half, sample, alpha=0.5).clamp_(0, 1).float().mul_(255)
        if recipe.rounding == "round":
            levels = levels.round_()
        # Planes are rounded before they are interleaved: strided, each step takes thrice as long.
        # Stacking them takes half the time of permute and contiguous.
        pixels = torch.stack(_bytes_of(levels).unbind(0), dim=2)
        return np.asarray(_to_host(pixels).numpy())


def _bytes_of(levels: torch.Tensor) -> torch.Tensor:
    """Return levels of 0 to 255, cut to whole numbers, as uint8.

    On a CPU NumPy takes a third of the time that PyTorch does.
    """
    if levels.device.type == "cpu":
        return torch.from_numpy(levels.numpy().astype(np.uint8))
    return levels.to(torch.uint8)


def _to_host(pixels: torch.Tensor) -> torch.Tensor:
    if pixels.device.type == "cpu":
        return pixels
    host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
    host.copy_(pixels, non_blocking=True)
    torch.cuda.current_stream(pixels.device).synchronize()
    return host


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
