#!/usr/bin/env python3
"""Which settings change the bits of a decode on this machine, and how fast each batch size is.

tools/bench_determinism.py /models/taesd
tools/bench_determinism.py latentfs/render/builtin_vae --cells 16

Beside the VAE given, three with random weights are measured: an AutoencoderTiny, and an
AutoencoderKL without and with attention.  A cell says which share of a picture's 8-bit values
changed, and by how many levels at most; "same" is bit for bit.
"""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from latentfs.latents.latent import Dtype
from latentfs.render.vae_models import load, torch_dtype
from latentfs.store.vae_files import open_vae_folder

Levels = npt.NDArray[np.uint8]
Pictures = dict[str, Levels]

DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BATCHES = (1, 2, 4)
LATENTS = 7
THREADS = 2

# As in the renderer: threads that spin would count against whoever shares the cores.  And malloc
# keeps what is freed, since page faults would cost as much as the arithmetic.
_QUICK = {
    "OMP_WAIT_POLICY": "PASSIVE",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:"
    "glibc.malloc.trim_threshold=8589934592",
}


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """Another process, and the dtypes that are practicable in it."""

    name: str
    environment: dict[str, str]
    dtypes: tuple[Dtype, ...] = DTYPES


_ELSEWHERE = (
    Elsewhere("another process", _QUICK),
    Elsewhere("threads that spin, malloc as usual", {}),
    Elsewhere("ATen limited to AVX2", _QUICK | {"ATEN_CPU_CAPABILITY": "avx2"}),
    Elsewhere(
        "oneDNN without bfloat16 instructions", _QUICK | {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}
    ),
    # oneDNN has no bfloat16 there, and ATen's own convolution takes minutes for a picture.
    Elsewhere(
        "ATen and oneDNN limited to AVX2",
        _QUICK | {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
        dtypes=("float32",),
    ),
)


class Decoder:
    """A VAE in one dtype and one layout."""

    def __init__(self, folder: Path, *, dtype: Dtype, layout: str) -> None:
        class_name = open_vae_folder(folder).class_name
        self._format = LAYOUTS[layout]
        self._dtype = torch_dtype(dtype)
        self._vae = load(folder, class_name=class_name, dtype=dtype).to(memory_format=self._format)

    def latents(self, count: int, cells: int) -> torch.Tensor:
        shape = (count, int(self._vae.config.latent_channels), cells, cells)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(self._dtype)

    def decode(self, z: torch.Tensor, *, threads: int = THREADS) -> Levels:
        """Return uint8 pixels [B, 3, H, W], rounded as diffusers' image processor does."""
        torch.set_num_threads(threads)
        with torch.inference_mode():
            sample = self._vae.decode(z.to(memory_format=self._format), return_dict=False)[0]
            unit = (sample * 0.5 + 0.5).clamp(0, 1).float()
            levels = (unit * 255).round().to(torch.uint8).contiguous().numpy()
        assert isinstance(levels, np.ndarray)
        return levels

    def one_by_one(self, z: torch.Tensor, *, threads: int = THREADS) -> Levels:
        return np.concatenate([self.decode(item[None], threads=threads) for item in z])


def difference(pairs: Iterable[tuple[Levels, Levels]]) -> str:
    """Share of values that differ over all *pairs*, and the largest difference in levels."""
    changes = np.concatenate(
        [np.abs(a.astype(np.int16) - b.astype(np.int16)).ravel() for a, b in pairs]
    )
    if not changes.any():
        return "same"
    return f"{np.count_nonzero(changes) / changes.size:.3%}, {int(changes.max())}"


def comparisons(decoder: Decoder, cells: int) -> Iterator[tuple[str, str]]:
    """What changes the bits within one process, by setting."""
    latents = decoder.latents(LATENTS, cells)
    z, others = latents[:4], latents[4:]
    alone, four = decoder.one_by_one(z), decoder.decode(z)
    yield "again", difference([(alone[:2], decoder.one_by_one(z[:2]))])
    twos = [(alone[i : i + 2], decoder.decode(z[i : i + 2])) for i in (0, 2)]
    yield "batch of 2, first item, against batch 1", difference((a[0], b[0]) for a, b in twos)
    yield "batch of 2, other item, against batch 1", difference((a[1], b[1]) for a, b in twos)
    yield "batch of 4, first item, against batch 1", difference([(alone[0], four[0])])
    yield "batch of 4, other items, against batch 1", difference([(alone[1:], four[1:])])
    rolled = np.roll(decoder.decode(torch.roll(z, 1, dims=0)), -1, axis=0)
    yield "batch of 4, same items at other positions", difference([(four, rolled)])
    beside = decoder.decode(torch.cat([z[:1], others]))
    yield "batch of 4, other items beside the first", difference([(four[0], beside[0])])
    one_thread = decoder.one_by_one(z[:2], threads=1)
    yield "1 thread against 2, batch 1", difference([(alone[:2], one_thread)])
    yield "1 thread against 2, batch 4", difference([(four, decoder.decode(z, threads=1))])


def pictures(folder: Path, cells: int, dtypes: Sequence[Dtype]) -> Pictures:
    """Two pictures one by one and the same as a batch, of every dtype and layout."""
    made = {}
    for dtype in dtypes:
        for layout in LAYOUTS:
            decoder = Decoder(folder, dtype=dtype, layout=layout)
            z = decoder.latents(LATENTS, cells)[:2]
            made[f"{dtype} {layout}"] = np.concatenate([decoder.one_by_one(z), decoder.decode(z)])
    return made


def pictures_elsewhere(
    folders: Sequence[Path], cells: int, elsewhere: Elsewhere
) -> dict[Path, Pictures]:
    """The same, made in another process, by VAE."""
    with tempfile.TemporaryDirectory() as scratch:
        _run_self(
            folders,
            *("--cells", str(cells), "--pictures-to", scratch, "--dtypes", *elsewhere.dtypes),
            environment=elsewhere.environment,
        )
        made = {}
        for number, folder in enumerate(folders):
            with np.load(_picture_file(Path(scratch), number)) as arrays:
                made[folder] = dict(arrays)
    return made


def _picture_file(folder: Path, number: int) -> Path:
    return folder / f"{number}.npz"


def rows_of_settings(
    folder: Path, cells: int, here: Pictures, dtypes: Sequence[Dtype]
) -> dict[str, list[str]]:
    """What changes within this process: cells by setting, a column for each key of *here*."""
    rows: dict[str, list[str]] = {}
    for dtype in dtypes:
        for layout in LAYOUTS:
            decoder = Decoder(folder, dtype=dtype, layout=layout)
            for setting, cell in comparisons(decoder, cells):
                rows.setdefault(setting, []).append(cell)
    rows["channels_last against contiguous"] = [
        difference([(here[f"{key.split()[0]} contiguous"], made)]) if "last" in key else ""
        for key, made in here.items()
    ]
    return rows


def print_bits(folders: Sequence[Path], cells: int) -> None:
    """Print a table for each VAE."""
    others = {
        elsewhere.name: pictures_elsewhere(folders, cells, elsewhere) for elsewhere in _ELSEWHERE
    }
    for folder in folders:
        here = pictures(folder, cells, DTYPES)
        rows = rows_of_settings(folder, cells, here, DTYPES)
        for name, made in others.items():
            there = made[folder]
            rows[name] = [
                difference([(here[key], there[key])]) if key in there else "not measured"
                for key in here
            ]
        _print_bits_table(folder, cells, rows, columns=list(here))


def print_large_bits(folder: Path, cells: int) -> None:
    """Print what changes within a process, in bfloat16."""
    dtypes: tuple[Dtype, ...] = ("bfloat16",)
    here = pictures(folder, cells, dtypes)
    rows = rows_of_settings(folder, cells, here, dtypes)
    _print_bits_table(folder, cells, rows, columns=list(here))


def _print_bits_table(
    folder: Path, cells: int, rows: dict[str, list[str]], *, columns: list[str]
) -> None:
    class_name = open_vae_folder(folder).class_name
    print(f"\n{folder.name} ({class_name}), latents of {cells} x {cells} cells\n")
    _print_table(["", *columns], [[setting, *found] for setting, found in rows.items()])


def seconds_per_picture(decoder: Decoder, cells: int, *, batch: int, repeats: int) -> float:
    """The fastest of *repeats*, after a first one: other processes only ever add to it."""
    z = decoder.latents(batch, cells)
    decoder.decode(z)
    seconds = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        decoder.decode(z)
        seconds.append(time.perf_counter() - start_s)
    return min(seconds) / batch


def print_speed(folder: Path, *, repeats: int) -> None:
    rows = []
    for dtype in DTYPES:
        for layout in LAYOUTS:
            decoder = Decoder(folder, dtype=dtype, layout=layout)
            times = [
                seconds_per_picture(decoder, 64, batch=batch, repeats=repeats) for batch in BATCHES
            ]
            rows.append([f"{dtype} {layout}", *(f"{seconds:.3f}" for seconds in times)])
    print(f"\n{folder.name}, seconds per picture of 64 x 64 cells, {THREADS} threads\n")
    _print_table(["", *(f"batch {batch}" for batch in BATCHES)], rows)


def make_random_vaes(into: Path) -> list[Path]:
    """Save three VAEs with random weights that decode to pictures of full contrast."""
    diffusers: Any = importlib.import_module("diffusers")
    torch.manual_seed(0)
    kl_blocks = {
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    vaes: dict[str, Any] = {
        "random-tiny": diffusers.AutoencoderTiny(
            encoder_block_out_channels=(32,) * 4,
            decoder_block_out_channels=(32,) * 4,
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        ),
        "random-kl": diffusers.AutoencoderKL(**kl_blocks, mid_block_add_attention=False),
        "random-kl-attention": diffusers.AutoencoderKL(**kl_blocks),
    }
    for name, vae in vaes.items():
        _stretch_contrast(vae)
        vae.save_pretrained(into / name, safe_serialization=True)
    return [into / name for name in vaes]


def _stretch_contrast(vae: Any) -> None:
    """Scale the last layer: random weights give nearly grey pictures, where few levels change."""
    tiny = type(vae).__name__ == "AutoencoderTiny"
    last = vae.decoder.layers[-1] if tiny else vae.decoder.conv_out
    with torch.no_grad():
        z = torch.randn((1, int(vae.config.latent_channels), 32, 32))
        spread = float(vae.decode(z).sample.std())
        last.weight.mul_(0.5 / spread)
        if last.bias is not None:
            last.bias.zero_()
        if tiny:  # its decoder ends with 2 x - 1
            last.bias.fill_(0.5)


def _print_table(head: list[str], rows: list[list[str]]) -> None:
    for row in (head, ["---"] + ["---:"] * (len(head) - 1), *rows):
        print("| " + " | ".join(row) + " |", flush=True)


def _run_self(folders: Sequence[Path], *arguments: str, environment: dict[str, str]) -> None:
    """Run this program again; the variables of *_QUICK* are set only if *environment* has them."""
    others = {name: value for name, value in os.environ.items() if name not in _QUICK}
    command = [sys.executable, __file__, *map(str, folders), *arguments]
    subprocess.run(command, check=True, env=others | environment)


def measure(folder: Path, *, cells: int, repeats: int) -> None:
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {THREADS} threads"
    )
    print_speed(folder, repeats=repeats)
    with tempfile.TemporaryDirectory() as scratch:
        print_bits([folder, *make_random_vaes(Path(scratch))], cells)
    print_large_bits(folder, 2 * cells)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("vae", type=Path, nargs="+", help="diffusers folder; the first is measured")
    parser.add_argument("--cells", type=int, default=32, help="cells of a latent's side")
    parser.add_argument("--repeats", type=int, default=3, help="of each timed decode")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--pictures-to", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtypes", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.pictures_to:
        for number, folder in enumerate(arguments.vae):
            made: dict[str, Any] = {**pictures(folder, arguments.cells, arguments.dtypes)}
            np.savez(_picture_file(arguments.pictures_to, number), **made)
    elif arguments.measure:
        measure(arguments.vae[0], cells=arguments.cells, repeats=arguments.repeats)
    else:
        _run_self(
            arguments.vae,
            *("--cells", str(arguments.cells), "--repeats", str(arguments.repeats), "--measure"),
            environment=_QUICK,
        )


if __name__ == "__main__":
    main()
