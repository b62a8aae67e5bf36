"""When requests are due, which files they are for, and what comes of reading them."""

from __future__ import annotations

import errno
import os
import threading
from array import array
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfs.bench import replay as replay_module
from latentfs.bench.replay import due_times, find_pictures, pictures_for, replay
from latentfs.bench.trace import Trace
from latentfs.errors import InvalidArgumentError


def traced(*objects: int, times_s: tuple[float, ...] = ()) -> Trace:
    return Trace(
        array("d", times_s or (0.0,) * len(objects)), array("Q", objects), len(set(objects))
    )


def test_requests_are_due_as_in_the_trace_from_its_first_on() -> None:
    trace = traced(0, 1, 0, times_s=(1000, 1000.5, 1060))
    assert list(due_times(trace, rate=None, speed=1.0)) == [0, 0.5, 60]
    assert list(due_times(trace, rate=None, speed=60.0)) == [0, 0.5 / 60, 1]


def test_with_a_rate_they_are_evenly_spaced() -> None:
    trace = traced(0, 1, 0, times_s=(1000, 1000.5, 1060))
    assert list(due_times(trace, rate=4.0, speed=1.0)) == [0, 0.25, 0.5]


@given(
    st.lists(st.floats(0, 1e300), min_size=1),
    st.none() | st.floats(1e-300, 1e300),
    st.floats(1e-300, 1e300),
)
def test_no_request_is_due_before_the_one_ahead_of_it(
    times_s: list[float], rate: float | None, speed: float
) -> None:
    trace = traced(*[0] * len(times_s), times_s=tuple(sorted(times_s)))
    due_s = due_times(trace, rate=rate, speed=speed)
    assert len(due_s) == len(times_s)
    assert due_s[0] == 0
    assert list(due_s) == sorted(due_s)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_only_positive_rates_and_speeds_can_be_kept(value: float) -> None:
    with pytest.raises(InvalidArgumentError, match=r"the rate .* is not a positive number"):
        due_times(traced(0), rate=value, speed=1.0)
    with pytest.raises(InvalidArgumentError, match=r"the speed .* is not a positive number"):
        due_times(traced(0), rate=None, speed=value)


def make_files(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 100_000)


def test_pictures_are_found_in_the_order_of_their_paths(tmp_path: Path) -> None:
    make_files(tmp_path, "b/2.png", "b/1.PNG", "a.jpeg", "c.jpg", "b/notes.txt", "b/x.latent")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "a.jpeg")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "fifo.png")
    found = [os.path.relpath(path, tmp_path) for path in find_pictures(tmp_path)]
    assert found == ["a.jpeg", "b/1.PNG", "b/2.png", "c.jpg"]


def test_a_folder_that_is_none_can_not_be_searched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        find_pictures(tmp_path / "none")


def test_the_object_asked_for_first_is_the_first_picture() -> None:
    pictures = ["a.png", "b.png", "c.png"]
    assert pictures_for(traced(0, 1, 0), pictures, folder=Path("f")) == ["a.png", "b.png"]
    assert pictures_for(traced(0, 1, 2), pictures, folder=Path("f")) == pictures


def test_more_objects_than_pictures_are_refused_with_both_numbers() -> None:
    with pytest.raises(InvalidArgumentError, match=r"asks for 3 different.* below f are 2 pict"):
        pictures_for(traced(0, 1, 2), ["a.png", "b.png"], folder=Path("f"))


@pytest.mark.parametrize("readers", [1, 4])
def test_each_request_reads_its_file_once_and_whole(tmp_path: Path, readers: int) -> None:
    make_files(tmp_path, "a.png", "bb.png")
    trace = traced(0, 1, 0, 0, 1)
    done = replay(
        trace,
        find_pictures(tmp_path),
        due_times(trace, rate=1e6, speed=1.0),
        readers=readers,
        drop_kernel_pages=True,
    )
    assert done.read_bytes == 3 * 500_000 + 2 * 600_000
    assert (len(done.latencies_s), len(done.services_s)) == (5, 5)
    assert (done.errors.total(), done.interrupted) == (0, False)
    assert 0 < max(done.latencies_s) <= done.duration_s


def test_a_late_start_counts_as_latency_and_not_as_service(tmp_path: Path) -> None:
    """With one reader, all that are due at once wait for those ahead of them."""
    make_files(tmp_path, "a.png")
    trace = traced(*[0] * 20)
    due_s = due_times(trace, rate=None, speed=1.0)
    done = replay(trace, find_pictures(tmp_path), due_s, readers=1, drop_kernel_pages=False)
    ahead_s = 0.0
    for latency_s, service_s in zip(done.latencies_s, done.services_s, strict=True):
        assert latency_s >= ahead_s + service_s
        ahead_s += service_s
    assert max(done.latencies_s) == done.latencies_s[-1]


def test_errors_are_counted_by_number_and_their_requests_too(tmp_path: Path) -> None:
    make_files(tmp_path, "a.png")
    (tmp_path / "folder.png").mkdir()
    paths = [str(tmp_path / name) for name in ("a.png", "none.png", "folder.png")]
    trace = traced(0, 1, 2, 1, 0)
    done = replay(trace, paths, [0.0] * 5, readers=2, drop_kernel_pages=True)
    assert done.errors == {errno.ENOENT: 2, errno.EISDIR: 1}
    assert len(done.latencies_s) == 5
    assert done.read_bytes == 2 * 500_000


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    make_files(tmp_path, "a.png")
    (tmp_path / "folder.png").mkdir()
    paths = [str(tmp_path / name) for name in ("a.png", "folder.png")]
    before = os.listdir("/proc/self/fd")
    replay(traced(0, 1, 0, 1), paths, [0.0] * 4, readers=2, drop_kernel_pages=True)
    assert os.listdir("/proc/self/fd") == before


def test_an_interrupt_leaves_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request hangs in its read, one is done, and one is not due for a year."""
    make_files(tmp_path, "a.png")
    os.mkfifo(tmp_path / "hangs.png")
    writer = os.open(tmp_path / "hangs.png", os.O_RDWR)
    paths = [str(tmp_path / "hangs.png"), str(tmp_path / "a.png")]
    is_done = threading.Event()
    close = os.close

    class InterruptedThread(threading.Thread):
        def join(self, timeout: float | None = None) -> None:
            if timeout is None:
                is_done.wait()
                raise KeyboardInterrupt
            super().join(timeout)

    def closed(fd: int) -> None:
        close(fd)
        is_done.set()

    with monkeypatch.context() as patched:
        patched.setattr(replay_module, "_END_S", 0.05)
        patched.setattr(threading, "Thread", InterruptedThread)
        patched.setattr(os, "close", closed)
        trace = traced(0, 1, 0)
        done = replay(trace, paths, [0.0, 0.0, 3e7], readers=3, drop_kernel_pages=False)
    os.close(writer)  # which ends the read that hangs
    assert done.interrupted
    assert (len(done.latencies_s), done.read_bytes) == (1, 500_000)
