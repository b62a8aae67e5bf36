"""The cache takes no more memory than there is."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
import trio.testing

from latentfs.cache.tiered_cache import CachedPicture, TieredCache
from latentfs.fs.memory import Memory, MemoryGauge, fit_cache_to_memory

MIB = 1 << 20
GIB = 1 << 30
NO_LIMIT_V1 = 9223372036854771712


def machine(tmp_path: Path, *, available_bytes: int, cgroup: str) -> MemoryGauge:
    """A gauge of a machine of 16 GiB."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    available = available_bytes // 1024
    meminfo = f"MemTotal: {16 * GIB // 1024} kB\nMemAvailable: {available} kB\nHugePages_Total: 0\n"
    (proc / "meminfo").write_text(meminfo)
    (proc / "self" / "cgroup").write_text(cgroup)
    return MemoryGauge(proc=proc, cgroups=tmp_path / "cgroup")


def group_v2(path: Path, *, limit: str, used_bytes: int, page_cache_bytes: int = 0) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{used_bytes}\n")
    stat = f"anon 1\ninactive_file {page_cache_bytes}\nactive_file 0\n"
    (path / "memory.stat").write_text(stat)


def group_v1(path: Path, *, limit_bytes: int, used_bytes: int) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.limit_in_bytes").write_text(f"{limit_bytes}\n")
    (path / "memory.usage_in_bytes").write_text(f"{used_bytes}\n")
    (path / "memory.stat").write_text("total_inactive_file 0\ntotal_active_file 10\n")


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    gauge = machine(tmp_path, available_bytes=3 * GIB, cgroup="0::/user.slice\n")
    assert gauge.read() == Memory(16 * GIB, 3 * GIB)


def test_the_tightest_group_counts(tmp_path: Path) -> None:
    groups = tmp_path / "cgroup"
    group_v2(groups / "a", limit=str(2 * GIB), used_bytes=GIB)
    group_v2(groups / "a" / "b", limit="max", used_bytes=GIB)
    gauge = machine(tmp_path, available_bytes=3 * GIB, cgroup="0::/a/b\n")
    assert gauge.read() == Memory(2 * GIB, GIB)
    group_v2(groups / "a" / "b", limit=str(GIB + MIB), used_bytes=GIB)
    assert gauge.read() == Memory(GIB + MIB, MIB)


def test_page_cache_is_free(tmp_path: Path) -> None:
    path = tmp_path / "cgroup" / "a"
    group_v2(path, limit=str(GIB), used_bytes=GIB, page_cache_bytes=300 * MIB)
    gauge = machine(tmp_path, available_bytes=3 * GIB, cgroup="0::/a\n")
    assert gauge.read() == Memory(GIB, 300 * MIB)


def test_the_root_of_a_container_counts(tmp_path: Path) -> None:
    group_v2(tmp_path / "cgroup", limit=str(GIB), used_bytes=100 * MIB)
    gauge = machine(tmp_path, available_bytes=3 * GIB, cgroup="0::/\n")
    assert gauge.read() == Memory(GIB, GIB - 100 * MIB)


def test_groups_of_version_1_count(tmp_path: Path) -> None:
    memory = tmp_path / "cgroup" / "memory"
    group_v1(memory, limit_bytes=NO_LIMIT_V1, used_bytes=4 * GIB)
    group_v1(memory / "job", limit_bytes=GIB, used_bytes=GIB - 90)
    cgroup = "5:cpu,cpuacct:/\n4:memory:/job\n1:name=systemd:/\n0::/\n"
    gauge = machine(tmp_path, available_bytes=3 * GIB, cgroup=cgroup)
    assert gauge.read() == Memory(GIB, 100)


def test_this_machine_can_be_read() -> None:
    memory = MemoryGauge().read()
    assert 0 < memory.free_bytes <= memory.total_bytes


def filled_cache(budget_bytes: int) -> TieredCache[bytes, bytes]:
    cache: TieredCache[bytes, bytes] = TieredCache(budget_bytes=budget_bytes)
    for number in range(100):
        picture = CachedPicture(number, MIB, "kind", 1.0)
        cache.request(picture)
        cache.keep_pixels(picture, b"", held_bytes=MIB)
    return cache


@pytest.mark.parametrize("total_bytes", [GIB, 64 * GIB])
async def test_the_cache_shrinks_by_what_is_lacking_and_grows_again(
    total_bytes: int, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    cache = filled_cache(80 * MIB)
    left_bytes = min(GIB, total_bytes // 16)
    full_bytes = cache.held_bytes()
    others_free_bytes = left_bytes

    def read_memory() -> Memory:
        return Memory(total_bytes, others_free_bytes + full_bytes - cache.held_bytes())

    async def fit() -> None:
        await fit_cache_to_memory(cache, budget_bytes=lambda: 80 * MIB, read_memory=read_memory)

    nursery.start_soon(fit)
    await trio.sleep(5)
    assert cache.statistics().budget_bytes == 80 * MIB
    others_free_bytes = left_bytes - 20 * MIB
    await trio.sleep(5)
    shrunk_bytes = cache.statistics().budget_bytes
    assert cache.held_bytes() <= shrunk_bytes == full_bytes - 20 * MIB
    others_free_bytes = left_bytes + MIB
    await trio.sleep(5)
    assert cache.statistics().budget_bytes == shrunk_bytes
    others_free_bytes = 2 * left_bytes
    await trio.sleep(5)
    assert cache.statistics().budget_bytes == full_bytes
    others_free_bytes = 2 * left_bytes + 100 * MIB
    await trio.sleep(5)
    assert cache.statistics().budget_bytes == 80 * MIB


async def test_without_any_memory_the_cache_is_all_but_empty(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    cache = filled_cache(80 * MIB)

    async def fit() -> None:
        await fit_cache_to_memory(
            cache, budget_bytes=lambda: 80 * MIB, read_memory=lambda: Memory(GIB, 0)
        )

    nursery.start_soon(fit)
    await trio.sleep(2)
    assert cache.statistics().budget_bytes == MIB
    assert cache.held_bytes() <= MIB
    assert "0 MiB of memory are left, so the cache shrinks" in caplog.text


@pytest.mark.parametrize("error", [OSError("too many open files"), KeyError("MemAvailable")])
async def test_memory_that_can_not_be_read_changes_nothing(
    error: Exception, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    cache = filled_cache(80 * MIB)
    answers: list[Exception | Memory] = [error]

    def read_memory() -> Memory:
        found = answers.pop() if answers else Memory(GIB, 0)
        if isinstance(found, Exception):
            raise found
        return found

    async def fit() -> None:
        await fit_cache_to_memory(cache, budget_bytes=lambda: 80 * MIB, read_memory=read_memory)

    nursery.start_soon(fit)
    await trio.sleep(0.15)
    assert cache.statistics().budget_bytes == 80 * MIB
    await trio.sleep(0.1)
    assert cache.statistics().budget_bytes < 80 * MIB
