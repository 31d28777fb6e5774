"""Factorized quantization: k small codebooks in place of a large one (FQGAN, section 3.2)."""

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
    """Entries of each sub-codebook; any number of them, of any sizes."""
    sub_dim: int = 8
    """Channels of each branch."""
    normalize: bool = True
    entropy_temperature: float = 0.01
    """See `VQConfig`; only for codebooks that the gradient trains."""
    update: Literal["gradient", "ema"] = "gradient"
    """How the codebooks learn: by their own loss (FQGAN), or as running means with restart (InsightTok)."""

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
        """One quantizer's config for each branch."""
        common: dict[str, Any] = {"codebook_dim": self.sub_dim, "normalize": self.normalize}
        if self.update == "ema":
            return [EMAVQConfig(codebook_size=size, **common) for size in self.codebook_sizes]
        common["entropy_temperature"] = self.entropy_temperature
        return [VQConfig(codebook_size=size, **common) for size in self.codebook_sizes]


class FactorizedQuantizer(Quantizer):
    """Each branch looks up its own channels in its own codebook; the results are concatenated.

    Losses of the branches' quantizers are averaged. `disentangle` (eq. 7) is there for two branches or more.
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
        found: list[Quantized] = [branch(part) for branch, part in zip(self.branches, self.split(z), strict=True)]
        losses: dict[str, Tensor] = {}
        for name in found[0].losses:
            losses[name] = torch.stack([one.losses[name] for one in found]).mean()
        if self.training and len(found) > 1 and not self.bypass and "disentangle" not in self.skipped_losses:
            losses["disentangle"] = disentangle_loss([one.latents for one in found])
        latents = torch.cat([one.latents for one in found], dim=2)
        codes = torch.cat([one.codes for one in found if one.codes is not None], dim=2)
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
        """As `Quantizer.update`, for each branch by number; `codebook_used` is that of the least used one."""
        numbers = [branch.update() for branch in self.branches]  # pyright: ignore[reportCallIssue]
        stats = {f"{name}_{index}": value for index, one in enumerate(numbers) for name, value in one.items()}
        used = [one["codebook_used"] for one in numbers if "codebook_used" in one]
        return stats | ({"codebook_used": min(used)} if used else {})


def disentangle_loss(branches: list[Float[Tensor, "batch tokens sub_dim"]]) -> Float[Tensor, ""]:
    """Mean squared cosine of the branches' quantized vectors at the same position, over all pairs (FQGAN eq. 7).

    Through the straight-through vectors the gradient reaches the branches' adapters; the codes follow by their own
    loss. With more than two branches the pairs count alike; the paper writes two out.

    Args:
        branches: quantized vectors of each branch, in one order of positions.
    """
    cosines = [F.cosine_similarity(a, b, dim=-1).square().mean() for a, b in combinations(branches, 2)]
    return torch.stack(cosines).mean()
