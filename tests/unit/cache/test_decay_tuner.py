"""The decay is the one with which readers of a sample would have waited least."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Hashable, Iterator

import pytest

from latentfs.cache.decay_tuner import DECAYS, DecayTuner

PIXEL_BYTES = 1000
LATENT_BYTES = 60
LONGEST = max(decay.half_life for decay in DECAYS)


class FixedCosts:
    fetch_log2_s = -7.0

    def render_log2_s(self, kind: Hashable) -> float:
        return -5.0


def tuner_for(pictures: int, *, pixel_share: float | None = None) -> DecayTuner:
    return DecayTuner(
        budget_bytes=pictures * PIXEL_BYTES, pixel_share=pixel_share, costs=FixedCosts()
    )


def show(tuner: DecayTuner, keys: Iterator[Hashable], requests: int) -> list[float]:
    """Return which half-lives were chosen in the last half of so many requests."""
    chosen = []
    for number, key in enumerate(itertools.islice(keys, requests)):
        tuner.request(
            key, pixel_bytes=PIXEL_BYTES, latent_bytes=LATENT_BYTES, kind="vae", weight=1.0
        )
        if number > requests // 2:
            chosen.append(tuner.decay.half_life)
    return chosen


def static(seed: int = 1, *, pictures: int = 2000, exponent: float = 0.8) -> Iterator[int]:
    """Zipf's popularity, which never changes."""
    chosen = random.Random(seed)
    weights = list(itertools.accumulate((rank + 1) ** -exponent for rank in range(pictures)))
    while True:
        yield from chosen.choices(range(pictures), cum_weights=weights, k=1000)


def new_pictures(seed: int = 2) -> Iterator[int]:
    """Most reads are of one of the latest pictures, as many come as are read ten times."""
    chosen = random.Random(seed)
    for number in itertools.count():
        yield number // 10 - int(chosen.expovariate(1 / 60))


def test_popularity_that_stays_is_judged_by_a_long_past() -> None:
    chosen = show(tuner_for(100, pixel_share=1.0), static(), 30_000)
    assert min(chosen) == LONGEST


def test_new_pictures_are_judged_by_a_short_past() -> None:
    chosen = show(tuner_for(60, pixel_share=1.0), new_pictures(), 20_000)
    assert max(chosen) <= 1.0


def test_it_follows_when_the_readers_change_their_ways() -> None:
    tuner = tuner_for(80, pixel_share=1.0)
    assert show(tuner, static(), 20_000)[-1] == LONGEST
    assert show(tuner, new_pictures(), 10_000)[-1] <= 1.0
    assert show(tuner, static(3), 30_000)[-1] == LONGEST


def test_it_does_not_move_for_nothing() -> None:
    chosen = show(tuner_for(100, pixel_share=1.0), static(exponent=0.9), 60_000)
    changes = sum(before != after for before, after in itertools.pairwise(chosen))
    assert changes <= 10
    assert min(chosen) == LONGEST


@pytest.mark.parametrize("pixel_share", [None, 0.0, 0.5, 1.0])
def test_the_sample_gets_sparser_as_the_cache_grows_and_its_budget_with_it(
    pixel_share: float | None,
) -> None:
    tuner = tuner_for(3000, pixel_share=pixel_share)
    assert tuner.sampled_of == 1
    show(tuner, iter(range(20_000)), 20_000)
    assert tuner.sampled_of >= 4
    for trial in tuner._trials:
        ranking = trial.ranking
        assert 100 < len(ranking) < 600
        assert ranking.pixel_bytes + ranking.latent_bytes <= 3_000_000 // tuner.sampled_of
        assert all(hash((key, 0)) % tuner.sampled_of == 0 for key in ranking)


def test_the_sample_gets_denser_again_when_the_cache_shrinks() -> None:
    tuner = tuner_for(3000, pixel_share=1.0)
    show(tuner, iter(range(20_000)), 20_000)
    sparse = tuner.sampled_of
    tuner.resize(300 * PIXEL_BYTES)
    show(tuner, static(), 20_000)
    assert sparse >= 8
    assert tuner.sampled_of <= 2
    for trial in tuner._trials:
        assert 100 < len(trial.ranking) <= 300


def test_trials_have_as_much_less_room_as_they_see_fewer_pictures() -> None:
    tuner = tuner_for(3000, pixel_share=1.0)
    show(tuner, iter(range(20_000)), 20_000)
    full = [trial.ranking.pixel_bytes for trial in tuner._trials]
    tuner.resize(1_500_000)
    halved = [trial.ranking.pixel_bytes for trial in tuner._trials]
    for before, after in zip(full, halved, strict=True):
        assert after == pytest.approx(before / 2, rel=0.02)


@pytest.mark.parametrize("stride", [1, 2, 8, 1000, 1 << 32])
def test_numbers_are_sampled_evenly(stride: int) -> None:
    for sampled_of in (2, 16, 256):
        sample = sum(hash((number * stride, 0)) % sampled_of == 0 for number in range(50_000))
        assert sample == pytest.approx(50_000 / sampled_of, rel=0.3)


def test_digests_are_sampled_evenly() -> None:
    digests = [
        hashlib.blake2b(bytes([a, b]), digest_size=16).digest()
        for a in range(200)
        for b in range(250)
    ]
    for sampled_of in (2, 16, 256):
        sample = sum(hash((digest, 0)) % sampled_of == 0 for digest in digests)
        assert sample == pytest.approx(50_000 / sampled_of, rel=0.45)


def test_a_cache_that_shrank_to_nothing_and_grew_again_still_learns() -> None:
    tuner = tuner_for(100, pixel_share=1.0)
    show(tuner, static(), 5000)
    tuner.resize(0)
    show(tuner, static(), 5000)
    tuner.resize(100 * PIXEL_BYTES)
    assert min(show(tuner, static(), 30_000)) == LONGEST
