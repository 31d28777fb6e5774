"""What every generator must fulfil."""

from collections.abc import Callable

import pytest
import torch

from imtok.generators.autoregressive import AutoregressiveGenerator
from imtok.generators.base import Conditions


@pytest.fixture
def assert_steps_agree() -> Callable[..., None]:
    return _assert_steps_agree


@torch.no_grad()
def _assert_steps_agree(model: AutoregressiveGenerator, codes: torch.Tensor, conditions: Conditions) -> None:
    """Step by step, with a cache, the logits are those of all places at once."""
    expected = model(codes, conditions)
    session = model.begin(conditions)
    for token in range(model.tokens):
        seen: list[torch.Tensor] = []

        def pick(logits: torch.Tensor, index: int, token: int = token, seen: list[torch.Tensor] = seen) -> torch.Tensor:
            seen.append(logits)
            return codes[:, token, index]

        model.head.draw(session.hidden, model.embedding, pick)
        for index, logits in enumerate(seen):
            assert torch.allclose(logits, expected[index][:, token], atol=1e-5)
        if token + 1 < model.tokens:
            session.advance(codes[:, token])
