#!/usr/bin/env python3
"""Encode pictures to latents, written as a diffusers pipeline returns them.

    tools/encode_pictures.py --vae latentfs/render/builtin_vae --out demo/latents PICTURES...

Each picture gives one NAME.safetensors with the bfloat16 tensor ``latents`` [1, C, h, w], scaled as
diffusers scales it, and the picture's height and width beside it.  Folders are searched with all
below them, and their tree is kept.  A finished picture loses detail on the way to a latent: the
PSNR printed says how much.  (A latent that a pipeline made has lost nothing: it is the source.)
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
MOST_PIXELS = 4_000_000
MOST_MEASURED = 12  # pictures decoded again for the PSNR
PROBE_SIDE = 64  # of the empty picture that shows by how much a VAE shrinks


class PictureError(Exception):
    """A picture that cannot be encoded; the message says why."""


@dataclass(frozen=True)
class Encoder:
    """A diffusers autoencoder and the numbers that its latents are scaled by."""

    vae: Any
    factor: int
    shift: float
    scale: float

    @torch.inference_mode()
    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Scaled latents of a [1, 3, H, W] picture in -1 to 1, as they are written."""
        return ((raw_latents(self.vae, pixels) - self.shift) * self.scale).to(torch.bfloat16)

    @torch.inference_mode()
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        decoded: torch.Tensor = self.vae.decode(latents.float() / self.scale + self.shift).sample
        return decoded


def raw_latents(vae: Any, pixels: torch.Tensor) -> torch.Tensor:
    """What the encoder gives, unscaled and, where it gives a distribution, its mode."""
    encoded = vae.encode(pixels)
    if hasattr(encoded, "latent_dist"):
        encoded = encoded.latent_dist.mode()
    elif hasattr(encoded, "latents"):
        encoded = encoded.latents
    else:
        encoded = encoded.latent
    result: torch.Tensor = encoded
    return result


def load_encoder(folder: Path) -> Encoder:
    import diffusers

    config = json.loads((folder / "config.json").read_text())
    name = config.get("_class_name")
    if not isinstance(name, str) or not name.startswith("Autoencoder"):
        raise ValueError(f"{folder / 'config.json'} names no autoencoder: _class_name is {name!r}")
    diffusers.utils.logging.set_verbosity_error()
    vae = getattr(diffusers, name).from_pretrained(
        folder, torch_dtype=torch.float32, low_cpu_mem_usage=False
    )
    vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        probe = raw_latents(vae, torch.zeros(1, 3, PROBE_SIDE, PROBE_SIDE))
    if probe.ndim != 4:
        raise ValueError(f"{name} is no autoencoder for still images")
    return Encoder(
        vae=vae,
        factor=PROBE_SIDE // probe.shape[-1],
        shift=getattr(vae.config, "shift_factor", None) or 0.0,
        scale=getattr(vae.config, "scaling_factor", None) or 1.0,
    )


# -- pictures --------------------------------------------------------------------------------


def printable(path: Path) -> str:
    return os.fsencode(path).decode(errors="replace")


def find_pictures(sources: list[Path]) -> Iterator[tuple[Path, Path]]:
    """Every picture, and the path of its latent below the output folder, without its suffix."""
    for source in sources:
        if not source.is_dir():
            yield source, Path(source.stem)
            continue
        for path in sorted(source.rglob("*")):
            if path.suffix.lower() in SUFFIXES and path.is_file():
                yield path, path.relative_to(source).with_suffix("")


def free_name(wanted: Path, suffix: str, taken: set[Path]) -> Path:
    """Keep a.png and a.jpg apart: a, then a-jpg, then a-jpg-2, ..."""
    name, number = wanted, 1
    while name in taken:
        number_text = f"-{number}" if number > 1 else ""
        name = wanted.with_name(f"{wanted.name}-{suffix.lstrip('.').lower()}{number_text}")
        number += 1
    taken.add(name)
    return name


