"""Metrics of pictures and reconstructions (uint8, data range 255), of codes, and of feature statistics."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor


def psnr(
    images: UInt8[Tensor, "batch 3 height width"], reconstructions: UInt8[Tensor, "batch 3 height width"]
) -> Float[Tensor, " batch"]:
    """Return the peak signal-to-noise ratio of each picture in dB, over all pixels and channels; inf for equal ones."""
    error = (images.double() - reconstructions.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(255**2 / error)).float()


def ssim(
    images: UInt8[Tensor, "batch 3 height width"], reconstructions: UInt8[Tensor, "batch 3 height width"]
) -> Float[Tensor, " batch"]:
    """Return the structural similarity of each picture (Wang et al. 2004).

    Gaussian window of 11 pixels and sigma 1.5, K1 = .01, K2 = .03, population covariance, data range 255, averaged over
    channels and over the positions where the window lies inside the picture.

    Raises:
        ValueError: a side of the pictures is shorter than the window.
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
    """Return the share of each codebook's entries that occur among the codes of an evaluation set."""
    return [codes[..., k].unique().numel() / size for k, size in enumerate(codebook_sizes)]


def codebook_perplexity(codes: Int[Tensor, "batch tokens codebooks"], codebook_sizes: tuple[int, ...]) -> list[float]:
    """Return the exponential of the entropy of each codebook's codes.

    This is the number of equally frequent codes that would have the same entropy.
    """
    counts = [torch.bincount(codes[..., k].flatten(), minlength=size) for k, size in enumerate(codebook_sizes)]
    shares = [count / count.sum() for count in counts]
    return [torch.special.entr(share.double()).sum().exp().item() for share in shares]


def mutual_information(a: Int[Tensor, " tokens"], b: Int[Tensor, " tokens"]) -> float:
    """Return the mutual information of two codes at the same position in bits, estimated from counts.

    The estimate is biased upwards if there are few tokens.
    """
    entropies = []
    for values in (a, b, a.long() * (int(b.max()) + 1) + b):  # the third: a unique number per pair
        share = torch.unique(values, return_counts=True)[1].double() / len(a)
        entropies.append(torch.special.entr(share).sum().item() / math.log(2))
    return entropies[0] + entropies[1] - entropies[2]


def shared_information(codes: Int[Tensor, "batch tokens codebooks"]) -> tuple[float, float]:
    """Return the redundancy of the codebooks: the mean mutual information of their codes over all pairs, in bits.

    Returns:
        The mutual information at the same position minus the chance level, and the chance level: the value for codes
        shuffled over all positions, which is the bias that independent codebooks would show.

    Raises:
        ValueError: there are fewer than two codebooks.
    """
    flat = codes.flatten(0, 1)
    if flat.shape[1] < 2:
        raise ValueError("one codebook shares nothing with another")
    order = torch.randperm(len(flat), generator=torch.Generator().manual_seed(0))
    pairs = list(combinations(flat.unbind(1), 2))
    found = fmean(mutual_information(a, b) for a, b in pairs)
    chance = fmean(mutual_information(a, b[order]) for a, b in pairs)
    return found - chance, chance


def bits_per_pixel(tokens: int, bits_per_token: float, height: int, width: int) -> float:
    """Return the rate of a picture's tokens in bits per pixel (InsightTok eq. 16)."""
    return tokens * bits_per_token / (height * width)


class FeatureStatistics:
    """Feature vectors of a set of pictures, reduced to the first two moments that a Fréchet distance needs.

    As soon as one more than its dimensions are collected, vectors are replaced by the triangular factor of their QR
    decomposition in float64, which has the same second moments. So the features of a large set are never all in memory.
    They are collected in one block: many small tensors would fragment the memory that batches use.
    """

    def __init__(self) -> None:
        self.count, self.dim = 0, 0
        self._block, self._filled = torch.empty(0, 0), 0
        self._reduced: list[Tensor] = []

    def add(self, features: Float[Tensor, "batch dim"]) -> None:
        """Add the features of more pictures."""
        if not self.dim:
            self.dim = features.shape[1]
            self._block = torch.ones(self.dim + 1, self.dim + 1, dtype=features.dtype)
        self.count += len(features)
        rows = features.cpu()
        while len(rows):
            taken = rows[: len(self._block) - self._filled]
            # The first column stays 1 for every picture, so the factor's first row holds the mean.
            self._block[self._filled : self._filled + len(taken), 1:] = taken
            self._filled += len(taken)
            rows = rows[len(taken) :]
            if self._filled == len(self._block):
                self._reduced = [self._factor()]
                self._filled = 0

    @classmethod
    def joined(cls, parts: "Sequence[FeatureStatistics]") -> "FeatureStatistics":
        """Return the statistics of a set, given those of its disjoint parts."""
        whole = cls()
        whole.count, whole.dim = sum(part.count for part in parts), max(part.dim for part in parts)
        whole._reduced = [rows for part in parts for rows in part._collected()]
        return whole

    def mean_and_root(self) -> tuple[Float[Tensor, " dim"], Float[Tensor, "rows dim"]]:
        """Return the mean, and a matrix A such that A^T A is the unbiased covariance.

        Raises:
            ValueError: there are fewer than two pictures.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs two pictures or more, got {self.count}")
        factor = self._factor()
        mean = factor[0, 1:] / factor[0, 0]
        return mean, factor[1:, 1:] / (self.count - 1) ** 0.5

    def moments(self) -> "Moments":
        """Return mean and covariance, as stored in files of statistics.

        Raises:
            ValueError: there are fewer than two pictures.
        """
        mean, root = self.mean_and_root()
        return Moments(mean, root.T @ root)

    def _factor(self) -> Float[Tensor, "rows columns"]:
        return torch.linalg.qr(torch.cat(self._collected()).double(), mode="r").R

    def _collected(self) -> list[Tensor]:
        return [*self._reduced, self._block[: self._filled]] if self._filled else self._reduced


@dataclass(frozen=True)
class Moments:
    """Precomputed statistics of a set: mean and covariance of its features, in float64."""

    mean: Float[Tensor, " dim"]
    covariance: Float[Tensor, "dim dim"]

    def mean_and_root(self) -> tuple[Float[Tensor, " dim"], Float[Tensor, "dim dim"]]:
        """Return the mean, and a matrix A such that A^T A is the covariance; its negative eigenvalues are set to 0."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return self.mean, values.clamp(min=0).sqrt()[:, None] * vectors.T


def frechet_distance(a: FeatureStatistics | Moments, b: FeatureStatistics | Moments) -> float:
    """Return the squared Fréchet distance of two Gaussians with the sets' means and covariances (Heusel et al. 2017).

    |m_a - m_b|^2 + Tr(S_a + S_b - 2 (S_a S_b)^(1/2)). The trace of the root is the sum of the singular values of A B^T,
    where A^T A = S_a and B^T B = S_b, so no matrix root is taken. The distance is biased for small sets: compare only
    distances with equal numbers of pictures.

    Raises:
        ValueError: a set has fewer than two pictures.
    """
    (mean_a, root_a), (mean_b, root_b) = a.mean_and_root(), b.mean_and_root()
    cross = torch.linalg.svdvals(root_a @ root_b.T).sum()
    distance = (mean_a - mean_b).square().sum() + root_a.square().sum() + root_b.square().sum() - 2 * cross
    return distance.clamp(min=0).item()  # NaN stays NaN
