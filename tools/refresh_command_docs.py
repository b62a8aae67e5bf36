#!/usr/bin/env python3
"""Keep the help texts quoted in docs/command-line.md in step with the commands.

    tools/refresh_command_docs.py            write them anew
    tools/refresh_command_docs.py --check    only say whether they are; exit status 1 if not

A quoted block starts with the command line that prints it: ``$ latentfs ... --help``.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parent.parent / "docs" / "command-line.md"
COLUMNS = "100"
BLOCK = re.compile(r"(?<=```\n)\$ latentfs (?P<arguments>[^\n]*--help)\n.*?(?=\n```)", re.DOTALL)


def help_block(match: re.Match[str]) -> str:
    arguments = match["arguments"].split()
    printed = subprocess.run(
        [sys.executable, "-m", "latentfs", *arguments],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": COLUMNS},
    ).stdout.replace("python -m latentfs", "latentfs")
    return f"$ latentfs {match['arguments']}\n{printed.rstrip()}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    arguments = parser.parse_args()
    before = PAGE.read_text("utf-8")
    after = BLOCK.sub(help_block, before)
    if arguments.check and after != before:
        print(f"{PAGE.name} is behind the commands: run {Path(__file__).name}", file=sys.stderr)
        return 1
    if not arguments.check:
        PAGE.write_text(after, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
