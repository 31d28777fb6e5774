"""MagFace's iresnet-100, the norm of whose output vector measures how well a face can be recognized."""

from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from imtok.checkpoints import check_fit, load_tensors
from imtok.pretrained.arcface import R100, ArcFace


class MagFace(ArcFace):
    """iresnet-100 in the layout of MagFace's repository, for aligned faces of 112 x 112 (Meng et al. 2021).

    Unverified: pretrained weights were not available.

    Args:
        depths: number of blocks in each of the four stages; the default is iresnet-100.
    """

    def __init__(self, depths: tuple[int, int, int, int] = R100) -> None:
        super().__init__(depths)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eps = 2e-5

    def embed(self, images: Float[Tensor, "batch 3 112 112"]) -> Float[Tensor, "batch 512"]:
        """Return unnormalized vectors of RGB faces in [-1, 1]; their norm is the quality (trained to be 10 to 110)."""
        return super().embed((images.flip(1) + 1) / 2)  # the network was trained on BGR in [0, 1]


def load_magface(weights: Path) -> MagFace:
    """Load MagFace's checkpoint, without the classifier used in training.

    Raises:
        ConfigError: the checkpoint belongs to another network.
    """
    network = MagFace()
    found = {}
    for name, value in load_tensors(weights).items():
        for prefix in ("features.module.", "module.features."):
            if name.startswith(prefix):
                found[name.removeprefix(prefix)] = value
    check_fit(found, network.state_dict(), f"{weights}: not the weights of MagFace's iresnet-100")
    network.load_state_dict(found)
    return network
