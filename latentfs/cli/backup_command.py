"""latentfs backup"""

from __future__ import annotations

from pathlib import Path

import click

from latentfs.cli.arguments import shown_bytes, store_argument
from latentfs.cli.output import one_line
from latentfs.store.backup import back_up
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.store import Store

__all__ = ["command"]


@click.command("backup", epilog="Example: latentfs backup ~/art.lfs /backup/art-2026-11-23.lfs")
@store_argument
@click.argument("target", type=click.Path(path_type=Path, resolve_path=True), metavar="TARGET")
def command(store: Path, target: Path) -> None:
    """Copy STORE, as it is at one moment, to the new folder TARGET, which is a store then.

    Works while STORE is mounted and written to, and keeps nobody waiting.  Changes not yet on disk,
    about the last second's, are not in the copy.
    """
    with Store.open(store) as opened:
        mounted = DaemonLock(store).held_elsewhere()
        done = back_up(opened, target)
    if mounted:
        click.echo(
            "note: the store is mounted; what was changed in the last second is not copied",
            err=True,
        )
    for damage in done.damaged:
        click.echo(one_line(f"note: damaged in the store and in the copy: {damage}"), err=True)
    click.echo(f"{done.totals.files} files copied to {target}, {shown_bytes(done.size_bytes)}")
