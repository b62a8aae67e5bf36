#!/usr/bin/env python3
"""Payload codecs that were weighed, over real latents: payload bytes as shares of the raw bytes.

    tools/bench_codecs.py ../shared/latents

The argument is a folder of folders of latent files.  float32 latents are measured as float16 as
well.  The first pcodec column is what :mod:`latentfs.latents.payload` does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from pcodec import ChunkConfig, DeltaSpec, standalone

from latentfs.latents.latent import Latent
from latentfs.latents.source import read_latent_file

ZSTD_LEVEL = 19
PCO_LEVEL = 12

Bits = np.ndarray[Any, np.dtype[Any]]


def byte_planes(bits: Bits) -> int:
    compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
    planes = bits.reshape(-1).view(np.uint8).reshape(-1, bits.itemsize).T
    return sum(len(compressor.compress(plane.tobytes())) for plane in planes)


def pcodec(bits: Bits, **options: Any) -> int:
    config = ChunkConfig(compression_level=PCO_LEVEL, **options)
    return len(standalone.simple_compress(np.ascontiguousarray(bits).reshape(-1), config))


def in_order_of_value(bits: Bits) -> Bits:
    """Map sign-magnitude bit patterns to unsigned integers in the order of the numbers."""
    sign = bits.dtype.type(1 << (8 * bits.itemsize - 1))
    return np.where(bits & sign, ~bits, bits | sign)


def pcodec_by_channel(bits: Bits) -> int:
    return sum(pcodec(channel) for channel in in_order_of_value(bits))


CODECS: dict[str, Callable[[Bits], int]] = {
    "byte planes, zstd 19": byte_planes,
    "pcodec 12, bit patterns": pcodec,
    "in order of value": lambda bits: pcodec(in_order_of_value(bits)),
    "by channel": pcodec_by_channel,
    "convolution": lambda bits: pcodec(in_order_of_value(bits), delta_spec=DeltaSpec.try_conv1(2)),
}


def latent_sets(folder: Path) -> Iterator[tuple[str, list[Latent]]]:
    for path in sorted(path for path in folder.iterdir() if path.is_dir()):
        latents = [
            latent
            for file in sorted(path.iterdir())
            if file.suffix in {".latent", ".safetensors"}
            for latent in read_latent_file(file).latents
        ]
        yield f"{path.name}, {latents[0].dtype}", latents
        if latents[0].dtype == "float32":
            yield f"{path.name}, float16", [latent.narrowed("float16") for latent in latents]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("latents", type=Path, help="folder of folders of latent files")
    arguments = parser.parse_args()
    print("| latents | " + " | ".join(CODECS) + " |")
    print("|---|" + "---:|" * len(CODECS))
    for name, latents in latent_sets(arguments.latents):
        raw_bytes = sum(latent.nbytes for latent in latents)
        shares = [sum(codec(x.bits) for x in latents) / raw_bytes for codec in CODECS.values()]
        print(f"| {name} | " + " | ".join(f"{share:.4f}" for share in shares) + " |", flush=True)


if __name__ == "__main__":
    main()
