"""What is told of a store whose daemon does not answer, of time, and of a VAE of two names."""

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock

import msgspec
import pytest
from click.testing import CliRunner
from store_contents import RECIPE, VAE, add_picture, picture_latent

from latentfs.cli import _latentfs, top_command
from latentfs.fs import attributes
from latentfs.fs.status import StatusReport
from latentfs.ingest.vaes import _record
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.store import Store
from latentfs.telemetry.metrics import Metrics
from latentfs.telemetry.render_times import RenderTimes


def test_a_daemon_that_does_not_answer_is_no_missing_mount(tmp_path: Path) -> None:
    path = tmp_path / "art.lfs"
    Store.create(path).close()
    assert "not mounted" in CliRunner().invoke(_latentfs, ["status", str(path)]).output
    lock = DaemonLock(path)
    lock.acquire(mountpoint=tmp_path / "mnt")
    assert "does not answer" in CliRunner().invoke(_latentfs, ["status", str(path)]).output
    lock.release()


def test_a_vae_of_two_names_is_called_by_the_one_with_the_recipes_dtype(tmp_path: Path) -> None:
    with Store.create(tmp_path / "art.lfs") as store:
        half = msgspec.structs.replace(VAE, dtype="bfloat16", cpu_threads=7)
        _record(store, "tiny", VAE)
        _record(store, "a-half", half)
        with store.write() as transaction:
            transaction.put_recipe(RECIPE)
            add_picture(transaction, 1, b"a.png", picture_latent(1))
        with store.read() as snapshot:
            found = snapshot.resolve("/a.png")
            assert found is not None
            assert attributes.xattr(snapshot, found[1], b"user.latentfs.vae") == b"tiny"
            # Part of the recipe: the same on every machine that adds the VAE again.
            assert snapshot.vae("a-half").cpu_threads == VAE.cpu_threads
        times = RenderTimes()
        for name, dtype in (("one", "float32"), ("two", "bfloat16"), ("three", "float16")):
            recipe = msgspec.structs.replace(RECIPE, dtype=dtype)
            times.rendered(name, recipe, work_s=1.0, stages_s={})
        times.rendered("four", msgspec.structs.replace(RECIPE, vae="0" * 64), work_s=1, stages_s={})
        assert vae_names(store, times) == {
            "one": "tiny",
            "two": "a-half",
            "three": "a-half",
            "four": "0" * 12,
        }


def vae_names(store: Store, times: RenderTimes) -> dict[str, str]:
    """What metrics call the VAEs of recipes."""
    parts: Any = dict.fromkeys(("operations", "scheduler", "cache", "developer"))
    renditions = SimpleNamespace(times=times)
    metrics = Metrics(store=cast(Any, store), renditions=cast(Any, renditions), **parts)
    return metrics._vae_names()


def test_a_clock_that_is_set_does_not_change_how_long_a_mount_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    monkeypatch.setattr(time, "time", lambda: -now_s)
    monkeypatch.setattr(dataclasses, "asdict", lambda statistics: {"slowest": []})
    report = StatusReport(
        MagicMock(), mountpoint=Path("/mnt"), problem=lambda: None, metrics_address=None
    )
    now_s += 5
    assert report.status()["uptime_s"] == 5


def test_two_answers_at_the_same_moment_are_watched_without_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elapsed_s: list[float] = []

    def watched_lines(*answers: object, **options: Any) -> list[tuple[str, str]]:
        elapsed_s.append(options["elapsed_s"])
        return []

    answer = {"uptime_s": 7.5}
    monkeypatch.setattr(top_command, "_after", lambda path, before: answer)
    monkeypatch.setattr(top_command, "watched_lines", watched_lines)
    looks = top_command._looks(MagicMock(), answer, 1.0, 1)
    assert list(looks(lambda wait_s: None)) == [[]]
    assert elapsed_s[0] > 0
