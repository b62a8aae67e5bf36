"""Pixels and latents under one budget, and what the cache tells of itself."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentfs.cache.ranking import Form
from latentfs.cache.tiered_cache import ENTRY_BYTES, CachedPicture, TieredCache

SIZE_BYTES = 2000
LATENT_BYTES = 100
each_share = pytest.mark.parametrize("pixel_share", [None, 0.0, 0.5, 1.0])


def picture_of(key: int, *, size_bytes: int = SIZE_BYTES, kind: str = "vae") -> CachedPicture:
    return CachedPicture(key, size_bytes, kind, 1.0)


Cache = TieredCache[bytes, bytes]


def read(cache: Cache, picture: CachedPicture, *, latent_bytes: int = LATENT_BYTES) -> Form:
    """Read a picture as the filesystem does."""
    form = cache.request(picture)
    if form is Form.NOTHING:
        cache.keep_latent(picture, b"latent", held_bytes=latent_bytes)
    if form is not Form.PIXELS:
        cache.keep_pixels(picture, b"pixels", held_bytes=picture.size_bytes)
    return form


@dataclass(frozen=True)
class Step:
    action: str
    key: int
    held_bytes: int


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["request", "kernel hit", "latent", "pixels", "pixels", "resize"]),
        st.integers(0, 12),
        st.integers(0, 6000) | st.integers(0, 300),
    ),
    max_size=80,
)


@each_share
@settings(max_examples=100)
@given(steps=STEPS)
def test_it_gives_what_it_was_given_last_and_its_statistics_add_up(
    pixel_share: float | None, steps: list[Step]
) -> None:
    cache: TieredCache[object, object] = TieredCache(budget_bytes=8000, pixel_share=pixel_share)
    budget_bytes = 8000
    given_pixels: dict[int, list[object]] = {}
    given_latents: dict[int, list[object]] = {}
    requests = 0
    for step in steps:
        picture = picture_of(step.key)
        if step.action == "request":
            form = cache.request(picture)
            assert (form is Form.PIXELS) is (cache.pixels(step.key) is not None)
            assert form is not Form.LATENT or cache.latent(step.key) is not None
            assert form is not Form.NOTHING or cache.latent(step.key) is None
            requests += 1
        elif step.action == "kernel hit":
            cache.kernel_hit(picture)
        elif step.action == "latent":
            given_latents.setdefault(step.key, []).append(object())
            cache.keep_latent(picture, given_latents[step.key][-1], held_bytes=step.held_bytes)
        elif step.action == "pixels":
            given_pixels.setdefault(step.key, []).append(object())
            cache.keep_pixels(picture, given_pixels[step.key][-1], held_bytes=step.held_bytes)
        else:
            budget_bytes = step.held_bytes
            cache.resize(budget_bytes)
        statistics = cache.statistics()
        pixels = {key for key in range(13) if cache.pixels(key) is not None}
        latents = {key for key in range(13) if cache.latent(key) is not None}
        assert all(cache.pixels(key) in given_pixels[key] for key in pixels)
        assert all(cache.latent(key) in given_latents[key] for key in latents)
        assert statistics.pixel_entries == len(pixels)
        assert statistics.latent_entries == len(latents)
        assert statistics.pixel_bytes >= len(pixels) * ENTRY_BYTES
        assert statistics.latent_bytes >= len(latents) * ENTRY_BYTES
        assert statistics.pixel_bytes + statistics.latent_bytes <= budget_bytes
        assert cache.held_bytes() == statistics.pixel_bytes + statistics.latent_bytes
        assert statistics.budget_bytes == budget_bytes
        assert statistics.pixel_hits + statistics.latent_hits + statistics.misses == requests
        kept = sum(map(len, given_pixels.values())), sum(map(len, given_latents.values()))
        assert statistics.pixel_evictions + len(pixels) <= kept[0]
        assert statistics.latent_evictions + len(latents) <= kept[1]


def test_what_was_held_stays_when_the_same_is_offered_larger_than_the_budget() -> None:
    cache = Cache(budget_bytes=3000)
    cache.keep_pixels(picture_of(1), b"held", held_bytes=1000)
    cache.keep_pixels(picture_of(1), b"too large", held_bytes=3000)
    assert cache.pixels(1) == b"held"
    cache.resize(0)
    assert cache.pixels(1) is None
    assert cache.statistics().pixel_evictions == 1


def test_statistics_of_a_known_sequence() -> None:
    cache = Cache(budget_bytes=2 * (SIZE_BYTES + ENTRY_BYTES) + 3 * (LATENT_BYTES + ENTRY_BYTES))
    cache.costs.fetched(0.01)
    cache.costs.rendered("vae", 0.03, weight=1.0)
    for _ in range(3):
        read(cache, picture_of(1))
        read(cache, picture_of(2))
    read(cache, picture_of(3))
    assert read(cache, picture_of(3)) is Form.LATENT
    cache.kernel_hit(picture_of(1))
    statistics = cache.statistics()
    assert (statistics.pixel_hits, statistics.latent_hits, statistics.misses) == (4, 1, 3)
    assert statistics.kernel_hits == 1
    assert (statistics.pixel_entries, statistics.latent_entries) == (2, 3)
    assert (statistics.pixel_evictions, statistics.latent_evictions) == (2, 0)
    assert statistics.pixel_bytes == 2 * (SIZE_BYTES + ENTRY_BYTES)
    assert statistics.latent_bytes == 3 * (LATENT_BYTES + ENTRY_BYTES)
    assert (statistics.fetch_s, statistics.render_s) == (0.01, {"vae": 0.03})
    assert statistics.half_life_requests >= 64
    assert statistics.pixel_share is None
    assert cache.pixel_part() == statistics.pixel_bytes / cache.held_bytes()


def test_an_empty_cache_has_no_edges() -> None:
    cache = Cache(budget_bytes=1000)
    statistics = cache.statistics()
    assert (statistics.pixel_edge_s_per_gb, statistics.latent_edge_s_per_gb) == (None, None)
    assert cache.pixel_part() == 0.0


def test_only_hits_of_the_kernel_on_known_pictures_are_counted() -> None:
    cache = Cache(budget_bytes=10_000)
    cache.kernel_hit(picture_of(1))
    assert cache.statistics().kernel_hits == 0
    read(cache, picture_of(1))
    cache.kernel_hit(picture_of(1))
    cache.resize(0)
    cache.kernel_hit(picture_of(1))
    statistics = cache.statistics()
    assert statistics.kernel_hits == 2
    assert (statistics.pixel_hits, statistics.misses) == (0, 1)


def test_hits_of_the_kernel_neither_raise_a_rank_nor_age_others() -> None:
    with_hits, without = (
        Cache(budget_bytes=3 * (SIZE_BYTES + ENTRY_BYTES), pixel_share=1.0) for _ in range(2)
    )
    for cache in (with_hits, without):
        for key in (1, 2, 3, 2, 3):
            read(cache, picture_of(key))
            if cache is with_hits:
                for _ in range(100):
                    cache.kernel_hit(picture_of(1))
        for _ in range(2):
            read(cache, picture_of(4))
        assert [cache.pixels(key) is not None for key in (1, 2, 3, 4)] == [False, True, True, True]
    assert with_hits.statistics().kernel_hits == 500
    assert with_hits.statistics().pixel_edge_s_per_gb == without.statistics().pixel_edge_s_per_gb


def test_a_budget_of_nothing_empties_it_and_a_larger_one_fills_it_again() -> None:
    cache = Cache(budget_bytes=20_000)
    for key in range(5):
        read(cache, picture_of(key))
    cache.resize(0)
    assert cache.held_bytes() == 0
    assert all(cache.pixels(key) is cache.latent(key) is None for key in range(5))
    assert read(cache, picture_of(1)) is Form.NOTHING
    assert cache.held_bytes() == 0
    cache.resize(20_000)
    read(cache, picture_of(1))
    assert read(cache, picture_of(1)) is Form.PIXELS


@pytest.mark.parametrize(("pixel_share", "pixels", "latents"), [(0.0, 0, 1), (1.0, 1, 0)])
def test_a_share_of_all_or_nothing_holds_one_form(
    pixel_share: float, pixels: int, latents: int
) -> None:
    cache = Cache(budget_bytes=10_000, pixel_share=pixel_share)
    read(cache, picture_of(1))
    statistics = cache.statistics()
    assert (statistics.pixel_entries, statistics.latent_entries) == (pixels, latents)
    assert cache.pixel_part() == pixel_share


def test_slow_fetches_move_the_line_to_latents_and_fast_ones_back() -> None:
    cache = Cache(budget_bytes=100_000)
    chosen = random.Random(5)

    def part_after(fetch_s: float) -> float:
        for _ in range(6000):
            picture = picture_of(int(chosen.paretovariate(0.5)) % 500)
            if read(cache, picture) is Form.NOTHING:
                cache.costs.fetched(fetch_s)
            cache.costs.rendered("vae", 0.03, weight=1.0)
        return cache.pixel_part()

    fast, slow, fast_again = part_after(0.0005), part_after(0.1), part_after(0.0005)
    assert fast > 0.8
    assert slow < 0.5
    assert fast_again == pytest.approx(fast, abs=0.15)


def test_pixels_of_a_slow_kind_are_kept_before_those_of_a_fast_one() -> None:
    cache = Cache(budget_bytes=10 * (SIZE_BYTES + ENTRY_BYTES), pixel_share=1.0)
    cache.costs.rendered("fast", 0.005, weight=1.0)
    cache.costs.rendered("slow", 0.5, weight=1.0)
    for _ in range(3):
        for key in range(20):
            read(cache, picture_of(key, kind="slow" if key < 10 else "fast"))
    assert all(cache.pixels(key) for key in range(10))


def test_it_takes_the_decay_that_suits_the_readers() -> None:
    cache = Cache(budget_bytes=100 * (SIZE_BYTES + ENTRY_BYTES), pixel_share=1.0)
    before = cache.statistics().half_life_requests
    chosen = random.Random(2)
    for number in range(20_000):
        read(cache, picture_of(number // 10 - int(chosen.expovariate(1 / 100))))
    statistics = cache.statistics()
    assert before == 64
    assert statistics.half_life_requests <= statistics.pixel_entries
    assert statistics.latent_slowness >= 1.0
