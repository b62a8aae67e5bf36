"""What clients of nginx see while renderers and daemons die."""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from example_nginx import running_nginx
from latent_files import latent_array
from mounts import Mount, mounted, wait_until
from nginx.conftest import Served, rendition_hashes, serving
from nginx.http_client import Answer, ask, asked
from rendered_stores import rendered_store

CLIENTS = 200
PAUSE_S = 0.5
KILL_EVERY_S = 5.0
# Of pictures that are taken out of memory.
COOL_DOWN_EVERY_S = 0.1
# After a check's time limit nginx answers 503; see examples/nginx/latentfs.conf.
DEADLINE_S = 65.0
# For a machine that is busy with other things as well.
MARGIN_S = 10.0
LARGE_PICTURES = 8
# The handle that nginx keeps of a picture refuses it for so long after a failed read.
HANDLE_FAILED_FOR_S = 0.2

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
    served: Served, numbers: itertools.count[int], requests: int
) -> list[tuple[str, float]]:
    """Ask for pictures by chance until *requests* were made by all who take from *numbers*."""
    outcomes = []
    chance = random.Random(next(numbers))
    targets = sorted(served.right)
    while next(numbers) < requests + CLIENTS:
        target = chance.choice(targets)
        await trio.sleep(chance.uniform(0, 2 * PAUSE_S))
        answer = await ask(served.port, target)
        outcomes.append((outcome(answer, served.right[target]), answer.wait_s))
    return outcomes


async def kill_renderers(mount: Mount) -> None:
    """Every few seconds, unless it has not started yet: that may take as long."""
    while True:
        if mount.status()["renderer_ready"]:
            for pid in mount.renderer_pids():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        await trio.sleep(KILL_EVERY_S)


async def cool_down(served: Served) -> None:
    """Take pictures out of memory all the time, so that requests go on to need renders."""
    for target in itertools.cycle(sorted(served.right)):
        await trio.to_thread.run_sync(served.make_cold, target)
        await trio.sleep(COOL_DOWN_EVERY_S)


