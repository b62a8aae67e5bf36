"""The pixel cache against a plain model of least-recently-used."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from latentfs.cache.pixel_cache import PixelCache

BUDGET_BYTES = 1000


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["get", "put", "discard"]), st.integers(0, 7), st.integers(0, 900)
        )
    )
)
def test_it_is_least_recently_used_within_its_budget(
    steps: list[tuple[str, int, int]],
) -> None:
    cache = PixelCache(budget_bytes=BUDGET_BYTES)
    model: dict[int, bytes] = {}
    for action, key, length in steps:
        if action == "get":
            expected = model.get(key)
            assert cache.get(key) is expected
            if expected is not None:
                model[key] = model.pop(key)
        elif action == "put":
            data = bytes(length)
            cache.put(key, data)
            model.pop(key, None)
            if sys.getsizeof(data) <= BUDGET_BYTES:
                model[key] = data
            while sum(map(sys.getsizeof, model.values())) > BUDGET_BYTES:
                del model[next(iter(model))]
        else:
            cache.discard(key)
            model.pop(key, None)
        statistics = cache.statistics()
        assert statistics.bytes == sum(map(sys.getsizeof, model.values())) <= BUDGET_BYTES
        assert statistics.entries == len(model)


def test_counters() -> None:
    cache = PixelCache(budget_bytes=200)
    cache.put("a", bytes(100))
    cache.put("b", bytes(100))
    assert cache.get("a") is None
    assert cache.get("b") == bytes(100)
    statistics = cache.statistics()
    assert (statistics.hits, statistics.misses, statistics.evictions) == (1, 1, 1)


def test_what_is_larger_than_the_budget_is_not_kept() -> None:
    cache = PixelCache(budget_bytes=100)
    cache.put("small", bytes(10))
    cache.put("large", bytes(1000))
    assert cache.get("large") is None
    assert cache.get("small") == bytes(10)
