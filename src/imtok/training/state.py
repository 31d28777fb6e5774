"""Convert the state that exact resume needs to flat tensors, and restore it from them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def collect(modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Return the state of modules (`module.NAME.…`) and optimizers (`optimizer.NAME.INDEX.…`)."""
    state = {f"module.{name}.{key}": value for name, m in modules.items() for key, value in m.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
            for key, value in optimizer.state.get(parameter, {}).items():
                state[f"optimizer.{name}.{index}.{key}"] = value
    return state


def restore(
    state: Mapping[str, Tensor],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> None:
    """Restore the state that `collect` returned.

    Raises:
        RuntimeError: a module's state does not fit.
    """
    for name, module in modules.items():
        module.load_state_dict(_strip_prefix(state, f"module.{name}."))
    for name, optimizer in optimizers.items():
        optimizer.state.clear()
        for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
            values = _strip_prefix(state, f"optimizer.{name}.{index}.")
            if values:
                optimizer.state[parameter] = {key: _place_like(parameter, value) for key, value in values.items()}


def room(
    shapes: Mapping[str, torch.Size],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, Tensor]:
    """Allocate the tensors to read a saved state into, named as by `collect` and sharded as the modules are now.

    Args:
        shapes: shapes of the saved tensors, by name.
        modules: modules to be restored, by name.
        optimizers: optimizers to be restored, by name; they need not have made a step yet.
    """
    tensors = {name: _allocate_like(value) for name, value in collect(modules, {}).items()}
    for name, optimizer in optimizers.items():
        for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
            for key, shape in shapes.items():
                if key.startswith(f"optimizer.{name}.{index}."):
                    tensors[key] = _allocate_like(parameter) if shape == parameter.shape else torch.empty(shape)
    return tensors


def _allocate_like(tensor: Tensor) -> Tensor:
    """Allocate a tensor of equal shape: a shard for a shard; a whole tensor on the CPU, to save device memory."""
    return torch.empty_like(tensor, device=None if isinstance(tensor, DTensor) else "cpu")


def _place_like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """Place a value as the optimizer does: on the parameter's device and in its layout, as fused kernels expect."""
    if value.shape != parameter.shape:  # the step counter
        return value.to(parameter.device)
    return torch.empty_like(parameter).copy_(value)


def _strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
