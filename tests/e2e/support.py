"""Running latentfs as its users do, and what diffusers itself makes of the same latents."""

import ast
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import trio
from PIL import Image

from latentfs.cli import main
from latentfs.images.framing import Framing
from latentfs.images.pixels import Pixels
from latentfs.ingest.discover import Candidate, discover
from latentfs.ingest.importer import Added, Importer, Outcome
from latentfs.ingest.preparation import ImportOptions
from latentfs.latents.recipe import Rounding
from latentfs.render.scheduler import open_scheduler
from latentfs.store.records import Inode
from latentfs.store.store import Store

__all__ = [
    "Batch",
    "Picture",
    "Result",
    "call",
    "files_in",
    "import_all",
    "made_store",
    "picture",
    "postprocessed",
    "sample_of",
    "shown_error",
    "spawn",
    "tensors_of",
    "truncated",
    "unpacked",
]

_TIMEOUT_S = 1800
# What root may do in spite of a file's mode.
_OVERRIDES = "-dac_override,-dac_read_search"


@dataclass(frozen=True)
class Result:
    status: int
    out: str
    err: str

    def checked(self) -> "Result":
        assert self.status == 0, self
        return self

    def refused(self, kind: str = "refused") -> dict[str, str]:
        """The reasons by file name of what standard error names."""
        found = {}
        for line in self.err.splitlines():
            if line.startswith(f"{kind}: "):
                path, _, reason = line.removeprefix(f"{kind}: ").partition(": ")
                assert reason, line
                found[path.rsplit("/", 1)[-1]] = reason
        return found


def shown_error(result: Result) -> str:
    """The one clear line that a failure is told with."""
    assert result.status == 1, result
    assert result.err.startswith("latentfs: "), result
    assert result.err.endswith("\n"), result
    assert result.err.count("\n") == 1, result
    assert result.out == "", result
    return result.err.removeprefix("latentfs: ").rstrip("\n")


def call(*arguments: object) -> Result:
    """Run the command line in this process, which has torch loaded already."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["latentfs", *map(str, arguments)]
    with (
        mock.patch.object(sys, "argv", argv),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as exit_info,
    ):
        main()
    assert isinstance(exit_info.value.code, int)
    return Result(exit_info.value.code, out.getvalue(), err.getvalue())


def spawn(
    *arguments: object,
    unprivileged: bool = False,
    environment: Mapping[str, str] | None = None,
) -> Result:
    """Run the command line as a process of its own.

    With *unprivileged*, file modes hold even for root; skips where root can't be held to them.
    """
    command = [sys.executable, "-m", "latentfs", *map(str, arguments)]
    if unprivileged and os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root reads everything, and there is no setpriv to take that away")
        command = ["setpriv", "--bounding-set", _OVERRIDES, *command]
    done = subprocess.run(
        command,
        capture_output=True,
        timeout=_TIMEOUT_S,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


def made_store(path: Path, **vaes: tuple[object, ...]) -> Path:
    """Make a store with VAEs, given as name and the arguments of ``vae add`` behind it."""
    call("init", path).checked()
    for name, arguments in vaes.items():
        call("vae", "add", path, name, *arguments).checked()
    return path


@dataclass(frozen=True)
class Batch:
    """One import: what ``latentfs import`` is called with."""

    sources: Sequence[Path]
    vae: str
    to: str
    rounding: Rounding = "round"
    framing: Framing = Framing.png()  # noqa: RUF009 (it is immutable)


def import_all(store_path: Path, batches: Sequence[Batch]) -> list[Added]:
    """Do several imports with one renderer, which takes seconds to start."""
    outcomes: list[Outcome] = []

    async def run() -> None:
        with Store.open(store_path, writable=True) as store:
            async with open_scheduler(render_timeout_s=_TIMEOUT_S) as scheduler:
                for batch in batches:
                    options = ImportOptions(
                        vae=batch.vae,
                        to=batch.to,
                        precision="source",
                        framing=batch.framing,
                        rounding=batch.rounding,
                        on_conflict="skip",
                    )
                    importer = Importer(
                        store, options, report=outcomes.append, on_file_done=lambda: None
                    )
                    found = list(discover(list(batch.sources), to=batch.to))
                    await importer.run([c for c in found if isinstance(c, Candidate)], scheduler)

    trio.run(run)
    added = [outcome for outcome in outcomes if isinstance(outcome, Added)]
    assert added == outcomes
    return added


def files_in(store_path: Path, folder: str = "/") -> dict[str, Inode]:
    """The files below *folder* of a store, by path."""
    found: dict[str, Inode] = {}
    with Store.open(store_path) as store, store.read() as snapshot:

        def walk(path: str, ino: int) -> None:
            for name, child_ino in snapshot.entries(ino):
                child = snapshot.inode(child_ino)
                assert child is not None
                below = f"{path}/{name.decode()}"
                if child.is_directory:
                    walk(below, child_ino)
                else:
                    found[below] = child

        start = snapshot.resolve(folder)
        if start is not None:
            walk(folder.rstrip("/"), start[0])
    return found


@dataclass(frozen=True)
class Picture:
    """An exported file, as Pillow reads it.  ``text``: (keyword, text) in the order of the file."""

    format: str
    pixels: Pixels
    text: tuple[tuple[str, str], ...]


def picture(path: Path) -> Picture:
    with Image.open(path) as image:
        image.load()
        texts = getattr(image, "text", {})
        assert image.mode == "RGB"
        return Picture(str(image.format), np.asarray(image), tuple(texts.items()))


# What diffusers, or ComfyUI, does


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def tensors_of(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def sample_of(vae: Any, z: Any, *, threads: int) -> Any:
    """What ``decode`` gives for [1, C, h, w] in the VAE's dtype."""
    import torch

    assert z.dtype == vae.dtype
    with _threads(threads), torch.no_grad():
        return vae.decode(z, return_dict=False)[0]


def postprocessed(sample: Any) -> Pixels:
    """The end of every pipeline of diffusers."""
    from diffusers.image_processor import VaeImageProcessor

    (image,) = VaeImageProcessor().postprocess(sample, output_type="pil")
    return np.asarray(image)


def truncated(sample: Any) -> Pixels:
    """The end of ComfyUI: ``VAE.decode`` (comfy/sd.py), then ``SaveImage`` (nodes.py)."""
    import torch

    image = torch.clamp((sample.float() + 1.0) / 2.0, min=0.0, max=1.0).movedim(1, -1)[0]
    pixels: Pixels = np.clip(255.0 * image.numpy(), 0, 255).astype(np.uint8)
    return pixels


def unpacked(latents: Any, height: int, width: int) -> Any:
    """``FluxPipeline._unpack_latents``, from the source of diffusers: its module needs more."""
    spec = find_spec("diffusers")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "pipelines" / "flux" / "pipeline_flux.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "_unpack_latents":
            node.decorator_list = []
            names: dict[str, Any] = {}
            exec(compile(ast.Module([node], []), path.name, "exec"), names)
            return names["_unpack_latents"](latents, height, width, 8)
    raise AssertionError("diffusers has no FluxPipeline._unpack_latents any more")
