"""Compare Muon with AdamW at equal steps: the same preset, pictures, initial weights and learning rate.

    python benchmarks/optimizers.py textok-nano --data PICTURES [--steps 800]

A generator's preset needs token shards. The benchmark prints the loss over the last tenth of the steps, where the
learning rate is at the end of its schedule, and the median seconds of a step.
"""

import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Literal

import tyro

from imtok import presets
from imtok.checkpoints import RunFolder
from imtok.training.launch import train

ALGORITHMS: tuple[Literal["adamw", "muon"], ...] = ("adamw", "muon")


def main(preset: tyro.conf.Positional[str], data: str, steps: int = 800, learning_rate: float | None = None) -> None:
    """Train one run with each optimizer, one after the other.

    Args:
        preset: preset whose model has transformer blocks.
        data: training data.
        steps: training steps of each run.
        learning_rate: learning rate; None: the preset's.
    """
    print("| optimizer | loss | seconds a step |\n|---|---|---|")
    for algorithm in ALGORITHMS:
        config = presets.get_run(preset)
        rate = learning_rate or config.training.optimizer.learning_rate
        optimizer = dataclasses.replace(config.training.optimizer, algorithm=algorithm, learning_rate=rate)
        intervals = {"log_every": max(1, steps // 50), "save_every": 0, "preview_every": 0, "evaluate_every": 0}
        training = dataclasses.replace(config.training, steps=steps, optimizer=optimizer, **intervals)
        with tempfile.TemporaryDirectory() as folder:
            run_folder = train(dataclasses.replace(config, training=training), data, Path(folder) / algorithm)
            logged = [record for record in RunFolder(run_folder).read_metrics() if "seconds_per_step" in record]
        not_losses = {"step", "phase", "learning_rate", "seconds_per_step"}
        losses = [
            sum(value for name, value in record.items() if name not in not_losses and not name.startswith("grad_norm"))
            for record in logged
            if record["step"] > 0.9 * steps
        ]
        step_seconds = statistics.median(record["seconds_per_step"] for record in logged)
        print(f"| {algorithm} | {statistics.fmean(losses):.4f} | {step_seconds:.3f} |", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
