"""Timing the bare decode in a process of its own, which alone loads torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from latentfs.bench.sample import Picture
from latentfs.errors import RenderError
from latentfs.render import QUIET_ENVIRONMENT, TORCH_ENVIRONMENT

__all__ = ["BareDecodes", "decode_environment", "time_bare_decodes"]

_WARM_UPS = 2
_START_TIMEOUT_S = 300.0
_DECODE_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class BareDecodes:
    """Each picture decoded once.

    Attributes:
        seconds: of the decode that each was in, in the order asked for.
        total_s: of all decodes; less than the sum of *seconds* where recipes have batches.
        device: they ran on, such as ``cpu``.
    """

    seconds: list[float]
    total_s: float
    device: str

    @property
    def files_per_s(self) -> float:
        return len(self.seconds) / self.total_s


def decode_environment(*, plain_environment: bool) -> dict[str, str]:
    """Return the process's environment: a renderer's, or, if *plain_environment*, the caller's."""
    settings = {} if plain_environment else TORCH_ENVIRONMENT
    return {**settings, **os.environ, **QUIET_ENVIRONMENT}


def time_bare_decodes(
    store_path: Path, pictures: list[Picture], *, device: str, plain_environment: bool
) -> BareDecodes:
    """Decode each picture once, on the first device of *device*, with nothing around it.

    The process is started with the settings that a renderer gets, or, with *plain_environment*,
    with the caller's alone.  It is killed if this is interrupted.

    Raises:
        RenderError: it failed, or was killed after 10 minutes a decode.
    """
    asked = {
        "store": str(store_path),
        "inos": [picture.ino for picture in pictures],
        "device": device,
        "warm_ups": _WARM_UPS,
    }
    timeout_s = _START_TIMEOUT_S + _DECODE_TIMEOUT_S * (len(pictures) + _WARM_UPS)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "latentfs.bench.bare_decode"],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env=decode_environment(plain_environment=plain_environment),
        )
    except subprocess.TimeoutExpired as error:
        raise RenderError(f"the bare decode did not end within {timeout_s:g} s") from error
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines()
        reason = lines[-1] if lines else f"its process ended with {done.returncode}"
        raise RenderError(f"the bare decode failed: {reason}")
    return BareDecodes(**json.loads(done.stdout))
