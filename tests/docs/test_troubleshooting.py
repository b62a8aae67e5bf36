"""docs/troubleshooting.md quotes what the code says, and has an entry for all that it can say.

An entry is a text in bold and grey, or in grey in the first column of a table of reasons or
messages; … in it stands for anything.  A message is the text of an exception of latentfs, or of a
line in the log from a warning up, as it stands in the code, with … for each value.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentfs import errors

REPOSITORY = Path(__file__).parents[2]
PAGE = REPOSITORY / "docs" / "troubleshooting.md"
LATENTFS = REPOSITORY / "latentfs"

LOG_METHODS = {"warning", "error", "exception", "critical"}
# What never reaches anybody as text: programs see the errno of the first, nobody waits for the
# second any more.
SILENT = {"RefusedChangeError", "RenderDroppedError"}
# Caught where they come from, and told in other words.
CAUGHT = {("images/jpeg.py", "FramingError"), ("images/png.py", "FramingError")}
CAUGHT |= {("images/parts.py", "FramingError")}
# What our own code gave, which a user can't.
INNER = re.compile(
    r"a picture must be uint8|a picture of shape|PNG chunk type|a PNG can't have a room|a room of"
    r"|PNG has no quality|JPEG quality|a VAE can't have|… files can't be rendered ahead"
)
# Texts of the kernel and of other programs.
FOREIGN = {
    "Transport endpoint is not connected",
    "Input/output error",
    "No space left on device",
    "Disk quota exceeded",
    "Read-only file system",
    "Stale file handle",
    "Device or resource busy",
    "File name too long",
    "Operation not supported",
    "Permission denied",
}
# An entry or message with fewer letters than that says nothing of its own.
LETTERS_MIN = 8


@dataclasses.dataclass(frozen=True)
class Message:
    place: str
    kind: str
    text: str


def entries() -> list[str]:
    """The texts that the page quotes, in its order."""
    page = PAGE.read_text("utf-8")
    headings = [line for line in page.splitlines() if line.startswith("**`")]
    quoted = [text for line in headings for text in re.findall(r"\*\*`([^`]+)`\*\*", line)]
    for table in re.findall(r"^\| (?:reason|message)\b.*\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.M):
        for row in table.splitlines():
            quoted += re.findall(r"`([^`]+)`", row.split(" | ")[0])
    return quoted


def template(node: ast.expr) -> str:
    """The text that an expression gives, with … for what is not written out."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.sub(r"%[sd]", "…", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return "…"


@functools.cache
def _modules() -> dict[str, ast.Module]:
    paths = sorted(LATENTFS.rglob("*.py"))
    return {str(path.relative_to(LATENTFS)): ast.parse(path.read_text("utf-8")) for path in paths}


def _families() -> set[str]:
    """Names of the exceptions of latentfs, those that modules derive for themselves too."""
    names = {name for name, value in vars(errors).items() if isinstance(value, type)} - SILENT
    classes = [
        node
        for module in _modules().values()
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
    ]
    for node in classes:
        if any(isinstance(base, ast.Name) and base.id in names for base in node.bases):
            names.add(node.name)
    return names - SILENT


def messages() -> Iterator[Message]:
    families = _families()
    for path, module in _modules().items():
        for node in ast.walk(module):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            # Settings are read by functions that need not know which setting it is.
            kind = _kind(node.func, families | ({"ValueError"} if "settings/" in path else set()))
            if not kind or (path, kind) in CAUGHT:
                continue
            for text in map(template, _branches(node.args[0])):
                if not INNER.match(text):
                    yield Message(f"{path}:{node.lineno}", kind, text)


def _branches(node: ast.expr) -> list[ast.expr]:
    if isinstance(node, ast.IfExp):
        return [*_branches(node.body), *_branches(node.orelse)]
    return [node]


def _kind(function: ast.expr, families: set[str]) -> str:
    if isinstance(function, ast.Name) and function.id in families:
        return function.id
    if isinstance(function, ast.Attribute) and function.attr in LOG_METHODS:
        return f"log.{function.attr}" if ast.unparse(function.value).endswith("log") else ""
    return ""


@functools.cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, re.split("…+", text))), re.DOTALL)


def _speaks(text: str) -> bool:
    return len(re.findall(r"[a-z]", text)) >= LETTERS_MIN


def _covers(entry: str, message: str) -> bool:
    """Whether an entry is of this message, or of one of which this message is a part."""
    whole = _speaks(entry) and _pattern(entry).fullmatch(message) is not None
    return whole or _pattern(message.strip()).search(entry) is not None


def test_every_message_has_an_entry() -> None:
    quoted = entries()
    missing = [
        f"{message.place} {message.kind}: {message.text}"
        for message in messages()
        if _speaks(message.text) and not any(_covers(entry, message.text) for entry in quoted)
    ]
    assert missing == [], "\n".join(missing)


def _texts() -> list[str]:
    """Every text in the code."""
    nodes = (node for module in _modules().values() for node in ast.walk(module))
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    return [text for node in nodes if isinstance(node, kinds) and len(text := template(node)) > 1]


def _is_said(part: str, texts: str) -> bool:
    """Whether the code has that text, in one piece or in two that it puts together."""
    cuts = [match.start() for match in re.finditer(r" |$", part)]
    return any(
        all(piece.strip(" :;") in texts for piece in (part[:cut], part[cut:])) for cut in cuts
    )


def test_the_code_still_says_what_the_page_quotes() -> None:
    texts = "\n".join(_texts())
    stale = [
        f"{entry}: nowhere is {part!r}"
        for entry in entries()
        if entry not in FOREIGN
        for part in map(str.strip, entry.split("…"))
        if not _is_said(part, texts)
    ]
    assert stale == [], "\n".join(stale)


@pytest.mark.parametrize("text", sorted(FOREIGN))
def test_there_is_an_entry_for_what_programs_say(text: str) -> None:
    assert text in entries()


def test_entries_are_told_apart() -> None:
    quoted = entries()
    assert len(quoted) > 100
    assert sorted({entry for entry in quoted if quoted.count(entry) > 1}) == []
