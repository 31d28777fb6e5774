"""What the recipes of generators share: plain signs, their tokens, a run over them."""

import dataclasses
from pathlib import Path

from imtok.checkpoints import RunFolder
from imtok.data.synthetic import synthesize
from imtok.data.text_features import embed
from imtok.data.token_shards import TokenShards
from imtok.data.unseen_captions import write_unseen_captions
from imtok.tokenizers.encode import encode_pictures
from imtok.tokenizers.text import TextConfig
from imtok.training.launch import train
from imtok.training.run import GeneratorRunConfig

SIGNS, HELD_OUT = 16_000, 256
UNSEEN = 10
"""Captions of each class that no picture of the training has."""


def render(out: Path, resolution: int) -> Path:
    """Signs to train on and to look at, as OUT/train and OUT/combinations; what is there already stays."""
    for split, count in (("train", SIGNS), ("combinations", HELD_OUT)):
        done = out / f"{split}.complete"
        if not done.exists():
            synthesize(str(out / split), count=count, size=resolution, plain=True, split=split)
            done.touch()
    return out


def tell(signs: Path, hears: TextConfig) -> None:
    """Store what a text encoder says of the captions, and unseen captions of every class, beside the signs."""
    for split in ("train", "combinations"):
        embed(str(signs / split), hears.encoder, hears.max_tokens)
    write_unseen_captions(str(signs / "train"), str(signs / "combinations"), per_class=UNSEEN)


def encode(tokenizer: str, signs: Path, out: Path, resolution: int) -> Path:
    """The signs' tokens, as OUT/train and OUT/combinations; what is there already stays."""
    for split in ("train", "combinations"):
        if not ((out / split / "manifest.json").exists() and TokenShards(out / split).complete):
            encode_pictures(tokenizer, signs / split, out / split, resolution)
    return out


def run(config: GeneratorRunConfig, tokens: Path, out: Path) -> Path:
    """Train to the end, or go on with it; a finished run is left alone."""
    held_out = str(tokens / "combinations")
    return train(config, str(tokens / "train"), out, validation=held_out, resume=RunFolder(out).exists())


def seeded(config: GeneratorRunConfig, seed: int) -> GeneratorRunConfig:
    """With other first weights and another order of the pictures."""
    return dataclasses.replace(config, training=dataclasses.replace(config.training, seed=seed))
