"""General image networks: VGG16 for perceptual distances, EfficientNet-Lite0 for Fréchet distances."""

from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imtok.checkpoints import load_tensors
from imtok.pretrained.networks import ExtractedFeatures, FeatureExtractor, FeatureNetwork, fold_batch_norms
from imtok.pretrained.onnx import assign_layers, read_layers


class VGG16(FeatureNetwork):
    """The 13 convolutions of Oxford's VGG16 (ImageNet, caffe preprocessing); maps relu1_2, 2_2, 3_3, 4_3 and 5_3.

    These are not torchvision's weights, so the channel weights of LPIPS do not fit them: a distance computed with them
    is an unweighted VGG16 distance, not LPIPS.
    """

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 64, 2), (64, 128, 2), (128, 256, 3), (256, 512, 3), (512, 512, 3))
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(before if index == 0 else after, after, 3, padding=1) for index in range(depth))
            for before, after, depth in sizes
        )
        mean = torch.tensor([123.68, 116.779, 103.939])  # ImageNet mean, RGB in 0..255
        self.register_buffer("shift", (127.5 - mean)[:, None, None], persistent=False)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the feature maps of pictures of at least 16 pixels a side, as specified by `FeatureNetwork`."""
        x = self.normalize(images)
        maps = []
        for block in self.blocks:
            x = F.max_pool2d(x, 2) if maps else x
            for convolution in block:  # pyright: ignore[reportGeneralTypeIssues]
                x = F.relu(convolution(x))
            maps.append(x)
        return maps

    def normalize(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Convert pictures in [-1, 1] to the input range of the first convolution."""
        return images * 127.5 + self.shift


def load_vgg16(classifier: Path) -> VGG16:
    """Load the convolutions of the Keras VGG16 from an ONNX classifier that was built on top of them, frozen."""
    network = VGG16()
    layers = read_layers(classifier)
    layers[0].weight = layers[0].weight[:, ::-1].copy()  # the file's network expects BGR, ours RGB
    assign_layers(network, layers)
    return network


class EfficientNetLite0(FeatureExtractor):
    """EfficientNet-Lite0 (ImageNet) with 1280 pooled features, for metrics that are named after it.

    It is reimplemented here, because timm would be a large dependency for one network.
    """

    embed_dim = 1280
    _MIDDLE = 14
    """Number of layers up to the feature map of 112 channels at 14 x 14 positions."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [SameConv(3, 32, 3, stride=2), _norm(32), nn.ReLU6()]
        channels = 32
        for out_channels, depth, kernel, stride, expansion in (
            (16, 1, 3, 1, 1),
            (24, 2, 3, 2, 6),
            (40, 2, 5, 2, 6),
            (80, 3, 3, 2, 6),
            (112, 3, 5, 1, 6),
            (192, 4, 5, 2, 6),
            (320, 1, 3, 1, 6),
        ):
            for index in range(depth):
                layers.append(InvertedResidual(channels, out_channels, kernel, stride if index == 0 else 1, expansion))
                channels = out_channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(320, 1280, 1, bias=False), _norm(1280), nn.ReLU6())
        self.classifier = nn.Linear(1280, 1000)

    def embed(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1280"]:
        """Return pooled features of RGB pictures in [-1, 1], which are resized to 224 x 224 (bilinear, antialiased)."""
        return self.layers(_preprocess(images)).mean((2, 3))

    def extract_features(self, images: Float[Tensor, "batch 3 height width"]) -> ExtractedFeatures:
        """Return features and logits; `spatial` is 10 of 112 channels at 14 x 14 positions, 1,960 values."""
        middle = self.layers[: self._MIDDLE](_preprocess(images))
        pooled = self.layers[self._MIDDLE :](middle).mean((2, 3))
        return ExtractedFeatures(pooled, middle[:, :10].flatten(1), self.classifier(pooled))


def load_efficientnet_lite0(weights: Path) -> EfficientNetLite0:
    """Load the network from a file whose tensors are in the order of our layers."""
    network = EfficientNetLite0()
    names = network.state_dict().keys()
    network.load_state_dict(dict(zip(names, load_tensors(weights).values(), strict=True)))
    return fold_batch_norms(network).to(memory_format=torch.channels_last)


def _preprocess(images: Tensor) -> Tensor:
    """Resize and normalize pictures as in EfficientNet-Lite0's training: (pixel - 127) / 128 at 224 x 224."""
    if images.shape[2:] != (224, 224):
        images = F.interpolate(images, (224, 224), mode="bilinear", antialias=True)
    return (images * 127.5 + 0.5) / 128


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; with a skip connection if the shape is unchanged."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels * expansion
        expand = [nn.Conv2d(channels, hidden, 1, bias=False), _norm(hidden), nn.ReLU6()] if expansion > 1 else []
        self.layers = nn.Sequential(
            *expand,
            *(SameConv(hidden, hidden, kernel, stride, groups=hidden), _norm(hidden), nn.ReLU6()),
            *(nn.Conv2d(hidden, out_channels, 1, bias=False), _norm(out_channels)),
        )
        self.skips = stride == 1 and channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.skips else self.layers(x)


class SameConv(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: at stride 2 and even sizes, more to the right and bottom."""

    def __init__(self, channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(channels, out_channels, kernel, stride, groups=groups, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        padding: list[int] = []
        for size, kernel, stride in zip(reversed(input.shape[2:]), self.kernel_size, self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(input, padding))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)
