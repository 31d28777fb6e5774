"""Run by test_distributed.py in one process or two: a generator's steps, or a run that is killed and resumed.

python two_ranks_generator.py OUT MICRO SHARDED PRESET TOKENS [PRESET TOKENS …]
python two_ranks_generator.py OUT PRESET TOKENS KILLED_AT
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
from imtok.generators.dit import DiT
from imtok.layers.collective import process_group, rank
from imtok.tokenizers.catalog import load
from imtok.training import sharding
from imtok.training.data_modules import TokenDataModule
from imtok.training.generator_task import GeneratorTask, GeneratorValidation
from imtok.training.launch import train
from imtok.training.launch_generator import for_tokens
from imtok.training.run import GeneratorRunConfig, Phase
from imtok.training.trainer import Trainer


def first_steps(
    out: Path,
    tokens: TokenShards,
    config: GeneratorRunConfig,
    dtype: torch.dtype,
    count: int,
    micro: int,
    sharded: bool,
    device: torch.device,
) -> dict[str, Tensor]:
    """Return the first gradients, and weights and averaged weights after `count` steps."""
    phase = Phase(name="all", steps=20, trains=("all",))
    training = dataclasses.replace(
        config.training,
        phases=(phase,),
        global_batch_size=8,
        micro_batch_size=micro,
        ema_decay=0.9,
        precision="fp32",
        shard_weights=sharded,
        gradient_checkpointing=sharded,
    )
    # Each rank has its own random numbers, so dropout and noise depend on how a batch is split: both are made constant.
    dropouts = [name for name in ("dropout", "condition_dropout") if hasattr(config.generator, name)]
    without_dropout = dataclasses.replace(config.generator, **dict.fromkeys(dropouts, 0.0))
    config = for_tokens(dataclasses.replace(config, training=training, generator=without_dropout), tokens)
    torch.manual_seed(0)
    task = GeneratorTask(config)
    if isinstance(task.generator, DiT):
        diffusion, add_noise = task.generator.diffusion, task.generator.diffusion.add_noise
        diffusion.sample_timesteps = lambda count: torch.full((count,), 400.0)
        diffusion.add_noise = lambda clean, noise, times: add_noise(clean, (100 * clean).sin(), times)
    for parameter in task.parameters():  # a fresh head is all zero and would pass on no gradient
        nn.init.normal_(parameter, std=0.1)
    tokenizer = load(tokens.manifest.tokenizer)
    task.generator.init_from_tokenizer(tokenizer)
    validation = GeneratorValidation(config, tokens, False, tokenizer)
    trainer = Trainer(config, task.to(dtype), TokenDataModule(tokens), validation, RunFolder(out), device)
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


def killed_and_resumed(out: Path, tokens: str, config: GeneratorRunConfig, killed_at: int) -> None:
    """Train a whole run with sharded weights; all ranks exit at their batch number `killed_at`, unless this is 0."""
    training = dataclasses.replace(config.training, shard_weights=True, ema_decay=0.9)
    requested = []

    def batch(self: TokenLoader, step: int, real=TokenLoader.batch) -> TokenBatch:
        requested.append(step)
        if len(requested) == killed_at:
            sys.exit(0)
        return real(self, step)

    TokenLoader.batch = batch
    config = dataclasses.replace(config, training=training)
    train(config, tokens, out / "run", validation=tokens, resume=(out / "run").exists())


if __name__ == "__main__":
    torch.set_num_threads(1)
    out = Path(sys.argv[1])
    if len(sys.argv) == 5:
        preset, tokens, killed_at = sys.argv[2:]
        killed_and_resumed(out, tokens, presets.get_generator(preset), int(killed_at))
    else:
        micro, sharded = int(sys.argv[2]), sys.argv[3] == "True"
        with process_group() as device:
            for preset, tokens in zip(sys.argv[4::2], sys.argv[5::2], strict=True):
                (out / preset).mkdir(exist_ok=True)
                adamw, shards = presets.get_generator(preset), TokenShards(tokens)
                optimizer = dataclasses.replace(adamw.training.optimizer, algorithm="muon")
                muon = dataclasses.replace(adamw, training=dataclasses.replace(adamw.training, optimizer=optimizer))
                kinds = [("gradients", torch.float32, 1, adamw), ("weights", torch.float64, 10, adamw)]
                if not sharded:
                    kinds.append(("muon", torch.float64, 10, muon))
                for name, dtype, count, config in kinds:
                    found = first_steps(out, shards, config, dtype, count, micro, sharded, device)
                    save_file(found, out / preset / f"{name}-{rank()}.safetensors")
