"""Metrics and health over HTTP: one request a connection, on the trio thread.

Whoever connects can hardly slow the mount: requests are small, few at a time, taken at a bounded
rate, and have a deadline, and metrics are rendered only so often.  Nor can those who connect and
say nothing keep others from asking.  What goes wrong with one is logged and ends with its
connection.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import h11
import trio

from latentfs.telemetry.accepting import serve_connections
from latentfs.telemetry.address import Address, UnixAddress, listening

__all__ = ["Check", "RendersMetrics", "serve_metrics"]

log = logging.getLogger(__name__)

_CONNECTIONS_MAX = 16
# An answer takes a few tenths of a millisecond of the thread: a tenth of it at the most.
_CONNECTION_PAUSE_S = 0.004
_HEAD_BYTES_MAX = 8192
_PIECE_BYTES = 4096
_REQUEST_TIMEOUT_S = 5.0
_ANSWER_TIMEOUT_S = 10.0
# The rest is for those who ask for health.
_WAITING_FOR_METRICS_MAX = 12
# Times as long as rendering took: a tenth of the thread goes to it at the most.
_PAUSE_RATIO = 9
_PLAIN = "text/plain; charset=utf-8"
# A refused request may still be under way; a connection closed with unread bytes is reset, and
# the answer may be lost with it.
_DRAIN_BYTES_MAX = 64 * 1024
_DRAIN_TIMEOUT_S = 1.0

Check = Callable[[], tuple[bool, str]]
"""Whether all is well, and in one line why or why not."""


class RendersMetrics(Protocol):
    def render(self, accept: str, *, is_ready: bool) -> tuple[bytes, str]:
        """Return the metrics as text, and its content type, for a header ``Accept``."""
        ...


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    body: bytes
    content_type: str = _PLAIN
    headers: tuple[tuple[str, str], ...] = ()


_Page = Callable[[str], Awaitable[_Answer]]


class _MetricsPage:
    """Renders metrics for one request after the other, with a pause after each rendering.

    A request is answered with what was rendered after it came.  Requests that wait at the same
    time, with the same ``Accept``, share that.
    """

    def __init__(self, render: Callable[[str], tuple[bytes, str]]) -> None:
        self._render = render
        self._turn = trio.Lock()
        self._waiting = 0
        self._free_from_s = 0.0
        self._begun = 0
        self._last: tuple[str, _Answer] | None = None

    async def __call__(self, accept: str) -> _Answer:
        if self._waiting == _WAITING_FOR_METRICS_MAX:
            return _Answer(503, b"too many ask for metrics\n")
        begun_before = self._begun
        self._waiting += 1
        try:
            async with self._turn:
                if self._begun > begun_before and self._last is not None:
                    last_accept, answer = self._last
                    if last_accept == accept:
                        return answer
                await trio.sleep_until(self._free_from_s)
                return self._rendered(accept)
        finally:
            self._waiting -= 1

    def _rendered(self, accept: str) -> _Answer:
        self._begun += 1
        self._last = None
        began_s = trio.current_time()
        try:
            answer = _Answer(200, *self._render(accept))
        finally:
            ended_s = trio.current_time()
            self._free_from_s = ended_s + _PAUSE_RATIO * (ended_s - began_s)
        self._last = accept, answer
        return answer


@dataclass(eq=False, slots=True)
class _Place:
    """Of one connection.

    Attributes:
        scope: cancelled when another connection takes the place.
        is_kept: while an answer is made; what is still asked, or was answered, can wait or go.
    """

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    is_kept: bool = False


class _Places:
    """So many connections at a time.  A new one takes the place of the oldest that has none kept.

    So those who say nothing, or don't take their answers, are in nobody's way.  There always is
    one, as only metrics are waited for, by fewer at a time.
    """

    def __init__(self) -> None:
        self._taken: dict[_Place, None] = {}

    @contextlib.contextmanager
    def take(self) -> Iterator[_Place]:
        """Have a place while the block runs, which ends early when another takes it."""
        if len(self._taken) >= _CONNECTIONS_MAX:
            oldest = next(place for place in self._taken if not place.is_kept)
            del self._taken[oldest]
            oldest.scope.cancel()
        place = _Place()
        self._taken[place] = None
        try:
            with place.scope:
                yield place
        finally:
            self._taken.pop(place, None)


@contextlib.asynccontextmanager
async def serve_metrics(
    address: Address, metrics: RendersMetrics, *, is_healthy: Check, is_ready: Check
) -> AsyncIterator[Address]:
    """Serve ``/metrics``, ``/healthz`` and ``/readyz`` while the block runs.

    Gives the address that was bound, in which a port 0 is replaced.  Requests under way end with
    the block.

    Raises:
        MountError: the address can't be bound.
    """
    pages: dict[bytes, _Page] = {
        b"/metrics": _MetricsPage(lambda accept: metrics.render(accept, is_ready=is_ready()[0])),
        b"/healthz": _checked(is_healthy),
        b"/readyz": _checked(is_ready),
    }
    places = _Places()

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                with places.take() as place:
                    await _serve(stream, pages, place)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass
            except Exception:  # the mount outlives whatever a client or a page does
                log.exception("serving metrics failed unexpectedly")

    with listening(address) as (listening_socket, bound):
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening_socket.dup()))
        async with trio.open_nursery() as nursery:
            accept = functools.partial(
                serve_connections, listener, serve, pause_s=_CONNECTION_PAUSE_S
            )
            nursery.start_soon(accept)
            log.info("metrics are served at %s", _shown(bound))
            try:
                yield bound
            finally:
                nursery.cancel_scope.cancel()


def _shown(bound: Address) -> str:
    return str(bound) if isinstance(bound, UnixAddress) else f"http://{bound}/metrics"


def _checked(check: Check) -> _Page:
    async def page(accept: str) -> _Answer:
        is_well, why = check()
        return _Answer(200 if is_well else 503, f"{why}\n".encode())

    return page


async def _serve(stream: trio.SocketStream, pages: dict[bytes, _Page], place: _Place) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES_MAX)
    request: h11.Request | None = None
    try:
        with trio.fail_after(_REQUEST_TIMEOUT_S):
            request = await _request(stream, connection)
        if request is None:
            return
        place.is_kept = True
        answer = await _answer_to(request, pages)
        place.is_kept = False
    except trio.TooSlowError:
        answer = _Answer(408, b"the request did not come in time\n")
    except h11.RemoteProtocolError as error:
        answer = _Answer(error.error_status_hint, f"{error}\n".encode())
    with trio.move_on_after(_ANSWER_TIMEOUT_S):
        await _send(stream, connection, answer, with_body=request is None or not _is_head(request))


async def _request(stream: trio.SocketStream, connection: h11.Connection) -> h11.Request | None:
    """Return the head of the request; None where the client has gone.

    Raises:
        h11.RemoteProtocolError: it is not HTTP, or too long.
    """
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        connection.receive_data(await stream.receive_some(_PIECE_BYTES))


def _is_head(request: h11.Request) -> bool:
    return request.method == b"HEAD"


async def _answer_to(request: h11.Request, pages: dict[bytes, _Page]) -> _Answer:
    page = pages.get(request.target.partition(b"?")[0])
    if page is None:
        return _Answer(404, b"there are /metrics, /healthz and /readyz\n")
    if request.method not in (b"GET", b"HEAD"):
        return _Answer(405, b"only GET and HEAD\n", headers=(("Allow", "GET, HEAD"),))
    accept = b", ".join(value for name, value in request.headers if name == b"accept")
    try:
        with trio.move_on_after(_ANSWER_TIMEOUT_S):
            return await page(accept.decode("latin-1"))
        return _Answer(503, b"others who asked take all the time there is for metrics\n")
    except Exception:
        log.exception("%s failed unexpectedly", request.target.decode("latin-1"))
        return _Answer(500, b"failed; the log says why\n")


async def _send(
    stream: trio.SocketStream, connection: h11.Connection, answer: _Answer, *, with_body: bool
) -> None:
    headers = [
        ("Content-Type", answer.content_type),
        ("Content-Length", str(len(answer.body))),
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Connection", "close"),
        *answer.headers,
    ]
    data = connection.send(h11.Response(status_code=answer.status, headers=headers)) or b""
    if with_body:
        data += connection.send(h11.Data(data=answer.body)) or b""
        data += connection.send(h11.EndOfMessage()) or b""
    await stream.send_all(data)
    await stream.send_eof()
    left_bytes = _DRAIN_BYTES_MAX
    with trio.move_on_after(_DRAIN_TIMEOUT_S):
        while left_bytes > 0 and (piece := await stream.receive_some(_PIECE_BYTES)):
            left_bytes -= len(piece)
