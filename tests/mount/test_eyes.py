"""What people see of a mount: status, top, explain, and what its log never tells."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import sys
import termios
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from latent_files import latent_array, write_comfyui_latent
from mounts import Mount, latentfs, mounted, wait_until

from latentfs.fs.control import ask_daemon
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.store import Store

SECRET = "xyzzy-under-the-sea"
# Of a terminal's second screen, in an xterm's words.
LEFT_SCREEN = b"\x1b[?1049l"
HOSTILE = "a\x1b[31m[red]\n.txt"


@pytest.fixture(scope="module")
def watched(pictures_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A mount that was asked for some of everything; tests only look at it."""
    folder = tmp_path_factory.mktemp("watched")
    store = folder / "art.lfs"
    shutil.copytree(pictures_store, store, ignore=shutil.ignore_patterns("*.sock", "lock.mdb"))
    with mounted(store, folder / "mnt", "--prefetch", "0") as mount:
        mount.wait_for_renderer()
        (mount.path / "pictures" / "000.png").read_bytes()
        (mount.path / "notes").mkdir()
        (mount.path / "notes" / HOSTILE).write_bytes(b"kept as it is")
        (mount.path / "notes" / "link").symlink_to("../pictures/000.png")
        with pytest.raises(FileNotFoundError):
            (mount.path / "missing").stat()
        yield mount


def explained(*files: object) -> list[dict[str, Any]]:
    facts = json.loads(latentfs("explain", *files, "--json").stdout)
    assert isinstance(facts, list)
    return facts


# status


def test_status_fits_a_screen(watched: Mount) -> None:
    lines = latentfs("status", watched.path).stdout.splitlines()
    assert len(lines) < 24
    # Paths are not broken.
    assert all(len(line) <= 80 for line in lines if "/" not in line)
    screen = "\n".join(lines)
    for text in ("the mount answers", "not served", "lookup", "ENOENT", "by tier", "miss"):
        assert text in screen


def test_status_says_that_a_daemon_has_died_and_what_to_do(mount: Mount) -> None:
    mount.end(signal.SIGKILL)
    for where in (mount.store, mount.path):
        status = json.loads(latentfs("status", where, "--json").stdout)
        assert not status["mounted"]
        assert "its daemon has died" in status["daemon_problem"]
        assert f"latentfs umount {mount.path}" in status["daemon_problem"]
        assert "its daemon has died" in latentfs("status", where).stdout
    latentfs("umount", mount.path)
    assert "the store is not mounted" in latentfs("status", mount.store).stdout


def test_a_command_that_keeps_the_store_unmounted_is_no_daemon_that_hangs(store: Path) -> None:
    with DaemonLock(store).held_by("fsck --repair"):
        status = json.loads(latentfs("status", store, "--json").stdout)
        watched = latentfs("top", store, check=False)
        checked = latentfs("fsck", store)
    told = f"in use by latentfs fsck --repair (process {os.getpid()})"
    assert not status["mounted"]
    assert told in status["daemon_problem"]
    assert told in watched.stderr
    assert told in checked.stderr
    assert "mounted;" not in checked.stderr


def test_what_keeps_a_renderer_from_starting_is_told(tmp_path: Path) -> None:
    store = tmp_path / "art.lfs"
    latentfs("init", store)
    options = ("--device", "cuda:77", "--metrics", "127.0.0.1:0")
    with mounted(store, tmp_path / "mnt", *options) as mount:
        assert mount.status()["renderer_problem"] is None
        wait_until(lambda: bool(mount.status()["renderer_problem"]), "no renderer starts")
        problem = mount.status()["renderer_problem"]
        assert "cuda:77" in problem
        watched = latentfs("top", store, "--count", "1", "--interval", "100ms").stdout
        for screen in (latentfs("status", store).stdout, watched):
            assert f"can't be started: {problem}" in " ".join(screen.split())
        url = f"http://{mount.status()['metrics_address']}/readyz"
        with pytest.raises(urllib.error.HTTPError) as refusal:
            urllib.request.urlopen(url, timeout=30)
        with refusal.value as answer:
            assert answer.read().decode() == f"no renderer is ready: {problem}\n"


