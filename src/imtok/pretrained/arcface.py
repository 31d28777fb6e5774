"""ArcFace iresnets from user-supplied files: features for InsightTok's loss, and TokBench's face judge."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imtok.config import ConfigError, first_line
from imtok.pretrained.faces import ARCFACE_TEMPLATE, FrozenPReLU
from imtok.pretrained.networks import FeatureNetwork, FrozenNetwork, load_named

R50, R100 = (3, 4, 14, 3), (3, 13, 30, 3)
"""Number of blocks in each of the four stages of iresnet-50 and iresnet-100."""


class ArcFace(FeatureNetwork):
    """An iresnet (512-d) in the layout of insightface's arcface_torch, for aligned faces of 112 x 112.

    The feature maps are (64, 112, 112), (64, 56, 56), (128, 28, 28), (256, 14, 14) and (512, 7, 7).

    Args:
        depths: number of blocks in each of the four stages; the default is iresnet-50.

    Unverified: agrees with the original definition on random weights; pretrained weights were not available.
    """

    input_size = (112, 112)
    template: Tensor

    def __init__(self, depths: tuple[int, int, int, int] = R50) -> None:
        super().__init__()
        self.register_buffer("template", torch.tensor(ARCFACE_TEMPLATE), persistent=False)
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = FrozenPReLU(64)
        self.layer1 = _stage(64, 64, depths[0])
        self.layer2 = _stage(64, 128, depths[1])
        self.layer3 = _stage(128, 256, depths[2])
        self.layer4 = _stage(256, 512, depths[3])
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 7 * 7, 512)
        self.features = nn.BatchNorm1d(512)

    def forward(self, images: Float[Tensor, "batch 3 112 112"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the feature maps of faces aligned to `template`, as specified by `FeatureNetwork`."""
        maps = [self.prelu(self.bn1(self.conv1(images)))]
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            maps.append(layer(maps[-1]))
        return maps

    def embed(self, images: Float[Tensor, "batch 3 112 112"]) -> Float[Tensor, "batch 512"]:
        """Return identity vectors, not normalized; faces are compared by cosine similarity."""
        return self.features(self.fc(self.bn2(self.forward(images)[-1]).flatten(1)))


class Block(nn.Module):
    """Residual block: norm, convolution, norm, PReLU, convolution, norm; the skip is projected if the shape changes."""

    def __init__(self, channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.prelu = FrozenPReLU(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride > 1:
            projection = nn.Conv2d(channels, out_channels, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(out_channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.prelu(self.bn2(self.conv1(self.bn1(x))))
        return self.bn3(self.conv2(y)) + (x if self.downsample is None else self.downsample(x))


def load_arcface(weights: Path, depths: tuple[int, int, int, int] = R50) -> ArcFace:
    """Load a state dict of arcface_torch's iresnet50, or of another of its iresnets with the given depths.

    Raises:
        ConfigError: the state dict belongs to another network.
    """
    network = ArcFace(depths)
    load_named(network, weights)
    return network.to(memory_format=torch.channels_last)


class RecognizerOnnx(FrozenNetwork):
    """An insightface recognizer in its published ONNX form, run by onnxruntime on the CPU without gradients.

    Args:
        session: onnxruntime's `InferenceSession`.
    """

    input_size = (112, 112)
    template: Tensor

    def __init__(self, session: Any) -> None:
        super().__init__()
        self.register_buffer("template", torch.tensor(ARCFACE_TEMPLATE), persistent=False)
        self._session = session
        self._input = session.get_inputs()[0].name

    def embed(self, images: Float[Tensor, "batch 3 112 112"]) -> Float[Tensor, "batch 512"]:
        """Return identity vectors, not normalized; faces are compared by cosine similarity."""
        (vectors,) = self._session.run(None, {self._input: images.float().cpu().numpy()})
        return torch.from_numpy(vectors).to(images.device)


def load_recognizer(file: Path) -> RecognizerOnnx:
    """Load antelopev2's glintr100.onnx, or another recognizer with the same inputs and outputs.

    Raises:
        ConfigError: the file is not readable as ONNX, or its inputs or outputs differ (one-line message).
    """
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception as error:  # the library raises nothing narrower
        raise ConfigError(f"{file}: not a readable ONNX file ({first_line(error)})") from None
    inputs, outputs = ([node.shape for node in nodes] for nodes in (session.get_inputs(), session.get_outputs()))
    if [shape[1:] for shape in inputs] != [[3, 112, 112]] or [len(shape) for shape in outputs] != [2]:
        raise ConfigError(
            f"{file}: goes from {inputs} to {outputs}; a recognizer goes from faces (n, 3, 112, 112) to vectors"
        )
    return RecognizerOnnx(session)


def _stage(channels: int, out_channels: int, depth: int) -> nn.Sequential:
    rest = (Block(out_channels, out_channels, stride=1) for _ in range(depth - 1))
    return nn.Sequential(Block(channels, out_channels, stride=2), *rest)
