"""A killed mount leaves what it was at some moment, which is not before the last sync."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import mount_load
import pytest
from file_operations import difference
from mount_load import Load, LoggedChange, Tree, read_log, read_tree
from mounts import latentfs, mounted, wait_until

PAGE_BYTES = 4096
ROUNDS = 10  # unless --crash-rounds says otherwise
WORKERS = 2
# Of load in a round: a mount commits twice a second when nobody syncs.
LOAD_S_MAX = 1.0
SYNC_WAIT_S = 0.5
END_S = 60

pytestmark = [
    pytest.mark.skipif(
        not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse is missing or forbidden"
    ),
    pytest.mark.timeout(3600),  # --crash-rounds decides; every wait in here ends by itself
]


@dataclass(slots=True)
class Worker:
    """A folder of the mount that a process of its own changes at random.

    Attributes:
        tree: what was in the folder when the round began.
        seed: of the round's load.
    """

    root: Path
    log: Path
    tree: Tree = field(default_factory=Tree)
    seed: int = 0

    @contextmanager
    def at_work(self) -> Iterator[subprocess.Popen[str]]:
        self.log.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, mount_load.__file__, self.root, str(self.seed), self.log],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def changes(self) -> list[LoggedChange]:
        """Return what was changed in the last round, if there was one."""
        return read_log(self.log) if self.log.exists() else []

    def has_begun(self) -> bool:
        return self.log.exists() and self.log.stat().st_size > 0

    def check(self, synced_ns: int) -> int:
        """Check that the folder is as it was at some moment after *synced_ns*, and go on from it.

        Return how many changes were lost.
        """
        changes = self.changes()
        synced = sum(_is_done_by(change, synced_ns) for change in changes)
        found = read_tree(self.root)
        seen = found.seen()
        matches = [n for n, state in self._states(len(changes)) if state == seen]
        if not matches:
            matches = [n for n, state in self._halfway_states(len(changes)) if state == seen]
        if not matches or matches[-1] < synced:
            raise AssertionError(self._explained(found, matches, synced, len(changes)))
        self.tree = found
        return len(changes) - matches[-1]

    def _states(self, count: int) -> Iterator[tuple[int, mount_load.Seen]]:
        """Yield how the folder is to be seen after none to *count* changes."""
        load = Load(self.tree.copy(), self.seed)
        yield 0, load.tree.seen()
        for number, _ in zip(range(1, count + 1), load.changes(), strict=False):
            yield number, load.tree.seen()

    def _halfway_states(self, count: int) -> Iterator[tuple[int, mount_load.Seen]]:
        """Yield the same in the middle of a write.

        The kernel may send one as several requests, each up to the end of a page.
        """
        load = Load(self.tree.copy(), self.seed)
        before = load.tree.copy()
        for number, change in zip(range(count), load.changes(), strict=False):
            if change.call == "write":
                offset, end = change.number, change.number + int(change.other)
                written = load.tree[change.path].data
                data = before[change.path].data.ljust(offset, b"\0")
                for border in range(
                    offset // PAGE_BYTES * PAGE_BYTES + PAGE_BYTES, end, PAGE_BYTES
                ):
                    halfway = before.copy()
                    part = data[:offset] + written[offset:border] + data[border:]
                    halfway[change.path] = halfway[change.path]._replace(data=part)
                    yield number, halfway.seen()
            before = load.tree.copy()

    def _explained(self, found: Tree, matches: list[int], synced: int, begun: int) -> str:
        what = f"{synced} of {begun} changes (seed {self.seed}) in {self.root} were synced, "
        if matches:
            return f"{what}but only {matches[-1]} are there"
        seen = found.seen()
        states = dict(self._states(begun))
        nearest = min(states, key=lambda n: len(states[n].items() ^ seen.items()))
        return (
            f"{what}and what is there was never so; most like it, found and right, is the state "
            f"after {nearest} changes:\n{difference(seen, states[nearest])}"
        )


def _is_done_by(change: LoggedChange, moment_ns: int) -> bool:
    return change.done_ns is not None and change.done_ns <= moment_ns


def last_sync_ns(workers: list[Worker]) -> int:
    """Return when the last sync that ended well was begun: it is one of all of the store."""
    return max(
        (
            change.begun_ns
            for worker in workers
            for change in worker.changes()
            if change.call.startswith("fsync") and change.done_ns is not None
        ),
        default=0,
    )


def test_what_was_synced_is_there_and_nothing_that_never_was(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = random.randrange(1 << 32)
    print(f"random seed {seed}")
    chance = random.Random(seed)
    store, path = tmp_path / "art.lfs", tmp_path / "mnt"
    latentfs("init", store)
    workers = [Worker(path / f"{n}", tmp_path / f"{n}.log") for n in range(WORKERS)]
    with mounted(store, path) as mount:
        for worker in workers:
            worker.root.mkdir()
        assert mount.end() == 0
    changes, lost = 0, 0
    for _ in range(request.config.getoption("--crash-rounds") or ROUNDS):
        with mounted(store, path) as mount:
            lost += check_all(workers)
            work_until_killed(workers, mount.process, chance)
        changes += sum(len(worker.changes()) for worker in workers)
        require_sound(store)
    with mounted(store, path) as mount:
        lost += check_all(workers)
        assert mount.status()["errors_total"] == 0, mount.log
        assert mount.end() == 0
    require_sound(store)
    print(f"{changes} changes, {lost} of them lost as they were not synced")


def check_all(workers: list[Worker]) -> int:
    """Check what the last round has left, if there was one; return how many changes were lost."""
    synced_ns = last_sync_ns(workers)
    return sum(worker.check(synced_ns) for worker in workers)


def require_sound(store: Path) -> None:
    checked = latentfs("fsck", store, check=False)
    assert checked.returncode == 0, checked.stderr


def work_until_killed(
    workers: list[Worker], daemon: subprocess.Popen[str], chance: random.Random
) -> None:
    """Let *workers* change the mount, kill its daemon at some moment, and see them end by that."""
    for worker in workers:
        worker.seed = chance.randrange(1 << 32)
    with ExitStack() as stack:
        processes = [stack.enter_context(worker.at_work()) for worker in workers]
        wait_until(
            lambda: (
                all(worker.has_begun() for worker in workers)
                or any(process.poll() is not None for process in processes)
            ),
            "all are at work",
        )
        time.sleep(chance.uniform(0, LOAD_S_MAX))
        if chance.random() < 0.5:
            wait_for_a_sync(workers)
        daemon.kill()
        for process in processes:
            _, stderr = process.communicate(timeout=END_S)
            assert process.returncode == 0, stderr


def wait_for_a_sync(workers: list[Worker]) -> None:
    """Return just after one has ended, or when none does so soon: not all loads have any."""
    before_ns, end_s = last_sync_ns(workers), time.monotonic() + SYNC_WAIT_S
    while last_sync_ns(workers) == before_ns and time.monotonic() < end_s:
        time.sleep(0.001)
