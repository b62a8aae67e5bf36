"""How the renderers of a mount do, in words: for the daemon, and for commands that ask it."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["shown_renderers"]


def shown_renderers(devices: Sequence[str], problem: str | None) -> str:
    """Say which *devices* have a renderer, and the *problem* of one that can't be started."""
    if not devices:
        return "starting" if problem is None else f"can't be started: {problem}"
    also = "" if problem is None else f"; another can't be started: {problem}"
    return f"ready on {', '.join(devices)}{also}"
