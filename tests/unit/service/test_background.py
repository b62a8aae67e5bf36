"""How a daemon in the background is started, and what whoever waits for it is told."""

from __future__ import annotations

import os
import pwd
import subprocess
from typing import Any

import pytest

from latentfs.service import background
from latentfs.service.background import start_daemon


def test_a_daemon_that_is_told_to_end_before_it_can_be_used_was_not_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background, "_started", lambda *_: subprocess.Popen(["true"]))
    assert start_daemon([]) == 1


@pytest.mark.parametrize(("euid", "changes_groups"), [(0, True), (None, False)])
def test_only_root_takes_on_the_groups_of_the_user_it_runs_as(
    monkeypatch: pytest.MonkeyPatch, euid: int | None, changes_groups: bool
) -> None:
    account = pwd.getpwnam("nobody")
    given: dict[str, Any] = {}

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        given.update(options)
        return _popen(["true"])

    _popen = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", popen)
    monkeypatch.setattr(os, "geteuid", lambda: account.pw_uid if euid is None else euid)
    start_daemon([], user="nobody")
    assert given["env"]["USER"] == "nobody"
    assert ("extra_groups" in given) == changes_groups
    assert (given.get("user") == account.pw_uid) == changes_groups
