"""Kernel settings of a live FUSE mount that pyfuse3 can't set when mounting.

By default the kernel lets 12 reads reach the daemon at a time and reads ahead 128 KiB: far too few
for a renderer that is to be kept busy, and 12 requests where one would do.
"""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
from pathlib import Path

from latentfs.fs.mountpoint import find_mount

__all__ = ["tune"]

log = logging.getLogger(__name__)

MAX_BACKGROUND = 512
CONGESTION_THRESHOLD = 384
READ_AHEAD_KIB = 1024
_CONNECTIONS = Path("/sys/fs/fuse/connections")
_BDI = Path("/sys/class/bdi")


def tune(mountpoint: Path) -> list[str]:
    """Raise the limits of the mount on *mountpoint*; return what was not permitted, if anything.

    Reads sysfs and may run mount(8), but never touches the mounted file system itself.
    """
    mount = find_mount(mountpoint)
    if mount is None:
        return [f"nothing is mounted on {mountpoint}"]
    minor = mount.device.partition(":")[2]
    _mount_fusectl()
    connection = _CONNECTIONS / minor
    settings = (
        (connection / "max_background", MAX_BACKGROUND),
        (connection / "congestion_threshold", CONGESTION_THRESHOLD),
        (_BDI / mount.device / "read_ahead_kb", READ_AHEAD_KIB),
    )
    problems = [problem for path, value in settings if (problem := _write(path, value))]
    for problem in problems:
        log.warning("%s; the mount works, but fewer reads run at once or each is smaller", problem)
    return problems


def _mount_fusectl() -> None:
    if os.geteuid() != 0 or not _CONNECTIONS.is_dir() or os.path.ismount(_CONNECTIONS):
        return
    with contextlib.suppress(OSError):  # what can't be set then is reported anyway
        subprocess.run(
            ["mount", "-t", "fusectl", "none", str(_CONNECTIONS)], capture_output=True, check=False
        )


def _write(path: Path, value: int) -> str | None:
    try:
        path.write_text(f"{value}\n")
    except OSError as error:
        return f"can't set {path} to {value}: {error.strerror}"
    return None
