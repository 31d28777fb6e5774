"""Noise that comes and goes, without any network: x_t = alpha_t x_0 + sigma_t noise, and the way back.

Times count from 0 to 1,000, whatever the path: `variance_preserving` is DDPM's chain of 1,000 steps, where time t has
gone through steps 0 to t; `straight` is rectified flow, where time t is the share t / 1,000 of noise. On both, a step
of the sampler splits what it sees into data and noise and mixes them anew with less noise. On the first this is DDIM
(Song et al., eq. 12 with eta 0), on the second Euler's method: (1 - s) x_0 + s noise = x_t + (s - t) velocity.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from imtok.config import ConfigError, config
from imtok.generators.sampling import BaseSamplingConfig

NUM_TRAIN_TIMESTEPS = 1000
"""Of the chain, and the unit of time on every path."""

NoisePath = Literal["variance_preserving", "straight"]
Prediction = Literal["v", "noise", "clean", "velocity"]
Spacing = Literal["trailing", "leading"]
GuidanceSchedule = Literal["constant", "power_cosine"]

Predict = Callable[[Float[Tensor, "batch tokens channels"], float], Float[Tensor, "batch tokens channels"]]
"""What a network says of noisy latents at a time."""


@config
class DiffusionConfig:
    """How latents turn to noise, and what is predicted of them (TexTok, appendix C)."""

    path: NoisePath = "variance_preserving"
    prediction: Prediction = "v"
    """`v` is alpha noise - sigma x_0 (Salimans and Ho), `velocity`, of rectified flow, noise - x_0."""
    beta_start: float = 1e-4
    """Share of noise that the first step of the chain adds; it grows linearly."""
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(f"diffusion: betas from {self.beta_start} to {self.beta_end} must rise within (0, 1)")
        if (self.path, self.prediction) == ("straight", "noise"):
            raise ConfigError("diffusion: at the end of a straight path all is noise, which then says nothing of data")


@config
class DiffusionSamplingConfig(BaseSamplingConfig):
    """How latents are drawn."""

    num_inference_steps: int = 250
    spacing: Spacing = "trailing"
    """Which of the 1,000 times are visited: the last one is, or the first one is."""
    guidance_scale: float = 1.0
    """Of classifier-free guidance, on all channels. 1: no guidance."""
    guidance_schedule: GuidanceSchedule = "constant"
    """`power_cosine` rises from 1 at pure noise to the scale at the end (MDT)."""
    guidance_power: float = 4.0
    """s of the power-cosine schedule: how late it rises."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_inference_steps <= NUM_TRAIN_TIMESTEPS:
            raise ConfigError(
                f"sampling: num_inference_steps = {self.num_inference_steps} must be 1 to {NUM_TRAIN_TIMESTEPS}"
            )
        if self.guidance_scale < 0:
            raise ConfigError(f"sampling: guidance_scale = {self.guidance_scale} must be 0 or more")
        if self.guidance_power <= 0:
            raise ConfigError(f"sampling: guidance_power = {self.guidance_power} must be positive")

    def replace(self, **changes: Any) -> BaseSamplingConfig:
        scale = changes.get("guidance_scale")
        if isinstance(scale, Sequence):
            if len(scale) != 1:
                raise ConfigError(f"{len(scale)} guidance scales; latents have one for all channels")
            scale = scale[0]
        if isinstance(scale, int | float):
            changes["guidance_scale"] = float(scale)
        return super().replace(**changes)

    def scale(self, time: float) -> float:
        """Guidance at a time; MDT's is w(t) = 1 + (scale - 1) / 2 (1 - cos(pi (1 - t / 1,000)^s))."""
        if self.guidance_schedule == "constant":
            return self.guidance_scale
        rise = (1 - math.cos(math.pi * (1 - time / NUM_TRAIN_TIMESTEPS) ** self.guidance_power)) / 2
        return 1 + (self.guidance_scale - 1) * rise


