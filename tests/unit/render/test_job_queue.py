"""Which render comes next: some cases, and a model that knows the rules."""

from __future__ import annotations

from collections import defaultdict

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from scripted_renderer import RECIPE, job

from latentfs.latents.recipe import Recipe
from latentfs.render.job_queue import NOBODY, JobQueue, Order, Priority, Reader, RenderJob

A, B, C = Reader(1, 10), Reader(1, 11), Reader(1, 12)
OTHER_USER = Reader(2, 20)
FOREGROUND, PREFETCH, IMPORT = Priority.FOREGROUND, Priority.PREFETCH, Priority.IMPORT


def order_for(
    some_job: RenderJob,
    reader: Reader = A,
    priority: Priority = FOREGROUND,
    *,
    alone: bool = False,
) -> Order:
    return Order(some_job, priority, lambda: True, [reader], 0.0, alone=alone)


def pushed(
    queue: JobQueue,
    names: str,
    reader: Reader = A,
    priority: Priority = FOREGROUND,
    *,
    alone: bool = False,
) -> list[Order]:
    """Push an order for each letter of *names*."""
    orders = [order_for(job(name), reader, priority, alone=alone) for name in names]
    for order in orders:
        queue.push(order)
    return orders


def name_of(order: Order) -> str:
    return str(order.job.content)


def take(queue: JobQueue, *, least: Priority = IMPORT, batch: int = 1) -> str:
    taken = queue.take(least_priority=least, batch_of=lambda recipe: batch)
    return "".join(map(name_of, taken))


def take_all(queue: JobQueue, *, batch: int = 1) -> list[str]:
    taken = []
    while names := take(queue, batch=batch):
        taken.append(names)
    assert len(queue) == 0
    return taken


def test_an_empty_queue_gives_nothing() -> None:
    queue = JobQueue()
    assert len(queue) == 0
    assert take(queue) == ""
    assert queue.take_alone() is None
    assert not queue.alone_is_next
    assert queue.clear() == []


def test_what_readers_wait_for_comes_first_then_what_is_ahead_then_imports() -> None:
    queue = JobQueue()
    pushed(queue, "xy", NOBODY, IMPORT)
    pushed(queue, "pq", NOBODY, PREFETCH)
    pushed(queue, "ab")
    assert [queue.queued(priority) for priority in Priority] == [2, 2, 2]
    assert take_all(queue) == list("abpqxy")


def test_a_group_s_renders_come_in_the_order_they_were_asked_for() -> None:
    queue = JobQueue()
    pushed(queue, "zyxabc")
    assert take_all(queue) == list("zyxabc")


def test_process_groups_of_a_user_take_turns() -> None:
    queue = JobQueue()
    pushed(queue, "aaaaa", A)
    pushed(queue, "bbb", B)
    pushed(queue, "c", C)
    assert take_all(queue) == list("abcababaa")


def test_users_take_turns_however_many_groups_they_have() -> None:
    queue = JobQueue()
    pushed(queue, "aa", A)
    pushed(queue, "bb", B)
    pushed(queue, "zzz", OTHER_USER)
    assert take_all(queue) == list("azbzazb")


def test_who_comes_late_has_the_next_turn_but_those_who_wait() -> None:
    queue = JobQueue()
    pushed(queue, "aaa", A)
    assert take(queue) == "a"
    pushed(queue, "b", B)
    assert take_all(queue) == list("aba")


def test_least_priority_leaves_the_later_ones_alone() -> None:
    queue = JobQueue()
    pushed(queue, "p", NOBODY, PREFETCH)
    pushed(queue, "x", NOBODY, IMPORT)
    assert take(queue, least=FOREGROUND) == ""
    assert take(queue, least=PREFETCH) == "p"
    assert take(queue, least=PREFETCH) == ""
    assert take(queue, least=IMPORT) == "x"


def test_an_order_of_several_readers_comes_with_the_first_of_their_turns_and_once() -> None:
    queue = JobQueue()
    *_, shared = pushed(queue, "aaas", A)
    pushed(queue, "b", B)
    queue.join(shared, C)
    assert take_all(queue) == list("absaa")
    assert shared.readers == [A, C]


