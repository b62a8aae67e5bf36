"""mount(8), umount(8), fstab and --background, in a mount namespace of their own.

There /sbin holds nothing but the helpers, so that nothing of the machine is touched; what runs in
it is killed at the end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from mounts import wait_until

from latentfs.cli import main, mount_helper
from latentfs.errors import InvalidArgumentError
from latentfs.fs.control import ask_daemon
from latentfs.service.background import log_destination, start_daemon, waited_for
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.store import Store

PAGE = Path(__file__).parents[2] / "docs" / "fstab.md"
GENERATOR = Path("/usr/lib/systemd/system-generators/systemd-fstab-generator")
HELPERS = ("mount.latentfs", "mount.fuse.latentfs")
WAIT_S = 60.0
# Its arguments: the folder with helpers, what is at /etc/fstab, Python's home, what hides that.
SET_UP = """
set -e
mkdir -p /run/mount
mount -t tmpfs -o mode=755 tmpfs /run/mount
mount -t tmpfs -o mode=755 tmpfs /mnt
mknod -m 666 /mnt/fuse c 10 229
mount --bind /mnt/fuse /dev/fuse
if [ "$4" ]; then
    mkdir /mnt/python
    mount --bind "$3" /mnt/python
    mount -t tmpfs -o mode=755 tmpfs "$4"
    mkdir -p "$3"
    mount --bind /mnt/python "$3"
