"""latentfs backup"""

from __future__ import annotations

from pathlib import Path

import click

from latentfs.cli.arguments import counted, shown_bytes, store_argument
from latentfs.cli.output import one_line
from latentfs.store.backup import back_up
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.store import Store

__all__ = ["command"]


@click.command("backup", epilog="Example: latentfs backup ~/art.lfs /backup/art-monday.lfs")
@store_argument
@click.argument("target", type=click.Path(path_type=Path, resolve_path=True), metavar="TARGET")
def command(store: Path, target: Path) -> None:
    """Copy STORE, as it is at one moment, to the new folder TARGET, which is then a store too.

    Works while STORE is mounted and written to, and delays nobody.  Changes of about the last
    second that are not on disk yet are not copied.
    """
    with Store.open(store) as opened:
        mounted = DaemonLock(store).is_mounted()
        done = back_up(opened, target)
    if mounted:
        click.echo(
            "note: the store is mounted; changes of the last second are not copied",
            err=True,
        )
    for damage in done.damaged:
        click.echo(one_line(f"note: damaged in the store and in the copy: {damage}"), err=True)
    click.echo(
        f"{counted(done.totals.files, 'file')} copied to {target}, {shown_bytes(done.size_bytes)}"
    )
