"""Run by test_distributed.py in one process or two: a generator's steps, or a run that is killed and goes on.

python two_ranks_generator.py OUT CODES PRESET MICRO SHARED
python two_ranks_generator.py OUT CODES PRESET KILLED_AT
"""

import dataclasses
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.data.token_loader import TokenBatch, TokenLoader
from imtok.data.token_shards import TokenShards
from imtok.generators.far import FARConfig
from imtok.layers.collective import process_group, rank
from imtok.tokenizers.catalog import load
from imtok.training import sharding
from imtok.training.feeds import TokenFeed
from imtok.training.generator_task import GeneratorTask, GeneratorValidation
from imtok.training.launch import for_tokens, train
from imtok.training.run import GeneratorRunConfig, Phase
from imtok.training.trainer import Trainer


def first_steps(
    out: Path,
    codes: TokenShards,
    config: GeneratorRunConfig,
    dtype: torch.dtype,
    count: int,
    micro: int,
    shared: bool,
    device: torch.device,
) -> dict[str, Tensor]:
    """The first gradients, and weights and averaged weights after so many steps."""
    phase = Phase(name="all", steps=20, trains=("all",))
    training = dataclasses.replace(
        config.training,
        phases=(phase,),
        global_batch_size=8,
        micro_batch_size=micro,
        ema_decay=0.9,
        shard_weights=shared,
        gradient_checkpointing=shared,
    )
    # Noise is every rank's own, so it does depend on how a batch is cut.
    quiet = (
        {"dropout": 0.0, "label_dropout": 0.0} if isinstance(config.generator, FARConfig) else {"prompt_dropout": 0.0}
    )
    config = dataclasses.replace(config, training=training, generator=dataclasses.replace(config.generator, **quiet))
    config = for_tokens(config, codes)
    torch.manual_seed(0)
    task = GeneratorTask(config)
    for parameter in task.parameters():  # a fresh head is all zero, and no gradient would pass it
        nn.init.normal_(parameter, std=0.1)
    tokenizer = load(codes.manifest.tokenizer)
    task.generator.adopt(tokenizer)
    looks = GeneratorValidation(config, codes, False, tokenizer)
    trainer = Trainer(config, task.to(dtype), TokenFeed(codes), looks, RunFolder(out), device)
    task.start_phase(phase)
    task.train()
    names = {id(parameter): name for name, parameter in task.named_parameters()}
    kept: dict[str, Tensor] = {}
    clip = torch.nn.utils.clip_grad_norm_

    def keep_and_clip(parameters: list[nn.Parameter], norm: float) -> Tensor:
        for parameter in parameters:
            assert parameter.grad is not None
            kept.setdefault(f"gradient.{names[id(parameter)]}", sharding.whole(parameter.grad).clone())
        return clip(parameters, norm)

    torch.nn.utils.clip_grad_norm_ = keep_and_clip
    for _, batch in trainer.loader(0).batches(0, count):
        trainer._train_step(batch, rate=1e-3)
    torch.nn.utils.clip_grad_norm_ = clip
    assert trainer.average is not None
    average = {f"average.{name}": tensor for name, tensor in trainer.average.module.state_dict().items()}
    state = {name: sharding.whole(tensor) for name, tensor in (task.state_dict() | average).items()}
    return {name: tensor.contiguous() for name, tensor in (state | kept).items()}


def killed_and_resumed(out: Path, codes: str, config: GeneratorRunConfig, killed_at: int) -> None:
    """A whole run with shared weights; unless it is 0, all ranks die when they ask for so many batches."""
    training = dataclasses.replace(config.training, shard_weights=True, ema_decay=0.9)
    asked = []

    def batch(self: TokenLoader, step: int, real=TokenLoader.batch) -> TokenBatch:
        asked.append(step)
        if len(asked) == killed_at:
            sys.exit(0)
        return real(self, step)

    TokenLoader.batch = batch
    config = dataclasses.replace(config, training=training)
    train(config, codes, out / "run", validation=codes, resume=(out / "run").exists())


if __name__ == "__main__":
    torch.set_num_threads(1)
    out, codes, config = Path(sys.argv[1]), sys.argv[2], presets.get_generator(sys.argv[3])
    if len(sys.argv) == 5:
        killed_and_resumed(out, codes, config, int(sys.argv[4]))
    else:
        micro, shared = int(sys.argv[4]), sys.argv[5] == "True"
        with process_group() as device:
            for name, dtype, count in (("gradients", torch.float32, 1), ("weights", torch.float64, 10)):
                found = first_steps(out, TokenShards(codes), config, dtype, count, micro, shared, device)
                save_file(found, out / f"{name}-{rank()}.safetensors")
