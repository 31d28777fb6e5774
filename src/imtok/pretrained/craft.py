"""CRAFT's backbone: text detector features of the whole picture, used by OCR-VQGAN's global text loss."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from imtok.checkpoints import load_tensors
from imtok.pretrained.networks import FeatureNetwork, fold_batch_norms


class CRAFTFeatures(FeatureNetwork):
    """Five feature maps of CRAFT's VGG16 with batch norm, at 1/2, 1/4, 1/8, 1/16 and 1/16 of the picture's size.

    They have 128, 256, 512, 512 and 1024 channels. The decoder, which predicts text maps from them, is left out.
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        vgg = make_layers(cfgs["D"], batch_norm=True)
        # The fourth slice ends before its ReLU, as in the original.
        self.slices = nn.ModuleList([vgg[:13], vgg[13:20], vgg[20:30], vgg[30:39]])
        self.slices.append(
            nn.Sequential(
                nn.MaxPool2d(3, stride=1, padding=1),
                nn.Conv2d(512, 1024, 3, padding=6, dilation=6),
                nn.Conv2d(1024, 1024, 1),
            )
        )
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None], persistent=False)

    def forward(self, images: Float[Tensor, "batch 3 height width"]) -> list[Float[Tensor, "batch _ _ _"]]:
        """Return the feature maps of pictures of at least 16 pixels a side, as specified by `FeatureNetwork`."""
        x = ((images + 1) / 2 - self.mean) / self.std
        maps = []
        for part in self.slices:
            x = part(x)
            maps.append(x)
        return maps


def load_craft(detector: Path) -> CRAFTFeatures:
    """Load the backbone from the file of the whole detector; its tensors are in the order of our layers."""
    network = CRAFTFeatures()
    names = network.slices.state_dict().keys()
    backbone = [value for name, value in load_tensors(detector).items() if ".basenet." in name]
    network.slices.load_state_dict(dict(zip(names, backbone, strict=True)))
    return fold_batch_norms(network).to(memory_format=torch.channels_last)
