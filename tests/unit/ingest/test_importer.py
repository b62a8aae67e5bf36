"""How an import writes into a store: not for long at a time, and not in vain."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import zstandard
from latent_files import latent_array, write_comfyui_latent
from store_contents import VAE

from latentfs.errors import StoreFullError
from latentfs.images.framing import Framing
from latentfs.ingest import importer
from latentfs.ingest.discover import Candidate
from latentfs.ingest.importer import Added, Importer, Outcome
from latentfs.ingest.preparation import ImportOptions
from latentfs.render.job_queue import Priority, RenderJob, Rendition
from latentfs.render.protocol import Rendered
from latentfs.render.scheduler import Scheduler
from latentfs.store.store import Store
from latentfs.store.tables import ROOT_INO
from latentfs.store.transaction import Transaction
from latentfs.store.writer_lock import WriterLock

OPTIONS = ImportOptions(
    vae="tiny",
    to="/",
    precision="source",
    framing=Framing.png(),
    rounding="round",
    on_conflict="skip",
)


class CountingScheduler:
    """Says of each picture that it was rendered, and counts them."""

    def __init__(self) -> None:
        self.renders = 0

    async def render(self, job: RenderJob, *, priority: Priority) -> Rendition:
        self.renders += 1
        report = Rendered(
            number=1,
            width=16,
            height=16,
            size_bytes=1000,
            sha256=self.renders.to_bytes(32, "big"),
            encode_retries=0,
            psnr_db=None,
            stages_s={},
        )
        return Rendition(report, b"")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "art.lfs") as store:
        with store.write() as transaction:
            transaction.put_vae("tiny", VAE)
        yield store


def _latents(folder: Path, seeds: Sequence[int], *, workflow: str = "{}") -> list[Candidate]:
    found = []
    for seed in seeds:
        path = folder / f"{seed}.latent"
        metadata = {"prompt": str(seed), "workflow": workflow}
        write_comfyui_latent(path, latent_array(1, 4, 2, 2, seed=seed), metadata=metadata)
        found.append(Candidate(path, "/", path.stem))
    return found


def _importer(store: Store, outcomes: list[Outcome]) -> Importer:
    return Importer(store, OPTIONS, report=outcomes.append, on_file_done=lambda: None)


async def _imported(store: Store, candidates: list[Candidate]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    await _importer(store, outcomes).run(candidates, cast(Scheduler, CountingScheduler()))
    return outcomes


def _watch_compression(store: Store, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Return a list that tells, of each blob as it is compressed, whether others may write then."""
    may_others_write: list[bool] = []
    compressor = zstandard.ZstdCompressor

    class Compressor:
        def __init__(self, **settings: Any) -> None:
            lock = WriterLock(store.path)
            may_others_write.append(lock.try_acquire())
            lock.release()
            self.compress = compressor(**settings).compress

    monkeypatch.setattr(zstandard, "ZstdCompressor", Compressor)
    return may_others_write


async def test_others_may_write_while_metadata_is_compressed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_others_write = _watch_compression(store, monkeypatch)
    outcomes = await _imported(store, _latents(tmp_path, [1]))
    assert [type(outcome) for outcome in outcomes] == [Added]
    assert may_others_write == [True] * 2


async def test_metadata_that_the_store_has_is_not_compressed_again(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await _imported(store, _latents(tmp_path, [1]))
    compressed = _watch_compression(store, monkeypatch)
    await _imported(store, _latents(tmp_path, [2, 3]))
    assert len(compressed) == 2  # the prompts


async def test_what_is_committed_together_is_bounded_by_its_bytes(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = store.changes()
    assert len(await _imported(store, _latents(tmp_path, range(3)))) == 3
    assert store.changes() == commits + 1
    monkeypatch.setattr(importer, "_GROUP_BYTES", 1)
    assert len(await _imported(store, _latents(tmp_path, range(3, 6)))) == 3
    assert store.changes() == commits + 4


async def test_an_import_ends_when_the_disk_is_full_and_keeps_what_it_has_added(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = 3
    write = Store.write

    @contextmanager
    def write_while_there_is_space(store: Store) -> Iterator[Transaction]:
        with write(store) as transaction:
            yield transaction
            if sum(1 for _ in transaction.entries(ROOT_INO)) > fits:
                raise StoreFullError("no space left")

    monkeypatch.setattr(Store, "write", write_while_there_is_space)
    monkeypatch.setattr(importer, "_GROUP_FILES", 2)
    outcomes: list[Outcome] = []
    scheduler = CountingScheduler()
    with pytest.RaisesGroup(
        pytest.RaisesExc(StoreFullError, match="import ends"), flatten_subgroups=True
    ):
        await _importer(store, outcomes).run(
            _latents(tmp_path, range(100)), cast(Scheduler, scheduler)
        )
    assert [type(outcome) for outcome in outcomes] == [Added] * fits
    assert store.statistics().totals.files == fits
    assert scheduler.renders < 50
