"""Losses over whole pictures: pixels, general perceptual features, and the features of a text detector."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from imtok.layers.precision import upcast
from imtok.pretrained.networks import FeatureNetwork

_TINY_ENERGY = 1e-6
"""Added to squared feature norms: far below their usual values, it bounds the gradient at all-zero features."""


def l1(
    images: Float[Tensor, "batch 3 height width"], reconstructions: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Compute the mean absolute difference over pictures, channels and pixels, in [0, 2] (InsightTok, appendix E.1)."""
    return (upcast(reconstructions) - upcast(images)).abs().mean()


def l2(
    images: Float[Tensor, "batch 3 height width"], reconstructions: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, ""]:
    """Compute the mean squared difference over pictures, channels and pixels, in [0, 4]."""
    return (upcast(reconstructions) - upcast(images)).square().mean()


def perceptual_distance(
    network: FeatureNetwork,
    images: Float[Tensor, "batch 3 height width"],
    reconstructions: Float[Tensor, "batch 3 height width"],
) -> Float[Tensor, ""]:
    """Compute the squared difference of channel-normalized deep features (InsightTok eq. 2).

    It is summed over channels and layers, and averaged over positions and pictures.

    Deviation: eq. 2 weights the channels by LPIPS's learned w_l. `perceptual/lpips_vgg` includes these weights; they
    belong to another VGG16 than the one that is available as a package (`perceptual/vgg16`), for which all channels
    have the same weight and the result is not an LPIPS.

    Args:
        network: usually `perceptual/vgg16`, or `perceptual/lpips_vgg` if its files are installed.
        images: originals in [-1, 1]; no gradient flows into them.
        reconstructions: reconstructions of the same shape.
    """
    pairs = feature_pairs(network, images, reconstructions)
    original_maps, reconstructed_maps = ([pair[side] for pair in pairs] for side in (0, 1))
    return feature_distances(original_maps, reconstructed_maps, network.channel_weights()).mean()


def feature_distances(
    wanted: list[Float[Tensor, "batch _ _ _"]],
    drawn: list[Float[Tensor, "batch _ _ _"]],
    weights: Sequence[Float[Tensor, " _"]] | None = None,
) -> Float[Tensor, " batch"]:
    """Compute the `perceptual_distance` of each picture from the feature maps of originals and reconstructions.

    Deviation: the weights multiply the squared errors, as in LPIPS's own code; InsightTok eq. 2 as printed squares the
    weights too.

    Args:
        wanted: feature maps of the originals.
        drawn: feature maps of the reconstructions.
        weights: channel weights of each map; None: all 1.
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
    """Return pairs of feature maps of the originals, without a graph, and of the reconstructions.

    The network may run under autocast; its outputs are converted to fp32, so that differences are taken in fp32.
    """
    with torch.no_grad():
        # The same memory layout for both: convolutions round differently in another, and equal pictures shall have
        # a distance of exactly 0.
        original_maps = network(torch.empty_like(reconstructions, dtype=images.dtype).copy_(images))
    reconstructed_maps = network(reconstructions)
    return [(upcast(a), upcast(b)) for a, b in zip(original_maps, reconstructed_maps, strict=True)]


def _unit(features: Float[Tensor, "batch c h w"]) -> Float[Tensor, "batch c h w"]:
    return features * (features.square().sum(1, keepdim=True) + _TINY_ENERGY).rsqrt()
