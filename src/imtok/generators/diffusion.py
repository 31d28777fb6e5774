"""Diffusion without the network: the forward process x_t = alpha_t x_0 + sigma_t noise, and deterministic sampling.

Times range from 0 to 1,000 on every path: `variance_preserving` is DDPM's chain of 1,000 steps, where x_t has passed
steps 0 to t; `straight` is rectified flow, where sigma_t = t / 1,000. On both, a step of the sampler splits x_t into
data and noise and mixes them again with less noise. On the first this is DDIM (Song et al., eq. 12 with eta 0), on the
second Euler's method: (1 - s) x_0 + s noise = x_t + (s - t) velocity, with t and s in [0, 1].
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
"""Number of steps of the chain; the range of times on every path."""

NoisePath = Literal["variance_preserving", "straight"]
Prediction = Literal["v", "noise", "clean", "velocity"]
Spacing = Literal["trailing", "leading"]
GuidanceSchedule = Literal["constant", "power_cosine"]

Predict = Callable[[Float[Tensor, "batch tokens channels"], float], Float[Tensor, "batch tokens channels"]]
"""A network's prediction for noisy latents at a time."""


@config
class DiffusionConfig:
    """The path between latents and noise, and the prediction target (TexTok, appendix C)."""

    path: NoisePath = "variance_preserving"
    prediction: Prediction = "v"
    """`v` is alpha noise - sigma x_0 (Salimans and Ho); `velocity`, of rectified flow, is noise - x_0."""
    beta_start: float = 1e-4
    """Variance of the noise that the first step of the chain adds; it grows linearly to `beta_end` at the last step."""
    beta_end: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(f"diffusion: betas from {self.beta_start} to {self.beta_end} must rise within (0, 1)")
        if (self.path, self.prediction) == ("straight", "noise"):
            raise ConfigError("diffusion: at the end of a straight path all is noise, which then says nothing of data")


@config
class DiffusionSamplingConfig(BaseSamplingConfig):
    """Sampling settings of a generator of latents."""

    num_inference_steps: int = 250
    spacing: Spacing = "trailing"
    """Which of the 1,000 times are visited: `trailing` includes the last one, `leading` the first one."""
    guidance_scale: float = 1.0
    """Scale of classifier-free guidance, on all channels. 1: no guidance."""
    guidance_schedule: GuidanceSchedule = "constant"
    """`power_cosine` rises from 1 at pure noise to the scale at the end (MDT)."""
    guidance_power: float = 4.0
    """Exponent s of the power-cosine schedule: the larger, the later the scale rises."""

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
        """Return the guidance scale at a time; MDT's is w(t) = 1 + (scale - 1) / 2 (1 - cos(pi (1 - t / 1,000)^s))."""
        if self.guidance_schedule == "constant":
            return self.guidance_scale
        rise = (1 - math.cos(math.pi * (1 - time / NUM_TRAIN_TIMESTEPS) ** self.guidance_power)) / 2
        return 1 + (self.guidance_scale - 1) * rise


class Diffusion:
    """The path between data and noise.

    Args:
        config: config of the path.
    """

    def __init__(self, config: DiffusionConfig) -> None:
        self.config = config
        alphas_cumprod = np.cumprod(1 - np.linspace(config.beta_start, config.beta_end, NUM_TRAIN_TIMESTEPS))
        self._alphas_cumprod = np.append(alphas_cumprod, 1.0)  # the last entry, at index -1, is for clean data

    def sample_timesteps(self, count: int) -> Float[Tensor, " count"]:
        """Sample times for training, uniformly."""
        if self.config.path == "straight":
            return torch.rand(count) * NUM_TRAIN_TIMESTEPS
        return torch.randint(NUM_TRAIN_TIMESTEPS, (count,)).float()

    def timesteps(self, steps: int, spacing: Spacing = "trailing") -> list[float]:
        """Return the times that a sampler visits, in descending order, followed by the time of clean data.

        If `steps` does not divide 1,000, diffusers differs: its leading times are 1000 // steps apart and begin too low
        (150 steps begin at 894, here at 993), and its DDIM steps down by that distance instead of to the next visited
        time.

        Args:
            steps: number of steps, 1 to 1,000.
            spacing: `trailing` begins at the last time, `leading` ends at the first (diffusers' terms).
        """
        if self.config.path == "straight":
            return [NUM_TRAIN_TIMESTEPS * (steps - index) / steps for index in range(steps + 1)]
        first = -1 if spacing == "trailing" else 0
        offset = 1 if spacing == "trailing" else 0
        visited = [round(NUM_TRAIN_TIMESTEPS * (index + offset) / steps) + first for index in reversed(range(steps))]
        return [*map(float, visited), -1.0]

    def alpha_sigma(self, times: Float[Tensor, "*batch"]) -> tuple[Float[Tensor, "*batch"], Float[Tensor, "*batch"]]:
        """Return alpha and sigma, the coefficients of data and noise, in float64 on the CPU."""
        if self.config.path == "straight":
            sigma = times.cpu().double() / NUM_TRAIN_TIMESTEPS
            alpha = 1 - sigma
        else:
            alphas_cumprod = torch.from_numpy(self._alphas_cumprod)[times.long().cpu()]
            alpha, sigma = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        return alpha, sigma

    def add_noise(
        self,
        clean: Float[Tensor, "batch tokens channels"],
        noise: Float[Tensor, "batch tokens channels"],
        times: Float[Tensor, " batch"],
    ) -> tuple[Float[Tensor, "batch tokens channels"], Float[Tensor, "batch tokens channels"]]:
        """Return the noisy latents at the given times, and the prediction target."""
        alpha, sigma = (level[:, None, None].to(clean) for level in self.alpha_sigma(times))
        return alpha * clean + sigma * noise, prediction_target(self.config.prediction, clean, noise, alpha, sigma)

    def sample(
        self,
        predict: Predict,
        noise: Float[Tensor, "batch tokens channels"],
        steps: int,
        spacing: Spacing = "trailing",
        progress: Callable[[float], object] = lambda share: None,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Map noise to data with the deterministic sampler."""
        noisy = noise
        for time, following in itertools.pairwise(self.timesteps(steps, spacing)):
            now, after = (self.alpha_sigma(torch.tensor(t)) for t in (time, following))
            clean, noise = predicted_clean_and_noise(self.config.prediction, noisy, predict(noisy, time), *now)
            noisy = after[0] * clean + after[1] * noise
            progress(1 / steps)
        return noisy


def prediction_target(prediction: Prediction, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Return the prediction target for the mixture alpha clean + sigma noise; all shapes broadcast."""
    if prediction == "v":
        return alpha * noise - sigma * clean
    if prediction == "velocity":
        return noise - clean
    return noise if prediction == "noise" else clean


def predicted_clean_and_noise(
    prediction: Prediction, noisy: Tensor, predicted: Tensor, alpha: Tensor, sigma: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the clean data and the noise implied by a prediction for a mixture; the inverse of `prediction_target`."""
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
    """Sample standard normal noise; a picture's noise depends on its seed, not on other pictures."""
    drawn = [torch.randn(tokens, channels, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(drawn) if drawn else torch.empty(0, tokens, channels)
