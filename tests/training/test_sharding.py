import traceback

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException

from imtok.checkpoints import RunFolder
from imtok.config import ConfigError
from imtok.training import sharding, state
from imtok.training.sharding import read_state


def save_state(folder, module: nn.Module) -> RunFolder:
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    run = RunFolder(folder)
    run.write_resume(7, state.collect({"task": module}, {"task": optimizer}), {})
    return run


def test_state_is_restored_into_an_optimizer_without_steps(tmp_path):
    module, fresh = nn.Linear(3, 2), nn.Linear(3, 2)
    folder, values = save_state(tmp_path, module).read_resume()
    optimizer = torch.optim.AdamW(fresh.parameters())
    state.restore(read_state(folder, {"task": fresh}, {"task": optimizer}), {"task": fresh}, {"task": optimizer})
    assert values["step"] == 7
    assert torch.equal(fresh.weight, module.weight)
    assert optimizer.state[fresh.bias]["step"] == 1
    assert torch.allclose(optimizer.state[fresh.bias]["exp_avg"], torch.full((2,), 0.1))  # a tenth of a gradient of 1


def test_full_disk_on_one_rank_raises_oserror(tmp_path, monkeypatch):
    def raise_full_disk(*_, **__):
        raise CheckpointException(
            "write", {1: (OSError("No space left on device\nand a trace"), traceback.StackSummary())}
        )

    monkeypatch.setattr(sharding, "save", raise_full_disk)
    with pytest.raises(OSError, match=r"step-00000003: cannot be written \(No space left on device\)$"):
        sharding.write_resume(RunFolder(tmp_path), 3, {}, {})


def test_mismatched_or_damaged_state_is_rejected_in_one_line(tmp_path):
    folder, _ = save_state(tmp_path, nn.Linear(3, 2)).read_resume()
    for other in (nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 2))):
        with pytest.raises(ConfigError, match="not a state that this run can go on from") as caught:
            read_state(folder, {"task": other}, {})
        assert "\n" not in str(caught.value)
    file = folder / "state.safetensors"
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(ConfigError, match="not a state that this run can go on from"):
        read_state(folder, {"task": nn.Linear(3, 2)}, {})