class Diffusion:
    """The path between data and noise.

    Args:
        config: of the path.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        kept = np.cumprod(1 - np.linspace(config.beta_start, config.beta_end, NUM_TRAIN_TIMESTEPS))
        self._kept = np.append(kept, 1.0)  # the last, found at time -1, is before the chain's first step

    def sample_timesteps(self, count: int) -> Float[Tensor, " count"]:
        """Times for training, all alike likely."""
        if self.config.path == "straight":
            return torch.rand(count) * NUM_TRAIN_TIMESTEPS
        return torch.randint(NUM_TRAIN_TIMESTEPS, (count,)).float()

    def timesteps(self, steps: int, spacing: Spacing = "trailing") -> list[float]:
        """The times that a sampler of so many steps visits, falling, and behind them that of clean data.

        Args:
            steps: 1 to 1,000.
            spacing: `trailing` begins at the last time, `leading` ends at the first (in diffusers' words).

        Where the steps do not divide 1,000, diffusers does otherwise: its leading times stand 1000 // steps apart and
        begin too low (150 steps at 894, here at 993), and its DDIM goes from each time by as much, not to the next
        visited one.
        """
        if self.config.path == "straight":
            return [NUM_TRAIN_TIMESTEPS * (steps - index) / steps for index in range(steps + 1)]
        first = -1 if spacing == "trailing" else 0
        offset = 1 if spacing == "trailing" else 0
        visited = [round(NUM_TRAIN_TIMESTEPS * (index + offset) / steps) + first for index in reversed(range(steps))]
        return [*map(float, visited), -1.0]

    def alpha_sigma(self, times: Float[Tensor, "*batch"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Alpha and sigma, the shares of data and noise, in fp32."""
        if self.config.path == "straight":
            sigma = times.cpu().double() / NUM_TRAIN_TIMESTEPS
            alpha = 1 - sigma
        else:
            kept = torch.from_numpy(self._kept)[times.long().cpu()]
            alpha, sigma = kept.sqrt(), (1 - kept).sqrt()
        return alpha.float().to(times.device), sigma.float().to(times.device)

    def add_noise(
        self,
        clean: Float[Tensor, "batch tokens channels"],
        noise: Float[Tensor, "batch tokens channels"],
        times: Float[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch tokens channels"], Float[Tensor, "batch tokens channels"]]:
        """Noisy latents at the times, and what is to be predicted of them."""
        alpha, sigma = (level[:, None, None] for level in self.alpha_sigma(times))
        return alpha * clean + sigma * noise, prediction_target(self.config.prediction, clean, noise, alpha, sigma)

    def sample(
        self,
        predict: Predict,
        noise: Float[Tensor, "batch tokens channels"],
        steps: int,
        spacing: Spacing = "trailing",
        progress: Callable[[float], object] = lambda share: None,
    ) -> Float[Tensor, "batch tokens channels"]:
        """From noise to data, without any more randomness."""
        noisy = noise
        for time, following in itertools.pairwise(self.timesteps(steps, spacing)):
            now, after = (self.alpha_sigma(torch.tensor(one)) for one in (time, following))
            clean, noise = predicted_clean_and_noise(self.config.prediction, noisy, predict(noisy, time), *now)
            noisy = after[0] * clean + after[1] * noise
            progress(1 / steps)
        return noisy


def prediction_target(prediction: Prediction, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What is to be predicted of a mixture alpha clean + sigma noise; all shapes broadcast."""
    if prediction == "v":
        return alpha * noise - sigma * clean
    if prediction == "velocity":
        return noise - clean
    return noise if prediction == "noise" else clean


def predicted_clean_and_noise(
    prediction: Prediction, noisy: Tensor, predicted: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """The clean data and the noise in a mixture, after what was predicted of it: the inverse of `prediction_target`."""
    if prediction == "v":
        size = alpha.square() + sigma.square()
        return (alpha * noisy - sigma * predicted) / size, (sigma * noisy + alpha * predicted) / size
    if prediction == "velocity":
        size = alpha + sigma
        return (noisy - sigma * predicted) / size, (noisy + alpha * predicted) / size
    if prediction == "noise":
        return (noisy - sigma * predicted) / alpha, predicted
    return predicted, (noisy - alpha * predicted) / sigma


def gaussian_noise(seeds: Sequence[int], tokens: int, channels: int) -> Float[Tensor, "batch tokens channels"]:
    """Standard normal noise for every picture: its seed's alone, whatever else is in the batch."""
    drawn = [torch.randn(tokens, channels, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn) if drawn else torch.empty(0, tokens, channels)