def test_a_reader_that_joins_twice_has_one_place() -> None:
    queue = JobQueue()
    (shared,) = pushed(queue, "s", A)
    for _ in range(2):
        queue.join(shared, A)
        queue.join(shared, B)
    assert shared.readers == [A, B]
    assert take_all(queue) == ["s"]


@pytest.mark.parametrize("priority", [PREFETCH, IMPORT])
def test_a_reader_that_joins_promotes_a_background_order(priority: Priority) -> None:
    queue = JobQueue()
    pushed(queue, "p", NOBODY, PREFETCH)
    late = pushed(queue, "xyz", NOBODY, priority)[-1]
    pushed(queue, "a", A)
    queue.join(late, B)
    assert (late.priority, late.readers) == (FOREGROUND, [B])
    assert take_all(queue) == list("azpxy")


def test_an_order_that_a_renderer_has_is_promoted_and_not_queued_again() -> None:
    queue = JobQueue()
    (order,) = pushed(queue, "p", NOBODY, PREFETCH)
    assert take(queue) == "p"
    queue.join(order, A)
    queue.join(order, B)
    assert (order.priority, order.readers) == (FOREGROUND, [A, B])
    assert len(queue) == 0
    assert take(queue) == ""


def test_what_is_discarded_does_not_come() -> None:
    queue = JobQueue()
    first, second, third = pushed(queue, "abc")
    (background,) = pushed(queue, "p", NOBODY, PREFETCH)
    (alone,) = pushed(queue, "l", alone=True)
    queue.join(second, B)
    assert all(map(queue.discard, (second, background, alone)))
    assert not any(map(queue.discard, (second, background, alone)))
    assert len(queue) == 2
    assert take_all(queue) == ["a", "c"]
    assert not queue.discard(first)
    assert not queue.discard(third)


def test_the_queue_keeps_nothing_of_what_has_left_it() -> None:
    """Finished orders hold pictures: those that were promoted must not wait for an idle moment."""
    queue = JobQueue()
    for reader in (A, B):
        for order in pushed(queue, "pq", NOBODY, PREFETCH):
            queue.join(order, reader)
        queue.join(pushed(queue, "s", reader)[0], OTHER_USER)
    queue.discard(pushed(queue, "d", NOBODY, PREFETCH)[0])
    while take(queue, least=FOREGROUND):
        pass
    assert not any(turns._users for turns in queue._turns.values())


def test_a_batch_is_filled_with_what_fits_by_turns_and_then_from_lower_priorities() -> None:
    queue = JobQueue()
    pushed(queue, "xy", NOBODY, IMPORT)
    pushed(queue, "pq", NOBODY, PREFETCH)
    pushed(queue, "abc", A)
    pushed(queue, "d", B)
    pushed(queue, "z", OTHER_USER)
    assert take_all(queue, batch=6) == ["azdbcp", "qxy"]


def test_the_turns_within_a_batch_alternate() -> None:
    queue = JobQueue()
    pushed(queue, "aaaa", A)
    pushed(queue, "bbbb", B)
    pushed(queue, "cccc", C)
    assert take(queue, batch=4) == "abca"


def test_a_batch_holds_an_order_once_that_several_wait_for() -> None:
    queue = JobQueue()
    _, shared = pushed(queue, "as", A)
    queue.join(shared, B)
    queue.join(shared, OTHER_USER)
    assert take_all(queue, batch=4) == ["as"]


def test_a_batch_has_room_for_no_more_than_the_recipe_decodes_together() -> None:
    queue = JobQueue()
    asked: list[Recipe] = []

    def batch_of(recipe: Recipe) -> int:
        asked.append(recipe)
        return 3

    pushed(queue, "abcde")
    assert len(queue.take(least_priority=IMPORT, batch_of=batch_of)) == 3
    assert asked == [RECIPE]
    assert take(queue) == "d"


