"""latentfs systemd install"""

from __future__ import annotations

import os
from pathlib import Path

import click

__all__ = ["command"]


@click.group("systemd", epilog="Example: latentfs systemd install")
def command() -> None:
    """Install the units that mount stores at boot."""


@command.command(
    "install",
    epilog="Examples: latentfs systemd install | latentfs systemd install --user",
)
@click.option(
    "--user", "for_user", is_flag=True, help="For your own systemd instead of the machine's."
)
@click.option("--dry-run", is_flag=True, help="Only print what would be written.")
@click.option(
    "--destination",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Use this folder instead of / (with --user, of ~/.config), as packages do.",
)
def install_command(for_user: bool, dry_run: bool, destination: Path | None) -> None:
    """Install the unit latentfs@.service, which runs this latentfs, and an example of its settings.

    The mount NAME is latentfs@NAME.service, with the settings in /etc/latentfs/NAME.toml; with
    --user in ~/.config/latentfs/NAME.toml.

    Without --user, mount(8) and fstab learn the type latentfs too.  Files that exist are brought up
    to date; your settings are left alone.
    """
    from latentfs.service.installation import (
        install,
        own_executable,
        plan_for_the_machine,
        plan_for_user,
    )

    if for_user:
        steps = plan_for_user(destination or _configuration(), own_executable())
    else:
        steps = plan_for_the_machine(destination or Path("/"), own_executable())
    changed = [step for step in steps if not step.is_done()] if dry_run else install(steps)
    for step in steps:
        did = "would write" if dry_run else "wrote"
        leads = f" -> {step.content}" if step.is_link else ""
        click.echo(f"{did if step in changed else 'kept'} {step.path}{leads}")
    settings = next(step.path for step in steps if step.is_for_the_user)
    systemctl = "systemctl --user" if for_user else "systemctl"
    click.echo(
        f"next: cp {settings} {settings.with_name('art.toml')} and edit it; "
        f"{systemctl} daemon-reload; {systemctl} enable --now latentfs@art.service"
    )


def _configuration() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
