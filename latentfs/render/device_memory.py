"""Torch side: telling when memory did not suffice, and giving back what caches hold of it."""

from __future__ import annotations

import gc

import torch

__all__ = ["free_memory", "is_out_of_memory"]

# What is said when memory can't be had: by PyTorch's allocator for CPUs, by oneDNN, by CUDA through
# other libraries.
_OUT_OF_MEMORY_WORDS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "could not create a memory",
    "could not create a primitive",
    "std::bad_alloc",
)


def is_out_of_memory(error: Exception) -> bool:
    """Whether *error* says that the memory of the device, or of the host, did not suffice."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    lower = " ".join(str(error).split())[:300].lower()
    return isinstance(error, RuntimeError) and any(words in lower for words in _OUT_OF_MEMORY_WORDS)


def free_memory() -> None:
    """Give back what caches hold, before the same is tried with less."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
