"""TexTok: a one-dimensional tokenizer of two vision transformers conditioned on captions (TexTok, section 3.2)."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imtok.config import ConfigError, config
from imtok.layers.positions import INIT_STD, LearnedPositionEmbedding
from imtok.layers.transformer import Attention, Block, Transformer
from imtok.tokenizers.base import Tokenizer
from imtok.tokenizers.continuous import ContinuousConfig
from imtok.tokenizers.quantizers import QuantizerConfig, build_quantizer
from imtok.tokenizers.text import Text, TextConfig

_HALF_DISTANCE = 2.0
"""Distance, in patches, at which the similarity of two position embeddings has fallen to one half."""


@config
class TexTokConfig:
    """A text-conditioned tokenizer; the defaults are TexTok-Base-128 at 256 px, 176M (appendix C)."""

    kind: Literal["textok"] = "textok"
    num_latent_tokens: int = 128
    """N. 0 is allowed for a continuous bottleneck only: the picture is decoded from the caption alone, as a control."""
    patch_size: int = 8
    grid_size: int = 32
    """Patches per side of the training pictures; for other grids the position embeddings are resized."""
    dim: int = 768
    depth: int = 12
    """Number of blocks of the encoder, and of the decoder."""
    num_heads: int = 12
    mlp_ratio: float = 4.0
    quantizer: QuantizerConfig = ContinuousConfig()
    """The bottleneck; the paper's is continuous, with 8 channels."""
    text: TextConfig | None = TextConfig()
    """None: the paper's Baseline (w/o text)."""
    start: Literal["random", "places"] = "random"
    """Initialization. `random`: image tokens and position embeddings are small random numbers, as in the paper.
    `places`: patches start with sine-cosine embeddings of their positions, image tokens with those of a coarse grid,
    and in the first half of the heads queries and keys have equal weights (Trockman & Kolter 2023), so that these heads
    initially attend to nearby positions, the others to everything including the caption. All of this is trained."""

    def __post_init__(self) -> None:
        if min(self.patch_size, self.grid_size, self.dim, self.depth, self.num_heads) < 1:
            raise ConfigError("textok: all sizes must be positive")
        if self.mlp_ratio <= 0:
            raise ConfigError(f"textok: mlp_ratio = {self.mlp_ratio} must be positive")
        alone = isinstance(self.quantizer, ContinuousConfig) and self.text is not None and "decoder" in self.text.where
        if self.num_latent_tokens < (0 if alone else 1):
            raise ConfigError(
                f"textok: num_latent_tokens = {self.num_latent_tokens}; at least 1, or 0 for continuous tokens and "
                "a decoder that is conditioned on text"
            )
        if self.dim % self.num_heads:
            raise ConfigError(f"textok: {self.num_heads} heads do not divide {self.dim} channels")

    @property
    def downsample_factor(self) -> int:
        """Pixels per side of a patch."""
        return self.patch_size


