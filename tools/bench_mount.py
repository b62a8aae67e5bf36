#!/usr/bin/env python3
"""How soon a mount is usable, and how long it takes to list and stat 10,000 files on it.

    tools/bench_mount.py

Makes a store of one picture under 10,000 names in a temporary folder, mounts it, and prints a
Markdown table.  Renders nothing while it measures, and says so if it did.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from latentfs.store.store import Store

FOLDERS, FILES_EACH = 10, 1000
REPEATS = 3


def latentfs(*arguments: object) -> str:
    command = [sys.executable, "-m", "latentfs", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def make_store(folder: Path) -> Path:
    latent = folder / "one.safetensors"
    numbers = np.random.default_rng(0).normal(size=(1, 16, 8, 8)).astype(np.float32)
    save_file({"latents": numbers}, latent)
    store_path = folder / "art.lfs"
    latentfs("init", store_path)
    latentfs("vae", "add", store_path, "builtin", "builtin", "--dtype", "float32")
    latentfs("import", store_path, latent, "--vae", "builtin")
    with Store.open(store_path, writable=True) as store, store.write() as transaction:
        found = transaction.resolve("/one.png")
        assert found is not None
        for number in range(FOLDERS):
            ino = transaction.make_directories(f"/{number}", uid=os.getuid(), gid=os.getgid())
            for index in range(FILES_EACH):
                transaction.add_file(ino, b"%04d.png" % index, found[1])
    return store_path


def seconds(action: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    action()
    return time.perf_counter() - start_s


def stat_all(mountpoint: Path) -> None:
    for folder in range(FOLDERS):
        for index in range(FILES_EACH):
            os.stat(mountpoint / str(folder) / f"{index:04}.png")


def measure_mount(store: Path, mountpoint: Path) -> dict[str, float]:
    """Mount, list, stat, unmount; seconds by what was done."""
    figures: dict[str, float] = {}
    start_s = time.perf_counter()
    command = [sys.executable, "-m", "latentfs", "mount", str(store), str(mountpoint)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as daemon:
        assert daemon.stderr is not None
        daemon.stderr.readline()  # says that it is mounted
        os.listdir(mountpoint)
        figures["start of `latentfs mount` to the first listing"] = time.perf_counter() - start_s
        listing = ["ls", "-lR", str(mountpoint)]
        for what in ("`ls -lR`, first", "`ls -lR`, again"):
            figures[what] = seconds(lambda: subprocess.check_output(listing))
        figures["stat of each file"] = seconds(lambda: stat_all(mountpoint))
        renders = json.loads(latentfs("status", mountpoint, "--json"))["renders_total"]
        if renders:
            print(f"{renders} pictures were rendered: the figures are worthless", file=sys.stderr)
        latentfs("umount", mountpoint)
    return figures


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="latentfs-bench-") as scratch:
        store = make_store(Path(scratch))
        mountpoint = Path(scratch) / "mnt"
        mountpoint.mkdir()
        runs = [measure_mount(store, mountpoint) for _ in range(REPEATS)]
    print(f"| {FOLDERS * FILES_EACH:,} files, seconds | least | most |")
    print("|---|---:|---:|")
    for what in runs[0]:
        figures = [run[what] for run in runs]
        print(f"| {what} | {min(figures):.2f} | {max(figures):.2f} |")


if __name__ == "__main__":
    main()
