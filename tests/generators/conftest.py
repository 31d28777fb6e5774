"""What every generator must fulfil."""

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
    """Step by step, with a cache, the logits are those of all places at once."""
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
    """Of rounded weights the logits are those of exact ones but for the rounding, step by step too."""
    exact = model(codes, conditions)
    model.cast(torch.bfloat16)
    for rounded, logits in zip(model(codes, conditions), exact, strict=True):
        assert 0 < (rounded.float() - logits).norm() / logits.norm() < 0.02
    _assert_steps_agree(model, codes, conditions, tolerance=0.1)
    assert all(buffer.dtype == torch.float32 for buffer in model.buffers() if buffer.is_floating_point())
    drawn = model.sample(conditions, range(len(conditions)), SamplingConfig(guidance_scale=(2.0,)))
    assert drawn.shape == codes.shape


@pytest.fixture
def enumerate_pictures() -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    return _enumerate_pictures


@torch.no_grad()
def _enumerate_pictures(model: AutoregressiveGenerator, condition: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Every picture and how often a sampler would draw it: the product of its codes' shares, one after the other."""
    places = list(itertools.product(*map(range, model.codebook_sizes)))
    every = torch.tensor(list(itertools.product(places, repeat=model.tokens)))
    session, cache = model.begin([condition] * len(every)), model.head.new_cache(len(every))
    share = torch.ones(len(every), dtype=torch.double)
    for token in range(model.tokens):

        def pick(logits: torch.Tensor, index: int, token: int = token) -> torch.Tensor:
            nonlocal share
            weights = (logits + model.shared_logits(session.hidden, index)).double().exp()
            codes = every[:, token, index]
            share = share * weights.gather(1, codes[:, None])[:, 0] / weights.sum(1)
            return codes

        model.head.draw(session.hidden, model.embedding, pick, cache)
        if token + 1 < model.tokens:
            session.advance(every[:, token])
    return every, share


@pytest.fixture
def assert_guided_steps_agree(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """What `sample` draws from are the uncached logits, guided by each codebook's own scale, which rises."""

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
        told, unconditional = model(codes, conditions), model(codes, [None] * len(conditions))
        steps = iter(seen)
        for token in range(model.tokens):
            for full, yes, no in zip(scales, told, unconditional, strict=True):
                scale = 1 + (full - 1) * token / (model.tokens - 1)
                expected = no[:, token] + scale * (yes - no)[:, token]
                assert torch.allclose(next(steps), expected, atol=1e-4)
        assert next(steps, None) is None

    return check
