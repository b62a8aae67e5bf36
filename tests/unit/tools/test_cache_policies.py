"""Each policy does what its paper says, within its budget, and tells what it evicts."""

from collections.abc import Hashable

import pytest
from cachesim.policies import POLICIES, Gdsf, Lru, Policy, PolicyFactory, S3Fifo, Sieve, WTinyLfu
from cachesim.policies.wtinylfu import FrequencySketch
from hypothesis import given
from hypothesis import strategies as st

BUDGET_BYTES = 1000
each_policy = pytest.mark.parametrize("factory", POLICIES.values(), ids=POLICIES.keys())

STEPS = st.lists(
    st.tuples(
        st.sampled_from(["get", "put", "put", "put", "resize", "discard"]),
        st.integers(0, 40),
        st.integers(1, 1200) | st.integers(1, 60),
        st.sampled_from([0.0, 0.001, 0.03]),
    ),
    max_size=150,
)


class Held:
    """What a policy must hold, told by its answers and its evictions alone."""

    def __init__(self, factory: PolicyFactory, budget_bytes: int) -> None:
        self.sizes: dict[Hashable, int] = {}
        self.putting: Hashable = None
        self.policy: Policy = factory(budget_bytes, on_evicted=self.evicted)

    def evicted(self, key: Hashable, size_bytes: int) -> None:
        assert self.sizes.pop(key) == size_bytes
        assert self.policy.held_bytes <= self.policy.budget_bytes

    def step(self, action: str, key: int, number: int, cost_s: float) -> None:
        if action == "get":
            assert self.policy.get(key) == (key in self.sizes)
        elif action == "resize":
            self.policy.resize(number)
        elif action == "discard":
            self.policy.discard(key)
            self.sizes.pop(key, None)
        elif self.policy.put(key, number, cost_s):
            self.sizes[key] = number
        else:
            assert key not in self.sizes
        self.check()

    def check(self) -> None:
        assert self.policy.held_bytes == sum(self.sizes.values()) <= self.policy.budget_bytes
        assert len(self.policy) == len(self.sizes)
        assert all(key in self.policy for key in self.sizes)


@each_policy
@given(steps=STEPS)
def test_it_keeps_to_its_budget_and_tells_exactly_what_it_evicts(
    factory: PolicyFactory, steps: list[tuple[str, int, int, float]]
) -> None:
    held = Held(factory, BUDGET_BYTES)
    for step in steps:
        held.step(*step)
    held.policy.resize(0)
    held.check()
    assert not held.sizes


@each_policy
def test_what_is_larger_than_the_budget_is_neither_held_nor_evicted(
    factory: PolicyFactory,
) -> None:
    evicted: list[Hashable] = []
    policy = factory(BUDGET_BYTES, on_evicted=lambda key, _: evicted.append(key))
    policy.put("small", 10, 0.03)
    assert not policy.put("large", BUDGET_BYTES + 1, 0.03)
    assert "small" in policy
    assert "large" not in policy
    assert not evicted


@each_policy
def test_a_held_object_that_grows_over_the_budget_is_evicted_with_its_old_size(
    factory: PolicyFactory,
) -> None:
    evicted: list[tuple[Hashable, int]] = []
    policy = factory(BUDGET_BYTES, on_evicted=lambda *gone: evicted.append(gone))
    policy.put("a", 5, 0.03)
    policy.put("b", 7, 0.03)
    assert not policy.put("b", BUDGET_BYTES + 1, 0.03)
    assert evicted == [("b", 7)]
    assert policy.held_bytes == 5


def request(policy: Policy, key: Hashable, size_bytes: int = 10, cost_s: float = 0.03) -> bool:
    """Ask for *key*, and put it if it is not held."""
    if policy.get(key):
        return True
    policy.put(key, size_bytes, cost_s)
    return False


def hits_after_a_scan(factory: PolicyFactory) -> int:
    """Use 50 of 100 places often, scan 1000 others once, and count which of the 50 are left."""
    policy = factory(BUDGET_BYTES)
    for _ in range(20):
        for hot in range(50):
            request(policy, hot)
    for cold in range(1000, 2000):
        request(policy, cold)
    return sum(policy.get(hot) for hot in range(50))


