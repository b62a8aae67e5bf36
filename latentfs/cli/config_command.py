"""latentfs config"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from latentfs.cli.output import one_line
from latentfs.cli.places import PLACE
from latentfs.cli.settings_options import setting_sources, settings_options
from latentfs.settings.mount_settings import SETTINGS

__all__ = ["command"]


@click.group("config", epilog="Example: latentfs config show --config /etc/latentfs/art.toml")
def command() -> None:
    """Look at the settings of a mount."""


@command.command("show", epilog="Example: latentfs config show --config /etc/latentfs/art.toml")
@click.argument("store", type=click.Path(path_type=Path), required=False)
@click.argument("mountpoint", type=PLACE, required=False)
@settings_options
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def show(store: Path | None, mountpoint: Path | None, as_json: bool, **options: Any) -> None:
    """Show each setting that "latentfs mount" would use with these arguments, and its source.

    The environment overrides the settings file, and the command line overrides both.  The output
    can be used as a settings file.
    """
    sources = setting_sources(store=store, mountpoint=mountpoint, options=options)
    resolved = sources.resolve()
    if as_json:
        shown = {
            name: {"value": value, "origin": resolved.origins[name]}
            for name, value in resolved.written.items()
        }
        click.echo(json.dumps(shown, indent=2, default=str))
        return
    width = max(len(_assignment(name, value)) for name, value in resolved.written.items())
    for setting in SETTINGS:
        written = _assignment(setting.name, resolved.written[setting.name])
        click.echo(f"{written:<{width}}  # {one_line(resolved.origins[setting.name])}")


def _assignment(name: str, value: object) -> str:
    """The line of a settings file; commented out where there is no value."""
    if value is None:
        return f"# {name} is not set"
    # JSON's texts, lists, numbers and truths are TOML's too, but for a character.
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"# {name} can't be written in TOML, which is UTF-8: {one_line(text)}"
    return f"{name} = {text}"
