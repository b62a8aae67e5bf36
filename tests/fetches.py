"""Fetches for tests whose clock is not that of the machine."""

import trio

from latentfs.errors import RenderFailedError, StoreCorruptError
from latentfs.fs.fetching import Fetch
from latentfs.render.job_queue import RenderJob
from latentfs.render.jobs import job_for_inode
from latentfs.store.records import Inode
from latentfs.store.store import Store


def fetch_at_once(store: Store, *, delay_s: float = 0.0) -> Fetch:
    """A fetch without a thread, which a mock clock knows nothing of, that takes *delay_s*."""

    async def fetch(ino: int, inode: Inode) -> RenderJob:
        if delay_s:
            await trio.sleep(delay_s)
        with store.read() as snapshot:
            try:
                return job_for_inode(snapshot, store.path, inode)
            except StoreCorruptError as error:
                if snapshot.inode(ino) is not None:
                    raise
                raise RenderFailedError(f"inode {ino} was removed while it was open") from error

    return fetch
