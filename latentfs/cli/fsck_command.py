"""latentfs fsck"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from latentfs.cli.arguments import store_argument
from latentfs.cli.output import one_line
from latentfs.store.fsck import check_store
from latentfs.store.store import Store

__all__ = ["command"]


@click.command("fsck", epilog="Example: latentfs fsck ~/art.lfs")
@store_argument
def command(store: Path) -> int:
    """Check STORE: its tables against each other, every payload and VAE against its hash.

    Changes nothing and may run beside a mount.  Names each problem on standard error; exits with 1
    if there is any.
    """
    problems = 0
    with Store.open(store) as opened, opened.read() as snapshot:
        payloads = snapshot.totals().payloads
        with click.progressbar(
            length=payloads, label="checking", file=sys.stderr, hidden=not sys.stderr.isatty()
        ) as bar:
            for problem in check_store(opened.path, snapshot, progress=lambda: bar.update(1)):
                problems += 1
                click.echo(one_line(f"{problem.check}: {problem.message}"), err=True)
    click.echo(f"{store}: {problems or 'no'} problem{'' if problems == 1 else 's'}")
    return 1 if problems else 0
