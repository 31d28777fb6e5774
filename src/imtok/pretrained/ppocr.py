"""PP-OCRv6's small recognizer as a differentiable feature network."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imtok.pretrained.networks import FeatureNetwork
from imtok.pretrained.onnx import assign_layers, read_layers


class PPOCRFeatures(FeatureNetwork):
    """Five feature maps of the recognizer in rapidocr's PP-OCRv6_rec_small.onnx, up to the input of its classifier.

    The network is a convolutional backbone that halves the width twice and the height four times, followed by two
    attention blocks along the line. The classifier over 18,710 characters is left out: losses do not need it, and it
    would be the most expensive part. At 48 x 160 the maps are (96, 12, 40), (96, 12, 40), (192, 6, 40), (384, 3, 40)
    and (120, 1, 20).
    """

    input_size = (48, 160)

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        self.stage1 = nn.Sequential(Block(96, attention=True), Block(96), Block(96))
        self.stage2 = nn.Sequential(Shrink(96), *(Block(192, attention=index % 2 == 0) for index in range(6)))
        self.stage3 = nn.Sequential(Shrink(192), Block(384, attention=True), Block(384))
        self.neck = Neck()

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the feature maps, as specified by `FeatureNetwork`; height must be 48, width a multiple of 8."""
        maps = []
        for part in (self.stem, self.stage1, self.stage2, self.stage3, self.neck):
            images = part(images)
            maps.append(images)
        return maps


def load_ppocr_features(recognizer: Path) -> PPOCRFeatures:
    """Load the network from the recognizer's ONNX file."""
    network = PPOCRFeatures()
    layers = read_layers(recognizer)
    layers[0].weight = layers[0].weight[:, ::-1].copy()  # the file's network expects BGR, ours RGB
    assign_layers(network, layers)
    # Channels last is the faster memory format for depthwise convolutions.
    return network.to(memory_format=torch.channels_last)


class Stem(nn.Module):
    """Two strided convolutions with a small inception-like branch in between."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 48, 3, stride=2, padding=1)
        self.narrow = nn.Conv2d(48, 24, 2)
        self.widen = nn.Conv2d(24, 48, 2)
        self.merge = nn.Conv2d(96, 48, 3, stride=2, padding=1)
        self.last = nn.Conv2d(48, 96, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Zero padding to the right and bottom also suits the max pooling, since values after a ReLU are not negative.
        x = F.pad(F.relu(self.first(x)), (0, 1, 0, 1))
        branch = F.relu(self.narrow(x))
        branch = F.relu(self.widen(F.pad(branch, (0, 1, 0, 1))))
        x = torch.cat([F.max_pool2d(x, 2, stride=1), branch], dim=1)
        return F.relu(self.last(F.relu(self.merge(x))))


class Block(nn.Module):
    """Depthwise convolution, optional squeeze-and-excitation, and a pointwise MLP with a skip connection."""

    def __init__(self, channels: int, attention: bool = False) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.squeeze = nn.Conv2d(channels, channels // 4, 1) if attention else None
        self.excite = nn.Conv2d(channels // 4, channels, 1) if attention else None
        self.expand = nn.Conv2d(channels, channels * 2, 1)
        self.project = nn.Conv2d(channels * 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.spatial(x)
        if self.squeeze is not None and self.excite is not None:
            x = x * F.hardsigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return x + self.project(F.gelu(self.expand(x)))


class Shrink(nn.Module):
    """Downsampling block that halves the height and doubles the channels, without a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1, groups=channels)
        self.expand = nn.Conv2d(channels, channels * 2, 1)
        self.project = nn.Conv2d(channels * 2, channels * 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(F.gelu(self.expand(self.spatial(x))))


class Neck(nn.Module):
    """Pooling of the feature map to one row, then self-attention among its positions."""

    def __init__(self, channels: int = 384, dim: int = 120) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(channels, dim, 1)
        self.reduce = nn.Conv2d(channels, dim, 1)
        self.local = nn.Conv2d(dim, dim, (1, 7), padding=(0, 3), groups=dim)
        self.blocks = nn.Sequential(NeckBlock(dim), NeckBlock(dim))
        self.norm = nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(x, (3, 2))  # (batch, 384, 1, width / 8)
        shortcut, x = F.silu(self.shortcut(x)), F.silu(self.reduce(x))  # (batch, 120, 1, width / 8)
        x = x + F.silu(self.local(x))
        x = self.norm(self.blocks(x.squeeze(2).transpose(1, 2)))  # (batch, width / 8, 120)
        return x.transpose(1, 2).unsqueeze(2) + shortcut


class NeckBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, dim: int, num_heads: int = 8) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, dim * 3)
        self.attention_out = nn.Linear(dim, dim)
        self.perceptron_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, dim * 2)
        self.project = nn.Linear(dim * 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, dim = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, length, dim / heads)
        mixed = F.scaled_dot_product_attention(query, key, value)
        x = x + self.attention_out(mixed.transpose(1, 2).reshape(batch, length, dim))
        return x + self.project(F.silu(self.expand(self.perceptron_norm(x))))
