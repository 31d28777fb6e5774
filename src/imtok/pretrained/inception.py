"""Inception-v3 as FID and the inception score want it: torch-fidelity's class with a file of the user's own."""

import io
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from imtok.checkpoints import load_tensors
from imtok.config import ConfigError
from imtok.pretrained.networks import ExtractedFeatures, FeatureExtractor


class InceptionV3(FeatureExtractor):
    """The network of TensorFlow's graph of 2015-12-05, with that graph's own resizing to 299 x 299.

    Pooled are 2,048 features; spatial the first 7 channels of the 1 x 1 branch of the block that the graph calls
    `mixed_6`, at 17 x 17 places (ADM's sFID, 2,023 numbers); logits those of 1,008 classes without their bias, as both
    ADM and torch-fidelity take them.

    Unverified: trained weights could not be had here. The class is torch-fidelity's own, checked with random ones.

    Args:
        tensors: by torch-fidelity's names.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # The class unpickles what it is given, so it is given a copy of what was read without unpickling.
        copy = io.BytesIO()
        torch.save(tensors, copy)
        copy.seek(0)
        self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], copy)  # pyright: ignore[reportArgumentType]

    def extract_features(self, images: Float[Tensor, "batch 3 height width"]) -> ExtractedFeatures:
        """See `FeatureExtractor`."""
        seen: list[Tensor] = []
        branch = self.network.Mixed_6d.branch1x1
        handle = branch.register_forward_hook(lambda module, given, maps: seen.append(_as_in_adm(maps)))
        try:
            pooled, logits = self.network(((images + 1) * 127.5).round().to(torch.uint8))
        finally:
            handle.remove()
        return ExtractedFeatures(pooled, seen[0], logits)


def _as_in_adm(maps: Float[Tensor, "batch channels 17 17"]) -> Float[Tensor, "batch 2023"]:
    """Seven channels, which come last in TensorFlow: statistics in its files have the places outside."""
    return maps[:, :7].permute(0, 2, 3, 1).flatten(1)


def load_inception(weights: Path) -> InceptionV3:
    """The network with torch-fidelity's file.

    Raises:
        ConfigError: another network's.
    """
    try:
        return InceptionV3(load_tensors(weights))
    except RuntimeError:
        raise ConfigError(f"{weights}: not torch-fidelity's weights of Inception-v3; names or shapes differ") from None
