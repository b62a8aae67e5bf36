"""The HTTP side of metrics: pages, refusals, and clients that mean no good."""

from __future__ import annotations

import logging
import struct
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import h11
import pytest
import trio
import trio.testing

from latentfs.telemetry.address import Address, TcpAddress, UnixAddress
from latentfs.telemetry.endpoint import serve_metrics

LOOPBACK = TcpAddress("127.0.0.1", 0)
GET = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


class Pages:
    """Metrics that are given, and checks that can be set."""

    def __init__(self) -> None:
        self.accepts: list[str] = []
        self.error: Exception | None = None
        self.health = (True, "the loop runs")
        self.readiness = (False, "no renderer is ready")
        self.on_render = lambda: None
        self.began_s: list[float] = []

    def render(self, accept: str, *, is_ready: bool) -> tuple[bytes, str]:
        assert is_ready == self.readiness[0]
        self.accepts.append(accept)
        self.began_s.append(trio.current_time())
        self.on_render()
        if self.error is not None:
            raise self.error
        return b"latentfs_reads_total 1\n", "text/plain; version=0.0.4"


@asynccontextmanager
async def served(pages: Pages, address: Address = LOOPBACK) -> AsyncIterator[Address]:
    async with serve_metrics(
        address, pages, is_healthy=lambda: pages.health, is_ready=lambda: pages.readiness
    ) as bound:
        yield bound


async def connected(address: Address) -> trio.SocketStream:
    if isinstance(address, UnixAddress):
        return await trio.open_unix_socket(str(address.path))
    return await trio.open_tcp_stream(address.host, address.port)


