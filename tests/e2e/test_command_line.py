"""Help, and failures, of the command line as a whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.support import call, shown_error, spawn

COMMANDS = (
    (),
    ("init",),
    ("vae",),
    ("vae", "add"),
    ("vae", "list"),
    ("import",),
    ("mount",),
    ("umount",),
    ("export",),
    ("status",),
    ("top",),
    ("explain",),
    ("config",),
    ("config", "show"),
    ("systemd",),
    ("systemd", "install"),
    ("fsck",),
    ("scrub",),
    ("backup",),
    ("gc",),
)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", ["--help", "-h"])
def test_help_has_an_example(command, option):
    result = call(*command, option).checked()
    assert result.out.startswith("Usage: ")
    assert "Example" in result.out
    assert " ".join(("latentfs", *command)) in result.out.split("Example")[1]
    assert result.err == ""


def test_commands_in_the_help():
    listed = call("--help").out.split("Commands:")[1]
    assert {command[0] for command in COMMANDS if command} <= set(listed.split())


def test_help_imports_next_to_nothing():
    program = (
        "import json, sys\n"
        "from latentfs.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "print(json.dumps(sorted(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, timeout=60, check=True
    )
    modules = set(json.loads(done.stderr))
    heavy = {"torch", "numpy", "trio", "lmdb", "PIL", "diffusers", "msgspec", "pyfuse3", "asyncio"}
    assert not heavy & modules


def test_unknown_command_and_option():
    result = call("imprt")
    assert (result.status, result.out) == (2, "")
    assert "No such command 'imprt'. Did you mean 'import'?" in result.err
    assert "Did you mean 'status'" in call("statu").err
    assert "Did you mean" not in call("zzz").err
    assert "No such option" in call("fsck", "--no-such-option", "x").err
    assert call("init").status == 2


def test_version():
    assert call("--version").checked().out.startswith("latentfs, version ")


@pytest.mark.parametrize(
    "arguments",
    [
        ("fsck",),
        ("fsck", "--repair"),
        ("backup", "copy"),
        ("gc",),
        ("vae", "list"),
        ("status",),
        ("export", "/", "out"),
        ("import", "x", "--vae=v"),
    ],
)
def test_no_store(tmp_path, arguments):
    command = [arguments[0], *arguments[1:2]] if arguments[0] == "vae" else [arguments[0]]
    message = shown_error(call(*command, tmp_path / "none", *arguments[len(command) :]))
    assert str(tmp_path / "none") in message
    assert "store" in message


def test_init(tmp_path):
    store = tmp_path / "deep" / "store"
    assert str(store) in call("init", store).checked().out
    assert "there is a store" in shown_error(call("init", store))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert "there is something" in shown_error(call("init", tmp_path / "full"))
    (tmp_path / "empty").mkdir()
    call("init", tmp_path / "empty").checked()
    assert "no problems" in call("fsck", store).checked().out
    status = json.loads(call("status", store, "--json").checked().out)
    assert (status["files"], status["payload_bytes"]) == (0, 0)


def test_init_where_nothing_may_be_written(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    result = spawn("init", tmp_path / "locked" / "store", unprivileged=True)
    assert "can't make a store" in shown_error(result)
    assert "may not write there; choose another folder" in shown_error(result)
    (tmp_path / "file").touch()
    assert "Not a directory; choose another place" in shown_error(call("init", tmp_path / "file/x"))


def test_a_store_on_a_read_only_file_system(tmp_path):
    """In a mount namespace of its own, in which what cleans up is its end."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a mount namespace")
    call("init", tmp_path / "store").checked()
    script = (
        'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && cd "$1"\n'
        'for command in "status store" "gc store" "mount store x" "init new"; do\n'
        '  "$0" -m latentfs $command >/dev/null && echo done >&2\n'
        "done"
    )
    done = subprocess.run(
        [
            *("unshare", "--mount", "--propagation", "private"),
            *("sh", "-c", script, sys.executable, tmp_path),
        ],
        capture_output=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    status, gc, mount, init = done.stderr.decode().splitlines()
    assert status == "done"
    for refused in (gc, mount):
        assert f"the store {tmp_path / 'store'} is on a read-only file system" in refused
        assert "mount it with -o ro, or copy it with latentfs backup" in refused
    assert f"can't make a store at {tmp_path / 'new'}: it would be on a read-only file" in init


def test_paths_that_are_not_utf8(tmp_path):
    store = tmp_path / os.fsdecode(b"caf\xe9")
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    for command in (("init",), ("status",), ("fsck",), ("vae", "list"), ("gc",)):
        result = spawn(*command, store, environment=strict).checked()
        assert "Traceback" not in result.err
        assert "caf\\udce9" in result.out + result.err
    copy = tmp_path / os.fsdecode(b"copy\xff")
    spawn("backup", store, copy, environment=strict).checked()
    refused = spawn("status", copy / "none", environment=strict)
    assert "copy\\udcff/none is neither" in shown_error(refused)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_standard_streams_that_are_closed(tmp_path, closed):
    for arguments in ("init", "fsck", "status"):
        command = f'exec "$0" -m latentfs {arguments} "$1" {closed}'
        done = subprocess.run(
            ["sh", "-c", command, sys.executable, tmp_path / "store"],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert bool(done.stdout) == ("1>" not in closed)


def test_lists_for_programs(store):
    (vae,) = json.loads(call("vae", "list", store, "--json").checked().out)
    assert (vae["name"], vae["class"]) == ("tiny", "AutoencoderTiny")
    assert (vae["latent_channels"], vae["latent_format"]) == (4, "sdxl")
    assert (store / "vae" / vae["id"]).is_dir()
    assert json.loads(call("fsck", store, "--json").checked().out) == {
        "store": str(store),
        "problems": [],
        "repairs": [],
    }
    (weights,) = (store / "vae" / vae["id"]).glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    for options in ((), ("--repair",)):
        checked = call("fsck", store, "--json", *options)
        assert checked.status == 1
        (problem,) = json.loads(checked.out)["problems"]
        assert f"{problem['check']}: {problem['message']}" in checked.err


def test_store_of_a_newer_version(store):
    (store / "latentfs.toml").write_text("format_version = 2\n")
    for command in ("fsck", "status"):
        assert "use a newer latentfs" in shown_error(call(command, store))
