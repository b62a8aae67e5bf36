"""A mount does what a plain directory does, whatever is asked of it, errors and all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from file_calls import FIRST_CALLS, calls
from file_operations import Call, Place, difference
from hypothesis import HealthCheck, Phase, given, settings
from mounts import latentfs, mounted

SIZE_MIN, SIZE_MAX = 50, 150
# Between two mounts of the store.
EXAMPLES_A_MOUNT = 30

pytestmark = pytest.mark.timeout(3600)  # --model-operations decides; nothing in here waits


@dataclass(slots=True)
class Twins:
    """A mount and a plain directory, of which both get the same.

    Attributes:
        operations: done so far.
    """

    mount: Path
    plain: Path
    examples: int = 0
    operations: int = 0

    def run(self, operations: list[Call]) -> None:
        """Do *operations* in new directories of both, which are kept if they stay equal."""
        self.examples += 1
        self.operations += len(operations)
        with self._places() as (mounted_place, plain_place):
            for number, call in enumerate((*FIRST_CALLS, *operations)):
                outcomes = mounted_place.outcome(call), plain_place.outcome(call)
                require_equal(*outcomes, f"call {number}, {call!r}")
            for place in (mounted_place, plain_place):
                place.close_all()
            require_equal(mounted_place.tree(), plain_place.tree(), "the trees")

    @contextmanager
    def _places(self) -> Iterator[tuple[Place, Place]]:
        roots = [folder / f"{self.examples}" for folder in (self.mount, self.plain)]
        for root in roots:
            root.mkdir()
        mounted_place, plain_place = (Place(os.fsencode(root)) for root in roots)
        try:
            yield mounted_place, plain_place
        except BaseException:
            for place in (mounted_place, plain_place):
                place.close_all()
                shutil.rmtree(place.root)
            raise

    def check_kept(self) -> None:
        """Check that all of the kept directories are still equal, and remove them."""
        mounted_place, plain_place = (Place(os.fsencode(at)) for at in (self.mount, self.plain))
        require_equal(mounted_place.tree(), plain_place.tree(), "the trees after a remount")
        for folder in (self.mount, self.plain):
            for example in folder.iterdir():
                shutil.rmtree(example)
            assert list(folder.iterdir()) == []


def require_equal(in_mount: object, in_plain: object, what: str) -> None:
    # Not by an assert, which would spend minutes on showing megabytes.
    if in_mount != in_plain:
        raise AssertionError(f"{what}, in mount and plain:\n{difference(in_mount, in_plain)}")


def run_examples(twins: Twins) -> None:
    @settings(
        max_examples=EXAMPLES_A_MOUNT,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
        # Without the phase that explains, which takes longer than all others.
        phases=[Phase.reuse, Phase.generate, Phase.shrink],
        print_blob=True,
    )
    @given(operations=calls(size_min=SIZE_MIN, size_max=SIZE_MAX))
    def run(operations: list[Call]) -> None:
        twins.run(operations)

    run()


def test_random_operations_have_the_results_of_a_plain_directory(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store, plain = tmp_path / "art.lfs", tmp_path / "plain"
    latentfs("init", store)
    plain.mkdir()
    twins = Twins(tmp_path / "mnt", plain)
    is_done = False
    while not is_done:
        with mounted(store, twins.mount) as mount:
            twins.check_kept()
            is_done = twins.operations >= request.config.getoption("--model-operations")
            if not is_done:
                run_examples(twins)
            assert mount.status()["errors_total"] == 0, mount.log
            assert mount.end() == 0
    checked = latentfs("fsck", store, check=False)
    assert checked.returncode == 0, checked.stderr