@pytest.mark.parametrize("factory", [Sieve, S3Fifo, WTinyLfu, Gdsf])
def test_one_pass_over_much_else_leaves_most_of_the_hot_set(factory: PolicyFactory) -> None:
    # SIEVE and GDSF age what is not used while the scan goes on, so here it must be used.
    policy = factory(BUDGET_BYTES)
    for _ in range(20):
        for hot in range(50):
            request(policy, hot)
    hits = 0
    for number, cold in enumerate(range(1000, 2000)):
        request(policy, cold)
        hits += request(policy, number % 50)
    assert hits >= 900


def test_lru_has_no_resistance_to_a_scan() -> None:
    assert hits_after_a_scan(Lru) == 0


@pytest.mark.parametrize("factory", [S3Fifo, WTinyLfu])
def test_with_a_small_queue_in_front_even_an_unused_hot_set_outlives_a_scan(
    factory: PolicyFactory,
) -> None:
    assert hits_after_a_scan(factory) >= 45


# LRU


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 400))))
def test_lru_evicts_the_least_recently_used_first(requests: list[tuple[int, int]]) -> None:
    policy = Lru(BUDGET_BYTES)
    model: list[tuple[int, int]] = []  # the least recently used first
    for key, size_bytes in requests:
        held = [entry for entry in model if entry[0] == key]
        assert request(policy, key, size_bytes) == bool(held)
        model = [entry for entry in model if entry[0] != key] + (held or [(key, size_bytes)])
        while sum(size for _, size in model) > BUDGET_BYTES:
            del model[0]
        assert all(key in policy for key, _ in model)
        assert len(policy) == len(model)


# SIEVE


class SieveModel:
    """SIEVE as its paper words it, on a plain list: the tail is at 0, the head at the end."""

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self.keys: list[int] = []
        self.visited: set[int] = set()
        self.hand = 0

    def request(self, key: int) -> bool:
        if key in self.keys:
            self.visited.add(key)
            return True
        if len(self.keys) == self.entries:
            self.evict()
        self.keys.append(key)
        return False

    def evict(self) -> None:
        while True:
            if self.hand == len(self.keys):
                self.hand = 0
            key = self.keys[self.hand]
            if key not in self.visited:
                break
            self.visited.discard(key)
            self.hand += 1
        del self.keys[self.hand]
        if self.hand == len(self.keys):
            self.hand = 0  # past the head it starts at the tail, whoever comes in meanwhile


@given(st.lists(st.integers(0, 12), max_size=200))
def test_sieve_is_its_paper_on_a_plain_list(keys: list[int]) -> None:
    policy, model = Sieve(50), SieveModel(entries=5)
    for key in keys:
        assert policy.get(key) == model.request(key)
        if key not in policy:
            policy.put(key, 10, 0.03)
        assert {held for held in range(13) if held in policy} == set(model.keys)


def test_the_hand_of_sieve_waits_where_it_evicted() -> None:
    evicted: list[Hashable] = []
    policy = Sieve(70, on_evicted=lambda key, _: evicted.append(key))
    for key in "GFEDCBA":  # G is at the tail, A at the head
        request(policy, key)
    for key in "ABG":
        request(policy, key)
    request(policy, "H")  # G is visited and stays; F goes, the hand waits at E
    assert evicted == ["F"]
    request(policy, "A")
    request(policy, "D")
    request(policy, "I")
    request(policy, "B")
    request(policy, "J")  # D is passed over
    assert evicted == ["F", "E", "C"]
    for key in "KL":  # B and A are passed over, and lose their bits; H and I were never used
        request(policy, key)
    assert evicted == ["F", "E", "C", "H", "I"]
    assert all(key in policy for key in "GDBAJKL")


def test_discarding_what_the_hand_of_sieve_waits_at_moves_it_on() -> None:
    policy = Sieve(40)
    for key in "abcd":
        request(policy, key)
    request(policy, "e")  # a goes, the hand waits at b
    policy.discard("b")
    request(policy, "f")
    request(policy, "g")
    assert [key for key in "abcdefg" if key in policy] == ["d", "e", "f", "g"]


# S3-FIFO


