"""What the values of settings may look like.

Each reader takes text, as flags, mount options and the environment give it, or what TOML has for
it.  It raises ``ValueError`` with a message that names the value and says what to write instead.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from latentfs.errors import InvalidArgumentError
from latentfs.telemetry.address import Address, parse_address

__all__ = [
    "listen_address",
    "number_between",
    "of_choice",
    "optional_bytes",
    "read_bytes",
    "read_device",
    "read_path",
    "read_list",
    "read_log",
    "read_seconds",
    "read_share",
    "yes_or_no",
]

_BYTE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_BYTES_END = 1 << 63  # 8388608T
_SECOND_UNITS = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SECONDS_MAX = 365 * 24 * 3600.0
# Texts may have other digits than these, which int and float take too.
_NUMBER = r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
_DEVICE_PATTERN = r"auto|cpu|cuda(:[0-9]+)?"
_YES, _NO = ("yes", "true", "on", "1"), ("no", "false", "off", "0")


def read_bytes(value: object) -> int:
    """Bytes, in powers of 1024: ``512M``, ``2G`` or a plain number."""
    pattern = r"0*([0-9]+)(?:([KMGT])(?:i?B)?|B)?"
    match = re.fullmatch(pattern, str(value).strip(), re.ASCII | re.IGNORECASE)
    if match is None:
        raise ValueError(
            f"{value!r} is not a size; use a whole number with K, M, G or T right behind it, such "
            "as 512M"
        )
    digits, unit = match[1], (match[2] or "").upper()
    size = _BYTES_END if len(digits) > len(str(_BYTES_END)) else int(digits) * _BYTE_UNITS[unit]
    if size >= _BYTES_END:
        raise ValueError(f"{value!r} is more than there can be; use less than 8388608T")
    return size


def optional_bytes(value: object) -> int | None:
    """Bytes, more than none, or ``none``."""
    if value == "none":
        return None
    try:
        size = read_bytes(value)
    except ValueError as error:
        raise ValueError(f"{error}; or write none") from error
    if size == 0:
        raise ValueError(f"{value!r} leaves no room for anything; use such as 10G, or write none")
    return size


def read_seconds(*, at_least_s: float = 0.0) -> Callable[[object], float]:
    """Seconds, a year at most: ``60s``, ``500ms``, ``2m``, ``1h`` or a plain number."""

    def read(value: object) -> float:
        match = re.fullmatch(_NUMBER + r"\s*(ms|s|m|h|)", str(value).strip())
        if match is None:
            raise ValueError(
                f"{value!r} is not a time; use a number with ms, s, m or h, such as 60s"
            )
        seconds = float(match[1]) * _SECOND_UNITS[match[2]]
        if seconds < at_least_s:
            raise ValueError(f"{value!r} is too short; use {at_least_s:g}s or more")
        if seconds > _SECONDS_MAX:
            raise ValueError(f"{value!r} is too long; use {_SECONDS_MAX / 3600:.0f}h or less")
        return seconds

    return read


def read_share(value: object) -> float | None:
    """A share from 0 to 1, or ``auto``, which is None."""
    if value == "auto":
        return None
    match = re.fullmatch(_NUMBER + r"(e-[0-9]+)?", str(value).strip())
    if match is None or not float(match[0]) <= 1:
        raise ValueError(f"{value!r} is neither auto nor a number from 0 to 1")
    return float(match[0])


def number_between(least: int, most: int) -> Callable[[object], int]:
    """A whole number between the two, which it may be."""

    def read(value: object) -> int:
        text = str(value).strip()
        if re.fullmatch(r"[0-9]{1,9}", text) is None or not least <= int(text) <= most:
            raise ValueError(f"{value!r} is not a whole number from {least} to {most}")
        return int(text)

    return read


def of_choice(*choices: str) -> Callable[[object], str]:
    """One of *choices*."""

    def read(value: object) -> str:
        if value not in choices:
            raise ValueError(f"{value!r} is none of {', '.join(choices)}")
        return str(value)

    return read


def yes_or_no(value: object) -> bool:
    """``yes`` or ``no``; TOML's true and false, and what others write for them."""
    text = str(value).lower()
    if text in _YES or text in _NO:
        return text in _YES
    raise ValueError(f"{value!r} is neither yes nor no")


def read_device(value: object) -> str:
    """What decodes: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    if re.fullmatch(_DEVICE_PATTERN, str(value)) is None:
        raise ValueError(f"{value!r} is not a device; use auto, cpu, cuda or cuda:N")
    return str(value)


def listen_address(value: object) -> Address | None:
    """``HOST:PORT``, ``[IPv6]:PORT``, ``unix:/PATH``, or ``none``."""
    if value == "none":
        return None
    try:
        return parse_address(str(value))
    except InvalidArgumentError as error:
        raise ValueError(str(error)) from error


def read_log(value: object) -> Literal["stderr", "syslog"] | Path:
    """``stderr``, ``syslog``, or the whole path of a file."""
    match value:
        case "stderr":
            return "stderr"
        case "syslog":
            return "syslog"
    try:
        return read_path(value)
    except ValueError as error:
        raise ValueError(f"{error}; or write stderr or syslog") from error


def read_path(value: object) -> Path:
    """An absolute path, or one from the home directory on."""
    text = str(value)
    if "\0" in text or not text:
        raise ValueError(f"{value!r} is not a path")
    path = Path(os.path.expanduser(text))
    if not path.is_absolute():
        raise ValueError(f"{value!r} is relative; write the whole path, or one that begins with ~/")
    return path


def read_list(value: object) -> tuple[str, ...]:
    """Texts: a list, or one text with commas between them."""
    items = value if isinstance(value, (list, tuple)) else str(value).split(",")
    if not all(isinstance(item, str) for item in items):
        raise ValueError(f"{value!r} is not a list of texts")
    return tuple(item.strip() for item in items if item.strip())
