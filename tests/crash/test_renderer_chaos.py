"""Whatever happens to its renderers, a mount gives right bytes or an error, and in time."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import resource
import shutil
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from latent_files import latent_array, write_comfyui_latent
from mounts import Mount, latentfs, mounted, wait_until

READERS = 5
READ = [f"{number:03}.png" for number in range(40)]
UNREAD = [f"{number:03}.png" for number in range(40, 44)]
RENDER_TIMEOUT_S = 5.0
# For a machine that is busy with other things as well.
MARGIN_S = 10.0
RECOVERY_S = 90.0
# So many right reads show that renders go on: fewer may come from caches alone.
READS_OF_SERVICE = 25

pytestmark = [
    pytest.mark.skipif(
        not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="/dev/fuse is missing or forbidden"
    ),
    pytest.mark.timeout(3600),  # --chaos-seconds decides; every wait in here ends by itself
]


@pytest.fixture(scope="module")
def store(store_with_vae: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes, so that some need memory which the renderer has not got yet."""
    folder = tmp_path_factory.mktemp("chaos")
    latents = folder / "latents"
    latents.mkdir()
    for number, name in enumerate(READ + UNREAD):
        array = latent_array(1, 4, 16 + number % 4 * 8, 16 + number % 3 * 8, seed=number)
        write_comfyui_latent(latents / f"{Path(name).stem}.latent", array)
    path = Path(shutil.copytree(store_with_vae, folder / "art.lfs"))
    latentfs("import", path, latents, "--vae", "tiny", "--to", "/pictures")
    return path


