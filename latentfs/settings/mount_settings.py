"""The settings of a mount: the one table that flags, mount options, environment and file share."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from latentfs.settings import kernel_options, values
from latentfs.telemetry.address import Address

__all__ = ["SETTINGS", "MountSettings", "Setting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One of them.

    Attributes:
        name: in the file; flags and mount options have it with hyphens too, the environment in
            capitals after ``LATENTFS_``.
        field_name: in :class:`MountSettings`, with the unit.
        read: makes a value of text or of what TOML has; raises ``ValueError``.
        default: as it would be written in the file; None where there is none.
        placeholder: for its values, in help texts.
        help: what it is for, in a sentence.
        is_live: whether a mount takes a new value when it is told to reload.
    """

    name: str
    field_name: str
    read: Callable[[object], Any]
    default: object
    placeholder: str
    help: str
    is_live: bool

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


def _setting(
    name: str,
    read: Callable[[object], Any],
    default: object,
    placeholder: str,
    help: str,
    *,
    is_live: bool = False,
) -> Any:
    return field(
        metadata={
            "name": name,
            "read": read,
            "default": default,
            "placeholder": placeholder,
            "help": help,
            "is_live": is_live,
        }
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MountSettings:
    """How a store is mounted.  What each is for, its setting's help says."""

    store: Path | None = _setting("store", values.read_path, None, "FOLDER", "The store.")
    mountpoint: Path | None = _setting(
        "mountpoint", values.read_path, None, "FOLDER", "The folder to mount it on."
    )
    mount_options: tuple[str, ...] = _setting(
        "mount_options",
        kernel_options.read_options,
        "",
        "OPT,...",
        "Options for the kernel: allow_other, noallow_other, dev, suid, noexec, noatime, "
        "nosymfollow.",
    )
    read_only: bool = _setting(
        "read_only", values.yes_or_no, False, "yes|no", "Allow no changes through the mount."
    )
    develop: bool = _setting(
        "develop",
        values.yes_or_no,
        True,
        "yes|no",
        "Make pictures of latent files written into the mount; let copies of pictures share "
        "payloads.",
    )
    cache_bytes: int = _setting(
        "cache",
        values.read_bytes,
        "512M",
        "SIZE",
        "Memory for finished files and latents.",
        is_live=True,
    )
    pixel_share: float | None = _setting(
        "pixel_share",
        values.read_share,
        "auto",
        "auto|0..1",
        "Part of that memory for finished files; auto to put it where it saves readers most.",
        is_live=True,
    )
    render_timeout_s: float = _setting(
        "render_timeout",
        values.read_seconds(at_least_s=0.1),
        "60s",
        "TIME",
        "Time after which a read fails with an input/output error.",
        is_live=True,
    )
    device: str = _setting(
        "device",
        values.read_device,
        "auto",
        "auto|cpu|cuda|cuda:N",
        "Device to decode on: cuda is all GPUs; auto is all GPUs, or the CPU if there is none.",
    )
    prefetch_files: int = _setting(
        "prefetch",
        values.number_between(0, 64),
        8,
        "FILES",
        "Number of files to render ahead, while idle, for readers that go through a folder in "
        "order; 0 for none.",
        is_live=True,
    )
    size_limit_bytes: int | None = _setting(
        "size_limit",
        values.optional_bytes,
        "none",
        "SIZE|none",
        "Most space that the store's database may take; none for no limit.",
    )
    metrics: Address | None = _setting(
        "metrics",
        values.listen_address,
        "none",
        "HOST:PORT|unix:PATH|none",
        "Address at which to serve metrics for Prometheus, /healthz and /readyz.",
    )
    slow_read_s: float = _setting(
        "slow_read",
        values.read_seconds(),
        "5s",
        "TIME",
        "Log reads that take longer than this, with their stages; 0 for none.",
        is_live=True,
    )
    log: Literal["stderr", "syslog"] | Path = _setting(
        "log", values.read_log, "stderr", "stderr|syslog|FILE", "Where to write the log."
    )
    log_level: str = _setting(
        "log_level",
        values.of_choice("debug", "info", "warning", "error"),
        "warning",
        "LEVEL",
        "Lowest level to log: debug, info, warning or error.",
        is_live=True,
    )
    log_format: Literal["text", "json"] = _setting(
        "log_format",
        values.of_choice("text", "json"),
        "text",
        "text|json",
        "Log lines as text, or as one JSON object each.",
    )


def _described() -> tuple[Setting, ...]:
    return tuple(
        Setting(field_name=described.name, **described.metadata)
        for described in dataclasses.fields(MountSettings)
    )


SETTINGS: tuple[Setting, ...] = _described()
"""All settings, in the order in which they are shown."""
