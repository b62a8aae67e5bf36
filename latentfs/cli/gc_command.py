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
    """Give back to the disk what STORE does not need any more.

    What is removed from a store makes room in it for other things; its database never gets smaller
    by itself.  This replaces it by a copy without free space, for which the disk needs room.  Also
    removes VAEs that no record names, and what killed commands have left.  Not while STORE is
    mounted or otherwise in use.
    """
    Store.open(store).close()  # says clearly what is wrong with it
    with DaemonLock(store).held_by("gc"):
        done = compact(store)
    for path in done.removed:
        click.echo(one_line(f"removed {path}"))
    click.echo(
        f"{store}: the database took {shown_bytes(done.before_bytes)} and takes "
        f"{shown_bytes(done.after_bytes)} now; {shown_bytes(done.removed_bytes)} of other files "
        "removed"
    )
