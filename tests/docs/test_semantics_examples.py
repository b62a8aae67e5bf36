"""The examples of docs/semantics.md do and print what the page says, in its order, on real mounts.

A block that begins with ``$ `` or ``# `` is an example: those lines are commands, as a user or as
root, ``> `` goes on with one, and the rest is what they print, on both outputs.  One shell runs
them all, in a home folder with nothing but a store and the latent files it was made of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from latent_files import latent_array, write_comfyui_latent
from mounts import latentfs

PAGE = Path(__file__).parents[2] / "docs" / "semantics.md"
_PROMPTS = ("$ ", "# ")
_MARK = "\x1e"  # what a shell prints ahead of each command, and no command does
_TIMEOUT_S = 240.0


@dataclasses.dataclass
class Command:
    text: str
    output: str = ""


@dataclasses.dataclass(frozen=True)
class Example:
    name: str
    commands: list[Command]
    by_root: bool


def examples() -> list[Example]:
    found: list[Example] = []
    heading = ""
    for match in re.finditer(
        r"^## ([^\n]+)$|^```\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S
    ):
        heading = match[1] or heading
        if match[2] and match[2].startswith(_PROMPTS):
            name = f"{heading}-{1 + sum(example.name.startswith(heading) for example in found)}"
            found.append(Example(name, _commands(match[2]), match[2].startswith("# ")))
    return found


def _commands(block: str) -> list[Command]:
    commands: list[Command] = []
    for line in block.splitlines():
        if line.startswith(block[:2]):
            commands.append(Command(line[2:]))
        elif line.startswith("> ") and not commands[-1].output:
            commands[-1].text += "\n" + line[2:]
        else:
            commands[-1].output += line + "\n"
    return commands


EXAMPLES = examples()


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store and the latent files that the page speaks of."""
    home = tmp_path_factory.mktemp("home")
    latents = home / "latents"
    latents.mkdir()
    for seed, (name, batch) in enumerate({"cat": 1, "dog": 1, "owls": 2}.items()):
        array = latent_array(batch, 16, 16, 16, seed=seed)
        metadata = {"prompt": json.dumps({"seed": seed})}
        write_comfyui_latent(latents / f"{name}.latent", array, metadata=metadata)
        os.utime(latents / f"{name}.latent", ns=(0, 1_700_000_000_123_456_789 + seed))
    store = home / "art.lfs"
    latentfs("init", store)
    latentfs("vae", "add", store, "mini", "builtin", "--dtype", "float32", "--device", "cpu")
    names = [latents / "cat.latent", latents / "dog.latent"]
    latentfs("import", store, *names, "--vae", "mini", "--to", "/2026", "--device", "cpu")
    (home / "mnt" / "art").mkdir(parents=True)
    return home


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> list[Example]:
    """The examples that can be run here."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse is missing or not permitted")
    if shutil.which("getfattr") is None:
        pytest.skip("getfattr is not installed")
    disk = tmp_path_factory.mktemp("disk")
    tmpfs = ["mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(tmpfs, capture_output=True, check=False).returncode:
        return [example for example in EXAMPLES if not example.by_root]
    subprocess.run(["umount", disk], check=True)
    return EXAMPLES


@pytest.fixture(scope="module")
def printed(run: list[Example], home: Path) -> dict[str, list[str]]:
    """What each command printed, by the name of its example."""
    script = home / "examples.sh"
    script.write_text(_script(home, run))
    with (home / "printed").open("w+b") as output:
        shell = subprocess.Popen(
            ["bash", script], stdout=output, stderr=output, cwd=home, start_new_session=True
        )
        try:
            shell.wait(timeout=_TIMEOUT_S)
            output.seek(0)
            text = output.read().decode()
        finally:
            _end(shell.pid, home)
    outputs = iter(text.replace(f"{home}/mnt/", "/mnt/").split(_MARK)[1:])
    # The shell's own first command is that which mounts.
    assert next(outputs) == "", (home / "mount.log").read_text()
    return {example.name: [next(outputs, "") for _ in example.commands] for example in run}


def _script(home: Path, run: list[Example]) -> str:
    tools = home / "bin"
    tools.mkdir()
    (tools / "latentfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m latentfs "$@"\n')
    (tools / "latentfs").chmod(0o755)
    path = shlex.quote(f"{tools}:{Path(sys.executable).parent}:{os.environ['PATH']}")
    commands = ["latentfs mount ~/art.lfs /mnt/art &"]
    commands += [command.text for example in run for command in example.commands]
    lines = [f"export HOME={home} LC_ALL=C.UTF-8 PATH={path}", f"mkdir -p {home}/mnt/art"]
    for command in commands:
        here = re.sub(r"(?<!\S)/mnt/", f"{home}/mnt/", command)
        lines.append(f"printf '{_MARK}'")
        if here.endswith("&"):  # a mount in the background: usable when it says so
            lines.append(f": >~/mount.log\n{here[:-1]} >~/mount.log 2>&1 &")
            wait = "until grep -q 'is mounted on' ~/mount.log || ! kill -0 $!; do sleep 0.05; done"
            lines.append(wait)
        else:
            lines.append(here)
    return "\n".join(lines) + "\n"


def _end(group: int, home: Path) -> None:
    """Leave no daemon and no mount behind, wherever the shell came to."""
    for mountpoint in (home / "mnt").iterdir():
        subprocess.run(["fusermount3", "-uz", mountpoint], capture_output=True, check=False)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    if os.geteuid() == 0:
        subprocess.run(["umount", "-l", home / "disk"], capture_output=True, check=False)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) > 10


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.name)
def test_the_page_says_what_is_printed(example: Example, printed: dict[str, list[str]]) -> None:
    if example.name not in printed:
        pytest.skip("only root can do that, where disks can be mounted")
    said = [f"$ {command.text}\n{command.output}" for command in example.commands]
    outputs = printed[example.name]
    shown = [f"$ {one.text}\n{text}" for one, text in zip(example.commands, outputs, strict=True)]
    fits = [_fits(one.output, text) for one, text in zip(example.commands, outputs, strict=True)]
    assert all(fits), f"the page says:\n{''.join(said)}\nit was:\n{''.join(shown)}"


def _fits(expected: str, output: str) -> bool:
    """Whether they are the same; in *expected* … stands for any text within a line."""
    pattern = "".join(
        ".*" if part == "…" else re.escape(part) for part in re.split("(…)", expected)
    )
    return re.fullmatch(pattern, output) is not None
