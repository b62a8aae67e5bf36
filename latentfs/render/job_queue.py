"""Daemon side: which render comes next.

Rules, the first that applies:

* What readers wait for comes before what is rendered ahead of them, and that before an import.
* What a lost renderer had comes, alone, before the others of its priority.
* Users take turns, and within a user its process groups do, so that a program that asks for a
  thousand pictures does not keep another from its one.
* One process group's renders come in the order they were asked for.
* Where a recipe decodes several latents together, those of the same recipe and shape that would
  come later are taken along, by the same rules; nobody waits for a batch to fill.
"""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import NamedTuple

import trio

from latentfs.errors import RenderError
from latentfs.latents.recipe import Recipe
from latentfs.render.protocol import Rendered, RenderRequest

__all__ = ["NOBODY", "JobQueue", "Order", "Priority", "Reader", "RenderJob", "Rendition"]

# How far a group's renders are searched for some that fit a batch.
_BATCH_REACH = 64


class Priority(enum.IntEnum):
    """Lower comes first."""

    FOREGROUND = 0
    PREFETCH = 1
    IMPORT = 2


class Reader(NamedTuple):
    """Who reads: taking turns goes by user, then by process group."""

    uid: int
    process_group: int


NOBODY = Reader(0, 0)
"""For renders that are for no reader in particular."""


@dataclass(frozen=True, slots=True)
class RenderJob:
    """A request without its number, and its bulk bytes: payload, reference, chunks.

    Attributes:
        shape: [C, h, w] of the latent; latents of one shape can be decoded together.
        content: names what is rendered, so that what breaks renderers can be told again.
    """

    request: RenderRequest
    bulk: list[bytes]
    shape: tuple[int, int, int]
    content: object

    @property
    def recipe(self) -> Recipe:
        return self.request.recipe

    def fits_batch_of(self, other: RenderJob) -> bool:
        """Whether both can be decoded together."""
        return (
            self.shape == other.shape
            and self.request.vae_folder == other.request.vae_folder
            and _decoding(self.recipe) == _decoding(other.recipe)
        )


def _decoding(recipe: Recipe) -> tuple[object, ...]:
    """What has to be equal in recipes by which latents are decoded together."""
    return (
        recipe.vae_class,
        recipe.dtype,
        recipe.layout,
        recipe.device,
        recipe.batch,
        recipe.cpu_threads,
        recipe.tiled,
        recipe.compiled,
    )


@dataclass(frozen=True, slots=True)
class Rendition:
    """What a renderer made: its report and, if asked for, the finished file's bytes.

    ``stages_s`` are those of the report with the daemon's own before and after them.
    """

    report: Rendered
    data: bytes
    stages_s: dict[str, float] = field(default_factory=dict)


@dataclass(eq=False, slots=True)
class Order:
    """A job that somebody waits for.

    Attributes:
        is_wanted: asked when its turn has come; it is dropped if not.
        readers: who waits for it; it comes when the first of them has a turn.
        queued_s: when it was submitted, on the monotonic clock.
        parked_s: how long its reader had waited for a place in the queue by then.
        sent_s: when a renderer was given it; None while none has it.
        tries: renderers that were lost while they had it.
        blamed: how many of those losses are held against its content.
        alone: to be tried with nothing else in the renderer, so that it is known what broke it.
        is_warm_up: only there to have the renderer load its VAE; its outcome is nobody's.
    """

    job: RenderJob
    priority: Priority
    is_wanted: Callable[[], bool]
    readers: list[Reader]
    queued_s: float
    done: trio.Event = field(default_factory=trio.Event)
    tries: int = 0
    blamed: int = 0
    sent_s: float | None = None
    alone: bool = False
    is_warm_up: bool = False
    parked_s: float = 0.0
    outcome: Rendition | RenderError | None = None

    def finish(self, outcome: Rendition | RenderError) -> None:
        self.outcome = outcome
        self.done.set()


class _Turns:
    """One priority's orders: users in turn, their process groups in turn, each in order.

    An order that several readers wait for is in the line of each.
    """

    def __init__(self) -> None:
        # Lines and users are removed when they are empty: whose turn it is does not depend on them.
        self._users: OrderedDict[int, OrderedDict[Reader, OrderedDict[Order, None]]] = OrderedDict()

    def add(self, order: Order, reader: Reader) -> None:
        groups = self._users.setdefault(reader.uid, OrderedDict())
        groups.setdefault(reader, OrderedDict())[order] = None

    def remove(self, order: Order) -> None:
        """Remove *order* from the lines of all its readers."""
        for reader in order.readers:
            groups = self._users[reader.uid]
            del groups[reader][order]
            if not groups[reader]:
                del groups[reader]
            if not groups:
                del self._users[reader.uid]

    def pop(self) -> Order | None:
        """Remove and return the next order; its reader's next turn is the last."""
        if not self._users:
            return None
        uid, groups = next(iter(self._users.items()))
        reader, line = next(iter(groups.items()))
        groups.move_to_end(reader)
        self._users.move_to_end(uid)
        order = next(iter(line))
        self.remove(order)
        return order

    def fitting(self, job: RenderJob) -> Iterator[Order]:
        """Yield orders that can be decoded together with *job*, by the same turns.

        One for which several readers wait may come several times.
        """
        users = (
            _in_turn(_fitting(line, job) for line in groups.values())
            for groups in self._users.values()
        )
        return _in_turn(users)


