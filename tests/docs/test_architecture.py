"""docs/architecture.md names the rooms there are, and imports point the way it says."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "architecture.md").read_text("utf-8")
LATENTFS = REPOSITORY / "latentfs"


def _levels() -> list[set[str]]:
    """The rooms as the arrows order them, from left to right."""
    line = next(line for line in PAGE.splitlines() if line.startswith("cli →"))
    return [{room.strip() for room in level.split(",")} for level in line.split("→")]


def _rooms() -> set[str]:
    return {path.parent.name for path in LATENTFS.glob("*/__init__.py")}


def _imports() -> Iterator[tuple[str, str, str]]:
    """Yield (where, room, imported room) of what is imported when a program runs."""
    for path in sorted(LATENTFS.glob("*/**/*.py")):
        module = ast.parse(path.read_text("utf-8"))
        for_types = {
            id(inner)
            for node in ast.walk(module)
            if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            for inner in ast.walk(node)
        }
        for node in ast.walk(module):
            match = isinstance(node, ast.ImportFrom) and re.match(
                r"latentfs\.(\w+)", node.module or ""
            )
            if match and id(node) not in for_types:
                yield str(path), path.relative_to(LATENTFS).parts[0], match[1]


def test_every_room_is_described_and_has_its_place() -> None:
    listed = PAGE[PAGE.index("\nlatentfs/\n") :].split("```")[0]
    assert set(re.findall(r"^  (\w+)/", listed, re.M)) == _rooms()
    assert set().union(*_levels()) == _rooms()


def test_imports_point_to_the_right() -> None:
    place = {room: number for number, level in enumerate(_levels()) for room in level}
    wrong = [
        f"{where} imports {imported}"
        for where, room, imported in _imports()
        if imported in place and imported != room and place[imported] <= place[room]
    ]
    assert wrong == []
