#!/usr/bin/env python3
"""How fast files are made, found, removed, written and read in a mount, beside the disk below it.

    tools/bench_small_files.py [--folder FOLDER] [--creates 5000] [--files 100000] [--size-mib 2048]

Makes a store and a plain folder side by side below FOLDER (or the system's temporary folder), so
that both are on one disk, and prints Markdown tables.  The two take turns in every round.

*Cold* is with nothing in the kernel's caches, neither of the mount nor of the disk, and with a new
daemon; it takes root, who may drop those caches.  Others get the warm figures alone.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import stat
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from latentfs.fs.control import ask_daemon
from latentfs.store.records import Inode
from latentfs.store.store import Store

START_TIMEOUT_S = 120.0
FILE_BYTES = 4096
FOLDER_FILES = 1000
BLOCK_BYTES = 1 << 20
POOL_BLOCKS = 32
SAMPLE_S = 0.01
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
MOUNT, DISK = "mount", "disk"


@dataclass(frozen=True, slots=True)
class Memory:
    """Of the daemon alone, in bytes.

    Attributes:
        peak_bytes: greatest resident size, with those pages of the database that it has mapped,
            which belong to the kernel's cache of the disk: it takes them back when it needs them.
        own_peak_bytes: greatest resident size without mapped files, as sampled.
    """

    peak_bytes: int
    own_peak_bytes: int


def seconds(action: Callable[[], object]) -> float:
    start_s = time.perf_counter()
    action()
    return time.perf_counter() - start_s


def drop_caches() -> bool:
    """Empty the kernel's caches; return whether that was permitted."""
    os.sync()
    try:
        DROP_CACHES.write_text("3\n")
    except OSError:
        return False
    return True


# The mount


