"""bench replay on folders that are no mounts, and beside bench itself."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from e2e.support import call, shown_error
from mounts import wait_until

SIZES = (10, 300_000, 1_000_000)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, and one file that is none."""
    folder = tmp_path / "plain"
    folder.mkdir()
    for number, size_bytes in enumerate(SIZES):
        (folder / f"{number}.png").write_bytes(bytes(size_bytes))
    (folder / "0.txt").write_text("no picture")
    return folder


def trace_of(folder: Path, text: str) -> Path:
    path = folder / "day.csv"
    path.write_text(text)
    return path


def test_a_plain_folder_gives_latencies_alone(folder: Path, tmp_path: Path) -> None:
    trace = trace_of(tmp_path, "time,object\n100,x\n100.02,z\n100.02,x\n100.1,y\n")
    result = call("bench", "replay", trace, folder, "--readers", 2, "--json").checked()
    found = json.loads(result.out)
    assert (found["requests"], found["files"], found["errors"]) == (4, 3, {})
    # x is the first picture, z the second: in the order in which they are asked for.
    assert found["bytes"] == 2 * SIZES[0] + SIZES[1] + SIZES[2]
    assert found["tiers"] is None
    assert found["duration_s"] > 0.1
    figures = ("p50_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
    for kind in ("latency", "service"):
        values = [found[kind][name] for name in figures]
        assert values == sorted(values)
        assert 0 < found[kind]["mean_ms"] <= found[kind]["max_ms"]
    assert found["service"]["max_ms"] <= found["latency"]["max_ms"]
    assert "4 requests to 3 files" in result.err

    shown = call("bench", "replay", trace, folder, "--speed", 10).checked().out
    assert "requests   4 of 4 to 3 files" in shown
    assert "hits" not in shown


def test_only_the_first_requests_are_made(folder: Path, tmp_path: Path) -> None:
    trace = trace_of(tmp_path, "0,a\n0,b\n9e9,c\n9e9,d\n")
    options = ("--requests", 3, "--rate", 100, "--json")
    found = json.loads(call("bench", "replay", trace, folder, *options).checked().out)
    assert (found["requests"], found["requests_asked"], found["rate"]) == (3, 3, 100)
    assert 0.02 < found["duration_s"] < 60


def test_what_can_not_be_replayed_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    trace = trace_of(tmp_path, "0,a\n1,b\n2,c\n3,d\n")
    message = shown_error(call("bench", "replay", trace, folder))
    assert "asks for 4 different objects" in message
    assert "are 3 pictures" in message

    assert "line 2: the time 'soon'" in shown_error(
        call("bench", "replay", trace_of(tmp_path, "0,a\nsoon,b\n"), folder)
    )
    assert "none.csv" in shown_error(call("bench", "replay", tmp_path / "none.csv", folder))
    trace = trace_of(tmp_path, "0,a\n")
    assert "none" in shown_error(call("bench", "replay", trace, tmp_path / "none"))
    assert "the speed 0" in shown_error(call("bench", "replay", trace, folder, "--speed", 0))
    both = call("bench", "replay", trace, folder, "--speed", 2, "--rate", 5)
    assert both.status == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_shows_what_was_measured(
    folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    asked = 100_000  # at 100 a second
    trace = trace_of(tmp_path, "".join(f"{n / 100},{n % 3}\n" for n in range(asked)))
    process = subprocess.Popen(
        [sys.executable, "-m", "latentfs", "bench", "replay", trace, folder, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        process.stderr.readline()  # it is about to begin
        before = bytes_read_by(process)
        wait_until(lambda: bytes_read_by(process) > before + 3 * sum(SIZES), "it reads files")
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, err) == (130, "latentfs: interrupted\n")
    found = json.loads(out)
    assert found["interrupted"]
    assert 6 < found["requests"] < found["requests_asked"] == asked
    assert found["bytes"] > 2 * sum(SIZES)


def bytes_read_by(process: subprocess.Popen[str]) -> int:
    lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
    fields = dict(line.split(": ") for line in lines)
    return int(fields["rchar"])


def test_bench_itself_takes_a_store_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that is called replay, if it is named as a path."""
    monkeypatch.chdir(tmp_path)
    message = shown_error(call("bench", "--files", 3, "./replay"))
    assert str(tmp_path / "replay") in message
    assert "Usage: latentfs bench replay " in call("bench", "replay", "--help").checked().out
    shown = call("bench", "--help").checked().out
    assert "latentfs bench [OPTIONS] STORE" in shown
    assert "latentfs bench replay [OPTIONS] TRACE FOLDER" in shown
