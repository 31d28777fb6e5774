"""Which device this process computes on, and how it finds the others (torchrun)."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from imtok.config import ConfigError
from imtok.layers.collective import best_device


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the processes that torchrun started, if it did; yields the device to compute on."""
    device = best_device()
    joined = "RANK" in os.environ and not dist.is_initialized()
    if joined:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        if joined:
            dist.destroy_process_group()


def share_of_batch(global_batch_size: int, world_size: int, micro_batch_size: int | None) -> tuple[int, int]:
    """Pictures per rank, and in how many passes.

    Returns:
        Size of a pass and number of passes.

    Raises:
        ConfigError: the sizes do not divide.
    """
    share, rest = divmod(global_batch_size, world_size)
    if rest or not share:
        raise ConfigError(
            f"training: a global batch of {global_batch_size} cannot be cut into {world_size} equal parts"
        )
    size = min(micro_batch_size or share, share)
    if share % size:
        raise ConfigError(f"training: micro_batch_size {size} does not divide the {share} pictures of a process")
    return size, share // size
