"""latentfs export"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import trio

from latentfs.cli.arguments import device_option, store_argument
from latentfs.cli.output import one_line
from latentfs.ingest.exporter import Exporter, ExportItem, export_plan
from latentfs.render.scheduler import Scheduler, open_scheduler
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
    """Copy the file or folder SRC (a path inside STORE) out to DEST, with names and times.

    A folder's contents go into DEST, which is made if missing; a file goes to DEST, or into it if
    it is a folder.  Pictures are rendered; latent files and all others are copied byte for byte,
    symbolic links as links.  FIFOs, sockets and devices are skipped.  Needs no mount.  Exits with
    1 when a file could not be rendered or written.
    """
    counts = {"not exported": 0, "skipped": 0, "changed": 0}

    def tell(kind: str, path: str, reason: str) -> None:
        counts[kind] += 1
        click.echo(one_line(f"{kind}: {path}: {reason}"), err=True)

    with Store.open(store) as opened:
        plan = export_plan(opened, source, destination, refuse=partial(tell, "not exported"))
        files = len(plan) + counts["not exported"]
        with click.progressbar(
            length=len(plan), label="exporting", file=sys.stderr, hidden=not sys.stderr.isatty()
        ) as bar:
            export = partial(
                Exporter,
                opened,
                refuse=partial(tell, "not exported"),
                skip=partial(tell, "skipped"),
                tell_change=partial(tell, "changed"),
                on_done=lambda: bar.update(1),
            )
            trio.run(_export, export, plan, device)
    failed, skipped = counts["not exported"], counts["skipped"]
    also = f", {counts['changed']} of them with other bytes" if counts["changed"] else ""
    also += f", {skipped} skipped" if skipped else ""
    click.echo(f"{files - failed - skipped} exported to {destination}{also}, {failed} failed")
    return 1 if failed else 0


async def _export(
    exporter: Callable[[Scheduler | None], Exporter], plan: list[ExportItem], device: str
) -> None:
    if not any(item.is_picture for item in plan):
        await exporter(None).run(plan)
        return
    async with open_scheduler(render_timeout_s=_HANG_TIMEOUT_S, device=device) as scheduler:
        await exporter(scheduler).run(plan)
