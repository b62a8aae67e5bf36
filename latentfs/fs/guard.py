"""No exception but ``FUSEError`` may leave a handler: pyfuse3 would end the whole mount."""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from pyfuse3 import FUSEError

from latentfs.errors import LatentfsError, RefusedChangeError

__all__ = ["guarded"]

log = logging.getLogger(__name__)


class _CountsErrors(Protocol):
    def count_error(self) -> None: ...


P = ParamSpec("P")
R = TypeVar("R")
Self = TypeVar("Self", bound=_CountsErrors)
_Handler = Callable[Concatenate[Self, P], Coroutine[Any, Any, R]]


def guarded(handler: _Handler[Self, P, R]) -> _Handler[Self, P, R]:
    """Turn what a handler raises into its errno, or into EIO and a line in the log."""

    @functools.wraps(handler)
    async def guard(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(self, *args, **kwargs)
        except FUSEError:
            raise
        except RefusedChangeError as error:
            log.debug("%s: %s", handler.__name__, error)
            raise FUSEError(error.errno) from error
        except LatentfsError as error:
            self.count_error()
            log.error("%s: %s", handler.__name__, error)
            raise FUSEError(errno.EIO) from error
        except Exception as error:
            self.count_error()
            log.exception("%s failed unexpectedly", handler.__name__)
            raise FUSEError(errno.EIO) from error

    return guard
