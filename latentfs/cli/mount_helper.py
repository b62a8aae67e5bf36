"""mount.latentfs and mount.fuse.latentfs: what mount(8) runs for the types of these names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import click

from latentfs.cli.interrupts import ended_as_by_ctrl_c
from latentfs.cli.output import mend_streams, one_line
from latentfs.cli.places import PLACE
from latentfs.errors import InvalidArgumentError
from latentfs.fs.mountpoint import is_mounted_by_systemd_now
from latentfs.service.background import start_daemon
from latentfs.settings.sources import SettingSources, given_by_mount_options

__all__ = ["main", "main_for_mount_fuse"]

# Of mount(8), for wrong usage or permissions, for the system, and for the mount itself.
_USAGE_STATUS, _SYSTEM_STATUS, _FAILURE_STATUS = 1, 2, 32
_TYPES = ("latentfs", "fuse.latentfs")
# mount(8) says rw wherever nothing says ro: it leaves the choice to the settings file.
_SAID_ALWAYS = ("rw",)
# mount.fuse3 adds them, in this order, for all but who says nodev and nosuid, which it takes out.
_ADDED_BY_MOUNT_FUSE = ("suid", "dev")
_REFUSED = {
    "remount": "options of a mounted store can't be changed by mounting it again; unmount it "
    "first, or edit its settings file and send its daemon SIGHUP",
    **dict.fromkeys(
        ("bind", "rbind", "move"),
        "this is for folders that are mounted already; run mount without -t latentfs",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Options:
    """What stands after ``-o``, taken apart.

    Attributes:
        for_daemon: settings and options for the kernel, and those to be ignored.
        config_file: the settings file that ``config=`` names.
        user: whom ``setuid=`` names.
    """

    for_daemon: tuple[str, ...]
    config_file: str | None
    user: str | None


@click.command(
    "mount.latentfs", epilog="Example: mount -t latentfs ~/art.lfs /mnt/art -o ro,cache=2G"
)
@click.argument("store", type=click.Path(path_type=Path, resolve_path=True))
@click.argument("mountpoint", type=PLACE)
@click.option("-o", "options", multiple=True, metavar="OPT,...", help="Mount options.")
@click.option("-s", "sloppy", is_flag=True, help="Ignore options that are not known.")
@click.option("-f", "fake", is_flag=True, help="Check the options, and mount nothing.")
@click.option("-n", "no_mtab", is_flag=True, help="Nothing: no table of mounts is written.")
@click.option("-v", "verbose", is_flag=True, help="Say what is mounted.")
@click.option("-N", "namespace", metavar="NAMESPACE", help="Refused; use nsenter.")
@click.option("-t", "type_", metavar="TYPE", help="latentfs or fuse.latentfs.")
def _command(
    store: Path,
    mountpoint: Path,
    options: tuple[str, ...],
    sloppy: bool,
    fake: bool,
    no_mtab: bool,
    verbose: bool,
    namespace: str | None,
    type_: str | None,
) -> int:
    """Mount STORE on the folder MOUNTPOINT, as mount(8) asks for it; returns when it is usable."""
    if namespace is not None:
        raise InvalidArgumentError(
            "-N is not supported; run mount in the namespace: nsenter --mount=NAMESPACE mount ..."
        )
    if type_ not in (None, *_TYPES):
        raise InvalidArgumentError(f"type {type_!r} is not one of {', '.join(_TYPES)}")
    chosen = _taken_apart(",".join(options), sloppy=sloppy)
    _check_values(chosen.for_daemon)
    if fake:
        return 0
    arguments = ["-o", ",".join(chosen.for_daemon)]
    if chosen.config_file is not None:
        arguments += ["--config", chosen.config_file]
    with ended_as_by_ctrl_c():
        status = start_daemon(
            [*arguments, "--", str(store), str(mountpoint)],
            user=chosen.user,
            stays_in_group=is_mounted_by_systemd_now(mountpoint),
        )
    if status != 0:
        return _FAILURE_STATUS
    if verbose:
        click.echo(f"{store} is mounted on {mountpoint}")
    return 0


def _taken_apart(text: str, *, sloppy: bool) -> _Options:
    own: dict[str, str] = {}
    rest = []
    for option in filter(None, text.split(",")):
        name, equals, value = option.partition("=")
        if option in _REFUSED:
            raise InvalidArgumentError(f"mount option {option!r}: {_REFUSED[option]}")
        if equals and name in ("config", "setuid"):
            own[name] = value
        elif option not in _SAID_ALWAYS and not (sloppy and _is_unknown(option)):
            rest.append(option)
    config_file = own.get("config")
    if config_file is not None and not os.path.isabs(config_file):
        raise InvalidArgumentError(f"config={config_file} is relative; write the whole path")
    return _Options(for_daemon=tuple(rest), config_file=config_file, user=own.get("setuid"))


def _is_unknown(option: str) -> bool:
    try:
        given_by_mount_options(option)
    except InvalidArgumentError:
        return True
    return False


def _check_values(options: tuple[str, ...]) -> None:
    """Find what is wrong with the options themselves, whatever else is set.

    Raises:
        InvalidArgumentError: one is not known, or its value can't be used.
    """
    given = given_by_mount_options(",".join(options))
    SettingSources(
        file=Path(os.devnull), given=given, given_as=dict.fromkeys(given, "-o"), environment={}
    ).resolve()


def main() -> NoReturn:
    """Run the helper.

    Exit status: 0 the mount is usable, 1 used wrongly or not permitted, 2 an error of the system,
    32 it can't be mounted.
    """
    mend_streams()
    _run(sys.argv[1:])


def main_for_mount_fuse() -> NoReturn:
    """Run the helper for mount.fuse3, which runs ``latentfs`` where no helper is linked.

    Without the ``dev`` and ``suid`` at the end of the options, for which nobody has asked.
    """
    arguments = sys.argv[1:]
    if arguments[-2:-1] == ["-o"]:
        arguments[-1] = _without_added(arguments[-1])
    _run(arguments)


def _without_added(options: str) -> str:
    kept = options.split(",")
    for added in _ADDED_BY_MOUNT_FUSE:
        if kept[-1:] == [added]:
            kept.pop()
    return ",".join(kept)


def _run(arguments: list[str]) -> NoReturn:
    sys.exit(_status_of(lambda: _command.main(arguments, standalone_mode=False)))


def _status_of(run: Callable[[], object]) -> int:
    try:
        status = run()
    except click.ClickException as error:
        error.show()
        return _USAGE_STATUS
    except InvalidArgumentError as error:
        return _failed(str(error), _USAGE_STATUS)
    except (click.Abort, KeyboardInterrupt):
        return _failed("interrupted", _FAILURE_STATUS)
    except PermissionError as error:
        return _failed(str(error), _USAGE_STATUS)
    except OSError as error:
        return _failed(str(error), _SYSTEM_STATUS)
    return status if isinstance(status, int) else 0


def _failed(message: str, status: int) -> int:
    print(f"{os.path.basename(sys.argv[0])}: {one_line(message)}", file=sys.stderr)
    return status


if __name__ == "__main__":
    main()
