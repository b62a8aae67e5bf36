"""What was to be compiled is compiled, or is an error."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
import scripted_renderer
import torch
import torch._dynamo.config
from diffusers import AutoencoderTiny

from latentfs.errors import VaeError
from latentfs.render import compiled
from latentfs.render.compiled import CompiledVae
from latentfs.render.decode import OutOfMemoryError, decode_samples
from latentfs.render.vae_models import VaeModels
from latentfs.store.records import VaeFile

Graph = Callable[..., Any]
RECIPE = msgspec.structs.replace(scripted_renderer.RECIPE, cpu_threads=2, compiled=True)
# Decodes zeros with the VAE in the folder it is given, and prints the hash of what comes out.
DECODE = """
import sys, hashlib, pathlib, torch
from latentfs.render.compiled import CompiledVae
from latentfs.render.vae_models import load
torch.set_num_threads(2)
vae = CompiledVae(load(pathlib.Path(sys.argv[1]), class_name="AutoencoderTiny", dtype="float32"))
z = torch.linspace(-2, 2, 256).reshape(1, 4, 8, 8)
with torch.inference_mode():
    sample = vae.decode(z, return_dict=False)[0]
print(hashlib.sha256(sample.numpy().tobytes()).hexdigest())
"""


@pytest.fixture(scope="module", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where compiled kernels are kept, so that none are there already."""
    folder = tmp_path_factory.mktemp("compiled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield folder


class Doubler:
    """A VAE that doubles."""

    def decode(self, z: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
        return (z * 2,)


class Compiler:
    """In place of the real one: runs graphs as they are."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.error: Exception | None = None
        self.on_graph: Callable[[], None] = lambda: None

    def __call__(self, graph: Any, inputs: list[torch.Tensor]) -> Graph:
        self.on_graph()
        if self.error is not None:
            raise self.error
        self.shapes += [tuple(each.shape) for each in inputs if isinstance(each, torch.Tensor)]
        run: Graph = graph.forward
        return run


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    compiler = Compiler()
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: compiler)
    return compiler


def decode(vae: CompiledVae, *shape: int) -> torch.Tensor:
    with torch.inference_mode():
        return vae.decode(torch.ones(shape), return_dict=False)[0]


def test_each_shape_is_compiled_once(compiler: Compiler) -> None:
    vae = CompiledVae(Doubler())
    sides = [*range(2, 14), *range(2, 14)]  # more than PyTorch compiles of one function
    for side in sides:
        assert torch.equal(decode(vae, 1, 4, side, side), torch.full((1, 4, side, side), 2.0))
    assert compiler.shapes == [(1, 4, side, side) for side in range(2, 14)]


def test_another_number_of_threads_is_compiled_anew(compiler: Compiler) -> None:
    vae = CompiledVae(Doubler())
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 1, 2):
            torch.set_num_threads(count)
            decode(vae, 1, 4, 2, 2)
    finally:
        torch.set_num_threads(threads)
    assert len(compiler.shapes) == 2


def test_the_shape_used_least_recently_is_dropped(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "_SHAPES_MAX", 2)
    vae = CompiledVae(Doubler())
    for side in (2, 3, 2, 4, 2, 3):
        decode(vae, 1, 4, side, side)
    assert [shape[-1] for shape in compiler.shapes] == [2, 3, 4, 3]


def test_it_says_so_while_it_compiles(compiler: Compiler) -> None:
    entered: list[int] = []

    @contextmanager
    def while_compiling() -> Iterator[None]:
        entered.append(len(compiler.shapes))
        yield
        entered.append(len(compiler.shapes))

    vae = CompiledVae(Doubler(), while_compiling=while_compiling)
    decode(vae, 1, 4, 2, 2)
    decode(vae, 1, 4, 2, 2)
    assert entered == [0, 1]


def test_code_that_can_not_be_compiled_as_a_whole_is_refused(compiler: Compiler) -> None:
    class Breaking(Doubler):
        def decode(self, z: torch.Tensor, return_dict: bool) -> tuple[torch.Tensor]:
            torch._dynamo.graph_break()
            return (z * 2,)

    vae = CompiledVae(Breaking())
    for _ in range(2):
        with pytest.raises(VaeError, match="can't compile Breaking for latents of shape"):
            decode(vae, 1, 4, 2, 2)


def test_what_the_compiler_raises_is_an_error_each_time(compiler: Compiler) -> None:
    vae = CompiledVae(Doubler())
    compiler.error = RuntimeError("no g++ here")
    for _ in range(2):
        with pytest.raises(VaeError, match=r"no g\+\+ here; install a C\+\+ compiler.*--compile"):
            decode(vae, 1, 4, 2, 2)
    compiler.error = None
    assert torch.equal(decode(vae, 1, 4, 2, 2), torch.full((1, 4, 2, 2), 2.0))


def test_lack_of_memory_stays_what_it_is(compiler: Compiler) -> None:
    compiler.error = torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(OutOfMemoryError):
        decode_samples(CompiledVae(Doubler()), torch.ones(1, 4, 2, 2), RECIPE)


def test_a_pytorch_that_does_not_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    with pytest.raises(VaeError, match="told not to compile; unset TORCHDYNAMO_DISABLE"):
        decode(CompiledVae(Doubler()), 1, 4, 2, 2)


def test_a_pytorch_that_only_measures_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor, "config", object())
    with pytest.raises(VaeError, match=r"install 2\.9 or newer"):
        CompiledVae(Doubler())


def test_kernels_are_kept_in_a_folder_of_the_user_s_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # so that it is restored
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    CompiledVae(Doubler())
    folder = tmp_path / "latentfs" / "compiled"
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(folder)
    assert folder.stat().st_mode & 0o777 == 0o700

    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(VaeError, match="set TORCHINDUCTOR_CACHE_DIR to a folder"):
        CompiledVae(Doubler())


# In VaeModels


def files_of(folder: Path) -> tuple[VaeFile, ...]:
    return tuple(
        VaeFile(path.name, path.stat().st_size, sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
    )


def test_compiled_and_not_compiled_never_mix(tiny_vae_folder: Path) -> None:
    models = VaeModels(torch.device("cpu"))

    def get(**changes: Any) -> Any:
        recipe = msgspec.structs.replace(RECIPE, **changes)
        return models.get(str(tiny_vae_folder), files_of(tiny_vae_folder), recipe)

    plain, through_compiler = get(compiled=False), get()
    assert isinstance(through_compiler, CompiledVae)
    assert not isinstance(plain, CompiledVae)
    assert get(compiled=False) is plain
    assert get() is through_compiler
    assert get(tiled=True) is plain
    wide = get(dtype="bfloat16", widened_from="float16")
    assert isinstance(wide, CompiledVae)
    assert wide is not through_compiler


def test_models_tell_whether_one_is_being_compiled(
    tiny_vae_folder: Path, compiler: Compiler
) -> None:
    models = VaeModels(torch.device("cpu"))
    vae = models.get(str(tiny_vae_folder), files_of(tiny_vae_folder), RECIPE)
    told: list[bool] = []
    compiler.on_graph = lambda: told.append(models.compiling)
    assert not models.compiling
    decode(vae, 1, 4, 2, 2)
    assert told == [True]
    assert not models.compiling


# With the real compiler


def decoded_elsewhere(
    folder: Path, environment: dict[str, str]
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DECODE, str(folder)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )


@pytest.fixture(scope="module")
def few_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VAE that takes seconds to compile."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        vae: Any = AutoencoderTiny(
            latent_channels=4,
            encoder_block_out_channels=(8,),
            decoder_block_out_channels=(8,),
            num_encoder_blocks=(1,),
            num_decoder_blocks=(1,),
        )
    folder = tmp_path_factory.mktemp("vaes") / "few"
    vae.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++ to compile with")
def test_two_compilers_make_the_same_kernels(few_layers: Path) -> None:
    first = decoded_elsewhere(few_layers, {})
    assert first.returncode == 0, first.stderr
    # What is made anew in another process is the same, down to the C++ that is already compiled.
    again = decoded_elsewhere(
        few_layers, {"TORCHINDUCTOR_FX_GRAPH_CACHE": "0", "TORCHINDUCTOR_AUTOGRAD_CACHE": "0"}
    )
    assert again.stdout == first.stdout, again.stderr


def test_no_compiler_is_told_in_a_line(few_layers: Path, tmp_path: Path) -> None:
    done = decoded_elsewhere(
        few_layers, {"CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("latentfs.errors.VaeError: PyTorch")
    assert "install a C++ compiler such as g++ if there is none, or add the VAE without" in last
