"""Vector quantization with a codebook of running means (InsightTok, appendix B)."""

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
"""Vectors of one step, per rank, from which dead codes are restarted."""
_FORGOTTEN = 1e-12
"""Running count below which a code's mean is lost to rounding: it stays where it is."""


@config
class EMAVQConfig:
    """EMA vector quantization with random restart (InsightTok, appendix B)."""

    kind: Literal["ema_vq"] = "ema_vq"
    codebook_size: int = 16_384
    """K."""
    codebook_dim: int = 256
    """d."""
    normalize: bool = True
    """Search on the unit sphere. The paper does not say so; the authors' released model does."""
    decay: float = 0.99
    """1 - mu of eq. 13; the paper gives no value, the released model uses .99."""
    restart_threshold: float = 0.125
    """A code is dead when its running count falls below this share of the mean count; 0 never restarts."""

    def __post_init__(self) -> None:
        if self.codebook_size < 1 or self.codebook_dim < 1 or not 0 <= self.decay < 1 or self.restart_threshold < 0:
            raise ConfigError(
                "ema_vq: codebook_size and codebook_dim must be positive, decay in [0, 1), restart_threshold 0 or more"
            )


class EMAVectorQuantizer(Quantizer):
    """Codebook of running cluster means (InsightTok eq. 11 to 14), dead codes restarted from the batch.

    Deviation: the paper restarts a code when its running count N_k < 1, in raw counts. At its batch (512 pictures of
    256 tokens for 16,384 codes: 8 vectors a code) that is an eighth of the mean count, which is the rule here, so that
    a small batch does not redraw the whole codebook at every step. A restarted code gets the mean count, as a term of
    probation.

    The search runs in fp32 whatever autocast says. Statistics of all micro-batches and ranks are applied at once by
    `update`, and every rank draws the same vectors.
    """

    codebook: Tensor

    def __init__(self, config: EMAVQConfig) -> None:
        super().__init__()
        self.config = config
        self.codebook_sizes = (config.codebook_size,)
        codebook = torch.randn(config.codebook_size, config.codebook_dim)
        self.register_buffer("codebook", F.normalize(codebook, dim=-1) if config.normalize else codebook)
        self.statistics = CodebookStatistics(config.codebook_size, config.codebook_dim)
        self.register_load_state_dict_post_hook(_start_missing_statistics)
        self.restart_statistics()
        self._pending: tuple[Tensor, Tensor] | None = None  # counts and sums of the step's micro-batches so far
        self._pool: list[Tensor] = []

    def restart_statistics(self) -> None:
        """Forget the running statistics: every code counts as used once a step."""
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
                self._gather(flat, codes)
            losses = {} if self.bypass else {"commitment": F.mse_loss(z, quantized)}
            latents = z if self.bypass else z + (quantized - z).detach()
            return Quantized(latents, codes.view(*z.shape[:2], 1), losses)

    def lookup(self, codes: Int[Tensor, "batch tokens 1"]) -> Float[Tensor, "batch tokens dim"]:
        return F.embedding(codes.squeeze(-1), self.codebook)

    def _gather(self, flat: Tensor, codes: Tensor) -> None:
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
        if self.bypass:  # the codebook follows the encoder until quantization starts
            dead = torch.arange(len(self.codebook), device=count.device)
            statistics.count.fill_(count.mean().item())
        else:
            statistics.count.lerp_(count, mu)
            statistics.sum.lerp_(total, mu)
            threshold = self.config.restart_threshold * statistics.count.mean()
            dead = (statistics.count < threshold).nonzero().squeeze(1)
        if len(dead):
            drawn = self._draw(pool, len(dead))
            statistics.count[dead] = statistics.count.mean()
            statistics.sum[dead] = drawn * statistics.count[dead, None]
        means = statistics.sum / statistics.count.clamp_min(_FORGOTTEN)[:, None]
        means = F.normalize(means, dim=-1) if self.config.normalize else means
        self.codebook.copy_(torch.where(statistics.count[:, None] > _FORGOTTEN, means, self.codebook))
        used = torch.count_nonzero(count).item() / min(len(count), count.sum().item())
        return {"codebook_used": used, "codebook_restarts": 0.0 if self.bypass else float(len(dead))}

    def _draw(self, pool: Float[Tensor, "rows dim"], number: int) -> Float[Tensor, "number dim"]:
        """The same random vectors of the global batch on every rank; each rank contributes the rows that it holds."""
        generator = torch.Generator().manual_seed(int(self.statistics.updates.item()))
        rows = torch.zeros(world_size(), dtype=torch.int64, device=pool.device)
        rows[rank()] = len(pool)
        sum_over_ranks([rows])
        available = int(rows.sum().item())
        if available >= number:
            chosen = torch.randperm(available, generator=generator)[:number]
        else:
            chosen = torch.randint(available, (number,), generator=generator)
        mine = chosen.to(pool.device) - rows[: rank()].sum()
        held = (mine >= 0) & (mine < len(pool))
        drawn = torch.where(held[:, None], pool[mine.clamp(0, len(pool) - 1)], 0.0)
        sum_over_ranks([drawn])
        if available < number:  # the same vector serves several codes: set them apart
            noise = torch.randn(drawn.shape, generator=generator).to(drawn)
            drawn += noise * (0.01 / drawn.shape[1] ** 0.5)
        return drawn


class CodebookStatistics(nn.Module):
    """Running count N_k and sum S_k of each code (InsightTok eq. 13), and how often they were updated."""

    count: Tensor
    sum: Tensor
    updates: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones(codebook_size))
        self.register_buffer("sum", torch.zeros(codebook_size, codebook_dim))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))


def _start_missing_statistics(module: EMAVectorQuantizer, incompatible: Any) -> None:
    """Weights without statistics are complete: they are what inference needs, and training starts them anew."""
    absent = [key for key in incompatible.missing_keys if ".statistics." in f".{key}"]
    if absent:
        module.restart_statistics()
        incompatible.missing_keys[:] = [key for key in incompatible.missing_keys if key not in absent]
