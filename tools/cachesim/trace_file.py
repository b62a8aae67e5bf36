"""Traces as text files in the CSV form of libCacheSim, so that anyone's trace replays.

A line is a request: a time, an object's id and its size in bytes, in columns which the caller
names as for libCacheSim's ``-t``; other columns are passed over.  libCacheSim's example
``cloudPhysicsIO.csv`` (header ``version,time,op,size,lbn``, times in microseconds) is read by

    form = parse_form("time-col=2, obj-id-col=5, obj-size-col=4, delimiter=,, has-header=true")
    trace = read_trace(path, form=form, time_unit_s=1e-6)

As in libCacheSim, requests of size 0 and empty lines are passed over, a quoted field ends with its
line, and spaces around a field don't count.  Other than there, every line must be good: an error
names the file, the line, the value and what to do.
"""

from __future__ import annotations

import csv
import math
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TextIO

import numpy as np

from cachesim.csv_form import CsvForm, delimiter_of, parse_form, shown
from cachesim.trace import Trace
from latentfs.errors import InvalidArgumentError

__all__ = ["CsvForm", "parse_form", "read_trace", "write_trace"]

LARGEST_SIZE_BYTES = 2**32 - 1
"""libCacheSim holds sizes in 32 bits."""
LONGEST_LINE = 65_536
SIZE_WITHOUT_COLUMN_BYTES = 1_500_000
"""A PNG of a generated picture of 1024x1024, about."""

