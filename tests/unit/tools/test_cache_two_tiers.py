"""Two tiers share a budget, and the line between them moves to where bytes save more."""

import random
from itertools import pairwise

import pytest
from cachesim.policies import POLICIES, Lru, PolicyFactory, WTinyLfu
from cachesim.two_tiers import Edge, MovingLine, ShadowedTwoTiers, TwoTiers
from hypothesis import given
from hypothesis import strategies as st

PIXEL_BYTES = 1000
LATENT_BYTES = 60


def request(
    tiers: TwoTiers | ShadowedTwoTiers,
    key: int,
    *,
    render_cost_s: float = 0.03,
    fetch_cost_s: float = 0.01,
) -> str:
    """Ask for *key*, and fetch and render what is not held."""
    outcome = tiers.request(key)
    if outcome == "miss":
        tiers.fetched(key, LATENT_BYTES, fetch_cost_s)
    if outcome != "pixel":
        tiers.rendered(key, PIXEL_BYTES, render_cost_s)
    return outcome


def popular_keys(count: int, *, seed: int, keys: int = 2000) -> list[int]:
    """Keys of Zipf's law, so that any more bytes hit a little more."""
    generator = random.Random(seed)
    names = generator.sample(range(keys), keys)
    weights = [1 / rank**0.9 for rank in range(1, keys + 1)]
    return generator.choices(names, weights, k=count)


def test_evicted_pixels_leave_their_latent() -> None:
    tiers = TwoTiers(4000, policy=Lru, pixel_share=0.5)
    assert [request(tiers, key) for key in (1, 1, 2, 3)] == ["miss", "pixel", "miss", "miss"]
    assert 1 not in tiers.pixels
    assert request(tiers, 1) == "latent"
    assert request(tiers, 1) == "pixel"


def test_evicted_latents_leave_their_pixels() -> None:
    tiers = TwoTiers(4000, policy=Lru, pixel_share=1 - LATENT_BYTES / 4000)
    request(tiers, 1)
    request(tiers, 2)
    assert 1 not in tiers.latents
    assert request(tiers, 1) == "pixel"


@pytest.mark.parametrize(("share", "outcome"), [(0.0, "latent"), (1.0, "pixel")])
def test_a_share_of_0_or_1_is_one_tier_alone(share: float, outcome: str) -> None:
    tiers = TwoTiers(4000, policy=Lru, pixel_share=share)
    request(tiers, 1)
    assert request(tiers, 1) == outcome
    assert len(tiers.pixels) + len(tiers.latents) == 1


@pytest.mark.parametrize("factory", POLICIES.values(), ids=POLICIES.keys())
@given(
    keys=st.lists(st.integers(0, 40), min_size=50, max_size=300),
    cost_s=st.sampled_from([0.001, 0.1]),
)
def test_both_tiers_together_keep_to_the_budget_wherever_the_line_is(
    factory: PolicyFactory, keys: list[int], cost_s: float
) -> None:
    line = MovingLine(interval_requests=5, step_share=0.3, tier_step_share=1, confidence=0)
    tiers = TwoTiers(12_345, policy=factory, pixel_share=line)
    for key in keys:
        request(tiers, key, fetch_cost_s=cost_s)
        assert tiers.pixels.held_bytes <= tiers.pixels.budget_bytes
        assert tiers.latents.held_bytes <= tiers.latents.budget_bytes
        assert tiers.pixels.budget_bytes + tiers.latents.budget_bytes == 12_345
        assert 0 <= line.pixel_share <= 1


# Where the line goes


def shares_over(
    tiers: TwoTiers | ShadowedTwoTiers,
    keys: list[int],
    *,
    render_cost_s: float,
    fetch_cost_s: float,
) -> list[float]:
    """Return the share of pixels after each 500 requests."""
    shares = []
    for number, key in enumerate(keys, 1):
        request(tiers, key, render_cost_s=render_cost_s, fetch_cost_s=fetch_cost_s)
        if number % 500 == 0:
            shares.append(tiers.pixel_share)
    return shares


@pytest.mark.parametrize("factory", POLICIES.values(), ids=POLICIES.keys())
def test_where_only_pixels_pay_the_line_gives_them_nearly_everything(
    factory: PolicyFactory,
) -> None:
    tiers = TwoTiers(200_000, policy=factory, pixel_share=MovingLine())
    keys = popular_keys(10_000, seed=1)
    shares = shares_over(tiers, keys, render_cost_s=0.03, fetch_cost_s=0.0)
    assert shares[9] > 0.9  # after 5000 requests
    assert shares[-1] > 0.97


@pytest.mark.parametrize("factory", POLICIES.values(), ids=POLICIES.keys())
def test_where_only_latents_pay_the_line_gives_them_nearly_everything(
    factory: PolicyFactory,
) -> None:
    tiers = TwoTiers(40_000, policy=factory, pixel_share=MovingLine())
    keys = popular_keys(10_000, seed=1)
    shares = shares_over(tiers, keys, render_cost_s=0.0, fetch_cost_s=0.03)
    assert shares[9] < 0.2  # pixels save the fetch too, so that these are worth a little
    assert shares[-1] < 0.1


@pytest.mark.parametrize("factory", POLICIES.values(), ids=POLICIES.keys())
def test_the_line_settles_in_between_and_stays_there(factory: PolicyFactory) -> None:
    for first_share in (0.05, 0.95):
        line = MovingLine(pixel_share=first_share)
        tiers = TwoTiers(200_000, policy=factory, pixel_share=line)
        keys = popular_keys(30_000, seed=2)
        shares = shares_over(tiers, keys, render_cost_s=0.03, fetch_cost_s=0.03)
        settled = shares[20:]
        assert min(settled) > 0.2
        assert max(settled) - min(settled) < 0.25
        assert max(settled) < 0.95