class S3FifoModel:
    """S3-FIFO as its paper's pseudocode, for objects of one size, on plain dicts."""

    def __init__(self, entries: int) -> None:
        self.entries = entries
        self.small_entries = entries // 10
        self.small: dict[int, int] = {}
        self.main: dict[int, int] = {}
        self.ghost: dict[int, None] = {}

    def request(self, key: int) -> bool:
        for queue in (self.small, self.main):
            if key in queue:
                queue[key] = min(queue[key] + 1, 3)
                return True
        in_ghost = key in self.ghost
        self.ghost.pop(key, None)
        while len(self.small) + len(self.main) >= self.entries:
            self.evict()
        (self.main if in_ghost else self.small)[key] = 0
        return False

    def evict(self) -> None:
        if len(self.small) >= self.small_entries and self.small:
            self.evict_small()
        else:
            self.evict_main()

    def evict_small(self) -> None:
        while self.small:
            key = next(iter(self.small))
            if self.small.pop(key) > 1:
                self.main[key] = 0
                if len(self.main) > self.entries - self.small_entries:
                    return self.evict_main()
            else:
                self.ghost[key] = None
                if len(self.ghost) > self.entries - self.small_entries:
                    del self.ghost[next(iter(self.ghost))]
                return None
        return None

    def evict_main(self) -> None:
        while True:
            key = next(iter(self.main))
            uses = self.main.pop(key)
            if uses == 0:
                return
            self.main[key] = uses - 1


@given(st.lists(st.integers(0, 30) | st.integers(0, 5), max_size=400))
def test_s3fifo_is_its_papers_pseudocode(keys: list[int]) -> None:
    policy, model = S3Fifo(200), S3FifoModel(entries=20)
    for key in keys:
        assert policy.get(key) == model.request(key)
        if key not in policy:
            policy.put(key, 10, 0.03)
        assert {held for held in range(31) if held in policy} == {*model.small, *model.main}


def test_what_comes_back_from_the_ghosts_of_s3fifo_outlives_what_is_new() -> None:
    policy = S3Fifo(100)
    for key in range(11):
        request(policy, key)  # 0 is evicted
    request(policy, 0)  # to the main queue at once
    for key in range(100, 150):
        request(policy, key)
    assert 0 in policy
    assert 10 not in policy


def test_s3fifo_keeps_what_was_used_twice_in_the_small_queue() -> None:
    policy = S3Fifo(100)
    for key in range(10):
        request(policy, key)
    for key in (0, 0, 1):
        request(policy, key)
    for key in range(100, 120):
        request(policy, key)
    assert 0 in policy
    assert 1 not in policy


# W-TinyLFU


def test_the_sketch_counts_up_to_15() -> None:
    sketch = FrequencySketch()
    for _ in range(7):
        sketch.see("seven")
    for _ in range(40):
        sketch.see("often")
    assert sketch.count("seven") == 7
    assert sketch.count("often") == 15


@given(st.lists(st.integers(), max_size=150))
def test_the_sketch_never_counts_too_few_before_it_halves(keys: list[int]) -> None:
    sketch = FrequencySketch()
    sketch.grow_for(16)
    for key in keys:
        sketch.see(key)
    assert all(sketch.count(key) >= min(keys.count(key), 15) for key in keys)


def test_the_sketch_halves_after_ten_keys_for_each_entry() -> None:
    sketch = FrequencySketch()
    sketch.grow_for(20)
    for _ in range(9):
        sketch.see("nine")
    for _ in range(190):
        sketch.see("filler")
    assert sketch.count("nine") == 9
    sketch.see("filler")
    assert sketch.count("nine") == 4
    assert sketch.count("filler") == 7
    for _ in range(100):  # half of the sample was forgotten as well
        sketch.see("filler")
    assert sketch.count("nine") == 2


def test_a_sketch_that_grows_forgets_nothing() -> None:
    sketch = FrequencySketch()
    for key in range(15):
        for _ in range(key % 10):
            sketch.see(key)
    before = [sketch.count(key) for key in range(15)]
    sketch.grow_for(10_000)
    assert [sketch.count(key) for key in range(15)] == before


def test_the_sketch_spreads_keys_of_regular_steps() -> None:
    sketch = FrequencySketch()
    sketch.grow_for(1000)
    for key in range(0, 1000 << 20, 1 << 20):
        sketch.see(key)
    wrong = sum(sketch.count(key + 1) > 0 for key in range(0, 1000 << 20, 1 << 20))
    assert wrong < 50


