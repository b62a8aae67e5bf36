"""latentfs export"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import click
import trio

from latentfs.cli.arguments import device_option, store_argument
from latentfs.cli.output import one_line
from latentfs.ingest.exporter import Exporter, ExportItem, export_plan
from latentfs.render.scheduler import open_scheduler
from latentfs.store.store import Store

__all__ = ["command"]

_HANG_TIMEOUT_S = 600.0


@click.command(
    "export",
    epilog="Examples: latentfs export ~/art.lfs /2026 ~/Pictures/2026 | "
    "latentfs export ~/art.lfs /2026/cat.png .",
)
@store_argument
@click.argument("source", metavar="SRC")
@click.argument("destination", type=click.Path(path_type=Path), metavar="DEST")
@device_option
def command(store: Path, source: str, destination: Path, device: str) -> int:
    """Copy the picture or folder SRC (a path inside STORE) out to DEST, with names and times.

    A folder's contents go into DEST, which is made if missing; a picture goes to DEST, or into it
    if it is a folder.  Needs no mount.  Exits with 1 when a picture could not be rendered.
    """
    failed = 0

    def refuse(path: str, reason: str) -> None:
        nonlocal failed
        failed += 1
        click.echo(one_line(f"not exported: {path}: {reason}"), err=True)

    with Store.open(store) as opened:
        plan = export_plan(opened, source, destination)
        trio.run(_export, opened, plan, refuse, device)
    click.echo(f"{len(plan) - failed} exported to {destination}, {failed} failed")
    return 1 if failed else 0


async def _export(
    store: Store, plan: list[ExportItem], refuse: Callable[[str, str], None], device: str
) -> None:
    with click.progressbar(
        length=len(plan), label="exporting", file=sys.stderr, hidden=not sys.stderr.isatty()
    ) as bar:
        async with open_scheduler(render_timeout_s=_HANG_TIMEOUT_S, device=device) as scheduler:
            exporter = Exporter(store, scheduler, refuse=refuse, on_done=lambda: bar.update(1))
            await exporter.run(plan)
