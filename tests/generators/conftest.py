"""Checks that every autoregressive generator must pass."""

import itertools
from collections.abc import Callable

import pytest
import torch

from imtok.generators import autoregressive
from imtok.generators.autoregressive import AutoregressiveGenerator
from imtok.generators.base import Conditions
from imtok.generators.sampling import SamplingConfig


@pytest.fixture
def assert_steps_agree() -> Callable[..., None]:
    return _assert_steps_agree


@torch.no_grad()
def _assert_steps_agree(
    model: AutoregressiveGenerator, codes: torch.Tensor, conditions: Conditions, tolerance: float = 1e-5
) -> None:
    """Step-by-step logits, computed with a cache, equal those of one pass over all tokens."""
    expected = model(codes, conditions)
    session = model.begin(conditions)
    cache = model.head.new_cache(len(conditions))
    for token in range(model.tokens):
        seen: list[torch.Tensor] = []

        def pick(logits: torch.Tensor, index: int, token: int = token, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(logits)
            return codes[:, token, index]

        model.head.draw(session.hidden, model.embedding, pick, cache)
        for index, logits in enumerate(seen):
            found = logits + model.shared_logits(session.hidden, index)
            assert torch.allclose(found, expected[index][:, token], rtol=tolerance, atol=tolerance)
        if token + 1 < model.tokens:
            session.advance(codes[:, token])


@pytest.fixture
def assert_bf16_is_near() -> Callable[..., None]:
    return _assert_bf16_is_near


@torch.no_grad()
def _assert_bf16_is_near(model: AutoregressiveGenerator, codes: torch.Tensor, conditions: Conditions) -> None:
    """With weights in bf16, logits equal the fp32 ones up to rounding, both in one pass and step by step."""
    exact = model(codes, conditions)
    model.cast(torch.bfloat16)
    for rounded, logits in zip(model(codes, conditions), exact, strict=True):
        assert 0 < (rounded.float() - logits).norm() / logits.norm() < 0.02
    _assert_steps_agree(model, codes, conditions, tolerance=0.1)
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers() if buffer.is_floating_point())
    sampled = model.sample(conditions, range(len(conditions)), SamplingConfig(guidance_scale=(2.0,)))
    assert sampled.shape == codes.shape


@pytest.fixture
def enumerate_pictures() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    return _enumerate_pictures


@torch.no_grad()
def _enumerate_pictures(model: AutoregressiveGenerator, condition: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return all possible pictures and their probabilities: products of their codes' conditional probabilities."""
    tokens = list(itertools.product(*map(range, model.codebook_sizes)))
    pictures = torch.tensor(list(itertools.product(tokens, repeat=model.tokens)))
    session, cache = model.begin([condition] * len(pictures)), model.head.new_cache(len(pictures))
    probability = torch.ones(len(pictures), dtype=torch.double)
    for token in range(model.tokens):

        def pick(logits: torch.Tensor, index: int, token: int = token) -> torch.Tensor:
            nonlocal probability
            weights = (logits + model.shared_logits(session.hidden, index)).double().exp()
            codes = pictures[:, token, index]
            probability = probability * weights.gather(1, codes[:, None])[:, 0] / weights.sum(1)
            return codes

        model.head.draw(session.hidden, model.embedding, pick, cache)
        if token + 1 < model.tokens:
            session.advance(pictures[:, token])
    return pictures, probability


@pytest.fixture
def assert_guided_steps_agree(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`sample` samples from the uncached logits, guided by each codebook's own scale, which rises over the tokens."""

    @torch.no_grad()
    def check(model: AutoregressiveGenerator, conditions: Conditions) -> None:
        scales = (4.0, 1.0, 0.5)[: len(model.codebook_sizes)]
        seen: list[torch.Tensor] = []
        pick = autoregressive.sample_code

        def spy(logits: torch.Tensor, *rest) -> torch.Tensor:
            seen.append(logits)
            return pick(logits, *rest)

        monkeypatch.setattr(autoregressive, "sample_code", spy)
        settings = SamplingConfig(guidance_scale=scales, guidance_schedule="linear")
        codes = model.sample(conditions, range(len(conditions)), settings)
        conditional, unconditional = model(codes, conditions), model(codes, [None] * len(conditions))
        steps = iter(seen)
        for token in range(model.tokens):
            for full, cond, uncond in zip(scales, conditional, unconditional, strict=True):
                scale = 1 + (full - 1) * token / (model.tokens - 1)
                expected = uncond[:, token] + scale * (cond - uncond)[:, token]
                assert torch.allclose(next(steps), expected, atol=1e-4)
        assert next(steps, None) is None

    return check
