"""The settings of a mount as options of a command."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from latentfs.settings.mount_settings import SETTINGS, Setting
from latentfs.settings.sources import (
    GIVEN_AS_OPTION,
    SettingSources,
    given_by_mount_options,
)

__all__ = ["setting_sources", "settings_options"]

_Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

# Given as arguments, or through -o.
_NOT_FLAGS = ("store", "mountpoint", "mount_options")


class _Value(click.ParamType[object]):
    """What a setting's reader takes; the text is kept as it was given."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self.name = setting.name

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        try:
            self._setting.read(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return value


def settings_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command ``--config``, ``-o``, ``-v`` and a flag for each setting."""
    options: list[_Decorator] = [
        click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path, dir_okay=False),
            metavar="FILE",
            help="Settings file, instead of ~/.config/latentfs/config.toml or "
            "/etc/latentfs/config.toml.",
        ),
        click.option(
            "-o",
            "mount_options",
            multiple=True,
            metavar="OPT,...",
            help="Mount options: ro, allow_other, noallow_other, dev, suid, noexec, noatime, "
            "nosymfollow, and settings as NAME=VALUE.",
        ),
        *(_flag(setting) for setting in SETTINGS if setting.name not in _NOT_FLAGS),
        click.option("--verbose", "-v", is_flag=True, help="The same as --log-level info."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _flag(setting: Setting) -> _Decorator:
    if isinstance(setting.default, bool):
        name = setting.flag.removeprefix("--")
        default = "yes" if setting.default else "no"
        return click.option(
            f"--{name}/--no-{name}",
            setting.name,
            default=None,
            help=f"{setting.help}  [default: {default}]",
        )
    return click.option(
        setting.flag,
        setting.name,
        type=_Value(setting),
        metavar=setting.placeholder,
        help=f"{setting.help}  [default: {setting.default}]",
    )


def setting_sources(
    *, store: Path | None, mountpoint: Path | None, options: Mapping[str, Any]
) -> SettingSources:
    """Return what the command line gave, beside the environment.

    Args:
        options: of a command with :func:`settings_options`, by name.

    Raises:
        InvalidArgumentError: a mount option is not known.
    """
    given: dict[str, object] = {}
    given_as: dict[str, str] = {}

    def add(values: Mapping[str, object], written: Callable[[str], str]) -> None:
        given.update(values)
        given_as.update({name: written(name) for name in values})

    add(given_by_mount_options(",".join(options["mount_options"])), lambda name: GIVEN_AS_OPTION)
    if options["verbose"]:
        add({"log_level": "info"}, lambda name: "--verbose")
    flags = {setting.name: setting.flag for setting in SETTINGS if setting.name in options}
    add(
        {
            name: options[name]
            for name in flags
            if name not in _NOT_FLAGS and options[name] is not None
        },
        flags.__getitem__,
    )
    arguments = {"store": store, "mountpoint": mountpoint}
    add(
        {name: os.path.abspath(path) for name, path in arguments.items() if path is not None},
        str.upper,
    )
    # Whole, as the daemon goes elsewhere, but with its links: they may come to name another file.
    file = None if options["config_file"] is None else Path(os.path.abspath(options["config_file"]))
    return SettingSources(file=file, given=given, given_as=given_as, environment=os.environ)
