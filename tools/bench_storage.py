#!/usr/bin/env python3
"""Bytes stored against the bytes of the same pictures as Pillow's default PNGs.

Imports each set of latents into a fresh store, exports it, and prints a Markdown table:

    tools/bench_storage.py ../shared

The argument is a folder with ``latents/`` and ``models/``.  Stored bytes are LMDB pages in use
(payloads, their rows' share of pages, inodes, names, metadata), without the VAE's own copy.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from compare_sizes import default_png_bytes, find_pictures


@dataclass(frozen=True)
class LatentSet:
    """A folder of latents, the VAE that decodes it, and how it is imported."""

    folder: str
    vae: str
    precision: str
    target: float | None


SETS = (
    LatentSet("comfyui-sd15", "taesd", "source", 0.155),
    LatentSet("comfyui-sd15", "taesd", "float16", 0.075),
    LatentSet("comfyui-sdxl", "taesdxl", "source", None),
    LatentSet("comfyui-sdxl", "taesdxl", "float16", None),
    LatentSet("diffusers-sd3", "taesd3", "source", 0.24),
    LatentSet("diffusers-flux1-packed", "taef1", "source", 0.24),
)


@dataclass(frozen=True)
class Measured:
    """Bytes of one set; the PSNR of narrowing in dB as the import reports it, if it narrowed."""

    files: int
    png_bytes: int
    payload_bytes: int
    store_bytes: int
    narrowing: str


def latentfs(*arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "latentfs", *map(str, arguments)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


def measure(latents: LatentSet, shared: Path, scratch: Path) -> Measured:
    store = scratch / f"{latents.folder}-{latents.precision}.lfs"
    latentfs("init", store)
    latentfs("vae", "add", store, "vae", shared / "models" / latents.vae)
    source = shared / "latents" / latents.folder
    options = ("--vae", "vae", "--to", "/", "--precision", latents.precision)
    report = latentfs("import", store, source, *options)
    pictures = scratch / f"{latents.folder}-{latents.precision}"
    latentfs("export", store, "/", pictures)
    status = json.loads(latentfs("status", store, "--json"))
    narrowing = re.search(r"PSNR ([\d.]+) dB on average, ([\d.]+) dB", report)
    return Measured(
        files=status["files"],
        png_bytes=sum(default_png_bytes(path) for path in find_pictures(pictures)),
        payload_bytes=status["payload_bytes"],
        store_bytes=status["store_bytes"],
        narrowing=f"{narrowing[1]} (least {narrowing[2]})" if narrowing else "lossless",
    )


def row(latents: LatentSet, measured: Measured) -> str:
    target = "" if latents.target is None else f"{latents.target:.3f}"
    cells = (
        latents.folder,
        latents.precision,
        f"{measured.files}",
        f"{measured.png_bytes:,}",
        f"{measured.payload_bytes:,}",
        f"{measured.payload_bytes / measured.png_bytes:.4f}",
        f"{measured.store_bytes:,}",
        f"{measured.store_bytes / measured.png_bytes:.4f}",
        target,
        measured.narrowing,
    )
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shared", type=Path, help="folder with latents/ and models/")
    arguments = parser.parse_args()
    print(
        "| latents | precision | files | PNG bytes | payload bytes | of PNG | stored bytes "
        "| of PNG | wanted | narrowing, dB |"
    )
    print("|---|---|---:|---:|---:|---:|---:|---:|---:|---|")
    with tempfile.TemporaryDirectory(prefix="latentfs-bench-") as scratch:
        for latents in SETS:
            print(row(latents, measure(latents, arguments.shared, Path(scratch))), flush=True)


if __name__ == "__main__":
    main()
