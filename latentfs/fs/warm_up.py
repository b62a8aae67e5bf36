"""What a renderer is given to do before anybody asks: its VAEs are loaded then, and have run once.

Loading a VAE takes seconds, and so does the first decode: memory is laid out, kernels are chosen or
compiled.  The first reader need not wait for that.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice

import msgspec

from latentfs.errors import LatentfsError
from latentfs.latents.recipe import Recipe
from latentfs.render.job_queue import RenderJob
from latentfs.render.jobs import job_for_inode
from latentfs.store.snapshot import Snapshot
from latentfs.store.store import Store

__all__ = ["warm_up_jobs"]

log = logging.getLogger(__name__)

# As many VAEs as a renderer keeps.
_JOBS_MAX = 4
# Some milliseconds of looking; no reader waits longer for it.
_INODES_MAX = 1000


def warm_up_jobs(store: Store) -> list[RenderJob]:
    """Return a render for each way of decoding among the newest pictures, four at most.

    The newest first, as they are the likeliest to be read.  What can't be rendered is left out; an
    error is logged, not raised.
    """
    try:
        with store.read() as snapshot:
            return _jobs(snapshot, store)
    except Exception:  # nothing depends on it
        log.exception("no picture could be found to warm renderers up with")
        return []


def _jobs(snapshot: Snapshot, store: Store) -> list[RenderJob]:
    jobs: dict[tuple[object, ...], RenderJob] = {}
    seen: set[bytes] = set()
    for ino, inode in islice(snapshot.newest_inodes(), _INODES_MAX):
        if inode.content is None or inode.content.recipe in seen:
            continue
        seen.add(inode.content.recipe)
        try:
            job = job_for_inode(snapshot, store.path, inode)
        except LatentfsError as error:
            log.debug("inode %d is not rendered to warm up: %s", ino, error)
            continue
        if not job.recipe.tiled:  # too large for memory but in tiles, so it takes long
            request = msgspec.structs.replace(job.request, want_data=False)
            jobs.setdefault(_model(job.recipe), replace(job, request=request))
        if len(jobs) == _JOBS_MAX:
            break
    return list(jobs.values())


def _model(recipe: Recipe) -> tuple[object, ...]:
    """What decides which model is loaded, and what its kernels are made for."""
    return (recipe.vae, recipe.dtype, recipe.layout, recipe.batch, recipe.compiled)
