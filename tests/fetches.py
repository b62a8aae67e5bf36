"""Fetches for tests whose clock is not that of the machine."""

import trio

from latentfs.fs.fetching import Fetch, fetched_job
from latentfs.render.job_queue import RenderJob
from latentfs.store.records import Inode
from latentfs.store.store import Store


def fetch_at_once(store: Store, *, delay_s: float = 0.0) -> Fetch:
    """A fetch without a thread, which a mock clock knows nothing of, that takes *delay_s*."""

    async def fetch(ino: int, inode: Inode) -> RenderJob:
        if delay_s:
            await trio.sleep(delay_s)
        with store.read() as snapshot:
            return fetched_job(snapshot, store.path, ino, inode)

    return fetch
