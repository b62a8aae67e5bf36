#!/usr/bin/env python3
"""Set the bytes that a store holds against those of the same pictures as ordinary PNG files.

    latentfs status demo/mnt --json | tools/compare_sizes.py demo/mnt

Reads every picture below the folder and writes it again, in memory, as Pillow does by default.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


def find_pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def default_png_bytes(path: Path) -> int:
    """Length of the picture's pixels as Pillow writes a PNG, without the metadata it had."""
    with Image.open(path) as image:
        image.load()
        plain = Image.frombytes(image.mode, image.size, image.tobytes())
    buffer = io.BytesIO()
    plain.save(buffer, "PNG")
    return buffer.tell()


def table(rows: Iterable[tuple[str, int]], reference: int) -> list[str]:
    return [f"  {label:<44}{size:>14,}{size / reference:>9.3f}" for label, size in rows]


def read_status() -> dict[str, int]:
    status = json.load(sys.stdin)
    if not isinstance(status, dict):
        raise ValueError("the status on standard input is no JSON object")
    missing = [name for name in ("files", "payload_bytes", "store_bytes") if name not in status]
    if missing:
        raise ValueError(f"the status on standard input lacks {', '.join(missing)}")
    return status


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the mounted pictures")
    args = parser.parse_args()
    try:
        status = read_status()
        paths = find_pictures(args.folder)
        with ThreadPoolExecutor(max_workers=2) as pool:
            reference = sum(pool.map(default_png_bytes, paths))
        served = sum(path.stat().st_size for path in paths)
    except (OSError, ValueError) as error:
        print(f"compare_sizes: {error}", file=sys.stderr)
        return 1
    if not paths:
        print(f"compare_sizes: no pictures in {args.folder}", file=sys.stderr)
        return 1
    print(f"  {f'{len(paths)} pictures':<44}{'bytes':>14}{'ratio':>9}")
    rows = [
        ("as PNG files, written by Pillow", reference),
        ("as the mount serves them", served),
        ("stored: compressed latents", status["payload_bytes"]),
        ("stored: the whole store without its VAEs", status["store_bytes"]),
    ]
    print("\n".join(table(rows, reference)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