@contextlib.contextmanager
def mounted(store: Path, mountpoint: Path) -> Iterator[int]:
    """Mount the store; yields the daemon's process id once nothing is left to start."""
    command = [sys.executable, "-m", "latentfs", "mount", str(store), str(mountpoint)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as daemon:
        try:
            end_s = time.monotonic() + START_TIMEOUT_S
            while not (ask_daemon(store, "status") or {}).get("renderer_ready"):
                if daemon.poll() is not None or time.monotonic() > end_s:
                    sys.exit(f"{store} could not be mounted")
                time.sleep(0.05)
            yield daemon.pid
        finally:
            daemon.terminate()


def status_bytes(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def watched(pid: int, found: list[Memory]) -> Iterator[None]:
    """Append to *found* how much memory the daemon has taken while the block ran."""
    Path(f"/proc/{pid}/clear_refs").write_text("5\n")  # the peak begins anew
    ended = threading.Event()
    own = [status_bytes(pid, "RssAnon")]

    def sample() -> None:
        while not ended.wait(SAMPLE_S):
            own.append(status_bytes(pid, "RssAnon") + status_bytes(pid, "RssShmem"))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield
    finally:
        ended.set()
        sampler.join()
    found.append(Memory(peak_bytes=status_bytes(pid, "VmHWM"), own_peak_bytes=max(own)))


# Making and removing


def create(folder: Path, count: int) -> None:
    data = os.urandom(FILE_BYTES)
    for number in range(count):
        fd = os.open(folder / f"{number:06}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, data)
        os.close(fd)


def remove(folder: Path, count: int) -> None:
    for number in range(count):
        os.unlink(folder / f"{number:06}")


def per_second(roots: dict[str, Path], *, count: int, rounds: int) -> None:
    """Print how many files a second are made, with 4 KiB in each, and removed."""
    figures: dict[tuple[str, str], list[float]] = defaultdict(list)
    for number in range(rounds):
        for where, root in roots.items():
            folder = root / f"made {number}"
            folder.mkdir()
            for what, action in (
                ("create, write 4 KiB, close", create),
                ("unlink", remove),
            ):
                taken_s = seconds(lambda: action(folder, count))  # noqa: B023  # called at once
                figures[what, where].append(count / taken_s)
    print(f"| {count:,} files, each second | mount | least | disk |")
    print("|---|---:|---:|---:|")
    for what in dict.fromkeys(what for what, _ in figures):
        here, there = figures[what, MOUNT], figures[what, DISK]
        print(
            f"| {what} | {statistics.median(here):,.0f} | {min(here):,.0f} "
            f"| {statistics.median(there):,.0f} |"
        )
    print()


# Finding


def fill_store(path: Path, files: int) -> None:
    owner = (os.getuid(), os.getgid())
    with Store.open(path, writable=True) as store, store.write() as transaction:
        for first in range(0, files, FOLDER_FILES):
            folder = f"/many/{first // FOLDER_FILES:03}"
            ino = transaction.make_directories(folder, uid=owner[0], gid=owner[1])
            for number in range(first, min(files, first + FOLDER_FILES)):
                now_ns = time.time_ns()
                inode = Inode(stat.S_IFREG | 0o644, *owner, 1, 0, now_ns, now_ns)
                transaction.add_file(ino, b"picture %06d.png" % number, inode)


def fill_folder(path: Path, files: int) -> None:
    for first in range(0, files, FOLDER_FILES):
        folder = path / "many" / f"{first // FOLDER_FILES:03}"
        folder.mkdir(parents=True)
        for number in range(first, min(files, first + FOLDER_FILES)):
            (folder / f"picture {number:06}.png").touch()


def stat_each(root: Path) -> None:
    for folder in os.listdir(root):
        for name in os.listdir(root / folder):
            os.stat(f"{root}/{folder}/{name}")


def find(root: Path, *tests: str) -> Callable[[], object]:
    return lambda: subprocess.run(["find", root, *tests], stdout=subprocess.DEVNULL, check=True)


def searches(root: Path) -> dict[str, Callable[[], object]]:
    return {
        "`find`": find(root),
        "`find -size +1`": find(root, "-size", "+1"),
        "stat of each": lambda: stat_each(root),
    }


def finding(store: Path, roots: dict[str, Path], *, files: int, rounds: int) -> None:
    """Print how long it takes to go through many files."""
    fill_folder(roots[DISK], files)
    fill_store(store, files)
    figures: dict[tuple[str, str], list[float]] = defaultdict(list)
    for _ in range(rounds):
        for what in searches(roots[DISK]):
            with mounted(store, roots[MOUNT]):
                for where, root in roots.items():
                    search = searches(root / "many")[what]
                    cold = drop_caches()
                    first_s = seconds(search)
                    if cold:
                        figures[f"{what}, cold", where].append(first_s)
                    figures[f"{what}, again", where].append(seconds(search))
    print(f"| {files:,} files, seconds | mount | disk | ratio, median of rounds | most |")
    print("|---|---:|---:|---:|---:|")
    for what in dict.fromkeys(what for what, _ in figures):
        here, there = figures[what, MOUNT], figures[what, DISK]
        ratios = [one / other for one, other in zip(here, there, strict=True)]
        print(
            f"| {what} | {statistics.median(here):.3f} | {statistics.median(there):.3f} "
            f"| {statistics.median(ratios):.2f} | {max(ratios):.2f} |"
        )
    print()


# One large file


def write_large(path: Path, blocks: int) -> None:
    pool = [os.urandom(BLOCK_BYTES) for _ in range(POOL_BLOCKS)]
    with path.open("wb", buffering=0) as file:
        for number in range(blocks):
            file.write(pool[number % POOL_BLOCKS])
        os.fsync(file.fileno())


def read_large(path: Path) -> None:
    block = bytearray(BLOCK_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(block):
            pass


def large_file(store: Path, roots: dict[str, Path], *, size_mib: int) -> None:
    """Print how fast a large file is written and read, and what memory the daemon takes for it."""
    memory: list[Memory] = []
    rates: dict[tuple[str, str], float] = {}
    for where in (DISK, MOUNT):
        path = roots[where] / "large"
        with mounted(store, roots[MOUNT]) as pid:
            memory.append(Memory(status_bytes(pid, "VmHWM"), status_bytes(pid, "RssAnon")))
            for what, action in (
                ("write and fsync", lambda: write_large(path, size_mib)),  # noqa: B023
                ("read", lambda: read_large(path)),  # noqa: B023
            ):
                drop_caches()
                with watched(pid, memory):
                    rates[what, where] = size_mib / seconds(action)
    before, written, read = memory[3:]
    print(f"| {size_mib} MiB | mount, MiB/s | disk, MiB/s | daemon's own memory | with its map |")
    print("|---|---:|---:|---:|---:|")
    for what, used in (("write and fsync", written), ("read", read)):
        print(
            f"| {what} | {rates[what, MOUNT]:,.0f} | {rates[what, DISK]:,.0f} "
            f"| {used.own_peak_bytes >> 20} MiB | {used.peak_bytes >> 20} MiB |"
        )
    print(f"\nBefore: {before.own_peak_bytes >> 20} MiB, {before.peak_bytes >> 20} MiB.")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="on the disk to compare with")
    parser.add_argument("--creates", type=int, default=5000, help="files made in a round; 0: none")
    parser.add_argument("--files", type=int, default=100_000, help="files to find; 0 for none")
    parser.add_argument("--size-mib", type=int, default=2048, help="of the large file; 0 for none")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="latentfs-bench-", dir=arguments.folder) as scratch:
        roots = {MOUNT: Path(scratch) / "mnt", DISK: Path(scratch) / "plain"}
        for root in roots.values():
            root.mkdir()
        store = Path(scratch) / "art.lfs"
        Store.create(store).close()
        if arguments.creates:
            with mounted(store, roots[MOUNT]):
                per_second(roots, count=arguments.creates, rounds=arguments.rounds)
        if arguments.files:
            finding(store, roots, files=arguments.files, rounds=arguments.rounds)
        if arguments.size_mib:
            large_file(store, roots, size_mib=arguments.size_mib)


if __name__ == "__main__":
    main()
