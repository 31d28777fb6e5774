"""Sampling a code: by its probability, among the codes that the filters keep, with noise from the picture's seed."""

import pytest
import torch
from scipy.stats import chisquare

from imtok.config import ConfigError
from imtok.generators.sampling import SamplingConfig, classifier_free_guidance, sample_code, uniform_noise

LOGITS = torch.tensor([2.0, 0.5, 1.0, -1.0, 0.0])


def code_counts(settings: SamplingConfig, count: int = 20_000) -> torch.Tensor:
    noise = torch.rand(count, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    codes = sample_code(LOGITS.expand(count, -1), noise, settings)
    return torch.bincount(codes, minlength=len(LOGITS)).double()


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_code_frequencies_match_the_softmax(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(0).double()
    found = code_counts(SamplingConfig(temperature=temperature))
    assert chisquare(found.numpy(), (expected / expected.sum() * found.sum()).numpy()).pvalue > 1e-3


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (SamplingConfig(top_k=2), [0, 2]),
        (SamplingConfig(top_k=9), [0, 1, 2, 3, 4]),
        (SamplingConfig(top_p=0.5), [0]),  # the most likely code has .56
        (SamplingConfig(top_p=0.6), [0, 2]),
        (SamplingConfig(top_k=3, top_p=0.95), [0, 1, 2]),
        (SamplingConfig(temperature=0.0), [0]),
        (SamplingConfig(temperature=1e-3), [0]),
        (SamplingConfig(temperature=1e-37), [0]),
        (SamplingConfig(temperature=1e-50), [0]),
    ],
)
def test_samples_only_codes_kept_by_filters_and_temperature(settings: SamplingConfig, kept: list[int]) -> None:
    found = code_counts(settings)
    assert found.nonzero()[:, 0].tolist() == kept
    expected = LOGITS[kept].softmax(0).double()
    assert torch.allclose(found[kept] / found.sum(), expected, atol=0.02)


def test_codes_of_probability_zero_are_never_sampled() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]])
    ends = torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64)
    assert sample_code(logits.expand(2, -1), ends, SamplingConfig()).tolist() == [1, 3]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rejects_nan_and_infinite_logits(temperature: float) -> None:
    noise, settings = torch.tensor([0.5], dtype=torch.float64), SamplingConfig(temperature=temperature)
    for bad in (torch.nan, torch.inf):
        with pytest.raises(ConfigError, match="the generator outputs NaN or infinity"):
            sample_code(torch.tensor([[0.0, bad, 1.0]]), noise, settings)


def test_noise_depends_only_on_the_pictures_seed() -> None:
    together = uniform_noise([5, 6, 7], 4, 2)
    assert torch.equal(together, torch.cat([uniform_noise([seed], 4, 2) for seed in (5, 6, 7)]))
    assert not torch.equal(together[0], together[1])


def test_guidance_extrapolates_from_unconditional_to_conditional() -> None:
    conditional, unconditional = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.5]])
    both = torch.cat([conditional, unconditional])
    assert torch.allclose(classifier_free_guidance(both, 3.0), torch.tensor([[3.0, -1.0]]))
    assert torch.equal(classifier_free_guidance(both, 1.0), conditional)
    assert torch.equal(classifier_free_guidance(both, 0.0), unconditional)


def test_guidance_schedules_rise_to_the_full_scale() -> None:
    for schedule in ("linear", "cosine"):
        settings = SamplingConfig(guidance_scale=(2.0, 5.0), guidance_schedule=schedule)  # pyright: ignore[reportArgumentType]
        assert [settings.scale(0, token, 5) for token in (0, 4)] == [1.0, 2.0]
        assert settings.scale(1, 2, 5) == pytest.approx(3.0)
        rising = [settings.scale(1, token, 9) for token in range(9)]
        assert rising == sorted(rising)
        assert settings.scale(1, 0, 1) == 5.0  # of one token, the first is the last
    assert SamplingConfig(guidance_scale=(2.0,)).scale(1, 0, 5) == 2.0
    assert not SamplingConfig().uses_guidance


@pytest.mark.parametrize(
    "changes",
    [{"guidance_scale": ()}, {"guidance_scale": (-1.0,)}, {"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -1}],
)
def test_rejects_invalid_settings(changes: dict) -> None:
    with pytest.raises(ConfigError, match="sampling"):
        SamplingConfig(**changes)
