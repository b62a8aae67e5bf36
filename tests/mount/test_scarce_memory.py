"""In a control group with little memory the daemon keeps less, and is not killed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from latent_files import latent_array
from mounts import mounted, wait_until
from rendered_stores import rendered_store

LIMIT_BYTES = 20 << 20
PICTURES = 120


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A control group, of either version, that may have LIMIT_BYTES; yields its folder."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup", controllers)
        name = "memory.max" if controllers == "" else "memory.limit_in_bytes"
        group = root / path.lstrip("/") / "latentfs-scarce"
        with contextlib.suppress(OSError):
            group.mkdir()
            try:
                (group / name).write_text(str(LIMIT_BYTES))
                yield group
            finally:
                group.rmdir()
            return
    pytest.skip("no control group with a memory limit can be made here")


def test_the_cache_gives_memory_back_before_the_daemon_is_killed(
    tiny_vae_folder: Path, tmp_path: Path, limited_group: Path
) -> None:
    latents = [latent_array(1, 4, 64, 64, seed=number) for number in range(PICTURES)]
    store = rendered_store(tmp_path, tiny_vae_folder, latents, to="/")
    with mounted(store, tmp_path / "mnt", "--cache", "1G", "--prefetch", "0") as mount:
        mount.wait_for_renderer()
        # What the daemon takes from now on counts; what it has, and the renderer, does not.
        (limited_group / "cgroup.procs").write_text(str(mount.process.pid))
        sizes = {}
        for name in sorted(os.listdir(mount.path)):
            sizes[name] = len((mount.path / name).read_bytes())
        assert sum(sizes.values()) > 1.3 * LIMIT_BYTES
        status = mount.status()
        assert status["cache"]["budget_bytes"] < LIMIT_BYTES
        assert "so the cache shrinks" in mount.log
        for name, size_bytes in sizes.items():
            assert (mount.path / name).stat().st_size == size_bytes
        assert mount.process.poll() is None
        assert mount.end() == 0
    wait_until(lambda: not (limited_group / "cgroup.procs").read_text(), "the group is empty")
