"""latentfs bench replay"""

from __future__ import annotations

import json
from pathlib import Path

import click

from latentfs.bench.replay import Replayed, due_times, find_pictures, pictures_for, replay
from latentfs.bench.replay_report import document, screen
from latentfs.bench.tiers import DaemonCounts, TierCounts, mounted_store, tiers_between
from latentfs.bench.trace import read_trace
from latentfs.cli.interrupts import ended_as_by_ctrl_c
from latentfs.cli.output import one_line
from latentfs.fs.control import ask_daemon

__all__ = ["command"]


@click.command("replay", epilog="Example: latentfs bench replay day.csv /mnt/art --speed 60")
@click.argument("trace_path", type=click.Path(path_type=Path), metavar="TRACE")
@click.argument("folder", type=click.Path(path_type=Path), metavar="FOLDER")
@click.option(
    "--rate", type=float, metavar="N", help="Requests per second, instead of the trace's times."
)
@click.option(
    "--speed",
    type=float,
    metavar="N",
    help="Seconds of the trace per real second.  Default: 1.",
)
@click.option(
    "--readers",
    type=click.IntRange(1, 256),
    default=16,
    show_default=True,
    help="Threads that read at the same time.",
)
@click.option(
    "--requests", type=click.IntRange(min=1), metavar="N", help="Replay only the first N requests."
)
@click.option(
    "--drop-kernel-pages",
    is_flag=True,
    help="Make the kernel forget each file after it was read, so that reads reach the daemon.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def command(
    trace_path: Path,
    folder: Path,
    rate: float | None,
    speed: float | None,
    readers: int,
    requests: int | None,
    drop_kernel_pages: bool,
    as_json: bool,
) -> None:
    """Read the pictures below FOLDER in the order of TRACE and measure how long each takes.

    TRACE is a CSV file with a line of time,object,size for each request, sorted by time in
    seconds.  Its objects become the PNG and JPEG files below FOLDER, in the order of their paths.

    FOLDER is in a mount, or any other folder for comparison.  Ctrl-C ends it and shows the results
    so far.
    """
    if rate is not None and speed is not None:
        raise click.UsageError("--rate takes the place of the trace's times: leave --speed out")
    trace = read_trace(trace_path, requests_max=requests)
    due_s = due_times(trace, rate=rate, speed=1.0 if speed is None else speed)
    paths = pictures_for(trace, find_pictures(folder), folder=folder)
    _tell(f"{len(trace)} requests to {len(paths)} files below {folder}, in {due_s[-1]:.1f} s")
    with ended_as_by_ctrl_c():
        store = mounted_store(folder)
        before = _counts(store)
        replayed = replay(trace, paths, due_s, readers=readers, drop_kernel_pages=drop_kernel_pages)
        tiers = _tiers(before, _counts(store), replayed)
    if store is not None and tiers is None:
        _tell("the daemon did not answer both before and after, so nothing is known of its caches")
    asked = {
        "trace": str(trace_path),
        "folder": str(folder),
        "requests_asked": len(trace),
        "files": len(paths),
        "readers": readers,
        "rate": rate,
        "speed": speed,
        "drop_kernel_pages": drop_kernel_pages,
    }
    found = document(asked, replayed, tiers)
    click.echo(json.dumps(found, indent=2) if as_json else screen(found))
    if replayed.interrupted:
        raise click.Abort


def _tell(line: str) -> None:
    click.echo(one_line(line), err=True)


def _counts(store: Path | None) -> DaemonCounts | None:
    status = None if store is None else ask_daemon(store, "status")
    return None if status is None or "error" in status else DaemonCounts.from_status(status)


def _tiers(
    before: DaemonCounts | None, after: DaemonCounts | None, replayed: Replayed
) -> TierCounts | None:
    if before is None or after is None:
        return None
    # The daemon has looked for most of those that failed: they are no hits of the kernel.
    reads = len(replayed.latencies_s) - replayed.errors.total()
    return tiers_between(before, after, reads=reads)
