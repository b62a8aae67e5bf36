"""Torch side: in which dtype, layout and batch a VAE is best run on a device.

Decided once, when it is added: all three change bits, so they belong to the recipe.  Whether it is
compiled does too, and is the user's to decide.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from latentfs.errors import LatentfsError, VaeError
from latentfs.latents.latent import Dtype
from latentfs.latents.recipe import Layout
from latentfs.render.compiled import CompiledVae
from latentfs.render.vae_models import load, memory_format, torch_dtype

__all__ = ["Manner", "Wishes", "fastest_manner"]

log = logging.getLogger(__name__)

_PSNR_FLOOR_DB = 45.0
_RACE_S = 2.0
_RACE_ROUNDS_MIN = 2
# A narrower dtype must be this much faster to be worth its error: timings are noisy.
_WORTHWHILE_SPEEDUP = 1.15
_BATCHES = (1, 2, 4, 8)
# A batch is filled up with zeros when fewer pictures are wanted, so a larger one must pay.
_WORTHWHILE_BATCH_SPEEDUP = 1.25
_BATCH_CELLS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user has chosen; None is left to :func:`fastest_manner`.

    Compiling is never chosen by it: it needs a C++ compiler, and patience.
    """

    dtype: Dtype | None
    layout: Layout | None
    batch: int | None
    compiled: bool


@dataclass(frozen=True, slots=True)
class Manner:
    """How a VAE is run.

    Attributes:
        psnr_db: against float32, contiguous, not compiled, on a test picture.
    """

    dtype: Dtype
    layout: Layout
    batch: int
    compiled: bool
    psnr_db: float


def fastest_manner(
    folder: Path,
    *,
    class_name: str,
    exact: Any,
    latent: torch.Tensor,
    device: torch.device,
    wishes: Wishes,
) -> Manner:
    """Choose what *wishes* leave open: the fastest within 45 dB PSNR of float32.

    On a CPU the layout stays contiguous unless channels_last is wished for: it is what diffusers
    does, and pixels stay those of its plain decode.  GPUs are several times faster in channels_last
    and have other kernels than a CPU anyway.

    Args:
        exact: the VAE in float32, contiguous, on *device*.
        latent: [1, C, h, w] in float32, on *device*.

    Raises:
        VaeError: it can't be run as wished.
    """
    layout: Layout = wishes.layout or ("contiguous" if device.type == "cpu" else "channels_last")

    def prepared(dtype: Dtype) -> tuple[Any, torch.Tensor]:
        vae = load(folder, class_name=class_name, dtype=dtype, layout=layout, device=device)
        if wishes.compiled:
            vae = CompiledVae(vae)
        z = latent.to(torch_dtype(dtype)).contiguous(memory_format=memory_format(layout))
        return vae, z

    reference = _decoded(exact, latent)
    dtype = wishes.dtype
    if dtype is None:
        dtype = _fastest_dtype(prepared, reference, folder)
    vae, z = prepared(dtype)
    plain = dtype == "float32" and layout == "contiguous" and not wishes.compiled
    psnr_db = math.inf if plain else _psnr_db(_decoded(vae, z), reference)
    if math.isnan(psnr_db):
        raise VaeError(
            f"{folder} decodes to NaN in {dtype}; add it with --dtype bfloat16 or float32"
        )
    batch = wishes.batch
    if batch is None:
        batch = 1 if device.type == "cpu" else _fastest_batch(vae, z)
    return Manner(dtype, layout, batch, wishes.compiled, psnr_db)


def _fastest_dtype(
    prepared: Callable[[Dtype], tuple[Any, torch.Tensor]], reference: torch.Tensor, folder: Path
) -> Dtype:
    # float16 is not tried: CPUs have no fast float16 convolutions, one decode can take minutes, and
    # on GPUs it is no faster than bfloat16 but overflows in some VAEs.
    narrow, exact = prepared("bfloat16"), prepared("float32")
    psnr_db = _psnr_db(_decoded(*narrow), reference)
    narrow_s, exact_s = _race([narrow, exact])
    log.info("bfloat16: %.4f s, %.1f dB; float32: %.4f s", narrow_s, psnr_db, exact_s)
    if psnr_db >= _PSNR_FLOOR_DB and narrow_s * _WORTHWHILE_SPEEDUP < exact_s:
        return "bfloat16"
    return "float32"


def _fastest_batch(vae: Any, z: torch.Tensor) -> int:
    """Return the batch with the most pictures a second, 1 unless a larger one is worth it."""
    cells = torch.zeros(1, z.shape[1], _BATCH_CELLS, _BATCH_CELLS, dtype=z.dtype, device=z.device)
    layout = torch.channels_last if z.is_contiguous(memory_format=torch.channels_last) else None
    seconds: dict[int, float] = {}
    for batch in _BATCHES:
        batched = cells.repeat(batch, 1, 1, 1)
        if layout is not None:
            batched = batched.contiguous(memory_format=layout)
        try:
            (total_s,) = _race([(vae, batched)])
        except (RuntimeError, LatentfsError):  # out of memory, most likely
            break
        seconds[batch] = total_s / batch
        log.info("batch %d: %.4f s a picture", batch, seconds[batch])
    best = 1
    for batch in sorted(seconds):
        if seconds[batch] * _WORTHWHILE_BATCH_SPEEDUP <= seconds[best]:
            best = batch
    return best


def _decoded(vae: Any, z: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        sample: torch.Tensor = vae.decode(z, return_dict=False)[0]
    if sample.device.type == "cuda":
        torch.cuda.synchronize(sample.device)
    return sample


def _race(runners: Sequence[tuple[Any, torch.Tensor]]) -> list[float]:
    """Return each runner's best decode time in seconds, on one CPU thread, taken in turns.

    So that other load hits all alike: threads that wait for each other suffer most from it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best = [math.inf] * len(runners)
    end_s = time.perf_counter() + _RACE_S
    rounds = 0
    while rounds < _RACE_ROUNDS_MIN or time.perf_counter() < end_s:
        rounds += 1
        for index, (vae, z) in enumerate(runners):
            start_s = time.perf_counter()
            _decoded(vae, z)
            best[index] = min(best[index], time.perf_counter() - start_s)
    torch.set_num_threads(threads)
    return best


def _psnr_db(sample: torch.Tensor, exact: torch.Tensor) -> float:
    a, b = ((x.float() / 2 + 0.5).clamp(0, 1) for x in (sample, exact))
    mean_square = float((a - b).square().mean())
    if math.isnan(mean_square):
        return math.nan
    return math.inf if mean_square == 0 else -10 * math.log10(mean_square)
