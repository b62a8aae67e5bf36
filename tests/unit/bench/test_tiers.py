"""Which tier answered, from what a daemon says of itself before and after."""

from __future__ import annotations

from pathlib import Path

from latentfs.bench.tiers import DaemonCounts, TierCounts, mounted_store, tiers_between


def counts(
    *, hits: int, misses: int, renders: int, latents: int = 0, shared: int = 0, pid: int = 7
) -> DaemonCounts:
    cache = {"pixel_hits": hits, "latent_hits": latents, "misses": misses}
    return DaemonCounts.from_status(
        {
            "pid": pid,
            "cache": cache,
            "renders_total": renders,
            "render_waits_shared_total": shared,
        }
    )


def test_what_the_daemon_did_not_look_for_was_the_kernels() -> None:
    before = counts(hits=100, misses=50, renders=40)
    after = counts(hits=130, misses=60, renders=53, latents=3, shared=5)
    found = tiers_between(before, after, reads=100)
    assert found == TierCounts(
        kernel_hits=52, pixel_hits=30, latent_hits=3, misses=10, shared=5, renders=13
    )
    assert found is not None
    assert (found.total, found.fetches) == (100, 10)


def test_files_that_are_looked_for_in_pieces_are_no_hits_of_the_kernel() -> None:
    before = counts(hits=0, misses=0, renders=0)
    found = tiers_between(before, counts(hits=25, misses=10, renders=10), reads=20)
    assert found is not None
    assert (found.kernel_hits, found.total) == (0, 35)


def test_counts_of_different_daemons_are_not_compared() -> None:
    before = counts(hits=100, misses=50, renders=40)
    after = counts(hits=1, misses=1, renders=1, pid=8)
    assert tiers_between(before, after, reads=100) is None


def test_a_plain_folder_has_no_store(tmp_path: Path) -> None:
    assert mounted_store(tmp_path) is None
    assert mounted_store(tmp_path / "none" / "such") is None
