"""Units as systemd makes them of a line in fstab: mounted when somebody looks into the folder."""

from __future__ import annotations

from pathlib import Path

import pytest
from mounts import latentfs, wait_until
from systemd_machine import Machine

pytestmark = pytest.mark.skipif(not Path("/dev/autofs").exists(), reason="the kernel has no autofs")

_AUTOMOUNT = "[Unit]\nDefaultDependencies=no\n\n[Automount]\nWhere={where}\n"
_MOUNT = """[Unit]
DefaultDependencies=no

[Mount]
What={what}
Where={where}
Type=fuse.latentfs
Options=ro,nosymfollow,device=cpu,cache=64M
TimeoutSec=30
"""


def test_a_folder_is_mounted_by_who_looks_into_it_first_and_again_after_umount(
    machine: Machine, tmp_path: Path
) -> None:
    store, where = tmp_path / "art.lfs", tmp_path / "art"
    latentfs("init", store)
    where.mkdir()
    name = machine.run("systemd-escape", "--path", where).stdout.strip()
    for kind, text in (("automount", _AUTOMOUNT), ("mount", _MOUNT)):
        unit = machine.path(f"/etc/systemd/system/{name}.{kind}")
        unit.write_text(text.format(what=store, where=where))
    machine.systemctl("daemon-reload")
    machine.systemctl("start", f"{name}.automount")
    assert machine.show(f"{name}.mount", "ActiveState") == "inactive"
    for _ in range(2):
        machine.run("ls", where)
        assert machine.show(f"{name}.mount", "ActiveState") == "active"
        types = machine.run("findmnt", "-n", "-o", "FSTYPE", "--mountpoint", where).stdout.split()
        assert types == ["autofs", "fuse.latentfs"]
        options = machine.run("findmnt", "-n", "-o", "OPTIONS", "-t", "fuse.latentfs", where).stdout
        assert {"ro", "nosymfollow"} <= set(options.strip().split(","))
        machine.run("umount", where)
        wait_until(
            lambda: machine.show(f"{name}.mount", "ActiveState") == "inactive", "it is unmounted"
        )
    machine.systemctl("stop", f"{name}.automount")
    assert machine.run("ls", where).stdout == ""
