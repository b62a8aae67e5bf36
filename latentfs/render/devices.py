"""Torch side: the devices that ``--device`` stands for on this machine."""

from __future__ import annotations

import torch

from latentfs.errors import InvalidArgumentError

__all__ = ["choose_devices"]


def choose_devices(wanted: str) -> tuple[str, ...]:
    """Return the devices for ``cpu``, ``cuda`` (all GPUs), ``cuda:N`` or ``auto``; at least one.

    ``auto`` is all GPUs where there are any, else the CPU.

    Raises:
        InvalidArgumentError: there is no such device here.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    all_gpus = tuple(f"cuda:{index}" for index in range(gpus))
    if wanted == "auto":
        return all_gpus or ("cpu",)
    if wanted == "cpu":
        return ("cpu",)
    if wanted == "cuda" and gpus:
        return all_gpus
    if wanted in all_gpus:
        return (wanted,)
    raise InvalidArgumentError(
        f"--device {wanted} is not here: PyTorch {torch.__version__} finds {gpus} GPUs; check the "
        "driver, install a PyTorch with CUDA, or use --device cpu"
    )
