#!/usr/bin/env python3
"""How long one decode takes on this machine's CPU, by dtype and size, as the renderer does it.

tools/bench_decode.py latentfs/render/builtin_vae
tools/bench_decode.py /models/sdxl/vae --threads 2 --sides 512 1024
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from latentfs.latents.latent import Dtype
from latentfs.render.vae_models import load, torch_dtype
from latentfs.store.vae_files import open_vae_folder

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")


def decode_seconds(vae: Any, latent: torch.Tensor, *, repeats: int) -> float:
    """Median seconds of *repeats* decodes after a first one."""
    seconds = []
    with torch.inference_mode():
        vae.decode(latent)
        for _ in range(repeats):
            start_s = time.perf_counter()
            vae.decode(latent)
            seconds.append(time.perf_counter() - start_s)
    return statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vae", type=Path, help="diffusers folder")
    parser.add_argument("--sides", type=int, nargs="+", default=[512], help="in pixels")
    parser.add_argument("--factor", type=int, default=8, help="pixels per latent cell")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    source = open_vae_folder(arguments.vae)
    print("| side, pixels | " + " | ".join(DTYPES) + " |")
    print("|---:|" + "---:|" * len(DTYPES))
    vaes = {
        dtype: load(arguments.vae, class_name=source.class_name, dtype=dtype) for dtype in DTYPES
    }
    for side in arguments.sides:
        cells = side // arguments.factor
        cells_shape = (1, int(vaes["float32"].config.latent_channels), cells, cells)
        latent = torch.randn(cells_shape, generator=torch.Generator().manual_seed(0))
        times = [
            decode_seconds(vae, latent.to(torch_dtype(dtype)), repeats=arguments.repeats)
            for dtype, vae in vaes.items()
        ]
        print(f"| {side} | " + " | ".join(f"{seconds:.3f}" for seconds in times) + " |")


if __name__ == "__main__":
    main()
