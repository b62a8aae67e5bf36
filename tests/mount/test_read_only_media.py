"""A store on a medium that can't be written, such as a snapshot or an image, can be mounted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# In a mount namespace of its own, in which what cleans up is its end.
MOUNT = """
set -e
store=$1 mountpoint=$2 python=$3
mount --bind "$store" "$store"
mount -o remount,bind,ro "$store"
! touch "$store/made" 2>/dev/null
latentfs() { "$python" -m latentfs "$@"; }
latentfs mount "$store" "$mountpoint" -o ro --background --device cpu
cat "$mountpoint/pictures/000.png" | wc -c
latentfs status "$mountpoint" --json | grep daemon_problem
latentfs umount "$mountpoint"
! mountpoint -q "$mountpoint"
! latentfs gc "$store"
"""


@pytest.mark.parametrize("was_mounted", [False, True])
def test_reading_needs_nothing_to_be_written(
    store: Path, tmp_path: Path, was_mounted: bool
) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may make a mount namespace")
    (store / "daemon.lock").unlink(missing_ok=True)
    if was_mounted:
        (store / "daemon.lock").touch()
    (tmp_path / "mnt").mkdir()
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", MOUNT, "sh", store, tmp_path / "mnt", sys.executable),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    picture_bytes, problem = done.stdout.splitlines()
    assert int(picture_bytes) > 500
    assert f"it is mounted on {tmp_path / 'mnt'} from a read-only file system" in problem
    assert "is on a read-only file system" in done.stderr  # of gc
    assert {path: path.stat().st_mtime_ns for path in store.rglob("*")} == before
