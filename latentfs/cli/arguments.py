"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path

import click

from latentfs.settings.values import read_bytes, read_device

__all__ = ["BYTES", "counted", "device_option", "shown_bytes", "store_argument"]

store_argument = click.argument(
    "store", type=click.Path(path_type=Path, resolve_path=True), metavar="STORE"
)


def _checked_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    try:
        return read_device(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


device_option = click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="auto|cpu|cuda|cuda:N",
    callback=_checked_device,
    help="Device to decode on: cuda is all GPUs; auto is all GPUs, or the CPU if there is none.",
)


class _ByteCount(click.ParamType[int]):
    """A number of bytes such as 512M or 2G, in powers of 1024."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        try:
            return read_bytes(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


BYTES = _ByteCount()


def shown_bytes(count: int) -> str:
    """Return a number of bytes as people read it, such as ``12.3 MiB``."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def counted(count: int, what: str) -> str:
    """Return such as ``1 file`` or ``2 files``."""
    return f"{count} {what}{'' if count == 1 else 's'}"