async def ask(address: Address, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send *request* and return status, headers and body of the answer."""
    async with await connected(address) as stream:
        await stream.send_all(request)
        client = h11.Connection(h11.CLIENT)
        method = request.partition(b" ")[0].decode("latin-1")
        client.send(
            h11.Request(
                method=method if method.isalpha() else "GET", target="/", headers=[("Host", "x")]
            )
        )
        client.send(h11.EndOfMessage())
        body = b""
        response: h11.Response | None = None
        while True:
            event = client.next_event()
            if event is h11.NEED_DATA:
                client.receive_data(await stream.receive_some())
            elif isinstance(event, h11.Response):
                response = event
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                break
    assert response is not None
    headers = {name.decode(): value.decode() for name, value in response.headers}
    return response.status_code, headers, body


def request(target: str, *, method: str = "GET", accept: str = "*/*") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode()


async def test_metrics_are_answered_with_their_content_type():
    pages = Pages()
    async with served(pages) as address:
        status, headers, body = await ask(address, request("/metrics", accept="some/thing"))
    assert (status, body) == (200, b"latentfs_reads_total 1\n")
    assert headers["content-type"] == "text/plain; version=0.0.4"
    assert headers["cache-control"] == "no-store"
    assert pages.accepts == ["some/thing"]


async def test_a_query_is_ignored_and_old_http_answered():
    async with served(Pages()) as address:
        assert (await ask(address, request("/metrics?name[]=up")))[0] == 200
        assert (await ask(address, b"GET /metrics HTTP/1.0\r\n\r\n"))[0] == 200


async def test_head_has_the_length_and_no_body():
    async with served(Pages()) as address:
        status, headers, body = await ask(address, request("/metrics", method="HEAD"))
    assert (status, headers["content-length"], body) == (200, "23", b"")


async def test_checks_are_200_or_503_and_say_why():
    pages = Pages()
    async with served(pages) as address:
        assert (await ask(address, request("/healthz")))[::2] == (200, b"the loop runs\n")
        assert (await ask(address, request("/readyz")))[::2] == (503, b"no renderer is ready\n")
        pages.readiness = (True, "ready")
        assert (await ask(address, request("/readyz")))[::2] == (200, b"ready\n")


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request("/"), 404),
        (request("/metrics/"), 404),
        (request("/../metrics"), 404),
        (request("/metrics", method="POST"), 405),
        (request("/healthz", method="DELETE"), 405),
        (b"no http at all\r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01\x00\xa5\x01\x00\x00", None),
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nX: " + 20_000 * b"x", 431),
    ],
)
async def test_other_requests_are_refused_and_the_next_one_is_answered(sent, status, caplog):
    caplog.set_level(logging.ERROR)
    async with served(Pages()) as address:
        if status is None:
            async with await connected(address) as stream:
                await stream.send_all(sent)
        else:
            assert (await ask(address, sent))[0] == status
        assert (await ask(address, GET))[0] == 200
    assert not caplog.records


async def test_a_page_that_fails_is_500_and_a_line_in_the_log(caplog):
    pages = Pages()
    pages.error = RuntimeError("no figures")
    async with served(pages) as address:
        assert (await ask(address, GET))[0] == 500
        pages.error = None
        assert (await ask(address, GET))[0] == 200
    assert "no figures" in caplog.text


async def test_a_client_that_says_nothing_is_told_so_at_the_deadline(autojump_clock):
    async with served(Pages()) as address, await connected(address) as stream:
        await stream.send_all(b"GET /met")
        start_s = trio.current_time()
        assert (await stream.receive_some()).startswith(b"HTTP/1.1 408 ")
        assert trio.current_time() - start_s < 10


async def test_clients_that_say_nothing_make_room_for_those_who_ask():
    async with served(Pages()) as address, AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(await connected(address)) for _ in range(40)]
        for stream in silent:
            await stream.send_all(b"GET /healthz HTTP/1.1\r\n")
        with trio.fail_after(2):
            assert (await ask(address, request("/healthz")))[0] == 200
            assert await silent[0].receive_some() == b""


async def test_clients_that_do_not_take_their_answers_make_room_too():
    async with served(Pages()) as address, AsyncExitStack() as stack:
        for _ in range(40):
            stream = await stack.enter_async_context(await connected(address))
            await stream.send_all(request("/healthz"))
        with trio.fail_after(2):
            assert (await ask(address, request("/healthz")))[0] == 200


async def test_clients_that_hang_up_leave_no_trace(caplog):
    caplog.set_level(logging.ERROR)
    async with served(Pages()) as address:
        for sent in (b"", b"GET", GET):
            stream = await connected(address)
            reset_at_close = struct.pack("ii", 1, 0)
            stream.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, reset_at_close)
            if sent:
                await stream.send_all(sent)
            await stream.aclose()
        assert (await ask(address, GET))[0] == 200
    assert not caplog.records


async def test_metrics_take_a_tenth_of_the_thread_at_most(autojump_clock):
    pages = Pages()
    pages.on_render = lambda: autojump_clock.jump(0.01)
    async with served(pages) as address:
        start_s = trio.current_time()
        for _ in range(5):
            assert (await ask(address, GET))[0] == 200
        elapsed_s = trio.current_time() - start_s
    assert len(pages.began_s) == 5
    # The last one has its pause before it, not after it.
    assert elapsed_s == pytest.approx(4 * 0.1 + 0.01)


async def test_requests_that_wait_share_what_is_rendered_after_they_came(autojump_clock):
    pages = Pages()
    pages.on_render = lambda: autojump_clock.jump(0.1)
    asked_s: list[float] = []

    async def ask_at(address: Address, wait_s: float, accept: str) -> None:
        await trio.sleep(wait_s)
        asked_s.append(trio.current_time())
        assert (await ask(address, request("/metrics", accept=accept)))[0] == 200

    async with served(pages) as address:
        await ask(address, GET)
        async with trio.open_nursery() as nursery:
            for wait_s in (0.1, 0.2, 0.3):
                nursery.start_soon(ask_at, address, wait_s, "plain")
            nursery.start_soon(ask_at, address, 0.4, "other")
            nursery.start_soon(ask_at, address, 1.05, "other")
    # The last one came when the one for the first three had been rendered.
    assert pages.accepts == ["", "plain", "other"]
    assert pages.began_s[1] >= max(asked_s[:3])
    assert pages.began_s[2] >= max(asked_s)


async def test_what_was_rendered_before_is_nobodys_answer(autojump_clock):
    pages = Pages()
    async with served(pages) as address:
        for number in range(1, 4):
            await ask(address, GET)
            assert len(pages.began_s) == number


async def test_who_waits_too_long_for_metrics_is_told_so_and_health_is_told_at_once(
    autojump_clock,
):
    pages = Pages()
    pages.on_render = lambda: autojump_clock.jump(3)  # 27 s of pause
    statuses: list[int] = []

    async def ask_metrics(address: Address) -> None:
        statuses.append((await ask(address, GET))[0])

    async with served(pages) as address:
        await ask(address, GET)
        start_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(14):
                nursery.start_soon(ask_metrics, address)
            await trio.sleep(1)
            assert statuses == [503, 503]  # there are places for others
            assert (await ask(address, request("/healthz")))[0] == 200
            assert trio.current_time() - start_s < 2
        assert statuses == [503] * 14
        assert trio.current_time() - start_s == pytest.approx(10, abs=0.1)
        await trio.sleep(20)
        assert (await ask(address, GET))[0] == 200
    assert len(pages.began_s) == 2


async def test_a_page_that_fails_has_its_pause_too(autojump_clock, caplog):
    pages = Pages()
    pages.error = RuntimeError("no figures")
    pages.on_render = lambda: autojump_clock.jump(0.1)
    async with served(pages) as address:
        for _ in range(2):
            assert (await ask(address, GET))[0] == 500
    assert pages.began_s[1] - pages.began_s[0] == pytest.approx(1)


async def test_a_unix_socket_serves_the_same_and_goes_with_the_block(tmp_path: Path):
    address = UnixAddress(tmp_path / "metrics.sock")
    async with served(Pages(), address):
        assert (await ask(address, GET))[0] == 200
    assert not address.path.exists()


async def test_the_log_says_where_metrics_are_served(caplog):
    caplog.set_level(logging.INFO)
    async with served(Pages()) as address:
        pass
    assert f"metrics are served at http://{address}/metrics" in caplog.text
