"""Real files of ComfyUI and diffusers, against the libraries that wrote them."""

import ast
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentfs.latents import payload as codec
from latentfs.latents.latent import Latent
from latentfs.latents.scaling import Space
from latentfs.latents.source import read_latent_file

FOLDER = Path(__file__).parents[4] / "shared" / "latents"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no ../shared/latents here")


def files(name: str) -> list[Path]:
    found = sorted((FOLDER / name).iterdir())
    assert found
    return found


def as_torch(latents: Sequence[Latent]) -> Any:
    """The latents as the library would hold them: [B, C, h, w]."""
    import torch

    kinds = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
    signed = np.int32 if latents[0].dtype == "float32" else np.int16
    bits = np.stack([latent.bits for latent in latents]).view(signed)
    return torch.from_numpy(bits).view(kinds[latents[0].dtype])


def flux_unpack() -> Any:
    """``FluxPipeline._unpack_latents`` from the source of diffusers, whose module needs more."""
    from importlib.util import find_spec

    spec = find_spec("diffusers")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parent
    source = (root / "pipelines" / "flux" / "pipeline_flux.py").read_text()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == "_unpack_latents":
            node.decorator_list = []
            names: dict[str, Any] = {}
            exec(compile(ast.Module([node], []), "pipeline_flux.py", "exec"), names)
            return names["_unpack_latents"]
    raise AssertionError("diffusers has no FluxPipeline._unpack_latents any more")


@pytest.mark.parametrize("name", ["comfyui-sd15", "comfyui-sdxl"])
def test_comfyui(name):
    from safetensors import safe_open

    for path in files(name):
        found = read_latent_file(path)
        with safe_open(path, "pt") as theirs:
            assert as_torch(found.latents).equal(theirs.get_tensor("latent_tensor"))
            assert dict(found.text) == (theirs.metadata() or {})
        assert (found.kind, found.space) == ("comfyui", Space.NATIVE)
        assert [keyword for keyword, _ in found.text] in ([], ["prompt", "workflow"])
        for _, text in found.text:
            json.loads(text)


def test_diffusers():
    from safetensors import safe_open

    for path in files("diffusers-sd3"):
        found = read_latent_file(path)
        with safe_open(path, "pt") as theirs:
            assert as_torch(found.latents).equal(theirs.get_tensor("latents"))
            assert found.source_metadata == theirs.metadata()
        assert (found.kind, found.space, found.text) == ("diffusers", Space.SCALED, ())


def test_flux1_packed():
    from safetensors import safe_open

    unpack = flux_unpack()
    for path in files("diffusers-flux1-packed"):
        found = read_latent_file(path)
        with safe_open(path, "pt") as theirs:
            size = theirs.metadata()
            packed = theirs.get_tensor("latents")
        assert as_torch(found.latents).equal(unpack(packed, size["height"], size["width"], 8))
        assert found.kind == "diffusers-packed"


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("comfyui-sd15", 0.84),
        ("comfyui-sdxl", 0.84),
        ("diffusers-sd3", 0.60),
        ("diffusers-flux1-packed", 0.64),
    ],
)
def test_payloads(name, share):
    raw = stored = 0
    for path in files(name)[:4]:
        for latent in read_latent_file(path).latents:
            payload = codec.encode(latent)
            assert np.array_equal(codec.decode(payload).bits, latent.bits)
            raw += latent.nbytes
            stored += len(payload)
    assert stored / raw < share
