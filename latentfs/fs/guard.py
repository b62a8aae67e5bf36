"""No exception but ``FUSEError`` may leave a handler: pyfuse3 would end the whole mount."""

from __future__ import annotations

import errno
import functools
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from pyfuse3 import FUSEError

from latentfs.errors import LatentfsError, RefusedChangeError

__all__ = ["guarded"]

log = logging.getLogger(__name__)


class _Counts(Protocol):
    def count_error(self) -> None: ...

    def operation_done(self, name: str, number: int, elapsed_s: float) -> None: ...


P = ParamSpec("P")
R = TypeVar("R")
Self = TypeVar("Self", bound=_Counts)
_Handler = Callable[Concatenate[Self, P], Coroutine[Any, Any, R]]


def guarded(handler: _Handler[Self, P, R]) -> _Handler[Self, P, R]:
    """Turn what a handler raises into its errno, or into EIO and a line in the log.

    Each request that was answered is counted with its errno and its time.
    """
    name = handler.__name__

    @functools.wraps(handler)
    async def guard(self: Self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        start_s = time.monotonic()
        number: int | None = None  # stays so where it is cancelled
        try:
            result = await handler(self, *args, **kwargs)
            number = 0
            return result
        except FUSEError as error:
            number = error.errno
            raise
        except RefusedChangeError as error:
            number = error.errno
            log.debug("%s: %s", name, error)
            raise FUSEError(number) from error
        except LatentfsError as error:
            number = errno.EIO
            self.count_error()
            log.error("%s: %s", name, error)
            raise FUSEError(number) from error
        except Exception as error:
            number = errno.EIO
            self.count_error()
            log.exception("%s failed unexpectedly", name)
            raise FUSEError(number) from error
        finally:
            if number is not None:
                self.operation_done(name, number, time.monotonic() - start_s)

    return guard
