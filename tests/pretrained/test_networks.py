import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from imtok.config import ConfigError
from imtok.pretrained.networks import FrozenNetwork, fold_batch_norms, load_named


class Small(FrozenNetwork):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        for buffer in (self.layers[1].running_mean, self.layers[1].running_var):
            buffer.uniform_(0.5, 1.5)


def test_a_frozen_network_stays_frozen_inside_another_one() -> None:
    network = Small().freeze()
    nn.ModuleList([network]).train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_folding_batch_norms_does_not_change_outputs() -> None:
    network = Small().freeze()
    pictures = torch.randn(2, 3, 8, 8)
    expected = network.layers(pictures)
    folded = fold_batch_norms(copy.deepcopy(network))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded.layers(pictures), expected)


def test_rejects_mismatched_state_dicts_naming_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = Small().state_dict()

    torch.save({f"module.{name}": value for name, value in state.items()} | {"head.bias": torch.ones(1)}, path)
    load_named(Small(), path, ignored=("head.",))
    with pytest.raises(ConfigError, match=r"not the weights of Small: head\.bias is not part of it"):
        load_named(Small(), path)

    torch.save(state | {"layers.3.weight": torch.ones(2, 5, 1, 1)}, path)
    with pytest.raises(ConfigError, match=r"layers\.3\.weight has the shape \(2, 5, 1, 1\), not \(2, 4, 1, 1\)"):
        load_named(Small(), path)

    del state["layers.0.bias"]
    torch.save(state, path)
    with pytest.raises(ConfigError, match=r"layers\.0\.bias is missing"):
        load_named(Small(), path)
