"""Optimizers, learning rate and averaged weights."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from imtok.config import ConfigError
from imtok.layers.model import Model
from imtok.training.run import OptimizerConfig, Phase

ParamList = tuple[Tensor, ...] | list[Tensor]


def create_optimizers(
    player: str, parameters: Sequence[nn.Parameter], model: Model, config: OptimizerConfig
) -> dict[str, torch.optim.Optimizer]:
    """Create the optimizers of a player's parameters, by the names under which their state is saved.

    Their learning rate is 0; `learning_rate` gives the value to set in each step.

    Args:
        player: name of the player.
        parameters: parameters of the player.
        model: the model; Muon trains those of its hidden matrices that are among `parameters`.
        config: settings of the optimizer.

    Raises:
        ConfigError: Muon is selected and the model has no hidden matrices.
    """
    if config.algorithm == "adamw":
        return {player: create_adamw(parameters, config)}
    hidden = {id(matrix) for matrix in model.muon_parameters()}
    if not hidden:
        raise ConfigError("optimizer: muon trains the matrices of a transformer's blocks, and this model has none")
    matrices = [parameter for parameter in parameters if id(parameter) in hidden]
    others = [parameter for parameter in parameters if id(parameter) not in hidden]
    optimizers: dict[str, torch.optim.Optimizer] = {player: create_adamw(others, config)}
    if matrices:  # steps scaled to the usual size of AdamW's, so that one rate fits both
        optimizers[f"{player}_matrices"] = torch.optim.Muon(
            matrices, lr=0.0, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
    return optimizers


def create_adamw(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """Create AdamW over all parameters, with the fused kernel on CPU and CUDA."""
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameters, lr=0.0, betas=config.betas, weight_decay=config.weight_decay, fused=fused)


def learning_rate(config: OptimizerConfig, phase: Phase, step: int) -> float:
    """Return the rate at a step of a phase: linear warm-up over `warmup_share`, then cosine decay (or constant).

    Args:
        config: settings of the optimizer.
        phase: the phase; its learning rate, if set, replaces that of the optimizer.
        step: step within the phase, from 0.
    """
    full = config.learning_rate if phase.learning_rate is None else phase.learning_rate
    warmup = math.ceil(config.warmup_share * phase.steps)
    if step < warmup:
        return full * (step + 1) / warmup
    if config.schedule == "constant":
        return full
    progress = (step - warmup) / max(1, phase.steps - warmup)
    share = config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * progress))
    return full * share


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """Return a copy of the model whose parameters are an exponential moving average; buffers are copied unchanged.

    The decay of the n-th update is at most (1 + n) / (10 + n), so that the weights of the first steps soon lose their
    influence.
    """

    @torch.no_grad()
    def update(averages: ParamList, current: ParamList, updates: Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(updates)) / (10 + int(updates)))
        for average, value in zip(averages, current, strict=True):
            average.lerp_(value, share)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=False)