@pytest.fixture(scope="module")
def right_bytes(store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    with mounted(store, tmp_path_factory.mktemp("undisturbed") / "mnt") as mount:
        data = {name: (mount.path / "pictures" / name).read_bytes() for name in READ + UNREAD}
        assert mount.status()["hash_mismatches_total"] == 0
    return data


def read_cold(path: Path) -> bytes:
    """Read a file of which the kernel keeps nothing."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        pieces = []
        while piece := os.read(fd, 1 << 20):
            pieces.append(piece)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    return b"".join(pieces)


def outcome_of_read(folder: Path, name: str, right: bytes) -> str:
    """``right`` or ``EIO``, or in which way it is neither."""
    try:
        data = read_cold(folder / name)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))
    return "right" if data == right else f"{name} is wrong: {len(data)} of {len(right)} bytes"


@dataclass
class Load:
    """Threads that read pictures, and one that lists and stats, until told to stop.

    They are daemon threads: one that hangs in a read must not keep the test from failing.

    Attributes:
        outcomes: how often reads ended how.
        slowest_read_s, slowest_look_s: longest read; longest listing, ``stat`` or ``statvfs``.
    """

    folder: Path
    right_bytes: dict[str, bytes]
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_read_s: float = 0.0
    slowest_look_s: float = 0.0
    _stopping: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _threads: list[threading.Thread] = field(default_factory=list)

    @contextlib.contextmanager
    def running(self, chance: random.Random) -> Iterator[None]:
        # No two threads read one file at a time: in the kernel the second would wait for the
        # first's pages, and then for its own, which makes two deadlines.
        names = chance.sample(READ, len(READ))
        works: list[Callable[[], None]] = [
            self._reader(names[i::READERS], random.Random(chance.random())) for i in range(READERS)
        ]
        works.append(self._look)
        self._threads = [threading.Thread(target=work, daemon=True) for work in works]
        for thread in self._threads:
            thread.start()
        yield
        self._stopping.set()
        end_s = time.monotonic() + RENDER_TIMEOUT_S + MARGIN_S
        for thread in self._threads:
            thread.join(max(0.0, end_s - time.monotonic()))
        hanging = sum(thread.is_alive() for thread in self._threads)
        assert hanging == 0, f"{hanging} readers still hang at the end"

    def _reader(self, names: list[str], chance: random.Random) -> Callable[[], None]:
        def read() -> None:
            while not self._stopping.is_set():
                name = chance.choice(names)
                start_s = time.monotonic()
                outcome = outcome_of_read(self.folder, name, self.right_bytes[name])
                with self._lock:
                    self.outcomes[outcome] += 1
                    self.slowest_read_s = max(self.slowest_read_s, time.monotonic() - start_s)
                if outcome != "right":
                    self._stopping.wait(0.2)  # as a program would that tries again

        return read

    def _look(self) -> None:
        """``ls`` and ``stat``, as the kernel passes them on."""
        while not self._stopping.wait(0.1):
            start_s = time.monotonic()
            try:
                listed = sorted(os.listdir(self.folder))
                os.statvfs(self.folder)
                sizes_fit = all(
                    (self.folder / name).stat().st_size == len(data)
                    for name, data in self.right_bytes.items()
                )
                right = listed == sorted(self.right_bytes) and sizes_fit
                outcome = "listed" if right else "wrong listing"
            except OSError as error:
                outcome = f"not listed: {error}"
            with self._lock:
                self.outcomes[outcome] += 1
                self.slowest_look_s = max(self.slowest_look_s, time.monotonic() - start_s)


class Chaos:
    """Does things to the renderers of a mount, and lets it recover from each."""

    def __init__(self, mount: Mount, load: Load, chance: random.Random) -> None:
        self._mount = mount
        self._load = load
        self._chance = chance
        self.events: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        """Strike for so long; the last recovery comes on top."""
        end_s = time.monotonic() + seconds
        self._wait_for_service()
        while time.monotonic() < end_s:
            time.sleep(self._chance.uniform(0, 1))
            serving = [self._kill, self._hang, self._pause, self._starve]
            # One that still starts is not made to hang: it has minutes to become ready.
            starting = [self._kill, self._pause, self._starve]
            self._strike(self._chance.choice(serving))
            if self._chance.random() < 0.25:
                time.sleep(self._chance.uniform(0, 2))
                self._strike(self._chance.choice(starting))
            self._wait_for_service()

    def _strike(self, event: Callable[[int], None]) -> None:
        pids = self._mount.renderer_pids()
        if pids:
            self.events[event.__name__.removeprefix("_")] += 1
            with contextlib.suppress(ProcessLookupError):  # it may die of the event
                event(self._chance.choice(pids))

    def _wait_for_service(self) -> None:
        enough = self._load.outcomes["right"] + READS_OF_SERVICE
        wait_until(
            lambda: self._load.outcomes["right"] >= enough,
            f"pictures are read again after {dict(self.events)}",
            timeout_s=RECOVERY_S,
        )

    def _kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    def _hang(self, pid: int) -> None:
        """Stop it until it is killed for that; if it is not, it had nothing to do, and goes on."""
        os.kill(pid, signal.SIGSTOP)
        end_s = time.monotonic() + RENDER_TIMEOUT_S + MARGIN_S
        while pid in self._mount.renderer_pids() and time.monotonic() < end_s:
            time.sleep(0.05)
        os.kill(pid, signal.SIGCONT)

    def _pause(self, pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(self._chance.uniform(0.05, 1.0))
        os.kill(pid, signal.SIGCONT)

    def _starve(self, pid: int) -> None:
        """Let it have hardly more memory than it has now; after a while, as much as before."""
        before = resource.prlimit(pid, resource.RLIMIT_DATA)
        limit_bytes = data_bytes(pid) + self._chance.randrange(1 << 20)
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit_bytes, before[1]))
        time.sleep(self._chance.uniform(0.5, 3.0))
        resource.prlimit(pid, resource.RLIMIT_DATA, before)


def data_bytes(pid: int) -> int:
    """What RLIMIT_DATA counts: private memory that can be written."""
    with contextlib.suppress(FileNotFoundError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    raise ProcessLookupError(f"process {pid} has ended")


def check_that_it_serves_again(mount: Mount, right_bytes: dict[str, bytes]) -> None:
    """A content that was in flight as renderers died may be refused for longer; most may not."""
    folder = mount.path / "pictures"
    wait_until(
        lambda: outcome_of_read(folder, UNREAD[0], right_bytes[UNREAD[0]]) == "right",
        "a file that was never read is read right",
        timeout_s=RECOVERY_S,
    )
    for name in UNREAD:
        assert outcome_of_read(folder, name, right_bytes[name]) == "right"
    outcomes = Counter(outcome_of_read(folder, name, right_bytes[name]) for name in READ)
    print(f"afterwards: {dict(outcomes)}")
    assert set(outcomes) <= {"right", "EIO"}
    assert outcomes["right"] > len(READ) / 2


def test_reads_end_right_or_with_an_error_whatever_renderers_suffer(
    store: Path, right_bytes: dict[str, bytes], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed = random.randrange(1 << 32)
    print(f"random seed {seed}")
    chance = random.Random(seed)
    # A cache for a few pictures: most reads need a renderer.
    cache_bytes = sum(map(len, right_bytes.values())) // 10
    arguments = ("--cache", f"{cache_bytes}", "--render-timeout", f"{RENDER_TIMEOUT_S:g}")
    with mounted(store, tmp_path / "mnt", *arguments) as mount:
        load = Load(mount.path / "pictures", right_bytes)
        mount.wait_for_renderer()
        with load.running(chance):
            chaos = Chaos(mount, load, chance)
            chaos.run(request.config.getoption("--chaos-seconds"))
        outcomes, renders = load.outcomes, mount.status()["renders_total"]
        print(f"{dict(chaos.events)}; {dict(outcomes)}; {renders} renders")
        print(f"slowest read {load.slowest_read_s:.2f} s, look {load.slowest_look_s:.2f} s")
        assert set(outcomes) <= {"right", "EIO", "listed"}
        assert chaos.events
        # Where a renderer takes long to start, readers time out several times for each event.
        assert outcomes["right"] > outcomes["EIO"] / 2
        assert renders > outcomes["right"] / 2
        assert load.slowest_read_s < RENDER_TIMEOUT_S + MARGIN_S
        assert load.slowest_look_s < RENDER_TIMEOUT_S

        check_that_it_serves_again(mount, right_bytes)
        status = mount.status()
        assert status["hash_mismatches_total"] == 0
        renderers = mount.renderer_pids()
        assert mount.end() == 0, mount.log
        assert not os.path.ismount(mount.path)
        assert not any(Path(f"/proc/{pid}").exists() for pid in renderers)
