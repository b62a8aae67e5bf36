"""How the command line shows text that it was given."""

from __future__ import annotations

__all__ = ["one_line"]


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
