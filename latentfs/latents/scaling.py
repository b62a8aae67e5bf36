"""What a latent's numbers mean, and the arithmetic that makes them a VAE's input.

Invariant: the steps are those that the tool which wrote the latent would take before it decodes,
in its order, one operation each, so that float arithmetic gives its bits and not merely its value.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from latentfs.errors import InvalidArgumentError

__all__ = ["LATENT_FORMATS", "LatentFormat", "Space", "Step", "steps_for"]


class Space(enum.StrEnum):
    """Which space a file's numbers are in."""

    NATIVE = "native"
    """What ``decode`` of the full VAE takes: ComfyUI's ``.latent`` with the version marker."""

    NATIVE_SD1_SCALED = "native-unversioned"
    """ComfyUI's ``.latent`` without the marker: its LoadLatent multiplies by 1 / 0.18215."""

    SCALED = "scaled"
    """What diffusers pipelines return for ``output_type="latent"``."""


@dataclass(frozen=True, slots=True)
class LatentFormat:
    """How a model family scales: ``scaled = (native - shift_factor) * scaling_factor``.

    Attributes:
        name: as users give it.
        channels: C of its latents.
        scaling_factor: of the full VAE's diffusers config.
        shift_factor: likewise; 0 where the config has none.
    """

    name: str
    channels: int
    scaling_factor: float
    shift_factor: float


_SD1_SCALING: Final = 0.18215

# The numbers are those of ComfyUI's comfy/latent_formats.py (SD15, SDXL, SD3, Flux) and of
# vae/config.json in the diffusers repositories of the same models; the two agree.
LATENT_FORMATS: Final[Mapping[str, LatentFormat]] = MappingProxyType(
    {
        "sd15": LatentFormat("sd15", 4, _SD1_SCALING, 0.0),
        "sdxl": LatentFormat("sdxl", 4, 0.13025, 0.0),
        "sd3": LatentFormat("sd3", 16, 1.5305, 0.0609),
        "flux1": LatentFormat("flux1", 16, 0.3611, 0.1159),
    }
)


class Step(msgspec.Struct, frozen=True):
    """One operation on every number of a latent."""

    op: Literal["multiply", "divide", "add", "subtract"]
    value: float


def steps_for(
    space: Space,
    *,
    vae_scaling_factor: float,
    vae_shift_factor: float,
    vae_takes_scaled: bool,
    latent_format: LatentFormat | None,
) -> tuple[Step, ...]:
    """The steps from stored numbers to the VAE's input; none that would change nothing.

    Args:
        space: of the stored numbers.
        vae_scaling_factor: ``scaling_factor`` of the VAE's diffusers config.
        vae_shift_factor: ``shift_factor`` of it, 0 where it has none.
        vae_takes_scaled: whether its ``decode`` takes scaled numbers (TAESD and its family) and
            not native ones (AutoencoderKL).
        latent_format: the model family; only a VAE that takes scaled numbers needs it. Without
            one such a VAE has a single space, and numbers are taken as they are.

    Raises:
        InvalidArgumentError: a factor that no VAE can have.
    """
    if not (math.isfinite(vae_scaling_factor) and vae_scaling_factor != 0):
        raise InvalidArgumentError(f"a VAE can't have scaling_factor {vae_scaling_factor}")
    if not math.isfinite(vae_shift_factor):
        raise InvalidArgumentError(f"a VAE can't have shift_factor {vae_shift_factor}")
    if space is Space.SCALED:
        # Every diffusers pipeline, whichever VAE it has: latents / scaling_factor + shift_factor.
        steps = [Step("divide", vae_scaling_factor), Step("add", vae_shift_factor)]
    elif vae_takes_scaled:
        steps = _native_to_scaled(space, latent_format)
    else:
        steps = _to_native(space)
    return tuple(step for step in steps if not _changes_nothing(step))


def _to_native(space: Space) -> list[Step]:
    # The reciprocal is rounded first and multiplied by, as ComfyUI does it.
    return [Step("multiply", 1.0 / _SD1_SCALING)] if space is Space.NATIVE_SD1_SCALED else []


def _native_to_scaled(space: Space, latent_format: LatentFormat | None) -> list[Step]:
    if latent_format is None:
        return []
    scaling, shift = latent_format.scaling_factor, latent_format.shift_factor
    if space is Space.NATIVE_SD1_SCALED and (scaling, shift) == (_SD1_SCALING, 0.0):
        # 1 / 0.18215 and then 0.18215 is the identity; done, it would only round twice.
        return []
    return [*_to_native(space), Step("subtract", shift), Step("multiply", scaling)]


def _changes_nothing(step: Step) -> bool:
    return step.value == (0.0 if step.op in ("add", "subtract") else 1.0)
