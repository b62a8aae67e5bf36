"""latentfs scrub"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import trio

from latentfs.cli.arguments import counted, device_option, store_argument
from latentfs.cli.output import one_line
from latentfs.ingest.scrubber import Scrubber, ScrubPlan, scrub_plan
from latentfs.render.scheduler import open_scheduler
from latentfs.store.store import Store

__all__ = ["command"]

_HANG_TIMEOUT_S = 600.0
_NICENESS = 19


@click.command("scrub", epilog="Example: latentfs scrub ~/art.lfs --max-files 500")
@store_argument
@click.option(
    "--max-files",
    type=click.IntRange(min=0),
    help="Render this many pictures, chosen at random.  Default: all.",
)
@device_option
def command(store: Path, max_files: int | None, device: str) -> int:
    """Render the pictures of STORE and compare them with what they were when they were added.

    First decodes everything that is stored.  Works beside a mount, with a renderer of its own at
    the lowest priority.  Lists everything that differs on standard error, and then exits with 1.
    """
    found = 0

    def report(what: str, reason: str) -> None:
        nonlocal found
        found += 1
        click.echo(one_line(f"scrub: {what}: {reason}"), err=True)

    os.nice(_NICENESS)
    with Store.open(store) as opened:
        plan = scrub_plan(opened, max_files=max_files, report=report)
        with click.progressbar(
            length=plan.steps, label="scrubbing", file=sys.stderr, hidden=not sys.stderr.isatty()
        ) as bar:
            scrubber = Scrubber(opened, report=report, on_done=lambda: bar.update(1))
            scrubber.decode(plan)
            if plan.pictures:
                trio.run(_render, scrubber, plan, device)
    click.echo(
        f"{counted(len(plan.payloads), 'payload')} and {counted(len(plan.chunks), 'chunk')} "
        f"decoded, {counted(len(plan.pictures), 'picture')} rendered; "
        f"{f'{found} not as added' if found else 'all unchanged'}"
    )
    return 1 if found else 0


async def _render(scrubber: Scrubber, plan: ScrubPlan, device: str) -> None:
    async with open_scheduler(render_timeout_s=_HANG_TIMEOUT_S, device=device) as scheduler:
        await scrubber.render(plan, scheduler)