class TexTok(Tokenizer):
    """A ViT encoder that outputs N tokens of a picture and a ViT decoder, both conditioned on the caption.

    `text` holds the frozen text encoder's states of the captions. Without it, or for a picture whose mask is False
    throughout, encoding and decoding are unconditional.

    Deviation: the small presets use `start` = `places`, not `random` as in the paper: a small tokenizer would spend
    thousands of steps on learning positions.
    """

    tokens_on_grid = False

    def __init__(self, config: TexTokConfig) -> None:
        super().__init__()
        self.config = config
        self.text_config = config.text
        self.encoder = Encoder(config)
        self.quantizer = build_quantizer(config.quantizer)
        self.decoder = Decoder(config)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Attention):
                queries, keys, values = module.qkv.weight.data.chunk(3)  # initialized separately, as three projections
                for part in (queries, keys, values):
                    nn.init.xavier_uniform_(part)
                if config.start == "places":
                    local_channels = (module.num_heads + 1) // 2 * (config.dim // module.num_heads)
                    keys[:local_channels] = queries[:local_channels]

    def encode_unquantized(
        self, images: Float[Tensor, "batch 3 height width"], text: Text | None = None
    ) -> Float[Tensor, "batch tokens channels"]:
        return self.encoder(images, text)

    def decode(
        self,
        latents: Float[Tensor, "batch tokens channels"],
        text: Text | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch 3 height width"]:
        if latents.shape[1] != self.config.num_latent_tokens:
            raise ValueError(f"{latents.shape[1]} tokens, expected {self.config.num_latent_tokens}")
        return self.decoder(latents, text, grid_size or (self.config.grid_size,) * 2)

    def stages(self) -> list[nn.Module]:
        """Return the blocks of both transformers."""
        return [part for part in self.modules() if isinstance(part, Block)]

    def compile_parts(self) -> None:
        """Compile both transformers (torch.compile); sizes stay dynamic, as batches differ in their longest caption."""
        self.encoder.transformer.compile()
        self.decoder.transformer.compile()


class Half(nn.Module):
    """Common part of encoder and decoder: a transformer, conditioned on the caption if the config names this half."""

    def __init__(self, config: TexTokConfig, name: Literal["encoder", "decoder"]) -> None:
        super().__init__()
        text = config.text if config.text is not None and name in config.text.where else None
        cross_attention = text is not None and text.how == "cross_attention"
        self.transformer = Transformer(config.dim, config.depth, config.num_heads, config.mlp_ratio, cross_attention)
        self.text_in = nn.Linear(text.dim, config.dim) if text is not None else None
        self.in_context = not cross_attention

    def transform(
        self, tokens: Float[Tensor, "batch tokens dim"], text: Text | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Return the given tokens after all blocks, without the text tokens.

        Raises:
            ValueError: the text states do not have the configured number of channels.
        """
        if self.text_in is None or text is None:
            return self.transformer(tokens)
        states, mask = text
        if states.shape[2] != self.text_in.in_features:
            raise ValueError(f"text states of {states.shape[2]} channels, expected {self.text_in.in_features}")
        text_tokens = self.text_in(states.to(self.text_in.weight))
        if not self.in_context:
            return self.transformer(tokens, context=(text_tokens, mask))
        joint_mask = torch.cat([mask.new_ones(tokens.shape[:2]), mask], dim=1)
        return self.transformer(torch.cat([tokens, text_tokens], dim=1), joint_mask)[:, : tokens.shape[1]]


class Encoder(Half):
    """Transformer over patches, learned image tokens and text; of its output only the image tokens are kept."""

    def __init__(self, config: TexTokConfig) -> None:
        super().__init__(config, "encoder")
        self.patches_in = nn.Conv2d(3, config.dim, config.patch_size, config.patch_size)
        self.positions = LearnedPositionEmbedding(config.grid_size, config.dim, start_of_patches(config))
        self.image_tokens = nn.Parameter(start_of_tokens(config))
        self.to_latents = nn.Linear(config.dim, config.quantizer.codebook_dim)

    def forward(
        self, images: Float[Tensor, "batch 3 height width"], text: Text | None
    ) -> Float[Tensor, "batch tokens codebook_dim"]:
        patches = self.patches_in(images)  # batch, dim, rows, columns
        grid = (patches.shape[2], patches.shape[3])
        patches = patches.flatten(2).transpose(1, 2) + self.positions(grid)
        image_tokens = self.image_tokens.expand(len(images), -1, -1)
        output = self.transform(torch.cat([patches, image_tokens], dim=1), text)
        return self.to_latents(output[:, patches.shape[1] :])


class Decoder(Half):
    """Transformer over learned patch tokens, projected latents and text; of its output only the patches are kept."""

    def __init__(self, config: TexTokConfig) -> None:
        super().__init__(config, "decoder")
        self.patch_tokens = LearnedPositionEmbedding(config.grid_size, config.dim, start_of_patches(config))
        self.from_latents = nn.Linear(config.quantizer.codebook_dim, config.dim)
        self.positions = nn.Parameter(start_of_tokens(config))
        self.patches_out = nn.Linear(config.dim, 3 * config.patch_size**2)
        self.unpatchify = nn.PixelShuffle(config.patch_size)

    def forward(
        self, latents: Float[Tensor, "batch tokens codebook_dim"], text: Text | None, grid_size: tuple[int, int]
    ) -> Float[Tensor, "batch 3 height width"]:
        patches = self.patch_tokens(grid_size).expand(len(latents), -1, -1)
        image_tokens = self.from_latents(latents) + self.positions
        output = self.transform(torch.cat([patches, image_tokens], dim=1), text)
        pixels = self.patches_out(output[:, : patches.shape[1]])  # batch, patches, 3 * patch_size ** 2
        return self.unpatchify(pixels.transpose(1, 2).unflatten(2, grid_size))


def start_of_patches(config: TexTokConfig) -> Float[Tensor, "patches dim"] | None:
    """Return the initial position embeddings of a square grid's patches, row by row; None: random numbers."""
    return _sine_cosine_embeddings(config.grid_size, config.grid_size, config) if config.start == "places" else None


def start_of_tokens(config: TexTokConfig) -> Float[Tensor, "tokens dim"]:
    """Return the initial values of the image tokens.

    With `places` they are embeddings of the centres of `num_latent_tokens` cells in a grid as square as possible.
    """
    tokens = config.num_latent_tokens
    if config.start == "random":
        return INIT_STD * torch.randn(tokens, config.dim)
    rows = max((n for n in range(1, math.isqrt(tokens) + 1) if tokens % n == 0), default=0)
    return _sine_cosine_embeddings(rows, tokens // max(rows, 1), config)


def _sine_cosine_embeddings(rows: int, columns: int, config: TexTokConfig) -> Float[Tensor, "places dim"]:
    """Return sine-cosine embeddings of positions spread evenly over the grid.

    The frequencies follow an exponential distribution, so that the similarity of two positions, their dot product,
    falls along each axis as 1 / (1 + (distance / `_HALF_DISTANCE`)^2): monotonically, unlike with DiT's frequencies.
    """
    side, quarter = config.grid_size, config.dim // 4
    frequencies = -torch.log1p(-(torch.arange(quarter) + 0.5) / max(quarter, 1)) / _HALF_DISTANCE
    axes = []
    for count in (rows, columns):
        positions = (torch.arange(count) + 0.5) * side / max(count, 1) - 0.5  # in patches
        angles = positions[:, None] * frequencies
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    vertical, horizontal = axes
    both = torch.cat([vertical[:, None].expand(-1, columns, -1), horizontal[None].expand(rows, -1, -1)], dim=2)
    return F.pad(both.flatten(0, 1), (0, config.dim - 4 * quarter))
