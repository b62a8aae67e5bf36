"""Addresses at which metrics are served: what is understood, what is refused, what is bound."""

from __future__ import annotations

import socket
import stat
from pathlib import Path

import pytest

from latentfs.errors import InvalidArgumentError, MountError
from latentfs.telemetry.address import TcpAddress, UnixAddress, listening, parse_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9567", TcpAddress("127.0.0.1", 9567)),
        ("localhost:0", TcpAddress("127.0.0.1", 0)),
        ("[::1]:9567", TcpAddress("::1", 9567)),
        ("0.0.0.0:80", TcpAddress("0.0.0.0", 80)),
        ("[::]:65535", TcpAddress("::", 65535)),
        ("unix:/run/latentfs/art.sock", UnixAddress(Path("/run/latentfs/art.sock"))),
    ],
)
def test_an_address_is_understood(text, address):
    assert parse_address(text) == address


@pytest.mark.parametrize("text", ["127.0.0.1:9567", "[::1]:9567", "unix:/run/x.sock"])
def test_an_address_is_shown_as_it_is_written(text):
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "host and port"),
        ("9567", "host and port"),
        (":9567", "host and port"),
        ("127.0.0.1", "host and port"),
        ("127.0.0.1:", "no port"),
        ("127.0.0.1:65536", "no port"),
        ("127.0.0.1:-1", "no port"),
        ("127.0.0.1:http", "no port"),
        ("127.0.0.1:\u0663", "no port"),
        ("example.org:9567", "no IP address"),
        ("::1:9567", "brackets"),
        ("[127.0.0.1]:9567", "brackets"),
        ("unix:run/x.sock", "must be absolute"),
        ("unix:", "must be absolute"),
        ("unix:/" + 107 * "x", "107 bytes"),
    ],
)
def test_what_is_no_address_is_refused_with_the_reason(text, why):
    with pytest.raises(InvalidArgumentError, match=why):
        parse_address(text)


def test_port_0_becomes_a_free_one():
    with listening(TcpAddress("127.0.0.1", 0)) as (listener, bound):
        assert isinstance(bound, TcpAddress)
        assert bound.port == listener.getsockname()[1] > 0


def test_an_address_that_is_taken_or_not_here_is_an_error_that_says_so():
    with listening(TcpAddress("127.0.0.1", 0)) as (_, bound):
        taken = listening(bound)
        with pytest.raises(MountError, match=r"127\.0\.0\.1:\d+: Address already in use"):
            taken.__enter__()
    with pytest.raises(MountError, match=r"192\.0\.2\.1:9567: Cannot assign"):
        listening(TcpAddress("192.0.2.1", 9567)).__enter__()


def test_a_socket_is_for_its_owner_and_group_and_is_removed_at_the_end(tmp_path):
    path = tmp_path / "metrics.sock"
    with listening(UnixAddress(path)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


def test_a_socket_that_a_dead_daemon_has_left_is_replaced(tmp_path):
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with listening(UnixAddress(path)), socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


def test_a_socket_in_use_and_other_files_are_left_alone(tmp_path):
    path = tmp_path / "metrics.sock"
    with listening(UnixAddress(path)):
        with pytest.raises(MountError, match="another process listens there"):
            listening(UnixAddress(path)).__enter__()
        assert path.exists()
    path.write_text("precious")
    with pytest.raises(MountError, match="no socket"):
        listening(UnixAddress(path)).__enter__()
    assert path.read_text() == "precious"
    with pytest.raises(MountError, match="No such file or directory"):
        listening(UnixAddress(tmp_path / "missing" / "x.sock")).__enter__()


def test_a_socket_of_another_in_its_place_is_not_removed(tmp_path):
    path = tmp_path / "metrics.sock"
    with socket.socket(socket.AF_UNIX) as other:
        with listening(UnixAddress(path)):
            path.unlink()
            other.bind(str(path))
        assert path.exists()
