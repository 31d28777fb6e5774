"""Base class of tokenizers, which encode pictures to latents and codes, and decode them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from imtok.layers.model import Model
from imtok.tokenizers.quantization import Quantizer
from imtok.tokenizers.text import Text, TextConfig


@dataclass(frozen=True)
class Encoding:
    """Output of `Tokenizer.encode`.

    Attributes:
        latents: latents after quantization; in training mode with the straight-through gradient.
        codes: one index per token and codebook, or None for a continuous tokenizer.
        losses: unweighted scalar losses of the quantizer (`commitment`, ...); empty in eval mode.
        grid_size: rows and columns of the padded pictures in patches of `downsample_factor` pixels, as `decode` takes
            them; also the grid of the tokens if they lie on one.
        image_size: height and width of the pictures before padding.
    """

    latents: Float[Tensor, "batch tokens channels"]
    codes: Int[Tensor, "batch tokens codebooks"] | None
    grid_size: tuple[int, int]
    image_size: tuple[int, int]
    losses: Mapping[str, Float[Tensor, ""]] = field(default_factory=dict)


class Tokenizer(Model, ABC):
    """Base class of all tokenizers: an encoder, a bottleneck, a decoder.

    Attributes:
        config: the config that the tokenizer was built from; has `downsample_factor` and `quantizer`.
        quantizer: the bottleneck.
        tokens_on_grid: whether each token corresponds to one patch of the picture.
        text_config: how the tokenizer is conditioned on captions or classes; None: it is unconditional.
    """

    config: Any
    quantizer: Quantizer
    tokens_on_grid: bool
    text_config: TextConfig | None = None

    @property
    def downsample_factor(self) -> int:
        """Pixels per side of a patch; pictures are padded to multiples of it."""
        return self.config.downsample_factor

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of entries of each codebook; empty for a continuous tokenizer."""
        return self.quantizer.codebook_sizes

    @property
    def branch_dims(self) -> tuple[int, ...]:
        """Number of latent channels per codebook; a single entry, all channels, for a continuous tokenizer."""
        branches = max(1, len(self.codebook_sizes))
        return (self.config.quantizer.codebook_dim // branches,) * branches

    def encode(self, images: Float[Tensor, "batch 3 height width"], text: Text | None = None) -> Encoding:
        """Encode pictures in [-1, 1]; they are padded to multiples of `downsample_factor` (`pad_to_multiple`)."""
        padded = pad_to_multiple(images, self.downsample_factor)
        quantized = self.quantizer(self.encode_unquantized(padded, text))
        return Encoding(
            latents=quantized.latents,
            codes=quantized.codes,
            losses=quantized.losses,
            grid_size=(padded.shape[2] // self.downsample_factor, padded.shape[3] // self.downsample_factor),
            image_size=(images.shape[2], images.shape[3]),
        )

    @abstractmethod
    def encode_unquantized(
        self, images: Float[Tensor, "batch 3 height width"], text: Text | None = None
    ) -> Float[Tensor, "batch tokens channels"]:
        """Return the input of the bottleneck for pictures that are already padded."""

    @abstractmethod
    def decode(
        self,
        latents: Float[Tensor, "batch tokens channels"],
        text: Text | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch 3 height width"]:
        """Decode latents to pictures; the values are not clamped.

        Args:
            latents: latents as returned by `encode`.
            text: text states and their mask, for a tokenizer that is conditioned on text.
            grid_size: rows and columns of the picture in patches; None: a square grid whose size follows from the
                number of tokens or, for tokens that lie on no grid, is that of the training pictures.

        Raises:
            ValueError: the number of tokens does not fit the grid or the tokenizer.
        """

    def lookup(self, codes: Int[Tensor, "batch tokens codebooks"]) -> Float[Tensor, "batch tokens channels"]:
        """Return the latents of the given codes.

        Raises:
            TypeError: the tokenizer is continuous.
        """
        return self.quantizer.lookup(codes)

    def split(self, latents: Float[Tensor, "batch tokens channels"]) -> tuple[Float[Tensor, "batch tokens _"], ...]:
        """Split latents into the channels of each codebook; a single part for one codebook or none."""
        return self.quantizer.split(latents)

    def keep_codebook(
        self, latents: Float[Tensor, "batch tokens channels"], codebook: int
    ) -> Float[Tensor, "batch tokens channels"]:
        """Set the channels of all other codebooks to zero, to show what one codebook has learned (FQGAN, Figure 3).

        Raises:
            ValueError: there is no such codebook.
        """
        parts = self.split(latents)
        if not 0 <= codebook < len(parts):
            raise ValueError(f"there are {len(parts)} codebooks, counted from 0, and no {codebook}")
        return torch.cat(
            [part if index == codebook else torch.zeros_like(part) for index, part in enumerate(parts)], dim=2
        )

    def decode_codes(
        self,
        codes: Int[Tensor, "batch tokens codebooks"],
        text: Text | None = None,
        grid_size: tuple[int, int] | None = None,
    ) -> Float[Tensor, "batch 3 height width"]:
        """Decode codes to pictures; in eval mode identical to `decode(encode(images).latents)`."""
        return self.decode(self.lookup(codes), text, grid_size)

    @torch.no_grad()
    def reconstruct(
        self, images: Float[Tensor, "batch 3 height width"], text: Text | None = None
    ) -> Float[Tensor, "batch 3 height width"]:
        """Encode and decode pictures; return them at their original size, clamped to [-1, 1]."""
        encoding = self.encode(images, text)
        height, width = encoding.image_size
        decoded = self.decode(encoding.latents, text, encoding.grid_size)
        return decoded[:, :, :height, :width].clamp(-1, 1)

    @property
    def bits_per_token(self) -> float:
        """Information in one token, in bits: the sum of log2 of the codebook sizes (InsightTok eq. 16).

        For a continuous tokenizer 32 bits per channel, by convention (InsightTok, Table 10).
        """
        if not self.codebook_sizes:
            return 32.0 * sum(self.branch_dims)
        return sum(math.log2(size) for size in self.codebook_sizes)


def pad_to_multiple(
    images: Float[Tensor, "batch 3 height width"], multiple: int
) -> Float[Tensor, "batch 3 padded_height padded_width"]:
    """Repeat the last row and column until height and width are multiples of `multiple`.

    Raises:
        ValueError: height or width is 0.
    """
    height, width = images.shape[-2:]
    if height == 0 or width == 0:
        raise ValueError(f"cannot tokenize a picture of {width} x {height} pixels")
    bottom, right = -height % multiple, -width % multiple
    return F.pad(images, (0, right, 0, bottom), mode="replicate") if bottom or right else images


def grid_from_tokens(tokens: int, grid_size: tuple[int, int] | None) -> tuple[int, int]:
    """Return the grid of the given number of tokens: `grid_size`, or a square grid if it is None.

    Raises:
        ValueError: the number of tokens does not match the grid.
    """
    height, width = grid_size or (int(tokens**0.5),) * 2
    if height * width != tokens:
        wanted = f"a grid of {height} x {width}" if grid_size else "a square grid; give grid_size"
        raise ValueError(f"{tokens} tokens do not fill {wanted}")
    return height, width
