"""The convolutional VQGAN (Esser et al. 2021) that InsightTok, LlamaGen and FQGAN build on."""

from collections import OrderedDict
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imtok.config import ConfigError, config
from imtok.layers.conv import AttentionBlock, Downsample, Level, NormSwish, ResidualBlock, Upsample
from imtok.layers.model import CheckpointedSequential
from imtok.layers.positions import LearnedPositionEmbedding
from imtok.layers.transformer import Block
from imtok.tokenizers.base import Tokenizer, grid_from_tokens
from imtok.tokenizers.quantizers import EMAVQConfig, FactorizedVQConfig, QuantizerConfig, build_quantizer
from imtok.tokenizers.text import Text


@config
class AdapterConfig:
    """A feature adapter in front of each branch of a factorized quantizer (FQGAN eq. 4); its width is the encoder's."""

    depth: int = 6
    num_heads: int = 8
    mlp_ratio: float = 4.0
    grid_size: int = 16
    """Side of the grid with learned position embeddings; for other grids these are resized."""

    def __post_init__(self) -> None:
        if min(self.depth, self.num_heads, self.grid_size) < 1 or self.mlp_ratio <= 0:
            raise ConfigError("adapter: depth, num_heads, mlp_ratio and grid_size must be positive")


@config
class VQGANConfig:
    """A convolutional tokenizer; the defaults are InsightTok's 426M model (appendix E.1)."""

    kind: Literal["vqgan"] = "vqgan"
    channels: int = 256
    """Base width in channels."""
    channel_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    """Width of each level as a multiple of `channels`; every level but the last halves the resolution."""
    residual_blocks: int = 4
    """Residual blocks per level of the encoder; the decoder has one more per level."""
    attention: bool = True
    """Self-attention after each residual block of the last level, and between the two middle blocks."""
    latent_channels: int = 256
    """Channels between encoder and quantizer, and between quantizer and decoder."""
    patch_size: int = 1
    """Side of the squares of pixels that are folded into channels before the first convolution (pixel unshuffle)."""
    groups: int = 32
    """Groups of every GroupNorm. Use 8 channels per group or more: 32 groups on 32 channels are an instance norm, which
    removes the picture's mean colour, and training stalls."""
    quantizer: QuantizerConfig = EMAVQConfig()
    adapter: AdapterConfig | None = None
    """Feature adapter for each branch of a factorized quantizer; None: all branches share the encoder's features."""

    def __post_init__(self) -> None:
        sizes = (self.channels, self.residual_blocks, self.latent_channels, self.patch_size, self.groups)
        if not self.channel_multipliers or min(*sizes, *self.channel_multipliers) < 1:
            raise ConfigError("vqgan: all sizes must be at least 1, and channel_multipliers not empty")
        widths = [self.channels * multiplier for multiplier in self.channel_multipliers]
        for width in (self.channels, *widths):
            if width % self.groups:
                raise ConfigError(f"vqgan: {width} channels cannot be split into {self.groups} groups")
        if self.adapter is not None:
            if not isinstance(self.quantizer, FactorizedVQConfig):
                raise ConfigError("vqgan: adapters belong to the branches of a factorized quantizer; set its kind")
            if widths[-1] % self.adapter.num_heads:
                raise ConfigError(f"vqgan: {self.adapter.num_heads} heads do not divide {widths[-1]} adapter channels")

    @property
    def downsample_factor(self) -> int:
        """Pixels per token side."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)


class VQGAN(Tokenizer):
    """Convolutional encoder, vector quantizer of any number of codebooks, convolutional decoder.

    With one codebook it is VQGAN, LlamaGen's tokenizer or InsightTok; with k codebooks and adapters it is FQGAN; with
    a continuous bottleneck, LDM's autoencoder.
    """

    tokens_on_grid = True

    def __init__(self, config: VQGANConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        self.quantizer = build_quantizer(config.quantizer)
        self.decoder = build_decoder(config)

    def encode_unquantized(
        self, images: Float[Tensor, "batch 3 height width"], text: Text | None = None
    ) -> Float[Tensor, "batch tokens channels"]:
        return self.encoder(images).flatten(2).transpose(1, 2)

    def decode(
        self,
        latents: Float[Tensor, "batch tokens channels"],
        text: Text | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch 3 height width"]:
        grid = grid_from_tokens(latents.shape[1], grid_size)
        return self.decoder(latents.transpose(1, 2).unflatten(2, grid))

    def compile_parts(self) -> None:
        """Compile encoder and decoder with torch.compile, once for each picture size."""
        self.encoder.compile(dynamic=False)
        self.decoder.compile(dynamic=False)


def build_encoder(config: VQGANConfig) -> CheckpointedSequential:
    """Build the encoder: pictures `batch 3 height width` to unquantized vectors `batch codebook_dim h w`."""
    widths = [config.channels * m for m in config.channel_multipliers]
    last = len(widths) - 1
    parts: dict[str, nn.Module] = {}
    if config.patch_size > 1:
        parts["unshuffle"] = nn.PixelUnshuffle(config.patch_size)
    parts["conv_in"] = nn.Conv2d(3 * config.patch_size**2, config.channels, 3, padding=1)
    for index, width in enumerate(widths):
        channels = [widths[index - 1] if index else config.channels] + [width] * config.residual_blocks
        resample = None if index == last else Downsample
        parts[f"level_{index}"] = Level(channels, config.attention and index == last, config.groups, resample)
    parts["middle"] = middle(widths[last], config)
    if config.adapter is None:
        return CheckpointedSequential(OrderedDict(parts | head(widths[last], config.quantizer.codebook_dim, config)))
    assert isinstance(config.quantizer, FactorizedVQConfig)
    branches = [
        nn.Sequential(
            OrderedDict(
                {
                    "adapter": Adapter(widths[last], config.adapter),
                    **head(widths[last], config.quantizer.sub_dim, config),
                }
            )
        )
        for _ in config.quantizer.codebook_sizes
    ]
    parts["branches"] = Parallel(branches)
    return CheckpointedSequential(OrderedDict(parts))


def head(channels: int, dim: int, config: VQGANConfig) -> dict[str, nn.Module]:
    """Build the layers from features to the quantizer's input: norm, swish, 3x3 and 1x1 convolutions."""
    return {
        "norm_out": NormSwish(channels, config.groups),
        "conv_out": nn.Conv2d(channels, config.latent_channels, 3, padding=1),
        "to_latents": nn.Conv2d(config.latent_channels, dim, 1),
    }