def upright(image: Image.Image) -> Image.Image:
    """RGB, turned as its EXIF orientation says, what is transparent on white."""
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode in ("I", "I;16", "I;16B", "I;16L"):  # 16-bit grey, which convert() would clip
        grey = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(grey.clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")


def read_picture(path: Path, factor: int) -> tuple[Image.Image, str]:
    """The picture with sides that the VAE takes, and a note on what was done to its size."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large files: they are scaled down below
            with Image.open(path) as opened:
                image = upright(opened)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{error}") from error
    before = image.size
    note = ""
    if image.width * image.height > MOST_PIXELS:
        shrink = math.sqrt(MOST_PIXELS / (image.width * image.height))
        smaller = (max(1, int(image.width * shrink)), max(1, int(image.height * shrink)))
        image = image.resize(smaller, Image.Resampling.LANCZOS, reducing_gap=3.0)
        note = f"scaled down from {before[0]}x{before[1]} (over 4 megapixels)"
    width, height = image.width // factor * factor, image.height // factor * factor
    if not width or not height:
        raise PictureError(f"{before[0]}x{before[1]} is smaller than {factor} pixels on a side")
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height)), note


def to_pixels(image: Image.Image) -> torch.Tensor:
    array = np.asarray(image, np.float32) / 127.5 - 1
    return torch.from_numpy(array).permute(2, 0, 1)[None]  # channels last, as the VAE is


def psnr_db(pixels: torch.Tensor, decoded: torch.Tensor) -> float:
    """Of 8-bit pixels; infinite if they are equal."""
    eight_bit = [((t / 2 + 0.5).clamp(0, 1) * 255).round() for t in (pixels, decoded)]
    mse = float((eight_bit[0] - eight_bit[1]).square().mean())
    return 10 * math.log10(255**2 / mse) if mse else math.inf


# -- all of them -----------------------------------------------------------------------------


def write_latent(target: Path, latents: torch.Tensor, image: Image.Image, source: Path) -> None:
    """Write through a second name, so that no half-written latent is left; mtime as the picture."""
    size = {"height": str(image.height), "width": str(image.width)}
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".part")
    partial.write_bytes(save({"latents": latents.contiguous()}, metadata=size))
    status = source.stat()
    os.utime(partial, ns=(status.st_atime_ns, status.st_mtime_ns))
    partial.replace(target)


def encode_one(encoder: Encoder, source: Path, target: Path, *, measured: bool) -> float | None:
    """Write the latent of one picture; return the PSNR of what it decodes to, if asked."""
    image, note = read_picture(source, encoder.factor)
    if note:
        print(f"{printable(source)}: {note}")
    pixels = to_pixels(image)
    latents = encoder.encode(pixels)
    write_latent(target, latents, image, source)
    return psnr_db(pixels, encoder.decode(latents)) if measured else None


def show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\rencoding {done}/{total}", end=end, file=sys.stderr, flush=True)


@dataclass
class Outcome:
    written: int = 0
    skipped: int = 0
    psnr_db: list[float] = field(default_factory=list)

    def report(self) -> None:
        finite = [quality for quality in self.psnr_db if math.isfinite(quality)]
        mean = f"{sum(finite) / len(finite):.1f} dB" if finite else "infinite"
        measured, skipped = len(self.psnr_db), self.skipped
        of = "" if measured == self.written else f" (of {measured} of them)"
        left = f", {skipped} pictures skipped" if skipped else ""
        print(f"{self.written} latents written{left}; mean PSNR of what they decode to: {mean}{of}")
        print("latents made from finished pictures are lossy; those that a pipeline made are not")


def encode_all(encoder: Encoder, found: list[tuple[Path, Path]], out: Path) -> Outcome:
    taken: set[Path] = set()
    outcome = Outcome()
    stride = math.ceil(len(found) / MOST_MEASURED)
    for index, (source, name) in enumerate(found):
        name = free_name(name, source.suffix, taken)
        target = out / name.with_name(name.name + ".safetensors")
        try:
            quality = encode_one(encoder, source, target, measured=index % stride == 0)
        except PictureError as error:
            print(f"encode_pictures: skipped {printable(source)}: {error}", file=sys.stderr)
            outcome.skipped += 1
        else:
            outcome.written += 1
            if quality is not None:
                outcome.psnr_db.append(quality)
        show_progress(index + 1, len(found))
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", type=Path, nargs="+", help="pictures and folders of them")
    parser.add_argument("--vae", type=Path, required=True, help="a VAE's diffusers folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the latents")
    parser.add_argument("--limit", type=int, help="at most so many pictures")
    args = parser.parse_args()
    missing = [source for source in args.sources if not source.exists()]
    if missing:
        print(f"encode_pictures: there is no {printable(missing[0])}", file=sys.stderr)
        return 1
    found = list(find_pictures(args.sources))
    if not found:
        suffixes = " ".join(sorted(SUFFIXES))
        print(f"encode_pictures: no pictures ({suffixes}) in what was named", file=sys.stderr)
        return 1
    if args.limit is not None and len(found) > args.limit:
        print(f"taking the first {args.limit} of {len(found)} pictures")
        found = found[: args.limit]
    try:
        encoder = load_encoder(args.vae)
        outcome = encode_all(encoder, found, args.out)
    except (OSError, ValueError, AttributeError) as error:
        print(f"encode_pictures: {error}", file=sys.stderr)
        return 1
    if not outcome.written:
        print("encode_pictures: none of the pictures could be encoded", file=sys.stderr)
        return 1
    outcome.report()
    return 0


if __name__ == "__main__":
    sys.exit(main())
