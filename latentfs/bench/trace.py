"""Reading a trace of requests from CSV: ``time,object,size`` a line, as libCacheSim takes them."""

from __future__ import annotations

import csv
import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from latentfs.errors import InvalidArgumentError

__all__ = ["Trace", "read_trace"]

_LINE_CHARACTERS_MAX = 1 << 16
_SHOWN_CHARACTERS = 60
_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their times.

    Attributes:
        times_s: of each request, by the trace's clock, which begins anywhere.
        objects: that each asks for, numbered from 0 in the order in which they first appear.
        object_count: of different objects.
    """

    times_s: array[float]
    objects: array[int]
    object_count: int

    def __len__(self) -> int:
        return len(self.times_s)


def read_trace(path: Path, *, requests_max: int | None = None) -> Trace:
    """Read the first *requests_max* requests of the trace in *path*, or all.

    A line has the time in seconds and the object's name, a number or text; what follows, such as
    its size, says nothing about files and is not looked at.  The first line may name the columns.

    Raises:
        InvalidArgumentError: a line is not like that, times go back, or there is no request.
        OSError: it can't be read.
    """
    times_s, objects = array("d"), array("Q")
    numbers: dict[str, int] = {}
    last_s = 0.0
    for where, fields in _rows(path):
        if len(times_s) == requests_max:
            break
        time_s = _time_s(fields[0], where)
        if time_s < last_s:
            raise InvalidArgumentError(
                f"{where}: the time {_shown(fields[0])} is before the one above, {last_s:g}; "
                "sort the lines by time"
            )
        if len(fields) < 2 or not fields[1]:
            raise InvalidArgumentError(
                f"{where}: {_shown(','.join(fields))} names no object; "
                "lines are time,object,size with commas"
            )
        times_s.append(time_s)
        objects.append(numbers.setdefault(fields[1], len(numbers)))
        last_s = time_s
    if not times_s:
        raise InvalidArgumentError(
            f"{path}: there is no request in it; each is a line of time,object,size"
        )
    return Trace(times_s, objects, len(numbers))


def _rows(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The fields of lines that are neither blank nor the header, and where each is."""
    first = True
    for number, line in _lines(path):
        fields = [field.strip() for field in _split(line)]
        if not any(fields):
            continue
        if not first or not _is_header(fields):
            yield f"{path}, line {number}", fields
        first = False


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    number = 0
    # Names need not be UTF-8: they are only compared.
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        while line := file.readline(_LINE_CHARACTERS_MAX):
            number += 1
            if len(line) == _LINE_CHARACTERS_MAX:
                raise InvalidArgumentError(
                    f"{path}, line {number}: {_shown(line)} goes on for {len(line)} characters "
                    "or more; give a text file with a line for each request"
                )
            yield number, line


def _split(line: str) -> list[str]:
    """Return the fields; a quoted one ends with its line."""
    if '"' not in line:
        return line.split(",")
    return next(csv.reader([line], skipinitialspace=True))


def _is_header(fields: list[str]) -> bool:
    """Whether neither time nor size look like numbers, even like some that would be refused."""
    return not any(_looks_numeric(fields[column]) for column in (0, 2) if column < len(fields))


def _looks_numeric(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _time_s(text: str, where: str) -> float:
    time_s = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(time_s):
        raise InvalidArgumentError(
            f"{where}: the time {_shown(text)} is not a number of 0 or more; "
            "lines are time,object,size with commas"
        )
    return time_s


def _shown(text: str) -> str:
    text = text.strip()
    return ascii(text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...")
