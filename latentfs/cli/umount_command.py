"""latentfs umount"""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from latentfs.cli.places import PLACE
from latentfs.errors import MountError
from latentfs.fs.mountpoint import find_mount, mounts_of, unmount, unmount_if_stale
from latentfs.settings.sources import SettingSources
from latentfs.store.daemon_lock import DaemonLock

__all__ = ["command"]

# With what unmounting may take, it is clearly less than the TimeoutStopSec= of the unit.
_DAEMON_END_WAIT_S = 15.0


@click.command("umount", epilog="Example: latentfs umount /mnt/art")
@click.argument("mountpoint", type=PLACE, required=False)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, resolve_path=True, dir_okay=False),
    metavar="FILE",
    help="Settings file that names the mount point.",
)
@click.option("--lazy", is_flag=True, help="Detach even if in use; programs keep their open files.")
@click.option(
    "--stale",
    is_flag=True,
    help="Unmount only a mount whose daemon is dead; otherwise do nothing.",
)
def command(mountpoint: Path | None, config_file: Path | None, lazy: bool, stale: bool) -> None:
    """Unmount what latentfs mounted on MOUNTPOINT; returns when its daemon has ended."""
    if mountpoint is not None and config_file is not None:
        raise click.UsageError("give MOUNTPOINT or --config, not both")
    where, store = (mountpoint, None) if mountpoint is not None else _configured(config_file)
    entry = find_mount(where)
    mounts = mounts_of(where) if entry is None else []
    if mounts:
        raise MountError(f"{where} is a store; run latentfs umount {mounts[0].mountpoint}")
    if entry is not None and store is not None and entry.source != str(store.resolve()):
        raise MountError(
            f"{entry.source} is mounted on {where}, and not {store} of the settings; left alone"
        )
    if stale:
        unmount_if_stale(where)
        return
    unmount(where, lazy=lazy)
    if entry is None or lazy:
        return
    lock = DaemonLock(Path(entry.source))
    deadline_s = time.monotonic() + _DAEMON_END_WAIT_S
    while lock.is_mounted():
        if time.monotonic() > deadline_s:
            raise MountError(
                f"{where} is unmounted, but its daemon still runs after "
                f"{_DAEMON_END_WAIT_S:g} s; see its log"
            )
        time.sleep(0.02)


def _configured(config_file: Path | None) -> tuple[Path, Path | None]:
    """Return mount point and store of the settings."""
    sources = SettingSources(file=config_file, given={}, given_as={}, environment=os.environ)
    settings = sources.resolve().settings
    if settings.mountpoint is None:
        raise click.UsageError(
            "MOUNTPOINT is missing; give it as an argument, or mountpoint in a settings file"
        )
    return settings.mountpoint, settings.store
