"""Unit tests wait for nobody, so they yield to those that run on mounts beside them."""

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def low_priority() -> None:
    """Give way where a process of pytest-xdist runs them: what else there is has deadlines."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.nice(19)
