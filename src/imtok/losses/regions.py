"""Localized perceptual losses of InsightTok (section 3.2): recognizers compare words and faces, region by region."""

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
"""Keeps 0 / 0 at 0 where a layer answers nothing at all to a region."""


@config
class RegionLossConfig:
    """What the text and the face loss have in common."""

    area_weighted: bool = True
    """Weigh each region by its share of the picture (eq. 6); off gives each the weight 1 (Table 3, row 2)."""
    layer_scale: Literal["none", "energy"] = "none"
    """`none`: eq. 4 and 9 as printed. `energy`: each map's squared difference is divided by the mean square of the
    original's map, region by region.

    Deviation: without it the layer with the largest values decides alone, and recognizers' layers differ by orders of
    magnitude; with it every layer has a say, and the loss has about the same size for any recognizer."""


@config
class TextLossConfig(RegionLossConfig):
    """Localized text perceptual loss (InsightTok, section 3.2.1)."""

    network: str = "text_features/ppocrv6"
    """The recognizer. Deviation: the paper's is ABINet, whose weights are not to be had."""


@config
class FaceLossConfig(RegionLossConfig):
    """Localized face perceptual loss (InsightTok, section 3.2.2)."""

    network: str = "face_features/mobilefacenet"
    """The recognizer. Deviation: the paper's is an ArcFace ResNet-50, whose weights only a user can provide."""


def text_loss(
    network: FeatureNetwork,
    images: Float[Tensor, "batch 3 height width"],
    reconstructions: Float[Tensor, "batch 3 height width"],
    words: Regions,
    config: TextLossConfig,
) -> Float[Tensor, ""]:
    """Feature distance of a text recognizer between original and reconstructed words (InsightTok eq. 4 to 6).

    Per word the mean over the network's layers of the squared feature difference per position; summed over words with
    their weights, averaged over the pictures of the batch. Word crops are resized to the network's own size without
    keeping their aspect ratio, as in the paper.

    Args:
        network: frozen, with an input size; answers with its L feature maps.
        images: originals in [-1, 1]; no gradient flows into them.
        reconstructions: same shape; the gradient stays inside the words' boxes.
        words: boxes within the pictures; may be empty: the loss is then 0, and still has a graph.
        config: weighting of regions and layers.

    Raises:
        ValueError: a box lies outside its picture, or the network takes any size.
    """
    if len(words) == 0:
        return _nothing(reconstructions)
    size = _input_size(network)
    wanted, drawn = (crop_regions(pictures, words, size) for pictures in (images.detach(), reconstructions))
    return _sum_over_regions(_distances(network, wanted, drawn, config), words, images, config)


def face_loss(
    network: FeatureNetwork,
    images: Float[Tensor, "batch 3 height width"],
    reconstructions: Float[Tensor, "batch 3 height width"],
    faces: Regions,
    config: FaceLossConfig,
) -> Float[Tensor, ""]:
    """Feature distance of a face recognizer between original and reconstructed faces (InsightTok eq. 7 to 9).

    As `text_loss`, with faces aligned to the recognizer's template instead of cropped; they are weighted by the areas
    of their boxes.

    Args:
        network: frozen, with an input size and a `template` of five landmarks; answers with its L feature maps.
        images: originals in [-1, 1]; no gradient flows into them.
        reconstructions: same shape; the gradient stays under the template's canvas.
        faces: with landmarks; may be empty: the loss is then 0, and still has a graph.
        config: weighting of regions and layers.

    Raises:
        ValueError: faces without landmarks, or a network without a size or template.
    """
    if len(faces) == 0:
        return _nothing(reconstructions)
    size, template = _input_size(network), getattr(network, "template", None)
    if not isinstance(template, Tensor):
        raise ValueError(f"{network.name or 'this network'} has no landmark template, so it cannot compare faces")
    wanted, drawn = (align_faces(pictures, faces, template, size) for pictures in (images.detach(), reconstructions))
    return _sum_over_regions(_distances(network, wanted, drawn, config), faces, images, config)


def _distances(
    network: FeatureNetwork,
    wanted: Float[Tensor, "n 3 h w"],
    drawn: Float[Tensor, "n 3 h w"],
    config: RegionLossConfig,
) -> Float[Tensor, " n"]:
    """Eq. 4 for every region: L maps, per map the squared difference summed over channels, averaged over positions."""
    layers = []
    for a, b in feature_pairs(network, wanted, drawn):
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
    """Eq. 5 and 6, averaged over pictures; one without regions counts as 0, so micro-batches and ranks add up."""
    weights = regions.areas() / (images.shape[2] * images.shape[3]) if config.area_weighted else 1.0
    return (distances * weights).sum() / len(images)


def _input_size(network: FeatureNetwork) -> tuple[int, int]:
    if network.input_size is None:
        raise ValueError(f"{network.name or 'this network'} takes pictures of any size; regions need a fixed one")
    return network.input_size


def _nothing(reconstructions: Tensor) -> Float[Tensor, ""]:
    return upcast(reconstructions).sum() * 0
