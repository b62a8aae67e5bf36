"""latentfs gc"""

from __future__ import annotations

from pathlib import Path

import click

from latentfs.cli.arguments import shown_bytes, store_argument
from latentfs.cli.output import one_line
from latentfs.store.compaction import compact
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.store import Store

__all__ = ["command"]


@click.command("gc", epilog="Example: latentfs gc ~/art.lfs")
@store_argument
def command(store: Path) -> None:
    """Return space that STORE no longer needs to the disk.

    Removing files from a store makes room in its database but never shrinks it.  This command
    replaces the database with a copy without free space, for which the disk needs room.  It also
    removes VAEs that nothing in STORE names, files that were removed while a mount had them open,
    and leftovers of killed commands.  STORE must not be mounted or otherwise in use.
    """
    Store.open(store).close()  # says clearly what is wrong with it
    with DaemonLock(store).held_by("gc"):
        done = compact(store)
    for path in done.removed:
        click.echo(one_line(f"removed {path}"))
    click.echo(
        f"{store}: the database shrank from {shown_bytes(done.before_bytes)} to "
        f"{shown_bytes(done.after_bytes)}; {shown_bytes(done.removed_bytes)} of other files removed"
    )
