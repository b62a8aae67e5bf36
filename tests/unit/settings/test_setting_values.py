"""What values of settings may look like."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from latentfs.settings import values
from latentfs.settings.mount_settings import SETTINGS
from latentfs.telemetry.address import TcpAddress, UnixAddress


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("0", 0),
        ("7", 7),
        (7, 7),
        ("300K", 300 << 10),
        ("2g", 2 << 30),
        ("1 GiB", None),
        ("1GiB", 1 << 30),
    ],
)
def test_sizes(written, expected):
    if expected is None:
        with pytest.raises(ValueError, match="is not a size"):
            values.read_bytes(written)
    else:
        assert values.read_bytes(written) == expected


@pytest.mark.parametrize(
    "written",
    [
        *("", "-1", "1.5G", "2 G", "5iB", "many", "9" * 30 + "X", "5\u212a", "\u0665", "\u0665M"),
        *(-1, True, 1.5, None, []),
    ],
)
def test_what_is_no_size(written):
    with pytest.raises(ValueError, match=r"is not a size; use a whole number with K, M, G or T"):
        values.read_bytes(written)


@pytest.mark.parametrize("written", ["8388608T", 1 << 63, str(1 << 63), "9" * 5000])
def test_a_size_that_nothing_has(written):
    with pytest.raises(ValueError, match="is more than there can be; use less than 8388608T"):
        values.read_bytes(written)
    assert values.read_bytes("8388607T") == values.read_bytes(8388607 << 40) == 8388607 << 40


def test_an_optional_size():
    assert values.optional_bytes("none") is None
    assert values.optional_bytes("1G") == 1 << 30
    with pytest.raises(ValueError, match=r"'None' is not a size; .*; or write none"):
        values.optional_bytes("None")
    for written in (0, "0", "0K"):
        with pytest.raises(ValueError, match=r"leaves no room for anything; .*or write none"):
            values.optional_bytes(written)


@pytest.mark.parametrize(
    ("written", "expected_s"),
    [("60s", 60), ("500ms", 0.5), ("1.5 m", 90), ("2h", 7200), (3, 3), (0.25, 0.25), (".5", 0.5)],
)
def test_times(written, expected_s):
    assert values.read_seconds()(written) == pytest.approx(expected_s)


@pytest.mark.parametrize(
    "written", ["", "-1s", "1d", "inf", "nan", "1e3", "s", "\u0665s", True, None]
)
def test_what_is_no_time(written):
    with pytest.raises(ValueError, match="is not a time"):
        values.read_seconds()(written)


def test_a_time_that_is_too_short():
    with pytest.raises(ValueError, match=r"'50ms' is too short; use 0.1s or more"):
        values.read_seconds(at_least_s=0.1)("50ms")


@pytest.mark.parametrize("written", ["8761h", "9" * 400, 1e300, "40000000000ms"])
def test_a_time_that_is_too_long(written):
    with pytest.raises(ValueError, match=r"is too long|is not a time"):
        values.read_seconds()(written)
    assert values.read_seconds()("8760h") == 365 * 24 * 3600


def test_devices():
    assert values.read_device("cuda:12") == "cuda:12"
    for written in ("cuda:", "cuda:\u0665", "gpu", True):
        with pytest.raises(ValueError, match="is not a device"):
            values.read_device(written)


def test_shares():
    assert values.read_share("auto") is None
    assert values.read_share("0.25") == 0.25
    assert values.read_share(1) == 1
    assert values.read_share(0.00001) == 0.00001
    for written in ("nan", "-0.1", "1.1", "half", "0_1", "\u0660.5", True, None):
        with pytest.raises(ValueError, match="neither auto nor a number"):
            values.read_share(written)


def test_numbers():
    read = values.number_between(0, 64)
    assert read("64") == read(64) == 64
    for written in ("65", "-1", "", "1.0", 1.0, "²", "\u0665", "9" * 5000):
        with pytest.raises(ValueError, match="is not a whole number from 0 to 64"):
            read(written)


def test_yes_and_no():
    assert values.yes_or_no(True)
    assert values.yes_or_no("Yes")
    assert not values.yes_or_no("off")
    with pytest.raises(ValueError, match="neither yes nor no"):
        values.yes_or_no("maybe")


def test_addresses():
    assert values.listen_address("none") is None
    assert values.listen_address("127.0.0.1:9567") == TcpAddress("127.0.0.1", 9567)
    assert values.listen_address("unix:/run/x.sock") == UnixAddress(Path("/run/x.sock"))
    with pytest.raises(ValueError, match="is no address"):
        values.listen_address("9567")


def test_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert values.read_path("~/art.lfs") == Path("/home/ann/art.lfs")
    for written in ("art.lfs", "", "/a\0b"):
        with pytest.raises(ValueError, match=r"relative|not a path"):
            values.read_path(written)


def test_where_lines_go():
    assert values.read_log("stderr") == "stderr"
    assert values.read_log("syslog") == "syslog"
    assert values.read_log("/var/log/latentfs.log") == Path("/var/log/latentfs.log")
    with pytest.raises(ValueError, match="or write stderr or syslog"):
        values.read_log("stdout")


def test_lists():
    assert values.read_list("a, b,,c") == ("a", "b", "c")
    assert values.read_list(["a", "b"]) == ("a", "b")
    with pytest.raises(ValueError, match="is not a list of texts"):
        values.read_list(["a", 1])


@given(st.sampled_from(SETTINGS), st.one_of(st.text(), st.integers(), st.floats(), st.none()))
def test_a_reader_returns_or_refuses(setting, written):
    with contextlib.suppress(ValueError):
        setting.read(written)


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.name)
def test_each_default_can_be_read(setting):
    if setting.default is not None:
        setting.read(setting.default)