class Adapter(nn.Module):
    """Transformer blocks over the encoder's grid, with learned position embeddings: the features of one branch."""

    def __init__(self, channels: int, config: AdapterConfig) -> None:
        super().__init__()
        self.positions = LearnedPositionEmbedding(config.grid_size, channels)
        self.norm_in = nn.LayerNorm(channels)
        self.blocks = nn.Sequential(*(Block(channels, config.num_heads, config.mlp_ratio) for _ in range(config.depth)))
        self.norm_out = nn.LayerNorm(channels)

    def forward(self, x: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch c height width"]:
        grid = (x.shape[2], x.shape[3])
        tokens = x.flatten(2).transpose(1, 2) + self.positions(grid)  # batch, tokens, c
        tokens = self.norm_out(self.blocks(self.norm_in(tokens)))
        return tokens.transpose(1, 2).unflatten(2, grid)


class Parallel(nn.ModuleList):
    """Apply every module to the same input and concatenate the outputs along the channels."""

    def forward(self, x: Float[Tensor, "batch c height width"]) -> Float[Tensor, "batch dim height width"]:
        return torch.cat([module(x) for module in self], dim=1)


def build_decoder(config: VQGANConfig) -> CheckpointedSequential:
    """Build the decoder: quantized vectors `batch codebook_dim h w` to pictures `batch 3 height width`."""
    widths = [config.channels * m for m in config.channel_multipliers]
    last = len(widths) - 1
    parts: dict[str, nn.Module] = {}
    parts["from_latents"] = nn.Conv2d(config.quantizer.codebook_dim, config.latent_channels, 1)
    parts["conv_in"] = nn.Conv2d(config.latent_channels, widths[last], 3, padding=1)
    parts["middle"] = middle(widths[last], config)
    for index in reversed(range(len(widths))):
        channels = [widths[min(index + 1, last)]] + [widths[index]] * (config.residual_blocks + 1)
        resample = Upsample if index else None
        parts[f"level_{index}"] = Level(channels, config.attention and index == last, config.groups, resample)
    parts["norm_out"] = NormSwish(widths[0], config.groups)
    parts["conv_out"] = nn.Conv2d(widths[0], 3 * config.patch_size**2, 3, padding=1)
    if config.patch_size > 1:
        parts["shuffle"] = nn.PixelShuffle(config.patch_size)
    return CheckpointedSequential(OrderedDict(parts))


def middle(channels: int, config: VQGANConfig) -> nn.Sequential:
    """Build the blocks at the lowest resolution: after the encoder's last level, or before the decoder's first."""
    attention = [AttentionBlock(channels, config.groups)] if config.attention else []
    return nn.Sequential(
        ResidualBlock(channels, channels, config.groups), *attention, ResidualBlock(channels, channels, config.groups)
    )
