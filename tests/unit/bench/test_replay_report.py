"""The document and the tables of replays with known figures."""

from __future__ import annotations

import errno
import json
from array import array
from collections import Counter

import pytest

from latentfs.bench.replay import Replayed
from latentfs.bench.replay_report import document, screen
from latentfs.bench.tiers import TierCounts

ASKED = {"trace": "day.csv", "requests_asked": 2000, "files": 10, "readers": 4}
TIERS = TierCounts(
    kernel_hits=500, pixel_hits=300, latent_hits=0, misses=190, shared=10, renders=190
)


def replayed(*, requests: int = 1000) -> Replayed:
    return Replayed(
        # 1 to 1000 ms, not in order, of which the first half was waiting.
        latencies_s=array("d", (number / 1000 for number in range(requests, 0, -1))),
        services_s=array("d", (number / 2000 for number in range(requests, 0, -1))),
        errors=Counter({errno.EIO: 3, 9999: 1}),
        read_bytes=123_456,
        duration_s=4.0 if requests else 0.0,
        interrupted=True,
    )


def test_figures_are_those_of_all_requests() -> None:
    found = document(ASKED, replayed(), TIERS)
    assert found["latency"] == pytest.approx(
        {
            "mean_ms": 500.5,
            "p50_ms": 500,
            "p95_ms": 950,
            "p99_ms": 990,
            "p999_ms": 999,
            "max_ms": 1000,
        }
    )
    assert found["service"]["p999_ms"] == pytest.approx(499.5)
    assert (found["requests"], found["requests_per_s"]) == (1000, 250)
    assert found["errors"] == {"EIO": 3, "9999": 1}
    assert found["tiers"] == {
        "kernel_hits": 500,
        "pixel_hits": 300,
        "latent_hits": 0,
        "misses": 190,
        "shared": 10,
        "renders": 190,
        "fetches": 190,
        "kernel_hit_rate": pytest.approx(0.5),
        "pixel_hit_rate": pytest.approx(0.3),
        "latent_hit_rate": 0,
    }
    assert json.loads(json.dumps(found)) == found


def test_all_of_it_is_on_the_screen() -> None:
    shown = screen(document(ASKED, replayed(), TIERS))
    assert "1000 of 2000 to 10 files, 123,456 bytes, 4 readers" in shown
    assert "3 EIO, 1 9999" in shown
    table = [line.split() for line in shown.splitlines() if line.startswith("since")]
    assert table[0][2:] == ["500.500", "500.000", "950.000", "990.000", "999.000", "1000.000"]
    assert (
        "500 kernel (50.0%), 300 pixel (30.0%), 0 latent (0.0%); 190 misses, 10 joined a render"
        in shown
    )
    assert "190 renders, 190 fetches from the store" in shown


def test_a_replay_without_requests_or_a_mount_has_no_figures() -> None:
    found = document(ASKED, replayed(requests=0), None)
    assert (found["latency"], found["service"], found["tiers"]) == (None, None, None)
    assert found["requests_per_s"] == 0
    assert "hits" not in screen(found)
