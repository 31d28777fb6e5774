"""Run by test_distributed.py in one process or two: take a few steps on rendered signs; save gradients and state.

python two_ranks.py OUT SHARDS PRESET DTYPE STEPS MICRO
"""

import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.data.readers import open_dataset
from imtok.layers.collective import process_group, rank
from imtok.pretrained import FeatureNetwork, FrozenNetwork
from imtok.tokenizers import EMAVQConfig
from imtok.training.data_modules import ImageDataModule
from imtok.training.run import Phase
from imtok.training.tasks import TokenizerTask
from imtok.training.trainer import Trainer
from imtok.training.validation import Validation


class TinyRecognizer(FeatureNetwork):
    """Replaces the recognizers of the region losses; has the same random layers on every rank."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.input_size = size
        torch.manual_seed(5)
        self.layers = nn.ModuleList([nn.Conv2d(3, 4, 3, 2), nn.Conv2d(4, 4, 3, 2)])
        self.register_buffer("template", torch.tensor([[8.0, 9], [20, 9], [14, 15], [10, 21], [19, 21]]))

    def forward(self, images: Tensor) -> list[Tensor]:
        first = self.layers[0](images.to(self.layers[0].weight.dtype)).tanh()
        return [first, self.layers[1](first).tanh()]


class MeanColour(FrozenNetwork):
    """Replaces a target network of representation learning: embeds a picture as its mean colour, in `dim` channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        torch.manual_seed(6)
        self.register_buffer("widen", torch.randn(3, dim))

    def embed(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) @ self.widen.to(images.dtype)


def main(out: Path, shards: str, preset: str, dtype: torch.dtype, steps: int, micro: int) -> None:
    base = presets.get(preset)
    phase = Phase(name="all", steps=20, weights={"text": 1.0, "face": 1.0}, region_share=0.5)
    training = dataclasses.replace(
        base.training, phases=(phase,), precision="fp32", global_batch_size=8, micro_batch_size=micro
    )
    training = dataclasses.replace(training, ema_decay=None)
    # The entropy loss uses the mean assignment of one forward pass, so it depends on the micro-batches and is off.
    # InfoNCE uses one pass too, but of all ranks.
    representation = dataclasses.replace(base.losses.representation, gather=True)
    losses = dataclasses.replace(base.losses, adversarial_start=0, entropy_weight=0.0, representation=representation)
    tokenizer = base.tokenizer
    if isinstance(tokenizer.quantizer, EMAVQConfig):  # with a low decay, codes die within the few steps
        quantizer = dataclasses.replace(tokenizer.quantizer, codebook_size=256, decay=0.5)
        tokenizer = dataclasses.replace(tokenizer, quantizer=quantizer)
    config = dataclasses.replace(base, tokenizer=tokenizer, training=training, losses=losses)
    with process_group() as device:
        torch.manual_seed(0)
        task = TokenizerTask(config)
        task.prepare = lambda phases, device: None  # the tiny recognizers replace the real ones
        task._networks = {"text": TinyRecognizer((16, 32)), "face": TinyRecognizer((28, 28))}
        task._targets = [MeanColour(target.dim) for target in representation.targets]
        for network in (*task._networks.values(), *task._targets):
            network.freeze().to(dtype)
        source = open_dataset(shards)
        data_module, validation = ImageDataModule(source, config.data), Validation(config, source, False)
        trainer = Trainer(config, task.to(dtype), data_module, validation, RunFolder(out), device)
        task.start_phase(phase)
        task.train()
        names = {id(parameter): name for name, parameter in task.named_parameters()}
        kept: dict[str, Tensor] = {}
        clip = torch.nn.utils.clip_grad_norm_

        def keep_and_clip(parameters: list[nn.Parameter], norm: float) -> Tensor:
            for parameter in parameters:
                kept.setdefault(f"gradient.{names[id(parameter)]}", parameter.grad.clone())
            return clip(parameters, norm)

        torch.nn.utils.clip_grad_norm_ = keep_and_clip
        restarts, faces = 0.0, 0.0
        for _, batch in trainer.loader(0).batches(0, steps):
            numbers = trainer._train_step(dataclasses.replace(batch, images=batch.images.to(dtype)), rate=1e-3)
            restarts, faces = restarts + numbers.get("codebook_restarts", 0.0), faces + numbers["face"]
        kept |= {"restarts": torch.tensor(restarts), "faces": torch.tensor(faces)}
        state = {name: tensor.contiguous() for name, tensor in task.state_dict().items()}
        kept = {name: tensor.contiguous() for name, tensor in kept.items()}
        save_file(state | kept, out / f"rank{rank()}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *sys.argv[2:4], getattr(torch, sys.argv[4]), int(sys.argv[5]), int(sys.argv[6]))