_NUMBER = re.compile(r"(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_DIGITS = re.compile(r"\d{1,20}", re.ASCII)


def read_trace(
    path: Path,
    *,
    form: CsvForm | None = None,
    latent_ratio: float = 16.0,
    time_unit_s: float = 1.0,
) -> Trace:
    """The trace in the file at `path`, in `form` (by default `CsvForm`'s columns).

    Objects are numbered in order of their first request, and are pictures of one kind.  An
    object's pixel bytes are its size, the largest if lines differ (a picture that was replaced);
    its latent has 1/`latent_ratio` of them, and its render costs in proportion to them, 1 at the
    mean of all objects.  Times are read in units of `time_unit_s` and may have decimals, which
    libCacheSim cuts off.

    A time that goes back is refused, for the order of the lines is what libCacheSim replays:
    sorting them here would replay another trace than everywhere else.

    Reads line by line; keeps 16 bytes a request, and the ids of all objects while it reads.
    Raises InvalidArgumentError for what it can't use.
    """
    if not (math.isfinite(latent_ratio) and latent_ratio >= 1):
        raise InvalidArgumentError(f"latent_ratio is {latent_ratio}; give 1 or more")
    if not (math.isfinite(time_unit_s) and time_unit_s > 0):
        raise InvalidArgumentError(f"time_unit_s is {time_unit_s}; give a number above 0")
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            requests = _Reader(path, form or CsvForm()).read(file)
    except OSError as error:
        raise InvalidArgumentError(
            f"{path} can't be read ({error.strerror}); name a CSV file that can"
        ) from error
    if not math.isfinite(requests.times[-1] * time_unit_s):
        raise InvalidArgumentError(
            f"{path}: the last time, {requests.times[-1]!r}, is infinite in units of "
            f"{time_unit_s} s; give a smaller unit"
        )
    pixel_bytes = np.array(requests.sizes, dtype=np.int64)
    return Trace(
        name=path.stem,
        times_s=np.array(requests.times, dtype=np.float64) * time_unit_s,
        objects=np.array(requests.objects, dtype=np.int64),
        pixel_bytes=pixel_bytes,
        latent_bytes=np.maximum(1, np.rint(pixel_bytes / latent_ratio)).astype(np.int64),
        kinds=np.zeros(len(pixel_bytes), dtype=np.int64),
        kind_names=("file",),
        render_weights=pixel_bytes / pixel_bytes.mean(),
    )


def write_trace(trace: Trace, path: Path) -> None:
    """Write `trace` as `read_trace` and libCacheSim read it: time in seconds, index, pixel bytes.

    The form has no place for latents, kinds, costs, and pictures without a request.  Raises
    InvalidArgumentError if a time is negative, a picture too large for the form, or the file
    can't be written.
    """
    if trace.times_s[0] < 0 or trace.pixel_bytes.max() > LARGEST_SIZE_BYTES:
        raise InvalidArgumentError(
            f"trace {trace.name!r} begins at {trace.times_s[0]} s and has pictures of up to "
            f"{trace.pixel_bytes.max()} bytes; begin at 0 or later and stay within "
            f"{LARGEST_SIZE_BYTES} bytes"
        )
    sizes = trace.pixel_bytes[trace.objects]
    columns = zip(trace.times_s.tolist(), trace.objects.tolist(), sizes.tolist(), strict=True)
    try:
        with path.open("w", encoding="ascii", newline="\n") as file:
            file.write("time,obj_id,obj_size\n")
            file.writelines(f"{time_s!r},{index},{size}\n" for time_s, index, size in columns)
    except OSError as error:
        raise InvalidArgumentError(
            f"{path} can't be written ({error.strerror}); name a file that can"
        ) from error


@dataclass(slots=True)
class _Requests:
    times: array[float] = field(default_factory=lambda: array("d"))
    objects: array[int] = field(default_factory=lambda: array("q"))
    sizes: array[int] = field(default_factory=lambda: array("q"))
    """Of each object, in bytes."""


class _Reader:
    """One pass over a file; holds where it is, for errors."""

    def __init__(self, path: Path, form: CsvForm) -> None:
        self._path = path
        self._form = form
        self._line = 0

    def read(self, file: TextIO) -> _Requests:
        read = _Requests()
        indexes: dict[str, int] = {}
        last = 0.0
        for fields in self._rows(file):
            size = self._size(fields)
            time = self._time(fields, last)
            name = self._name(fields)
            if not size:
                continue
            index = indexes.setdefault(name, len(indexes))
            if index == len(read.sizes):
                read.sizes.append(size)
            elif size > read.sizes[index]:
                read.sizes[index] = size
            read.times.append(time)
            read.objects.append(index)
            last = time + 1.0 if self._form.time_col is None else time
        if not read.times:
            self._refuse("there is no request in it", "give a file with a line for each")
        return read

    def _rows(self, file: TextIO) -> Iterator[list[str]]:
        delimiter, needed = self._form.delimiter, self._needed_columns()
        first = True
        for line in self._lines(file):
            if line.isspace():
                continue
            if delimiter is None:
                delimiter = delimiter_of(line)
            fields = line.split(delimiter)
            if '"' in line:
                fields = self._quoted(line, delimiter)
            if first:
                first = False
                if self._is_header(fields):
                    continue
            if len(fields) < needed:
                self._refuse(
                    f"{shown(line)} has {len(fields)} columns by the delimiter {delimiter!r}",
                    f"name columns that it has (the last one named is {needed}), or its delimiter",
                )
            yield fields

    @staticmethod
    def _quoted(line: str, delimiter: str) -> list[str]:
        spaced = delimiter == " "
        return next(csv.reader([line], delimiter=delimiter, skipinitialspace=not spaced))

    def _lines(self, file: TextIO) -> Iterator[str]:
        while line := file.readline(LONGEST_LINE):
            self._line += 1
            if len(line) == LONGEST_LINE:
                self._refuse(
                    f"{shown(line)} goes on for more than {LONGEST_LINE} characters",
                    "give a text file with a line for each request",
                )
            yield line

    def _needed_columns(self) -> int:
        form = self._form
        return max(form.time_col or 0, form.obj_id_col, form.obj_size_col or 0)

    def _is_header(self, fields: list[str]) -> bool:
        if self._form.has_header is not None:
            return self._form.has_header
        if len(fields) < self._needed_columns():
            return False
        columns = [c for c in (self._form.time_col, self._form.obj_size_col) if c is not None]
        texts = [fields[column - 1].strip() for column in columns]
        return bool(texts) and not any(_looks_numeric(text) for text in texts)

    def _time(self, fields: list[str], last: float) -> float:
        if self._form.time_col is None:
            return last
        text = fields[self._form.time_col - 1].strip()
        time = float(text) if _NUMBER.fullmatch(text) else math.nan
        if not math.isfinite(time):
            self._refuse(
                f"the time in column {self._form.time_col} is {shown(text)}",
                "give a number of 0 or more, without a unit, or name another column",
            )
        if time < last:
            self._refuse(
                f"the time {shown(text)} is before the one above, {last!r}",
                "sort the lines by time, or name no column for the time to keep their order",
            )
        return time

    def _size(self, fields: list[str]) -> int:
        if self._form.obj_size_col is None:
            return SIZE_WITHOUT_COLUMN_BYTES
        text = fields[self._form.obj_size_col - 1].strip()
        size = int(text) if _DIGITS.fullmatch(text) else -1
        if not 0 <= size <= LARGEST_SIZE_BYTES:
            self._refuse(
                f"the size in column {self._form.obj_size_col} is {shown(text)}",
                f"give whole bytes from 0 to {LARGEST_SIZE_BYTES}, or name another column",
            )
        return size

    def _name(self, fields: list[str]) -> str:
        text = fields[self._form.obj_id_col - 1].strip()
        if self._form.obj_id_is_num:
            if not _DIGITS.fullmatch(text):
                self._refuse(
                    f"the id in column {self._form.obj_id_col} is {shown(text)}",
                    "give whole numbers of up to 20 digits, or say that ids are text",
                )
            return text.lstrip("0")
        return text

    def _refuse(self, what: str, advice: str) -> NoReturn:
        where = f"{self._path}, line {self._line}" if self._line else f"{self._path}"
        raise InvalidArgumentError(f"{where}: {what}; {advice}")


def _looks_numeric(text: str) -> bool:
    """Also of numbers that aren't allowed: a first line with one is an error and no header."""
    try:
        float(text)
    except ValueError:
        return False
    return True
