"""The documents quote what the commands really print, and the manual says the same."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from manual_pages import manual_page

REPOSITORY = Path(__file__).parents[2]
TOOL = REPOSITORY / "tools" / "refresh_command_docs.py"
PAGES = sorted((REPOSITORY / "docs" / "man").glob("*.1"))


@click.command("feed", epilog="Examples: cat feed a\\b --to 'x' | cat feed ~/c")
@click.argument("bowl", metavar="BOWL")
@click.option("--dry-food", envvar="CAT_FOOD", metavar="MASS", default="1K", help=".g of it.")
def _feed(bowl: str, dry_food: str) -> None:
    """Fill BOWL, with --dry-food if any.

    'Wet' food is in ~/.food; a back\\slash stays.
    """


@click.group("cat")
def _cat() -> None:
    """Keep a cat."""


_cat.add_command(_feed)


def test_quoted_help_texts_and_manual_pages_are_in_step() -> None:
    done = subprocess.run([sys.executable, TOOL, "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_groff_has_nothing_to_say_against_the_manual_pages() -> None:
    assert PAGES
    # One run each: the macros of one page do not reset what another has set.
    said = {page.name: _groff(page.read_text("utf-8"), "-z").stderr for page in PAGES}
    assert {name: text for name, text in said.items() if text} == {}


@pytest.mark.skipif(shutil.which("groff") is None, reason="groff is not installed")
def test_a_manual_page_shows_what_was_written_character_for_character() -> None:
    page = manual_page(_cat, ["feed"], [(), ("feed",)])
    done = _groff(page, "-P-cbou")
    assert done.stderr == ""
    shown = " ".join(done.stdout.split())
    assert "latentfs feed [OPTIONS] BOWL" in shown
    assert "Fill BOWL, with --dry-food if any." in shown
    assert "'Wet' food is in ~/.food; a back\\slash stays." in shown
    assert "--dry-food MASS .g of it." in shown
    assert "CAT_FOOD Stands for --dry-food." in shown
    assert "cat feed a\\b --to 'x' cat feed ~/c" in shown
    assert "\u2010" not in re.sub(r"\w\u2010\w", "", shown), "a hyphen for a minus sign"


def _groff(page: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["groff", "-man", "-ww", "-Kutf8", "-Tutf8", *arguments],
        input=page,
        capture_output=True,
        text=True,
        check=True,
    )
