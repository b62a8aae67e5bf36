"""Where a line of a CSV trace has its values, described as for libCacheSim."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import overload

from latentfs.errors import InvalidArgumentError

_PAIR = re.compile(r"\s*([^=,]*?)\s*=\s*(\\t|\\(?=,)|,(?=\s*,|\s*$)|[^,]*?)\s*(?:,[\s,]*|$)")
_KEYS = ("time-col", "obj-id-col", "obj-size-col", "delimiter", "has-header", "obj-id-is-num")
_DELIMITER_NAMES = {"\\t": "\t", "\\": ",", "": ","}
_DELIMITERS = ("\t", ",", "|", ":")
_SHOWN = 60


@dataclass(frozen=True, slots=True)
class CsvForm:
    """Where a line has its values; columns count from 1.

    Raises InvalidArgumentError for columns below 1 or named twice, and for delimiters that aren't
    one character.
    """

    time_col: int | None = 1
    """None: requests are a second apart."""
    obj_id_col: int = 2
    obj_size_col: int | None = 3
    """None: every picture has 1.5 MB."""
    delimiter: str | None = None
    """None: the one of tab, comma, ``|`` and ``:`` that the first line has most of, where an
    earlier one of these counts more, as in libCacheSim."""
    has_header: bool | None = None
    """None: the first line is one if neither its time nor its size is a number."""
    obj_id_is_num: bool = False
    """Ids are whole numbers, so that 7 and 007 are the same object."""

    def __post_init__(self) -> None:
        columns = [c for c in (self.time_col, self.obj_id_col, self.obj_size_col) if c is not None]
        if min(columns) < 1 or len(set(columns)) < len(columns):
            raise InvalidArgumentError(
                f"the columns are {', '.join(map(str, columns))}; "
                "name a column of its own for each value, counted from 1"
            )
        if self.delimiter is not None and (
            len(self.delimiter) != 1 or self.delimiter in '"\r\n' or self.delimiter.isalnum()
        ):
            raise InvalidArgumentError(
                f"the delimiter is {self.delimiter!r}; "
                "give a single character that is no quote, letter, digit or end of line"
            )


def parse_form(text: str) -> CsvForm:
    """The form that `text` describes as libCacheSim's ``-t`` does, e.g. ``time-col=2,
    obj-id-col=5, obj-size-col=4, delimiter=,, has-header=true``.

    As there, times or sizes that no column is named for are taken to be missing.  Raises
    InvalidArgumentError.
    """
    found: dict[str, str] = {}
    place = 0
    while place < len(text):
        pair = _PAIR.match(text, place)
        key = pair[1].lower().replace("_", "-").replace("-field", "-col") if pair else ""
        key = {"size-col": "obj-size-col", "header": "has-header"}.get(key, key)
        if pair is None or key not in _KEYS or key in found:
            raise InvalidArgumentError(
                f"{shown(text[place:])} can't be used; give {', '.join(_KEYS)} as key=value, "
                "each once, with commas between them"
            )
        found[key] = pair[2]
        place = pair.end()
    if "obj-id-col" not in found:
        raise InvalidArgumentError(f"{shown(text)} names no column of ids; add obj-id-col=NUMBER")
    delimiter = found.get("delimiter")
    return CsvForm(
        time_col=_column(found.get("time-col")),
        obj_id_col=_column(found["obj-id-col"]),
        obj_size_col=_column(found.get("obj-size-col")),
        delimiter=_DELIMITER_NAMES.get(delimiter, delimiter) if delimiter is not None else None,
        has_header=_truth(found.get("has-header")),
        obj_id_is_num=_truth(found.get("obj-id-is-num")) or False,
    )


def delimiter_of(line: str) -> str:
    weights = {d: line.count(d) * (4 - place) for place, d in enumerate(_DELIMITERS)}
    best = max(_DELIMITERS, key=lambda delimiter: weights[delimiter])
    return best if weights[best] else ","


def shown(text: str) -> str:
    """Short, and safe to print."""
    text = text.rstrip("\r\n")
    return ascii(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


@overload
def _column(value: str) -> int: ...
@overload
def _column(value: None) -> None: ...
def _column(value: str | None) -> int | None:
    if value is None:
        return None
    if not re.fullmatch(r"\d{1,4}", value, re.ASCII):
        raise InvalidArgumentError(f"a column is {value!r}; give its number, counted from 1")
    return int(value)


def _truth(value: str | None) -> bool | None:
    if value is None:
        return None
    known = {"true": True, "1": True, "yes": True, "y": True}
    known |= {"false": False, "0": False, "no": False, "n": False}
    if value.lower() not in known:
        raise InvalidArgumentError(f"{value!r} is neither true nor false; give one of them")
    return known[value.lower()]
