"""What is held is what saves most for its bytes; and never more than the budget."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable
from dataclasses import dataclass, field
from math import inf, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentfs.cache.ranking import Decay, Form, Ranking

SHARES: list[float | None] = [None, 0.0, 0.5, 1.0]
each_share = pytest.mark.parametrize("pixel_share", SHARES)


@dataclass
class FixedCosts:
    fetch_s: float = 0.01
    renders_s: dict[Hashable, float] = field(default_factory=dict)
    render_s: float = 0.03

    @property
    def fetch_log2_s(self) -> float:
        return log2(self.fetch_s)

    def render_log2_s(self, kind: Hashable) -> float:
        return log2(self.renders_s.get(kind, self.render_s))


class Recorded:
    """A ranking, and what it evicted."""

    def __init__(
        self,
        budget_bytes: int,
        *,
        pixel_share: float | None = None,
        costs: FixedCosts | None = None,
        half_life: float = 4.0,
        latent_slowness: float = 1.0,
    ) -> None:
        self.costs = costs or FixedCosts()
        self.evicted: list[tuple[Hashable, Form]] = []
        self.ranking: Ranking[object, object] = Ranking(
            budget_bytes=budget_bytes,
            pixel_share=pixel_share,
            costs=self.costs,
            decay=Decay(half_life, latent_slowness),
            on_evicted=lambda key, form: self.evicted.append((key, form)),
        )

    def latent(self, key: Hashable, size_bytes: int = 10, *, requests: int = 1) -> bool:
        for _ in range(requests):
            self.ranking.request(key)
        return self.ranking.hold_latent(key, f"latent {key}", size_bytes=size_bytes)

    def pixels(
        self,
        key: Hashable,
        size_bytes: int = 100,
        *,
        requests: int = 1,
        kind: Hashable = "vae",
        weight: float = 1.0,
    ) -> bool:
        for _ in range(requests):
            self.ranking.request(key)
        return self.ranking.hold_pixels(
            key, f"pixels {key}", size_bytes=size_bytes, kind=kind, weight=weight
        )

    def both(self, key: Hashable) -> None:
        if self.ranking.request(key) is Form.NOTHING:
            self.latent(key, requests=0)
        self.pixels(key, requests=0)


class Model:
    """The same by brute force: ages of all requests, sums of plain numbers, no heaps."""

    def __init__(self, budget_bytes: int, pixel_share: float | None, costs: FixedCosts) -> None:
        self.budget_bytes = budget_bytes
        self.pixel_share = pixel_share
        self.costs = costs
        self.now = 0.0
        self.demand: dict[int, list[float]] = {}
        self.held: dict[tuple[int, Form], tuple[int, Hashable, float]] = {}

    def pictures(self) -> set[int]:
        return {key for key, _ in self.held}

    def request(self, key: int) -> None:
        # Below 16 pictures the half-life is the shortest there is.
        self.now += 1 / 64
        self.demand.setdefault(key, []).append(self.now)

    def limit(self, form: Form) -> int:
        if self.pixel_share is None:
            return self.budget_bytes
        pixels = int(self.budget_bytes * self.pixel_share)
        return pixels if form is Form.PIXELS else self.budget_bytes - pixels

    def hold(self, key: int, form: Form, size: int, kind: Hashable, weight: float) -> bool:
        if size > self.limit(form):
            return False
        self.demand.setdefault(key, [self.now])
        self.held[key, form] = (size, kind, weight)
        return True

    def value(self, key: int, form: Form) -> float:
        size, kind, weight = self.held[key, form]
        render_s = self.costs.renders_s.get(kind, self.costs.render_s)
        saved_s = self.costs.fetch_s if form is Form.LATENT else render_s * weight
        requests = math.fsum(2.0 ** (at - self.now) for at in self.demand[key])
        return requests * saved_s / size

    def used(self, form: Form) -> int:
        return sum(size for (_, held), (size, _, _) in self.held.items() if held is form)

    def over(self) -> set[Form]:
        forms = {Form.PIXELS, Form.LATENT}
        if self.pixel_share is None:
            return forms if sum(map(self.used, forms)) > self.budget_bytes else set()
        return {form for form in forms if self.used(form) > self.limit(form)}

    def check_and_evict(self, evicted: list[tuple[Hashable, Form]]) -> None:
        """Each eviction was called for, and of one that saved least, or as little."""
        for key, form in evicted:
            over = self.over()
            assert form in over
            values = {entry: self.value(*entry) for entry in self.held if entry[1] in over}
            in_question = [
                value
                for entry, value in values.items()
                if self.pixel_share is None or entry[1] is form
            ]
            assert isinstance(key, int)
            assert values[key, form] <= min(in_question) * (1 + 1e-9)
            del self.held[key, form]
        assert not self.over()


@dataclass(frozen=True)
class Step:
    action: str
    key: int
    size_bytes: int
    kind: str
    weight: float
    cost_s: float


STEPS = st.lists(
    st.builds(
        Step,
        st.sampled_from(["request"] * 4 + ["latent"] * 3 + ["pixels"] * 4)
        | st.sampled_from(["discard", "resize", "fetch cost", "render cost"]),
        st.integers(0, 9),
        st.integers(1, 400) | st.integers(1, 40),
        st.sampled_from("ab"),
        st.sampled_from([0.5, 1.0, 3.0]),
        st.sampled_from([1e-4, 1e-2, 1.0]),
    ),
    max_size=60,
)


@each_share
@settings(max_examples=150)
@given(steps=STEPS)
def test_it_evicts_what_plain_sums_say(pixel_share: float | None, steps: list[Step]) -> None:
    costs = FixedCosts()
    recorded = Recorded(500, pixel_share=pixel_share, costs=costs)
    ranking = recorded.ranking
    model = Model(500, pixel_share, costs)
    values: dict[tuple[int, Form], object] = {}
    for step in steps:
        recorded.evicted.clear()
        key, size_bytes = step.key, step.size_bytes
        if step.action == "request":
            assert ranking.request(key) is ranking.form(key)
            model.request(key)
        elif step.action == "latent":
            value = object()
            held = ranking.hold_latent(key, value, size_bytes=size_bytes)
            assert held is model.hold(key, Form.LATENT, size_bytes, None, 1.0)
            if held:
                values[key, Form.LATENT] = value
        elif step.action == "pixels":
            value = object()
            held = ranking.hold_pixels(
                key, value, size_bytes=size_bytes, kind=step.kind, weight=step.weight
            )
            assert held is model.hold(key, Form.PIXELS, size_bytes, step.kind, step.weight)
            if held:
                values[key, Form.PIXELS] = value
        elif step.action == "discard":
            ranking.discard(key)
            model.demand.pop(key, None)
            for form in Form:
                model.held.pop((key, form), None)
        elif step.action == "resize":
            model.budget_bytes = 2 * size_bytes
            ranking.resize(2 * size_bytes)
        elif step.action == "fetch cost":
            costs.fetch_s = step.cost_s
        else:
            costs.renders_s[step.kind] = step.cost_s
        model.check_and_evict(recorded.evicted)
        _assert_same(ranking, model, values)


def _assert_same(
    ranking: Ranking[object, object], model: Model, values: dict[tuple[int, Form], object]
) -> None:
    for key in range(10):
        pixels = values[key, Form.PIXELS] if (key, Form.PIXELS) in model.held else None
        latent = values[key, Form.LATENT] if (key, Form.LATENT) in model.held else None
        assert ranking.pixels(key) is pixels
        assert ranking.latent(key) is latent
        expected = Form.PIXELS if pixels else Form.LATENT if latent else Form.NOTHING
        assert ranking.form(key) is expected
        assert ranking.knows(key) is (key in model.demand)
    assert ranking.pixel_bytes == model.used(Form.PIXELS)
    assert ranking.latent_bytes == model.used(Form.LATENT)
    assert ranking.pixel_bytes + ranking.latent_bytes <= model.budget_bytes
    assert sorted(ranking, key=hash) == sorted(model.pictures())
    assert len(ranking) == len(model.pictures())
    assert ranking.pixel_entries + ranking.latent_entries == len(model.held)


@each_share
def test_a_long_random_run_keeps_to_its_budget_and_tells_each_eviction_once(
    pixel_share: float | None,
) -> None:
    chosen = random.Random(3)
    recorded = Recorded(5000, pixel_share=pixel_share)
    ranking = recorded.ranking
    budget_bytes = 5000
    held: set[tuple[Hashable, Form]] = set()
    for number in range(20_000):
        key = int(chosen.paretovariate(0.8))
        recorded.evicted.clear()
        if number % 1000 == 999:
            budget_bytes = chosen.randrange(8000)
            ranking.resize(budget_bytes)
        elif number % 97 == 0:
            ranking.discard(key)
            held -= {(key, Form.PIXELS), (key, Form.LATENT)}
        elif ranking.request(key) is not Form.PIXELS:
            if recorded.latent(key, 1 + key % 30, requests=0):
                held.add((key, Form.LATENT))
            if recorded.pixels(key, 20 + key % 200, requests=0, kind=key % 3):
                held.add((key, Form.PIXELS))
        for entry in recorded.evicted:
            held.remove(entry)
        pixel_limit = budget_bytes if pixel_share is None else int(budget_bytes * pixel_share)
        assert ranking.pixel_bytes + ranking.latent_bytes <= budget_bytes
        assert ranking.pixel_bytes <= pixel_limit
        if pixel_share is not None:
            assert ranking.latent_bytes <= budget_bytes - pixel_limit
    assert ranking.pixel_entries + ranking.latent_entries == len(held)
    assert all(ranking.form(key) >= form for key, form in held)


def test_the_picture_asked_for_less_often_goes_first() -> None:
    recorded = Recorded(200)
    recorded.pixels("often", requests=3)
    recorded.pixels("once")
    recorded.pixels("new", requests=2)
    assert recorded.evicted == [("once", Form.PIXELS)]


def test_the_picture_asked_for_longer_ago_goes_first() -> None:
    recorded = Recorded(200)
    recorded.pixels("older")
    recorded.pixels("newer")
    recorded.pixels("new", requests=2)
    assert recorded.evicted == [("older", Form.PIXELS)]


def test_requests_of_long_ago_count_less_than_one_of_now() -> None:
    recorded = Recorded(200, half_life=1.0)
    recorded.pixels("once often", requests=20)
    recorded.pixels("now and then")
    for _ in range(10):
        for _ in range(64):
            recorded.ranking.request("something else")
        recorded.ranking.request("now and then")
    recorded.pixels("new", requests=2)
    assert recorded.evicted == [("once often", Form.PIXELS)]


def test_of_two_equally_asked_for_the_larger_goes_first() -> None:
    recorded = Recorded(250)
    recorded.pixels("small", 80)
    recorded.pixels("large", 120)
    recorded.pixels("new", 100)
    assert recorded.evicted == [("large", Form.PIXELS)]


@pytest.mark.parametrize("cheap", [{"weight": 0.2}, {"kind": "fast"}])
def test_of_two_equally_asked_for_the_cheaper_render_goes_first(cheap: dict[str, object]) -> None:
    recorded = Recorded(200, costs=FixedCosts(renders_s={"fast": 0.005}))
    recorded.pixels("dear")
    recorded.pixels("cheap", **cheap)  # type: ignore[arg-type]
    recorded.pixels("new")
    assert recorded.evicted == [("cheap", Form.PIXELS)]


def test_what_saves_least_is_not_admitted() -> None:
    recorded = Recorded(200)
    recorded.pixels("a", requests=3)
    recorded.pixels("b", requests=3)
    assert recorded.pixels("once")
    assert recorded.evicted == [("once", Form.PIXELS)]
    assert recorded.ranking.form("once") is Form.NOTHING
    assert recorded.ranking.pixels("once") is None


def test_held_anew_with_another_size_and_kind_it_ranks_by_those() -> None:
    recorded = Recorded(300, costs=FixedCosts(renders_s={"slow": 1.0, "fast": 0.001}))
    recorded.pixels("a", kind="slow")
    recorded.pixels("b", kind="slow")
    recorded.pixels("a", 200, requests=0, kind="fast")
    recorded.latent("b", 20, requests=0)
    recorded.latent("b", 5, requests=0)
    assert recorded.evicted == [("a", Form.PIXELS)]
    assert (recorded.ranking.pixel_bytes, recorded.ranking.latent_bytes) == (100, 5)


def test_what_is_larger_than_the_budget_changes_nothing() -> None:
    recorded = Recorded(100)
    recorded.pixels("a", 60)
    recorded.latent("a", 40)
    assert not recorded.pixels("a", 101)
    assert not recorded.latent("b", 101)
    assert recorded.evicted == []
    assert recorded.ranking.pixels("a") == "pixels a"
    assert (recorded.ranking.pixel_bytes, recorded.ranking.latent_bytes) == (60, 40)


@pytest.mark.parametrize(("pixel_share", "fits"), [(0.0, False), (0.5, False), (1.0, True)])
def test_a_fixed_share_is_the_budget_of_its_form(pixel_share: float, fits: bool) -> None:
    recorded = Recorded(100, pixel_share=pixel_share)
    assert recorded.pixels("a", 60) is fits
    assert recorded.latent("a", 60) is (pixel_share == 0.0)


def test_a_smaller_budget_evicts_from_both_parts_of_a_fixed_share() -> None:
    recorded = Recorded(400, pixel_share=0.5)
    for key in "abcd":
        recorded.pixels(key, 50)
        recorded.latent(key, 50, requests=0)
    recorded.ranking.resize(200)
    assert sorted(recorded.evicted) == [
        ("a", Form.LATENT), ("a", Form.PIXELS), ("b", Form.LATENT), ("b", Form.PIXELS),
    ]  # fmt: skip


def test_a_discarded_picture_has_no_history_and_can_be_held_again() -> None:
    recorded = Recorded(200)
    ranking = recorded.ranking
    recorded.pixels("a", requests=9)
    recorded.latent("a", requests=0)
    ranking.discard("a")
    ranking.discard("a")
    assert recorded.evicted == []
    assert not ranking.knows("a")
    assert (len(ranking), ranking.pixel_bytes, ranking.latent_bytes) == (0, 0, 0)
    recorded.pixels("b", requests=2)
    recorded.pixels("a")
    recorded.pixels("c", requests=2)
    assert recorded.evicted == [("a", Form.PIXELS)]


def test_what_is_discarded_or_held_anew_leaves_nothing_in_memory() -> None:
    recorded = Recorded(10_000)
    for number in range(50):
        recorded.pixels(number, requests=50)
    for number in range(5000):
        recorded.pixels("again", 10 + number % 5, kind=number % 2)
        recorded.latent(("passing", number))
        recorded.ranking.discard(("passing", number))
    for tier in (recorded.ranking._pixels, recorded.ranking._latents):
        items = sum(map(len, tier._heaps.values()))
        assert items <= 2 * len(tier.held) + 100


def test_slow_fetches_make_latents_win_and_slow_renders_pixels() -> None:
    recorded = Recorded(3000, costs=FixedCosts(fetch_s=0.001, render_s=0.03))
    chosen = random.Random(5)

    def pixel_part() -> float:
        for _ in range(3000):
            recorded.both(int(chosen.paretovariate(0.5)) % 500)
        ranking = recorded.ranking
        assert ranking.pixel_bytes + ranking.latent_bytes > 2500
        return ranking.pixel_bytes / (ranking.pixel_bytes + ranking.latent_bytes)

    mostly_pixels = pixel_part()
    recorded.costs.fetch_s = 0.1
    mostly_latents = pixel_part()
    recorded.costs.fetch_s = 0.001
    again = pixel_part()
    assert mostly_pixels > 0.8
    assert mostly_latents < 0.4
    assert again == pytest.approx(mostly_pixels, abs=0.1)


@each_share
def test_a_scan_of_many_pictures_leaves_what_is_read_often(pixel_share: float | None) -> None:
    # Read 5 times: for log2(5) half-lives that is worth more than what is read once.
    recorded = Recorded(120_000, pixel_share=pixel_share, half_life=64.0)
    hot = list(range(500))
    for _ in range(5):
        for key in hot:
            recorded.both(key)
    before = {key: recorded.ranking.form(key) for key in hot}
    for number in range(100_000):
        recorded.both(("scan", number))
    kept = sum(recorded.ranking.form(key) is before[key] for key in hot)
    assert Form.NOTHING not in before.values()
    assert kept >= 0.95 * len(hot)


@each_share
def test_what_is_still_read_survives_any_scan(pixel_share: float | None) -> None:
    recorded = Recorded(20_000, pixel_share=pixel_share, half_life=4.0)
    hot = list(range(50))
    for number in range(30_000):
        recorded.both(("scan", number))
        if number % 5 == 0:
            recorded.both(hot[number // 5 % len(hot)])
    least = Form.LATENT if pixel_share == 0.0 else Form.PIXELS
    assert sum(recorded.ranking.form(key) is least for key in hot) >= 0.95 * len(hot)


def test_a_picture_that_returns_has_its_history() -> None:
    recorded = Recorded(200)
    recorded.pixels("returns", requests=5)
    recorded.ranking.resize(0)
    recorded.ranking.resize(200)
    recorded.evicted.clear()
    recorded.pixels("a", requests=3)
    recorded.pixels("b", requests=4)
    recorded.pixels("returns")
    assert recorded.evicted == [("a", Form.PIXELS)]


def test_pictures_that_left_are_known_for_a_while_and_forgotten_in_order() -> None:
    recorded = Recorded(0)
    for number in range(2000):
        recorded.ranking.request(number)
    known = [number for number in range(2000) if recorded.ranking.knows(number)]
    assert 256 <= len(known) <= 512
    assert known == list(range(2000 - len(known), 2000))


def test_a_shorter_half_life_makes_new_requests_count_more() -> None:
    for half_life, evicted in ((16.0, "new"), (1.0, "old")):
        recorded = Recorded(200, half_life=16.0)
        recorded.pixels("old", requests=4)
        recorded.pixels("other", requests=40)
        recorded.ranking.decay = Decay(half_life)
        assert recorded.ranking.decay == Decay(half_life)
        recorded.pixels("new", requests=2)
        assert recorded.evicted == [(evicted, Form.PIXELS)]


def test_a_half_life_that_changes_to_and_fro_keeps_the_order_of_what_is_held() -> None:
    recorded = Recorded(1000)
    for number in range(10):
        recorded.pixels(number, requests=2 * number + 1)
    for half_life in [1.0, 64.0] * 300:
        recorded.ranking.decay = Decay(half_life)
    recorded.ranking.resize(0)
    assert recorded.evicted == [(number, Form.PIXELS) for number in range(10)]


def test_latents_last_longer_where_the_demand_for_them_is_taken_to_fall_slower() -> None:
    for latent_slowness, evicted in ((1.0, Form.LATENT), (8.0, Form.PIXELS)):
        recorded = Recorded(310, latent_slowness=latent_slowness)
        recorded.latent("old latent")
        recorded.pixels("old pixels", kind="slow", requests=2)
        recorded.pixels("other", kind="slow", requests=2)
        recorded.pixels("another", kind="slow", requests=2)
        recorded.costs.renders_s["slow"] = 0.2
        for _ in range(2 * 64):
            recorded.ranking.request("something else")
        recorded.pixels("new", 10, requests=20)
        assert [form for _, form in recorded.evicted] == [evicted]


def test_slower_latents_are_told_at_once_when_the_decay_changes() -> None:
    recorded = Recorded(1000)
    recorded.latent("a")
    for _ in range(4 * 64):
        recorded.ranking.request("something else")
    _, before = recorded.ranking.edges()
    recorded.ranking.decay = Decay(4.0, latent_slowness=2.0)
    _, after = recorded.ranking.edges()
    assert after == pytest.approx(4 * before)


def test_the_half_life_follows_the_number_of_pictures_held() -> None:
    recorded = Recorded(10**9, half_life=4.0)
    assert recorded.ranking.half_life_requests() == 64
    for number in range(1000):
        recorded.both(number)
    assert recorded.ranking.half_life_requests() == 4000
    recorded.ranking.resize(500 * 100)
    assert recorded.ranking.half_life_requests() == 4.0 * len(recorded.ranking)


def test_both_edges_are_equal_where_the_line_is_free_to_move() -> None:
    recorded = Recorded(20_000, costs=FixedCosts(fetch_s=0.01, render_s=0.03), half_life=16.0)
    chosen = random.Random(7)
    for _ in range(30_000):
        recorded.both(int(chosen.paretovariate(0.5)) % 5000)
    pixels, latents = recorded.ranking.edges()
    assert recorded.ranking.pixel_bytes > 1000
    assert recorded.ranking.latent_bytes > 1000
    assert pixels == pytest.approx(latents, rel=0.5)


def test_an_edge_says_how_many_seconds_a_byte_saves_for_each_request() -> None:
    recorded = Recorded(10_000, costs=FixedCosts(fetch_s=0.02, render_s=0.05), half_life=16.0)
    for number in range(50):
        recorded.both(number)
    for _ in range(100):
        for number in range(50):
            recorded.both(number)
    pixels, latents = recorded.ranking.edges()
    assert pixels == pytest.approx(1 / 50 * 0.05 / 100, rel=0.1)
    assert latents == pytest.approx(1 / 50 * 0.02 / 10, rel=0.1)


def test_an_edge_is_infinite_where_nothing_is_held() -> None:
    recorded = Recorded(1000)
    assert recorded.ranking.edges() == (inf, inf)
    recorded.latent("a")
    assert recorded.ranking.edges()[0] == inf
    assert recorded.ranking.edges()[1] < inf
    recorded.ranking.discard("a")
    assert recorded.ranking.edges() == (inf, inf)


def test_after_very_many_requests_counts_still_add_up() -> None:
    recorded = Recorded(100 * 1000, half_life=64.0)
    recorded.ranking._now = 1e9 / 64
    for number in range(1000):
        recorded.pixels(number)
    for _ in range(3):
        for number in range(500):
            recorded.ranking.request(number)
    for number in range(500):
        recorded.pixels(("new", number), requests=2)
    evicted = {key for key, _ in recorded.evicted}
    assert evicted == set(range(500, 1000))
    pixels, _ = recorded.ranking.edges()
    assert 0 < pixels < inf
