"""Torch side: finding out what a VAE is, when it is added to a store."""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentfs.errors import VaeError
from latentfs.latents.recipe import DeviceClass
from latentfs.latents.scaling import LATENT_FORMATS
from latentfs.render.devices import choose_devices
from latentfs.render.fastest import Manner, Wishes, fastest_manner
from latentfs.render.vae_models import load

__all__ = ["Inspection", "inspect_vae"]

_PROBE_CELLS = 8
_TIMED_PIXELS = 256
_CPU_THREADS_MAX = 8

# The first numbers of the decoder's first convolution in the published TAESD weights.  Their
# configs are alike, so only the weights tell which model's latents they take; the tolerance covers
# the rounding of every dtype they are published in.
_TINY_FINGERPRINTS = {
    "sd15": (-0.0056152, 0.017822, -0.0073853, 0.00083923, 0.19824, 0.0028229),
    "sdxl": (0.005249, 0.00035667, -0.0037689, -0.0016327, -0.018921, 0.0177),
    "sd3": (0.014832, 0.035645, 0.018799, -0.0070801, -0.038818, 0.053223),
    "flux1": (-0.0050049, -0.0063477, -0.0061646, -0.030518, 0.073242, -0.0041504),
}
_FINGERPRINT_NUMBERS = 6


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found out; fields as in :class:`latentfs.store.records.VaeRecord`."""

    manner: Manner
    device: DeviceClass
    latent_channels: int
    spatial_factor: int
    scaling_factor: float
    shift_factor: float
    takes_scaled: bool
    latent_format: str | None
    cpu_threads: int


def inspect_vae(
    folder: Path, *, class_name: str, origin: str, device: str, wishes: Wishes
) -> Inspection:
    """Load the VAE, decode with it on *device*, and choose what *wishes* leave open.

    Raises:
        InvalidArgumentError: *device* is not here.
        VaeError: it does not decode latents to still RGB pictures, or not as wished.
    """
    chosen = torch.device(choose_devices(device)[0])
    vae = load(folder, class_name=class_name, dtype="float32", device=chosen)
    config = dict(vae.config)
    _refuse_vector_scaling(config, folder)
    scaling_factor = _factor(config, "scaling_factor", 1.0, folder)
    if scaling_factor == 0:
        raise VaeError(f"{folder} has scaling_factor 0 in its config, which can't be undone")
    shift_factor = _factor(config, "shift_factor", 0.0, folder)
    channels = _latent_channels(config, folder)
    cpu_threads = min(len(os.sched_getaffinity(0)), _CPU_THREADS_MAX)
    torch.set_num_threads(cpu_threads)
    factor = _spatial_factor(vae, channels, chosen, folder)
    manner = fastest_manner(
        folder,
        class_name=class_name,
        exact=vae,
        latent=_test_latent(vae, channels, factor, chosen),
        device=chosen,
        wishes=wishes,
    )
    takes_scaled = class_name == "AutoencoderTiny"
    return Inspection(
        manner=manner,
        device="cuda" if chosen.type == "cuda" else "cpu",
        latent_channels=channels,
        spatial_factor=factor,
        scaling_factor=scaling_factor,
        shift_factor=shift_factor,
        takes_scaled=takes_scaled,
        latent_format=_latent_format(vae, channels, origin) if takes_scaled else None,
        cpu_threads=cpu_threads,
    )


def _refuse_vector_scaling(config: dict[str, Any], folder: Path) -> None:
    if "batch_norm_eps" in config:
        raise VaeError(
            f"{folder} normalises latents by batch statistics, as FLUX.2 does, which is not "
            "supported; only VAEs with one scaling_factor are"
        )
    if config.get("latents_mean") is not None or config.get("latents_std") is not None:
        raise VaeError(
            f"{folder} scales each channel by its own latents_mean and latents_std, "
            "which is not supported; only VAEs with one scaling_factor are"
        )


def _factor(config: dict[str, Any], key: str, default: float, folder: Path) -> float:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise VaeError(f"{folder} has {key} {str(value)[:40]!r} in its config, not a number")
    return float(value)


def _latent_channels(config: dict[str, Any], folder: Path) -> int:
    channels = config.get("latent_channels", config.get("z_dim"))
    if not isinstance(channels, int) or not 0 < channels <= 256:
        raise VaeError(f"{folder} has latent_channels {channels!r} in its config, not 1 to 256")
    return channels


def _spatial_factor(vae: Any, channels: int, device: torch.device, folder: Path) -> int:
    z = torch.zeros(1, channels, _PROBE_CELLS, _PROBE_CELLS, device=device)
    try:
        shape = tuple(_decode(vae, z).shape)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise VaeError(
            f"{folder} can't decode a latent of shape {tuple(z.shape)}: {reason}"
        ) from error
    side = shape[-1]
    if len(shape) != 4 or shape[:2] != (1, 3) or shape[2] != side or side % _PROBE_CELLS:
        raise VaeError(f"{folder} decodes {tuple(z.shape)} to {shape}, not to a still RGB picture")
    return int(side // _PROBE_CELLS)


def _decode(vae: Any, z: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        sample: torch.Tensor = vae.decode(z, return_dict=False)[0]
    return sample


def _test_latent(vae: Any, channels: int, factor: int, device: torch.device) -> torch.Tensor:
    """A latent of a smooth test picture, as the VAE itself encodes it; of noise if it can't."""
    side = max(_TIMED_PIXELS // factor, 4) * factor
    axis = torch.linspace(0, 1, side, device=device)
    x, y = axis[None, :], axis[:, None]
    rings = torch.sin(40 * ((x - 0.4) ** 2 + (y - 0.6) ** 2))
    picture = torch.stack([x + 0 * y, rings, 1 - y + 0 * x])[None] * 2 - 1
    try:
        with torch.inference_mode():
            encoded = vae.encode(picture.clamp(-1, 1))
            for name in ("latents", "latent"):
                if hasattr(encoded, name):
                    return torch.as_tensor(getattr(encoded, name))
            return torch.as_tensor(encoded.latent_dist.mode())
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError):
        generator = torch.Generator().manual_seed(0)
        cells = side // factor
        return torch.randn(1, channels, cells, cells, generator=generator).to(device)


def _latent_format(vae: Any, channels: int, origin: str) -> str | None:
    """Which model's latents a TAESD takes: told by its weights, else by its name."""
    head = vae.decoder.layers[0].weight.detach().float().flatten()[:_FINGERPRINT_NUMBERS]
    for name, fingerprint in _TINY_FINGERPRINTS.items():
        if torch.allclose(head, torch.tensor(fingerprint), rtol=0.01, atol=1e-4):
            return name
    return _latent_format_of_name(origin, channels)


def _latent_format_of_name(origin: str, channels: int) -> str | None:
    names = (
        ("sdxl", r"xl"),
        ("sd3", r"sd-?3"),
        ("flux1", r"f1|flux"),
        ("sd15", r"taesd$|sd-?1|sd15"),
    )
    for name, pattern in names:
        words = re.split(r"[/\\]", origin.lower().rstrip("/\\"))[-2:]
        matches = any(re.search(pattern, word) for word in words)
        if matches and LATENT_FORMATS[name].channels == channels:
            return name
    return None
