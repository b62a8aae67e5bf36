"""The tool that replays a trace of one's own."""

from pathlib import Path

import pytest
import replay_trace


def test_a_trace_of_ones_own_is_replayed_with_each_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "access.csv"
    lines = [f"{second},{second % 3},1000000" for second in range(30)]
    trace.write_text("\n".join(["time,object,size", *lines]))
    monkeypatch.setattr("sys.argv", ["replay_trace.py", str(trace), "--cache-mb", "10"])
    replay_trace.main()
    printed = capsys.readouterr().out
    assert "30 requests for 3 objects" in printed
    assert "| moving | 4.20 |" in printed, "three of thirty waited 40 ms longer"
    assert "| 0% pixels | 31.20 |" in printed, "three of thirty were fetched"
    assert "| finished files | 1.20 |" in printed, "three of thirty were fetched"


def test_what_is_no_trace_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = tmp_path / "access.csv"
    trace.write_text("time,object,size\n0,1,many\n")
    monkeypatch.setattr("sys.argv", ["replay_trace.py", str(trace), "--cache-mb", "10"])
    with pytest.raises(SystemExit):
        replay_trace.main()
    assert "access.csv" in capsys.readouterr().err
