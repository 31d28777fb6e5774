"""Run by test_distributed.py in one process or two: a few steps on rendered signs, everything of interest saved.

python two_ranks.py OUT SHARDS DTYPE STEPS
"""

import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.layers.collective import rank, world_size
from imtok.pretrained import FeatureNetwork
from imtok.training.devices import process_group
from imtok.training.run import Phase
from imtok.training.trainer import Trainer


class TinyRecognizer(FeatureNetwork):
    """Stands in for the recognizers of the region losses: the same random layers on every rank."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.input_size = size
        torch.manual_seed(5)
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2)])
        self.register_buffer("template", torch.tensor([[8.0, 9], [20, 9], [14, 15], [10, 21], [19, 21]]))

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.layers[0](images.to(self.layers[0].weight.dtype)).tanh()
        return [first, self.layers[1](first).tanh()]


def main(out: Path, shards: str, dtype: torch.dtype, steps: int) -> None:
    base = presets.get("insighttok-debug")
    phase = Phase(name="all", steps=20, weights={"text": 1.0, "face": 1.0}, region_share=0.5)
    training = dataclasses.replace(base.training, phases=(phase,), precision="fp32", global_batch_size=8)
    losses = dataclasses.replace(base.losses, adversarial_start=0)
    # Short memory: codes die and are restarted within the few steps.
    quantizer = dataclasses.replace(base.tokenizer.quantizer, codebook_size=256, decay=0.5)
    tokenizer = dataclasses.replace(base.tokenizer, quantizer=quantizer)
    config = dataclasses.replace(base, tokenizer=tokenizer, training=training, losses=losses)
    with process_group() as device:
        trainer = Trainer(config, shards, RunFolder(out / "run"), None, None, device)
        trainer.task.to(dtype)
        trainer.average = None
        trainer.task._networks = {"text": TinyRecognizer((16, 32)), "face": TinyRecognizer((28, 28))}
        for network in trainer.task._networks.values():
            network.freeze().to(dtype)
        trainer.task.start_phase(phase)
        trainer.task.train()
        gradients: dict[str, Tensor] = {}
        restarts = 0.0
        for step, batch in trainer.loader(0).batches(0, steps):
            batch = dataclasses.replace(batch, images=batch.images.to(dtype))
            if step == 0:
                for name, parameter in trainer.task.named_parameters():
                    keep_gradient(gradients, name, parameter, world_size())
            restarts += trainer._train_step(batch, rate=1e-3)["codebook_restarts"]
        gradients["restarts"] = torch.tensor(restarts)
        state = {name: tensor.contiguous() for name, tensor in trainer.task.state_dict().items()}
        save_file(state | gradients, out / f"rank{rank()}.safetensors")


def keep_gradient(kept: dict[str, Tensor], name: str, parameter: nn.Parameter, ranks: int) -> None:
    """Remember the first step's gradient as it stands before clipping, averaged over ranks by the caller's sum."""

    def hook(gradient: Tensor) -> None:
        kept.setdefault(f"gradient.{name}", gradient.detach().clone() / ranks)

    parameter.register_hook(hook)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], getattr(torch, sys.argv[3]), int(sys.argv[4]))
