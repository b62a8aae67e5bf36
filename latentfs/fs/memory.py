"""How much memory there is left, and giving the cache no more than that."""

from __future__ import annotations

import contextlib
import ctypes
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from latentfs.cache.tiered_cache import TieredCache

__all__ = ["Memory", "MemoryGauge", "fit_cache_to_memory"]

log = logging.getLogger(__name__)

_INTERVAL_S = 0.1
# What is left to others: renderers, the page cache, other programs.
_LEFT_PART = 1 / 16
_LEFT_MAX_BYTES = 1 << 30
# Growing again takes more room than shrinking leaves, so that the cache does not swing.
_GROW_ROOM = 2
_BUDGET_MIN_BYTES = 1 << 20
_NO_LIMIT_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class Memory:
    """What this process and its neighbours may have, in bytes; page cache counts as free."""

    total_bytes: int
    free_bytes: int


class MemoryGauge:
    """Reads from the kernel what is left: of the machine, and of each control group above us.

    Args:
        proc: where procfs is mounted.
        cgroups: where control groups are mounted, of either version.
    """

    def __init__(
        self, *, proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
    ) -> None:
        self._proc = proc
        self._cgroups = cgroups

    def read(self) -> Memory:
        """Return what the tightest of all limits leaves."""
        memories = [_of_machine(self._proc / "meminfo")]
        # Looked up anew, as a process may be moved to another group.
        for group in _memory_groups(self._proc / "self" / "cgroup", self._cgroups):
            with contextlib.suppress(OSError, ValueError, KeyError):
                memories.append(_of_group(group))
        return min(memories, key=lambda memory: memory.free_bytes)


async def fit_cache_to_memory(
    cache: TieredCache[Any, Any],
    *,
    budget_bytes: Callable[[], int],
    read_memory: Callable[[], Memory],
) -> None:
    """Shrink the cache when memory gets scarce, and let it grow again; runs until cancelled.

    Args:
        budget_bytes: asked each time for what the cache has when there is enough memory; with less
            than before the cache shrinks, with more it grows.
    """
    now_bytes = budget_bytes()
    while True:
        await trio.sleep(_INTERVAL_S)
        try:
            memory = read_memory()
        except (OSError, ValueError, KeyError) as error:  # the mount does not depend on it
            log.debug("what memory is left can't be read: %s", error)
            continue
        fitting_bytes = _fitting_bytes(cache, memory, now_bytes, budget_bytes())
        if fitting_bytes == now_bytes:
            continue
        if fitting_bytes < min(now_bytes, budget_bytes()):
            log.warning(
                "%d MiB of memory are left, so the cache shrinks to %d MiB",
                memory.free_bytes >> 20,
                fitting_bytes >> 20,
            )
        now_bytes = fitting_bytes
        cache.resize(now_bytes)
        _give_back_freed()


def _fitting_bytes(
    cache: TieredCache[Any, Any], memory: Memory, now_bytes: int, budget_bytes: int
) -> int:
    left_bytes = min(int(memory.total_bytes * _LEFT_PART), _LEFT_MAX_BYTES)
    lacking_bytes = left_bytes - memory.free_bytes
    if lacking_bytes > 0:
        wanted_bytes = min(now_bytes, budget_bytes, cache.held_bytes() - lacking_bytes)
        return max(min(_BUDGET_MIN_BYTES, budget_bytes), wanted_bytes)
    room_bytes = memory.free_bytes - _GROW_ROOM * left_bytes
    if room_bytes > 0:
        return min(budget_bytes, max(now_bytes, cache.held_bytes() + room_bytes))
    return min(now_bytes, budget_bytes)


def _give_back_freed() -> None:
    """Have the C library return freed memory to the kernel, where it knows how to."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _of_machine(meminfo: Path) -> Memory:
    fields = dict(line.split(":", 1) for line in meminfo.read_text("ascii").splitlines())

    def field_bytes(name: str) -> int:
        return int(fields[name].split()[0]) * 1024

    return Memory(field_bytes("MemTotal"), field_bytes("MemAvailable"))


def _memory_groups(own: Path, cgroups: Path) -> Iterator[Path]:
    """Yield the folders of the control groups that this process is in, up to the uppermost."""
    try:
        lines = own.read_text("utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root = cgroups
        elif "memory" in controllers.split(","):
            root = cgroups / "memory"
        else:
            continue
        group = root / path.lstrip("/")
        while group.is_relative_to(root):
            yield group
            group = group.parent


def _of_group(group: Path) -> Memory:
    """Return what a control group of either version may have.

    Raises:
        OSError, ValueError, KeyError: it has no limit, or is not there.
    """
    second = (group / "memory.max").exists()
    limit = (group / ("memory.max" if second else "memory.limit_in_bytes")).read_text("ascii")
    limit_bytes = int(limit)  # not for "max", which is none
    if limit_bytes >= _NO_LIMIT_BYTES:
        raise ValueError(f"{group} has no limit")
    used = "memory.current" if second else "memory.usage_in_bytes"
    used_bytes = int((group / used).read_text("ascii"))
    lines = (group / "memory.stat").read_text("ascii").splitlines()
    stat = {name: int(value) for name, value in (line.split() for line in lines)}
    prefix = "" if second else "total_"
    page_cache_bytes = stat[f"{prefix}inactive_file"] + stat[f"{prefix}active_file"]
    return Memory(limit_bytes, max(0, limit_bytes - used_bytes + page_cache_bytes))
