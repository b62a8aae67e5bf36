"""The page on configuration names the settings that there are."""

from __future__ import annotations

import re
from pathlib import Path

from e2e.support import call

from latentfs.settings.mount_settings import SETTINGS
from latentfs.settings.sources import SettingSources

PAGE = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
ROW = re.compile(
    r"^\| `(?P<name>\w+)` \| (`(?P<default>.*?)`)? *\| (?P<live>yes)? *\|", re.MULTILINE
)


def shown(default: object) -> str | None:
    if default is None:
        return None
    return str(default).lower() if isinstance(default, bool) else str(default) or '""'


def test_each_setting_has_its_row_with_its_default_and_whether_it_is_live() -> None:
    rows = {
        row["name"]: (row["default"], row["live"] == "yes")
        for row in ROW.finditer(PAGE.read_text())
    }
    assert rows == {setting.name: (shown(setting.default), setting.is_live) for setting in SETTINGS}


def test_the_example_can_be_used(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", PAGE.read_text(), re.DOTALL)
    path = tmp_path / "art.toml"
    path.write_text(example)
    resolved = SettingSources(file=path, given={}, given_as={}, environment={}).resolve()
    assert resolved.settings.cache_bytes == 2 << 30


def test_the_mistakes_are_answered_as_quoted(tmp_path: Path) -> None:
    page = PAGE.read_text()
    path = tmp_path / "art.toml"
    path.write_text('cahce = "2G"')
    refused = call("config", "show", "--config", path)
    assert refused.err.replace(str(path), "/etc/latentfs/art.toml").strip() in page
    refused = call("config", "show", "-o", "allow-other")
    assert refused.err.strip() in page
