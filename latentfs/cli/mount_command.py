"""latentfs mount"""

from __future__ import annotations

import contextlib
import logging
import sys
from pathlib import Path
from typing import Any

import click

from latentfs.cli.interrupts import ended_as_by_ctrl_c
from latentfs.cli.places import PLACE
from latentfs.cli.settings_options import setting_sources, settings_options
from latentfs.fs.daemon import Callbacks, mount_and_serve
from latentfs.fs.mountpoint import check_outside
from latentfs.service.background import (
    READY_FD_FLAG,
    log_destination,
    start_daemon,
    waited_for,
)
from latentfs.settings.mount_settings import MountSettings
from latentfs.settings.sources import SettingSources
from latentfs.telemetry.address import UnixAddress
from latentfs.telemetry.logs import configure_logging

__all__ = ["command"]

log = logging.getLogger(__name__)


@click.command("mount", epilog="Example: latentfs mount ~/art.lfs /mnt/art --cache 2G")
@click.argument("store", type=click.Path(path_type=Path), required=False)
@click.argument("mountpoint", type=PLACE, required=False)
@settings_options
@click.option(
    "--background",
    is_flag=True,
    help="Return when the mount is usable; the daemon keeps running.",
)
@click.option(READY_FD_FLAG, type=int, hidden=True)
def command(
    store: Path | None,
    mountpoint: Path | None,
    background: bool,
    ready_fd: int | None,
    **options: Any,
) -> int:
    """Mount STORE on the folder MOUNTPOINT; stays in the foreground unless --background is given.

    Ctrl-C or "latentfs umount MOUNTPOINT" ends it.  Other users may use the files, as far as their
    modes permit, if root mounts or /etc/fuse.conf has user_allow_other.  With -o ro nothing can be
    changed.

    A latent file that is written into the mount gets its picture beside it, made with the VAE that
    the attribute user.latentfs.vae of the nearest folder names, or else with the only one that
    fits.  --no-develop turns this off.

    STORE, MOUNTPOINT and all settings can also be given in a file (--config) or in the environment;
    "latentfs config show" shows where each comes from.
    """
    if background and ready_fd is None:
        with ended_as_by_ctrl_c():
            return start_daemon(sys.argv[2:])
    sources = setting_sources(store=store, mountpoint=mountpoint, options=options)
    settings = sources.resolve().settings
    _check_places(settings, settings_file=sources.file_in_use())
    _serve(sources, settings, ready_fd)
    return 0


def _serve(sources: SettingSources, settings: MountSettings, ready_fd: int | None) -> None:
    in_background = ready_fd is not None
    output = configure_logging(
        level=settings.log_level,
        log_format=settings.log_format,
        destination=log_destination(settings.log) if in_background else settings.log,
    )
    # A terminal that hangs up ends what runs in it; elsewhere SIGHUP asks to read settings anew.
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    with contextlib.nullcontext() if ready_fd is None else waited_for(ready_fd) as let_go:

        def ready() -> None:
            message = f"{settings.store} is mounted on {settings.mountpoint}"
            if settings.log == "stderr" and settings.log_format == "text" and not in_background:
                click.echo(message, err=True)
            else:
                log.info("%s", message)
            if let_go is not None:
                let_go()

        callbacks = Callbacks(
            on_ready=ready,
            reread=None if at_terminal else lambda: sources.resolve().settings,
            log_output=output,
        )
        mount_and_serve(settings, callbacks)


def _check_places(settings: MountSettings, *, settings_file: Path | None) -> None:
    for name, place in (("STORE", settings.store), ("MOUNTPOINT", settings.mountpoint)):
        if place is None:
            raise click.UsageError(
                f"{name} is missing; give it as an argument, or {name.lower()} in a settings file"
            )
    assert settings.mountpoint is not None
    used = [("settings file", settings_file), ("log file", settings.log)]
    if isinstance(settings.metrics, UnixAddress):
        used.append(("socket for metrics", settings.metrics.path))
    for what, path in used:
        if isinstance(path, Path):
            check_outside(path, what, mountpoint=settings.mountpoint)
