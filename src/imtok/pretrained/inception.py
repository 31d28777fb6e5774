"""Inception-v3 for FID and the inception score: torch-fidelity's class with a user-supplied weight file."""

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

    `pooled` has 2,048 features. `spatial` has the first 7 channels of the 1 x 1 branch of the graph's `mixed_6` block,
    at 17 x 17 positions (ADM's sFID, 2,023 values). `logits` are those of 1,008 classes without the bias, as in both
    ADM and torch-fidelity.

    Unverified: pretrained weights were not available. The class is torch-fidelity's own, checked with random weights.

    Args:
        tensors: state dict with torch-fidelity's names.
    """

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        # The class unpickles its input, so it receives a new pickle of tensors that were safely loaded before.
        copy = io.BytesIO()
        torch.save(tensors, copy)
        copy.seek(0)
        self.network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], copy)  # pyright: ignore[reportArgumentType]

    def extract_features(self, images: Float[Tensor, "batch 3 height width"]) -> ExtractedFeatures:
        """Return features and logits, as specified by `FeatureExtractor`."""
        captured: list[Tensor] = []
        branch = self.network.Mixed_6d.branch1x1
        handle = branch.register_forward_hook(lambda module, inputs, maps: captured.append(_flatten_as_adm(maps)))
        try:
            pooled, logits = self.network(((images + 1) * 127.5).round().to(torch.uint8))
        finally:
            handle.remove()
        return ExtractedFeatures(pooled, captured[0], logits)


def _flatten_as_adm(maps: Float[Tensor, "batch channels 17 17"]) -> Float[Tensor, "batch 2023"]:
    """Flatten the first seven channels in TensorFlow's order (channels last), as in ADM's statistics files."""
    return maps[:, :7].permute(0, 2, 3, 1).flatten(1)


def load_inception(weights: Path) -> InceptionV3:
    """Load the network from torch-fidelity's weight file.

    Raises:
        ConfigError: the weights belong to another network.
    """
    try:
        return InceptionV3(load_tensors(weights))
    except RuntimeError:
        raise ConfigError(f"{weights}: not torch-fidelity's weights of Inception-v3; names or shapes differ") from None
