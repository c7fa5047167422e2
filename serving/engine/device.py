"""What an exception says of the device, and how its memory is given back."""

from __future__ import annotations

import gc

import torch

NO_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
"""What the CPU's allocator, CUDA beside PyTorch's cache, and its libraries say."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on any device; most allocators have no class for that."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in NO_MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether no later call of this process can succeed: an illegal access or a failed assertion on
    a GPU spoils its context for good."""
    return isinstance(error, torch.AcceleratorError) and not is_out_of_memory(error)


def release_memory() -> None:
    """Give back what is cached. The failed call's frames must be gone, or they hold its tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
