"""Run by test_distributed.py: train a tokenizer; all ranks exit at their batch number KILLED_AT, unless this is 0.

python two_ranks_resumed.py OUT SHARDS KILLED_AT
"""

import dataclasses
import sys
from pathlib import Path

import torch

from imtok import presets
from imtok.data.loader import Batch, Loader
from imtok.training.launch import train


def main(out: Path, shards: str, killed_at: int) -> None:
    requested = []

    def batch(self: Loader, step: int, real=Loader.batch) -> Batch:
        requested.append(step)
        if len(requested) == killed_at:
            sys.exit(0)
        return real(self, step)

    Loader.batch = batch
    config = presets.get("insighttok-debug")
    phases = tuple(dataclasses.replace(phase, weights={}, region_share=None) for phase in config.training.phases)
    training = dataclasses.replace(config.training, phases=phases, ema_decay=0.9)
    train(dataclasses.replace(config, training=training), shards, out / "run", resume=(out / "run").exists())


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
