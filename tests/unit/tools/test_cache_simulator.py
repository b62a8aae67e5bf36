"""The simulator: what readers wait for, and what the caches are told."""

from __future__ import annotations

import numpy as np
import pytest
from cachesim.caches import PolicyTiers, ProductCache
from cachesim.policies import POLICIES, Lru
from cachesim.simulator import Delays, Replay, SimulatedCache, plain_store, replay
from cachesim.trace import Trace
from cachesim.traces import all_traces
from cachesim.two_tiers import MovingLine

from latentfs.cache.ranking import Form
from latentfs.cache.tiered_cache import ENTRY_BYTES

DELAYS = Delays(fetch_s=0.010, render_s=0.030, hit_s=0.001)
LONGEST_WAIT_S = 0.041
PIXEL_BYTES, LATENT_BYTES = 1000, 100
NOTHING_ELSE = 10 * (PIXEL_BYTES + LATENT_BYTES + 2 * ENTRY_BYTES)


def tiny_trace(requests: list[tuple[float, int]], *, weights: list[float] | None = None) -> Trace:
    weights = weights or [1.0, 1.0, 1.0]
    return Trace(
        name="tiny",
        times_s=np.array([time_s for time_s, _ in requests]),
        objects=np.array([picture for _, picture in requests]),
        pixel_bytes=np.full(len(weights), PIXEL_BYTES),
        latent_bytes=np.full(len(weights), LATENT_BYTES),
        kinds=np.zeros(len(weights), dtype=np.int64),
        kind_names=("1024x1024 full",),
        render_weights=np.array(weights),
    )


def product(
    trace: Trace, *, budget_bytes: int = NOTHING_ELSE, pixel_share: float | None = None
) -> ProductCache:
    return ProductCache(trace, DELAYS, budget_bytes=budget_bytes, pixel_share=pixel_share)


class Scripted:
    """Holds what it is told to, and notes what happens."""

    def __init__(self, held: dict[int, Form]) -> None:
        self.held = held
        self.events: list[tuple[str, int]] = []

    def request(self, picture: int) -> Form:
        self.events.append(("request", picture))
        return self.held.get(picture, Form.NOTHING)

    def fetched(self, picture: int) -> None:
        self.events.append(("fetched", picture))

    def rendered(self, picture: int) -> None:
        self.events.append(("rendered", picture))

    def pixel_share(self) -> float:
        return 0.25


def test_a_miss_waits_for_fetch_and_render_a_latent_for_its_render_and_pixels_for_a_hit() -> None:
    trace = tiny_trace([(0.0, 0), (1.0, 1), (2.0, 2)])
    replayed = replay(trace, Scripted({1: Form.LATENT, 2: Form.PIXELS}), DELAYS)
    assert replayed.waits_s == pytest.approx([0.041, 0.031, 0.001])
    assert replayed.forms == {Form.NOTHING: 1, Form.LATENT: 1, Form.PIXELS: 1}
    assert replayed.share_at == [(0, 0.25), (1, 0.25), (2, 0.25)]


def test_readers_of_one_picture_share_its_render_and_wait_for_the_rest_of_it() -> None:
    trace = tiny_trace([(0.0, 0), (0.015, 0), (0.015, 1), (0.0399, 0), (0.0401, 0)])
    cache = Scripted({})
    replayed = replay(trace, cache, DELAYS)
    assert replayed.waits_s == pytest.approx([0.041, 0.026, 0.041, 0.0011, 0.041])
    assert replayed.forms[Form.NOTHING] == 5
    assert cache.events.count(("rendered", 0)) == 1, "the second render of 0 did not end in time"
    assert cache.events.index(("fetched", 0)) == cache.events.index(("rendered", 0)) - 1
    assert cache.events.index(("rendered", 0)) == 5, "it was kept before the last request"


def test_a_render_of_a_held_latent_is_no_fetch() -> None:
    cache = Scripted({0: Form.LATENT})
    replay(tiny_trace([(0.0, 0), (1.0, 1)]), cache, DELAYS)
    assert cache.events == [("request", 0), ("rendered", 0), ("request", 1)]


def test_waits_follow_the_weight_of_the_render_and_the_bytes_that_the_store_sends() -> None:
    trace = tiny_trace([(0.0, 0), (1.0, 1)], weights=[1.0, 4.0])
    delays = Delays(fetch_s=0.010, render_s=0.030, hit_s=0.0, bytes_per_s=LATENT_BYTES / 0.002)
    replayed = replay(trace, Scripted({1: Form.LATENT}), delays)
    assert replayed.waits_s == pytest.approx([0.042, 0.120])


