"""The unit under a real systemd.  The tests go on with the service as the one before left it."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from mounts import latentfs, wait_until
from systemd.conftest import PICTURES, Service
from systemd_machine import Machine

_NGINX_DROP_IN = Path(__file__).resolve().parents[2] / "examples/nginx/service-drop-in.conf"
_BACK_WITHIN_S = 5.0
_STOPPED_WITHIN_S = 5.0
_WEB_SERVER = """[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c 'ls {folder} > /run/web-server-sees'

[Install]
WantedBy=multi-user.target
"""


def _tell(what: str, since_s: float) -> float:
    """Print, and return, how long it took."""
    took_s = time.monotonic() - since_s
    print(f"{what} after {took_s:.2f} s")
    return took_s


def test_at_boot_a_web_server_starts_when_the_pictures_are_there(art: Service) -> None:
    machine = art.machine
    web_server = _WEB_SERVER.format(folder=art.mountpoint / "pictures")
    machine.path("/etc/systemd/system/nginx.service").write_text(web_server)
    machine.systemctl("enable", art.unit, "nginx.service")
    machine.systemctl("start", "multi-user.target")
    assert len(machine.path("/run/web-server-sees").read_text().split()) == PICTURES


def test_it_is_active_when_the_mount_answers_and_is_tuned(art: Service) -> None:
    art.machine.systemctl("stop", art.unit)
    assert art.listed() == []
    art.start()
    assert len(art.listed()) == PICTURES
    device = art.machine.run("mountpoint", "-d", art.mountpoint).stdout.strip()
    assert Path(f"/sys/class/bdi/{device}/read_ahead_kb").read_text().strip() == "1024"
    assert art.show("ActiveState") == "active"


def test_its_hardening_hides_neither_the_mount_nor_fuse(art: Service) -> None:
    assert art.read()
    pid = art.show("MainPID")
    namespaces = art.machine.run("readlink", "/proc/1/ns/mnt", f"/proc/{pid}/ns/mnt").stdout
    assert len(set(namespaces.split())) == 1
    status = art.machine.path(f"/proc/{pid}/status").read_text()
    assert "NoNewPrivs:\t1" in status
    assert "Seccomp:\t2" in status


def test_its_status_says_what_the_mount_does(art: Service) -> None:
    wait_until(lambda: "renderer ready" in art.show("StatusText"), "the status is up to date")
    assert str(art.mountpoint) in art.show("StatusText")


def test_a_renderer_knows_nothing_of_systemd(art: Service) -> None:
    (cgroup,) = art.machine.path("/sys/fs/cgroup").glob(f"*/*/{art.unit}/cgroup.procs")
    pids = art.machine.run("cat", f"/{cgroup.relative_to(art.machine.path('/'))}").stdout.split()
    renderers = [pid for pid in pids if pid != art.show("MainPID")]
    assert renderers
    for pid in renderers:
        environment = art.machine.path(f"/proc/{pid}/environ").read_bytes()
        assert b"NOTIFY_SOCKET" not in environment
        assert b"WATCHDOG" not in environment


def test_a_reload_takes_new_settings_without_unmounting(art: Service) -> None:
    pid = art.show("MainPID")
    art.set_up(cache="96M")
    art.machine.systemctl("reload", art.unit)

    def has_new_cache() -> bool:
        status = latentfs("status", art.store, "--json").stdout
        return '"budget_bytes": 100663296' in status

    wait_until(has_new_cache, "the cache has its new size")
    assert art.show("MainPID") == pid
    assert art.show("ActiveState") == "active"


def test_a_daemon_that_is_killed_is_back_with_its_pictures(art: Service) -> None:
    before = art.restarts()
    killed_s = time.monotonic()
    art.machine.systemctl("kill", "--signal=KILL", "--kill-who=main", art.unit)
    wait_until(lambda: art.restarts() == before + 1, "systemd has seen it")
    art.wait_until_mounted()
    assert _tell("mounted again", killed_s) < _BACK_WITHIN_S
    assert art.read()
    _tell("readable again", killed_s)


@pytest.mark.parametrize("has_renderer", [False, True])
def test_it_stops_under_load(art: Service, has_renderer: bool) -> None:
    """While readers wait for a renderer that is just starting, and for renders."""
    pictures = art.mountpoint / "pictures"
    art.set_up(cache="1M", prefetch="0")
    art.machine.systemctl("restart", art.unit)
    if has_renderer:
        wait_until(lambda: "renderer ready" in art.show("StatusText"), "a renderer is ready")
    loop = f"while :; do cat {pictures}/* > /dev/null 2>&1; done"
    readers = [f"--unit=reader-{number}.service" for number in range(4)]
    for reader in readers:
        art.machine.run("systemd-run", "--quiet", reader, "sh", "-c", loop)
    time.sleep(0.5)
    stopped_s = time.monotonic()
    art.machine.systemctl("stop", art.unit)
    assert _tell("stopped", stopped_s) < _STOPPED_WITHIN_S
    art.machine.systemctl("stop", "reader-*.service")
    assert art.show("Result") == "success"
    assert art.show("ActiveState") == "inactive"
    assert art.listed() == []
    assert str(art.mountpoint) not in art.machine.run("mount").stdout


def test_what_is_unmounted_by_others_stays_unmounted(art: Service) -> None:
    art.start()
    before = art.restarts()
    umount = ("umount", art.mountpoint)  # refused while the daemon looks at its own mount
    wait_until(lambda: art.machine.run(*umount, check=False).returncode == 0, "it is unmounted")
    wait_until(lambda: art.show("ActiveState") == "inactive", "the service has ended")
    assert art.show("Result") == "success"
    assert art.restarts() == before


def test_what_is_killed_leaves_errors_and_no_empty_folder(art: Service) -> None:
    """What copies the folder elsewhere must not take it for empty."""
    art.start()
    art.drop_in("[Service]\nRestart=no\n")
    art.machine.systemctl("kill", "--signal=KILL", "--kill-who=main", art.unit)
    wait_until(lambda: art.show("ActiveState") == "failed", "the service has failed")
    seen = art.machine.run("ls", art.mountpoint, check=False)
    assert seen.returncode != 0
    assert "Transport endpoint is not connected" in seen.stderr
    art.start()
    assert len(art.listed()) == PICTURES


def test_a_daemon_that_hangs_is_replaced(machine: Machine, idle_store: Path) -> None:
    idle = Service(machine, "idle", idle_store, idle_store.with_name("idle"))
    idle.drop_in("[Service]\nWatchdogSec=3\nTimeoutAbortSec=1\n")
    idle.start()
    pid = idle.show("MainPID")
    stopped_s = time.monotonic()
    machine.systemctl("kill", "--signal=STOP", "--kill-who=main", idle.unit)
    wait_until(lambda: idle.restarts() == 1, "systemd has replaced it")
    wait_until(lambda: idle.show("ActiveState") == "active", "the new one is ready")
    _tell("replaced", stopped_s)
    assert idle.show("MainPID") != pid
    assert machine.run("ls", idle.mountpoint).returncode == 0
    assert "Fatal Python error: Aborted" in machine.log  # and where it was
    machine.systemctl("stop", idle.unit)


def test_with_the_drop_in_for_nginx_links_are_not_followed(
    machine: Machine, idle_store: Path
) -> None:
    web = Service(machine, "web", idle_store, idle_store.with_name("web"))
    web.set_up(mount_options="noexec")
    web.drop_in(_NGINX_DROP_IN.read_text())
    web.start()
    options = machine.run("findmnt", "-n", "-o", "OPTIONS", web.mountpoint).stdout.strip()
    assert {"nosymfollow", "noexec", "nosuid", "nodev"} <= set(options.split(","))
    machine.systemctl("stop", web.unit)


def test_a_user_mounts_a_store_with_the_users_own_systemd(
    machine: Machine, idle_store: Path, tmp_path: Path
) -> None:
    home, runtime = tmp_path / "config", tmp_path / "runtime"
    runtime.mkdir(mode=0o700)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    installed = [sys.executable, "-m", "latentfs", "systemd", "install", "--user"]
    latentfs_env = [f"XDG_CONFIG_HOME={home}", f"XDG_RUNTIME_DIR={runtime}"]
    machine.run("env", *latentfs_env, *installed)
    settings = f'store = "{idle_store}"\nmountpoint = "{mountpoint}"\ndevice = "cpu"\n'
    (home / "latentfs/mine.toml").write_text(settings)
    # Nothing of what the users of a real machine have.
    for target in ("basic", "shutdown", "default"):
        (home / f"systemd/user/{target}.target").write_text("[Unit]\nDefaultDependencies=no\n")
    manager = [
        *("systemd-run", "--unit=users-own.service", "--property=Type=notify"),
        "--property=KillSignal=SIGKILL",  # it lacks the units by which it ends otherwise
        *("--property=Delegate=yes", f"--setenv=SYSTEMD_UNIT_PATH={home}/systemd/user"),
        *(f"--setenv={variable}" for variable in latentfs_env),
        *("/usr/lib/systemd/systemd", "--user"),
    ]
    machine.run(*manager)
    machine.run("env", *latentfs_env, "systemctl", "--user", "start", "latentfs@mine.service")
    assert "fuse.latentfs" in machine.run("findmnt", "-n", "-o", "FSTYPE", mountpoint).stdout
    machine.run("env", *latentfs_env, "systemctl", "--user", "stop", "latentfs@mine.service")
    assert str(mountpoint) not in machine.run("mount").stdout
    machine.systemctl("stop", "users-own.service")
