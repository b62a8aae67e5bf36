"""How a daemon in the background is started, and what whoever waits for it is told."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentfs.service import background
from latentfs.service.background import start_daemon


@pytest.mark.parametrize(
    ("ends", "status", "said"),
    [("exit 0", 1, ""), ("exit 7", 7, ""), ("kill -KILL $$", 1, "Killed")],
)
def test_a_daemon_that_ends_before_it_can_be_used_was_not_started(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ends: str,
    status: int,
    said: str,
) -> None:
    monkeypatch.setattr(
        background, "_started", lambda *_, **__: subprocess.Popen(["sh", "-c", ends])
    )
    assert start_daemon([]) == status
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("stays_in_group", [False, True])
def test_a_daemon_has_a_session_of_its_own_unless_it_is_to_stay(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stays_in_group: bool
) -> None:
    daemon, told = tmp_path / "daemon", tmp_path / "told"
    daemon.write_text(f"#!/bin/sh\nps -o sid= -p $$ > {told}\n")
    daemon.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(daemon))
    # As the first process of a container has it, and what systemd runs.
    monkeypatch.setattr(os, "getpgrp", lambda: 1)
    start_daemon([], stays_in_group=stays_in_group)
    assert (int(told.read_text()) == os.getsid(0)) == stays_in_group


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
