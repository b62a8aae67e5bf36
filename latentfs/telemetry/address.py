"""Where metrics are served: a TCP address or a unix socket."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latentfs.errors import InvalidArgumentError, MountError

__all__ = ["Address", "TcpAddress", "UnixAddress", "listening", "parse_address"]

_SOCKET_PATH_BYTES_MAX = 107  # of sun_path, without the NUL
_BACKLOG = 16
_PROBE_TIMEOUT_S = 1.0
_EXAMPLES = "use for instance 127.0.0.1:9567, [::1]:9567 or unix:/run/latentfs/metrics.sock"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An IP address, not a name, and a port; 0 stands for any that is free."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """An absolute path."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_address(text: str) -> Address:
    """Return the address that a setting names.

    Raises:
        InvalidArgumentError: it is none, with an address that would be.
    """
    kind, separator, path = text.partition(":")
    if kind == "unix" and separator:
        return _unix_address(text, path)
    host, separator, port = text.rpartition(":")
    if not separator or not host:
        raise InvalidArgumentError(
            f"{text!r} is no address for metrics: it needs host and port; {_EXAMPLES}"
        )
    if not (port.isascii() and port.isdigit() and int(port) <= 0xFFFF):
        raise InvalidArgumentError(
            f"{text!r} is no address for metrics: {port!r} is no port from 0 to 65535; {_EXAMPLES}"
        )
    return TcpAddress(_ip_address(text, host), int(port))


def _unix_address(text: str, path: str) -> UnixAddress:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgumentError(
            f"{text!r} is no address for metrics: a socket's path must be absolute; {_EXAMPLES}"
        )
    if len(os.fsencode(path)) > _SOCKET_PATH_BYTES_MAX:
        raise InvalidArgumentError(
            f"{text!r} is no address for metrics: a socket's path has at most "
            f"{_SOCKET_PATH_BYTES_MAX} bytes; choose a shorter one"
        )
    return UnixAddress(Path(path))


def _ip_address(text: str, host: str) -> str:
    if host == "localhost":
        return "127.0.0.1"
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if bracketed else host)
    except ValueError:
        raise InvalidArgumentError(
            f"{text!r} is no address for metrics: {host!r} is no IP address; {_EXAMPLES}"
        ) from None
    if bracketed != (address.version == 6):
        raise InvalidArgumentError(
            f"{text!r} is no address for metrics: brackets belong around an IPv6 address, and "
            f"only there; {_EXAMPLES}"
        )
    return str(address)


@contextlib.contextmanager
def listening(address: Address) -> Iterator[tuple[socket.socket, Address]]:
    """A listening socket, and the address that it has got; closed at the end.

    A unix socket has mode 0660; one that a dead daemon has left is replaced.  It is removed at the
    end, unless another has taken its place.

    Raises:
        MountError: the address can't be bound.
    """
    try:
        if isinstance(address, UnixAddress):
            with _listening_at(address.path) as listener:
                yield listener, address
        else:
            with _listening_on(address) as listener:
                yield listener, TcpAddress(address.host, listener.getsockname()[1])
    except _BindError as error:
        raise MountError(
            f"metrics can't be served at {address}: {error}; choose another address with --metrics"
        ) from error


class _BindError(Exception):
    """Why an address can't be bound."""


@contextlib.contextmanager
def _listening_on(address: TcpAddress) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        try:
            listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address.host, address.port))
            listener.listen(_BACKLOG)
        except OSError as error:
            raise _BindError(error.strerror or str(error)) from error
        yield listener


@contextlib.contextmanager
def _listening_at(path: Path) -> Iterator[socket.socket]:
    with contextlib.ExitStack() as stack:
        try:
            _remove_stale(path)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            before = os.umask(0o117)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            bound = path.lstat()
            listener.listen(_BACKLOG)
        except OSError as error:
            raise _BindError(error.strerror or str(error)) from error
        stack.callback(_remove_own, path, bound)
        yield listener


def _remove_stale(path: Path) -> None:
    """Remove a socket on which nobody listens.

    Raises:
        _BindError: something else is there.
    """
    try:
        is_socket = stat.S_ISSOCK(path.lstat().st_mode)
    except FileNotFoundError:
        return
    if not is_socket:
        raise _BindError("there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_PROBE_TIMEOUT_S)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except FileNotFoundError:
            return
    raise _BindError("another process listens there")


def _remove_own(path: Path, bound: os.stat_result) -> None:
    with contextlib.suppress(OSError):
        now = path.lstat()
        if (now.st_dev, now.st_ino) == (bound.st_dev, bound.st_ino):
            path.unlink()
