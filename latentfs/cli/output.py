"""How the command line shows text that it was given, and on what."""

from __future__ import annotations

import io
import os
import sys
import textwrap

__all__ = ["mend_streams", "one_line", "wrapped"]


def one_line(text: str) -> str:
    """Return *text* with what can't be printed escaped, as Python writes it.

    File names may hold newlines, terminal escapes and bytes that are no text.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode("ascii")
        for char in text
    )


def wrapped(label: str, text: str, *, label_columns: int, columns: int) -> str:
    """One entry, in lines of so many columns with *label* before them; words stay whole."""
    return textwrap.fill(
        one_line(text),
        width=columns,
        initial_indent=label.ljust(label_columns),
        subsequent_indent=" " * label_columns,
        break_long_words=False,
        break_on_hyphens=False,
    )


def mend_streams() -> None:
    """Let nothing that is printed fail, whatever the standard streams are.

    One that is closed becomes ``/dev/null``: what is opened next would have its number, and be
    printed into.  What a stream can't encode, as of a path that is no UTF-8, is escaped.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115 (for as long as it runs)
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