@pytest.fixture(scope="module")
def served(
    own_store: Path, right: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """Its cache is too small for all the pictures, so that some stay cold."""
    folder = tmp_path_factory.mktemp("scarce")
    with serving(own_store, folder, right, "--cache", "1M") as served:
        yield served


@contextlib.contextmanager
def no_vae(store: Path) -> Iterator[None]:
    """It is away for a while, as if its disk were; a renderer that has loaded it goes on."""
    for vae in (store / "vae").iterdir():
        vae.rename(store / f"away-{vae.name}")
    try:
        yield
    finally:
        for vae in store.glob("away-*"):
            vae.rename(store / "vae" / vae.name.removeprefix("away-"))


async def test_a_picture_that_can_not_be_rendered_is_503_until_it_can(served: Served) -> None:
    pid = await trio.to_thread.run_sync(served.mount.wait_for_renderer)
    other_copy = {"If-None-Match": '"another"'}
    with no_vae(served.mount.store):
        os.kill(pid, signal.SIGKILL)  # the next one has not loaded it
        answers = [
            (target, await ask(served.port, target, headers=headers))
            for headers in ({}, other_copy)
            for target in sorted(served.right)[2:20]
        ]
    kinds = Counter(outcome(answer, served.right[target]) for target, answer in answers)
    assert set(kinds) <= {"right", "503"}, kinds
    assert kinds["503"] > 20
    for answer in (answer for _, answer in answers if answer.status == 503):
        assert answer.is_whole
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["retry-after"] == "5"
        assert answer.headers["content-type"] == "text/plain"
    await trio.sleep(HANDLE_FAILED_FOR_S)
    for target, _ in answers:
        assert outcome(await ask(served.port, target), served.right[target]) == "right"


async def test_every_200_is_right_while_renderers_are_killed(
    served: Served, request: pytest.FixtureRequest
) -> None:
    requests = request.config.getoption("--nginx-requests")
    outcomes: list[tuple[str, float]] = []
    numbers = itertools.count()
    await trio.to_thread.run_sync(served.mount.wait_for_renderer)  # there must be one to be killed
    before = served.mount.status()

    async def client() -> None:
        outcomes.extend(await ask_again_and_again(served, numbers, requests))

    begin_s = time.monotonic()
    async with trio.open_nursery() as background:
        background.start_soon(kill_renderers, served.mount)
        background.start_soon(cool_down, served)
        async with trio.open_nursery() as clients:
            for _ in range(CLIENTS):
                clients.start_soon(client)
        background.cancel_scope.cancel()
    wall_s = time.monotonic() - begin_s
    status = served.mount.status()
    renders, restarts = (
        status[name] - before[name] for name in ("renders_total", "renderer_restarts_total")
    )
    counts = Counter(kind for kind, _ in outcomes)
    slowest_s = max(wait_s for _, wait_s in outcomes)
    print(
        f"{dict(counts)} in {wall_s:.0f} s, slowest {slowest_s:.1f} s, {renders} renders, "
        f"{restarts} renderers restarted"
    )
    assert len(outcomes) >= requests
    assert set(counts) <= {"right", "503"}, counts
    assert counts["503"] < 0.01 * len(outcomes)
    assert slowest_s < DEADLINE_S + MARGIN_S
    assert restarts >= 1
    assert renders > 50


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """One that other users may enter, unlike those of pytest."""
    with tempfile.TemporaryDirectory() as path:
        Path(path).chmod(0o755)
        yield Path(path)


def right_since(outcomes: list[tuple[float, str]], since_s: float) -> int:
    return sum(kind == "right" for when_s, kind in outcomes if when_s > since_s)


@pytest.mark.parametrize("pauses_s", [(2.0,), (2.0, 1.0), (4.0, 2.0, 0.0)])
async def test_errors_end_soon_after_killed_daemons_and_no_answer_is_wrong_or_cut(
    web_store: Path, right: dict[str, str], open_folder: Path, pauses_s: tuple[float, ...]
) -> None:
    """Mounted again as the units of docs/nginx.md have it, once or several times in a row.

    The next daemon is killed before it has rendered what the last one had in memory.  nginx has a
    user of its own, who may not enter the folder that is there without the mount.
    """
    store, mountpoint = open_folder / "art.lfs", open_folder / "mnt"
    shutil.copytree(web_store, store, ignore=shutil.ignore_patterns("*.sock", "lock.mdb"))
    mountpoint.mkdir(mode=0o700)
    is_root = os.geteuid() == 0
    changes = {"user www-data;": "user nobody nogroup;"} if is_root else {}
    outcomes: list[tuple[float, str]] = []
    mounted_s, enough = math.inf, trio.Event()
    with contextlib.ExitStack() as stack:
        mount = stack.enter_context(mounted(store, mountpoint))
        await trio.to_thread.run_sync(mount.wait_for_renderer)
        nginx = stack.enter_context(
            running_nginx(open_folder / "nginx", mountpoint, changes=changes)
        )

        async def client(number: int, stop: trio.CancelScope) -> None:
            chance = random.Random(number)
            while not stop.cancel_called:
                target = chance.choice(sorted(right))
                answer = await ask(nginx.port, target)
                outcomes.append((trio.current_time(), outcome(answer, right[target])))
                if right_since(outcomes, mounted_s) > 100:
                    enough.set()
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            stop = trio.CancelScope()
            for number in range(50):
                nursery.start_soon(client, number, stop)
            killed_s = math.inf
            for pause_s in pauses_s:
                await trio.sleep(pause_s)
                killed_s = min(killed_s, trio.current_time())
                mount.end(signal.SIGKILL)
                await trio.to_thread.run_sync(nginx.before_daemon_starts)
                mount = await trio.to_thread.run_sync(
                    stack.enter_context, mounted(store, mountpoint)
                )
            mounted_s = trio.current_time()
            with trio.fail_after(120):
                await enough.wait()
            stop.cancel()
    counts = Counter(kind for _, kind in outcomes)
    print(f"{dict(counts)}, killed {len(pauses_s)} times in {mounted_s - killed_s:.1f} s")
    assert set(counts) == {"right", "503", *([] if is_root else ["404"])}, counts
    errors_s = [when_s for when_s, kind in outcomes if kind != "right"]
    assert min(errors_s) > killed_s
    assert max(errors_s) < mounted_s + MARGIN_S


@pytest.fixture(scope="module")
def large_store(tiny_vae_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of 1024x1024 in /large, of which much is still to be sent to a slow client."""
    latents = [latent_array(1, 4, 128, 128, seed=number) for number in range(LARGE_PICTURES)]
    folder = tmp_path_factory.mktemp("large")
    return rendered_store(folder, tiny_vae_folder, latents, to="/large")


async def test_a_picture_that_is_larger_than_the_buffer_of_a_check_is_rendered_for_it(
    large_store: Path, tmp_path: Path
) -> None:
    right = rendition_hashes(large_store, "large")
    changes = {"output_buffers 1 32m;": "output_buffers 1 64k;"}
    with (
        mounted(large_store, tmp_path / "mnt", "--prefetch", "0") as mount,
        running_nginx(tmp_path / "nginx", mount.path, changes=changes) as nginx,
    ):
        with no_vae(large_store):  # the renderer finds none
            await trio.to_thread.run_sync(
                wait_until, lambda: bool(mount.renderer_pids()), "one starts"
            )
            for target in right:
                assert outcome(await ask(nginx.port, target), right[target]) == "503"
        await trio.sleep(HANDLE_FAILED_FOR_S)
        for target in right:
            assert outcome(await ask(nginx.port, target), right[target]) == "right"


async def test_what_was_begun_is_sent_to_its_end_though_the_daemon_dies(
    large_store: Path, tmp_path: Path
) -> None:
    """All of a picture is in the kernel's memory before the first byte of it is sent."""
    right = rendition_hashes(large_store, "large")
    with (
        mounted(large_store, tmp_path / "mnt", "--prefetch", "0") as mount,
        running_nginx(tmp_path / "nginx", mount.path) as nginx,
    ):
        await trio.to_thread.run_sync(mount.wait_for_renderer)
        async with contextlib.AsyncExitStack() as stack:
            begun = {
                target: await stack.enter_async_context(asked(nginx.port, target, is_slow=True))
                for target in right
            }
            for exchange in begun.values():
                assert await exchange.receive(1000)
            mount.end(signal.SIGKILL)
            answers = {target: await exchange.answer() for target, exchange in begun.items()}
    assert min(len(answer.body) for answer in answers.values()) > 500_000
    outcomes = {target: outcome(answer, right[target]) for target, answer in answers.items()}
    assert outcomes == dict.fromkeys(right, "right")
