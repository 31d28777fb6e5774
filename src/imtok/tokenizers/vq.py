"""Vector quantization with a codebook trained by gradient descent (VQGAN, LlamaGen, FQGAN's sub-codebooks)."""

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from imtok.config import ConfigError, config
from imtok.layers.collective import sum_over_ranks
from imtok.layers.precision import upcast
from imtok.tokenizers.quantization import Quantized, Quantizer, nearest_codes

_TINY_SHARE = 1e-20
"""Lower bound of a code's mean assignment in the entropy loss, as the gradient at 0 would be infinite."""
_ENTROPY_ELEMENTS = 1 << 24
"""Maximum number of probabilities in memory during the entropy loss (64 MiB in fp32)."""


@config
class VQConfig:
    """Vector quantization with a codebook that the optimizer trains like any other weight."""

    kind: Literal["vq"] = "vq"
    codebook_size: int = 16_384
    codebook_dim: int = 8
    normalize: bool = True
    """Vectors and codes lie on the unit sphere (LlamaGen, FQGAN)."""
    entropy_temperature: float = 0.01
    """Temperature of the softmax over negative squared distances in the entropy loss."""

    def __post_init__(self) -> None:
        if self.codebook_size < 1 or self.codebook_dim < 1 or self.entropy_temperature <= 0:
            raise ConfigError("vq: codebook_size, codebook_dim and entropy_temperature must be positive")


class VectorQuantizer(Quantizer):
    """Nearest-code quantizer whose codebook follows the vectors by a loss of its own.

    Losses: `codebook`, the mean squared distance of the codes to the vectors (gradient to the codes only);
    `commitment`, the same distance with the gradient to the vectors only; `entropy`, the mean entropy of a vector's
    soft assignment minus the entropy of the mean assignment: low when each vector is assigned with confidence and all
    codes are used equally. The search runs in fp32 regardless of autocast.
    """

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_sizes = (config.codebook_size,)
        self.loss_names = frozenset({"codebook", "commitment", "entropy"})
        codebook = torch.randn(config.codebook_size, config.codebook_dim)
        self.codebook = nn.Parameter(F.normalize(codebook, dim=-1) if config.normalize else codebook)
        self._used: Tensor | None = None  # uses of each code in the step's micro-batches so far

    def forward(self, z: Float[Tensor, "batch tokens dim"]) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            z = self._on_sphere(upcast(z))
            codebook = self._on_sphere(upcast(self.codebook))
            flat = z.flatten(0, 1)  # vectors, dim
            codes = nearest_codes(flat.detach(), codebook.detach(), self.config.normalize)
            quantized = F.embedding(codes, codebook).view_as(z)
            if not self.training:
                return Quantized(quantized.to(self.codebook), codes.view(*z.shape[:2], 1))
            if torch.is_grad_enabled():
                self._count(codes)
            losses = {"codebook": F.mse_loss(quantized, z.detach())}
            if not self.bypass:
                losses["commitment"] = F.mse_loss(z, quantized.detach())
                if "entropy" not in self.skipped_losses:
                    losses["entropy"] = entropy_loss(flat, codebook, self.config.entropy_temperature)
            latents = z if self.bypass else z + (quantized - z).detach()
            return Quantized(latents, codes.view(*z.shape[:2], 1), losses)

    def lookup(self, codes: Int[Tensor, "batch tokens 1"]) -> Float[Tensor, "batch tokens dim"]:
        return self._on_sphere(upcast(F.embedding(codes.squeeze(-1), self.codebook))).to(self.codebook)

    def _on_sphere(self, vectors: Float[Tensor, "*shape dim"]) -> Float[Tensor, "*shape dim"]:
        return F.normalize(vectors, dim=-1) if self.config.normalize else vectors

    def _count(self, codes: Int[Tensor, " vectors"]) -> None:
        used = torch.bincount(codes, minlength=self.config.codebook_size).to(torch.float32)
        self._used = used if self._used is None else self._used + used

    @torch.no_grad()
    def update(self) -> dict[str, float]:
        if self._used is None:
            return {}
        used, self._used = self._used, None
        sum_over_ranks([used])
        return {"codebook_used": torch.count_nonzero(used).item() / min(len(used), used.sum().item())}


def entropy_loss(
    vectors: Float[Tensor, "vectors dim"], codebook: Float[Tensor, "codes dim"], temperature: float
) -> Float[Tensor, ""]:
    """Return the mean entropy of the vectors' soft assignments minus the entropy of the mean assignment, in nats.

    A vector's assignment is the softmax of (minus its squared distances to the codes) / temperature.
    Computed in blocks whose probabilities are recomputed in the backward pass. The mean assignment is that of one
    forward pass on one rank, so it depends on the size of micro-batches.

    Args:
        vectors: vectors in fp32.
        codebook: codes in fp32.
        temperature: temperature of the softmax; the lower, the sharper the assignments.
    """

    def of_block(block: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
        distance = codebook.square().sum(1) - 2 * block @ codebook.T  # less |vector|^2, which the softmax cancels
        logits = -distance / temperature
        probabilities = logits.softmax(1)
        return F.cross_entropy(logits, probabilities, reduction="sum"), probabilities.sum(0)

    rows = max(1, _ENTROPY_ELEMENTS // len(codebook))
    entropies, sums = zip(
        *(checkpoint(of_block, block, codebook, use_reentrant=False) for block in vectors.split(rows)), strict=True
    )
    share = torch.stack(sums).sum(0) / len(vectors)
    return torch.stack(entropies).sum() / len(vectors) - torch.special.entr(share.clamp_min(_TINY_SHARE)).sum()