def test_status_counts_operations_by_name_and_reads_by_tier(watched: Mount) -> None:
    status = watched.full_status()
    assert status["operations"]["lookup"]["count"] > 0
    assert status["operations"]["lookup"]["errors"]["ENOENT"] >= 1
    assert status["reads"]["miss"]["count"] >= 1
    assert sum(tier["count"] for tier in status["reads"].values()) == status["reads_total"]
    assert status["queue_waits"]["foreground"]["count"] >= 1
    assert status["problem"] is None


# top


def test_top_prints_a_block_for_each_look(watched: Mount) -> None:
    blocks = latentfs("top", watched.path, "--interval", "200ms", "--count", "2").stdout
    assert blocks.count("operations") == 2
    for label in ("mount", "reads", "tiers", "hits", "renders", "queue", "cache", "slowest"):
        assert f"\n{label} " in "\n" + blocks
    assert all(len(line) <= 80 for line in blocks.splitlines() if "/" not in line)
    assert "renderer ready on cpu" in " ".join(blocks.split())


@contextlib.contextmanager
def top(where: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "latentfs", "top", str(where), *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_top_counts_what_is_done_and_names_slow_files_and_ends_with_the_mount(
    mount: Mount,
) -> None:
    (mount.path / "notes").mkdir()
    os.rename(mount.path / "pictures" / "000.png", mount.path / "notes" / HOSTILE)
    (mount.path / "notes" / HOSTILE).read_bytes()
    with top(mount.store, "--interval", "300ms") as process:
        assert process.stdout is not None
        shown, unread = "", iter(sorted((mount.path / "pictures").iterdir()))
        assert len(os.listdir(mount.path / "pictures")) == 99  # no lookups of their names follow
        while (
            "miss 1" not in shown
            or "/pictures/0" not in shown
            or "notes/a\\x1b[31m[red]\\n.txt" not in shown
        ):
            if "mount" in (line := process.stdout.readline()):
                next(unread).read_bytes()
            assert line
            shown += line
        assert "\x1b" not in shown
        latentfs("umount", mount.path)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 0
        assert "was unmounted" in told


def test_top_says_that_a_daemon_has_died(mount: Mount) -> None:
    with top(mount.path, "--interval", "100ms") as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        mount.process.kill()
        _, told = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "has died" in told
    done = latentfs("top", mount.store, check=False)
    assert done.returncode == 1
    assert "its daemon has died" in done.stderr
    # The mount is dead now: what it would show is found in the store, without waiting for it.
    (facts,) = explained(mount.path / "pictures" / "000.png")
    assert facts["kind"] == "latent picture"
    assert "its daemon has died" in facts["daemon_problem"]


@contextlib.contextmanager
def top_on_a_terminal(
    where: Path, *options: str, kind: str = "xterm"
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The process, and our side of its terminal, of 100 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "latentfs", "top", str(where), *options],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": kind, "COLUMNS": "100", "LINES": "30"},
    )
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(theirs)
        os.close(ours)


def shown_on(ours: int, until: bytes | None, process: subprocess.Popen[bytes]) -> bytes:
    """What is shown until *until* is, or the process has ended."""
    read = b""

    def is_all() -> bool:
        nonlocal read
        has_ended = process.poll() is not None
        while select.select([ours], [], [], 0.02)[0]:
            read += os.read(ours, 65536)
        return has_ended or (until is not None and until in read)

    wait_until(is_all, f"{until!r} is shown")
    return read


def test_top_on_a_terminal_is_one_screen_that_q_ends(watched: Mount) -> None:
    with top_on_a_terminal(watched.store, "--interval", "1h") as (process, terminal):
        assert b"operations" in shown_on(terminal, b"q ends it", process)
        os.write(terminal, b"q")
        assert b"operations" not in shown_on(terminal, None, process)
        assert process.returncode == 0


