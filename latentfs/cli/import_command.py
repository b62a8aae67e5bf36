"""latentfs import"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Literal

import click
import trio
from click.core import ParameterSource

from latentfs.cli.arguments import BYTES, counted, device_option, shown_bytes, store_argument
from latentfs.cli.output import one_line
from latentfs.images.framing import Framing, PngLevel
from latentfs.ingest.discover import Candidate, discover
from latentfs.ingest.importer import Added, AlreadyThere, Importer, Outcome, Refused
from latentfs.ingest.preparation import ImportOptions
from latentfs.render.scheduler import open_scheduler
from latentfs.store.store import Store

__all__ = ["command"]

_HANG_TIMEOUT_S = 600.0
_PAGE_BYTES = 4096
_HEAD_ROOM_BYTES_MAX = 1 << 20


class _Report:
    """Counts outcomes and names what was refused, above the progress bar."""

    def __init__(self) -> None:
        self.added: list[Added] = []
        self.there = 0
        self.refused = 0

    def __call__(self, outcome: Outcome) -> None:
        match outcome:
            case Added():
                self.added.append(outcome)
            case AlreadyThere():
                self.there += 1
            case Refused():
                self.refused += 1
                if sys.stderr.isatty():
                    click.echo("\r\033[K", err=True, nl=False)
                click.echo(one_line(f"refused: {outcome.path}: {outcome.reason}"), err=True)

    def print_summary(self) -> None:
        payload_bytes = sum(added.payload_bytes for added in self.added)
        click.echo(
            f"{len(self.added)} added ({shown_bytes(payload_bytes)} of payloads), "
            f"{self.there} already there, {self.refused} refused"
        )
        psnrs = [a.narrowing_psnr_db for a in self.added if a.narrowing_psnr_db is not None]
        if psnrs:
            # Equal pictures have no finite PSNR; the mean is over the others.
            finite = [psnr for psnr in psnrs if math.isfinite(psnr)]
            mean = f"{sum(finite) / len(finite):.1f}" if finite else "infinite"
            click.echo(
                f"narrowing cost: PSNR {mean} dB on average, {min(psnrs):.1f} dB at worst, "
                f"over {counted(len(psnrs), 'picture')} ({len(psnrs) - len(finite)} unchanged)"
            )


def _checked_head_room(ctx: click.Context, param: click.Parameter, value: int) -> int:
    if value % _PAGE_BYTES or value > _HEAD_ROOM_BYTES_MAX:
        raise click.BadParameter(
            f"{value} bytes are not a multiple of 4K up to {_HEAD_ROOM_BYTES_MAX >> 20}M; "
            "use one, such as 16K, or 0 for none"
        )
    return value


@click.command(
    "import",
    epilog="Example: latentfs import ~/art.lfs ComfyUI/output/latents --vae sdxl --to /2026",
)
@store_argument
@click.argument(
    "sources",
    nargs=-1,
    required=True,
    type=click.Path(readable=False, path_type=Path),
    metavar="SRC...",
)
@click.option("--vae", required=True, help="Name of the VAE in the store that decodes them.")
@click.option("--to", default="/", show_default=True, help="Folder in the store to import to.")
@click.option(
    "--precision",
    type=click.Choice(["source", "float16", "bfloat16"]),
    default="source",
    show_default=True,
    help="Precision to store.  A narrower one than the source's costs quality, and the loss is "
    "reported.",
)
@click.option(
    "--format", "file_format", type=click.Choice(["png", "jpeg"]), default="png", show_default=True
)
@click.option(
    "--quality", type=click.IntRange(1, 100), default=90, show_default=True, help="JPEG quality."
)
@click.option(
    "--png-level",
    type=click.Choice(["fast", "small"]),
    default="fast",
    show_default=True,
    help="PNG compression: small makes files about 4% smaller and takes almost four times as long.",
)
@click.option(
    "--head-room",
    "head_multiple_bytes",
    type=BYTES,
    default="0",
    show_default=True,
    metavar="SIZE",
    callback=_checked_head_room,
    help="Pad the part before the pixel data to a multiple of this (4K to 1M), so that programs "
    "which only read size and metadata cause no render: 8K for PNG and 16K for JPEG suit most.  "
    "0 for none.",
)
@device_option
@click.option(
    "--rounding",
    type=click.Choice(["round", "truncate"]),
    default="round",
    show_default=True,
    help="How to round to 8 bits: round like diffusers, truncate like ComfyUI and A1111.",
)
@click.option(
    "--on-conflict",
    type=click.Choice(["skip", "rename", "replace"]),
    default="skip",
    show_default=True,
    help="What to do if a different picture has the name.  The same picture is never added twice.",
)
def command(
    store: Path,
    sources: tuple[Path, ...],
    vae: str,
    to: str,
    precision: Literal["source", "float16", "bfloat16"],
    file_format: Literal["png", "jpeg"],
    quality: int,
    png_level: PngLevel,
    head_multiple_bytes: int,
    device: str,
    rounding: Literal["round", "truncate"],
    on_conflict: Literal["skip", "rename", "replace"],
) -> int:
    """Import latent files, or folders of them, into STORE.

    Takes ComfyUI's .latent files and diffusers latents in .safetensors files.  NAME.latent becomes
    NAME.png; a batch becomes NAME_1.png, NAME_2.png and so on.  Safe to interrupt and to repeat.
    Exits with 0 when all of it is in, with 1 when anything was refused.
    """
    options = ImportOptions(
        vae=vae,
        to=to,
        precision=precision,
        framing=_framing(file_format, quality=quality, png_level=png_level),
        rounding=rounding,
        on_conflict=on_conflict,
        head_multiple_bytes=head_multiple_bytes,
    )
    report = _Report()
    with Store.open(store, writable=True) as opened:
        candidates = []
        for found in discover(list(sources), to=to):
            if isinstance(found, Candidate):
                candidates.append(found)
            else:
                report(Refused(*found))
        try:
            trio.run(_import, opened, options, candidates, report, device)
        finally:
            report.print_summary()
    return 1 if report.refused else 0


def _framing(file_format: Literal["png", "jpeg"], *, quality: int, png_level: PngLevel) -> Framing:
    if file_format == "png":
        if _is_given("quality"):
            raise click.UsageError("--quality is of JPEG files only: add --format jpeg")
        return Framing.png(level=png_level)
    if _is_given("png_level"):
        raise click.UsageError("--png-level is of PNG files only: leave it out with --format jpeg")
    return Framing.jpeg(quality=quality)


def _is_given(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source != ParameterSource.DEFAULT


async def _import(
    store: Store,
    options: ImportOptions,
    candidates: list[Candidate],
    report: _Report,
    device: str,
) -> None:
    with click.progressbar(
        length=len(candidates),
        label="importing",
        file=sys.stderr,
        show_pos=True,
        hidden=not sys.stderr.isatty(),
    ) as bar:
        importer = Importer(store, options, report=report, on_file_done=lambda: bar.update(1))
        async with open_scheduler(render_timeout_s=_HANG_TIMEOUT_S, device=device) as scheduler:
            await importer.run(candidates, scheduler)
