"""Factorized quantization: k small codebooks instead of a large one (FQGAN, section 3.2)."""

from itertools import combinations
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from imtok.config import ConfigError, config
from imtok.tokenizers.ema_vq import EMAVectorQuantizer, EMAVQConfig
from imtok.tokenizers.quantization import Quantized, Quantizer
from imtok.tokenizers.vq import VectorQuantizer, VQConfig


@config
class FactorizedVQConfig:
    """k codebooks, each of which quantizes its own channels of a vector (FQGAN eq. 5 and 6)."""

    kind: Literal["factorized"] = "factorized"
    codebook_sizes: tuple[int, ...] = (16_384, 16_384)
    """Number of entries of each sub-codebook; there may be any number of sub-codebooks, of any sizes."""
    sub_dim: int = 8
    """Channels of each branch."""
    normalize: bool = True
    entropy_temperature: float = 0.01
    """See `VQConfig`; only used with `update = "gradient"`."""
    update: Literal["gradient", "ema"] = "gradient"
    """How the codebooks are trained: by the codebook loss (FQGAN), or as running means with restart (InsightTok)."""

    def __post_init__(self) -> None:
        if not self.codebook_sizes:
            raise ConfigError("factorized: codebook_sizes is empty; name at least one size")
        if min(self.codebook_sizes) < 1 or self.sub_dim < 1:
            raise ConfigError("factorized: codebook_sizes and sub_dim must be positive")

    @property
    def codebook_dim(self) -> int:
        """Channels of all branches together."""
        return self.sub_dim * len(self.codebook_sizes)

    def branches(self) -> list[VQConfig | EMAVQConfig]:
        """Return the config of each branch's quantizer."""
        common: dict[str, Any] = {"codebook_dim": self.sub_dim, "normalize": self.normalize}
        if self.update == "ema":
            return [EMAVQConfig(codebook_size=size, **common) for size in self.codebook_sizes]
        common["entropy_temperature"] = self.entropy_temperature
        return [VQConfig(codebook_size=size, **common) for size in self.codebook_sizes]


class FactorizedQuantizer(Quantizer):
    """Each branch looks up its own channels in its own codebook; the results are concatenated.

    The losses of the branches' quantizers are averaged. `disentangle` (eq. 7) is added for two branches or more.
    """

    def __init__(self, config: FactorizedVQConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_sizes = config.codebook_sizes
        self.branches = nn.ModuleList(
            VectorQuantizer(branch) if isinstance(branch, VQConfig) else EMAVectorQuantizer(branch)
            for branch in config.branches()
        )
        pairwise = {"disentangle"} if len(config.codebook_sizes) > 1 else set()
        self.loss_names = self.branches[0].loss_names | pairwise  # pyright: ignore[reportOperatorIssue]

    def forward(self, z: Float[Tensor, "batch tokens dim"]) -> Quantized:
        outputs: list[Quantized] = [branch(part) for branch, part in zip(self.branches, self.split(z), strict=True)]
        losses: dict[str, Tensor] = {}
        for name in outputs[0].losses:
            losses[name] = torch.stack([output.losses[name] for output in outputs]).mean()
        if self.training and len(outputs) > 1 and not self.bypass and "disentangle" not in self.skipped_losses:
            losses["disentangle"] = disentangle_loss([output.latents for output in outputs])
        latents = torch.cat([output.latents for output in outputs], dim=2)
        codes = torch.cat([output.codes for output in outputs if output.codes is not None], dim=2)
        return Quantized(latents, codes, losses)

    def start_phase(self, **changes: Any) -> None:
        super().start_phase(**changes)
        for branch in self.branches:
            branch.start_phase(**changes)  # pyright: ignore[reportCallIssue]

    def lookup(self, codes: Int[Tensor, "batch tokens codebooks"]) -> Float[Tensor, "batch tokens dim"]:
        pairs = zip(self.branches, codes.split(1, dim=2), strict=True)
        return torch.cat([branch.lookup(part) for branch, part in pairs], dim=2)  # pyright: ignore[reportCallIssue]

    def split(self, vectors: Float[Tensor, "batch tokens dim"]) -> tuple[Float[Tensor, "batch tokens sub_dim"], ...]:
        return vectors.split(self.config.sub_dim, dim=2)

    def update(self) -> dict[str, float]:
        """Update each branch (see `Quantizer.update`); names end in its number, and `codebook_used` is the minimum."""
        numbers = [branch.update() for branch in self.branches]  # pyright: ignore[reportCallIssue]
        stats = {f"{name}_{index}": value for index, branch in enumerate(numbers) for name, value in branch.items()}
        used = [branch["codebook_used"] for branch in numbers if "codebook_used" in branch]
        return stats | ({"codebook_used": min(used)} if used else {})


def disentangle_loss(branches: list[Float[Tensor, "batch tokens sub_dim"]]) -> Float[Tensor, ""]:
    """Return the mean squared cosine similarity of the branches' quantized vectors over all pairs (FQGAN eq. 7).

    Vectors at the same position are compared. Through the straight-through estimator the gradient reaches the branches'
    adapters; the codes follow by their own loss. With more than two branches all pairs have equal weight; the paper
    gives the formula for two.

    Args:
        branches: quantized vectors of each branch, with the positions in the same order.
    """
    cosines = [F.cosine_similarity(a, b, dim=-1).square().mean() for a, b in combinations(branches, 2)]
    return torch.stack(cosines).mean()
