"""Face networks: MobileFaceNet for the face loss, and dlib's ResNet as the judge in evaluations."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imtok.pretrained.networks import FeatureNetwork, FrozenNetwork
from imtok.pretrained.tfjs import read_weights
from imtok.pretrained.tflite import read_constants

ARCFACE_TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
"""Positions (x, y) of the five landmarks in the 112 x 112 input of ArcFace-type networks."""

DLIB_TEMPLATE = ((47.55, 46.60), (100.48, 46.60), (74.01, 76.56), (50.41, 103.02), (97.61, 103.02))
"""Positions (x, y) of the five landmarks in the 150 x 150 input of dlib's network: its mean face, margin 1/4."""


class MobileFaceNet(FeatureNetwork):
    """MobileFaceNet (192-d), trained with the ArcFace loss on aligned faces of 112 x 112.

    The feature maps are (64, 56, 56), (64, 28, 28), (128, 14, 14), (128, 7, 7) and (512, 7, 7). Only `embed` computes
    the layers after them.
    """

    input_size = (112, 112)
    template: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("template", torch.tensor(ARCFACE_TEMPLATE), persistent=False)
        self.stages = nn.ModuleList(
            [
                nn.Sequential(
                    EvenConv(3, 64, 3, stride=2),
                    FrozenPReLU(64),
                    EvenConv(64, 64, 3, groups=64),
                    FrozenPReLU(64),
                    EvenConv(64, 64, 1),
                ),
                nn.Sequential(Bottleneck(64, 128, 64, stride=2), *(Bottleneck(64, 128, 64) for _ in range(4))),
                nn.Sequential(Bottleneck(64, 256, 128, stride=2), *(Bottleneck(128, 256, 128) for _ in range(6))),
                nn.Sequential(Bottleneck(128, 512, 128, stride=2), *(Bottleneck(128, 256, 128) for _ in range(2))),
                nn.Sequential(EvenConv(128, 512, 1), FrozenPReLU(512)),
            ]
        )
        self.head = nn.Sequential(
            nn.Conv2d(512, 512, 7, groups=512), nn.Conv2d(512, 512, 1), nn.Conv2d(512, 192, 1), nn.Flatten()
        )

    def forward(self, images: Float[Tensor, "batch 3 112 112"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the feature maps of faces aligned to `template`, as specified by `FeatureNetwork`."""
        x = images * (127.5 / 128)  # the network was trained on (pixel - 127.5) / 128
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps

    def embed(self, images: Float[Tensor, "batch 3 112 112"]) -> Float[Tensor, "batch 192"]:
        """Return identity vectors, not normalized; faces are compared by cosine similarity."""
        return self.head(self.forward(images)[-1])


def load_mobilefacenet(model: Path) -> MobileFaceNet:
    """Load the weights of the TFLite file, which stores the slopes of each PReLU halved."""
    network = MobileFaceNet()
    constants = iter(read_constants(model))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                kernel = next(constants)  # (out, rows, columns, in), or (1, rows, columns, channels) if depthwise
                axes = (3, 0, 1, 2) if module.groups > 1 else (0, 3, 1, 2)
                module.weight.copy_(torch.tensor(kernel.transpose(axes)))
                assert module.bias is not None
                module.bias.copy_(torch.tensor(next(constants)))
            elif isinstance(module, FrozenPReLU):
                # The file computes a PReLU as relu(x) + half_slope * (x - |x|).
                module.weight.copy_(2 * torch.tensor(next(constants)))
    return network.to(memory_format=torch.channels_last)


class FrozenPReLU(nn.Module):
    """A PReLU without gradients of its slopes; torch's PReLU always computes them and is four times slower."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        slope = self.weight[:, None, None]
        return torch.addcmul(slope * x, F.relu(x), 1 - slope)


class EvenConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding for even sizes: at stride 2 only right and bottom are padded."""

    def __init__(self, channels: int, out_channels: int, size: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out_channels, size, stride, padding=size // 2 if stride == 1 else 0, groups=groups)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, (0, 1, 0, 1)) if self.stride == (2, 2) else input)


class Bottleneck(nn.Module):
    """Expansion, depthwise convolution, projection; with a skip connection if the shape is unchanged."""

    def __init__(self, channels: int, hidden: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            EvenConv(channels, hidden, 1),
            FrozenPReLU(hidden),
            EvenConv(hidden, hidden, 3, stride=stride, groups=hidden),
            FrozenPReLU(hidden),
            EvenConv(hidden, out_channels, 1),
        )
        self.skips = stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skips else self.layers(x)


class DlibFaceNet(FrozenNetwork):
    """dlib's face recognition ResNet (128-d), a judge whose architecture and training data differ from ArcFace's.

    Two pictures show the same person if the distance of their vectors is below 0.6.
    """

    input_size = (150, 150)
    template: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("template", torch.tensor(DLIB_TEMPLATE), persistent=False)
        mean = torch.tensor([122.782, 117.001, 104.298])  # RGB in 0..255
        self.register_buffer("mean", mean[:, None, None], persistent=False)
        self.first = nn.Conv2d(3, 32, 7, stride=2)
        self.blocks = nn.Sequential(
            *(Residual(32, 32) for _ in range(3)),
            *(Residual(32, 64, shrink=True), *(Residual(64, 64) for _ in range(3))),
            *(Residual(64, 128, shrink=True), *(Residual(128, 128) for _ in range(2))),
            *(Residual(128, 256, shrink=True), *(Residual(256, 256) for _ in range(2))),
            Residual(256, 256, shrink=True),
        )
        self.head = nn.Linear(256, 128, bias=False)

    def embed(self, images: Float[Tensor, "batch 3 150 150"]) -> Float[Tensor, "batch 128"]:
        """Return identity vectors of RGB faces in [-1, 1] aligned to `template`; faces are compared by distance."""
        x = (images * 127.5 + 127.5 - self.mean) / 255
        x = self.blocks(F.max_pool2d(F.relu(self.first(x)), 3, 2))
        return self.head(x.mean((2, 3)))


def load_dlib(manifest: Path, binary: Path) -> DlibFaceNet:
    """Load face-api's weights; the scale after each convolution is folded into the convolution."""
    network = DlibFaceNet()
    weights = iter(read_weights(manifest, binary).items())
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                (_, filters), (_, bias), (_, scale), (_, shift) = (next(weights) for _ in range(4))
                assert module.bias is not None
                module.weight.copy_(torch.tensor((filters * scale).transpose(3, 2, 0, 1)))
                module.bias.copy_(torch.tensor(bias * scale + shift))
        network.head.weight.copy_(torch.tensor(np.ascontiguousarray(next(weights)[1].T)))
    return network.to(memory_format=torch.channels_last)


class Residual(nn.Module):
    """Two convolutions and a skip; if `shrink`, the skip is average-pooled and zero-padded to more channels."""

    def __init__(self, channels: int, out_channels: int, shrink: bool = False) -> None:
        super().__init__()
        self.shrink = shrink
        self.first = nn.Conv2d(channels, out_channels, 3, stride=2 if shrink else 1, padding=0 if shrink else 1)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        if self.shrink:
            x = F.avg_pool2d(x, 2)
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
        return F.relu(x + y)
