"""Arguments that several commands take."""

from __future__ import annotations

import re
from pathlib import Path

import click

__all__ = ["BYTES", "store_argument", "shown_bytes"]

store_argument = click.argument(
    "store", type=click.Path(path_type=Path, resolve_path=True), metavar="STORE"
)

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class _ByteCount(click.ParamType[int]):
    """A number of bytes such as 512M or 2G, in powers of 1024."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+)([KMGT]?)(i?B)?", str(value).strip(), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is not a size; use a number with K, M, G or T, such as 512M")
        return int(match[1]) * _UNITS[match[2].upper()]


BYTES = _ByteCount()


def shown_bytes(count: int) -> str:
    """Return a number of bytes as people read it, such as ``12.3 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
