"""TexTok: a one-dimensional tokenizer of two vision transformers that both hear the caption (TexTok, section 3.2)."""

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

_NEAR = 2.0
"""Distance, in patches, at which the likeness of two places has fallen to a half."""


@config
class TexTokConfig:
    """A text-conditioned tokenizer; the defaults are TexTok-Base-128 at 256 px, 176M (appendix C)."""

    kind: Literal["textok"] = "textok"
    num_latent_tokens: int = 128
    """N. With 0, which only a continuous bottleneck can have, the caption alone makes the picture: a control."""
    patch_size: int = 8
    grid_size: int = 32
    """Patches a side of the pictures that it is trained on; other grids get its positions resized."""
    dim: int = 768
    depth: int = 12
    """Blocks of each half."""
    num_heads: int = 12
    mlp_ratio: float = 4.0
    quantizer: QuantizerConfig = ContinuousConfig()
    """The bottleneck; the paper's is continuous, with 8 channels."""
    text: TextConfig | None = TextConfig()
    """None: the paper's Baseline (w/o text)."""
    start: Literal["random", "places"] = "random"
    """What it begins with. `random`: image tokens and positions are small random numbers, as in the paper. `places`:
    image tokens are the places of a coarse grid, patches the sines and cosines of theirs, and in the first half of the
    heads queries and keys are alike (Trockman & Kolter 2023), so that these look first at what is near, the others at
    everything, the caption too. All of it is learned from there on."""

    def __post_init__(self) -> None:
        if min(self.patch_size, self.grid_size, self.dim, self.depth, self.num_heads) < 1:
            raise ConfigError("textok: all sizes must be positive")
        if self.mlp_ratio <= 0:
            raise ConfigError(f"textok: mlp_ratio = {self.mlp_ratio} must be positive")
        alone = isinstance(self.quantizer, ContinuousConfig) and self.text is not None and "decoder" in self.text.where
        if self.num_latent_tokens < (0 if alone else 1):
            raise ConfigError(
                f"textok: num_latent_tokens = {self.num_latent_tokens}; at least 1, or 0 for continuous tokens and "
                "a decoder that hears text"
            )
        if self.dim % self.num_heads:
            raise ConfigError(f"textok: {self.num_heads} heads do not divide {self.dim} channels")

    @property
    def downsample_factor(self) -> int:
        """Pixels per side of a patch."""
        return self.patch_size


class TexTok(Tokenizer):
    """A ViT that keeps N tokens of a picture, and one that draws it from them; both hear the caption.

    `text` is what the frozen encoder says of the captions. Without it, or where a picture's mask is False throughout,
    a picture is encoded and decoded as by a tokenizer that knows no text.

    Deviation: the small presets `start` at places, not at random as the paper's tokens do: a small tokenizer would
    spend thousands of steps on finding out where things are.
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
                queries, keys, values = module.qkv.weight.data.chunk(3)  # each a map of its own
                for part in (queries, keys, values):
                    nn.init.xavier_uniform_(part)
                if config.start == "places":
                    near = (module.num_heads + 1) // 2 * (config.dim // module.num_heads)
                    keys[:near] = queries[:near]

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
        """The blocks of both transformers."""
        return [part for part in self.modules() if isinstance(part, Block)]

    def compile_parts(self) -> None:
        """torch.compile for both transformers; batches differ in their longest caption, so sizes are left open."""
        self.encoder.transformer.compile()
        self.decoder.transformer.compile()


class Half(nn.Module):
    """What both halves are: a transformer over their own tokens, which hears the caption where the config says so."""

    def __init__(self, config: TexTokConfig, name: Literal["encoder", "decoder"]) -> None:
        super().__init__()
        text = config.text if config.text is not None and name in config.text.where else None
        across = text is not None and text.how == "cross_attention"
        self.transformer = Transformer(config.dim, config.depth, config.num_heads, config.mlp_ratio, across)
        self.text_in = nn.Linear(text.dim, config.dim) if text is not None else None
        self.in_context = not across

    def transform(
        self, tokens: Float[Tensor, "batch tokens dim"], text: Text | None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Its own tokens after all blocks.

        Raises:
            ValueError: the text's states are not of the width that it was built for.
        """
        if self.text_in is None or text is None:
            return self.transformer(tokens)
        states, mask = text
        if states.shape[2] != self.text_in.in_features:
            raise ValueError(f"text states of {states.shape[2]} channels, expected {self.text_in.in_features}")
        words = self.text_in(states.to(self.text_in.weight))
        if not self.in_context:
            return self.transformer(tokens, context=(words, mask))
        there = torch.cat([mask.new_ones(tokens.shape[:2]), mask], dim=1)
        return self.transformer(torch.cat([tokens, words], dim=1), there)[:, : tokens.shape[1]]


class Encoder(Half):
    """Patches, learned image tokens and text; of the answer only the image tokens are kept."""

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
        kept = self.image_tokens.expand(len(images), -1, -1)
        answer = self.transform(torch.cat([patches, kept], dim=1), text)
        return self.to_latents(answer[:, patches.shape[1] :])


class Decoder(Half):
    """Learned patch tokens, projected image tokens and text; of the answer only the patches are kept."""

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
        told = self.from_latents(latents) + self.positions
        answer = self.transform(torch.cat([patches, told], dim=1), text)
        pixels = self.patches_out(answer[:, : patches.shape[1]])  # batch, patches, 3 * patch_size ** 2
        return self.unpatchify(pixels.transpose(1, 2).unflatten(2, grid_size))


def start_of_patches(config: TexTokConfig) -> Float[Tensor, "patches dim"] | None:
    """What a square grid's patches begin with, row by row; None: random numbers."""
    return _waves(config.grid_size, config.grid_size, config) if config.start == "places" else None


def start_of_tokens(config: TexTokConfig) -> Float[Tensor, "tokens dim"]:
    """What image tokens begin with; as places, the middles of as many parts of the picture, as square as can be."""
    tokens = config.num_latent_tokens
    if config.start == "random":
        return INIT_STD * torch.randn(tokens, config.dim)
    rows = max((n for n in range(1, math.isqrt(tokens) + 1) if tokens % n == 0), default=0)
    return _waves(rows, tokens // max(rows, 1), config)


def _waves(rows: int, columns: int, config: TexTokConfig) -> Float[Tensor, "places dim"]:
    """Sines and cosines of places spread evenly over the grid.

    With frequencies of an exponential distribution the likeness of two places, their dot product, falls along each axis
    as 1 / (1 + (distance / `_NEAR`)^2): it never rises again, as it would with DiT's.
    """
    side, each = config.grid_size, config.dim // 4
    frequencies = -torch.log1p(-(torch.arange(each) + 0.5) / max(each, 1)) / _NEAR
    axes = []
    for count in (rows, columns):
        places = (torch.arange(count) + 0.5) * side / max(count, 1) - 0.5  # in patches
        angles = places[:, None] * frequencies
        axes.append(torch.cat([angles.sin(), angles.cos()], dim=1))
    down, across = axes
    both = torch.cat([down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)], dim=2)
    return F.pad(both.flatten(0, 1), (0, config.dim - 4 * each))
