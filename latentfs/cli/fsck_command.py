"""latentfs fsck"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import click

from latentfs.cli.arguments import store_argument
from latentfs.cli.output import one_line
from latentfs.store.daemon_lock import DaemonLock
from latentfs.store.fsck import Problem, check_store, orphans_to_discard, steps
from latentfs.store.fsck.repair import repair_store
from latentfs.store.store import Store

__all__ = ["command"]


@click.command(
    "fsck", epilog="Examples: latentfs fsck ~/art.lfs | latentfs fsck ~/art.lfs --repair"
)
@store_argument
@click.option(
    "--repair",
    is_flag=True,
    help="Repair what can be repaired without guessing, then check again.  STORE must not be "
    "mounted.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
def command(store: Path, repair: bool, as_json: bool) -> int:
    """Check STORE: its tables against each other, every payload, chunk and VAE.

    Without --repair it changes nothing and may run beside a mount.  Lists each problem on standard
    error; exits with 1 if there is any, with --repair if any is left.
    """
    if repair:
        with Store.open(store, writable=True) as opened:
            lock = DaemonLock(opened.path)
            with lock.held_by("fsck --repair"):
                repairs = _repair(opened)
                problems = _check(opened)
    else:
        repairs = []
        with Store.open(store) as opened:
            _note_others(DaemonLock(opened.path))
            problems = _check(opened)
    if as_json:
        click.echo(_json(store, problems, repairs))
    else:
        click.echo(f"{store}: {_summary(problems, repairs if repair else None)}")
    return 1 if problems else 0


def _note_others(lock: DaemonLock) -> None:
    command = lock.used_by()
    if command is not None:
        _note(f"the store is in use by {command}, which may be changing it now")
    elif lock.is_mounted():
        _note("the store is mounted; changes of the last second were not checked")


def _json(store: Path, problems: list[Problem], repairs: list[Problem]) -> str:
    listed = {"problems": problems, "repairs": repairs}
    rows = {name: [dataclasses.asdict(each) for each in found] for name, found in listed.items()}
    return json.dumps({"store": str(store), **rows}, indent=2)


def _summary(problems: list[Problem], repairs: list[Problem] | None) -> str:
    if repairs is None:
        return _counted(len(problems), "problem")
    left = f", {_counted(len(problems), 'problem')} left" if repairs or problems else ""
    return f"{_counted(len(repairs), 'repair')}{left}"


def _check(store: Store) -> list[Problem]:
    """Name all problems and return them."""
    problems = []
    with store.read() as snapshot:
        orphans = orphans_to_discard(snapshot)
        if orphans:
            what = "files that were" if orphans > 1 else "file that was"
            _note(f"{orphans} {what} removed while open, to be discarded by a mount or gc")
        with click.progressbar(
            length=steps(snapshot), label="checking", file=sys.stderr, hidden=_is_hidden()
        ) as bar:
            for problem in check_store(store.path, snapshot, progress=lambda: bar.update(1)):
                problems.append(problem)
                click.echo(one_line(f"{problem.check}: {problem.message}"), err=True)
    return problems


def _repair(store: Store) -> list[Problem]:
    done = repair_store(store)
    for repair in done:
        click.echo(one_line(f"repaired {repair.check}: {repair.message}"), err=True)
    return done


def _is_hidden() -> bool:
    return not sys.stderr.isatty()


def _note(text: str) -> None:
    click.echo(f"note: {text}", err=True)


def _counted(count: int, what: str) -> str:
    return f"{count or 'no'} {what}{'' if count == 1 else 's'}"
