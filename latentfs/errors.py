"""Every exception that latentfs raises on purpose.

::

    LatentfsError
    ├── InvalidArgumentError        a value given by the user that can't be used
    ├── StoreError
    │   ├── StoreNotFoundError      no store at that path
    │   ├── StoreExistsError        a store, or something else, is there already
    │   ├── StoreVersionError       written by a newer latentfs
    │   ├── StoreLockedError        another daemon has it mounted
    │   ├── StoreFullError          the disk or the map is full; nothing was changed
    │   └── StoreCorruptError       a record that can't be true
    ├── PathError                   a name or path inside the store
    │   └── RefusedChangeError      a change that POSIX forbids, with its errno
    ├── LatentError
    │   ├── RefusedLatentError      an input file that can't be imported, with the reason
    │   └── CorruptPayloadError     a stored payload that doesn't decompress to what was stored
    ├── VaeError
    │   ├── VaeNotFoundError        no VAE of that name in the store
    │   └── VaeCorruptError         a VAE's files don't have the hashes they were added with
    ├── FramingError                an encoded picture doesn't fit the size its file has
    ├── RenderError
    │   ├── RenderFailedError       the renderer says that this content can't be rendered
    │   ├── RenderDroppedError      nobody waited for it any more when its turn came
    │   ├── RendererLostError       the renderer process died with the request in flight
    │   │   └── NoRendererError     none can be started
    │   └── RenderTimeoutError      no rendition within the deadline
    └── MountError                  mounting or unmounting failed

A message says what went wrong, with which value, and what to do about it.
"""


class LatentfsError(Exception):
    """Base of all of them; the command line prints its message as one line."""


class InvalidArgumentError(LatentfsError):
    pass


class StoreError(LatentfsError):
    pass


class StoreNotFoundError(StoreError):
    pass


class StoreExistsError(StoreError):
    pass


class StoreVersionError(StoreError):
    pass


class StoreLockedError(StoreError):
    pass


class StoreFullError(StoreError):
    pass


class StoreCorruptError(StoreError):
    pass


class PathError(LatentfsError):
    pass


class RefusedChangeError(PathError):
    def __init__(self, number: int, message: str) -> None:
        super().__init__(message)
        self.errno = number


class LatentError(LatentfsError):
    pass


class RefusedLatentError(LatentError):
    pass


class CorruptPayloadError(LatentError):
    pass


class VaeError(LatentfsError):
    pass


class VaeNotFoundError(VaeError):
    pass


class VaeCorruptError(VaeError):
    pass


class FramingError(LatentfsError):
    pass


class RenderError(LatentfsError):
    pass


class RenderFailedError(RenderError):
    pass


class RenderDroppedError(RenderError):
    pass


class RendererLostError(RenderError):
    pass


class NoRendererError(RendererLostError):
    pass


class RenderTimeoutError(RenderError):
    pass


class MountError(LatentfsError):
    pass
