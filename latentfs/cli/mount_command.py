"""latentfs mount"""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

import click

from latentfs.cli.arguments import BYTES, device_option, store_argument
from latentfs.errors import MountError
from latentfs.fs.daemon import MountOptions, mount_and_serve
from latentfs.fs.mountpoint import resolve_mountpoint

__all__ = ["command"]

log = logging.getLogger(__name__)

# Handed to the kernel as they are.
_FUSE_FLAGS = {"allow_other", "default_permissions", "nodev", "nosuid", "noexec", "noatime"}
# What takes one of those that are chosen by default away.
_UNSET_FLAGS = {"noallow_other": "allow_other", "dev": "nodev", "suid": "nosuid"}
# Defaults of mount(8) that change nothing here.
_IGNORED_FLAGS = {"rw", "ro", "exec", "defaults", "relatime", "async"}
_OWN_OPTIONS = {"develop=yes", "develop=no"}
_FUSE_CONFIGURATION = Path("/etc/fuse.conf")


class PixelShare(click.ParamType[float | None]):
    """``auto``, which is None, or a number from 0 to 1."""

    name = "share"

    def convert(
        self, value: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | None:
        try:
            share = None if value == "auto" else float(value)
        except ValueError:
            share = -1.0
        if share is None or 0 <= share <= 1:
            return share
        return self.fail(f"{value!r} is neither auto nor a number from 0 to 1", param, ctx)


@click.command("mount", epilog="Example: latentfs mount ~/art.lfs /mnt/art --cache 2G")
@store_argument
@click.argument(
    "mountpoint", type=click.Path(path_type=Path, resolve_path=False), metavar="MOUNTPOINT"
)
@click.option(
    "-o",
    "mount_options",
    multiple=True,
    metavar="OPT,...",
    help="Mount options: ro, develop=no, allow_other, noallow_other, dev, suid, noexec, noatime.",
)
@click.option(
    "--cache",
    "cache_bytes",
    type=BYTES,
    default="512M",
    show_default=True,
    help="Memory for finished files and latents.",
)
@click.option(
    "--pixel-share",
    "pixel_share",
    type=PixelShare(),
    default="auto",
    show_default=True,
    metavar="auto|0..1",
    help="Part of that memory for finished files; auto for wherever it saves readers most.",
)
@click.option(
    "--render-timeout",
    "render_timeout_s",
    type=click.FloatRange(min=0.1),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="After which a read ends with an input/output error.",
)
@device_option
@click.option(
    "--prefetch",
    "prefetch_files",
    type=click.IntRange(0, 64),
    default=8,
    show_default=True,
    metavar="FILES",
    help="Rendered ahead, when nothing else is, for readers that go through a folder in order; "
    "0 for none.",
)
@click.option(
    "--size-limit",
    "size_limit_bytes",
    type=BYTES,
    help="That the store's database may take; all the space there is unless given.",
)
@click.option("--verbose", "-v", is_flag=True, help="Log what happens, not only what goes wrong.")
def command(
    store: Path,
    mountpoint: Path,
    mount_options: tuple[str, ...],
    cache_bytes: int,
    pixel_share: float | None,
    render_timeout_s: float,
    device: str,
    prefetch_files: int,
    size_limit_bytes: int | None,
    verbose: bool,
) -> None:
    """Mount STORE on the folder MOUNTPOINT, and stay in the foreground.

    Ctrl-C or "latentfs umount MOUNTPOINT" ends it.  Other users may use the files, as far as their
    modes permit, where that is possible: when run by root, or with user_allow_other in
    /etc/fuse.conf.  With -o ro nothing can be changed.

    Latent files that are written into the mount get their pictures beside them, made with the VAE
    that the attribute user.latentfs.vae of the nearest folder names, or with the only one that
    fits; not with -o develop=no.
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="latentfs: %(levelname)s: %(message)s",
    )
    options = MountOptions(
        cache_bytes=cache_bytes,
        pixel_share=pixel_share,
        render_timeout_s=render_timeout_s,
        device=device,
        prefetch_files=prefetch_files,
        read_only="ro" in _chosen(mount_options),
        develop="develop=no" not in _chosen(mount_options),
        size_limit_bytes=size_limit_bytes,
        fuse_options=_fuse_options(mount_options),
    )
    where = resolve_mountpoint(mountpoint)

    def ready() -> None:
        click.echo(f"{store} is mounted on {where}", err=True)

    mount_and_serve(store, where, options, on_ready=ready)


def _chosen(mount_options: tuple[str, ...]) -> list[str]:
    """The options in order; of ro and rw only the last counts."""
    options = [option for option in ",".join(mount_options).split(",") if option]
    last = next((option for option in reversed(options) if option in ("ro", "rw")), "rw")
    return [option for option in options if option not in ("ro", "rw")] + [last]


def _fuse_options(mount_options: tuple[str, ...]) -> frozenset[str]:
    chosen = {"default_permissions", "nodev", "nosuid"}
    if _may_allow_other():
        chosen.add("allow_other")
    for option in _chosen(mount_options):
        if option in _UNSET_FLAGS:
            chosen.discard(_UNSET_FLAGS[option])
        elif option in _FUSE_FLAGS:
            chosen.add(option)
        elif option not in _IGNORED_FLAGS | _OWN_OPTIONS:
            raise MountError(f"mount option {option!r} is not known; see latentfs mount --help")
    return frozenset(chosen)


def _may_allow_other() -> bool:
    if os.geteuid() == 0:
        return True
    try:
        configuration = _FUSE_CONFIGURATION.read_text("utf-8", "replace")
    except OSError:
        return False
    return re.search(r"^\s*user_allow_other\b", configuration, re.MULTILINE) is not None
