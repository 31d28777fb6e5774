"""Weights, gradients and optimizer cut up among the ranks (FSDP2), and saved so (torch.distributed.checkpoint).

The files are safetensors, each rank's own: unlike the library's default, nothing is pickled.
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
    """Give each rank its share of every weight, in place; a stage's weights come together when it computes.

    Args:
        model: of which each rank has the same copy; one with stages.
        device: where the shares go; the model may still lie elsewhere.
    """
    mesh = init_device_mesh(device.type, (world_size(),))
    for stage in model.stages():
        fully_shard(stage, mesh=mesh)
    fully_shard(model, mesh=mesh, reshard_after_forward=True)  # it may be looked at, with no backward pass to do that
    register_fsdp_forward_method(model, "sample")


def is_share(tensor: Tensor | None) -> bool:
    """Whether this rank has only a share of it."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """A tensor with the shares of all ranks, which all must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Whole tensors, in the memory of the first rank's CPU; empty on the others, which must call it too."""
    gathered = {}
    for name, tensor in tensors.items():
        full = whole(tensor)
        if rank() == 0:
            gathered[name] = full.cpu()
    return gathered


def write_resume(folder: RunFolder, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """`RunFolder.write_resume`, for all ranks together: each writes its shares.

    Raises:
        OSError: some rank cannot write.
    """
    there = folder.resume_folder(step).exists()
    barrier()  # nobody may look only when it has been written
    if there:
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
    """What `state.restore` needs, cut up as the modules are now, however many ranks saved it.

    Args:
        folder: with a state that was saved whole or in shares.
        modules: whose state it is, by name.
        optimizers: likewise.

    Raises:
        ConfigError: not a readable state, or another model's.
    """
    reader = HuggingFaceStorageReader(str(folder))
    try:
        saved = reader.read_metadata().state_dict_metadata
        shapes = {name: of.size for name, of in saved.items() if isinstance(of, TensorStorageMetadata)}
        tensors = state.room(shapes, modules, optimizers)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # it may be: one process
            load(dict(tensors), storage_reader=reader)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(f"{folder}: not a state that this run can go on from ({first_line(error)})") from None
    except CheckpointException as error:
        raise ConfigError(f"{folder}: not a state that this run can go on from ({_reason(error)})") from None
    return tensors


def _reason(error: CheckpointException) -> str:
    """What the first rank that failed says; the error itself is no Exception, but holds those of all ranks."""
    return str(next(iter(error.failures.values()))[0]).partition("\n")[0]