def test_the_line_turns_round_when_the_costs_do() -> None:
    tiers = TwoTiers(60_000, policy=Lru, pixel_share=MovingLine())
    keys = popular_keys(16_000, seed=3)
    shares = shares_over(tiers, keys[:8000], render_cost_s=0.03, fetch_cost_s=0.001)
    assert shares[-1] > 0.95
    shares = shares_over(tiers, keys[8000:], render_cost_s=0.001, fetch_cost_s=0.05)
    assert shares[11] < 0.25


def test_the_line_stays_while_nothing_was_evicted() -> None:
    tiers = TwoTiers(10_000_000, policy=Lru, pixel_share=MovingLine(pixel_share=0.3))
    shares = shares_over(tiers, popular_keys(3000, seed=4), render_cost_s=0.03, fetch_cost_s=0.001)
    assert set(shares) == {0.3}


def test_the_line_gets_through_bytes_that_save_nothing_to_more_that_do() -> None:
    """A loop over 300 latents: none of the first 17_999 bytes of an LRU for them pay at all."""
    tiers = TwoTiers(20_000, policy=Lru, pixel_share=MovingLine(pixel_share=0.2))
    loop = list(range(300)) * 40
    shares = shares_over(tiers, loop, render_cost_s=0.0, fetch_cost_s=0.05)
    assert shares[-1] < 0.1
    assert [request(tiers, key) for key in range(300)] == ["latent"] * 300


def test_no_move_is_longer_than_a_step() -> None:
    tiers = TwoTiers(
        200_000, policy=Lru, pixel_share=MovingLine(interval_requests=500, step_share=0.03)
    )
    keys = popular_keys(10_000, seed=5)
    shares = [0.5, *shares_over(tiers, keys, render_cost_s=0.03, fetch_cost_s=0.0)]
    moves = [after - before for before, after in pairwise(shares)]
    assert 0 < max(moves) <= 0.03 + 1e-4
    assert min(moves) >= -1e-4


@pytest.mark.parametrize("factory", POLICIES.values(), ids=POLICIES.keys())
def test_with_a_shadow_any_policy_has_the_line_that_lru_would_have(factory: PolicyFactory) -> None:
    keys = popular_keys(8000, seed=6)
    plain = TwoTiers(100_000, policy=Lru, pixel_share=MovingLine())
    shadowed = ShadowedTwoTiers(100_000, policy=factory, line=MovingLine())
    costs = {"render_cost_s": 0.03, "fetch_cost_s": 0.01}
    assert shares_over(shadowed, keys, **costs) == shares_over(plain, keys, **costs)
    tiers = shadowed.tiers
    assert tiers.pixels.held_bytes <= tiers.pixels.budget_bytes
    assert tiers.latents.held_bytes <= tiers.latents.budget_bytes
    assert tiers.pixels.budget_bytes + tiers.latents.budget_bytes == 100_000


def test_with_a_shadow_lru_answers_as_without() -> None:
    plain = TwoTiers(100_000, policy=Lru, pixel_share=MovingLine())
    shadowed = ShadowedTwoTiers(100_000, policy=Lru, line=MovingLine())
    for key in popular_keys(5000, seed=7):
        assert request(shadowed, key) == request(plain, key)


def test_with_a_shadow_the_line_turns_round_when_the_costs_do() -> None:
    tiers = ShadowedTwoTiers(60_000, policy=WTinyLfu, line=MovingLine())
    keys = popular_keys(16_000, seed=3)
    shares = shares_over(tiers, keys[:8000], render_cost_s=0.001, fetch_cost_s=0.05)
    assert shares[-1] < 0.25
    shares = shares_over(tiers, keys[8000:], render_cost_s=0.03, fetch_cost_s=0.001)
    assert shares[-1] > 0.9


# What the line goes by


def test_an_edge_counts_who_comes_back_near_and_far() -> None:
    edge = Edge(100, far=3)
    for key in range(5):
        edge.left(key, 60)
    edge.could_save(4, 0.5)
    edge.could_save(1, 0.25)
    assert (edge.near_s, edge.far_s) == (0.5, 0.75)
    assert edge.value_s()[0] == 0.5


def test_an_edge_forgets_who_left_long_ago_and_who_came_back() -> None:
    edge = Edge(100, far=2)
    for key in range(5):
        edge.left(key, 60)
    edge.came_back(3)
    for key in (0, 1, 3):  # 2 and 4 are left
        edge.could_save(key, 1.0)
    assert edge.far_s == 0
    edge.could_save(2, 1.0)
    assert edge.far_s == 1


def test_savings_far_out_count_where_there_are_none_near() -> None:
    edge = Edge(100, far=4)
    for key in range(4):
        edge.left(key, 90)
    edge.could_save(0, 1.0)
    assert edge.value_s()[0] == 0.25


def test_savings_fade() -> None:
    edge = Edge(100, far=4)
    edge.left(1, 10)
    edge.could_save(1, 1.0)
    edge.fade(0.5)
    value_s, variance = edge.value_s()
    assert value_s == 0.5
    assert variance == 0.5


def test_a_line_does_not_move_for_a_single_event() -> None:
    line = MovingLine(confidence=1.5)
    line.begin(10_000)
    line.pixel_edge.left(1, 100)
    line.pixel_edge.could_save(1, 0.03)
    line.move(free_pixel_share=0, free_latent_share=0)
    assert line.pixel_share == 0.5
    line.pixel_edge.left(2, 100)
    for _ in range(3):
        line.pixel_edge.could_save(2, 0.03)
    line.move(free_pixel_share=0, free_latent_share=0)
    assert line.pixel_share > 0.5
