#!/usr/bin/env python3
"""How long a viewer waits for each picture of a folder, with and without rendering ahead.

tools/bench_prefetch.py STORE --path /2026 --files 16 --think 1.0

Goes through the folder in order, as a person in a gallery does: opens a picture, reads it, looks at
it for a while.  Each pass is a fresh mount, so that every picture is cold; passes alternate.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from latentfs.fs.control import ask_daemon

START_TIMEOUT_S = 120.0


def wait_until_ready(store: Path) -> None:
    end_s = time.monotonic() + START_TIMEOUT_S
    while True:
        status = ask_daemon(store, "status") or {}
        if status.get("renderer_ready") and not status["renders_warming_up"]:
            return
        if time.monotonic() > end_s:
            sys.exit("no renderer became ready")
        time.sleep(0.1)


def waits_s(folder: Path, *, files: int, think_s: float) -> list[float]:
    """Seconds that each picture took to be read; the first one, which loads the VAE, left out."""
    names = sorted(os.listdir(folder))[: files + 1]
    waits = []
    for name in names:
        start_s = time.monotonic()
        (folder / name).read_bytes()
        waits.append(time.monotonic() - start_s)
        time.sleep(think_s)
    return waits[1:]


def one_pass(store: Path, path: str, *, prefetch: int, files: int, think_s: float) -> list[float]:
    with tempfile.TemporaryDirectory() as mountpoint:
        command = [sys.executable, "-m", "latentfs", "mount", str(store), mountpoint]
        daemon = subprocess.Popen([*command, "--prefetch", str(prefetch)])
        try:
            wait_until_ready(store)
            return waits_s(Path(mountpoint) / path.lstrip("/"), files=files, think_s=think_s)
        finally:
            daemon.terminate()
            daemon.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("store", type=Path)
    parser.add_argument("--path", default="/", help="folder of pictures in the store")
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--think", type=float, default=1.0, help="seconds for each picture")
    parser.add_argument("--prefetch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    waits: dict[int, list[float]] = {0: [], arguments.prefetch: []}
    for _ in range(arguments.rounds):
        for prefetch, seconds in waits.items():
            seconds += one_pass(
                arguments.store,
                arguments.path,
                prefetch=prefetch,
                files=arguments.files,
                think_s=arguments.think,
            )
    print("| rendered ahead | median, s | mean, s | most, s |")
    print("|---:|---:|---:|---:|")
    for prefetch, seconds in waits.items():
        median, mean = statistics.median(seconds), statistics.fmean(seconds)
        print(f"| {prefetch} | {median:.3f} | {mean:.3f} | {max(seconds):.3f} |")


if __name__ == "__main__":
    main()
