"""Sharding of weights, gradients and optimizer across the ranks (FSDP2), and their torch.distributed.checkpoint files.

Each rank writes safetensors files of its own: unlike with the library's default, nothing is pickled.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from imtok.checkpoints import RunFolder
from imtok.config import ConfigError, first_line
from imtok.layers.collective import barrier, rank, world_size
from imtok.layers.model import Model
from imtok.training import state


def shard(model: Model, device: torch.device) -> None:
    """Shard every weight across the ranks, in place; the weights of a stage are gathered when it computes.

    Args:
        model: a model with stages, the same on each rank.
        device: device of the shards; the model may be on another one.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    for stage in model.stages():
        fully_shard(stage, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # in evaluation no backward pass would reshard it
    register_fsdp_forward_method(model, "sample")


def is_share(tensor: Tensor | None) -> bool:
    """Return whether this rank has only a shard of the tensor."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """Return the full tensor, gathered from all ranks if it is sharded; all ranks must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gather full tensors in the first rank's CPU memory; empty on the other ranks, which must call this too."""
    gathered = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if rank() == 0:
            gathered[name] = full.cpu()
    return gathered


def write_resume(folder: RunFolder, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write the state as `RunFolder.write_resume` does, on all ranks: each one writes its shards.

    Raises:
        OSError: a rank cannot write.
    """
    exists = folder.resume_folder(step).exists()
    barrier()  # all ranks must have checked before it is written
    if exists:
        return
    if rank() == 0:
        folder.begin_resume(step)
    barrier()
    writer = HuggingFaceStorageWriter(str(folder.unfinished(step)), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        raise OSError(f"{folder.resume_folder(step)}: cannot be written ({_reason(error)})") from None
    if rank() == 0:
        folder.finish_resume(step, values)


def read_state(
    folder: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Read the tensors for `state.restore`, sharded as the modules are now, however many ranks saved them.

    Args:
        folder: folder with a state that was saved whole or in shards.
        modules: modules to be restored, by name.
        optimizers: optimizers to be restored, by name.

    Raises:
        ConfigError: the state cannot be read, or is that of another model.
    """
    reader = HuggingFaceStorageReader(str(folder))
    try:
        saved = reader.read_metadata().state_dict_metadata
        shapes = {name: entry.size for name, entry in saved.items() if isinstance(entry, TensorStorageMetadata)}
        tensors = state.room(shapes, modules, optimizers)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as with a single process
            load(dict(tensors), storage_reader=reader)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder}: not a state that this run can go on from ({first_line(error)})") from None
    except CheckpointException as error:
        raise ConfigError(f"{folder}: not a state that this run can go on from ({_reason(error)})") from None
    return tensors


def _reason(error: CheckpointException) -> str:
    """Return the message of the first rank that failed: the error is no Exception, but holds those of all ranks."""
    return str(next(iter(error.failures.values()))[0]).partition("\n")[0]
