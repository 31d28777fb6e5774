import math

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from imtok.data.pictures import decode, encode
from imtok.evaluation.metrics import (
    FeatureStatistics,
    bits_per_pixel,
    codebook_perplexity,
    codebook_usage,
    frechet_distance,
    mutual_information,
    psnr,
    shared_information,
    ssim,
)


def tensor(*pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).contiguous()


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    picture = np.asarray(Image.fromarray(data.astronaut()).resize((160, 120)))
    return picture, decode(encode(picture, "JPEG", quality=30))


def test_psnr_and_ssim_agree_with_scikit_image(pair: tuple[np.ndarray, np.ndarray]) -> None:
    a, b = pair
    both = psnr(tensor(a, b), tensor(b, b))
    assert both[0].item() == pytest.approx(peak_signal_noise_ratio(a, b, data_range=255), abs=1e-4)
    assert math.isinf(both[1].item())
    expected = structural_similarity(
        a, b, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
    )
    assert ssim(tensor(a), tensor(b)).item() == pytest.approx(expected, abs=1e-5)
    assert ssim(tensor(a), tensor(a)).item() == pytest.approx(1.0, abs=1e-6)


def test_worse_jpeg_scores_worse(pair: tuple[np.ndarray, np.ndarray]) -> None:
    versions = [decode(encode(pair[0], "JPEG", quality=quality)) for quality in (95, 60, 20, 5)]
    for metric in (psnr, ssim):
        scores = metric(tensor(*[pair[0]] * 4), tensor(*versions)).tolist()
        assert scores == sorted(scores, reverse=True)


def test_ssim_rejects_pictures_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="11 x 11 pixels or more, got 20 x 10"):
        ssim(torch.zeros(1, 3, 10, 20, dtype=torch.uint8), torch.zeros(1, 3, 10, 20, dtype=torch.uint8))


def test_codebook_usage_and_perplexity_by_hand() -> None:
    codes = torch.tensor([[[0, 5], [0, 6]], [[1, 7], [1, 7]]])
    assert codebook_usage(codes, (4, 8)) == [0.5, 3 / 8]
    perplexity = codebook_perplexity(codes, (4, 8))
    assert perplexity[0] == pytest.approx(2)
    assert perplexity[1] == pytest.approx(2**1.5)


def test_bits_per_pixel_agrees_with_the_rate_in_table_1() -> None:
    assert bits_per_pixel(1024, 14.0, 512, 512) == pytest.approx(0.0547, abs=5e-5)


def statistics(features: np.ndarray, batch: int = 7) -> FeatureStatistics:
    found = FeatureStatistics()
    for start in range(0, len(features), batch):
        found.add(torch.from_numpy(features[start : start + batch]))
    return found


@pytest.mark.parametrize("count", [5, 40, 200])
def test_frechet_distance_agrees_with_scipy(count: int) -> None:
    """With fewer pictures than features, and with so many that the collected rows are reduced in between."""
    rng = np.random.default_rng(count)
    a, b = rng.normal(0, 1, (count, 12)) @ rng.normal(0, 1, (12, 12)), rng.normal(0.5, 2, (count + 3, 12))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b + 1e-12 * np.eye(12)).real
    expected = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(cov_a + cov_b - 2 * root)
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("count", [5, 200])
def test_moments_of_fp32_features_far_from_zero_agree_with_numpy(count: int) -> None:
    """Kept in fp32, the features are summed in float64: a mean of 1,000 leaves their spread of 1 as it is."""
    features = np.random.default_rng(0).normal(1000, 1, (count, 12)).astype(np.float32)
    found = statistics(features).moments()
    exact = features.astype(np.float64)
    assert np.allclose(found.mean, exact.mean(0), rtol=1e-12)
    assert np.allclose(found.covariance, np.cov(exact, rowvar=False), rtol=1e-7, atol=1e-9)


def test_frechet_distance_of_gaussians_by_hand() -> None:
    """For N(m, s^2 I) and N(0, I) in two dimensions: |m|^2 + 2 (s - 1)^2; the corners have exactly these moments."""
    corners = np.array([(1, 1), (1, -1), (-1, 1), (-1, -1)]) * 0.75**0.5  # unbiased covariance I
    distance = frechet_distance(statistics(3 * corners + (1, 2)), statistics(corners))
    assert distance == pytest.approx(5 + 2 * 4, abs=1e-9)
    assert frechet_distance(statistics(corners), statistics(corners)) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="two pictures or more, got 1"):
        statistics(corners[:1]).mean_and_root()


def test_shared_information_by_hand() -> None:
    a = torch.tensor([0, 0, 1, 1])
    assert mutual_information(a, a) == pytest.approx(1)
    assert mutual_information(a, torch.tensor([0, 1, 0, 1])) == pytest.approx(0)
    assert mutual_information(a, torch.tensor([5, 5, 5, 9])) == pytest.approx(1 + 0.811278 - 1.5, abs=1e-5)
    generator = torch.Generator().manual_seed(1)
    first, other = (torch.randint(64, (4, 256), generator=generator) for _ in range(2))
    beyond, chance = shared_information(torch.stack([first, other], dim=2))
    assert chance > 1  # the counts of 1,024 tokens make independent codes look related
    assert abs(beyond) < 0.1
    beyond, chance = shared_information(torch.stack([first, first, first], dim=2))
    assert beyond + chance == pytest.approx(6, abs=0.1)  # a copy shares its whole entropy
    with pytest.raises(ValueError, match="one codebook"):
        shared_information(first[..., None])
