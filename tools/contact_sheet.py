#!/usr/bin/env python3
"""Lay the pictures of a folder out on one sheet, with their names under them.

    tools/contact_sheet.py demo/mnt demo/contact-sheet.png

Pillow opens the files like any others: nothing here knows of latents.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})
GAP = 12
CAPTION_HEIGHT = 22
PAPER, FRAME, INK = (24, 25, 29), (52, 54, 61), (214, 214, 218)

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont


def find_pictures(folder: Path) -> list[Path]:
    """Every picture below the folder, by path."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def printable(name: str) -> str:
    return os.fsencode(name).decode(errors="replace")


def shortened(text: str, font: Font, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"


def thumbnail(path: Path, side: int) -> Image.Image:
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=3.0)
    return small


def lay_out(paths: list[Path], *, columns: int, side: int) -> Image.Image:
    rows = math.ceil(len(paths) / columns)
    cell_width, cell_height = side + GAP, side + GAP + CAPTION_HEIGHT
    sheet = Image.new("RGB", (GAP + columns * cell_width, GAP + rows * cell_height), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(14)
    for index, path in enumerate(paths):
        left = GAP + index % columns * cell_width
        top = GAP + index // columns * cell_height
        small = thumbnail(path, side)
        x, y = left + (side - small.width) // 2, top + (side - small.height) // 2
        pen.rectangle((x - 1, y - 1, x + small.width, y + small.height), outline=FRAME)
        sheet.paste(small, (x, y))
        caption = shortened(printable(path.name), font, side)
        pen.text((left + side / 2, top + side + 5), caption, fill=INK, font=font, anchor="ma")
    return sheet


def columns_for(count: int) -> int:
    """As wide a sheet as it is high, or a little wider."""
    return max(1, math.ceil(math.sqrt(count * 1.2)))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="searched with all below it")
    parser.add_argument("sheet", type=Path, help="the picture to write")
    parser.add_argument("--side", type=int, default=288, help="of a small picture, in pixels")
    parser.add_argument("--limit", type=int, default=60, help="at most so many pictures")
    args = parser.parse_args()
    paths = find_pictures(args.folder)
    if not paths:
        print(f"contact_sheet: no pictures in {args.folder}", file=sys.stderr)
        return 1
    shown = paths[: args.limit]
    try:
        sheet = lay_out(shown, columns=columns_for(len(shown)), side=args.side)
        sheet.save(args.sheet)
    except OSError as error:
        print(f"contact_sheet: {error}", file=sys.stderr)
        return 1
    left_out = f", the first of {len(paths)}" if len(shown) < len(paths) else ""
    print(f"{len(shown)} pictures{left_out}, on {args.sheet}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