def _fitting(line: Iterable[Order], job: RenderJob) -> Iterator[Order]:
    return (order for order in islice(line, _BATCH_REACH) if order.job.fits_batch_of(job))


def _in_turn(lines: Iterable[Iterable[Order]]) -> Iterator[Order]:
    """Yield the first order of each line, then the second of each, and so on."""
    for orders in zip_longest(*lines):
        yield from (order for order in orders if order is not None)


class JobQueue:
    """The orders that no renderer has yet.  All methods belong to the trio thread."""

    def __init__(self) -> None:
        self._turns = {priority: _Turns() for priority in Priority}
        self._waiting: dict[Priority, set[Order]] = {priority: set() for priority in Priority}
        self._alone: deque[Order] = deque()
        self._changed = trio.Event()

    def __len__(self) -> int:
        return sum(map(self.queued, Priority))

    def queued(self, priority: Priority) -> int:
        alone = sum(order.priority is priority for order in self._alone)
        return alone + len(self._waiting[priority])

    def push(self, order: Order) -> None:
        if order.alone:
            self._alone.append(order)
        else:
            self._waiting[order.priority].add(order)
            for reader in order.readers:
                self._turns[order.priority].add(order, reader)
        self.notify()

    def join(self, order: Order, reader: Reader) -> None:
        """Another reader waits for *order* too: it comes no later than that reader's own would."""
        waits = order in self._waiting[order.priority]
        if order.priority is not Priority.FOREGROUND:
            if waits:
                self._remove(order)
            order.priority = Priority.FOREGROUND
            order.readers = [reader]
            if waits:
                self.push(order)
        elif reader not in order.readers:
            order.readers.append(reader)
            if waits:
                self._turns[order.priority].add(order, reader)

    def discard(self, order: Order) -> bool:
        """Remove *order*; return whether it was here."""
        if order in self._waiting[order.priority]:
            self._remove(order)
            return True
        if order in self._alone:
            self._alone.remove(order)
            return True
        return False

    def take_alone(self) -> Order | None:
        """Remove and return the next order if it must be alone in its renderer."""
        if not self.alone_is_next:
            return None
        order = min(self._alone, key=lambda order: order.priority)
        self._alone.remove(order)
        return order

    @property
    def alone_is_next(self) -> bool:
        """Whether an order must be alone in its renderer, and none of a higher priority waits."""
        if not self._alone:
            return False
        best = min(order.priority for order in self._alone)
        return not any(self._waiting[priority] for priority in Priority if priority < best)

    def take(self, *, least_priority: Priority, batch_of: Callable[[Recipe], int]) -> list[Order]:
        """Remove and return what is to be decoded together next; nothing if nothing waits.

        Args:
            least_priority: the last one that may be taken.
            batch_of: how many latents are decoded together by a recipe.
        """
        for priority in Priority:
            if priority > least_priority:
                break
            first = self._turns[priority].pop()
            if first is None:
                continue
            self._waiting[priority].discard(first)
            return [first, *self._take_along(first, batch_of(first.job.recipe) - 1)]
        return []

    def _take_along(self, first: Order, room: int) -> list[Order]:
        """Fill a batch: what shares it costs nothing, whatever its priority."""
        taken: list[Order] = []
        for priority in Priority:
            if room <= len(taken):
                break
            waiting = self._waiting[priority]
            for order in list(self._turns[priority].fitting(first.job)):
                if len(taken) == room:
                    break
                if order in waiting:  # not yet taken from another reader's line
                    self._remove(order)
                    taken.append(order)
        return taken

    def _remove(self, order: Order) -> None:
        self._waiting[order.priority].discard(order)
        self._turns[order.priority].remove(order)

    def clear(self) -> list[Order]:
        """Remove and return all orders."""
        orders = [*self._alone, *(order for some in self._waiting.values() for order in some)]
        self._alone.clear()
        for priority in Priority:
            self._waiting[priority].clear()
            self._turns[priority] = _Turns()
        return orders

    def notify(self) -> None:
        """Wake all who wait for a change."""
        self._changed.set()

    async def changed(self) -> None:
        """Wait for the next :meth:`push` or :meth:`notify`."""
        if self._changed.is_set():
            self._changed = trio.Event()
        await self._changed.wait()
