"""bench replay on a live mount: requests, bytes and what each tier answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mounts import Mount, latentfs

OBJECTS, REQUESTS = 10, 60


def write_trace(path: Path) -> Path:
    """Sixty requests for ten objects, each asked for six times."""
    lines = [f"{n * 0.001:.3f},{n * 7 % OBJECTS},1000" for n in range(REQUESTS)]
    path.write_text("\n".join(["time,object,size", *lines]))
    return path


def replayed(trace: Path, folder: Path, *options: object) -> dict[str, Any]:
    done = latentfs("bench", "replay", trace, folder, "--json", *options)
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["errors"], found["interrupted"]) == ({}, False)
    return found


def bytes_asked_for(folder: Path) -> int:
    pictures = sorted(folder.iterdir())[:OBJECTS]
    return REQUESTS // OBJECTS * sum(path.stat().st_size for path in pictures)


def test_each_picture_is_rendered_once_and_then_the_kernels(mount: Mount, tmp_path: Path) -> None:
    folder = mount.path / "pictures"
    found = replayed(write_trace(tmp_path / "day.csv"), folder, "--readers", 4)
    assert (found["requests"], found["files"]) == (REQUESTS, OBJECTS)
    assert found["bytes"] == bytes_asked_for(folder)
    tiers = found["tiers"]
    assert (tiers["renders"], tiers["fetches"]) == (OBJECTS, OBJECTS)
    # Two may read a picture at the same time, and share its render or the kernel's pages.
    assert tiers["misses"] >= OBJECTS
    assert tiers["kernel_hits"] + tiers["pixel_hits"] + tiers["misses"] == REQUESTS


def test_each_read_reaches_the_daemon_if_the_kernel_is_to_forget(
    mount: Mount, tmp_path: Path
) -> None:
    folder = mount.path / "pictures"
    trace = write_trace(tmp_path / "day.csv")
    warm = replayed(trace, folder, "--readers", 1)["tiers"]
    assert (warm["kernel_hits"], warm["pixel_hits"]) == (REQUESTS - OBJECTS, 0)

    before = mount.status()
    found = replayed(trace, folder, "--readers", 1, "--drop-kernel-pages")
    after = mount.status()
    assert after["reads_total"] - before["reads_total"] >= REQUESTS
    assert after["read_bytes_total"] - before["read_bytes_total"] >= found["bytes"]
    tiers = found["tiers"]
    assert (tiers["kernel_hits"], tiers["misses"], tiers["renders"]) == (0, 0, 0)
    assert (tiers["pixel_hits"], tiers["pixel_hit_rate"]) == (REQUESTS, 1.0)
