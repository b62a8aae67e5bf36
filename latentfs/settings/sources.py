"""Where settings come from: a file, the environment, the command line.

The last one counts; options for the kernel add up.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentfs.errors import InvalidArgumentError
from latentfs.settings.kernel_options import is_for_others, is_for_the_kernel, nearest
from latentfs.settings.mount_settings import SETTINGS, MountSettings, Setting

__all__ = ["GIVEN_AS_OPTION", "ResolvedSettings", "SettingSources", "given_by_mount_options"]

_PREFIX = "LATENTFS_"
_FILE_VARIABLE = "LATENTFS_CONFIG"
_OPTIONS = "mount_options"
GIVEN_AS_OPTION = "-o"
"""In :attr:`SettingSources.given_as`: among mount options."""
_BY_NAME = {setting.name: setting for setting in SETTINGS}
_VARIABLES = [name.upper() for name in _BY_NAME] + [_FILE_VARIABLE.removeprefix(_PREFIX)]
# As one writes them after -o, for read_only.
_READ_ONLY_WORDS = {"ro": True, "rw": False}


@dataclass(frozen=True, slots=True)
class ResolvedSettings:
    """The settings.

    Attributes:
        written: by name, the value as it was written; None where there is none.
        origins: by name, where it came from, in words.
    """

    settings: MountSettings
    written: Mapping[str, object]
    origins: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingSources:
    """What was given, to be resolved now and again on a reload.

    Attributes:
        file: the settings file; None for the first that is there of those it is looked for in.
        given: values of the command line by setting name.
        given_as: how each of them was written there: a flag such as ``--cache``, or ``-o``.
        environment: variables, as of ``os.environ``.
    """

    file: Path | None
    given: Mapping[str, object]
    given_as: Mapping[str, str]
    environment: Mapping[str, str]

    def resolve(self) -> ResolvedSettings:
        """Read the file and put everything together.

        Raises:
            InvalidArgumentError: the file can't be read, a name is not known, or a value can't be
                used.
        """
        by_source = [
            self._of_file(),
            _of_environment(self.environment),
            {name: (value, self.given_as[name]) for name, value in self.given.items()},
        ]
        found: dict[str, tuple[object, str]] = {
            setting.name: (setting.default, "default") for setting in SETTINGS
        }
        for source in by_source:
            found.update(_added_to_options(found, source))
        values = {setting.field_name: _read(setting, *found[setting.name]) for setting in SETTINGS}
        return ResolvedSettings(
            MountSettings(**values),
            written={name: value for name, (value, _) in found.items()},
            origins={name: origin for name, (_, origin) in found.items()},
        )

    def file_in_use(self) -> Path | None:
        """Return the file that is read, None if there is none.

        Raises:
            InvalidArgumentError: it can't be found out.
        """
        if self.file is not None:
            return self.file
        if chosen := self.environment.get(_FILE_VARIABLE):
            if not os.path.isabs(chosen):  # a reload would look for it somewhere else
                raise InvalidArgumentError(
                    f"LATENTFS_CONFIG={chosen} is relative; write the whole path"
                )
            return Path(chosen)
        return next((path for path in _usual_files(self.environment) if _is_there(path)), None)

    def _of_file(self) -> dict[str, tuple[object, str]]:
        path = self.file_in_use()
        if path is None:
            return {}
        table = _table_of(path)
        for name in table:
            if name not in _BY_NAME:
                hint = nearest(name, _BY_NAME) or f"; there are {', '.join(_BY_NAME)}"
                raise InvalidArgumentError(f"{path}: {name!r} is not a setting{hint}")
        return {name: (value, str(path)) for name, value in table.items()}


def _usual_files(environment: Mapping[str, str]) -> tuple[Path, ...]:
    home = environment.get("XDG_CONFIG_HOME", "")
    if not os.path.isabs(home):  # to be ignored, by its specification
        home = os.path.expanduser("~/.config")
    return (Path(home) / "latentfs" / "config.toml", Path("/etc/latentfs/config.toml"))


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise InvalidArgumentError(
            f"can't see whether there is a settings file {path}: {error.strerror}; name one with "
            f"--config or {_FILE_VARIABLE}"
        ) from error


def _table_of(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidArgumentError(
            f"the settings file {path} can't be read: {error.strerror}"
        ) from error
    except (ValueError, RecursionError) as error:  # of bytes, TOML, numbers, or lists in lists
        raise InvalidArgumentError(f"the settings file {path} is not TOML: {error}") from error


def _of_environment(environment: Mapping[str, str]) -> dict[str, tuple[object, str]]:
    found: dict[str, tuple[object, str]] = {}
    for variable, value in environment.items():
        if not variable.startswith(_PREFIX) or variable == _FILE_VARIABLE:
            continue
        name = variable.removeprefix(_PREFIX).lower()
        if name in _BY_NAME:
            found[name] = (value, variable)
        elif hint := nearest(name, _VARIABLES, prefix=_PREFIX):
            # Other variables of that prefix are nobody's business, but misspelt ones are.
            raise InvalidArgumentError(f"the variable {variable} names no setting{hint}")
    return found


def _added_to_options(
    found: Mapping[str, tuple[object, str]], source: Mapping[str, tuple[object, str]]
) -> dict[str, tuple[object, str]]:
    """Return *source*, its mount options behind those *found* before.

    Each stands for itself, and takes back no more than its opposite.

    Raises:
        InvalidArgumentError: those found before can't be used.
    """
    before, origin_before = found[_OPTIONS]
    if _OPTIONS not in source or not before:
        return dict(source)
    value, origin = source[_OPTIONS]
    setting = _BY_NAME[_OPTIONS]
    both = [*_read(setting, before, origin_before), *_read(setting, value, origin)]
    return {**source, _OPTIONS: (both, f"{origin_before}, {origin}")}


def _read(setting: Setting, value: object, origin: str) -> Any:
    if value is None:
        return None
    try:
        return setting.read(value)
    except ValueError as error:
        raise InvalidArgumentError(f"{setting.name} of {origin}: {error}") from error


def given_by_mount_options(options: str) -> dict[str, object]:
    """Return the settings, by name, that the text after ``-o`` gives; of several the last counts.

    Raises:
        InvalidArgumentError: an option is not known.
    """
    given: dict[str, object] = {}
    for_kernel = []
    for option in filter(None, options.split(",")):
        name, equals, value = option.partition("=")
        name = name.replace("-", "_")
        if option in _READ_ONLY_WORDS:
            given["read_only"] = _READ_ONLY_WORDS[option]
        elif is_for_the_kernel(option):
            for_kernel.append(option)
        elif equals and name == _OPTIONS:
            for_kernel.append(value)
        elif equals and name in _BY_NAME:
            given[name] = value
        elif not is_for_others(option):
            raise InvalidArgumentError(_refusal(option, name))
    if for_kernel:
        given[_OPTIONS] = for_kernel
    return given


def _refusal(option: str, name: str) -> str:
    """Say what is wrong with a mount option that begins with *name*."""
    if name in _BY_NAME:
        return f"mount option {option!r} needs a value: {name}={_BY_NAME[name].placeholder}"
    known = [*_BY_NAME, "ro", "rw", "allow_other", "noallow_other", "noatime", "noexec"]
    return (
        f"mount option {option!r} is not known{nearest(name, known)}; "
        "latentfs mount --help lists them"
    )
