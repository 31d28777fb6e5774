"""Localized perceptual losses of InsightTok (section 3.2): feature distances of words and faces in recognizers."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from imtok.config import config
from imtok.layers.crops import Regions, align_faces, crop_regions
from imtok.layers.precision import upcast
from imtok.losses.reconstruction import feature_pairs
from imtok.pretrained.networks import FeatureNetwork

_TINY_ENERGY = 1e-12
"""Added to an energy, so that 0 / 0 is 0 where all features of a layer are zero."""


@config
class RegionLossConfig:
    """Settings of both the text and the face loss."""

    area_weighted: bool = True
    """Weight each region by its share of the picture's area (eq. 6); otherwise all weights are 1 (Table 3, row 2)."""
    layer_scale: Literal["none", "energy"] = "none"
    """Scale of the layers. `none`: eq. 4 and 9 as printed. `energy`: the squared difference of each feature map is
    divided by the mean square of the original's map, separately for each region.

    Deviation: `energy` is not in the paper. With `none`, the layer with the largest values dominates, and the layers of
    recognizers differ by orders of magnitude; with `energy`, every layer contributes, and the loss has a similar
    magnitude for any recognizer."""


@config
class TextLossConfig(RegionLossConfig):
    """Localized text perceptual loss (InsightTok, section 3.2.1)."""

    network: str = "text_features/ppocrv6"
    """The recognizer. Deviation: the paper's is ABINet, whose weights are not available."""


@config
class FaceLossConfig(RegionLossConfig):
    """Localized face perceptual loss (InsightTok, section 3.2.2)."""

    network: str = "face_features/mobilefacenet"
    """The recognizer. Deviation: the paper's is an ArcFace ResNet-50, whose weights must be provided by the user."""


def text_loss(
    network: FeatureNetwork,
    images: Float[Tensor, "batch 3 height width"],
    reconstructions: Float[Tensor, "batch 3 height width"],
    words: Regions,
    config: TextLossConfig,
) -> Float[Tensor, ""]:
    """Compute a text recognizer's feature distance between original and reconstructed words (InsightTok eq. 4 to 6).

    The distance of a word is the mean over the network's layers of the squared feature difference per position. The
    loss is the weighted sum over words, averaged over the pictures of the batch. Word crops are resized to the
    network's input size without keeping their aspect ratio, as in the paper.

    Args:
        network: frozen network with a fixed input size, which outputs L feature maps.
        images: originals in [-1, 1]; no gradient flows into them.
        reconstructions: reconstructions of the same shape; only pixels inside the words' boxes get a gradient.
        words: boxes within the pictures; without any, the loss is 0 and still has a graph.
        config: weighting of regions and layers.

    Raises:
        ValueError: a box lies outside its picture, or the network has no fixed input size.
    """
    if len(words) == 0:
        return _zero_loss(reconstructions)
    size = _input_size(network)
    original_crops, reconstructed_crops = (
        crop_regions(batch, words, size) for batch in (images.detach(), reconstructions)
    )
    return _sum_over_regions(_distances(network, original_crops, reconstructed_crops, config), words, images, config)


def face_loss(
    network: FeatureNetwork,
    images: Float[Tensor, "batch 3 height width"],
    reconstructions: Float[Tensor, "batch 3 height width"],
    faces: Regions,
    config: FaceLossConfig,
) -> Float[Tensor, ""]:
    """Compute a face recognizer's feature distance between original and reconstructed faces (InsightTok eq. 7 to 9).

    It is computed as `text_loss`, except that faces are aligned to the recognizer's template instead of cropped. The
    weights are the shares of the faces' boxes in the picture's area, or 1 without `area_weighted`.

    Args:
        network: frozen network with a fixed input size and a `template` of five landmarks, which outputs L feature
            maps.
        images: originals in [-1, 1]; no gradient flows into them.
        reconstructions: reconstructions of the same shape; only pixels inside the aligned crops get a gradient.
        faces: faces with landmarks; without any, the loss is 0 and still has a graph.
        config: weighting of regions and layers.

    Raises:
        ValueError: the faces have no landmarks, or the network has no fixed input size or no template.
    """
    if len(faces) == 0:
        return _zero_loss(reconstructions)
    size, template = _input_size(network), getattr(network, "template", None)
    if not isinstance(template, Tensor):
        raise ValueError(f"{network.name or 'this network'} has no landmark template, so it cannot compare faces")
    original_crops, reconstructed_crops = (
        align_faces(batch, faces, template, size) for batch in (images.detach(), reconstructions)
    )
    return _sum_over_regions(_distances(network, original_crops, reconstructed_crops, config), faces, images, config)


def _distances(
    network: FeatureNetwork,
    originals: Float[Tensor, "n 3 h w"],
    reconstructions: Float[Tensor, "n 3 h w"],
    config: RegionLossConfig,
) -> Float[Tensor, " n"]:
    """Compute eq. 4 for every region: squared differences, summed over channels, averaged over positions and L maps."""
    layers = []
    for a, b in feature_pairs(network, originals, reconstructions):
        difference = (b - a).square().sum(1).mean((1, 2))  # n
        if config.layer_scale == "energy":
            difference = difference / (a.square().sum(1).mean((1, 2)) + _TINY_ENERGY)
        layers.append(difference)
    return torch.stack(layers).mean(0)


def _sum_over_regions(
    distances: Float[Tensor, " n"],
    regions: Regions,
    images: Float[Tensor, "batch 3 height width"],
    config: RegionLossConfig,
) -> Float[Tensor, ""]:
    """Eq. 5 and 6, averaged over pictures. Those without regions count as 0, so micro-batches and ranks add up."""
    weights = regions.areas() / (images.shape[2] * images.shape[3]) if config.area_weighted else 1.0
    return (distances * weights).sum() / len(images)


def _input_size(network: FeatureNetwork) -> tuple[int, int]:
    if network.input_size is None:
        raise ValueError(f"{network.name or 'this network'} takes pictures of any size; regions need a fixed one")
    return network.input_size


def _zero_loss(reconstructions: Tensor) -> Float[Tensor, ""]:
    return upcast(reconstructions).sum() * 0