def test_only_latents_of_one_shape_vae_and_way_of_decoding_share_a_batch() -> None:
    queue = JobQueue()
    half = msgspec.structs.replace(RECIPE, dtype="float16")
    truncated = msgspec.structs.replace(RECIPE, rounding="truncate")
    for other in (
        job("a"),
        job("wide", shape=(4, 1, 2)),
        job("elsewhere", vae_folder="other"),
        job("half", recipe=half),
        job("truncated", recipe=truncated),
        job("b"),
    ):
        queue.push(order_for(other))
    assert take_all(queue, batch=8) == ["atruncatedb", "wide", "elsewhere", "half"]


def test_a_background_order_may_fill_a_batch_although_it_could_not_begin_one() -> None:
    queue = JobQueue()
    pushed(queue, "pq", NOBODY, PREFETCH)
    pushed(queue, "a")
    assert take(queue, least=FOREGROUND, batch=2) == "ap"
    assert take(queue, least=FOREGROUND, batch=2) == ""


def test_orders_that_must_be_alone_come_first_and_only_when_asked_for() -> None:
    queue = JobQueue()
    pushed(queue, "a")
    alone = pushed(queue, "lm", alone=True)
    assert queue.queued(FOREGROUND) == len(queue) == 3
    assert queue.alone_is_next
    assert [queue.take_alone(), queue.take_alone()] == alone
    assert queue.take_alone() is None
    assert take_all(queue, batch=4) == ["a"]


def test_an_order_that_must_be_alone_waits_for_those_of_a_higher_priority() -> None:
    queue = JobQueue()
    (background,) = pushed(queue, "p", NOBODY, PREFETCH, alone=True)
    pushed(queue, "q", NOBODY, PREFETCH)
    (read,) = pushed(queue, "a")
    assert queue.take_alone() is None
    (urgent,) = pushed(queue, "u", alone=True)
    assert queue.take_alone() is urgent
    assert queue.discard(read)
    assert queue.alone_is_next
    assert queue.take_alone() is background


def test_a_reader_that_joins_an_order_that_must_be_alone_promotes_it() -> None:
    queue = JobQueue()
    (alone,) = pushed(queue, "p", NOBODY, PREFETCH, alone=True)
    pushed(queue, "a")
    queue.join(alone, A)
    assert queue.take_alone() is alone


def test_clear_gives_all_that_wait() -> None:
    queue = JobQueue()
    orders = [
        *pushed(queue, "ab"),
        *pushed(queue, "p", NOBODY, PREFETCH),
        *pushed(queue, "l", alone=True),
    ]
    queue.join(orders[0], B)
    assert set(queue.clear()) == set(orders)
    assert take_all(queue) == []
    assert queue.take_alone() is None
    pushed(queue, "c")
    assert take_all(queue) == ["c"]


async def test_all_who_wait_for_a_change_are_woken_by_each(
    autojump_clock: trio.testing.MockClock,
) -> None:
    queue = JobQueue()
    woken: list[str] = []

    async def wait(name: str) -> None:
        while True:
            await queue.changed()
            woken.append(name)

    async with trio.open_nursery() as nursery:
        for name in "ab":
            nursery.start_soon(wait, name)
        await trio.testing.wait_all_tasks_blocked()
        assert woken == []
        pushed(queue, "x")
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == ["a", "b"]
        queue.notify()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(woken) == ["a", "a", "b", "b"]
        nursery.cancel_scope.cancel()


# Models

readers = st.builds(Reader, st.integers(1, 2), st.integers(10, 12))


