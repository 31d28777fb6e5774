import math

import pytest
import torch
from torch import nn

from imtok.training.optim import averaged, create_optimizer, learning_rate
from imtok.training.run import OptimizerConfig, Phase


def test_rate_rises_linearly_and_falls_by_a_cosine() -> None:
    config = OptimizerConfig(learning_rate=2.0, warmup_share=0.1, final_share=0.25)
    phase = Phase(name="all", steps=100)
    rates = [learning_rate(config, phase, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(2 * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi / 2))))
    assert rates[-1] == pytest.approx(0.5, abs=2e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    constant = OptimizerConfig(learning_rate=2.0, schedule="constant")
    assert learning_rate(constant, phase, 99) == 2.0
    faster = Phase(name="all", steps=100, learning_rate=6.0)
    assert [learning_rate(config, faster, step) for step in range(100)] == pytest.approx([3 * r for r in rates])


def test_average_follows_the_recurrence_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    model.register_buffer("count", torch.zeros(()))
    average = averaged(model, decay=0.5)
    expected = None
    for step, value in enumerate([1.0, 2.0, 4.0, 8.0, 16.0, 3.0, 1.0, 9.0, 2.0, 6.0, 5.0]):
        with torch.no_grad():
            model.weight.fill_(value)
            model.count.fill_(step)
        average.update_parameters(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = value if expected is None else decay * expected + (1 - decay) * value
        assert average.module.weight.item() == pytest.approx(expected)
        assert average.module.count == step


def test_weight_decay_is_decoupled() -> None:
    parameter = nn.Parameter(torch.full((1,), 2.0))
    optimizer = create_optimizer([parameter], OptimizerConfig(weight_decay=0.05))
    parameter.grad = torch.zeros(1)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert parameter.item() == pytest.approx(2 * (1 - 0.1 * 0.05))
