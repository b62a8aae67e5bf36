"""Mount options: what is the kernel's, what mount(8) and fstab say for themselves, what is ours."""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterable

from latentfs.settings.values import read_list

__all__ = [
    "NOSYMFOLLOW",
    "chosen_options",
    "is_for_others",
    "is_for_the_kernel",
    "nearest",
    "read_options",
]

# libfuse does not know it: it is set when the mount is there.
NOSYMFOLLOW = "nosymfollow"
_FLAGS = frozenset(
    {"allow_other", "default_permissions", "nodev", "nosuid", "noexec", "noatime", NOSYMFOLLOW}
)
# What takes one of those away that are chosen by default or were given before.
_UNSET_FLAGS = {
    "noallow_other": "allow_other",
    "dev": "nodev",
    "suid": "nosuid",
    "exec": "noexec",
    "atime": "noatime",
    "symfollow": NOSYMFOLLOW,
}
# Defaults, which change nothing here, and what only mount(8), fstab and systemd act on.
_IGNORED = frozenset(
    {
        "defaults",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "lazytime",
        "nolazytime",
        "async",
        "sync",
        "dirsync",
        "iversion",
        "noiversion",
        "mand",
        "nomand",
        "silent",
        "loud",
        "auto",
        "noauto",
        "user",
        "nouser",
        "users",
        "nousers",
        "owner",
        "noowner",
        "group",
        "nogroup",
        "nofail",
        "_netdev",
    }
)
_IGNORED_PREFIXES = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")
_ALWAYS = frozenset({"default_permissions", "nodev", "nosuid"})


def is_for_the_kernel(option: str) -> bool:
    """Whether the option may stand in the setting ``mount_options``."""
    return option in _FLAGS or option in _UNSET_FLAGS


def is_for_others(option: str) -> bool:
    """Whether the option changes nothing here, or is for mount(8), fstab or systemd alone."""
    return option in _IGNORED or option.startswith(_IGNORED_PREFIXES)


def nearest(name: str, known: Iterable[str], *, prefix: str = "") -> str:
    """Return what a message says of the name most like *name*; empty where none is.

    *prefix* goes before the names where they are written, and is in no *name*.  Capitals and
    hyphens are taken for small letters and underscores.
    """
    plain = {other.lower(): other for other in known}
    close = difflib.get_close_matches(name.lower().replace("-", "_"), plain, n=1)
    return f"; did you mean {prefix + plain[close[0]]!r}?" if close else ""


def read_options(value: object) -> tuple[str, ...]:
    """Options for the kernel, without those for others.

    Raises:
        ValueError: one is not known.
    """
    options = tuple(option for option in read_list(value) if not is_for_others(option))
    for option in options:
        if not is_for_the_kernel(option):
            known = sorted(_FLAGS | set(_UNSET_FLAGS))
            hint = nearest(option, known) or f"; there are {', '.join(known)}"
            raise ValueError(f"mount option {option!r} is not known{hint}")
    return options


def chosen_options(options: Collection[str], *, may_allow_other: bool) -> frozenset[str]:
    """Return what is in force with *options*, later ones before earlier ones.

    ``dev`` and ``suid`` are among that only for root: others may not have them.
    """
    chosen = set(_ALWAYS)
    if may_allow_other:
        chosen.add("allow_other")
    for option in options:
        if option in _UNSET_FLAGS:
            chosen.discard(_UNSET_FLAGS[option])
        else:
            chosen.add(option)
    if os.geteuid() == 0:  # without these words libfuse keeps to nodev and nosuid
        chosen |= {word for word in ("dev", "suid") if _UNSET_FLAGS[word] not in chosen}
    return frozenset(chosen)
