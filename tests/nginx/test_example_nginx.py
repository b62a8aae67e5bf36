"""How tools/example_nginx.py makes a configuration of the documented one."""

from __future__ import annotations

from pathlib import Path

import click
import pytest
from example_nginx import ExampleNginx


def configuration(folder: Path, files: Path, changes: dict[str, str] | None = None) -> str:
    nginx = ExampleNginx(folder, files, changes=changes)
    return (nginx.folder / "nginx.conf").read_text()


def test_a_path_that_looks_like_one_of_the_example_is_left_alone(tmp_path: Path) -> None:
    folder, files = tmp_path / "srv/art/nginx", tmp_path / "srv/gallery/srv/art"
    text = configuration(folder, files)
    assert f"alias {files}/;" in text
    assert f"error_log {folder}/error.log warn;" in text
    assert f"pid {folder}/nginx.pid;" in text


def test_changes_are_those_of_the_example(tmp_path: Path) -> None:
    text = configuration(tmp_path / "nginx", tmp_path, {"user www-data;": "user someone;"})
    assert "user someone;" in text
    with pytest.raises(click.ClickException, match="has no 'user root;'"):
        configuration(tmp_path / "nginx", tmp_path, {"user root;": "user someone;"})
