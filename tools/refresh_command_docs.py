#!/usr/bin/env python3
"""Keep docs/command-line.md and the manual pages in docs/man in step with the commands.

    tools/refresh_command_docs.py            write them anew
    tools/refresh_command_docs.py --check    only say whether they are; exit status 1 if not

A help text quoted in the page starts with the command line that prints it:
``$ latentfs ... --help``.  Each command quoted so has a manual page, and each must be quoted.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from manual_pages import context_of, manual_page, page_name, subcommands

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE = DOCS / "command-line.md"
MANUAL = DOCS / "man"
_WIDTH = 98  # what click takes on a terminal of 100 columns
_BLOCK = re.compile(
    r"(?<=```\n)\$ latentfs (?P<words>(?:[^\s-]+ )*)--help(?:\n.*?)??(?=\n```)", re.DOTALL
)


def root_command() -> click.Command:
    command = importlib.import_module("latentfs.cli")._latentfs
    assert isinstance(command, click.Command)
    return command


def refreshed(text: str, root: click.Command) -> str:
    """Return the page with every quoted help text as the commands print it now."""

    def block(match: re.Match[str]) -> str:
        context = context_of(root, match["words"].split())
        context.terminal_width = _WIDTH
        return f"$ latentfs {match['words']}--help\n{context.get_help().rstrip()}"

    return _BLOCK.sub(block, text)


def quoted(text: str) -> list[tuple[str, ...]]:
    """Return the words of each command whose help text the page quotes, in its order."""
    return [tuple(match["words"].split()) for match in _BLOCK.finditer(text)]


def unquoted(text: str, root: click.Command) -> list[str]:
    """Return the commands that the page does not quote."""
    there = set(quoted(text))
    return [" ".join(words) for words in subcommands(root) if words not in there]


def manual_pages(text: str, root: click.Command) -> dict[Path, str]:
    """Return what each file of the manual has to hold."""
    pages = quoted(text)
    return {
        MANUAL / f"{page_name(words)}.1": manual_page(
            root, words, pages, exit_status=exit_status(text, words)
        )
        for words in pages
    }


def exit_status(text: str, words: Sequence[str]) -> str:
    """Return what the page says of a command's exit status; empty where it says nothing."""
    quote = f"$ latentfs {' '.join((*words, '--help'))}\n"
    section = text[text.index(quote) :].split("\n#")[0]
    said = re.search(r"Exit status: (.+?)(?=\n\n|\Z)", section, re.DOTALL)
    return "" if said is None else " ".join(said[1].replace("`", "").split())


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args().check
    root = root_command()
    text = PAGE.read_text("utf-8")
    wanted = {PAGE: refreshed(text, root), **manual_pages(text, root)}
    there = {path: path.read_text("utf-8") for path in (PAGE, *MANUAL.glob("*.1"))}
    behind = sorted(path for path in {*wanted, *there} if wanted.get(path) != there.get(path))
    problems = [f"{PAGE.name} has no section on {name}" for name in unquoted(text, root)]
    if check:
        me = Path(__file__).name
        problems += [f"{path.name} is behind the commands: run {me}" for path in behind]
    else:
        _write(behind, wanted)
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def _write(behind: list[Path], wanted: dict[Path, str]) -> None:
    MANUAL.mkdir(exist_ok=True)
    for path in behind:
        if path in wanted:
            path.write_text(wanted[path], "utf-8")
        else:
            path.unlink()


if __name__ == "__main__":
    sys.exit(main())
