"""Arguments that several commands take."""

from __future__ import annotations

import re
from pathlib import Path

import click

__all__ = ["BYTES", "device_option", "store_argument", "shown_bytes"]

store_argument = click.argument(
    "store", type=click.Path(path_type=Path, resolve_path=True), metavar="STORE"
)

_DEVICE_PATTERN = r"auto|cpu|cuda(:\d+)?"


def _checked_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if re.fullmatch(_DEVICE_PATTERN, value) is None:
        raise click.BadParameter(f"{value!r} is not a device; use auto, cpu, cuda or cuda:N")
    return value


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N",
    callback=_checked_device,
    help="What decodes.  cuda is all GPUs; auto is all GPUs, or the CPU where there is none.",
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
