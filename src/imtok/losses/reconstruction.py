"""Losses over whole pictures: pixels, general perceptual features, and the features of a text detector."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imtok.layers.precision import upcast
from imtok.pretrained.networks import FeatureNetwork

_TINY_ENERGY = 1e-6
"""Added to a squared feature norm: far below what networks answer, and it bounds the gradient at all-zero features."""


def l1(
    images: Float[Tensor, "batch 3 height width"], reconstructions: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Mean absolute difference over pictures, channels and pixels, in [0, 2] (InsightTok, appendix E.1)."""
    return (upcast(reconstructions) - upcast(images)).abs().mean()


def l2(
    images: Float[Tensor, "batch 3 height width"], reconstructions: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Mean squared difference over pictures, channels and pixels, in [0, 4]."""
    return (upcast(reconstructions) - upcast(images)).square().mean()


def perceptual_distance(
    network: FeatureNetwork,
    images: Float[Tensor, "batch 3 height width"],
    reconstructions: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, ""]:
    """Distance of deep features: per layer the squared difference of channel-normalized features (InsightTok eq. 2).

    Summed over channels and layers, averaged over positions and pictures.

    Deviation: eq. 2 weighs channels by LPIPS's learned w_l, which `perceptual/lpips_vgg` brings along; they belong to
    another VGG16 than the one that packages carry, through which all count alike, and the number is not an LPIPS.

    Args:
        network: usually `perceptual/vgg16`, or `perceptual/lpips_vgg` where its files are here.
        images: originals in [-1, 1]; no gradient flows into them.
        reconstructions: same shape.
    """
    pairs = feature_pairs(network, images, reconstructions)
    wanted, drawn = ([pair[side] for pair in pairs] for side in (0, 1))
    return feature_distances(wanted, drawn, network.channel_weights()).mean()


def feature_distances(
    wanted: list[Float[Tensor, "batch _ _ _"]],
    drawn: list[Float[Tensor, "batch _ _ _"]],
    weights: Sequence[Float[Tensor, " _"]] | None = None,
) -> Float[Tensor, " batch"]:
    """`perceptual_distance` of each picture, from the maps of originals and reconstructions.

    Deviation: the weights multiply the squared errors, as in LPIPS's own code; InsightTok eq. 2 as printed squares them
    too.

    Args:
        wanted: the originals' maps.
        drawn: the reconstructions'.
        weights: of each map's channels; None: all 1.
    """
    errors = [(_unit(b) - _unit(a)).square() for a, b in zip(wanted, drawn, strict=True)]
    if weights is not None:
        errors = [error * weight[:, None, None] for error, weight in zip(errors, weights, strict=True)]
    return torch.stack([error.sum(1).mean((1, 2)) for error in errors]).sum(0)


def feature_pairs(
    network: FeatureNetwork,
    images: Float[Tensor, "batch 3 height width"],
    reconstructions: Float[Tensor, "batch 3 height width"],
) -> list[tuple[Tensor, Tensor]]:
    """The network's maps of the originals, without a graph, beside those of the reconstructions.

    The network may run under autocast; its answers are widened to fp32 before anybody takes a difference.
    """
    with torch.no_grad():
        # Convolutions round differently in another memory layout, and a picture equal to itself shall cost exactly 0.
        wanted = network(torch.empty_like(reconstructions, dtype=images.dtype).copy_(images))
    drawn = network(reconstructions)
    return [(upcast(a), upcast(b)) for a, b in zip(wanted, drawn, strict=True)]


def _unit(features: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
    return features * (features.square().sum(1, keepdim=True) + _TINY_ENERGY).rsqrt()
