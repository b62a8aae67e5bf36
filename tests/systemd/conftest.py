"""A machine with a real systemd, and a mount that it runs."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from latent_files import latent_array
from mounts import latentfs, wait_until
from rendered_stores import rendered_store
from systemd_machine import Machine, systemd_machine, why_there_is_no_machine

PICTURES = 12
_LOG_LINES_SHOWN = 60


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what systemd and the services said to whoever asks why a test failed."""
    report = yield
    machine = getattr(item, "funcargs", {}).get("machine")
    if report.failed and isinstance(machine, Machine):
        lines = machine.log.splitlines()[-_LOG_LINES_SHOWN:]
        report.sections.append(("systemd and its services", "\n".join(lines)))
    return report


class Service:
    """An instance of the unit: its settings, its mount, and what systemd says of it."""

    def __init__(self, machine: Machine, name: str, store: Path, mountpoint: Path) -> None:
        self.machine = machine
        self.unit = f"latentfs@{name}.service"
        self.mountpoint = mountpoint
        self.store = store
        self._settings = machine.path(f"/etc/latentfs/{name}.toml")
        mountpoint.mkdir()
        self.set_up(cache="64M")

    def set_up(self, **settings: str) -> None:
        """Write the settings file."""
        given = {"store": self.store, "mountpoint": self.mountpoint, "device": "cpu", **settings}
        self._settings.write_text("".join(f'{name} = "{value}"\n' for name, value in given.items()))

    def drop_in(self, text: str) -> None:
        """Change the unit, as ``systemctl edit`` does."""
        folder = self.machine.path(f"/etc/systemd/system/{self.unit}.d")
        folder.mkdir()
        (folder / "override.conf").write_text(text)
        self.machine.systemctl("daemon-reload")

    def show(self, name: str) -> str:
        return self.machine.show(self.unit, name)

    def start(self) -> None:
        self.machine.systemctl("start", self.unit)

    def listed(self) -> list[str]:
        """What a program outside the unit sees in the folder of pictures."""
        done = self.machine.run("ls", self.mountpoint / "pictures", check=False)
        return done.stdout.split() if done.returncode == 0 else []

    def read(self, *names: str) -> bool:
        """Whether a program outside the unit can read these pictures, or all."""
        folder = self.mountpoint / "pictures"
        paths = [folder / name for name in names] or [folder]
        done = self.machine.run("tar", "-c", "-f", "/run/read.tar", *paths, check=False)
        return done.returncode == 0

    def restarts(self) -> int:
        return int(self.show("NRestarts"))

    def wait_until_mounted(self) -> None:
        wait_until(lambda: len(self.listed()) == PICTURES, "the mount is there")


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """One with latentfs installed as a user would."""
    if (reason := why_there_is_no_machine()) is not None:
        pytest.skip(reason)
    with systemd_machine(tmp_path_factory.getbasetemp()) as machine:
        machine.run(sys.executable, "-m", "latentfs", "systemd", "install")
        machine.systemctl("daemon-reload")
        yield machine


@pytest.fixture(scope="session")
def served_store(tmp_path_factory: pytest.TempPathFactory, tiny_vae_folder: Path) -> Path:
    latents = [latent_array(1, 4, 16, 16, seed=number) for number in range(PICTURES)]
    folder = tmp_path_factory.mktemp("served")
    return rendered_store(folder, tiny_vae_folder, latents, to="/pictures")


@pytest.fixture(scope="session")
def idle_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty store."""
    store = tmp_path_factory.mktemp("idle") / "idle.lfs"
    latentfs("init", store)
    return store


@pytest.fixture(scope="session")
def art(machine: Machine, served_store: Path) -> Service:
    return Service(machine, "art", served_store, served_store.with_name("art"))
