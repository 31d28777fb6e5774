"""Optimizer, learning rate and averaged weights."""

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
    """What trains a player's parameters, by the names under which its state is saved; `learning_rate` sets the rate.

    Args:
        player: its name.
        parameters: of the player.
        model: Muon gets those of its hidden matrices that are among the parameters.
        config: which algorithm.

    Raises:
        ConfigError: Muon is wanted and the model has no hidden matrices.
    """
    if config.algorithm == "adamw":
        return {player: create_adamw(parameters, config)}
    hidden = {id(matrix) for matrix in model.muon_parameters()}
    if not hidden:
        raise ConfigError("optimizer: muon trains the matrices of a transformer's blocks, and this model has none")
    matrices = [parameter for parameter in parameters if id(parameter) in hidden]
    others = [parameter for parameter in parameters if id(parameter) not in hidden]
    optimizers: dict[str, torch.optim.Optimizer] = {player: create_adamw(others, config)}
    if matrices:  # scaled as large as AdamW's steps usually are, so that one rate serves both
        optimizers[f"{player}_matrices"] = torch.optim.Muon(
            matrices, lr=0.0, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"
        )
    return optimizers


def create_adamw(parameters: Sequence[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all parameters, by the fused kernel on CPU and CUDA."""
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(parameters, lr=0.0, betas=config.betas, weight_decay=config.weight_decay, fused=fused)


def learning_rate(config: OptimizerConfig, phase: Phase, step: int) -> float:
    """Rate at a step of a phase: linear warm-up over `warmup_share`, then cosine (or constant).

    Args:
        config: of the optimizer.
        phase: may have a rate of its own.
        step: within the phase, from 0.
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
    """A copy whose parameters follow `model`'s as an exponential moving average; buffers are copied as they are.

    The n-th update decays by no more than (1 + n) / (10 + n), so that the first steps' weights are soon forgotten.
    """

    @torch.no_grad()
    def follow(averages: ParamList, current: ParamList, updates: Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(updates)) / (10 + int(updates)))
        for average, value in zip(averages, current, strict=True):
            average.lerp_(value, share)

    return AveragedModel(model, multi_avg_fn=follow, use_buffers=False)
