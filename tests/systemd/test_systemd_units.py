"""What systemd says of the units, as they are installed."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from latentfs.cli import umount_command
from latentfs.fs import mountpoint
from latentfs.service.installation import install, plan_for_the_machine, plan_for_user

pytestmark = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd is not installed"
)

# In tenths; what can't be better is in docs/systemd.md.
_EXPOSURE_MAX = 45


def _analyze(*arguments: object, runtime: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "--no-pager", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "XDG_RUNTIME_DIR": str(runtime)},
    )


@pytest.fixture
def executable(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "latentfs"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, executable: Path) -> None:
    unit = install(plan_for_the_machine(tmp_path, executable))[0].path
    done = _analyze("verify", unit, runtime=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_systemd_finds_nothing_wrong_with_the_unit_of_a_user(
    tmp_path: Path, executable: Path
) -> None:
    unit = install(plan_for_user(tmp_path, executable))[0].path
    done = _analyze("verify", "--user", unit, runtime=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_unit_is_exposed_no_more_than_a_mount_has_to_be(
    tmp_path: Path, executable: Path
) -> None:
    unit = install(plan_for_the_machine(tmp_path, executable))[0].path
    arguments = ["security", "--offline=true", f"--threshold={_EXPOSURE_MAX}", unit]
    done = _analyze(*arguments, runtime=tmp_path)
    assert done.returncode == 0, done.stdout


# As its generator orders an NFS server that has NFS mounts in fstab.
_NFS_UNITS = {
    "nfs-server.service": "[Unit]\nDefaultDependencies=no\nBefore=mnt-nfs.mount\n\n"
    "[Service]\nType=oneshot\nExecStart=/bin/true\n",
    "mnt-nfs.mount": "[Unit]\nBefore=remote-fs.target\n\n"
    "[Mount]\nWhat=host:/x\nWhere=/mnt/nfs\nType=nfs\n",
    "remote-fs.target": "[Unit]\nWants=mnt-nfs.mount\nAfter=remote-fs-pre.target\n",
    "multi-user.target": "[Unit]\nWants=latentfs@art.service nfs-server.service remote-fs.target\n",
}


def test_the_unit_goes_with_an_nfs_server_and_mounts_of_nfs(
    tmp_path: Path, executable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = install(plan_for_the_machine(tmp_path, executable))[0].path.parent
    for name, text in _NFS_UNITS.items():
        (units / name).write_text(text)
    monkeypatch.setenv("SYSTEMD_UNIT_PATH", f"{units}:")
    done = _analyze("verify", units / "multi-user.target", runtime=tmp_path)
    assert "ordering cycle" not in done.stderr


def test_umount_gives_up_before_systemd_does(tmp_path: Path, executable: Path) -> None:
    unit = install(plan_for_the_machine(tmp_path, executable))[0].path.read_text()
    found = re.search(r"^TimeoutStopSec=(\d+)$", unit, re.MULTILINE)
    assert found is not None
    waits_s = mountpoint._BUSY_WAIT_S + mountpoint._UNMOUNT_WAIT_S
    assert waits_s + umount_command._DAEMON_END_WAIT_S < int(found[1]) - 3


@pytest.mark.parametrize(
    ("result", "cleans_up"),
    [("success", True), ("timeout", True), ("signal", False), ("watchdog", False)],
)
def test_a_dead_mount_is_taken_away_only_where_it_was_to_end(
    tmp_path: Path, executable: Path, result: str, cleans_up: bool
) -> None:
    unit = install(plan_for_the_machine(tmp_path, executable))[0].path
    (line,) = (line for line in unit.read_text().splitlines() if line.startswith("ExecStopPost="))
    command = line.removeprefix("ExecStopPost=-").replace("$$", "$")
    executable.write_text('#!/bin/sh\necho "$@"\n')
    environment = {**os.environ, "SERVICE_RESULT": result}
    done = subprocess.run(
        shlex.split(command), capture_output=True, text=True, check=True, env=environment
    )
    expected = "umount --stale --config /etc/latentfs/%i.toml\n"
    assert done.stdout == (expected if cleans_up else "")