class Queue(RuleBasedStateMachine):
    """Every order comes out once or was discarded; the first of a batch by the rules."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = JobQueue()
        self.lines: dict[tuple[Priority, Reader], list[Order]] = defaultdict(list)
        self.waiting: set[Order] = set()
        self.orders: list[Order] = []

    def leave(self, order: Order) -> None:
        assert order in self.waiting
        self.waiting.remove(order)
        for line in self.lines.values():
            if order in line:
                line.remove(order)

    @rule(
        reader=readers,
        priority=st.sampled_from(Priority),
        width=st.integers(1, 2),
        alone=st.booleans(),
    )
    def push(self, reader: Reader, priority: Priority, width: int, alone: bool) -> None:
        order = order_for(job("x", shape=(4, 1, width)), reader, priority, alone=alone)
        self.queue.push(order)
        self.orders.append(order)
        self.waiting.add(order)
        if not alone:
            self.lines[priority, reader].append(order)

    @precondition(lambda self: self.orders)
    @rule(data=st.data(), reader=readers)
    def join(self, data: st.DataObject, reader: Reader) -> None:
        order = data.draw(st.sampled_from(self.orders))
        promoted = order.priority is not FOREGROUND
        known = reader in order.readers
        self.queue.join(order, reader)
        assert order.priority is FOREGROUND
        if order.alone or order not in self.waiting:
            return
        if promoted:
            for line in self.lines.values():
                if order in line:
                    line.remove(order)
        if promoted or not known:
            self.lines[FOREGROUND, reader].append(order)

    @precondition(lambda self: self.orders)
    @rule(data=st.data())
    def discard(self, data: st.DataObject) -> None:
        order = data.draw(st.sampled_from(self.orders))
        assert self.queue.discard(order) == (order in self.waiting)
        if order in self.waiting:
            self.leave(order)

    @rule(least=st.sampled_from(Priority), batch=st.integers(1, 4))
    def take(self, least: Priority, batch: int) -> None:
        group = self.queue.take(least_priority=least, batch_of=lambda recipe: batch)
        usual = [order for order in self.waiting if not order.alone]
        best = min((order.priority for order in usual), default=None)
        assert bool(group) == (best is not None and best <= least)
        if not group:
            return
        first = group[0]
        assert first.priority is best
        assert any(self.lines[best, reader][:1] == [first] for reader in first.readers)
        fitting = sum(order.job.shape == first.job.shape for order in usual)
        assert len(group) == len(set(group)) == min(batch, fitting)
        for order in group:
            assert order.job.shape == first.job.shape
            assert not order.alone
            self.leave(order)

    @rule()
    def take_alone(self) -> None:
        order = self.queue.take_alone()
        best = min((other.priority for other in self.waiting), default=None)
        alone = [other for other in self.waiting if other.alone and other.priority is best]
        assert (order in alone) if alone else order is None
        if order is not None:
            self.leave(order)

    @rule()
    def clear(self) -> None:
        cleared = self.queue.clear()
        assert len(cleared) == len(set(cleared))
        assert set(cleared) == self.waiting
        for order in cleared:
            self.leave(order)

    @invariant()
    def counts(self) -> None:
        assert len(self.queue) == len(self.waiting)
        for priority in Priority:
            count = sum(order.priority is priority for order in self.waiting)
            assert self.queue.queued(priority) == count


Queue.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestQueue = Queue.TestCase


@settings(deadline=None)
@given(steps=st.lists(st.one_of(readers, st.none()), max_size=80))
def test_between_two_turns_of_one_all_others_that_waited_had_theirs(
    steps: list[Reader | None],
) -> None:
    """A step is a reader that pushes, or None for a take."""
    queue = JobQueue()
    waiting: dict[Reader, int] = defaultdict(int)
    owed_to_group: dict[Reader, set[Reader]] = {}
    owed_to_user: dict[int, set[int]] = {}
    for step in [*steps, *[None] * len(steps)]:
        if step is not None:
            queue.push(order_for(job("x"), step))
            waiting[step] += 1
            continue
        group = queue.take(least_priority=IMPORT, batch_of=lambda recipe: 1)
        if not group:
            assert not any(waiting.values())
            continue
        (taken,) = group[0].readers
        waiting[taken] -= 1
        # Whoever waited since the last turn of the one taken has been served meanwhile.
        assert not owed_to_group.get(taken, set())
        assert not owed_to_user.get(taken.uid, set())
        for owed in owed_to_group.values():
            owed.discard(taken)
        for owed_users in owed_to_user.values():
            owed_users.discard(taken.uid)
        others = {reader for reader, count in waiting.items() if count and reader != taken}
        owed_to_group[taken] = {reader for reader in others if reader.uid == taken.uid}
        owed_to_user[taken.uid] = {reader.uid for reader in others} - {taken.uid}
