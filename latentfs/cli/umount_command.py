"""latentfs umount"""

from __future__ import annotations

import time
from pathlib import Path

import click

from latentfs.errors import MountError
from latentfs.fs.mountpoint import find_mount, unmount
from latentfs.store.daemon_lock import DaemonLock

__all__ = ["command"]

_DAEMON_END_WAIT_S = 30.0


@click.command("umount", epilog="Example: latentfs umount /mnt/art")
@click.argument("mountpoint", type=click.Path(path_type=Path), metavar="MOUNTPOINT")
@click.option("--lazy", is_flag=True, help="Even if in use; programs keep what they have open.")
def command(mountpoint: Path, lazy: bool) -> None:
    """Unmount what latentfs mounted on MOUNTPOINT; returns when its daemon has ended."""
    mount = find_mount(mountpoint)
    unmount(mountpoint, lazy=lazy)
    if mount is None or lazy:
        return
    lock = DaemonLock(Path(mount.source))
    deadline_s = time.monotonic() + _DAEMON_END_WAIT_S
    while lock.held_elsewhere():
        if time.monotonic() > deadline_s:
            raise MountError(
                f"{mountpoint} is unmounted, but its daemon still runs after "
                f"{_DAEMON_END_WAIT_S:g} s; see its log"
            )
        time.sleep(0.02)
