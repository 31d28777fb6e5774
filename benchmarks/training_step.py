"""Time a training step of the full-size InsightTok and measure the share of the text and face losses in it.

    python benchmarks/training_step.py [--preset insighttok] [--steps 3] [--batch-size 1]

Every picture has one face and two words, as in the paper's Table 11. The pictures are noise: the cost does not depend
on their content. Steps with and without the two losses are timed in turn, so that a drift of the machine's speed
affects both equally. The benchmark prints medians, their ratio, and the peak memory of the process.
"""

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable

import torch
import tyro

from imtok import presets
from imtok.data.loader import Batch
from imtok.layers.crops import Regions
from imtok.training.optim import create_optimizers
from imtok.training.run import Phase, RunConfig
from imtok.training.tasks import TokenizerTask


def main(preset: str = "insighttok", steps: int = 3, batch_size: int = 1, perceptual: bool = True) -> None:
    """Time training steps.

    Args:
        preset: preset of the run.
        steps: timed steps, after one warm-up step.
        batch_size: pictures per step.
        perceptual: whether to include the VGG16 loss, as in the paper.
    """
    config = presets.get(preset)
    if not perceptual:
        config = dataclasses.replace(config, losses=dataclasses.replace(config.losses, perceptual_weight=0.0))
    task = ready(config)
    optimizers = optimizers_of(task)
    batch = example_batch(batch_size, config.data.crop.resolution)
    phases = {
        "without": Phase(name="without", steps=1),
        "with": Phase(name="with", steps=1, weights={"text": 1.0, "face": 1.0}),
    }
    task.prepare(list(phases.values()), torch.device("cpu"))
    seconds: dict[str, list[float]] = {name: [] for name in phases}
    for count in range(steps + 1):
        for name, phase in phases.items():
            task.start_phase(phase)
            elapsed = timed(lambda: train_step(task, optimizers, batch))
            if count:
                seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    size = sum(tensor.numel() for tensor in task.tokenizer.weights().values()) / 1e6
    pixels = config.data.crop.resolution
    print(
        f"{preset}: {size:.1f}M, {batch_size} x {pixels}², {config.training.precision}, "
        f"{torch.get_num_threads()} threads, {steps} steps"
    )
    print(f"step without text and face losses: {medians['without']:.2f} s (median)")
    print(f"step with them:                    {medians['with']:.2f} s (median)")
    print(f"ratio:                             {medians['with'] / medians['without']:.3f}")
    print(f"peak memory:                       {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


def example_batch(size: int, resolution: int) -> Batch:
    """Return a batch of noise with two words and one face in each picture."""
    generator = torch.Generator().manual_seed(0)
    side = float(resolution)
    words = [[side * 0.1, side * 0.1, side * 0.5, side * 0.2], [side * 0.4, side * 0.7, side * 0.9, side * 0.85]]
    face = [side * 0.3, side * 0.3, side * 0.7, side * 0.7]
    points = [[0.42, 0.45], [0.58, 0.45], [0.5, 0.52], [0.44, 0.6], [0.56, 0.6]]
    return Batch(
        images=torch.rand(size, 3, resolution, resolution, generator=generator) * 2 - 1,
        words=Regions(torch.tensor(words * size), torch.arange(size).repeat_interleave(2)),
        faces=Regions(torch.tensor([face] * size), torch.arange(size), torch.tensor([points] * size) * side),
        captions=[None] * size,
        labels=[None] * size,
        paths=[""] * size,
    )


def ready(config: RunConfig) -> TokenizerTask:
    """Return the task of a run, in the memory layout that the trainer uses."""
    task = TokenizerTask(config).train()
    return task.to(memory_format=torch.channels_last) if config.training.channels_last else task


def optimizers_of(task: TokenizerTask) -> list[torch.optim.Optimizer]:
    """Return the optimizers of all players (tokenizer, discriminator), as the trainer creates them."""
    settings, model = task.config.training.optimizer, task.model
    created = [create_optimizers(player, task.parameters_of(player), model, settings) for player in task.players]
    return [optimizer for each in created for optimizer in each.values()]


def train_step(task: TokenizerTask, optimizers: list[torch.optim.Optimizer], batch: Batch) -> None:
    """Run one step of all players, as the trainer does."""
    for player in task.players:
        with torch.autocast("cpu", torch.bfloat16, enabled=task.config.training.precision == "bf16"):
            terms = task.losses(batch, player, 0)
        if terms:  # a discriminator that has not started yet has no losses
            torch.stack([task.weight(name) * value for name, value in terms.items()]).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    task.after_step()


def timed(work: Callable[[], None]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    tyro.cli(main)
