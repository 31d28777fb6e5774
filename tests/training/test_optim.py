import dataclasses
import math

import pytest
import torch
from torch import nn

from imtok import presets
from imtok.config import ConfigError
from imtok.generators import catalog as generators
from imtok.generators.insightar import InsightARConfig
from imtok.layers.model import Model
from imtok.tokenizers import catalog as tokenizers
from imtok.training.optim import averaged, create_adamw, create_optimizers, learning_rate
from imtok.training.run import OptimizerConfig, Phase, RunConfig


def test_learning_rate_warms_up_linearly_and_decays_by_a_cosine() -> None:
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


def test_weight_average_equals_the_recurrence_computed_by_hand() -> None:
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
    optimizer = create_adamw([parameter], OptimizerConfig(weight_decay=0.05))
    parameter.grad = torch.zeros(1)
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert parameter.item() == pytest.approx(2 * (1 - 0.1 * 0.05))


MUON = OptimizerConfig(algorithm="muon", weight_decay=0.05)


@pytest.mark.parametrize(
    ("name", "hidden", "count"),
    [
        ("far-debug", ("decoder.blocks.0.", "head.decoder.blocks.0."), 8),
        ("dit-debug", ("layers.0.", "layers.1."), 10),
        ("insightar-debug", ("language_model.layers.0.",), 7),
        ("textok-debug", ("encoder.transformer.blocks.0.", "decoder.transformer.blocks.0."), 8),
    ],
)
def test_muon_trains_the_matrices_in_the_blocks_and_adamw_everything_else(
    name: str, hidden: tuple[str, ...], count: int
) -> None:
    run = presets.get_run(name)
    model: Model = tokenizers.build(run.tokenizer) if isinstance(run, RunConfig) else generators.build(run.generator)
    named = dict(model.named_parameters())
    optimizers = create_optimizers("model", list(named.values()), model, MUON)
    assert {key: type(one) for key, one in optimizers.items()} == {
        "model": torch.optim.AdamW,
        "model_matrices": torch.optim.Muon,
    }
    trained_by = {key: [id(p) for p in one.param_groups[0]["params"]] for key, one in optimizers.items()}
    assert sorted([*trained_by["model"], *trained_by["model_matrices"]]) == sorted(id(p) for p in named.values())
    matrices = [key for key, parameter in named.items() if id(parameter) in trained_by["model_matrices"]]
    assert len(matrices) == count
    assert all(key.startswith(hidden) and key.endswith("weight") and named[key].ndim == 2 for key in matrices)


def test_muon_trains_the_conv1d_layers_of_gpt2() -> None:
    """GPT-2's linear layers are of the class `Conv1D`."""
    config = presets.get_generator("insightar-debug").generator
    assert isinstance(config, InsightARConfig)
    shape = {"model_type": "gpt2", "vocab_size": 257, "n_embd": 32, "n_layer": 2, "n_head": 2}
    model = generators.build(dataclasses.replace(config, architecture=shape))
    assert len(model.muon_parameters()) == 2 * 4  # qkv, out, up and down


def test_muon_orthogonalizes_gradients_with_the_step_size_of_adamw() -> None:
    model = generators.build(presets.get_generator("far-debug").generator)
    optimizers = create_optimizers("model", list(model.parameters()), model, MUON)
    matrix = model.muon_parameters()[0]
    torch.manual_seed(0)
    matrix.grad, before = torch.randn_like(matrix), matrix.detach().clone()
    muon = optimizers["model_matrices"]
    muon.param_groups[0]["lr"] = 0.1
    muon.step()
    step = (before * (1 - 0.1 * 0.05) - matrix.detach()) / 0.1  # decoupled decay
    left, singular_values, right = torch.linalg.svd(matrix.grad, full_matrices=False)
    rotated = left.T @ step @ right.T
    assert singular_values.max() > 3 * singular_values.min()
    assert (rotated - rotated.diag().diag()).norm() < 0.02 * rotated.norm()  # the same singular vectors
    assert rotated.diag().min() > 0.5 * rotated.diag().max()  # similar singular values, whatever the gradient's
    assert step.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)  # AdamW's: .2 to .4 of the rate (Liu et al. 2025)


def test_muon_rejects_models_without_transformer_blocks() -> None:
    model = presets.create_tokenizer("insighttok-debug")
    with pytest.raises(ConfigError, match="optimizer: muon trains the matrices of a transformer's blocks"):
        create_optimizers("tokenizer", list(model.parameters()), model, MUON)
