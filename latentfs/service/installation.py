"""Puts the units, an example of their settings and the helpers of mount(8) where they are found."""

from __future__ import annotations

import contextlib
import importlib.resources
import os
import re
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from latentfs.errors import InvalidArgumentError
from latentfs.settings.mount_settings import SETTINGS, Setting

__all__ = ["Step", "install", "own_executable", "plan_for_the_machine", "plan_for_user"]

_UNIT = "latentfs@.service"
_COMMAND_IN_UNITS = "/usr/bin/env latentfs"
_HELPERS = ("mount.latentfs", "mount.fuse.latentfs")
_EXAMPLES = {"store": "/var/lib/latentfs/art.lfs", "mountpoint": "/srv/art"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One file to be there after the installation.

    Attributes:
        path: where.
        content: what is in it, or for a link where it leads to.
        is_link: whether it is a link.
        is_for_the_user: whether one that is there already is left as it is.
    """

    path: Path
    content: str
    is_link: bool = False
    is_for_the_user: bool = False

    def is_done(self) -> bool:
        """Whether nothing is to be changed."""
        if self.is_for_the_user:
            return os.path.lexists(self.path)
        try:
            now = os.readlink(self.path) if self.is_link else self.path.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return False
        return now == self.content

    def do(self) -> None:
        """Put the file there, in place of one of that name.

        Raises:
            InvalidArgumentError: there is a file where a link is to be.
        """
        if self.is_link and os.path.lexists(self.path) and not self.path.is_symlink():
            raise InvalidArgumentError(
                f"{self.path} is not a link, so another program has put it there; move it away"
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{self.path.name}.new")
        with contextlib.suppress(FileNotFoundError):
            new.unlink()
        if self.is_link:
            new.symlink_to(self.content)
        else:
            new.write_text(self.content, "utf-8")
        new.replace(self.path)


def plan_for_the_machine(root: Path, executable: Path | None) -> list[Step]:
    """What is to be in the folder *root* so that its systemd and mount(8) run *executable*.

    None stands for this Python with the module, for both plans.
    """
    units, settings = root / "etc/systemd/system", root / "etc/latentfs"
    return [
        Step(path=units / _UNIT, content=_unit(_UNIT, executable)),
        Step(path=settings / "example.toml", content=_example(), is_for_the_user=True),
        *_helpers(root / "sbin", executable),
    ]


def plan_for_user(configuration: Path, executable: Path | None) -> list[Step]:
    """What is to be in a user's folder of settings so that the user's systemd runs *executable*."""
    return [
        Step(
            path=configuration / "systemd/user" / _UNIT, content=_unit(f"user/{_UNIT}", executable)
        ),
        Step(
            path=configuration / "latentfs/example.toml", content=_example(), is_for_the_user=True
        ),
    ]


def install(steps: list[Step]) -> list[Step]:
    """Do what is not done yet, and return it.

    Raises:
        InvalidArgumentError: something is in the way, or it is not permitted.
    """
    done = []
    for step in steps:
        if step.is_done():
            continue
        try:
            step.do()
        except PermissionError as error:
            raise InvalidArgumentError(
                f"can't write {step.path}: {error.strerror}; only root can install for the whole "
                "machine, and --user installs for you alone"
            ) from error
        done.append(step)
    return done


def own_executable() -> Path | None:
    """Return the absolute path of this latentfs; None where it is run as a module."""
    called = Path(os.path.abspath(sys.argv[0]))
    for path in (called, Path(sysconfig.get_path("scripts")) / "latentfs"):
        if path.name == "latentfs" and path.is_file() and os.access(path, os.X_OK):
            return path
    return None


def _quoted(path: str) -> str:
    """As systemd reads it in a command line; blanks in it are kept together."""
    escaped = path.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
    return path if re.fullmatch(r"[-+./:@\w]+", path) else f'"{escaped}"'


def _unit(name: str, executable: Path | None) -> str:
    command = _quoted(str(executable or sys.executable)) + ("" if executable else " -m latentfs")
    text = (importlib.resources.files("latentfs.service") / "units" / name).read_text("utf-8")
    return text.replace(_COMMAND_IN_UNITS, command)


def _helpers(folder: Path, executable: Path | None) -> list[Step]:
    """Links to what mount(8) runs, of those that are beside the executable.

    An executable that is a link, as one in /usr/local/bin to one in a virtual environment, is
    followed where they are not beside the link.
    """
    # A Python is not followed: that of a virtual environment leads out of it.
    places = [executable, executable.resolve()] if executable else [Path(sys.executable)]
    links = []
    for name in _HELPERS:
        beside = (place.with_name(name) for place in places)
        found = next((path for path in beside if os.access(path, os.X_OK)), None)
        if found is not None:
            links.append(Step(path=folder / name, content=str(found), is_link=True))
    return links


def _example() -> str:
    head = (
        "# Settings of one mount.  Copy this file to NAME.toml beside it, and start "
        "latentfs@NAME.service.\n# What is commented out is what holds without it.\n"
    )
    return head + "".join(f"\n{_shown(setting)}" for setting in SETTINGS)


def _shown(setting: Setting) -> str:
    about = f"# {setting.help}\n"
    if setting.name in _EXAMPLES:
        return about + tomli_w.dumps({setting.name: _EXAMPLES[setting.name]})
    value = "" if setting.default is None else setting.default
    return f"{about}#{tomli_w.dumps({setting.name: value})}"
