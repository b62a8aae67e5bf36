"""Reader processes, on ordinary files."""

import time
from pathlib import Path

import pytest

from latentfs.bench.readers import open_readers
from latentfs.errors import RenderError

WAIT_S = 60.0


def test_each_file_is_read_whole_and_once(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}\n.png" for number in range(20)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes(number * 50_000))
    with open_readers(3) as readers:
        start_s = time.perf_counter()
        for path in paths:
            readers.read(path)
        readings = readers.finish(timeout_s=WAIT_S)
    end_s = time.perf_counter()
    sizes = {reading.path: reading.size_bytes for reading in readings}
    assert sizes == {path: number * 50_000 for number, path in enumerate(paths)}
    assert len(readings) == 20
    assert all(start_s <= reading.start_s <= reading.end_s <= end_s for reading in readings)


def test_files_are_read_in_turn_until_the_time_is_over(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(b"x")
    with open_readers(1) as readers:
        readers.read(*paths, for_s=0.2, pause_s=0.01)
        readings = readers.finish(timeout_s=WAIT_S)
    assert len(readings) > 2
    assert [reading.path for reading in readings[:3]] == [paths[0], paths[1], paths[0]]


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with open_readers(2) as readers:
        readers.read(tmp_path / "missing.png")
        with pytest.raises(RenderError, match=r"missing\.png: No such file"):
            readers.finish(timeout_s=WAIT_S)


def test_readers_that_are_not_awaited_are_ended(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    with open_readers(2) as readers:
        readers.read(tmp_path / "a", for_s=3600)
        processes = readers._processes
    assert all(process.poll() is not None for process in processes)
