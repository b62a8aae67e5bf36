"""docs/store-format.md says what the code has on disk."""

import re
from pathlib import Path

import msgspec
import pytest

from latentfs.images.framing import Framing
from latentfs.latents.recipe import Recipe
from latentfs.store import mark, records, tables
from latentfs.store.fsck import CHECKS

PAGE = (Path(__file__).parents[2] / "docs" / "store-format.md").read_text("utf-8")


def _rows(heading: str) -> list[list[str]]:
    """The cells of the first table whose heading begins so."""
    table = PAGE[PAGE.index(f"| {heading} |") :].split("\n\n")[0]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table.splitlines()[2:]]


def _names(cell: str) -> list[str]:
    """The fields that a cell lists: the first word of each, without what is in brackets."""
    outside = re.sub(r"\([^()]*\)", "", cell).split(". ")[0]
    return [field.split()[0].strip("`") for field in outside.split(",")]


def test_versions_are_those_of_the_code() -> None:
    said = re.search(r"Format version (\d+), schema version\s+(\d+), payload", PAGE)
    assert said is not None
    assert (int(said[1]), int(said[2])) == (mark.FORMAT_VERSION, tables.SCHEMA_VERSION)
    migrated = [int(row[0]) - 1 for row in _rows("schema version")]
    assert migrated == list(tables.MIGRATIONS)


def test_every_table_is_described() -> None:
    named = [row[0].strip("`") for row in _rows("table") if row[0]]
    assert tuple(named) == tables.TABLES


def test_every_check_of_fsck_is_described_in_its_order() -> None:
    assert [row[0].strip("`") for row in _rows("check")] == list(CHECKS)


@pytest.mark.parametrize("name", records.__all__)
def test_records_have_the_fields_that_are_listed(name: str) -> None:
    rows = dict(_rows("record"))
    fields = [field.name for field in msgspec.structs.fields(getattr(records, name))]
    named = _names(rows[name])
    assert len(named) == len(fields)
    assert all(map(str.startswith, fields, named)), (fields, named)


def test_framing_and_recipe_have_the_fields_that_are_listed() -> None:
    text = PAGE[PAGE.index("`framing` is a msgpack map:") :].split("`kind`")[0]
    named = re.findall(r"`(\w+)`(?= \()", text)
    assert named[: len(Framing.__struct_fields__)] == list(Framing.__struct_fields__)
    assert [row[0].strip("`") for row in _rows("field")] == list(Recipe.__struct_fields__)
