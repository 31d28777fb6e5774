"""Metrics of sets against torch-fidelity, scipy and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from imtok.evaluation.metrics import FeatureStatistics, Moments, frechet_distance
from imtok.evaluation.set_meters import FeatureMeter, PartedStatistics, ReconstructionFeatures
from imtok.evaluation.set_metrics import ClassScore, covered, disjoint_parts, neighbour_radii
from imtok.pretrained import ExtractedFeatures, FeatureExtractor


def test_frechet_distance_of_given_moments_is_the_closed_form() -> None:
    """For Gaussians with commuting covariances: |m_a - m_b|^2 + sum of (sqrt a - sqrt b)^2 over the shared axes."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, b = np.array([0, 1, 4, 9, 16, 25.0]), np.array([1, 1, 1, 0, 4, 36.0])  # singular ones too
    mean = rng.normal(size=6)
    sets = [Moments(torch.tensor(m), torch.tensor(axes * v @ axes.T)) for m, v in ((mean, a), (0 * mean, b))]
    expected = mean @ mean + np.square(np.sqrt(a) - np.sqrt(b)).sum()
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-6)  # square roots of zero lose half the digits
    assert frechet_distance(sets[0], sets[0]) == pytest.approx(0, abs=1e-6)
    undefined = Moments(sets[0].mean * torch.nan, sets[0].covariance)
    assert math.isnan(frechet_distance(undefined, sets[1]))  # not 0, the best score


def test_moments_agree_with_numpy_and_replace_the_statistics() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=(50, 8)) @ rng.normal(size=(8, 8))
    statistics, other = FeatureStatistics(), FeatureStatistics()
    for block in np.array_split(values, 7):
        statistics.add(torch.tensor(block))
    other.add(torch.tensor(rng.normal(1, 2, (30, 8))))
    moments = statistics.moments()
    np.testing.assert_allclose(moments.mean, values.mean(0), atol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(values, rowvar=False), atol=1e-10)
    assert frechet_distance(moments, other) == pytest.approx(frechet_distance(statistics, other), rel=1e-9)


def test_class_score_by_hand() -> None:
    """Four classes, certain and equally frequent: 4. Uniform predictions: 1. Batches make no difference."""
    certain, unsure = ClassScore(), ClassScore()
    for batch in (torch.eye(4) * 1e4).split(3):
        certain.add(batch)
    unsure.add(torch.zeros(5, 4))
    assert certain.value() == pytest.approx(4)
    assert unsure.value() == pytest.approx(1)
    with pytest.raises(ValueError, match="no pictures"):
        ClassScore().value()


def test_parts_are_disjoint_balanced_and_shuffled() -> None:
    parts = disjoint_parts(103, 10)
    assert sorted(np.bincount(parts, minlength=10).tolist()) == [10] * 7 + [11] * 3
    assert len(set(parts[:30].tolist())) > 5  # adjacent pictures may be of one class


def test_inception_score_agrees_with_torch_fidelity_for_any_batches() -> None:
    fidelity = pytest.importorskip("torch_fidelity.metric_isc")
    logits = torch.randn(63, 20, generator=torch.Generator().manual_seed(0)) * 3
    meter = FeatureMeter(Stub().freeze(), ("fid", "inception_score"), len(logits))  # pyright: ignore[reportArgumentType]
    for index, batch in enumerate(logits.split(8)):
        pair = torch.zeros(len(batch), 2), batch
        meter.add(ReconstructionFeatures(pair[0], {"a": pair}), groups=[index // 3] * len(batch))
    theirs = fidelity.isc_features_to_metric(logits)
    ours = meter.results("a")["inception_score"]
    assert ours.value == pytest.approx(theirs["inception_score_mean"], rel=1e-9)
    assert np.std(ours.parts) == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def test_parts_of_a_frechet_distance_consist_of_whole_groups() -> None:
    """Each group is shifted by a different distance; the Fréchet distance of a pure shift is its squared length."""
    points = torch.randn(12, 3, generator=torch.Generator().manual_seed(0)).double()
    meter = FeatureMeter(Stub().freeze(), ("fid", "inception_score"), 48)  # pyright: ignore[reportArgumentType]
    for batch in range(2):  # pictures of a group come in several batches
        groups = [group for group in range(4) for _ in range(6)]
        originals = torch.cat([points[6 * batch : 6 * batch + 6]] * 4)
        moved = originals + torch.tensor(groups)[:, None]
        meter.add(ReconstructionFeatures(originals, {"a": (moved, torch.zeros(24, 2))}), groups=groups)
    found = meter.results("a")["fid"]
    assert found.parts == pytest.approx([3 * group**2 for group in range(4)], abs=1e-4)


def test_joined_parts_equal_the_statistics_of_the_whole_set() -> None:
    features = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).double() @ torch.randn(4, 4).double()
    parted = PartedStatistics()
    for rows in torch.arange(60).split(7):
        parted.add(features[rows], rows % 3)  # one part stays empty
    found = parted.whole().moments()
    assert parted.whole().count == 60
    assert np.allclose(found.mean, features.mean(0).numpy(), atol=1e-12)
    assert np.allclose(found.covariance, np.cov(features.numpy().T), rtol=1e-9)


class Stub(FeatureExtractor):
    name, sha256 = "vision/inception", "0" * 64

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def extract_features(self, images: torch.Tensor) -> ExtractedFeatures:
        pytest.fail("the meter adds what was described before")


def covered_by_scipy(points: np.ndarray, centres: np.ndarray, k: int) -> np.ndarray:
    """Whether a point is no farther from some centre than that centre's k-th neighbour."""
    own = cdist(centres, centres)
    np.fill_diagonal(own, np.inf)
    radii = np.sort(own, axis=1)[:, k - 1]
    return (cdist(points, centres) <= radii[None]).any(1)


@pytest.mark.parametrize("k", [1, 3])
def test_coverage_agrees_with_brute_force(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imtok.evaluation.set_metrics._BLOCK", 17)
    rng = np.random.default_rng(k)
    real, generated = rng.normal(size=(60, 5)), rng.normal(0.7, 0.6, size=(45, 5))
    real_t, generated_t = torch.tensor(real), torch.tensor(generated)
    precision = covered(generated_t, real_t, neighbour_radii(real_t, k)).numpy()
    recall = covered(real_t, generated_t, neighbour_radii(generated_t, k)).numpy()
    assert (precision == covered_by_scipy(generated, real, k)).all()
    assert (recall == covered_by_scipy(real, generated, k)).all()
    assert 0 < recall.mean() < precision.mean() < 1  # the generated distribution is narrower than the real one
    with pytest.raises(ValueError, match="need 4 pictures or more, got 3"):
        neighbour_radii(real_t[:3], 3)
