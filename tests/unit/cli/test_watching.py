"""What a mount did between two answers, as lines."""

from __future__ import annotations

import copy
from typing import Any

from latentfs.cli.output import wrapped
from latentfs.cli.watching import nothing_done, watched_lines

STATUS: dict[str, Any] = {
    "mountpoint": "/mnt/art",
    "uptime_s": 50.0,
    "problem": None,
    "renderer_devices": ["cpu"],
    "renderer_problem": None,
    "operations": {"read": {"count": 100, "errors": {}}},
    "errors_total": 0,
    "reads": {"miss": {"count": 100}},
    "reads_total": 100,
    "read_bytes_total": 5_000_000,
    "slow_reads_total": 0,
    "open_files": 1,
    "renders_total": 10,
    "renders_failed_total": 0,
    "render_timeouts_total": 0,
    "renderer_restarts_total": 0,
    "render_waits_shared_total": 2,
    "renders_queued": 0,
    "renders_queued_background": 0,
    "renders_in_flight": 0,
    "queue_waits": {"foreground": {"count": 10, "total_s": 1.0}},
    "cache": {
        "kernel_hits": 10,
        "pixel_hits": 4,
        "latent_hits": 0,
        "misses": 4,
        "pixel_bytes": 1,
        "latent_bytes": 1,
        "budget_bytes": 1 << 20,
        "pixel_entries": 1,
        "latent_entries": 1,
        "pixel_share": None,
    },
    "slowest": [],
}


def watched(before: dict[str, Any], after: dict[str, Any]) -> dict[str, str]:
    return dict(watched_lines(before, after, elapsed_s=50.0, path_of=lambda ino, place: None))


def test_hits_are_those_of_pictures_however_many_requests_the_kernel_made() -> None:
    lines = watched(nothing_done(STATUS), STATUS)
    assert lines["hits"] == (
        "kernel 50%, files 20%, latents 0%, misses 20%, joined a render 10%; of 20 pictures"
    )
    assert lines["tiers"] == "miss 100%"
    after = copy.deepcopy(STATUS)
    after["cache"]["pixel_hits"] += 1
    assert watched(STATUS, after)["hits"] == (
        "kernel 0%, files 100%, latents 0%, misses 0%, joined a render 0%; of 1 picture"
    )
    assert watched(STATUS, STATUS)["hits"] == "no pictures"


def test_the_first_look_is_the_average_since_the_mount() -> None:
    lines = watched(nothing_done(STATUS), STATUS)
    assert lines["reads"].startswith("2.0/s, 0.10 MB/s")
    assert lines["queue"].endswith("foreground waited 100 ms")


def test_a_line_is_broken_at_blanks_but_never_in_a_word() -> None:
    text = wrapped("slowest", f"{'word ' * 20}/{'x' * 90}", label_columns=12, columns=80)
    first, second, path = text.split("\n")
    assert first.startswith("slowest     word ")
    assert len(first) <= 80
    assert second == " " * 12 + "word " * 6 + "word"
    assert path == " " * 12 + "/" + "x" * 90
