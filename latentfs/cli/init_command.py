"""latentfs init"""

from __future__ import annotations

from pathlib import Path

import click

from latentfs.cli.arguments import store_argument

__all__ = ["command"]


@click.command("init", epilog="Example: latentfs init ~/art.lfs")
@store_argument
def command(store: Path) -> None:
    """Make a new, empty store in the folder STORE, which must not exist or be empty."""
    from latentfs.store.store import Store

    Store.create(store).close()
    click.echo(f"made the store {store}; add a VAE next: latentfs vae add {store} NAME VAE")
