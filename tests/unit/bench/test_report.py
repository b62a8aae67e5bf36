"""The document and the tables of measurements with known figures."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from store_contents import RECIPE

from latentfs.bench.bare_decode_process import BareDecodes
from latentfs.bench.benchmark import Benchmark, BenchmarkOptions, Round
from latentfs.bench.cold_reads import ColdPass, ColdRead
from latentfs.bench.hits import Hits
from latentfs.bench.report import document, screen
from latentfs.bench.sample import Picture, Sample

PICTURES = [Picture(f"{ino}.png", ino, 1000) for ino in (2, 3)]


def cold(wall_s: float, *seconds: float) -> ColdPass:
    reads = [
        ColdRead(ino, read_s, {"decode": read_s - 0.5, "reply": 0.5})
        for ino, read_s in enumerate(seconds, 2)
    ]
    return ColdPass(wall_s, reads)


def bare(*seconds: float) -> BareDecodes:
    return BareDecodes(list(seconds), sum(seconds), "cpu")


def measured() -> Benchmark:
    return Benchmark(
        store_path=Path("/art.lfs"),
        path="/2026",
        sample=Sample(RECIPE, (4, 64, 48), 10, PICTURES, PICTURES[0]),
        options=BenchmarkOptions(readers=2, rounds=2, device="cpu", plain_environment=True),
        rounds=[
            Round(bare(1.0, 3.0), bare(2.0, 6.0), cold(9.0, 1.5, 4.0), cold(4.0, 2.0, 4.0)),
            Round(bare(1.0, 1.0), bare(2.0, 2.0), cold(9.0, 1.25, 1.25), cold(4.0, 2.0, 4.0)),
        ],
        hits=Hits(1 << 20, [0.001] * 98 + [0.002, 0.5], 2, 7, 0),
    )


def test_the_overhead_is_of_each_read_over_the_decode_of_its_own_round() -> None:
    # 0.5, 1.0, 0.25 and 0.25 s
    one_reader = document(measured())["one_reader"]
    assert one_reader["overhead_ms"] == pytest.approx(375)
    assert one_reader["beside_decode_ms"] == pytest.approx(500)


def test_rates_through_the_mount_are_compared_within_their_round() -> None:
    found = document(measured())
    assert found["bare_decode"]["files_per_s"] == {"best": 1.0, "median": 0.75}
    assert found["bare_decode_plain"]["files_per_s"] == {"best": 0.5, "median": 0.375}
    assert found["many_readers"]["files_per_s"] == {"best": 0.5, "median": 0.5}
    assert found["many_readers"]["of_bare"] == {"best": 1.0, "median": 0.75}


def test_hits_have_percentiles() -> None:
    hits = document(measured())["hits_while_saturated"]
    assert (hits["p50_ms"], hits["p99_ms"], hits["max_ms"]) == (1.0, 2.0, 500.0)
    assert (hits["reads"], hits["size_bytes"]) == (100, 1 << 20)


def test_the_document_is_json_of_the_documented_keys() -> None:
    found = json.loads(json.dumps(document(measured())))
    page = Path(__file__).parents[3] / "docs" / "command-line.md"
    section = page.read_text("utf-8").partition("\n## bench\n")[2].partition("\n## ")[0]
    for key in found:
        assert f"`{key}`" in section


def test_the_tables_show_each_stage_and_what_was_not_measured() -> None:
    text = screen(document(measured()))
    for line in (
        "pictures   2 of 10 with latents of 4x64x48",
        "one reader, 2 cold files            median ms     p95 ms   share",
        "  decode                                875.0     3500.0   75.0%",
        "  total                                1375.0     4000.0  100.0%",
        "  over the bare decode, ms                       375.000",
        "  beside its own decode, ms                      500.000",
        "  in the plain environment              0.500      0.375",
        "  of bare decode                        1.000      0.750",
        "hits while the renderer is busy: p50 1.0 ms, p99 2.0 ms, max 500.0 ms",
    ):
        assert line in text.splitlines()
    fewer = [replace(round_, bare_plain=None) for round_ in measured().rounds]
    text = screen(document(replace(measured(), rounds=fewer, hits=None)))
    assert "plain" not in text
    assert text.endswith("hits while the renderer is busy: not measured")


def test_hits_that_were_none_are_told() -> None:
    hits = Hits(1000, [0.001], 1, 3, 2)
    assert "fell out of the cache 2 times" in screen(document(replace(measured(), hits=hits)))
