#!/usr/bin/env python3
"""Sets nginx on a mount against nginx on the same files in an ordinary file system.

Both serve with the configuration of examples/nginx, by the same binary, and are asked in turns by
wrk on the same machine, everything being in memory.  Prints a line for each variant of the
configuration: requests a second and the 99th percentile of the latency, medians of the rounds, and
the median of what they are to each other in a round, as other work on the machine comes and goes.

    tools/bench_nginx.py /srv/art/pictures --scratch /var/tmp
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from example_nginx import ExampleNginx, running_nginx

_WARM_UP_S = 2
_CACHE = "open_file_cache max=8000 inactive=60s;"
_HOT_POOL = "aio threads=latentfs_hot;"
VARIANTS: dict[str, dict[str, str]] = {
    "as documented": {},
    "no checks": {"auth_request /latentfs-check;": ""},
    "no open_file_cache": {_CACHE: "open_file_cache off;"},
    "checks have a cache of their own": {
        "open_file_cache_valid 1s;": f"{_CACHE} open_file_cache_valid 1s;"
    },
    "nginx refuses links": {"sendfile on;": "sendfile on; disable_symlinks on;"},
    "all checks kept 10 s": {"200 $seconds_by_chance;": "200 10;"},
    "checks kept 300 s": {"200 $seconds_by_chance;": "200 300;"},
    "no aio threads": {_HOT_POOL: ""},
    "hot pool of 32": {"latentfs_hot threads=8": "latentfs_hot threads=32"},
    "no tcp_nopush": {"tcp_nopush on;": ""},
    "sendfile_max_chunk 256k": {"sendfile on;": "sendfile on; sendfile_max_chunk 256k;"},
    "sendfile_max_chunk 0": {"sendfile on;": "sendfile on; sendfile_max_chunk 0;"},
    "sendfile off": {"sendfile on;": "sendfile off; output_buffers 2 512k;"},
    "1 worker": {"worker_processes auto;": "worker_processes 1;"},
}
_REPORT = """
done = function(summary, latency, requests)
  local errors = summary.errors
  io.write(string.format("RESULT %f %f %d\\n", summary.requests / summary.duration * 1e6,
    latency:percentile(99) / 1000,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class _Round:
    requests_per_s: float
    p99_ms: float
    errors: int


def _read_from_disk(path: Path) -> None:
    """Have the file in memory as a server has it that has read it from its disk.

    What was just written lies there in larger pieces, which are sent a little faster.
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        file.read()


def _write_script(path: Path, names: list[str]) -> None:
    """Ask for one file after the other, each thread and each run from another one on."""
    targets = ",".join(f'"/art/{urllib.parse.quote(name)}"' for name in names)
    path.write_text(
        f"local paths = {{{targets}}}\n"
        # Called once for each thread, by the main one: with numbers of their own the threads would
        # begin alike, and go on side by side.
        "math.randomseed(os.time())\n"
        "setup = function(thread) thread:set('at', math.random(#paths)) end\n"
        "request = function() at = at % #paths + 1; return wrk.format('GET', paths[at]) end\n"
        + _REPORT
    )


def _ask(nginx: ExampleNginx, script: Path, *, connections: int, seconds: int) -> _Round:
    """Measure as under lasting demand: what expired while the other side was asked comes first."""
    _wrk(nginx, script, connections=connections, seconds=_WARM_UP_S)
    return _wrk(nginx, script, connections=connections, seconds=seconds)


def _wrk(nginx: ExampleNginx, script: Path, *, connections: int, seconds: int) -> _Round:
    command = ["wrk", "-t2", f"-c{connections}", f"-d{seconds}s", "-s", str(script), nginx.url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = re.search(r"RESULT (\S+) (\S+) (\d+)", done.stdout)
    if found is None:
        raise click.ClickException(f"wrk printed no result:\n{done.stdout}")
    return _Round(float(found[1]), float(found[2]), int(found[3]))


@contextlib.contextmanager
def _both(
    mounted: Path, plain: Path, changes: dict[str, str]
) -> Iterator[tuple[ExampleNginx, ExampleNginx]]:
    """What they write is in memory, as what the documented configuration puts into /run."""
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as temporary,
        running_nginx(Path(temporary) / "m", mounted, changes=changes) as on_mount,
        running_nginx(Path(temporary) / "p", plain, changes=changes) as on_plain,
    ):
        yield on_mount, on_plain


@click.command(help=__doc__)
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--scratch",
    type=click.Path(exists=True, path_type=Path),
    default=Path("/var/tmp"),
    help="A folder in the file system to compare with.",
)
@click.option(
    "--variant",
    "variants",
    multiple=True,
    type=click.Choice(list(VARIANTS)),
    help="Only this one; may be given several times.",
)
@click.option("--connections", default=64, show_default=True)
@click.option(
    "--seconds",
    default=15,
    show_default=True,
    help="Of each round; longer than a check is remembered (14 s), or some rounds have few.",
)
@click.option("--rounds", default=10, show_default=True)
def main(
    folder: Path,
    scratch: Path,
    variants: tuple[str, ...],
    connections: int,
    seconds: int,
    rounds: int,
) -> None:
    if shutil.which("wrk") is None:
        raise click.ClickException("wrk is not installed: apt-get install wrk")
    names = sorted(path.name for path in folder.iterdir() if path.suffix in {".png", ".jpg"})
    if not names:
        raise click.ClickException(f"{folder} has no PNG and no JPEG files")
    with tempfile.TemporaryDirectory(dir=scratch) as temporary:
        plain = Path(temporary) / "plain"
        plain.mkdir()
        for name in names:
            shutil.copy2(folder / name, plain)
            _read_from_disk(plain / name)
        size = sum((plain / name).stat().st_size for name in names)
        click.echo(f"{len(names)} files of {size / len(names) / 1024:.0f} KiB, ", nl=False)
        click.echo(f"{connections} connections, {rounds} rounds of {seconds} s")
        script = Path(temporary) / "paths.lua"
        _write_script(script, names)
        for variant in variants or VARIANTS:
            with _both(folder, plain, VARIANTS[variant]) as both:
                pairs = _rounds(
                    both, script, connections=connections, seconds=seconds, rounds=rounds
                )
            click.echo(_line(variant, pairs))


def _rounds(
    both: tuple[ExampleNginx, ExampleNginx],
    script: Path,
    *,
    connections: int,
    seconds: int,
    rounds: int,
) -> list[tuple[_Round, _Round]]:
    """Ask both in turns; the one that is first alternates too."""
    pairs = []
    for number in range(-1, rounds):  # one more, which does not count, opens the files
        results = {}
        for side in (0, 1) if number % 2 else (1, 0):
            results[side] = _ask(both[side], script, connections=connections, seconds=seconds)
        if number >= 0:
            pairs.append((results[0], results[1]))
    return pairs


def _line(variant: str, pairs: list[tuple[_Round, _Round]]) -> str:
    sides = []
    for name, rounds in (("mount", [p[0] for p in pairs]), ("plain", [p[1] for p in pairs])):
        requests_per_s = statistics.median(each.requests_per_s for each in rounds)
        p99_ms = statistics.median(each.p99_ms for each in rounds)
        errors = sum(each.errors for each in rounds)
        sides.append(f"{name} {requests_per_s:7.0f}/s p99 {p99_ms:6.1f} ms errors {errors}")
    requests = statistics.median(m.requests_per_s / p.requests_per_s for m, p in pairs)
    p99 = statistics.median(m.p99_ms / p.p99_ms for m, p in pairs)
    ratios = f"{requests:.2f} of the requests, p99 {p99:.2f} times"
    return " | ".join((f"{variant:24}", *sides, ratios))


if __name__ == "__main__":
    main()
