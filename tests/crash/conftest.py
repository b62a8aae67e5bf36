"""Stores with a VAE, worked on by the command line in processes of their own."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def latentfs() -> Callable[..., Run]:
    def run(*arguments: Any) -> Run:
        command = [sys.executable, "-m", "latentfs", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return run


@pytest.fixture(scope="session")
def store_with_vae(
    tmp_path_factory: pytest.TempPathFactory, tiny_vae_folder: Path, latentfs: Callable[..., Run]
) -> Path:
    """Not to be changed: tests copy it."""
    path = tmp_path_factory.mktemp("stores") / "art.lfs"
    for arguments in (
        ["init", path],
        ["vae", "add", path, "tiny", tiny_vae_folder, "--dtype", "float32"],
    ):
        done = latentfs(*arguments)
        assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def new_store(store_with_vae: Path) -> Callable[[Path], Path]:
    def copy(path: Path) -> Path:
        return Path(shutil.copytree(store_with_vae, path))

    return copy