fi
mount --bind "$2" /etc/fstab
mount --bind "$1" /usr/sbin
echo set up
exec sleep infinity
"""


class Namespace:
    """Where mount(8) knows the helpers."""

    def __init__(self, pid: int, fstab: Path) -> None:
        self._enter = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "--wdns=/"]
        self._identity = os.readlink(f"/proc/{pid}/ns/mnt")
        self._mounts = Path(f"/proc/{pid}/mounts")
        self.fstab = fstab
        self.root = Path(f"/proc/{pid}/root")

    def run(
        self, *command: object, user: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, its output included: nothing may be left that holds it."""
        drop = ["setpriv", f"--reuid={user}", "--regid=nogroup", "--clear-groups"] if user else []
        done = subprocess.run(
            [*self._enter, *drop, *map(str, command)],
            capture_output=True,
            text=True,
            check=False,
            timeout=WAIT_S,
        )
        assert not check or done.returncode == 0, done.stderr
        return done

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen([*self._enter, *command], stdout=subprocess.PIPE, text=True)

    def unmount(self, mountpoint: Path, user: str | None = None) -> None:
        """By umount(8), again while the daemon's look at its own mount keeps that in use."""

        def is_done() -> bool:
            done = self.run("umount", mountpoint, user=user, check=False)
            assert done.returncode == 0 or "target is busy" in done.stderr, done.stderr
            return done.returncode == 0

        wait_until(is_done, "it is unmounted")

    def options_of(self, mountpoint: Path) -> set[str]:
        lines = [line.split() for line in self._mounts.read_text().splitlines()]
        found = [line[3] for line in lines if line[1] == str(mountpoint)]
        return set(found[-1].split(",")) if found else set()

    def processes(self, *, but: int = 0) -> list[int]:
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(folder / "ns/mnt") == self._identity and int(folder.name) != but:
                    found.append(int(folder.name))
        return found


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    if os.geteuid() != 0:
        pytest.skip("only root may make a mount namespace")
    folder = tmp_path_factory.mktemp("namespace")
    helpers, fstab = folder / "sbin", folder / "fstab"
    helpers.mkdir(mode=0o755)
    fstab.touch(mode=0o644)
    for name in HELPERS:
        code = "from latentfs.cli.mount_helper import main; main()"
        (helpers / name).write_text(f"#!{sys.executable}\n{code}\n")
        (helpers / name).chmod(0o755)
    home = os.path.realpath(sys.base_prefix)
    holder = subprocess.Popen(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", SET_UP, "sh", str(helpers), str(fstab), home, _hidden_by(home)),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    with holder, holder.stdout:
        try:
            assert holder.stdout.readline() == "set up\n"
            made = Namespace(holder.pid, fstab)
            yield made
            for pid in made.processes(but=holder.pid):
                os.kill(pid, signal.SIGKILL)
        finally:
            holder.kill()


def _hidden_by(home: str) -> str:
    """The outermost folder that keeps other users from Python's *home*; empty for none."""
    outermost_first = [*reversed(Path(home).parents)][1:]
    return next((str(path) for path in outermost_first if not path.stat().st_mode & 0o001), "")


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one empty folder."""
    path = tmp_path_factory.mktemp("store") / "art.lfs"
    with Store.create(path) as store, store.write() as transaction:
        transaction.make_directories("/pictures", uid=0, gid=0)
    return path


@pytest.fixture
def mountpoint(tmp_path: Path) -> Path:
    path = tmp_path / "mnt"
    path.mkdir()
    return path


def daemon_pid(store: Path) -> int:
    answer = ask_daemon(store, "status")
    assert answer is not None
    pid = answer["pid"]
    assert isinstance(pid, int)
    return pid


def wait_for_end(store: Path) -> None:
    lock = DaemonLock(store)
    wait_until(lambda: not lock.held_elsewhere(), "the daemon has ended")


def fstab_lines() -> list[str]:
    blocks = re.findall(r"^```fstab\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [block.strip() for block in blocks]


def test_mount_returns_when_usable_with_its_options_and_umount_ends_the_daemon(
    namespace: Namespace, empty_store: Path, mountpoint: Path
) -> None:
    options = "allow_other,ro,cache=2G,nofail,_netdev,x-systemd.automount,comment=pictures,noatime"
    mount = ("mount", "-t", "fuse.latentfs", empty_store, mountpoint, "-o", options)
    namespace.run(*mount)
    assert namespace.run("ls", mountpoint).stdout.split() == ["pictures"]
    assert {"ro", "allow_other", "noatime", "nosuid", "nodev"} <= namespace.options_of(mountpoint)
    status = ask_daemon(empty_store, "status")
    assert status is not None
    assert status["cache"]["budget_bytes"] == 2 << 30
    assert namespace.run("mount", "-o", "remount,rw", mountpoint, check=False).returncode == 1
    namespace.unmount(mountpoint)
    wait_for_end(empty_store)
    assert namespace.options_of(mountpoint) == set()
    utab = namespace.root / "run/mount/utab"
    assert not utab.exists() or utab.read_text() == ""


def test_the_fstab_line_of_the_page_mounts(
    namespace: Namespace, empty_store: Path, mountpoint: Path
) -> None:
    line = fstab_lines()[0]
    store, where = line.split()[:2]
    own = line.replace(store, str(empty_store), 1).replace(where, str(mountpoint), 1)
    namespace.fstab.write_text(own + "\n")
    namespace.run("mount", "--fstab", namespace.fstab, mountpoint)
    assert "ro" in namespace.options_of(mountpoint)
    # As after kill -9 of the daemon: what is left is unmounted and mounted again.
    os.kill(daemon_pid(empty_store), signal.SIGKILL)
    wait_for_end(empty_store)
    assert "not connected" in namespace.run("ls", mountpoint, check=False).stderr
    namespace.unmount(mountpoint)
    namespace.run("mount", mountpoint)
    assert namespace.run("ls", mountpoint).stdout.split() == ["pictures"]
    namespace.unmount(mountpoint)
    wait_for_end(empty_store)


def test_a_user_mounts_and_unmounts_by_fstab_and_root_mounts_for_a_user(
    namespace: Namespace, empty_store: Path
) -> None:
    if namespace.run(sys.executable, "-c", "import latentfs", user="nobody", check=False).stderr:
        pytest.skip("other users can't run this Python")
    place = namespace.root / "mnt"
    ignored = shutil.ignore_patterns("*.sock", "lock.mdb")
    shutil.copytree(empty_store, place / "art.lfs", ignore=ignored)
    (place / "art").mkdir()
    namespace.run("chown", "-R", "nobody", "/mnt/art.lfs", "/mnt/art")
    mountpoint = Path("/mnt/art")
    namespace.fstab.write_text("/mnt/art.lfs /mnt/art latentfs ro,user,noauto,noallow_other 0 0\n")

    namespace.run("mount", mountpoint, user="nobody")
    assert namespace.run("ls", mountpoint, user="nobody").stdout.split() == ["pictures"]
    assert {"ro", "noexec"} <= namespace.options_of(mountpoint)
    namespace.unmount(mountpoint, user="nobody")
    wait_for_end(place / "art.lfs")

    options = "setuid=nobody,noallow_other"
    mount = ("mount", "-t", "latentfs", "/mnt/art.lfs", mountpoint, "-o")
    refused = namespace.run(*mount, f"{options},nosymfollow", check=False)
    assert (refused.returncode, "a daemon that runs as root" in refused.stderr) == (32, True)
    assert namespace.options_of(mountpoint) == set()
    namespace.run(*mount, options)
    uid = (Path("/proc") / str(daemon_pid(place / "art.lfs")) / "status").stat().st_uid
    assert f"user_id={uid}" in namespace.options_of(mountpoint)
    assert uid != 0
    namespace.unmount(mountpoint)
    wait_for_end(place / "art.lfs")


def test_nosymfollow_holds_where_the_mount_is_copied_to(
    namespace: Namespace, empty_store: Path
) -> None:
    """As for a web server with PrivateTmp=, which runs on while the daemon is started anew."""
    shared = Path("/mnt/shared")
    mountpoint = shared / "art"
    namespace.run("mkdir", shared)
    namespace.run("mount", "-t", "tmpfs", "tmpfs", shared)
    namespace.run("mount", "--make-shared", shared)
    namespace.run("mkdir", mountpoint)
    own = ("unshare", "--mount", "--propagation", "slave")
    server = namespace.start(*own, "sh", "-c", "echo started; exec sleep infinity")
    with server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == "started\n"
            namespace.run("mount", "-t", "latentfs", empty_store, mountpoint, "-o", "nosymfollow")
            for place in (namespace, Namespace(server.pid, namespace.fstab)):
                assert {"nosymfollow", "nosuid", "nodev"} <= place.options_of(mountpoint)
                assert place.run("ls", mountpoint).stdout.split() == ["pictures"]
            namespace.unmount(mountpoint)
            wait_for_end(empty_store)
        finally:
            server.kill()


def test_what_mount_is_told_when_it_fails(
    namespace: Namespace, empty_store: Path, mountpoint: Path
) -> None:
    mount = ("mount", "-t", "latentfs", empty_store, mountpoint, "-o")
    wrong = namespace.run(*mount, "cahce=2G", check=False)
    assert (wrong.returncode, "did you mean 'cache'?" in wrong.stderr) == (1, True)
    missing = namespace.run("mount", "-t", "fuse.latentfs", "/nothing.lfs", mountpoint, check=False)
    assert (missing.returncode, "/nothing.lfs" in missing.stderr) == (32, True)
    assert namespace.options_of(mountpoint) == set()


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["-o", "remount,rw"], 1, "SIGHUP"),
        (["-o", "bind"], 1, "without -t latentfs"),
        (["-o", "cache=much"], 1, "'much' is not a size"),
        (["-o", "config=art.toml"], 1, "the whole path"),
        (["-o", "setuid=nobody-of-this-name"], 1, "there is no user"),
        (["-o", "uid=3"], 1, "'uid=3' is not known"),
        (["-N", "/proc/self/ns/mnt"], 1, "nsenter"),
        (["-t", "ext4"], 1, "'ext4'"),
        (["--what"], 1, "--what"),
        (["-f", "-s", "-n", "-v", "-t", "fuse.latentfs", "-o", "rw,user=a,uid=3"], 0, ""),
        (["-f", "-o", "rw,exec,user,lazytime,X-mount.mkdir,_netdev,cache=1G"], 0, ""),
    ],
)
def test_the_helper_checks_its_arguments_first(
    arguments: list[str],
    status: int,
    text: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["mount.latentfs", str(tmp_path / "nothing.lfs"), str(tmp_path), *arguments]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        mount_helper.main()
    said = capsys.readouterr().err
    assert (ended.value.code, text in said) == (status, True), said


def test_a_settings_file_can_be_named_and_rw_does_not_override_it(
    namespace: Namespace, empty_store: Path, mountpoint: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "art.toml"
    log = tmp_path / "art.log"
    settings.write_text(
        f"read_only = true\ncache = '1G'\nlog = '{log}'\nlog_level = 'info'\nprefetch = 0\n"
    )
    options = f"config={settings},cache=3G"
    namespace.run("mount", "-t", "latentfs", empty_store, mountpoint, "-o", options)
    assert "ro" in namespace.options_of(mountpoint)
    status = ask_daemon(empty_store, "status")
    assert status is not None
    assert status["cache"]["budget_bytes"] == 3 << 30
    assert f"is mounted on {mountpoint}" in log.read_text()
    namespace.unmount(mountpoint)
    wait_for_end(empty_store)


def test_a_daemon_in_the_background_outlives_its_terminal_and_holds_nothing_of_it(
    namespace: Namespace, empty_store: Path, mountpoint: Path
) -> None:
    name = os.path.relpath(empty_store, mountpoint.parent)
    python = f"{sys.executable} -m latentfs"
    command = f"cd {mountpoint.parent} && {python} mount --background {name} mnt --prefetch 0"
    # In a terminal of its own, which hangs up when the command has ended.
    done = namespace.run("script", "-qec", command, "/dev/null")
    assert "Traceback" not in done.stdout
    pid = daemon_pid(empty_store)
    session, terminal = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()[3:5]
    assert (session, terminal) == (str(pid), "0")
    opened = [os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir()]
    assert [path for path in opened if re.search(r"/pts/|/ptmx|/tty", path)] == []
    standard = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in range(3)]
    assert standard == [os.devnull] * 3
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    assert namespace.run("ls", mountpoint).stdout.split() == ["pictures"]
    again = namespace.run(
        *python.split(), "mount", "--background", empty_store, mountpoint, check=False
    )
    assert (again.returncode, "latentfs: " in again.stderr) == (1, True)
    namespace.run(*python.split(), "umount", mountpoint)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the daemon is gone")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_interrupts_the_command_that_waits_ends_the_daemon(
    number: signal.Signals, tmp_path: Path
) -> None:
    told = tmp_path / "told"
    daemon = tmp_path / "daemon"
    daemon.write_text(
        "#!/bin/sh\n"
        f"trap 'echo unmounted >> {told}; exit 0' TERM\n"
        f"echo started > {told}\n"
        f"i=0; while [ $((i += 1)) -lt {50 * WAIT_S:.0f} ]; do sleep 0.02; done\n"
    )
    daemon.chmod(0o755)
    program = textwrap.dedent(f"""\
        import sys
        sys.executable = {str(daemon)!r}
        from latentfs.cli.interrupts import ended_as_by_ctrl_c
        from latentfs.service.background import start_daemon
        with ended_as_by_ctrl_c():
            start_daemon([])
        """)
    waiting = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: told.exists() and told.read_text() != "", "the daemon is started")
    waiting.send_signal(number)
    _, said = waiting.communicate(timeout=WAIT_S)
    assert waiting.returncode != 0
    assert "KeyboardInterrupt" in said
    assert told.read_text().split() == ["started", "unmounted"]


def test_the_daemon_is_not_told_of_a_service_manager_that_did_not_start_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = tmp_path / "told"
    daemon = tmp_path / "daemon"
    daemon.write_text(f'#!/bin/sh\necho "$NOTIFY_SOCKET|$WATCHDOG_USEC|$*" > {told}\nexit 7\n')
    daemon.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(daemon))
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    assert start_daemon(["--", "/store", "/mnt"]) == 7
    assert re.fullmatch(
        r"\|\|-P -m latentfs mount --ready-fd \d+ -- /store /mnt\n", told.read_text()
    )
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(InvalidArgumentError, match="only root"):
        start_daemon([], user="root")


def test_what_mount_fuse3_runs_where_no_helper_is_linked_is_understood(tmp_path: Path) -> None:
    arguments = [str(tmp_path / "none.lfs"), str(tmp_path), "-o", "rw,nofail"]
    command = [sys.executable, "-m", "latentfs", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S, check=False)
    assert done.returncode == 32
    assert "none.lfs" in done.stderr


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("rw,nofail,dev,suid", "nofail"),
        ("ro,dev", "ro"),
        ("suid", ""),
        ("suid,noatime,dev,suid", "suid,noatime"),
        ("dev,dev,suid", "dev"),
        ("dev,ro", "dev,ro"),
    ],
)
def test_dev_and_suid_that_mount_fuse3_adds_are_not_taken(
    given: str, taken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Sequence[str]] = []

    def start(arguments: Sequence[str], **_: object) -> int:
        started.append(arguments)
        return 0

    monkeypatch.setattr(mount_helper, "start_daemon", start)
    monkeypatch.setattr(sys, "argv", ["latentfs", "/art.lfs", "/mnt/art", "-o", given])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert started == [["-o", taken, "--", "/art.lfs", "/mnt/art"]]


def _fail_after(ready: Callable[[], None]) -> None:
    ready()
    raise OSError("late")


def test_an_error_that_nobody_waits_for_any_more_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    read_fd, write_fd = os.pipe()
    with (
        open(tmp_path / "stderr", "w") as stderr,
        open(read_fd, "rb") as told,
        caplog.at_level(logging.CRITICAL),
    ):
        monkeypatch.setattr(sys, "stderr", stderr)
        with pytest.raises(OSError, match="early"), waited_for(os.dup(write_fd)):
            raise OSError("early")
        assert caplog.text == ""
        with pytest.raises(OSError, match="late"), waited_for(write_fd) as ready:
            _fail_after(ready)
        assert "late" in caplog.text
        assert os.readlink(f"/proc/self/fd/{stderr.fileno()}") == os.devnull
        assert told.read(1) == b"1"


def test_where_a_daemon_in_the_background_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = tmp_path / "log"
    file = tmp_path / "latentfs.log"
    assert log_destination(file, syslog=address) == file
    assert capsys.readouterr().err == ""
    assert log_destination("stderr", syslog=address) == "stderr"
    assert "nothing is logged" in capsys.readouterr().err
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(address))
        assert log_destination("stderr", syslog=address) == "syslog"
        with open(tmp_path / "journal", "w") as journal:
            status = os.fstat(journal.fileno())
            monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
            monkeypatch.setattr(sys, "stderr", journal)
            assert log_destination("stderr", syslog=address) == "stderr"


@pytest.mark.skipif(
    not GENERATOR.exists() or shutil.which("systemd-analyze") is None,
    reason="systemd is not installed",
)
def test_systemd_makes_units_of_the_lines_on_the_page(tmp_path: Path) -> None:
    boot, first_use = fstab_lines()
    for line in (boot, first_use):
        folders = [tmp_path / f"{line == boot}{name}" for name in ("normal", "early", "late")]
        for folder in folders:
            folder.mkdir()
        fstab = tmp_path / "fstab"
        fstab.write_text(line + "\n")
        subprocess.run(
            [GENERATOR, *folders], env={**os.environ, "SYSTEMD_FSTAB": str(fstab)}, check=True
        )
        unit = folders[0] / "srv-art.mount"
        text = unit.read_text()
        assert "What=/var/lib/latentfs/art.lfs\nWhere=/srv/art\nType=fuse.latentfs\n" in text
        assert "TimeoutSec=5min" in text
        assert "RequiresMountsFor=/var/lib/latentfs" in text
        automounts = [*folders[0].glob("*.automount")]
        assert [path.name for path in automounts] == ["srv-art.automount"] * (line == first_use)
        wanted = {path.name for path in folders[0].glob("local-fs.target.*/*")}
        started = automounts[0].name if automounts else unit.name
        assert started in wanted
        checked = subprocess.run(
            ["systemd-analyze", "verify", unit, *automounts], capture_output=True, text=True
        )
        assert (checked.returncode, checked.stderr) == (0, "")
