"""What the recipes of generators share: plain signs, their tokens, a run over them."""

import dataclasses
from pathlib import Path

from imtok.checkpoints import RunFolder
from imtok.data.synthetic import synthesize
from imtok.data.token_shards import TokenShards
from imtok.tokenizers.encode import encode_pictures
from imtok.training.launch import train
from imtok.training.run import GeneratorRunConfig

SIGNS, HELD_OUT = 16_000, 256
RESOLUTION = 128


def render(out: Path) -> Path:
    """Signs to train on and to look at, as OUT/train and OUT/combinations; what is there already stays."""
    for split, count in (("train", SIGNS), ("combinations", HELD_OUT)):
        done = out / f"{split}.complete"
        if not done.exists():
            synthesize(str(out / split), count=count, size=RESOLUTION, plain=True, split=split)
            done.touch()
    return out


def encode(tokenizer: str, signs: Path, out: Path) -> Path:
    """The signs' tokens, as OUT/train and OUT/combinations; what is there already stays."""
    for split in ("train", "combinations"):
        if not ((out / split / "manifest.json").exists() and TokenShards(out / split).complete):
            encode_pictures(tokenizer, signs / split, out / split, RESOLUTION)
    return out


def run(config: GeneratorRunConfig, tokens: Path, out: Path) -> Path:
    """Train to the end, or go on with it; a finished run is left alone."""
    held_out = str(tokens / "combinations")
    return train(config, str(tokens / "train"), out, validation=held_out, resume=RunFolder(out).exists())


def seeded(config: GeneratorRunConfig, seed: int) -> GeneratorRunConfig:
    """With other first weights and another order of the pictures."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
