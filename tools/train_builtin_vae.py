#!/usr/bin/env python3
"""Train the VAE that ships with latentfs and write it as a diffusers folder.

The built-in VAE lets a fresh machine import, mount and read without downloading a model.  It is a
narrow ``AutoencoderTiny``: 16 latent channels at 1/8 of the picture's width and height.  The
residual blocks sit where they are cheap, at the latent's own resolution, and none at full
resolution, where a block costs 64 times as much.

    tools/train_builtin_vae.py --images PICTURES --out latentfs/render/builtin_vae

The schedule counts steps, not time, so that other load only makes it take longer.  An interrupted
training leaves its last weights in the output folder; --resume goes on from such weights with a
schedule of its own.

Every ninth picture (by path) is kept aside; the PSNR printed is the mean over those, of the
weights as they are written (bfloat16), through 8-bit pixels.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderTiny
from PIL import Image

WIDTH = 32
ENCODER_BLOCKS = (1, 1, 2, 4)
DECODER_BLOCKS = (6, 3, 1, 1)
LATENT_CHANNELS = 16
LATENT_NOISE = 0.01  # makes neighbouring latents decode alike, so that bfloat16 latents lose little
EMA_DECAY = 0.999
LEARNING_RATE = 1e-3
WARMUP_STEPS = 200
PIXELS_PER_STEP = 16 * 64 * 64
REPORT_EVERY_S = 120.0


def build_vae(
    *, width: int, encoder_blocks: tuple[int, ...], decoder_blocks: tuple[int, ...]
) -> Any:
    model_class: Any = AutoencoderTiny  # untyped
    return model_class(
        encoder_block_out_channels=(width,) * 4,
        decoder_block_out_channels=(width,) * 4,
        num_encoder_blocks=encoder_blocks,
        num_decoder_blocks=decoder_blocks,
        latent_channels=LATENT_CHANNELS,
    )


def load_pictures(folders: list[Path]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return (training, held out) pictures as uint8 HWC arrays, sides cut to multiples of 8."""
    paths = sorted(
        p
        for folder in folders
        for p in folder.rglob("*")
        if p.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"}
    )
    training, held_out = [], []
    for index, path in enumerate(paths):
        with Image.open(path) as image:
            rgb = image.convert("RGB")
        width, height = rgb.width // 8 * 8, rgb.height // 8 * 8
        pixels = np.asarray(rgb)[:height, :width]
        if index % 9 == 4:
            held_out.append(pixels)
            continue
        training.append(pixels)
        if min(rgb.size) >= 1024:  # the same picture at half size has detail that large ones lack
            training.append(np.asarray(rgb.resize((width // 2, height // 2), Image.Resampling.BOX)))
    return training, held_out


def sample_crops(
    pictures: list[np.ndarray], weights: np.ndarray, rng: np.random.Generator, *, side: int
) -> torch.Tensor:
    """Return a float32 [B, 3, side, side] batch in [-1, 1]; every batch has as many pixels."""
    crops = []
    for index in rng.choice(len(pictures), size=PIXELS_PER_STEP // (side * side), p=weights):
        picture = pictures[index]
        top = rng.integers(picture.shape[0] - side + 1)
        left = rng.integers(picture.shape[1] - side + 1)
        crop = np.rot90(picture[top : top + side, left : left + side], k=int(rng.integers(4)))
        crops.append(crop[:, ::-1] if rng.integers(2) else crop)
    batch = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float()
    return (batch / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def psnr_db(vae: Any, pictures: list[np.ndarray], device: torch.device) -> float:
    """Mean PSNR in dB of encode-decode round trips, through 8-bit pixels."""
    values = []
    for picture in pictures:
        x = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float().to(device) / 127.5 - 1
        with torch.no_grad():
            y = vae.decode(vae.encode(x).latents).sample
        out = ((y[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1) * 255).round().cpu().numpy()
        mse = np.mean((out - picture.astype(np.float64)) ** 2)
        values.append(10 * math.log10(255**2 / mse))
    return float(np.mean(values))


def averaged_copy(vae: Any, average: dict[str, torch.Tensor]) -> Any:
    """A float32 model with the averaged weights rounded to bfloat16, as they will be shipped."""
    copy = type(vae).from_config(dict(vae.config))
    copy.load_state_dict({k: v.to(torch.bfloat16).float() for k, v in average.items()})
    return copy.eval()


def write_vae(vae: Any, out: Path, report: dict[str, object]) -> None:
    vae.to(torch.bfloat16).save_pretrained(out, safe_serialization=True)
    (out / "training.json").write_text(json.dumps(report, indent=2) + "\n")


def learning_rate_at(step: int, *, steps: int, peak: float) -> float:
    warmup = min(1.0, (step + 1) / WARMUP_STEPS)
    return peak * warmup * (0.5 * (1 + math.cos(math.pi * step / steps)) + 1e-3)


def starting_vae(args: argparse.Namespace) -> Any:
    if args.resume is not None:
        model_class: Any = AutoencoderTiny  # untyped
        return model_class.from_pretrained(args.resume, low_cpu_mem_usage=False).float()
    return build_vae(
        width=args.width,
        encoder_blocks=args.encoder_blocks,
        decoder_blocks=args.decoder_blocks,
    )


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    rng = np.random.default_rng(args.seed)
    device = torch.device(args.device)
    training, held_out = load_pictures(args.images)
    if not training or not held_out:
        raise SystemExit(f"no pictures in {args.images}: name folders of PNG, JPEG or WebP files")
    weights = np.sqrt([p.shape[0] * p.shape[1] for p in training])
    weights /= weights.sum()

    vae = starting_vae(args).to(device, memory_format=torch.channels_last)
    vae.train().requires_grad_(True)
    average = {k: v.clone() for k, v in vae.state_dict().items()}
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.learning_rate, betas=(0.9, 0.99))
    start = last_report = time.monotonic()
    for step in range(args.steps):
        # Small crops first, for many steps; larger ones later, as a picture has few borders.
        side = 64 if step < args.steps * args.small_crops else 128
        x = sample_crops(training, weights, rng, side=side).to(device)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, steps=args.steps, peak=args.learning_rate)
        with torch.autocast(device.type, torch.bfloat16):
            latents = vae.encoder(x)
            noisy = latents + LATENT_NOISE * torch.randn_like(latents)
            y = vae.decoder(noisy)
        error = y.float() - x
        loss = error.square().mean() + 0.1 * error.abs().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (step + 1) / (step + 11))
        with torch.no_grad():
            for key, value in vae.state_dict().items():
                average[key].lerp_(value, 1 - decay)

        now = time.monotonic()
        if now - last_report > REPORT_EVERY_S or step + 1 == args.steps:
            last_report = now
            candidate = averaged_copy(vae, average).to(device)
            quality_db = psnr_db(candidate, held_out, device)
            print(
                f"{(now - start) / 60:6.1f} min  step {step + 1:6d}  {quality_db:.2f} dB",
                flush=True,
            )
            report = {
                "steps": step + 1,
                "resumed": args.resume is not None,
                "minutes": round((now - start) / 60, 1),
                "training_pictures": len(training),
                "held_out_pictures": len(held_out),
                "held_out_psnr_db": round(quality_db, 2),
                "parameters": sum(p.numel() for p in vae.parameters()),
            }
            write_vae(candidate.cpu(), args.out, report)


def block_counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, nargs="+", required=True, help="picture folders")
    parser.add_argument("--out", type=Path, required=True, help="diffusers folder to write")
    parser.add_argument("--steps", type=int, default=14_000, help="length of the training")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="at its peak")
    parser.add_argument(
        "--small-crops", type=float, default=0.5, help="share of the steps with crops of 64x64"
    )
    parser.add_argument("--resume", type=Path, help="go on from the weights in this folder")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--encoder-blocks", type=block_counts, default=ENCODER_BLOCKS)
    parser.add_argument("--decoder-blocks", type=block_counts, default=DECODER_BLOCKS)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
