"""Who may look behind what systemd mounts at first use."""

from __future__ import annotations

import os

__all__ = ["passes_automounts"]

_SYSTEMD_GROUP = 1


def passes_automounts() -> bool:
    """Whether this process sees through what systemd mounts at first use.

    systemd runs mount(8) in its own process group.  The kernel has every other process that looks
    at such a folder wait until the mount is there: a daemon of another group, for itself.
    """
    return os.getpgrp() == _SYSTEMD_GROUP