def test_a_terminal_is_as_it_was_after_top_was_terminated(watched: Mount) -> None:
    with top_on_a_terminal(watched.store) as (process, terminal):
        before = termios.tcgetattr(terminal)
        shown_on(terminal, b"q ends it", process)
        assert termios.tcgetattr(terminal) != before
        process.terminate()
        assert LEFT_SCREEN in shown_on(terminal, None, process)
        assert termios.tcgetattr(terminal) == before


def test_the_last_look_stays_on_the_terminal(watched: Mount) -> None:
    options = ("--interval", "100ms", "--count", "2")
    with top_on_a_terminal(watched.store, *options) as (process, terminal):
        screens, _, left = shown_on(terminal, None, process).partition(LEFT_SCREEN)
        assert process.returncode == 0
        assert b"q ends it" in screens
        assert b"operations" in left
        assert b"q ends it" not in left


def test_top_prints_where_a_terminal_can_not_move_its_cursor(watched: Mount) -> None:
    options = ("--interval", "100ms", "--count", "2")
    with top_on_a_terminal(watched.store, *options, kind="dumb") as (process, terminal):
        printed = shown_on(terminal, None, process)
        assert printed.count(b"operations") == 2
        assert b"\x1b" not in printed


# explain


def test_explain_tells_all_of_a_picture_and_renders_nothing(watched: Mount) -> None:
    renders = watched.status()["renders_total"]
    seen, unseen = explained(
        watched.path / "pictures" / "000.png", f"{watched.store}:/pictures/001.png"
    )
    assert watched.status()["renders_total"] == renders
    assert seen["kind"] == unseen["kind"] == "latent picture"
    assert seen["vae"]["name"] == "tiny"
    assert seen["vae"]["class"] == "AutoencoderTiny"
    assert seen["recipe"]["dtype"] == "float32"
    assert seen["framing"]["format"] == "png"
    assert seen["source"]["name"] == "000.latent"
    assert seen["size_bytes"] == (watched.path / "pictures" / "000.png").stat().st_size
    (payload,) = seen["payloads"]
    assert payload["shape"] == [4, 16, 16]
    assert payload["files"] == 2  # the JPEG of the same latent
    assert seen["stored_bytes"] == payload["bytes"] + seen["metadata_bytes"]
    assert seen["tier"] == "pixels"
    assert "decode" in seen["last_render"]["stages_s"]
    assert unseen["tier"] == "miss"
    assert unseen["last_render"] is None
    screen = latentfs("explain", watched.path / "pictures" / "000.png").stdout
    for text in ("tiny (AutoencoderTiny)", "4x16x16 float32, pco", "finished file", "decode"):
        assert text in screen


def test_explain_knows_what_was_just_written_and_other_kinds(watched: Mount) -> None:
    notes = watched.path / "notes"
    (notes / "new").write_bytes(b"x" * 200_000)
    new, hostile, link, folder = explained(notes / "new", notes / HOSTILE, notes / "link", notes)
    assert new["kind"] == "bytes kept"
    assert 0 < new["stored_bytes"] < new["size_bytes"] == 200_000
    assert new["tier"] == "bytes"
    assert hostile["kind"] == "bytes kept"
    assert link["kind"] == "symbolic link"
    assert link["target"] == "../pictures/000.png"
    assert folder["kind"] == "folder"
    screen = latentfs("explain", notes / HOSTILE).stdout
    assert "\x1b" not in screen
    assert "a\\x1b[31m[red]\\n.txt" in screen


