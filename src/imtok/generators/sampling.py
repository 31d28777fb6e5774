"""From logits to codes: guidance, temperature, top-k, top-p, and noise from each picture's own seed."""

import dataclasses
import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from imtok.config import ConfigError, config, from_dict, to_dict
from imtok.layers.precision import upcast

GuidanceSchedule = Literal["constant", "linear", "cosine"]


@config
class BaseSamplingConfig:
    """Base class of sampling settings, for any kind of generator."""

    def replace(self, **changes: Any) -> "BaseSamplingConfig":
        """Return a copy with some fields changed.

        Raises:
            ConfigError: a field is unknown, or its value is invalid; the message is one line.
        """
        names = {field.name for field in dataclasses.fields(self)}
        if unknown := changes.keys() - names:
            raise ConfigError(f"no setting of sampling is called {min(unknown)}; there are {', '.join(sorted(names))}")
        return from_dict(type(self), to_dict(self) | changes, "sampling")


@config
class SamplingConfig(BaseSamplingConfig):
    """Sampling settings of a generator of codes."""

    guidance_scale: tuple[float, ...] = (1.0,)
    """Scale of classifier-free guidance: one for all codebooks, or one for each. 1: no guidance."""
    guidance_schedule: GuidanceSchedule = "constant"
    """How the scale changes over a picture's tokens: not at all, or rising from 1, linearly or along half a cosine."""
    temperature: float = 1.0
    """0: always the most likely code."""
    top_k: int = 0
    """Sample from this many of the most likely codes only, and those as likely as the last of them; 0: from all."""
    top_p: float = 1.0
    """Sample from the smallest set of most likely codes with at least this total probability."""

    def __post_init__(self) -> None:
        if not self.guidance_scale or min(self.guidance_scale) < 0:
            raise ConfigError(f"sampling: guidance_scale = {self.guidance_scale} must be 0 or more")
        if self.temperature < 0:
            raise ConfigError(f"sampling: temperature = {self.temperature} must be 0 or more")
        if self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError("sampling: top_k must be 0 or more, and top_p in (0, 1]")

    def replace(self, **changes: Any) -> "BaseSamplingConfig":
        scale = changes.get("guidance_scale")
        if isinstance(scale, int | float):
            changes["guidance_scale"] = (float(scale),)
        return super().replace(**changes)

    @property
    def uses_guidance(self) -> bool:
        """Whether a second, unconditional pass is needed."""
        return any(scale != 1 for scale in self.guidance_scale)

    def scale(self, codebook: int, token: int, tokens: int) -> float:
        """Return the guidance scale for a codebook at a token; both are counted from 0."""
        full = self.guidance_scale[min(codebook, len(self.guidance_scale) - 1)]
        done = token / (tokens - 1) if tokens > 1 else 1.0
        rise = {"constant": 1.0, "linear": done, "cosine": (1 - math.cos(math.pi * done)) / 2}[self.guidance_schedule]
        return 1 + (full - 1) * rise


def uniform_noise(seeds: list[int], tokens: int, codebooks: int) -> Float[Tensor, "batch tokens codebooks"]:
    """Sample a number in [0, 1) for every code; a picture's numbers depend on its seed, not on other pictures."""
    shape = (tokens, codebooks)
    drawn = [torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(drawn) if drawn else torch.empty(0, *shape, dtype=torch.float64)


def classifier_free_guidance(both: Float[Tensor, "rows ..."], scale: float) -> Float[Tensor, "half_of_rows ..."]:
    """Apply classifier-free guidance to logits or predictions: u + scale (c - u), in at least fp32.

    Deviation: DiT guides the first three channels only; a token's channels have no order, so all are guided.

    Args:
        both: conditional values c in the first half of the rows, unconditional values u in the second.
        scale: guidance scale; 1 returns the conditional values.
    """
    conditional, unconditional = upcast(both).chunk(2)
    return torch.lerp(unconditional, conditional, scale)


def sample_code(
    logits: Float[Tensor, "batch codes"], noise: Float[Tensor, " batch"], settings: SamplingConfig
) -> Int[Tensor, " batch"]:
    """Sample a code for each row: the first whose cumulative probability exceeds the row's noise.

    Args:
        logits: logits of all codes, on the CPU, since the sums are in float64, which not every device supports.
        noise: uniform noise in [0, 1).
        settings: temperature, top-k and top-p.

    Raises:
        ConfigError: the largest logit of a row is NaN or infinite.
    """
    logits = logits.float()
    highest = logits.amax(1, keepdim=True)
    if not highest.isfinite().all():
        raise ConfigError("the generator outputs NaN or infinity: its weights are broken, or guidance is too strong")
    if settings.temperature < torch.finfo(torch.float32).tiny:
        return logits.argmax(1)
    logits = (logits - highest) / settings.temperature  # so that the largest stays finite
    if 0 < settings.top_k < logits.shape[1]:
        threshold = logits.topk(settings.top_k).values[:, -1:]
        logits = logits.masked_fill(logits < threshold, -torch.inf)
    if settings.top_p < 1:
        ordered, order = logits.softmax(1).sort(dim=1, descending=True)
        beyond = ordered.cumsum(1) - ordered >= settings.top_p  # the code that crosses the limit is kept
        logits = logits.masked_fill(beyond.scatter(1, order, beyond), -torch.inf)
    cumulated = logits.softmax(1).double().cumsum(1)
    wanted = noise.to(cumulated)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, wanted, right=True)[:, 0].clamp_max(logits.shape[1] - 1)
