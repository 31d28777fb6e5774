"""Optimizer, learning rate and averaged weights."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from imtok.training.run import OptimizerConfig, Phase

ParamList = tuple[Tensor, ...] | list[Tensor]


def create_optimizer(parameters: Iterable[nn.Parameter], config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all parameters, the fused kernel on CPU and CUDA; the rate is set by `learning_rate` each step."""
    parameters = list(parameters)
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