def test_explain_follows_links_to_a_mount_and_refuses_what_is_in_none(
    watched: Mount, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(watched.path / "pictures")
    (facts,) = explained(tmp_path / "link" / "000.png")
    assert facts["source"]["name"] == "000.latent"
    (tmp_path / "file link.png").symlink_to(watched.path / "pictures" / "000.png")
    (linked,) = explained(tmp_path / "file link.png")
    assert linked["file"] == str(tmp_path / "file link.png")
    assert (linked["kind"], linked["ino"]) == ("latent picture", facts["ino"])
    (tmp_path / "to the mount").symlink_to(watched.path)
    (root,) = explained(tmp_path / "to the mount")
    assert (root["kind"], root["ino"]) == ("folder", 1)
    missing = f"{watched.store}:/missing"
    done = latentfs("explain", tmp_path, missing, watched.path / "gone", "--json", check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout) == []
    assert "is not in a mount of latentfs" in done.stderr
    assert "has no such file" in done.stderr
    assert os.strerror(errno.ENOENT) in done.stderr
    for line, name in zip(done.stderr.splitlines(), (tmp_path, missing, "gone"), strict=True):
        assert line.count(str(name)) == 1, line


def test_explain_says_that_a_link_leads_out_of_the_mount(watched: Mount, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (watched.path / "notes" / "out").symlink_to(tmp_path)
    done = latentfs("explain", watched.path / "notes" / "out" / "outside", check=False)
    assert "a link leads to another file system" in done.stderr


def test_explain_works_on_a_store_that_is_not_mounted(pictures_store: Path) -> None:
    (facts,) = explained(f"{pictures_store}:/pictures/000.png")
    assert facts["kind"] == "latent picture"
    assert facts["tier"] is None
    screen = latentfs("explain", f"{pictures_store}:/jpeg/000.jpg").stdout
    assert "jpeg, encoder" in screen
    assert "the store is not mounted" in screen


# The control socket


def test_the_control_socket_answers_bad_requests_with_an_error(watched: Mount) -> None:
    for request in (b"\xff\x00\n", b"[1]\n", b'{"command": 7}\n', b"{", b"x" * 100_000):
        assert "error" in asked(watched, request)
    assert "unknown command" in asked(watched, b'{"command": "no such"}\n')["error"]
    assert "ino" in asked(watched, b'{"command": "explain", "inode": 1}\n')["error"]
    assert "takes no arguments" in asked(watched, b'{"command": "status", "ino": 1}\n')["error"]
    for ino in ("0", "-1", "1.5", '"1"', "true", "null", "[]", "1" * 50):
        request = f'{{"command": "explain", "ino": {ino}}}\n'.encode()
        assert "is not the number of an inode" in asked(watched, request)["error"]
    assert "there is no inode" in (ask_daemon(watched.store, "explain", ino=1 << 40) or {})["error"]
    assert watched.process.poll() is None


def asked(mount: Mount, request: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        connection.connect(str(mount.store / "control.sock"))
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = json.loads(connection.makefile().read())
        assert isinstance(answer, dict)
        return answer


def test_the_control_socket_is_the_daemons_users(watched: Mount) -> None:
    control = watched.store / "control.sock"
    assert control.stat().st_mode & 0o777 == 0o600
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    program = (
        "import os, socket, sys\n"
        "os.setgid(65534); os.setuid(65534)\n"
        "connection = socket.socket(socket.AF_UNIX)\n"
        "connection.connect(sys.argv[1])\n"
        'connection.sendall(b\'{"command": "status"}\\n\')\n'
        "print(connection.makefile().read())"
    )
    command = [sys.executable, "-I", "-S", "-c", program, "control.sock"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=watched.store)
    assert "PermissionError" in refused.stderr
    # Even where the owner lets others in; a new store's folder keeps them out.
    watched.store.chmod(0o755)
    control.chmod(0o666)
    try:
        answered = subprocess.run(command, capture_output=True, text=True, cwd=watched.store)
    finally:
        control.chmod(0o600)
        watched.store.chmod(0o700)
    assert json.loads(answered.stdout) == {
        "error": "only the user of the daemon and root are answered"
    }


# What is in the log


@pytest.fixture
def secret_store(store: Path, tmp_path: Path) -> Path:
    """A store with a secret in names, prompts and tensors, two of whose pictures are damaged."""
    folder = tmp_path / SECRET
    folder.mkdir()
    prompt = {"prompt": json.dumps({"text": SECRET}), "workflow": SECRET}
    latents = [
        write_comfyui_latent(
            folder / f"{SECRET}-{seed}.latent",
            latent_array(1, 4, 24, 24, seed=900 + seed),
            metadata=prompt,
        )
        for seed in range(3)
    ]
    latentfs("import", store, *latents, "--vae", "tiny", "--to", f"/{SECRET}")
    payloads = {}
    with Store.open(store) as opened, opened.read() as snapshot:
        for seed in range(2):
            found = snapshot.resolve(f"/{SECRET}/{SECRET}-{seed}.png")
            assert found is not None
            assert found[1].content is not None
            payloads[seed] = found[1].content.payload
    with Store.open(store, writable=True) as opened, opened.write_rows() as rows:
        damage(rows, payloads[0], all_of_it=False)
        damage(rows, payloads[1], all_of_it=True)
    return store


def damage(rows: Any, payload: int, *, all_of_it: bool) -> None:
    """Remove a payload, or spoil the end of it."""
    prefix = payload.to_bytes(8, "big")
    found = []
    for key, value in rows.items("payloads", prefix):
        if bytes(key[:8]) != prefix:
            break
        found.append((bytes(key), bytes(value)))
    for key, value in found if all_of_it else found[-1:]:
        if all_of_it:
            rows.delete("payloads", key)
        else:
            rows.put("payloads", key, value[:-8] + bytes(8))


def test_the_log_never_tells_names_or_prompts(secret_store: Path, tmp_path: Path) -> None:
    log = tmp_path / "daemon.log"
    options = ("--log", str(log), "--log-level", "debug", "--log-format", "json")
    with mounted_quietly(secret_store, tmp_path / "mnt", log, *options) as mount:
        folder = mount.path / SECRET
        for seed, is_damaged in ((0, True), (1, True), (2, False)):
            with contextlib.nullcontext() if not is_damaged else pytest.raises(OSError, match="5"):
                (folder / f"{SECRET}-{seed}.png").read_bytes()
        refuse_changes(folder)
        (folder / f"{SECRET}.latent").write_bytes(SECRET.encode() * 50)
        broken = write_comfyui_latent(
            tmp_path / "broken.latent", latent_array(1, 9, 8, 8), metadata={"prompt": SECRET}
        )
        shutil.copy(broken, folder / f"{SECRET}-9.latent")
        wait_until(lambda: mount.status()["undeveloped_total"] == 2, "both are looked at")
        # The renderer keeps the VAE that it has loaded; another one has to load it again.
        (renderer,) = mount.renderer_pids()
        shutil.rmtree(next((mount.store / "vae").iterdir()))
        os.kill(renderer, signal.SIGKILL)
        with pytest.raises(OSError, match="5"):
            (mount.path / "pictures" / "050.png").read_bytes()
        latentfs("explain", folder / f"{SECRET}-2.png", f"{mount.store}:/{SECRET}")
        mount.end()
    told = log.read_text()
    lines = [json.loads(line) for line in told.splitlines()]
    assert {line["level"] for line in lines} >= {"DEBUG", "INFO", "ERROR"}
    shown = "\n".join(line["message"] for line in lines)
    for text in (
        "payload",
        "is missing",
        "no picture is made of inode",
        "the folder isn't empty",
        "the attribute is not set",
    ):
        assert text in shown
    assert SECRET not in told.replace(str(tmp_path), "")


def refuse_changes(folder: Path) -> None:
    """Have changes refused, whose reasons go to the log."""
    with pytest.raises(OSError, match=str(errno.ENOTEMPTY)):
        folder.rmdir()
    with pytest.raises(OSError, match=str(errno.ENODATA)):
        os.removexattr(folder, f"user.{SECRET}")
    with pytest.raises(OSError, match=str(errno.ENAMETOOLONG)):
        (folder / (SECRET * 20)).mkdir()


@contextlib.contextmanager
def mounted_quietly(store: Path, path: Path, log: Path, *arguments: str) -> Iterator[Mount]:
    """Mount a store whose daemon logs elsewhere than to standard error."""
    path.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "latentfs", "mount", str(store), str(path), *arguments], text=True
    )
    mount = Mount(store, path, process, log)
    try:
        wait_until(lambda: "is mounted on" in mount.log if log.exists() else False, "it is mounted")
        yield mount
    finally:
        process.kill()
        process.wait()
        subprocess.run(["fusermount3", "-uz", str(path)], capture_output=True, check=False)
        assert not DaemonLock(store).held_elsewhere()
