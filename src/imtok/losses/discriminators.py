"""Discriminators: PatchGAN, a logit per patch (VQGAN, InsightTok, FQGAN); StyleGAN2, a logit per picture (TexTok)."""

from itertools import pairwise
from typing import Annotated, Any, Literal

import pydantic
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from imtok.config import ConfigError, config
from imtok.layers.conv import group_norm

_SLOPE = 0.2


@config
class PatchDiscriminatorConfig:
    """PatchGAN (Isola et al. 2017) as used in VQGAN; 2.8M parameters (InsightTok, Table 11)."""

    kind: Literal["patch"] = "patch"
    base_channels: int = 64
    num_layers: int = 3
    """Number of convolutions with stride 2."""

    def __post_init__(self) -> None:
        if self.base_channels < 1 or self.num_layers < 1 or self.base_channels % 16:
            raise ConfigError("discriminator: base_channels must be a multiple of 16, num_layers 1 or more")

    @property
    def smallest(self) -> int:
        """Side in pixels of the smallest pictures that the discriminator accepts."""
        return 3 * 2**self.num_layers


@config
class StyleDiscriminatorConfig:
    """StyleGAN2's residual discriminator (Karras et al. 2020) as used in TexTok; 24M at 256 and 512 px (appendix C)."""

    kind: Literal["style"] = "style"
    resolution: int = 256
    """Side of the pictures in pixels; other sizes raise a ValueError."""
    base_channels: int = 128
    channel_multipliers: tuple[int | float, ...] = (1, 2, 4, 4, 4, 4)
    """One block for each multiplier, which halves the resolution; (.5, 1, 2, 4, 4, 4, 4) at 512 px."""

    def __post_init__(self) -> None:
        if min(self.widths, default=0) < 1:
            raise ConfigError("discriminator: base_channels times each of the channel_multipliers must be 1 or more")
        if self.resolution < 1 or self.resolution % 2 ** len(self.channel_multipliers):
            raise ConfigError(
                f"discriminator: {self.resolution} px cannot be halved {len(self.channel_multipliers)} times"
            )

    @property
    def widths(self) -> list[int]:
        """Channels of each block."""
        return [round(self.base_channels * multiplier) for multiplier in self.channel_multipliers]


def _kind(config: Any) -> str:
    """Return the `kind` of a discriminator's config; files older than the second kind have none and are `patch`."""
    return config.get("kind", "patch") if isinstance(config, dict) else config.kind


DiscriminatorConfig = Annotated[
    Annotated[PatchDiscriminatorConfig, pydantic.Tag("patch")]
    | Annotated[StyleDiscriminatorConfig, pydantic.Tag("style")],
    pydantic.Discriminator(_kind),
]
"""Any discriminator's config, distinguished by `kind`."""


def build_discriminator(config: PatchDiscriminatorConfig | StyleDiscriminatorConfig) -> nn.Module:
    """Build an untrained discriminator, which maps pictures in [-1, 1] to logits; large logits mean real."""
    return PatchDiscriminator(config) if isinstance(config, PatchDiscriminatorConfig) else StyleDiscriminator(config)


class PatchDiscriminator(nn.Module):
    """PatchGAN, which classifies every patch of a picture (70 x 70 pixels with three layers) as real or reconstructed.

    Deviation: GroupNorm instead of BatchNorm, whose statistics differ between ranks, micro-batches and the passes of
    real and reconstructed pictures; with GroupNorm a picture's logits depend only on the picture.
    """

    def __init__(self, config: PatchDiscriminatorConfig) -> None:
        super().__init__()
        widths = [config.base_channels * min(2**i, 8) for i in range(config.num_layers + 1)]
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE)]
        for i, (before, width) in enumerate(pairwise(widths), start=1):
            stride = 2 if i < config.num_layers else 1
            convolution = nn.Conv2d(before, width, 4, stride, padding=1, bias=False)
            layers += [convolution, group_norm(width), nn.LeakyReLU(_SLOPE)]
        layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.layers = nn.Sequential(*layers)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0.0, 0.02)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1 rows columns"]:
        """Compute one logit per patch; large means real.

        Args:
            images: pictures in [-1, 1], whose sides are at least the config's `smallest`.
        """
        return self.layers(images)


class StyleDiscriminator(nn.Module):
    """StyleGAN2's discriminator: residual blocks down to a few pixels, then two linear layers to one logit per picture.

    Deviation: no minibatch statistics and no equalized learning rate, as in the open tokenizers that use this network.
    """

    def __init__(self, config: StyleDiscriminatorConfig) -> None:
        super().__init__()
        self.resolution = config.resolution
        widths = config.widths
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        pairs = zip([widths[0], *widths[:-1]], widths, strict=True)
        self.blocks = nn.Sequential(*(StyleBlock(before, width) for before, width in pairs))
        self.conv_out = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        side = config.resolution // 2 ** len(widths)
        self.judge = nn.Sequential(
            nn.Flatten(),
            nn.Linear(widths[-1] * side**2, widths[-1]),
            nn.LeakyReLU(_SLOPE),
            nn.Linear(widths[-1], 1),
        )

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 1"]:
        """Compute one logit per picture; large means real.

        Args:
            images: pictures in [-1, 1], of the config's resolution.

        Raises:
            ValueError: the pictures have another size.
        """
        if images.shape[2:] != (self.resolution, self.resolution):
            raise ValueError(f"the discriminator wants {self.resolution} px, not {tuple(images.shape[2:])}")
        x = F.leaky_relu(self.conv_in(images), _SLOPE)
        return self.judge(F.leaky_relu(self.conv_out(self.blocks(x)), _SLOPE))


class StyleBlock(nn.Module):
    """Residual block that halves the resolution.

    The main path is a 3x3 convolution, a blur, and a 3x3 convolution of stride 2; the skip path is a blur and a 1x1
    convolution of stride 2. The output is their sum divided by sqrt(2).
    """

    blur: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, in_channels, 3, padding=1)
        self.conv2 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.skip = nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False)
        weights = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("blur", torch.outer(weights, weights)[None, None], persistent=False)

    def forward(self, x: Float[Tensor, "batch in_channels height width"]) -> Float[Tensor, "batch out rows columns"]:
        h = F.leaky_relu(self.conv1(x), _SLOPE)
        h = F.leaky_relu(self.conv2(self._blurred(h)), _SLOPE)
        return (h + self.skip(self._blurred(x))) / 2**0.5

    def _blurred(self, x: Tensor) -> Tensor:
        kernel = self.blur.to(x.dtype).expand(x.shape[1], 1, 3, 3)
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernel, groups=x.shape[1])
