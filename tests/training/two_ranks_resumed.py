"""Run by test_distributed.py: a tokenizer's run, of which all ranks die when they ask for a batch, unless that is 0.

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
    asked = []

    def batch(self: Loader, step: int, real=Loader.batch) -> Batch:
        asked.append(step)
        if len(asked) == killed_at:
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
