"""The device of this process, its process group (torchrun), and collective operations over all ranks.

In a single process the operations are the identity.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def best_device() -> torch.device:
    """Return this process's CUDA device, else MPS (single process only: gloo cannot reduce on it), else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    apple = torch.backends.mps.is_available() and "RANK" not in os.environ
    return torch.device("mps" if apple else "cpu")


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the process group if torchrun started this process; yield the device to compute on."""
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


def has_process_group() -> bool:
    """Return whether this process has joined a process group, even if it is the only member."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Return this process's rank; 0 in a single process."""
    return dist.get_rank() if has_process_group() else 0


def world_size() -> int:
    """Return the number of ranks; 1 in a single process."""
    return dist.get_world_size() if has_process_group() else 1


def barrier() -> None:
    """Wait until every rank has reached this call."""
    if world_size() > 1:
        dist.barrier()


@torch.no_grad()
def sum_over_ranks(tensors: Sequence[Tensor], bucket_elements: int = 1 << 25) -> None:
    """Replace each tensor by its sum over all ranks, in place, in few large messages.

    The result is bitwise identical on every rank. Tensors of one dtype share a message of at most
    `bucket_elements` elements (128 MiB in fp32), so the extra memory is bounded.

    Args:
        tensors: tensors of the same shapes in the same order on every rank.
        bucket_elements: maximum number of elements in a message that several tensors share.
    """
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    for tensor in tensors:
        full = sum(t.numel() for t in bucket) + tensor.numel() > bucket_elements
        if bucket and (full or tensor.dtype != bucket[0].dtype):
            _sum_bucket(bucket)
            bucket = []
        bucket.append(tensor)
    if bucket:
        _sum_bucket(bucket)


@torch.no_grad()
def gather_over_ranks(tensor: Tensor) -> Tensor:
    """Concatenate the rows of all ranks, in rank order; every rank must have as many. No gradient flows back."""
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)


class ObjectGroup:
    """A group of all ranks that exchanges Python objects over gloo, whatever backend is used for tensors."""

    def __init__(self) -> None:
        group = dist.new_group(backend="gloo") if world_size() > 1 and dist.get_backend() != "gloo" else None
        self._group = group if isinstance(group, dist.ProcessGroup) else None

    def gather(self, value: Any) -> list[Any]:
        """Return the objects of all ranks, in rank order, on every rank."""
        if world_size() == 1:
            return [value]
        gathered: list[Any] = [None] * world_size()
        dist.all_gather_object(gathered, value, self._group)
        return gathered


def mean_over_ranks(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over all ranks, in place."""
    sum_over_ranks(tensors)
    for tensor in tensors:
        tensor.div_(world_size())


def _sum_bucket(bucket: Sequence[Tensor]) -> None:
    flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
    dist.all_reduce(flat)
    for tensor, summed in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
        tensor.copy_(summed.view_as(tensor))
