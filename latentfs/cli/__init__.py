"""The command line: one module a command, loaded only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from typing import NoReturn

import click

from latentfs import __version__
from latentfs.cli.output import mend_streams, one_line
from latentfs.errors import LatentfsError

__all__ = ["main"]

# Name, what it does.  The module is loaded only to run the command or show its own help, so that
# `latentfs --help` imports next to nothing.
_COMMANDS = {
    "init": "Make a new, empty store.",
    "vae": "Add VAEs to a store, and list them.",
    "import": "Import latent files into a store.",
    "mount": "Mount a store as a folder of pictures.",
    "umount": "Unmount a store.",
    "config": "Show the settings of a mount and where each comes from.",
    "export": "Copy files out of a store without mounting it.",
    "status": "Show what a store or a mount holds and does.",
    "top": "Watch what a mount does.",
    "explain": "Show what a file is made of and how it would be read.",
    "systemd": "Install the units that mount stores at boot.",
    "fsck": "Check a store for damage, and repair it.",
    "scrub": "Render what a store holds and see whether it is what it was.",
    "backup": "Copy a store, even while it is mounted.",
    "gc": "Return space that a store no longer needs to the disk.",
    "bench": "Measure what reading through a mount costs.",
}
_INTERRUPTED_EXIT_STATUS = 130


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"latentfs.cli.{cmd_name}_command")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.NoSuchCommand as error:  # which knows only of commands that are loaded
            name = error.command_name
            raise click.NoSuchCommand(name, possibilities=_COMMANDS, ctx=ctx) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_COMMANDS.items()))


@click.group(
    cls=_LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: latentfs init ~/art.lfs && latentfs vae add ~/art.lfs sdxl /models/sdxl/vae",
)
@click.version_option(__version__, prog_name="latentfs")
def _latentfs() -> None:
    """Store generated pictures as latents and use them as ordinary PNG and JPEG files."""


def main() -> NoReturn:
    """Run the command line.

    Exit status: 0 all done, 1 failed or something was refused, 2 used wrongly, 130 interrupted.
    """
    mend_streams()
    if sys.argv[1:2] and sys.argv[1].startswith("/"):
        # mount.fuse3 runs "latentfs STORE MOUNTPOINT -o ..." where mount.latentfs is not linked.
        importlib.import_module("latentfs.cli.mount_helper").main_for_mount_fuse()
    try:
        status = _latentfs.main(prog_name="latentfs", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        _fail("interrupted", _INTERRUPTED_EXIT_STATUS)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (LatentfsError, OSError) as error:
        _fail(str(error), 1)
    except BaseExceptionGroup as group:
        _fail_with_group(group)
    sys.exit(status if isinstance(status, int) else 0)


def _fail_with_group(group: BaseExceptionGroup[BaseException]) -> NoReturn:
    """Nurseries wrap what is raised in them; what is said to the user stays one line."""
    if group.subgroup(KeyboardInterrupt) is not None:
        _fail("interrupted", _INTERRUPTED_EXIT_STATUS)
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    if isinstance(first, (LatentfsError, OSError)):
        _fail(str(first), 1)
    raise group


def _fail(message: str, status: int) -> NoReturn:
    print(f"latentfs: {one_line(message)}", file=sys.stderr)
    sys.exit(status)
