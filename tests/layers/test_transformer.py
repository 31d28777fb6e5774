import pytest
import torch
import torch.nn.functional as F

from imtok.layers.transformer import attend


@pytest.mark.parametrize("tokens", [7, 600])
def test_bf16_attention_under_autocast_matches_float64(tokens: int) -> None:
    """Up to bf16 rounding, for short and long sequences; masked tokens have no influence."""
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(1, 2, tokens, 8, generator=generator).bfloat16().requires_grad_() for _ in range(3)]
    seen = torch.ones(1, 1, 1, tokens, dtype=torch.bool)
    seen[..., -3:] = False
    float64 = [one.detach().double().requires_grad_() for one in inputs]
    expected = F.scaled_dot_product_attention(*(one if n == 0 else one[:, :, :-3] for n, one in enumerate(float64)))
    expected.square().sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(*inputs, seen)
    found.float().square().sum().backward()
    assert found.dtype == torch.bfloat16
    assert (found - expected).abs().max() < 0.02
    for ours, theirs in zip(inputs, float64, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert (ours.grad - theirs.grad).abs().max() < 0.02
