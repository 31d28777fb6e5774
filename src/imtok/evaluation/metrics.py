"""Metrics between pictures and their reconstructions. One rule each, on uint8 with data range 255."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor


def psnr(
    images: UInt8[Tensor, "batch 3 height width"], reconstructions: UInt8[Tensor, "batch 3 height width"]
) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio in dB of each picture, over all pixels and channels; infinite for equal ones."""
    error = (images.double() - reconstructions.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(255**2 / error)).float()


def ssim(
    images: UInt8[Tensor, "batch 3 height width"], reconstructions: UInt8[Tensor, "batch 3 height width"]
) -> Float[Tensor, " batch"]:
    """Structural similarity of each picture (Wang et al. 2004).

    Gaussian window of 11 pixels and sigma 1.5, K1 = .01, K2 = .03, population covariance, data range 255, averaged over
    channels and over the positions where the window lies inside the picture.

    Raises:
        ValueError: a side is shorter than the window.
    """
    if min(images.shape[2:]) < 11:
        raise ValueError(f"SSIM needs pictures of 11 x 11 pixels or more, got {images.shape[3]} x {images.shape[2]}")
    x, y = images.double().flatten(0, 1)[:, None], reconstructions.double().flatten(0, 1)[:, None]
    offsets = torch.arange(11, dtype=torch.float64, device=x.device) - 5
    window = torch.exp(-(offsets**2) / (2 * 1.5**2))
    window = window / window.sum()

    def blur(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return similarity.mean((1, 2, 3)).view(len(images), 3).mean(1).float()


def codebook_usage(codes: Int[Tensor, "batch tokens codebooks"], codebook_sizes: tuple[int, ...]) -> list[float]:
    """Share of each codebook that the codes of an evaluation set touch."""
    return [codes[..., k].unique().numel() / size for k, size in enumerate(codebook_sizes)]


def codebook_perplexity(codes: Int[Tensor, "batch tokens codebooks"], codebook_sizes: tuple[int, ...]) -> list[float]:
    """Exponential of the entropy of each codebook's codes: how many codes would do if all were equally frequent."""
    counts = [torch.bincount(codes[..., k].flatten(), minlength=size) for k, size in enumerate(codebook_sizes)]
    shares = [count / count.sum() for count in counts]
    return [torch.special.entr(share.double()).sum().exp().item() for share in shares]


def bits_per_pixel(tokens: int, bits_per_token: float, height: int, width: int) -> float:
    """Rate of a discrete tokenizer (InsightTok eq. 16)."""
    return tokens * bits_per_token / (height * width)
