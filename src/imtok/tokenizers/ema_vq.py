"""Vector quantization with a codebook of exponential moving averages (InsightTok, appendix B)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from imtok.config import ConfigError, config
from imtok.layers.collective import rank, sum_over_ranks, world_size
from imtok.layers.precision import upcast
from imtok.tokenizers.quantization import Quantized, Quantizer, nearest_codes

_POOL_ROWS = 1 << 16
"""Maximum number of vectors kept per step and rank, from which dead codes are restarted."""
_MIN_COUNT = 1e-12
"""Running count up to which a code is not updated, as its mean is lost to rounding."""


@config
class EMAVQConfig:
    """EMA vector quantization with random restart (InsightTok, appendix B)."""

    kind: Literal["ema_vq"] = "ema_vq"
    codebook_size: int = 16_384
    """Number of codes, K."""
    codebook_dim: int = 256
    """Channels of a code, d."""
    normalize: bool = True
    """Search on the unit sphere. Not mentioned in the paper, but done by the authors' released model."""
    decay: float = 0.99
    """1 - mu of eq. 13; the paper gives no value, the released model uses 0.99."""
    restart_threshold: float = 0.125
    """A code is dead when its running count is below this share of the mean count; 0 disables restarts."""

    def __post_init__(self) -> None:
        if self.codebook_size < 1 or self.codebook_dim < 1 or not 0 <= self.decay < 1 or self.restart_threshold < 0:
            raise ConfigError(
                "ema_vq: codebook_size and codebook_dim must be positive, decay in [0, 1), restart_threshold 0 or more"
            )


