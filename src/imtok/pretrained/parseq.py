"""docTR's PARSeq, the text judge of InsightTok and TokBench, from a user-supplied file."""

import math
import string
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor, nn

from imtok.pretrained.networks import FrozenNetwork, load_named
from imtok.pretrained.readers import Reading

VOCABULARY = string.digits + string.ascii_letters + string.punctuation + "°£€¥¢฿" + "àâéèêëîïôùûüçÀÂÉÈÊËÎÏÔÙÛÜÇ"
"""docTR's "french" vocabulary, which its published recognizers use."""

_END, _START = len(VOCABULARY), len(VOCABULARY) + 1  # token ids after those of the characters; the padding id follows
_MAX_LENGTH = 32  # maximum number of characters per word
_BATCH = 32


class PARSeq(FrozenNetwork):
    """PARSeq (Bautista and Atienza 2022) in docTR's layout: a small ViT encoder and a decoder of one layer.

    The decoder first predicts the characters autoregressively, then refines each one in a second pass that is
    conditioned on all other characters.

    Unverified: agrees with docTR's own code on random weights; pretrained weights were not available.
    """

    reads_lines = False

    def __init__(self, dim: int = 384) -> None:
        super().__init__()
        self.feat_extractor = nn.Sequential(Patches(dim), Encoder(dim, depth=12, num_heads=6))
        self.decoder = Decoder(dim, num_heads=12)
        self.head = nn.Linear(dim, len(VOCABULARY) + 1)
        self.embed = nn.ModuleDict({"embedding": nn.Embedding(len(VOCABULARY) + 3, dim)})
        self.pos_queries = nn.Parameter(torch.zeros(1, _MAX_LENGTH + 1, dim))
        self.dim = dim

    def forward(self, images: Float[Tensor, "batch 3 32 128"]) -> Float[Tensor, "batch 33 classes"]:
        """Return logits over the vocabulary and the end token for each position, from normalized crops."""
        memory = self.feat_extractor(images)[:, 1:]  # without the class token: (batch, 128, dim)
        tokens = torch.full((len(images), 1), _START, device=images.device)
        for step in range(_MAX_LENGTH + 1):
            logits = self.head(self._decode(tokens, memory, query=slice(step, step + 1)))
            tokens = torch.cat([tokens, logits.argmax(2)], dim=1)
            if (tokens == _END).any(1).all():
                break
        context = tokens[:, :-1]
        visible = torch.ones(_MAX_LENGTH + 1, context.shape[1], dtype=torch.bool, device=images.device)
        visible.diagonal(1).fill_(False)  # mask the first pass's prediction at the same position
        before_end = (context == _END).cumsum(1) == 0
        return self.head(self._decode(context, memory, slice(None), visible & before_end[:, None, None]))

    def _decode(
        self,
        context: Int[Tensor, "batch length"],
        memory: Float[Tensor, "batch patches dim"],
        query: slice,
        mask: Bool[Tensor, "batch 1 queries length"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        content = math.sqrt(self.dim) * self.embed["embedding"](context)
        positions = F.pad(self.pos_queries[:, : context.shape[1] - 1], (0, 0, 1, 0))  # none for the start token
        queries = self.pos_queries[:, query].expand(len(context), -1, -1)
        return self.decoder(queries, content + positions, memory, mask)

    @torch.inference_mode()
    def read(self, crops: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[Reading]:
        """Read RGB crops of one word each."""
        readings = []
        for start in range(0, len(crops), _BATCH):
            batch = torch.stack([_prepare(crop) for crop in crops[start : start + _BATCH]])
            scores, classes = self(batch.to(self.pos_queries.device)).softmax(2).max(2)
            for row_scores, row_classes in zip(scores.tolist(), classes.tolist(), strict=True):
                length = row_classes.index(_END) if _END in row_classes else len(row_classes)
                text = "".join(VOCABULARY[index] for index in row_classes[:length])
                readings.append(Reading(text, float(np.mean(row_scores[:length])) if text else 0.0))
        return readings


def load_parseq(weights: Path) -> PARSeq:
    """Load a state dict of docTR's `parseq`, without two norms in older files that were never used."""
    network = PARSeq()
    load_named(network, weights, ignored=("decoder.attention_norm.", "decoder.cross_attention_norm."))
    return network


class Patches(nn.Module):
    """Embedding of patches of 4 x 8 pixels, preceded by a class token, with learned positions."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, 129, dim))
        self.projection = nn.Conv2d(3, dim, (4, 8), stride=(4, 8))

    def forward(self, images: Tensor) -> Tensor:
        patches = self.projection(images).flatten(2).transpose(1, 2)  # (batch, 128, dim)
        return torch.cat([self.cls_token.expand(len(images), -1, -1), patches], dim=1) + self.positions


class Encoder(nn.Module):
    """Pre-norm transformer whose blocks share their norms, as in docTR."""

    def __init__(self, dim: int, depth: int, num_heads: int) -> None:
        super().__init__()
        self.layer_norm_input, self.layer_norm_attention = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.layer_norm_output = nn.LayerNorm(dim)
        self.attention = nn.ModuleList(Attention(dim, num_heads) for _ in range(depth))
        self.position_feed_forward = nn.ModuleList(_perceptron(dim) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        for attention, perceptron in zip(self.attention, self.position_feed_forward, strict=True):
            normed = self.layer_norm_input(x)
            x = x + attention(normed, normed)
            x = x + perceptron(self.layer_norm_attention(x))
        return self.layer_norm_output(x)


class Decoder(nn.Module):
    """One decoder layer: position queries attend to the decoded characters, then to the picture."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads)
        self.cross_attention = Attention(dim, num_heads)
        self.position_feed_forward = _perceptron(dim)
        self.query_norm, self.content_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed_forward_norm, self.output_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)

    def forward(self, queries: Tensor, content: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        x = queries + self.attention(self.query_norm(queries), self.content_norm(content), mask)
        x = x + self.cross_attention(self.query_norm(x), memory)
        return self.output_norm(x + self.position_feed_forward(self.feed_forward_norm(x)))


class Attention(nn.Module):
    """Multi-head attention; the three linear layers project to query, key and value."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.linear_layers = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))
        self.output_linear = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, content: Tensor, mask: Tensor | None = None) -> Tensor:
        query, key, value = (
            linear(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for linear, x in zip(self.linear_layers, (queries, content, content), strict=True)
        )
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (batch, heads, length, dim / heads)
        return self.output_linear(mixed.transpose(1, 2).flatten(2))


def _perceptron(dim: int) -> nn.Sequential:
    # The two identities stand in for docTR's dropouts, so that the indices in the state dict's keys agree.
    return nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Identity(), nn.Linear(4 * dim, dim), nn.Identity())


def _prepare(crop: np.ndarray) -> Float[Tensor, "3 32 128"]:
    """Resize a crop to fit 32 x 128 at its aspect ratio, pad right and bottom with black, and normalize."""
    picture = torch.tensor(crop).permute(2, 0, 1).float() / 255
    height, width = picture.shape[1:]
    scale = min(32 / height, 128 / width)
    size = (min(32, max(1, int(height * scale + 1e-6))), min(128, max(1, int(width * scale + 1e-6))))
    picture = F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
    picture = F.pad(picture, (0, 128 - size[1], 0, 32 - size[0]))
    mean, std = torch.tensor([0.694, 0.695, 0.693]), torch.tensor([0.299, 0.296, 0.301])
    return (picture - mean[:, None, None]) / std[:, None, None]
