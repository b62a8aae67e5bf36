"""latentfs systemd install: what is written where."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from latentfs.cli.systemd_command import command
from latentfs.errors import InvalidArgumentError
from latentfs.service.installation import (
    Step,
    install,
    own_executable,
    plan_for_the_machine,
    plan_for_user,
)
from latentfs.settings.mount_settings import MountSettings
from latentfs.settings.sources import SettingSources

UNIT = Path("etc/systemd/system/latentfs@.service")
EXAMPLE = Path("etc/latentfs/example.toml")


def _install(*arguments: object) -> None:
    command.main(["install", *map(str, arguments)], standalone_mode=False)


def _settings(file: Path) -> MountSettings:
    sources = SettingSources(given={}, given_as={}, environment={}, file=file)
    return sources.resolve().settings


@pytest.fixture
def executable(tmp_path: Path) -> Path:
    """A latentfs with the helpers of mount(8) beside it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("latentfs", "mount.latentfs", "mount.fuse.latentfs"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder / "latentfs"


def test_a_machine_gets_the_unit_an_example_and_the_helpers_of_mount(
    tmp_path: Path, executable: Path
) -> None:
    install(plan_for_the_machine(tmp_path, executable))
    unit = (tmp_path / UNIT).read_text()
    assert f"ExecStart={executable} mount --config /etc/latentfs/%i.toml\n" in unit
    assert "/usr/bin/env" not in unit
    for helper in ("mount.latentfs", "mount.fuse.latentfs"):
        assert os.readlink(tmp_path / "sbin" / helper) == str(executable.with_name(helper))


def test_helpers_that_are_not_there_are_not_linked(tmp_path: Path, executable: Path) -> None:
    executable.with_name("mount.latentfs").unlink()
    install(plan_for_the_machine(tmp_path, executable))
    assert os.listdir(tmp_path / "sbin") == ["mount.fuse.latentfs"]


def test_the_helpers_are_found_where_a_link_to_latentfs_leads(
    tmp_path: Path, executable: Path
) -> None:
    link = tmp_path / "local/latentfs"
    link.parent.mkdir()
    link.symlink_to(executable)
    install(plan_for_the_machine(tmp_path, link))
    for helper in ("mount.latentfs", "mount.fuse.latentfs"):
        assert os.readlink(tmp_path / "sbin" / helper) == str(executable.with_name(helper))
    assert f"ExecStart={link} mount" in (tmp_path / UNIT).read_text()


def test_a_user_gets_the_unit_and_an_example_in_the_settings_folder(
    tmp_path: Path, executable: Path
) -> None:
    install(plan_for_user(tmp_path, executable))
    unit = (tmp_path / "systemd/user/latentfs@.service").read_text()
    assert f"ExecStart={executable} mount --config %E/latentfs/%i.toml\n" in unit
    assert (tmp_path / "latentfs/example.toml").is_file()


def test_the_example_is_valid_and_says_what_holds_without_it(tmp_path: Path) -> None:
    install(plan_for_the_machine(tmp_path, None))
    text = (tmp_path / EXAMPLE).read_text()
    everything = tmp_path / "everything.toml"
    everything.write_text(
        "\n".join(line.removeprefix("#") for line in text.split("\n") if line[:2] != "# ")
    )
    assert _settings(tmp_path / EXAMPLE) == _settings(everything)
    assert str(_settings(everything).mountpoint) == "/srv/art"


def test_a_second_installation_changes_nothing(tmp_path: Path, executable: Path) -> None:
    assert len(install(plan_for_the_machine(tmp_path, executable))) == 4
    assert install(plan_for_the_machine(tmp_path, executable)) == []


def test_a_new_latentfs_replaces_the_unit_but_no_settings(tmp_path: Path) -> None:
    install(plan_for_the_machine(tmp_path, Path("/old/latentfs")))
    (tmp_path / EXAMPLE).write_text("mine")
    install(plan_for_the_machine(tmp_path, Path("/new/latentfs")))
    assert "ExecStart=/new/latentfs mount" in (tmp_path / UNIT).read_text()
    assert (tmp_path / EXAMPLE).read_text() == "mine"


def test_a_path_is_quoted_as_systemd_reads_it(tmp_path: Path) -> None:
    install(plan_for_the_machine(tmp_path, Path("/opt/100% mine/latentfs")))
    unit = (tmp_path / UNIT).read_text()
    assert 'ExecStart="/opt/100%% mine/latentfs" mount' in unit
    assert 'ExecStop=-"/opt/100%% mine/latentfs" umount' in unit
    install(plan_for_the_machine(tmp_path, Path("/home/o'brien/latentfs")))
    assert 'ExecStart="/home/o\'brien/latentfs" mount' in (tmp_path / UNIT).read_text()


def test_without_an_executable_the_module_is_run(tmp_path: Path) -> None:
    install(plan_for_the_machine(tmp_path, None))
    assert f"ExecStart={sys.executable} -m latentfs mount" in (tmp_path / UNIT).read_text()


def test_a_program_where_a_link_is_to_be_is_left_alone(tmp_path: Path, executable: Path) -> None:
    (tmp_path / "sbin").mkdir()
    other = tmp_path / "sbin/mount.latentfs"
    other.write_text("another program")
    with pytest.raises(InvalidArgumentError, match="another program has put it there"):
        install(plan_for_the_machine(tmp_path, executable))
    assert other.read_text() == "another program"


def test_where_it_is_not_permitted_it_says_what_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(step: Step) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Step, "do", refuse)
    with pytest.raises(InvalidArgumentError, match=r"latentfs@\.service.*--user installs for you"):
        install(plan_for_the_machine(tmp_path, None))


def test_the_command_names_each_file_and_what_to_do_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _install("--destination", tmp_path)
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / UNIT}\n" in said
    assert "systemctl enable --now latentfs@art.service" in said
    _install("--destination", tmp_path)
    assert f"kept {tmp_path / UNIT}\n" in capsys.readouterr().out


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _install("--dry-run", "--user", "--destination", tmp_path)
    said = capsys.readouterr().out
    assert f"would write {tmp_path}/systemd/user/latentfs@.service\n" in said
    assert "systemctl --user daemon-reload" in said
    assert os.listdir(tmp_path) == []


def test_a_user_without_a_destination_gets_it_in_the_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    _install("--user")
    assert (tmp_path / "systemd/user/latentfs@.service").is_file()


def test_the_own_executable_is_the_one_that_was_called(
    executable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(executable), "systemd"])
    assert own_executable() == executable