class EMAVectorQuantizer(Quantizer):
    """Codebook of running cluster means (InsightTok eq. 11 to 14); dead codes are restarted from vectors of the batch.

    Deviation: the paper restarts a code when its running count N_k < 1, an absolute count. At its batch size (512
    pictures of 256 tokens for 16,384 codes: 8 vectors per code) that is an eighth of the mean count, which is the
    criterion here, so that a small batch does not restart the whole codebook at every step. A restarted code is given
    the mean count, so that it is not dead again at once.

    The search runs in fp32 regardless of autocast. `update` applies the statistics of all micro-batches and ranks at
    once, and all ranks restart codes from the same vectors.
    """

    codebook: Tensor

    def __init__(self, config: EMAVQConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_sizes = (config.codebook_size,)
        codebook = torch.randn(config.codebook_size, config.codebook_dim)
        self.register_buffer("codebook", F.normalize(codebook, dim=-1) if config.normalize else codebook)
        self.statistics = CodebookStatistics(config.codebook_size, config.codebook_dim)
        self.register_load_state_dict_post_hook(_restart_missing_statistics)
        self.restart_statistics()
        self._pending: tuple[Tensor, Tensor] | None = None  # counts and sums over the step's micro-batches so far
        self._pool: list[Tensor] = []

    def restart_statistics(self) -> None:
        """Reset the running statistics, as if every code were used once per step."""
        self.statistics.count.fill_(1.0)
        self.statistics.sum.copy_(self.codebook)

    def forward(self, z: Float[Tensor, "batch tokens dim"]) -> Quantized:
        with torch.autocast(z.device.type, enabled=False):
            z, codebook = upcast(z), upcast(self.codebook)
            if self.config.normalize:
                z = F.normalize(z, dim=-1)
            flat = z.detach().flatten(0, 1)  # vectors, d
            codes = nearest_codes(flat, codebook, self.config.normalize)
            quantized = F.embedding(codes, codebook).view_as(z)
            if not self.training:
                return Quantized(quantized.to(self.codebook), codes.view(*z.shape[:2], 1))
            if torch.is_grad_enabled() and not self.frozen:
                self._accumulate(flat, codes)
            losses = {} if self.bypass else {"commitment": F.mse_loss(z, quantized)}
            latents = z if self.bypass else z + (quantized - z).detach()
            return Quantized(latents, codes.view(*z.shape[:2], 1), losses)

    def lookup(self, codes: Int[Tensor, "batch tokens 1"]) -> Float[Tensor, "batch tokens dim"]:
        return F.embedding(codes.squeeze(-1), self.codebook)

    def _accumulate(self, flat: Tensor, codes: Tensor) -> None:
        count = torch.bincount(codes, minlength=len(self.codebook)).to(flat.dtype)
        total = torch.zeros_like(self.codebook).index_add_(0, codes, flat)
        if self._pending is not None:
            count, total = count + self._pending[0], total + self._pending[1]
        self._pending = count, total
        room = _POOL_ROWS - sum(len(rows) for rows in self._pool)
        if room > 0:
            self._pool.append(flat[:room])

    @torch.no_grad()
    def update(self) -> dict[str, float]:
        if self._pending is None:
            return {}
        (count, total), pool = self._pending, torch.cat(self._pool)
        self._pending, self._pool = None, []
        sum_over_ranks([count, total])
        statistics, mu = self.statistics, 1 - self.config.decay
        statistics.updates += 1
        if self.bypass:  # until quantization starts, resample the codebook from the encoder's outputs
            dead = torch.arange(len(self.codebook), device=count.device)
            statistics.count.fill_(count.mean().item())
        else:
            statistics.count.lerp_(count, mu)
            statistics.sum.lerp_(total, mu)
            threshold = self.config.restart_threshold * statistics.count.mean()
            dead = (statistics.count < threshold).nonzero().squeeze(1)
        if len(dead):
            sampled = self._sample(pool, len(dead))
            statistics.count[dead] = statistics.count.mean()
            statistics.sum[dead] = sampled * statistics.count[dead, None]
        means = statistics.sum / statistics.count.clamp_min(_MIN_COUNT)[:, None]
        means = F.normalize(means, dim=-1) if self.config.normalize else means
        self.codebook.copy_(torch.where(statistics.count[:, None] > _MIN_COUNT, means, self.codebook))
        used = torch.count_nonzero(count).item() / min(len(count), count.sum().item())
        return {"codebook_used": used, "codebook_restarts": 0.0 if self.bypass else float(len(dead))}

    def _sample(self, pool: Float[Tensor, "rows dim"], number: int) -> Float[Tensor, "number dim"]:
        """Sample vectors of the global batch, the same on every rank; each rank contributes the rows that it holds."""
        generator = torch.Generator().manual_seed(int(self.statistics.updates.item()))
        rows = torch.zeros(world_size(), dtype=torch.int64, device=pool.device)
        rows[rank()] = len(pool)
        sum_over_ranks([rows])
        available = int(rows.sum().item())
        if available >= number:
            chosen = torch.randperm(available, generator=generator)[:number]
        else:
            chosen = torch.randint(available, (number,), generator=generator)
        local = chosen.to(pool.device) - rows[: rank()].sum()
        is_local = (local >= 0) & (local < len(pool))
        sampled = torch.where(is_local[:, None], pool[local.clamp(0, len(pool) - 1)], 0.0)
        sum_over_ranks([sampled])
        if available < number:  # several codes get the same vector: noise makes them differ
            noise = torch.randn(sampled.shape, generator=generator).to(sampled)
            sampled += noise * (0.01 / sampled.shape[1] ** 0.5)
        return sampled


class CodebookStatistics(nn.Module):
    """Running count N_k and sum S_k of each code (InsightTok eq. 13), and the number of updates."""

    count: Tensor
    sum: Tensor
    updates: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones(codebook_size))
        self.register_buffer("sum", torch.zeros(codebook_size, codebook_dim))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))


def _restart_missing_statistics(module: EMAVectorQuantizer, incompatible: Any) -> None:
    """Accept weights without statistics, which inference does not need; training restarts them."""
    absent = [key for key in incompatible.missing_keys if ".statistics." in f".{key}"]
    if absent:
        module.restart_statistics()
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in absent]
