"""Everything that exact resume needs, as flat tensors, and back."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def collect(modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of modules (`module.NAME.…`) and optimizers (`optimizer.NAME.INDEX.…`)."""
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
    """Put back what `collect` gave.

    Raises:
        RuntimeError: a module's state does not fit.
    """
    for name, module in modules.items():
        module.load_state_dict(_below(state, f"module.{name}."))
    for name, optimizer in optimizers.items():
        optimizer.state.clear()
        for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
            values = _below(state, f"optimizer.{name}.{index}.")
            if values:
                optimizer.state[parameter] = {key: _like(parameter, value) for key, value in values.items()}


def room(
    shapes: Mapping[str, torch.Size],
    modules: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
) -> dict[str, Tensor]:
    """Tensors to read a saved state into, of the names that `collect` gave and cut up as the modules' own are now.

    Args:
        shapes: of the saved tensors.
        modules: whose state it is.
        optimizers: likewise; they may not have made a step yet.
    """
    made = {name: _beside(value) for name, value in collect(modules, {}).items()}
    for name, optimizer in optimizers.items():
        for index, parameter in enumerate(optimizer.param_groups[0]["params"]):
            for key, shape in shapes.items():
                if key.startswith(f"optimizer.{name}.{index}."):
                    made[key] = _beside(parameter) if shape == parameter.shape else torch.empty(shape)
    return made


def _beside(tensor: Tensor) -> Tensor:
    """As large: shares where they are shares, and whole tensors on the CPU, since the device is full of the others."""
    return torch.empty_like(tensor, device=None if isinstance(tensor, DTensor) else "cpu")


def _like(parameter: nn.Parameter, value: Tensor) -> Tensor:
    """A value where the optimizer made it: beside the parameter, and laid out like it, as fused kernels expect."""
    if value.shape != parameter.shape:  # the step counter
        return value.to(parameter.device)
    return torch.empty_like(parameter).copy_(value)


def _below(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
