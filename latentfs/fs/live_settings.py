"""The settings in force, which a reload may change while the mount goes on."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import trio

from latentfs.errors import LatentfsError
from latentfs.settings.mount_settings import SETTINGS, MountSettings

__all__ = ["LiveSettings"]

log = logging.getLogger(__name__)

_REREAD_MAX_S = 60.0


class LiveSettings:
    """Owns the settings of a running mount.

    Args:
        reread: gives them anew.
        on_change: what to call with a new value, by the setting's name.  Settings that are not
            there are looked up in :attr:`now` whenever they are needed.

    Attributes:
        now: those in force.
    """

    def __init__(
        self,
        settings: MountSettings,
        *,
        reread: Callable[[], MountSettings],
        on_change: Mapping[str, Callable[[Any], None]],
    ) -> None:
        self.now = settings
        self._reread = reread
        self._on_change = on_change
        self._rereading = trio.CapacityLimiter(1)

    async def reload(self) -> None:
        """Read the settings anew and put those in force that can change while it is mounted.

        If they can't be read, or not within a minute, all stay as they are and the log says why.
        If cancelled, too.  A thread that waits for a file, as of a network disk that is gone, is
        left behind.
        """
        try:
            with trio.fail_after(_REREAD_MAX_S):
                wanted = await trio.to_thread.run_sync(
                    self._reread, abandon_on_cancel=True, limiter=self._rereading
                )
        except trio.TooSlowError:
            log.error("the settings stay as they are: reading them takes over %g s", _REREAD_MAX_S)
            return
        except LatentfsError as error:
            log.error("the settings stay as they are: %s", error)
            return
        except Exception:  # a mount outlives whatever is in a file
            log.exception("the settings stay as they are")
            return
        for setting in SETTINGS:
            before = getattr(self.now, setting.field_name)
            after = getattr(wanted, setting.field_name)
            if after == before:
                continue
            if not setting.is_live:
                log.warning(
                    "%s stays %s: it can only change with the next mount", setting.name, before
                )
                continue
            self.now = dataclasses.replace(self.now, **{setting.field_name: after})
            if setting.name in self._on_change:
                self._on_change[setting.name](after)
            log.info("%s is %s now, and was %s", setting.name, after, before)