def test_wtinylfu_admits_who_is_asked_for_more_than_the_next_to_go() -> None:
    policy = WTinyLfu(1000)  # objects of 200 are larger than its window
    for key in "abcd":
        assert not policy.get(key)
        assert policy.put(key, 200, 0.03)
    assert not policy.get("new")
    assert not policy.put("new", 200, 0.03)  # asked for once, as a
    assert not policy.get("new")
    assert policy.put("new", 200, 0.03)
    assert "a" not in policy
    assert all(key in policy for key in ("b", "c", "d", "new"))


def test_wtinylfu_weighs_a_large_object_against_all_that_would_go_for_it() -> None:
    evicted: list[Hashable] = []
    policy = WTinyLfu(1000, on_evicted=lambda key, _: evicted.append(key))
    for key in "abcd":
        request(policy, key, 240)
    for _ in range(2):  # the two next to go count 2 together
        policy.get("large")
        assert not policy.put("large", 480, 0.03)
    assert not evicted
    policy.get("large")
    assert policy.put("large", 480, 0.03)
    assert evicted == ["a", "b"]


def test_wtinylfu_protects_what_is_used_again() -> None:
    policy = WTinyLfu(1000)
    for key in "abcd":
        request(policy, key, 240)
    policy.get("a")
    for _ in range(2):
        request(policy, "new", 240)
    assert "a" in policy
    assert "b" not in policy


# GDSF


class GdsfModel:
    """GDSF by looking at everything each time; of equals the one whose use is longest ago."""

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.clock = 0.0
        self.entries: dict[int, tuple[float, int, int, float]] = {}

    def request(self, key: int, size_bytes: int, cost_s: float) -> bool:
        held = self.entries.get(key)
        if held is not None:
            _, uses, size_bytes, cost_s = held
            self.set(key, uses + 1, size_bytes, cost_s)
            return True
        while sum(entry[2] for entry in self.entries.values()) + size_bytes > self.budget_bytes:
            lowest = min(self.entries, key=lambda key: self.entries[key][0])
            self.clock = self.entries.pop(lowest)[0]
        self.set(key, 1, size_bytes, cost_s)
        return False

    def set(self, key: int, uses: int, size_bytes: int, cost_s: float) -> None:
        self.entries[key] = (self.clock + uses * cost_s / size_bytes, uses, size_bytes, cost_s)


@given(st.lists(st.integers(0, 20), max_size=300), st.randoms(use_true_random=False))
def test_gdsf_evicts_the_lowest_priority(keys: list[int], random) -> None:
    # No two sums of these are equal, so that the order of equals does not matter.
    sizes = [random.uniform(50, 400) for _ in range(21)]
    costs = [random.uniform(0.001, 0.1) for _ in range(21)]
    policy, model = Gdsf(BUDGET_BYTES), GdsfModel(BUDGET_BYTES)
    for key in keys:
        size_bytes = int(sizes[key])
        assert policy.get(key) == model.request(key, size_bytes, costs[key])
        if key not in policy:
            policy.put(key, size_bytes, costs[key])
        assert {held for held in range(21) if held in policy} == set(model.entries)


def test_gdsf_keeps_what_costs_more_and_what_is_smaller() -> None:
    policy = Gdsf(1000)
    policy.put("dear", 400, 0.05)
    policy.put("small", 100, 0.01)
    policy.put("plain", 400, 0.01)
    policy.put("other", 400, 0.01)
    assert "plain" not in policy
    assert all(key in policy for key in ("dear", "small", "other"))


def test_gdsf_lets_go_of_what_was_used_long_ago() -> None:
    policy = Gdsf(1000)
    policy.put("old", 500, 0.03)
    for _ in range(10):
        policy.get("old")
    for key in range(15):
        policy.put(key, 500, 0.03)
    assert "old" not in policy


def test_an_update_of_the_cost_counts_at_once_for_gdsf() -> None:
    policy = Gdsf(1000)
    policy.put("a", 500, 0.5)
    policy.put("b", 500, 0.03)
    policy.put("a", 500, 0.001)
    policy.put("c", 500, 0.03)
    assert "a" not in policy
    assert "b" in policy


def test_the_queue_of_gdsf_does_not_grow_with_what_is_put_again() -> None:
    policy = Gdsf(1000)
    for number in range(10_000):
        policy.put(number % 3, 100, 0.03)
        policy.discard((number + 1) % 3)
    assert len(policy._queue) < 200
