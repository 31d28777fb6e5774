"""Bottleneck of a continuous tokenizer: few channels, and optionally a Gaussian per latent (KL autoencoder)."""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from imtok.config import ConfigError, config
from imtok.tokenizers.quantization import Quantized, Quantizer


@config
class ContinuousConfig:
    """A bottleneck without codebook: latents are real numbers (TexTok; LDM's KL autoencoder)."""

    kind: Literal["continuous"] = "continuous"
    codebook_dim: int = 8
    """Channels of a token; the field has the same name in all bottlenecks' configs."""
    kl: bool = False
    """Sample latents from a Gaussian in training; its divergence from the standard normal is the loss `kl`."""

    def __post_init__(self) -> None:
        if self.codebook_dim < 1:
            raise ConfigError("continuous: codebook_dim must be positive")


class Continuous(Quantizer):
    """The identity or, with `kl`, a Gaussian that is sampled in training; in eval mode and with `bypass`, its mean.

    Deviation: latent diffusion's encoder outputs the variances in channels of their own; here means and log-variances
    are both linear functions of the same `codebook_dim` channels, so that all bottlenecks have the same input.

    Losses: with `kl`, the divergence from the standard normal distribution, summed over a picture's latents and
    averaged over pictures, in nats.
    """

    def __init__(self, config: ContinuousConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_sizes = ()
        self.loss_names = frozenset({"kl"} if config.kl else ())
        self.to_moments = nn.Linear(config.codebook_dim, 2 * config.codebook_dim) if config.kl else None

    def forward(self, z: Float[Tensor, "batch tokens dim"]) -> Quantized:
        if self.to_moments is None:
            return Quantized(z, None)
        mean, log_variance = self.to_moments(z).chunk(2, dim=2)
        if not self.training or self.bypass:
            return Quantized(mean, None)
        mean, log_variance = mean.float(), log_variance.float().clamp(-30, 20)
        sampled = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance) / 2
        return Quantized(sampled, None, {"kl": divergence.sum((1, 2)).mean()})

    def lookup(self, codes: Int[Tensor, "batch tokens codebooks"]) -> Float[Tensor, "batch tokens dim"]:
        raise TypeError("a continuous tokenizer has no codes")
