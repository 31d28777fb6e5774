"""LPIPS: torchvision's VGG16 with learned channel weights, from two user-supplied files."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from imtok.checkpoints import check_fit, load_tensors
from imtok.pretrained.vision import VGG16

TRUNK, HEADS = "vgg16-397923af.pth", "vgg.pth"
"""File names in torchvision and in the lpips package (weights/v0.1)."""
_CONVOLUTION_INDICES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Indices of the convolutions in torchvision's `features`."""


class LPIPS(VGG16):
    """The `vgg` network of Zhang et al. (2018), version 0.1, whose feature maps and channel weights define LPIPS.

    Unverified: agrees with the lpips package for random convolutions with the published channel weights;
    torchvision's pretrained convolutions were not available.
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)
        self.heads = nn.ParameterList(torch.ones(channels) for channels in (64, 128, 256, 512, 512))

    def normalize(self, images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        return (images - self.shift) / self.scale

    def channel_weights(self) -> Sequence[Float[Tensor, " channels"]]:
        return list(self.heads)


def load_lpips(folder: Path) -> LPIPS:
    """Load the network from the files `TRUNK` and `HEADS` in a folder; the trunk's classifier is left out.

    Raises:
        ConfigError: a file is missing, or belongs to another network.
    """
    network = LPIPS()
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    trunk = {
        f"features.{index}.{name}": parameter
        for index, convolution in zip(_CONVOLUTION_INDICES, convolutions, strict=True)
        for name, parameter in convolution.named_parameters()
    }
    heads = {f"lin{index}.model.1.weight": weights[None, :, None, None] for index, weights in enumerate(network.heads)}
    for file, wanted, what in ((TRUNK, trunk, "torchvision's VGG16"), (HEADS, heads, "LPIPS's channels")):
        found = {
            name: value for name, value in load_tensors(folder / file).items() if not name.startswith("classifier.")
        }
        check_fit(found, wanted, f"{folder / file}: not the weights of {what}")
        with torch.no_grad():
            for name, parameter in wanted.items():
                parameter.copy_(found[name])
    return network
