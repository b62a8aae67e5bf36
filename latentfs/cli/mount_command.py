"""latentfs mount"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import click

from latentfs.cli.settings_options import setting_sources, settings_options
from latentfs.fs.daemon import Callbacks, mount_and_serve
from latentfs.settings.mount_settings import MountSettings
from latentfs.telemetry.logs import configure_logging

__all__ = ["command"]

log = logging.getLogger(__name__)


@click.command("mount", epilog="Example: latentfs mount ~/art.lfs /mnt/art --cache 2G")
@click.argument("store", type=click.Path(path_type=Path), required=False)
@click.argument("mountpoint", type=click.Path(path_type=Path), required=False)
@settings_options
def command(store: Path | None, mountpoint: Path | None, **options: Any) -> None:
    """Mount STORE on the folder MOUNTPOINT, and stay in the foreground.

    Ctrl-C or "latentfs umount MOUNTPOINT" ends it.  Other users may use the files, as far as their
    modes permit, where that is possible: when run by root, or with user_allow_other in
    /etc/fuse.conf.  With -o ro nothing can be changed.

    Latent files that are written into the mount get their pictures beside them, made with the VAE
    that the attribute user.latentfs.vae of the nearest folder names, or with the only one that
    fits; not with --no-develop.

    STORE, MOUNTPOINT and all settings may stand in a file (--config) or in the environment;
    "latentfs config show" tells where each comes from.
    """
    sources = setting_sources(store=store, mountpoint=mountpoint, options=options)
    settings = sources.resolve().settings
    _check_places(settings)
    output = configure_logging(
        level=settings.log_level, log_format=settings.log_format, destination=settings.log
    )

    def ready() -> None:
        message = f"{settings.store} is mounted on {settings.mountpoint}"
        if settings.log == "stderr" and settings.log_format == "text":
            click.echo(message, err=True)
        else:
            log.info("%s", message)

    # A terminal that hangs up ends what runs in it; elsewhere SIGHUP asks to read settings anew.
    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    callbacks = Callbacks(
        on_ready=ready,
        reread=None if at_terminal else lambda: sources.resolve().settings,
        log_output=output,
    )
    mount_and_serve(settings, callbacks)


def _check_places(settings: MountSettings) -> None:
    for name, place in (("STORE", settings.store), ("MOUNTPOINT", settings.mountpoint)):
        if place is None:
            raise click.UsageError(
                f"{name} is missing; give it as an argument, or {name.lower()} in a settings file"
            )