def test_a_plain_store_sends_the_bytes_of_pixels_and_renders_nothing() -> None:
    trace = tiny_trace([(0.0, 0), (1.0, 1)], weights=[1.0, 4.0])
    delays = Delays(fetch_s=0.010, render_s=0.030, hit_s=0.0, bytes_per_s=PIXEL_BYTES / 0.005)
    plain, plain_delays = plain_store(trace, delays)
    replayed = replay(plain, Scripted({}), plain_delays)
    assert replayed.waits_s == pytest.approx([0.015, 0.015])


def test_the_product_keeps_what_was_rendered_and_both_forms_share_the_budget() -> None:
    trace = tiny_trace([(0.0, 0), (1.0, 0), (2.0, 1), (3.0, 0)])
    replayed = replay(trace, product(trace), DELAYS)
    assert replayed.waits_s == pytest.approx([0.041, 0.001, 0.041, 0.001])


def test_with_room_for_latents_alone_each_read_is_a_render() -> None:
    trace = tiny_trace([(0.0, 0), (1.0, 0)])
    cache = product(trace, budget_bytes=LATENT_BYTES + ENTRY_BYTES, pixel_share=0.0)
    replayed = replay(trace, cache, DELAYS)
    assert replayed.waits_s == pytest.approx([0.041, 0.031])
    assert cache.pixel_share() == 0.0


def test_the_product_is_told_what_fetches_and_renders_take() -> None:
    trace = tiny_trace([(0.0, 0)], weights=[3.0])
    cache = product(trace)
    cache.fetched(0)
    cache.rendered(0)
    assert cache.tiers.costs.fetch_s == pytest.approx(0.010)
    assert cache.tiers.costs.render_s() == {0: pytest.approx(0.030)}


def caches_of(trace: Trace, budget_bytes: int) -> dict[str, SimulatedCache]:
    """Return one of each sort."""
    found: dict[str, SimulatedCache] = {
        f"product {share}": product(trace, budget_bytes=budget_bytes, pixel_share=share)
        for share in (None, 0.0, 0.5, 1.0)
    }
    for name, policy in POLICIES.items():
        lines: dict[str, tuple[float | MovingLine, bool]] = {
            "fixed": (0.5, False),
            "moving": (MovingLine(), False),
            "shadowed": (MovingLine(), True),
        }
        for how, (line, shadowed) in lines.items():
            found[f"{name} {how}"] = PolicyTiers(
                trace,
                DELAYS,
                budget_bytes=budget_bytes,
                policy=policy,
                pixel_share=line,
                shadowed=shadowed,
            )
    return found


def test_every_request_finds_something_or_nothing_whatever_the_cache() -> None:
    trace = all_traces(3000, 300, seed=1)["flash-crowd"]()
    for name, cache in caches_of(trace, trace.total_pixel_bytes // 20).items():
        replayed = replay(trace, cache, DELAYS)
        assert sum(replayed.forms.values()) == len(replayed.waits_s) == trace.requests, name
        assert min(replayed.waits_s) >= DELAYS.hit_s, name
        assert max(replayed.waits_s) <= LONGEST_WAIT_S + 1e-9, name
        assert all(0.0 <= share <= 1.0 for _, share in replayed.share_at), name
        assert sum(replayed.part(form) for form in Form) == pytest.approx(1.0), name
        assert replayed.mean_s == pytest.approx(_mean_by_forms(replayed), rel=0.1), name


def _mean_by_forms(replayed: Replay) -> float:
    """Return what readers would wait on average if none had shared a render."""
    fetches_s = replayed.part(Form.NOTHING) * DELAYS.fetch_s
    renders_s = (1 - replayed.part(Form.PIXELS)) * DELAYS.render_s
    return DELAYS.hit_s + fetches_s + renders_s


def test_a_pixel_tier_alone_holds_pixels_whichever_the_cache() -> None:
    trace = tiny_trace([(0.0, 0), (1.0, 0), (2.0, 1), (3.0, 0)])
    budget_bytes = PIXEL_BYTES + ENTRY_BYTES
    lru = PolicyTiers(trace, DELAYS, budget_bytes=budget_bytes, policy=Lru, pixel_share=1.0)
    assert replay(trace, lru, DELAYS).forms[Form.PIXELS] == 1, "1 took the place of 0"
    assert lru.pixel_share() == 1.0
    ranked = product(trace, budget_bytes=budget_bytes, pixel_share=1.0)
    assert replay(trace, ranked, DELAYS).forms[Form.PIXELS] == 2, "0 was read more often than 1"
    assert ranked.pixel_share() == 1.0
