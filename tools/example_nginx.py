#!/usr/bin/env python3
"""Runs nginx with the configuration of examples/nginx, with other paths and ports.

Nothing else of it is changed, so that what is documented is what is tested, measured and shown.
It runs as the user who starts it, listens on 127.0.0.1, and keeps all it writes in one folder.

    tools/example_nginx.py start demo/nginx demo/mnt      prints the address of the gallery
    tools/example_nginx.py stop demo/nginx                harmless when none runs
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import click

__all__ = ["ExampleNginx", "find_nginx", "running_nginx"]

_EXAMPLE = Path(__file__).resolve().parent.parent / "examples/nginx"
_SERVICE = _EXAMPLE / "service-drop-in.conf"
_END_S = 20.0
# Where Debian's nginx would otherwise keep them.
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


def find_nginx() -> str | None:
    """Return where nginx is: Debian's is not on the path of ordinary users."""
    return shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            ports.append(int(probe.getsockname()[1]))
        return ports


def _replaced(text: str, changes: dict[str, str]) -> str:
    """Make all changes at once: what one puts there is not what another replaces."""
    for old in changes:
        if old not in text:
            raise click.ClickException(f"examples/nginx has no {old!r}, which is to be replaced")
    # Of two that begin alike, the longer one.
    olds = sorted(changes, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, olds)), lambda found: changes[found[0]], text)


def _quoted(path: Path) -> str:
    """For a configuration file, where blanks end a word and ``$`` begins a variable."""
    text = str(path)
    if any(character in text for character in "$\"'\\{};#\n\t "):
        raise click.ClickException(f"nginx can't use the path {text!r}: it has special characters")
    return text


class ExampleNginx:
    """An nginx that serves *files* and the gallery, and keeps all it writes in *folder*.

    Attributes:
        port: on 127.0.0.1.
        folder: with ``nginx.conf``, ``error.log`` and ``access.log``.
    """

    def __init__(self, folder: Path, files: Path, *, changes: dict[str, str] | None = None) -> None:
        """Write the configuration; *changes* are made to the text of the example besides."""
        self.folder = folder.absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, check_port = _free_ports(2)
        text = (_EXAMPLE / "latentfs.conf").read_text()
        place = _quoted(self.folder)
        temporary = "\n".join(f"    {name}_temp_path {place}/{name};" for name in _TEMPORARY)
        own = {
            "user www-data;": "user root;" if os.geteuid() == 0 else "",
            "/run/nginx.pid": f"{place}/nginx.pid",
            "http {": f"http {{\n{temporary}",
            "/var/log/nginx": place,
            "/srv/gallery": _quoted(_EXAMPLE / "gallery"),
            "/run/nginx-latentfs": f"{place}/checks",
            "/run/latentfs-daemon-start.ma[p]": f"{place}/daemon-start.ma[p]",
            "/srv/art": _quoted(files.absolute()),
            "listen 80;": f"listen 127.0.0.1:{self.port};",
            "        listen [::]:80;\n": "",
            "127.0.0.1:8079": f"127.0.0.1:{check_port}",
        }
        text = _replaced(text, {**own, **(changes or {})})
        (self.folder / "nginx.conf").write_text(text)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def error_log(self) -> str:
        return (self.folder / "error.log").read_text(errors="replace")

    def start(self) -> None:
        """Return when it listens; it goes on in the background.

        Raises:
            ClickException: there is no nginx, or it does not start; the message has its reason.
        """
        nginx = find_nginx()
        if nginx is None:
            raise click.ClickException("nginx is not installed: apt-get install nginx")
        place = str(self.folder)
        command = [nginx, "-p", place, "-e", f"{place}/error.log", "-c", f"{place}/nginx.conf"]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            raise click.ClickException(f"nginx did not start:\n{done.stderr}")

    def reload(self) -> None:
        """Have new workers, without the files that the old ones keep open."""
        os.kill(self._pid(), signal.SIGHUP)

    def before_daemon_starts(self) -> None:
        """Do what service-drop-in.conf has the service do, when the last mount is dead or gone."""
        found = re.search(
            "^ExecStartPre=-[+]/bin/sh -c '(.*)'$", _SERVICE.read_text(), re.MULTILINE
        )
        assert found is not None
        changes = {
            "$$": "$",
            "%%": "%",
            "/run/latentfs-daemon-start.map": f"{self.folder}/daemon-start.map",
            "systemctl kill --kill-who=main --signal=HUP nginx.service": f"kill -HUP {self._pid()}",
        }
        subprocess.run(["/bin/sh", "-ec", _replaced(found[1], changes)], check=True)

    def _pid(self) -> int:
        pid = _master_pid(self.folder)
        assert pid is not None, "it does not run"
        return pid


@contextlib.contextmanager
def running_nginx(
    folder: Path, files: Path, *, changes: dict[str, str] | None = None
) -> Iterator[ExampleNginx]:
    """Run it for as long as the block lasts."""
    nginx = ExampleNginx(folder, files, changes=changes)
    nginx.start()
    try:
        yield nginx
    finally:
        stop_nginx(folder)


def _master_pid(folder: Path) -> int | None:
    """Return the process of the nginx whose configuration is in *folder*, None if it has ended."""
    try:
        pid = int((folder / "nginx.pid").read_text())
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    # The number may have gone to another process since.
    return pid if os.fsencode(folder.absolute() / "nginx.conf") in command else None


def stop_nginx(folder: Path) -> None:
    """End the nginx whose files are in *folder*, if there is one; return when it has ended.

    Workers that wait for a mount are killed after 20 s.
    """
    pid = _master_pid(folder)
    if pid is None:
        return
    children = Path(f"/proc/{pid}/task/{pid}/children")
    workers = [int(child) for child in children.read_text().split()]
    os.kill(pid, signal.SIGTERM)
    end_s = time.monotonic() + _END_S
    while _master_pid(folder) is not None:
        if time.monotonic() > end_s:
            for left in (*workers, pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)
            return
        time.sleep(0.02)


@click.group(help=__doc__, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    pass


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.argument("files", type=click.Path(exists=True, file_okay=False, path_type=Path))
def start(folder: Path, files: Path) -> None:
    """Serve FILES; FOLDER is for what nginx writes."""
    stop_nginx(folder)
    nginx = ExampleNginx(folder, files)
    nginx.start()
    click.echo(nginx.url)


@main.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def stop(folder: Path) -> None:
    """End the nginx of FOLDER."""
    stop_nginx(folder)


if __name__ == "__main__":
    main()
