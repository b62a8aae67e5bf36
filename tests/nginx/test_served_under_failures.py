"""What clients of nginx see while renderers and daemons die."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import trio
from example_nginx import running_nginx
from mounts import Mount, mounted
from nginx.conftest import Served
from nginx.http_client import Answer, ask

CLIENTS = 200
KILL_EVERY_S = 5.0
# After a check's time limit nginx answers 503; see examples/nginx/latentfs.conf.
DEADLINE_S = 65.0
# For a machine that is busy with other things as well.
MARGIN_S = 10.0

pytestmark = pytest.mark.timeout(
    3600
)  # --nginx-requests decides; every wait in here ends by itself


def outcome(answer: Answer, right: str) -> str:
    """How a client sees it: ``cut`` is a connection that was closed before the announced end."""
    if answer.status == 0:
        return "closed"
    if answer.status != 200:
        return str(answer.status)
    if not answer.is_whole:
        return "cut"
    return "right" if answer.sha256 == right else "wrong"


async def ask_again_and_again(
    port: int, right: dict[str, str], numbers: itertools.count[int], requests: int
) -> list[tuple[str, float]]:
    """Ask for pictures by chance until *requests* were made by all who take from *numbers*."""
    outcomes = []
    chance = random.Random(next(numbers))
    targets = sorted(right)
    while next(numbers) < requests + CLIENTS:
        target = chance.choice(targets)
        answer = await ask(port, target)
        outcomes.append((outcome(answer, right[target]), answer.wait_s))
    return outcomes


async def kill_renderers(mount: Mount) -> None:
    while True:
        for pid in mount.renderer_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await trio.sleep(KILL_EVERY_S)


async def cool_down(served: Served) -> None:
    """Take pictures out of memory all the time, so that requests go on to need renders."""
    for target in itertools.cycle(sorted(served.right)):
        await trio.to_thread.run_sync(served.make_cold, target)
        await trio.sleep(0.002)


async def test_every_200_is_right_while_renderers_are_killed(
    web_store: Path, right: dict[str, str], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Its cache is too small for all the pictures, so that they stay hot and cold."""
    requests = request.config.getoption("--nginx-requests")
    outcomes: list[tuple[str, float]] = []
    numbers = itertools.count()
    with (
        mounted(web_store, tmp_path / "mnt", "--cache", "1M") as mount,
        running_nginx(tmp_path / "nginx", mount.path) as nginx,
    ):
        served = Served(mount, nginx, right)

        async def client() -> None:
            outcomes.extend(await ask_again_and_again(served.port, right, numbers, requests))

        begin_s = time.monotonic()
        async with trio.open_nursery() as background:
            background.start_soon(kill_renderers, mount)
            background.start_soon(cool_down, served)
            async with trio.open_nursery() as clients:
                for _ in range(CLIENTS):
                    clients.start_soon(client)
            background.cancel_scope.cancel()
        wall_s = time.monotonic() - begin_s
        status = mount.status()
    counts = Counter(kind for kind, _ in outcomes)
    slowest_s = max(wait_s for _, wait_s in outcomes)
    print(
        f"{dict(counts)} in {wall_s:.0f} s, slowest {slowest_s:.1f} s, renders "
        f"{status['renders_total']}, renderers restarted {status['renderer_restarts_total']}"
    )
    assert len(outcomes) >= requests
    assert set(counts) <= {"right", "503"}, counts
    assert counts["503"] < 0.01 * len(outcomes)
    assert slowest_s < DEADLINE_S + MARGIN_S
    assert status["renderer_restarts_total"] >= 1
    assert status["renders_total"] > 100


async def test_errors_end_soon_after_a_killed_daemon_and_no_answer_is_wrong(
    web_store: Path, right: dict[str, str], tmp_path: Path
) -> None:
    """Mounted again and nginx reloaded, as the units of docs/nginx.md have it."""
    outcomes: list[tuple[float, str]] = []
    with contextlib.ExitStack() as stack:
        mount = stack.enter_context(mounted(web_store, tmp_path / "mnt"))
        nginx = stack.enter_context(running_nginx(tmp_path / "nginx", mount.path))

        async def client(number: int, stop: trio.CancelScope) -> None:
            chance = random.Random(number)
            while not stop.cancel_called:
                target = chance.choice(sorted(right))
                answer = await ask(nginx.port, target)
                outcomes.append((trio.current_time(), outcome(answer, right[target])))
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            stop = trio.CancelScope()
            for number in range(50):
                nursery.start_soon(client, number, stop)
            await trio.sleep(2)
            killed_s = trio.current_time()
            mount.end(signal.SIGKILL)
            # A server stopped with its mount dead must not wait for it.
            await trio.to_thread.run_sync(stack.enter_context, mounted(web_store, tmp_path / "mnt"))
            nginx.reload()
            mounted_s = trio.current_time()
            await trio.sleep(6)
            stop.cancel()
    counts = Counter(kind for _, kind in outcomes)
    print(f"{dict(counts)}, mounted again after {mounted_s - killed_s:.1f} s")
    errors_s = [when_s for when_s, kind in outcomes if kind != "right"]
    assert set(counts) <= {"right", "503", "cut"}, counts
    assert counts["right"] > 100
    # Pictures that were being sent at that moment; their clients know that bytes are missing.
    assert counts["cut"] <= 5
    assert all(when_s > killed_s for when_s in errors_s)
    assert max(errors_s, default=killed_s) < mounted_s + 4
