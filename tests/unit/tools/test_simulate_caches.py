"""The experiments: what they replay, what is kept of it, and how it is judged."""

from __future__ import annotations

from pathlib import Path

import pytest
import simulate_caches
from cachesim.policies import POLICIES
from cachesim.results import (
    AUTO,
    EVEN,
    PIXELS,
    PLAIN,
    PLAIN_LRU,
    Result,
    Results,
    Run,
    judge_splits,
    policy_results,
    split,
)
from cachesim.tables import tables
from simulate_caches import EXPERIMENTS, Job, Size, jobs_of, place, with_delays, work

from latentfs.errors import InvalidArgumentError

SIZE = Size(requests=5000, pictures=500, seed=3)


def result(mean_ms: float) -> Result:
    return Result(
        mean_ms=mean_ms,
        p50_ms=1.0,
        p95_ms=1.0,
        p99_ms=1.0,
        p999_ms=1.0,
        pixels=0.5,
        latents=0.3,
        misses=0.2,
    )


def results(by_run: dict[Run, Result]) -> Results:
    return Results(SIZE.requests, SIZE.pictures, SIZE.seed, by_run)


def swept(run: Run, means_ms: dict[str, float]) -> dict[Run, Result]:
    return {run.of(cache): result(mean_ms) for cache, mean_ms in means_ms.items()}


def test_the_moving_split_is_judged_by_the_best_fixed_one_of_the_same_place() -> None:
    here, there = place("zipf-0.8"), place("zipf-0.8", budget=0.1)
    by_run = swept(here, {AUTO: 10.3, split(0.7): 10.0, EVEN: 12.0, PIXELS: 11.0})
    by_run |= swept(there, {AUTO: 5.0, split(0.7): 4.0})
    (judged,) = judge_splits(results(by_run))
    assert judged.run == here
    assert (judged.best_share, judged.best_ms) == (0.7, 10.0)
    assert judged.over_best == pytest.approx(0.03)
    assert (judged.even_ms, judged.pixels_ms) == (12.0, 11.0)


def test_a_policy_is_judged_by_its_best_line_and_by_its_moving_one() -> None:
    by_run = swept(
        place("ageing"), {AUTO: 5.0, "lru moving": 7.0, "lru 0.50": 9.0, "lru 0.90": 6.0}
    )
    assert policy_results(results(by_run), "lru") == {
        "ageing": (5.0, {"moving": 7.0, "best fixed": 6.0})
    }


def test_a_sweep_tries_what_lies_about_the_best_and_never_twice() -> None:
    run = place("zipf-1.0")
    done = work(Job(SIZE, (run,), sweeps=True, known={}))
    assert {AUTO, EVEN, PIXELS} <= {one.cache for one in done}
    (judged,) = judge_splits(results(done))
    shares = simulate_caches.SHARES
    at = shares.index(judged.best_share)
    assert {split(share) for share in shares[max(0, at - 1) : at + 2]} <= {r.cache for r in done}
    assert judged.over_best < 0.05
    known = {one: result(one_result.mean_ms) for one, one_result in done.items()}
    assert work(Job(SIZE, (run,), sweeps=True, known=known)) == known


def test_every_kind_of_cache_is_replayed_over_its_store() -> None:
    run = place("mixed")
    caches = (AUTO, EVEN, PLAIN, PLAIN_LRU, "gdsf moving", "s3fifo shadowed", "lru 0.70")
    done = work(Job(SIZE, tuple(run.of(cache) for cache in caches), sweeps=False, known={}))
    assert {one.cache for one in done} == set(caches)
    for one, found in done.items():
        assert found.pixels + found.latents + found.misses == pytest.approx(1, abs=2e-4), one
        assert (found.latents == 0) == one.plain, one
        assert (one.render_ms == 0) == one.plain, "finished files are not rendered"
    slowest_ms = done[run.of(PLAIN)].p999_ms
    assert slowest_ms == pytest.approx(10.2), "a fetch and a hit"


def test_results_are_what_was_saved(tmp_path: Path) -> None:
    by_size = with_delays(place("zipf-1.2"), 10.0, 30.0, 100.0)
    runs = (by_size, place("zipf-0.8"), place("midway"))
    before = results(work(Job(SIZE, runs, sweeps=False, known={})))
    before.save(tmp_path / "made" / "results.json")
    assert Results.load(tmp_path / "made" / "results.json") == before
    assert before.by_run[place("zipf-0.8")].quantiles_ms is not None, "for a plot"
    assert before.by_run[place("midway")].shares is not None, "for a plot"
    (tmp_path / "other.json").write_text('{"rows": [{}]}')
    with pytest.raises(InvalidArgumentError, match=r"simulate_caches\.py"):
        Results.load(tmp_path / "other.json")


def test_only_what_is_missing_is_made() -> None:
    everything = {
        run: result(1.0)
        for experiment in EXPERIMENTS.values()
        for trace in ("zipf-0.8", "ageing")
        for runs in experiment(trace)
        for run in runs
    }
    for name in ("policies", "plain", "budgets"):
        traces = {run.trace for job in jobs_of(results(everything), name) for run in job.runs}
        assert not traces & {"zipf-0.8", "ageing"}
    assert len(jobs_of(results({}), "budgets")) == 18


def test_each_experiment_has_a_table() -> None:
    run = place("ageing")
    policies = {f"{name} {way}": 3.0 for name in POLICIES for way in ("moving", "0.50")}
    means_ms = {AUTO: 1.0, EVEN: 2.0, PIXELS: 4.0, PLAIN: 8.0, PLAIN_LRU: 16.0, **policies}
    text = "\n".join(tables(results(swept(run, means_ms))))
    assert "| ageing | 5% | 10 / 30 | 1.00 | 2.00 | 0.5 | -50.0% | 2.00 | 4.00 |" in text
    assert "| 5% | 10 / 30 | 1.0 | 2.0 | 2.0 | 4.0 |" in text
    assert "| ageing | 1.00 | +200.0% |" in text
    assert "| ageing | 5% | 10 |  | 30 | 1.00 | 8.00 | 16.00 |" in text
    assert "| ageing | 5% | 10 / 30 | 1.00 | 4.00 | 8.00 |" in text
